"""What a drill showed, kept for docs/drills.md; scripts/drills says how the pieces fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

# "without" is ours with the part taken away that the drill is about.
Way = Literal["ours", "naive", "without"]

FILE = Path(__file__).resolve().parents[2] / ".build" / "drills.jsonl"


def wanted() -> bool:
    """Whether this is a run of `make drills`, which also shows what the naive way does."""
    return os.environ.get("GPUOPS_DRILLS") == "all"


def record(drill: str, way: Way, ok: bool, seen: str) -> None:
    """Keep one result as a line of its own. `drill`: its name in the table; `seen`: what was measured, in a few words."""
    FILE.parent.mkdir(exist_ok=True)
    line = json.dumps({"drill": drill, "way": way, "ok": ok, "seen": " ".join(seen.split())})
    with FILE.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
