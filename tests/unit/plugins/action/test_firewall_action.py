# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second call of `gpuops.vllm.firewall`: on a new connection, until the host has taken the rules back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.action import firewall


class Action(firewall.ActionModule):
    """With answers in the place of a host; an exception is a connection that does not come through."""

    pause_s = 0.0

    def __init__(self, *answers: Any, patience_s: float = 30.0) -> None:
        self.answers = list(answers)
        self.patience_s = patience_s
        self.told: list[str] = []
        self._task = SimpleNamespace(args={"rollback_s": 0.01}, async_val=0, check_mode=False, diff=False)  # type: ignore[assignment]
        self._connection = SimpleNamespace(reset=lambda: self.told.append("new connection"))  # type: ignore[assignment]

    def _call(self, extra: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        self.told.append(str(extra))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture(autouse=True)
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda *_arguments, **_options: {})


LOST = AnsibleConnectionFailure("Connection timed out")
ON_TRIAL = {
    "changed": True,
    "pending": "1f2e",
    "actions": ["put the rules on trial"],
    "diff": {"before": "", "after": "x"},
}


def test_without_a_change_there_is_one_call_on_the_old_connection() -> None:
    action = Action({"changed": False})
    assert action.run() == {"changed": False}
    assert action.told == ["{}"]


def test_new_rules_are_confirmed_on_a_new_connection() -> None:
    action = Action(ON_TRIAL, {"changed": True, "actions": ["wrote it"]})
    result = action.run()
    assert action.told == ["{}", "new connection", "{'confirm': '1f2e'}"]
    assert result == {"changed": True, "actions": ["put the rules on trial", "wrote it"], "diff": [ON_TRIAL["diff"]]}


def test_a_connection_that_does_not_come_through_is_tried_until_the_host_says_what_became_of_them() -> None:
    action = Action(ON_TRIAL, LOST, LOST, {"failed": True, "msg": "They were taken back.", "changed": False})
    result = action.run()
    assert action.told.count("new connection") == 3
    assert (result["failed"], result["changed"]) == (True, True)
    assert result["msg"] == "They were taken back. The connection failed so: Connection timed out"


def test_a_host_that_stays_away_is_given_up() -> None:
    with pytest.raises(AnsibleConnectionFailure, match=r"not even after .* taken them back: Connection timed out"):
        Action(ON_TRIAL, LOST, patience_s=0.05).run()
