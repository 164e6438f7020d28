# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugins for work that takes minutes: call a module again until it is done, and show how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


class PollingAction(ActionBase):
    """Base of the action plugins whose module may answer that it is not done yet.

    The module answers at once, and does not wait itself. While there is more to come its result holds

    - ``pending``: true,
    - ``status``: one line for the user, shown as ``HOST | STATUS (12 s)`` when it changes, else every 15 s,
    - ``elapsed_s``, optional: seconds to show, where they are not those since the task began,
    - ``poll_args``, optional: arguments to add to the next call.

    The result of the last call is the task's; ``changed``, ``diff`` and ``warnings`` are those of all calls together.
    A connection lost between two calls is taken up again: the work goes on without it.
    """

    _supports_async = False
    _requires_connection = True

    #: The module to call, fully qualified.
    module = ""
    #: The command that shows the work on the host.
    look = ""
    #: Seconds between two calls, once the first few seconds have passed.
    poll_interval_s = 5.0
    #: Seconds after which an unchanged status is shown again.
    repeat_status_s = 15.0
    #: Seconds for which a lost connection may stay away.
    reconnect_s = 120.0
    #: Seconds after which the task gives up waiting, whatever the module says.
    limit_s = 6 * 3600.0

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        start = time.monotonic()
        extra: dict[str, Any] = {}
        total: dict[str, Any] = {}
        shown, shown_at = "", start
        while True:
            result = self._call(extra, variables, retry=bool(total))
            total = merge(total, result)
            if not total.get("pending") or total.get("failed"):
                break
            now = time.monotonic()
            status = str(total.get("status") or "working")
            if now - start > self.limit_s:
                total.update(
                    failed=True,
                    msg=f"Still not done after {int(now - start)} s, last status: {status}. The host goes on with it. See how far it is "
                    f"({self.look}, on the host), and run the play again to wait for it.",
                )
                break
            if status != shown or now - shown_at >= self.repeat_status_s:
                self._show(status, int(total.get("elapsed_s") or now - start), variables)
                shown, shown_at = status, now
            extra = dict(total.get("poll_args") or {})
            # Short work should not wait for a whole interval.
            time.sleep(min(self.poll_interval_s, max(0.5, (now - start) / 2)))
        total.pop("pending", None)
        total.pop("poll_args", None)
        return total

    def _call(self, extra: Mapping[str, Any], task_vars: dict[str, Any], *, retry: bool) -> dict[str, Any]:
        """One call of the module. From the second on a lost connection is tried again for ``reconnect_s`` seconds."""
        start = time.monotonic()
        while True:
            try:
                result: dict[str, Any] = self._execute_module(
                    module_name=self.module,
                    module_args={**self._task.args, **extra},
                    task_vars=task_vars,
                )
                return result
            except AnsibleConnectionFailure as error:
                if not retry:
                    raise
                if time.monotonic() - start > self.reconnect_s:
                    raise AnsibleConnectionFailure(
                        f"The connection was lost, and was not back after {self.reconnect_s:.0f} s: {error}. The host goes on with the work. "
                        f"Once it can be reached, run the play again; {self.look} on the host shows how far it is."
                    ) from None
                self._show(f"connection lost, trying again: {error}", int(time.monotonic() - start), task_vars)
                self._connection.reset()
                time.sleep(self.poll_interval_s)

    def _show(self, status: str, seconds: int, task_vars: Mapping[str, Any]) -> None:
        if not self._task.no_log:
            display.display(f"{task_vars.get('inventory_hostname', '')} | {status} ({seconds} s)")


def merge(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The result of two calls: the later one, with what the earlier one changed and said."""
    result = dict(after)
    result["changed"] = bool(before.get("changed")) or bool(after.get("changed"))
    diffs = [*_as_list(before.get("diff")), *_as_list(after.get("diff"))]
    if diffs:
        result["diff"] = diffs
    if "actions" in after:
        result["actions"] = [*_as_list(before.get("actions")), *_as_list(after["actions"])]
    warnings = _as_list(before.get("warnings"))
    warnings += [warning for warning in _as_list(after.get("warnings")) if warning not in warnings]
    if warnings:
        result["warnings"] = warnings
    return result


def _as_list(value: Any) -> list[Any]:
    if not value:
        return []
    return list(value) if isinstance(value, list) else [value]
