"""The adapter around the plan: what is asked of host and hub, and what the host's answer adds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.action import plan as action
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle, _hub
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan
from ansible_collections.gpuops.vllm.plugins.module_utils._weights import Source
from ansible_collections.gpuops.vllm.plugins.modules import plan as module

FOUND: dict[str, Any] = {"gpus": [{"index": 0}], "gpu_problem": "", "gpus_complete": True, "assigned": [], "models": {}}
PATH, HUB = "/srv/models/llama", "org/llama"


def test_a_plan_that_cannot_work_says_each_reason_on_a_line() -> None:
    assert action.refusal(iter(["no GPU.", "no model."])) == {
        "failed": True,
        "msg": "Nothing was changed. The plan cannot work:\n- no GPU.\n- no model.",
        "problems": ["no GPU.", "no model."],
    }


BROKEN_PATH = "vllm_models[].model is '/srv/models/llama': it holds no config.json."
COMMIT, OTHER = "1" * 40, "2" * 40
FOLDER = f"/weights/hub/models--org--llama/snapshots/{COMMIT}"
BROKEN_HUB = f"vllm_models[].model is 'org/llama', served from {FOLDER}: it holds no config.json."
NOT_THERE = (
    "vllm_plan_gpus declares GPUs, and gpu01 shows none: only playbooks/plan.yml works with GPUs that are not there. Put them in, or remove vllm_plan_gpus."
)  # fmt: skip


LOST = {"gpu_problem": "a GPU is lost.", "gpus_complete": False}


def broken(folder: str, **more: Any) -> dict[str, Any]:
    return {"models": {folder: {"problems": ["it holds no config.json"], **more}}}


@pytest.mark.parametrize(
    ("found", "model", "preview", "problems", "warnings"),
    [
        ({}, PATH, False, [], []),
        ({"models": {PATH: {"problems": []}}}, PATH, False, [], []),
        (broken(PATH), PATH, False, [BROKEN_PATH], []),
        (broken(PATH), PATH, True, [], [BROKEN_PATH]),
        # As the hub has it: the engine may know better.
        (broken(FOLDER, verified={"hf": True}), HUB, False, [], [BROKEN_HUB]),
        # What is to be downloaded, or to be mended, is nothing to tell of a plan.
        (broken(FOLDER, verified={"hf": False, "mistral": False}), HUB, False, [], []),
        (broken(FOLDER), HUB, True, [], []),
        (broken("/somewhere/else"), HUB, False, [], []),
        ({"gpus": []}, PATH, False, [NOT_THERE], []),
        ({"gpus": []}, PATH, True, [], []),
        ({"gpu_problem": "a GPU is lost."}, PATH, False, [], ["a GPU is lost."]),
        ({**LOST, "assigned": [{"gpus": [0]}]}, PATH, False, ["a GPU is lost."], []),
        ({**LOST, "assigned": [{"gpus": [0]}]}, PATH, True, [], ["a GPU is lost."]),
        ({**LOST, "assigned": [{"gpus": []}, {}]}, PATH, False, [], ["a GPU is lost."]),
        # A remark on GPUs that are all there stops nothing that runs.
        ({**LOST, "gpus_complete": True, "assigned": [{"gpus": [0]}]}, PATH, False, [], ["a GPU is lost."]),
    ],
)
def test_what_the_host_shows_is_added(
    found: dict[str, Any], model: str, preview: bool, problems: list[str], warnings: list[str]
) -> None:
    plan = Plan()
    commits = {Source(HUB): COMMIT}
    host = Host(
        name="gpu01", gpus=[{"index": 0}], profiles={}, weights_dir="/weights", preview=preview, commits=commits
    )
    action.add_host_findings(plan, {**FOUND, **found}, host, [Source(model)], [])
    assert (plan.problems, plan.warnings) == (problems, warnings)


def test_gpus_that_do_not_answer_stop_nothing_where_a_driver_comes() -> None:
    plan = Plan()
    host = Host(name="gpu01", gpus=[{"index": 0}], profiles={}, driver_comes=True)
    action.add_host_findings(plan, {**FOUND, **LOST, "assigned": [{"gpus": [0]}]}, host, [], [])
    assert (plan.problems, plan.warnings) == ([], ["a GPU is lost."])


def test_a_host_without_gpus_that_declares_none_is_no_finding() -> None:
    plan = Plan()
    action.add_host_findings(plan, {**FOUND, "gpus": []}, Host(name="gpu01", gpus=[], profiles={}), [], [])
    assert plan.problems + plan.warnings == []


def test_gpus_that_are_declared_and_not_what_the_host_shows_are_told() -> None:
    plan = Plan()
    host = Host(name="gpu01", gpus=[], profiles={})
    shown = {**FOUND, "gpus": [{"index": 0, "kind": "a100-sxm-40gb"}, {"index": 1, "kind": "", "name": "NVIDIA X"}]}
    declared = [{"kind": "b200-sxm-180gb"}, {"kind": "b200-sxm-180gb"}]
    action.add_host_findings(plan, shown, host, [], declared)
    assert plan.warnings == [
        "vllm_plan_gpus declares b200-sxm-180gb, b200-sxm-180gb, and gpu01 shows NVIDIA X, a100-sxm-40gb: what it shows counts. "
        "Correct or remove vllm_plan_gpus."
    ]
    action.add_host_findings(plan, shown, host, [], [{"kind": "a100-sxm-40gb"}, {"kind": "", "name": "NVIDIA X"}])
    assert len(plan.warnings) == 1


# --- the task ------------------------------------------------------------------------------------------------

H100 = {"name": "NVIDIA H100", "pci_ids": ["2330"], "memory_gib": 79.1, "compute_capability": "9.0"}
CONFIG = {"hidden_size": 64}
ARGS: dict[str, Any] = {
    "models": [{"name": "llama", "model": PATH}],
    "profiles": {"own": {"engine_args": {"dtype": "auto"}}},
    "known_gpus": {"h100": H100},
    "known_models": {"known/model": {"config": CONFIG}},
    "hub_endpoint": "https://hub.example.com",
}


class Task:
    """The task with a host that answers ``found`` and a hub that answers ``hub``; what both were asked is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], hub: dict[str, Any]) -> None:
        self.asked_host: list[Any] = []
        self.asked_hub: list[Any] = []
        self.hosts: list[Host] = []
        self.snapshots: dict[str, Any] = {HUB: _hub.Snapshot(COMMIT, ("config.json", "x.jinja"))}
        self.plan = Plan()
        self.module = object.__new__(action.ActionModule)
        self.module._load_name = "gpuops.vllm.plan"
        self.module._templar = cast(Any, SimpleNamespace(template=lambda text: text.replace("{{ token }}", "hf_x")))
        monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
        monkeypatch.setattr(self.module, "_execute_module", lambda **asked: self.asked_host.append(asked) or found)  # type: ignore[func-returns-value]
        monkeypatch.setattr(_hub, "resolve", self.resolve)
        monkeypatch.setattr(_hub, "fetch", lambda *asked: self.asked_hub.append(("fetch", *asked)) or hub[asked[0]])  # type: ignore[func-returns-value]
        monkeypatch.setattr(action, "make_plan", lambda _models, host: self.hosts.append(host) or self.plan)  # type: ignore[func-returns-value]
        monkeypatch.setattr(
            action, "surge_instances", lambda instances, _host: [{"beside": one["name"]} for one in instances]
        )

    def resolve(self, *asked: Any) -> Any:
        self.asked_hub.append(("resolve", *asked))
        return self.snapshots.get(asked[0], f"{asked[0]}: the hub is silent")

    def run(self, **args: Any) -> dict[str, Any]:
        self.module._task = cast(Any, SimpleNamespace(args={**ARGS, **args}))
        return self.module.run(None, {"inventory_hostname": "gpu01", "vllm_plan_hf_token": "{{ token }}"})

    @property
    def host(self) -> Host:
        (host,) = self.hosts
        return host


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    hub = {
        HUB: _hub.Metadata(CONFIG, 7),
        "known/model": "known/model: the hub is silent",
        "a/b": "a/b: the hub is silent",
    }
    read = {"config_json": json.dumps(CONFIG), "weights_bytes": 5, "problems": [], "files": ["config.json"]}
    return Task(monkeypatch, {**FOUND, "models": {PATH: read}}, hub)


def test_what_the_inventory_says_reaches_the_plan(task: Task) -> None:
    said: dict[str, Any] = {
        "gpu_profile": "own", "base_engine_args": {"a": 1}, "engine_args": {"b": 1}, "env": {"C": "1"}, "first_port": 9000,
        "since": [{"option": "x"}], "rules": {"y": 1}, "vllm_version": "0.30.0", "min_driver": "570", "allow_misfit": True,
        "driver_comes": True,
    }  # fmt: skip
    task.run(**said, weights_dir="/weights/")
    assert {name: getattr(task.host, name) for name in said} == said
    assert (task.host.name, task.host.weights_dir, task.host.preview) == ("gpu01", "/weights", False)
    assert (task.host.gpus, task.host.assigned) == (FOUND["gpus"], [])
    assert task.host.profiles == ARGS["profiles"]
    assert (task.host.known_gpus, task.host.known_models) == (ARGS["known_gpus"], ARGS["known_models"])


def test_what_the_inventory_does_not_say(task: Task) -> None:
    task.run()
    assert task.host == Host(
        name="gpu01",
        gpus=FOUND["gpus"],
        assigned=[],
        profiles=ARGS["profiles"],
        known_gpus=ARGS["known_gpus"],
        known_models=ARGS["known_models"],
        since=[],
        numbers={PATH: {"config": CONFIG, "weights_bytes": 5, "source": "the host"}},
        files={PATH: ["config.json"]},
        file_options=[],
    )


def test_what_is_empty_in_the_inventory_is_as_if_it_were_not_said(task: Task) -> None:
    task.run()
    (before,) = task.hosts
    options = yaml.safe_load(module.DOCUMENTATION)["options"]
    empty = {name: None for name, option in options.items() if "default" in option and name not in ARGS}
    assert len(empty) > 10
    task.run(**empty)
    assert task.hosts[1] == before
    # What is required is told by the plan, which names the variable.
    task.run(models=None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"typo_option": 3}, r"^Unsupported parameters for \(gpuops.vllm.plan\) module: typo_option\. Supported parameters include: allow_misfit, "),
        ({"typo_option": None}, "typo_option"),
        ({"first_port": "abc"}, "argument 'first_port' is of type str and we were unable to convert to int"),
        ({"preview": "maybe"}, "argument 'preview' .* is not a valid boolean"),
        ({"hub_timeout_s": "soon"}, "argument 'hub_timeout_s' is of type str and we were unable to convert to float"),
        ({"gpus": {"a": 1}}, "argument 'gpus' is of type dict and we were unable to convert to list"),
    ],
)  # fmt: skip
def test_an_argument_that_is_none_is_refused_by_name(task: Task, args: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleActionFail, match=message):
        task.run(**args)
    assert task.asked_host + task.hosts == []


def test_arguments_have_the_documented_types(task: Task) -> None:
    task.run(first_port="9000", vllm_version=1, min_driver=580, allow_misfit="yes", hub_timeout_s="9", preview="no")
    found = task.host
    assert (found.first_port, found.vllm_version, found.min_driver) == (9000, "1", "580")
    assert (found.allow_misfit, found.preview) == (True, False)


@pytest.mark.parametrize("missing", ["models", "profiles"])
def test_what_is_required_is_named(task: Task, missing: str) -> None:
    args = {name: value for name, value in ARGS.items() if name != missing}
    task.module._task = cast(Any, SimpleNamespace(args=args))
    with pytest.raises(AnsibleActionFail, match=f"^missing required arguments: {missing}$"):
        task.module.run(None, {"inventory_hostname": "gpu01"})


SECRET = "s3cret-of-nobody"


@pytest.mark.parametrize("value", [SECRET, f"{{{SECRET}", f"KEY={SECRET} more", [SECRET], [[SECRET]]])
def test_no_type_error_shows_what_may_be_a_secret(task: Task, value: object) -> None:
    """A profile may set an environment; the others of the inventory are raw, so that the plan says what is wrong with them."""
    options = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert [options[name]["type"] for name in ("models", "engine_args", "env")] == ["raw"] * 3
    for name in ("profiles", "base_engine_args", "known_models", "known_gpus", "rules"):
        with pytest.raises(AnsibleActionFail) as raised:
            task.run(**{name: value})
        assert name in str(raised.value)
        assert SECRET not in str(raised.value)
        # What Ansible shows beside a message: here it would be the arguments.
        assert (raised.value.obj, raised.value._formatted_source_context) == (None, None)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ('{"x": {"__ansible_type": "TaggedStr"}, "y": "\\ud800"}', "the host"),
        (DEEP, None),
        ("{", None),
        ("{}", None),
        ("null", None),
    ],
)
def test_a_config_of_the_host_costs_only_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, text: str, source: str | None
) -> None:
    read = {"config_json": text, "weights_bytes": 5, "problems": []}
    other = "/srv/models/other"
    task = Task(monkeypatch, {**FOUND, "models": {other: read, PATH: {"problems": []}}}, {})
    found = task.run(models=[{"name": "a", "model": other}, {"name": "b", "model": PATH}])
    assert task.host.numbers.get(other, {}).get("source") == source
    assert (f"{other}/config.json is nested too deeply" in "".join(found["plan_warnings"])) is (text in (DEEP, "{"))


def test_the_host_is_asked_for_the_folders_of_its_models(task: Task) -> None:
    task.run(models=[{"name": "a", "model": PATH}, {"name": "b", "model": HUB}], weights_dir="/weights")
    (asked,) = task.asked_host
    assert asked["module_name"] == "gpuops.vllm.host_info"
    assert asked["module_args"] == {
        "models": [PATH],
        "hub": [{"model": HUB, "revision": ""}],
        "weights_dir": "/weights",
        "known_gpus": {"h100": H100},
    }
    assert asked["task_vars"]["inventory_hostname"] == "gpu01"


def test_a_host_that_cannot_be_asked_ends_it(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task.module, "_execute_module", lambda **_asked: {"failed": True, "msg": "no python"})
    assert task.run() == {"failed": True, "msg": "no python"}
    assert task.hosts == []


@pytest.mark.parametrize(
    ("preview", "declared", "asked", "kinds"),
    [
        (False, [], True, [""]),
        (True, [], True, [""]),
        # A host that is there has what it shows; for a look ahead it need not be there.
        (False, ["h100"], True, [""]),
        (True, ["h100"], False, ["h100"]),
    ],
)
def test_which_gpus_are_planned_for(
    task: Task, preview: bool, declared: list[str], asked: bool, kinds: list[str]
) -> None:
    task.run(preview=preview, gpus=declared)
    assert bool(task.asked_host) is asked
    assert [gpu.get("kind", "") for gpu in task.host.gpus] == kinds


def test_declared_gpus_that_a_host_does_not_show_are_planned_for_and_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task(monkeypatch, {**FOUND, "gpus": []}, {})
    assert task.run(gpus=["h100"])["problems"] == [NOT_THERE]
    assert [gpu["kind"] for gpu in task.host.gpus] == ["h100"]


def test_the_hub_is_asked_for_what_the_host_does_not_have(task: Task) -> None:
    models = [
        {"name": "a", "model": PATH},
        {"name": "b", "model": HUB, "revision": "v1"},
        {"name": "c", "model": "/srv/x"},
    ]
    task.run(models=models, hub_timeout_s=9)
    assert task.asked_hub == [
        ("resolve", HUB, "v1", "https://hub.example.com", "hf_x", pytest.approx(9.0, abs=1)),
        ("fetch", HUB, COMMIT, "https://hub.example.com", "hf_x", pytest.approx(9.0, abs=1)),
    ]
    assert task.host.numbers[HUB] == {"config": CONFIG, "weights_bytes": 7, "source": "the hub"}
    assert set(task.host.numbers) == {PATH, HUB}
    assert task.host.commits == {Source(HUB, "v1"): COMMIT}
    assert task.host.files == {
        PATH: ["config.json"],
        f"/var/lib/vllm/weights/hub/models--org--llama/snapshots/{COMMIT}": ("config.json", "x.jinja"),
    }


@pytest.mark.parametrize("endpoint", ["", None])
def test_no_hub_is_asked_where_none_is_named(task: Task, endpoint: str | None) -> None:
    task.run(models=[{"name": "b", "model": HUB}], hub_endpoint=endpoint)
    assert (task.asked_hub, task.host.numbers) == ([], {})


def test_why_the_hub_has_nothing_is_told_of_models_that_nobody_knows(task: Task) -> None:
    models = [
        {"name": "a", "model": "known/model", "revision": COMMIT},
        {"name": "b", "model": "a/b", "revision": COMMIT},
    ]
    found = task.run(models=models)
    assert found["plan_warnings"] == ["a/b: the hub is silent"]
    # Ansible shows a text that several hosts have only once.
    assert found["warnings"] == ["gpu01: a/b: the hub is silent"]


# --- which commit --------------------------------------------------------------------------------------------


def hub_task(monkeypatch: pytest.MonkeyPatch, assigned: list[dict[str, Any]], **verified: bool) -> Task:
    """A host that has what ``verified`` says of the commit that it has written down."""
    read: dict[str, Any] = {"problems": [], "verified": {"hf": False, "mistral": False, **verified}}
    read |= {"config_json": json.dumps(CONFIG), "weights_bytes": 3, "files": ["config.json"]}
    found = {**FOUND, "assigned": assigned, "models": {FOLDER: read} if assigned else {}}
    return Task(monkeypatch, found, {HUB: _hub.Metadata(CONFIG, 7)})


WRITTEN = {"name": "llama-0", "model": HUB, "revision": None, "commit": COMMIT}


@pytest.mark.parametrize(
    ("assigned", "revision", "update", "commit", "asked"),
    [
        # Written down, and there: nobody is asked.
        ([WRITTEN], None, False, COMMIT, False),
        ([WRITTEN], None, True, OTHER, True),
        # Another revision is another question.
        ([WRITTEN], "v2", False, OTHER, True),
        ([{**WRITTEN, "revision": "v2"}], None, False, OTHER, True),
        ([{**WRITTEN, "model": "org/other"}], None, False, OTHER, True),
        ([{**WRITTEN, "commit": "main"}], None, False, OTHER, True),
        ([], None, False, OTHER, True),
        # A commit never moves.
        ([WRITTEN], COMMIT, True, COMMIT, False),
    ],
)
def test_a_commit_stays_until_something_else_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    assigned: list[dict[str, Any]],
    revision: str | None,
    update: bool,
    commit: str,
    asked: bool,
) -> None:
    task = hub_task(monkeypatch, assigned, hf=True)
    task.snapshots[HUB] = _hub.Snapshot(OTHER, ())
    found = task.run(
        models=[{"name": "llama", "model": HUB, "revision": revision}], update_weights=update, weights_dir="/weights"
    )
    assert "failed" not in found, found
    assert list(task.host.commits.values()) == [commit]
    assert bool(task.asked_hub) is asked


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("https://hub.example.com", "org/llama: the hub is silent"),
        ("", "no hub is asked, since vllm_hub_endpoint is empty"),
    ],
)
def test_a_branch_that_nobody_can_resolve_is_refused_with_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, reason: str
) -> None:
    task = hub_task(monkeypatch, [])
    task.snapshots.clear()
    models = [{"name": "llama", "model": HUB, "revision": "v1"}]
    found = task.run(models=models, hub_endpoint=endpoint)
    assert found["problems"] == [
        f"vllm_models: 'llama' has revision 'v1', and no run on this host has written down which commit of org/llama that is: {reason}. "
        "Name a commit (40 hexadecimal digits) in vllm_models[].revision, or let the control node reach the hub (vllm_hub_endpoint)."
    ]
    task.plan = Plan()
    assert task.run(models=models, hub_endpoint=endpoint, preview=True)["problems"] == []


SERVED = {"name": "llama-0", "model": HUB, "commit": COMMIT, "path": FOLDER, "engine_args": {}}


@pytest.mark.parametrize(
    ("verified", "engine_args", "form", "present"),
    [
        ({"hf": True}, {}, "hf", True),
        ({}, {}, "hf", False),
        ({"hf": True}, {"load-format": "mistral"}, "mistral", False),
        ({"mistral": True}, {"config-format": "mistral"}, "mistral", True),
    ],
)
def test_what_is_to_be_downloaded_is_handed_on(
    monkeypatch: pytest.MonkeyPatch, verified: dict[str, bool], engine_args: dict[str, Any], form: str, present: bool
) -> None:
    task = hub_task(monkeypatch, [WRITTEN], **verified)
    # Replicas share it, and what is no model of the hub has none.
    served = {**SERVED, "engine_args": engine_args}
    task.plan.instances += [served, {**served, "name": "llama-1"}, {"name": "own-0", "model": PATH, "commit": None}]
    found = task.run(models=[{"name": "llama", "model": HUB}], weights_dir="/weights")
    assert found["weights"] == [{"model": HUB, "commit": COMMIT, "path": FOLDER, "format": form, "present": present}]


def test_without_a_hub_a_folder_that_looks_whole_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    task = hub_task(monkeypatch, [WRITTEN])
    task.plan.instances.append(SERVED)
    models = [{"name": "llama", "model": HUB}]
    assert task.run(models=models, hub_endpoint="", weights_dir="/weights")["weights"][0]["present"] is True
    # What the plan would serve is not what the host has.
    task.plan.instances[:] = [{**SERVED, "path": "/weights/none"}]
    found = task.run(models=models, hub_endpoint="", weights_dir="/weights")
    assert found["problems"] == [
        "vllm_models[].model is 'org/llama', its folder /weights/none: there is no such folder on this host. vllm_hub_endpoint is empty, so that nothing is "
        "downloaded: name the hub's address there, or copy the weights directory of another host."
    ]


@pytest.mark.parametrize(
    ("answer", "problems"), [(_hub.Refusal("org/llama: gated"), 1), ("org/llama: a slow network", 0)]
)
def test_a_model_that_the_hub_refuses_stops_before_any_change(
    monkeypatch: pytest.MonkeyPatch, answer: str, problems: int
) -> None:
    task = hub_task(monkeypatch, [WRITTEN])
    task.plan.instances.append(SERVED)
    task.snapshots[HUB] = answer
    found = task.run(models=[{"name": "llama", "model": HUB}], weights_dir="/weights")
    assert found["problems"] == ["org/llama: gated. Nothing could be downloaded."][:problems]


def test_a_plan_that_works_is_handed_on(task: Task) -> None:
    task.plan.instances.append({"name": "llama-0"})
    assert task.run() == {
        "changed": False, "instances": [{"name": "llama-0"}], "surge": [{"beside": "llama-0"}], "weights": [], "problems": [], "misfits": [],
        "plan_warnings": [],
    }  # fmt: skip


def test_a_plan_that_does_not_is_refused_and_only_shown_when_looking_ahead(task: Task) -> None:
    task.plan.instances.append({"name": "llama-0"})
    task.plan.problems.append("a problem.")
    task.plan.misfits.append("a misfit.")
    assert task.run() == action.refusal(["a problem.", "a misfit."])
    ahead = task.run(preview=True)
    assert (ahead["problems"], ahead["misfits"], ahead.get("failed")) == (["a problem."], ["a misfit."], None)
    assert ahead["surge"] == []
    task.plan.problems.clear()
    assert task.run()["problems"] == ["a misfit."]
    assert task.run(preview=True)["surge"] == []


def test_catalogues_and_gpus_that_are_wrong_are_told_together_and_before_anything_is_asked(task: Task) -> None:
    found = task.run(gpus=["h900"], known_gpus={"own": {}}, known_models={"a/b": {}})
    assert found["failed"] is True
    assert [one.partition(" ")[0] for one in found["problems"]] == [
        "vllm_plan_gpus[0].kind",
        "vllm_plan_known_gpus.own.name",
        "vllm_plan_known_gpus.own.memory_gib",
        "vllm_plan_known_gpus.own.compute_capability",
        "vllm_plan_known_models['a/b']",
    ]
    assert task.asked_host + task.asked_hub == []


def test_entries_that_are_no_models_go_to_the_plan_and_nowhere_else(task: Task) -> None:
    task.run(models=["text", None, {"model": 7}, {"name": "b", "model": HUB}])
    assert {asked[1] for asked in task.asked_hub} == {HUB}


def test_a_bundle_is_read_in_the_place_of_the_hub(tmp_path: Path) -> None:
    config = b'{"hidden_size": 8}'
    files = (
        _bundle.Weight("config.json", len(config), "a" * 40),
        _bundle.Weight("model.safetensors", 70, "b" * 64),
        _bundle.Weight("tokenizer.json", 9, "c" * 40),
    )
    model = _bundle.Model(HUB, ("", "main"), COMMIT, "hf", files)
    manifest = _bundle.Manifest(
        "0.1.0", _bundle.System("Debian 12", "x86_64", "3.11"), "r", (), (), (model,),
        {model.blob(one): _bundle.Content(one.size, "0" * 64) for one in files},
    )  # fmt: skip
    (tmp_path / "manifest.json").write_text(manifest.text())
    blob = tmp_path / model.blob(files[0])
    blob.parent.mkdir(parents=True)
    blob.write_bytes(config)
    known, unknown = Source(HUB, ""), Source(HUB, "v2")
    answers = action.ask_bundle([known, unknown], str(tmp_path))
    assert answers[known] == action.Answer(
        COMMIT,
        ("config.json", "model.safetensors", "tokenizer.json"),
        {"config": {"hidden_size": 8}, "weights_bytes": 70, "source": "the bundle"},
    )
    assert f"has no {HUB} of that revision" in answers[unknown].problem

    def missing(commit: str, present: bool = False) -> list[dict[str, Any]]:
        return [{"model": HUB, "commit": commit, "format": "hf", "present": present}]

    assert action.unbundled(missing(COMMIT), str(tmp_path)) == []
    assert action.unbundled(missing(OTHER, present=True), str(tmp_path)) == []
    assert action.unbundled(missing(OTHER), "") == []
    assert action.unbundled(missing(OTHER, present=True), str(tmp_path / "nowhere")) == []
    (problem,) = action.unbundled(missing(OTHER), str(tmp_path))
    assert f"at {OTHER[:12]} (hf), and the bundle {tmp_path} has {COMMIT[:12]} (hf)" in problem
    assert "vllm_weights_update=true" in problem
    with pytest.raises(AnsibleActionFail, match="there is no whole bundle"):
        action.ask_bundle([known], str(tmp_path / "nowhere"))
    # The disk that it came on is unplugged once all is on the host.
    assert action.ask_bundle([], str(tmp_path / "nowhere")) == {}
