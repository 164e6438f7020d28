"""What stops before any change, and what only looks: a profile, a model and a driver that cannot work, and the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoint
import playbook
import pytest
import yaml

ALL = ("gpu01", "gpu02", "deb13")
LARGE = [{"name": "large", "model": "/srv/models/llama-70b-fp8"}]
RECORDED = endpoint.TOP / "tests/unit/plugins/data/nvidia_smi"
PLACES = "/etc /opt /usr /srv /var/lib /var/cache/vllm /root"
#: What every report has of an instance.
FIELDS = {
    "name", "profile", "engine_args", "weights_gib", "kv_gib", "kv_tokens", "max_concurrency", "fits", "reasons", "suggestions",
}  # fmt: skip


def play(name: str, *arguments: str, hosts: tuple[str, ...] = ALL, **variables: Any) -> playbook.Done:
    return playbook.run(name, *arguments, hosts=hosts, inventories=["molecule/gpu_profiles/inventory"], **variables)


def assert_it_stopped(done: playbook.Done) -> None:
    """In the first play, with a word to the operator and nothing for a developer."""
    assert done.status != 0, done.said
    assert "PLAY [Install the engine" not in done.said
    assert set(done.changed.values()) == {0}, done.said
    assert "Traceback" not in done.said


def running(machine: Any) -> str:
    return str(machine.check_output("systemctl show --property=Id,InvocationID 'vllm@*' nginx"))


@pytest.fixture(scope="module", autouse=True)
def before(machines: dict[str, Any]) -> Iterator[dict[str, tuple[str, str]]]:
    """For each machine what runs, and a file made before the first case: whatever a case changes is newer."""
    marks = {name: machine.check_output("mktemp /run/mark.XXXXXX") for name, machine in machines.items()}
    yield {name: (running(machine), marks[name]) for name, machine in machines.items()}
    for name, machine in machines.items():
        machine.check_output("rm %s", marks[name])


def test_a_pinned_profile_that_the_gpu_cannot_run() -> None:
    done = play("site.yml", vllm_gpu_profile="h100_fp8")
    assert_it_stopped(done)
    assert set(done.refused) == {"gpu02", "deb13"}
    for host, gpu in (("gpu02", "NVIDIA A100-SXM4-80GB"), ("deb13", "NVIDIA A100-SXM4-40GB")):
        assert "the profile 'h100_fp8' of 'by-path' needs compute capability 8.9" in done.refused[host]
        assert f"GPU 0 of {host} is a {gpu} with 8.0" in done.refused[host]


def test_a_model_that_does_not_fit() -> None:
    done = play("site.yml", vllm_models=LARGE)
    assert_it_stopped(done)
    assert set(done.refused) == set(ALL)
    for words in (
        # 0.9 of what CUDA sees; 67.7 were measured; 80 layers x 2 x 8 heads x 128 x 2 bytes a token.
        "'large-0' does not fit on gpu01 (/srv/models/llama-70b-fp8 on 1 x h100-sxm-80gb): of each GPU ",
        "gpu-memory-utilization 0.9 takes 71.20 GiB; weights 67.6",
        "one request of 16,384 tokens needs 5.00 GiB",
        # The one that was seen to serve.
        "1. engine_args: {gpu-memory-utilization: 0.95, kv-cache-dtype: fp8}",
    ):
        assert words in done.refused["gpu01"]


def test_a_model_that_does_not_fit_and_may() -> None:
    arguments = ("--check", "--tags", "service")
    done = play("site.yml", *arguments, hosts=("gpu01",), vllm_models=LARGE, vllm_plan_allow_misfit=True)
    assert done.status == 0, done.said
    assert "'large-0' does not fit on gpu01" in done.said
    assert "It goes on, since vllm_plan_allow_misfit is true" in done.said
    assert done.changed["gpu01"] > 0
    assert "TASK [gpuops.vllm.vllm_service : service |" in done.said


@pytest.fixture
def broken_drivers(machines: dict[str, Any]) -> Iterator[None]:
    """An old driver, one that was replaced under a running kernel, and one that hangs."""
    for machine in machines.values():
        machine.check_output("cp -r /run/nvidia-smi /run/nvidia-smi.good")
    machines["gpu01"].check_output("sed -i s/580.126.20/550.163.01/ /run/nvidia-smi/says")
    mismatch = (RECORDED / "mismatch.txt").read_text()
    machines["gpu02"].check_output("printf %%s %s > /run/nvidia-smi/says; echo 18 > /run/nvidia-smi/status", mismatch)
    machines["deb13"].check_output("echo 30 > /run/nvidia-smi/hangs")
    yield
    for machine in machines.values():
        machine.check_output("rm -r /run/nvidia-smi && mv /run/nvidia-smi.good /run/nvidia-smi")


@pytest.mark.usefixtures("broken_drivers")
def test_a_driver_that_cannot_serve() -> None:
    """Without a GPU on the PCI bus, so that it is the plan that refuses."""
    done = play("site.yml", hosts=("gpu02", "deb13"))
    assert_it_stopped(done)
    assert done.seconds < 60
    wanted = {
        "gpu02": ["Driver/library version mismatch", "Reboot the host"],
        "deb13": ["nvidia-smi gave no answer within 15 s", "reboot the host"],
    }
    assert {host: [word for word in words if word in done.refused[host]] for host, words in wanted.items()} == wanted


@pytest.mark.usefixtures("broken_drivers")
def test_a_driver_that_is_too_old_and_that_no_package_brought() -> None:
    done = play("site.yml", hosts=("gpu01",))
    assert_it_stopped(done)
    for words in (
        "gpu01 has the NVIDIA driver 550.163.01, and vLLM needs 580 or newer",
        "Remove it (its own nvidia-uninstall does)",
    ):
        assert words in done.refused["gpu01"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[playbook.Done, dict[str, Any]]:
    """A run of plan.yml, and the file that it wrote."""
    path: Path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = play("playbooks/plan.yml", vllm_plan_report_path=str(path))
    assert done.status == 0, done.said
    return done, json.loads(path.read_text())


def test_the_plan_is_a_table(report: tuple[playbook.Done, dict[str, Any]]) -> None:
    table = report[0].said.partition("\nhost ")[2].partition("PLAY RECAP")[0]
    rows = [line.split() for line in table.splitlines()[1:] if "GiB" in line]
    assert {(row[0], row[1], row[2]): row[-1] for row in rows} == {
        (one["host"], one["name"], one["model"]): "fits" for one in report[1]["instances"]
    }


def test_the_plan_is_a_file_as_well(report: tuple[playbook.Done, dict[str, Any]], machines: dict[str, Any]) -> None:
    instances = {(one["host"], one["name"]): one for one in report[1]["instances"]}
    assert {where: one["profile"] for where, one in instances.items()} == {
        ("gpu01", "by-path-0"): "h100_fp8",
        ("gpu02", "by-path-0"): "a100_fp16",
        ("deb13", "by-path-0"): "a100_fp16",
        ("deb13", "by-id-0"): "a100_fp16",
    }
    for (host, name), one in instances.items():
        assert one.keys() >= FIELDS
        assert (one["fits"], one["reasons"], one["suggestions"]) == (True, [], [])
        served = yaml.safe_load(machines[host].file(f"/etc/vllm/instances/{name}/engine.yaml").content_string)
        assert one["engine_args"].items() <= served.items()
        # 13.51 were measured in float16; FP8 leaves the embeddings as they are.
        assert one["weights_gib"] == pytest.approx(7.0 if host == "gpu01" else 13.51, abs=0.05)
        assert one["max_concurrency"] == pytest.approx(one["kv_tokens"] / 16384, rel=0.01)
        # 128 KiB a token.
        assert one["kv_gib"] == pytest.approx(one["kv_tokens"] / 8192, rel=0.01)


def test_a_plan_in_check_mode_writes_no_file(tmp_path: Path) -> None:
    done = play("playbooks/plan.yml", "--check", vllm_plan_report_path=str(tmp_path / "plan.json"))
    assert done.status == 0, done.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_nothing_on_the_machines_was_changed(
    name: str, before: dict[str, tuple[str, str]], machines: dict[str, Any]
) -> None:
    ran, mark = before[name]
    changed = machines[name].check_output(f"find {PLACES} -xdev -cnewer {mark} -not -path '/root/.ansible*'")
    assert changed == ""
    assert running(machines[name]) == ran
