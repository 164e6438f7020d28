# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent is of the manifest that was checked: whoever can write the folder must not change it in between."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.action import bundle_check, bundle_files, packages
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle

EMPTY = _bundle.Manifest("0.1.0", _bundle.System("Debian 12", "x86_64", "3.11"), "r", (), (), (), {})


@pytest.mark.parametrize("module", [packages, bundle_files])
def test_a_manifest_that_was_changed_after_its_check_is_sent_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    text = EMPTY.text()
    (tmp_path / "manifest.json").write_text(text)
    asked = {
        "sha256": "",
        "releases": ["Debian 12"],
        "architecture": "x86_64",
        "python": "",
        "engines": [],
        "packages": [],
    }
    sha256 = bundle_check.compare(tmp_path, asked, "gpu01")
    assert sha256 == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(text + "\n")
    arguments = {
        "bundle": str(tmp_path), "bundle_sha256": sha256, "name": ["nginx"], "models": [], "engine": "", "dest": "/srv", "owner": "", "reserve_gib": 1,
    }  # fmt: skip
    monkeypatch.setattr(module, "checked_arguments", lambda *_: dict(arguments))
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(module._sending, "send", lambda *_: pytest.fail("something was sent"))
    action = object.__new__(module.ActionModule)
    action._task = SimpleNamespace(check_mode=False)
    action._execute_module = lambda **_: {"missing": ["nginx"]}
    with pytest.raises(AnsibleActionFail, match="it is another bundle, or was changed"):
        action.run()
