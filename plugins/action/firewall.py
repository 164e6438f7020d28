# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Confirms the rules of ``gpuops.vllm.firewall`` by a new connection, or says that none came through."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.plugin_utils._polling import merge


class ActionModule(ActionBase):
    """Calls the module of the same name, and a second time where it has put rules on trial."""

    _supports_check_mode = True
    _requires_connection = True

    #: Seconds beyond the trial for which the host may be slow to take the rules back.
    patience_s = 30.0
    #: Seconds between two tries of a new connection.
    pause_s = 2.0

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        begun = self._call({}, task_vars)
        token = begun.pop("pending", "")
        if not token:
            return begun
        return merge(begun, self._confirm(str(token), task_vars))

    def _call(self, extra: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="gpuops.vllm.firewall", module_args={**self._task.args, **extra}, task_vars=task_vars
        )
        return result

    def _confirm(self, token: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """The second call. Until the host has taken the rules back, a connection that does not come through is tried again."""
        deadline = time.monotonic() + float(self._task.args.get("rollback_s") or 60) + self.patience_s
        lost = ""
        while True:
            try:
                self._connection.reset()
                result = self._call({"confirm": token}, task_vars)
            except AnsibleConnectionFailure as error:
                lost = str(error)
                if time.monotonic() > deadline:
                    raise AnsibleConnectionFailure(
                        f"No new connection has come in since the new firewall rules, not even after the host should have taken them back: {lost}"
                    ) from None
                time.sleep(self.pause_s)
            else:
                if result.get("failed") and lost:
                    result["msg"] = f"{result.get('msg', '')} The connection failed so: {lost}"
                return result
