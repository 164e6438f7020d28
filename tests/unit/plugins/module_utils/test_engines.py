# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines of a host are surplus, and what is remembered of the last change."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils._engines import (
    Change,
    Environment,
    dump,
    named_in,
    ours,
    parse,
    surplus,
    version_of,
)

OLD, NEW, THIRD = (f"0.3{minor}.0-cpu-0000000{minor}" for minor in (1, 2, 3))


def there(*names: str, unfinished: str = "") -> list[Environment]:
    """Environments, finished in this order."""
    found = [Environment(name, float(number)) for number, name in enumerate(names)]
    return [*found, *([Environment(unfinished, None)] if unfinished else [])]


@pytest.mark.parametrize(
    ("environments", "keep", "current", "other", "needed", "gone"),
    [
        (there(OLD, NEW, THIRD), 2, THIRD, NEW, set(), [OLD]),
        (there(OLD, NEW, THIRD), 3, THIRD, NEW, set(), []),
        # The way back goes before the newest.
        (there(OLD, NEW, THIRD), 2, OLD, NEW, set(), [THIRD]),
        (there(OLD, NEW, THIRD), 2, NEW, OLD, set(), [THIRD]),
        (there(OLD, NEW, THIRD), 2, NEW, "", set(), [OLD]),
        # What serves stays beyond the number, and takes no place of it away.
        (there(OLD, NEW, THIRD), 1, THIRD, NEW, {OLD}, [NEW]),
        (there(OLD, NEW, THIRD), 2, THIRD, NEW, {OLD}, []),
        # Unfinished ones go, be there ever so few, but for those that are being built.
        (there(OLD, NEW, unfinished=THIRD), 2, NEW, OLD, set(), [THIRD]),
        (there(OLD, NEW, unfinished=THIRD), 2, NEW, OLD, {THIRD}, []),
        (there(OLD), 1, OLD, "", set(), []),
        # A link that leads to what is none of ours.
        (there(OLD, NEW), 2, "by-hand", OLD, set(), []),
    ],
)
def test_what_is_surplus(
    environments: list[Environment], keep: int, current: str, other: str, needed: set[str], gone: list[str]
) -> None:
    assert surplus(environments, keep, current, other, needed) == gone


def test_only_names_of_our_making_are_ours() -> None:
    others = ["uv", "install", "current", "fake", "0.32.0", "0.32.0-cpu", "0.32.0-cpu-xyz", "my-0.32.0-cpu-0123abcd"]
    assert ours([*others, "0.32.0-cpu-0123abcd", "0.32.0+cpu-cpu-0123abcd"]) == [
        "0.32.0+cpu-cpu-0123abcd",
        "0.32.0-cpu-0123abcd",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f'{{"engine": "/opt/vllm/{OLD}"}}', {OLD}),
        (f"ExecStart=/opt/vllm/{OLD}/bin/vllm", {OLD}),
        # Cut off in the middle, it still counts.
        (f'{{"engine": "/opt/vllm/{OLD}", "files": {{', {OLD}),
        (f'{{"engine": "/opt/vllm/{OLD}0"}}', set()),
        (f'{{"engine": "/srv/vllm/{OLD}"}}', set()),
    ],
)
def test_an_environment_that_a_record_names(text: str, found: set[str]) -> None:
    assert named_in([text], [OLD, NEW], "/opt/vllm") == found


@pytest.mark.parametrize(
    ("change", "current", "wanted", "undone"),
    [
        (Change(OLD, NEW, held=True), NEW, OLD, True),
        (Change(OLD, NEW, held=True), OLD, NEW, True),
        (Change(OLD, NEW, held=True), NEW, NEW, False),
        (Change(OLD, NEW, held=True), NEW, THIRD, True),
        # The same version by another lock, as a newer collection may have it.
        (Change(OLD, NEW, held=True), NEW, f"{version_of(NEW)}-cpu-ffffffff", False),
        (Change(OLD, NEW, held=True), NEW, f"{version_of(OLD)}-cpu-ffffffff", True),
        (Change(OLD, NEW, held=True), THIRD, OLD, False),
        (Change(OLD, NEW), NEW, OLD, False),
    ],
)
def test_only_a_held_change_is_protected(change: Change, current: str, wanted: str, undone: bool) -> None:
    assert change.undone_by(current, wanted) is undone


def test_a_change_is_read_as_it_was_written() -> None:
    change = Change(OLD, NEW, held=True)
    assert parse(dump(change)) == change
    assert (change.end("back"), change.end("forth"), change.other(OLD), change.other(THIRD)) == (OLD, NEW, NEW, "")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "null", '"x"', "[" * 100_000,
        json.dumps({"before": OLD}),
        json.dumps({"before": OLD, "after": NEW, "more": 1}),
        json.dumps({"before": OLD, "after": NEW, "held": "yes"}),
        json.dumps({"before": OLD, "after": ["x"], "held": True}),
        json.dumps({"before": "../../etc", "after": NEW, "held": True}),
    ],
)  # fmt: skip
def test_what_is_no_record_is_none(text: str) -> None:
    assert parse(text) is None


def test_the_name_tells_the_version() -> None:
    assert version_of("0.32.0-cpu-0123abcd") == "0.32.0"
