"""The inventories that ship are read by people who copy them: each must plan as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, Plan, make_plan

REPO = Path(__file__).resolve().parents[3]
EXAMPLE = REPO / "inventory/example"
DATA: dict[str, Any] = {}
for file in (REPO / "roles/vllm_plan/vars/main").glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
HOSTS = list(yaml.safe_load((EXAMPLE / "hosts.yml").read_text())["vllm_servers"]["hosts"])


def planned(host: str) -> Plan:
    written = yaml.safe_load((EXAMPLE / "host_vars" / f"{host}.yml").read_text())
    gpus, problems = _gpus.declared(written["vllm_plan_gpus"], DATA["__vllm_plan_known_gpus"])
    assert problems == []
    return make_plan(
        written["vllm_models"],
        Host(
            name=host,
            gpus=gpus,
            profiles=DATA["__vllm_plan_profiles"],
            known_models=DATA["__vllm_plan_known_models"],
            known_gpus=DATA["__vllm_plan_known_gpus"],
            rules=DATA["__vllm_plan_rules"],
        ),
    )


def test_the_example_has_one_h100_two_a100_and_eight_h100() -> None:
    plans = [planned(host).instances for host in HOSTS]
    assert [(sum(len(one["gpus"]) for one in plan), {one["profile"] for one in plan}) for plan in plans] == [
        (1, {"h100_fp8"}),
        (1, {"a100_fp16"}),
        (1, {"a100_fp16"}),
        (8, {"h100_fp8"}),
    ]


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_of_the_example_plans_without_a_word_against_it(host: str) -> None:
    plan = planned(host)
    assert plan.problems + plan.misfits + plan.warnings == []
    assert {one["fit"]["verdict"] for one in plan.instances} == {"fits"}
    assert {one["fit"]["numbers"] for one in plan.instances} == {"catalogue"}


def test_the_example_leaves_secrets_to_a_vault() -> None:
    text = (EXAMPLE / "group_vars/vllm_servers.yml").read_text()
    assert [entry["key"] for entry in yaml.safe_load(text)["vllm_api_keys"]] == ["{{ vault_team_a_key }}"]


def defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPO / f"roles/vllm_{role}/defaults/main.yml").read_text())
    return found


def test_plan_and_download_ask_the_same_hub() -> None:
    wiring = yaml.safe_load((REPO / "playbooks/vars/wiring.yml").read_text())
    assert wiring["vllm_weights_hub_endpoint"] == "{{ vllm_plan_hub_endpoint }}"
    (address,) = {defaults(role)[f"vllm_{role}_hub_endpoint"] for role in ("plan", "weights")}
    assert (
        f"'vllm_hub_endpoint', default=lookup('ansible.builtin.env', 'HF_ENDPOINT') or '{address}'"
        in wiring["vllm_plan_hub_endpoint"]
    )


@pytest.mark.parametrize(
    ("inventory_name", "users"),
    [
        ("vllm_weights_dir", {"weights": "dir", "service": "weights_dir", "plan": "weights_dir"}),
        ("vllm_version", {"engine": "version", "plan": "vllm_version"}),
    ],
)
def test_what_several_roles_need_is_decided_in_one_place(inventory_name: str, users: dict[str, str]) -> None:
    """No role reads another's variables: their defaults and the wiring's must agree."""
    (value,) = {defaults(role)[f"vllm_{role}_{name}"] for role, name in users.items()}
    wiring = yaml.safe_load((REPO / "playbooks/vars/wiring.yml").read_text())
    wired = {name: text for name, text in wiring.items() if inventory_name in str(text)}
    assert set(wired) == {f"vllm_{role}_{name}" for role, name in users.items()} - {inventory_name}
    assert all(f"'{inventory_name}', default='{value}'" in text for text in wired.values())
