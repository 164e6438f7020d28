# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a bundle on the control node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle
from ansible_collections.gpuops.vllm.plugins.modules.bundle import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _bundle_build
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments

display = Display()


class ActionModule(ActionBase):
    """Thin adapter around `_bundle_build`."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        token = str(self._templar.template((task_vars or {}).get("vllm_bundle_hf_token") or "") or "")
        # From where the play was started, as everybody reads a path on a command line.
        folder = Path(args["path"]).resolve()
        try:
            builder = _bundle_build.Builder(
                folder, request_of(args, token), lambda line: display.display(f"bundle | {line}")
            )
            changed = not builder.is_whole()
            if changed and not self._task.check_mode:
                builder.build()
            manifest, sha256 = _bundle.read(folder) if not (changed and self._task.check_mode) else (None, "")
        except _bundle.BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        except OSError as error:
            raise AnsibleActionFail(
                f"vllm_bundle_dir is {folder}: {error.strerror or error} ({error.filename or 'no file named'}). Is there room, and may this user write there? "
                "When the cause is gone, run bundle.yml again: it keeps what it has."
            ) from None
        files = manifest.files if manifest else {}
        collection = next((name for name in files if name.startswith("collection/")), "")
        return {
            **result,
            "changed": changed,
            "path": str(folder),
            "sha256": sha256,
            "bytes": _bundle.total(files.values()),
            "collection": collection,
            "collection_sha256": files[collection].sha256 if collection else "",
        }


def request_of(args: Mapping[str, Any], token: str) -> _bundle_build.Request:
    """Return what the arguments ask for, each thing once. Raises AnsibleActionFail for a description that lacks something."""
    try:
        engines = {
            one["name"]: _bundle_build.WantedEngine(
                name=one["name"],
                lock=Path(one["lock"]),
                installer=Path(one["installer"]),
                python=(str(one["python"][0]), str(one["python"][1])),
                index_url=one.get("index_url") or "",
                find_links=tuple(one.get("find_links") or ()),
                torch_page=one.get("torch_page") or "",
            )
            for one in args["engines"]
        }
        models = {(one["model"], one.get("revision") or "", one["format"]) for one in args["models"]}
    except (KeyError, IndexError, TypeError) as error:
        raise AnsibleActionFail(f"engines and models need all of their keys: {error} is not there") from None
    return _bundle_build.Request(
        engines=tuple(engines.values()),
        packages=tuple(sorted(set(args["packages"]))),
        models=tuple(sorted(models)),
        hub_endpoint=args["hub_endpoint"],
        hub_token=token,
        update_models=args["update_models"],
    )
