# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One more instance of a model for the time of an upgrade, on GPUs that no instance has. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

from ._plan import Host, free_port, visible_gpus


def surge_instances(instances: Sequence[Mapping[str, Any]], host: Host) -> list[dict[str, Any]]:
    """Return what may serve beside the instances of a plan: a second one of each model that has one alone, where GPUs are free.

    It is like the first but for its name, port and GPUs. These are of the same kind, so that what the plan has judged holds for it too. There is none
    for a model that is not served yet, and none at all where one gets another port or other names: the proxy, which has to know the second one before
    it serves, could not lead to what still serves as before.
    """
    kept = {str(one["name"]): one for one in host.assigned}
    if any(kept.get(one["name"], one).get(key) != one[key] for one in instances for key in ("port", "served_as")):
        return []
    replicas = Counter(one["model_name"] for one in instances)
    ports = {one["port"] for one in instances}
    gpus = {gpu for one in instances for gpu in one["gpus"]}
    found: list[dict[str, Any]] = []
    for one in instances:
        name = f"{one['model_name']}-1"
        if one["device"] != "cuda" or one["name"] not in kept or replicas[one["model_name"]] > 1 or name in replicas:
            continue
        before = kept.get(name, {})
        # What runs keeps its GPUs until it stops, also where the plan gives it others.
        running = {gpu for other, entry in kept.items() if other != name for gpu in entry.get("gpus") or ()}
        chosen = _gpus_for(one, before.get("gpus") or (), gpus | running, host)
        own = before.get("port")
        port = own if own and own not in ports else free_port(ports, host)
        if not chosen or not port:
            continue
        ports.add(port)
        gpus.update(chosen)
        env = one["env"] | visible_gpus(chosen)
        found.append(deepcopy(dict(one)) | {"name": name, "replica": 1, "port": port, "gpus": chosen, "env": env})
    return found


def _gpus_for(instance: Mapping[str, Any], before: Sequence[int], taken: Collection[int], host: Host) -> list[int]:
    """Return as many GPUs as an instance has and of its kind, which nobody has: those of ``before``, else the lowest; none where there are too few."""
    kinds = {gpu["name"] for gpu in host.gpus if gpu["index"] in instance["gpus"]}
    like = [gpu["index"] for gpu in host.gpus if gpu["name"] in kinds and not gpu.get("mig")]
    free = sorted(index for index in like if index not in taken)
    width = len(instance["gpus"])
    if len(kinds) != 1 or len(free) < width:
        return []
    return list(before) if len(before) == width and set(before) <= set(free) else free[:width]
