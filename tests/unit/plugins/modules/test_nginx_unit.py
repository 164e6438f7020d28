# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `nginx_unit` on a folder of its own, with an NGINX and a systemd that say what a host's would."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _nginx
from ansible_collections.gpuops.vllm.plugins.modules import nginx_unit

BOX = "[Service]\nPrivateTmp=yes\nProtectHome=read-only\n"
STOP = "[Service]\nTimeoutStopSec=90\n"
FOREIGN = "# configuration file /etc/nginx/sites-enabled/app:\nlocation / { proxy_pass http://unix:/tmp/app.sock; }\n"


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class Host:
    """NGINX has run for ``age_s`` seconds (None: it does not), and says ``dump`` or ``complaint`` of its configuration in the sandbox."""

    def __init__(self, folder: Path, age_s: float | None = None, dump: str = "", complaint: str = "") -> None:
        self.age_s, self.dump, self.complaint = age_s, dump, complaint
        self.folder = folder
        self.check_mode = False
        self.params = {"sandbox": BOX, "drain": STOP, "claim": ""}
        self.broken_anyway = False
        self.stale = False
        self.reloads = 0
        self.tested: list[list[str]] = []
        self.warnings: list[str] = []

    def get_bin_path(self, name: str, required: bool = False) -> str:
        return f"/usr/sbin/{name}"

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "systemd-run":
            self.tested.append(argv)
            return (1, "", self.complaint) if self.complaint else (0, self.dump, "")
        if argv[1:] == ["-t", "-q"]:
            return int(self.broken_anyway), "", self.complaint if self.broken_anyway else ""
        if argv[1] == "daemon-reload":
            self.reloads, self.stale = self.reloads + 1, False
            return 0, "", ""
        start_us = int((time.clock_gettime(time.CLOCK_MONOTONIC) - (self.age_s or 0)) * 1e6)
        values = {
            "ActiveState": "inactive" if self.age_s is None else "active",
            "InactiveExitTimestampMonotonic": str(start_us),
            "NeedDaemonReload": "yes" if self.stale else "no",
        }
        asked = next(word for word in argv if word.startswith("--property=")).removeprefix("--property=").split(",")
        return 0, "".join(f"{name}={values[name]}\n" for name in asked), ""

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})

    def play(self) -> dict[str, Any]:
        before = sorted(path.read_text() for path in self.folder.glob("vllm-*"))
        with pytest.raises(EndedError) as ended:
            unit = nginx_unit.Unit(self)  # type: ignore[arg-type]
            self.stale = self.stale or unit.wanted != unit.there
            unit.converge()
        if self.check_mode:
            assert sorted(path.read_text() for path in self.folder.glob("vllm-*")) == before
        return ended.value.result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nginx_unit, "FOLDER", tmp_path / "nginx.service.d")
    return tmp_path / "nginx.service.d"


def sandbox_is_there(folder: Path) -> bool:
    return (folder / "vllm-sandbox.conf").exists()


def test_before_the_first_start_it_is_written_and_nothing_is_said(folder: Path) -> None:
    host = Host(folder)
    assert host.play()["changed"] is True
    assert (folder / "vllm-sandbox.conf").read_text() == BOX and (folder / "vllm-drain.conf").read_text() == STOP
    assert (host.reloads, host.tested, host.warnings) == (1, [], [])
    assert host.play() == {"changed": False, "pending": False, "actions": [], "diff": []}


def test_an_nginx_that_runs_is_told_of_until_it_was_started_anew(folder: Path) -> None:
    host = Host(folder, age_s=100)
    assert host.play()["pending"] is True
    again = host.play()
    assert (again["changed"], again["pending"], len(host.warnings), len(host.tested)) == (False, True, 2, 2)
    assert host.warnings[0].startswith(f"{os.uname().nodename}: NGINX runs since before its sandbox")
    # Started after the drop-in was written.
    os.utime(folder / "vllm-sandbox.conf", (time.time() - 50, time.time() - 50))
    host.age_s = 20
    assert host.play()["pending"] is False
    assert len(host.warnings) == 2
    # In force: a site that is added then must load in it as well.
    host.dump, host.complaint = "", "nginx: [emerg] cannot load certificate /tmp/c.pem"
    assert "cannot load certificate" in host.play()["msg"]
    assert not sandbox_is_there(folder)


def test_in_force_a_use_of_tmp_is_not_for_the_next_start_to_show(folder: Path) -> None:
    Host(folder).play()
    os.utime(folder / "vllm-sandbox.conf", (time.time() - 50, time.time() - 50))
    assert "failed" not in Host(folder, age_s=20, dump=FOREIGN).play()
    assert sandbox_is_there(folder)


def test_what_is_broken_without_the_sandbox_too_is_not_its_matter(folder: Path) -> None:
    host = Host(folder, age_s=100, complaint="nginx: [emerg] unknown directive")
    host.broken_anyway = True
    assert "failed" not in host.play()
    assert sandbox_is_there(folder)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"complaint": "nginx: [emerg] cannot load certificate /tmp/c.pem"}, "cannot load certificate /tmp/c.pem"),
        ({"dump": FOREIGN}, "/etc/nginx/sites-enabled/app: location / { proxy_pass http://unix:/tmp/app.sock; }"),
    ],
)
def test_what_the_next_start_would_break_takes_the_sandbox_back(folder: Path, says: dict[str, str], words: str) -> None:
    Host(folder, age_s=100).play()
    host = Host(folder, age_s=100, **says)
    host.stale = True
    result = host.play()
    assert result["failed"] and words in result["msg"] and "vllm_nginx_sandbox: false" in result["msg"]
    assert not sandbox_is_there(folder) and host.reloads == 1


def test_a_later_drop_in_of_the_hosts_loosens_the_test_as_it_does_the_unit(folder: Path) -> None:
    folder.mkdir()
    (folder / "zz-local.conf").write_text("[Unit]\nPrivateTmp=maybe\n[Service]\nPrivateTmp=no\nExecStart=/bin/false\n")
    host = Host(folder, age_s=100, dump=FOREIGN)
    assert "failed" not in host.play()
    assert [word for word in host.tested[0] if word.startswith("--property")] == [
        "--property=PrivateTmp=yes",
        "--property=ProtectHome=read-only",
        "--property=PrivateTmp=no",
    ]


def test_a_run_that_was_cut_off_before_systemd_read_it_is_cured(folder: Path) -> None:
    host = Host(folder)
    host.play()
    host.stale = True
    assert host.play()["actions"] == ["had systemd read its units"]


def test_switched_off_it_goes_and_a_foreign_drop_in_stays(folder: Path) -> None:
    host = Host(folder)
    host.play()
    host.params["sandbox"] = ""
    host.check_mode = True
    assert host.play()["changed"] is True
    host.check_mode = False
    assert host.play()["actions"][0] == f"removed {folder}/vllm-sandbox.conf"
    assert not sandbox_is_there(folder) and (folder / "vllm-drain.conf").exists()
    (folder / "own.conf").write_text("")
    host.params["drain"] = ""
    host.play()
    assert [path.name for path in folder.iterdir()] == ["own.conf"]


def test_a_comment_and_another_folder_are_no_use_of_tmp() -> None:
    dump = (
        "# configuration file /a:\n# root /tmp/x;\nroot /srv/tmp/x;\nclient_body_temp_path /var/tmp;\nset $x '/tmp';\n"
    )
    assert _nginx.lines_with_tmp(dump) == ["  /a: client_body_temp_path /var/tmp;", "  /a: set $x '/tmp';"]
