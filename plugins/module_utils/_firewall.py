# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's firewall as text for nft: what comes in, and by which ports SSH really does."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILY, TABLE = "inet", "vllm"
#: Takes the table away, whether it is there or not.
REMOVAL = f"table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"
#: Units of the SSH server, and of the socket that starts it for each connection (Ubuntu).
SSH_UNITS = ("ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
#: What the process that serves one SSH connection calls itself.
SSH_PROGRAMS = frozenset({"sshd", "sshd-session", "dropbear"})

_KEYS = ("from", "interface", "ports", "protocol")
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}\*?", re.ASCII)
_PROTOCOL = re.compile(r"[a-z][a-z0-9-]{0,19}", re.ASCII)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Connection:
    """The SSH connection by which a process was started.

    ``client`` and ``port`` (of this host) are its ends, ``ticks`` is when its process began, in clock ticks since boot.
    """

    client: str
    port: int
    ticks: int


# ------------------------------------------------------------------------------------------------------------- the rules


def source_problems(name: str, values: Iterable[Any]) -> list[str]:
    """What is wrong with addresses and networks, one line each."""
    found = []
    for value in values:
        try:
            ipaddress.ip_network(str(value))
        except ValueError as error:
            found.append(
                f"{name} has {value!r}: {error}. It needs addresses or networks, such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32."
            )
    return found


def port_problems(name: str, values: Iterable[Any]) -> list[str]:
    """What is wrong with ports, one line each."""
    found = []
    for value in values:
        match = _PORTS.fullmatch(str(value))
        numbers = [int(part) for part in match.groups() if part] if match else [0]
        if not all(1 <= number <= 65535 for number in numbers) or numbers != sorted(numbers):
            found.append(f"{name} has {value!r}: it needs ports from 1 to 65535, or ranges such as 9000-9010.")
    return found


def allow_problems(entries: Sequence[Any]) -> list[str]:
    """What is wrong with ``vllm_firewall_allow``, one line each."""
    found = []
    for number, entry in enumerate(entries):
        name = f"vllm_firewall_allow[{number}]"
        if not isinstance(entry, Mapping):
            found.append(f"{name} is {entry!r}: it needs a mapping with some of {', '.join(_KEYS)}.")
            continue
        if unknown := sorted(set(entry) - set(_KEYS)):
            found.append(f"{name} has {', '.join(map(str, unknown))}: it may have {', '.join(_KEYS)}. Remove it.")
        if not any(entry.get(key) for key in _KEYS):
            found.append(f"{name} names nothing, so all would be open: give it some of {', '.join(_KEYS)}.")
        found += source_problems(f"{name}.from", entry.get("from") or [])
        found += port_problems(f"{name}.ports", entry.get("ports") or [])
        protocol, interface = entry.get("protocol") or "", entry.get("interface") or ""
        if protocol and not _PROTOCOL.fullmatch(str(protocol)):
            found.append(f"{name}.protocol is {protocol!r}: it needs tcp, udp or another name of /etc/protocols.")
        if entry.get("ports") and protocol not in ("", "tcp", "udp"):
            found.append(f"{name} has ports, and its protocol is {protocol!r}: only tcp and udp have them.")
        if interface and not _INTERFACE.fullmatch(str(interface)):
            found.append(f"{name}.interface is {interface!r}: it needs a name such as eth1, or a prefix such as wg*.")
    return found


def ssh_problems(ports: Collection[int], sources: Collection[str], connection: Connection | None) -> list[str]:
    """Why SSH would be locked out, one line each."""
    found = []
    if not ports:
        found.append(
            "No port of SSH was found on this host (none of "
            f"{', '.join(SSH_UNITS)} listens, and this play did not come by SSH): a firewall would lock SSH out. Name it in vllm_firewall_ssh_ports."
        )
    if connection and sources:
        client = ipaddress.ip_address(connection.client.partition("%")[0])
        if not any(client in ipaddress.ip_network(source) for source in sources):
            found.append(
                f"vllm_firewall_ssh_from is {', '.join(sources)}, and this play comes from {client}: it would lock itself out. Add that address."
            )
    return found


def rules(
    public: Iterable[int], ssh: Iterable[int], ssh_from: Sequence[str], allow: Sequence[Mapping[str, Any]]
) -> str:
    """Return the table for ``nft -f``, which replaces the one before in one step. The arguments have no problems."""
    lines = [
        # Not "invalid drop": of a path that is not the same both ways, SSH may look so.
        "ct state established,related accept",
        'iif "lo" accept',
        "icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept",
        # Without these IPv6 finds neither neighbours nor routers.
        (
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, mld-listener-query, "
            "nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept"
        ),
        # Answers of DHCP that no request of this host was seen for.
        "udp sport 67 udp dport 68 accept",
        "ip6 saddr fe80::/10 udp dport 546 accept",
        *_rules({"ports": sorted(set(ssh)), "from": ssh_from}),
        *_rules({"ports": sorted(set(public))}),
    ]
    for entry in allow:
        lines += _rules(entry)
    body = "".join(f"\t\t{line}\n" for line in lines)
    return (
        "# Written by gpuops.vllm. Only what comes in is judged: other tables, and what is forwarded (as to containers), stay as they are.\n"
        f"{REMOVAL}table {FAMILY} {TABLE} {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy drop;\n{body}\t}}\n}}\n"
    )


def lenient(text: str) -> str:
    """The same rules, with nothing dropped yet: the kernel gets to know the connections that are there."""
    return text.replace("policy drop;", "policy accept;")


def _rules(entry: Mapping[str, Any]) -> list[str]:
    """The rules of one entry: one, or one for each of IPv4 and IPv6 where it has both."""
    where = f'iifname "{entry["interface"]}" ' if entry.get("interface") else ""
    what = ""
    if entry.get("ports"):
        what = f"{entry.get('protocol') or 'tcp'} dport {{ {', '.join(map(str, entry['ports']))} }} "
    elif entry.get("protocol"):
        what = f"meta l4proto {entry['protocol']} "
    sources = [ipaddress.ip_network(str(source)) for source in entry.get("from") or []]
    if not sources:
        return [f"{where}{what}accept"]
    found = []
    for family, version in (("ip", 4), ("ip6", 6)):
        # nft refuses networks that overlap.
        own = list(ipaddress.collapse_addresses(one for one in sources if one.version == version))  # type: ignore[type-var]
        if own:
            found.append(f"{where}{family} saddr {{ {', '.join(map(str, own))} }} {what}accept")
    return found


# ------------------------------------------------------------------------------------------------- where SSH really comes in


def connection_of(pid: int, proc: Path = Path("/proc")) -> Connection | None:
    """The SSH connection by which a process was started, however far up; None where it was not by SSH."""
    ends: list[str] = []
    while pid > 1:
        try:
            name, parent, ticks = _stat((proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
            variables = (proc / str(pid) / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # sudo takes it out of the environment; the shell before it has it.
        for variable in variables:
            if not ends and variable.startswith(b"SSH_CONNECTION="):
                ends = variable.partition(b"=")[2].decode(errors="replace").split()
        if name in SSH_PROGRAMS:
            return Connection(ends[0], int(ends[3]), ticks) if len(ends) == 4 else None
        pid = parent
    return None


def _stat(text: str) -> tuple[str, int, int]:
    """Name, parent and start (ticks since boot) out of /proc/PID/stat. Raises ValueError."""
    head, separator, tail = text.rpartition(")")
    fields = tail.split()
    if not separator or len(fields) < 20:
        raise ValueError(text[:80])
    return head.partition("(")[2], int(fields[1]), int(fields[19])


def ssh_ports(shown: str, proc: Path = Path("/proc")) -> set[int]:
    """The ports by which SSH can be reached from elsewhere.

    :arg shown: ``systemctl show --property=MainPID,Listen`` of `SSH_UNITS`.
    """
    found = {int(port) for port in re.findall(r":([0-9]+) \(Stream\)", shown)}
    # Of the server only: a session's listeners are ports that its user forwards.
    for pid in re.findall(r"^MainPID=([1-9][0-9]*)$", shown, re.MULTILINE):
        inodes = _sockets(proc / pid / "fd")
        for file in ("net/tcp", "net/tcp6"):
            found |= {port for inode, port in _listeners(proc / file) if inode in inodes}
    return found


def _sockets(folder: Path) -> set[str]:
    try:
        targets = [str(entry.readlink()) for entry in folder.iterdir()]
    except OSError:
        return set()
    return {match[1] for match in (re.fullmatch(r"socket:\[([0-9]+)\]", target) for target in targets) if match}


def _listeners(table: Path) -> list[tuple[str, int]]:
    """Inode and port of each socket that listens on more than loopback, out of /proc/net/tcp or tcp6."""
    found = []
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    for fields in map(str.split, lines):
        address, _colon, port = fields[1].partition(":")
        if fields[3] == "0A" and not address.endswith("7F") and address != "00000000000000000000000001000000":
            found.append((fields[9], int(port, 16)))
    return found
