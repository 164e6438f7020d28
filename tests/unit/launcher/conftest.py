"""Runs the launcher as systemd would: a real process, a real notification socket, the fake engine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = ROOT / "roles" / "vllm_launcher" / "files" / "vllm-start"
FAKE_ENGINE = ROOT / "tests" / "fake_engine" / "vllm"
KEY = "unit-test-key-0123456789"
PATIENCE_S = 15.0  # a bound, never waited for when all is well

RUN = """
import importlib.machinery, importlib.util, json, sys
sys.dont_write_bytecode = True
from pathlib import Path
loader = importlib.machinery.SourceFileLoader("vllm_start", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("vllm_start", loader))
sys.modules["vllm_start"] = module
loader.exec_module(module)
root, args = Path(sys.argv[2]), json.loads(sys.argv[3])
paths = module.Paths(root / "etc", root / "run", root / "current")
sys.exit(module.main(["vllm-start", *args], paths, module.Pace(**json.loads(sys.argv[4]))))
"""
FAST = {
    "tick_s": 0.02,
    "load_probe_s": 0.03,
    "serve_probe_s": 0.05,
    "report_s": 0.1,
    "resend_term_s": 0.1,
    "pause_s": 0.5,
    "kill_after_s": 1.0,
    "probe_timeout_s": 0.5,
}


def load_launcher() -> ModuleType:
    """The launcher as a module."""
    loader = SourceFileLoader("vllm_start", str(LAUNCHER))
    spec = spec_from_loader("vllm_start", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["vllm_start"] = module  # dataclasses look their module up
    # No __pycache__ among the files that the role ships.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


class Rig:
    """One instance `demo-0` in a temporary folder, and the launcher that runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = "demo-0"
        self.output_file = root / "output"
        self.messages: list[str] = []
        self.pace: dict[str, float] = dict(FAST)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(root / "notify"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder.mkdir(parents=True)
        venv = root / "venvs" / "0.32.0"
        (venv / "bin").mkdir(parents=True)
        (root / "current").symlink_to("venvs/0.32.0")
        self.engine = venv / "bin" / "vllm"
        self.engine.symlink_to(FAKE_ENGINE)
        self.write()

    @property
    def folder(self) -> Path:
        return self.root / "etc" / self.name

    @property
    def state_file(self) -> Path:
        return self.root / "run" / self.name / "state.json"

    def rename(self, name: str) -> None:
        """Make it another instance."""
        self.folder.rename(self.root / "etc" / name)
        self.name = name

    def write(self, engine: dict[str, Any] | None = None, engine_path: str = "", **instance: Any) -> None:
        """Write engine.yaml and instance.json with these differences from the ordinary; `engine_path`: instance.json's `engine`."""
        ordinary = {
            "host": "127.0.0.1",
            "model": "/srv/models/demo",
            "port": self.port,
            "served-model-name": ["demo", "gpt-4"],
            "shutdown-timeout": 5,
        }
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in sorted({**ordinary, **(engine or {})}.items())]
        (self.folder / "engine.yaml").write_text("---\n" + "".join(lines))
        data = {
            "name": self.name,
            "digest": "digest-1",
            "address": "127.0.0.1",
            "port": self.port,
            "served_as": ["demo", "gpt-4"],
            "gpus": [],
            "start_timeout_s": 30,
            "start_limit_s": 60,
            "stall_timeout_s": 0.4,
            "shutdown_timeout_s": 5,
            "drain_notice_s": 0,
        }
        if engine_path:
            instance["engine"] = engine_path
        (self.folder / "instance.json").write_text(json.dumps({**data, **instance}))

    def replace_engine(self, program: str) -> None:
        """Put a Python program in the engine's place."""
        self.engine.unlink()
        self.engine.write_text(f"#!{sys.executable}\n{program}")
        self.engine.chmod(0o755)

    def start(self, *args: str, stdout: int | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start the launcher (NAME demo-0 unless told); an empty value takes a variable away."""
        env = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.root / "notify"),
            "WATCHDOG_USEC": "180000000",
            "WATCHDOG_PID": "1",
            "VLLM_API_KEY": KEY,
            "http_proxy": "http://127.0.0.1:9",
            "FAKE_ENGINE_LOAD_S": "0.3",
            "FAKE_ENGINE_TOKEN_S": "0.01",
            **environ,
        }
        command = [sys.executable, "-c", RUN, str(LAUNCHER), str(self.root), json.dumps(args or ["demo-0"])]
        with self.output_file.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, json.dumps(self.pace)],
                env={key: value for key, value in env.items() if value},
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output,
            )
        return self._process

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start() first"
        return self._process

    def wait_for(self, pattern: str, within_s: float = PATIENCE_S) -> str:
        """The next notification that matches; fails with all that was heard and printed."""
        end = time.monotonic() + within_s
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv(65536).decode()
            except TimeoutError:
                break
            self.messages.append(message)
            if re.search(pattern, message):
                return message
        raise AssertionError(f"no notification {pattern!r} in {self.messages}; output: {self.output()}")

    def silent_for(self, pattern: str, seconds: float) -> bool:
        """True when no notification matches for that long."""
        try:
            self.wait_for(pattern, seconds)
        except AssertionError:
            return True
        return False

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll a condition; fails with the output."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, self.output()
            time.sleep(0.01)

    def ended(self) -> int:
        """Wait for the launcher's end; its exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher goes on: {self.output()}") from None

    def heard(self) -> list[str]:
        """All notifications up to now."""
        self._socket.setblocking(False)
        while True:
            try:
                self.messages.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return self.messages

    def state(self) -> dict[str, Any]:
        """state.json."""
        content: dict[str, Any] = json.loads(self.state_file.read_text())
        return content

    def output(self) -> str:
        """What went to the journal."""
        return self.output_file.read_text(errors="replace")

    def close(self) -> None:
        """End what is left of the test."""
        self._socket.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        started = re.search(r"engine started as process (\d+)", self.output()) if self.output_file.exists() else None
        if started is not None:
            with contextlib.suppress(OSError):  # gone, as it should be
                if str(self.root).encode() in Path(f"/proc/{started[1]}/cmdline").read_bytes():
                    os.kill(int(started[1]), signal.SIGKILL)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A fresh instance and a launcher to start on it."""
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def launcher() -> ModuleType:
    """The launcher's functions and classes."""
    return load_launcher()
