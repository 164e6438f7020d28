"""Runs a playbook that dies at one changing task after another, until a run comes through by itself."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import death
import endpoint
import playbook

SOURCES = endpoint.TOP / "tests" / "kill"
#: On the machine: the interpreter that dies, what it has died at, and the file that arms it.
PLACE = Path("/root/kill")
#: Runs of one walk; each dies once, and a converge has fewer steps than this.
LIMIT = 150

#: How a play dies: between two tasks, in the middle of one while the module goes on, or with its module between two of its steps.
WAYS = {
    "after": "after every changing task",
    "middle": "in the middle of every changing task",
    "inside": "with its module between any two steps",
}


@dataclass(frozen=True)
class Walk:
    """What was killed, in order, as ``role : task, when`` or ``module : step, when``; and the run that came through."""

    killed: list[str]
    last: playbook.Done


def title(way: str, what: str) -> str:
    """Return the name of a drill in the table."""
    return f"play killed {WAYS[way]}, then run again: {what}"


def read_kills(text: str) -> list[str]:
    """Return the kills that a log holds, one JSON object a line."""
    return [f"{entry['task']}, {entry['when']}" for entry in map(json.loads, text.splitlines())]


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set some environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def walk(name: str, *arguments: str, machine: str, way: str, roles: Sequence[str], **variables: Any) -> Walk:
    """Run a playbook, killed at the first changing task of these roles that no earlier run died at, until one is not killed.

    Args:
        name: The playbook.
        way: One of `WAYS`. ``inside`` kills in every module that runs: narrow it down by ``--tags``.

    Raises:
        AssertionError: A run failed by itself, or they are too many.
    """
    with TemporaryDirectory(prefix="gpuops-kill-") as folder:
        log = Path(folder) / "killed"
        if way == "inside":
            return _walk_inside(name, *arguments, machine=machine, folder=Path(folder), **variables)
        settings = {
            "ANSIBLE_CALLBACK_PLUGINS": str(SOURCES / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "kill_play",
            "GPUOPS_KILL_WAY": way,
            "GPUOPS_KILL_LOG": str(log),
            "GPUOPS_KILL_HOST": machine,
            "GPUOPS_KILL_ROLES": " ".join(roles),
        }
        for _run in range(LIMIT):
            with environment(**settings):
                done = playbook.run(name, *arguments, hosts=[machine], **variables)
            killed = read_kills(log.read_text()) if log.exists() else []
            if done.status != -signal.SIGKILL:
                assert done.status == 0, f"After the kills {killed} a run failed by itself:\n{done.said}"
                return Walk(killed, done)
        raise AssertionError(f"{LIMIT} runs, and still one is killed: {killed}")


def _walk_inside(name: str, *arguments: str, machine: str, folder: Path, **variables: Any) -> Walk:
    inventory = folder / "hosts.json"
    hosts = {machine: {"ansible_python_interpreter": str(PLACE / "python")}}
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    ssh(machine, f"rm -rf {PLACE}; mkdir -m 0700 {PLACE}")
    for source in [*(SOURCES / "host").iterdir(), Path(death.__file__)]:
        ssh(machine, f"cat > {PLACE / source.name}; chmod 0755 {PLACE / source.name}", source.read_text())
    ssh(machine, f"touch {PLACE}/armed {PLACE}/killed")
    try:
        killed: list[str] = []
        for _run in range(LIMIT):
            done = playbook.run(name, *arguments, hosts=[machine], inventories=[str(inventory)], **variables)
            before, killed = killed, read_kills(ssh(machine, f"cat {PLACE}/killed"))
            if done.status == 0:
                assert killed == before, f"A run ended well although its module was killed: {killed[len(before) :]}"
                return Walk(killed, done)
            assert len(killed) > len(before), f"After the kills {killed} a run failed by itself:\n{done.said}"
        raise AssertionError(f"{LIMIT} runs, and still one is killed: {killed}")
    finally:
        ssh(machine, f"rm -rf {PLACE}")


def ssh(machine: str, script: str, text: str = "") -> str:
    """Run a shell script on a machine of the lab with ``text`` as its input; return what it prints. Raises CalledProcessError."""
    command: list[Any] = [
        "python3",
        endpoint.TOP / "molecule/lab/lab.py",
        "ssh",
        machine,
        f"sh -ec {shlex.quote(script)}",
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True).stdout
