# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of one instance, rendered from its entry in the plan. Pure, standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import _envfile


def engine_yaml(instance: Mapping[str, Any]) -> str:
    """Return the file for ``vllm serve --config``: one ``option: value`` a line, each value in JSON, which is YAML.

    vLLM drops ``x: false`` without a word and wants a list of maps as JSON strings, hence `_option`.
    """
    options = dict(instance["engine_args"])
    options |= {
        "model": instance["path"],
        "served-model-name": instance["served_as"],
        "host": instance["address"],
        "port": instance["port"],
    }
    lines = [_option(name, value) for name, value in sorted(options.items()) if value is not None]
    return "".join(f"{name}: {value}\n" for name, value in lines)


def environment(instance: Mapping[str, Any]) -> str:
    """Return the instance's environment file: nothing secret in it."""
    return _envfile.render(dict(sorted(instance["env"].items())))


def launcher_json(instance: Mapping[str, Any], digest: str, settings: Mapping[str, object]) -> str:
    """Return what ``vllm-start`` reads; ``settings`` are its time limits in seconds, and ``engine``, the environment to run."""
    fields = {key: instance[key] for key in ("name", "address", "port", "served_as", "gpus")}
    return json.dumps({**fields, "digest": digest, **settings}, indent=2, sort_keys=True) + "\n"


def _option(name: str, value: object) -> tuple[str, str]:
    if value is False:
        return (name.removeprefix("no-"), "true") if name.startswith("no-") else (f"no-{name}", "true")
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = [json.dumps(item, sort_keys=True) for item in value]
    return name, _scalar(value)


def _scalar(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    # YAML 1.1 reads 1e-05 as a string and 1.0e-05 as a number.
    return text.replace("e", ".0e", 1) if isinstance(value, float) and "e" in text and "." not in text else text
