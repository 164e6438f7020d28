# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: from what the user wants on one host to the flat list of instances that every role renders from.

Pure: everything it needs is handed in, everything it decides is in the `Plan` it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SLUG = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
RESERVED_SLUGS = ("v1", "health", "metrics")
ARGUMENT = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*(\.[A-Za-z0-9_.-]+)?\Z")
ENVIRONMENT = re.compile(r"^[A-Z_][A-Z0-9_]*\Z")
ADDRESS = "127.0.0.1"
PORTS = range(1024, 65536)

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


@dataclass(frozen=True)
class Host:
    """What is known of one host: its GPUs, its profiles, and what its instances were given before."""

    name: str
    gpus: Sequence[Mapping[str, Any]]
    profiles: Mapping[str, Mapping[str, Any]]
    gpu_profile: str = "auto"
    base_engine_args: Mapping[str, Any] = field(default_factory=dict)
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    first_port: int = 8000
    assigned: Sequence[Mapping[str, Any]] = ()
    quantization: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Plan:
    """Instances, and what stands against them: ``problems`` forbid to go on, ``warnings`` do not."""

    instances: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(models: object, host: Host) -> Plan:
    """Return the plan of one host. ``models`` is ``vllm_models`` as the user wrote it."""
    plan = Plan()
    wanted = _checked_models(models, plan.problems)
    if not plan.problems:
        _check_across(wanted, plan.problems)
    plan.problems += _argument_problems("vllm_default_engine_args", host.engine_args)
    plan.problems += _environment_problems("vllm_default_env", host.env)
    for name, profile in host.profiles.items():
        where = f"vllm_plan_profiles.{name}"
        for part in ("engine_args", "unquantized_engine_args"):
            plan.problems += _argument_problems(f"{where}.{part}", profile.get(part, {}))
        plan.problems += _environment_problems(f"{where}.env", profile.get("env", {}))
    if plan.problems:
        return plan
    instances = [_instance(model, replica, host, plan) for model in wanted for replica in range(_replicas(model))]
    if not plan.problems:
        _assign_gpus(instances, wanted, host, plan.problems)
        _assign_ports(instances, wanted, host, plan.problems)
    if not plan.problems:
        plan.instances = instances
        _finish_arguments(instances)
    return plan


# --- what the user wrote -------------------------------------------------------------------------------------


def _checked_models(models: object, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(models, list) or not models:
        problems.append(
            f"vllm_models is {_shown(models)}: needs a list with at least one model. "
            "Add one, for example [{name: llama, model: /srv/models/llama}]."
        )
        return []
    wanted = []
    for position, model in enumerate(models):
        where = f"vllm_models[{position}]"
        if not isinstance(model, Mapping):
            problems.append(f"{where} is {_shown(model)}: needs a mapping with at least name and model. Rewrite it.")
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
            f"{where}.name is {_shown(name)}: needs 1 to 32 of a-z, 0-9 and '-', with no '-' at either end, and not "
            f"{', '.join(RESERVED_SLUGS)}. Rename it, for example 'llama'."
        )
    source = model.get("model")
    if not isinstance(source, str) or not source.startswith("/") or "\n" in source or ".." in source.split("/"):
        found.append(
            f"{where}.model is {_shown(source)}: needs the absolute path of a model folder on the host. "
            "Put the weights there and give the path, for example /srv/models/llama."
        )
    if model.get("state", "present") != "present":
        found.append(f"{where}.state is {_shown(model['state'])}: needs present or absent. Correct it.")
    for key in ("replicas", "tensor_parallel"):
        if key in model and not _positive(model[key]):
            found.append(f"{where}.{key} is {_shown(model[key])}: needs a whole number from 1. Correct it.")
    if "port" in model and (not _positive(model["port"]) or model["port"] not in PORTS):
        found.append(f"{where}.port is {_shown(model['port'])}: needs a whole number from 1024 to 65535. Correct it.")
    if "default" in model and not isinstance(model["default"], bool):
        found.append(f"{where}.default is {_shown(model['default'])}: needs true or false. Correct it.")
    found += _served_as_problems(f"{where}.served_as", model.get("served_as"))
    found += _gpu_list_problems(where, model)
    found += _argument_problems(f"{where}.engine_args", model.get("engine_args") or {})
    found += _environment_problems(f"{where}.env", model.get("env") or {})
    return found


def _served_as_problems(where: str, names: object) -> list[str]:
    if names is None:
        return []
    if not isinstance(names, list) or not names:
        return [f"{where} is {_shown(names)}: needs a list of names, for example [llama, gpt-4]. Correct or remove it."]
    return [
        f"{where} holds {_shown(name)}: needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."
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
        return [f"{where}.gpus is {_shown(gpus)}: needs a list of GPU numbers, for example [0, 1]. Correct it."]
    if len(set(gpus)) != len(gpus):
        return [f"{where}.gpus is {_shown(gpus)}: names a GPU twice. Name each once."]
    return []


def _argument_problems(where: str, args: object) -> list[str]:
    if not isinstance(args, Mapping):
        return [f"{where} is {_shown(args)}: needs a mapping, for example {{max-model-len: 16384}}. Correct it."]
    found = []
    for key, value in normalised(args).items():
        owner = OWNED_ARGUMENTS.get(key) or OWNED_ARGUMENTS.get(key.removeprefix("no-"))
        if owner:
            found.append(f"{where}.{key} is set: the plan decides it. Remove it and use {owner}.")
        elif not ARGUMENT.match(key):
            found.append(
                f"{where} has the key {key!r}: needs an option of 'vllm serve' without dashes in front. Correct it."
            )
        elif isinstance(value, str) and value.startswith("-"):
            found.append(
                f"{where}.{key} is {_shown(value)}: vLLM takes a value that starts with '-' for an option. Write it otherwise."
            )
    return found


def _environment_problems(where: str, env: object) -> list[str]:
    if not isinstance(env, Mapping):
        return [f"{where} is {_shown(env)}: needs a mapping, for example {{VLLM_LOGGING_LEVEL: INFO}}. Correct it."]
    found = []
    for name, value in env.items():
        if name in OWNED_ENVIRONMENT:
            found.append(f"{where}.{name} is set: the plan decides it. Remove it and use {OWNED_ENVIRONMENT[name]}.")
        elif not isinstance(name, str) or not ENVIRONMENT.match(name):
            found.append(f"{where} has the name {name!r}: needs A-Z, 0-9 and '_'. Correct it.")
        elif not isinstance(value, (str, int, float)) or "\n" in str(value) or "\0" in str(value):
            found.append(f"{where}.{name} is no single line of text. Correct it.")
    return found


def _check_across(models: Sequence[Mapping[str, Any]], problems: list[str]) -> None:
    """Refuse what two models claim both, naming both."""
    seen: dict[tuple[str, object], str] = {}
    claims: list[tuple[str, object, str]] = []
    for model in models:
        name = model["name"]
        claims.append(("name", name, name))
        claims += [("served_as name", served, name) for served in served_names(model)]
        claims += [("GPU", gpu, name) for gpu in model.get("gpus") or ()]
        if "port" in model:
            claims += [("port", model["port"] + replica, name) for replica in range(_replicas(model))]
        claims += [("unit name", f"{name}-{replica}", name) for replica in range(_replicas(model))]
        claims.append(("unit name", name, name))
    for kind, value, name in claims:
        other = seen.setdefault((kind, value), name)
        if other != name or (kind == "name" and sum(1 for model in models if model["name"] == name) > 1):
            message = f"vllm_models: '{other}' and '{name}' both claim the {kind} {_shown(value)}. Give each its own."
            if message not in problems:
                problems.append(message)
    defaults = [model["name"] for model in models if model.get("default")]
    if len(defaults) > 1:
        problems.append(f"vllm_models: {' and '.join(map(repr, defaults))} are both marked default. Mark one.")


# --- one instance --------------------------------------------------------------------------------------------


def served_names(model: Mapping[str, Any]) -> list[str]:
    """Return the names clients may ask for: ``served_as``, else the slug of a model that is a path."""
    return list(model.get("served_as") or [model["name"]])


def normalised(args: Mapping[Any, Any]) -> dict[str, Any]:
    """Return engine arguments with the spelling of the command line: ``max_model_len`` is ``max-model-len``."""
    return {str(key).replace("_", "-") if "." not in str(key) else str(key): value for key, value in args.items()}


def _instance(model: Mapping[str, Any], replica: int, host: Host, plan: Plan) -> dict[str, Any]:
    name = f"{model['name']}-{replica}"
    profile_name = model.get("profile") or host.gpu_profile
    gpus = _candidate_gpus(model, host)
    missing = sorted(set(model.get("gpus") or ()) - {gpu["index"] for gpu in host.gpus})
    if missing:
        _report(plan.problems, _no_such_gpu(model, missing[0], host))
    elif profile_name == "auto":
        profile_name = _auto_profile(gpus, host.profiles)
        if profile_name is None:
            _report(plan.problems, _no_profile(host, gpus))
    elif profile_name not in host.profiles:
        known = ", ".join(sorted(host.profiles))
        _report(
            plan.problems,
            f"vllm_gpu_profile is {_shown(profile_name)} for '{model['name']}': needs auto or one of {known}. Correct it.",
        )
    profile = host.profiles.get(profile_name, {})
    _check_profile(model, profile_name, profile, gpus, host, plan.problems)
    layers = [host.base_engine_args, profile.get("engine_args", {})]
    method = host.quantization.get(model["model"])
    if method is None:
        layers.append(profile.get("unquantized_engine_args", {}))
    layers += [host.engine_args, model.get("engine_args") or {}]
    environment = [profile.get("env", {}), host.env, model.get("env") or {}]
    return {
        "name": name,
        "model_name": model["name"],
        "replica": replica,
        "host": host.name,
        "model": model["model"],
        "revision": model.get("revision"),
        "served_as": served_names(model),
        "default": bool(model.get("default")),
        "profile": profile_name,
        "device": profile.get("device", "cuda"),
        "gpus": [],
        "tensor_parallel": model.get("tensor_parallel", 1),
        "address": ADDRESS,
        "port": 0,
        "engine_args": _merged(layers),
        "env": {key: str(value) for layer in environment for key, value in layer.items()},
        "fit": None,
    }


def _merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for layer in layers for key, value in normalised(layer).items()}


def _candidate_gpus(model: Mapping[str, Any], host: Host) -> list[Mapping[str, Any]]:
    named = model.get("gpus")
    return [gpu for gpu in host.gpus if named is None or gpu["index"] in named]


def _auto_profile(gpus: Sequence[Mapping[str, Any]], profiles: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the most demanding profile that all these GPUs can run; never one without a GPU."""
    fitting = [
        (_capability(profile["requires"]["compute_capability"]), profile["requires"]["memory_gib"], name)
        for name, profile in profiles.items()
        if profile.get("device", "cuda") == "cuda" and gpus and all(_runs(gpu, profile) for gpu in gpus)
    ]
    return max(fitting)[2] if fitting else None


def _runs(gpu: Mapping[str, Any], profile: Mapping[str, Any]) -> bool:
    requires = profile.get("requires", {})
    enough = gpu["memory_gib"] >= requires.get("memory_gib", 0)
    return enough and _capability(gpu["compute_capability"]) >= _capability(requires.get("compute_capability", "0.0"))


def _capability(text: object) -> tuple[int, int]:
    major, _dot, minor = str(text).partition(".")
    return int(major), int(minor or 0)


def _no_profile(host: Host, gpus: Sequence[Mapping[str, Any]]) -> str:
    known = ", ".join(sorted(host.profiles))
    if not gpus:
        return (
            f"vllm_gpu_profile is 'auto' and {host.name} shows no GPU: needs a GPU, or a profile named. Check nvidia-smi on the "
            "host; name vllm_gpu_profile: cpu to serve without one; or declare the GPUs to come in vllm_plan_gpus."
        )
    shown = ", ".join(sorted({f"{gpu['name']} ({gpu['memory_gib']} GiB, {gpu['compute_capability']})" for gpu in gpus}))
    return f"vllm_gpu_profile is 'auto' and no profile suits {shown} on {host.name}: needs one of {known}. Add one in vllm_plan_profiles."


def _check_profile(
    model: Mapping[str, Any],
    name: str,
    profile: Mapping[str, Any],
    gpus: Sequence[Mapping[str, Any]],
    host: Host,
    problems: list[str],
) -> None:
    if profile.get("device") == "cpu":
        if model.get("gpus") or model.get("tensor_parallel", 1) > 1:
            problems.append(
                f"vllm_models: '{model['name']}' has GPUs and the profile '{name}', which uses none. Remove one of them."
            )
        return
    for gpu in gpus:
        if profile and not _runs(gpu, profile):
            needs = profile["requires"]
            _report(
                problems,
                f"the profile '{name}' of '{model['name']}' needs compute capability {needs['compute_capability']} and "
                f"{needs['memory_gib']} GiB: GPU {gpu['index']} of {host.name} is a {gpu['name']} with {gpu['compute_capability']} and "
                f"{gpu['memory_gib']} GiB. Choose another profile, or auto.",
            )


# --- ports and GPUs ------------------------------------------------------------------------------------------


def _assign_gpus(
    instances: list[dict[str, Any]], models: Sequence[Mapping[str, Any]], host: Host, problems: list[str]
) -> None:
    """Give each instance its GPUs: those the user named, those it has already, else the lowest free ones."""
    present = {gpu["index"] for gpu in host.gpus}
    taken: dict[int, str] = {}
    by_name = {model["name"]: model for model in models}
    waiting = []
    for instance in (one for one in instances if one["device"] == "cuda"):
        model, width = by_name[instance["model_name"]], instance["tensor_parallel"]
        named = model.get("gpus")
        if named is None:
            waiting.append(instance)
            continue
        if len(named) != width * _replicas(model):
            _report(
                problems,
                f"vllm_models: '{model['name']}' has gpus {named}: needs replicas x tensor_parallel = {width * _replicas(model)} of them. Correct one.",
            )
            continue
        instance["gpus"] = named[instance["replica"] * width :][:width]
        taken.update(dict.fromkeys(instance["gpus"], instance["name"]))
    kept = {one["name"]: one.get("gpus") or [] for one in host.assigned}
    for instance in list(waiting):
        before = kept.get(instance["name"], [])
        if len(before) != instance["tensor_parallel"] or not set(before) <= present:
            continue
        clash = next((gpu for gpu in before if gpu in taken), None)
        if clash is not None:
            problems.append(
                f"vllm_models: '{taken[clash]}' asks for GPU {clash}, which '{instance['name']}' runs on. Choose another GPU, or name gpus for both."
            )
        instance["gpus"] = before
        taken.update(dict.fromkeys(before, instance["name"]))
        waiting.remove(instance)
    for instance in waiting:
        free = sorted(present - set(taken))
        width = instance["tensor_parallel"]
        if len(free) < width:
            holders = ", ".join(f"{gpu}: {name}" for gpu, name in sorted(taken.items())) or "none taken"
            problems.append(
                f"vllm_models: '{instance['name']}' needs {width} free GPU(s): {host.name} has {len(free)} ({holders}). "
                "Take a model away, lower tensor_parallel or replicas, or use another host."
            )
            continue
        instance["gpus"] = free[:width]
        taken.update(dict.fromkeys(instance["gpus"], instance["name"]))


def _assign_ports(
    instances: list[dict[str, Any]], models: Sequence[Mapping[str, Any]], host: Host, problems: list[str]
) -> None:
    """Give each instance its port: the one the user named, the one it has already, else the lowest free one."""
    by_name = {model["name"]: model for model in models}
    taken: dict[int, str] = {}
    for instance in instances:
        named = by_name[instance["model_name"]].get("port")
        if named is not None:
            instance["port"] = named + instance["replica"]
            taken[instance["port"]] = instance["name"]
    kept = {one["name"]: one.get("port") for one in host.assigned}
    for instance in instances:
        before = kept.get(instance["name"])
        if instance["port"] or not before:
            continue
        if before in taken:
            problems.append(
                f"vllm_models: '{taken[before]}' asks for port {before}, which '{instance['name']}' has. Choose another port, or name port for both."
            )
        instance["port"] = before
        taken[before] = instance["name"]
    # A port of an instance that goes away in this run is free only in the next one: it still listens.
    leaving = {one.get("port") for one in host.assigned}
    for instance in instances:
        if not instance["port"]:
            instance["port"] = next(
                port for port in range(host.first_port, 65536) if port not in taken and port not in leaving
            )
            taken[instance["port"]] = instance["name"]


def _finish_arguments(instances: list[dict[str, Any]]) -> None:
    if len({one["model_name"] for one in instances}) == 1:
        for instance in instances:
            instance["default"] = True
    for instance in instances:
        if instance["tensor_parallel"] > 1:
            instance["engine_args"]["tensor-parallel-size"] = instance["tensor_parallel"]
        if instance["device"] == "cuda":
            instance["env"]["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            instance["env"]["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, instance["gpus"]))


# --- small helpers -------------------------------------------------------------------------------------------


def _replicas(model: Mapping[str, Any]) -> int:
    return int(model.get("replicas", 1))


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _report(problems: list[str], message: str) -> None:
    if message not in problems:
        problems.append(message)


def _shown(value: object) -> str:
    """Return a value for a message: quoted, one line, at most 60 characters."""
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _no_such_gpu(model: Mapping[str, Any], gpu: int, host: Host) -> str:
    shown = f"the GPUs {', '.join(str(one['index']) for one in host.gpus)}" if host.gpus else "no GPU"
    return f"vllm_models: '{model['name']}' has GPU {gpu}: {host.name} shows {shown}. Correct gpus."
