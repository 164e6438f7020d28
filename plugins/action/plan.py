# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the host and computes its plan: one task, so that the first play stays short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, make_plan


class ActionModule(ActionBase):
    """Thin adapter around `make_plan`."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = self._task.args
        found = self._execute_module(
            module_name="gpuops.vllm.host_info",
            module_args={"models": model_paths(args["models"])},
            task_vars=variables,
        )
        if found.get("failed"):
            return {**result, **found}
        plan = make_plan(args["models"], host_of(str(variables["inventory_hostname"]), args, found))
        add_host_findings(plan, found)
        if plan.problems:
            listed = "\n".join(f"- {problem}" for problem in plan.problems)
            return {
                **result,
                "failed": True,
                "msg": f"Nothing was changed. The plan cannot work:\n{listed}",
                "problems": plan.problems,
            }
        if plan.warnings:
            result["warnings"] = plan.warnings
        return {**result, "changed": False, "instances": plan.instances}


def model_paths(models: object) -> list[str]:
    """Return the folders to look into; whatever is no absolute path is for the plan to refuse."""
    if not isinstance(models, list):
        return []
    wanted = [model for model in models if isinstance(model, Mapping) and model.get("state", "present") == "present"]
    paths = [model.get("model") for model in wanted]
    return [path for path in paths if isinstance(path, str) and path.startswith("/")]


def host_of(name: str, args: Mapping[str, Any], found: Mapping[str, Any]) -> Host:
    """Return the plan's view of the host from the task's arguments and `host_info`'s result."""
    return Host(
        name=name,
        gpus=args.get("gpus") or found["gpus"],
        profiles=args["profiles"],
        gpu_profile=args.get("gpu_profile") or "auto",
        base_engine_args=args.get("base_engine_args") or {},
        engine_args=args.get("engine_args") or {},
        env=args.get("env") or {},
        first_port=int(args.get("first_port") or 8000),
        assigned=found["assigned"],
        quantization={path: model["quantization"] for path, model in found["models"].items()},
    )


def add_host_findings(plan: Plan, found: Mapping[str, Any]) -> None:
    """Add what the host itself shows: broken model folders, and GPUs that do not answer where GPUs are wanted."""
    for path, model in found["models"].items():
        plan.problems += [f"vllm_models[].model is {path!r}: {problem}." for problem in model["problems"]]
    if found["gpu_problem"]:
        plan.warnings.append(found["gpu_problem"])
