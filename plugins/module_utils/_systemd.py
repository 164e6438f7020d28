# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules ask of systemd: the state of a unit, its last journal lines, a transient start."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

#: (exit status, standard output, standard error); ``AnsibleModule.run_command`` fits.
Result = tuple[int, str, str]
Runner = Callable[[list[str]], Result]

COMMAND_TIMEOUT_S = 60.0

#: Colours and the like, as programs write them for terminals.
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def run(argv: list[str]) -> Result:
    """Run a command in the C locale, at most :data:`COMMAND_TIMEOUT_S` seconds.

    Raises ``OSError`` if the program is not there and ``subprocess.TimeoutExpired`` if it does not return.
    """
    done = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
    )
    # Not as text: that would make an end of a line of each carriage return.
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def printable(line: str) -> str:
    """Return a line without anything that leads a terminal; its programs may say whatever they like."""
    return "".join(letter if letter.isprintable() else " " for letter in _ANSI.sub("", line))


def parse_show(text: str, properties: Iterable[str]) -> dict[str, str]:
    """Read the ``KEY=value`` lines of ``systemctl show``.

    Every asked-for property is in the answer (``""`` where systemd left it out). A line that starts with none of
    them goes on with the value before it; a property that comes twice (lists) keeps one line for each. Values are
    made `printable`, since ``StatusText`` ends in words of an engine.
    """
    values = dict.fromkeys(properties, "")
    current = ""
    # Not splitlines(), which ends a line at ten more characters: a value could bring properties of its own.
    for line in map(printable, text.removesuffix("\n").split("\n")):
        key, separator, value = line.partition("=")
        if separator and key in values:
            values[key] = f"{values[key]}\n{value}" if values[key] else value
            current = key
        elif current:
            values[current] += f"\n{line}"
    return values


def show(unit: str, properties: Sequence[str], runner: Runner = run) -> dict[str, str]:
    """Properties of a unit, as text; an unknown unit has ``LoadState=not-found``.

    Raises ``RuntimeError`` with systemctl's own words when it cannot be asked.
    """
    argv = ["systemctl", "show", "--no-pager", f"--property={','.join(properties)}", "--", unit]
    rc, out, err = runner(argv)
    if rc != 0:
        raise RuntimeError(f"systemctl show {unit} failed with {rc}: {(err or out).strip()}")
    return parse_show(out, properties)


def seconds_since(monotonic_us: str, now_s: float | None = None) -> int:
    """Whole seconds since one of systemd's ``*TimestampMonotonic`` (microseconds, as text); 0 where it is not set."""
    stamp = int(monotonic_us) if monotonic_us.isdigit() else 0
    if stamp == 0:
        return 0
    now = time.clock_gettime(time.CLOCK_MONOTONIC) if now_s is None else now_s
    return max(0, int(now - stamp / 1e6))


def journal(unit: str, lines: int, invocation: str = "", runner: Runner = run) -> list[str]:
    """The last lines that a unit's own processes wrote, `printable`, oldest first, blank ones left out.

    With ``invocation`` only those of that one run. An unreadable journal gives ``[]``: it explains, it decides nothing.
    """
    match = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else [f"_SYSTEMD_UNIT={unit}"]
    rc, out, _err = runner(["journalctl", "--no-pager", "--output=cat", f"--lines={lines}", *match])
    if rc != 0:
        return []
    return [line.rstrip() for line in map(printable, out.split("\n")) if line.strip()]


def transient_argv(
    unit: str,
    argv: Sequence[str],
    description: str = "",
    environment: Mapping[str, str] | None = None,
    properties: Mapping[str, str | Sequence[str]] | None = None,
) -> list[str]:
    """The ``systemd-run`` command that starts ``argv`` as a service and does not wait for its end.

    A property with a list is given once for each of its values. ``$`` is doubled in ``argv``, since systemd would put
    variables in: the program gets every argument as written.
    """
    command = ["systemd-run", "--quiet", "--no-ask-password", f"--unit={unit}"]
    if description:
        command.append(f"--description={description}")
    command += [f"--setenv={key}={value}" for key, value in sorted((environment or {}).items())]
    for key, value in (properties or {}).items():
        command += [f"--property={key}={one}" for one in ([value] if isinstance(value, str) else value)]
    return [*command, "--", *(argument.replace("$", "$$") for argument in argv)]
