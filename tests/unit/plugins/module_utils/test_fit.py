"""The verdict on an instance, the arguments it comes from, and the ways out: what the user of a plan reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _fit, _gpus
from ansible_collections.gpuops.vllm.plugins.module_utils._memory import Fit, Setting
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, make_plan
from ansible_collections.gpuops.vllm.plugins.module_utils._report import FIGURES
from ansible_collections.gpuops.vllm.plugins.module_utils._wanted import shown

DATA: dict[str, Any] = {}
for file in (Path(__file__).parents[4] / "roles/vllm_plan/vars/main").glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
LLAMA_FP8 = "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
H100_RUNS = json.loads((Path(__file__).parents[1] / "data/h100_memory_0.32.json").read_text())["runs"]
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
            "options": DATA["__vllm_plan_options"],
            "since": DATA["__vllm_plan_option_since"],
            "rules": DATA["__vllm_plan_rules"],
            "min_driver": "580",
            **changes,
        }
    )


def plan(model: str, where: Host, **changes: Any) -> Plan:
    return make_plan([{"name": "llama", "model": model, **changes}], where)


def sharing(*entries: tuple[str, Any], gpus: int = 1) -> Plan:
    """Return the plan of models a, b, ... on GPU 0 of an H100 host, each with its utilization."""
    models = [
        {"name": name, "model": model, "served_as": [name], "gpus": [0], "engine_args": {"gpu-memory-utilization": share}}
        for name, (model, share) in zip("abc", entries, strict=False)
    ]  # fmt: skip
    return make_plan(models, host({"kind": "h100-sxm-80gb", "count": gpus}))


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
    what = f"'llama-0' does not fit on gpu01 ({LLAMA_FP8} on 1 x h100-sxm-80gb)"
    assert misfit.startswith(f"{what}: of each GPU gpu-memory-utilization 0.9 takes 71.19 GiB;")
    assert "one request of 16,384 tokens needs 5.00 GiB." in misfit
    (reason,) = found.instances[0]["fit"]["reasons"]
    assert misfit.startswith(f"{what}: {reason}\n  What fits, the smallest change first:\n  1. engine_args")
    first = found.instances[0]["fit"]["suggestions"][0]
    assert first["change"] == {"engine_args": {"kv-cache-dtype": "fp8", "gpu-memory-utilization": utilization}}


def test_the_guides_example_is_what_an_h100_does() -> None:
    """Both were run: what is refused was, and the first way out served as many tokens as it promises."""
    refused, served = (run for run in H100_RUNS if run["model"] == "llama_70b_fp8" and run["tensor_parallel"] == 1)
    fit = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=GUIDE).instances[0]["fit"]
    assert (refused["served"], fit["verdict"]) == (False, "does not fit")
    assert fit["kv_gib"] == pytest.approx(refused["kv_gib"], abs=0.1)
    first = fit["suggestions"][0]
    assert first["change"]["engine_args"] == {
        "kv-cache-dtype": served["kv_cache_dtype"], "gpu-memory-utilization": served["gpu_memory_utilization"],
    }  # fmt: skip
    assert first["kv_tokens"] == pytest.approx(served["kv_tokens"], rel=0.05)


@pytest.mark.parametrize(("model", "kind"), [(LLAMA_FP8, "h100-sxm-80gb"), (LLAMA, "a100-sxm-80gb"), (LLAMA, "l40s-48gb")])  # fmt: skip
def test_each_way_out_does_what_it_says(model: str, kind: str) -> None:
    ways = plan(model, host(kind), engine_args=GUIDE).instances[0]["fit"]["suggestions"]
    assert {"gpu", "tensor_parallel"} <= {key for way in ways for key in way["change"]}
    for way in ways:
        change = dict(way["change"])
        gpus = [{"kind": change.pop("gpu", kind), "count": change.get("tensor_parallel", 1)}]
        args = {**GUIDE, **change.pop("engine_args", {})}
        instance = only(plan(change.pop("model", model), host(*gpus), engine_args=args, **change))
        assert instance["fit"]["kv_tokens"] == way["kv_tokens"]
        assert instance["fit"]["max_concurrency"] == way["max_concurrency"] >= 1.1


def test_what_was_asked_for_is_kept_longest() -> None:
    """The same model, then a smaller checkpoint, more GPUs, less context, another GPU."""
    ways = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=GUIDE).instances[0]["fit"]["suggestions"]
    kinds = [sorted(way["change"]) for way in ways]
    assert kinds == [["engine_args"], ["model"], ["model"], ["tensor_parallel"], ["engine_args"], ["gpu"]]
    # The larger of the smaller checkpoints keeps more of the model.
    assert [way["change"]["model"] for way in ways[1:3]] == [
        "lambda/Llama-3.3-70B-Instruct-AWQ-4bit",
        "RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16",
    ]


def test_more_gpus_are_more_than_there_are() -> None:
    where = host({"kind": "l40s-48gb", "count": 2})
    ways = plan(LLAMA, where, tensor_parallel=2, engine_args={"max-model-len": 100_000}).instances[0]["fit"][
        "suggestions"
    ]
    assert min(way["change"]["tensor_parallel"] for way in ways if "tensor_parallel" in way["change"]) > 2


@pytest.mark.parametrize(
    ("kv", "graphs", "said"),
    [
        (0.5, 1.25, "libraries 0.22, CUDA graphs 1.25 leave 0.50 GiB for the KV cache"),
        (0.0, 0.0, "libraries 0.22 leave nothing (0.00 GiB) for the KV cache"),
    ],
)
def test_the_words_of_a_misfit(kv: float, graphs: float, said: str) -> None:
    fit = Fit(72.0, 70.0, 1.5, 0.22, graphs, kv, 5.0, 16384, 0, 0.0, fits=False)
    assert _fit._reason(fit, Setting(utilization=0.9), 80) == (
        "of each GPU gpu-memory-utilization 0.9 takes 72.00 GiB; weights 70.00, activation of the first start 1.50, "
        f"{said}, and one request of 16,384 tokens needs 5.00 GiB."
    )


def test_a_misfit_without_a_way_out_says_so() -> None:
    """No other GPU is known but one that is too old for any profile, and the own kind is none of the others."""
    kinds = DATA["__vllm_plan_known_gpus"]
    old = {"name": "Old", "pci_ids": ["0001"], "memory_gib": 900, "compute_capability": "6.0"}
    huge = small(num_hidden_layers=2000, hidden_size=16384, num_attention_heads=15, head_dim=64, num_key_value_heads=15)
    where = host("l40s-48gb", known_gpus={"old": old, "l40s-48gb": kinds["l40s-48gb"]}, **huge)
    (misfit,) = plan("a/small", where).misfits
    assert misfit.endswith("\n  No change of one host that the plan knows would make it fit. Take a smaller model.")
    assert "leave nothing (-" in misfit


def test_the_own_kind_of_gpu_is_no_other_gpu() -> None:
    kinds = {"h100-sxm-80gb": DATA["__vllm_plan_known_gpus"]["h100-sxm-80gb"]}
    ways = plan(LLAMA, host("h100-sxm-80gb", known_gpus=kinds)).instances[0]["fit"]["suggestions"]
    assert [one["change"] for one in ways if "gpu" in one["change"]] == []
    assert any("tensor_parallel" in one["change"] for one in ways)


@pytest.mark.parametrize(
    ("free", "said"), [(2, "tensor_parallel: 2 ("), (1, "tensor_parallel: 2 (the host has 1 for it) (")]
)
def test_more_gpus_than_are_free_are_named_as_such(free: int, said: str) -> None:
    where = host({"kind": "h100-sxm-80gb", "count": 2})
    models = [{"name": "llama", "model": LLAMA}]
    models += [{"name": "other", "model": "Qwen/Qwen3-8B"}] if free == 1 else []
    assert said in make_plan(models, where).misfits[0]


def test_the_report_has_every_figure_of_what_was_checked() -> None:
    fit = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb")))["fit"]
    assert set(fit) == {*FIGURES, "gpu", "gpu_kind", "gpu_source", "verdict", "numbers", "reasons", "suggestions"}
    assert (fit["gpu"], fit["gpu_kind"], fit["gpu_gib"]) == ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb", 79.1)
    assert fit["budget_gib"] == pytest.approx(0.9 * fit["gpu_gib"], abs=0.01)
    parts = ("weights_gib", "activation_gib", "non_torch_gib", "cuda_graphs_gib", "kv_gib")
    assert sum(fit[part] for part in parts) == pytest.approx(fit["budget_gib"], abs=0.05)
    assert [value for value in fit.values() if isinstance(value, float) and value != round(value, 2)] == []
    assert fit["max_concurrency"] == pytest.approx(fit["kv_tokens"] / fit["max_model_len"], abs=0.01)


def test_a_profile_for_the_cpu_is_not_checked() -> None:
    fit = only(plan("Qwen/Qwen3-8B", host(gpu_profile="cpu")))["fit"]
    assert (fit["verdict"], fit["reasons"]) == ("not checked", ["the profile cpu uses no GPU"])
    assert only(plan("nobody/knows", host(gpu_profile="cpu")))["fit"]["reasons"] == []


@pytest.mark.parametrize(
    ("name", "memory_gib", "tokens", "requests"),
    [
        ("NVIDIA B200", 160, 16384, 1024),
        ("NVIDIA H100", 159.9, 8192, 1024),
        ("NVIDIA H100", 70, 8192, 1024),
        ("NVIDIA A100-SXM4-80GB", 79, 2048, 256),
        ("NVIDIA L4", 69.9, 2048, 256),
    ],
)
def test_what_vllm_batches_where_nobody_says(name: str, memory_gib: float, tokens: int, requests: int) -> None:
    expected = {"max-num-batched-tokens": tokens, "max-num-seqs": requests}
    assert _fit.default_batch({"name": name, "memory_gib": memory_gib}) == expected


def test_an_option_that_is_null_is_left_to_vllm() -> None:
    null = dict.fromkeys(
        ("max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization", "quantization", "dtype", "kv-cache-dtype")
    )
    found = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=null))
    said = {"max-num-seqs": 1024, "max-num-batched-tokens": 8192, "gpu-memory-utilization": 0.92, "dtype": "auto"}
    bare = {"own": {"engine_args": {"max-model-len": 16384, **said}}}
    assert found["fit"] == only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", profiles=bare, gpu_profile="own")))["fit"]


@pytest.mark.parametrize(
    ("written", "read"), [("16k", 16000), ("16K", 16384), ("1.5k", 1500), ("4096", 4096), ("auto", "auto"), (-1, -1)]
)
def test_a_number_with_a_unit_is_written_out(written: Any, read: Any) -> None:
    found = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"max-model-len": written}))
    assert found["engine_args"]["max-model-len"] == read
    assert found["engine_args_from"]["max-model-len"] == "vllm_models: llama"


@pytest.mark.parametrize(
    ("written", "read"),
    [("3k", 3e3), ("3K", 3 * 2**10), ("3m", 3e6), ("3M", 3 * 2**20), ("3g", 3e9), ("3G", 3 * 2**30), (10**15 - 1, 10**15 - 1)],
)  # fmt: skip
def test_the_units_are_those_of_vllm(written: Any, read: float) -> None:
    args = plan("nobody/knows", host("h100-sxm-80gb"), engine_args={"kv-cache-memory-bytes": written}).instances[0]
    assert args["engine_args"]["kv-cache-memory-bytes"] == read


def test_a_context_with_a_unit_is_held_to_what_the_model_takes() -> None:
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"max-model-len": "200k"})
    assert found.problems == [
        "engine_args.max-model-len of 'llama' is 200000: the model takes 40960 tokens at most. Lower it."
    ]


def test_the_whole_context_of_a_model_may_be_asked_for() -> None:
    assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"max-model-len": 40960}).problems == []


@pytest.mark.parametrize(("utilization", "warned"), [(0.96, False), (0.97, True), (1, True)])
def test_a_utilization_that_leaves_no_room_for_the_context_is_told(utilization: float, warned: bool) -> None:
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"gpu-memory-utilization": utilization})
    message = (
        f"engine_args.gpu-memory-utilization of 'llama' is {utilization}: the CUDA context (0.5 to 1 GiB) comes on top of it. "
        "Keep it at 0.96 or below."
    )
    assert (found.warnings, found.problems) == ([message] if warned else [], [])


def test_the_layers_of_arguments_lie_over_one_another() -> None:
    own = {"engine_args": {"b": 1, "c": 1, "d": 1, "e": 1}, "unquantized_engine_args": {"c": 2, "d": 2, "e": 2}}
    where = host(
        "h100-sxm-80gb",
        profiles={"own": own},
        gpu_profile="own",
        base_engine_args=dict.fromkeys("abcde", 0),
        engine_args={"d": 3, "e": 3},
        options={},
    )
    whole = only(plan("nobody/knows", where, engine_args={"e": 4}))
    assert whole["engine_args"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert only(plan("Qwen/Qwen3-32B-FP8", where))["engine_args"] == {"a": 0, "b": 1, "c": 1, "d": 3, "e": 3}


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
    assert found.instances[0]["fit"]["misfit_allowed"] is True
    held = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=GUIDE)
    assert (held.warnings, held.instances[0]["fit"]["misfit_allowed"]) == ([], False)


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


def test_why_a_config_that_was_read_cannot_be_counted_is_told() -> None:
    read = {"someone/something": {"config": {"model_type": "x"}, "weights_bytes": None, "source": "the hub"}}
    fit = only(plan("someone/something", host("h100-sxm-80gb", numbers=read)))["fit"]
    assert fit["reasons"] == ["unknown: not checked, since its config.json has no hidden_size"]


def test_a_size_on_disk_that_the_user_gives_counts() -> None:
    models = small()["known_models"]
    weights = [
        only(plan("a/small", host("l4-24gb", known_models={"a/small": {**models["a/small"], "weights_gb": size}})))
        for size in (1, 4)
    ]
    one, four = (found["fit"]["weights_gib"] for found in weights)
    assert four == pytest.approx(4 * one, abs=0.05)
    assert 0.4 < one < 1


@pytest.mark.parametrize(
    ("sources", "word"),
    [(("ours", "ours"), "catalogue"), (("recalled", "ours"), "catalogue, unverified"), (("ours", "recalled"), "catalogue, unverified"), ((None, None), "catalogue")],
)  # fmt: skip
def test_a_number_from_memory_in_the_base_counts_too(sources: tuple[str | None, str | None], word: str) -> None:
    models = {"a/base": {"config": SMALL, "source": sources[0]}, "a/b": {"base": "a/base", "source": sources[1]}}
    assert only(plan("a/b", host("l4-24gb", known_models=models)))["fit"]["numbers"] == word


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

NAN, HUGE = float("nan"), 10**60
COUNTS = ("max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes")
NO_COUNT: tuple[Any, ...] = (
    0,
    -5,
    1.5,
    16384.0,
    NAN,
    True,
    "",
    "x",
    "0",
    "1.5",
    "\u00b2",
    "9" * 20,
    10**20,
    "0.0000001k",
    [1],
    {},
)
BAD_VALUES: tuple[tuple[tuple[str, ...], tuple[Any, ...], str], ...] = (
    (("max-model-len",), NO_COUNT, "needs a whole number from 1, or auto. Correct it."),
    (COUNTS, (*NO_COUNT, "auto", -1), "needs a whole number from 1. Correct it."),
    (("gpu-memory-utilization",), (0, -1, 1.01, NAN, float("inf"), True, "much", "nan", [], HUGE),
     "needs a number above 0, up to 1. Correct it, for example 0.9."),
    (("cpu-offload-gb",), (-1, NAN, 10**6, HUGE, True, "many", "inf", []), "needs a number from 0. Correct it."),
    (("dtype", "quantization", "kv-cache-dtype"), (True, 8, ["fp8"], {}), "needs text. Correct or remove it."),
    (("dtype",), ("fp16",), "vLLM has no such dtype; half precision is dtype: float16. Correct it."),
    (("dtype",), ("bf16",), "vLLM has no such dtype; it is called bfloat16. Correct it."),
    (("dtype",), ("fp32",), "vLLM has no such dtype; it is called float32. Correct it."),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "model", "changes", "message"),
    [
        ("h100-sxm-80gb", LLAMA_FP8, {"engine_args": {"quantization": "fp8"}},
         "engine_args.quantization of 'llama' is 'fp8': its checkpoint is quantised already (compressed-tensors), and vLLM takes compressed-tensors or humming for that, or nothing. Remove the option."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"dtype": "fp8"}},
         "engine_args.dtype of 'llama' is 'fp8': vLLM has no such dtype; FP8 is quantization: fp8_per_tensor, or a checkpoint that is FP8 already. Correct it."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"gpu-memory-utilization": 1.2}},
         "engine_args.gpu-memory-utilization of 'llama' is 1.2: needs a number above 0, up to 1. Correct it, for example 0.9."),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"max-model-len": "long"}},
         "engine_args.max-model-len of 'llama' is 'long': needs a whole number from 1, or auto. Correct it."),
        *(("h100-sxm-80gb", model, {"engine_args": {key: value}}, f"engine_args.{key} of 'llama' is {shown(value)}: {need}")
          for model in ("Qwen/Qwen3-8B", "nobody/knows")
          for keys, values, need in BAD_VALUES for key in keys for value in values),
        ("h100-sxm-80gb", "Qwen/Qwen3-8B", {"engine_args": {"pipeline-parallel-size": 2}},
         "vllm_models[0].engine_args.pipeline-parallel-size is set: the plan decides it. Remove it and use vllm_models[].tensor_parallel; pipelines are not supported."),
        ("a100-sxm-80gb", "Qwen/Qwen3-8B", {"profile": "a100_awq"},
         "the profile 'a100_awq' of 'llama' needs a checkpoint quantised by awq, gptq, compressed-tensors: this one is not quantised. Take such a checkpoint (Qwen/Qwen3-8B-AWQ), or vllm_gpu_profile: auto."),
        ("a100-sxm-80gb", "Qwen/Qwen3-32B-FP8", {"profile": "a100_awq"},
         "the profile 'a100_awq' of 'llama' needs a checkpoint quantised by awq, gptq, compressed-tensors: this one is fp8. Take such a checkpoint (Qwen/Qwen3-32B-AWQ), or vllm_gpu_profile: auto."),
        ("t4-16gb", "openai/gpt-oss-20b", {},
         "'llama' is quantised by mxfp4, which needs compute capability 8.0: GPU 0 (Tesla T4, compute capability 7.5) is older. Take another checkpoint or another GPU."),
        ("a100-sxm-80gb", "deepseek-ai/DeepSeek-V3.2", {},
         "'llama' is a deepseek_v32 model, whose sparse attention needs compute capability 9.0: GPU 0 (NVIDIA A100-SXM4-80GB, compute capability 8.0) is older. Take another model or another GPU."),
    ],
)  # fmt: skip
def test_what_vllm_would_refuse_after_minutes_is_refused_at_once(
    kind: str, model: str, changes: dict[str, Any], message: str
) -> None:
    found = plan(model, host(kind), **changes)
    assert found.problems == [message]
    if found.instances and model != "nobody/knows":
        assert (found.instances[0]["fit"]["verdict"], found.instances[0]["fit"]["reasons"]) == ("refused", [message])


SMALL = {
    "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1000, "intermediate_size": 1024,
    "max_position_embeddings": 32768,
}  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    """Return catalogues with a model ``a/small``."""
    return {"known_models": {"a/small": {"config": {**SMALL, **changes}}}}


@pytest.mark.parametrize(
    ("config", "width", "reason"),
    [
        ({}, 16, ""),
        ({}, 8, ""),
        ({}, 2, ""),
        ({"num_attention_heads": 15, "head_dim": 32}, 2, "the model's 15 attention heads. Take one of 1"),
        ({"num_attention_heads": 28, "head_dim": 32}, 8, "the model's 28 attention heads. Take one of 1, 2, 4"),
        ({"num_key_value_heads": 6, "num_attention_heads": 24, "head_dim": 32}, 4, "the model's 6 key-value heads, or be a multiple of them. Take one of 1, 2"),
        # MLA has no such heads.
        ({"num_key_value_heads": 6, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}, 4, ""),
        ({"intermediate_size": 1026}, 4, "the width of the model's MLP, 1026. Take one of 1, 2"),
        ({"num_experts": 2, "moe_intermediate_size": 514}, 4, "the width of the model's experts, 514. Take one of 1, 2"),
    ],
)  # fmt: skip
def test_tensor_parallel_must_divide_the_model(config: dict[str, Any], width: int, reason: str) -> None:
    where = host({"kind": "l40s-48gb", "count": width}, **small(**config))
    found = plan("a/small", where, tensor_parallel=width)
    refused = f"vllm_models: 'llama' has tensor_parallel {width}: it must divide {reason}."
    assert found.problems == ([refused] if reason else [])


def test_fp8_weights_on_an_a100_are_told_to_save_memory_and_no_time() -> None:
    found = plan("Qwen/Qwen3-32B-FP8", host("a100-sxm-80gb"))
    assert only(found)["fit"]["verdict"] == "fits"
    assert found.warnings == [
        "'llama' has FP8 weights and GPU 0 (NVIDIA A100-SXM4-80GB, compute capability 8.0) has no FP8 tensor cores: vLLM unpacks them (Marlin), which saves memory, not time."
    ]


@pytest.mark.parametrize(
    ("kind", "model", "args", "problems", "warnings"),
    [
        ("a100-sxm-80gb", "Qwen/Qwen3-8B", {"quantization": "fp8"}, [],
         ["'llama' has FP8 weights and GPU 0 (NVIDIA A100-SXM4-80GB, compute capability 8.0) has no FP8 tensor cores: vLLM unpacks them (Marlin), which saves memory, not time."]),
        ("a100-sxm-80gb", "Qwen/Qwen3-8B", {"quantization": "gptq"}, [], []),
        ("a100-sxm-80gb", "a/int8", {}, [], []),
        ("l4-24gb", "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", {}, [], []),
        ("a100-sxm-80gb", "Qwen/Qwen3-32B-AWQ", {}, [], []),
        ("a100-sxm-80gb", "Qwen/Qwen3-8B", {"kv-cache-dtype": "fp8"}, [],
         ["engine_args.kv-cache-dtype of 'llama' is fp8: on GPU 0 (NVIDIA A100-SXM4-80GB, compute capability 8.0) that works only where FlashInfer does. Set it to auto if it fails."]),
        ("l4-24gb", "Qwen/Qwen3-8B", {"kv-cache-dtype": "fp8"}, [], []),
        # The least capability is enough, one below is not.
        ("t4-16gb", "a/awq", {}, [], []),
        ("t4-16gb", "a/small", {"quantization": "modelopt"},
         ["'llama' is quantised by modelopt, which needs compute capability 8.0: GPU 0 (Tesla T4, compute capability 7.5) is older. Take another checkpoint or another GPU."], []),
        ("t4-16gb", "a/gemma", {},
         ["'llama' is a gemma2 model, which vLLM refuses in float16, and profile generic_fp16 says dtype float16. Take another model."], []),
        ("t4-16gb", "a/gemma", {"dtype": "half"},
         ["'llama' is a gemma2 model, which vLLM refuses in float16, and engine_args says dtype float16. Take another model."], []),
        ("a100-sxm-80gb", "a/gemma", {"dtype": "float32"}, [], []),
    ],
)  # fmt: skip
def test_what_a_gpu_can_do_with_a_checkpoint(
    kind: str, model: str, args: dict[str, Any], problems: list[str], warnings: list[str]
) -> None:
    own = {
        "a/small": {"config": SMALL},
        "a/gemma": {"config": {**SMALL, "model_type": "gemma2"}},
        "a/int8": {
            "config": {
                **SMALL,
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}},
                },
            }
        },
        "a/awq": {"config": {**SMALL, "quantization_config": {"quant_method": "awq"}}},
    }
    where = host(kind, known_models={**DATA["__vllm_plan_known_models"], **own})
    args = {"max-model-len": 2048, **args}
    found = plan(model, where, engine_args=args)
    assert (found.problems, found.warnings) == (problems, warnings)


def test_on_a_cpu_bfloat16_is_there() -> None:
    gemma = small(model_type="gemma2")
    profiles = {"own": {"device": "cpu", "engine_args": {"dtype": "float16"}}}
    assert plan("a/small", host(gpu_profile="own", profiles=profiles, **gemma)).problems == [
        "'llama' is a gemma2 model, which vLLM refuses in float16, and profile own says dtype float16. Set engine_args {dtype: bfloat16}, or vllm_gpu_profile: auto."
    ]


@pytest.mark.parametrize(
    ("model", "takes"), [(LLAMA_FP8, "compressed-tensors"), ("Qwen/Qwen3-32B-AWQ", "awq_marlin"), ("Qwen/Qwen3-32B-FP8", "fp8"), ("openai/gpt-oss-20b", "mxfp4")]
)  # fmt: skip
def test_the_name_of_a_checkpoints_own_quantisation_may_be_said(model: str, takes: str) -> None:
    assert plan(model, host("h200-sxm-141gb"), engine_args={"quantization": takes}).problems == []


def test_an_option_stays_where_only_another_value_of_it_is_new() -> None:
    since = [
        {"option": "quantization", "value": "other", "since": "9.0.0", "older": "fp8"},
        {"option": "dtype", "since": "0.32.0"},
        {"option": "not-there", "since": "9.0.0"},
    ]
    args = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", since=since)))["engine_args"]
    assert (args["quantization"], args["dtype"]) == ("fp8_per_tensor", "auto")


def test_a_version_with_known_holes_is_refused() -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", vllm_version="0.23.1")).problems
    assert problem.startswith(
        "vllm_version is 0.23.1: needs 0.24.0 or newer, since older ones have known holes (CVE-2026-22778,"
    )


@pytest.mark.parametrize("version", ["latest", "", "1", "0.29", 0.3, None])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", vllm_version=version)).problems
    assert "needs a version of three numbers such as 0.32.0" in problem


def test_two_models_share_a_gpu_that_both_name_if_there_is_room() -> None:
    def pair(first: float | None, second: float | None) -> Plan:
        return sharing(("Qwen/Qwen3-8B", first), ("Qwen/Qwen3-8B", second))

    assert [one["gpus"] for one in pair(0.45, 0.5).instances] == [[0], [0]]
    assert pair(0.45, 0.5).problems == []
    # What vLLM takes where nobody says.
    assert "sums up to 1.84 (a-0: 0.92, b-0: 0.92)" in pair(None, None).problems[0]
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
        ({"source": "nvidia-smi", "driver_version": ""}, False, "gpu01 does not tell the version of its NVIDIA driver: vLLM 0.32.0 is built for CUDA 13 and needs 580 or newer. See what nvidia-smi says", ""),
        ({"mig": True, "pci_bus_id": "0000:8d:00.0"}, False, "GPU 0 of gpu01 (NVIDIA H100 80GB HBM3) is cut up by MIG: needs whole GPUs. Switch MIG off (nvidia-smi -i 0000:8d:00.0 -mig 0), or name other gpus.", ""),
    ],
)  # fmt: skip
def test_a_gpu_that_cannot_serve_yet(changes: dict[str, Any], preview: bool, problem: str, warning: str) -> None:
    where = host("h100-sxm-80gb", preview=preview)
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", preview=preview, gpus=[{**where.gpus[0], **changes}]))
    for expected, told in ((problem, found.problems), (warning, found.warnings)):
        assert [one.startswith(expected) for one in told] == [True] * bool(expected)


def test_a_driver_that_comes_later_may_be_missing_or_old_now() -> None:
    (gpu,) = host("h100-sxm-80gb").gpus
    for changes in ({"source": "sysfs"}, {"source": "nvidia-smi", "driver_version": "550.163.01"}):
        now = [{**gpu, **changes}]
        assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", gpus=now)).problems != []
        found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", gpus=now, driver_comes=True))
        assert (found.problems, found.warnings) == ([], [])


def test_without_a_least_driver_any_will_do_that_answers() -> None:
    (gpu,) = host("h100-sxm-80gb").gpus
    old = {**gpu, "source": "nvidia-smi", "driver_version": "1.0"}
    assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", gpus=[old], min_driver="")).problems == []
    mute = host("h100-sxm-80gb", gpus=[{**gpu, "source": "sysfs"}], min_driver="")
    assert plan("Qwen/Qwen3-8B", mute).problems == [
        "gpu01 has GPUs (NVIDIA H100 80GB HBM3), but its NVIDIA driver does not answer. Install a driver, until nvidia-smi shows them."
    ]
    unused = host("h100-sxm-80gb", gpus=[gpu, {**old, "index": 1}])
    assert plan("Qwen/Qwen3-8B", unused).problems == []


def test_a_display_card_beside_the_gpu_is_left_alone() -> None:
    gpus = host("h100-sxm-80gb").gpus
    card = {"index": 0, "name": "NVIDIA T400", "memory_gib": 3.6, "compute_capability": "7.5"}
    found = only(plan("Qwen/Qwen3-8B", host(gpus=[card, {**gpus[0], "index": 1}])))
    assert (found["gpus"], found["profile"]) == ([1], "h100_fp8")


# --- what a plan must not get wrong ---------------------------------------------------------------------------


def test_mxfp4_weights_run_in_bfloat16_on_an_a100() -> None:
    assert only(plan("openai/gpt-oss-20b", host("a100-sxm-80gb")))["engine_args"]["dtype"] == "bfloat16"


def test_a_context_that_the_user_stretches_himself_is_left_to_vllm() -> None:
    args = {"max-model-len": 65536, "hf-overrides": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}}
    assert plan("Qwen/Qwen3-32B", host("h200-sxm-141gb"), engine_args=args).problems == []


def test_a_quantisation_that_the_plan_cannot_count_is_not_checked() -> None:
    fit = only(plan(LLAMA, host("h100-sxm-80gb"), engine_args={"quantization": "mxfp8"}))["fit"]
    assert (fit["verdict"], fit["reasons"]) == (
        "not checked",
        ["unknown: not checked, since the plan does not know what quantization mxfp8 takes"],
    )


@pytest.mark.parametrize(
    ("gpus", "replicas", "caveat"),
    [
        ([{"kind": "h100-sxm-80gb", "count": 2}], 1, ""),
        ([{"kind": "h100-sxm-80gb", "count": 3}], 2, " (the host has 1 for it)"),
        ([{"kind": "h100-sxm-80gb", "count": 4}], 2, ""),
        (["h100-sxm-80gb", "l40s-48gb"], 1, " (the host has 1 for it)"),
    ],
)
def test_more_gpus_are_offered_with_what_the_host_has_of_them(gpus: list[Any], replicas: int, caveat: str) -> None:
    found = plan(LLAMA, host(*gpus), replicas=replicas)
    (way,) = [one for one in found.instances[0]["fit"]["suggestions"] if list(one["change"]) == ["tensor_parallel"]]
    assert way["text"].startswith(f"tensor_parallel: 2{caveat} (")


def test_a_pinned_profile_that_is_refused_is_refused_in_the_report_as_well() -> None:
    found = plan("Qwen/Qwen3-8B", host("a100-sxm-80gb", gpu_profile="h100_fp8"))
    assert found.instances[0]["fit"]["verdict"] == "refused"
    assert found.instances[0]["fit"]["reasons"] == found.problems


def test_a_misfit_names_the_way_around_it() -> None:
    (misfit,) = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=GUIDE).misfits
    assert misfit.endswith("\n  Or try all the same: vllm_plan_allow_misfit: true on this host.")


# --- options of vLLM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_model_length": 8192}, "engine_args.max-model-length of 'llama' is no option of vLLM 0.32.0. The nearest is max-model-len. Correct or remove it."),
        ({"zzz": 1}, "engine_args.zzz of 'llama' is no option of vLLM 0.32.0. Correct or remove it."),
        # vLLM takes a beginning of a name; the plan would not know what it means.
        ({"max-num-s": 4}, "engine_args.max-num-s of 'llama' is no option of vLLM 0.32.0. The nearest is max-num-seqs. Correct or remove it."),
        ({"tensor-parallel": 2}, "engine_args.tensor-parallel of 'llama' is no option of vLLM 0.32.0. The nearest is tensor-parallel-size. Correct or remove it."),
        ({"no-max-model-len": True}, "engine_args.no-max-model-len of 'llama' is no option of vLLM 0.32.0. The nearest is max-model-len. Correct or remove it."),
        ({"kv-cache-dtype": "FP8"}, "engine_args.kv-cache-dtype of 'llama' is 'FP8': needs one that vLLM 0.32.0 has. The nearest is fp8. Correct it."),
        ({"quantization": "bitsandbytes"}, "engine_args.quantization of 'llama' is 'bitsandbytes': needs one that vLLM 0.32.0 has. Correct it."),
        ({"dtype": "int8"}, "engine_args.dtype of 'llama' is 'int8': needs auto, bfloat16, float, float16, float32, half. Correct it."),
        ({"dtype": "FP8"}, "engine_args.dtype of 'llama' is 'FP8': vLLM has no such dtype; FP8 is quantization: fp8_per_tensor, or a checkpoint that is FP8 already. Correct it."),
        ({"max-num-batched-tokens": 100}, "engine_args.max-num-batched-tokens of 'llama' is 100: needs at least max-num-seqs, 256. Raise it, or lower that."),
        ({"max_model_len": 8192, "max-model-len": 16384}, "vllm_models[0].engine_args has max-model-len twice, with '-' and with '_'. Remove one."),
        ({"device-ids": "1"}, "vllm_models[0].engine_args.device-ids is set: the plan decides it. Remove it and use vllm_models[].gpus."),
        ({"uds.x": 1}, "vllm_models[0].engine_args.uds.x is set: the plan decides it. Remove it and use nothing: the proxy reaches the engine over loopback."),
    ],
)  # fmt: skip
def test_an_option_that_vllm_would_not_take_or_would_take_for_another_is_refused(
    args: dict[str, Any], message: str
) -> None:
    assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=args).problems == [message]


@pytest.mark.parametrize("args", [{"no-enable-prefix-caching": True}, {"compilation-config.mode": 0}, {"dtype": None}, {"enforce_eager": True}])  # fmt: skip
def test_an_option_that_vllm_takes_is_taken(args: dict[str, Any]) -> None:
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=args)
    assert found.problems + found.warnings == []


def test_an_option_of_a_version_that_the_plan_has_no_list_of_is_a_warning() -> None:
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", vllm_version="0.33.0"), engine_args={"brand-new": 1})
    assert found.problems == []
    assert found.warnings == [
        "engine_args.brand-new of 'llama' is no option of vLLM 0.32.0. Correct or remove it. "
        "(The plan knows the options of vLLM 0.32.0, and 0.33.0 may have others.)"
    ]


def test_an_option_that_stands_there_or_not_is_left_out_where_it_is_false() -> None:
    asked = {"disable-log-stats": False, "enable-prefix-caching": False}
    args = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=asked))["engine_args"]
    assert "disable-log-stats" not in args
    assert args["enable-prefix-caching"] is False
    args = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"disable_log_stats": True}))["engine_args"]
    assert args["disable-log-stats"] is True


@pytest.mark.parametrize("value", [True, False])
def test_an_option_with_a_value_is_no_switch(value: bool) -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args={"tool-call-parser": value}).problems
    assert (
        problem
        == f"engine_args.tool-call-parser of 'llama' is {value}: the option takes a value. Correct or remove it."
    )


def test_a_number_may_be_written_as_text() -> None:
    """As every value is that comes by ``-e name=value``."""
    found = sharing(("Qwen/Qwen3-8B", "0.5"), ("Qwen/Qwen3-8B", 0.49))
    assert [one["engine_args"]["gpu-memory-utilization"] for one in found.instances] == [0.5, 0.49]
    assert "sums up to 0.99" in found.warnings[0]


def test_where_an_argument_stands_is_named() -> None:
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", engine_args={"zzz": 1})).problems
    assert problem.startswith("engine_args.zzz of 'llama' (from vllm_default_engine_args) is no option of vLLM 0.32.0.")
    own = {**DATA["__vllm_plan_profiles"], "own": {"engine_args": {"max-num-seqs": "lots"}}}
    (problem,) = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb", profiles=own, gpu_profile="own")).problems
    assert problem.startswith("engine_args.max-num-seqs of 'llama' (from profile own) is 'lots': needs")


def test_a_long_context_that_vllm_is_told_to_allow_is_allowed() -> None:
    args = {"max-model-len": 65536}
    assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=args).problems
    env = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=args, env=env).problems == []


def test_a_quantisation_that_is_going_away_wants_consent() -> None:
    where = host("h100-sxm-80gb", **small(quantization_config={"quant_method": "fbgemm_fp8"}))
    (problem,) = plan("a/small", where).problems
    assert problem.startswith(
        "'llama' is quantised by fbgemm_fp8, which vLLM runs only with engine_args {allow-deprecated-quantization: true}."
    )
    assert plan("a/small", where, engine_args={"allow-deprecated-quantization": True}).problems == []


# --- what is counted, and what is not --------------------------------------------------------------------------


def test_a_cache_of_a_given_size_must_be_there() -> None:
    found = plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args={"kv-cache-memory-bytes": "40G"})
    assert found.instances[0]["fit"]["verdict"] == "does not fit"
    assert "each GPU has 79.10 GiB; weights 67.67" in found.misfits[0]
    assert (
        only(plan(LLAMA_FP8, host("h200-sxm-141gb"), engine_args={"kv-cache-memory-bytes": "40G"}))["fit"]["verdict"]
        == "fits"
    )


def test_a_cache_in_32_bit_takes_twice_as_much() -> None:
    narrow, wide = (
        only(plan("Qwen/Qwen3-8B", host("h200-sxm-141gb"), engine_args={"dtype": dtype, "quantization": None}))["fit"]
        for dtype in ("bfloat16", "float32")
    )
    tokens = [fit["kv_tokens"] / fit["kv_gib"] for fit in (narrow, wide)]
    assert tokens[0] == pytest.approx(2 * tokens[1], rel=0.01)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"speculative-config": {"model": "Qwen/Qwen3-0.6B"}}, "it fits without speculative-config, whose memory the plan does not count"),
        ({"speculative-config.model": "Qwen/Qwen3-0.6B"}, "it fits without speculative-config, whose memory the plan does not count"),
        ({"enable-lora": True}, "it fits without enable-lora, whose memory the plan does not count"),
        ({"kv-cache-dtype": "nvfp4"}, "unknown: not checked, since the plan does not know what kv-cache-dtype nvfp4 takes"),
    ],
)  # fmt: skip
def test_what_is_not_counted_is_not_said_to_fit(args: dict[str, Any], reason: str) -> None:
    fit = only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), engine_args=args))["fit"]
    assert (fit["verdict"], fit["reasons"]) == ("not checked", [reason])


def test_what_does_not_fit_does_not_fit_with_a_draft_model_either() -> None:
    args = {**GUIDE, "speculative-config": {"model": "x/y"}}
    assert plan(LLAMA_FP8, host("h100-sxm-80gb"), engine_args=args).instances[0]["fit"]["verdict"] == "does not fit"


def test_graphs_are_not_taken_off_where_vllm_is_told_not_to() -> None:
    env = {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"}
    assert only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), env=env))["fit"]["cuda_graphs_gib"] == 0
    assert only(plan("Qwen/Qwen3-8B", host("h100-sxm-80gb")))["fit"]["cuda_graphs_gib"] > 0


def test_what_fits_with_nothing_to_spare_is_warned_of() -> None:
    tight = plan(
        LLAMA_FP8, host("h100-sxm-80gb"), engine_args={"gpu-memory-utilization": 0.94, "kv-cache-dtype": "fp8"}
    )
    assert only(tight)["fit"]["verdict"] == "fits"
    assert "fits with nothing to spare (1.02 requests of 16,384 tokens)" in tight.warnings[0]
    assert (
        plan(
            LLAMA_FP8, host("h100-sxm-80gb"), engine_args={"max-model-len": "auto", "gpu-memory-utilization": 0.95}
        ).warnings
        == []
    )


# --- ways out that can be taken as they are written --------------------------------------------------------------


def ways(found: Plan, name: str = "llama-0") -> list[dict[str, Any]]:
    (instance,) = [one for one in found.instances if one["name"] == name]
    suggestions: list[dict[str, Any]] = instance["fit"]["suggestions"]
    return suggestions


def test_only_checkpoints_of_the_same_model_are_offered() -> None:
    """A fine-tune has the shape of another model, and a padded checkpoint not quite the shape of its own."""
    tuned = {"our/tune": {"config": DATA["__vllm_plan_known_models"][LLAMA]["config"], "source": "the hub"}}
    assert [
        way for way in ways(plan("our/tune", host("h100-sxm-80gb", numbers=tuned))) if "model" in way["change"]
    ] == []
    found = ways(plan("Qwen/Qwen2.5-72B-Instruct", host("h100-sxm-80gb")))
    assert [way["change"]["model"] for way in found if "model" in way["change"]] == ["Qwen/Qwen2.5-72B-Instruct-AWQ"]
    assert plan("Qwen/Qwen2.5-72B-Instruct-AWQ", host("h100-sxm-80gb")).misfits == []


def test_a_checkpoint_with_an_fp8_cache_is_offered_only_where_it_surely_runs() -> None:
    found = plan(LLAMA, host("a100-sxm-80gb"))
    assert "nvidia/Llama-3.3-70B-Instruct-FP8" not in str(ways(found))
    itself = plan("nvidia/Llama-3.3-70B-Instruct-FP8", host({"kind": "a100-sxm-80gb", "count": 2}), tensor_parallel=2)
    assert any(
        "kv-cache-dtype of 'llama' is auto, and its checkpoint has an FP8 cache" in one for one in itself.warnings
    )


def test_a_pinned_profile_stays_or_is_said_to_go() -> None:
    pinned = ways(plan(LLAMA, host("t4-16gb"), profile="generic_fp16"))
    (elsewhere,) = [way for way in pinned if "gpu" in way["change"]]
    change = elsewhere["change"]
    assert "profile" not in change
    again = host({"kind": change["gpu"], "count": change.get("tensor_parallel", 1)})
    assert (
        only(plan(LLAMA, again, profile="generic_fp16", tensor_parallel=change.get("tensor_parallel", 1)))["fit"][
            "kv_tokens"
        ]
        == elsewhere["kv_tokens"]
    )
    # None of the others has what this one demands.
    only_here = {
        "requires": {"compute_capability": "8.0", "memory_gib": 39},
        "engine_args": {"max-num-batched-tokens": 2048},
    }
    kinds = {kind: DATA["__vllm_plan_known_gpus"][kind] for kind in ("a100-sxm-40gb", "l4-24gb")}
    where = host("a100-sxm-40gb", known_gpus=kinds, profiles={**DATA["__vllm_plan_profiles"], "own": only_here})
    (gone,) = [way for way in ways(plan("Qwen/Qwen3-32B", where, profile="own")) if "gpu" in way["change"]]
    assert (gone["change"]["profile"], "with profile: auto" in gone["text"]) == ("auto", True)


def test_what_a_way_out_leaves_behind_is_named() -> None:
    found = ways(plan(LLAMA, host({"kind": "h100-sxm-80gb", "count": 2}), gpus=[0], revision="abc"))
    wider = next(way for way in found if "tensor_parallel" in way["change"])
    assert (wider["change"]["gpus"], "without gpus (" in wider["text"]) == (None, True)
    other = next(way for way in found if "model" in way["change"])
    assert (other["change"]["revision"], "without revision (" in other["text"]) == (None, True)


def test_another_free_gpu_of_the_host_is_the_first_way_out() -> None:
    found = plan("Qwen/Qwen3-32B", host("l4-24gb", "h100-sxm-80gb"))
    first = ways(found)[0]
    assert first["change"] == {"gpus": [1]}
    assert first["text"].startswith("gpus: [1] (NVIDIA H100 80GB HBM3) (")
    again = only(plan("Qwen/Qwen3-32B", host("l4-24gb", "h100-sxm-80gb"), gpus=[1]))
    assert again["fit"]["kv_tokens"] == first["kv_tokens"]


def test_several_gpus_are_of_one_kind_where_there_are_enough() -> None:
    mixed = ["l4-24gb", "h100-sxm-80gb", "h100-sxm-80gb"]
    assert only(plan("Qwen/Qwen3-8B", host(*mixed), tensor_parallel=2))["gpus"] == [1, 2]
    unlike = plan("Qwen/Qwen3-8B", host(*mixed[:2]), tensor_parallel=2)
    assert only(unlike)["fit"]["gpu_kind"] == "l4-24gb and h100-sxm-80gb"
    assert "'llama-0' spreads over unlike GPUs of gpu01 (NVIDIA L4, NVIDIA H100 80GB HBM3)" in unlike.warnings[0]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"profile": "generic_fp16"},
    {"gpus": [0], "revision": "v1"},
    {"replicas": 2},
    {"tensor_parallel": 2, "profile": "generic_fp16", "engine_args": {"max-model-len": 8192}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", ["t4-16gb", "l40s-48gb", "a100-sxm-80gb", "h100-sxm-80gb"])
@pytest.mark.parametrize(
    "name",
    [LLAMA, LLAMA_FP8, "Qwen/Qwen2.5-72B-Instruct", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1-0528", "Qwen/Qwen3-32B"],
)  # fmt: skip
def test_every_way_out_does_what_it_says_when_it_is_taken(name: str, kind: str, variant: dict[str, Any]) -> None:
    replicas = variant.get("replicas", 1)
    found = plan(name, host({"kind": kind, "count": replicas * variant.get("tensor_parallel", 1)}), **variant)
    for way in ways(found) if found.instances and not found.problems else []:
        change = dict(way["change"])
        taken = {
            **variant,
            **change,
            "engine_args": {**variant.get("engine_args", {}), **change.get("engine_args", {})},
        }
        gpus = {"kind": taken.pop("gpu", kind), "count": replicas * taken.get("tensor_parallel", 1)}
        wanted = {key: value for key, value in taken.items() if value is not None}
        again = plan(wanted.pop("model", name), host(gpus), **wanted)
        assert again.problems + again.misfits == []
        assert again.instances[0]["fit"]["kv_tokens"] == way["kv_tokens"]


# --- shared GPUs ------------------------------------------------------------------------------------------------


def test_sharing_leaves_room_for_the_contexts() -> None:
    assert sharing(("Qwen/Qwen3-8B", 0.5), ("Qwen/Qwen3-8B", 0.44)).warnings == []
    (warning,) = sharing(("Qwen/Qwen3-8B", 0.5), ("Qwen/Qwen3-8B", 0.49)).warnings
    assert "sums up to 0.99 (a-0: 0.5, b-0: 0.49): the CUDA contexts" in warning
    assert "Keep the sum at 0.95 or below" in warning


def test_ways_out_of_a_misfit_are_none_out_of_a_sum() -> None:
    over = sharing(("Qwen/Qwen3-8B", 0.9), ("Qwen/Qwen3-32B", 0.4))
    assert over.misfits
    for one in over.instances:
        assert (one["fit"]["verdict"], one["fit"]["reasons"], one["fit"]["suggestions"]) == (
            "refused",
            over.problems,
            [],
        )


def test_a_shared_gpu_has_no_higher_utilization_to_offer_than_is_left() -> None:
    full = sharing(("Qwen/Qwen3-8B", 0.5), ("Qwen/Qwen3-32B", 0.45))
    assert [one["fit"]["verdict"] for one in full.instances] == ["fits", "does not fit"]
    here = [way["change"] for way in ways(full, "b-0") if "gpu" not in way["change"]]
    assert not any(one.get("engine_args", {}).get("gpu-memory-utilization", 0) > 0.45 for one in here)
    (first, *_rest) = ways(sharing(("Qwen/Qwen3-8B", 0.3), ("Qwen/Qwen3-32B", 0.4)), "b-0")
    assert list(first["change"]["engine_args"]) == ["gpu-memory-utilization"]
    assert 0.4 < first["change"]["engine_args"]["gpu-memory-utilization"] <= 0.65


def test_a_gpu_that_another_instance_is_on_is_none_to_spread_over() -> None:
    found = ways(sharing(("Qwen/Qwen3-8B", 0.3), ("Qwen/Qwen3-32B", 0.4), gpus=2), "b-0")
    wider = next(way for way in found if "tensor_parallel" in way["change"])
    assert wider["text"].startswith("tensor_parallel: 2 (the host has 1 for it), without gpus")


# --- GPUs that nothing can be served on ---------------------------------------------------------------------------


def test_a_gpu_older_than_the_wheel_is_refused_whatever_a_profile_says() -> None:
    old = {"index": 0, "name": "Tesla V100-SXM2-32GB", "memory_gib": 31.7, "compute_capability": "7.0"}
    own = {"own": {"requires": {"compute_capability": "7.0"}, "engine_args": {"dtype": "float16"}}}
    for changes in ({}, {"gpu_profile": "own"}):
        (problem,) = plan(
            "Qwen/Qwen3-8B", host(gpus=[old], profiles={**DATA["__vllm_plan_profiles"], **own}, **changes)
        ).problems
        assert problem == (
            "'llama' has GPU 0 of gpu01, a Tesla V100-SXM2-32GB with compute capability 7.0: vLLM is built for 7.5 and newer. Use another GPU."
        )


def test_a_gpu_cut_up_by_mig_is_given_to_nobody() -> None:
    gpus = [{**host("a100-sxm-80gb").gpus[0], "mig": True}, {**host("a100-sxm-80gb").gpus[0], "index": 1}]
    assert only(plan("Qwen/Qwen3-8B", host(gpus=gpus)))["gpus"] == [1]


def test_a_profile_that_the_catalogue_of_gpus_gets_wrong_is_refused() -> None:
    gpus = [{**host("h100-sxm-80gb").gpus[0], "kind": "own", "profile": "h100_fp9"}]
    (problem,) = plan("Qwen/Qwen3-8B", host(gpus=gpus)).problems
    assert problem.startswith("vllm_plan_known_gpus.own.profile is 'h100_fp9': needs one of a100_awq,")
    assert plan("Qwen/Qwen3-8B", host(gpus=gpus, gpu_profile="h100_fp8")).problems == []


def test_replicas_say_the_same_once() -> None:
    found = plan("Qwen/Qwen3-8B", host("h100-sxm-80gb"), replicas=8)
    assert len(found.problems) == 1
    unlike = plan("Qwen/Qwen3-8B", host({"kind": "h100-sxm-80gb", "count": 2}), replicas=2, engine_args={"zzz": 1})
    assert len(unlike.problems) == 1


def test_a_folder_that_nobody_is_asked_for_says_how_to_be_counted() -> None:
    fit = only(plan("/srv/models/llama", host("h100-sxm-80gb")))["fit"]
    assert fit["reasons"][0].endswith("add it to vllm_plan_known_models, or remove vllm_plan_gpus")
    assert (fit["gpu_kind"], fit["gpu_source"]) == ("h100-sxm-80gb", "declared")
