"""Converge: judged by what serves, not by what was written."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils._converge import Observed, digest, judge, startable, steady


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
        (Observed(active="activating", restarts=1, digest="new"), "new", "loading"),
        (Observed(active="activating", restarts=2, digest="new"), "new", "failed"),
    ],
)
def test_an_instance_is_judged_by_what_it_serves(observed: Observed, started: str | None, verdict: str) -> None:
    assert judge("new", observed, started) == verdict


def one(name: str, model: str, *gpus: int) -> dict[str, Any]:
    return {"name": name, "model_name": model, "gpus": list(gpus)}


@pytest.mark.parametrize(
    ("instances", "verdicts", "running", "chosen"),
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
    ],
)
def test_starts_are_kept_apart_where_they_must(
    instances: list[dict[str, Any]], verdicts: dict[str, Any], running: list[str], chosen: list[str]
) -> None:
    assert startable(instances, verdicts, running) == chosen


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
