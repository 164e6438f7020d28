# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of converge: which instance serves what is wanted, which may be started now, which has failed. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["serving", "loading", "stopping", "outdated", "failed"]

#: Automatic restarts by systemd after which a start counts as failed: one crash may be chance, two are not.
RESTARTS_TOLERATED = 1


@dataclass(frozen=True)
class Observed:
    """An instance as the host shows it: systemd's unit state and the launcher's own record under /run/vllm/NAME."""

    active: str = "inactive"
    restarts: int = 0
    state: str = ""
    digest: str = ""
    status: str = ""

    @property
    def running(self) -> bool:
        return self.active in ("active", "activating", "reloading", "deactivating")


def digest(parts: Mapping[str, str]) -> str:
    """Return one SHA-256 (hex) over all that makes an instance what it is; no two different ``parts`` share it by layout."""
    total = hashlib.sha256()
    for name, content in sorted(parts.items()):
        for field in (name, content):
            data = field.encode()
            total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def judge(wanted: str, observed: Observed, started: str | None) -> Verdict:
    """Compare the digest wanted with what is there. ``started`` is the digest that this converge has started, if any."""
    if observed.active == "deactivating":
        return "stopping"
    if observed.active == "active" and observed.state == "serving" and observed.digest == wanted:
        return "serving"
    if started == wanted and (observed.active == "failed" or observed.restarts > RESTARTS_TOLERATED):
        return "failed"
    if observed.active == "activating" and wanted in (observed.digest, started):
        return "loading"
    if started == wanted:
        # Queued, or between "loaded" and the first look at its record.
        return "loading" if observed.active in ("active", "inactive") else "failed"
    return "outdated"


def startable(
    instances: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Verdict], running: Iterable[str]
) -> list[str]:
    """Return the outdated instances that may be (re)started now.

    One at a time on a shared GPU, since two loads at once mis-size each other's KV cache; one at a time among the
    replicas of a model as long as that keeps one of them serving; everything else side by side.
    """
    busy = {name for name, verdict in verdicts.items() if verdict in ("loading", "stopping")}
    up = set(running)
    chosen: list[str] = []
    by_name = {one["name"]: one for one in instances}
    for name in (name for name, verdict in verdicts.items() if verdict == "outdated"):
        others = [by_name[other] for other in busy | set(chosen) if other != name]
        shares_gpu = any(set(by_name[name]["gpus"]) & set(other["gpus"]) for other in others)
        same_model = any(by_name[name]["model_name"] == other["model_name"] for other in others)
        if not shares_gpu and not (same_model and name in up):
            chosen.append(name)
    return chosen


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object, or an empty one for whatever else the text holds."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_record(text: str) -> dict[str, str]:
    """Return ``state`` and ``digest`` of the launcher's record, which the engine's account writes: nothing in it is trusted."""
    found = parse_json(text)
    return {key: str(found.get(key, "")) for key in ("state", "digest")}


def steady(status: str) -> str:
    """Return the launcher's status without its seconds, which would make a new line of every look."""
    return re.sub(r"^loading for \d+ s(: )?", lambda match: "loading: " if match[1] else "loading", status)
