"""The role's preflight as Ansible runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: gpuops.vllm.vllm_service
        tasks_from: preflight
      vars:
        ansible_facts: {service_mgr: systemd}
"""


def preflight(folder: Path, **variables: Any) -> str:
    """Return what was refused, or nothing."""
    (folder / "play.yml").write_text(PLAY)
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-e", json.dumps(variables), folder / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return " ".join((done.stdout + done.stderr).split()) if done.returncode else ""


def drains(seconds: object, **variables: Any) -> dict[str, Any]:
    instances = [{"name": "a-0", "engine_args": {}}, {"name": "b-0", "engine_args": {"shutdown-timeout": seconds}}]
    return {"vllm_service_instances": instances, **variables}


@pytest.mark.parametrize("variables", [{}, drains(878), drains("60")], ids=["none", "longest", "as text"])
def test_what_can_work_passes(tmp_path: Path, variables: dict[str, Any]) -> None:
    assert preflight(tmp_path, **variables) == ""


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (drains(879), "engine_args: {shutdown-timeout: 879} of a model of localhost: needs 878 or less"),
        (drains(878, vllm_service_drain_notice_s=10), "shutdown-timeout: 878} of a model of localhost: needs 870 or"),
        ({"vllm_service_start_timeout_s": 59}, "vllm_service_start_timeout_s is 59: needs 60 or more"),
        (
            {"vllm_service_stall_timeout_s": 0},
            "vllm_service_stall_timeout_s is 0: every busy engine would count as hung",
        ),
        ({"vllm_service_start_limit_s": 899}, "vllm_service_start_limit_s is 899: needs vllm_service_start_timeout_s"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, variables: dict[str, Any], words: str) -> None:
    assert words in preflight(tmp_path, **variables)
