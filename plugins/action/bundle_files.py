# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chooses what the host needs of a bundle, and sends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle
from ansible_collections.gpuops.vllm.plugins.module_utils._parcels import Wanted
from ansible_collections.gpuops.vllm.plugins.modules.bundle_files import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _sending
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments


class ActionModule(ActionBase):
    """Thin adapter around `_sending`."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        bundle = Path(args["bundle"]).resolve()
        try:
            manifest = _bundle.read(bundle, args["bundle_sha256"])[0]
            models = models_of(manifest, args["models"])
            files = [*wheels(manifest, args["engine"], args["dest"]), *weights(models, args["dest"])]
        except _bundle.BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        place = {name: args[name] for name in ("dest", "owner", "reserve_gib")}
        sent = _sending.send(self, task_vars or {}, bundle, files, place)
        listed = [
            {
                "model": one.model,
                "commit": one.commit,
                "format": one.format,
                "files": [list(file) for file in one.files],
            }
            for one in models
        ]
        return {**result, "changed": sent > 0, "sent": sent, "listed": listed}


def models_of(manifest: _bundle.Manifest, wanted: list[Mapping[str, Any]]) -> list[_bundle.Model]:
    """Return what the bundle has of these models. Raises BundleError."""
    found = []
    for one in wanted:
        model = _bundle.has_commit(manifest, one["model"], one["commit"], one["format"])
        if model is None:
            raise _bundle.BundleError(
                f"the bundle has no {one['model']} at {one['commit']} ({one['format']}). {_bundle.OF_THIS_INVENTORY}"
            )
        found.append(model)
    return found


def wheels(manifest: _bundle.Manifest, name: str, dest: str) -> list[tuple[str, Wanted]]:
    """Return the wheels of an engine, by their path in the bundle. Raises BundleError."""
    if not name:
        return []
    for engine in manifest.engines:
        if engine.name == name:
            return [(path, Wanted(f"{dest}/{path.rpartition('/')[2]}", *manifest.files[path])) for path in engine.files]
    raise _bundle.BundleError(f"the bundle has no engine {name}. {_bundle.OF_THIS_INVENTORY}")


def weights(models: list[_bundle.Model], dest: str) -> list[tuple[str, Wanted]]:
    """Return the files of models by their path in the bundle, once each, in the place of the hub's cache."""
    found = {}
    for model in models:
        for file in model.files:
            path = model.blob(file)
            found[path] = Wanted(f"{dest}/{path.removeprefix('weights/')}", file.size, "")
    return list(found.items())
