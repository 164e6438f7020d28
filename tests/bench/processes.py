"""What `make bench-proxy` knows of processes: whose they are, and the CPU time that they take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """Seconds of CPU time: of each group's processes since they started, and of the machine's cores since it did."""

    groups: Mapping[str, Mapping[int, float]]
    busy_s: float
    all_s: float


@dataclass(frozen=True)
class Use:
    """CPU time of a span: seconds by group, the share of all cores that was busy, and the largest share of one core a process took."""

    groups_s: Mapping[str, float]
    span_s: float
    cores: int
    busy: float
    busiest: float

    def share(self, group: str) -> float:
        """Of all cores."""
        return self.groups_s.get(group, 0.0) / (self.span_s * self.cores)


def fields(stat: str) -> tuple[int, float]:
    """Return parent and CPU seconds of a process from its /proc/PID/stat."""
    # The second field is the program's name, in parentheses, with anything in it.
    after = stat.rpartition(")")[2].split()
    return int(after[1]), (int(after[11]) + int(after[12])) / TICKS_PER_S


def cores(stat: str) -> tuple[float, float]:
    """Return seconds busy and in all, of all cores, from /proc/stat. What the machine's host took (steal) is busy."""
    # Time of guests is in that of user already.
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy / TICKS_PER_S, (busy + idle + iowait) / TICKS_PER_S


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = fields((entry / "stat").read_text())[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def read(groups: Mapping[str, Sequence[int]]) -> Reading:
    """Read the time of these processes, as far as they are still there, and of the machine."""
    busy_s, all_s = cores((PROC / "stat").read_text())

    def spent(pids: Iterable[int]) -> Iterator[tuple[int, float]]:
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield pid, fields((PROC / str(pid) / "stat").read_text())[1]

    return Reading({name: dict(spent(pids)) for name, pids in groups.items()}, busy_s, all_s)


def between(begin: Reading, end: Reading, span_s: float) -> Use:
    """Return what was taken between two readings that are `span_s` apart."""
    taken = {
        name: {pid: spent - begin.groups[name].get(pid, 0.0) for pid, spent in pids.items()}
        for name, pids in end.groups.items()
    }
    return Use(
        {name: sum(pids.values()) for name, pids in taken.items()},
        span_s,
        os.cpu_count() or 1,
        (end.busy_s - begin.busy_s) / (end.all_s - begin.all_s),
        max((spent for pids in taken.values() for spent in pids.values()), default=0.0) / span_s,
    )
