# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down when each task of a play began, and what became of it on how many hosts. For `make bench-converge`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_times
type: aggregate
short_description: Writes down when each task began
description:
  - For the benchmark alone. Times are of the machine's monotonic clock, in seconds.
requirements:
  - GPUOPS_TASK_TIMES in the environment, the file to write.
"""


class CallbackModule(CallbackBase):
    """Writes one JSON object at the end of a run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.play = ""
        self.tasks: list[dict[str, Any]] = []

    def count(self, outcome: str, result: Any) -> None:
        outcomes = self.tasks[-1]["hosts"].setdefault(result.host.get_name(), [])
        outcomes.append("changed" if outcome == "ok" and result.result.get("changed") else outcome)

    # ---- What Ansible calls ------------------------------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self.play = play.get_name()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        role, separator, name = task.get_name(include_role_fqcn=False).rpartition(" : ")
        self.tasks.append(
            {
                "play": self.play,
                "role": role.rpartition(".")[2] if separator else "",
                "name": name,
                "action": task.action,
                "at": time.monotonic(),
                "hosts": {},
            }
        )

    def v2_runner_on_ok(self, result: Any) -> None:
        self.count("ok", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self.count("skipped", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.count("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.count("failed", result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        text = json.dumps({"tasks": self.tasks, "end": time.monotonic()})
        Path(os.environ["GPUOPS_TASK_TIMES"]).write_text(text, encoding="utf-8")
