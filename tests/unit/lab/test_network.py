"""The control host's hosts file, and who else uses the lab's addresses."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_lab import network
from vllm_lab.model import MACHINES

GPU01 = MACHINES["gpu01"]
ACME = MACHINES["acme"]
HOSTS = "127.0.0.1 localhost\n# ours\n192.0.2.7 nas\n"
BLOCK = "# BEGIN gpuops.vllm lab\n10.77.0.11 gpu01.vllm.test\n# END gpuops.vllm lab\n"


def test_the_block_names_the_machines() -> None:
    assert network.with_block(HOSTS, [GPU01]) == BLOCK + HOSTS


@pytest.mark.parametrize("text", [HOSTS, "", "127.0.0.1 localhost", "\n\n127.0.0.1 localhost\n\n"])
def test_removing_the_block_gives_back_the_very_same_text(text: str) -> None:
    assert network.without_block(network.with_block(text, [GPU01, ACME])) == text
    assert network.with_block(network.with_block(text, [GPU01]), []) == text


def test_a_second_block_never_appears() -> None:
    once = network.with_block(HOSTS, [GPU01])
    assert network.with_block(once, [GPU01]) == once
    assert network.with_block(once, [ACME, GPU01]).count("# BEGIN") == 1


def test_lines_around_a_block_in_the_middle_stay() -> None:
    assert network.without_block("1.1.1.1 a\n" + BLOCK + "2.2.2.2 b\n") == "1.1.1.1 a\n2.2.2.2 b\n"


def test_a_machine_knows_itself_by_its_short_name_and_the_others_by_their_long() -> None:
    lines = network.machine_hosts(GPU01).splitlines()
    assert "10.77.0.11 gpu01.vllm.test gpu01" in lines
    assert "10.77.0.2 acme.vllm.test" in lines


def link(name: str, address: str, prefix: int = 24) -> dict[str, Any]:
    return {"ifname": name, "addr_info": [{"family": "inet", "local": address, "prefixlen": prefix}]}


@pytest.mark.parametrize(
    ("addresses", "routes", "expected"),
    [
        ([link("eth0", "192.0.2.2")], [{"dst": "default", "dev": "eth0"}, {"dst": "192.0.2.0/24", "dev": "eth0"}], []),
        ([link("vllmlab0", "10.77.0.1")], [{"dst": "10.77.0.0/24", "dev": "vllmlab0"}], []),
        ([link("docker0", "10.77.0.1")], [], ["interface docker0 has 10.77.0.1/24"]),
        ([], [{"dst": "10.77.0.128/25", "dev": "wg0"}], ["a route to 10.77.0.128/25 by wg0"]),
        ([], [{"dst": "10.77.0.9", "dev": "wg0"}], ["a route to 10.77.0.9 by wg0"]),
        ([], [{"dst": "10.0.0.0/8", "dev": "tun0"}], []),
    ],
)
def test_conflicts(addresses: list[dict[str, Any]], routes: list[dict[str, Any]], expected: list[str]) -> None:
    assert network.conflicts(addresses, routes) == expected
