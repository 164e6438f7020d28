"""Documents that are computed must be what is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def test_the_gpu_table_is_the_planners() -> None:
    done = subprocess.run([sys.executable, REPO / "scripts/gpu-table", "--check"], check=False, timeout=120)
    assert done.returncode == 0, "docs/which-gpu.md is not what the planner says: run `make docs`"
