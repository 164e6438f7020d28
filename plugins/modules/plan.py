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
  - Reads the host with M(gpuops.vllm.host_info) and the models' metadata from their folders or from the hub, and computes the flat list of
    instances that every role renders from, each with what it needs of GPU memory and whether it fits.
  - Fails with all problems at once, each naming the variable, its value, what is needed and the next step.
  - The token for gated models is taken from the variable C(vllm_plan_hf_token), not from an option, which Ansible might show.
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
    description: >-
      GPUs that are not there yet, in place of those found; each the name of a known kind, a mapping with C(kind) and C(count), or one with
      C(index), C(name), C(memory_gib) and C(compute_capability).
    type: list
    elements: raw
    default: []
  known_gpus:
    description: Catalogue of GPUs by kind.
    type: dict
    default: {}
  known_models:
    description: Catalogue of models by the hub's id or by path, each with C(config) (keys of a config.json), or with C(base), another model.
    type: dict
    default: {}
  options:
    description: Options of C(vllm serve) with C(version), C(names), C(flags) and C(words). Without it, names are not checked.
    type: dict
    default: {}
  since:
    description: Engine options that older versions of vLLM lack, each with C(option), C(since), and optionally C(value) and C(older).
    type: list
    elements: dict
    default: []
  rules:
    description: What vLLM demands of versions, data types and quantisations.
    type: dict
    default: {}
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
  weights_dir:
    description: Folder on the host with the hub's cache (C(HF_HOME)).
    type: str
    default: /var/lib/vllm/weights
  update_weights:
    description: Asks the hub anew which commit a branch or a tag is; else the one stays that the last run wrote down.
    type: bool
    default: false
  file_options:
    description: Options of C(vllm serve) whose value may be the name of a file beside the weights.
    type: list
    elements: str
    default: []
  vllm_version:
    description: Version of vLLM that the plan is for; it decides how memory is counted and which options there are.
    type: str
    default: 0.32.0
  min_driver:
    description: Oldest NVIDIA driver that the engine runs on; empty for any.
    type: str
    default: ""
  driver_comes:
    description: The NVIDIA driver is installed or replaced before anything is served, so that what is there now does not matter.
    type: bool
    default: false
    version_added: 0.2.0
  allow_misfit:
    description: Goes on with a model that does not fit, with a warning.
    type: bool
    default: false
  preview:
    description: >-
      Looks ahead; does not fail, but returns C(problems), and does not mind what a host only lacks so far (driver, weights). With O(gpus) it
      asks no host.
    type: bool
    default: false
  hub_endpoint:
    description: Address of the model hub, of which only metadata is read; empty to ask none.
    type: str
    default: ""
  bundle:
    description: A bundle, a folder on the control node, of which the models are read in the place of the hub; empty for none.
    type: str
    default: ""
  hub_timeout_s:
    description: Seconds for all answers of the hub.
    type: float
    default: 4
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
  description: >-
    The instances of the host, from which every role renders. C(engine_args_from) says where each engine argument comes from; C(fit) holds the
    verdict and the figures behind it, in GiB of each GPU.
  returned: success
  type: list
  elements: dict
surge:
  description: >-
    For an upgrade that starts the new engine before the old one ends: of each model with one instance on GPUs, one more, on free GPUs of the same kind.
    None where there are too few, for a model that is not served yet, where any gets another port or other names, and with a plan that does not work.
  returned: success
  type: list
  elements: dict
weights:
  description: >-
    The models of the hub that are served, each with C(model), C(commit), C(path), C(format) (V(hf), V(mistral)), and C(present), whether the host
    has all of its files, verified.
  returned: success
  type: list
  elements: dict
problems:
  description: What keeps the plan from working, one sentence each.
  returned: failure, and with O(preview)
  type: list
  elements: str
misfits:
  description: The instances that do not fit, each with the reason and what would.
  returned: success
  type: list
  elements: str
plan_warnings:
  description: What does not keep the plan from working.
  returned: success
  type: list
  elements: str
"""
