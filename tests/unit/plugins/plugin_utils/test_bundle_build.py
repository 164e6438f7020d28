# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a bundle is made, with programs in the place of pip and apt that put files where those do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle, _hub
from ansible_collections.gpuops.vllm.plugins.module_utils._bundle import BundleError
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _bundle_build
from ansible_collections.gpuops.vllm.plugins.plugin_utils._bundle_build import Builder, Request, WantedEngine

ENGINE = "0.32.0-cuda-1a2b3c4d"
COMMIT = "1" * 40
WHEELS = {"uv": b"uv", "vllm": b"vllm", "torch": b"torch"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def line(name: str) -> str:
    return f"{name}==1 --hash=sha256:{sha256(WHEELS[name])}"


class World:
    """What there is to download, and what was."""

    def __init__(self, folder: Path) -> None:
        self.work = folder
        self.fetched: list[str] = []
        self.debs = ["nginx_1_amd64.deb"]
        self.cut: str = ""
        self.blob = (sha256(b"weights"), b"weights")
        self.file = "model.safetensors"

    def fetch(self, path: Path, data: bytes) -> None:
        if self.cut == path.name:
            raise BundleError("cut off")
        self.fetched.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path)

    class Tools(_bundle_build.Tools):
        def pip_download(self, lines: Sequence[str], folder: Path, engine: WantedEngine) -> None:
            for name in (one.partition("==")[0] for one in lines):
                found.fetch(folder / f"{name}-1-py3-none-any.whl", WHEELS[name])

        def apt_download(self, packages: Sequence[str], folder: Path) -> list[str]:
            for name in (one for one in found.debs if not (folder / one).exists()):
                found.fetch(folder / name, name.encode())
            return found.debs

        def download_models(
            self, home: Path, models: Iterable[tuple[str, str, str]], wheels: Iterable[Path], request: Request
        ) -> None:
            for model, commit, _form in models:
                repository = home / "hub" / f"models--{model.replace('/', '--')}"
                blob = repository / "blobs" / found.blob[0]
                found.fetch(blob, found.blob[1])
                link = repository / f"snapshots/{commit}" / found.file
                for folder in (repository / "verified", link.parent):
                    folder.mkdir(parents=True)
                link.symlink_to(blob)
                stamp = {"files": {found.file: len(found.blob[1])}}
                (repository / f"verified/{commit}.json").write_text(json.dumps(stamp))

    def run(argv: Sequence[str], **_: Any) -> str:
        return f"Package: {Path(argv[-1]).name.partition('_')[0]}\n" if argv[0] == "dpkg-deb" else "3.11\n"

    monkeypatch.setattr(_bundle_build, "Tools", Tools)
    monkeypatch.setattr(_bundle_build, "run", run)
    monkeypatch.setattr(_bundle_build, "pack_collection", lambda _top, path: path.write_bytes(b"collection"))
    monkeypatch.setattr(_hub, "resolve", lambda *_: _hub.Snapshot(COMMIT, ("model.safetensors",)))
    (tmp_path / "os-release").write_text('PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    monkeypatch.setattr(_bundle_build, "OS_RELEASE", tmp_path / "os-release")
    return found


def request(world: World, **changes: Any) -> Request:
    lock, installer = world.work / "lock.txt", world.work / "uv.txt"
    lock.write_text(f"{line('vllm')}\n{line('torch')}\n")
    installer.write_text(f"{line('uv')}\n")
    same = Request(
        engines=(WantedEngine(ENGINE, lock, installer, ("3.11", "3.15")),),
        packages=("nginx",),
        models=(("org/llama", "", "hf"),),
        hub_endpoint="https://hub.test",
    )
    return dataclasses.replace(same, **changes)


def build(world: World, **changes: Any) -> bool:
    """Make a bundle; whether there was something to do."""
    builder = Builder(world.work / "bundle", request(world, **changes), lambda _line: None)
    if builder.is_whole():
        return False
    builder.build()
    return True


def files(world: World) -> set[str]:
    folder = world.work / "bundle"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_bundle_is_what_its_manifest_says_and_nothing_else(world: World) -> None:
    assert build(world)
    folder = world.work / "bundle"
    manifest, _sha256 = _bundle.read(folder)
    assert _bundle.corrupted(folder, manifest) == []
    assert files(world) == {*manifest.files, "manifest.json", ".vllm-bundle"}
    assert set(manifest.files) == {
        "wheels/uv-1-py3-none-any.whl", "wheels/vllm-1-py3-none-any.whl", "wheels/torch-1-py3-none-any.whl", "debs/Packages",
        "debs/nginx_1_amd64.deb", f"weights/hub/models--org--llama/blobs/{sha256(b'weights')}", f"collection/gpuops-vllm-{manifest.collection}.tar.gz",
    }  # fmt: skip
    assert manifest.system == _bundle.System("Debian 12", platform.machine(), "3.11")
    (engine,) = manifest.engines
    assert (engine.name, len(engine.files)) == (ENGINE, 3)
    assert "Filename: ./nginx_1_amd64.deb" in (folder / "debs/Packages").read_text()


def test_a_second_making_changes_nothing(world: World) -> None:
    build(world)
    world.fetched.clear()
    assert not build(world)
    assert world.fetched == []


def test_what_was_deleted_is_fetched_again_and_nothing_else(world: World) -> None:
    build(world)
    world.fetched.clear()
    (world.work / "bundle/wheels/torch-1-py3-none-any.whl").unlink()
    assert build(world)
    assert world.fetched == ["torch-1-py3-none-any.whl"]
    assert not build(world)


def test_what_is_no_longer_wanted_goes(world: World) -> None:
    build(world)
    world.debs = ["nginx_2_amd64.deb"]
    assert build(world, models=(), packages=("nginx", "nftables"))
    assert not [name for name in files(world) if name.startswith("weights/") or name.endswith("_1_amd64.deb")]
    assert _bundle.corrupted(world.work / "bundle", _bundle.read(world.work / "bundle")[0]) == []


@pytest.mark.parametrize(
    "name", ["uv-1-py3-none-any.whl", "torch-1-py3-none-any.whl", "nginx_1_amd64.deb", sha256(b"weights")]
)
@pytest.mark.parametrize("again", [False, True], ids=["the first", "another"])
def test_one_that_was_cut_off_does_not_look_whole_and_is_taken_up(world: World, name: str, again: bool) -> None:
    if again:
        build(world)
        (path,) = (world.work / "bundle").rglob(name)
        path.unlink()
    world.cut = name
    with pytest.raises(BundleError, match="cut off"):
        build(world)
    assert "manifest.json" not in files(world)
    world.cut = ""
    assert build(world)
    assert not build(world)


def test_a_file_with_another_hash_is_not_taken_for_the_locks(world: World) -> None:
    build(world)
    wheel = world.work / "bundle/wheels/torch-1-py3-none-any.whl"
    wheel.write_bytes(b"damaged")
    older = wheel.with_name("torch-0-py3-none-any.whl")
    older.write_bytes(b"older")
    assert build(world)
    assert not older.exists()
    assert wheel.read_bytes() == b"torch"


@pytest.mark.parametrize("data", [b"weights", b'{"a": 1}'], ids=["by SHA-256", "by git's"])
def test_weights_that_are_no_longer_what_their_name_says_are_fetched_again(world: World, data: bytes) -> None:
    """A host would refuse them, whatever the manifest says."""
    git = hashlib.sha1(b"blob %d\0%s" % (len(data), data), usedforsecurity=False).hexdigest()
    world.blob = (sha256(data) if data == b"weights" else git, data)
    build(world)
    (blob,) = (world.work / "bundle").rglob(world.blob[0])
    blob.write_bytes(bytes(reversed(data)))
    world.fetched.clear()
    assert build(world, packages=("nftables", "nginx"))
    assert (world.fetched, blob.read_bytes()) == ([blob.name], data)


@pytest.mark.parametrize("name", [".eval_results/gsm8k.safetensors", "assets/Figure 1.json", "chat (old).jinja"])
def test_a_model_may_name_its_files_as_it_likes(world: World, name: str) -> None:
    world.file = name
    build(world)
    manifest, _sha256 = _bundle.read(world.work / "bundle")
    assert [one.name for one in manifest.models[0].files] == [name]


def test_a_manifest_that_nobody_could_read_is_not_written(world: World) -> None:
    world.debs = ["nginx 1.deb"]
    with pytest.raises(BundleError, match=r"'nginx 1\.deb'.* cannot be put into a bundle"):
        build(world)
    assert "manifest.json" not in files(world)


def test_a_folder_of_somebody_else_is_refused(world: World) -> None:
    mine = world.work / "bundle/wheels/mine.whl"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(BundleError, match=r"it has files that bundle\.yml did not put there"):
        build(world)
    assert files(world) == {"wheels/mine.whl"}


@pytest.mark.parametrize("name", ["weights", "debs", "weights/hub", "weights/hub/models--org--llama"])
def test_nothing_is_removed_behind_a_link(world: World, name: str) -> None:
    build(world)
    link, target = world.work / "bundle" / name, world.work / "elsewhere"
    if link.is_dir():
        shutil.rmtree(link)
    (target / "verified").mkdir(parents=True)
    (target / "verified/mine").touch()
    link.symlink_to(target)
    with pytest.raises(BundleError, match=rf"{name} is a link to .*/elsewhere"):
        build(world, packages=("nftables", "nginx"))
    assert (target / "verified/mine").exists()


def test_the_bundle_vouches_for_no_collection_that_it_has_not_packed(world: World) -> None:
    build(world)
    (packed,) = (world.work / "bundle/collection").iterdir()
    packed.write_bytes(b"another")
    assert build(world, packages=("nftables", "nginx"))
    assert packed.read_bytes() == b"collection"


def test_only_wheels_of_the_locks_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip takes the newest that it finds, and the hub's token is in the environment."""
    seen: list[set[str]] = []

    def run(argv: Sequence[str], **_: Any) -> str:
        seen.extend(
            {path.name for path in Path(word.partition("=")[2]).iterdir()}
            for word in argv
            if word.startswith("--find-links=")
        )
        return ""

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("huggingface_hub-1-py3-none-any.whl", "huggingface_hub-99-py3-none-any.whl"):
        (wheels / name).touch()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(_bundle_build, "run", run)
    tools = _bundle_build.Tools(tmp_path / "work", lambda _line: None)
    tools.download_models(
        tmp_path, [("org/llama", COMMIT, "hf")], [wheels / "huggingface_hub-1-py3-none-any.whl"], Request()
    )
    assert seen == [{"huggingface_hub-1-py3-none-any.whl"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engines": "3.12"}, "is 3.11, and the lock of 0.32.0-cuda-1a2b3c4d is for 3.12 and newer, below 3.15"),
        ({"engines": ()}, "their download wants the engine's own libraries"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(world: World, changes: dict[str, Any], said: str) -> None:
    if changes["engines"]:
        wanted = request(world).engines[0]
        changes = {"engines": (dataclasses.replace(wanted, python=("3.12", "3.15")),)}
    with pytest.raises(BundleError, match=said):
        build(world, **changes)
    assert files(world) == set()


def test_a_commit_stays_until_another_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build(world)
    monkeypatch.setattr(_hub, "resolve", lambda *_: "the hub is gone")
    assert build(world, packages=("nftables", "nginx"))
    with pytest.raises(BundleError, match=r"the hub is gone\. Correct vllm_models"):
        build(world, update_models=True)
    with pytest.raises(BundleError, match="the hub is gone"):
        build(world, models=(("org/llama", "v2", "hf"),))


def test_a_folder_with_the_very_file_goes_before_an_index(world: World) -> None:
    """An index may have another build of the same version."""
    folder = world.work / "own"
    folder.mkdir()
    (folder / "torch-1-py3-none-any.whl").write_bytes(b"another")
    (folder / "torch-1-cp311-linux.whl").write_bytes(b"torch")
    engine = dataclasses.replace(request(world).engines[0], find_links=(str(folder),))
    build(world, engines=(engine,))
    assert "torch-1-py3-none-any.whl" not in world.fetched
    assert "wheels/torch-1-cp311-linux.whl" in files(world)


class Apt:
    """apt-get, which keeps a file of the right size and prints an MD5 unless it is asked; ``sends`` is what the source has."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "debs/own_1_all.deb"
        self.path.parent.mkdir()
        self.sends, self.hashes = b"right", {"SHA256", "MD5Sum"}
        self.downloads = 0
        monkeypatch.setattr(_bundle_build, "run", self.run)

    def run(self, argv: Sequence[str], **_: Any) -> str:
        if "--download-only" in argv and not (self.path.exists() and self.path.stat().st_size == 5):
            self.path.write_bytes(self.sends)
            self.downloads += 1
        asked = "SHA256" if "Acquire::ForceHash=SHA256" in argv else "MD5Sum"
        digest = (
            f"{asked}:{hashlib.new({'MD5Sum': 'md5'}.get(asked, asked), b'right').hexdigest()}"
            if asked in self.hashes
            else ""
        )
        return f"'http://deb.test/own_1_all.deb' own_1_all.deb 5 {digest}\n" if "--print-uris" in argv else ""


@pytest.mark.parametrize(("old", "downloads"), [(None, 1), (b"wrong", 1), (b"right", 0)])
def test_a_package_of_an_earlier_making_counts_by_apts_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, downloads: int
) -> None:
    apt = Apt(tmp_path, monkeypatch)
    if old:
        apt.path.write_bytes(old)
    tools = _bundle_build.Tools(tmp_path, lambda _line: None)
    assert tools.apt_download(["own"], apt.path.parent) == ["own_1_all.deb"]
    assert (apt.path.read_bytes(), apt.downloads) == (b"right", downloads)


@pytest.mark.parametrize(("sends", "hashes"), [(b"wrong", {"SHA256"}), (b"right", {"MD5Sum"})])
def test_a_package_that_no_hash_of_apts_vouches_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sends: bytes, hashes: set[str]
) -> None:
    apt = Apt(tmp_path, monkeypatch)
    apt.sends, apt.hashes = sends, hashes
    with pytest.raises(BundleError, match=r"own_1_all\.deb in .* is not what this machine's package lists say"):
        _bundle_build.Tools(tmp_path, lambda _line: None).apt_download(["own"], apt.path.parent)


def test_a_program_that_fails_is_told_in_its_own_words() -> None:
    script = "import sys; print('no such package'); sys.exit(3)"
    with pytest.raises(
        BundleError, match=r"(?s)failed with exit status 3\. Its last lines:\n  no such package\nIs it there"
    ):
        _bundle_build.run([sys.executable, "-c", script], hint="Is it there?")
    with pytest.raises(BundleError, match="/nowhere: No such file or directory"):
        _bundle_build.run(["/nowhere"])


def test_an_installed_collection_is_packed_as_its_artifact_was(tmp_path: Path) -> None:
    top = tmp_path / "vllm"
    (top / "roles").mkdir(parents=True)
    for name in ("MANIFEST.json", "roles/x.yml", "mine.txt"):
        (top / name).write_text("{}")
    listed = [{"name": "."}, {"name": "roles"}, {"name": "roles/x.yml"}]
    (top / "FILES.json").write_text(json.dumps({"files": listed}))
    _bundle_build.pack_collection(top, tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert archive.getnames() == ["MANIFEST.json", "FILES.json", "roles", "roles/x.yml"]


def test_debians_own_tool_reads_what_the_index_says(tmp_path: Path) -> None:
    """A real package, made here, and the real apt: it finds the file by the index, and trusts nothing else."""
    control = tmp_path / "tree/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: own\nVersion: 1:2\nArchitecture: all\nMaintainer: nobody\nDescription: a package\n of nothing\n"
    )
    debs = tmp_path / "debs"
    debs.mkdir()
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", tmp_path / "tree", debs / "own_1%3a2_all.deb"],
        check=True,
        capture_output=True,
    )
    entry = _bundle.index_entry(
        _bundle_build.run(["dpkg-deb", "--field", str(debs / "own_1%3a2_all.deb")]),
        "own_1%3a2_all.deb",
        _bundle.sha256_of(debs / "own_1%3a2_all.deb"),
    )
    (debs / "Packages").write_text(entry)
    from ansible_collections.gpuops.vllm.plugins.modules import packages  # noqa: PLC0415

    packages.prepare(str(tmp_path))
    apt = ["apt-get", "--quiet", "--yes", "-o", "Debug::NoLocking=true", *packages.offline(str(tmp_path))]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    said = subprocess.run([*apt, "--print-uris", "install", "own"], check=True, capture_output=True, text=True).stdout
    # It gives no hash of what it would not have to fetch.
    assert _bundle.printed_uris(said) == {"own_1%3a2_all.deb": ((debs / "own_1%3a2_all.deb").stat().st_size, "")}
    refused = subprocess.run([*apt, "--print-uris", "install", "nginx"], check=False, capture_output=True, text=True)
    assert "Unable to locate package nginx" in refused.stderr or "no installation candidate" in refused.stderr
