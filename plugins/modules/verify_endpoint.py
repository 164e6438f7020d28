#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: verify_endpoint
short_description: Check a vLLM endpoint as a client sees it
version_added: 0.1.0
description:
  - Runs on the control node (or wherever clients are) and changes nothing.
  - Checks the certificate's chain and name, the redirect from HTTP, the right, a wrong and a missing key, a real token
    from every served name, an unknown model, streaming by the time between events, and that no engine's port is open.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Nothing is asked, because the endpoint may not be there yet.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
options:
  domain:
    description: DNS name of the endpoint.
    type: str
    required: true
  api_key:
    description: A client's key.
    type: str
    required: true
  further_keys:
    description: Keys that must open the endpoint as well.
    type: list
    elements: str
    default: []
  models:
    description: Models as P(gpuops.vllm.proxy_models#filter) returns them.
    type: list
    elements: dict
    default: []
  ca_file:
    description: Certificates (PEM) of the authorities to trust. By default this machine's own.
    type: path
    default: ''
  ca_pem:
    description: The same as text.
    type: str
    default: ''
  addresses:
    description: Names or addresses of the host on which the engines' ports must be closed, besides O(domain).
    type: list
    elements: str
    default: []
  probes:
    description: Whether to send requests as well that nothing behind the endpoint may see. Some 100, within a minute; one of them waits for 10 s.
    type: bool
    default: false
  min_days:
    description:
      - Days that the certificate which is served must still be good for. Of a short-lived one a sixth of its lifetime is enough.
    type: int
    default: 14
  timeout_s:
    description: Seconds to wait for a connection, and for each piece of an answer.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Check the endpoint from here
  gpuops.vllm.verify_endpoint:
    domain: llm.example.com
    api_key: "{{ vault_team_a_key }}"
    models: "{{ vllm_plan_instances | gpuops.vllm.proxy_models }}"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
checks:
  description: What was tried, each with C(name), C(ok) and C(detail).
  returned: always
  type: list
  elements: dict
probes:
  description: With O(probes), each request that was to be refused, with C(name), C(answer) and C(refused).
  returned: success and failure
  type: list
  elements: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _probes, _verify


def models_to_ask(models: list[dict[str, Any]]) -> list[_verify.Model]:
    """Each model under /v1, where a request's own words pick it, and under its own path."""
    return [_verify.Model(prefix, one["served_as"]) for one in models for prefix in ("", f"/{one['name']}")]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "domain": {"type": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "further_keys": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "models": {"type": "list", "elements": "dict", "default": []},
            "ca_file": {"type": "path", "default": ""},
            "ca_pem": {"type": "str", "default": ""},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "probes": {"type": "bool", "default": False},
            "min_days": {"type": "int", "default": 14},
            "timeout_s": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    if module.check_mode:
        module.exit_json(
            changed=False, checks=[], skipped=True, msg="not asked in check mode: the endpoint may not be there yet"
        )
    if not params["api_key"]:
        module.fail_json(
            msg="There is no key to ask with: no entry of vllm_api_keys has a key (not only its hash) and neither expires, models nor"
            " requests_per_minute. Add one, or set vllm_verify_api_key for this run.",
            checks=[],
        )
    try:
        context = _verify.trust(params["ca_file"], params["ca_pem"])
    except OSError as error:
        module.fail_json(
            msg=f"vllm_verify_ca_file is {params['ca_file']!r}: {error}. It needs a readable file with certificates in PEM.",
            checks=[],
        )
    started = time.monotonic()
    endpoint = _verify.Endpoint(params["domain"], params["api_key"], context, params["timeout_s"])
    ports = [replica["port"] for model in params["models"] for replica in model["replicas"]]
    checks = _verify.verify(
        endpoint,
        models_to_ask(params["models"]),
        [params["domain"], *params["addresses"]],
        ports,
        params["further_keys"],
        params["min_days"],
    )
    result: dict[str, Any] = {"changed": False, "checks": [], "probes": []}
    if params["probes"] and all(check.ok for check in checks):
        answers = _probes.run(endpoint.connect, endpoint.domain, endpoint.key)
        checks.append(_verify.check_probes(answers))
        result["probes"] = [{"name": one.probe.name, "answer": one.said, "refused": one.refused} for one in answers]
    result["checks"] = [check.as_dict() for check in checks]
    if not all(check.ok for check in checks):
        module.fail_json(msg=_verify.report(checks), **result)
    module.exit_json(msg=f"{len(checks)} checks passed in {time.monotonic() - started:.1f} s", **result)


if __name__ == "__main__":
    main()
