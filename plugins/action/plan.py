# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the host and computes its plan: one task, so that the first play stays short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus, _hub
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, known_model_problems, make_plan
from ansible_collections.gpuops.vllm.plugins.module_utils._wanted import folder_of, is_hub_id, is_path
from ansible_collections.gpuops.vllm.plugins.modules.plan import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments

#: What a host that is not asked shows.
NOTHING: dict[str, Any] = {"gpus": [], "gpu_problem": "", "gpus_complete": True, "assigned": [], "models": {}}


class ActionModule(ActionBase):
    """Thin adapter around `make_plan`."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = checked_arguments(self, DOCUMENTATION)
        preview = args["preview"]
        name = str(variables["inventory_hostname"])
        known_gpus, known_models = args["known_gpus"], args["known_models"]
        declared, problems = _gpus.declared(args["gpus"], known_gpus)
        problems += _gpus.catalogue_problems(known_gpus, "vllm_plan_known_gpus")
        problems += known_model_problems(known_models)
        if problems and preview:
            return {**result, "instances": [], "problems": problems, "misfits": [], "plan_warnings": []}
        if problems:
            return {**result, **refusal(problems)}
        weights_dir = args["weights_dir"].rstrip("/")
        wanted = sources(args["models"])
        found = dict(NOTHING)
        # GPUs that nobody has yet are planned for without a host.
        if not (preview and declared):
            found = self._execute_module(
                module_name="gpuops.vllm.host_info",
                module_args={
                    "models": [folder_of(one, weights_dir) for one in wanted],
                    "known_gpus": dict(known_gpus),
                },
                task_vars=variables,
            )
            if found.get("failed"):
                return {**result, **found}
        numbers, unread = numbers_of(found["models"], {one: folder_of(one, weights_dir) for one in wanted})
        asked = [one for one in wanted if one not in numbers and is_hub_id(one)]
        from_hub, unanswered = self._ask_hub(asked, args, variables)
        host = Host(
            name=name,
            # What a host shows is what it has; declared ones are for a plan without it.
            gpus=declared if preview and declared else found["gpus"] or declared,
            profiles=args["profiles"],
            gpu_profile=args["gpu_profile"],
            base_engine_args=args["base_engine_args"],
            engine_args=args["engine_args"],
            env=args["env"],
            first_port=args["first_port"],
            assigned=found["assigned"],
            numbers={**from_hub, **numbers},
            known_models=known_models,
            known_gpus=known_gpus,
            options=args["options"],
            since=args["since"],
            rules=args["rules"],
            vllm_version=args["vllm_version"],
            min_driver=args["min_driver"],
            weights_dir=weights_dir,
            allow_misfit=args["allow_misfit"],
            preview=preview,
        )
        plan = make_plan(args["models"], host)
        add_host_findings(plan, found, host, wanted, declared)
        plan.warnings += unread + [problem for one, problem in unanswered.items() if one not in known_models]
        if (plan.problems or plan.misfits) and not preview:
            return {**result, **refusal(plan.problems + plan.misfits)}
        if plan.warnings and not preview:
            # Ansible shows a text that several hosts have only once.
            result["warnings"] = [f"{name}: {warning}" for warning in plan.warnings]
        return {
            **result,
            "changed": False,
            "instances": plan.instances,
            "problems": plan.problems,
            "misfits": plan.misfits,
            "plan_warnings": plan.warnings,
        }

    def _ask_hub(
        self, models: list[str], args: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Return the numbers that the hub has of these models, and why it has none of others; all within one time-out."""
        endpoint, timeout_s = args["hub_endpoint"], args["hub_timeout_s"]
        if not endpoint or not models:
            return {}, {}
        # Not an argument of the task: those are shown where ANSIBLE_DISPLAY_ARGS_TO_STDOUT is set.
        token = str(self._templar.template(variables.get("vllm_plan_hf_token") or "") or "")
        revisions = revisions_of(args["models"], models)
        with ThreadPoolExecutor(max_workers=8) as pool:
            deadline = monotonic() + timeout_s
            answers = pool.map(
                lambda one: _hub.fetch(one, revisions[one], endpoint, token, max(0.1, deadline - monotonic())), models
            )
            answered = dict(zip(models, answers, strict=True))
        numbers = {
            one: {"config": answer.config, "weights_bytes": answer.weights_bytes, "source": "the hub"}
            for one, answer in answered.items()
            if isinstance(answer, _hub.Metadata)
        }
        return numbers, {one: answer for one, answer in answered.items() if isinstance(answer, str)}


def numbers_of(
    folders: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return what the host has of the models in ``wanted`` (each with its folder), and a sentence on each that cannot be read here."""
    numbers, unread = {}, []
    for model, folder in wanted.items():
        found = folders.get(folder, {})
        try:
            config = json.loads(found.get("config_json") or "null")
        except (ValueError, RecursionError):
            unread.append(
                f"vllm_models[].model is {model!r}: {folder}/config.json is nested too deeply to be read, so that its numbers do not count. "
                "Copy the file again, as the hub has it."
            )
            continue
        if config:
            numbers[model] = {"config": config, "weights_bytes": found["weights_bytes"], "source": "the host"}
    return numbers, unread


def refusal(problems: Iterable[str]) -> dict[str, Any]:
    """Return the result of a plan that cannot work."""
    found = list(problems)
    listed = "\n".join(f"- {problem}" for problem in found)
    return {"failed": True, "msg": f"Nothing was changed. The plan cannot work:\n{listed}", "problems": found}


def sources(models: object) -> list[str]:
    """Return what is to be served, each once; whatever is neither a folder nor of the hub is for the plan to refuse."""
    if not isinstance(models, list):
        return []
    given = (model.get("model") for model in _present(models))
    return list(dict.fromkeys(str(one) for one in given if is_path(one) or is_hub_id(one)))


def revisions_of(models: Iterable[Any], wanted: Sequence[str]) -> dict[str, str]:
    """Return the revision of each model that is wanted, "" for the hub's main one."""
    entries = [one for one in _present(models) if one.get("model") in wanted]
    return {one["model"]: str(one.get("revision") or "") for one in entries}


def _present(models: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [one for one in models if isinstance(one, Mapping) and one.get("state", "present") == "present"]


def _kind(gpu: Mapping[str, Any]) -> str:
    return str(gpu.get("kind") or gpu.get("name"))


def add_host_findings(
    plan: Plan, found: Mapping[str, Any], host: Host, wanted: Iterable[str], declared: Sequence[Mapping[str, Any]]
) -> None:
    """Add what the host itself shows: broken model folders, and GPUs that do not answer where GPUs are wanted."""
    for one in wanted:
        folder = folder_of(one, host.weights_dir)
        for problem in found["models"].get(folder, {}).get("problems", ()):
            if is_path(one):
                (plan.warnings if host.preview else plan.problems).append(f"vllm_models[].model is {one!r}: {problem}.")
            elif not host.preview:
                plan.problems.append(
                    f"vllm_models[].model is {one!r}, which is served from {folder}: {problem}. This version downloads no weights: "
                    f"put them there, for example with 'hf download {one} --local-dir {folder}'."
                )
    if host.gpus and not found["gpus"] and not host.preview:
        plan.problems.append(
            f"vllm_plan_gpus declares GPUs, and {host.name} shows none: only playbooks/plan.yml works with GPUs that are not there. "
            "Put them in, or remove vllm_plan_gpus."
        )
    here, said = (sorted(map(_kind, gpus)) for gpus in (found["gpus"], declared))
    if found["gpus"] and declared and here != said:
        plan.warnings.append(
            f"vllm_plan_gpus declares {', '.join(said)}, and {host.name} shows {', '.join(here)}: what it shows counts. Correct or remove vllm_plan_gpus."
        )
    if found["gpu_problem"]:
        # A GPU that is gone moves the numbers of those behind it, and running instances would change places.
        serving = any(one.get("gpus") for one in found["assigned"])
        blocks = serving and not found["gpus_complete"] and not host.preview
        (plan.problems if blocks else plan.warnings).append(found["gpu_problem"])
