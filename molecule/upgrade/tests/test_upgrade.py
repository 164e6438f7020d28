"""Another engine, and back: what clients notice, what a host that fails is left with, and that its neighbour is not touched. In this order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killing
import load
import pytest
import record
from upgrading import BROKEN, LARGE, NEW, OLD, OTHER_HASH, engine, look, run, streams, upgrade, version_of

testinfra_hosts = ["ansible://gpu01"]
# Of all, or those that ask for the host by name would go first.
pytestmark = pytest.mark.usefixtures("host")
#: What has unit tests as well, or goes the way that the first tests go already.
in_the_drills = pytest.mark.skipif(not record.wanted(), reason="in the drills alone, for its time: GPUOPS_DRILLS=all")
#: Bytes that are left on the full disk: the other files fit, the large one does not.
ROOM = 16 << 20


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[load.Background]:
    """Streams on gpu01, each two seconds long, that end with the test."""
    yield streams("gpu01", tmp_path)


def litter() -> str:
    """Environments on gpu01 that are not finished, and what a cut-off link leaves."""
    return killing.ssh(
        "gpu01", "cd /opt/vllm; for one in 0.*; do test -e $one/.complete || echo $one; done; find . -maxdepth 1 -name '.*.new'"
    )  # fmt: skip


@pytest.mark.drill("upgrade with two replicas, under load", "every stream whole")
def test_an_upgrade_under_load_loses_no_request(stream: load.Background) -> None:
    before = look("gpu01")
    assert (version_of(before.current), before.answers) == (OLD, {OLD})
    done = upgrade(NEW)
    report = stream.report(within_s=60)
    assert done.status == 0, done.said
    assert report.all_whole, report.said()
    assert report.started > 20
    now = look("gpu01")
    assert (version_of(now.current), now.answers) == (NEW, {NEW})
    assert now.serves == (now.current, now.current)
    assert not set(now.started) & set(before.started)
    said = " ".join(done.said.split())
    # The run had one host of several.
    assert f"gpu01: serves with vLLM {NEW}. Not upgraded: deb13, gpu02. Upgrade them as well" in said


@in_the_drills
def test_site_does_not_take_it_back(host: Any) -> None:
    done = run("site.yml", "--tags", "engine")
    assert done.status != 0
    assert "was chosen for this host by an upgrade or a rollback" in done.refused["gpu01"]
    assert f"Set vllm_version: {NEW} in the inventory" in done.refused["gpu01"]
    assert host.check_output("readlink /opt/vllm/current").startswith(NEW)


@in_the_drills
@pytest.mark.drill("rollback with two replicas, under load", "every stream whole")
def test_a_rollback_under_load_loses_no_request(stream: load.Background) -> None:
    before = look("gpu01")
    done = run("playbooks/rollback.yml")
    report = stream.report(within_s=60)
    assert done.status == 0, done.said
    assert report.all_whole, report.said()
    now = look("gpu01")
    assert (version_of(now.current), now.answers) == (OLD, {OLD})
    assert not set(now.started) & set(before.started)


@pytest.mark.drill(
    "upgrade to an engine that does not start",
    "that host serves with the old engine again, and its neighbour was not touched",
)
def test_an_engine_that_does_not_start_is_taken_back_and_the_next_host_untouched() -> None:
    before = {name: look(name) for name in ("gpu01", "gpu02")}
    done = upgrade(BROKEN, hosts=("gpu01", "gpu02"))
    assert done.status != 0
    assert "ImportError: libcudart.so.13" in done.refused["gpu01"]
    assert f"gpu01 serves with {before['gpu01'].current} again" in done.refused["gpu01"]
    now = look("gpu01")
    assert (now.current, now.serves, now.answers) == (
        before["gpu01"].current,
        before["gpu01"].serves,
        before["gpu01"].answers,
    )
    # Only the replica that was tried was restarted.
    assert now.started[1] == before["gpu01"].started[1]
    assert look("gpu02") == before["gpu02"]
    assert version_of(killing.ssh("gpu02", "ls -d /opt/vllm/0.33.*").rpartition("/")[2]) == BROKEN


@in_the_drills
@pytest.mark.drill("a lock with a wrong hash", "refused, and the old engine serves on, same InvocationID")
def test_a_wheel_with_another_hash_is_refused() -> None:
    before = look("gpu01")
    done = engine(OTHER_HASH)
    assert done.status != 0
    assert "Hash mismatch" in done.said
    assert litter() == ""
    assert look("gpu01") == before


@in_the_drills
@pytest.mark.drill("a disk that fills up under an installation", "the link stays, and the room is given back")
def test_a_disk_that_is_full_leaves_the_link(host: Any) -> None:
    before = look("gpu01")
    fill = f"import os; s = os.statvfs('/opt/vllm'); os.truncate('/opt/vllm/filler', 0); n = s.f_bavail * s.f_frsize - {ROOM}; "
    fill += "open('/opt/vllm/filler', 'wb').write(bytes(n))"
    host.check_output("touch /opt/vllm/filler; python3 -c %s", fill)
    try:
        done = engine(LARGE)
    finally:
        host.check_output("rm /opt/vllm/filler")
    assert done.status != 0
    assert "No space left on device" in done.said
    assert "has /opt room?" in " ".join(done.said.split())
    assert litter() == ""
    assert look("gpu01") == before


@in_the_drills
def test_a_version_that_there_is_no_lock_for_is_refused_with_those_that_there_are() -> None:
    done = engine("0.99.0")
    assert done.status != 0
    assert "vllm_engine_version: 0.99.0 with vllm_engine_flavour: cpu has no lock" in done.refused["gpu01"]
    assert "There are: 0.31.0-cpu, 0.31.0-cuda, 0.32.0-cpu, 0.32.0-cuda." in done.refused["gpu01"]


@in_the_drills
@pytest.mark.drill("an installation that is killed", "the link stays, and the next run builds anew")
def test_an_installation_that_is_killed_leaves_the_link(host: Any) -> None:
    before = look("gpu01")
    # With the first files of the new environment.
    watch = "until ls -d /opt/vllm/0.34.*/lib; do :; done; systemctl kill --signal=KILL 'vllm-install-0.34.*'"
    host.check_output("systemd-run --unit=killer --property=RuntimeMaxSec=60 sh -c %s", watch)
    done = engine(LARGE)
    assert done.status != 0
    assert "ended by signal 9" in done.said
    assert litter().startswith(LARGE)
    assert look("gpu01") == before
    done = engine(LARGE)
    assert done.status == 0, done.said
    now = look("gpu01")
    assert (version_of(now.current), now.started, now.serves) == (LARGE, before.started, before.serves)


@in_the_drills
def test_what_nothing_needs_is_gone_and_the_way_back_stays(host: Any) -> None:
    """Of the engines of the tests before: the one that serves, and the one that the last of them brought."""
    there = {version_of(name) for name in host.check_output("ls /opt/vllm").split() if name[0].isdigit()}
    assert there == {OLD, LARGE}
    told = json.loads(host.file("/opt/vllm/last-change.json").content_string)
    assert (version_of(told["before"]), version_of(told["after"]), told["held"]) == (OLD, LARGE, True)
