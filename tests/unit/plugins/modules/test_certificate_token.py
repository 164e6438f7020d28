# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The token by which a host asks whether it reaches itself, before anything is ordered."""

from __future__ import annotations

import io
import os
import subprocess
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.modules import certificate


def test_the_token_of_a_killed_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    living = f"vllm-{os.getppid()}-aa"
    for name in (f"vllm-{process.pid}-aa", living, "of-certbot"):
        (tmp_path / name).touch()

    def answer(url: str, timeout: float) -> Any:
        del timeout
        return io.BytesIO((tmp_path / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: SimpleNamespace(open=answer))
    module: Any = SimpleNamespace(params={"tls_dir": "/nowhere", "domain": "llm.example.com"})
    certificate.Certificate(module).fetch_token(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living, "of-certbot"}
