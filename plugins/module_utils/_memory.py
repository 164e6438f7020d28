# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU memory as vLLM counts it: weights, activation, and what is left for the KV cache. Pure; GiB are 2**30 bytes.

``KV budget = utilization x visible memory - weights - peak activation - non-torch - CUDA graphs``, each per GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._model import DTYPE_BYTES, Shape, TensorKind
from ._wanted import count

GIB = 2**30
#: What vLLM takes of a GPU where nobody says.
DEFAULT_UTILIZATION = 0.92
#: Tokens in a block of the KV cache, vLLM's default.
BLOCK_TOKENS = 16
#: With asynchronous scheduling, vLLM's default, two batches are under way, and a sliding window holds the tokens of both.
BATCHES_IN_FLIGHT = 2

# --- constants that no shape gives; the tests say which measured runs they come from and which runs only check them ------
#: What libraries take outside of torch's allocator on one GPU.
NON_TORCH_GIB = 0.22
#: The CUDA context of one process, which vLLM does not count: 0.51 on an H100, 0.6 to 1 seen by others.
CONTEXT_GIB = 1.0
#: NCCL's buffers with two GPUs; with more of them not measured.
NCCL_GIB = 0.76
#: Small buffers that the second model runner keeps, beside the sampler's.
RUNNER_GIB = 0.045
#: CUDA graphs of one layer over the 51 batch sizes that vLLM captures by default.
GRAPHS_GIB_PER_LAYER = 0.0185
GRAPH_SIZES = 51
#: The most requests in a batch that is captured, and the models for which vLLM captures batches of twice as many.
LARGEST_GRAPH = 512
DOUBLE_GRAPHS = ("gpt_oss",)
#: From this version on all models run in vLLM's second model runner, which takes CUDA graphs off the KV budget. Before, the second
#: one ran dense models and did not; the first one ran the others and did.
ONE_RUNNER_SINCE = (0, 29, 0)
#: The sampler's copies of the logits in the first runner, in bytes per request and vocabulary entry: 32 bit, sorted, indices, sums.
FIRST_RUNNER_SAMPLER_BYTES = 24
#: What the second runner keeps for penalties, in bytes per request and vocabulary entry.
SECOND_RUNNER_SAMPLER_BYTES = 4
#: The most tokens whose latents MLA expands at once.
LATENT_CHUNK_TOKENS = 65536


@dataclass(frozen=True)
class Setting:
    """Engine arguments that decide about memory, as numbers. ``max_model_len`` 0 means as much as fits."""

    tensor_parallel: int = 1
    utilization: float = DEFAULT_UTILIZATION
    max_model_len: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_fp8: bool = False
    kv_bytes: int = 2
    online_fp8: bool = False
    dtype_bytes: int = 2
    graphs: bool = True
    kv_cache_bytes: int = 0
    hopper: bool = True
    offload_gib: float = 0.0


@dataclass(frozen=True)
class Fit:
    """What one GPU of an instance holds, in GiB, and what that serves.

    ``request_gib`` is the KV cache of one request of ``max_model_len`` tokens; ``concurrency`` counts such requests.
    """

    budget_gib: float
    weights_gib: float
    activation_gib: float
    non_torch_gib: float
    graphs_gib: float
    kv_gib: float
    request_gib: float
    max_model_len: int
    kv_tokens: int
    concurrency: float
    fits: bool


@dataclass(frozen=True)
class KvGroup:
    """Layers whose KV cache is handed out together, a block at a time. ``window`` and ``chunk`` are in tokens, 0 for none."""

    state: bool = False
    window: int = 0
    chunk: int = 0


@dataclass(frozen=True)
class KvLayout:
    """How vLLM cuts the KV cache: the size of a block of ``block_tokens`` tokens in one group, and the groups."""

    block_tokens: int
    block_bytes: int
    groups: tuple[KvGroup, ...]

    def blocks(self, tokens: int, in_flight: int) -> int:
        """Return the blocks that one request of so many tokens needs, over all groups."""
        total = 0
        for group in self.groups:
            if group.state:
                # The state of a sequence, and the one it was resumed from (prefix caching).
                total += 2
            elif group.window:
                total += math.ceil(min(group.window - 1 + in_flight, tokens) / self.block_tokens) + 1
            elif group.chunk:
                total += math.ceil(min(group.chunk + in_flight, tokens) / self.block_tokens)
            else:
                total += math.ceil(tokens / self.block_tokens)
        return total


def fit(
    shape: Shape,
    setting: Setting,
    memory_gib: float,
    version: tuple[int, ...],
    stored_bytes: int | None = None,
    *,
    cold: bool = True,
) -> Fit:
    """Return what vLLM ``version`` makes of a GPU with ``memory_gib`` visible to CUDA.

    ``stored_bytes`` is the checkpoint's size where it is known. ``cold`` takes the activation of a first start.
    """
    budget = setting.utilization * memory_gib
    weights = max(0.0, weights_gib(shape, setting, stored_bytes) - setting.offload_gib)
    activation = activation_gib(shape, setting, version, cold=cold)
    non_torch = NON_TORCH_GIB + (NCCL_GIB if setting.tensor_parallel > 1 else 0)
    graphs = graphs_gib(shape, setting, version)
    used = weights + activation + non_torch + graphs
    kv = setting.kv_cache_bytes / GIB if setting.kv_cache_bytes else budget - used
    layout = kv_layout(shape, setting)
    blocks = max(0, int(kv * GIB)) // layout.block_bytes
    in_flight = BATCHES_IN_FLIGHT * setting.max_num_batched_tokens
    # From 0.29 on, the check (and only that) leaves one block out.
    checked = blocks - (1 if version >= ONE_RUNNER_SINCE else 0)
    longest = setting.max_model_len or _longest(layout, checked, in_flight, shape.max_position or 2**20)
    per_request = layout.blocks(longest, in_flight)
    concurrency = blocks / per_request if longest else 0.0
    return Fit(
        budget_gib=budget,
        weights_gib=weights,
        activation_gib=activation,
        non_torch_gib=non_torch,
        graphs_gib=graphs,
        kv_gib=kv,
        request_gib=per_request * layout.block_bytes / GIB,
        max_model_len=longest,
        kv_tokens=int(concurrency * longest),
        concurrency=concurrency,
        # A size of the cache that is given is not compared with the utilization, and must still be there.
        fits=longest > 0
        and per_request <= checked
        and (not setting.kv_cache_bytes or used + kv + CONTEXT_GIB <= memory_gib),
    )


def _longest(layout: KvLayout, blocks: int, in_flight: int, limit: int) -> int:
    """Return the most tokens of one request in so many blocks, by bisection: more tokens never need fewer blocks."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if layout.blocks(middle, in_flight) <= blocks else (low, middle - 1)
    return low


# --- the parts -----------------------------------------------------------------------------------------------


def weights_gib(shape: Shape, setting: Setting, stored_bytes: int | None = None) -> float:
    """Return the weights on one GPU. A known size of the checkpoint corrects what the shapes alone give."""
    plain = float(setting.dtype_bytes)

    def loaded(kind: TensorKind) -> float:
        if shape.storage:
            return shape.storage.bytes_of(kind, plain)
        quantised = setting.online_fp8 and kind in ("linear", "kv", "latent", "expert")
        return 1.0 if quantised else plain

    def stored(kind: TensorKind) -> float:
        return shape.storage.bytes_of(kind, shape.dtype_bytes) if shape.storage else shape.dtype_bytes

    padding = _mxfp4_padding(shape, setting)
    divided = {"kv": min(setting.tensor_parallel, shape.kv_heads), "whole": 1, "latent": 1}
    on_gpu = sum(
        tensor.parameters
        * loaded(tensor.kind)
        / divided.get(tensor.kind, setting.tensor_parallel)
        * (padding if tensor.kind == "expert" else 1.0)
        for tensor in shape.tensors
    )
    if shape.latent_dim and loaded("linear") < plain:
        # Attention wants the latents' up-projection unquantised: a second copy.
        up = shape.layer_count * shape.heads * shape.latent_up_dim * shape.latent_rank
        on_gpu += up * plain / setting.tensor_parallel
    correction = 1.0
    if stored_bytes:
        correction = stored_bytes / sum(tensor.parameters * stored(tensor.kind) for tensor in shape.tensors)
    return on_gpu * correction / GIB


def _mxfp4_padding(shape: Shape, setting: Setting) -> float:
    """Return by how much the experts' kernels make MXFP4 experts larger: they want whole tiles."""
    if shape.storage is None or shape.storage.method != "mxfp4":
        return 1.0
    inner, outer = shape.expert_mlp / setting.tensor_parallel, shape.hidden_size
    tiles = ((inner, 64), (outer, 1)) if setting.hopper else ((inner, 128), (outer, 256))
    return math.prod(math.ceil(size / tile) * tile / size for size, tile in tiles)


def activation_gib(shape: Shape, setting: Setting, version: tuple[int, ...], *, cold: bool = True) -> float:
    """Return the peak of one forward pass over ``max_num_batched_tokens``, and the buffers that are kept for it."""
    tokens, split, size = setting.max_num_batched_tokens, setting.tensor_parallel, setting.dtype_bytes
    fp8 = setting.online_fp8 or (shape.storage is not None and 1 <= shape.storage.linear < 1.5)
    hidden = 2 * shape.hidden_size * size
    # Gate and up side by side and their product (which FP8 makes smaller), while the attention's input is still there.
    mlp = shape.dense_mlp * (2 * size + (1 if fp8 else size))
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim * size if not shape.latent_dim else 0
    forward = tokens * (hidden + (mlp + attention) / split)
    if shape.latent_dim:
        chunk = min(max(8 * setting.max_model_len, 4 * setting.max_num_seqs * BLOCK_TOKENS), LATENT_CHUNK_TOKENS)
        forward += chunk * (shape.heads * shape.latent_up_dim / split + shape.latent_dim) * size
    # A first start compiles, and holds a copy as large as the embeddings meanwhile; on a GPU alone also the hidden states.
    compiling = shape.vocab_size * shape.hidden_size * size / split
    compiling += tokens * (hidden + (shape.hidden_size if fp8 else 0)) if split == 1 else 0
    peak = max(forward, compiling if cold else 0)
    logits = setting.max_num_seqs * shape.vocab_size
    if shape.experts_per_token:
        # Each expert chosen has rows of its own in two buffers, which are kept: gate and up or the output, and the product or the input.
        inner, outer = shape.expert_mlp / split, shape.hidden_size
        peak += tokens * shape.experts_per_token * (max(2 * inner, outer) + max(inner, outer)) * size
    if _first_runner(shape, version):
        peak = max(peak, logits * FIRST_RUNNER_SAMPLER_BYTES)
    elif version >= ONE_RUNNER_SINCE:
        peak += logits * SECOND_RUNNER_SAMPLER_BYTES + RUNNER_GIB * GIB
    return peak / GIB


def graphs_gib(shape: Shape, setting: Setting, version: tuple[int, ...]) -> float:
    """Return what vLLM takes off the KV budget for CUDA graphs."""
    if not setting.graphs or (version < ONE_RUNNER_SINCE and not _first_runner(shape, version)):
        return 0.0
    doubled = shape.model_type in DOUBLE_GRAPHS
    wanted = 2 * LARGEST_GRAPH if doubled else min(2 * setting.max_num_seqs, LARGEST_GRAPH)
    largest = min(wanted, setting.max_num_batched_tokens)
    # 1, 2, 4, then every 8 below 256 and every 16 from there on.
    sizes = 3 + min(largest, 255) // 8 + (1 + (largest - 256) // 16 if largest >= 256 else 0)
    # Half of it is divided: read off two GPUs.
    share = (1 + 1 / setting.tensor_parallel) / 2
    return shape.layer_count * GRAPHS_GIB_PER_LAYER * share * sizes / GRAPH_SIZES


def _first_runner(shape: Shape, version: tuple[int, ...]) -> bool:
    dense = not shape.experts_per_token and all(layer.attention in ("full", "mla") for layer in shape.layers)
    return version < ONE_RUNNER_SINCE and not dense


def kv_layout(shape: Shape, setting: Setting) -> KvLayout:
    """Return how vLLM lays the KV cache out over the layers."""
    item = 1 if setting.kv_fp8 else setting.kv_bytes
    if shape.latent_dim:
        # DeepSeek V3.2's FP8 latents carry their scales and an unquantised rope part, its indexer keys FP8 and scales.
        indexer = shape.indexer_dim + shape.indexer_dim // 128 * 4
        latent = 656 if setting.kv_fp8 and indexer else shape.latent_dim * item
        return KvLayout(BLOCK_TOKENS, BLOCK_TOKENS * shape.layer_count * (latent + indexer), (KvGroup(),))
    per_token = 2 * max(1, shape.kv_heads // setting.tensor_parallel) * shape.head_dim * item
    counts = {
        kind: sum(layer.count for layer in shape.layers if layer.attention == kind)
        for kind in ("full", "sliding", "chunked", "linear")
    }
    present = [count for count in counts.values() if count]
    size = min(present) if max(present) >= 1.5 * min(present) else max(present)
    window = max((layer.window for layer in shape.layers if layer.attention == "sliding"), default=0)
    chunk = max((layer.window for layer in shape.layers if layer.attention == "chunked"), default=0)
    kinds = {
        "full": KvGroup(),
        "sliding": KvGroup(window=window),
        "chunked": KvGroup(chunk=chunk),
        "linear": KvGroup(state=True),
    }
    groups = tuple(group for kind, group in kinds.items() for _part in range(math.ceil(counts[kind] / size)))
    block = BLOCK_TOKENS
    if counts["linear"]:
        # All blocks have one size: a block of attention holds as many tokens as a state has room for.
        state = shape.state_bytes / setting.tensor_parallel
        block = BLOCK_TOKENS * math.ceil(state / (BLOCK_TOKENS * per_token))
    return KvLayout(block, block * per_token * size, groups)


# --- from engine arguments -----------------------------------------------------------------------------------


def setting_of(args: Mapping[str, Any], shape: Shape, tensor_parallel: int) -> Setting:
    """Return what engine arguments (spelt as on the command line) mean for memory. Raises ValueError naming one it cannot read."""
    kv_dtype = str(args.get("kv-cache-dtype", "auto"))
    dtype = str(args.get("dtype", "auto"))
    return Setting(
        tensor_parallel=tensor_parallel,
        utilization=_number(args, "gpu-memory-utilization", DEFAULT_UTILIZATION),
        max_model_len=_max_model_len(args, shape),
        max_num_seqs=_count(args, "max-num-seqs", 256),
        max_num_batched_tokens=_count(args, "max-num-batched-tokens", 2048),
        kv_fp8=kv_dtype.startswith("fp8") or (kv_dtype == "auto" and shape.kv_cache_fp8),
        kv_bytes=4 if kv_dtype == "auto" and DTYPE_BYTES.get(dtype) == 4 else 2,
        online_fp8=shape.storage is None and str(args.get("quantization") or "").startswith("fp8"),
        dtype_bytes=DTYPE_BYTES.get(dtype, min(shape.dtype_bytes, 2)),
        graphs=args.get("enforce-eager") is not True,
        kv_cache_bytes=_count(args, "kv-cache-memory-bytes", 0),
        offload_gib=_number(args, "cpu-offload-gb", 0.0),
    )


def _max_model_len(args: Mapping[str, Any], shape: Shape) -> int:
    value = args.get("max-model-len")
    if value in ("auto", -1, "-1"):
        return 0
    return shape.max_position if value is None else _count(args, "max-model-len", 0)


def _number(args: Mapping[str, Any], key: str, default: float) -> float:
    value = args.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{key} is {value!r}: needs a number")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{key} is {value!r}: needs a number") from None


def _count(args: Mapping[str, Any], key: str, default: int) -> int:
    value = args.get(key, default)
    found = count(value)
    if found is None:
        raise ValueError(f"{key} is {value!r}: needs a whole number")
    return found
