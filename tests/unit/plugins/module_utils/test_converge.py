"""Converge: judged by what serves, not by what was written."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils._converge import (
    FILES,
    Begun,
    Failed,
    Observed,
    Served,
    digest,
    dump,
    failure_text,
    held_back,
    judge,
    led_away,
    parse_begun,
    parse_failed,
    parse_served,
    scrubbed,
    startable,
    steady,
)


def serving(value: str) -> Observed:
    return Observed(active="active", state="serving", digest=value)


@pytest.mark.parametrize(
    ("observed", "started", "verdict"),
    [
        (Observed(), None, "outdated"),
        (serving("new"), None, "serving"),
        (serving("new"), "new", "serving"),
        # The play was killed between the file and the restart: the old digest serves.
        (serving("old"), None, "outdated"),
        (Observed(active="active"), None, "outdated"),
        (Observed(active="active", state="draining", digest="new"), None, "outdated"),
        (Observed(active="activating", state="loading", digest="new"), None, "loading"),
        (Observed(active="activating", state="loading", digest="old"), None, "outdated"),
        # Just started: the record of the run before may still be there.
        (Observed(active="activating", state="serving", digest="old"), "new", "loading"),
        (Observed(active="inactive"), "new", "loading"),
        (Observed(active="deactivating", state="draining", digest="old"), "new", "stopping"),
        (Observed(active="failed"), None, "outdated"),
        (Observed(active="failed"), "new", "failed"),
        # How the engine before ended; the new one is queued.
        (Observed(active="failed", job=True), "new", "loading"),
        (Observed(active="reloading"), "new", "loading"),
        (Observed(active="activating", restarts=1, digest="new"), "new", "loading"),
        (Observed(active="activating", restarts=2, digest="new"), "new", "failed"),
    ],
)
def test_an_instance_is_judged_by_what_it_serves(observed: Observed, started: str | None, verdict: str) -> None:
    assert judge("new", observed, started) == verdict


@pytest.mark.parametrize(
    ("observed", "away"),
    [
        (serving("new"), False),
        (serving("other"), True),
        # Still the engine before, and the new one is queued.
        (Observed(active="active", state="serving", digest="other", job=True), False),
        (Observed(active="inactive", job=True), False),
        (Observed(active="inactive"), True),
        (Observed(active="activating", state="loading", digest="other"), False),
        (Observed(active="failed", digest="other"), False),
    ],
)
def test_what_somebody_else_did_meanwhile_is_seen(observed: Observed, away: bool) -> None:
    assert led_away("new", observed) == away


def one(name: str, model: str, *gpus: int) -> dict[str, Any]:
    return {"name": name, "model_name": model, "gpus": list(gpus)}


@pytest.mark.parametrize(
    ("instances", "verdicts", "up", "chosen"),
    [
        ([one("a-0", "a"), one("b-0", "b")], {"a-0": "outdated", "b-0": "outdated"}, [], ["a-0", "b-0"]),
        ([one("a-0", "a"), one("b-0", "b")], {"a-0": "serving", "b-0": "outdated"}, ["a-0"], ["b-0"]),
        # On one GPU one after the other.
        ([one("a-0", "a", 0), one("b-0", "b", 0)], {"a-0": "outdated", "b-0": "outdated"}, [], ["a-0"]),
        ([one("a-0", "a", 0), one("b-0", "b", 0)], {"a-0": "loading", "b-0": "outdated"}, ["a-0"], []),
        # Replicas that serve are restarted one by one, new ones start together.
        ([one("a-0", "a", 0), one("a-1", "a", 1)], {"a-0": "outdated", "a-1": "outdated"}, ["a-0", "a-1"], ["a-0"]),
        ([one("a-0", "a", 0), one("a-1", "a", 1)], {"a-0": "loading", "a-1": "outdated"}, ["a-0", "a-1"], []),
        ([one("a-0", "a", 0), one("a-1", "a", 1)], {"a-0": "outdated", "a-1": "outdated"}, [], ["a-0", "a-1"]),
        # What serves is spared until one that takes nothing from clients has had its turn, whatever other models do.
        (
            [one("a-0", "a", 0), one("a-1", "a", 1), one("b-0", "b", 2)],
            {"a-0": "outdated", "a-1": "outdated", "b-0": "outdated"},
            ["a-0", "b-0"],
            ["a-1", "b-0"],
        ),
        ([one("a-0", "a", 0), one("a-1", "a", 1)], {"a-0": "outdated", "a-1": "failed"}, ["a-0"], ["a-0"]),
        # Nobody waits for one that waits for a GPU, or one that others load on.
        (
            [one("a-0", "a", 0), one("a-1", "a", 1), one("b-0", "b", 1)],
            {"a-0": "outdated", "a-1": "outdated", "b-0": "loading"},
            ["a-0"],
            [],
        ),
        ([one("a-0", "a", 0), one("a-1", "a", 0)], {"a-0": "outdated", "a-1": "outdated"}, ["a-0"], ["a-1"]),
    ],
)
def test_starts_are_kept_apart_where_they_must(
    instances: list[dict[str, Any]], verdicts: dict[str, Any], up: list[str], chosen: list[str]
) -> None:
    assert startable(instances, verdicts, up) == chosen


def test_what_serves_does_not_wait_for_one_that_has_broken_down() -> None:
    """Or it would never get a new key."""
    both = [one("a-0", "a", 0), one("a-1", "a", 1)]
    served = {name["name"]: name for name in both}
    verdicts: dict[str, Any] = {"a-0": "outdated", "a-1": "outdated"}
    assert startable(both, verdicts, ["a-0"], served) == ["a-0", "a-1"]
    assert startable(both, verdicts, ["a-0"], {"a-0": both[0]}) == ["a-1"]


def test_the_digest_moves_with_every_part() -> None:
    parts = {"engine.yaml": "a", "env": "b"}
    others = [
        {"engine.yaml": "b", "env": "a"},
        {"engine.yaml": "a"},
        {"engine.yaml": "ab", "env": ""},
        {"engine.yaml": "a", "envb": ""},
    ]
    assert len({digest(some) for some in [parts, *others]}) == 5
    assert digest(parts) == digest(dict(reversed(parts.items())))


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("loading for 42 s: weights loaded", "loading: weights loaded"),
        ("loading for 3 s", "loading"),
        ("serving: 1 running, 0 waiting", "serving: 1 running, 0 waiting"),
        ("", ""),
    ],
)
def test_a_status_is_new_only_when_something_is(status: str, shown: str) -> None:
    assert steady(status) == shown


def ported(name: str, model: str, port: int, *gpus: int) -> dict[str, Any]:
    return {**one(name, model, *gpus), "port": port}


@pytest.mark.parametrize(
    ("instances", "verdicts", "served", "chosen"),
    [
        # b takes the GPU that a gives up, and c the port.
        (
            [ported("a-0", "a", 1, 0), ported("b-0", "b", 2, 1), ported("c-0", "c", 9, 2)],
            {"a-0": "outdated", "b-0": "outdated", "c-0": "outdated"},
            {"a-0": ported("a-0", "a", 9, 0, 1)},
            ["a-0"],
        ),
        # Not while it loads either, but as soon as it serves.
        (
            [ported("a-0", "a", 1, 0), ported("b-0", "b", 2, 1)],
            {"a-0": "loading", "b-0": "outdated"},
            {"a-0": ported("a-0", "a", 1, 0, 1)},
            [],
        ),
        (
            [ported("a-0", "a", 1, 0), ported("b-0", "b", 2, 1), ported("c-0", "c", 3, 2)],
            {"a-0": "serving", "b-0": "outdated", "c-0": "outdated"},
            {"a-0": ported("a-0", "a", 1, 0, 1)},
            ["b-0", "c-0"],
        ),
        # The replica that is to serve first gets a GPU of the one that serves: that one moves before it.
        (
            [ported("a-0", "a", 1, 0), ported("a-1", "a", 2, 1)],
            {"a-0": "outdated", "a-1": "outdated"},
            {"a-0": ported("a-0", "a", 1, 0, 1)},
            ["a-0"],
        ),
        # A GPU that both share is not given up.
        (
            [ported("a-0", "a", 1, 0), ported("b-0", "b", 2, 0)],
            {"a-0": "held", "b-0": "outdated"},
            {"a-0": ported("a-0", "a", 1, 0)},
            ["b-0"],
        ),
    ],
)
def test_what_another_gives_up_is_waited_for(
    instances: list[dict[str, Any]], verdicts: dict[str, Any], served: dict[str, Any], chosen: list[str]
) -> None:
    assert startable(instances, verdicts, ["a-0"], served) == chosen


@pytest.mark.parametrize(
    ("instances", "up", "served", "held"),
    [
        # Replicas that are up, and no others.
        ([one("a-0", "a", 0), one("a-1", "a", 1), one("b-0", "b", 2)], ["a-0", "a-1", "b-0"], {}, {"a-1": "a-0"}),
        ([one("a-0", "a", 0), one("a-1", "a", 1)], ["a-0"], {}, {}),
        # A chain: a keeps 1, so that b cannot leave 2, so that c gets nothing. b's own replica is free to go.
        (
            [one("a-0", "a", 0), one("b-0", "b", 1), one("c-0", "c", 2), one("b-1", "b", 5)],
            ["a-0", "b-0", "b-1"],
            {"a-0": one("a-0", "a", 1), "b-0": one("b-0", "b", 2)},
            {"b-0": "a-0", "c-0": "b-0"},
        ),
    ],
)
def test_what_must_stay_because_of_a_failure(
    instances: list[dict[str, Any]], up: list[str], served: dict[str, Any], held: dict[str, str]
) -> None:
    verdicts: dict[str, Any] = {one["name"]: "outdated" for one in instances} | {"a-0": "failed"}
    assert held_back(instances, verdicts, ["a-0"], up, served) == held
    settled: dict[str, Any] = dict.fromkeys(verdicts, "serving")
    assert held_back(instances, settled, ["a-0"], up, served) == {}


SERVED = Served("d" * 64, "2026-11-25 10:00:00 UTC", dict.fromkeys(FILES, "x"), {"name": "a-0"})
BEGUN = Begun("0" * 32, "d" * 64)
FAILED = Failed("e" * 64, "2026-11-26 02:13:05 UTC", "ValueError: no.", back="OSError: neither.")


def test_records_are_read_as_they_were_written() -> None:
    assert parse_served(dump(SERVED)) == SERVED
    assert parse_failed(dump(FAILED)) == FAILED
    assert parse_begun(dump(BEGUN)) == BEGUN


@pytest.mark.parametrize("text", ["", "[]", "{", '{"digest": "x"}', dump(SERVED).replace('"env": "x",', "")])
def test_a_record_that_is_not_whole_is_none(text: str) -> None:
    assert parse_served(text) is None
    assert parse_failed(text) is None
    assert parse_begun(text) is None


@pytest.mark.parametrize(
    ("served", "move", "started", "taken_by", "said"),
    [
        (SERVED, "serving", True, "", "(digest dddddddddddd, since 2026-11-25 10:00:00 UTC) serves again. Change"),
        (SERVED, "serving", False, "", "still serves, and nothing was tried again. Change the setting, or set"),
        (SERVED, "loading", False, "", "is to be started. Change"),
        (SERVED, "failed", True, "", "does not start either: OSError: neither.\nMend the cause or change"),
        (None, "failed", False, "", "There is nothing else to go back to. Mend"),
        (
            None,
            "failed",
            False,
            "b-0",
            "It cannot go back to what served before: b-0 has its port or a GPU of it. Mend",
        ),
    ],
)
def test_a_failure_says_what_serves_and_the_way_out(
    served: Served | None, move: Any, started: bool, taken_by: str, said: str
) -> None:
    text = failure_text("a-0", FAILED, served, move, started, taken_by)
    start = "a-0 does not start with the settings wanted (digest eeeeeeeeeeee, tried 2026-11-26 02:13:05 UTC): ValueError: no.\n"
    assert text.startswith(start)
    assert said in text
    assert text.endswith("All of it: journalctl -u vllm@a-0.service")
    assert ("vllm_service_retry_failed: true" in text) == (served is not None and move != "failed")


def test_a_secret_that_holds_another_one_is_no_hint() -> None:
    assert scrubbed("hf_longer hf_long", ["hf_long", "", "hf_longer"]) == "*** ***"


def test_a_file_that_is_no_text_is_no_record() -> None:
    record = Failed("d", "2026-11-26 06:00:00 UTC", "caf\u00e9")
    assert parse_failed(dump(record)) == record
    assert parse_failed('{"digest": "d", "at": "", "why": "caf\udce9"}') is None
    assert digest({"drop-ins": "caf\udce9"}) != digest({"drop-ins": "caf\u00e9"})
