"""The verdict on an instance, the arguments it comes from, and the ways out: what the user of a plan reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, make_plan

DATA: dict[str, Any] = {}
for file in (Path(__file__).parents[4] / "roles/vllm_plan/vars/main").glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
LLAMA_FP8 = "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
GUIDE = {"max-model-len": 16384, "gpu-memory-utilization": 0.90}


def host(*gpus: Any, **changes: Any) -> Host:
    found, problems = _gpus.declared(list(gpus), DATA["__vllm_plan_known_gpus"])
    assert problems == []
    return Host(
        **{
            "name": "gpu01",
            "gpus": found,
            "profiles": DATA["__vllm_plan_profiles"],
            "base_engine_args": DATA["__vllm_plan_base_engine_args"],
            "known_models": DATA["__vllm_plan_known_models"],
            "known_gpus": DATA["__vllm_plan_known_gpus"],
            "since": DATA["__vllm_plan_option_since"],
            "rules": DATA["__vllm_plan_rules"],
            "min_driver": "580",
            **changes,
        }
    )


def plan(model: str, where: Host, **changes: Any) -> Plan:
    return make_plan([{"name": "llama", "model": model, **changes}], where)


def only(found: Plan) -> dict[str, Any]:
    assert found.problems + found.misfits == []
    (instance,) = found.instances
    return instance


# --- the guide's own example ----------------------------------------------------------------------------------


# At 0.95 it served on an H200 that was given as much memory: 32,896 tokens with vLLM 0.26, which does not count the CUDA graphs.
@pytest.mark.parametrize(("version", "utilization"), [("0.26.0", 0.93), ("0.32.0", 0.95)])
def test_the_guides_example_is_refused_and_its_first_way_out_is_the_measured_one(
    version: str, utilization: float
) -> None:
    found = plan(LLAMA_FP8, host("h100-sxm-80gb", vllm_version=version), engine_args=GUIDE)
    (misfit,) = found.misfits
    assert misfit.startswith("'llama-0' does not fit on gpu01: of each GPU gpu-memory-utilization 0.9 takes 71.19 GiB;")
    assert "one request of 16,384 tokens needs 5.00 GiB." in misfit
    first = found.instances[0]["fit"]["suggestions"][0]
    assert first["change"] == {"engine_args": {"kv-cache-dtype": "fp8", "gpu-memory-utilization": utilization}}


def test_each_way_out_does_what_it_says() -> None:
    ways = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=GUIDE).instances[0]["fit"]["suggestions"]
    kinds = []
    for way in ways:
        change = dict(way["change"])
        kinds.append(sorted(change))
        gpus = [{"kind": change.pop("gpu", "h100-sxm-80gb"), "count": change.get("tensor_parallel", 1)}]
        args = {**GUIDE, **change.pop("engine_args", {})}
        model = change.pop("model", LLAMA_FP8)
        instance = only(plan(model, host(*gpus), engine_args=args, **change))
        assert instance["fit"]["kv_tokens"] == way["kv_tokens"]
        assert instance["fit"]["max_concurrency"] == way["max_concurrency"] >= 1.1
    # What was asked for is kept longest: the same model, then a smaller checkpoint, more GPUs, less context, another GPU.
    assert kinds == [["engine_args"], ["model"], ["model"], ["tensor_parallel"], ["engine_args"], ["gpu"]]


def test_an_fp8_cache_alone_is_offered_where_it_will_do() -> None:
    misfit = plan("Qwen/Qwen3-32B", host("l40s-48gb"), engine_args={"max-model-len": 32768})
    changes = [way["change"] for way in misfit.instances[0]["fit"]["suggestions"]]
    assert changes[0] == {"engine_args": {"kv-cache-dtype": "fp8"}}


def test_without_fp8_cores_no_fp8_cache_is_offered() -> None:
    found = plan(LLAMA, host("a100-sxm-80gb"))
    assert "kv-cache-dtype" not in str([way["change"] for way in found.instances[0]["fit"]["suggestions"]])


def test_a_misfit_that_the_user_lets_pass_is_a_warning() -> None:
    found = plan(LLAMA_FP8, host("h100-sxm-80gb", allow_misfit=True), engine_args=GUIDE)
    assert found.misfits + found.problems == []
    assert "'llama-0' does not fit on gpu01" in found.warnings[0]
    assert found.instances[0]["fit"]["verdict"] == "does not fit"


# --- whose numbers --------------------------------------------------------------------------------------------


def test_a_model_that_nobody_knows_is_not_checked_and_not_blocked() -> None:
    fit = only(plan("someone/something", host("h100-sxm-80gb")))["fit"]
    assert (fit["verdict"], fit["numbers"]) == ("not checked", "unknown")
    assert fit["reasons"][0].startswith("unknown: not checked, since nothing is known of it")


def test_numbers_from_memory_are_called_unverified() -> None:
    assert only(plan("microsoft/phi-4", host("h100-sxm-80gb")))["fit"]["numbers"] == "catalogue, unverified"
    assert only(plan("Qwen/Qwen3-32B", host("h100-sxm-80gb")))["fit"]["numbers"] == "catalogue"


def test_what_was_read_beats_the_catalogue() -> None:
    config = {**DATA["__vllm_plan_known_models"]["Qwen/Qwen3-32B"]["config"], "num_hidden_layers": 32}
    read = {"Qwen/Qwen3-32B": {"config": config, "weights_bytes": None, "source": "the hub"}}
    small, whole = (
        only(plan("Qwen/Qwen3-32B", host("h100-sxm-80gb", numbers=numbers)))["fit"] for numbers in (read, {})
    )
    assert small["numbers"] == "the hub"
    assert small["weights_gib"] < 0.6 * whole["weights_gib"]


def test_a_config_that_leaves_out_defaults_is_filled_from_the_catalogue() -> None:
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 5376, "num_hidden_layers": 62}}
    read = {"google/gemma-3-27b-it": {"config": config, "weights_bytes": 54_000_000_000, "source": "the hub"}}
    fit = only(plan("google/gemma-3-27b-it", host("h100-sxm-80gb", numbers=read)))["fit"]
    assert (fit["verdict"], fit["numbers"]) == ("fits", "the hub")


def test_a_model_of_the_users_is_planned_from_the_inventory_alone() -> None:
    config = DATA["__vllm_plan_known_models"]["Qwen/Qwen3-8B"]["config"]
    models = {**DATA["__vllm_plan_known_models"], "/srv/models/ours": {"source": "ours", "config": config}}
    fit = only(plan("/srv/models/ours", host("h100-sxm-80gb", known_models=models)))["fit"]
    assert (fit["verdict"], fit["numbers"]) == ("fits", "catalogue")


def test_a_gpu_of_the_users_is_planned_from_the_inventory_alone() -> None:
    gpus = {
        **DATA["__vllm_plan_known_gpus"],
        "own": {**DATA["__vllm_plan_known_gpus"]["l4-24gb"], "name": "Own GPU", "pci_ids": ["ffff"]},
    }
    found, _problems = _gpus.declared(["own"], gpus)
    assert only(plan("Qwen/Qwen3-8B", host(known_gpus=gpus, gpus=found)))["profile"] == "ada_fp8"


# --- arguments and where they come from -----------------------------------------------------------------------


def test_every_argument_says_where_it_comes_from() -> None:
    where = host({"kind": "h100-sxm-80gb", "count": 2}, engine_args={"max-num-seqs": 64})
    instance = only(plan(LLAMA, where, tensor_parallel=2, engine_args={"max_model_len": 8192}))
    assert set(instance["engine_args_from"]) == set(instance["engine_args"])
    assert {
        key: instance["engine_args_from"][key]
        for key in (
            "shutdown-timeout",
            "dtype",
            "quantization",
            "max-num-seqs",
            "max-model-len",
            "tensor-parallel-size",
        )
    } == {
        "shutdown-timeout": "every engine",
        "dtype": "profile h100_fp8",
        "quantization": "profile h100_fp8, unquantised",
        "max-num-seqs": "vllm_default_engine_args",
        "max-model-len": "vllm_models: llama",
        "tensor-parallel-size": "vllm_models[].tensor_parallel",
    }


@pytest.mark.parametrize(
    ("kind", "profile", "quantization", "dtype"),
    [
        ("h100-sxm-80gb", "h100_fp8", "fp8_per_tensor", "auto"),
        ("h200-sxm-141gb", "h200_fp8", "fp8_per_tensor", "auto"),
        ("b200-sxm-180gb", "b200_fp8", "fp8_per_tensor", "auto"),
        ("rtx-5090-32gb", "blackwell_fp8", "fp8_per_tensor", "auto"),
        ("l40s-48gb", "ada_fp8", "fp8_per_tensor", "auto"),
        ("a100-sxm-80gb", "a100_fp16", None, "float16"),
        ("a10-24gb", "generic_fp16", None, "float16"),
    ],
)
def test_the_gpu_picks_the_settings(kind: str, profile: str, quantization: str | None, dtype: str) -> None:
    instance = only(plan("Qwen/Qwen3-8B", host(kind), engine_args={"max-model-len": 4096}))
    args = instance["engine_args"]
    assert (instance["profile"], args.get("quantization"), args["dtype"]) == (profile, quantization, dtype)


def test_a_context_longer_than_the_model_has_is_cut_in_a_profile_and_refused_of_the_user() -> None:
    known = {**DATA["__vllm_plan_known_models"]}
    known["short"] = {"config": {**known["Qwen/Qwen3-8B"]["config"], "max_position_embeddings": 4096}}
    models = {**known, "a/short": known["short"]}
    instance = only(plan("a/short", host("h100-sxm-80gb", known_models=models)))
    assert instance["engine_args"]["max-model-len"] == 4096
    assert instance["engine_args_from"]["max-model-len"] == "the plan: the longest that the model takes"
    refused = plan("a/short", host("h100-sxm-80gb", known_models=models), engine_args={"max-model-len": 5000})
    assert refused.problems == [
        "engine_args.max-model-len of 'llama' is 5000: the model takes 4096 tokens at most. Lower it."
    ]


def test_float16_that_a_model_refuses_becomes_bfloat16_under_auto_and_is_refused_when_pinned() -> None:
    found = plan("google/gemma-3-27b-it", host("a100-sxm-80gb"))
    assert only(found)["engine_args"]["dtype"] == "bfloat16"
    assert found.warnings == [
        "'llama' is a gemma3_text model, which vLLM refuses in float16: it runs in bfloat16 instead."
    ]
    pinned = plan("google/gemma-3-27b-it", host("a100-sxm-80gb", gpu_profile="a100_fp16"))
    assert pinned.problems == [
        "'llama' is a gemma3_text model, which vLLM refuses in float16, and profile a100_fp16 says dtype float16. "
        "Set engine_args {dtype: bfloat16}, or vllm_gpu_profile: auto."
    ]
    asked = plan("google/gemma-3-27b-it", host("h100-sxm-80gb"), engine_args={"dtype": "float16"})
    assert asked.problems[0].endswith("and engine_args says dtype float16. Set engine_args {dtype: bfloat16}.")


def test_an_option_that_an_older_vllm_lacks_is_left_out_or_refused() -> None:
    since = [
        {"option": "quantization", "value": "fp8_per_tensor", "since": "0.31.0", "older": "fp8"},
        {"option": "disable-fastapi-docs", "since": "0.31.0"},
        {"option": "max-num-queued-reqs", "since": "0.29.0"},
    ]
    instance = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", since=since, vllm_version="0.30.0")))
    assert instance["engine_args"]["quantization"] == "fp8"
    assert instance["engine_args_from"]["quantization"] == "profile h100_fp8, unquantised, for vLLM before 0.31.0"
    assert "disable-fastapi-docs" not in instance["engine_args"]
    old = plan(
        "Qwen/Qwen3-8B",
        host("h100-sxm-80gb", since=since, vllm_version="0.28.0"),
        engine_args={"max-num-queued-reqs": 9},
    )
    assert old.problems == [
        "engine_args.max-num-queued-reqs of 'llama' is 9: vLLM has that since 0.29.0, and vllm_version is 0.28.0. Raise vllm_version, or remove the option."
    ]


# --- refused before a host is touched -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "model", "changes", "message"),
    [
        ("h100-sxm-80gb", LLAMA_FP8, {"engine_args": {"quantization": "fp8"}},
         "engine_args.quantization of 'llama' is 'fp8': its checkpoint is quantised already (compressed-tensors), and vLLM takes compressed-tensors for that, or nothing. Remove the option."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"dtype": "fp8"}},
         "engine_args.dtype of 'llama' is 'fp8': vLLM has no such dtype; FP8 is quantization: fp8_per_tensor, or a checkpoint that is FP8 already. Correct it."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"gpu-memory-utilization": 1.2}},
         "engine_args.gpu-memory-utilization of 'llama' is 1.2: needs a number above 0, up to 1. Correct it, for example 0.9."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"max-model-len": "long"}},
         "engine_args of 'llama': max-model-len is 'long': needs a whole number. Correct it."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"pipeline-parallel-size": 2}},
         "vllm_models[0].engine_args.pipeline-parallel-size is set: the plan decides it. Remove it and use vllm_models[].tensor_parallel; pipelines are not supported."),
        ("a100-sxm-80gb", "Qwen/Qwen3-8B", {"profile": "a100_awq"},
         "the profile 'a100_awq' of 'llama' needs a checkpoint quantised by awq, gptq, compressed-tensors: this one is not quantised. Take such a checkpoint, or vllm_gpu_profile: auto."),
        ("t4-16gb", "openai/gpt-oss-20b", {},
         "'llama' is quantised by mxfp4, which needs compute capability 8.0: GPU 0 (Tesla T4, compute capability 7.5) is older. Take another checkpoint or another GPU."),
    ],
)  # fmt: skip
def test_what_vllm_would_refuse_after_minutes_is_refused_at_once(
    kind: str, model: str, changes: dict[str, Any], message: str
) -> None:
    assert plan(model, host(kind), **changes).problems == [message]


def test_tensor_parallel_must_divide_the_heads() -> None:
    found = plan("Qwen/Qwen2.5-7B-Instruct", host({"kind": "l40s-48gb", "count": 8}), tensor_parallel=8)
    assert found.problems == [
        "vllm_models: 'llama' has tensor_parallel 8: it must divide the model's 28 attention heads. Take one of 1, 2, 4."
    ]


def test_fp8_weights_on_an_a100_are_told_to_save_memory_and_no_time() -> None:
    found = plan("Qwen/Qwen3-32B-FP8", host("a100-sxm-80gb"))
    assert only(found)["fit"]["verdict"] == "fits"
    assert found.warnings == [
        "'llama' has FP8 weights and GPU 0 (NVIDIA A100-SXM4-80GB, compute capability 8.0) has no FP8 tensor cores: vLLM unpacks them (Marlin), which saves memory, not time."
    ]


def test_a_version_with_known_holes_is_refused() -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", vllm_version="0.23.1")).problems
    assert problem.startswith(
        "vllm_version is 0.23.1: needs 0.24.0 or newer, since older ones have known holes (CVE-2026-22778,"
    )


@pytest.mark.parametrize("version", ["latest", "", "1", None])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", vllm_version=version)).problems
    assert "needs a version such as 0.32.0" in problem


def test_two_models_share_a_gpu_that_both_name_if_there_is_room() -> None:
    def pair(first: float, second: float) -> Plan:
        models = [
            {
                "name": name,
                "model": "Qwen/Qwen3-8B",
                "served_as": [name],
                "gpus": [0],
                "engine_args": {"gpu-memory-utilization": taken},
            }
            for name, taken in (("a", first), ("b", second))
        ]
        return make_plan(models, host("h100-sxm-80gb"))

    assert [one["gpus"] for one in pair(0.45, 0.5).instances] == [[0], [0]]
    assert pair(0.45, 0.5).problems == []
    assert pair(0.5, 0.5).problems == [
        "vllm_models: GPU 0 is shared, and the gpu-memory-utilization of its instances sums up to 1.00 (a-0: 0.5, b-0: 0.5): needs a sum below 1. "
        "Lower engine_args.gpu-memory-utilization of each, or give each its own GPU."
    ]


@pytest.mark.parametrize(
    ("changes", "preview", "problem", "warning"),
    [
        ({"source": "nvidia-smi", "driver_version": "550.90.07"}, False, "gpu01 has the NVIDIA driver 550.90.07: vLLM 0.32.0 is built for CUDA 13 and needs 580 or newer.", ""),
        ({"source": "nvidia-smi", "driver_version": "580.65.06"}, False, "", ""),
        ({"source": "sysfs"}, False, "gpu01 has GPUs (NVIDIA H100 80GB HBM3), but its NVIDIA driver does not answer. Install a driver from 580 on,", ""),
        ({"source": "sysfs"}, True, "", "gpu01 has GPUs (NVIDIA H100 80GB HBM3), but its NVIDIA driver does not answer."),
        ({"mig": True}, False, "GPU 0 of gpu01 (NVIDIA H100 80GB HBM3) is cut up by MIG: needs whole GPUs. Switch MIG off (nvidia-smi -i 0 -mig 0), or name other gpus.", ""),
    ],
)  # fmt: skip
def test_a_gpu_that_cannot_serve_yet(changes: dict[str, Any], preview: bool, problem: str, warning: str) -> None:
    where = host("h100-sxm-80gb", preview=preview)
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", preview=preview, gpus=[{**where.gpus[0], **changes}]))
    for expected, told in ((problem, found.problems), (warning, found.warnings)):
        assert [one.startswith(expected) for one in told] == [True] * bool(expected)


def test_a_display_card_beside_the_gpu_is_left_alone() -> None:
    gpus = host("h100-sxm-80gb").gpus
    card = {"index": 0, "name": "NVIDIA T400", "memory_gib": 3.6, "compute_capability": "7.5"}
    found = only(plan("Qwen/Qwen3-8B", host(gpus=[card, {**gpus[0], "index": 1}])))
    assert (found["gpus"], found["profile"]) == ([1], "h100_fp8")
