"""A model's shape from its config.json. The catalogue's tests hold real configs to published counts; here is one small model, by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _memory, _model
from ansible_collections.gpuops.vllm.plugins.module_utils._model import UnknownShapeError
from hypothesis import given
from hypothesis import strategies as st

FILE = Path(__file__).parents[4] / "roles/vllm_plan/vars/main/models.yml"
CONFIGS = [
    entry["config"] for entry in yaml.safe_load(FILE.read_text())["__vllm_plan_known_models"].values() if "config" in entry
]  # fmt: skip
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 256, "vocab_size": 1000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LINEAR = {
    "full_attention_interval": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip


def shape(**changes: Any) -> _model.Shape:
    return _model.shape({**TINY, **changes})


# --- tensors -------------------------------------------------------------------------------------------------

DENSE = {"embedding": 64_000, "head": 64_000, "norms": 25 * 64, "attention": 12 * 2 * 64 * 64, "key and value": 12 * 2 * 64 * 16, "mlp": 12 * 3 * 64 * 256}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "different"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {"head": 0}),
        ({"head_dim": 16}, {"attention": 12 * 2 * 64 * 128, "key and value": 12 * 2 * 64 * 32}),
        ({"attn_output_gate": True}, {"attention": 12 * 3 * 64 * 64}),
        ({"num_key_value_heads": None}, {"key and value": 12 * 2 * 64 * 64}),
        (EXPERTS, {"mlp": 0, "experts": 12 * 4 * 3 * 64 * 32, "router": 12 * 64 * 4}),
        ({**EXPERTS, "shared_expert_intermediate_size": 48},
         {"mlp": 0, "experts": 12 * 4 * 3 * 64 * 32, "router": 12 * 64 * 4, "shared experts": 12 * 3 * 64 * 48}),
        ({**EXPERTS, "n_shared_experts": 2, "first_k_dense_replace": 2},
         {"mlp": 2 * 3 * 64 * 256, "experts": 10 * 4 * 3 * 64 * 32, "router": 10 * 64 * 4, "shared experts": 10 * 3 * 64 * 64}),
        ({"model_type": "llama4_text", "num_local_experts": 4, "intermediate_size": 32, "intermediate_size_mlp": 256, "interleave_moe_layer_step": 2},
         {"mlp": 6 * 3 * 64 * 256, "experts": 6 * 4 * 3 * 64 * 32, "router": 6 * 64 * 4, "shared experts": 6 * 3 * 64 * 32}),
        (MLA, {"key and value": 0, "latent projections": 12 * 64 * 44, "attention": 12 * (24 * 8 * 12 + 16 * 8 * 16 + 8 * 8 * 64)}),
        ({**MLA, "q_lora_rank": None},
         {"key and value": 0, "latent projections": 12 * 64 * 20, "attention": 12 * (64 * 8 * 12 + 16 * 8 * 16 + 8 * 8 * 64)}),
        ({**MLA, "index_head_dim": 8, "index_n_heads": 2},
         {"key and value": 0, "latent projections": 12 * 64 * 44, "attention": 12 * (24 * 8 * 12 + 16 * 8 * 16 + 8 * 8 * 64), "indexer": 12 * (24 * 2 * 8 + 64 * 10)}),
        (LINEAR, {"attention": 3 * 3 * 64 * 64, "key and value": 3 * 2 * 64 * 16, "linear attention": 9 * 64 * 128, "linear attention gates": 9 * (64 * 8 + 64 * 4)}),
        ({**LINEAR, "linear_conv_kernel_dim": 2},
         {"attention": 3 * 3 * 64 * 64, "key and value": 3 * 2 * 64 * 16, "linear attention": 9 * 64 * 128, "linear attention gates": 9 * (64 * 8 + 64 * 2)}),
        ({"extra_parameters": "1e3"}, {"other": 1000}),
        ({"vision_config": {"hidden_size": 16, "depth": 2}}, {"other": 2 * (4 * 16 * 16 + 2 * 16 * 64)}),
        ({"vision_config": {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 20}}, {"other": 3 * (4 * 16 * 16 + 2 * 16 * 20)}),
        ({"vision_config": {}}, {}),
    ],
)  # fmt: skip
def test_the_tensors_of_a_small_model(changes: dict[str, Any], different: dict[str, int]) -> None:
    found: dict[str, int] = {}
    for tensor in shape(**changes).tensors:
        found[tensor.name] = found.get(tensor.name, 0) + tensor.parameters
    assert found == {name: count for name, count in (DENSE | different).items() if count}


def test_each_kind_of_tensor_is_divided_in_its_own_way() -> None:
    kinds = {
        (tensor.name, tensor.kind)
        for changes in ({}, {**EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1}, {**MLA, "index_head_dim": 8, "index_n_heads": 2}, LINEAR)
        for tensor in shape(**changes, extra_parameters=1).tensors
    }  # fmt: skip
    expected = {
        "embedding": "embedding", "head": "embedding", "norms": "whole", "other": "whole", "router": "whole", "linear attention gates": "whole",
        "attention": "linear", "mlp": "linear", "shared experts": "linear", "linear attention": "linear",
        "key and value": "kv", "experts": "expert", "latent projections": "latent", "indexer": "latent",
    }  # fmt: skip
    assert kinds == set(expected.items())


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "head_dim", 8),
        ({}, "dense_mlp", 256),
        ({}, "expert_mlp", 0),
        ({}, "experts_per_token", 0),
        ({}, "state_bytes", 0),
        ({}, "latent_dim", 0),
        (EXPERTS, "dense_mlp", 0),
        (EXPERTS, "expert_mlp", 32),
        (EXPERTS, "experts_per_token", 2),
        ({"num_experts": 4}, "expert_mlp", 256),
        ({"num_experts": 4}, "experts_per_token", 1),
        ({**EXPERTS, "shared_expert_intermediate_size": 48}, "dense_mlp", 48),
        ({**EXPERTS, "first_k_dense_replace": 1, "n_shared_experts": 3}, "dense_mlp", 256),
        (MLA, "latent_dim", 20),
        (MLA, "latent_rank", 16),
        (MLA, "latent_up_dim", 16),
        ({**MLA, "index_head_dim": 8, "index_n_heads": 2}, "indexer_dim", 8),
        # 9 layers hold a convolution of 3 steps over keys, queries and values, and a matrix a head; 16 bit.
        (LINEAR, "state_bytes", 2 * ((2 * 16 + 32) * 3 + 4 * 8 * 8)),
        ({**LINEAR, "linear_conv_kernel_dim": 2}, "state_bytes", 2 * ((2 * 16 + 32) + 4 * 8 * 8)),
        ({"torch_dtype": "float32"}, "dtype_bytes", 4),
        ({"dtype": "float32"}, "dtype_bytes", 4),
        ({"dtype": "float"}, "dtype_bytes", 4),
        *(({"dtype": name}, "dtype_bytes", 2) for name in ("float16", "half", "bfloat16")),
        ({"torch_dtype": "unheard"}, "dtype_bytes", 2),
        ({"model_type": None}, "model_type", "unknown"),
        # It is shown, and may be anybody's.
        *(
            ({"model_type": name}, "model_type", "unknown")
            for name in ("\x1b[31mRED\x1b]0;title\x07", "a\nb", "\ud800x", "{{ 1 }}", "x" * 65, ["llama"])
        ),
        ({"model_type": "x" * 64}, "model_type", "x" * 64),
    ],
)
def test_the_figures_of_a_small_model(changes: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(shape(**changes), field) == value


# --- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, [(12, "full", False, 0)]),
        ({"sliding_window": 128}, [(12, "sliding", False, 128)]),
        ({"sliding_window": 128, "use_sliding_window": False}, [(12, "full", False, 0)]),
        ({"sliding_window": None}, [(12, "full", False, 0)]),
        ({"sliding_window": 128, "sliding_window_pattern": 3}, [(4, "full", False, 0), (8, "sliding", False, 128)]),
        ({"sliding_window": 128, "model_type": "gemma2"}, [(6, "full", False, 0), (6, "sliding", False, 128)]),
        ({"sliding_window": 128, "model_type": "gemma3_text"}, [(2, "full", False, 0), (10, "sliding", False, 128)]),
        ({"sliding_window": 128, "model_type": "cohere2"}, [(3, "full", False, 0), (9, "sliding", False, 128)]),
        ({"layer_types": ["full_attention", "sliding_attention"] * 6, "sliding_window": 64}, [(6, "full", False, 0), (6, "sliding", False, 64)]),
        # More layers are named than there are: the rest is for speculative decoding.
        ({"layer_types": ["attention"] * 13}, [(12, "full", False, 0)]),
        ({"attention_chunk_size": 512}, [(9, "chunked", False, 512), (3, "full", False, 0)]),
        (LINEAR, [(3, "full", False, 0), (9, "linear", False, 0)]),
        ({**LINEAR, "layer_types": ["linear_attention", "full_attention"] * 6}, [(6, "full", False, 0), (6, "linear", False, 0)]),
        (MLA, [(12, "mla", False, 0)]),
        (EXPERTS, [(12, "full", True, 0)]),
        ({**EXPERTS, "first_k_dense_replace": 3}, [(3, "full", False, 0), (9, "full", True, 0)]),
        ({**EXPERTS, "decoder_sparse_step": 3}, [(8, "full", False, 0), (4, "full", True, 0)]),
        ({**EXPERTS, "interleave_moe_layer_step": 2}, [(6, "full", False, 0), (6, "full", True, 0)]),
        ({**EXPERTS, "mlp_only_layers": [0, 11]}, [(2, "full", False, 0), (10, "full", True, 0)]),
        # Which layer is the one: it is told by its MLP.
        ({**EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, [(7, "full", False, 0), (5, "full", True, 0)]),
        ({**EXPERTS, **LINEAR, "mlp_only_layers": [3]}, [(1, "full", False, 0), (2, "full", True, 0), (9, "linear", True, 0)]),
        ({**EXPERTS, "attention_chunk_size": 512, "mlp_only_layers": [3]}, [(9, "chunked", True, 512), (1, "full", False, 0), (2, "full", True, 0)]),
        ({**EXPERTS, "sliding_window": 128, "sliding_window_pattern": 3, "mlp_only_layers": [2]},
         [(1, "full", False, 0), (3, "full", True, 0), (8, "sliding", True, 128)]),
        ({**EXPERTS, "moe_layers": [5]}, [(11, "full", False, 0), (1, "full", True, 0)]),
        ({"moe_layers": [5]}, [(12, "full", False, 0)]),
    ],
)  # fmt: skip
def test_the_layers(changes: dict[str, Any], layers: list[tuple[Any, ...]]) -> None:
    found = shape(**changes)
    assert [(one.count, one.attention, one.moe, one.window) for one in found.layers] == layers
    assert found.layer_count == 12


# --- a config within a config --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["text_config", "llm_config"])
def test_a_multimodal_config_is_read_through_its_language_model(key: str) -> None:
    inner = {name: value for name, value in TINY.items() if name not in ("vocab_size", "tie_word_embeddings")}
    found = _model.shape(
        {
            "model_type": "whole",
            "vocab_size": 1000,
            "hidden_size": 1,
            "tie_word_embeddings": True,
            "quantization_config": {"quant_method": "fp8"},
            "vision_config": {"hidden_size": 16, "depth": 2},
            key: inner,
        }
    )
    assert (found.model_type, found.hidden_size, found.vocab_size, found.quantization) == ("llama", 64, 1000, "fp8")
    names = [tensor.name for tensor in found.tensors]
    assert "other" in names
    assert "head" not in names


@pytest.mark.parametrize(
    ("config", "section"),
    [
        ({}, {}),
        ({"quantization_config": {"a": 1}}, {"a": 1}),
        ({"compression_config": {"a": 1}}, {"a": 1}),
        ({"quantization_config": None, "compression_config": {"a": 1}}, {"a": 1}),
        ({"quantization_config": {"a": 1}, "text_config": {"b": 1}}, {"a": 1}),
        ({"text_config": {"quantization_config": {"a": 1}}}, {"a": 1}),
        ({"quantization_config": ["a"]}, {}),
        # A key that is no text may be in an inventory.
        ({1: {}, "text_config": {}}, {}),
    ],
)
def test_where_a_quantisation_is_written(config: dict[Any, Any], section: Mapping[str, Any]) -> None:
    assert _model.quantization_config(config) == section


# --- storage -------------------------------------------------------------------------------------------------

NO_BLOCKS: tuple[Any, ...] = (None, [])
FP8_GROUP = {"group_0": {"weights": {"num_bits": 8}}}


@pytest.mark.parametrize(
    ("section", "model_type", "linear", "expert"),
    [
        ({"quant_method": "fp8"}, "", 1.0, 1.0),
        *(({"quant_method": "fp8", "weight_block_size": none}, "", 1.0, 1.0) for none in NO_BLOCKS),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "", 1 + 4 / 128**2, 1 + 4 / 128**2),
        # The method that is named beats what is beside it.
        ({"quant_method": "fp8", "quant_algo": "NVFP4"}, "", 1.0, 1.0),
        ({"quant_method": "fbgemm_fp8"}, "llama", 1.0, 1.0),
        # Of Llama 4 only the experts are quantised.
        ({"quant_method": "fbgemm_fp8"}, "llama4_text", 2.0, 1.0),
        ({"quant_method": "fp8"}, "llama4_text", 1.0, 1.0),
        ({"quant_method": "ptpc_fp8"}, "", 1.0, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "", 0.5 + 2.5 / 128, 0.5 + 2.5 / 128),
        ({"quant_method": "awq", "w_bit": 8, "q_group_size": 64}, "", 1 + 3 / 64, 1 + 3 / 64),
        ({"quant_method": "gptq"}, "", 0.5 + 2.5 / 128, 0.5 + 2.5 / 128),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, "", 0.375, 0.375),
        ({"quant_method": "intel/auto-round", "bits": 2}, "", 0.25 + 2.25 / 128, 0.25 + 2.25 / 128),
        ({"quant_method": "mxfp4"}, "", 2.0, 0.5 + 1 / 32),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "", 1.0, 1.0),
        ({"quant_algo": "FP8"}, "", 1.0, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "", 0.5625, 0.5625),
        ({"quant_method": "modelopt_fp4"}, "", 0.5625, 0.5625),
        # Only the KV cache is quantised.
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "", 2.0, 2.0),
        ({"quant_method": "compressed-tensors"}, "", 1.0, 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": FP8_GROUP}, "", 1.0, 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 128}}}}, "", 0.5 + 2 / 128, 0.5 + 2 / 128),
        # The attention of all layers is left as it is, by a pattern or each by its name.
        ({"quant_method": "compressed-tensors", "config_groups": FP8_GROUP, "ignore": ["lm_head", "re:.*self_attn.*"]}, "", 2.0, 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": FP8_GROUP, "ignore": [f"layers.{n}.self_attn.q_proj" for n in range(12)]}, "", 2.0, 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": FP8_GROUP, "ignore": [f"layers.{n}.self_attn.q_proj" for n in range(11)]}, "", 1.0, 1.0),
        ({"quant_method": "compressed-tensors", "config_groups": FP8_GROUP, "ignore": ["re:.*mlp.*"] * 12}, "", 1.0, 1.0),
    ],
)  # fmt: skip
def test_how_a_checkpoint_stores_its_weights(
    section: dict[str, Any], model_type: str, linear: float, expert: float
) -> None:
    found = shape(quantization_config=section, model_type=model_type)
    assert found.storage is not None
    assert found.quantization == found.storage.method == section.get("quant_method", "modelopt")
    assert (found.storage.linear, found.storage.expert) == (linear, expert)


@pytest.mark.parametrize("section", [None, {}, {"bits": 4}, {"quant_method": ""}])
def test_an_unquantised_checkpoint_has_no_storage(section: object) -> None:
    found = shape(quantization_config=section)
    assert (found.storage, found.quantization, found.kv_cache_fp8) == (None, None, False)


@pytest.mark.parametrize(
    ("section", "fp8"),
    [
        *(({"quant_method": method}, True) for method in ("fp8", "fbgemm_fp8", "ptpc_fp8", "modelopt_fp8")),
        *(({"quant_method": method}, False) for method in ("awq", "gptq", "mxfp4", "modelopt", "modelopt_fp4")),
        ({"quant_method": "awq", "bits": 8}, False),
        ({"quant_algo": "FP8"}, True),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}}, True),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}, False),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}}}, False),
    ],
)  # fmt: skip
def test_which_checkpoints_are_fp8(section: dict[str, Any], fp8: bool) -> None:
    found = shape(quantization_config=section)
    assert found.storage is not None
    assert found.storage.fp8 is fp8


def test_a_quantisation_leaves_embeddings_and_small_tensors_alone() -> None:
    storage = _model.Storage("any", linear=0.5, expert=0.25)
    kinds: tuple[_model.TensorKind, ...] = ("linear", "kv", "latent", "expert", "embedding", "whole")
    assert [storage.bytes_of(kind, 2) for kind in kinds] == [0.5, 0.5, 0.5, 0.25, 2, 2]


@pytest.mark.parametrize(
    ("section", "fp8"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, True),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 4}}, False),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, False),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "fp8"}, True),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": None}, False),
    ],
)
def test_a_checkpoint_may_bring_an_fp8_cache(section: dict[str, Any], fp8: bool) -> None:
    assert shape(quantization_config=section).kv_cache_fp8 is fp8


# --- context -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 4096),
        ({"max_position_embeddings": None}, 0),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, 10240),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, 8192),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1000}}, 4000),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 16384),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4, "original_max_position_embeddings": 1000}}, 16384),
        ({"rope_scaling": {"rope_type": "linear"}}, 4096),
        *(({"rope_scaling": {"rope_type": kind, "factor": 8}}, 4096) for kind in _model.UNSTRETCHED_ROPES),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8}, "model_type": "gemma3_text"}, 4096),
        ({"rope_scaling": "linear"}, 4096),
    ],
)
def test_the_longest_context(changes: dict[str, Any], tokens: int) -> None:
    assert shape(**changes).max_position == tokens


def test_the_ropes_whose_factor_is_counted_already() -> None:
    assert set(_model.UNSTRETCHED_ROPES) == {None, "default", "llama3", "longrope", "su", "mrope", "proportional"}


# --- what cannot be read -------------------------------------------------------------------------------------

NONSENSE = "its config.json has numbers that make no sense"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "its config.json has no hidden_size"),
        ({"hidden_size": 0}, "its config.json has hidden_size 0"),
        ({"hidden_size": True}, "its config.json has hidden_size True"),
        ({"hidden_size": 64.0}, "its config.json has hidden_size 64.0"),
        ({"hidden_size": "64"}, "its config.json has hidden_size '64'"),
        ({"vocab_size": 2**40 + 1}, "its config.json has vocab_size 1099511627777"),
        ({"vocab_size": 2**40}, NONSENSE),
        # Nothing is allocated for them.
        ({"num_hidden_layers": 10_001}, "its config.json has num_hidden_layers 10001"),
        ({"num_hidden_layers": 10**200}, f"its config.json has num_hidden_layers 1{'0' * 56}..."),
        ({"num_attention_heads": 128, "num_key_value_heads": 128}, "its config.json has head_dim 0"),
        ({"num_experts": -1}, "its config.json has num_experts -1"),
        ({"intermediate_size": None}, "its config.json has no intermediate_size"),
        ({"layer_types": ["full_attention", "mamba"]}, "its config.json has layers of the kind 'mamba', which the plan cannot count"),
        ({"layer_types": ["attention"]}, f"{NONSENSE} ('zip() argument 2 is longer than argument 1')"),
        *(({key: 1}, "its config.json describes Mamba layers, which the plan cannot count") for key in ("hybrid_override_pattern", "mamba_d_state", "ssm_cfg")),
        ({"quantization_config": {"quant_method": "unheard"}}, "its checkpoint is quantised by 'unheard', which the plan does not know"),
        ({"quantization_config": {"quant_method": "awq", "bits": -4}}, NONSENSE),
        ({"quantization_config": {"quant_method": "awq", "bits": 1e300}}, NONSENSE),
        ({"quantization_config": {"quant_method": "awq", "bits": "four"}}, f'{NONSENSE} ("invalid literal for int() with base 10: \'four\'")'),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}}}, f'{NONSENSE} ("\'NoneType\' object has no attribute \'get\'")'),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, NONSENSE),
        ({"extra_parameters": -1}, NONSENSE),
        ({"extra_parameters": 1e300}, NONSENSE),
        ({**LINEAR, "linear_num_value_heads": None}, "its config.json has no linear_num_value_heads"),
        *(({"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}, f"its config.json has weight_block_size {said}")
          for block, said in ((128, "128"), ("ab", "'ab'"), ([1] * 4, "[1, 1, 1, 1]"), ([0], "[0]"), ([True], "[True]"), ([1.5], "[1.5]"), ([2**20 + 1], "[1048577]"),
                              ([997] * 100_000, f"[{'997, ' * 11}9..."))),
        *(({**EXPERTS, "moe_layers": named}, f"its config.json has moe_layers {said}") for named, said in (([5.0], "[5.0]"), ([True], "[True]"), ("3", "'3'"), ({"3": 1}, "{'3': 1}"))),
        # Nothing that the file says is repeated at length, or as it stands.
        ({"layer_types": ["\x1b[2J" + "x" * 10**6]}, f"its config.json has layers of the kind '\\x1b[2J{'x' * 49}..., which the plan cannot count"),
        ({"quantization_config": {"quant_method": "modelopt\x1b[31m", "quant_algo": "FP8"}},
         "its checkpoint is quantised by 'modelopt\\x1b[31m', which the plan does not know"),
        ({"quantization_config": {"quant_method": "x" * 10**6}}, f"its checkpoint is quantised by '{'x' * 56}..., which the plan does not know"),
        ({"extra_parameters": "y" * 10**6}, f'{NONSENSE} ("could not convert string to float: \'{"y" * 20}...)'),
    ],
)  # fmt: skip
def test_what_a_config_does_not_say_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownShapeError) as raised:
        shape(**changes)
    assert str(raised.value) == message


class Entries(list[int]):
    """A list that is not to be searched: each search of it would take a step for each entry."""

    def __contains__(self, _entry: object) -> bool:
        raise AssertionError("searched")


def test_many_layers_and_many_entries_are_looked_through_once() -> None:
    entries = Entries([-1] * 99_999 + [7])
    found = shape(**EXPERTS, hidden_size=8, num_hidden_layers=10_000, moe_layers=entries)
    assert [(one.count, one.moe) for one in found.layers] == [(9_999, False), (1, True)]


def test_a_config_that_is_too_deep_to_be_shown_is_a_sentence() -> None:
    deep: list[Any] = []
    for _level in range(100_000):
        deep = [deep]
    with pytest.raises(UnknownShapeError, match=NONSENSE):
        shape(layer_types=[deep])


def test_kv_heads_and_head_dim_may_be_left_out() -> None:
    found = shape(num_key_value_heads=None, head_dim=None)
    assert (found.kv_heads, found.head_dim) == (8, 8)


# --- a config may be anybody's -------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5
)  # fmt: skip


def read(config: dict[Any, Any]) -> None:
    try:
        found = _model.shape(config)
    except UnknownShapeError as error:
        assert str(error)
    else:
        for width in (1, 8):
            fit = _memory.fit(found, _memory.setting_of({}, found, width), 80, (0, 32, 0))
            assert fit.kv_tokens >= 0


@given(st.dictionaries(st.sampled_from([*TINY, *EXPERTS, *MLA, *LINEAR, "quantization_config", "layer_types"]), values))
def test_any_config_gives_a_shape_or_a_sentence(config: dict[str, Any]) -> None:
    read(config)
    read({**TINY, **config})


@given(st.sampled_from(CONFIGS), st.lists(st.tuples(st.integers(0, 100), values), min_size=1, max_size=3))
def test_a_real_config_with_anything_in_it_gives_a_shape_or_a_sentence(
    config: dict[str, Any], changes: list[tuple[int, Any]]
) -> None:
    config = copy.deepcopy(config)
    for position, value in changes:
        places = [(config, key) for key in config]
        places += [(inner, key) for inner in config.values() if isinstance(inner, dict) for key in inner]
        section, key = places[position % len(places)]
        section[key] = value
    read(config)
