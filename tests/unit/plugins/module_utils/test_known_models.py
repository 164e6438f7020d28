# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of models against what was published of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _checkpoint, _hub, _model

CATALOGUE = Path(__file__).parents[4] / "roles/vllm_plan/vars/main/models.yml"
MODELS: dict[str, dict[str, Any]] = yaml.safe_load(CATALOGUE.read_text())["__vllm_plan_known_models"]
KEYS = {"source", "base", "parameters", "config", "weights_gb"}

# The models of the guide, and quantised ones that a plan can suggest where these do not fit.
NEEDED = {
    "mistralai/Mistral-7B-Instruct-v0.3": None,
    "Qwen/Qwen3-32B": None,
    "meta-llama/Llama-3.3-70B-Instruct": None,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": None,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": None,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": "compressed-tensors",
    "deepseek-ai/DeepSeek-V3.2": "fp8",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic": "compressed-tensors",
    "nvidia/Llama-3.3-70B-Instruct-FP8": "modelopt",
    "lambda/Llama-3.3-70B-Instruct-AWQ-4bit": "awq",
    "Qwen/Qwen3-32B-FP8": "fp8",
    "Qwen/Qwen3-32B-AWQ": "awq",
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8": "compressed-tensors",
    "openai/gpt-oss-20b": "mxfp4",
}


def whole(name: str) -> dict[str, Any]:
    """Return an entry with its base below it."""
    entry = MODELS[name]
    base = MODELS.get(entry.get("base", ""), {})
    return {**base, **entry, "config": {**base.get("config", {}), **entry.get("config", {})}}


def test_what_the_guide_names_is_there() -> None:
    assert {name: _checkpoint.quantization_method(whole(name)["config"]) for name in NEEDED} == NEEDED


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_give_the_published_number_of_parameters(name: str) -> None:
    entry = whole(name)
    assert _model.shape(entry["config"]).parameters == pytest.approx(float(entry["parameters"]), rel=0.02)


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if "weights_gb" in entry])
def test_the_storage_gives_the_published_size_of_the_files(name: str) -> None:
    entry = whole(name)
    shape = _model.shape(entry["config"])
    assert shape.storage is not None
    size = sum(tensor.parameters * shape.storage.bytes_of(tensor.kind, shape.dtype_bytes) for tensor in shape.tensors)
    assert size / 1e9 == pytest.approx(entry["weights_gb"], rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_every_number_says_where_it_was_read(name: str) -> None:
    """A class of transformers, or a page: those of GitHub at one commit, so that what was read stays there."""
    source = MODELS[name]["source"]
    github = r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+"
    page = r"https://(?!github\.com)[a-z0-9.-]+/\S+"
    assert re.fullmatch(rf"recalled|transformers\.\w+Config|{github}|{page}", source), source


@pytest.mark.parametrize("name", MODELS)
def test_an_entry_has_what_it_needs_and_nothing_else(name: str) -> None:
    entry = MODELS[name]
    assert _hub.MODEL.fullmatch(name)
    assert set(entry) <= KEYS
    if "base" in entry:
        # A base of a base would have to be looked up, too.
        assert "base" not in MODELS[entry["base"]]
        assert "parameters" not in entry
        assert _checkpoint.quantization_method(entry["config"])
        assert not _checkpoint.quantization_method(MODELS[entry["base"]]["config"])
    else:
        assert isinstance(entry["parameters"], float)


@pytest.mark.parametrize("name", MODELS)
def test_the_longest_context_is_known(name: str) -> None:
    assert _model.shape(whole(name)["config"]).max_position >= 16384
