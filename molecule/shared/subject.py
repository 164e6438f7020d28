"""One instance that is drilled: ours, or the naive way's. A drill knows nothing of the difference."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
from record import Way
from vllm_lab.machine import ssh_argv
from vllm_lab.model import MACHINES

# Runs on the machine: one look at a unit, its processes and what the launcher says of it.
LOOK = """
import json, pathlib, subprocess, sys
unit, state = sys.argv[1:]
names = "ActiveState,SubState,Result,MainPID,NRestarts,StatusText,ExecMainStatus,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic"
shown = subprocess.run(["systemctl", "show", unit, "-p", names], capture_output=True, text=True, check=True).stdout
processes = {}
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (folder / "cgroup").read_text().rstrip().endswith("/" + unit):
            processes[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace").strip()
    except OSError:
        pass
try:
    state = json.loads(pathlib.Path(state).read_text())
except OSError:
    state = {}
print(json.dumps([dict(line.split("=", 1) for line in shown.splitlines()), processes, state]))
"""


class Shell:
    """Commands on a machine of the lab, as root, over one connection that several threads may use."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="drill-")
        program, *rest = ssh_argv(MACHINES[name])
        control = f"ControlPath={Path(self._folder.name) / 'ssh'}"
        self._argv = [
            program,
            "-o",
            "ControlMaster=auto",
            "-o",
            "ControlPersist=60",
            "-o",
            "ServerAliveInterval=3",
            "-o",
            control,
            *rest,
        ]

    def run(self, script: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a script of the shell; its status is the caller's to judge."""
        return subprocess.run(
            [*self._argv, script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def out(self, script: str, timeout_s: float = 60.0) -> str:
        """What a script printed; raises RuntimeError with its words when it failed."""
        done = self.run(script, timeout_s)
        if done.returncode != 0:
            raise RuntimeError(
                f"{self.name}: {script[:200]!r} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done.stdout

    def write(self, path: str, content: str) -> None:
        """Write a file, with its folder."""
        self.out(
            f"mkdir -p {shlex.quote(str(Path(path).parent))} && printf %s {shlex.quote(content)} > {shlex.quote(path)}"
        )

    def disconnect(self) -> None:
        """End the connection; the next command opens another."""
        program, *rest = self._argv
        subprocess.run([program, "-O", "exit", *rest], capture_output=True, check=False, timeout=20)

    def close(self) -> None:
        """End it for good."""
        self.disconnect()
        self._folder.cleanup()


@dataclass(frozen=True)
class Look:
    """A unit at one moment; times in seconds of the monotonic clock, which machine and control node share."""

    at_s: float
    active: str
    sub: str
    result: str
    main: int
    restarts: int
    said: str
    status: int
    started_s: float
    ready_s: float
    processes: dict[int, str]
    state: str
    message: str

    @property
    def serving(self) -> bool:
        """Whether systemd was told that it is ready."""
        return self.active == "active"

    @property
    def engine(self) -> int:
        """The process `vllm serve`, which has the API server; 0 when there is none."""
        return next(
            (pid for pid, words in self.processes.items() if "/vllm serve --config" in words and pid != self.main), 0
        )

    @property
    def core(self) -> int:
        """The engine core's process; 0 when there is none."""
        return next((pid for pid, words in self.processes.items() if words.startswith("VLLM::EngineCore")), 0)

    @property
    def load_s(self) -> float:
        """From the start of the unit to its readiness."""
        return self.ready_s - self.started_s

    @property
    def words(self) -> str:
        """What an operator sees in `systemctl status`."""
        return self.said or self.message


@dataclass
class Subject:
    """An instance under test. `file` is the environment file of its faults, read at each start."""

    way: Way
    name: str
    shell: Shell
    unit: str
    target: load.Target
    file: str
    state_file: str = "/nonexistent"
    launched_s: float = 0.0

    def look(self) -> Look:
        """Ask once."""
        answer = self.shell.out(
            f"python3 -c {shlex.quote(LOOK)} {shlex.quote(self.unit)} {shlex.quote(self.state_file)}"
        )
        shown, processes, state = json.loads(answer)
        return Look(
            at_s=time.monotonic(),
            active=shown["ActiveState"],
            sub=shown["SubState"],
            result=shown["Result"],
            main=int(shown["MainPID"]),
            restarts=int(shown["NRestarts"]),
            said=shown["StatusText"],
            status=int(shown["ExecMainStatus"]),
            started_s=int(shown["ExecMainStartTimestampMonotonic"]) / 1e6,
            ready_s=int(shown["ActiveEnterTimestampMonotonic"]) / 1e6,
            processes={int(pid): words for pid, words in processes.items()},
            state=state.get("state", ""),
            message=state.get("message", ""),
        )

    def wait(self, until: Callable[[Look], bool], within_s: float) -> Look:
        """Look until it is so, at least once; the last look, whatever it shows."""
        end = time.monotonic() + within_s
        while True:
            look = self.look()
            if until(look) or time.monotonic() > end:
                return look
            time.sleep(0.6)  # a look takes a tenth of a second of CPU, and others look as well

    def systemctl(self, *words: str, wait: bool = True) -> None:
        """Tell systemd something about the unit."""
        self.shell.out(shlex.join(["systemctl", *words, *([] if wait else ["--no-block"]), self.unit]), timeout_s=120)

    def kill(self, signal: str, pid: int) -> float:
        """Send a signal to a process; the moment it was sent."""
        if pid <= 0:
            raise RuntimeError(f"{self.unit}: no process to send {signal}")
        self.shell.out(f"kill -{signal} {pid}")
        return time.monotonic()

    def launch(self, **environ: str) -> None:
        """Start it afresh with these variables for the engine, FAULT for FAKE_ENGINE_FAULT; do not wait."""
        lines = "".join(f'FAKE_ENGINE_{name}="{value}"\n' for name, value in environ.items())
        unit, file = shlex.quote(self.unit), shlex.quote(self.file)
        # One that hangs would take the whole of TimeoutStopSec.
        script = f"mkdir -p $(dirname {file}); printf %s {shlex.quote(lines)} > {file}; systemctl kill --signal=KILL {unit}; systemctl stop {unit}"
        now = "import time; print(time.monotonic())"
        script += f"; systemctl reset-failed {unit}; python3 -c '{now}'; systemctl start --no-block {unit}"
        self.launched_s = float(self.shell.run(script, timeout_s=120).stdout)

    def begin(self, **environ: str) -> Look:
        """The same, and wait until it serves; raises RuntimeError when it does not."""
        self.launch(**environ)
        look = self.wait(lambda look: look.serving, within_s=40)
        if not look.serving:
            raise RuntimeError(f"{self.unit} does not start: {look}")
        return look

    def answers(self) -> bool:
        """Whether a stream comes whole through the proxy."""
        try:
            return asyncio.run(asyncio.wait_for(load.Load(self.target, max_tokens=2).run(1, 1), timeout=5)).all_whole
        except TimeoutError:
            return False

    def back(self, since_s: float, within_s: float) -> float | None:
        """Seconds from a moment to the next whole answer; None when there was none within the limit."""
        while time.monotonic() < since_s + within_s:
            if self.answers():
                return time.monotonic() - since_s
            time.sleep(0.5)
        return None

    def load(self, streams: int, requests: int | None = None, **body: Any) -> load.Background:
        """Begin a load through the proxy, and go on meanwhile."""
        return load.Background(load.Load(self.target, **{"max_tokens": 1000, **body}), streams, requests)

    def alive(self, pids: dict[int, str]) -> list[str]:
        """Those of these processes that are still there."""
        if not pids:
            return []
        script = "for pid in {}; do [ -d /proc/$pid ] && echo $pid; done; true".format(" ".join(map(str, pids)))
        return [pids[int(pid)] for pid in self.shell.out(script).split()]

    def journal(self, since_s: float = 0.0) -> list[tuple[float, str]]:
        """What the unit and systemd said of it in this boot, with the moment (monotonic, s)."""
        script = f"journalctl --boot --output=json --no-pager UNIT={self.unit} + _SYSTEMD_UNIT={self.unit}"
        entries = [json.loads(line) for line in self.shell.out(script).splitlines()]
        said = [(int(one["__MONOTONIC_TIMESTAMP"]) / 1e6, str(one.get("MESSAGE"))) for one in entries]
        return [(when, words) for when, words in said if when >= since_s]
