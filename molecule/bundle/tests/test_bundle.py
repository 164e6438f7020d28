"""A host without a route, installed from a bundle: that it serves, that nobody looked for a network, and which bundles are refused. In this order."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import endpoint
import killing
import playbook
import pytest
import record

testinfra_hosts = ["ansible://gpu01"]
# Of all, or those that ask for the host by name would go first.
pytestmark = pytest.mark.usefixtures("host")

HERE = "molecule/bundle"
BUNDLE = endpoint.TOP / ".build" / "bundle" / "bundle"
ARGUMENTS = ("--inventory", f"{HERE}/inventory", "--extra-vars", "@molecule/upgrade/files/stand_in.yml")
COMMIT = "1" * 40
REPOSITORY = "/var/lib/vllm/weights/hub/models--gpuops--demo"
#: All that a run could change: files by their time and place, folders by their names (NGINX's test has a file for a moment), starts of units.
LOOK = """
find /etc /opt/vllm /usr/local /var/lib/vllm /var/cache/vllm* /var/lib/apt/lists /var/lib/dpkg/info \\
    \\( -type d -printf '%p %i %m %u\\n' \\) -o -printf '%p %i %s %T@ %m %u\\n' 2> /dev/null
systemctl show --property=Id,InvocationID,ActiveState nginx vllm@demo-0 vllm-firewall
ls /run/vllm* /root
"""


def site(*arguments: str, **variables: Any) -> playbook.Done:
    return playbook.run("site.yml", *ARGUMENTS, *arguments, hosts=["gpu01"], **variables)


def looked_for_a_way_out(text: str) -> int:
    """How often somebody wanted to send to where no route leads, as the kernel counts it."""
    header, values = re.findall(r"(?m)^Ip: (.*)$", text)
    by_name = dict(zip(header.split(), values.split(), strict=True))
    of_ip6 = re.search(r"(?m)^Ip6OutNoRoutes\s+(\d+)", text)
    return int(by_name["OutNoRoutes"]) + int(of_ip6[1] if of_ip6 else 0)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundle, whose files are links: replace them, never write to them."""
    shutil.copytree(BUNDLE, tmp_path / "bundle", copy_function=os.link)
    return tmp_path / "bundle"


@pytest.fixture
def untouched() -> Iterator[None]:
    before = killing.ssh("gpu01", LOOK).splitlines()
    assert len(before) > 1000
    yield
    assert killing.ssh("gpu01", LOOK).splitlines() == before


def test_nobody_looked_for_a_network(host: Any) -> None:
    """First: the tests themselves do not, either."""
    assert host.check_output("ip route show default") == ""
    before, now = (
        looked_for_a_way_out(host.check_output(f"cat {files}"))
        for files in ("/root/snmp", "/proc/net/snmp /proc/net/snmp6")
    )
    assert now == before
    tried = host.run("python3 -c \"import socket; socket.create_connection(('192.0.2.1', 443), 5)\"")
    assert "Network is unreachable" in tried.stderr
    assert looked_for_a_way_out(host.check_output("cat /proc/net/snmp /proc/net/snmp6")) > before


def test_it_answers_over_https(host: Any) -> None:
    certificate = host.file("/etc/vllm/tls/current/fullchain.pem").content_string
    client = endpoint.client("gpu01", certificate=certificate)
    said = client.chat.completions.create(model="gpuops-demo", messages=[{"role": "user", "content": "Hello!"}])
    assert said.choices[0].message.content
    assert "vllm-0.32.0-fake" in str(said.system_fingerprint)
    (instance,) = json.loads(host.file("/etc/vllm/instances.json").content_string)["instances"]
    assert (instance["commit"], instance["path"]) == (COMMIT, f"{REPOSITORY}/snapshots/{COMMIT}")
    # By the same list and the same checksums as after a download.
    stamp = json.loads(host.file(f"{REPOSITORY}/verified/{COMMIT}.json").content_string)
    assert stamp["files"]["model.safetensors"] == (endpoint.TOP / "demo/model/model.safetensors").stat().st_size
    assert host.file(f"{REPOSITORY}/snapshots/{COMMIT}/model.safetensors").user == "vllm"


def test_nothing_of_the_bundle_is_left_where_it_is_not_used(host: Any) -> None:
    for path in ("/var/cache/vllm-packages", "/opt/vllm/install/wheels", "/run/vllm-download-list.json"):
        assert not host.file(path).exists, path
    # What this one run has trusted is trusted by no later one.
    assert host.run("grep -rl 'trusted=yes' /etc/apt").stdout == ""
    assert host.package("nginx").is_installed
    assert host.check_output(f"find {REPOSITORY} -name '*.incomplete'") == ""


def test_a_second_run_changes_nothing_and_sends_nothing(untouched: None) -> None:
    done = site()
    assert (done.status, done.changed["gpu01"]) == (0, 0), done.said
    assert "| sent " not in done.said


def one_byte(bundle: Path) -> None:
    (wheel,) = (bundle / "wheels").glob("vllm-*.whl")
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.unlink()
    wheel.write_bytes(content)


def for_others(bundle: Path) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    content["system"] = {"release": "Debian 13", "architecture": "aarch64", "python": "3.13"}
    content["engines"][0]["name"] = "0.31.0-cpu-0a0b0c0d"
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_byte, ["1 of its files are not what its manifest says: wheels/vllm-0.32.0-py3-none-any.whl has the SHA-256"]),
        (
            for_others,
            [
                "the bundle is for Debian 13, and gpu01 runs Debian 12",
                "the bundle is for the architecture aarch64, and gpu01 is x86_64",
                "the bundle is for Python 3.13, and gpu01 has 3.11",
                "and the bundle has 0.31.0-cpu-0a0b0c0d",
            ],
        ),
    ],
)  # fmt: skip
def test_a_bundle_that_is_damaged_or_for_others_is_refused(
    untouched: None, copy: Path, change: Callable[[Path], None], said: list[str]
) -> None:
    change(copy)
    done = site(vllm_bundle_dir=str(copy))
    assert done.status != 0
    for one in said:
        assert one in done.refused["gpu01"], done.said


@pytest.mark.skipif(not record.wanted(), reason="in the drills alone, for its time: GPUOPS_DRILLS=all")
def test_what_is_there_is_not_made_again() -> None:
    """The hub is gone by now."""
    before = {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")}
    done = playbook.run("playbooks/bundle.yml", *ARGUMENTS, hosts=["gpu01"])
    assert (done.status, done.changed["gpu01"]) == (0, 0), done.said
    assert {path: path.stat().st_mtime_ns for path in BUNDLE.rglob("*")} == before
