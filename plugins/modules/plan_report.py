#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: plan_report
short_description: Show the plans of all hosts as one table and write them as JSON
version_added: 0.1.0
description:
  - Prints one line an instance (host, model, GPUs, profile, weights, KV cache, tokens, concurrency, verdict), below it what does not fit
    and what would.
  - Does not fail where a plan cannot work, but returns C(failures), so that each host can fail for its own.
  - Touches no host. Runs as an action plugin on the control node.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Shows the table and writes no file.
    support: full
  diff_mode:
    description: The report is no configuration.
    support: none
options:
  plans:
    description: The result of M(gpuops.vllm.plan) by host.
    type: dict
    required: true
  unreached:
    description: Hosts that no plan could be made for.
    type: list
    elements: str
    default: []
  path:
    description: JSON file to write on the control node; empty for none.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show the plans
  gpuops.vllm.plan_report:
    plans: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'plan'))) }}"
    path: plan.json
  run_once: true
"""

RETURN = r"""
report:
  description: What the JSON file holds. C(instances) with, each, C(name), C(host), C(profile), C(engine_args), C(weights_gib), C(kv_gib),
    C(kv_tokens), C(max_concurrency), C(fits) (null where unknown or refused), C(reasons) and C(suggestions); C(problems) and C(warnings) by host.
  returned: success
  type: dict
failures:
  description: What keeps a plan from working, a list of lines by host; no key for a host whose plan works.
  returned: success
  type: dict
"""
