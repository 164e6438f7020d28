"""What `make bench-proxy` makes of its measurements: figures, aims, and the tables of docs/bench-proxy.md. Times in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processes import Use
from streams import Seen

#: The share of the cores above which a queue is measured, and not what a proxy adds.
FULL = 0.8
NAMES = {"direct": "direct", "nginx": "NGINX alone", "gateway": "this gateway", "litellm": "LiteLLM"}


@dataclass(frozen=True)
class Spread:
    """Median and 99th percentile; 0 of nothing."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Cell:
    """One way at one number of streams; `rounds_first_p50` by round, `cpu` and `busy` as shares of all cores, `busiest` of one."""

    way: str
    streams: int
    window_s: float
    first: Spread
    gap: Spread
    transit: Spread
    sent_gap: Spread
    answers: int
    events: int
    failed: dict[str, int]
    unanswered: int
    rounds_first_p50: list[float]
    cpu: dict[str, float]
    cpu_s: dict[str, float]
    busy: float
    busiest: float

    @property
    def full(self) -> bool:
        """True where something waited for the CPU, so that times are of a queue."""
        return self.busy >= FULL or self.busiest >= FULL

    @property
    def others(self) -> float:
        """The share of all cores that none of the measured programs took."""
        return max(0.0, self.busy - sum(self.cpu.values()))

    @property
    def whole(self) -> bool:
        """True where every request had its answer."""
        return not self.failed and not self.unanswered


@dataclass(frozen=True)
class Aim:
    """Something promised, whether it is so, and the figure."""

    words: str
    met: bool
    seen: str


def rank(values: Iterable[int], share: float) -> float:
    """Return a percentile of nanoseconds by nearest rank, in milliseconds; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] / 1e6 if ranked else 0.0


def spread(values: Sequence[int]) -> Spread:
    """Return the percentiles of nanoseconds."""
    return Spread(round(rank(values, 0.5), 4), round(rank(values, 0.99), 4))


def cell(way: str, streams: int, rounds: Sequence[tuple[Seen[Any], Use]]) -> Cell:
    """Put the rounds of a way and number of streams together."""
    seens = [seen for seen, _use in rounds]
    window_s = sum(seen.window_s for seen in seens)

    def share(values: Iterable[tuple[float, float]]) -> float:
        return round(sum(value * span for value, span in values) / window_s, 4)

    failed: dict[str, int] = {}
    for seen in seens:
        for reason, count in seen.failed.items():
            failed[reason] = failed.get(reason, 0) + count
    groups = rounds[0][1].groups_s
    return Cell(
        way=way,
        streams=streams,
        window_s=round(window_s, 3),
        first=spread([value for seen in seens for value in seen.first]),
        gap=spread([value for seen in seens for value in seen.gap]),
        transit=spread([value for seen in seens for value in seen.transit]),
        sent_gap=spread([value for seen in seens for value in seen.sent_gap]),
        answers=sum(seen.ended for seen in seens),
        events=sum(len(seen.transit) for seen in seens),
        failed=failed,
        unanswered=sum(seen.unanswered for seen in seens),
        rounds_first_p50=[round(rank(seen.first, 0.5), 4) for seen in seens],
        cpu={group: share((use.share(group), use.span_s) for _seen, use in rounds) for group in groups},
        cpu_s={group: round(sum(use.groups_s[group] for _seen, use in rounds), 3) for group in groups},
        busy=share((use.busy, use.span_s) for _seen, use in rounds),
        busiest=share((use.busiest, use.span_s) for _seen, use in rounds),
    )


def find(cells: Sequence[Cell], way: str, streams: int) -> Cell | None:
    """Return the cell of a way and number of streams."""
    return next((one for one in cells if (one.way, one.streams) == (way, streams)), None)


def aims(cells: Sequence[Cell]) -> list[Aim]:
    """Return what was aimed at, judged on what was measured; what was not is not met."""
    judged = []
    direct, gateway, litellm = (find(cells, way, 1) for way in ("direct", "gateway", "litellm"))
    added = gateway.first.p50 - direct.first.p50 if direct and gateway else math.inf
    rounds = (
        [own - there for own, there in zip(gateway.rounds_first_p50, direct.rounds_first_p50, strict=True)]
        if direct and gateway
        else [math.inf]
    )
    judged.append(
        Aim(
            "1 stream: at most 0.3 ms added to the time to first token (p50)",
            added <= 0.3,
            f"{added:.2f} ms (by round {min(rounds):.2f} to {max(rounds):.2f})",
        )
    )
    crowd, beside = find(cells, "gateway", 32), find(cells, "direct", 32)
    for words, kind in (("time to first token", "first"), ("inter-token time", "gap"), ("time of an event", "transit")):
        late = getattr(crowd, kind).p99 - getattr(beside, kind).p99 if crowd and beside else math.inf
        judged.append(
            Aim(f"32 streams: p99 of the {words} within 5 ms of direct", late <= 5, f"{late:+.2f} ms"),
        )
    theirs = litellm.first.p50 - direct.first.p50 if litellm and direct else 0.0
    # What is less than the clock and the rounds can tell apart counts as that.
    times = theirs / max(added, 0.01)
    judged.append(
        Aim(
            "1 stream: at least 50 times less added to the time to first token (p50) than by LiteLLM",
            times >= 50,
            f"{times:.0f} times ({added:.2f} ms and {theirs:.2f} ms)" if litellm else "not measured",
        )
    )
    mine = [one for one in cells if one.way in ("direct", "gateway")]
    lost = sum(one.unanswered + sum(one.failed.values()) for one in mine)
    judged.append(Aim("direct and through the gateway no request is lost", lost == 0, f"{lost} lost"))
    highest = max((max(one.busy, one.busiest) for one in mine), default=math.inf)
    judged.append(
        Aim(
            f"direct and through the gateway the cores, and each process of its core, stay below {FULL:.0%}",
            highest < FULL,
            f"at most {highest:.0%}",
        )
    )
    return judged


def written(lines: Iterable[Sequence[str]]) -> str:
    """Return lines of a table as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ms(value: float) -> str:
    """A time with as many digits as can be told apart."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def latency_table(cells: Sequence[Cell]) -> str:
    """Times by number of streams and way, and what each way adds to direct."""
    head = ["streams", "way", "first token p50", "p99", "added p50", "added p99", "an event later p50", "p99"]
    head += ["inter-token p50", "p99", "events/s", "answers/s"]
    lines = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]
    for one in cells:
        direct = find(cells, "direct", one.streams)
        own = direct is None or one.way == "direct"
        added = (
            ["-"] * 4
            if direct is None or own
            else [
                ms(one.first.p50 - direct.first.p50),
                ms(one.first.p99 - direct.first.p99),
                ms(one.transit.p50 - direct.transit.p50),
                ms(one.transit.p99 - direct.transit.p99),
            ]
        )
        name = f"{NAMES[one.way]}{' †' if one.full else ''}{'' if one.whole else ' ‡'}"
        lines.append(
            [
                *[
                    str(one.streams),
                    name,
                    ms(one.first.p50),
                    ms(one.first.p99),
                    *added,
                    ms(one.gap.p50),
                    ms(one.gap.p99),
                ],
                *[f"{one.events / one.window_s:,.0f}", f"{one.answers / one.window_s:,.1f}"],
            ]
        )
    return written(lines)


def cpu_table(cells: Sequence[Cell]) -> str:
    """Who took the CPU, as shares of all cores."""
    head = [
        "streams",
        "way",
        "client",
        "upstream",
        "NGINX",
        "LiteLLM",
        "anything else",
        "all cores",
        "busiest process, of one core",
    ]
    lines = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]
    for one in cells:
        # Of the two NGINX the one that is not asked rests.
        groups = (("client",), ("upstream",), ("nginx", "gateway"), ("litellm",))
        shares = [sum(one.cpu.get(name, 0.0) for name in names) for names in groups]
        figures = [
            f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" for share in (*shares, one.others, one.busy, one.busiest)
        ]
        lines.append([str(one.streams), NAMES[one.way], *figures])
    return written(lines)


def saturated_table(cells: Sequence[Cell]) -> str:
    """How many short answers a second of CPU time gives."""
    head = [
        "way",
        "answers/s",
        "p50",
        "p99",
        "answers per CPU-second, all",
        "of the proxy's own CPU-second",
        "all cores",
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for one in cells:
        own_s = one.cpu_s.get(one.way, 0.0)
        per = f"{one.answers / own_s:,.0f}" if own_s else "-"
        lines.append(
            [
                *[f"{NAMES[one.way]}{'' if one.whole else ' ‡'}", f"{one.answers / one.window_s:,.0f}"],
                *[ms(one.first.p50), ms(one.first.p99)],
                *[f"{one.answers / sum(one.cpu_s.values()):,.0f}", per, f"{one.busy:.0%}"],
            ]
        )
    return written(lines)


def aims_table(judged: Sequence[Aim]) -> str:
    """What was aimed at, and whether it is so."""
    lines = [["aim", "", "seen"], ["---"] * 3]
    lines += [[one.words, "met" if one.met else "**not met**", one.seen] for one in judged]
    return written(lines)


def cells(stored: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """Return what was stored as JSON."""
    made = []
    for one in stored:
        values: dict[str, Any] = {
            name: Spread(**one[name]) if name in ("first", "gap", "transit", "sent_gap") else one[name] for name in one
        }
        made.append(Cell(**values))
    return made


def floor(cells: Sequence[Cell]) -> str:
    """Say what the least that a proxy with TLS can be adds here, which no configuration of NGINX stays below."""
    direct, alone = find(cells, "direct", 1), find(cells, "nginx", 1)
    if direct is None or alone is None:
        return ""
    added = ms(alone.first.p50 - direct.first.p50)
    return f"\nOf what is added at 1 stream, {added} ms are those of NGINX alone: TLS, and a process that is woken twice more.\n"


def page(made: Mapping[str, str], extent: Mapping[str, Any], paced: Sequence[Cell], short: Sequence[Cell]) -> str:
    """Return docs/bench-proxy.md."""
    pace = [one for one in paced if one.way == "direct"]
    steady = ", ".join(f"{ms(one.sent_gap.p50)} and {ms(one.sent_gap.p99)} ms at {one.streams}" for one in pace)
    numbers = ", ".join(map(str, extent["streams"]))
    return PAGE.format(
        **made,
        aims=aims_table(aims(paced)),
        floor=floor(paced),
        latency=latency_table(paced),
        cpu=cpu_table(paced),
        short=saturated_table(short),
        steady=steady,
        numbers=numbers,
        rounds=extent["rounds"],
        paced_s=f"{extent['paced_s']:g}",
        short_s=f"{extent['short_s']:g}",
    )


PAGE = """\
# What the gateway costs

Written by `make bench-proxy` at commit {commit}, {date}, on {cores} cores ({processor}), Linux {kernel}, NGINX {nginx} and its JavaScript module as
Debian packages them, LiteLLM {litellm}, Python {python}. Times in milliseconds.

![What the gateway and LiteLLM's proxy add to the time to the first token, and the answers of a CPU-second](bench-proxy.svg)

{aims}{floor}
## Paced streams

Each stream gets 50 events a second, as of a model that writes 50 tokens a second. "Added" is a percentile less the same one of direct. "An event later" is
what a way adds to the time from the sending of an event by the upstream to its arrival at the client, for all events of all streams.

{latency}
† Something was short of CPU: the cores or a process of its core stood at 80 % or more, so the times are those of a queue and say only that this many streams
are too many for it here. ‡ Not every request had its answer within three seconds after the measuring.

Who took the CPU meanwhile, as shares of all {cores} cores:

{cpu}
## Short answers, as many as go

32 connections, each with a request as soon as it has its answer, of two tokens in one piece. All of it shares the {cores} cores, so that answers per second
depend on what the client and the upstream take; answers per CPU-second of all processes, and of the proxy's own, do not.

{short}
## What is measured, and how

- **direct**: the client asks the upstream over plain HTTP. **this gateway**: NGINX with the configuration that the role `vllm_nginx` renders with its
  defaults, in front of two models: TLS, the client's key looked up by its SHA-256, the model taken from the body, tokens and access log written;
  workers and connections as in Debian's nginx.conf. **NGINX alone**: the same program with the same TLS that passes everything on and does nothing else, the
  least that such a proxy costs on this machine. **LiteLLM**: its proxy without a database, over plain HTTP, with the master key, one worker for each
  core, and the settings that its documentation recommends for production (`LITELLM_MODE=PRODUCTION`, `LITELLM_LOG=ERROR`), leading to the same upstream as `hosted_vllm/`.
  What TLS costs is counted against the two NGINX, the client's part of it included.
- All are measured in turn, {rounds} rounds with another order in each, {paced_s} s a window of streams and {short_s} s a window of short answers, and each
  time only once the programs have come to rest. Connections are warm: each has had a request before the window begins. NGINX keeps as many of its own to the upstream as the
  role's default says, 32 a worker. With {numbers} streams each asks again 20 ms after its answer has ended; one alone for 5 events, several for 100. They begin evenly spread, so that
  their events do not come all at once. The prompt has about 2,000 characters.
- The client (`tests/bench/streams.py`) and the upstream (`tests/bench/upstream.py`) are one process each and share the machine's monotonic clock. The time to
  the first token is from before the request is written to after the first event with a content was read. Each event carries the time of its sending.
- The upstream keeps its pace: between two events of a stream p50 and p99 are {steady} streams, asked directly.
- CPU time is read from /proc for each process at both ends of a window. "Anything else" is what the rest of the machine took, its host included.

Not measured: a network (all is loopback), new connections and their TLS handshakes, HTTP/2, long prompts, and a real engine, which sends the tokens of all streams
of a step at once and would add its own seconds. What the proxies do besides is not compared: LiteLLM translates between many providers and keeps budgets, where it has a
database.
"""
