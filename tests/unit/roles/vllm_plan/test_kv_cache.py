"""The KV cache and the weights that the plan counts for each known model are those that a real vLLM's own code counts.

`GPUOPS_REAL_VLLM` names one of 0.32; a CPU build will do, and no weights are loaded. It takes about two minutes:

    GPUOPS_REAL_VLLM=/path/to/venv/bin/vllm pytest tests/unit/roles/vllm_plan/test_kv_cache.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[4]
TOOLS = REPO / "tests" / "engine_judge"
KNOWN = yaml.safe_load((REPO / "roles/vllm_plan/vars/main/models.yml").read_text(encoding="utf-8"))[
    "__vllm_plan_known_models"
]
REAL_ENGINE = os.environ.get("GPUOPS_REAL_VLLM", "")
needs_vllm = pytest.mark.skipif(not REAL_ENGINE, reason="GPUOPS_REAL_VLLM names no real vLLM")


def kv_cases(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / "kv_cases.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def written(file: Path, *options: str) -> list[dict[str, Any]]:
    done = kv_cases("write", *options, file)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def compared(folder: Path, cases: list[dict[str, Any]], answers: list[dict[str, Any]]) -> tuple[int, list[str]]:
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    done = kv_cases("compare", folder / "cases.json", folder / "answers.jsonl")
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_every_known_model_is_asked(tmp_path: Path) -> None:
    cases = written(tmp_path / "cases.json")
    assert {case["name"] for case in cases} == set(KNOWN)
    assert {case["tensor_parallel"] for case in cases} == {1, 2, 4, 8}
    assert {case["kv_cache_dtype"] for case in cases} == {"auto", "fp8"}
    # vLLM cannot share ten key-value heads by four.
    assert {case["tensor_parallel"] for case in cases if case["name"] == "microsoft/phi-4"} == {1, 2}


def test_the_few_are_of_every_kind_of_attention(tmp_path: Path) -> None:
    configs = [case["config"] for case in written(tmp_path / "cases.json", "--few")]
    texts = [config.get("text_config", config) for config in configs]
    for key in (
        "sliding_window_pattern",
        "layer_types",
        "attention_chunk_size",
        "linear_num_key_heads",
        "index_head_dim",
    ):
        assert any(key in text for text in texts), key


# Mistral 7B in 1 GiB, computed by hand: 32 layers x 2 x 8 heads x 128 x 2 bytes are 128 KiB a token.
RIGHT = {
    "num_blocks": 512, "kv_tokens": 8192, "max_concurrency": 0.5, "fits": False, "longest": 8176, "error": "no room",
    "groups": [32], "block_size": 16, "weights_bytes": 7248023552 * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"kv_tokens": 8193}, ["kv_tokens 8192, vLLM has 8193"]),
        ({"kv_tokens": 8256, "block_size": 64}, []),
        ({"kv_tokens": 8257, "block_size": 64}, ["kv_tokens 8192, vLLM has 8257"]),
        ({"max_concurrency": 0.6}, ["max_concurrency 0.5, vLLM has 0.6"]),
        ({"longest": 9000}, ["longest 8176, vLLM has 9000"]),
        ({"weights_bytes": 14.6e9}, []),
        ({"weights_bytes": 15e9}, ["weights_bytes 1.4496047e+10, vLLM has 1.5e+10"]),
        ({"fits": True, "error": None}, ["fits False, vLLM says it fits"]),
    ],
)
def test_a_deviation_is_named(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    case = written(tmp_path / "all.json")[0]
    assert (case["name"], case["kv_bytes"]) == ("mistralai/Mistral-7B-Instruct-v0.3", 2**30)
    status, lines = compared(tmp_path, [case], [{**RIGHT, **changes}])
    assert status == (1 if said else 0)
    assert [line.endswith(end) for line, end in zip(lines, said, strict=True)] == [True] * len(said)


def test_no_answer_is_a_deviation(tmp_path: Path) -> None:
    case = written(tmp_path / "all.json")[0]
    status, lines = compared(tmp_path, [case], [{"error": "AssertionError: "}])
    assert status == 1
    assert "no answer, AssertionError" in lines[0]


@needs_vllm
def test_the_plan_counts_what_vllm_counts(tmp_path: Path) -> None:
    """What fits, tokens, concurrency and the longest context to the block; the weights within 1 %."""
    cases = written(tmp_path / "all.json")
    done = subprocess.run(
        [Path(REAL_ENGINE).with_name("python"), TOOLS / "kv_cache.py", tmp_path / "all.json"],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr
    status, lines = compared(tmp_path, cases, answers)
    assert not "".join(lines), "\n".join(lines[:20])
    assert status == 0
