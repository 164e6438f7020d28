"""APT's files, as APT itself understands them, and keys, as GnuPG knows them."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _apt, _driver_apt

REPO = Path(__file__).resolve().parents[4]
CATALOGUE: dict[str, Any] = yaml.safe_load((REPO / "roles/vllm_nvidia/vars/main.yml").read_text())[
    "__vllm_nvidia_catalogue"
]
MAKE = REPO / "molecule/nvidia/files/make_repository.py"
MISSING = [name for name in ("apt-get", "dpkg-deb", "gpg") if not shutil.which(name)]
with_apt = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed")
VERSIONS = ("580.95.05-1", "580.126.20-1", "595.45.04-1")


# --- as apt understands it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository as NVIDIA's, and its key's fingerprint as GnuPG prints it."""
    folder = tmp_path_factory.mktemp("nvidia") / "repository"
    made = subprocess.run(
        [sys.executable, MAKE, folder, folder.with_name("keys"), "6.1.0-41-amd64", *VERSIONS],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder, made.stdout.strip()


@dataclass(frozen=True)
class Apt:
    """An APT of its own, whose files are in a folder; call it with a command, and with what is installed."""

    folder: Path

    def __call__(self, *command: str, installed: dict[str, str] | None = None) -> str:
        entries = [
            f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
            for name, version in (installed or {}).items()
        ]
        (self.folder / "state/status").write_text("\n".join(entries))
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        )  # fmt: skip
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def apt(repository: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Apt:
    """One that knows this repository only."""
    folder, _fingerprint = repository
    tmp_path = tmp_path_factory.mktemp("apt")
    etc, state = tmp_path / "etc", tmp_path / "state"
    for place in (
        etc / "preferences.d",
        etc / "sources.list.d",
        etc / "apt.conf.d",
        state / "lists/partial",
        tmp_path / "cache/archives/partial",
    ):
        place.mkdir(parents=True)
    (etc / "sources.list.d/vllm-nvidia.sources").write_text(
        _driver_apt.source_text(f"file:{folder}/", str(folder / "key.asc"))
    )
    pins = _driver_apt.pin_text("580", CATALOGUE["pinned"], True)
    (etc / "preferences.d/00-vllm-nvidia.pref").write_text(pins)
    # As NVIDIA's own pinning package for another branch would have it.
    (etc / "preferences.d/nvidia-driver-pinning-595").write_text(
        "Package: libcuda1 nvidia-*\nPin: version 595.*\nPin-Priority: 1000\n"
    )
    (etc / "apt.conf.d/52vllm-nvidia").write_text(_driver_apt.upgrades_text(CATALOGUE["patterns"]))
    options = {
        "Dir::Etc": etc, "Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": tmp_path / "cache", "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64", "Debug::NoLocking": "true",
    }  # fmt: skip
    (tmp_path / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in options.items()))

    run = Apt(tmp_path)
    said = run("apt-get", "update")
    assert not any(line.startswith(("E:", "W:")) for line in said.splitlines()), said
    return run


def test_every_package_of_the_driver_is_pinned() -> None:
    names = [
        name.format(branch="580")
        for one in CATALOGUE["sets"]
        for name in (*one["packages"], *one["modules"]["open"], one["fabric_manager"])
    ]
    examples = [pattern.replace("*", "-580") for pattern in CATALOGUE["patterns"]]
    assert [
        name for name in (*names, *examples) if not any(fnmatchcase(name, one) for one in CATALOGUE["pinned"])
    ] == []


def candidate(policy: str) -> str:
    return next(line.split(":", 1)[1].strip() for line in policy.splitlines() if "Candidate:" in line)


@with_apt
@pytest.mark.parametrize(
    ("name", "installed", "wanted"),
    [
        ("libcuda1", {}, "580.126.20-1"),
        ("nvidia-fabricmanager", {}, "580.126.20-1"),
        # Also back from a newer branch, and not to Debian's own.
        ("libcuda1", {"libcuda1": "595.45.04-1"}, "580.126.20-1"),
        ("libcuda1", {"libcuda1": "550.163.01-2"}, "580.126.20-1"),
        ("libnvidia-container1", {}, "1.18.0-1"),
        ("dkms", {"dkms": "3.0.10-8+deb12u1"}, "1:3.4.0-1"),
        ("cuda-toolkit-13-0", {}, "13.0.2-1"),
        ("linux-modules-nvidia-580-server-open-generic", {}, "6.8.0-88.89"),
    ],
)
def test_which_version_apt_takes(apt: Apt, name: str, installed: dict[str, str], wanted: str) -> None:
    assert candidate(apt("apt-cache", "policy", name, installed=installed)) == wanted


@with_apt
def test_priorities_as_apt_reads_them(apt: Apt) -> None:
    policy = apt("apt-cache", "policy", "libcuda1", "hostname")
    for line in ("580.126.20-1 1001", "580.95.05-1 1001", "99-1 100"):
        assert f"     {line}\n" in policy


@with_apt
def test_a_whole_driver_goes_back_to_the_branch(apt: Apt) -> None:
    newer = dict.fromkeys(("libcuda1", "libnvidia-ml1", "nvidia-driver-cuda"), "595.45.04-1")
    said = apt(
        "apt-get",
        "--simulate",
        "--yes",
        "--allow-downgrades",
        "install",
        "nvidia-driver-cuda=580.126.20-1",
        installed=newer,
    )
    assert "3 downgraded" in said
    assert _apt.touched(said, "Remv", "Purg") == []


@with_apt
def test_the_files_are_ones_that_apt_reads(apt: Apt) -> None:
    listed = apt("apt-config", "dump")
    assert 'Unattended-Upgrade::Package-Blacklist:: "^libnvidia-.*$";' in listed


@with_apt
def test_what_is_offered_is_chosen_from(apt: Apt) -> None:
    packages, optional = (
        ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"],
        ["nvidia-persistenced", "firmware-nvidia-other"],
    )
    offers = _apt.offered(apt("apt-cache", "madison", *packages, *optional))
    assert offers["nvidia-driver-cuda"] == ["595.45.04-1", "580.126.20-1", "580.95.05-1"]
    assert _driver_apt.choose(packages, optional, offers, "580") == dict.fromkeys(
        [*packages, "nvidia-persistenced"], "580.126.20-1"
    )
    assert set(_driver_apt.choose(packages, [], offers, "580", "580.95.05").values()) == {"580.95.05-1"}
    with pytest.raises(
        LookupError,
        match=r"do not have a driver of the branch 620 in all its parts. They have nvidia-driver-cuda: 595.45.04, 580.126.20",
    ):
        _driver_apt.choose(packages, [], offers, "620")


def test_a_driver_is_chosen_that_is_there_as_a_whole() -> None:
    offers = {
        "a": ["580.159.03-0ubuntu0.24.04.1", "580.126.20-0ubuntu0.24.04.2", "580.126.20-0ubuntu0.24.04.1"],
        "b": ["580.126.20-0ubuntu0.24.04.1"],
    }
    assert _driver_apt.choose(["a", "b"], [], offers, "580") == {
        "a": "580.126.20-0ubuntu0.24.04.2",
        "b": "580.126.20-0ubuntu0.24.04.1",
    }
    with pytest.raises(LookupError, match="b: none"):
        _driver_apt.choose(["a", "b"], [], {"a": offers["a"]}, "580")


@pytest.fixture
def mirror(repository: tuple[Path, str]) -> Iterator[str]:
    """A host that mirrors NVIDIA's repository and one of a distribution, which has `hostname` as well, and newer."""
    folder, _fingerprint = repository
    other = folder.with_name("debian")
    other.mkdir(exist_ok=True)
    (other / "Packages").write_text(
        "Package: hostname\nVersion: 100-1\nArchitecture: amd64\nMaintainer: x\nDescription: x\nFilename: ./x\nSize: 1\n"
        f"SHA256: {'0' * 64}\n"
    )
    (other / "Release").write_text("Origin: Debian\nLabel: Debian\nSuite: stable\n")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder.parent))

        def log_message(self, *_words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@with_apt
def test_only_nvidias_repository_is_kept_low_and_not_what_else_its_mirror_has(
    mirror: str, repository: tuple[Path, str], apt: Apt
) -> None:
    folder, _fingerprint = repository
    sources, pins = (
        apt.folder / "etc" / name
        for name in ("sources.list.d/vllm-nvidia.sources", "preferences.d/00-vllm-nvidia.pref")
    )
    before = {path: path.read_text() for path in (sources, pins)}
    nvidias = _driver_apt.source_text(f"{mirror}/{folder.name}/", str(folder / "key.asc"))
    sources.write_text(f"{nvidias}\nTypes: deb\nURIs: {mirror}/debian/\nSuites: ./\nTrusted: yes\n")
    pins.write_text(_driver_apt.pin_text("580", CATALOGUE["pinned"], True))
    try:
        apt("apt-get", "update")
        policy = apt("apt-cache", "policy", "hostname")
    finally:
        for path, text in before.items():
            path.write_text(text)
        apt("apt-get", "update")
    assert "     99-1 100\n" in policy
    assert "     100-1 500\n" in policy


def test_without_nvidias_repository_there_is_no_pin_of_it() -> None:
    assert "Package: *\n" not in _driver_apt.pin_text("580", CATALOGUE["pinned"], False)


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("deb [signed-by=/x.gpg] https://h/repos/debian12/x86_64/ /", True),
        ("Types: deb\nURIs: https://h/repos/debian12/x86_64\nSuites: /", True),
        ("# deb https://h/repos/debian12/x86_64/ /", False),
        ("deb https://h/repos/debian13/x86_64/ /", False),
    ],
)
def test_a_repository_that_the_host_has_already(text: str, there: bool) -> None:
    assert _driver_apt.names_address(text, "https://h/repos/debian12/x86_64/") is there


@pytest.mark.parametrize(
    ("text", "blindly"),
    [
        ("deb [trusted=yes] https://h/repos/debian12/x86_64/ /\n", True),
        ("deb [arch=amd64 trusted=yes signed-by=/x] https://h/repos/debian12/x86_64 /\n", True),
        ("Types: deb\nURIs: https://h/repos/debian12/x86_64/\nSuites: /\nTrusted: yes\n", True),
        ("# deb [trusted=yes] https://h/repos/debian12/x86_64/ /\n", False),
        ("deb [signed-by=/x] https://h/repos/debian12/x86_64/ /\ndeb [trusted=yes] https://other/ /\n", False),
        (
            "Types: deb\nURIs: https://h/repos/debian12/x86_64/\nSuites: /\n\nTypes: deb\nURIs: https://other/\nTrusted: yes\n",
            False,
        ),
        ("deb [trusted=no] https://h/repos/debian12/x86_64/ /\n", False),
    ],
)
def test_an_entry_that_no_signature_vouches_for(text: str, blindly: bool) -> None:
    assert _driver_apt.trusts_blindly(text, "https://h/repos/debian12/x86_64/") is blindly


@pytest.mark.parametrize(
    "address", ["https://mirror.example.com/nvidia", "http://10.0.0.5:3142/cuda/repos", "file:/srv/nvidia"]
)
def test_addresses_that_will_do(address: str) -> None:
    assert _driver_apt.address_problem("x", address) == ""


@pytest.mark.parametrize("address", ["", "mirror.example.com", "ftp://x/y", "https://a:secret@x/y", "https://x/y z"])
def test_addresses_that_will_not(address: str) -> None:
    problem = _driver_apt.address_problem("vllm_nvidia_repository", address)
    assert problem.startswith("vllm_nvidia_repository")
    assert "secret" not in problem


# --- keys ------------------------------------------------------------------------------------------------------


def problem(text: str, fingerprints: Collection[str]) -> str:
    """Return why a text is refused as a key."""
    with pytest.raises(ValueError, match=r".") as refused:
        _driver_apt.checked_key(text, fingerprints)
    return str(refused.value)


@with_apt
def test_a_fingerprint_is_what_gnupg_says(repository: tuple[Path, str]) -> None:
    folder, fingerprint = repository
    key = (folder / "key.asc").read_text()
    written = _driver_apt.checked_key(key, [f"{fingerprint[:20].lower()} {fingerprint[20:]}"])
    assert _driver_apt.checked_key(key, []) == written
    assert _driver_apt.checked_key(written, [fingerprint]) == written
    other = "EB693B3035CD5710E231E123A4B469963BF863CC"
    assert problem(key, [other]) == f"has the fingerprint {fingerprint}, and not {other}"


@with_apt
def test_apt_trusts_a_key_as_it_is_written(repository: tuple[Path, str], apt: Apt) -> None:
    folder, fingerprint = repository
    key = folder / "key.asc"
    as_made = key.read_text()
    key.write_text(_driver_apt.checked_key(as_made, [fingerprint]))
    try:
        said = apt("apt-get", "update")
    finally:
        key.write_text(as_made)
    assert not any(line.startswith(("E:", "W:")) for line in said.splitlines()), said


@with_apt
@pytest.mark.parametrize("end", ["\n", " \n"])
def test_a_second_key_in_the_file_is_not_let_in(repository: tuple[Path, str], tmp_path: Path, end: str) -> None:
    """Also where only APT sees that there is one, which does not look at what is after the dashes."""
    folder, fingerprint = repository
    other = tmp_path / "other"
    subprocess.run([sys.executable, MAKE, other, tmp_path / "keys", "x"], check=True, capture_output=True)
    mine, others = ((place / "key.asc").read_text() for place in (folder, other))
    others = others.replace("\n", end, 1)
    for both in (mine + others, others + mine):
        assert "needs one block" in problem(both, [fingerprint])
    packets = b"".join(subprocess.run(["gpg", "--homedir", str(tmp_path / "keys"), "--dearmor"], input=text.encode(), capture_output=True, check=True).stdout for text in (mine, others))  # fmt: skip
    assert "has the fingerprint" in problem(armored(packets), [fingerprint])


def armored(packets: bytes) -> str:
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{base64.b64encode(packets).decode()}\n-----END PGP PUBLIC KEY BLOCK-----"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no OpenPGP key (needs one block"),
        ("<html>404</html>", "needs one block"),
        (armored(b"").replace("\n\n", "\n\n!!!"), "is no OpenPGP key"),
        (armored(b""), "no public key in it"),
        (armored(b"\xc6\x60"), "cut off"),
        (armored(b"\xc6\x01\x05"), "not a key of version 4"),
        # What is compressed could be a key.
        (armored(b"\xc8\x01\x00"), "a packet of the kind 8"),
        (armored(b"\xc6\x01\x04").replace("xgE", "xgä"), "is no OpenPGP key"),
    ],
)
def test_what_is_no_key(text: str, words: str) -> None:
    assert words in problem(text, [])
