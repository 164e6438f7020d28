# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of a folder: which files are asked for, and that apt hears of nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.vllm.plugins.modules import packages

APT = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
*--print-uris*) echo "'file:{folder}/debs/./nginx_1.deb' nginx_1.deb 12 " ;;
*install*) exit {status} ;;
esac
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run it; return its result and what apt-get was asked."""
    folder = tmp_path / "store"
    (folder / "debs").mkdir(parents=True)

    def run(step: str, known: str = "", status: int = 0) -> tuple[dict[str, Any], list[str]]:
        programs = {"apt-get": APT, "dpkg-query": f"#!/bin/sh\necho '{known}'\n"}
        values = {"{log}": str(tmp_path / "log"), "{folder}": str(folder), "{status}": str(status)}
        for name, program in programs.items():
            (tmp_path / name).write_text(re.sub(r"{\w+}", lambda match: values[match[0]], program))
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with patch_module_args({"name": ["nginx"], "folder": str(folder), "step": step}), pytest.raises(SystemExit):
            packages.main()
        log = tmp_path / "log"
        return json.loads(capsys.readouterr().out), log.read_text().splitlines() if log.exists() else []

    return run


def test_it_says_which_packages_are_missing_and_asks_nobody(module: Any) -> None:
    result, asked = module("missing")
    assert (result["missing"], asked) == (["nginx"], [])


def test_it_says_which_files_of_the_folder_are_wanted(module: Any, tmp_path: Path) -> None:
    result, (update, install) = module("files")
    assert (result["files"], result["changed"]) == (["nginx_1.deb"], False)
    assert "update" in update
    store = tmp_path / "store"
    for line in (update, install):
        assert f"Dir::Etc::sourcelist={store}/sources.list" in line
        assert f"Dir::Etc::sourceparts={store}/none" in line
        assert f"Dir::State::lists={store}/lists" in line
        # A host that is newer than the bundle loses nothing to it.
        assert "--no-remove" in line
    assert (store / "sources.list").read_text() == f"deb [trusted=yes] file:{store}/debs ./\n"


def test_the_folder_goes_with_the_installation(module: Any, tmp_path: Path) -> None:
    result, (install,) = module("all")
    assert result["changed"]
    assert "install --no-install-recommends -- nginx" in install
    assert not (tmp_path / "store").exists()


def test_a_failure_keeps_the_folder_for_the_next_run_and_says_what_to_do(module: Any, tmp_path: Path) -> None:
    result, _asked = module("all", status=100)
    assert result["failed"]
    assert "make a bundle of today" in result["msg"]
    assert (tmp_path / "store/debs").exists()


def test_what_a_run_that_was_cut_off_has_left_goes(module: Any, tmp_path: Path) -> None:
    result, asked = module("missing", known="installed nginx")
    assert (result["changed"], asked) == (False, [])
    assert not (tmp_path / "store").exists()
