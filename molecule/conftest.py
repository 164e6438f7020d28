"""Puts the shared helpers, the load client and the lab on the path of every scenario's tests."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "shared"), str(HERE.parent / "tests" / "load"), str(HERE / "lab")]
