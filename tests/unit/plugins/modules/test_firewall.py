# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trial of the module `firewall`, with an nft and a systemd that do as they are told. The scenario `firewall` has the real ones."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _firewall
from ansible_collections.gpuops.vllm.plugins.modules import firewall

UNIT = "[Unit]\nDescription=test\n"


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class Host:
    """A host whose nft lists a table as it was loaded. ``said`` are the commands that changed something, in order."""

    def __init__(self, places: Path) -> None:
        self.places = places
        self.check_mode = False
        self.loaded = ""
        self.enabled = False
        self.connection: _firewall.Connection | None = None
        self.said: list[str] = []
        self.warnings: list[str] = []
        self.refused_by_nft = ""
        self.params: dict[str, Any] = {
            "state": "present",
            "public_tcp": [80, 443],
            "ssh_ports": [],
            "ssh_from": [],
            "allow": [],
            "unit": UNIT,
            "rollback_s": 60,
            "confirm": "",
        }

    def connect(self) -> None:
        """Begin a new SSH connection."""
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self.connection = _firewall.Connection("192.0.2.7", 22, now + 1)

    def get_bin_path(self, name: str, opt_dirs: list[str] | None = None) -> str:
        return name

    def run_command(self, argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        if argv[0] == "unshare":
            return (1, "", self.refused_by_nft) if self.refused_by_nft else (0, self.listed(data or ""), "")
        if argv[:2] == ["systemctl", "show"]:
            state = f"UnitFileState={'enabled' if self.enabled else ''}\nActiveState={'active' if self.enabled else ''}\nNeedDaemonReload=no\n"
            return 0, "MainPID=0\n" if "ssh.service" in argv else state, ""
        if "list" in argv:
            return (0, self.loaded, "") if self.loaded else (1, "", "No such file or directory")
        if argv[0] == "nft":
            text = Path(argv[2]).read_text() if data is None else data
            self.said.append("load" if "policy drop" in text else "warm" if "policy accept" in text else "empty")
            self.loaded = self.listed(text)
        else:
            self.said.append(" ".join(argv[:3]) if argv[0] == "systemctl" else argv[0])
            self.enabled = self.enabled or argv[:2] == ["systemctl", "enable"]
        return 0, "", ""

    @staticmethod
    def listed(text: str) -> str:
        """What is between the removal of the old table and the end."""
        return text.partition(_firewall.REMOVAL)[2].strip()

    def roll_back(self) -> None:
        """As the timer does."""
        self.loaded = self.listed(firewall.ROLLBACK.read_text())
        firewall.ROLLBACK.unlink()
        firewall.TRIAL.unlink()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})

    def call(self, **params: Any) -> dict[str, Any]:
        """Call the module once; the result."""
        self.said.clear()
        self.params.update({"confirm": "", **params})
        instance = firewall.Firewall(self)  # type: ignore[arg-type]
        with pytest.raises(EndedError) as ended:
            (
                instance.absent
                if self.params["state"] == "absent"
                else instance.keep_trial
                if self.params["confirm"]
                else instance.present
            )()
        return ended.value.result

    def play(self, **params: Any) -> dict[str, Any]:
        """Both calls, the second on a new connection."""
        begun = self.call(**params)
        if "pending" not in begun:
            return begun
        self.connect()
        return self.call(confirm=begun["pending"])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("RULES", "UNIT_FILE", "TRIAL", "ROLLBACK"):
        monkeypatch.setattr(firewall, name, tmp_path / name)
    monkeypatch.setattr(firewall, "ACQUAINTANCE_S", 0)
    found = Host(tmp_path)
    monkeypatch.setattr(_firewall, "connection_of", lambda _pid: found.connection)
    found.connection = _firewall.Connection("192.0.2.7", 22, ticks=0)
    return found


def files(host: Host) -> list[str]:
    return sorted(path.name for path in host.places.iterdir())


def test_rules_are_written_down_only_when_a_new_connection_has_come_through(host: Host) -> None:
    begun = host.call()
    # The clock before the first rule, and connections that are there before anything is dropped.
    assert host.said == ["systemd-run", "warm", "load"]
    assert files(host) == ["ROLLBACK", "TRIAL"] and begun["changed"] is True
    assert firewall.TRIAL.stat().st_mode & 0o777 == 0o600
    host.connect()
    assert "failed" not in host.call(confirm=begun["pending"])
    assert files(host) == ["RULES", "UNIT_FILE"]
    assert host.said[0] == "systemctl stop vllm-firewall-rollback.timer" and "systemctl enable --now" in host.said
    assert host.call()["changed"] is False and host.said == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda host: None, "was not a new one"),
        (lambda host: setattr(host, "connection", None), "was not a new one"),
        (Host.roll_back, "were taken back: no new SSH connection had come in through them within 60 s"),
        (
            lambda host: firewall.TRIAL.write_text(
                json.dumps({**json.loads(firewall.TRIAL.read_text()), "token": "x"})
            ),
            "Another run has put other firewall rules on trial",
        ),
    ],
)
def test_without_a_new_connection_nothing_is_written_down(host: Host, spoil: Any, words: str) -> None:
    begun = host.call()
    spoil(host)
    result = host.call(confirm=begun["pending"])
    assert result["failed"] and words in result["msg"]
    assert not firewall.RULES.exists() and not firewall.UNIT_FILE.exists()
    # The clock runs on.
    assert host.said == []


def test_rules_that_are_taken_back_at_the_very_end_are_not_written_down(host: Host) -> None:
    begun = host.call()
    host.connect()
    host.loaded = ""
    assert "before they could be confirmed" in host.call(confirm=begun["pending"])["msg"]
    assert files(host) == []


def test_what_a_run_that_was_cut_off_has_on_trial_goes_before_the_next_trial(host: Host) -> None:
    host.play()
    before = host.loaded
    host.call(allow=[{"ports": [9100]}])
    assert host.loaded != before
    # The wanted rules again: those that were confirmed.
    result = host.call(allow=[])
    assert result["actions"] == ["took back rules that nobody had confirmed"] and host.loaded == before
    assert files(host) == ["RULES", "UNIT_FILE"]


def test_a_change_is_rolled_back_to_what_was_confirmed_before(host: Host) -> None:
    host.play()
    before = host.loaded
    host.call(allow=[{"ports": [9100]}])
    # The kernel knows the connections already.
    assert host.said == ["systemd-run", "load"]
    host.roll_back()
    assert host.loaded == before


def test_a_play_without_ssh_warns_that_nobody_has_tried_it(host: Host) -> None:
    host.connection = None
    begun = host.call(ssh_ports=[22])
    assert "failed" not in host.call(confirm=begun["pending"])
    assert f"{os.uname().nodename}: this play did not come by SSH" in host.warnings[0] and firewall.RULES.exists()


def test_rules_that_nft_refuses_are_not_loaded(host: Host) -> None:
    host.refused_by_nft = "Error: syntax error, unexpected newline"
    result = host.call(allow=[{"protocol": "nosuch"}])
    assert "nft refuses the rules, and none were loaded" in result["msg"] and "meta l4proto nosuch" in result["msg"]
    assert (host.said, files(host)) == ([], [])


def test_check_mode_changes_nothing_and_shows_the_table(host: Host) -> None:
    host.check_mode = True
    result = host.call()
    assert result["changed"] is True and "pending" not in result
    assert "tcp dport { 22 } accept" in result["diff"]["after"] and result["ssh_ports"] == [22]
    assert (host.said, files(host)) == ([], [])


def test_check_mode_refuses_what_would_lock_out(host: Host) -> None:
    host.check_mode = True
    assert "would lock itself out" in host.call(ssh_from=["10.0.0.0/8"])["msg"]
    assert "vllm_firewall_rollback_s is 5" in host.call(ssh_from=[], rollback_s=5)["msg"]


def test_switched_off_all_goes_and_a_second_time_nothing(host: Host) -> None:
    host.play()
    host.check_mode = True
    assert host.call(state="absent")["changed"] is True and host.loaded
    host.check_mode = False
    assert host.call(state="absent")["changed"] is True
    assert (host.loaded, files(host)) == ("", [])
    assert host.call(state="absent")["changed"] is False and host.said == []
