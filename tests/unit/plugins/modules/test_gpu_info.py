# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`gpu_info` and `host_info`, with a program in nvidia-smi's place and a folder in that of /sys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus
from ansible_collections.gpuops.vllm.plugins.modules import gpu_info, host_info

DATA = Path(__file__).parents[1] / "data/nvidia_smi"
KNOWN = {
    "h200": {
        "name": "NVIDIA H200",
        "pci_ids": ["2335"],
        "memory_gib": 139.8,
        "compute_capability": "9.0",
        "profile": "p",
    }
}


class FakeHost:
    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capsys = capsys

    def add_h200(self) -> None:
        folder = self.root / "sys/bus/pci/devices/0000:00:06.0"
        folder.mkdir(parents=True)
        for name, text in (("vendor", "0x10de"), ("device", "0x2335"), ("class", "0x030200")):
            (folder / name).write_text(f"{text}\n")

    def add_nvidia_smi(self, output: Path, status: int = 0) -> None:
        program = self.root / "bin/nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <'{output}'\nexit {status}\n")
        program.chmod(0o755)

    def run(self, module: Any, *, fails: bool = False, **arguments: Any) -> dict[str, Any]:
        with patch_module_args({"_ansible_check_mode": True, **arguments}), pytest.raises(SystemExit) as ended:
            module.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        assert ended.value.code == int(fails), result
        return result


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FakeHost:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for module in (gpu_info, host_info):
        monkeypatch.setattr(module, "SYSFS", tmp_path / "sys")
    monkeypatch.setattr(host_info, "ASSIGNED", tmp_path / "instances.json")
    return FakeHost(tmp_path, capsys)


def test_host_without_a_gpu(host: FakeHost) -> None:
    result = host.run(gpu_info)
    assert (result["gpus"], result["problem"], result["nvswitch"], result["driver_version"]) == ([], "", False, "")
    assert result["changed"] is False


def test_gpu_with_a_driver(host: FakeHost) -> None:
    host.add_h200()
    host.add_nvidia_smi(DATA / "h200.csv")
    result = host.run(gpu_info, known_gpus=KNOWN)
    assert (result["driver_version"], result["problem"]) == ("580.159.04", "")
    (gpu,) = result["gpus"]
    assert (gpu["kind"], gpu["profile"], gpu["source"], gpu["memory_gib"]) == ("h200", "p", "nvidia-smi", 139.8)


def test_gpu_without_a_driver(host: FakeHost) -> None:
    host.add_h200()
    assert host.run(gpu_info, known_gpus=KNOWN)["gpus"][0]["kind"] == "h200"
    result = host.run(gpu_info)
    assert result["gpus"][0]["name"] == "NVIDIA 10de:2335"
    assert "add an entry to vllm_plan_known_gpus" in result["problem"]


def test_failing_driver_is_a_result(host: FakeHost) -> None:
    host.add_nvidia_smi(DATA / "mismatch.txt", 18)
    result = host.run(gpu_info)
    assert result["gpus"] == []
    assert "NVML library version: 580.173" in result["problem"]


def test_host_info_reads_the_same(host: FakeHost) -> None:
    host.add_h200()
    host.add_nvidia_smi(DATA / "h200.csv")
    alone, with_the_rest = host.run(gpu_info, known_gpus=KNOWN), host.run(host_info, known_gpus=KNOWN)
    assert with_the_rest["gpus"] == alone["gpus"]
    assert (with_the_rest["gpu_problem"], with_the_rest["nvswitch"]) == (alone["problem"], alone["nvswitch"])
    assert (with_the_rest["assigned"], with_the_rest["models"]) == ([], {})


OURS: dict[str, Any] = {"name": "llama-0", "port": 8000, "gpus": [0, 1], "env": {}}


@pytest.mark.parametrize("instances", [[], [OURS], [OURS, {"name": "small-0"}]])
def test_what_the_last_run_assigned_is_read(host: FakeHost, instances: list[dict[str, Any]]) -> None:
    (host.root / "instances.json").write_text(json.dumps({"version": 1, "instances": instances}))
    assert host.run(host_info)["assigned"] == instances


@pytest.mark.parametrize(
    "text",
    [
        b"null", b"[1, 2]", b"7", b'"text"', b"{}", b"{", b"[" * 200_000, b"\xff\xfe", b'{"instances": null}', b'{"instances": {}}', b'{"instances": "text"}',
        b'{"instances": [1, 2]}', b'{"instances": [{}]}', b'{"instances": [{"name": null}]}', b'{"instances": [{"name": 7, "port": 8000}]}',
        *(json.dumps({"instances": [{**OURS, **wrong}]}).encode() for wrong in
          ({"port": "8000"}, {"port": True}, {"port": None}, {"port": 80}, {"gpus": None}, {"gpus": 7}, {"gpus": ["0"]}, {"gpus": {"0": 1}})),
    ],
)  # fmt: skip
def test_a_list_of_assignments_that_is_not_ours_is_refused(host: FakeHost, text: bytes) -> None:
    (host.root / "instances.json").write_bytes(text)
    assert host.run(host_info, fails=True)["msg"] == (
        f"{host.root}/instances.json is not what this collection wrote. Move it away and run again; ports are then given out anew."
    )


def test_a_model_is_handed_on_as_text(host: FakeHost) -> None:
    folder = host.root / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"x": {"__ansible_type": "TaggedStr", "value": "\\ud800"}}')
    for place in [folder, *folder.parents][:4]:
        place.chmod(0o755)
    found = host.run(host_info, models=[str(folder), str(folder / "none")])["models"]
    assert found[str(folder)]["config_json"] == (folder / "config.json").read_text()
    assert "config_json" not in found[str(folder / "none")]


def test_a_model_of_the_hub_is_looked_into_where_its_commit_is_known(host: FakeHost) -> None:
    written, pinned = "1" * 40, "2" * 40
    instance = {"name": "a-0", "model": "org/a", "revision": "v1", "commit": written}
    (host.root / "instances.json").write_text(json.dumps({"version": 1, "instances": [instance]}))
    repository = host.root / "hub/models--org--a"
    folders = {commit: repository / "snapshots" / commit for commit in (written, pinned)}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"a": 1}')
    (repository / "verified").mkdir()
    (repository / f"verified/{pinned}.json").write_text('{"files": {"config.json": 8}}')
    for place in [*folders.values(), *folders[written].parents][:6]:
        place.chmod(0o755)
    asked = [{"model": "org/a", "revision": revision} for revision in ("v1", pinned, "v2")]
    found = host.run(host_info, hub=asked, weights_dir=str(host.root))["models"]
    assert {path: one["verified"]["hf"] for path, one in found.items()} == {
        str(folders[written]): False,
        str(folders[pinned]): True,
    }
    assert found[str(folders[written])]["files"] == ["config.json"]


def test_documentation_names_what_a_gpu_has() -> None:
    documented = yaml.safe_load(gpu_info.RETURN)["gpus"]["contains"]
    assert set(documented) == set(_gpus.Gpu.__annotations__)
    types = {"str": "str", "int": "int", "float": "float", "bool": "bool"}
    for key, hint in _gpus.Gpu.__annotations__.items():
        assert types[documented[key]["type"]] == getattr(hint, "__forward_arg__", hint), key
