"""The memory maths against what vLLM measured on GPUs, and properties that must hold for every model.

Three files of runs: h200_memory.json (vLLM 0.26.0 on an H200, five runs), h200_memory_0.32.json (0.32.0, six) and h100_memory_0.32.json (0.32.0 on
one or two H100, nine). Nothing is fitted per run.
- The form of the activation was read off two runs of 0.32 on the H200: llama_70b in FP8 and qwen3_8b with 8192 batched tokens.
- `GRAPHS_GIB_PER_LAYER` comes from these two as well, `RUNNER_GIB` from them and mistral_7b, `NON_TORCH_GIB` is what every run says.
- What two GPUs change (`NCCL_GIB`, half of the graphs, no hidden states beside the compiler) was read off the 70B on two H100, in FP8 and in bfloat16.
- All else only checks: all five of 0.26; on the H200 qwen3_8b with 2048 tokens, the refused llama_70b, mistral_7b's KV cache and qwen3_30b_a3b; on the
  H100 the guide's example refused and served, qwen3_30b_a3b on two, gpt_oss_20b, gemma3_27b, qwen3_32b and DeepSeek V2 Lite's shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _memory, _model
from ansible_collections.gpuops.vllm.plugins.module_utils._memory import Fit, Setting
from ansible_collections.gpuops.vllm.plugins.module_utils._model import Shape
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data"
MEASURED = json.loads((DATA / "h200_memory.json").read_text())
MEASURED_H100 = json.loads((DATA / "h100_memory_0.32.json").read_text())
MEASURED_NEW = json.loads((DATA / "h200_memory_0.32.json").read_text())
KNOWN = yaml.safe_load((Path(__file__).parents[4] / "roles/vllm_plan/vars/main/models.yml").read_text())[
    "__vllm_plan_known_models"
]
HUB_IDS = {
    "qwen3_8b": "Qwen/Qwen3-8B",
    "qwen3_30b_a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3_32b": "Qwen/Qwen3-32B",
    "gpt_oss_20b": "openai/gpt-oss-20b",
    "llama_70b_bf16": "meta-llama/Llama-3.3-70B-Instruct",
    "llama_70b_fp8": "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
}
H200_GIB = 139.8
SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 256,
    "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip
OLD, NEW = (0, 26, 0), (0, 32, 0)


def shape_of(measured: Mapping[str, Any]) -> Shape:
    return _model.shape(
        {
            "model_type": "llama",
            "hidden_size": measured["hidden_size"],
            "intermediate_size": measured["intermediate_size"],
            "num_hidden_layers": measured["layers"],
            "num_attention_heads": measured["heads"],
            "num_key_value_heads": measured["kv_heads"],
            "head_dim": measured["head_dim"],
            "vocab_size": measured["vocab_size"],
            "tie_word_embeddings": measured["tied_embeddings"],
            "torch_dtype": "bfloat16",
        }
    )


def predicted(
    run: Mapping[str, Any], version: tuple[int, ...], changes: Mapping[str, Any] | None = None, *, cold: bool = True
) -> Fit:
    shape = shape_of_run(run["model"])
    width = run.get("tensor_parallel", 1)
    args = {
        "gpu-memory-utilization": run["gpu_memory_utilization"],
        "max-model-len": run["max_model_len"],
        "kv-cache-dtype": run["kv_cache_dtype"],
        "quantization": run["quantization"],
        "dtype": run["dtype"],
        "max-num-seqs": run.get("max_num_seqs", 256),
        "max-num-batched-tokens": run.get("max_num_batched_tokens", 8192),
        **(changes or {}),
    }
    memory_gib = MEASURED_H100["visible_gib"] if run in MEASURED_H100["runs"] else H200_GIB
    return _memory.fit(shape, _memory.setting_of(args, shape, width), memory_gib, version, cold=cold)


def shape_of_run(model: str) -> Shape:
    if model in HUB_IDS:
        return known(HUB_IDS[model])
    if model == "gemma3_27b_text":
        return _model.shape(KNOWN["google/gemma-3-27b-it"]["config"]["text_config"])
    return _model.shape(MEASURED_H100[model]) if model in MEASURED_H100 else shape_of(MEASURED[model])


def known(name: str) -> Shape:
    entry = KNOWN[name]
    base = KNOWN.get(entry.get("base"), {})
    return _model.shape({**base.get("config", {}), **entry.get("config", {})})


# --- measured ------------------------------------------------------------------------------------------------

RUNS = [(run, OLD) for run in MEASURED["runs"]] + [(run, NEW) for run in MEASURED_NEW["runs"] + MEASURED_H100["runs"]]
#: What the first model runner ran as long as there were two.
FIRST_RUNNER = ("qwen3_30b_a3b", "gpt_oss_20b", "gemma3_27b_text", "deepseek_v2_lite")
SERVED = [(run, version) for run, version in RUNS if run["served"]]
REFUSED = [(run, version) for run, version in RUNS if not run["served"]]


def test_the_runs_are_those_that_the_words_above_speak_of() -> None:
    assert [len(one["runs"]) for one in (MEASURED, MEASURED_NEW, MEASURED_H100)] == [5, 6, 9]
    assert (len(SERVED), len(REFUSED)) == (16, 4)


@pytest.mark.parametrize(("run", "version"), RUNS)
def test_weights_are_those_that_vllm_loaded(run: dict[str, Any], version: tuple[int, ...]) -> None:
    # Some models keep tables beside their weights: gemma3_27b 0.56 GiB, gpt_oss_20b 0.23.
    assert predicted(run, version).weights_gib == pytest.approx(
        run["weights_gib"], rel=0.022 if run["model"] in ("gemma3_27b_text", "gpt_oss_20b") else 0.005
    )


@pytest.mark.parametrize(("run", "version"), SERVED)
def test_the_tokens_of_each_served_run_are_within_a_twentieth(run: dict[str, Any], version: tuple[int, ...]) -> None:
    found = predicted(run, version, cold=run["compile_cache"] == "cold")
    assert found.fits
    assert found.kv_tokens == pytest.approx(run["kv_tokens"], rel=0.05)


def test_the_verdict_of_the_70b_lies_between_its_cold_and_its_warm_start() -> None:
    cold, warm = (run for run, version in SERVED if run["model"] == "llama_70b" and version == OLD)
    assert 0.9 * cold["kv_tokens"] <= predicted(warm, OLD).kv_tokens <= 1.1 * warm["kv_tokens"]


@pytest.mark.parametrize(("run", "version"), REFUSED)
def test_the_runs_that_vllm_refused_are_refused(run: dict[str, Any], version: tuple[int, ...]) -> None:
    assert not predicted(run, version).fits
    longest = predicted(run, version, {"max-model-len": "auto"}).max_model_len
    # None where vLLM says that nothing is left at all.
    assert longest == pytest.approx(run.get("estimated_max_model_len", 0), rel=0.05)


@pytest.mark.parametrize("run", [run for run, version in RUNS if version == NEW])
def test_activation_and_graphs_are_those_that_the_worker_took_off(run: dict[str, Any]) -> None:
    found = predicted(run, NEW)
    assert found.non_torch_gib == pytest.approx(run["non_torch_gib"], abs=0.01)
    if run["model"] in ("deepseek_v2_lite", "gpt_oss_20b"):
        # Here they are off by half a GiB at most, and make up for one another.
        assert found.kv_gib == pytest.approx(run["kv_gib"], rel=0.01)
        return
    taken = run["total_consumed_gib"] - run["weights_gib"] - run["non_torch_gib"] + run["transient_peak_headroom_gib"]
    assert found.activation_gib == pytest.approx(taken, abs=0.3)
    assert found.graphs_gib == pytest.approx(run["cuda_graph_estimate_gib"], abs=0.25)


@pytest.mark.parametrize(
    "run",
    [run for run in MEASURED_H100["runs"] if run["tensor_parallel"] == 2 and run["model"].startswith("llama_70b")],
)
def test_two_gpus_take_what_was_read_off_them(run: dict[str, Any]) -> None:
    found = predicted(run, NEW)
    taken = run["total_consumed_gib"] - run["weights_gib"] - run["non_torch_gib"] + run["transient_peak_headroom_gib"]
    assert found.activation_gib == pytest.approx(taken, abs=0.1)
    assert found.graphs_gib == pytest.approx(run["cuda_graph_estimate_gib"], abs=0.05)


@pytest.mark.parametrize(("run", "version"), SERVED)
def test_only_the_newer_rule_takes_the_graphs_of_a_dense_model_off(
    run: dict[str, Any], version: tuple[int, ...]
) -> None:
    assert (predicted(run, OLD).graphs_gib == 0) == (run["model"] not in FIRST_RUNNER)
    assert predicted(run, NEW).graphs_gib > 0
    assert predicted(run, NEW, {"enforce-eager": True}).graphs_gib == 0


# --- the KV cache of each kind of attention -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tensor_parallel", "kv_fp8", "kib"),
    [
        # layers x kv heads x 2 x head_dim x bytes
        ("meta-llama/Llama-3.3-70B-Instruct", 1, False, 80 * 8 * 2 * 128 * 2 / 1024),
        ("meta-llama/Llama-3.3-70B-Instruct", 1, True, 80 * 8 * 2 * 128 / 1024),
        ("meta-llama/Llama-3.3-70B-Instruct", 8, False, 80 * 2 * 128 * 2 / 1024),
        # with fewer heads than GPUs each GPU holds one
        ("meta-llama/Llama-3.3-70B-Instruct", 16, False, 80 * 2 * 128 * 2 / 1024),
        # one latent a layer, the same on every GPU, and the indexer's keys
        ("deepseek-ai/DeepSeek-R1-0528", 1, False, 61 * 576 * 2 / 1024),
        ("deepseek-ai/DeepSeek-R1-0528", 8, False, 61 * 576 * 2 / 1024),
        ("deepseek-ai/DeepSeek-V3.2", 8, False, 61 * (576 * 2 + 132) / 1024),
        ("deepseek-ai/DeepSeek-V3.2", 8, True, 61 * (656 + 132) / 1024),
    ],
)
def test_kv_bytes_of_a_token(model: str, tensor_parallel: int, kv_fp8: bool, kib: float) -> None:
    layout = _memory.kv_layout(known(model), Setting(tensor_parallel=tensor_parallel, kv_fp8=kv_fp8))
    assert layout.block_bytes / layout.block_tokens / 1024 * len(layout.groups) == pytest.approx(kib)


def test_a_sliding_window_stops_at_the_window() -> None:
    layout = _memory.kv_layout(known("google/gemma-3-27b-it"), Setting())
    short, long = (layout.blocks(tokens, 4096) for tokens in (16384, 32768))
    # Ten layers attend to all tokens, the other 52 to the window and what is under way.
    assert len(layout.groups) == 7
    assert long - short == (32768 - 16384) // 16


def test_chunked_attention_stops_at_the_chunk() -> None:
    """Llama 4 Scout: what vLLM 0.32's own functions say of 20 GiB on one of two GPUs, 2048 tokens a batch."""
    layout = _memory.kv_layout(known("meta-llama/Llama-4-Scout-17B-16E-Instruct"), Setting(tensor_parallel=2))
    assert [group.chunk for group in layout.groups] == [0, 8192, 8192, 8192]
    short, long = (layout.blocks(tokens, 4096) for tokens in (16384, 32768))
    assert long - short == (32768 - 16384) // 16
    assert int(20 * 2**30 // layout.block_bytes / long * 32768) == 411203


def test_a_linear_layer_holds_a_state_and_no_tokens() -> None:
    layout = _memory.kv_layout(known("Qwen/Qwen3-Next-80B-A3B-Instruct"), Setting())
    assert [group.state for group in layout.groups] == [False, True, True, True]
    assert layout.blocks(2 * layout.block_tokens, 0) - layout.blocks(layout.block_tokens, 0) == 1


def test_a_sequence_needs_whole_blocks() -> None:
    layout = _memory.kv_layout(known("Qwen/Qwen3-32B"), Setting())
    assert [layout.blocks(tokens, 0) for tokens in (1, 16, 17)] == [1, 1, 2]


# --- computed by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "nccl"), [(1, 0), (2, 1), (8, 1)])
def test_gpus_that_talk_to_one_another_hold_buffers_for_it(width: int, nccl: int) -> None:
    found = _memory.fit(known("Qwen/Qwen3-32B"), Setting(tensor_parallel=width), H200_GIB, NEW)
    assert found.non_torch_gib == pytest.approx(_memory.NON_TORCH_GIB + nccl * _memory.NCCL_GIB)


@pytest.mark.parametrize(
    ("hopper", "width", "inner", "outer"),
    [
        # Of 2880 x 2880 on Hopper whole tiles of 64 are filled, by 45 x 64; halves of 1440 need 23 of them.
        (True, 1, 2880 / 2880, 2880 / 2880),
        (True, 2, 23 * 64 / 1440, 2880 / 2880),
        # Elsewhere tiles are 128 x 256.
        (False, 1, 23 * 128 / 2880, 12 * 256 / 2880),
        (False, 2, 12 * 128 / 1440, 12 * 256 / 2880),
    ],
)
def test_mxfp4_experts_fill_the_tiles_of_their_kernels(hopper: bool, width: int, inner: float, outer: float) -> None:
    """gpt-oss-20b: 24 layers of 32 experts with three matrices of 2880 x 2880, four bits and a byte for each 32."""
    experts = 24 * 32 * 3 * 2880 * 2880 * (0.5 + 1 / 32)
    # Embedding, head, attention, key and value, then norms and router, which every GPU holds; 16 bit.
    divided = 2 * (2 * 201088 * 2880 + 24 * 2 * 2880 * 64 * 64 + 24 * 2 * 2880 * 8 * 64)
    whole = 2 * (49 * 2880 + 24 * 2880 * 32)
    found = _memory.weights_gib(known("openai/gpt-oss-20b"), Setting(tensor_parallel=width, hopper=hopper))
    assert found * 2**30 == pytest.approx((experts * inner * outer + divided) / width + whole, rel=1e-9)


@pytest.mark.parametrize("width", [1, 8])
def test_the_second_copy_of_mla_is_divided_as_the_first(width: int) -> None:
    """DeepSeek R1: FP8 with a scale of 32 bit for each 128 x 128, and the up-projection of the latents once more in 16 bit."""
    fp8 = 1 + 4 / 128**2
    attention = 61 * (1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168)
    dense, experts, shared = 3 * 3 * 7168 * 18432, 58 * 256 * 3 * 7168 * 2048, 58 * 3 * 7168 * 2048
    divided = fp8 * (attention + dense + experts + shared) + 2 * (2 * 129280 * 7168)
    # Norms and router in 16 bit, and the down-projections.
    whole = 2 * (123 * 7168 + 58 * 7168 * 256) + fp8 * 61 * 7168 * (1536 + 512 + 64)
    copy = 2 * 61 * 128 * 256 * 512
    found = _memory.weights_gib(known("deepseek-ai/DeepSeek-R1-0528"), Setting(tensor_parallel=width))
    assert found * 2**30 == pytest.approx((divided + copy) / width + whole, rel=1e-9)


@pytest.mark.parametrize(
    ("full", "sliding", "in_group", "windows"),
    [
        # Below one and a half the smaller kind is padded to one group, from there on the larger one is cut.
        (5, 4, 5, [0, 64]),
        (4, 5, 5, [0, 64]),
        (3, 2, 2, [0, 0, 64]),
        (2, 3, 2, [0, 64, 64]),
        (4, 4, 4, [0, 64]),
        (5, 1, 1, [0, 0, 0, 0, 0, 64]),
    ],
)
def test_layers_of_two_kinds_share_blocks(full: int, sliding: int, in_group: int, windows: list[int]) -> None:
    shape = _model.shape(
        {
            **SMALL,
            "num_hidden_layers": full + sliding,
            "layer_types": ["full_attention"] * full + ["sliding_attention"] * sliding,
            "sliding_window": 64,
        }
    )
    layout = _memory.kv_layout(shape, Setting())
    assert [group.window for group in layout.groups] == windows
    # 16 tokens of 2 heads of 8, keys and values of 16 bit.
    assert (layout.block_tokens, layout.block_bytes) == (16, in_group * 16 * 2 * 2 * 8 * 2)


@pytest.mark.parametrize(("version", "left_out"), [((0, 28, 1), 0), ((0, 29, 0), 1), (NEW, 1)])
def test_the_check_leaves_one_block_out(version: tuple[int, ...], left_out: int) -> None:
    shape = _model.shape({**SMALL, "num_hidden_layers": 4})
    block = 4 * 16 * 2 * 2 * 8 * 2
    needed = 10 + left_out
    for blocks, fits in ((needed - 1, False), (needed, True)):
        setting = Setting(max_model_len=160, kv_cache_bytes=blocks * block)
        found = _memory.fit(shape, setting, H200_GIB, version)
        assert (found.fits, found.concurrency, found.kv_tokens) == (fits, blocks / 10, blocks * 16)
        longest = _memory.fit(shape, replace(setting, max_model_len=0), H200_GIB, version)
        assert longest.max_model_len == 16 * (blocks - left_out)
    less = Setting(max_model_len=160, kv_cache_bytes=needed * block - 1)
    assert not _memory.fit(shape, less, H200_GIB, version).fits


# --- engine arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({"max-model-len": 4096}, 4096),
        ({"max-model-len": "4096"}, 4096),
        ({"max-model-len": "16k"}, 16000),
        ({"max-model-len": "16K"}, 16384),
        ({"max-model-len": "auto"}, 0),
        ({"max-model-len": -1}, 0),
        ({}, 131072),
    ],
)
def test_the_context_is_read_as_vllm_reads_it(args: dict[str, Any], tokens: int) -> None:
    assert _memory.setting_of(args, known("meta-llama/Llama-3.3-70B-Instruct"), 1).max_model_len == tokens


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max-model-len": "long"}, "max-model-len is 'long': needs a whole number"),
        ({"max-num-seqs": True}, "max-num-seqs is True: needs a whole number"),
        ({"max-num-seqs": -5}, "max-num-seqs is -5: needs a whole number"),
        ({"gpu-memory-utilization": "much"}, "gpu-memory-utilization is 'much': needs a number"),
        ({"gpu-memory-utilization": [0.9]}, r"gpu-memory-utilization is \[0.9\]: needs a number"),
    ],
)
def test_an_argument_that_is_no_number_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _memory.setting_of(args, known("Qwen/Qwen3-32B"), 1)


def test_a_checkpoint_that_brings_an_fp8_cache_is_counted_so() -> None:
    shape = known("nvidia/Llama-3.3-70B-Instruct-FP8")
    assert _memory.setting_of({}, shape, 1).kv_fp8
    assert not _memory.setting_of({"kv-cache-dtype": "bfloat16"}, shape, 1).kv_fp8


def test_the_size_on_disk_beats_the_shapes() -> None:
    shape = known("Qwen/Qwen3-32B")
    setting = Setting(online_fp8=True)
    stored = shape.parameters * 2
    assert _memory.weights_gib(shape, setting, stored) == pytest.approx(_memory.weights_gib(shape, setting))
    assert _memory.weights_gib(shape, setting, 2 * stored) == pytest.approx(2 * _memory.weights_gib(shape, setting))


# --- properties -----------------------------------------------------------------------------------------------


SHAPES = {name: known(name) for name in KNOWN}
settings = st.builds(
    Setting,
    tensor_parallel=st.sampled_from([1, 2, 4, 8]),
    utilization=st.floats(0.3, 0.95),
    max_model_len=st.integers(64, 40_000),
    max_num_seqs=st.integers(1, 1024),
    max_num_batched_tokens=st.sampled_from([1024, 2048, 8192, 16384]),
    kv_fp8=st.booleans(),
    online_fp8=st.booleans(),
    graphs=st.booleans(),
)
any_shape = st.sampled_from(sorted(SHAPES)).map(SHAPES.__getitem__)
memory = st.floats(8, 280)
versions = st.sampled_from([OLD, NEW])


@given(any_shape, settings, memory, st.floats(0, 100), versions)
def test_more_memory_never_means_fewer_tokens(
    shape: Shape, setting: Setting, gib: float, more: float, version: tuple[int, ...]
) -> None:
    little, much = (_memory.fit(shape, setting, one, version) for one in (gib, gib + more))
    assert little.kv_tokens <= much.kv_tokens
    assert little.fits <= much.fits


@given(any_shape, settings)
def test_tensor_parallel_never_means_more_weights_on_a_gpu(shape: Shape, setting: Setting) -> None:
    widths = (1, 2, 4, 8, 16)
    weights = [_memory.weights_gib(shape, replace(setting, tensor_parallel=width)) for width in widths]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] <= 16.0001 * weights[-1]


@given(any_shape, settings, memory, versions)
def test_an_fp8_cache_never_means_fewer_tokens(
    shape: Shape, setting: Setting, gib: float, version: tuple[int, ...]
) -> None:
    plain, small = (_memory.fit(shape, replace(setting, kv_fp8=kind), gib, version) for kind in (False, True))
    # A block of a hybrid grows with the tokens that fit into a state: then the last one may be half empty.
    slack = 2 * _memory.kv_layout(shape, setting).block_tokens if shape.state_bytes else 0
    assert small.kv_tokens + slack * max(1, small.concurrency) >= plain.kv_tokens


@given(any_shape, settings, memory, versions, st.integers(1, 5000))
def test_a_shorter_context_never_stops_fitting(
    shape: Shape, setting: Setting, gib: float, version: tuple[int, ...], less: int
) -> None:
    shorter = replace(setting, max_model_len=max(1, setting.max_model_len - less))
    assert _memory.fit(shape, shorter, gib, version).fits >= _memory.fit(shape, setting, gib, version).fits


@given(any_shape, settings, memory, versions)
def test_the_longest_context_fits_and_one_block_more_does_not(
    shape: Shape, setting: Setting, gib: float, version: tuple[int, ...]
) -> None:
    longest = _memory.fit(shape, replace(setting, max_model_len=0), gib, version).max_model_len
    # MLA's buffer grows with the context, so that only vLLM's own answer to "auto" is asked here.
    if longest and not shape.latent_dim:
        assert _memory.fit(shape, replace(setting, max_model_len=longest), gib, version).fits
        limit = shape.max_position or 2**20
        longer = replace(setting, max_model_len=longest + _memory.kv_layout(shape, setting).block_tokens)
        assert longest == limit or not _memory.fit(shape, longer, gib, version).fits


@given(any_shape, settings, memory)
def test_a_cold_start_is_never_the_better_one(shape: Shape, setting: Setting, gib: float) -> None:
    cold, warm = (_memory.fit(shape, setting, gib, NEW, cold=kind) for kind in (True, False))
    assert cold.kv_gib <= warm.kv_gib
