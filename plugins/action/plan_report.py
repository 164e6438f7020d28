# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints the plans of all hosts as one table, writes them as JSON, and returns what cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _report


class ActionModule(ActionBase):
    """Thin adapter around `_report`; works on the control node only."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        report = _report.document(self._task.args["plans"], self._task.args.get("unreached") or [])
        self._display.display("\n" + _report.table(report))
        path = self._task.args.get("path") or ""
        changed = bool(path) and self._write(Path(path).expanduser(), json.dumps(report, indent=2) + "\n")
        return {**result, "changed": changed, "report": report, "failures": _report.failures(report)}

    def _write(self, path: Path, text: str) -> bool:
        """Write the file where its content differs; say in check mode whether it would."""
        try:
            if path.is_file() and path.read_text() == text:
                return False
            if not self._task.check_mode:
                path.write_text(text)
        except OSError as error:
            raise AnsibleActionFail(
                f"vllm_plan_report_path is '{path}': {error.strerror}. Choose a file in a folder that you may write to."
            ) from None
        return True
