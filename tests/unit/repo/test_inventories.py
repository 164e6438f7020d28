"""The inventories that ship are read by people who copy them: each must plan as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, make_plan

REPO = Path(__file__).resolve().parents[3]
EXAMPLE = REPO / "inventory/example"
PROFILES = yaml.safe_load((REPO / "roles/vllm_plan/vars/main.yml").read_text())["__vllm_plan_profiles"]
GPUS: dict[str, dict[str, Any]] = {
    "h100": {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.6, "compute_capability": "9.0"},
    "a100": {"name": "NVIDIA A100-SXM4-80GB", "memory_gib": 80.0, "compute_capability": "8.0"},
}
HOSTS = list(yaml.safe_load((EXAMPLE / "hosts.yml").read_text())["vllm_servers"]["hosts"])


def test_the_example_has_hosts_of_both_kinds() -> None:
    assert {host.split("-")[0] for host in HOSTS} == set(GPUS)


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_of_the_example_plans_without_a_problem(host: str) -> None:
    kind = host.split("-", maxsplit=1)[0]
    models = yaml.safe_load((EXAMPLE / "host_vars" / f"{host}.yml").read_text())["vllm_models"]
    plan = make_plan(models, Host(name=host, gpus=[{"index": 0, **GPUS[kind]}], profiles=PROFILES))
    assert plan.problems == []
    assert [one["profile"] for one in plan.instances] == [{"h100": "h100_fp8", "a100": "a100_fp16"}[kind]]


def test_the_example_leaves_secrets_to_a_vault() -> None:
    text = (EXAMPLE / "group_vars/vllm_servers.yml").read_text()
    assert [entry["key"] for entry in yaml.safe_load(text)["vllm_api_keys"]] == ["{{ vault_team_a_key }}"]


def test_the_weights_directory_is_one_place() -> None:
    """Two roles need it and neither reads the other's variables: their defaults and the wiring's must agree."""
    weights, service = (
        yaml.safe_load((REPO / f"roles/vllm_{role}/defaults/main.yml").read_text())[f"vllm_{role}_{name}"]
        for role, name in (("weights", "dir"), ("service", "weights_dir"))
    )
    wired = yaml.safe_load((REPO / "playbooks/vars/wiring.yml").read_text())["vllm_service_weights_dir"]
    assert weights == service
    assert f"default('{weights}')" in wired
