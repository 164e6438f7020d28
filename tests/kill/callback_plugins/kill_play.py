# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills the ansible-playbook that it runs in at a changing task, each task once. For the tests alone; molecule/shared/killing.py sets it up.

With ``GPUOPS_KILL_WAY=after`` the play dies as soon as a task has reported a change, with ``middle`` some time (``DELAYS_S``) after a task
has begun, while its module works on the host; the module goes on without it, as it would after a lost connection. A task is remembered
in the file ``GPUOPS_KILL_LOG``, one JSON object a line, so that the next run comes one task further.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

sys.path.append(str(Path(__file__).resolve().parents[3] / "molecule" / "shared"))

from death import kill_myself

DOCUMENTATION = r"""
name: kill_play
type: aggregate
short_description: Kills the play at a changing task
description:
  - For the tests alone.
requirements:
  - GPUOPS_KILL_WAY, GPUOPS_KILL_LOG, GPUOPS_KILL_HOST and GPUOPS_KILL_ROLES in the environment.
"""

#: Seconds after the start of a task. Most modules are half through after the first; apt, certbot and loading engines after the second.
DELAYS_S = (0.35, 2.5)
AFTER = "after its change"


class CallbackModule(CallbackBase):
    """Watches the tasks of some roles on one host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_play"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.way = os.environ["GPUOPS_KILL_WAY"]
        self.log = Path(os.environ["GPUOPS_KILL_LOG"])
        self.host = os.environ["GPUOPS_KILL_HOST"]
        self.roles = os.environ["GPUOPS_KILL_ROLES"].split()
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.done = {(entry["task"], entry["when"]) for entry in map(json.loads, lines)}
        self.timer: threading.Timer | None = None
        self.lock = threading.Lock()

    def name_of(self, host: Any, task: Any) -> str:
        """Return ``role : task``, or an empty text for what is not to be killed: a preflight only reads."""
        name = task.get_name(include_role_fqcn=False)
        role = name.partition(" : ")[0].rpartition(".")[2]
        wanted = host.get_name() == self.host and role in self.roles and "preflight |" not in name
        return f"{role} : {name.partition(' : ')[2]}" if wanted else ""

    def kill(self, task: str, moment: str) -> None:
        """Write down what is killed, then kill. Only one of the two threads comes this far."""
        self.lock.acquire()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"task": task, "when": moment}) + "\n")
            log.flush()
            os.fsync(log.fileno())
        kill_myself()

    # ---- What Ansible calls ------------------------------------------------------------------------------------------

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        name = self.name_of(host, task)
        if self.way != "middle" or not name:
            return
        for delay_s in DELAYS_S:
            moment = f"{delay_s} s after its start"
            if not self.done & {(name, moment), (name, AFTER)}:
                self.timer = threading.Timer(delay_s, self.kill, (name, moment))
                self.timer.daemon = True
                self.timer.start()
                return

    def v2_runner_on_ok(self, result: Any) -> None:
        name = self.name_of(result.host, result.task)
        timed = self.disarm()
        changed = bool(result.result.get("changed"))
        # In the way `middle`: over before its time came, so dead before the next task, and never again at this one.
        if name and changed and (self.way == "after" or timed) and (name, AFTER) not in self.done:
            self.kill(name, AFTER)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self.disarm()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.disarm()

    def disarm(self) -> bool:
        """The task is over. Returns whether there was a time set for it."""
        timer, self.timer = self.timer, None
        if timer:
            timer.cancel()
        return timer is not None
