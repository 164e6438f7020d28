# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deploy hook, with stand-ins for nginx and systemctl."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import subprocess
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


CHAIN = "-----BEGIN CERTIFICATE-----\nTUlJQg==\n-----END CERTIFICATE-----\n"


def pair(key: str, kind: str = "EC PRIVATE KEY") -> str:
    return f"{CHAIN}{CHAIN}-----BEGIN {kind}-----\n{key}\n-----END {kind}-----\n"


def test_a_pair_from_the_standard_input(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    for kind in ("EC PRIVATE KEY", "PRIVATE KEY"):
        # The same chain with its key in another form is another pair.
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(pair("U0VDUkVU", kind).encode())))
        assert hook.install(Path("-"), tmp_path) == ""
        assert (tmp_path / "current" / "fullchain.pem").read_text() == CHAIN + CHAIN
        assert (tmp_path / "current" / "privkey.pem").read_text() == pair("U0VDUkVU", kind).removeprefix(CHAIN + CHAIN)
        assert (tmp_path / "current" / "privkey.pem").stat().st_mode & 0o777 == 0o600
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), (CHAIN, 0), (pair("U0VDUkVU") * 2, 2), (pair("U0VDUkVU")[:-9], 0)]
)
def test_a_standard_input_without_a_pair(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, count: int
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    monkeypatch.setattr("sys.argv", ["vllm-install-certificate", "--tls-dir", str(tmp_path), "-"])
    assert hook.main() == 1
    assert capsys.readouterr().err == (
        f"vllm-install-certificate: the standard input has {count} private keys (PEM), needs one\n"
    )
    assert names(tmp_path) == set()


def test_the_same_pair_again(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    tls_dir = tmp_path / "tls"
    live = lineage(tmp_path / "live", "one")
    assert [hook.install(live, tls_dir), hook.install(live, tls_dir)] == ["", ""]
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain one"


def test_a_pair_that_could_not_be_loaded_is_tried_again(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By certbot's timer, which must not reload each time."""
    said = ["", "nginx -t -q failed: /etc/nginx/conf.d/foreign.conf", "nginx -t -q failed: the same", ""]
    monkeypatch.setattr(hook, "reload_nginx", lambda: said.pop(0))
    tls_dir, live = tmp_path / "tls", lineage(tmp_path / "live", "old")
    assert hook.install(live, tls_dir) == ""
    lineage(live, "new")
    assert "foreign.conf" in hook.install(live, tls_dir)
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain old"
    assert "the same" in hook.install(live, tls_dir, if_new=True)
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain old"
    assert [hook.install(live, tls_dir, if_new=True), hook.install(live, tls_dir, if_new=True)] == ["", ""]
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain new"
    assert said == []


def test_what_a_killed_run_left_goes(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    tls_dir = tmp_path / "tls"
    live = lineage(tmp_path / "live", "one")
    hook.install(live, tls_dir)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    (tls_dir / f".current.{process.pid}").symlink_to("gone")
    living = tls_dir / f".current.{os.getppid()}"
    living.symlink_to("there")
    assert hook.install(live, tls_dir) == ""
    assert names(tls_dir) == {"current", (tls_dir / "current").readlink().name, living.name}


def test_exit_status(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RENEWED_LINEAGE", str(tmp_path / "nowhere"))
    monkeypatch.setattr("sys.argv", ["vllm-install-certificate", "--tls-dir", str(tmp_path)])
    assert hook.main() == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_only_its_own_kind_is_removed(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    tls_dir = tmp_path / "tls"
    digest = "0123456789abcdef"
    foreign = {"mine", "0123456789ABCDEF", f"{digest}0", f".{digest}", ".backup", f"{digest}.old", "fedcba9876543210"}
    for name in (*foreign - {"fedcba9876543210"}, digest, f".{digest}.77", "placeholder-llm.example.com"):
        (tls_dir / name).mkdir(parents=True)
        (tls_dir / name / "file").touch()
    (tls_dir / "fedcba9876543210").write_text("a file")
    assert hook.install(lineage(tmp_path / "live", "one"), tls_dir) == ""
    assert names(tls_dir) == {"current", (tls_dir / "current").readlink().name, *foreign}


def test_a_second_hook_waits(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's staging folder is of a kind that the second one removes."""
    tls_dir = tmp_path / "tls"
    tls_dir.mkdir()
    free = []

    def reload_nginx() -> str:
        other = os.open(tls_dir, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(True)
        except BlockingIOError:
            free.append(False)
        finally:
            os.close(other)
        return ""

    monkeypatch.setattr(hook, "reload_nginx", reload_nginx)
    with hook.alone(tls_dir):
        second = threading.Thread(target=hook.install, args=(lineage(tmp_path / "live", "one"), tls_dir))
        second.start()
        second.join(0.2)
        assert names(tls_dir) == set()
    second.join(10)
    assert free == [False]
    assert (tls_dir / "current" / "fullchain.pem").read_text() == "chain one"


def test_a_strict_umask_shuts_nobody_out(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask_077: None
) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    live = lineage(tmp_path / "live", "one")
    monkeypatch.setattr("sys.argv", ["vllm-install-certificate", "--tls-dir", str(tmp_path / "tls"), str(live)])
    assert hook.main() == 0
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "tls" / "current").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "tls" / "current" / "privkey.pem").stat().st_mode & 0o777 == 0o600


def test_what_a_cut_off_run_left_is_no_hindrance(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "reload_nginx", lambda: "")
    live, tls_dir = lineage(tmp_path / "live", "one"), tmp_path / "tls"
    hook.install(live, tls_dir)
    name = (tls_dir / "current").readlink().name
    (tls_dir / "current").rename(tls_dir / f".current.{os.getpid()}")
    (tls_dir / name).rename(tls_dir / f".{name}.{os.getpid()}")
    assert hook.install(live, tls_dir) == ""
    assert names(tls_dir) == {"current", name}
