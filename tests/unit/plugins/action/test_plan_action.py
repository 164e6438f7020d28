"""The adapter around the plan: what is asked of host and hub, and what the host's answer adds."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.action import plan as action
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan

FOUND: dict[str, Any] = {"gpus": [{"index": 0}], "gpu_problem": "", "assigned": [], "models": {}}
PATH, HUB = "/srv/models/llama", "org/llama"


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        (None, []),
        ("llama", []),
        ({"model": HUB}, []),
        ([{"model": HUB}, {"model": PATH}, {"model": HUB}], [HUB, PATH]),
        ([{"model": HUB, "state": "absent"}, {"model": PATH, "state": "present"}], [PATH]),
        # For the plan to refuse: none is looked for.
        ([HUB, None, {}, {"model": None}, {"model": 7}, {"model": "name"}, {"model": "/srv/../etc"}, {"model": [HUB]}], []),
    ],
)  # fmt: skip
def test_what_is_looked_for(models: object, asked: list[str]) -> None:
    assert action.sources(models) == asked


@pytest.mark.parametrize(
    ("models", "revisions"),
    [
        ([{"model": HUB}], {HUB: ""}),
        ([{"model": HUB, "revision": "v1"}, {"model": PATH, "revision": "v2"}], {HUB: "v1"}),
        ([{"model": HUB, "revision": "v1"}, {"model": HUB, "revision": "v0", "state": "absent"}], {HUB: "v1"}),
        # What is no model stands beside one.
        (["text", None, {}, {"model": ["x"]}, {"model": HUB, "revision": 7}], {HUB: "7"}),
    ],
)
def test_the_revision_that_the_hub_is_asked_for(models: list[Any], revisions: dict[str, str]) -> None:
    assert action.revisions_of(models, [HUB]) == revisions


def test_a_plan_that_cannot_work_says_each_reason_on_a_line() -> None:
    assert action.refusal(iter(["no GPU.", "no model."])) == {
        "failed": True,
        "msg": "Nothing was changed. The plan cannot work:\n- no GPU.\n- no model.",
        "problems": ["no GPU.", "no model."],
    }


BROKEN_PATH = "vllm_models[].model is '/srv/models/llama': it holds no config.json."
BROKEN_HUB = (
    "vllm_models[].model is 'org/llama', which is served from /weights/org/llama: it holds no config.json. This version downloads no weights: "
    "put them there, for example with 'hf download org/llama --local-dir /weights/org/llama'."
)
NOT_THERE = (
    "vllm_plan_gpus declares GPUs, and gpu01 shows none: only playbooks/plan.yml works with GPUs that are not there. Put them in, or remove vllm_plan_gpus."
)  # fmt: skip


def broken(folder: str) -> dict[str, Any]:
    return {"models": {folder: {"problems": ["it holds no config.json"]}}}


@pytest.mark.parametrize(
    ("found", "model", "preview", "problems", "warnings"),
    [
        ({}, PATH, False, [], []),
        ({"models": {PATH: {"problems": []}}}, PATH, False, [], []),
        (broken(PATH), PATH, False, [BROKEN_PATH], []),
        (broken(PATH), PATH, True, [], [BROKEN_PATH]),
        (broken("/weights/org/llama"), HUB, False, [BROKEN_HUB], []),
        # What is to be downloaded is nothing to tell of a plan.
        (broken("/weights/org/llama"), HUB, True, [], []),
        (broken("/somewhere/else"), HUB, False, [], []),
        ({"gpus": []}, PATH, False, [NOT_THERE], []),
        ({"gpus": []}, PATH, True, [], []),
        ({"gpu_problem": "a GPU is lost."}, PATH, False, [], ["a GPU is lost."]),
        ({"gpu_problem": "a GPU is lost.", "assigned": [{"gpus": [0]}]}, PATH, False, ["a GPU is lost."], []),
        ({"gpu_problem": "a GPU is lost.", "assigned": [{"gpus": [0]}]}, PATH, True, [], ["a GPU is lost."]),
        ({"gpu_problem": "a GPU is lost.", "assigned": [{"gpus": []}, {}]}, PATH, False, [], ["a GPU is lost."]),
    ],
)
def test_what_the_host_shows_is_added(
    found: dict[str, Any], model: str, preview: bool, problems: list[str], warnings: list[str]
) -> None:
    plan = Plan()
    host = Host(name="gpu01", gpus=[{"index": 0}], profiles={}, weights_dir="/weights", preview=preview)
    action.add_host_findings(plan, {**FOUND, **found}, host, [model])
    assert (plan.problems, plan.warnings) == (problems, warnings)


def test_a_host_without_gpus_that_declares_none_is_no_finding() -> None:
    plan = Plan()
    action.add_host_findings(plan, {**FOUND, "gpus": []}, Host(name="gpu01", gpus=[], profiles={}), [])
    assert plan.problems + plan.warnings == []
