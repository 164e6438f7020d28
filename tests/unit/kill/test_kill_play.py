"""The callback that kills a play: at the right task, once each, and nothing but what it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
MARK = "31.4159"  # seconds: a sleep that nobody else sleeps
TASKS = f"""
- {{name: preflight | Read, ansible.builtin.debug: {{msg: x}}, changed_when: true}}
- {{name: First, ansible.builtin.debug: {{msg: x}}, changed_when: true}}
- {{name: Same, ansible.builtin.debug: {{msg: x}}}}
- {{name: Second, ansible.builtin.debug: {{msg: x}}, changed_when: true}}
- {{name: Long, ansible.builtin.command: 'sleep {MARK}', changed_when: true, tags: [never, long]}}
"""
Play = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a playbook with two roles that change something, one of them watched."""
    for role, tasks in (("watched", TASKS), ("other", TASKS[: TASKS.index("- {name: Same")])):
        (tmp_path / "roles" / role / "tasks").mkdir(parents=True)
        (tmp_path / "roles" / role / "tasks" / "main.yml").write_text(tasks)
    head = "- {hosts: localhost, connection: local, gather_facts: false, roles: [other, watched]}\n"
    (tmp_path / "play.yml").write_text(head)

    def run(way: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
            "ANSIBLE_CALLBACK_PLUGINS": str(TOP / "tests/kill/callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "kill_play",
            "GPUOPS_KILL_WAY": way,
            "GPUOPS_KILL_LOG": str(tmp_path / "log"),
            "GPUOPS_KILL_HOST": "localhost",
            "GPUOPS_KILL_ROLES": "watched",
        }
        command = [
            "ansible-playbook",
            "-i",
            "localhost,",
            "-e",
            f"folder={tmp_path} ansible_python_interpreter={sys.executable}",
        ]
        command += [*arguments, str(tmp_path / "play.yml")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that no play has started."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def killed(folder: Path) -> list[tuple[str, str]]:
    return [(entry["task"], entry["when"]) for entry in map(json.loads, (folder / "log").read_text().splitlines())]


def asleep() -> list[str]:
    """Return the processes that sleep for `MARK`."""
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(entry.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [command for command in commands if command == f"sleep\0{MARK}\0"]


# In `middle` these tasks are over before their time comes.
@pytest.mark.parametrize("way", ["after", "middle"])
def test_each_run_dies_after_the_next_change(
    play: Play, tmp_path: Path, bystander: subprocess.Popen[bytes], way: str
) -> None:
    assert play(way).returncode == -signal.SIGKILL
    assert killed(tmp_path) == [("watched : First", "after its change")]
    assert play(way).returncode == -signal.SIGKILL
    assert killed(tmp_path)[1:] == [("watched : Second", "after its change")]
    last = play(way)
    assert last.returncode == 0, last.stdout + last.stderr
    assert len(killed(tmp_path)) == 2
    assert bystander.poll() is None


def test_a_long_task_dies_in_its_middle_with_all_it_has_started(
    play: Play, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    for moment in ("0.35 s after its start", "2.5 s after its start"):
        assert play("middle", "--tags", "long").returncode == -signal.SIGKILL
        assert asleep() == []
        assert bystander.poll() is None
        assert killed(tmp_path)[-1] == ("watched : Long", moment)
