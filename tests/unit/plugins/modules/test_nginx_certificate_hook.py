# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deploy hook, with stand-ins for nginx and systemctl."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).resolve().parents[4] / "roles/vllm_certbot/files/vllm-install-certificate"


@pytest.fixture
def hook() -> ModuleType:
    loader = SourceFileLoader("vllm_install_certificate", str(PROGRAM))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def lineage(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "fullchain.pem").write_text(f"chain {text}")
    (root / "privkey.pem").write_text(f"key {text}")
    return root


def names(tls_dir: Path) -> set[str]:
    return {path.name for path in tls_dir.iterdir()}


def test_install_and_renew(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    tls_dir = tmp_path / "tls"
    current = tls_dir / "current"
    seen = []
    for text in ("one", "two", "three"):
        assert hook.install(lineage(tmp_path / "live", text), tls_dir) == ""
        assert (current / "privkey.pem").read_text() == f"key {text}"
        assert (current / "privkey.pem").stat().st_mode & 0o777 == 0o600
        assert (current / "fullchain.pem").stat().st_mode & 0o777 == 0o644
        seen.append(current.readlink().name)
    assert len(set(seen)) == 3
    assert names(tls_dir) == {"current", *seen[1:]}


def test_a_pair_that_nginx_refuses_is_taken_back(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_dir = tmp_path / "tls"
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    hook.install(lineage(tmp_path / "live", "good"), tls_dir)
    before = (tls_dir / "current").readlink()
    monkeypatch.setattr(hook, "reload_nginx", lambda: "nginx -t -q failed: key values mismatch")
    fault = hook.install(lineage(tmp_path / "live", "bad"), tls_dir)
    assert fault == f"nginx -t -q failed: key values mismatch\n{tls_dir}/current leads to {before} again."
    assert (tls_dir / "current").readlink() == before
    assert names(tls_dir) == {"current", before.name}


def test_the_same_pair_again(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    tls_dir = tmp_path / "tls"
    live = lineage(tmp_path / "live", "one")
    assert [hook.install(live, tls_dir), hook.install(live, tls_dir)] == ["", ""]
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain one"


def test_exit_status(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RENEWED_LINEAGE", str(tmp_path / "nowhere"))
    monkeypatch.setattr("sys.argv", ["vllm-install-certificate", "--tls-dir", str(tmp_path)])
    assert hook.main() == 1
    assert "No such file or directory" in capsys.readouterr().err
