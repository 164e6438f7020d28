"""What the runs of `make bench-converge` become: phases, verdicts, tables; and what the callback tells of a real play."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import converge
import pytest
from converge import ENGINE, FRESH, SECOND, Run

REPO = Path(__file__).resolve().parents[3]
PLAY = """
- name: Serve
  hosts: one,two
  connection: local
  gather_facts: false
  tasks:
    - {name: preflight | Look, ansible.builtin.debug: {msg: x}}
    - {name: Wait, ansible.builtin.command: sleep 0.4, when: inventory_hostname == 'two', changed_when: true}
    - {ansible.builtin.import_role: {name: gpuops.vllm.mine}}
    - {name: End, ansible.builtin.debug: {msg: x}}
"""


def run(kind: str, machines: int, wall_s: float, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "phases_s": {"vllm_service": 5.0},
        "tasks": 50,
        "skipped": 20,
        "changed": 0,
        "cores": 0.5,
        "before": 0.01,
    }
    return Run(kind=kind, machines=machines, wall_s=wall_s, **(values | changes))


GOOD = (run(SECOND, 1, 20), run(SECOND, 4, 30), run(FRESH, 1, 60), run(ENGINE, 1, 65))


def verdicts(*runs: Run) -> list[bool]:
    return [aim.met for aim in converge.aims(converge.cells(runs))]


def changed(kind: str, machines: int, **changes: Any) -> tuple[Run, ...]:
    """The good ones, with one changed."""
    return tuple(replace(one, **changes) if (one.kind, one.machines) == (kind, machines) else one for one in GOOD)


def test_all_is_met_just_so() -> None:
    assert verdicts(*GOOD) == [True] * 4


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (changed(SECOND, 1, wall_s=30.1), [False, True, True, True]),
        (changed(SECOND, 4, wall_s=30.1), [True, False, True, True]),
        (changed(FRESH, 1, wall_s=60.1), [True, True, False, True]),
        (changed(ENGINE, 1, wall_s=65.1), [True, True, True, False]),
        # The load of the model is not counted.
        (changed(ENGINE, 1, wall_s=100, phases_s={"vllm_service": 40.0}), [True, True, True, True]),
        ((), [False] * 4),
        ((run(SECOND, 1, 20),), [True, False, False, False]),
    ],
)
def test_an_aim_is_met_or_not_by_itself(runs: tuple[Run, ...], expected: list[bool]) -> None:
    assert verdicts(*runs) == expected


def test_a_cell_is_the_median_of_its_rounds_and_the_worst_of_the_noise() -> None:
    runs = [run(SECOND, 1, seconds, before=before) for seconds, before in ((20, 0.0), (50, 0.4), (22, 0.1))]
    (cell,) = converge.cells(runs)
    assert (cell.wall_s, cell.rounds_s, cell.before) == (22, [20, 50, 22], 0.4)
    assert "**The machine was not quiet**" in converge.page(
        dict.fromkeys(("commit", "date", "cores", "processor", "kernel", "python", "ansible"), "x"), [cell]
    )


def test_the_order_is_by_kind_and_machines_whatever_was_measured_first() -> None:
    cells = converge.cells([run(SECOND, 4, 1), run(SECOND, 1, 1), run(ENGINE, 1, 1), run(FRESH, 1, 1)])
    assert [(one.kind, one.machines) for one in cells] == [(FRESH, 1), (ENGINE, 1), (SECOND, 1), (SECOND, 4)]


def task(
    at: float, name: str = "Do", role: str = "", action: str = "ansible.builtin.debug", play: str = "Serve the models"
) -> dict[str, Any]:
    return {"play": play, "role": role, "name": name, "action": action, "at": at, "hosts": {"gpu01": ["ok"]}}


def test_a_task_lasts_until_the_next_one_and_belongs_to_its_phase() -> None:
    tasks = [
        task(1.0, "Gathering Facts", action="ansible.builtin.gather_facts"),
        task(2.0, "plan | Compute", role="vllm_plan"),
        task(2.5, "preflight | Refuse", role="vllm_engine"),
        task(3.0, "install | Install NGINX", role="vllm_nginx", action="gpuops.vllm.packages"),
        task(7.0, "configure | Bring", role="vllm_nginx", action="gpuops.vllm.nginx_config"),
        task(9.0, "End with the failure"),
    ]
    assert converge.phases(tasks, 0.25, 10.0) == {
        "ansible-playbook starts": 0.75,
        "facts": 1.0,
        "checks and plan": 1.0,
        "Debian packages": 4.0,
        "vllm_nginx": 2.0,
        "Serve the models": 1.0,
    }
    assert sum(converge.phases(tasks, 0.25, 10.0).values()) == 9.75


def test_a_failed_task_is_no_measurement() -> None:
    told = {"tasks": [task(1.0, "Install", role="mine") | {"hosts": {"gpu01": ["failed"]}}]}
    with pytest.raises(ValueError, match="gpu01: mine Install failed"):
        converge.run_of(SECOND, ["gpu01"], told, 0, 2, 0, 0)


def test_runs_are_the_same_out_of_a_file() -> None:
    assert [Run(**one) for one in json.loads(json.dumps([asdict(one) for one in GOOD]))] == list(GOOD)


def test_the_callback_tells_what_a_play_did(tmp_path: Path) -> None:
    role = tmp_path / "ansible_collections/gpuops/vllm/roles/mine/tasks"
    role.mkdir(parents=True)
    (role / "main.yml").write_text(
        "- {name: configure | Do, ansible.builtin.debug: {msg: x}, changed_when: inventory_hostname == 'one'}\n"
    )
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "hosts").write_text(f"one\ntwo\n[all:vars]\nansible_python_interpreter={sys.executable}\n")
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path),
        "ANSIBLE_CALLBACK_PLUGINS": str(REPO / "tests/bench/callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "task_times",
        "GPUOPS_TASK_TIMES": str(tmp_path / "times.json"),
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    command = [program, "-i", str(tmp_path / "hosts"), str(tmp_path / "play.yml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "times.json").read_text())
    seen = [(one["play"], one["role"], one["name"], one["hosts"]) for one in told["tasks"]]
    assert seen == [
        ("Serve", "", "preflight | Look", {"one": ["ok"], "two": ["ok"]}),
        ("Serve", "", "Wait", {"one": ["skipped"], "two": ["changed"]}),
        ("Serve", "mine", "configure | Do", {"one": ["changed"], "two": ["ok"]}),
        ("Serve", "", "End", {"one": ["ok"], "two": ["ok"]}),
    ]
    run = converge.run_of(SECOND, ["one", "two"], told, told["tasks"][0]["at"] - 1, told["end"], 0.5, 0)
    assert (run.machines, run.tasks, run.skipped, run.changed) == (2, 3.5, 0.5, 2)
    assert list(run.phases_s) == ["ansible-playbook starts", "checks and plan", "Serve", "mine"]
    assert run.phases_s["Serve"] >= 0.4
