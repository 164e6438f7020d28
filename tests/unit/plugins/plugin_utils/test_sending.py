# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sending files to a host, with the real module's own functions in the place of the host."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils import _parcels
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _sending

CONTENTS = {"wheels/a": b"a" * 10, "wheels/b": b"b" * 40, "debs/c": b""}


class Host:
    """A host in a folder; ``calls`` are the sizes of the parcels that have come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.free = 1 << 40
        self.calls: list[int] = []
        self.cut = 99
        self.check_mode = False

    def action(self) -> ActionBase:
        shell = SimpleNamespace(tmpdir=None, join_path=os.path.join)
        return cast(
            "ActionBase",
            SimpleNamespace(
                _task=SimpleNamespace(check_mode=self.check_mode),
                _connection=SimpleNamespace(_shell=shell),
                _make_tmp_path=self.make,
                _remove_tmp_path=shutil.rmtree,
                _transfer_file=shutil.copyfile,
                _execute_module=self.module,
            ),
        )

    def make(self) -> str:
        (self.folder / "tmp").mkdir()
        return str(self.folder / "tmp")

    def module(self, module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        files = [_parcels.Wanted(**one) for one in module_args["files"]]
        if "parcel" not in module_args:
            return {"there": [_parcels.bytes_there(one) for one in files], "free": self.free}
        if len(self.calls) == self.cut:
            return {"failed": True, "msg": "the host is gone"}
        self.calls.append(Path(module_args["parcel"]).stat().st_size)
        with Path(module_args["parcel"]).open("rb") as parcel:
            for piece in (_parcels.Piece(*one) for one in module_args["pieces"]):
                assert _parcels.append(parcel, files[piece.number], piece) == ""
        return {"changed": True}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(_sending, "LOCAL_TMP", str(tmp_path / "local"))
    original = _parcels.parcels
    monkeypatch.setattr(_parcels, "parcels", lambda sizes, there: original(sizes, there, limit=16))
    for name, data in CONTENTS.items():
        (tmp_path / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / name).write_bytes(data)
    return Host(tmp_path)


def send(host: Host) -> int:
    files = [
        (name, _parcels.Wanted(f"{host.folder}/host/{Path(name).name}", len(data), hashlib.sha256(data).hexdigest()))
        for name, data in CONTENTS.items()
    ]
    return _sending.send(
        host.action(), {"inventory_hostname": "gpu01"}, host.folder / "bundle", files, {"dest": "/srv"}
    )


def test_all_comes_in_parcels_and_nothing_a_second_time(host: Host) -> None:
    assert send(host) == 50
    assert host.calls == [16, 16, 16, 2]
    assert {path.name: path.read_bytes() for path in (host.folder / "host").iterdir()} == {
        Path(name).name: data for name, data in CONTENTS.items()
    }
    assert send(host) == 0
    assert len(host.calls) == 4
    assert list((host.folder / "local").iterdir()) == []
    assert not (host.folder / "tmp").exists()


def test_a_run_that_was_cut_off_is_taken_up(host: Host) -> None:
    host.cut = 2
    with pytest.raises(AnsibleActionFail, match="the host is gone"):
        send(host)
    host.cut = 99
    assert send(host) == 50 - 32
    assert host.calls == [16, 16, 16, 2]


def test_a_host_without_room_is_sent_nothing(host: Host) -> None:
    host.free = (1 << 30) + 49
    with pytest.raises(AnsibleActionFail, match=r"/srv has 1.0 GiB free, and the bundle's files take .*Make room"):
        send(host)
    assert host.calls == []


def test_check_mode_says_how_much_and_sends_nothing(host: Host) -> None:
    host.check_mode = True
    assert send(host) == 50
    assert host.calls == []
