# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridge, cables, NAT and names. Everything made here has a name of the lab's own and is found again by it."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from .model import BRIDGE, GATEWAY, MACHINES, NETWORK, NFT_TABLE, Machine, mac_of
from .system import LabError, is_mounted, remove_tree, run, wait_for

ALIAS = "gpuops.vllm lab"
HOSTS = Path("/etc/hosts")
HOSTS_BEGIN = "# BEGIN gpuops.vllm lab"
HOSTS_END = "# END gpuops.vllm lab"
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
NETNS = Path("/run/netns")
NSPAWN_RUN = Path("/run/systemd/nspawn")
NETWORK_HINT = "The kernel needs bridge, veth, network namespaces and nftables"
# Machines reach the world by the control host's address; nobody else's packets come in by that way.
NFT_RULES = f"""\
table inet {NFT_TABLE} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname != "{BRIDGE}" oifname "{BRIDGE}" ct state != {{ established, related }} drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {NETWORK} ip daddr != {NETWORK} masquerade
  }}
}}
"""


# -------------------------------------------------------------------------------------------------------------- names


def without_block(text: str) -> str:
    """The text of a hosts file as it was before the lab's block went in."""
    return re.sub(rf"^{HOSTS_BEGIN}\n.*?^{HOSTS_END}\n", "", text, count=1, flags=re.DOTALL | re.MULTILINE)


def with_block(text: str, machines: list[Machine]) -> str:
    """The text of a hosts file with the lab's block on top, where no missing last newline can spoil it."""
    lines = [f"{machine.address} {machine.fqdn}" for machine in machines]
    block = "".join(f"{line}\n" for line in [HOSTS_BEGIN, *lines, HOSTS_END]) if lines else ""
    return block + without_block(text)


def write_hosts(machines: list[Machine]) -> None:
    """Make the control host know these machines by name, and no others of the lab.

    In place: in a container the file is often a mount that cannot be replaced.
    """
    old = HOSTS.read_text(encoding="utf-8")
    new = with_block(old, machines)
    if new != old:
        HOSTS.write_text(new, encoding="utf-8")


def machine_hosts(machine: Machine) -> str:
    """A machine's own hosts file: the whole lab, itself by its short name too."""
    names = [
        f"{other.address} {other.fqdn}{f' {other.name}' if other == machine else ''}" for other in MACHINES.values()
    ]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost", *names]) + "\n"


# ------------------------------------------------------------------------------------------------------------ addresses


def conflicts(addresses: list[dict[str, Any]], routes: list[dict[str, Any]]) -> list[str]:
    """Who else uses the lab's address range, out of `ip -json addr` and `ip -json route`; one line each."""
    found = []
    for link in addresses:
        for info in link.get("addr_info", []):
            if link["ifname"] != BRIDGE and info["family"] == "inet" and ipaddress.ip_address(info["local"]) in NETWORK:
                found.append(f"interface {link['ifname']} has {info['local']}/{info['prefixlen']}")
    for route in routes:
        target = route["dst"]
        if target == "default" or route.get("dev") == BRIDGE:
            continue
        # A wider route (a VPN's 10.0.0.0/8) may stand: the bridge's own is more specific.
        if ipaddress.IPv4Network(target).subnet_of(NETWORK):
            found.append(f"a route to {target} by {route.get('dev', 'nowhere')}")
    return found


def check_free() -> None:
    """Refuse to start where the bridge's name or the address range belongs to something else.

    Raises:
        LabError: Naming what is in the way.
    """
    addresses = json.loads(run("ip", "-json", "addr"))
    bridge = [link for link in json.loads(run("ip", "-json", "link")) if link["ifname"] == BRIDGE]
    if bridge and bridge[0].get("ifalias") != ALIAS:
        raise LabError(f"a network interface {BRIDGE} exists and is not the lab's: remove or rename it")
    found = conflicts(addresses, json.loads(run("ip", "-json", "route")))
    if found:
        raise LabError(f"the lab's address range {NETWORK} is taken: {'; '.join(dict.fromkeys(found))}")


# ----------------------------------------------------------------------------------------------------------- up and down


def snapshot() -> dict[str, Any]:
    """What `take_down` has to put back, read before anything is changed."""
    return {
        "ip_forward": IP_FORWARD.read_text(encoding="ascii").strip(),
        "netns_folder": NETNS.exists(),
        "netns_mount": is_mounted(NETNS),
        "nspawn_folder": NSPAWN_RUN.exists(),
    }


def bring_up() -> None:
    """Make the bridge, the NAT table, and let packets pass."""
    if not _link_exists(BRIDGE):
        run("ip", "link", "add", BRIDGE, "address", mac_of(GATEWAY), "type", "bridge", hint=NETWORK_HINT)
        run("ip", "link", "set", BRIDGE, "alias", ALIAS)
        run("ip", "addr", "add", f"{GATEWAY}/{NETWORK.prefixlen}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
    if not _table_exists():
        run("nft", "-f", "-", text_in=NFT_RULES, hint=NETWORK_HINT)
    if IP_FORWARD.read_text(encoding="ascii").strip() != "1":
        IP_FORWARD.write_text("1\n", encoding="ascii")


def take_down(before: dict[str, Any]) -> None:
    """Undo `bring_up`, wherever it stopped."""
    if _link_exists(BRIDGE):
        run("ip", "link", "delete", BRIDGE)
    if _table_exists():
        run("nft", "delete", "table", "inet", NFT_TABLE)
    if before:
        if IP_FORWARD.read_text(encoding="ascii").strip() != before["ip_forward"]:
            IP_FORWARD.write_text(f"{before['ip_forward']}\n", encoding="ascii")
        _restore_netns_folder(before)
        if not before["nspawn_folder"]:
            remove_tree(NSPAWN_RUN)
    write_hosts([])


def _restore_netns_folder(before: dict[str, Any]) -> None:
    """`ip netns` turns its folder into a mount; others may have put namespaces there since."""
    if NETNS.exists() and not any(NETNS.iterdir()):
        if not before["netns_mount"]:
            wait_for(lambda: subprocess.run(["umount", NETNS], capture_output=True, check=False).returncode != 0, 5)
        if not before["netns_folder"]:
            remove_tree(NETNS)


def plug_in(machine: Machine) -> None:
    """Give a machine its network namespace, with a cable to the bridge."""
    namespace = machine.netns
    run("ip", "netns", "add", namespace, hint=NETWORK_HINT)
    run(
        "ip",
        "link",
        "add",
        machine.link,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "address",
        machine.mac,
        "netns",
        namespace,
        hint=NETWORK_HINT,
    )
    run("ip", "link", "set", machine.link, "master", BRIDGE, "up")
    inside = f"""\
link set lo up
addr add {machine.address}/{NETWORK.prefixlen} dev eth0
link set eth0 up
route add default via {GATEWAY}
"""
    run("ip", "-netns", namespace, "-batch", "-", text_in=inside)


def unplug(machine: Machine) -> None:
    """Take a machine's cable and namespace away. The cable first: a dying namespace would hold it for a while."""
    if _link_exists(machine.link):
        run("ip", "link", "delete", machine.link)
    if (NETNS / machine.netns).exists():
        run("ip", "netns", "delete", machine.netns)


def processes(machine: Machine) -> list[int]:
    """The numbers of the processes in a machine's network namespace."""
    if not (NETNS / machine.netns).exists():
        return []
    return [int(pid) for pid in run("ip", "netns", "pids", machine.netns).split()]


def _link_exists(name: str) -> bool:
    return any(link["ifname"] == name for link in json.loads(run("ip", "-json", "link")))


def _table_exists() -> bool:
    return f"table inet {NFT_TABLE}\n" in run("nft", "list", "tables", hint=NETWORK_HINT)
