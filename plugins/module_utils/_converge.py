# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of converge: which instance serves what is wanted, which may be started now, which has failed. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["serving", "loading", "stopping", "outdated", "failed", "held"]

#: Automatic restarts by systemd after which a start counts as failed: one crash may be chance, two are not.
RESTARTS_TOLERATED = 1

#: An instance's own files with their modes. The last one names the digest, and with it that the others are in place.
FILES = {"engine.yaml": 0o644, "env": 0o600, "instance.json": 0o644}


@dataclass(frozen=True)
class Observed:
    """An instance as the host shows it: systemd's unit state and the launcher's own record under /run/vllm/NAME."""

    active: str = "inactive"
    restarts: int = 0
    state: str = ""
    digest: str = ""
    status: str = ""
    job: bool = False

    @property
    def running(self) -> bool:
        return self.active in ("active", "activating", "reloading", "deactivating")

    @property
    def serves(self) -> bool:
        return self.active == "active" and self.state == "serving"

    @property
    def up(self) -> bool:
        """Whether a restart would take something away from clients."""
        return self.active in ("active", "reloading")


@dataclass(frozen=True)
class Served:
    """What served last: its digest, since when, the instance's own files, and its entry in instances.json."""

    digest: str
    since: str
    files: dict[str, str]
    entry: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A digest that did not start: when, why, and, where what served before did not start either, why that."""

    digest: str
    at: str
    why: str
    back: str = ""


@dataclass(frozen=True)
class Begun:
    """A start of the unit (systemd's id of it), and the digest that was on disk when a play first saw it."""

    invocation: str
    digest: str


def digest(parts: Mapping[str, str]) -> str:
    """Return one SHA-256 (hex) over all that makes an instance what it is; no two different ``parts`` share it by layout."""
    total = hashlib.sha256()
    for name, content in sorted(parts.items()):
        for field in (name, content):
            data = field.encode(errors="surrogateescape")
            total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def judge(wanted: str, observed: Observed, started: str | None) -> Verdict:
    """Compare the digest wanted with what is there. ``started`` is the digest that this converge has started, if any."""
    if observed.active == "deactivating":
        return "stopping"
    if observed.serves and observed.digest == wanted:
        return "serving"
    # With a job queued, "failed" is how the engine before ended, and the new one is still to start.
    ended = observed.active == "failed" and not observed.job
    if started == wanted and (ended or observed.restarts > RESTARTS_TOLERATED):
        return "failed"
    if observed.active == "activating" and wanted in (observed.digest, started):
        return "loading"
    if started == wanted:
        # Queued, or between "loaded" and the first look at its record.
        return "loading"
    return "outdated"


def led_away(started: str, observed: Observed) -> bool:
    """Whether somebody else has stopped the instance that this converge has started, or has made it serve something else."""
    other = observed.serves and observed.digest != started
    return not observed.job and (other or observed.active == "inactive")


def takes_from(one: Mapping[str, Any], other: Mapping[str, Any], served: Mapping[str, Any]) -> bool:
    """Whether ``one`` is to have a port or a GPU that ``other``, which is to do without, has served with (``served``)."""
    given_up = set(served.get("gpus", ())) - set(other["gpus"])
    port = served.get("port")
    return bool(given_up & set(one["gpus"])) or (port is not None and one.get("port") == port != other.get("port"))


def held_back(
    instances: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Verdict],
    culprits: Iterable[str],
    up: Collection[str],
    served: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Return the outdated instances that stay as they are because of a culprit, each with its culprit.

    A replica that is up keeps what it serves when another replica has failed with the same settings; and nobody gets the
    port or the GPU that an instance keeps, one that is itself held back included.
    """
    by_name = {one["name"]: one for one in instances}
    first = list(culprits)
    stuck, found = list(first), dict[str, str]()
    for culprit in stuck:
        for name, one in by_name.items():
            if verdicts[name] != "outdated" or name in found or name in first:
                continue
            replica = culprit in first and name in up and one["model_name"] == by_name[culprit]["model_name"]
            if replica or (culprit in served and takes_from(one, by_name[culprit], served[culprit])):
                found[name] = culprit
                stuck.append(name)
    return found


def startable(
    instances: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, Verdict],
    up: Collection[str],
    served: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Return the outdated instances that may be (re)started now. ``up``: those that a restart would take from clients.

    One at a time on a shared GPU, since two loads at once mis-size each other's KV cache; one at a time among the
    replicas of a model as long as that keeps one of them serving, those that have never served first; after an instance
    that has served (``served``: its entry then) with a port or GPU that it gives up for this one; everything else side by side.
    """
    busy = {name for name, verdict in verdicts.items() if verdict in ("loading", "stopping")}
    chosen: list[str] = []
    by_name = {one["name"]: one for one in instances}
    moving = {name: entry for name, entry in (served or {}).items() if verdicts.get(name) != "serving"}
    outdated = [name for name, verdict in verdicts.items() if verdict == "outdated"]
    # Not one that has broken down: what serves would never get a new key, or a setting that mends it.
    new = {by_name[name]["model_name"] for name in outdated if name not in up and name not in (served or {})}
    # One that is up may be waited for by the one that is to be first, and two that change places would wait for each other for ever: without these
    # rules, the weaker one first, where they leave nothing to do.
    for in_turn, patient in ((True, True), (False, True), (False, False)):
        for name in outdated:
            one = by_name[name]
            others = [by_name[other] for other in busy | set(chosen) if other != name]
            shares_gpu = any(set(one["gpus"]) & set(other["gpus"]) for other in others)
            same_model = any(one["model_name"] == other["model_name"] for other in others)
            early = patient and any(
                takes_from(one, by_name[other], entry) for other, entry in moving.items() if other != name
            )
            others_first = in_turn and one["model_name"] in new
            if not shares_gpu and not (name in up and (same_model or others_first)) and not early:
                chosen.append(name)
        if chosen or busy:
            break
    return chosen


def dump(record: Served | Failed | Begun) -> str:
    """Return a record as the text of its file."""
    return json.dumps(asdict(record), indent=2, sort_keys=True) + "\n"


def parse_served(text: str) -> Served | None:
    """Return what `dump` wrote; None for anything else."""
    try:
        found = Served(**parse_json(text))
    except TypeError:
        return None
    whole = isinstance(found.files, dict) and isinstance(found.entry, dict) and set(found.files) == set(FILES)
    return found if whole else None


def parse_failed(text: str) -> Failed | None:
    """Return what `dump` wrote; None for anything else."""
    try:
        return Failed(**parse_json(text))
    except TypeError:
        return None


def parse_begun(text: str) -> Begun | None:
    """Return what `dump` wrote; None for anything else."""
    try:
        return Begun(**parse_json(text))
    except TypeError:
        return None


def failure_text(name: str, failed: Failed, served: Served | None, move: str, started: bool, taken_by: str = "") -> str:
    """Say what failed and why, what serves now, and the way out.

    :arg served: what the instance goes back to, None where there is nothing.
    :arg move: the verdict on that; ``started`` says whether this run has started it.
    :arg taken_by: who has its port or GPU by now.
    """
    said = f"{name} does not start with the settings wanted (digest {failed.digest[:12]}, tried {failed.at}): {failed.why}\n"
    way_out = "Mend the cause or change the setting, and run again."
    if taken_by:
        said += f"It cannot go back to what served before: {taken_by} has its port or a GPU of it. "
    elif served is None:
        said += "There is nothing else to go back to. "
    else:
        said += f"What served before (digest {served.digest[:12]}, since {served.since}) "
        if move == "failed":
            said += f"does not start either: {failed.back}\n"
        else:
            serving = "serves again" if started else "still serves, and nothing was tried again"
            said += f"{serving if move == 'serving' else 'is to be started'}. "
            way_out = "Change the setting, or set vllm_service_retry_failed: true to try the same once more."
    return f"{said}{way_out} All of it: journalctl -u vllm@{name}.service"


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these secrets; the longest first, since one may be part of another."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object, or an empty one for whatever else the text holds."""
    try:
        # Encoded, since surrogates would be taken: bytes that are no text.
        found = json.loads(text.encode())
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
