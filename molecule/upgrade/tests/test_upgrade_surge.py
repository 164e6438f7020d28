"""One replica on a machine with two GPUs: the new engine serves on the free one before the old one ends. In the drills alone, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoint
import killing
import load
import playbook
import pytest
import record
from upgrading import ARGUMENTS, BROKEN, NEW, OLD, Seen, look, run, streams, upgrade, version_of

testinfra_hosts = ["ansible://gpu02"]
GPUS = endpoint.TOP / "molecule" / "gpu_profiles" / "files"
RECORDING = endpoint.TOP / "tests" / "unit" / "plugins" / "data" / "nvidia_smi" / "a100_2.csv"
MODEL = {
    "name": "demo",
    "model": "/srv/models/demo",
    "served_as": ["gpuops-demo"],
    "engine_args": {"max-num-seqs": 8, "max-model-len": 512},
    # Long enough that clients notice it.
    "env": {"FAKE_ENGINE_TOKEN_S": "0.05", "FAKE_ENGINE_LOAD_S": "4"},
}
VARIABLES: dict[str, Any] = {"vllm_gpu_profile": "auto", "vllm_models": [MODEL]}
SURGE = {**VARIABLES, "vllm_upgrade_strategy": "surge"}
#: Whatever names the instance that was there for the time of an upgrade.
LEFT = """
find /etc/vllm /etc/systemd/system /run/vllm /var/lib/vllm/instances /var/cache/vllm -name '*demo-1*'
grep -rl demo-1 /etc/vllm /etc/nginx || true
systemctl list-units --all --plain --no-legend 'vllm@demo-1*'
"""
UNDER_LOAD = "upgrade with one replica and a free GPU, under load"
ROLES = ("vllm_service", "vllm_nginx")
pytestmark = [
    pytest.mark.usefixtures("host", "gpus"),
    pytest.mark.skipif(not record.wanted(), reason="minutes long, so in the drills alone: GPUOPS_DRILLS=all"),
]


@pytest.fixture(scope="module")
def gpus() -> None:
    """Two A100s in gpu02, as far as anybody asks, with one replica on the first of them."""
    for source, target in (
        (GPUS / "nvidia-smi", "/usr/local/bin/nvidia-smi"),
        (GPUS / "nvidia-modprobe", "/usr/bin/nvidia-modprobe"),
        (RECORDING, "/run/nvidia-smi/says"),
    ):
        killing.ssh("gpu02", f"mkdir -p {Path(target).parent}; cat > {target}; chmod 0755 {target}", source.read_text())
    done = run("site.yml", hosts=("gpu02",), **VARIABLES)
    assert done.status == 0, done.said


@pytest.fixture
def before() -> Seen:
    """The old engine on the first GPU, alone."""
    seen = look("gpu02")
    if version_of(seen.current) != OLD:
        done = run("playbooks/rollback.yml", hosts=("gpu02",), **VARIABLES)
        assert done.status == 0, done.said
        seen = look("gpu02")
    assert (version_of(seen.current), seen.answers, len(seen.started)) == (OLD, {OLD}, 1)
    assert json.loads(killing.ssh("gpu02", "cat /etc/vllm/instances/demo-0/instance.json"))["gpus"] == [0]
    return seen


@pytest.fixture
def stream(before: Seen, tmp_path: Path) -> Iterator[load.Background]:
    """Streams on gpu02 as soon as the old engine serves there."""
    yield streams("gpu02", tmp_path)


def surge(version: str, *arguments: str) -> playbook.Done:
    """Run upgrade.yml with that strategy."""
    return upgrade(version, *arguments, hosts=("gpu02",), **SURGE)


def is_whole_with(version: str, before: Seen) -> bool:
    """Whether one instance serves with an engine, started anew, and nothing is left of the other."""
    now = look("gpu02")
    served = (version_of(now.current), now.answers, now.serves) == (version, {version}, (now.current,))
    return served and now.started != before.started and killing.ssh("gpu02", LEFT) == ""


def test_without_it_requests_are_lost(stream: load.Background) -> None:
    done = upgrade(NEW, hosts=("gpu02",), **VARIABLES)
    report = stream.report(within_s=60)
    assert done.status == 0, done.said
    record.record(UNDER_LOAD, "without", report.all_whole, report.said())
    assert report.failed, report.said()


def test_a_surge_loses_no_request_and_leaves_nothing(before: Seen, stream: load.Background) -> None:
    told = surge(NEW, "--check")
    assert told.status == 0, told.said
    assert look("gpu02") == before and killing.ssh("gpu02", LEFT) == ""
    done = surge(NEW)
    report = stream.report(within_s=60)
    assert done.status == 0, done.said
    record.record(UNDER_LOAD, "ours", report.all_whole, report.said())
    assert report.all_whole, report.said()
    assert report.started > 20
    assert is_whole_with(NEW, before)
    # Nothing to surge for.
    after, again = look("gpu02"), surge(NEW)
    assert (again.status, again.changed["gpu02"]) == (0, 0), again.said
    assert look("gpu02") == after


@pytest.mark.drill(
    "upgrade with a free GPU to an engine that does not start", "refused with its words; the old one serves, same InvocationID, and every stream whole"
)  # fmt: skip
def test_an_engine_that_does_not_start_touches_nobody(before: Seen, stream: load.Background) -> None:
    done = surge(BROKEN)
    report = stream.report(within_s=60)
    assert done.status != 0
    assert "ImportError: libcudart.so.13" in done.refused["gpu02"]
    assert f"gpu02 serves with {before.current} again" in done.refused["gpu02"]
    assert look("gpu02") == before
    assert killing.ssh("gpu02", LEFT) == ""
    assert report.all_whole, report.said()


@pytest.mark.parametrize("way", ["middle", "after"])
def test_the_next_run_completes_it(before: Seen, stream: load.Background, way: str) -> None:
    title = killing.title(way, "upgrade.yml with a free GPU")
    try:
        walk = killing.walk(
            "playbooks/upgrade.yml", *ARGUMENTS, machine="gpu02", way=way, roles=ROLES, vllm_version=NEW, **SURGE
        )
        report = stream.report(within_s=60)
        assert any(one.startswith("vllm_service") for one in walk.killed), walk.killed
        assert is_whole_with(NEW, before)
        assert report.all_whole, report.said()
    except AssertionError as error:
        record.record(title, "ours", False, str(error).partition("\n")[0])
        raise
    record.record(title, "ours", True, f"whole after the next run, {len(walk.killed)} kills, {report.said()}")
