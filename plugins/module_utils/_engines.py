# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines of a host: which one the last change came from, whether a run may change it again, and which are surplus. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

#: Environments that this collection has made are called VERSION-FLAVOUR-LOCK; whatever else lies beside them is somebody else's.
NAME = re.compile(r"\d[A-Za-z0-9.+]*-[a-z]+-[0-9a-f]{8}\Z")

#: Along the last change: to the engine that it came from, or to the one that it led to.
Way = Literal["back", "forth"]


@dataclass(frozen=True)
class Change:
    """The last change of the engine: from which environment to which, and whether other runs must not undo it."""

    before: str
    after: str
    held: bool = False

    def end(self, way: Way) -> str:
        """Return the environment at one end of the change."""
        return self.before if way == "back" else self.after

    def other(self, name: str) -> str:
        """Return the end that ``name`` is not, "" where it is neither."""
        return {self.before: self.after, self.after: self.before}.get(name, "")

    def undone_by(self, current: str, wanted: str) -> bool:
        """Whether a run that wants this engine would take the host off a held change: along it in either direction, or to any other version."""
        other = self.other(current)
        return self.held and bool(other) and (wanted == other or version_of(wanted) != version_of(current))


@dataclass(frozen=True)
class Environment:
    """An environment on the host, and when it was finished (seconds since the epoch); None while it is not."""

    name: str
    finished_at: float | None


def version_of(name: str) -> str:
    """Return vLLM's version from the name of an environment."""
    return name.partition("-")[0]


def dump(change: Change) -> str:
    """Return a change as the text of its file."""
    return json.dumps(asdict(change), indent=2, sort_keys=True) + "\n"


def parse(text: str) -> Change | None:
    """Return what `dump` wrote; None for anything else."""
    try:
        found = Change(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    names = all(isinstance(name, str) and NAME.match(name) for name in (found.before, found.after))
    return found if names and isinstance(found.held, bool) else None


def ours(names: Iterable[str]) -> list[str]:
    """Return those names that environments of this collection have."""
    return sorted(filter(NAME.match, names))


def named_in(records: Iterable[str], names: Iterable[str], root: str) -> set[str]:
    """Return the environments that a text names by their path: what instances serve with, or would go back to."""
    texts = list(records)
    return {name for name in names if any(f"{root}/{name}/" in text or f'{root}/{name}"' in text for text in texts)}


def surplus(there: Iterable[Environment], keep: int, current: str, other: str, needed: Collection[str]) -> list[str]:
    """Return the environments that nothing needs, sorted.

    :arg keep: how many finished ones stay: first ``current``, then ``other``, the other end of the last change, then the newest.
    :arg needed: those that stay in any case, finished or not.
    """
    environments = list(there)
    finished = [one for one in environments if one.finished_at is not None]
    ranked = sorted(finished, key=lambda one: (one.name == current, one.name == other, one.finished_at), reverse=True)
    stay = {one.name for one in ranked[:keep]} | {current, *needed}
    return sorted(one.name for one in environments if one.name not in stay)
