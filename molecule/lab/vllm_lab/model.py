# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab consists of: machines, addresses, names and places. No action in here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
LOCAL = REPO / ".lab"  # this checkout's keys and certificates
STATE = Path("/var/lib/gpuops-vllm-lab")  # machine trees and what `down` has to put back
CACHE = Path("/var/cache/gpuops-vllm")  # survives `down`
LOCK = Path("/run/lock/gpuops-vllm-lab.lock")
DEMO_MODEL = REPO / "demo" / "model"

DOMAIN = "vllm.test"
NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
GATEWAY = "10.77.0.1"
BRIDGE = "vllmlab0"
NFT_TABLE = "vllm_lab"

BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)
# Debian 12 machines share one tree; two idle programs in all of them are cheaper than a second tree for one.
RELEASE_PACKAGES = {"bookworm": (*BASE_PACKAGES, "pebble"), "trixie": BASE_PACKAGES}


@dataclass(frozen=True)
class Machine:
    """One machine of the lab: a name, its address, its Debian release, and what it is for ("acme" or "server").

    A spare one is in no scenario and so not in molecule/inventory: molecule/bench_inventory has it.
    """

    name: str
    address: str
    release: str
    purpose: str = "server"
    spare: bool = False

    @property
    def fqdn(self) -> str:
        """The name that the control host, the other machines and the ACME server know it by."""
        return f"{self.name}.{DOMAIN}"

    @property
    def netns(self) -> str:
        """Its network namespace, as `ip netns` lists it."""
        return f"vllmlab-{self.name}"

    @property
    def link(self) -> str:
        """The control host's end of its cable."""
        return f"vl-{self.name}"

    @property
    def mac(self) -> str:
        """A fixed address: a machine made afresh is reached at once, whatever neighbours remember."""
        return mac_of(self.address)

    @property
    def directory(self) -> Path:
        """Where its tree and state lie."""
        return STATE / self.name

    @property
    def root(self) -> Path:
        """Its file system, mounted."""
        return self.directory / "root"


def mac_of(address: str) -> str:
    """A locally administered MAC address made of an IPv4 address."""
    return "02:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("acme", "10.77.0.2", "bookworm", "acme"),
        Machine("gpu01", "10.77.0.11", "bookworm"),
        Machine("gpu02", "10.77.0.12", "bookworm"),
        Machine("deb13", "10.77.0.13", "trixie"),
        Machine("gpu03", "10.77.0.14", "bookworm", spare=True),
        Machine("gpu04", "10.77.0.15", "bookworm", spare=True),
    )
}


def nspawn_argv(
    machine: Machine, binds: dict[Path, Path], read_only: list[Path], *, booted_by_systemd: bool
) -> list[str]:
    """The command that is one boot of a machine; it exits with 133 when the machine asks for a reboot.

    Args:
        machine: The machine.
        binds: Writable folders, control host -> machine.
        read_only: Folders and files that the machine sees at the same path.
        booted_by_systemd: Whether systemd runs the control host. If so, nspawn asks it for a scope of its own; if not,
            there is nobody to ask.
    """
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={machine.root}",
        f"--machine={machine.netns}",
        f"--hostname={machine.name}",
        "--boot",
        # Of its own network only: a machine may have a firewall.
        "--capability=CAP_NET_ADMIN",
        "--settings=no",
        "--register=no",
        *([] if booted_by_systemd else ["--keep-unit"]),
        f"--network-namespace-path=/run/netns/{machine.netns}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        *(f"--bind={_escape(source)}:{_escape(target)}" for source, target in binds.items()),
        *(f"--bind-ro={_escape(path)}" for path in read_only),
    ]


def _escape(path: Path) -> str:
    return str(path).replace(":", "\\:")


def overlay_options(layers: list[Path], directory: Path) -> str:
    """Mount options of a machine's tree: layers (top first) under a fresh upper folder.

    `volatile`: nothing in here has to survive a crash of the control host, so no sync reaches the disk.
    """
    lower = ":".join(str(layer) for layer in layers)
    return f"lowerdir={lower},upperdir={directory / 'upper'},workdir={directory / 'work'},volatile"
