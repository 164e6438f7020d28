"""The engine that the role installed counts the KV cache and the weights of a few models as the plan counts them."""

from __future__ import annotations

import base64
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoint
import pytest

testinfra_hosts = ["ansible://gpu01"]
TOOLS = endpoint.TOP / "tests" / "engine_judge"
UNPACK = "import sys, zlib; sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))"


def send(host: Any, source: Path, target: str) -> None:
    """Write a file on the machine, small enough packed for a command line."""
    packed = base64.b64encode(zlib.compress(source.read_bytes(), 9)).decode()
    host.check_output("printf %%s %s | base64 -d | python3 -c %s > %s", packed, UNPACK, target)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is asked, made here on the control node: one model of each kind of attention."""
    file: Path = tmp_path_factory.mktemp("kv-cache") / "cases.json"
    subprocess.run([sys.executable, TOOLS / "kv_cases.py", "write", "--few", file], check=True, timeout=120)
    return file


@pytest.fixture(scope="module")
def answers(host: Any, cases: Path) -> Iterator[Path]:
    """What the machine's vLLM answers."""
    folder = host.check_output("mktemp -d /root/kv-cache.XXXXXX")
    try:
        send(host, TOOLS / "kv_cache.py", f"{folder}/kv_cache.py")
        send(host, cases, f"{folder}/cases.json")
        # Its home and its temporary files are the folder's, and no bytecode is written: nothing is left behind.
        run = host.run(
            "cd %s && HOME=%s TMPDIR=%s PYTHONDONTWRITEBYTECODE=1 "
            "timeout 300 /opt/vllm/current/bin/python kv_cache.py cases.json",
            folder,
            folder,
            folder,
        )
        assert run.rc == 0, run.stderr
        file = cases.with_name("answers.jsonl")
        file.write_text(run.stdout, encoding="utf-8")
        yield file
    finally:
        host.check_output("rm -r %s", folder)


def test_the_plan_counts_what_vllm_counts(cases: Path, answers: Path) -> None:
    done = subprocess.run(
        [sys.executable, TOOLS / "kv_cases.py", "compare", cases, answers],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
