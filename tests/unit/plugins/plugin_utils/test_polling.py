"""The loop around a module that is not done yet."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.task import Task
from ansible.plugins.action import ActionBase
from ansible.plugins.connection import ConnectionBase
from ansible_collections.gpuops.vllm.plugins.action import unit
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _polling

Answer = dict[str, Any] | Exception


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 5
        self.now += seconds


class Action(_polling.PollingAction):
    """Answers from a list instead of from a host."""

    module = "gpuops.vllm.anything"
    look = "journalctl --unit=anything"

    def __init__(self, answers: list[Answer], *, no_log: bool = False) -> None:
        self.answers = answers
        self.calls: list[dict[str, Any]] = []
        self.resets = 0
        self._task = cast(Task, SimpleNamespace(args={"name": "x"}, no_log=no_log))
        self._connection = cast(ConnectionBase, SimpleNamespace(reset=self.reset))

    def reset(self) -> None:
        self.resets += 1

    def _execute_module(
        self, module_name: Any = None, module_args: Any = None, *args: Any, **options: Any
    ) -> dict[str, Any]:
        assert module_name == "gpuops.vllm.anything"
        self.calls.append(module_args)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(_polling, "time", Clock())
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(_polling.display, "display", lines.append)
    return lines


def run(action: Action) -> dict[str, Any]:
    return action.run(task_vars={"inventory_hostname": "gpu01"})


def pending(status: str = "working", **more: Any) -> dict[str, Any]:
    return {"pending": True, "status": status, **more}


def test_a_result_at_once_needs_one_call(shown: list[str]) -> None:
    action = Action([{"changed": False, "answer": 42}])
    assert run(action) == {"changed": False, "answer": 42}
    assert (action.calls, shown) == ([{"name": "x"}], [])


def test_it_asks_again_until_done_and_adds_up_what_changed(shown: list[str]) -> None:
    action = Action([pending(changed=True), pending(changed=False), {"changed": False, "answer": 42}])
    assert run(action) == {"changed": True, "answer": 42}
    assert len(action.calls) == 3


def test_what_the_module_hands_over_goes_into_the_next_call_only(shown: list[str]) -> None:
    action = Action([pending(poll_args={"run": "abc"}), pending(), {"changed": True}])
    assert "poll_args" not in run(action)
    assert action.calls == [{"name": "x"}, {"name": "x", "run": "abc"}, {"name": "x"}]


def test_a_new_status_is_shown_at_once_and_an_old_one_every_15_s(shown: list[str]) -> None:
    run(Action([pending("one"), pending("two", elapsed_s=77), *[pending("two")] * 12, {"changed": True}]))
    assert shown == ["gpu01 | one (0 s)", "gpu01 | two (77 s)", "gpu01 | two (16 s)", "gpu01 | two (31 s)"]


def test_nothing_is_shown_of_a_task_that_is_not_to_be_logged(shown: list[str]) -> None:
    run(Action([pending("secret"), {"changed": True}], no_log=True))
    assert shown == []


def test_a_failure_ends_it_and_keeps_what_changed(shown: list[str]) -> None:
    action = Action([pending(changed=True), {"failed": True, "msg": "no", "pending": True}])
    assert run(action) == {"failed": True, "msg": "no", "changed": True}


def test_a_lost_connection_is_taken_up_again(shown: list[str]) -> None:
    action = Action([pending(), AnsibleConnectionFailure("gone"), AnsibleConnectionFailure("gone"), {"changed": True}])
    assert run(action) == {"changed": True}
    assert action.resets == 2
    assert shown[1] == "gpu01 | connection lost, trying again: gone (0 s)"


def test_a_connection_that_stays_away_is_an_error(shown: list[str]) -> None:
    with pytest.raises(AnsibleConnectionFailure) as lost:
        run(Action([pending(), AnsibleConnectionFailure("gone")]))
    assert str(lost.value) == (
        "The connection was lost, and was not back after 120 s: gone. The host goes on with the work. "
        "Once it can be reached, run the play again; journalctl --unit=anything on the host shows how far it is."
    )


def test_a_host_that_was_never_reached_is_not_tried_again(shown: list[str]) -> None:
    action = Action([AnsibleConnectionFailure("gone")])
    with pytest.raises(AnsibleConnectionFailure):
        run(action)
    assert len(action.calls) == 1


def test_waiting_has_an_end(shown: list[str]) -> None:
    result = run(Action([pending("stuck", changed=True)]))
    assert result["failed"]
    assert result["changed"]
    assert (
        "last status: stuck. The host goes on with it. See how far it is (journalctl --unit=anything, on the host)"
        in result["msg"]
    )
    assert "run the play again" in result["msg"]


@pytest.mark.parametrize(("timeout_s", "waited_s"), [(60, 6 * 3600), (12 * 3600, 12 * 3600), ("43200", 12 * 3600)])
def test_a_unit_is_waited_for_as_long_as_it_may_take(shown: list[str], timeout_s: int | str, waited_s: int) -> None:
    """A download may have half a day."""

    class Unit(Action, unit.ActionModule):
        module = "gpuops.vllm.anything"

    action = Unit([pending("downloading")])
    action._task.args["timeout_s"] = timeout_s
    said = run(action)["msg"]
    found = re.search(r"Still not done after (\d+) s", said)
    assert "journalctl --unit=x, on the host" in said
    assert found and waited_s < int(found[1]) < waited_s + 120


@pytest.mark.parametrize(
    ("before", "after", "merged"),
    [
        ({}, {}, {"changed": False}),
        ({"changed": True, "status": "x"}, {"a": 1}, {"changed": True, "a": 1}),
        (
            {"diff": {"before": "a"}},
            {"diff": [{"before": "b"}]},
            {"changed": False, "diff": [{"before": "a"}, {"before": "b"}]},
        ),
        ({"warnings": ["a"]}, {"warnings": ["a", "b"]}, {"changed": False, "warnings": ["a", "b"]}),
    ],
)
def test_two_results_are_put_together(before: dict[str, Any], after: dict[str, Any], merged: dict[str, Any]) -> None:
    assert _polling.merge(before, after) == merged


def test_what_each_call_did_is_told_in_the_end() -> None:
    merged = _polling.merge({"actions": ["restart a-0"], "changed": True}, {"actions": [], "changed": False})
    assert merged == {"actions": ["restart a-0"], "changed": True}
