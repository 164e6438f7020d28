"""Files that are the old ones or the new ones, also where a writer was killed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _certificate, _files


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_clears_what_a_killed_writer_left(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".secrets.{dead}.ab12cd_x").write_text("half a sec")
    _files.write_atomic(tmp_path / "secrets", "new", 0o600)
    assert names(tmp_path) == ["secrets"]
    assert (tmp_path / "secrets").read_text() == "new"
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o600


def test_a_write_leaves_what_others_have(tmp_path: Path, dead: int) -> None:
    theirs = [f".secrets.{os.getppid()}.ab12cd_x", f".other.{dead}.ab12cd_x", ".secrets.old", f"secrets.{dead}.bak"]
    for name in theirs:
        (tmp_path / name).write_text("")
    (tmp_path / f".secrets.{dead}").mkdir()
    _files.write_atomic(tmp_path / "secrets", "new", 0o600)
    assert names(tmp_path) == sorted([*theirs, f".secrets.{dead}", "secrets"])


def test_a_killed_writer_leaves_its_own_name(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it died in the middle: neither renamed nor tidied up.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(os, "getpid", lambda: dead)
        with pytest.raises(OSError, match="killed"):
            _files.write_atomic(tmp_path / "env", "half", 0o600)
    assert len(names(tmp_path)) == 1
    _files.write_atomic(tmp_path / "env", "whole", 0o600)
    assert names(tmp_path) == ["env"]


def test_a_link_clears_what_a_killed_flip_left(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".current.{dead}").symlink_to("nowhere")
    _certificate.flip(tmp_path / "current", "there")
    assert names(tmp_path) == ["current"]
    assert (tmp_path / "current").readlink() == Path("there")


def test_what_was_written_reads_back_as_it_was(tmp_path: Path) -> None:
    """Else a file would never be as it should be, and every run would write it anew."""
    content = "a\rb\r\nc\u2028\n"
    _files.write_atomic(tmp_path / "x", content, 0o600)
    assert _files.read_text(tmp_path / "x") == content


def test_bytes_that_are_no_text_read_back_as_they_were(tmp_path: Path) -> None:
    content = b"# caf\xe9\n"
    (tmp_path / "x").write_bytes(content)
    text = _files.read_text(tmp_path / "x")
    assert text is not None
    _files.write_atomic(tmp_path / "y", text, 0o600)
    assert (tmp_path / "y").read_bytes() == content
    assert _files.shown(text) == "# caf\ufffd\n"
