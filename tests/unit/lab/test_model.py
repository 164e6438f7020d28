"""Machines, addresses and the command that boots one."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
import yaml
from vllm_lab import model
from vllm_lab.model import MACHINES, NETWORK, REPO


def test_every_machine_has_its_own_address_in_the_network() -> None:
    addresses = [machine.address for machine in MACHINES.values()]
    assert len(set(addresses)) == len(addresses)
    assert model.GATEWAY not in addresses
    assert all(ipaddress.IPv4Address(address) in NETWORK for address in addresses)


def test_names_fit_where_the_kernel_counts_characters() -> None:
    assert all(len(machine.link) <= 15 for machine in MACHINES.values())
    assert len(model.BRIDGE) <= 15


def listed(inventory: str) -> dict[str, tuple[str, str]]:
    """What an inventory says of purpose and address of each machine."""
    content = yaml.safe_load((REPO / inventory).read_text(encoding="utf-8"))
    return {
        name: (group.removesuffix("_servers"), host["ansible_host"])
        for group, content in content["lab"]["children"].items()
        for name, host in content["hosts"].items()
    }


@pytest.mark.parametrize(
    ("inventory", "spare"), [("molecule/inventory/hosts.yml", False), ("molecule/bench_inventory/hosts.yml", True)]
)
def test_the_inventories_list_the_machines_with_their_addresses(inventory: str, spare: bool) -> None:
    purposes = {"server": "vllm", "acme": "acme"}
    wanted = {name: (purposes[one.purpose], one.address) for name, one in MACHINES.items() if one.spare == spare}
    assert listed(inventory) == wanted


def test_mac_is_local_and_made_of_the_address() -> None:
    assert model.mac_of("10.77.0.11") == "02:00:0a:4d:00:0b"


def test_nspawn_without_systemd_on_the_control_host() -> None:
    argv = model.nspawn_argv(
        MACHINES["gpu01"], {Path("/cache/uv"): Path("/var/cache/uv")}, [Path("/srv/wheels:a")], booted_by_systemd=False
    )
    assert argv[0] == "systemd-nspawn"
    assert {
        "--boot",
        "--keep-unit",
        "--register=no",
        "--hostname=gpu01",
        f"--directory={model.STATE}/gpu01/root",
        "--network-namespace-path=/run/netns/vllmlab-gpu01",
        "--capability=CAP_NET_ADMIN",
        "--bind=/cache/uv:/var/cache/uv",
        "--bind-ro=/srv/wheels\\:a",
    } <= set(argv)


def test_nspawn_asks_systemd_for_a_scope_where_there_is_one() -> None:
    assert "--keep-unit" not in model.nspawn_argv(MACHINES["gpu01"], {}, [], booted_by_systemd=True)


def test_overlay_has_the_last_layer_on_top() -> None:
    options = model.overlay_options([Path("/layers/engine"), Path("/base/bookworm")], Path("/state/gpu01"))
    assert (
        options
        == "lowerdir=/layers/engine:/base/bookworm,upperdir=/state/gpu01/upper,workdir=/state/gpu01/work,volatile"
    )


def test_no_machine_needs_more_than_its_release_has() -> None:
    assert all(machine.release in model.RELEASE_PACKAGES for machine in MACHINES.values())
    assert all("pebble" in model.RELEASE_PACKAGES[one.release] for one in MACHINES.values() if one.purpose == "acme")
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in MACHINES)
