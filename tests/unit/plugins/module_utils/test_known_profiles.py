"""The profiles that ship against the GPUs that ship, and the rules of vLLM that stand beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _fit, _gpus, _profiles
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, make_plan

DATA: dict[str, Any] = {}
for file in (Path(__file__).parents[4] / "roles/vllm_plan/vars/main").glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
PROFILES: dict[str, dict[str, Any]] = DATA["__vllm_plan_profiles"]
ON_GPUS = {name: profile for name, profile in PROFILES.items() if profile["device"] == "cuda"}
KINDS: dict[str, dict[str, Any]] = DATA["__vllm_plan_known_gpus"]


def gpus_of(profile: str) -> list[dict[str, Any]]:
    """Return the GPUs that get a profile, the smallest first; one that must be named runs where the one beside it does."""
    beside = {"a100_awq": "a100_fp16"}.get(profile, profile)
    return sorted((one for one in KINDS.values() if one["profile"] == beside), key=lambda one: float(one["memory_gib"]))


def planned(model: str, **changes: Any) -> Plan:
    gpus, _problems = _gpus.declared(["h100-sxm-80gb"], KINDS)
    host = Host(
        name="gpu01", gpus=gpus, profiles=PROFILES, known_models=DATA["__vllm_plan_known_models"], known_gpus=KINDS,
        base_engine_args=DATA["__vllm_plan_base_engine_args"], since=DATA["__vllm_plan_option_since"], rules=DATA["__vllm_plan_rules"],
        vllm_version=changes.pop("vllm_version", "0.32.0"),
    )  # fmt: skip
    return make_plan([{"name": "llama", "model": model, **changes}], host)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_one_as_users_may_write_it(name: str) -> None:
    assert _profiles.profile_problems(name, PROFILES[name]) == []


@pytest.mark.parametrize("name", ON_GPUS)
def test_what_decides_about_memory_is_said(name: str) -> None:
    """So that a plan needs none of vLLM's own defaults, and one GPU serves like another."""
    args = ON_GPUS[name]["engine_args"]
    assert (args["gpu-memory-utilization"], args["max-model-len"]) == (0.90, 16384)
    smallest = gpus_of(name)[0]
    assert args["max-num-batched-tokens"] == _fit.default_batch(smallest)["max-num-batched-tokens"]
    # A small GPU has no KV cache for more requests.
    assert args["max-num-seqs"] == (256 if smallest["memory_gib"] > 30 else 128)


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_profile_requires_what_the_least_of_its_gpus_has(name: str) -> None:
    requires, gpus = ON_GPUS[name]["requires"], gpus_of(name)
    assert all(_profiles.runs(gpu, ON_GPUS[name]) for gpu in gpus)
    assert 0.9 * gpus[0]["memory_gib"] < requires["memory_gib"] < gpus[0]["memory_gib"]
    least = min(_profiles.capability(gpu["compute_capability"]) for gpu in gpus)
    fp8 = "quantization" in ON_GPUS[name].get("unquantized_engine_args", {})
    # FP8 needs cores for it; the rest needs what the engine itself does.
    assert ((8, 9) if fp8 else (7, 5)) <= _profiles.capability(requires["compute_capability"]) <= least
    assert fp8 == all(gpu["fp8"] for gpu in gpus)


def test_only_a_profile_that_takes_any_checkpoint_is_taken_by_auto() -> None:
    named = {name for name, profile in PROFILES.items() if not profile.get("auto", True)}
    assert named == {name for name, profile in PROFILES.items() if "requires_quantization" in profile}
    assert named.isdisjoint(kind["profile"] for kind in KINDS.values())


def test_every_engine_lets_streams_end_and_serves_nothing_beside_the_api() -> None:
    (instance,) = planned("Qwen/Qwen3-8B").instances
    said = {key: instance["engine_args"][key] for key, origin in instance["engine_args_from"].items() if origin == "every engine"}  # fmt: skip
    assert said == {
        "shutdown-timeout": 60,
        "disable-fastapi-docs": True,
        "allowed-media-domains": ["none.invalid"],
        "disable-access-log-for-endpoints": "/health,/metrics",
    }


@pytest.mark.parametrize("option", ["max-num-queued-reqs", "sse-keep-alive-interval"])
def test_an_option_of_0_29_is_refused_before_it(option: str) -> None:
    old, new = (planned("Qwen/Qwen3-8B", vllm_version=version, engine_args={option: 9}) for version in ("0.28.9", "0.29.0"))  # fmt: skip
    assert old.problems == [
        f"engine_args.{option} of 'llama' is 9: vLLM has that since 0.29.0, and vllm_version is 0.28.9. Raise vllm_version, or remove the option."
    ]
    assert new.problems == []


@pytest.mark.parametrize(("version", "refused"), [("0.23.9", True), ("0.24.0", False)])
def test_the_security_floor(version: str, refused: bool) -> None:
    assert bool(planned("Qwen/Qwen3-8B", vllm_version=version).problems) is refused


# What `quantization` may say of a checkpoint, and one that it may not, read in vLLM 0.32.0.
def quantizations() -> Iterator[tuple[str, str, bool]]:
    allowed = {
        "nvidia/Llama-3.3-70B-Instruct-FP8": ("modelopt", "fp8", "fp8_per_tensor", "modelopt_fp4"),
        "Qwen/Qwen3-32B-FP8": ("fp8", "humming"),
        "Qwen/Qwen3-32B-AWQ": ("awq", "awq_marlin", "auto_awq", "moe_wna16"),
        "RedHatAI/Mistral-7B-Instruct-v0.3-GPTQ-4bit": ("gptq", "gptq_marlin", "auto_gptq", "moe_wna16"),
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8": ("compressed-tensors",),
    }
    for model, takes in allowed.items():
        yield from ((model, one, one in takes) for one in (*takes, "compressed-tensors", "bitsandbytes"))


@pytest.mark.parametrize(("model", "quantization", "taken"), list(quantizations()))
def test_which_quantization_a_checkpoint_takes(model: str, quantization: str, taken: bool) -> None:
    found = planned(model, engine_args={"quantization": quantization, "max-model-len": 1024})
    assert (found.problems == []) is taken
