# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rules are refused, how they read, and where SSH is found. nft itself judges them in the scenario `firewall`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _firewall
from ansible_collections.gpuops.vllm.plugins.module_utils._firewall import Connection

HERE = Connection(client="10.0.0.5", port=22, ticks=0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("9100", "vllm_firewall_allow[0] is '9100': it needs a mapping"),
        ({}, "vllm_firewall_allow[0] names nothing, so all would be open"),
        ({"from": []}, "vllm_firewall_allow[0] names nothing, so all would be open"),
        ({"port": 9100}, "vllm_firewall_allow[0] has port: it may have from, interface, ports, protocol"),
        ({"ports": [0]}, "vllm_firewall_allow[0].ports has 0: it needs ports from 1 to 65535"),
        ({"ports": ["9010-9000"]}, "vllm_firewall_allow[0].ports has '9010-9000'"),
        ({"ports": ["22 accept; #"]}, "vllm_firewall_allow[0].ports has '22 accept; #'"),
        ({"from": ["10.0.0.1/8"]}, "vllm_firewall_allow[0].from has '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
        ({"from": ["llm.example.com"]}, "vllm_firewall_allow[0].from has 'llm.example.com'"),
        ({"protocol": "tcp accept"}, "vllm_firewall_allow[0].protocol is 'tcp accept'"),
        ({"ports": [1], "protocol": "vrrp"}, "vllm_firewall_allow[0] has ports, and its protocol is 'vrrp'"),
        ({"interface": 'eth0" accept'}, "vllm_firewall_allow[0].interface is 'eth0\" accept'"),
    ],
)
def test_an_entry_that_says_nothing_or_too_much_is_refused(entry: Any, words: str) -> None:
    problems = _firewall.allow_problems([entry])
    assert any(problem.startswith(words) for problem in problems), problems


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ({"ports": [9100]}, ["tcp dport { 9100 } accept"]),
        ({"ports": [53, "9000-9010"], "protocol": "udp"}, ["udp dport { 53, 9000-9010 } accept"]),
        ({"protocol": "vrrp", "from": ["10.0.0.2"]}, ["ip saddr { 10.0.0.2/32 } meta l4proto vrrp accept"]),
        ({"interface": "wg*"}, ['iifname "wg*" accept']),
        (
            {"ports": [1], "from": ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"], "interface": "eth1"},
            [
                'iifname "eth1" ip saddr { 10.0.0.0/8 } tcp dport { 1 } accept',
                'iifname "eth1" ip6 saddr { 2001:db8::/32 } tcp dport { 1 } accept',
            ],
        ),
    ],
)
def test_an_entry_is_a_rule_and_all_that_it_has_must_fit(entry: dict[str, Any], lines: list[str]) -> None:
    assert _firewall.allow_problems([entry]) == []
    without = _firewall.rules([80], [22], [], []).splitlines()
    assert [
        line.strip() for line in _firewall.rules([80], [22], [], [entry]).splitlines() if line not in without
    ] == lines


def test_ssh_has_its_ports_and_sources() -> None:
    text = _firewall.rules([80, 443], {2222, 22}, ["10.0.0.0/8"], [])
    assert "\t\tip saddr { 10.0.0.0/8 } tcp dport { 22, 2222 } accept\n" in text
    assert "policy drop;" in text and "policy drop;" not in _firewall.lenient(text)


@pytest.mark.parametrize(
    ("ports", "sources", "connection", "words"),
    [
        ([], [], None, "No port of SSH was found"),
        ([22], ["10.1.0.0/16"], HERE, "this play comes from 10.0.0.5: it would lock itself out"),
        ([22], ["10.1.0.0/16", "10.0.0.0/24"], HERE, ""),
        ([22], ["10.1.0.0/16"], None, ""),
        ([22], ["fe80::/10"], Connection("fe80::1%eth0", 22, 0), ""),
        ([22], [], HERE, ""),
    ],
)
def test_what_would_lock_ssh_out(
    ports: list[int], sources: list[str], connection: Connection | None, words: str
) -> None:
    problems = _firewall.ssh_problems(ports, sources, connection)
    assert len(problems) == bool(words)
    assert words in "".join(problems)


# ------------------------------------------------------------------------------------------------- where SSH really comes in


def process(proc: Path, pid: int, name: str, parent: int, ticks: int, environ: str = "") -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} " + "0 " * 17 + f"{ticks} 0\n")
    (proc / str(pid) / "environ").write_text(environ.replace(" ", "\0", 1))


@pytest.mark.parametrize("server", ["sshd", "sshd-session"])
def test_a_process_knows_the_connection_that_it_came_by(tmp_path: Path, server: str) -> None:
    """sudo takes the variable out; the shell that sshd has started has it. The listener is not the connection."""
    process(tmp_path, 10, server, 1, 100)
    process(tmp_path, 20, server, 10, 500)
    process(tmp_path, 30, "sh) 1 (", 20, 510, "PATH=/bin SSH_CONNECTION=192.0.2.7 50000 192.0.2.8 2222")
    process(tmp_path, 40, "sudo", 30, 520)
    process(tmp_path, 50, "python3", 40, 530, "PATH=/bin ")
    assert _firewall.connection_of(50, tmp_path) == Connection("192.0.2.7", 2222, 500)


def test_a_process_of_a_console_came_by_none(tmp_path: Path) -> None:
    process(tmp_path, 30, "bash", 1, 510, "SSH_CONNECTION=192.0.2.7 50000 192.0.2.8 2222")
    assert _firewall.connection_of(30, tmp_path) is None
    assert _firewall.connection_of(99, tmp_path) is None


def test_ports_are_those_of_the_server_not_of_its_sessions(tmp_path: Path) -> None:
    process(tmp_path, 10, "sshd", 1, 100)
    process(tmp_path, 20, "sshd", 10, 500)
    for pid, number, inode in ((10, 3, 1001), (10, 4, 1002), (10, 5, 1003), (20, 3, 2001)):
        (tmp_path / str(pid) / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    (tmp_path / "net").mkdir()
    row = "  0: {} {} {} 0:0 0:0 0 0 0 {} 1\n"
    (tmp_path / "net/tcp").write_text(
        "head\n"
        + row.format("00000000:0016", "00000000:0000", "0A", 1001)
        + row.format("0100007F:1F90", "00000000:0000", "0A", 1002)  # on loopback only
        + row.format("0200000A:0017", "0100000A:C350", "01", 1003)  # a connection
        + row.format("00000000:270F", "00000000:0000", "0A", 2001)  # forwarded by a session's user
    )
    (tmp_path / "net/tcp6").write_text("head\n" + row.format("0" * 32 + ":08AE", "0" * 32 + ":0000", "0A", 1002))
    assert _firewall.ssh_ports("MainPID=10\n\nMainPID=0\n\nListen=\n", tmp_path) == {22, 2222}


def test_ports_of_a_socket_that_starts_the_server_are_found(tmp_path: Path) -> None:
    shown = "MainPID=0\n\nMainPID=0\n\nListen=0.0.0.0:22 (Stream)\nListen=[::]:2022 (Stream)\n\n"
    assert _firewall.ssh_ports(shown, tmp_path) == {22, 2022}
