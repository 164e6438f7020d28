# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the host and computes its plan: one task, so that the first play stays short."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle, _gpus, _hub, _weights
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, known_model_problems, make_plan
from ansible_collections.gpuops.vllm.plugins.module_utils._surge import surge_instances
from ansible_collections.gpuops.vllm.plugins.module_utils._wanted import is_hub_id, is_path, shown
from ansible_collections.gpuops.vllm.plugins.modules.plan import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments

#: What a host that is not asked shows.
NOTHING: dict[str, Any] = {"gpus": [], "gpu_problem": "", "gpus_complete": True, "assigned": [], "models": {}}

NO_HUB = "no hub is asked, since vllm_hub_endpoint is empty"


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
            nothing = {key: list[Any]() for key in ("instances", "surge", "weights", "misfits", "plan_warnings")}
            return {**result, **nothing, "problems": problems}
        if problems:
            return {**result, **refusal(problems)}
        weights_dir = args["weights_dir"].rstrip("/")
        wanted = _weights.sources(args["models"])
        found = dict(NOTHING)
        # GPUs that nobody has yet are planned for without a host.
        if not (preview and declared):
            found = self._execute_module(
                module_name="gpuops.vllm.host_info",
                module_args={
                    "models": [one.model for one in wanted if is_path(one.model)],
                    "hub": [one._asdict() for one in wanted if is_hub_id(one.model)],
                    "weights_dir": weights_dir,
                    "known_gpus": dict(known_gpus),
                },
                task_vars=variables,
            )
            if found.get("failed"):
                return {**result, **found}
        located = self._locate(wanted, found, args, variables)
        folders, answers = located.folders, located.answers
        numbers, unread = numbers_of(found["models"], {one.model: folders[one] for one in reversed(wanted)})
        from_hub = {one.model: answer.numbers for one, answer in answers.items() if answer.numbers}
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
            commits=located.commits,
            files=located.files(found["models"]),
            file_options=args["file_options"],
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
            driver_comes=args["driver_comes"],
        )
        plan = make_plan(args["models"], host)
        add_host_findings(plan, found, host, wanted, declared)
        source = args["bundle"] or args["hub_endpoint"]
        weights = downloads(plan.instances, found["models"], trusted=not source)
        if not preview:
            plan.problems += unresolved(args["models"], located.commits, answers)
            plan.problems += undownloadable(weights, answers, found["models"], source)
            plan.problems += unbundled(weights, args["bundle"])
        plan.warnings += unread + [
            answer.problem for one, answer in answers.items() if answer.problem and one.model not in known_models
        ]
        if (plan.problems or plan.misfits) and not preview:
            return {**result, **refusal(plan.problems + plan.misfits)}
        if plan.warnings and not preview:
            # Ansible shows a text that several hosts have only once.
            result["warnings"] = [f"{name}: {warning}" for warning in plan.warnings]
        return {
            **result,
            "changed": False,
            "instances": plan.instances,
            "surge": [] if plan.problems or plan.misfits else surge_instances(plan.instances, host),
            "weights": weights,
            "problems": plan.problems,
            "misfits": plan.misfits,
            "plan_warnings": plan.warnings,
        }

    def _locate(
        self,
        wanted: Sequence[_weights.Source],
        found: Mapping[str, Any],
        args: Mapping[str, Any],
        variables: Mapping[str, Any],
    ) -> Located:
        """Return the commit and the folder of each model, asking the hub for what the host does not know or does not have."""
        weights_dir = args["weights_dir"].rstrip("/")
        of_hub = [one for one in wanted if is_hub_id(one.model)]
        commits = {one: _weights.commit_of(one, found["assigned"]) for one in of_hub}
        update = args["update_weights"]
        moving = {one for one in of_hub if not commits[one] or (update and not _weights.is_commit(one.revision))}
        folders = {one: _weights.folder_of(one, commits.get(one, ""), weights_dir) for one in wanted}
        there = {one for one in of_hub if any(found["models"].get(folders[one], {}).get("verified", {}).values())}
        answers = self._ask_hub([one for one in of_hub if one in moving or one not in there], args, variables)
        for one in moving:
            commits[one] = answers[one].commit if one in answers else ""
            folders[one] = _weights.folder_of(one, commits[one], weights_dir)
        whole = there | {one for one in wanted if is_path(one.model)}
        return Located(commits, folders, answers, whole)

    def _ask_hub(
        self, asked: Sequence[_weights.Source], args: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> dict[_weights.Source, Answer]:
        """Return what the hub, or the bundle in its place, says of these models, all within one time-out; nothing where none is named."""
        endpoint = args["hub_endpoint"]
        if args["bundle"]:
            return ask_bundle(asked, args["bundle"])
        if not endpoint or not asked:
            return {}
        # Not an argument of the task: those are shown where ANSIBLE_DISPLAY_ARGS_TO_STDOUT is set.
        token = str(self._templar.template(variables.get("vllm_plan_hf_token") or "") or "")
        deadline = monotonic() + args["hub_timeout_s"]
        with ThreadPoolExecutor(max_workers=8) as pool:
            answers = pool.map(lambda one: ask(one, endpoint, token, deadline), asked)
            return dict(zip(asked, answers, strict=True))


@dataclass(frozen=True)
class Answer:
    """What the hub says of one model: its commit ("" if that is not known), its files' names, its numbers, and what was wrong."""

    commit: str = ""
    files: tuple[str, ...] | None = None
    numbers: dict[str, Any] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Located:
    """Where the models lie: the commits of those of the hub, the folders of all, what the hub was asked, and which were ``whole`` on the host."""

    commits: dict[_weights.Source, str]
    folders: dict[_weights.Source, str]
    answers: dict[_weights.Source, Answer]
    whole: set[_weights.Source]

    def files(self, read: Mapping[str, Mapping[str, Any]]) -> dict[str, Sequence[str]]:
        """Return the names that are known to lie in each folder: the hub's list, else what the host has of a whole model."""
        known = {self.folders[one]: one_answer.files for one, one_answer in self.answers.items()}
        known |= {
            self.folders[one]: read.get(self.folders[one], {}).get("files")
            for one in self.whole
            if one not in self.answers
        }
        return {folder: names for folder, names in known.items() if names is not None}


def ask(source: _weights.Source, endpoint: str, token: str, deadline: float) -> Answer:
    """Ask the hub for a model's commit and metadata until ``deadline`` (of `time.monotonic`)."""
    snapshot = _hub.resolve(source.model, source.revision, endpoint, token, max(0.1, deadline - monotonic()))
    if isinstance(snapshot, str):
        return Answer(problem=snapshot)
    metadata = _hub.fetch(source.model, snapshot.commit, endpoint, token, max(0.1, deadline - monotonic()))
    if isinstance(metadata, str):
        return Answer(snapshot.commit, snapshot.files, problem=metadata)
    numbers = {"config": metadata.config, "weights_bytes": metadata.weights_bytes, "source": "the hub"}
    return Answer(snapshot.commit, snapshot.files, numbers)


def ask_bundle(asked: Sequence[_weights.Source], bundle: str) -> dict[_weights.Source, Answer]:
    """Return what a bundle says of these models; it may be away where there are none. Raises AnsibleActionFail."""
    if not asked:
        return {}
    folder = Path(bundle).resolve()
    try:
        manifest = _bundle.read(folder)[0]
    except _bundle.BundleError as error:
        raise AnsibleActionFail(str(error)) from None
    answers = {}
    for source in asked:
        model = _bundle.find_model(manifest, source.model, source.revision)
        if model is None:
            answers[source] = Answer(problem=f"the bundle {bundle} has no {source.model} of that revision")
            continue
        names = tuple(one.name for one in model.files)
        answers[source] = Answer(model.commit, names, bundled_numbers(folder, model))
    return answers


def bundled_numbers(folder: Path, model: _bundle.Model) -> dict[str, Any] | None:
    """Return a bundled model's config.json and the bytes of its weights; None where that is no config."""
    files = {one.name: one for one in model.files}
    if "config.json" not in files or files["config.json"].size > _hub.CONFIG_MAX_BYTES:
        return None
    try:
        config = json.loads((folder / model.blob(files["config.json"])).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    size = sum(one.size for one in model.files if one.name.endswith(_bundle.WEIGHTS))
    return {"config": config, "weights_bytes": size, "source": "the bundle"} if isinstance(config, dict) else None


def unbundled(weights: Iterable[Mapping[str, Any]], bundle: str) -> list[str]:
    """Return which missing weights a bundle does not have, one sentence each."""
    missing = [one for one in weights if not one["present"]]
    # Afterwards the bundle may be gone: what is served needs it no more.
    if not bundle or not missing:
        return []
    try:
        manifest = _bundle.read(Path(bundle).resolve())[0]
    except _bundle.BundleError as error:
        return [str(error)]
    found = []
    for one in missing:
        if _bundle.has_commit(manifest, one["model"], one["commit"], one["format"]) is None:
            has = [f"{model.commit[:12]} ({model.format})" for model in manifest.models if model.model == one["model"]]
            found.append(
                f"vllm_models[].model is {one['model']!r} at {one['commit'][:12]} ({one['format']}), and the bundle {bundle} has "
                f"{', '.join(has) or 'none of it'}. {_bundle.OF_THIS_INVENTORY} To take the bundle's commit in the place of one that an earlier run "
                "wrote down: -e vllm_weights_update=true."
            )
    return found


def downloads(
    instances: Iterable[Mapping[str, Any]], folders: Mapping[str, Mapping[str, Any]], trusted: bool
) -> list[dict[str, Any]]:
    """Return the models of the hub that these instances serve, each with the commit, and whether the host has it whole.

    :arg folders: what the host has, by path.
    :arg trusted: without a hub there are no checksums; then a folder in which the plan finds nothing wrong will do.
    """
    found = {}
    for one in (instance for instance in instances if instance.get("commit")):
        folder = folders.get(one["path"], {})
        form = _weights.form_of(one["engine_args"])
        whole = folder.get("verified", {}).get(form, False) or (trusted and folder.get("problems") == [])
        found[one["path"], form] = {
            "model": one["model"], "commit": one["commit"], "path": one["path"], "format": form, "present": bool(whole),
        }  # fmt: skip
    return list(found.values())


def unresolved(
    models: object, commits: Mapping[_weights.Source, str], answers: Mapping[_weights.Source, Answer]
) -> list[str]:
    """Return why a model of the hub has no commit, and what gives it one, one sentence each."""
    found = []
    for source in (one for one, commit in commits.items() if not commit):
        name = next(str(one.get("name")) for one in _weights.present(models) if _weights.source_of(one) == source)
        reason = answers[source].problem if source in answers else NO_HUB
        found.append(
            f"vllm_models: '{name}' has revision {shown(source.revision or None)}, and no run on this host has written down which commit of {source.model} "
            f"that is: {reason}. Name a commit (40 hexadecimal digits) in vllm_models[].revision, or let the control node reach the hub (vllm_hub_endpoint)."
        )
    return found


def undownloadable(
    weights: Iterable[Mapping[str, Any]],
    answers: Mapping[_weights.Source, Answer],
    folders: Mapping[str, Mapping[str, Any]],
    endpoint: str,
) -> list[str]:
    """Return what is known beforehand to keep missing weights from being downloaded, one sentence each."""
    found = []
    refused = {one.model: answer.problem for one, answer in answers.items() if isinstance(answer.problem, _hub.Refusal)}
    for one in (entry for entry in weights if not entry["present"]):
        if not endpoint:
            wrong = "; ".join(folders.get(one["path"], {}).get("problems", ["there is no such folder on this host"]))
            found.append(
                f"vllm_models[].model is {one['model']!r}, its folder {one['path']}: {wrong}. vllm_hub_endpoint is empty, so that nothing is downloaded: "
                "name the hub's address there, or copy the weights directory of another host."
            )
        elif one["model"] in refused:
            found.append(f"{refused[one['model']]}. Nothing could be downloaded.")
    return found


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


def _kind(gpu: Mapping[str, Any]) -> str:
    return str(gpu.get("kind") or gpu.get("name"))


def add_host_findings(
    plan: Plan,
    found: Mapping[str, Any],
    host: Host,
    wanted: Iterable[_weights.Source],
    declared: Sequence[Mapping[str, Any]],
) -> None:
    """Add what the host itself shows: broken model folders, and GPUs that do not answer where GPUs are wanted."""
    for one in wanted:
        folder = _weights.folder_of(one, host.commits.get(one, ""), host.weights_dir)
        read = found["models"].get(folder, {})
        for problem in read.get("problems", ()):
            if is_path(one.model):
                (plan.warnings if host.preview else plan.problems).append(
                    f"vllm_models[].model is {one.model!r}: {problem}."
                )
            elif any(read.get("verified", {}).values()):
                # As the hub has it: what is missing or cut short is downloaded again.
                plan.warnings.append(f"vllm_models[].model is {one.model!r}, served from {folder}: {problem}.")
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
        blocks = serving and not found["gpus_complete"] and not host.preview and not host.driver_comes
        (plan.problems if blocks else plan.warnings).append(found["gpu_problem"])
