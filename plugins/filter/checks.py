# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters over an endpoint's name, its client keys and its models; each is described in a file of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpuops.vllm.plugins.module_utils import _checks, _clients, _weights
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _provided


def certbot_credentials(credentials: Any) -> str:
    try:
        return _checks.credentials_file(credentials or {})
    except (AttributeError, ValueError) as error:
        fault = str(error) if isinstance(error, ValueError) else "certbot_credentials needs a mapping (value not shown)"
        raise AnsibleFilterError(fault) from None


def nginx_clients(keys: Any) -> str:
    return _of_records(_clients.clients_conf, keys)


def nginx_limits(keys: Any) -> str:
    return _of_records(_clients.limits_conf, keys)


def _of_records(make: Callable[[list[dict[str, Any]]], str], keys: Any) -> str:
    try:
        return make(_clients.records(keys))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def proxy_models(instances: Any) -> list[dict[str, Any]]:
    try:
        return _checks.proxy_models(instances)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(f"proxy_models needs instances as vllm_plan computes them, but: {error!r}") from None


def bundle_models(models: Any, engine_args: Any = None) -> list[dict[str, Any]]:
    return _weights.downloads(models, engine_args)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "bundle_models": bundle_models,
            "certbot_credentials": certbot_credentials,
            "certificate_pair_problems": _provided.problems,
            "certificate_problems": _checks.certificate_problems,
            "client_key_problems": _clients.problems,
            "domain_problems": _checks.domain_problems,
            "nginx_clients": nginx_clients,
            "nginx_limits": nginx_limits,
            "proxy_models": proxy_models,
            "size_problems": _checks.size_problems,
        }
