"""The installation of the real engine, which Debian 13 has no build of: killed on gpu02, a bare Debian 12. In the drills alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import endpoint
import killing
import playbook
import pytest
import record

testinfra_hosts = ["ansible://gpu02"]
ONLY = ("--tags", "engine")


@pytest.mark.skipif(not record.wanted(), reason="minutes long, so in the drills alone: GPUOPS_DRILLS=all")
@pytest.mark.parametrize("way", ["after", "middle"])
def test_the_next_run_completes_the_engine(host: Any, way: str) -> None:
    lab = [sys.executable, str(endpoint.TOP / "molecule/lab/lab.py")]
    subprocess.run([*lab, "reset", "--no-layers", "gpu02"], check=True, timeout=120)
    title = killing.title(way, "vllm_engine on a bare machine, real vLLM")
    try:
        walk = killing.walk("site.yml", *ONLY, machine="gpu02", way=way, roles=["vllm_engine"])
        assert any("Build the environment" in kill for kill in walk.killed), walk.killed
        assert host.check_output("/opt/vllm/current/bin/vllm --version").splitlines()[-1].startswith("0.32.0")
        there = host.check_output("ls -A /opt/vllm").split()
        assert len(there) == len({"current", "install", "uv", "the environment"}), there
        again = playbook.run("site.yml", *ONLY, hosts=["gpu02"])
        assert (again.status, again.changed["gpu02"]) == (0, 0), again.said
    except AssertionError as error:
        record.record(title, "ours", False, str(error).partition("\n")[0])
        raise
    record.record(title, "ours", True, f"whole after the next run, {len(walk.killed)} kills")
