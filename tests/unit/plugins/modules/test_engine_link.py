# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The link to the engine: upgrade, rollback, what either leaves when it is cut off, and what is removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _converge
from ansible_collections.gpuops.vllm.plugins.modules import engine_link

OLD, NEW, THIRD = "0.31.0-cpu-0000000a", "0.32.0-cpu-0000000b", "0.33.0-cpu-0000000c"


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


@dataclass
class Host:
    """A host's /opt/vllm in a folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    #: What systemd says of the unit of each installation.
    units: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "opt"

    def build(self, name: str, finished_at: float | None = None) -> None:
        folder = self.root / name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "vllm").write_text("#!/bin/sh\n")
        if finished_at is not None:
            (folder / engine_link.MARKER).write_text("{}\n")
            os.utime(folder / engine_link.MARKER, (finished_at, finished_at))

    def told(self, instance: str, name: str, folder: int = 0) -> None:
        """Have a record of an instance name an engine; 1 is the folder of what served last."""
        text = json.dumps({"engine": str(self.root / name)}, indent=2)
        file = engine_link.INSTANCES[folder] / instance / ("instance.json", "served.json")[folder]
        if folder == 1:
            entry: dict[str, Any] = {"files": dict.fromkeys(_converge.FILES, "") | {"instance.json": text}}
            text = _converge.dump(_converge.Served("d", "now", entry["files"], {}))
        file.parent.mkdir(parents=True)
        file.write_text(text)

    def serves(self, instance: str, name: str, state: str = "serving", digest: str = "d") -> None:
        """Have an instance with digest "d" be told to serve with an engine, and its launcher say this of it."""
        file, record = engine_link.INSTANCES[0] / instance / "instance.json", engine_link.RUN / instance / "state.json"
        for path, text in (
            (file, {"engine": str(self.root / name), "digest": "d"}),
            (record, {"state": state, "digest": digest}),
        ):
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(text))

    def call(self, check: bool = False, **params: Any) -> dict[str, Any]:
        host = self

        class Module:
            check_mode = check

            def __init__(self, argument_spec: dict[str, Any], **_options: object) -> None:
                assert set(params) <= set(argument_spec)
                defaults = {name: spec.get("default") for name, spec in argument_spec.items()}
                self.params = {**defaults, "root": str(host.root), **params}

            def run_command(self, argv: list[str]) -> tuple[int, str, str]:
                name = argv[-1].removeprefix("vllm-install-").removesuffix(".service")
                return (0, f"SubState={host.units.get(name, 'dead')}\n", "")

            def warn(self, text: str) -> None:
                host.warnings.append(text)

            def exit_json(self, **result: Any) -> NoReturn:
                raise EndedError(result)

            def fail_json(self, **result: Any) -> NoReturn:
                raise EndedError({"failed": True, **result})

        self.monkeypatch.setattr(engine_link, "AnsibleModule", Module)
        with pytest.raises(EndedError) as ended:
            engine_link.main()
        return ended.value.result

    def ok(self, **params: Any) -> dict[str, Any]:
        result = self.call(**params)
        assert "failed" not in result, result["msg"]
        return result

    def refused(self, **params: Any) -> str:
        before = self.seen()
        result = self.call(**params)
        assert result.get("failed"), result
        assert self.seen() == before
        return str(result["msg"])

    def seen(self) -> list[tuple[str, str]]:
        """All that is in the folder: links with where they lead, files with their text."""
        return sorted(
            (str(path.relative_to(self.root)), str(path.readlink()) if path.is_symlink() else path.read_text())
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        )

    @property
    def current(self) -> str:
        return str((self.root / "current").readlink())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(_claim, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(_claim, "CLAIM", tmp_path / "claim.json")
    monkeypatch.setattr(engine_link, "INSTANCES", (tmp_path / "etc", tmp_path / "var"))
    monkeypatch.setattr(engine_link, "RUN", tmp_path / "run")
    (tmp_path / "opt").mkdir()
    made = Host(tmp_path, monkeypatch)
    made.build(OLD, 1.0)
    made.ok(name=OLD)
    made.build(NEW, 2.0)
    return made


def test_the_first_engine_is_no_change_to_go_back_from(host: Host) -> None:
    assert (host.current, host.ok(name=OLD)["other"]) == (OLD, "")
    assert not (host.root / engine_link.RECORD).exists()
    message = host.refused(way="back")
    assert message.startswith("There is no engine to go back to: no change of it is recorded in ")
    assert f"current is {OLD}, the only one so far" in message


def test_an_upgrade_and_back_and_the_same_again(host: Host) -> None:
    result = host.ok(name=NEW, hold=True)
    assert (result["changed"], result["before"], result["version"], host.current) == (True, OLD, "0.32.0", NEW)
    assert (result["path"], result["other"]) == (str(host.root / NEW), OLD)
    assert result["held"] is False
    assert host.ok(name=NEW, hold=True)["changed"] is False
    back = host.ok(way="back")
    assert (back["changed"], back["held"]) == (True, True)
    assert host.current == OLD
    # A rollback that is run again does not go forth.
    again = host.ok(way="back")
    assert (again["changed"], again["name"], host.current) == (False, OLD, OLD)
    assert (host.ok(way="forth")["name"], host.current) == (NEW, NEW)


@pytest.mark.parametrize("check", [True, False])
def test_instances_that_do_not_serve_with_it_are_told(host: Host, check: bool) -> None:
    host.serves("a-0", OLD)
    host.serves("b-0", NEW)
    # Cut off between its files and its restart, and before it served.
    host.serves("c-0", NEW, digest="before")
    host.serves("d-0", NEW, state="loading")
    host.told("e-0", NEW)
    assert host.ok(name=NEW, check=check)["behind"] == ["a-0", "c-0", "d-0", "e-0"]


def test_where_all_serve_with_it_none_is_behind(host: Host) -> None:
    host.serves("a-0", NEW)
    assert host.ok(name=NEW)["behind"] == host.ok(name=NEW)["behind"] == []
    assert host.ok(way="back")["behind"] == ["a-0"]


def test_what_upgrade_or_rollback_chose_no_other_run_takes_back(host: Host) -> None:
    host.ok(name=NEW, hold=True)
    message = host.refused(name=OLD)
    assert message.startswith(f"vLLM 0.32.0 ({NEW}) was chosen for this host by an upgrade or a rollback")
    assert "Set vllm_version: 0.32.0 in the inventory" in message
    assert host.refused(name=OLD, check=True) == message
    host.ok(way="back")
    assert "Set vllm_version: 0.31.0 in the inventory" in host.refused(name=NEW)
    # Another upgrade may, also to a third one, which a run without hold may not.
    host.ok(name=NEW, hold=True)
    host.build(THIRD, 3.0)
    assert "would take it to 0.33.0" in host.refused(name=THIRD)
    assert host.ok(name=THIRD, hold=True)["before"] == NEW


def test_an_inventory_that_says_the_version_may_have_another_build_of_it(host: Host) -> None:
    """As with a newer collection, whose lock is another one."""
    host.ok(name=NEW, hold=True)
    other = f"{NEW.rpartition('-')[0]}-ffffffff"
    host.build(other, 3.0)
    assert host.ok(name=other)["changed"] is True
    assert host.ok(name=OLD)["changed"] is True


def test_once_the_inventory_agrees_it_decides_again(host: Host) -> None:
    host.ok(name=NEW, hold=True)
    assert host.ok(name=NEW)["changed"] is False
    assert host.ok(name=OLD)["changed"] is True
    assert host.ok(way="back")["name"] == NEW
    # A way back is held, whoever had gone there.
    assert "0.32.0" in host.refused(name=OLD)


@pytest.mark.parametrize("way", ["name", "back"])
def test_a_run_that_is_cut_off_before_the_link_is_completed_by_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "back":
        host.ok(name=NEW, hold=True)
    params: dict[str, Any] = {"way": "back"} if way == "back" else {"name": NEW, "hold": True}
    before = host.current

    class KilledError(Exception):
        pass

    def die(*_: object) -> NoReturn:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(engine_link.Engines, "point", die)
        patched.setattr(host, "monkeypatch", patched)
        with pytest.raises(KilledError):
            host.call(**params)
    assert host.current == before
    assert host.ok(**params)["changed"] is True
    assert host.ok(way="back")["name"] == OLD


def test_an_engine_that_is_not_finished_is_not_chosen(host: Host) -> None:
    host.build(THIRD)
    assert f"{THIRD} is not there, or not finished" in host.refused(name=THIRD)
    host.ok(name=NEW)
    (host.root / OLD / engine_link.MARKER).unlink()
    message = host.refused(way="back")
    assert f"{OLD}, to go back to, is not there any more" in message
    assert "-e vllm_version=0.31.0" in message


def test_check_mode_tells_and_does_nothing(host: Host) -> None:
    host.ok(name=NEW)
    host.told("demo-0", NEW)
    before = host.seen()
    result = host.ok(check=True, name=THIRD, keep=2)
    assert (result["changed"], result["name"], result["removed"]) == (True, THIRD, [OLD])
    assert result["diff"]["before"] == f"{NEW}\n"
    assert result["diff"]["after"] == f"{THIRD}\nremoved: {host.root}/{OLD}\n"
    assert host.seen() == before
    # As it then does.
    host.build(THIRD, 3.0)
    assert host.ok(name=THIRD, keep=2)["removed"] == [OLD]
    assert host.ok(name=THIRD, keep=2)["changed"] is False


def test_on_a_bare_host_check_mode_finds_nothing_wrong(tmp_path: Path, host: Host) -> None:
    result = host.ok(check=True, root=str(tmp_path / "none"), name=NEW, keep=2)
    assert (result["changed"], result["before"], result["removed"]) == (True, "", [])


def test_what_instances_serve_with_or_would_go_back_to_stays(host: Host) -> None:
    host.build(THIRD, 3.0)
    fourth = "0.34.0-cpu-0000000d"
    host.build(fourth, 4.0)
    host.told("demo-0", NEW)
    host.told("demo-0", OLD, folder=1)
    assert host.ok(name=fourth, keep=1)["removed"] == [THIRD]
    assert sorted(entry.name for entry in host.root.iterdir() if entry.is_dir() and not entry.is_symlink()) == [
        OLD, NEW, fourth,
    ]  # fmt: skip


def test_an_unfinished_one_goes_unless_it_is_being_built(host: Host) -> None:
    host.build(THIRD)
    host.units[THIRD] = "running"
    assert host.ok(name=OLD, keep=2)["removed"] == []
    host.units[THIRD] = "failed"
    assert host.ok(name=OLD, keep=2)["removed"] == [THIRD]


def test_what_is_not_ours_stays(host: Host) -> None:
    for name in ("uv", "install", "by-hand"):
        host.build(name)
    host.ok(name=NEW, keep=1)
    assert {"uv", "install", "by-hand"} < {entry.name for entry in host.root.iterdir()}
    assert not (host.root / OLD).exists()


def test_a_removal_that_is_cut_off_leaves_nothing_that_looks_finished(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(_path: Path) -> NoReturn:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", cut_off)
        patched.setattr(host, "monkeypatch", patched)
        result = host.ok(name=NEW, keep=1)
    assert result["removed"] == []
    assert host.warnings == [
        f"{host.root / OLD}, which nothing needs, could not be removed: [Errno 5] Input/output error"
    ]
    assert not (host.root / OLD / engine_link.MARKER).exists()
    assert host.ok(name=NEW, keep=1)["removed"] == [OLD]


def test_a_full_disk_leaves_the_old_engine(host: Host, full_disk: Callable[[int], None]) -> None:
    full_disk(0)
    message = host.refused(name=NEW)
    assert message.startswith(f"{host.root}/{engine_link.RECORD}: No space left on device. Is there room")
    full_disk(-1)
    assert host.ok(name=NEW)["changed"] is True


def test_an_engine_put_there_by_hand_is_left_and_not_gone_back_to(host: Host) -> None:
    host.build("by-hand")
    (host.root / "current").unlink()
    (host.root / "current").symlink_to("by-hand")
    assert host.ok(name=NEW)["before"] == "by-hand"
    assert host.refused(way="back").startswith("There is no engine to go back to")


def test_the_record_is_for_all_to_read(host: Host) -> None:
    host.ok(name=NEW)
    assert (host.root / engine_link.RECORD).stat().st_mode & 0o777 == 0o644
