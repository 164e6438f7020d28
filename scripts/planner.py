"""The planner outside of Ansible: a host made of kinds of GPU, with the collection's own catalogues. For documents and benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / ".collections"))

from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus  # noqa: E402
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, make_plan  # noqa: E402

__all__ = ["CATALOGUE", "Host", "host", "make_plan"]

CATALOGUE: dict[str, Any] = {}
for _file in sorted((REPO / "roles/vllm_plan/vars/main").glob("*.yml")):
    CATALOGUE |= yaml.safe_load(_file.read_text(encoding="utf-8"))


def host(name: str, gpus: Sequence[Any], **changes: Any) -> Host:
    """Return a host with these GPUs, written as in ``vllm_plan_gpus``."""
    known = CATALOGUE["__vllm_plan_known_gpus"]
    found, problems = _gpus.declared(list(gpus), known)
    if problems:
        raise ValueError(" ".join(problems))
    return Host(
        **{
            "name": name,
            "gpus": found,
            "profiles": CATALOGUE["__vllm_plan_profiles"],
            "base_engine_args": CATALOGUE["__vllm_plan_base_engine_args"],
            "known_models": CATALOGUE["__vllm_plan_known_models"],
            "known_gpus": known,
            "options": CATALOGUE["__vllm_plan_options"],
            "since": CATALOGUE["__vllm_plan_option_since"],
            "rules": CATALOGUE["__vllm_plan_rules"],
            **changes,
        }
    )
