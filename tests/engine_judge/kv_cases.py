"""The KV cache and the weights of every known model: the collection's maths beside the answers of vLLM's own code.

    python tests/engine_judge/kv_cases.py write [--few] CASES.json
    python tests/engine_judge/kv_cases.py compare CASES.json ANSWERS.jsonl

kv_cache.py answers the cases. `compare` prints a line for each deviation, and exits with 1 if there is one. ``--few`` takes
one model of each kind of attention.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / ".collections"))

from ansible_collections.gpuops.vllm.plugins.module_utils import _memory, _model  # noqa: E402

# The vLLM whose rules the answers follow: those of 0.29 and later are the same.
VERSION = (0, 32, 0)
GIB = 2**30
#: More than any of them needs: only what a cache of a given size holds is compared.
GPU_GIB = 10_000
# One model of each way to lay a KV cache out.
FEW = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "deepseek-ai/DeepSeek-V3.2",
    "openai/gpt-oss-20b",
    "google/gemma-3-27b-it",
)


def known_models() -> dict[str, dict[str, Any]]:
    """Return the config of each known model, and whether it is a quantised variant of another."""
    path = REPO / "roles" / "vllm_plan" / "vars" / "main" / "models.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["__vllm_plan_known_models"]
    return {
        name: {
            "config": {**entries.get(entry.get("base"), {}).get("config", {}), **entry.get("config", {})},
            "variant": "base" in entry,
        }
        for name, entry in entries.items()
    }


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with what the hub's file has besides, which vLLM wants and no maths needs."""
    section = dict(config.get("quantization_config", {}))
    if not section:
        return dict(config)
    if section["quant_method"] == "gptq":
        section.setdefault("desc_act", False)
    elif section["quant_method"] == "modelopt":
        section.setdefault("ignore", section.pop("exclude_modules", []))
    elif section["quant_method"] == "fp8" and config["model_type"] == "qwen3_next":
        layers = range(config["num_hidden_layers"])
        section.setdefault(
            "modules_to_not_convert", [f"model.layers.{layer}.linear_attn.in_proj_ba" for layer in layers]
        )
    elif section.get("format") == "float-quantized":
        per_token = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
        groups = section["config_groups"].items()
        section["config_groups"] = {name: {"input_activations": per_token, **group} for name, group in groups}
    return {**config, "quantization_config": section}


def divides(shape: _model.Shape, width: int) -> bool:
    """Whether vLLM can share the attention of a model by so many GPUs."""
    kv_heads = 1 if shape.latent_dim else shape.kv_heads
    return shape.heads % width == 0 and (kv_heads % width == 0 or width % kv_heads == 0)


def cases(*, few: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what is to be asked; cases that differ in the question alone follow each other."""
    for name, model in known_models().items():
        if few and name not in FEW:
            continue
        shape = _model.shape(model["config"])
        widths = [2] if few else [1, 2] if model["variant"] else [1, 2, 4, 8]
        for width, kv_dtype in product([width for width in widths if divides(shape, width)], ["auto", "fp8"]):
            if model["variant"] and kv_dtype != "auto":
                continue
            for max_model_len, batch, gib in product([16384, 32768], [2048, 8192], [1, 20, 70]):
                yield {
                    "name": name,
                    "config": completed(model["config"]),
                    "tensor_parallel": width,
                    "kv_cache_dtype": kv_dtype,
                    "max_model_len": max_model_len,
                    "max_num_batched_tokens": batch,
                    "kv_bytes": gib * GIB,
                }


def ours(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collection's answer to a case, in the words of kv_cache.py."""
    # The text part alone is what vLLM was asked for.
    shape = _model.shape({key: value for key, value in case["config"].items() if key != "vision_config"})

    def setting(max_model_len: int) -> _memory.Setting:
        args = {
            "kv-cache-dtype": case["kv_cache_dtype"],
            "max-model-len": max_model_len or "auto",
            "max-num-batched-tokens": case["max_num_batched_tokens"],
            "kv-cache-memory-bytes": case["kv_bytes"],
        }
        return _memory.setting_of(args, shape, case["tensor_parallel"])

    asked = setting(case["max_model_len"])
    found = _memory.fit(shape, asked, GPU_GIB, VERSION)
    return {
        "kv_tokens": found.kv_tokens,
        "max_concurrency": found.concurrency,
        "fits": found.fits,
        "longest": _memory.fit(shape, setting(0), GPU_GIB, VERSION).max_model_len,
        "weights_bytes": found.weights_gib * GIB,
        "block_size": _memory.kv_layout(shape, asked).block_tokens,
    }


def deviations(case: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the collection says something else than vLLM."""
    label = f"{case['name']} tp {case['tensor_parallel']} kv {case['kv_cache_dtype']} len {case['max_model_len']}"
    label += f" batch {case['max_num_batched_tokens']} of {case['kv_bytes'] // GIB} GiB"
    if "kv_tokens" not in answer:
        yield f"{label}: no answer, {answer['error']}"
        return
    mine = ours(case)
    # A backend may ask for bigger blocks than vLLM's default, which the maths takes: then a part of one may go.
    tokens = 0 if answer["block_size"] == mine["block_size"] else answer["block_size"]
    # vLLM pads each GPU's share of MXFP4 experts to what the kernel takes, which the maths leaves out.
    quantised = case["config"].get("quantization_config", {}).get("quant_method")
    share = 0.07 if quantised == "mxfp4" and case["tensor_parallel"] > 1 else 0.01
    allowed = {
        "kv_tokens": tokens,
        "max_concurrency": tokens / case["max_model_len"] + 1e-9,
        "longest": tokens,
        "weights_bytes": share * answer["weights_bytes"],
    }
    for key, most in allowed.items():
        if abs(mine[key] - answer[key]) > most:
            yield f"{label}: {key} {mine[key]:.8g}, vLLM has {answer[key]:.8g}"
    if mine["fits"] != answer["fits"]:
        yield f"{label}: fits {mine['fits']}, vLLM says {answer['error'] or 'it fits'}"


def main(arguments: list[str]) -> int:
    if arguments[0] == "write":
        Path(arguments[-1]).write_text(json.dumps(list(cases(few="--few" in arguments))), encoding="utf-8")
        return 0
    asked = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    answers = [json.loads(line) for line in Path(arguments[2]).read_text(encoding="utf-8").splitlines()]
    found = [line for case, answer in zip(asked, answers, strict=True) for line in deviations(case, answer)]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
