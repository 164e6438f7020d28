# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's shape, read from the ``config.json`` of the hub: its layers, its tensors, how its weights are stored. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ._wanted import is_whole, shown

AttentionKind = Literal["full", "sliding", "chunked", "mla", "linear"]
#: How a tensor behaves: which ones a quantisation touches, and how tensor parallelism divides them.
#: ``latent`` is a linear that every GPU holds whole (MLA's down-projections).
TensorKind = Literal["linear", "kv", "latent", "expert", "embedding", "whole"]

#: vLLM stores these as 16 bit whatever the quantisation.
UNQUANTISED: frozenset[TensorKind] = frozenset({"embedding", "whole"})
LAYER_TYPES: Mapping[str, AttentionKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
}
EXPERT_COUNTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
#: Rope scalings whose factor is in max_position_embeddings already.
UNSTRETCHED_ROPES = (None, "default", "llama3", "longrope", "su", "mrope", "proportional")
#: More than any model has. A config may be anybody's: what it says decides how much is computed here.
MOST_LAYERS, MOST_OF_ANYTHING, MOST_IN_BLOCK = 10_000, 2**40, 2**20
#: A kind of model or of quantisation, as both are shown.
NAME = re.compile(r"[A-Za-z0-9._/-]{1,64}")
#: Bytes of a number by the name that configs and vLLM use.
DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


class UnknownShapeError(ValueError):
    """The config does not say what the maths needs; the message says what is missing."""


@dataclass(frozen=True)
class Layer:
    """``count`` layers of one kind. ``window`` is in tokens, 0 for none."""

    count: int
    attention: AttentionKind
    moe: bool
    window: int = 0


@dataclass(frozen=True)
class Tensor:
    """``parameters`` numbers (of the whole model) that are stored and divided alike."""

    name: str
    parameters: int
    kind: TensorKind


@dataclass(frozen=True)
class Storage:
    """How a checkpoint stores its weights: bytes per parameter of each kind of tensor, scales included; ``fp8`` where these are floats."""

    method: str
    linear: float
    expert: float
    fp8: bool = False

    def bytes_of(self, kind: TensorKind, plain: float) -> float:
        """Return the bytes of one parameter; ``plain`` is what an unquantised one takes."""
        if kind in UNQUANTISED:
            return plain
        return self.expert if kind == "expert" else self.linear


@dataclass(frozen=True)
class Shape:
    """What the memory maths needs to know of a model. Sizes are numbers of elements, of the whole model."""

    model_type: str
    hidden_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    dense_mlp: int
    expert_mlp: int
    experts_per_token: int
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    dtype_bytes: int
    storage: Storage | None
    kv_cache_fp8: bool
    max_position: int
    latent_dim: int = 0
    latent_rank: int = 0
    latent_up_dim: int = 0
    indexer_dim: int = 0
    state_bytes: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def quantization(self) -> str | None:
        """The checkpoint's own quantisation, as ``quantization_config.quant_method`` names it."""
        return self.storage.method if self.storage else None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a multimodal config, with what stands beside it filled in."""
    inner = next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), None)
    if inner is None:
        return config
    outer = {key: value for key, value in config.items() if not isinstance(value, Mapping) or "quant" in str(key)}
    return {**outer, **inner}


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the checkpoint's own quantisation, empty for none."""
    merged = text_config(config)
    found = merged.get("quantization_config") or merged.get("compression_config")
    return found if isinstance(found, Mapping) else {}


def shape(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a ``config.json`` describes. Raises `UnknownShapeError` where it does not say enough."""
    try:
        found = _Reader(text_config(config), config).shape()
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        if isinstance(error, UnknownShapeError):
            raise
        raise UnknownShapeError(f"its config.json has numbers that make no sense ({shown(str(error))})") from None
    kept = (found.storage.linear, found.storage.expert) if found.storage else ()
    counted = (found.max_position, *(tensor.parameters for tensor in found.tensors))
    if not all(0 < size <= 4 for size in kept) or not all(0 <= one <= MOST_OF_ANYTHING for one in counted):
        raise UnknownShapeError("its config.json has numbers that make no sense")
    return found


class _Reader:
    """Reads one config; ``config`` is the language model's, ``whole`` the file's."""

    def __init__(self, config: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
        self.config = config
        self.whole = whole
        self.hidden = self.number("hidden_size")
        self.layer_count = self.number("num_hidden_layers", most=MOST_LAYERS)
        self.heads = self.number("num_attention_heads")
        self.kv_heads = self.number("num_key_value_heads", self.heads)
        self.head_dim = self.number("head_dim", self.hidden // self.heads)
        self.experts = next((self.number(key) for key in EXPERT_COUNTS if config.get(key)), 0)
        self.mla = bool(config.get("kv_lora_rank"))
        model_type = str(config.get("model_type") or whole.get("model_type") or "")
        self.model_type = model_type if NAME.fullmatch(model_type) else "unknown"

    def number(self, key: str, default: int | None = None, most: int = MOST_OF_ANYTHING) -> int:
        """Return a positive whole number of the config."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UnknownShapeError(
                f"its config.json has no {key}" if value is None else f"its config.json has {key} {shown(value)}"
            )
        return value

    def optional(self, key: str) -> int:
        """Return a whole number of the config, 0 where it is not there or null."""
        return self.number(key) if self.config.get(key) else 0

    def shape(self) -> Shape:
        kinds = Counter(zip(self.attention_kinds(), self.moe_layers(), strict=True))
        layers = tuple(
            Layer(count=count, attention=kind, moe=moe, window=self.window(kind))
            for (kind, moe), count in sorted(kinds.items())
        )
        return Shape(
            model_type=self.model_type,
            hidden_size=self.hidden,
            vocab_size=self.number("vocab_size"),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dense_mlp=max(0 if all(layer.moe for layer in layers) else self.dense_size(), self.shared_size()),
            expert_mlp=self.expert_size() if self.experts else 0,
            experts_per_token=self.number("num_experts_per_tok", 1) if self.experts else 0,
            layers=layers,
            tensors=tuple(tensor for tensor in self.tensors(layers) if tensor.parameters),
            dtype_bytes=DTYPE_BYTES.get(str(self.config.get("torch_dtype") or self.config.get("dtype")), 2),
            storage=storage(quantization_config(self.whole), self.model_type, self.layer_count),
            kv_cache_fp8=_stores_kv_as_fp8(quantization_config(self.whole)),
            max_position=self.max_position(),
            latent_dim=self.number("kv_lora_rank") + self.number("qk_rope_head_dim") if self.mla else 0,
            latent_rank=self.optional("kv_lora_rank"),
            latent_up_dim=self.number("qk_nope_head_dim") + self.number("v_head_dim") if self.mla else 0,
            indexer_dim=self.optional("index_head_dim"),
            state_bytes=self.state_bytes() if any(layer.attention == "linear" for layer in layers) else 0,
        )

    # --- layers ----------------------------------------------------------------------------------------------

    def attention_kinds(self) -> list[AttentionKind]:
        config, count = self.config, self.layer_count
        if self.mla:
            return ["mla"] * count
        named = config.get("layer_types")
        if isinstance(named, Sequence) and named:
            unknown = sorted({str(name) for name in named} - set(LAYER_TYPES))
            if unknown:
                raise UnknownShapeError(
                    f"its config.json has layers of the kind {shown(unknown[0])}, which the plan cannot count"
                )
            return [LAYER_TYPES[str(name)] for name in named][:count]
        if interval := self.optional("full_attention_interval"):
            return ["full" if (index + 1) % interval == 0 else "linear" for index in range(count)]
        if "hybrid_override_pattern" in config or "mamba_d_state" in config or "ssm_cfg" in config:
            raise UnknownShapeError("its config.json describes Mamba layers, which the plan cannot count")
        if config.get("attention_chunk_size"):
            return ["full" if (index + 1) % 4 == 0 else "chunked" for index in range(count)]
        if not config.get("sliding_window") or config.get("use_sliding_window") is False:
            return ["full"] * count
        # Gemma 3 has one full layer after every five; Gemma 2 takes turns; the rest slides everywhere.
        pattern = self.optional("sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}.get(
            self.model_type, 0
        )
        return ["full" if pattern and (index + 1) % pattern == 0 else "sliding" for index in range(count)]

    def window(self, kind: AttentionKind) -> int:
        if kind == "sliding":
            return self.number("sliding_window")
        return self.number("attention_chunk_size") if kind == "chunked" else 0

    def moe_layers(self) -> list[bool]:
        config, count = self.config, self.layer_count
        if not self.experts:
            return [False] * count
        if named := config.get("moe_layers"):
            if not isinstance(named, Sequence) or not all(map(_is_whole, named)):
                raise UnknownShapeError(f"its config.json has moe_layers {shown(named)}")
            # A set, since there may be as many entries as the file has room for.
            sparse = set(named)
            return [index in sparse for index in range(count)]
        step = self.optional("interleave_moe_layer_step") or self.optional("decoder_sparse_step") or 1
        dense = set(config.get("mlp_only_layers") or ())
        first = self.optional("first_k_dense_replace")
        return [index >= first and (index + 1) % step == 0 and index not in dense for index in range(count)]

    def dense_size(self) -> int:
        return self.optional("intermediate_size_mlp") or self.number("intermediate_size")

    def expert_size(self) -> int:
        return self.optional("moe_intermediate_size") or self.number("intermediate_size")

    def shared_size(self) -> int:
        """Return the width of the MLP that every token passes beside its experts."""
        if not self.experts:
            return 0
        if self.model_type.startswith("llama4"):
            return self.number("intermediate_size")
        return self.optional("shared_expert_intermediate_size") or (
            self.optional("n_shared_experts") * self.expert_size()
        )

    # --- tensors ---------------------------------------------------------------------------------------------

    def tensors(self, layers: Sequence[Layer]) -> list[Tensor]:
        vocabulary = self.number("vocab_size") * self.hidden
        tied = bool(self.config.get("tie_word_embeddings", self.whole.get("tie_word_embeddings", False)))
        found = [
            Tensor("embedding", vocabulary, "embedding"),
            Tensor("head", 0 if tied else vocabulary, "embedding"),
            Tensor("norms", (2 * self.layer_count + 1) * self.hidden, "whole"),
            Tensor("other", self.extra_parameters(), "whole"),
        ]
        for layer in layers:
            found += self.attention_tensors(layer) + self.mlp_tensors(layer)
        return found

    def attention_tensors(self, layer: Layer) -> list[Tensor]:
        hidden, count = self.hidden, layer.count
        if layer.attention == "mla":
            return self.mla_tensors(count)
        if layer.attention == "linear":
            key, value, value_heads = self.linear_dims()
            width = 2 * key + value
            convolution = width * self.number("linear_conv_kernel_dim", 4)
            return [
                Tensor("linear attention", count * hidden * (width + 2 * value), "linear"),
                Tensor("linear attention gates", count * (hidden * 2 * value_heads + convolution), "whole"),
            ]
        query = hidden * self.heads * self.head_dim
        # Qwen3-Next's queries carry an output gate of the same size.
        gate = query if self.config.get("full_attention_interval") or self.config.get("attn_output_gate") else 0
        return [
            Tensor("attention", count * (2 * query + gate), "linear"),
            Tensor("key and value", count * 2 * hidden * self.kv_heads * self.head_dim, "kv"),
        ]

    def mla_tensors(self, count: int) -> list[Tensor]:
        nope, rope = self.number("qk_nope_head_dim"), self.number("qk_rope_head_dim")
        value, latent, hidden = self.number("v_head_dim"), self.number("kv_lora_rank"), self.hidden
        query_latent = self.optional("q_lora_rank")
        down = hidden * (query_latent + latent + rope)
        up = (query_latent or hidden) * self.heads * (nope + rope) + latent * self.heads * (nope + value)
        found = [
            Tensor("latent projections", count * down, "latent"),
            Tensor("attention", count * (up + self.heads * value * hidden), "linear"),
        ]
        if index := self.optional("index_head_dim"):
            heads = self.number("index_n_heads")
            found.append(Tensor("indexer", count * (query_latent * heads * index + hidden * (index + heads)), "latent"))
        return found

    def mlp_tensors(self, layer: Layer) -> list[Tensor]:
        hidden, count = self.hidden, layer.count
        if not layer.moe:
            return [Tensor("mlp", count * 3 * hidden * self.dense_size(), "linear")]
        return [
            Tensor("experts", count * self.experts * 3 * hidden * self.expert_size(), "expert"),
            Tensor("shared experts", count * 3 * hidden * self.shared_size(), self.shared_kind()),
            Tensor("router", count * hidden * self.experts, "whole"),
        ]

    def shared_kind(self) -> TensorKind:
        """Return how shared experts are stored: as the routed ones where a checkpoint leaves the attention alone and does not name them."""
        section = quantization_config(self.whole)
        named = any("shared_expert" in str(entry) for entry in section.get("ignore") or ())
        return "expert" if section.get("quant_method") == "compressed-tensors" and not named else "linear"

    def extra_parameters(self) -> int:
        """Return what is no language model: given as a number, else a vision tower's layers from its own config."""
        if given := self.whole.get("extra_parameters"):
            return int(float(given))
        vision = self.whole.get("vision_config")
        if not isinstance(vision, Mapping):
            return 0
        width = int(vision.get("hidden_size") or 0)
        depth = int(vision.get("num_hidden_layers") or vision.get("depth") or 0)
        return depth * (4 * width * width + 2 * width * int(vision.get("intermediate_size") or 4 * width))

    # --- the rest --------------------------------------------------------------------------------------------

    def linear_dims(self) -> tuple[int, int, int]:
        """Return the widths of all keys, all values, and the number of value heads of a gated delta net."""
        heads = self.number("linear_num_value_heads")
        key = self.number("linear_num_key_heads") * self.number("linear_key_head_dim")
        return key, heads * self.number("linear_value_head_dim"), heads

    def state_bytes(self) -> int:
        """Return the bytes of one linear layer's state for one sequence (all heads)."""
        key, value, heads = self.linear_dims()
        kernel = self.number("linear_conv_kernel_dim", 4)
        recurrent = heads * self.number("linear_key_head_dim") * self.number("linear_value_head_dim")
        # vLLM follows the config for these models only.
        asked = self.config.get("mamba_ssm_dtype") if self.model_type.startswith("qwen3_5") else None
        return 2 * (2 * key + value) * (kernel - 1) + DTYPE_BYTES.get(str(asked), 2) * recurrent

    def max_position(self) -> int:
        """Return the most tokens the model takes, as vLLM derives it from the rope scaling; 0 where unknown."""
        longest = self.optional("max_position_embeddings")
        scaling = self.config.get("rope_scaling") or self.config.get("rope_parameters")
        if not isinstance(scaling, Mapping) or self.model_type.startswith("gemma3"):
            return longest
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if kind in UNSTRETCHED_ROPES or not isinstance(factor, (int, float)):
            return longest
        original = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
        return math.floor((original if isinstance(original, int) else longest) * factor)


# --- storage -------------------------------------------------------------------------------------------------


def storage(section: Mapping[str, Any], model_type: str = "", layers: int = 1) -> Storage | None:
    """Return how a ``quantization_config`` stores weights, or None for none. Raises `UnknownShapeError` for a method not known."""
    method = str(section.get("quant_method") or "")
    if not method and section.get("quant_algo"):
        method = "modelopt"
    if not section or not method:
        return None
    if not NAME.fullmatch(method):
        raise UnknownShapeError(_unknown_method(method))
    if method == "compressed-tensors":
        size, fp8 = _compressed_tensors(section)
        return Storage(method, linear=2.0 if _skips_attention(section, layers) else size, expert=size, fp8=fp8)
    if method.removeprefix("intel/") in ("awq", "gptq", "auto-round"):
        group = int(section.get("group_size") or section.get("q_group_size") or 128)
        bits = int(section.get("bits") or section.get("w_bit") or 4)
        # A 16-bit scale and a zero point of the weights' own width for each group.
        size = bits / 8 + ((2 + bits / 8) / group if group > 0 else 0)
        return Storage(method, linear=size, expert=size)
    if method == "mxfp4":
        return Storage(method, linear=2.0, expert=0.5 + 1 / 32)
    if method.startswith("modelopt"):
        if not section.get("quant_algo") and method == "modelopt":
            # Only the KV cache is quantised.
            return Storage(method, linear=2.0, expert=2.0)
        fp4 = "FP4" in str(section.get("quant_algo", method)).upper()
        size = 0.5 + 1 / 16 if fp4 else 1.0
        return Storage(method, linear=size, expert=size, fp8=not fp4)
    if method in ("fp8", "fbgemm_fp8", "ptpc_fp8"):
        size = 1.0 + _scale_bytes(section.get("weight_block_size"))
        linear = 2.0 if method == "fbgemm_fp8" and model_type.startswith("llama4") else size
        return Storage(method, linear=linear, expert=size, fp8=True)
    raise UnknownShapeError(_unknown_method(method))


def _unknown_method(method: str) -> str:
    return f"its checkpoint is quantised by {shown(method)}, which the plan does not know"


def _scale_bytes(block: object) -> float:
    """Return what a 32-bit scale for each block of weights adds to a weight; nothing where there are no blocks."""
    if not block:
        return 0.0
    sides: list[int] = list(block)[:4] if isinstance(block, Sequence) else []
    if not 1 <= len(sides) <= 3 or not all(is_whole(side, range(1, MOST_IN_BLOCK + 1)) for side in sides):
        raise UnknownShapeError(f"its config.json has weight_block_size {shown(block)}")
    return 4 / math.prod(sides)


def _compressed_tensors(section: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the bytes of a weight, and whether it is a float of eight bits; there are integers of eight, too."""
    groups = section.get("config_groups")
    weights = next(iter(groups.values()))["weights"] if isinstance(groups, Mapping) and groups else {}
    bits, group = int(weights.get("num_bits") or 8), int(weights.get("group_size") or 0)
    return bits / 8 + (2 / group if group > 0 else 0), bits == 8 and weights.get("type", "float") == "float"


def _skips_attention(section: Mapping[str, Any], layers: int) -> bool:
    """Whether the attention of all layers is left as it is, said by a pattern or by naming each."""
    named = [str(entry) for entry in section.get("ignore") or () if "self_attn" in str(entry)]
    return len(named) >= layers or any(entry.startswith("re:") for entry in named)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stores_kv_as_fp8(section: Mapping[str, Any]) -> bool:
    scheme = section.get("kv_cache_scheme")
    compressed = isinstance(scheme, Mapping) and scheme.get("num_bits") == 8
    return compressed or "FP8" in str(section.get("kv_cache_quant_algo") or "").upper()
