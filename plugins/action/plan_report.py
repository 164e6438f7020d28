# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints the plans of all hosts as one table, writes them as JSON, and returns what cannot work."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _report
from ansible_collections.gpuops.vllm.plugins.module_utils._files import write_atomic
from ansible_collections.gpuops.vllm.plugins.module_utils._wanted import shown
from ansible_collections.gpuops.vllm.plugins.modules.plan_report import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments


class ActionModule(ActionBase):
    """Thin adapter around `_report`; works on the control node only."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        report = _report.document(args["plans"], args["unreached"])
        self._display.display("\n" + _report.table(report))
        changed, unwritten = self._write(args["path"], json.dumps(report, indent=2) + "\n")
        failures = {
            host: [_report.printable(one) for one in against] for host, against in _report.failures(report).items()
        }
        if not unwritten:
            return {**result, "changed": changed, "report": report, "failures": failures}
        listed = [f"- {host}: {one}" for host, against in failures.items() for one in against]
        said = ["No host was changed. The plan cannot work:", *listed, unwritten] if listed else [unwritten]
        return {**result, "failed": True, "msg": "\n".join(said)}

    def _write(self, path: str, text: str) -> tuple[bool, str]:
        """Write the file where its content differs; return whether it did, or would in check mode, and why it cannot ("" where it can).

        A link is followed and stays; the file behind it is replaced as a whole.
        """
        if not path:
            return False, ""
        try:
            file = Path(os.path.realpath(Path(path).expanduser()))
            if _holds(file, text.encode()):
                return False, ""
            _check_place(file)
            if not self._task.check_mode:
                write_atomic(file, text, _mode(file))
        except (OSError, ValueError, RuntimeError) as error:
            # Besides what the system says: a NUL in it, an account that is not there.
            reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            return False, (
                f"vllm_plan_report_path is {shown(path)}: {reason}. Choose a file in a folder that you may write to."
            )
        return True, ""


def _holds(file: Path, content: bytes) -> bool:
    return file.is_file() and file.stat().st_size == len(content) and file.read_bytes() == content


def _check_place(file: Path) -> None:
    """Raise OSError or ValueError where the file cannot be put there, which check mode tells as well."""
    file.parent.stat()
    if not file.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise ValueError("it is no regular file")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _mode(file: Path) -> int:
    """Return the mode that the file has or, as a new one, gets."""
    if file.exists():
        return file.stat().st_mode & 0o777
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask
