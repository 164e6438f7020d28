# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `secrets_file` on a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim
from ansible_collections.gpuops.vllm.plugins.modules import secrets_file

KEY = "k" * 43


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class FakeModule:
    check_mode = False

    def __init__(self, path: Path) -> None:
        self.params = {"path": str(path), "hf_token": "", "claim": ""}

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})


def keep(path: Path) -> dict[str, Any]:
    with pytest.raises(EndedError) as ended:
        secrets_file.keep(FakeModule(path))  # type: ignore[arg-type]
    return ended.value.result


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Whoever runs the tests stands in for root.
    monkeypatch.setattr(secrets_file, "attribute_changes", lambda _path: [])
    return tmp_path / "secrets"


@pytest.mark.parametrize("stray", [b"# caf\xe9\n", b"CAF\xe9=1\n", b"HF_TOKEN=hf_\xe9\n"])
def test_what_systemd_might_not_read_is_written_anew_with_the_same_key(secrets: Path, stray: bytes) -> None:
    """systemd takes nothing of a file with an assignment that is no UTF-8."""
    secrets.write_bytes(stray + f'VLLM_API_KEY="{KEY}"\n'.encode())
    assert keep(secrets) == {"changed": True, "repaired": ["content"]}
    assert secrets.read_text() == f'VLLM_API_KEY="{KEY}"\n'
    assert keep(secrets) == {"changed": False, "repaired": []}


def test_a_full_disk_leaves_the_old_file_and_is_told(
    secrets: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets.write_text("old\n")
    monkeypatch.setattr(_claim, "LOCK", secrets.parent / "lock")
    monkeypatch.setattr(secrets_file, "AnsibleModule", lambda **_: FakeModule(secrets))
    full_disk(0)
    with pytest.raises(EndedError) as ended:
        secrets_file.main()
    assert ended.value.result["failed"] is True
    assert ended.value.result["msg"].startswith(f"{secrets}: No space left on device. Is there room")
    assert secrets.read_text() == "old\n"
