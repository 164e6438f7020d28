"""The adapter around the report: the table is shown, the file is whole or as it was, and both problems are told together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.action import plan_report as action

EMPTY = {"version": 1, "instances": [], "problems": {}, "warnings": {}, "unreached": []}
WRITTEN = json.dumps(EMPTY, indent=2) + "\n"
BROKEN: dict[str, Any] = {"gpu01": {"instances": [], "problems": ["no driver\x1b[2J."]}}


class Task:
    """The task, and what it showed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        self.module = object.__new__(action.ActionModule)
        self.module._load_name = "gpuops.vllm.plan_report"
        self.module._display = cast(Any, SimpleNamespace(display=self.shown.append))
        monkeypatch.setattr(ActionBase, "run", lambda *_args: {})

    def run(self, *, check: bool = False, **args: Any) -> dict[str, Any]:
        self.module._task = cast(Any, SimpleNamespace(args={"plans": {}, **args}, check_mode=check))
        return self.module.run(None, {})


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    return Task(monkeypatch)


@pytest.mark.parametrize("path", ["", None])
def test_without_a_path_no_file_is_written(task: Task, path: str | None) -> None:
    assert task.run(path=path, unreached=None) == {"changed": False, "report": EMPTY, "failures": {}}
    assert task.shown[0].startswith("\nhost  instance")


def test_the_file_is_written_once(task: Task, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert task.run(path=str(file), check=True)["changed"] is True
    assert not file.exists()
    assert task.run(path=str(file))["changed"] is True
    assert file.read_text() == WRITTEN
    for check in (False, True):
        assert task.run(path=str(file), check=check)["changed"] is False
    umask = os.umask(0o022)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_that_is_there_keeps_its_mode_and_a_link_its_place(task: Task, tmp_path: Path) -> None:
    file, link = tmp_path / "plan.json", tmp_path / "link.json"
    file.write_bytes(b"\xff not UTF-8")
    file.chmod(0o640)
    link.symlink_to("plan.json")
    assert task.run(path=str(link))["changed"] is True
    assert (file.read_text(), file.stat().st_mode & 0o777, link.is_symlink()) == (WRITTEN, 0o640, True)


def test_a_write_that_breaks_off_leaves_the_old_file(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    found = task.run(path=str(file))
    assert "No space left on device" in found["msg"]
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("plan.json", "old")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/plan.json", "'none/plan.json': No such file or directory."),
        ("file/plan.json", "'file/plan.json': Not a directory."),
        (".", "'.': it is no regular file."),
        ("pipe", "'pipe': it is no regular file."),
        ("loop", "'loop': it is no regular file."),
        ("a\0b", "'a\\x00b': embedded null byte."),
        ("~no-such-user/plan.json", "'~no-such-user/plan.json': Could not determine home directory."),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_path_that_cannot_be_written_is_told_in_check_mode_too(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str, check: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    found = task.run(path=path, check=check)
    assert (found["failed"], found.get("changed", False)) == (True, False)
    assert found["msg"].startswith(f"vllm_plan_report_path is {said}")
    assert found["msg"].endswith(". Choose a file in a folder that you may write to.")
    assert sorted(tmp_path.iterdir()) == before


def test_a_number_is_the_name_of_a_file(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert task.run(path=7)["changed"] is True
    assert (tmp_path / "7").read_text() == WRITTEN


def test_what_cannot_work_is_told_beside_a_file_that_cannot_be_written(task: Task, tmp_path: Path) -> None:
    found = task.run(plans=BROKEN, path=str(tmp_path))
    assert found["failed"] is True
    listed, unwritten = found["msg"].rsplit("\n", 1)
    assert listed == "No host was changed. The plan cannot work:\n- gpu01: no driver?[2J."
    assert unwritten.startswith("vllm_plan_report_path is ")
    assert task.run(plans=BROKEN)["failures"] == {"gpu01": ["no driver?[2J."]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"typo": 1}, r"^Unsupported parameters for \(gpuops.vllm.plan_report\) module: typo\."),
        ({"plans": 7}, "argument 'plans' is of type int and we were unable to convert to dict"),
        ({"unreached": {"a": 1}}, "argument 'unreached' is of type dict and we were unable to convert to list"),
    ],
)
def test_an_argument_that_is_none_is_refused_by_name(task: Task, args: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleActionFail, match=message):
        task.run(**args)
    assert task.shown == []
