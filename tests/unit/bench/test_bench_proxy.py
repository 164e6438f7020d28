"""The whole of `make bench-proxy` in small: a real NGINX, a second for each thing, without LiteLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gateway
import pytest

REPO = Path(__file__).resolve().parents[3]


def test_the_bench_runs_and_every_answer_is_whole() -> None:
    if gateway.nginx() is None:
        pytest.skip("no NGINX here: `scripts/nginx .build/nginx` unpacks Debian's")
    command = [sys.executable, str(REPO / "scripts/bench-proxy"), "--quick", "--without-litellm"]
    before = {file.name: file.stat().st_mtime_ns for file in (REPO / "docs").iterdir()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    # A busy machine adds a mark to the name.
    shown = [row for row in rows if any(word.startswith(("direct", "NGINX alone", "this gateway")) for word in row[:2])]
    # Three ways: two numbers of streams in each of the tables of times and of CPU, and once the short answers.
    assert len(shown) == 15
    assert {file.name: file.stat().st_mtime_ns for file in (REPO / "docs").iterdir()} == before
