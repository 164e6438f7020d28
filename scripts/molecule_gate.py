#!/usr/bin/env python3
"""Run the Molecule scenarios one after another, and refuse a green one that did nothing.

Molecule ends with success when a play matched no host and when its verifier found no test. So each scenario must have run
tasks on a host other than the control node, and pytest must have passed at least one test. Every scenario runs in one Molecule
process, which makes the machines once (`shared_state`) and stops at the first failure. The log stays in `.build/molecule.log`.

Usage: scripts/molecule_gate.py [SCENARIO...]; without names all of them but those that are too long for `make test`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
GLOB = "molecule/*/molecule.yml"
LOG = REPO / ".build" / "molecule.log"
# `make drills` runs them, for their time.
DRILLS_ALONE = frozenset({"bundle"})

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Molecule's own lines: `INFO     [two_models > converge] Executing`.
STEP = re.compile(r"^[A-Z]+\s+\[(\S+) > (\w+)\] (.*)")
# A host's line under PLAY RECAP: `gpu01   : ok=12   changed=3 ...`.
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=\d+")
NO_HOST = re.compile(r"no hosts matched|Could not match supplied host pattern|provided hosts list is empty")
# pytest's last line: `==== 12 passed, 1 skipped in 3.20s ====`.
PYTEST = re.compile(r"^=+ (?:.*\D)?(\d+) passed\b.* in [\d.]+s")


@dataclass
class Scenario:
    """What the log says of one scenario."""

    seconds: float = 0.0
    hosts: set[str] = field(default_factory=set)
    tests: int = 0
    failed_step: str = ""
    nothing: str = ""

    @property
    def problem(self) -> str:
        """What is wrong with it; empty when it did its work."""
        if self.failed_step:
            return f"{self.failed_step} failed"
        if self.nothing:
            return f"a play ran on no host ({self.nothing}): is the machine in the inventory's group?"
        if not self.hosts:
            return "no task ran on any machine: is converge in the scenario's test_sequence?"
        if self.tests == 0:
            return "no test passed: are there test_*.py files where the verifier looks?"
        return ""


def read_log(lines: Iterable[tuple[float, str]]) -> tuple[dict[str, Scenario], float]:
    """Return what became of each scenario, and the seconds spent on making and removing the machines.

    Args:
        lines: Molecule's output, each line with the time (seconds) it came at.
    """
    scenarios: dict[str, Scenario] = {}
    machines = 0.0
    current: Scenario | None = None
    last = None
    for when, raw in lines:
        elapsed, last = (when - last if last is not None else 0.0), when
        if current is None:
            machines += elapsed
        else:
            current.seconds += elapsed
        line = COLOURS.sub("", raw)
        if step := STEP.match(line):
            name, action, message = step.groups()
            if action in {"create", "destroy"}:
                current = None
            elif message.startswith("Executing"):
                current = scenarios.setdefault(name, Scenario())
            if message.startswith("Executed: Failed"):
                scenarios.setdefault(name, Scenario()).failed_step = action
        elif current is not None:
            if (host := RECAP.match(line)) and host[1] != "localhost" and int(host[2]) > 0:
                current.hosts.add(host[1])
            elif nothing := NO_HOST.search(line):
                current.nothing = nothing[0]
            elif tests := PYTEST.match(line):
                current.tests += int(tests[1])
    return scenarios, machines


def scenarios_of_the_repository() -> list[str]:
    """Return the names of the scenarios, `default` first: the others may start from the machine it leaves."""
    names = {path.parent.name for path in REPO.glob(GLOB)}
    return sorted(names, key=lambda name: (name != "default", name))


def molecule(action: str, scenarios: Iterable[str]) -> Iterator[str]:
    """Run `molecule ACTION` on `scenarios` and yield its output line by line.

    Raises:
        CalledProcessError: Molecule ended with another code than 0.
    """
    # Borders wrap every line at 80 columns and double the run time.
    command = ["molecule", action, "--no-command-borders", *(f"--scenario-name={name}" for name in scenarios)]
    with subprocess.Popen(
        command,
        cwd=REPO,
        env={**os.environ, "MOLECULE_GLOB": GLOB, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def destroy() -> None:
    """Remove what an earlier run left: machines, and Molecule's belief that they are there."""
    output: list[str] = []
    try:
        output.extend(molecule("destroy", ["default"]))
    except subprocess.CalledProcessError:
        print("".join(output), end="")
        raise


def main() -> int:
    """Run the named scenarios, or all; return 0 when each did its work."""
    if os.geteuid() != 0:
        print("molecule: the test machines (systemd-nspawn) need root: sudo make molecule", file=sys.stderr)
        return 1
    known = scenarios_of_the_repository()
    wanted = sys.argv[1:] or [name for name in known if name not in DRILLS_ALONE]
    if not wanted:
        print(f"molecule: {GLOB} matches no scenario", file=sys.stderr)
        return 1
    if unknown := sorted(set(wanted) - set(known)):
        print(f"molecule: no scenario {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 1

    if (REPO / ".demo" / "env").exists():
        print(
            "molecule: the demo is up, and the tests would take its machine. Run `make demo-down` first.",
            file=sys.stderr,
        )
        return 1
    destroy()
    lines: list[tuple[float, str]] = []
    complaint = ""
    LOG.parent.mkdir(exist_ok=True)
    try:
        with LOG.open("w", encoding="utf-8") as log:
            for line in molecule("test", wanted):
                lines.append((time.monotonic(), line))
                print(line, end="", flush=True)
                log.write(line)
    except subprocess.CalledProcessError as error:
        complaint = f"molecule exited {error.returncode}"
    except KeyboardInterrupt:
        complaint = "interrupted"
    if complaint:
        destroy()

    found, machines = read_log(lines)
    print(f"molecule: {'(machines)':<16} {machines:5.0f} s")
    for name in wanted:
        if name in found:
            scenario = found[name]
            hosts = ", ".join(sorted(scenario.hosts)) or "no host"
            verdict = f"FAILED: {scenario.problem}" if scenario.problem else "ok"
            print(f"molecule: {name:<16} {scenario.seconds:5.0f} s, {scenario.tests} tests passed, {hosts}: {verdict}")
        else:
            print(f"molecule: {name:<16} FAILED: did not run")
    if complaint:
        print(f"molecule: {complaint}; its log: {LOG.relative_to(REPO)}")
    return 1 if complaint or any(name not in found or found[name].problem for name in wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
