"""The download program as the role runs it, with the real huggingface_hub, against the stand-in for the hub."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = ROOT / "roles/vllm_weights/files/vllm-download"
STAND_IN = ROOT / "tests/hub_stand_in/hub_stand_in"
#: Where Molecule keeps engines that it has installed.
LAYERS = Path("/var/cache/gpuops-vllm/layers")
MODEL = "org/Some-Model_1.5"
FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_NotATokenOfAnybody"
PATIENCE_S = 60.0


def load(path: Path, name: str) -> ModuleType:
    """A program without a suffix, as a module."""
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


@pytest.fixture(scope="session")
def program() -> ModuleType:
    return load(PROGRAM, "vllm_download")


@pytest.fixture(scope="session")
def library() -> str:
    """PYTHONPATH that has huggingface_hub: this environment's own, or that of an engine which Molecule installed."""
    if importlib.util.find_spec("huggingface_hub"):
        return ""
    found = sorted(LAYERS.glob(f"*/opt/vllm/*/lib/python3.{sys.version_info.minor}/site-packages/huggingface_hub"))
    if not found:
        pytest.skip("huggingface_hub is neither in this environment nor in an engine below " + str(LAYERS))
    return str(found[0].parent)


@dataclass
class Hub:
    """The stand-in, as a test changes it and looks at it."""

    address: str
    config_file: Path
    log_file: Path
    config: dict[str, Any] = field(default_factory=dict)

    def says(self, **changes: Any) -> None:
        self.config |= changes
        self.config_file.write_text(json.dumps(self.config))

    def fails(self, **fault: Any) -> None:
        self.says(faults=[*self.config.get("faults", []), fault])

    def content(self, name: str) -> bytes:
        """What it sends of a file instead, where it sends something wrong."""
        folder = Path(self.config["repos"][MODEL]["commits"][FIRST])
        return bytes(255 - byte for byte in (folder / name).read_bytes())

    def asked(self, path: str = "") -> list[dict[str, Any]]:
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [entry for entry in map(json.loads, lines) if path in entry["path"]]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model with shards, and what nobody needs beside it."""
    folder = tmp_path / "first"
    files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"t" * 20_000,
        "chat_template.jinja": b"{{ messages }}",
        "model-00001-of-00002.safetensors": bytes(range(256)) * 2000,
        "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * 1000,
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "consolidated.safetensors": b"c" * 30_000,
        "original/consolidated.00.pth": b"o" * 30_000,
        "pytorch_model.bin": b"p" * 30_000,
        "README.md": b"# read me",
        ".gitattributes": b"*",
        "parser.py": b"PARSER = 1\n",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def hub(tmp_path: Path, repository: Path) -> Iterator[Hub]:
    yield from stand_in(tmp_path, repository, None)


@pytest.fixture
def tls_hub(tmp_path: Path, repository: Path) -> Iterator[Hub]:
    """One with TLS, by an authority in `ca.pem` that nobody else knows."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    certificate = tmp_path / "certificate.pem"
    certificate.write_text((tmp_path / "ca.pem").read_text() + (tmp_path / "key.pem").read_text())
    yield from stand_in(tmp_path, repository, certificate)


def stand_in(tmp_path: Path, repository: Path, certificate: Path | None) -> Iterator[Hub]:
    module = load(STAND_IN, "hub_stand_in")
    found = Hub("", tmp_path / "hub.json", tmp_path / "asked.jsonl")
    server = module.serve(module.Hub(found.config_file, found.log_file), certificate=certificate)
    found.address = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    found.says(
        token=TOKEN,
        cdn="" if certificate else f"http://localhost:{server.server_port}",
        repos={MODEL: {"refs": {"main": FIRST}, "commits": {FIRST: str(repository)}}},
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Done:
    status: int
    said: str


class Runner:
    """Runs the program; its home is `home`."""

    def __init__(self, home: Path, library: str, hub: Hub) -> None:
        self.home = home
        self.hub = hub
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": library,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_ENDPOINT": hub.address,
            "HF_HUB_DISABLE_XET": "1",
        }

    def argv(self, *models: dict[str, Any], options: tuple[str, ...] = ()) -> list[str]:
        fast = ("--first-wait-s", "0.05", "--longest-wait-s", "1.5", "--attempts", "3", "--reserve-gib", "0")
        wanted = json.dumps(models or [{"model": MODEL, "commit": FIRST}])
        return [sys.executable, str(PROGRAM), "--home", str(self.home), *fast, *options, wanted]

    def __call__(self, *models: dict[str, Any], options: tuple[str, ...] = (), **environment: str) -> Done:
        done = subprocess.run(
            self.argv(*models, options=options),
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert "Traceback" not in done.stdout, done.stdout
        return Done(done.returncode, done.stdout)

    @property
    def repository(self) -> Path:
        return self.home / "hub" / f"models--{MODEL.replace('/', '--')}"

    def snapshot(self, commit: str = FIRST) -> dict[str, bytes]:
        return content(self.repository / "snapshots" / commit)


@pytest.fixture
def run(tmp_path: Path, library: str, hub: Hub) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner(home, library, hub)


Start = Callable[..., Done]
