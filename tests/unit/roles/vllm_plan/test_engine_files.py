"""Every engine file that a profile or a shipped inventory leads to is what a real vLLM takes, word for word.

`GPUOPS_REAL_VLLM` names one; a CPU build will do, and no model is loaded:

    GPUOPS_REAL_VLLM=/path/to/venv/bin/vllm pytest tests/unit/roles/vllm_plan/test_engine_files.py
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
PROFILES = yaml.safe_load((REPO / "roles/vllm_plan/vars/main/profiles.yml").read_text(encoding="utf-8"))
REAL_ENGINE = os.environ.get("GPUOPS_REAL_VLLM", "")
needs_vllm = pytest.mark.skipif(not REAL_ENGINE, reason="GPUOPS_REAL_VLLM names no real vLLM")

WRONG = {
    "no-such-flag: 3": "unrecognized arguments: --no-such-flag",
    "dtype: fp8": "argument --dtype: invalid choice: 'fp8'",
    "quantization: bitsandbytes": "quantization: bitsandbytes is none of",
    "quantization: fbgemm_fp8": "quantization: fbgemm_fp8 is none of",
    "max-num-seqs: lots": "argument --max-num-seqs: invalid int value: 'lots'",
    "enable-prefix-caching: false": "enable-prefix-caching: false is dropped by vLLM",
    "allowed-origins: []": "allowed-origins: [] is dropped by vLLM",
    "max-num-batched: 64": "max-num-batched: no option of vLLM has this name in full",
    "max_model_len: 4096\nmax-model-len: 8192": "max_model_len: the file says 4096, vLLM runs with 8192",
    "port: 1\nport: 2": "port: stands twice",
    "seed: null": "argument --seed: invalid int value: 'None'",
    "compilation-config: {no_such_field: 1}": "no_such_field",
    "enable-auto-tool-choice: true": "--enable-auto-tool-choice requires --tool-call-parser",
}
# Not as written, and yet what was meant.
RIGHT = (
    "no-enable-prefix-caching: true",
    "kv-cache-memory-bytes: 16G",
    "seed: 7",
    "gpu-memory-utilization: 0.95",
    "compilation-config: {mode: 0, pass_config: {fuse_norm_quant: false}}",
    "compilation-config.mode: 0",
    """lora-modules: ['{"name": "a", "path": "/srv/a"}']""",
    "limit-mm-per-prompt: {image: 2}",
)  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("engine") / "files"
    done = subprocess.run(
        [sys.executable, TOOLS / "render.py", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


def judged(files: list[Path]) -> tuple[int, dict[str, dict[str, Any]]]:
    """The judge's exit status, and its verdict of each file by the file's name."""
    done = subprocess.run(
        [Path(REAL_ENGINE).with_name("python"), TOOLS / "judge.py", *files],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == len(files), done.stderr
    return done.returncode, {Path(verdict["file"]).name: verdict for verdict in verdicts}


def test_every_profile_is_rendered(rendered: list[Path]) -> None:
    """Without and with tensor parallelism, of either kind of checkpoint, and the inventories that ship."""
    names = [path.name for path in rendered]
    for profile, content in PROFILES["__vllm_plan_profiles"].items():
        found = {"tp2" in name for name in names if name.startswith(f"{profile.replace('_', '-')}-tp")}
        assert found == ({False} if content["device"] == "cpu" else {False, True}), profile
    assert {name.partition("-")[0] for name in names} >= {"example", "demo"}


def test_the_kinds_of_checkpoint_differ_where_the_profile_says_so(rendered: list[Path]) -> None:
    for profile, content in PROFILES["__vllm_plan_profiles"].items():
        extra = content.get("unquantized_engine_args", {})
        slug = f"{profile.replace('_', '-')}-tp1-"
        found = {path.name.removeprefix(slug): path.read_text() for path in rendered if path.name.startswith(slug)}
        with_extra = {kind.startswith("unquantized") for kind, text in found.items() if "quantization:" in text}
        assert with_extra == ({True} if extra else set()), profile
        assert len(found) == (2 if extra else 1), profile


@needs_vllm
def test_vllm_takes_every_file_as_it_is_written(rendered: list[Path]) -> None:
    status, verdicts = judged(rendered)
    assert [verdict for verdict in verdicts.values() if not verdict["ok"]] == []
    assert status == 0


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The verdicts of all the odd files, by what is odd in them."""
    folder = tmp_path_factory.mktemp("odd")
    files = {}
    for number, line in enumerate([*WRONG, *RIGHT]):
        files[f"{number}.yaml"] = line
        (folder / f"{number}.yaml").write_text(f"model: /srv/models/x\n{line}\n")
    status, found = judged([folder / name for name in files])
    assert status == 1
    return {line: found[name] for name, line in files.items()}


@needs_vllm
@pytest.mark.parametrize(("line", "error"), WRONG.items(), ids=WRONG)
def test_the_judge_refuses(verdicts: dict[str, dict[str, Any]], line: str, error: str) -> None:
    assert not verdicts[line]["ok"]
    assert error in verdicts[line]["error"]


@needs_vllm
@pytest.mark.parametrize("line", RIGHT)
def test_the_judge_takes(verdicts: dict[str, dict[str, Any]], line: str) -> None:
    assert (verdicts[line]["ok"], verdicts[line]["error"]) == (True, None)
