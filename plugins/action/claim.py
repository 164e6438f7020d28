# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells ``gpuops.vllm.claim`` whose run this is."""

from __future__ import annotations

import getpass
import socket
from typing import Any

from ansible.plugins.action import ActionBase


def who() -> str:
    """Return user@host of the controller, as far as it can be said in a line."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # No account for this user id, as in some containers.
        user = "somebody"
    return "".join(filter(str.isprintable, f"{user}@{socket.gethostname()}"))[:100]


class ActionModule(ActionBase):
    """Calls the module of the same name."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = {"who": who(), **self._task.args}
        return {
            **result,
            **self._execute_module(module_name="gpuops.vllm.claim", module_args=arguments, task_vars=task_vars),
        }
