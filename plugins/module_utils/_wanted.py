# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user wrote: the models, arguments and environments of the inventory, and what is wrong with them. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SLUG = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
RESERVED_SLUGS = ("v1", "health", "metrics")
ARGUMENT = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*(\.[A-Za-z0-9_.-]+)?\Z")
ENVIRONMENT = re.compile(r"^[A-Z_][A-Z0-9_]*\Z")
#: What no environment file carries: NUL, and what systemd takes for no UTF-8, which are halves of characters and those that never will
#: be any. It would read nothing of the file, and start no engine.
NO_VALUE = re.compile(
    "[\x00\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
#: An id of the hub, `owner/name`; it becomes a path below the weights directory and a URL, so nothing in it may lead elsewhere.
HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
REVISION = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}\Z")
PORTS = range(1024, 65536)
#: What vLLM reads as a whole number: 16k are thousands, 16K are 1024.
COUNT = re.compile(r"(\d{1,15})|(\d{1,6}(?:\.\d{1,6})?)([kmgKMG])")
FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
#: GPUs, and instances of one model, that a host may have: more is a slip, and each costs memory here.
MOST = 64

MODEL_KEYS = (
    "name", "model", "revision", "served_as", "replicas", "gpus", "tensor_parallel", "profile",
    "engine_args", "env", "default", "port", "state",
)  # fmt: skip
# The plan decides these; a second place would let the proxy or the launcher look elsewhere.
OWNED_ARGUMENTS = {
    "model": "vllm_models[].model",
    "served-model-name": "vllm_models[].served_as",
    "revision": "vllm_models[].revision",
    "tensor-parallel-size": "vllm_models[].tensor_parallel",
    "data-parallel-size": "vllm_models[].replicas",
    "data-parallel-rank": "vllm_models[].replicas",
    "data-parallel-hybrid-lb": "vllm_models[].replicas",
    "data-parallel-external-lb": "vllm_models[].replicas",
    "prefill-context-parallel-size": "vllm_models[].tensor_parallel",
    "device-ids": "vllm_models[].gpus",
    "device-memory-utilization": "engine_args.gpu-memory-utilization",
    "nnodes": "nothing: an instance lives on one host",
    "node-rank": "nothing: an instance lives on one host",
    "headless": "nothing: an instance lives on one host",
    "grpc": "nothing: the proxy speaks HTTP to the engine",
    "pipeline-parallel-size": "vllm_models[].tensor_parallel; pipelines are not supported",
    "port": "vllm_models[].port",
    "host": "nothing: the engine listens on loopback only",
    "uds": "nothing: the proxy reaches the engine over loopback",
    "hf-token": "vllm_hf_token",
    "api-key": "vllm_api_keys for clients; the engine's own key is made on the host",
    "config": "vllm_models[].engine_args",
    "ssl-keyfile": "vllm_tls_mode: TLS ends at the proxy",
    "ssl-certfile": "vllm_tls_mode: TLS ends at the proxy",
    "root-path": "nothing: the proxy takes /NAME off the path",
}
OWNED_ENVIRONMENT = {
    "VLLM_API_KEY": "nothing: it is made on the host",
    "HF_TOKEN": "vllm_hf_token",
    "HF_TOKEN_PATH": "vllm_hf_token",
    "HUGGING_FACE_HUB_TOKEN": "vllm_hf_token",
    "HF_HUB_OFFLINE": "nothing: a serving engine fetches nothing",
    "VLLM_HOST_IP": "nothing: an engine and its workers talk over loopback",
    "GLOO_SOCKET_IFNAME": "nothing: an engine and its workers talk over loopback",
    "TP_SOCKET_IFNAME": "nothing: an engine and its workers talk over loopback",
    "NCCL_SOCKET_IFNAME": "nothing: an engine and its workers talk over loopback",
    "CUDA_VISIBLE_DEVICES": "vllm_models[].gpus",
    "CUDA_DEVICE_ORDER": "vllm_models[].gpus",
}


def checked_models(models: object, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(models, list) or not models:
        problems.append(
            f"vllm_models is {shown(models)}: needs a list with at least one model. "
            "Add one, for example [{name: llama, model: /srv/models/llama}]."
        )
        return []
    wanted = []
    for position, model in enumerate(models):
        where = f"vllm_models[{position}]"
        if not isinstance(model, Mapping):
            problems.append(f"{where} is {shown(model)}: needs a mapping with at least name and model. Rewrite it.")
            continue
        if model.get("state", "present") == "absent":
            continue
        problems += _model_problems(where, model)
        wanted.append(dict(model))
    if not wanted and not problems:
        problems.append(
            "vllm_models has no model with state 'present': needs at least one. Add one, or take the host out of vllm_servers."
        )
    return wanted


def _model_problems(where: str, model: Mapping[str, Any]) -> list[str]:
    found = []
    unknown = sorted(set(map(str, model)) - set(MODEL_KEYS))
    if unknown:
        found.append(f"{where} has the key {unknown[0]!r}: needs one of {', '.join(MODEL_KEYS)}. Correct or remove it.")
    name = model.get("name")
    if not isinstance(name, str) or not SLUG.match(name) or name in RESERVED_SLUGS:
        found.append(
            f"{where}.name is {shown(name)}: needs 1 to 32 of a-z, 0-9 and '-', with no '-' at either end, and not "
            f"{', '.join(RESERVED_SLUGS)}. Rename it, for example 'llama'."
        )
    source = model.get("model")
    if not is_path(source) and not is_hub_id(source):
        found.append(
            f"{where}.model is {shown(source)}: needs a model of the hub, for example Qwen/Qwen3-32B, or the absolute path of a "
            "model folder on the host, for example /srv/models/llama. Correct it."
        )
    if model.get("state", "present") != "present":
        found.append(f"{where}.state is {shown(model['state'])}: needs present or absent. Correct it.")
    for key in ("replicas", "tensor_parallel"):
        if key in model and not is_whole(model[key], range(1, MOST + 1)):
            found.append(f"{where}.{key} is {shown(model[key])}: needs a whole number from 1 to {MOST}. Correct it.")
    if "port" in model and not is_whole(model["port"], PORTS):
        found.append(f"{where}.port is {shown(model['port'])}: needs a whole number from 1024 to 65535. Correct it.")
    elif not found and "port" in model and model["port"] + replicas(model) - 1 not in PORTS:
        found.append(
            f"{where}.port is {model['port']}: needs room up to 65535 for {replicas(model)} replicas. Lower it."
        )
    revision = model.get("revision")
    if revision is not None and not (isinstance(revision, str) and REVISION.match(revision) and ".." not in revision):
        found.append(
            f"{where}.revision is {shown(revision)}: needs a branch, tag or commit of the hub, in quotes. Correct or remove it."
        )
    elif revision is not None and is_path(source):
        found.append(
            f"{where}.revision is {shown(revision)}, and {where}.model a folder of the host, which has none. Remove it."
        )
    if "default" in model and not isinstance(model["default"], bool):
        found.append(f"{where}.default is {shown(model['default'])}: needs true or false. Correct it.")
    found += _served_as_problems(f"{where}.served_as", model.get("served_as"))
    found += _gpu_list_problems(where, model)
    found += argument_problems(f"{where}.engine_args", model.get("engine_args") or {})
    found += environment_problems(f"{where}.env", model.get("env") or {})
    return found


def _served_as_problems(where: str, names: object) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list) or not names:
        return [f"{where} is {shown(names)}: needs a list of names, for example [llama, gpt-4]. Correct or remove it."]
    return [
        f"{where} holds {shown(name)}: needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."
        for name in names
        if not isinstance(name, str) or not re.fullmatch(r"[!-,.-~][!-~]{0,127}", name)
    ]


def _gpu_list_problems(where: str, model: Mapping[str, Any]) -> list[str]:
    gpus = model.get("gpus")
    if gpus is None:
        return []
    if not isinstance(gpus, list) or not all(
        isinstance(gpu, int) and not isinstance(gpu, bool) and gpu >= 0 for gpu in gpus
    ):
        return [f"{where}.gpus is {shown(gpus)}: needs a list of GPU numbers, for example [0, 1]. Correct it."]
    if len(set(gpus)) != len(gpus):
        return [f"{where}.gpus is {shown(gpus)}: names a GPU twice. Name each once."]
    return []


def argument_problems(where: str, args: object) -> list[str]:
    if not isinstance(args, Mapping):
        return [f"{where} is {shown(args)}: needs a mapping, for example {{max-model-len: 16384}}. Correct it."]
    found = []
    spelt = Counter(normalised({key: 0}).popitem()[0] for key in args)
    found += [
        f"{where} has {key} twice, with '-' and with '_'. Remove one." for key, times in spelt.items() if times > 1
    ]
    for key, value in normalised(args).items():
        name = key.partition(".")[0]
        owner = OWNED_ARGUMENTS.get(name) or OWNED_ARGUMENTS.get(name.removeprefix("no-"))
        if owner:
            found.append(f"{where}.{key} is set: the plan decides it. Remove it and use {owner}.")
        elif not ARGUMENT.match(key):
            found.append(
                f"{where} has the key {key!r}: needs an option of 'vllm serve' without dashes in front. Correct it."
            )
        elif isinstance(value, str) and value.startswith("-"):
            found.append(
                f"{where}.{key} is {shown(value)}: vLLM takes a value that starts with '-' for an option. Write it otherwise."
            )
    return found


def environment_problems(where: str, env: object) -> list[str]:
    if not isinstance(env, Mapping):
        return [f"{where} is {shown(env)}: needs a mapping, for example {{VLLM_LOGGING_LEVEL: INFO}}. Correct it."]
    found = []
    for name, value in env.items():
        if name in OWNED_ENVIRONMENT:
            found.append(f"{where}.{name} is set: the plan decides it. Remove it and use {OWNED_ENVIRONMENT[name]}.")
        elif not isinstance(name, str) or not ENVIRONMENT.match(name):
            found.append(f"{where} has the name {name!r}: needs A-Z, 0-9 and '_'. Correct it.")
        elif not isinstance(value, (str, int, float)) or NO_VALUE.search(str(value)):
            found.append(
                f"{where}.{name} is no text that an environment file carries: needs text without NUL and half characters. Correct it."
            )
    return found


def check_across(models: Sequence[Mapping[str, Any]], problems: list[str]) -> None:
    """Refuse what two models claim both, naming both."""
    seen: dict[tuple[str, object], str] = {}
    claims: list[tuple[str, object, str]] = []
    for model in models:
        name = model["name"]
        claims.append(("name", name, name))
        claims += [("served_as name", served, name) for served in served_names(model)]
        if "port" in model:
            claims += [("port", model["port"] + replica, name) for replica in range(replicas(model))]
        claims += [("unit name", f"{name}-{replica}", name) for replica in range(replicas(model))]
        claims.append(("unit name", name, name))
    for kind, value, name in claims:
        other = seen.setdefault((kind, value), name)
        if other != name or (kind == "name" and sum(1 for model in models if model["name"] == name) > 1):
            message = f"vllm_models: '{other}' and '{name}' both claim the {kind} {shown(value)}. Give each its own."
            if message not in problems:
                problems.append(message)
    defaults = [model["name"] for model in models if model.get("default")]
    if len(defaults) > 1:
        problems.append(f"vllm_models: {' and '.join(map(repr, defaults))} are both marked default. Mark one.")


def is_path(source: object) -> bool:
    """Whether a model is a folder on the host."""
    return isinstance(source, str) and source.startswith("/") and "\n" not in source and ".." not in source.split("/")


def is_hub_id(source: object) -> bool:
    """Whether a model is one of the hub."""
    return isinstance(source, str) and HUB_ID.match(source) is not None and ".." not in source


def served_names(model: Mapping[str, Any]) -> list[str]:
    """Return the names clients may ask for: ``served_as``, else the hub's id, else the slug of a model that is a path."""
    return list(model.get("served_as") or [model["model"] if is_hub_id(model["model"]) else model["name"]])


def normalised(args: Mapping[Any, Any]) -> dict[str, Any]:
    """Return engine arguments with the spelling of the command line: ``max_model_len`` is ``max-model-len``.

    What stands behind a dot is a field of an option, whose own name has underscores.
    """
    parts = ((str(key).partition("."), value) for key, value in args.items())
    return {f"{option.replace('_', '-')}{dot}{fields}": value for (option, dot, fields), value in parts}


def replicas(model: Mapping[str, Any]) -> int:
    return int(model.get("replicas", 1))


def is_whole(value: object, allowed: range) -> bool:
    """Whether it is a whole number, no boolean, in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def count(value: object) -> int | None:
    """Return a whole number as vLLM reads it, or None for anything else."""
    found = COUNT.fullmatch(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    if not found:
        return None
    return int(found[1] or float(found[2]) * FACTORS[found[3]])


def number(value: object) -> float | None:
    """Return a finite number, also one written as text, or None for anything else."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def report(problems: list[str], message: str) -> None:
    if message not in problems:
        problems.append(message)


def is_number(value: object) -> bool:
    """Whether it is a finite number, no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def shown(value: object) -> str:
    """Return a value for a message: quoted, one line, at most 60 characters."""
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
