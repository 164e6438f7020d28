"""A role that installs packages says so to bundle.yml, or hosts without a network would lack them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
WANTED: list[dict[str, Any]] = yaml.safe_load((REPO / "playbooks/tasks/wanted.yml").read_text())
#: All roles whose tasks install packages.
ROLES = sorted(
    path.parents[1].name
    for path in (REPO / "roles").glob("*/tasks/install.yml")
    if "gpuops.vllm.packages:" in path.read_text()
)


def test_there_are_such_roles() -> None:
    assert len(ROLES) >= 4


@pytest.mark.parametrize("role", ROLES)
def test_the_role_is_asked_and_its_answer_counts(role: str) -> None:
    asked = [task["ansible.builtin.import_role"] for task in WANTED if "ansible.builtin.import_role" in task]
    assert {"name": f"gpuops.vllm.{role}", "tasks_from": "bundle"} in asked
    assert f"{role}_wanted" in WANTED[-1]["vars"]["wanted"]
    said = yaml.safe_load((REPO / f"roles/{role}/tasks/bundle.yml").read_text())[-1]["ansible.builtin.set_fact"]
    (installed,) = [
        task["gpuops.vllm.packages"]["name"]
        for task in yaml.safe_load((REPO / f"roles/{role}/tasks/install.yml").read_text())
        if "gpuops.vllm.packages" in task
    ]
    # What it installs and what it says are one list.
    assert installed.strip("{} ") in said[f"{role}_wanted"]["packages"]


def installs(play: dict[str, Any]) -> bool:
    """Whether a play runs the installation of one of these roles."""
    names = {f"gpuops.vllm.{role}" for role in ROLES}
    found = [one["role"] for one in play.get("roles", [])]
    waiting = list(play.get("tasks", []))
    while waiting:
        task = waiting.pop()
        waiting += task.get("block", []) + task.get("rescue", [])
        role = task.get("ansible.builtin.import_role", {})
        if role.get("tasks_from", "install") == "install":
            found.append(role.get("name"))
    return bool(names & set(found))


@pytest.mark.parametrize(("playbook", "plays"), [("site", 4), ("upgrade", 1)])
def test_each_play_that_installs_packages_knows_of_the_bundle(playbook: str, plays: int) -> None:
    found = [play for play in yaml.safe_load((REPO / f"playbooks/{playbook}.yml").read_text()) if installs(play)]
    assert len(found) == plays
    for play in found:
        defaults = play["module_defaults"]
        assert "vllm_bundle_dir" in defaults["gpuops.vllm.packages"]["bundle"], play["name"]
        # What is sent is of the manifest that was checked.
        for module in ("packages", "bundle_files"):
            assert "vllm_bundle_checked" in defaults[f"gpuops.vllm.{module}"]["bundle_sha256"], play["name"]


@pytest.mark.parametrize("playbook", ["site", "upgrade"])
@pytest.mark.parametrize(
    ("variables", "sha256"),
    [
        ({"vllm_bundle_checked": {"sha256": "found"}, "vllm_bundle_sha256": "found"}, "found"),
        ({"vllm_bundle_checked": {"sha256": "found"}}, "found"),
        # The checks were skipped: what was given still counts.
        ({"vllm_bundle_sha256": "given"}, "given"),
        ({}, ""),
    ],
)
def test_a_hash_that_was_given_counts_where_the_checks_were_skipped(
    playbook: str, variables: dict[str, Any], sha256: str
) -> None:
    found = [play for play in yaml.safe_load((REPO / f"playbooks/{playbook}.yml").read_text()) if installs(play)]
    expressions = {play["module_defaults"]["gpuops.vllm.packages"]["bundle_sha256"] for play in found}
    assert {jinja2.Environment(autoescape=True).from_string(one).render(**variables) for one in expressions} == {sha256}
