"""Which host's turn it is in upgrade.yml and rollback.yml, and what a host that fails leaves: the plays as they are, with a stand-in for each role."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
REPO = PLAYBOOKS.parent
HOSTS = tuple(f"gpu{number:02}" for number in range(1, 4))
ROLE = "ansible.builtin.import_role"
TASKS = "ansible.builtin.import_tasks"
#: Modules of the plays themselves, which have stand-ins as well.
MODULES = ("gpuops.vllm.claim", "gpuops.vllm.engine_link", "gpuops.vllm.verify_endpoint")
#: Writes down HOST|WHAT|BATCH, and after a plus what it is told to have beside the plan; fails where the inventory says so, the first time or the one that it says. An action, since it runs in the play's own process.
STAND_IN = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        args = self._task.args
        beside = "".join(f" + {one['name']}" for one in args["instances"] if one["replica"])
        line = f"{args['host']}|{args['what']}{beside}|"
        with open(args["done"], "a+") as file:
            file.write(line + " ".join(args["batch"]) + chr(10))
            file.seek(0)
            time = sum(one.split("|")[:2] == line.split("|")[:2] for one in file)
        failure = (args["failures"] or {}).get(args["what"] + beside)
        if failure == "lost":
            return {"unreachable": True, "msg": "no route to host"}
        failure = failure if isinstance(failure, dict) else {"msg": failure}
        if failure["msg"] and time == failure.get("time", 1):
            return {"failed": True, **failure}
        name, other = ("old", "new") if args["what"] == "engine_link back" else ("new", "old")
        return {"name": name, "other": other, "before": other, "version": "0.31.0", "id": "x", "held": True, "behind": [], **args["answers"]}
"""


def standing_in(tasks: list[dict[str, Any]], done: Path) -> list[dict[str, Any]]:
    """Tasks of a play with those of its files in their place, where a stand-in is in the place of each role and module."""
    found: list[dict[str, Any]] = []
    for one in tasks:
        task: dict[str, Any] = {}
        for key, value in one.items():
            task[key] = standing_in(value, done) if key in ("block", "rescue") else value
        if TASKS in task:
            file = (PLAYBOOKS / "tasks" / Path(task.pop(TASKS)).name).resolve()
            if file.stem in ("names", "preflight", "inventory"):
                continue
            block = standing_in(yaml.safe_load(file.read_text()), done)
            # Variables of a block are those of its tasks, as with the import.
            found.append({**task, "block": block})
            continue
        what = role = ""
        if ROLE in task:
            imported = task.pop(ROLE)
            role = imported["name"].removeprefix("gpuops.vllm.vllm_")
            what = " ".join([role, imported.get("tasks_from", "")]).strip()
        for module in MODULES:
            if module in task:
                arguments = task.pop(module) or {}
                what = " ".join([module.rpartition(".")[2], arguments.get("way", "")]).strip()
                task.pop("delegate_to", None)
        if what:
            task["stand_in"] = {
                "done": str(done), "host": "{{ inventory_hostname }}", "what": what,
                "instances": [], "batch": "{{ ansible_play_batch | sort }}", "failures": "{{ failures | default({}) }}", "answers": "{{ answers | default({}) }}",
            }  # fmt: skip
            if role in ("service", "nginx"):
                task["stand_in"]["instances"] = "{{ " + f"vllm_{role}_instances" + " }}"
            if what == "engine activate":
                task["register"] = "vllm_engine_link"
        if not {"ansible.builtin.include_role", "ansible.builtin.slurp"} & set(task):
            found.append(task)
    return found


def run(
    playbook: str,
    folder: Path,
    *options: str,
    bad: dict[str, dict[str, Any]] | None = None,
    answers: dict[str, dict[str, Any]] | None = None,
    **inventory: Any,
) -> tuple[list[str], str, int]:
    """Run a playbook where roles or modules fail once on the hosts of ``bad``; what was done, what was said, and the status."""
    done = folder / "done"
    plays = []
    for play in yaml.safe_load((PLAYBOOKS / f"{playbook}.yml").read_text()):
        if play["hosts"] != "localhost":
            plays.append({**play, "become": False, "gather_facts": False, "tasks": standing_in(play["tasks"], done)})
            plays[-1].pop("module_defaults", None)
            plays[-1].pop("gather_subset", None)
    (folder / "play.yml").write_text(json.dumps(plays))
    (folder / "vars").symlink_to(PLAYBOOKS / "vars")
    for kind, text in (("action_plugins", STAND_IN), ("library", "# The action of this name is all of it.")):
        (folder / kind).mkdir()
        (folder / kind / "stand_in.py").write_text(text)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {
        name: {**local, "failures": (bad or {}).get(name, {}), "answers": (answers or {}).get(name, {})}
        for name in HOSTS
    }
    plan: dict[str, Any] = {"vllm_plan_instances": [], "vllm_plan_surge": [], "vllm_plan_weights": []}
    plan |= {"vllm_engine_found": {"before": "old", "name": "new"}, "vllm_api_keys": [{"name": "a", "key": "k"}]}
    variables = {**plan, **inventory}
    (folder / "hosts.json").write_text(json.dumps({"vllm_servers": {"hosts": hosts, "vars": variables}}))
    done.write_text("")
    ended = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.json", folder / "play.yml", *options],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    return done.read_text().splitlines(), " ".join((ended.stdout + ended.stderr).split()), ended.returncode


def of(host: str, done: list[str]) -> list[str]:
    """What was done on a host, in its order."""
    return [what for name, what, _batch in (line.split("|") for line in done) if name == host]


def batches(what: str, done: list[str]) -> list[str]:
    """The batches in which something was done, in their order."""
    return list(dict.fromkeys(batch for _name, one, batch in (line.split("|") for line in done) if one == what))


#: Before any host is changed: the endpoint is asked, and the engine built.
FIRST = ["verify_endpoint", "engine install"]
MOVE = ["claim", "launcher", "engine activate", "service", "nginx configure", "verify_endpoint"]
BACK = ["claim", "engine_link back", "service", "nginx configure", "verify_endpoint"]


def test_all_hosts_have_the_engine_before_the_first_one_moves_alone(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path)
    assert status == 0, said
    assert [line.split("|")[1] for line in done[: 2 * len(HOSTS)]] == [one for one in FIRST for _host in HOSTS]
    # A quarter of three is one.
    assert batches("engine activate", done) == list(HOSTS)
    for host in HOSTS:
        assert of(host, done) == [*FIRST, *MOVE]
    assert "Set vllm_version: 0.32.0 in the inventory" in said


def test_the_size_of_a_batch_is_chosen(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, "-e", json.dumps({"vllm_serial": [1, "100%"]}))
    assert status == 0, said
    assert batches("engine activate", done) == ["gpu01", "gpu02 gpu03"]


def test_a_batch_goes_to_its_end_where_one_of_it_fails(tmp_path: Path) -> None:
    options = ("-e", json.dumps({"vllm_serial": [2, "100%"]}))
    done, said, status = run("upgrade", tmp_path, *options, bad={"gpu01": {"service": "what the engine said"}})
    assert status != 0, said
    assert of("gpu01", done)[-3:] == ["engine_link back", "service", "nginx configure"]
    assert of("gpu02", done) == [*FIRST, *MOVE]
    assert of("gpu03", done) == FIRST


@pytest.mark.parametrize("failing", ["service", "nginx configure", "verify_endpoint"])
def test_a_host_that_fails_goes_back_and_no_further_one_is_touched(tmp_path: Path, failing: str) -> None:
    failure = {"msg": "what the engine said", "time": 2 if failing in FIRST else 1}
    done, said, status = run("upgrade", tmp_path, bad={"gpu02": {failing: failure}})
    assert status != 0
    assert of("gpu01", done) == [*FIRST, *MOVE]
    *there, link, service, proxy = of("gpu02", done)
    assert there == [*FIRST, *MOVE[: MOVE.index(failing) + 1]]
    assert [link, service, proxy] == ["engine_link back", "service", "nginx configure"]
    assert of("gpu03", done) == FIRST
    assert "what the engine said gpu02 serves with old again. No host after its batch was touched." in said


@pytest.mark.parametrize("playbook", ["upgrade", "rollback"])
@pytest.mark.parametrize(("serial", "lost", "moved"), [([2, 1], "gpu02", 2), ([1, 2], "gpu03", 3)])
def test_a_host_that_is_lost_stops_the_run_as_well(
    tmp_path: Path, playbook: str, serial: list[int], lost: str, moved: int
) -> None:
    """Ansible itself goes on with the next batch, and says at the end what is said of all hosts."""
    options = ("-e", json.dumps({"vllm_serial": serial}))
    done, said, status = run(playbook, tmp_path, *options, bad={lost: {"service": "lost"}})
    assert status != 0
    assert {line.split("|")[0] for line in done if "|claim|" in line} == set(HOSTS[:moved])
    assert f"{lost} cannot be reached any more" in said
    assert "serves with" not in said and "All hosts serve" not in said


@pytest.mark.parametrize("playbook", ["upgrade", "rollback"])
def test_check_mode_does_not_say_what_would_be(tmp_path: Path, playbook: str) -> None:
    _done, said, status = run(playbook, tmp_path, "--check")
    assert status == 0, said
    assert "All hosts serve" not in said and "serves with" not in said


def test_where_the_link_was_not_moved_it_is_not_moved_back(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, bad={"gpu01": {"engine activate": "another run has taken this host"}})
    assert status != 0
    assert of("gpu01", done) == [*FIRST, "claim", "launcher", "engine activate"]
    assert "another run has taken this host" in said
    assert "serves with" not in said


def test_an_engine_that_cannot_be_built_moves_no_host(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, bad={"gpu03": {"engine install": "hash mismatch"}})
    assert status != 0 and "hash mismatch" in said
    assert {line.split("|")[1] for line in done} == {*FIRST}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"vllm_upgrade_strategy": "blue"}, 'vllm_upgrade_strategy is "blue": needs drain'),
        ({"vllm_upgrade_strategy": ""}, 'vllm_upgrade_strategy is "": needs drain'),
        ({"vllm_service_allow_restart": False}, "vllm_service_allow_restart is false for gpu01: needs true"),
        ({"vllm_engine_found": {"before": ""}}, "has no engine that the role vllm_engine has installed"),
        ({"vllm_engine_found": {"skipped": True}}, "has no engine that the role vllm_engine has installed"),
    ],
)
def test_what_cannot_be_upgraded_is_refused_before_anything(
    tmp_path: Path, variables: dict[str, Any], words: str
) -> None:
    done, said, status = run("upgrade", tmp_path, **variables)
    assert (done, status != 0) == ([], True)
    assert words in said


def planned(name: str) -> dict[str, Any]:
    model, _dash, replica = name.rpartition("-")
    return {"name": name, "model_name": model, "replica": int(replica)}


#: A host that serves two models, of which one has a free GPU beside it, and a third one with two replicas.
SURGE: dict[str, Any] = {
    "vllm_upgrade_strategy": "surge",
    "vllm_plan_instances": [planned(name) for name in ("a-0", "b-0", "c-0")],
    "vllm_plan_surge": [planned("a-1")],
}
BESIDE = ["nginx configure + a-1", "service + a-1", "nginx configure"]
AT, AFTER = MOVE[: MOVE.index("service")], MOVE[MOVE.index("service") :]


def all_behind(*names: str) -> dict[str, dict[str, Any]]:
    return {host: {"behind": list(names)} for host in HOSTS}


def test_a_surge_serves_beside_the_old_engine_and_is_gone_before_the_endpoint_is_asked(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, answers=all_behind("a-0", "b-0"), **SURGE)
    assert status == 0, said
    for host in HOSTS:
        assert of(host, done) == [*FIRST, *AT, *BESIDE, *AFTER]
        assert f"{host}: nothing can start beside b, since that takes free GPUs of the same kind" in said


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        # All serve with it already, or those that have none beside them do not.
        (all_behind(), {}),
        (all_behind("b-0"), {}),
        # One that nobody plans any more.
        (all_behind("a-7"), {}),
        (all_behind("a-0", "b-0"), {"vllm_upgrade_strategy": "drain"}),
        (all_behind("a-0", "b-0"), {"vllm_plan_surge": []}),
        # There is nothing to go back to.
        ({host: {"behind": ["a-0"], "other": ""} for host in HOSTS}, {}),
    ],
)
def test_where_there_is_nothing_to_surge_for_it_is_as_without(
    tmp_path: Path, answers: dict[str, Any], changes: dict[str, Any]
) -> None:
    done, said, status = run("upgrade", tmp_path, answers=answers, **{**SURGE, **changes})
    assert status == 0, said
    for host in HOSTS:
        assert of(host, done) == [*FIRST, *MOVE]
    if changes.get("vllm_upgrade_strategy") == "drain":
        assert "nothing can start beside" not in said


def test_replicas_that_take_each_others_place_miss_no_gpu(tmp_path: Path) -> None:
    plan = [planned(name) for name in ("c-0", "c-1")]
    changes = {"vllm_plan_instances": plan, "vllm_plan_surge": []}
    _done, said, status = run("upgrade", tmp_path, answers=all_behind("c-0", "c-1"), **{**SURGE, **changes})
    assert status == 0, said
    assert "nothing can start beside" not in said


@pytest.mark.parametrize("failing", BESIDE[:2])
def test_a_surge_that_fails_is_taken_away_and_no_further_host_touched(tmp_path: Path, failing: str) -> None:
    bad = {"gpu02": {failing: "what the engine said"}}
    done, said, status = run("upgrade", tmp_path, bad=bad, answers=all_behind("a-0"), **SURGE)
    assert status != 0
    there = [*AT, *BESIDE[: BESIDE.index(failing) + 1]]
    # The service is told of the plan's instances alone, even where the proxy fails again.
    assert of("gpu02", done) == [*FIRST, *there, "engine_link back", "service", "nginx configure"]
    assert of("gpu03", done) == FIRST
    assert "what the engine said gpu02 serves with old again. No host after its batch was touched." in said


def test_a_surge_is_told_by_a_dry_run_as_well(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, "--check", answers=all_behind("a-0"), **SURGE)
    assert status == 0, said
    assert of("gpu01", done) == [*FIRST, *AT, *BESIDE, *AFTER]


def test_a_rollback_goes_host_by_host_as_well(tmp_path: Path) -> None:
    done, said, status = run("rollback", tmp_path)
    assert status == 0, said
    for host in HOSTS:
        looked, *rest = of(host, done)
        assert looked == "engine_link back"
        # Between them the preflight of the roles.
        assert [one for one in rest if one not in ("plan", "service preflight", "nginx preflight")] == BACK
    assert batches("claim", done) == list(HOSTS)
    assert "gpu01, gpu02, gpu03: serves with old again. Set vllm_version" in said


def test_a_rollback_that_fails_stays_where_it_was(tmp_path: Path) -> None:
    done, said, status = run("rollback", tmp_path, bad={"gpu01": {"service": "what the engine said"}})
    assert status != 0
    assert of("gpu01", done)[-4:] == ["service", "engine_link forth", "service", "nginx configure"]
    assert "gpu01 serves with new again" in said
    assert batches("claim", done) == ["gpu01"]


NOTHING = {"msg": "There is no engine to go back to", "held": False}


def test_of_an_upgrade_that_stopped_half_way_only_the_hosts_that_it_came_to_go_back(tmp_path: Path) -> None:
    """The others would go back by the upgrade before it, or cannot go back at all."""
    done, said, status = run(
        "rollback",
        tmp_path,
        bad={"gpu03": {"engine_link back": NOTHING}},
        answers={"gpu02": {"held": False, "name": "older", "other": "old", "before": "old"}},
    )
    assert status == 0, said
    assert batches("claim", done) == ["gpu01"]
    assert of("gpu02", done) == of("gpu03", done) == ["engine_link back"]
    assert "gpu01: serves with old again." in said
    assert "Not changed, since the upgrade had not come to them: gpu02, gpu03." in said


@pytest.mark.parametrize(
    ("bad", "third", "words"),
    [
        ({"gpu03": {"engine_link back": NOTHING}}, {}, "There is no engine to go back to"),
        # One that was to go back, and whose engine is gone.
        ({"gpu03": {"engine_link back": {"msg": "it is gone", "held": True}}}, {}, "it is gone"),
        ({}, {"name": "older", "held": False}, "would go back to different engines: old, older. Choose those"),
    ],
)
def test_where_one_host_cannot_go_back_with_the_others_none_is_touched(
    tmp_path: Path, bad: dict[str, Any], third: dict[str, Any], words: str
) -> None:
    answers = {name: {"held": False} for name in HOSTS[:2]} | {"gpu03": third}
    done, said, status = run("rollback", tmp_path, bad=bad, answers=answers)
    assert status != 0 and words in said
    assert batches("claim", done) == []


def test_a_rollback_that_could_restart_nothing_is_refused(tmp_path: Path) -> None:
    done, said, status = run("rollback", tmp_path, vllm_service_allow_restart="false")
    assert (done, status != 0) == ([], True)
    assert "vllm_service_allow_restart is false" in said


def test_what_does_not_answer_already_is_not_upgraded(tmp_path: Path) -> None:
    """Afterwards it would be taken for the new engine's fault, and the host go back."""
    bad = {"gpu02": {"verify_endpoint": "There is no key to ask with."}}
    done, said, status = run("upgrade", tmp_path, bad=bad)
    assert status != 0 and {line.split("|")[1] for line in done} == {"verify_endpoint"}
    assert "There is no key to ask with. That is so before the upgrade" in said
    (tmp_path / "again").mkdir()
    done, said, status = run("upgrade", tmp_path / "again", "--skip-tags", "verify", bad=bad)
    assert status == 0, said
    assert not any("verify_endpoint" in line for line in done)


def test_a_host_that_a_run_has_left_on_its_way_is_not_asked_before(tmp_path: Path) -> None:
    done, said, status = run("upgrade", tmp_path, vllm_engine_found={"before": "new", "name": "new"})
    assert status == 0, said
    assert of("gpu01", done) == ["engine install", *MOVE]


def test_weights_that_are_not_there_are_told_before_anything(tmp_path: Path) -> None:
    weights = [{"model": "org/new", "present": False}, {"model": "org/old", "present": True}]
    done, said, status = run("upgrade", tmp_path, vllm_plan_weights=weights)
    assert (done, status != 0) == ([], True)
    assert "gpu01 has not all weights of org/new, and upgrade.yml downloads none. Run site.yml first." in said


@pytest.mark.parametrize(
    ("playbook", "answers"),
    [
        ("upgrade", {"before": "new"}),
        ("rollback", {"before": "old"}),
    ],
)
def test_a_host_that_had_the_engine_already_keeps_it_whatever_fails(
    tmp_path: Path, playbook: str, answers: dict[str, Any]
) -> None:
    """Its last change was another run's, perhaps weeks ago."""
    bad = {"gpu01": {"service": "what the engine said"}}
    done, said, status = run(playbook, tmp_path, bad=bad, answers={"gpu01": answers})
    assert status != 0 and "what the engine said" in said
    assert of("gpu01", done)[-1] == "service"
    assert "serves with" not in said


def test_one_that_was_cut_off_goes_back_all_the_same(tmp_path: Path) -> None:
    bad = {"gpu01": {"service": "what the engine said"}}
    answers = {"gpu01": {"before": "new", "behind": ["a-0"]}}
    done, said, status = run("upgrade", tmp_path, bad=bad, answers=answers)
    assert status != 0
    assert of("gpu01", done)[-3:] == ["engine_link back", "service", "nginx configure"]
    assert "gpu01 serves with old again." in said


def test_of_some_hosts_it_is_not_said_that_the_inventory_may_change_for_all(tmp_path: Path) -> None:
    _done, said, status = run("upgrade", tmp_path, "--limit", "gpu01,gpu03")
    assert status == 0, said
    assert "gpu01, gpu03: serves with vLLM 0.32.0. Not upgraded: gpu02. Upgrade them as well before" in said


def test_a_rollback_that_is_not_answered_does_not_go_forth_again(tmp_path: Path) -> None:
    done, said, status = run("rollback", tmp_path, bad={"gpu01": {"verify_endpoint": "no route"}})
    assert status != 0 and "no route" in said
    assert not any("forth" in line for line in done)
    assert batches("claim", done) == ["gpu01"]


def test_a_rollback_without_a_key_to_ask_with_is_refused(tmp_path: Path) -> None:
    keys = [{"name": "a", "key_sha256": "0" * 64}, {"name": "b", "key": "k", "expires": "2027-01-01"}]
    done, said, status = run("rollback", tmp_path, vllm_api_keys=keys)
    assert status != 0 and batches("claim", done) == []
    assert "needs vllm_verify_api_key" in said
    (tmp_path / "again").mkdir()
    _done, said, status = run("rollback", tmp_path / "again", "--skip-tags", "verify", vllm_api_keys=keys)
    assert status == 0, said


def test_a_host_that_knows_of_the_change_without_holding_it_goes_back_as_well(tmp_path: Path) -> None:
    """site.yml has run on it since, with the new version in the inventory."""
    answers: dict[str, dict[str, Any]] = {"gpu02": {"held": False}, "gpu03": {"held": False, "before": "newer"}}
    done, said, status = run("rollback", tmp_path, answers=answers)
    assert status == 0, said
    assert batches("claim", done) == ["gpu01", "gpu02"]


def test_a_rollback_takes_no_version(tmp_path: Path) -> None:
    done, said, status = run("rollback", tmp_path, "-e", "vllm_version=0.30.0")
    assert (done, status != 0) == ([], True)
    assert "vllm_version: 0.30.0 on the command line" in said
