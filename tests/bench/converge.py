"""What `make bench-converge` makes of its runs: phases, medians, aims, and docs/bench-converge.md. Times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: The phase before Ansible has begun its first task.
START = "ansible-playbook starts"
FACTS = "facts"
CHECKS = "checks and plan"
PACKAGES = "Debian packages"
SERVICE = "vllm_service"
#: What others took of the cores right before a run, above which its times are not those of the collection.
BUSY = 0.1


@dataclass(frozen=True)
class Run:
    """One run of site.yml.

    ``kind``: fresh, second, or fresh with the real engine. ``phases_s`` has the seconds of each phase in the order of the play, ``tasks`` how many
    tasks a host has run, ``skipped`` how many were skipped on it. ``cores`` is the share of all cores that was busy, ``before`` that of the second
    before the run.
    """

    kind: str
    machines: int
    wall_s: float
    phases_s: dict[str, float]
    tasks: float
    skipped: float
    changed: int
    cores: float
    before: float


@dataclass(frozen=True)
class Cell:
    """The runs of a kind on a number of machines, each figure the median of its own."""

    kind: str
    machines: int
    rounds_s: list[float]
    phases_s: dict[str, float]
    tasks: float
    skipped: float
    cores: float
    before: float

    @property
    def wall_s(self) -> float:
        return median(self.rounds_s)


@dataclass(frozen=True)
class Aim:
    """Something promised, whether it is so, and the figure."""

    words: str
    met: bool
    seen: str


def phase_of(task: Mapping[str, Any]) -> str:
    """The phase that a task belongs to: its role, else its play; checks, facts and packages by themselves."""
    if str(task["action"]).rpartition(".")[2] in ("setup", "gather_facts"):
        return FACTS
    if str(task["name"]).startswith(("preflight |", "plan |")) or str(task["play"]).startswith(("Refuse", "Check")):
        return CHECKS
    if str(task["action"]).rpartition(".")[2] == "packages":
        return PACKAGES
    return str(task["role"] or task["play"])


def phases(tasks: Sequence[Mapping[str, Any]], begin: float, end: float) -> dict[str, float]:
    """Seconds of each phase. A task lasts until the next one begins, since a play goes on when its last host has done a task."""
    if not tasks:
        return {START: end - begin}
    found = {START: tasks[0]["at"] - begin}
    ends = [*(task["at"] for task in tasks[1:]), end]
    for task, until in zip(tasks, ends, strict=True):
        name = phase_of(task)
        found[name] = found.get(name, 0.0) + until - task["at"]
    return {name: round(seconds, 3) for name, seconds in found.items()}


def run_of(
    kind: str, machines: Sequence[str], told: Mapping[str, Any], begin: float, end: float, cores: float, before: float
) -> Run:
    """Make a run of what the callback has told of it. Raises ValueError where a task failed on one of the machines."""
    counts = {name: {"ok": 0, "changed": 0, "skipped": 0, "failed": 0} for name in machines}
    for task in told["tasks"]:
        for host, outcomes in task["hosts"].items():
            for outcome in outcomes:
                if outcome == "failed":
                    raise ValueError(f"{host}: {task['role']} {task['name']} failed")
                if host in counts:
                    counts[host][outcome] += 1
    hosts = counts.values()
    return Run(
        kind=kind,
        machines=len(machines),
        wall_s=round(end - begin, 3),
        phases_s=phases(told["tasks"], begin, end),
        tasks=sum(one["ok"] + one["changed"] for one in hosts) / len(machines),
        skipped=sum(one["skipped"] for one in hosts) / len(machines),
        changed=sum(one["changed"] for one in hosts),
        cores=round(cores, 3),
        before=round(before, 3),
    )


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Put the rounds together, in the order in which kinds and numbers of machines came first."""
    grouped: dict[tuple[str, int], list[Run]] = {}
    for one in runs:
        grouped.setdefault((one.kind, one.machines), []).append(one)
    made = []
    for (kind, machines), rounds in grouped.items():
        names = list(dict.fromkeys(name for one in rounds for name in one.phases_s))
        made.append(
            Cell(
                kind=kind,
                machines=machines,
                rounds_s=[one.wall_s for one in rounds],
                phases_s={name: median(one.phases_s.get(name, 0.0) for one in rounds) for name in names},
                tasks=median(one.tasks for one in rounds),
                skipped=median(one.skipped for one in rounds),
                cores=median(one.cores for one in rounds),
                before=max(one.before for one in rounds),
            )
        )
    return sorted(made, key=lambda cell: (KINDS.index(cell.kind), cell.machines))


FRESH, ENGINE, SECOND = "fresh", "fresh, real engine", "second"
KINDS = (FRESH, ENGINE, SECOND)


def find(found: Sequence[Cell], kind: str, machines: int) -> Cell | None:
    """The cell of a kind and number of machines."""
    return next((one for one in found if (one.kind, one.machines) == (kind, machines)), None)


def aims(found: Sequence[Cell]) -> list[Aim]:
    """What was aimed at; what was not measured is not met."""
    one, four = find(found, SECOND, 1), find(found, SECOND, 4)
    judged = [
        Aim("second run on 1 machine: at most 30 s", bool(one) and one.wall_s <= 30, rounds(one))
        if one
        else _unmeasured("second run on 1 machine"),
    ]
    words = "second run on 4 machines: at most 1.5 times as long as on 1"
    if one and four:
        times = four.wall_s / one.wall_s
        judged.append(Aim(words, times <= 1.5, f"{times:.2f} times ({four.wall_s:.1f} s and {one.wall_s:.1f} s)"))
    else:
        judged.append(_unmeasured(words))
    words = (
        "fresh converge of 1 machine with the fake engine, Debian packages from a near mirror included: at most 60 s"
    )
    fresh = find(found, FRESH, 1)
    judged.append(Aim(words, fresh.wall_s <= 60, rounds(fresh)) if fresh else _unmeasured(words))
    words = "fresh converge of 1 machine with the real engine from a warm cache, without the load of its model: at most 60 s"
    engine = find(found, ENGINE, 1)
    if engine:
        load_s = engine.phases_s.get(SERVICE, 0.0)
        seen = f"{engine.wall_s - load_s:.1f} s of {engine.wall_s:.1f} s"
        judged.append(Aim(words, engine.wall_s - load_s <= 60, seen))
    else:
        judged.append(_unmeasured(words))
    return judged


def _unmeasured(words: str) -> Aim:
    return Aim(words, False, "not measured")


def rounds(cell: Cell) -> str:
    """A cell's median, and its rounds where there are several."""
    several = f" (by round {min(cell.rounds_s):.1f} to {max(cell.rounds_s):.1f})" if len(cell.rounds_s) > 1 else ""
    return f"{cell.wall_s:.1f} s{several}"


def written(lines: Iterable[Sequence[str]]) -> str:
    """Lines of a table as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def aims_table(judged: Sequence[Aim]) -> str:
    lines = [["aim", "", "seen"], ["---"] * 3]
    return written([*lines, *([one.words, "met" if one.met else "**not met**", one.seen] for one in judged)])


def runs_table(found: Sequence[Cell]) -> str:
    """Whole runs."""
    head = [
        "run",
        "machines",
        "seconds (median)",
        "by round",
        "tasks a host",
        "skipped a host",
        "cores busy",
        "before it, at most",
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for one in found:
        by_round = ", ".join(f"{seconds:.1f}" for seconds in one.rounds_s)
        counts = [f"{one.tasks:.0f}", f"{one.skipped:.0f}", f"{one.cores:.0%}", f"{one.before:.0%}"]
        lines.append([one.kind, str(one.machines), f"{one.wall_s:.1f}", by_round, *counts])
    return written(lines)


def phases_table(found: Sequence[Cell]) -> str:
    """Seconds of each phase, in the order of the play."""
    names = list(dict.fromkeys(name for one in found for name in one.phases_s))
    heads = [f"{one.kind}, {one.machines}" for one in found]
    lines = [["phase", *heads], ["---", *["---:"] * len(heads)]]
    for name in names:
        lines.append([name, *(f"{one.phases_s[name]:.1f}" if name in one.phases_s else "-" for one in found)])
    return written(lines)


def page(made: Mapping[str, str], found: Sequence[Cell]) -> str:
    """Return docs/bench-converge.md."""
    noisy = [one for one in found if one.before > BUSY]
    warning = (
        f"\n**The machine was not quiet**: right before some run something else took {max(one.before for one in noisy):.0%} of its cores.\n"
        if noisy
        else ""
    )
    return f"""# What a converge takes

Written by `make bench-converge` at commit {made["commit"]}, {made["date"]}, on {made["cores"]} cores ({made["processor"]}), Linux {made["kernel"]}, ansible-core
{made["ansible"]}, Python {made["python"]}. Times in seconds.
{warning}
{aims_table(aims(found))}
## Runs

{runs_table(found)}
"Tasks a host" are those that ran on a host or for it; skipped ones cost next to nothing. "Before it" is what the cores did in the second before a run.

## By phase

{phases_table(found)}
A phase is a role; all checks, which come before anything is changed, are one, and so are the tasks that install Debian packages, whatever role they are of. A task
lasts until the next one begins, so that with several machines it is the slowest one's. "{SERVICE}" has the load of the model in it.

## What is measured, and how

- `ansible-playbook site.yml`, from its start to its end, with this checkout's ansible.cfg (pipelining, 50 forks), over SSH to test machines of `molecule/lab`: Debian 12
  in systemd-nspawn, each with a network of its own. **Control node, all machines and the authority share the {made["cores"]} cores**, so that with four machines most of the time
  is one of waiting for a core; on hosts of their own they do not.
- **fresh**: machines that have Debian's minimal system and nothing else. The engine is the fake one of the tests (`tests/fake_engine`), which loads in a second. Debian packages come
  from a mirror and from what earlier machines have fetched; the certificate from the lab's own authority. **fresh, real engine**: vLLM's CPU build and its
  148 packages, by uv from its warm cache, and the demo's model. **second**: once more, with nothing to change; a run that changed something would have ended the benchmark.
- Every figure is the median of its rounds. Rounds of different numbers of machines take turns.
"""
