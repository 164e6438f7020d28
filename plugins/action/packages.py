# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends Debian packages of a bundle to the host, where one is named, and has them installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle
from ansible_collections.gpuops.vllm.plugins.module_utils._parcels import Wanted
from ansible_collections.gpuops.vllm.plugins.modules.packages import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _sending
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments

#: On the host, as long as an installation lasts.
FOLDER = "/var/cache/vllm-packages"


class ActionModule(ActionBase):
    """Calls the module of the same name, with a bundle in steps."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        variables = task_vars or {}
        bundle, sha256 = args.pop("bundle"), args.pop("bundle_sha256")
        if bundle:
            args["folder"] = FOLDER
            found = self._call({**args, "step": "missing"}, variables)
            if found.get("failed") or self._task.check_mode or not found["missing"]:
                return {**result, **found}
            folder = Path(bundle).resolve()
            try:
                failed = self._bring(_bundle.read(folder, sha256)[0], folder, args, variables)
            except _bundle.BundleError as error:
                raise AnsibleActionFail(str(error)) from None
            if failed:
                return {**result, **failed}
        return {**result, **self._call(args, variables)}

    def _bring(
        self, manifest: _bundle.Manifest, bundle: Path, args: dict[str, Any], variables: dict[str, Any]
    ) -> dict[str, Any]:
        """Send the index, and then those packages that the host asks for by it; return a failure."""
        if _bundle.INDEX not in manifest.files:
            raise _bundle.BundleError(f"the bundle has no packages. {_bundle.OF_THIS_INVENTORY}")
        self._send(bundle, manifest, [_bundle.INDEX], variables)
        found = self._call({**args, "step": "files"}, variables)
        if found.get("failed"):
            return found
        self._send(bundle, manifest, [f"debs/{name}" for name in found["files"]], variables)
        return {}

    def _send(self, bundle: Path, manifest: _bundle.Manifest, names: list[str], variables: dict[str, Any]) -> None:
        if unknown := [name for name in names if name not in manifest.files]:
            raise _bundle.BundleError(
                f"the bundle's index names {', '.join(unknown)}, which its manifest does not. {_bundle.AGAIN}"
            )
        files = [(name, Wanted(f"{FOLDER}/{name}", *manifest.files[name])) for name in names]
        _sending.send(self, variables, bundle, files, {"dest": FOLDER})

    def _call(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="gpuops.vllm.packages", module_args=arguments, task_vars=variables
        )
        return result
