# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the progress of ``gpuops.vllm.unit`` until the unit is done."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpuops.vllm.plugins.plugin_utils._polling import PollingAction


class ActionModule(PollingAction):
    """Calls the module of the same name until it is no longer pending."""

    module = "gpuops.vllm.unit"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self.look = f"journalctl --unit={self._task.args.get('name', '')}"
        timeout_s = str(self._task.args.get("timeout_s", ""))
        if timeout_s.isdecimal():
            # systemd ends the command in its time, and the module says so: that is heard first.
            self.limit_s = max(self.limit_s, float(timeout_s) + 60.0)
        return super().run(tmp, task_vars)
