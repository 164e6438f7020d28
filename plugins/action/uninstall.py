# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what ``gpuops.vllm.uninstall`` waits for until everything has stopped."""

from __future__ import annotations

from ansible_collections.gpuops.vllm.plugins.plugin_utils._polling import PollingAction


class ActionModule(PollingAction):
    """Calls the module of the same name until it is no longer pending."""

    module = "gpuops.vllm.uninstall"
    look = "systemctl list-units 'vllm*'"
