# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU profiles: which one a GPU gets, what engine arguments come of it, and what vLLM would refuse of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ._model import Shape
from ._wanted import argument_problems, count, environment_problems, is_number, normalised, number, shown

#: What people write for a dtype that vLLM has not, and what they mean.
WRONG_DTYPES = {
    "fp8": "FP8 is quantization: fp8_per_tensor, or a checkpoint that is FP8 already",
    "fp16": "half precision is dtype: float16",
    "bf16": "it is called bfloat16",
    "fp32": "it is called float32",
}
#: What all instances of a GPU may take together; above it the CUDA contexts have no room.
HIGHEST_UTILIZATION = 0.96
PROFILE_KEYS = ("device", "requires", "requires_quantization", "auto", "engine_args", "unquantized_engine_args", "env")
TEXTS = ("dtype", "quantization", "kv-cache-dtype")
#: Options that are numbers, and such that are whole ones from 1.
NUMBERS = ("gpu-memory-utilization", "cpu-offload-gb")
COUNTS = ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes")


@dataclass
class Arguments:
    """Engine arguments, spelt as on the command line, each with where it comes from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    by_user: set[str] = field(default_factory=set)

    def put(self, key: str, value: Any, origin: str, *, by_user: bool = False) -> None:
        """Set one argument and remember who said so."""
        self.values[key] = value
        self.origins[key] = origin
        (self.by_user.add if by_user else self.by_user.discard)(key)

    def where(self, key: str, name: str) -> str:
        """Return where an argument of the model ``name`` stands, for the beginning of a sentence."""
        origin = self.origins[key]
        return f"engine_args.{key} of '{name}'" + ("" if origin.startswith("vllm_models") else f" (from {origin})")

    def drop(self, key: str) -> None:
        """Leave one argument to vLLM."""
        del self.values[key], self.origins[key]
        self.by_user.discard(key)


@dataclass
class Findings:
    """What stands against a plan: ``problems`` forbid to go on, ``warnings`` do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def merged(layers: Iterable[tuple[str, Mapping[str, Any], bool]]) -> Arguments:
    """Merge arguments, later layers over earlier ones. A layer is its name, its arguments, and whether the user wrote it."""
    arguments = Arguments()
    for origin, layer, by_user in layers:
        for key, value in normalised(layer).items():
            arguments.put(key, value, origin, by_user=by_user)
    return arguments


def version_tuple(text: object) -> tuple[int, ...]:
    """Return a version as numbers: ``0.32.0rc1`` is (0, 32, 0)."""
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", str(text))[0].split(".") if part)  # type: ignore[index]


def capability(text: object) -> tuple[int, int]:
    """Return a compute capability as two numbers; (0, 0) where it is not known."""
    found = re.match(r"(\d+)(?:\.(\d+))?$", str(text))
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


# --- which profile -------------------------------------------------------------------------------------------


def auto(gpus: Sequence[Mapping[str, Any]], profiles: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the profile that the catalogue names for these GPUs, else the most demanding one that all of them can run."""
    named = {gpu.get("profile") for gpu in gpus}
    if len(named) == 1 and (name := named.pop()) in profiles and all(runs(gpu, profiles[str(name)]) for gpu in gpus):
        return str(name)
    fitting = [
        (capability(asked.get("compute_capability")), asked.get("memory_gib", 0), name)
        for name, profile in profiles.items()
        for asked in [profile.get("requires", {})]
        if profile.get("device", "cuda") == "cuda"
        and profile.get("auto", True)
        and gpus
        and all(runs(gpu, profile) for gpu in gpus)
    ]
    return max(fitting)[2] if fitting else None


def runs(gpu: Mapping[str, Any], profile: Mapping[str, Any]) -> bool:
    """Whether a GPU has what a profile requires."""
    requires = profile.get("requires", {})
    # What a GPU shows moves by a percent with driver and ECC; a profile must not.
    enough = float(gpu["memory_gib"]) >= 0.98 * requires.get("memory_gib", 0)
    return enough and capability(gpu["compute_capability"]) >= capability(requires.get("compute_capability"))


def needs(profile: Mapping[str, Any]) -> str:
    """Return what a profile requires, in words."""
    requires = profile.get("requires", {})
    units = {"compute_capability": "compute capability {}", "memory_gib": "{} GiB"}
    return " and ".join(text.format(requires[key]) for key, text in units.items() if key in requires)


def profile_problems(name: object, profile: object) -> list[str]:
    """Return what is wrong with a profile, one sentence each."""
    where = f"vllm_plan_profiles.{name}"
    if not isinstance(name, str):
        return [f"vllm_plan_profiles has the key {shown(name)}: needs a name. Rename it, for example own_fp8."]
    if not isinstance(profile, Mapping):
        return [f"{where} is {shown(profile)}: needs a mapping with device, requires and engine_args. Rewrite it."]
    found = []
    if unknown := sorted(str(key) for key in profile if key not in PROFILE_KEYS):
        found.append(
            f"{where} has the key {unknown[0]!r}: needs one of {', '.join(PROFILE_KEYS)}. Correct or remove it."
        )
    if profile.get("device", "cuda") not in ("cuda", "cpu"):
        found.append(f"{where}.device is {shown(profile['device'])}: needs cuda or cpu. Correct it.")
    if not isinstance(profile.get("auto", True), bool):
        found.append(f"{where}.auto is {shown(profile['auto'])}: needs true or false. Correct it.")
    methods = profile.get("requires_quantization", [])
    if not isinstance(methods, list) or not all(isinstance(method, str) for method in methods):
        found.append(f"{where}.requires_quantization is {shown(methods)}: needs a list, for example [awq]. Correct it.")
    found += _requires_problems(f"{where}.requires", profile.get("requires", {}))
    for part in ("engine_args", "unquantized_engine_args"):
        found += argument_problems(f"{where}.{part}", profile.get(part, {}))
    return found + environment_problems(f"{where}.env", profile.get("env", {}))


def _requires_problems(where: str, requires: object) -> list[str]:
    if not isinstance(requires, Mapping) or not set(requires) <= {"compute_capability", "memory_gib"}:
        return [
            f'{where} is {shown(requires)}: needs a mapping, for example {{compute_capability: "9.0", memory_gib: 79}}. Correct it.'
        ]
    found = []
    if "compute_capability" in requires and capability(requires["compute_capability"]) == (0, 0):
        found.append(
            f'{where}.compute_capability is {shown(requires["compute_capability"])}: needs one such as "9.0". Correct it.'
        )
    memory = requires.get("memory_gib", 0)
    if not is_number(memory) or not 0 <= memory < 1_000_000:
        found.append(f"{where}.memory_gib is {shown(memory)}: needs the GiB that CUDA sees, such as 79. Correct it.")
    return found


# --- which arguments -----------------------------------------------------------------------------------------


def fit_version(
    arguments: Arguments, since: Iterable[Mapping[str, Any]], version: str, name: str, findings: Findings
) -> None:
    """Take out what this vLLM does not know yet; what the user asked for himself is refused instead."""
    have = version_tuple(version)
    for rule in since:
        key = str(rule["option"])
        if key not in arguments.values or have >= version_tuple(rule["since"]):
            continue
        if "value" in rule and arguments.values[key] != rule["value"]:
            continue
        if key in arguments.by_user:
            findings.problems.append(
                f"engine_args.{key} of '{name}' is {shown(arguments.values[key])}: vLLM has that since {rule['since']}, "
                f"and vllm_version is {version}. Raise vllm_version, or remove the option."
            )
        elif "older" in rule:
            arguments.put(key, rule["older"], f"{arguments.origins[key]}, for vLLM before {rule['since']}")
        else:
            arguments.drop(key)


def fit_model(
    arguments: Arguments,
    shape: Shape,
    gpu: Mapping[str, Any] | None,
    rules: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str,
    findings: Findings,
    *,
    pinned: bool,
    env: Mapping[str, str],
) -> None:
    """Settle what the model itself forbids: a float16 that it overflows in, a context longer than it has, a second quantisation."""
    before = len(findings.problems)
    if gpu is not None:
        _check_capability(arguments, shape, gpu, rules, name, findings)
    _check_quantization(arguments, shape, rules, options, name, findings)
    if len(findings.problems) == before:
        _fit_dtype(arguments, shape, gpu, rules, name, findings, pinned=pinned)
        # The user stretches the model himself, and vLLM checks that.
        stretched = any(key.partition(".")[0] == "hf-overrides" for key in arguments.values)
        if not stretched and env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").lower() not in ("1", "true"):
            _fit_context(arguments, shape, name, findings)


def check_options(
    arguments: Arguments, options: Mapping[str, Any], version: str, name: str, findings: Findings
) -> None:
    """Refuse an option, or a word for one, that vLLM's parser does not know; where another version is planned for, only warn.

    vLLM itself takes any beginning of a name: here it must be the whole one, since the plan reads it, too.
    """
    if not options:
        return
    if version_tuple(version) != version_tuple(options["version"]):
        found = [said for key in arguments.values if (said := _option_problem(arguments, key, options, name))]
        findings.warnings += [
            f"{said} (The plan knows the options of vLLM {options['version']}, and {version} may have others.)"
            for said in found
        ]
        return
    for key, value in list(arguments.values.items()):
        if said := _option_problem(arguments, key, options, name):
            findings.problems.append(said)
        elif value is False and key in options["switches"]:
            # To vLLM such an option stands there or does not.
            arguments.drop(key)


def _option_problem(arguments: Arguments, key: str, options: Mapping[str, Any], name: str) -> str:
    option, dot, _field = key.partition(".")
    value, where = arguments.values[key], arguments.where(key, name)
    flag = option.removeprefix("no-")
    if option not in options["names"] and not (flag != option and flag in options["flags"]):
        names = [*options["names"], *(f"no-{one}" for one in options["flags"])]
        return f"{where} is no option of vLLM {options['version']}.{_nearest(option, names)} Correct or remove it."
    checked = (COUNTS, NUMBERS, TEXTS, options["flags"], options["switches"])
    if isinstance(value, bool) and not dot and not any(name in part for part in checked for name in (option, flag)):
        return f"{where} is {value}: the option takes a value. Correct or remove it."
    words = options["words"].get(option)
    if dot or not words or not isinstance(value, str) or value in words or _wrong_dtype(key, value):
        return ""
    needed = ", ".join(words) if len(words) < 12 else f"one that vLLM {options['version']} has"
    return f"{where} is {shown(value)}: needs {needed}.{_nearest(value.lower(), words)} Correct it."


def _nearest(word: str, words: Iterable[str]) -> str:
    near = get_close_matches(word, words, 1)
    return f" The nearest is {near[0]}." if near else ""


def check_values(arguments: Arguments, name: str, findings: Findings) -> None:
    """Refuse values that vLLM's parser would refuse after the installation, and warn of those that fail at the first request.

    Numbers are written out: 16k becomes 16000. An option that is null is left to vLLM.
    """
    for key, value in arguments.values.items():
        where = f"{arguments.where(key, name)} is {shown(value)}"
        if value is None:
            continue
        if need := _need(key, value):
            findings.problems.append(f"{where}: {need}")
        elif key in COUNTS:
            arguments.values[key] = count(value) or value
        elif key in NUMBERS:
            arguments.values[key] = number(value)
        if key == "gpu-memory-utilization" and not need and arguments.values[key] > HIGHEST_UTILIZATION:
            findings.warnings.append(
                f"{where}: the CUDA context (0.5 to 1 GiB) comes on top of it. Keep it at {HIGHEST_UTILIZATION} or below."
            )
    batch, requests = (count(arguments.values.get(key)) for key in ("max-num-batched-tokens", "max-num-seqs"))
    if batch and requests and batch < requests:
        findings.problems.append(
            f"engine_args.max-num-batched-tokens of '{name}' is {batch}: needs at least max-num-seqs, {requests}. Raise it, or lower that."
        )


def _need(key: str, value: object) -> str:
    """Return what an option needs in place of this value and what to do, "" where it is one."""
    if key in TEXTS and not isinstance(value, str):
        return "needs text. Correct or remove it."
    if meant := _wrong_dtype(key, value):
        return f"vLLM has no such dtype; {meant}. Correct it."
    if key == "gpu-memory-utilization" and not is_utilization(value):
        return "needs a number above 0, up to 1. Correct it, for example 0.9."
    size = number(value)
    if key == "cpu-offload-gb" and (size is None or not 0 <= size < 1_000_000):
        return "needs a number from 0. Correct it."
    if key == "max-model-len" and value in ("auto", -1):
        return ""
    if key in COUNTS and not count(value):
        return f"needs a whole number from 1{', or auto' if key == 'max-model-len' else ''}. Correct it."
    return ""


def _wrong_dtype(key: str, value: object) -> str:
    return WRONG_DTYPES.get(str(value).lower(), "") if key == "dtype" else ""


def is_utilization(value: object) -> bool:
    """Whether it is a part of a GPU's memory: above 0, up to 1."""
    part = number(value)
    return part is not None and 0 < part <= 1


def _fit_dtype(
    arguments: Arguments,
    shape: Shape,
    gpu: Mapping[str, Any] | None,
    rules: Mapping[str, Any],
    name: str,
    findings: Findings,
    *,
    pinned: bool,
) -> None:
    if str(arguments.values.get("dtype")) not in ("float16", "half") or shape.model_type not in rules.get(
        "no_float16", ()
    ):
        return
    asked = "dtype" in arguments.by_user
    can_bfloat16 = gpu is None or capability(gpu["compute_capability"]) >= (8, 0)
    if asked or pinned or not can_bfloat16:
        because = "engine_args" if asked else arguments.origins["dtype"]
        ways = "Set engine_args {dtype: bfloat16}" if can_bfloat16 else "Take another model"
        findings.problems.append(
            f"'{name}' is a {shape.model_type} model, which vLLM refuses in float16, and {because} says dtype float16. "
            f"{ways}{'' if asked or not can_bfloat16 else ', or vllm_gpu_profile: auto'}."
        )
        return
    findings.warnings.append(
        f"'{name}' is a {shape.model_type} model, which vLLM refuses in float16: it runs in bfloat16 instead."
    )
    arguments.put("dtype", "bfloat16", f"the plan: {shape.model_type} refuses float16")


def _fit_context(arguments: Arguments, shape: Shape, name: str, findings: Findings) -> None:
    wanted = arguments.values.get("max-model-len")
    if not isinstance(wanted, int) or not shape.max_position or wanted <= shape.max_position:
        return
    if "max-model-len" in arguments.by_user:
        findings.problems.append(
            f"engine_args.max-model-len of '{name}' is {wanted}: the model takes {shape.max_position} tokens at most. Lower it."
        )
    else:
        arguments.put("max-model-len", shape.max_position, "the plan: the longest that the model takes")


def _check_quantization(
    arguments: Arguments,
    shape: Shape,
    rules: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str,
    findings: Findings,
) -> None:
    wanted = arguments.values.get("quantization")
    method = shape.quantization
    old = next((one for one in (wanted, method) if one in options.get("deprecated", ())), None)
    if old and arguments.values.get("allow-deprecated-quantization") is not True:
        findings.problems.append(
            f"'{name}' is quantised by {old}, which vLLM runs only with engine_args {{allow-deprecated-quantization: true}}. Set that, or take "
            "another checkpoint."
        )
    takes = rules.get("quantization_takes", {}).get(method)
    if wanted is not None and method is not None and takes is not None and wanted not in takes:
        findings.problems.append(
            f"engine_args.quantization of '{name}' is {shown(wanted)}: its checkpoint is quantised already ({method}), and vLLM takes "
            f"{' or '.join(takes)} for that, or nothing. Remove the option."
        )


def _check_capability(
    arguments: Arguments,
    shape: Shape,
    gpu: Mapping[str, Any],
    rules: Mapping[str, Any],
    name: str,
    findings: Findings,
) -> None:
    have = capability(gpu["compute_capability"])
    where = f"GPU {gpu['index']} ({gpu['name']}, compute capability {gpu['compute_capability']})"
    method = shape.quantization or arguments.values.get("quantization")
    needs = rules.get("quantization_capability", {}).get(method)
    if needs and have < capability(needs):
        findings.problems.append(
            f"'{name}' is quantised by {method}, which needs compute capability {needs}: {where} is older. "
            "Take another checkpoint or another GPU."
        )
    elif shape.indexer_dim and have < capability(rules.get("sparse_attention_capability")):
        findings.problems.append(
            f"'{name}' is a {shape.model_type} model, whose sparse attention needs compute capability "
            f"{rules['sparse_attention_capability']}: {where} is older. Take another model or another GPU."
        )
    elif _is_fp8(shape, str(method or "")) and have < (8, 9):
        findings.warnings.append(
            f"'{name}' has FP8 weights and {where} has no FP8 tensor cores: vLLM unpacks them (Marlin), which saves memory, not time."
        )
    cache = str(arguments.values.get("kv-cache-dtype", "auto"))
    if have < (8, 9) and (cache.startswith("fp8") or (cache == "auto" and shape.kv_cache_fp8)):
        said, instead = (
            (f"is {cache}", "auto") if cache != "auto" else ("is auto, and its checkpoint has an FP8 cache", "bfloat16")
        )
        findings.warnings.append(
            f"engine_args.kv-cache-dtype of '{name}' {said}: on {where} that works only where FlashInfer does. Set it to {instead} if it fails."
        )


def _is_fp8(shape: Shape, method: str) -> bool:
    return shape.storage.fp8 if shape.storage else method.startswith("fp8")
