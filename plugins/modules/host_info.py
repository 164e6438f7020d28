#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read what the plan needs to know of a host
version_added: 0.1.0
description:
  - Reads the GPUs as M(gpuops.vllm.gpu_info) does, the ports and GPUs that instances have already from C(/etc/vllm/instances.json), and the state of
    model folders.
  - Changes nothing.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
options:
  models:
    description: Absolute paths of model folders to look into.
    type: list
    elements: str
    default: []
  hub:
    description: Models of the hub, each with C(model) and C(revision); of those whose commit is known, the folder is looked into as well.
    type: list
    elements: dict
    default: []
  weights_dir:
    description: Folder of the hub's cache (C(HF_HOME)).
    type: str
    default: /var/lib/vllm/weights
  known_gpus:
    description: What is known of GPUs, by kind, as in O(gpuops.vllm.gpu_info#module:known_gpus).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Read the host
  gpuops.vllm.host_info:
    models: [/srv/models/llama]
  register: host
"""

RETURN = r"""
gpus:
  description: GPUs in PCI bus order, each with the keys that RV(gpuops.vllm.gpu_info#module:gpus) has.
  returned: always
  type: list
  elements: dict
gpu_problem:
  description: What is wrong with the GPUs and what to do, in one line; empty where nothing is.
  returned: always
  type: str
gpus_complete:
  description: Whether no GPU is missing, as RV(gpuops.vllm.gpu_info#module:complete).
  returned: always
  type: bool
nvswitch:
  description: Whether the GPUs are joined by an NVSwitch, so that CUDA needs the fabric manager.
  returned: always
  type: bool
assigned:
  description: Instances of the last run, with their ports and GPUs.
  returned: always
  type: list
  elements: dict
models:
  description: >-
    For each path, C(problems) that keep it from being served, and, where the service may read it, C(config_json), its config.json as JSON text, and
    C(weights_bytes), null where they are not known, and C(files), the names in it. A model of the hub has C(verified) as well: for each form of
    weights, whether C(vllm-download) has verified all files and all have their size still.
  returned: always
  type: dict
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _checkpoint, _gpus, _nvidia_smi, _weights
from ansible_collections.gpuops.vllm.plugins.module_utils._files import read_text
from ansible_collections.gpuops.vllm.plugins.module_utils._wanted import PORTS, is_whole

ASSIGNED = Path("/etc/vllm/instances.json")
SYSFS = Path("/sys")


def assigned_instances(file: Path) -> list[dict[str, Any]]:
    """Return the instances that the last run wrote down. Raises ValueError and the like where it was not this collection."""
    text = read_text(file)
    found: list[dict[str, Any]] = json.loads(text.encode())["instances"] if text else []
    if not isinstance(found, list) or not all(map(_is_instance, found)):
        raise TypeError
    return found


def _is_instance(one: object) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        return False
    gpus = one.get("gpus", [])
    sound = isinstance(gpus, list) and all(isinstance(gpu, int) for gpu in gpus)
    return sound and is_whole(one.get("port", PORTS.start), PORTS)


def look_into(path: str) -> dict[str, Any]:
    """Return what the plan wants to know of a folder."""
    return {"problems": _checkpoint.problems(path), **(_checkpoint.metadata(path) or {})}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "str", "default": []},
            "hub": {"type": "list", "elements": "dict", "default": []},
            "weights_dir": {"type": "str", "default": "/var/lib/vllm/weights"},
            "known_gpus": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    found = _gpus.read(_nvidia_smi.run, SYSFS, module.params["known_gpus"])
    try:
        assigned = assigned_instances(ASSIGNED)
    except (ValueError, KeyError, TypeError, RecursionError):
        module.fail_json(
            msg=f"{ASSIGNED} is not what this collection wrote. Move it away and run again; ports are then given out anew."
        )
    models = {path: look_into(path) for path in sorted(set(module.params["models"]))}
    weights_dir = module.params["weights_dir"]
    for one in module.params["hub"]:
        source = _weights.Source(one["model"], one.get("revision") or "")
        if commit := _weights.commit_of(source, assigned):
            folder = _weights.folder_of(source, commit, weights_dir)
            models[folder] = {
                **look_into(folder),
                "verified": _weights.verified(weights_dir, source.model, commit),
            }
    module.exit_json(
        changed=False,
        gpus=found.gpus,
        gpu_problem=found.problem,
        gpus_complete=found.complete,
        nvswitch=found.nvswitch,
        assigned=assigned,
        models=models,
    )


if __name__ == "__main__":
    main()
