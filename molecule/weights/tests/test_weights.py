"""Weights of a hub: what was downloaded how, and what happens when the hub, the disk or the files are not as they should be."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import playbook
import pytest

testinfra_hosts = ["ansible://gpu01"]

TOKEN = "hf_FromTheScenarioWeights"
PASSWORD = "s3cret-of-the-proxy"
FIRST, SECOND = "1" * 40, "2" * 40
HOME = "/var/lib/vllm/weights"
REPOSITORY = f"{HOME}/hub/models--gpuops--demo"
CONFIG = "/srv/hub/config.json"
INVENTORIES = ["molecule/weights/inventory"]
#: Up to the instances: the proxy and what comes after have scenarios of their own.
SHORT = "--skip-tags=proxy,certificate,verify"


def site(*arguments: str, **variables: Any) -> playbook.Done:
    return playbook.run("site.yml", SHORT, *arguments, hosts=["gpu01"], inventories=INVENTORIES, **variables)


def role(home: str = HOME, commit: str = FIRST, **variables: Any) -> playbook.Done:
    """Run the role alone."""
    wanted = [{"model": "gpuops/demo", "commit": commit, "format": "hf"}]
    settings = {
        "vllm_weights_dir": home,
        "vllm_weights_models": wanted,
        "vllm_weights_hub_endpoint": "http://10.77.0.11:8080",
    }
    return playbook.run(
        "molecule/weights/files/weights.yml", hosts=["gpu01"], inventories=INVENTORIES, **{**settings, **variables}
    )


@pytest.fixture
def hub(host: Any) -> Iterator[Any]:
    """Change what the hub says; it says the old things again afterwards."""
    before = json.loads(host.file(CONFIG).content_string)

    def says(**changes: Any) -> None:
        host.check_output("printf %%s %s > %s", json.dumps({**before, **changes}), CONFIG)

    yield says
    says()


def asked(host: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.file("/srv/hub/asked.jsonl").content_string.splitlines()]


def answer(host: Any) -> str:
    """Ask the engine, past any proxy."""
    script = (
        "import json,urllib.request as u;k=[l.split('\"')[1] for l in open('/etc/vllm/secrets') if l.startswith('VLLM_API_KEY')][0];"
        "d=json.dumps({'model':'gpuops-demo','temperature':0,'messages':[{'role':'user','content':'Hello!'}]}).encode();"
        "r=u.Request('http://127.0.0.1:8000/v1/chat/completions',d,{'Content-Type':'application/json','Authorization':'Bearer '+k});"
        "print(json.load(u.urlopen(r,timeout=30))['choices'][0]['message']['content'])"
    )
    return str(host.check_output("python3 -c %s", script))


def running(host: Any) -> str:
    return str(host.check_output("systemctl show --property=InvocationID,ActiveState vllm@demo-0"))


def test_it_serves_the_commit_that_the_branch_was(host: Any) -> None:
    assert answer(host).startswith("Hello!")
    (instance,) = json.loads(host.file("/etc/vllm/instances.json").content_string)["instances"]
    folder = f"{REPOSITORY}/snapshots/{FIRST}"
    assert (instance["revision"], instance["commit"], instance["path"]) == (None, FIRST, folder)
    engine = host.file("/etc/vllm/instances/demo-0/engine.yaml").content_string
    assert f'model: "{folder}"\n' in engine
    assert f'chat-template: "{folder}/chat_template.jinja"\n' in engine
    assert (
        host.file(f"{folder}/model.safetensors").sha256sum == host.file("/srv/models/demo/model.safetensors").sha256sum
    )


def test_nobody_reads_the_token(host: Any) -> None:
    """The download had it: the model is gated."""
    assert any(entry["token"] and entry["path"].endswith("model.safetensors") for entry in asked(host))
    shown = host.check_output("systemctl show vllm-download.service; journalctl --quiet --unit=vllm-download.service")
    assert "whole and verified" in shown
    assert TOKEN not in shown
    assert host.run("grep -rlF %s %s /run /etc/systemd /etc/vllm/instances /var/log", TOKEN, HOME).stdout == ""


def test_the_download_had_neither_devices_nor_the_engines_key(host: Any) -> None:
    properties = host.check_output("systemctl show --all vllm-download.service").splitlines()
    for wanted in (
        "User=vllm", "UnsetEnvironment=VLLM_API_KEY", "PrivateDevices=yes", "DevicePolicy=closed", "ProtectSystem=strict",
        f"ReadWritePaths={HOME}", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "MemoryDenyWriteExecute=yes",
    ):  # fmt: skip
        assert wanted in properties


def exposure(host: Any) -> float:
    """systemd's judgement of the download, before any daemon-reload: of a transient unit systemd 252 forgets RestrictNamespaces= in it."""
    report = host.check_output("systemd-analyze security --no-pager vllm-download.service | grep -v '^✓'")
    found = re.search(r"exposure level for \S+: (\d+\.\d+)", report)
    assert found, report
    print(report)
    return float(found[1])


@pytest.mark.drill("second run, with the hub gone", "changed=0, same InvocationID")
def test_a_second_run_needs_no_hub_and_changes_nothing(host: Any) -> None:
    before = running(host)
    host.check_output("systemctl kill --signal=STOP hub")
    try:
        done = site()
    finally:
        host.check_output("systemctl kill --signal=CONT hub")
    assert done.status == 0, done.said
    assert done.changed["gpu01"] == 0, done.said
    assert running(host) == before


@pytest.mark.drill(
    "a download that is not what the hub listed",
    "the play fails and names the file, the old commit serves on, same InvocationID",
)
def test_a_broken_download_of_a_new_commit_leaves_the_old_one_serving(host: Any, hub: Any) -> None:
    before = running(host)
    repo = {"gated": True, "refs": {"main": SECOND}, "commits": {FIRST: "/srv/models/demo", SECOND: "/srv/hub/second"}}
    hub(repos={"gpuops/demo": repo}, faults=[{"path": "generation_config", "wrong": True}])
    done = site(vllm_weights_update=True)
    assert done.status != 0
    assert "gpuops/demo: generation_config.json is not what the hub's list says" in done.said
    assert "Nothing that serves was touched" in done.said
    assert TOKEN not in done.said
    assert running(host) == before
    (instance,) = json.loads(host.file("/etc/vllm/instances.json").content_string)["instances"]
    assert instance["commit"] == FIRST
    assert not host.file(f"{REPOSITORY}/verified/{SECOND}.json").exists


def test_no_instance_starts_with_a_download_that_has_not_ended(host: Any) -> None:
    """A run of the service alone, after a download that was killed: all of the files may be there, and one of them short."""
    before = running(host)
    stamp = f"{REPOSITORY}/verified/{FIRST}.json"
    host.check_output("mv %s %s.away", stamp, stamp)
    try:
        done = site("--tags=service", vllm_default_env={"FAKE": "another"})
    finally:
        host.check_output("mv %s.away %s", stamp, stamp)
    assert done.status != 0, done.said
    assert "--tags weights,service" in done.refused["gpu01"]
    assert running(host) == before


@pytest.mark.drill("weights cut short on the disk", "found and mended by the next run, by its SHA-256")
def test_a_file_that_was_cut_short_is_found_and_mended(host: Any) -> None:
    file = f"{REPOSITORY}/snapshots/{FIRST}/model.safetensors"
    host.check_output("truncate --size=1000 %s", file)
    done = site("--tags=weights")
    assert done.status == 0, done.said
    assert done.changed["gpu01"] == 1, done.said
    assert host.file(file).sha256sum == host.file("/srv/models/demo/model.safetensors").sha256sum


@pytest.mark.drill("a download that is killed", "the next run goes on at the byte where it stopped")
def test_a_download_that_was_killed_goes_on_where_it_stopped_and_through_a_proxy(host: Any, hub: Any) -> None:
    """All by CONNECT, with a password, to a hub that an authority vouches for which only vllm_ca_file names."""
    other = "/srv/other"
    hub(proxy_password=PASSWORD, faults=[{"path": "model.safetensors", "bytes_per_s": 100_000}])
    settings: dict[str, Any] = {
        "vllm_weights_hub_endpoint": "https://10.77.0.11:8443",
        "vllm_weights_https_proxy": f"http://proxy:{PASSWORD}@10.77.0.11:8080",
        "vllm_weights_ca_file": "/srv/hub/ca.pem",
    }
    size = f"stat --format=%s {other}/hub/models--gpuops--demo/blobs/*.incomplete"
    watch = f"until [ $({size} 2>/dev/null || echo 0) -gt 100000 ]; do sleep 0.2; done; systemctl kill --signal=KILL vllm-download"
    host.check_output("systemd-run --unit=killer --property=RuntimeMaxSec=60 sh -c %s", watch)
    killed = role(other, **settings)
    assert killed.status != 0
    assert "ended by signal 9" in killed.said
    kept = int(host.check_output(size))
    assert kept > 100_000
    hub(proxy_password=PASSWORD)
    before = len(asked(host))
    done = role(other, **settings)
    assert done.status == 0, done.said
    ranges = [entry["range"] for entry in asked(host)[before:] if "/cdn/" in entry["path"]]
    assert f"bytes={kept}-" in ranges
    assert any(entry["proxied"] for entry in asked(host)[before:])
    assert not host.file("/run/vllm-download-proxy").exists
    shown = host.check_output("systemctl show vllm-download.service; journalctl --quiet --unit=vllm-download.service")
    assert PASSWORD not in shown + killed.said + done.said
    again = role(other, **settings)
    assert (again.status, again.changed["gpu01"]) == (0, 0), again.said


@pytest.mark.drill("a disk too small for the weights", "refused before a byte is fetched")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(host: Any) -> None:
    host.check_output("mkdir /srv/small && mount -t tmpfs -o size=256k tmpfs /srv/small")
    try:
        before = len(asked(host))
        started = time.monotonic()
        done = role("/srv/small", vllm_weights_reserve_gib=0)
        assert done.status != 0
        assert re.search(r"/srv/small has 0\.2\d MiB free, and 0\.5\d MiB are to be downloaded", done.said), done.said
        assert "Nothing was downloaded" in done.said
        assert [entry["path"] for entry in asked(host)[before:] if "resolve" in entry["path"]] == []
        assert time.monotonic() - started < 60
    finally:
        host.check_output("umount /srv/small && rmdir /srv/small")


@pytest.mark.drill(
    "a disk that fills up under a download", "the play fails and says so; with room again the next run completes it"
)
def test_a_disk_that_fills_up_meanwhile_costs_nothing_but_the_rest(host: Any, hub: Any) -> None:
    host.check_output("mkdir /srv/small && mount -t tmpfs -o size=700k tmpfs /srv/small")
    try:
        hub(faults=[{"path": "model.safetensors", "bytes_per_s": 100_000}])
        growing = "stat --format=%s /srv/small/hub/models--gpuops--demo/blobs/*.incomplete"
        # Somebody else takes what is left, once the download has begun.
        watch = f"until [ $({growing} 2>/dev/null || echo 0) -gt 50000 ]; do sleep 0.2; done; dd if=/dev/zero of=/srv/small/other bs=4k"
        host.check_output("systemd-run --unit=filler --property=RuntimeMaxSec=60 sh -c %s", watch)
        full = role("/srv/small", vllm_weights_reserve_gib=0)
        assert full.status != 0
        assert "gpuops/demo: the disk is full (No space left on device). Make room below vllm_weights_dir" in full.said
        hub()
        host.check_output("rm /srv/small/other")
        done = role("/srv/small", vllm_weights_reserve_gib=0)
        assert done.status == 0, done.said
        assert exposure(host) <= 1.2
        blob = host.file(f"/srv/small/hub/models--gpuops--demo/snapshots/{FIRST}/model.safetensors")
        assert blob.sha256sum == host.file("/srv/models/demo/model.safetensors").sha256sum
    finally:
        host.check_output("umount /srv/small && rmdir /srv/small")
