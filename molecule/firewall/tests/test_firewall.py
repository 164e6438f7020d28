"""What another machine reaches, and that no rules lock SSH out: each on both platforms at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import endpoint
import playbook
import pytest
from scan import scan
from subject import Shell
from vllm_lab.model import BRIDGE, MACHINES

PLAY = "molecule/firewall/converge.yml"
NAMES = ("gpu02", "deb13")
ROLLBACK_S = 15  # as converge.yml has it
# Those of the first thousand and the listeners'. 22: SSH; 9100: for the control node.
SCANNED = (*range(1, 1001), 8123, 9100, 9101)
OPEN = {22: "accepts", 80: "accepts", 443: "accepts", 9100: "accepts"}


@dataclass(frozen=True)
class Host:
    """A machine, and its addresses as the control node reaches them."""

    name: str
    shell: Shell
    ipv4: str
    ipv6: str

    def table(self, name: str) -> str:
        """A table as nft lists it; "" where there is none."""
        return self.shell.run(f"nft --stateless list table inet {name}").stdout

    def new_connection(self) -> bool:
        """Whether SSH takes a connection that was not there before."""
        try:
            with socket.create_connection((self.ipv4, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    found = []
    for name in NAMES:
        shell = Shell(name)
        local = json.loads(shell.out("ip -json -6 addr show dev eth0 scope link"))[0]["addr_info"][0]["local"]
        found.append(Host(name, shell, MACHINES[name].address, f"{local}%{BRIDGE}"))
    yield found
    for host in found:
        host.shell.close()


def test_only_ssh_http_https_and_what_was_allowed_answer(hosts: list[Host]) -> None:
    """Before the firewall all listeners did (prepare.yml), and a closed port refuses instead of being silent."""
    addresses = [(host.name, address) for host in hosts for address in (host.ipv4, host.ipv6)]
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(addresses, pool.map(lambda one: scan(one[1], SCANNED), addresses), strict=True))
    for host in hosts:
        assert answers[host.name, host.ipv4] == OPEN
        # 9100 is for an address of IPv4.
        assert answers[host.name, host.ipv6] == {port: how for port, how in OPEN.items() if port != 9100}


def test_the_host_itself_asks_and_hears_as_before(hosts: list[Host]) -> None:
    for host in hosts:
        ask = f"import socket; print(socket.create_connection(({host.ipv4!r}, 8123), 3).getpeername()[1])"
        assert host.shell.out(f'python3 -c "{ask}"').strip() == "8123"
        other = next(one for one in hosts if one != host)
        ask = f"import socket; print(socket.create_connection(({other.ipv4!r}, 22), 3).recv(4))"
        assert host.shell.out(f'python3 -c "{ask}"').strip() == "b'SSH-'"


def test_a_foreign_table_stays_and_its_reload_opens_nothing(hosts: list[Host]) -> None:
    for host in hosts:
        before = host.table("vllm")
        assert "tcp dport 9 drop" in host.table("other") and "policy drop" in before
        for verb in ("restart", "reload"):
            # Those rules begin with "flush ruleset". systemctl does not wait for the unit that follows.
            host.shell.out(f"systemctl {verb} nftables")
            end = time.monotonic() + 5
            while host.table("vllm") != before and time.monotonic() < end:
                time.sleep(0.1)
            assert (host.table("vllm"), "tcp dport 9 drop" in host.table("other")) == (before, True), verb


def test_rules_changed_by_hand_are_put_right(hosts: list[Host]) -> None:
    before = [host.table("vllm") for host in hosts]
    for host in hosts:
        host.shell.out("nft add rule inet vllm input tcp dport 8123 accept")
    done = playbook.run(PLAY, hosts=NAMES)
    assert done.status == 0, done.said
    assert done.changed == {"gpu02": 1, "deb13": 1}
    assert [host.table("vllm") for host in hosts] == before


def test_sources_without_the_plays_own_are_refused_before_anything(hosts: list[Host]) -> None:
    done = playbook.run(PLAY, hosts=NAMES, vllm_firewall_ssh_from=["192.0.2.0/24"])
    assert set(done.refused) == set(NAMES)
    assert all("vllm_firewall_ssh_from" in words and "10.77.0.1" in words for words in done.refused.values())
    assert done.changed == {"gpu02": 0, "deb13": 0}


def without_ssh(folder: Path) -> Path:
    """The collection, with the one line taken out by which SSH comes in."""
    copy = folder / "ansible_collections/gpuops/vllm"
    for part in ("plugins", "roles", "meta"):
        shutil.copytree(endpoint.TOP / part, copy / part)
    file = copy / "plugins/module_utils/_firewall.py"
    lines = file.read_text().splitlines(keepends=True)
    left = [line for line in lines if 'sorted(set(ssh)), "from": ssh_from' not in line]
    assert len(left) == len(lines) - 1
    file.write_text("".join(left))
    return folder


def killed_on_trial(host: Host) -> float:
    """Run a play that opens 9101 for the control node, and kill it once its rules are on trial. When that was."""
    allow = [{"ports": [9100, 9101], "from": ["10.77.0.1"]}]
    play = subprocess.Popen(
        [
            "ansible-playbook",
            PLAY,
            "--inventory",
            "molecule/inventory",
            "--limit",
            host.name,
            "--extra-vars",
            json.dumps({"vllm_firewall_allow": allow}),
        ],
        cwd=endpoint.TOP,
        env={**os.environ, "ANSIBLE_CONFIG": str(endpoint.TOP / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        host.shell.out("until nft list table inet vllm | grep -q 9101.*accept; do sleep 0.05; done", timeout_s=40)
    finally:
        os.killpg(play.pid, signal.SIGKILL)
        play.wait()
    return time.monotonic()


def test_rules_that_lock_ssh_out_and_those_of_a_play_that_died_are_taken_back(
    hosts: list[Host], tmp_path: Path
) -> None:
    """The first on Debian 13 and the second on Debian 12, since each takes the whole time of a trial."""
    died, locked = hosts
    before = [host.table("vllm") for host in hosts]
    with ThreadPoolExecutor() as pool:
        run = pool.submit(playbook.run, PLAY, hosts=[locked.name], collections=without_ssh(tmp_path))
        killed_s = killed_on_trial(died)
        seen = []
        while not run.done():
            seen.append(locked.new_connection())
            time.sleep(0.2)
        done = run.result()
    # It was shut, and is open again; and the play says what became of its rules.
    assert False in seen and locked.new_connection()
    assert "were taken back" in done.refused["deb13"] and "within 15 s" in done.refused["deb13"]
    time.sleep(max(0.0, killed_s + ROLLBACK_S + 2 - time.monotonic()))
    assert [host.table("vllm") for host in hosts] == before
    assert scan(died.ipv4, (22, 9100, 9101)) == {22: "accepts", 9100: "accepts"}
    for host in hosts:
        assert host.shell.run("ls /run/vllm-firewall-*").returncode != 0
        assert "9100, 9101" not in host.shell.out("cat /etc/vllm/firewall.nft")


def test_a_reboot_keeps_it(hosts: list[Host]) -> None:
    rules = [host.table("vllm") for host in hosts]
    boots = [host.shell.out("cat /proc/sys/kernel/random/boot_id; systemctl --no-block reboot") for host in hosts]
    for host, boot, before in zip(hosts, boots, rules, strict=True):
        host.shell.disconnect()
        end = time.monotonic() + 40
        while host.shell.run("cat /proc/sys/kernel/random/boot_id").stdout in ("", boot):
            assert time.monotonic() < end, f"{host.name} does not come back"
            time.sleep(0.3)
        assert host.table("vllm") == before
        host.shell.out("systemctl is-system-running --wait", timeout_s=60)
        assert scan(host.ipv4, SCANNED) == OPEN
        assert "tcp dport 9 drop" in host.table("other")


def test_switched_off_it_leaves_nothing(hosts: list[Host]) -> None:
    done = playbook.run(PLAY, hosts=NAMES, vllm_firewall_enabled=False)
    assert (done.status, done.changed) == (0, {"gpu02": 1, "deb13": 1}), done.said
    for host in hosts:
        assert scan(host.ipv4, (22, 80, 443, 8123, 9100, 9101, 9999)) == {
            **dict.fromkeys((22, 80, 443, 8123, 9100, 9101), "accepts"),
            9999: "refuses",
        }
        left = host.shell.out(
            "find /etc /run -xdev -name '*vllm-firewall*' -o -name firewall.nft; systemctl list-units --all 'vllm-firewall*' --no-legend"
        )
        assert (left, host.table("vllm")) == ("", "")
        assert "tcp dport 9 drop" in host.table("other")
