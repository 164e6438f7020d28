"""Renders an engine file for every GPU profile and for what the shipped inventories plan, with the collection's own code.

    python tests/engine_judge/render.py FOLDER

What it writes, judge.py judges.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "scripts"), str(REPO / ".collections")]

from ansible_collections.gpuops.vllm.plugins.module_utils._engine_file import engine_yaml  # noqa: E402
from planner import CATALOGUE, Host, host, make_plan  # noqa: E402

# Small enough for every GPU: what fits is judged elsewhere.
CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}  # fmt: skip
QUANTIZED = {
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
}  # fmt: skip


def inventory(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each host of an inventory with its variables, untemplated."""
    names = yaml.safe_load((folder / "hosts.yml").read_text(encoding="utf-8"))["vllm_servers"]["hosts"]
    for name in names:
        variables: dict[str, Any] = {}
        for path in (folder / "group_vars" / "vllm_servers.yml", folder / "host_vars" / f"{name}.yml"):
            if path.is_file():
                variables |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        yield str(name), variables


def plans() -> Iterator[tuple[str, list[dict[str, Any]], Host]]:
    """Yield a label, the models and the host of all that is to be rendered."""
    for name, profile in CATALOGUE["__vllm_plan_profiles"].items():
        slug = name.replace("_", "-")
        only = profile.get("requires_quantization", [])
        two = [{"name": "a GPU", **profile["requires"]}] * 2 if profile["device"] == "cuda" else []
        for width, method in product([1, 2] if two else [1], only[:1] or [None, "compressed-tensors"]):
            model = {"name": slug, "model": f"/srv/models/{slug}", "tensor_parallel": width}
            config = {**CONFIG, "quantization_config": QUANTIZED[method]} if method else CONFIG
            numbers = {model["model"]: {"config": config, "weights_bytes": None, "source": "made up"}}
            found = host(slug, two, gpu_profile=name, numbers=numbers, allow_misfit=True)
            yield f"{slug}-tp{width}-{method or 'unquantized'}", [model], found
    for folder in (REPO / "inventory" / "example", REPO / "inventory" / "demo"):
        for name, variables in inventory(folder):
            found = host(
                name,
                variables.get("vllm_plan_gpus", []),
                gpu_profile=variables.get("vllm_gpu_profile", "auto"),
                engine_args=variables.get("vllm_default_engine_args", {}),
                allow_misfit=True,
            )
            yield f"{folder.name}-{name}", variables["vllm_models"], found


def instances() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label and an instance of the plan, for each engine file that is to be judged."""
    for label, models, where in plans():
        plan = make_plan(models, where)
        if plan.problems:
            raise SystemExit(f"{label}: {plan.problems[0]}")
        for instance in plan.instances:
            yield f"{label}-{instance['name']}", instance


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for label, instance in instances():
        text = engine_yaml(instance)
        if text not in seen:
            (folder / f"{label}.yaml").write_text(text, encoding="utf-8")
        seen.add(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
