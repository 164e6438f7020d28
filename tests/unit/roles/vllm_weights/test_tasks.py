"""What the role makes of how the download ended: its own task, with a stand-in for the module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT

STAND_IN = """
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({"journal": {"type": "list"}})
module.exit_json(changed=True, journal=module.params["journal"])
"""


@pytest.mark.parametrize(
    ("journal", "changed"),
    [
        (["org/model: whole and verified"], 1),
        (["org/model at 111111111111", "nothing to download: 1 of 1 models are whole"], 0),
        # The journal of a host that keeps none, or has just thrown it away.
        ([], 1),
    ],
)
def test_a_download_that_succeeded_is_no_failure_whatever_the_journal_says(
    tmp_path: Path, journal: list[str], changed: int
) -> None:
    tasks = yaml.safe_load((ROOT / "roles/vllm_weights/tasks/download.yml").read_text())
    (task,) = [one for part in tasks for one in part.get("block", []) if "gpuops.vllm.unit" in one]
    del task["gpuops.vllm.unit"]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": [{**task, "stand_in": {"journal": journal}}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "library").mkdir()
    (tmp_path / "library/stand_in.py").write_text(STAND_IN)
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"changed={changed} " in done.stdout
