#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Compute the vLLM instances of a host, or say why they cannot work
version_added: 0.1.0
description:
  - Reads the host with M(gpuops.vllm.host_info) and computes the flat list of instances that every role renders from.
  - Fails with all problems at once, each naming the variable, its value, what is needed and the next step.
  - Changes nothing. Runs as an action plugin on the control node.
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
    description: What to serve, as in C(vllm_models).
    type: raw
    required: true
  profiles:
    description: GPU profiles by name.
    type: dict
    required: true
  gpu_profile:
    description: Profile of the host, or V(auto).
    type: str
    default: auto
  gpus:
    description: GPUs that are not there yet, in place of those found; each with index, name, memory_gib and compute_capability.
    type: list
    elements: dict
    default: []
  base_engine_args:
    description: Engine arguments below every profile's.
    type: dict
    default: {}
  engine_args:
    description: Engine arguments of the host, above the profile's.
    type: raw
    default: {}
  env:
    description: Environment variables of the host's instances.
    type: raw
    default: {}
  first_port:
    description: Lowest port given to an instance.
    type: int
    default: 8000
"""

EXAMPLES = r"""
- name: Plan the instances
  gpuops.vllm.plan:
    models: "{{ vllm_models }}"
    gpu_profile: cpu
    profiles:
      cpu: {device: cpu, engine_args: {max-model-len: 2048}}
  register: plan
"""

RETURN = r"""
instances:
  description: The instances of the host, from which every role renders.
  returned: success
  type: list
  elements: dict
problems:
  description: What keeps the plan from working, one sentence each.
  returned: failure
  type: list
  elements: str
"""
