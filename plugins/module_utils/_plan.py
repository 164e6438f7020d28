# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: from what the user wants on one host to the flat list of instances that every role renders from.

Pure: everything it needs is handed in, everything it decides is in the `Plan` it returns.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import _fit, _profiles, _weights
from ._memory import CONTEXT_GIB
from ._profiles import Findings
from ._wanted import (
    PORTS,
    argument_problems,
    check_across,
    checked_models,
    environment_problems,
    is_number,
    is_whole,
    replicas,
    report,
    served_names,
    shown,
)

ADDRESS = "127.0.0.1"
#: More than any checkpoint has.
MOST_WEIGHTS_GB = 1_000_000


@dataclass(frozen=True)
class Host:
    """What is known of one host, and of the world that its plan is made for.

    ``profiles``, ``known_models``, ``known_gpus``, ``options``, ``since`` and ``rules`` are the catalogues (roles/vllm_plan/vars/main).
    ``numbers`` holds, for each model, what was read of it: ``config``, ``weights_bytes`` (or None) and ``source``.
    ``commits`` holds the commits of models of the hub, as far as they are known, ``files`` the names that are known to lie in a folder,
    ``file_options`` the options whose value may be such a name.
    ``preview`` looks ahead: what a host only lacks so far (driver, weights) is told, not refused. ``driver_comes``: the driver is installed or
    replaced before anything is served, so what is there now does not matter.
    """

    name: str
    gpus: Sequence[Mapping[str, Any]]
    profiles: Mapping[str, Mapping[str, Any]]
    gpu_profile: str = "auto"
    base_engine_args: Mapping[str, Any] = field(default_factory=dict)
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    first_port: int = 8000
    assigned: Sequence[Mapping[str, Any]] = ()
    numbers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    known_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    known_gpus: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    since: Sequence[Mapping[str, Any]] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    commits: Mapping[_weights.Source, str] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    file_options: Sequence[str] = ()
    vllm_version: str = "0.32.0"
    min_driver: str = ""
    weights_dir: str = "/var/lib/vllm/weights"
    allow_misfit: bool = False
    preview: bool = False
    driver_comes: bool = False


@dataclass
class Plan(Findings):
    """Instances, and what stands against them; ``misfits`` are problems as well, unless the user lets them pass."""

    misfits: list[str] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)


def make_plan(models: object, host: Host) -> Plan:
    """Return the plan of one host. ``models`` is ``vllm_models`` as the user wrote it.

    A plan with problems has instances as well, as far as they could be worked out: for a report, never to go on with.
    """
    plan = Plan()
    wanted = checked_models(models, plan.problems)
    if not plan.problems:
        check_across(wanted, plan.problems)
    _check_host(host, plan)
    if plan.problems:
        return plan
    instances = [_instance(model, replica, host, plan) for model in wanted for replica in range(replicas(model))]
    if not plan.problems:
        _assign_gpus(instances, wanted, host, plan.problems)
        _assign_ports(instances, wanted, host, plan.problems)
    if plan.problems:
        return plan
    by_name = {model["name"]: model for model in wanted}
    judge = _fit.Judge(host)
    cases = {}
    for instance in instances:
        if case := _case(instance, by_name[instance["model_name"]], host, plan):
            cases[instance["name"]] = case
    shares = _shares(cases, judge)
    for instance in instances:
        if case := cases.get(instance["name"]):
            room = _room(instance, case, instances, shares, host)
            _settle(instance, replace(case, room=room), judge, plan)
    _check_shared_gpus(instances, shares, host, plan)
    _check_drivers(instances, host, plan)
    _finish(instances)
    _find_files(instances, host, plan)
    plan.instances = instances
    # Replicas of a model have the same to say.
    plan.problems, plan.warnings = (list(dict.fromkeys(said)) for said in (plan.problems, plan.warnings))
    return plan


def known_model_problems(known: object) -> list[str]:
    """Return what is wrong with ``vllm_plan_known_models``, one sentence each."""
    if not isinstance(known, Mapping):
        return [f"vllm_plan_known_models is {shown(known)}: needs a mapping of models. Correct it."]
    return [problem for name, entry in known.items() for problem in _known_model_problems(name, entry, known)]


def _known_model_problems(name: object, entry: object, known: Mapping[Any, Any]) -> list[str]:
    where = f"vllm_plan_known_models[{name!r}]"
    if not isinstance(name, str):
        return [f"vllm_plan_known_models has the key {shown(name)}: needs the hub's id or a path. Correct it."]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("config", {}), Mapping):
        return [f"{where} is no mapping with a config: needs the keys of a config.json below config. Correct it."]
    found = []
    base, size = entry.get("base"), entry.get("weights_gb")
    if "base" in entry and (not isinstance(base, str) or base not in known):
        found.append(f"{where}.base is {shown(base)}: needs another known model. Correct it.")
    elif isinstance(known.get(base), Mapping) and "base" in known[base]:
        found.append(
            f"{where}.base is {shown(base)}, which has a base itself: needs a model that has none. Correct it."
        )
    elif "base" not in entry and not entry.get("config"):
        found.append(f"{where} has neither config nor base: needs one. Paste the model's config.json as config.")
    if size is not None and not (is_number(size) and 0 < size < MOST_WEIGHTS_GB):
        found.append(
            f"{where}.weights_gb is {shown(size)}: needs the size on disk in 10^9 bytes. Correct or remove it."
        )
    return found


def _check_host(host: Host, plan: Plan) -> None:
    plan.problems += argument_problems("vllm_default_engine_args", host.engine_args)
    plan.problems += environment_problems("vllm_default_env", host.env)
    for name, profile in host.profiles.items():
        plan.problems += _profiles.profile_problems(name, profile)
    if not is_whole(host.first_port, PORTS):
        plan.problems.append(
            f"vllm_plan_first_port is {shown(host.first_port)}: needs a whole number from 1024 to 65535. Correct it."
        )
    floor = host.rules.get("security_floor", {})
    version = _profiles.version_tuple(host.vllm_version)
    if len(version) < 3:
        plan.problems.append(
            f"vllm_version is {shown(host.vllm_version)}: needs a version of three numbers such as 0.32.0. Correct it."
        )
    elif floor and version < _profiles.version_tuple(floor["version"]):
        plan.problems.append(
            f"vllm_version is {host.vllm_version}: needs {floor['version']} or newer, since older ones have known holes "
            f"({', '.join(floor['because'])}). Raise it."
        )


# --- one instance --------------------------------------------------------------------------------------------


def _instance(model: Mapping[str, Any], replica: int, host: Host, plan: Plan) -> dict[str, Any]:
    """Return an instance without GPUs, port and arguments yet; refuse a profile or a GPU that is not there."""
    profile_name = model.get("profile") or host.gpu_profile
    missing = sorted(set(model.get("gpus") or ()) - {gpu["index"] for gpu in host.gpus})
    known = host.profiles.get(profile_name) if isinstance(profile_name, str) else None
    profile = known or {}
    if missing:
        report(plan.problems, _no_such_gpu(model, missing[0], host))
    elif profile_name == "auto":
        if not host.gpus:
            report(plan.problems, _no_profile(host, ()))
    elif known is None:
        names = ", ".join(sorted(host.profiles))
        report(
            plan.problems,
            f"vllm_gpu_profile is {shown(profile_name)} for '{model['name']}': needs auto or one of {names}. Correct it.",
        )
    if profile.get("device") == "cpu" and (model.get("gpus") or model.get("tensor_parallel", 1) > 1):
        report(
            plan.problems,
            f"vllm_models: '{model['name']}' has GPUs and the profile '{profile_name}', which uses none. Remove one of them.",
        )
    environment = [host.env, model.get("env") or {}]
    source = _weights.source_of(model)
    commit = host.commits.get(source, "")
    return {
        "name": f"{model['name']}-{replica}",
        "model_name": model["name"],
        "replica": replica,
        "host": host.name,
        "model": model["model"],
        "path": _weights.folder_of(source, commit, host.weights_dir),
        "revision": model.get("revision"),
        "commit": commit or None,
        "served_as": served_names(model),
        "default": bool(model.get("default")),
        "profile": profile_name,
        "device": profile.get("device", "cuda"),
        "gpus": [],
        "tensor_parallel": model.get("tensor_parallel", 1),
        "address": ADDRESS,
        "port": 0,
        "engine_args": {},
        "engine_args_from": {},
        "env": {key: str(value) for layer in environment for key, value in layer.items()},
        "fit": None,
    }


def _case(instance: dict[str, Any], model: Mapping[str, Any], host: Host, plan: Plan) -> _fit.Case | None:
    """Choose the profile by the GPUs that the instance has got, and return what is to be judged; None where nothing can run."""
    gpus = [gpu for gpu in host.gpus if gpu["index"] in instance["gpus"]]
    pinned = instance["profile"] != "auto"
    found: list[str] = []
    _check_age(instance, gpus, host, found)
    if not pinned and not found:
        found += _unknown_profiles(gpus, host)
    if not pinned and not found:
        name = _profiles.auto(gpus, host.profiles)
        if name is None:
            found.append(_no_profile(host, gpus))
        else:
            instance["profile"] = name
    if not found:
        _check_profile(instance, host.profiles[instance["profile"]], gpus, host, found)
    if found:
        plan.problems += found
        instance["fit"] = {
            **_fit.where(gpus), "verdict": "refused", "numbers": "unknown", "reasons": found, "suggestions": [],
        }  # fmt: skip
        return None
    kinds = list(dict.fromkeys(gpu["name"] for gpu in gpus))
    if len(kinds) > 1:
        plan.warnings.append(
            f"'{instance['name']}' spreads over unlike GPUs of {host.name} ({', '.join(kinds)}): each is used like the one with the least memory. "
            "Name gpus of one kind if there are any."
        )
    profile = host.profiles[instance["profile"]]
    instance["env"] = {key: str(value) for key, value in profile.get("env", {}).items()} | instance["env"]
    return _fit.Case(model, model["model"], instance["profile"], pinned, gpus, env=instance["env"])


def _unknown_profiles(gpus: Sequence[Mapping[str, Any]], host: Host) -> list[str]:
    """Return what the catalogue of GPUs says wrong of these, where auto goes by it."""
    wrong = {
        gpu.get("kind"): gpu["profile"] for gpu in gpus if gpu.get("profile") and gpu["profile"] not in host.profiles
    }
    names = ", ".join(sorted(host.profiles))
    return [
        f"vllm_plan_known_gpus.{kind}.profile is {shown(name)}: needs one of {names}. Correct or remove it."
        for kind, name in wrong.items()
    ]


def _shares(cases: Mapping[str, _fit.Case], judge: _fit.Judge) -> dict[int, dict[str, float]]:
    """Return for each GPU the utilization that each of its instances takes."""
    found: dict[int, dict[str, float]] = {}
    for name, case in cases.items():
        for gpu in case.gpus:
            found.setdefault(gpu["index"], {})[name] = judge.utilization(case)
    return found


def _room(
    instance: Mapping[str, Any],
    case: _fit.Case,
    instances: Sequence[Mapping[str, Any]],
    shares: Mapping[int, Mapping[str, float]],
    host: Host,
) -> _fit.Room:
    """Return what there is beside an instance: of free GPUs of its kind its replicas' share, and sets of other kinds as wide as it is."""
    taken = {gpu for one in instances for gpu in one["gpus"]}
    kinds = {gpu["name"] for gpu in case.gpus}
    free = [gpu for gpu in host.gpus if gpu["index"] not in taken and _suits(gpu, "auto", host)]
    spare = [gpu for gpu in free if gpu["name"] in kinds]
    others: dict[str, list[Mapping[str, Any]]] = {}
    for gpu in free:
        others.setdefault(gpu["name"], []).append(gpu)
    width = len(case.gpus)
    elsewhere = tuple(
        (group[0], tuple(gpu["index"] for gpu in group[:width]))
        for name, group in others.items()
        if name not in kinds and width <= len(group) and replicas(case.model) == 1
    )
    beside = [
        sum(taken for name, taken in shares[gpu["index"]].items() if name != instance["name"]) for gpu in case.gpus
    ]
    own = sum(1 for gpu in case.gpus if len(shares[gpu["index"]]) == 1)
    return _fit.Room(len(spare) // replicas(case.model) + own, elsewhere, max(beside, default=0.0))


def _settle(instance: dict[str, Any], case: _fit.Case, judge: _fit.Judge, plan: Plan) -> None:
    """Merge the arguments of an instance, and say whether it fits."""
    host = judge.host
    outcome = judge.judge(case, plan)
    instance["engine_args"] = outcome.arguments.values
    instance["engine_args_from"] = outcome.arguments.origins
    instance["fit"] = outcome.report
    if not outcome.misfit:
        return
    outcome.report["misfit_allowed"] = host.allow_misfit
    what = f"{instance['model']} on {len(case.gpus)} x {outcome.report['gpu_kind']}"
    text = f"'{instance['name']}' does not fit on {host.name} ({what}): {outcome.misfit}"
    if not host.allow_misfit:
        plan.misfits.append(text)
    elif host.preview:
        plan.warnings.append(f"'{instance['name']}' does not fit, and goes on, since vllm_plan_allow_misfit is true.")
    else:
        plan.warnings.append(f"{text}\n  It goes on, since vllm_plan_allow_misfit is true.")


def _check_age(instance: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], host: Host, problems: list[str]) -> None:
    least = host.rules.get("least_capability")
    for gpu in gpus:
        have = _profiles.capability(gpu["compute_capability"])
        if least and (0, 0) < have < _profiles.capability(least):
            problems.append(
                f"'{instance['model_name']}' has GPU {gpu['index']} of {host.name}, a {gpu['name']} with compute capability "
                f"{gpu['compute_capability']}: vLLM is built for {least} and newer. Use another GPU."
            )


def _check_profile(
    instance: Mapping[str, Any],
    profile: Mapping[str, Any],
    gpus: Sequence[Mapping[str, Any]],
    host: Host,
    problems: list[str],
) -> None:
    for gpu in gpus:
        if not _profiles.runs(gpu, profile):
            report(
                problems,
                f"the profile '{instance['profile']}' of '{instance['model_name']}' needs {_profiles.needs(profile)}: GPU {gpu['index']} "
                f"of {host.name} is a {gpu['name']} with "
                f"{gpu['compute_capability'] or 'an unknown one'} and {gpu['memory_gib']} GiB. Choose another profile, or auto.",
            )
        if gpu.get("mig"):
            report(
                problems,
                f"GPU {gpu['index']} of {host.name} ({gpu['name']}) is cut up by MIG: needs whole GPUs. "
                f"Switch MIG off (nvidia-smi -i {gpu['pci_bus_id']} -mig 0), or name other gpus.",
            )


def _check_shared_gpus(
    instances: Sequence[dict[str, Any]], shares: Mapping[int, Mapping[str, float]], host: Host, plan: Plan
) -> None:
    """Refuse instances that together take more of a GPU than there is: each takes its utilization of the whole."""
    for gpu in (one for one in host.gpus if len(shares.get(one["index"], ())) > 1):
        users = shares[gpu["index"]]
        total = sum(users.values())
        # Each process after the first brings a CUDA context of its own.
        most = _profiles.HIGHEST_UTILIZATION - (len(users) - 1) * CONTEXT_GIB / float(gpu["memory_gib"])
        each = ", ".join(f"{name}: {taken}" for name, taken in users.items())
        said = f"vllm_models: GPU {gpu['index']} is shared, and the gpu-memory-utilization of its instances sums up to {total:.2f} ({each})"
        if total >= 1:
            problem = f"{said}: needs a sum below 1. Lower engine_args.gpu-memory-utilization of each, or give each its own GPU."
            report(plan.problems, problem)
            for instance in instances:
                if instance["name"] in users and instance["fit"]:
                    instance["fit"] |= {"verdict": "refused", "reasons": [problem], "suggestions": []}
        elif total > most:
            report(
                plan.warnings,
                f"{said}: the CUDA contexts (0.5 to 1 GiB each) come on top. Keep the sum at {most:.2f} or below, or the last may not start.",
            )


def _check_drivers(instances: Sequence[Mapping[str, Any]], host: Host, plan: Plan) -> None:
    """Refuse a driver that the engine's CUDA does not run on; one that is not there yet is only told when looking ahead."""
    used = {gpu for instance in instances for gpu in instance["gpus"]}
    for gpu in () if host.driver_comes else host.gpus:
        if gpu["index"] not in used or gpu.get("source", "declared") == "declared":
            continue
        driver = gpu.get("driver_version", "")
        if gpu["source"] == "sysfs":
            message = (
                f"{host.name} has GPUs ({gpu['name']}), but its NVIDIA driver does not answer. Install a driver"
                f"{f' from {host.min_driver} on' if host.min_driver else ''}, until nvidia-smi shows them."
            )
            report(plan.warnings if host.preview else plan.problems, message)
        elif host.min_driver and not driver:
            report(
                plan.problems,
                f"{host.name} does not tell the version of its NVIDIA driver: vLLM {host.vllm_version} is built for CUDA 13 and needs {host.min_driver} "
                "or newer. See what nvidia-smi says on the host, and install such a driver. (Where you know that it is new enough: set "
                "vllm_plan_min_driver to an empty text.)",
            )
        elif host.min_driver and _profiles.version_tuple(driver) < _profiles.version_tuple(host.min_driver):
            report(
                plan.problems,
                f"{host.name} has the NVIDIA driver {driver}: vLLM {host.vllm_version} is built for CUDA 13 and needs {host.min_driver} or newer. "
                "Install a newer driver. (An engine of your own that needs less: set vllm_plan_min_driver.)",
            )


def _no_profile(host: Host, gpus: Sequence[Mapping[str, Any]]) -> str:
    known = ", ".join(sorted(host.profiles))
    if not gpus:
        return (
            f"vllm_gpu_profile is 'auto' and {host.name} shows no GPU: needs a GPU, or a profile named. Check nvidia-smi on the "
            "host; name vllm_gpu_profile: cpu to serve without one; or declare the GPUs to come in vllm_plan_gpus."
        )
    described = ", ".join(
        sorted({f"{gpu['name']} ({gpu['memory_gib']} GiB, {gpu['compute_capability'] or 'unknown'})" for gpu in gpus})
    )
    return f"vllm_gpu_profile is 'auto' and no profile suits {described} on {host.name}: needs one of {known}. Add one in vllm_plan_profiles."


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
        if len(named) != width * replicas(model):
            report(
                problems,
                f"vllm_models: '{model['name']}' has gpus {named}: needs replicas x tensor_parallel = {width * replicas(model)} of them. Correct one.",
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
    refused: set[str] = set()
    for instance in waiting:
        suited = [gpu for gpu in host.gpus if _suits(gpu, instance["profile"], host)] or host.gpus
        free = sorted((gpu for gpu in suited if gpu["index"] not in taken), key=lambda gpu: int(gpu["index"]))
        width = instance["tensor_parallel"]
        if len(free) < width:
            if instance["model_name"] not in refused:
                holders = ", ".join(f"{gpu}: {name}" for gpu, name in sorted(taken.items())) or "none taken"
                problems.append(
                    f"vllm_models: '{instance['name']}' needs {width} free GPU(s): {host.name} has {len(free)} ({holders}). "
                    "Take a model away, lower tensor_parallel or replicas, use another host, or let two models share a GPU: name it in gpus of both, "
                    "with gpu-memory-utilization that sums up to less."
                )
            refused.add(instance["model_name"])
            continue
        instance["gpus"] = [gpu["index"] for gpu in _alike(free, width)]
        taken.update(dict.fromkeys(instance["gpus"], instance["name"]))


def _alike(free: Sequence[Mapping[str, Any]], width: int) -> Sequence[Mapping[str, Any]]:
    """Return so many of the free GPUs: the lowest ones of one kind, where there are enough of any."""
    for first in free:
        same = [gpu for gpu in free if gpu["name"] == first["name"]]
        if len(same) >= width:
            return same[:width]
    return free[:width]


def _suits(gpu: Mapping[str, Any], profile: str, host: Host) -> bool:
    """Whether a GPU may be given out: a display card beside the real ones runs no profile, one cut up by MIG no instance."""
    if gpu.get("mig"):
        return False
    if profile == "auto":
        return _profiles.auto([gpu], host.profiles) is not None
    return _profiles.runs(gpu, host.profiles[profile])


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
    for instance in instances:
        if not instance["port"]:
            instance["port"] = free_port(taken, host)
            if not instance["port"]:
                problems.append(
                    f"vllm_plan_first_port is {host.first_port}: needs a free port for '{instance['name']}' from there to 65535. Lower it."
                )
            taken[instance["port"]] = instance["name"]


def free_port(taken: Container[int], host: Host) -> int:
    """Return the lowest port that no instance has; 0 where there is none."""
    # A port of an instance that goes away in this run is free only in the next one: it still listens.
    leaving = {one.get("port") for one in host.assigned}
    return next((port for port in range(host.first_port, PORTS.stop) if port not in taken and port not in leaving), 0)


def visible_gpus(gpus: Sequence[int]) -> dict[str, str]:
    """Return the environment in which an engine sees these GPUs alone."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


def _finish(instances: list[dict[str, Any]]) -> None:
    if len({one["model_name"] for one in instances}) == 1:
        for instance in instances:
            instance["default"] = True
    for instance in instances:
        if instance["tensor_parallel"] > 1:
            instance["engine_args"]["tensor-parallel-size"] = instance["tensor_parallel"]
            instance["engine_args_from"]["tensor-parallel-size"] = "vllm_models[].tensor_parallel"
        if instance["device"] == "cuda":
            instance["env"] |= visible_gpus(instance["gpus"])


def _find_files(instances: Sequence[dict[str, Any]], host: Host, plan: Plan) -> None:
    """Take an option's value that is a bare name for a file beside the weights; refuse one that is known not to be there."""
    for instance in instances:
        arguments = instance["engine_args"]
        for option in host.file_options:
            name = arguments.get(option)
            if not _weights.is_file_name(name):
                continue
            known = host.files.get(instance["path"])
            if known is not None and name not in known:
                kind = str(name).rpartition(".")[2]
                others = ", ".join(sorted(other for other in known if other.endswith(f".{kind}"))) or "none"
                report(
                    plan.problems,
                    f"vllm_models: '{instance['model_name']}' has engine_args.{option}: {name}, and {instance['model']} no such file (*.{kind}: {others}). "
                    "Name one of the model's files, or the absolute path of one of the host's.",
                )
            arguments[option] = f"{instance['path']}/{name}"


def _no_such_gpu(model: Mapping[str, Any], gpu: int, host: Host) -> str:
    listed = f"the GPUs {', '.join(str(one['index']) for one in host.gpus)}" if host.gpus else "no GPU"
    return f"vllm_models: '{model['name']}' has GPU {gpu}: {host.name} shows {listed}. Correct gpus."
