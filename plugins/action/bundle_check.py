# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a bundle on the control node, and compares it with a host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle
from ansible_collections.gpuops.vllm.plugins.modules.bundle_check import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments
from ansible_collections.gpuops.vllm.plugins.plugin_utils._bundle_build import Progress

display = Display()


class ActionModule(ActionBase):
    """Thin adapter around `_bundle`."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        sha256 = ""
        try:
            size = sum(verify(Path(one).resolve()) for one in dict.fromkeys(args["paths"]))
            if args["path"]:
                sha256 = compare(
                    Path(args["path"]).resolve(), args, str((task_vars or {}).get("inventory_hostname", ""))
                )
        except _bundle.BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "changed": False, "bytes": size, "sha256": sha256}


def verify(folder: Path) -> int:
    """Read all of a bundle; return its bytes. Raises BundleError."""
    manifest = _bundle.read(folder)[0]
    size = _bundle.total(manifest.files.values())
    with Progress("verifying", size, lambda line: display.display(f"bundle | {line}")) as progress:
        problems = _bundle.corrupted(folder, manifest, progress.add)
    if problems:
        raise _bundle.BundleError(_bundle.refusal(folder, problems))
    return size


def compare(folder: Path, args: Mapping[str, Any], host: str) -> str:
    """Refuse a bundle that a host cannot be installed from; return the SHA-256 of its manifest. Raises BundleError."""
    manifest, sha256 = _bundle.read(folder, args["sha256"])
    engine: Mapping[str, Any] = next(iter(args["engines"]), {})
    wanted = _bundle.Wanted(
        host=host,
        releases=tuple(args["releases"]),
        architecture=args["architecture"],
        python=args["python"],
        engine=str(engine.get("name", "")),
        installer=str(engine.get("installer_sha256", "")),
        packages=tuple(args["packages"]),
    )
    if problems := _bundle.host_problems(manifest, wanted):
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise _bundle.BundleError(f"vllm_bundle_dir is {folder}. No host was changed.\n{listed}")
    return sha256
