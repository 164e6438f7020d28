# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs, processes, mounts and files of the control host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class LabError(Exception):
    """Something the lab lacks or cannot do, in one line for the person who called it."""


def say(line: str) -> None:
    """Tell the caller what is going on, at once."""
    print(line, flush=True)


def run(*argv: str | Path, text_in: str | None = None, hint: str = "", timeout_s: float = 600) -> str:
    """Run a program and return what it printed.

    Raises:
        LabError: It failed; the line ends with its own last words and the hint.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command,
            input=text_in,
            stdin=None if text_in is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]}: no such program on this machine. {hint}".strip()) from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)}: no answer for {timeout_s:g} s. {hint}".strip()) from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        words = [line for line in words if "dmesg(1)" not in line]  # mount's parting advice
        raise LabError(f"{' '.join(command)}: {words[-1].strip().rstrip('.')}. {hint}".strip())
    return done.stdout


def wait_for(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Wait until a condition holds; whether it did within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
    return True


def booted_by_systemd() -> bool:
    """Whether systemd runs this machine."""
    return Path("/run/systemd/system").is_dir()


# ---------------------------------------------------------------------------------------------------------- processes


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its number, an identity that is never used twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def is_alive(identity: list[int] | None) -> bool:
    """Whether the process recorded as [number, start] still runs."""
    if identity is None:
        return False
    start = process_start(identity[0])
    return start is not None and start == identity[1]


def end_process(identity: list[int] | None, signal_number: int, timeout_s: float) -> bool:
    """Signal a recorded process and wait for its end; whether it has ended."""
    if identity is None or not is_alive(identity):
        return True
    os.kill(identity[0], signal_number)
    return wait_for(lambda: not is_alive(identity), timeout_s)


class Interrupted(KeyboardInterrupt):
    """The caller was told to stop."""


def raise_on_signals() -> None:
    """Make an end that was asked for pass through every `finally`."""

    def stop(number: int, _frame: object) -> None:
        ignore_signals()
        raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def ignore_signals() -> None:
    """From here on nothing may stop us: we are putting things back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


# ------------------------------------------------------------------------------------------------------------- cgroups


def own_cgroups(mountinfo: str, cgroup: str) -> list[Path]:
    """The folders of this process's own cgroups in the hierarchies that systemd uses: v2, and v1's `name=systemd`.

    Args:
        mountinfo: Text of /proc/self/mountinfo.
        cgroup: Text of /proc/self/cgroup.
    """
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in cgroup.splitlines())}
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        name = "" if kind == "cgroup2" else "name=systemd"
        if kind == "cgroup2" or (kind == "cgroup" and name in options.split(",")):
            found.append(Path(point) / Path(paths.get(name, "/")).relative_to(root))
    return found


def cgroups(name: str) -> list[Path]:
    """Where the cgroups of a machine are, if it is us who have to make them.

    Without systemd on the control host nspawn uses the cgroup it was started in. Two machines in one cgroup would kill
    each other's services.
    """
    if booted_by_systemd():
        return []
    texts = [Path("/proc/self", file).read_text(encoding="utf-8") for file in ("mountinfo", "cgroup")]
    return [path / name for path in own_cgroups(*texts)]


def remove_cgroup(path: Path) -> None:
    """Remove a cgroup and those below it, once their processes are gone."""

    def removed() -> bool:
        for folder in sorted([path, *path.rglob("*/")], key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):  # still busy: the next round will tell
                folder.rmdir()
        return not path.exists()

    if not wait_for(removed, timeout_s=5):
        raise LabError(f"{path}: processes are left in this cgroup")


# --------------------------------------------------------------------------------------------------- mounts and files


def mount_points(mountinfo: str, under: Path) -> list[Path]:
    """The mount points at and below a folder, innermost first, out of the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        if path == under or under in path.parents:
            found.append(path)
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _mounted(under: Path) -> list[Path]:
    return mount_points(Path("/proc/self/mountinfo").read_text(encoding="utf-8"), under)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted right there."""
    return path in _mounted(path)


def remove_tree(path: Path) -> None:
    """Delete a folder. What is mounted below is unmounted first, never emptied."""

    def unmounted() -> bool:
        for point in _mounted(path):
            subprocess.run(["umount", str(point)], capture_output=True, check=False)
        return not _mounted(path)

    if not wait_for(unmounted, timeout_s=10):
        raise LabError(
            f"{path}: still in use, cannot be unmounted. Leave the folder in every shell, then run `down` again"
        )
    if path.exists():
        shutil.rmtree(path)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a small file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    new.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """A state file's content; empty when there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content


def read_all(paths: Iterator[Path] | list[Path]) -> list[str]:
    """The text of each file that is there."""
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
