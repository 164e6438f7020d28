"""What bundle.yml asks the role vllm_engine, as Ansible runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[4]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: gpuops.vllm.vllm_engine
        tasks_from: bundle
"""
SECRET = "s3cret-of-nobody"


def test_a_password_in_an_address_never_reaches_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    variables = json.dumps({"vllm_engine_index_url": f"https://user:{SECRET}@index.example.com/simple"})
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-e", variables, tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "(values not shown) holds a user name or password" in done.stdout
    assert SECRET not in done.stdout + done.stderr
