"""What the measurements of `make bench-proxy` become: percentiles, verdicts, tables."""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict, replace
from typing import Any

import figures
import pytest
from figures import Cell, Spread
from processes import Use
from streams import Seen

MS = 1_000_000


def cell(way: str, streams: int, first: tuple[float, float], **changes: Any) -> Cell:
    """A cell of two rounds in which all went well."""
    values: dict[str, Any] = {
        "way": way,
        "streams": streams,
        "window_s": 10.0,
        "first": Spread(*first),
        "gap": Spread(20.0, 21.0),
        "transit": Spread(0.1, 0.2),
        "sent_gap": Spread(20.0, 21.0),
        "answers": 100,
        "events": 500,
        "failed": {},
        "unanswered": 0,
        "rounds_first_p50": [first[0], first[0]],
        "cpu": {"client": 0.1, "upstream": 0.05},
        "cpu_s": {"client": 2.0, "upstream": 1.0},
        "busy": 0.2,
        "busiest": 0.2,
        **changes,
    }
    return Cell(**values)


GOOD = (
    cell("direct", 1, (0.2, 0.4)),
    cell("gateway", 1, (0.4, 0.8)),
    cell("litellm", 1, (15.2, 30.0)),
    cell("direct", 32, (0.2, 0.5)),
    cell("gateway", 32, (0.5, 5.4)),
)


def verdicts(cells: tuple[Cell, ...]) -> list[bool]:
    return [aim.met for aim in figures.aims(cells)]


def changed(way: str, streams: int, **changes: Any) -> tuple[Cell, ...]:
    """The good ones, with one changed."""
    return tuple(replace(one, **changes) if (one.way, one.streams) == (way, streams) else one for one in GOOD)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert figures.spread([value * MS for value in range(100, 0, -1)]) == Spread(50, 99)
    assert figures.spread([3 * MS]) == Spread(3, 3)
    assert figures.spread([]) == Spread(0, 0)


def test_rounds_count_together_by_their_time() -> None:
    calm: Seen[Any] = Seen(first=array("q", [MS, MS, MS]), transit=array("q", [1] * 5), ended=3, window_s=10)
    busy: Seen[Any] = Seen(first=array("q", [9 * MS]), transit=array("q", [1] * 2), ended=1, window_s=30, unanswered=2)
    busy.failed["502"] = 1
    made = figures.cell(
        "gateway",
        32,
        [(calm, Use({"client": 2.0}, 10, 2, 0.2, 0.1)), (busy, Use({"client": 30.0}, 30, 2, 0.6, 0.5))],
    )
    assert made.first == Spread(1, 9)
    assert made.rounds_first_p50 == [1, 9]
    assert (made.answers, made.events, made.failed, made.unanswered) == (4, 7, {"502": 1}, 2)
    assert made.cpu_s == {"client": 32.0}
    # Of two cores: 0.1 for 10 s and 0.5 for 30 s.
    assert made.cpu == {"client": pytest.approx(0.4)}
    assert made.busy == pytest.approx(0.5)
    assert not made.whole


def test_all_aims_are_met_by_good_figures() -> None:
    assert verdicts(GOOD) == [True] * 7


@pytest.mark.parametrize(
    ("cells", "missed"),
    [
        (changed("gateway", 1, first=Spread(0.52, 0.8)), [0, 4]),
        (changed("gateway", 32, first=Spread(0.5, 5.6)), [1]),
        (changed("gateway", 32, gap=Spread(20, 26.1)), [2]),
        (changed("gateway", 32, transit=Spread(0.1, 5.3)), [3]),
        (changed("litellm", 1, first=Spread(10.0, 30.0)), [4]),
        (changed("gateway", 32, failed={"cut": 1}), [5]),
        (changed("direct", 32, unanswered=1), [5]),
        (changed("gateway", 32, busy=0.8), [6]),
        (changed("direct", 1, busiest=0.81), [6]),
        (GOOD[:2], [1, 2, 3, 4]),
        ((), [0, 1, 2, 3, 4, 6]),
    ],
)
def test_an_aim_is_missed_by_its_own_figure(cells: tuple[Cell, ...], missed: list[int]) -> None:
    assert [number for number, met in enumerate(verdicts(cells)) if not met] == missed


def test_litellm_may_lose_requests_and_be_full_without_a_verdict() -> None:
    assert verdicts(changed("litellm", 1, busy=1.0, unanswered=4, failed={"cut": 1})) == [True] * 7


def test_what_is_full_or_not_whole_is_marked() -> None:
    cells = [
        cell("direct", 1, (0.2, 0.4)),
        cell("gateway", 1, (0.45, 0.8)),
        cell("litellm", 1, (15.2, 1230.0), busiest=0.9, unanswered=1, events=300),
    ]
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in figures.latency_table(cells).splitlines()[2:]]
    assert [row[:8] for row in rows] == [
        ["1", "direct", "0.20", "0.40", "-", "-", "-", "-"],
        ["1", "this gateway", "0.45", "0.80", "0.25", "0.40", "0.00", "0.00"],
        ["1", "LiteLLM † ‡", "15.20", "1,230", "15.00", "1,230", "0.00", "0.00"],
    ]
    assert rows[2][-2:] == ["30", "10.0"]


def test_both_nginx_have_one_column() -> None:
    rows = figures.cpu_table(
        [cell("nginx", 1, (1, 2), cpu={"client": 0.1, "nginx": 0.2, "gateway": 0.001, "litellm": 0.0})]
    ).splitlines()
    columns = [[word.strip() for word in row.split("|")] for row in rows]
    assert columns[2][columns[0].index("NGINX")] == "20%"


def test_nginx_alone_may_be_slow_without_a_verdict() -> None:
    assert verdicts((*GOOD, cell("nginx", 32, (90, 99), busy=1.0, unanswered=4))) == [True] * 7


def test_answers_are_counted_by_cpu_second() -> None:
    own = cell("gateway", 32, (1, 2), answers=6000, cpu_s={"client": 2.0, "upstream": 1.0, "gateway": 3.0})
    row = figures.saturated_table([own]).splitlines()[2].split("|")
    assert [row[place].strip() for place in (2, 5, 6)] == ["600", "1,000", "2,000"]


def test_what_was_stored_is_what_is_shown() -> None:
    stored = json.loads(json.dumps([asdict(one) for one in GOOD]))
    assert figures.cells(stored) == list(GOOD)


def test_the_page_says_what_nginx_alone_adds() -> None:
    assert "at 1 stream, 0.15 ms are" in figures.floor((*GOOD, cell("nginx", 1, (0.35, 0.6))))
    assert figures.floor(GOOD) == ""


def test_the_page_has_every_table() -> None:
    names = ("commit", "date", "cores", "processor", "kernel", "python", "openssl", "nginx", "litellm")
    extent = {"streams": [1, 32], "rounds": 3, "paced_s": 10, "short_s": 5}
    page = figures.page({name: name.upper() for name in names}, extent, GOOD, GOOD[:2])
    for table in (figures.aims_table(figures.aims(GOOD)), figures.latency_table(GOOD), figures.cpu_table(GOOD)):
        assert table in page
    assert "at commit COMMIT, DATE, on CORES cores (PROCESSOR)" in page
    assert "20.00 and 21.00 ms at 1, 20.00 and 21.00 ms at 32 streams" in page
