"""What playbooks/vars/wiring.yml tells the role of an engine and a launcher that check mode does not install."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
LAUNCHER = "#!/usr/bin/python3\n# 1 µs\n\n"
NAMES = ("vllm_service_engine", "vllm_service_launcher_sha256")
TELL = {
    "name": "Tell",
    "ansible.builtin.copy": {
        "content": "{{ [" + ", ".join(NAMES) + "] | to_json }}",
        "dest": "{{ folder }}/told",
        "mode": "0600",
    },
    "check_mode": False,
}
ENGINE = {
    "name": "Activate",
    "ansible.builtin.import_role": {"name": "gpuops.vllm.vllm_engine", "tasks_from": "activate"},
    "vars": {"__vllm_engine_root": "{{ folder }}/opt", "__vllm_engine_name": "0.32.0-cuda"},
}


def told(folder: Path, *options: str) -> tuple[str, str]:
    """Return both variables, as a role of this name sees them that follows the play with the engine."""
    for role, file, content in (
        ("vllm_service", "tasks/main.yml", yaml.safe_dump([TELL])),
        ("vllm_launcher", "files/vllm-start", LAUNCHER),
    ):
        path = folder / "roles" / role / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
    (folder / "opt/0.31.0-cuda").mkdir(parents=True)
    (folder / "opt/current").symlink_to("0.31.0-cuda")
    variables = {"folder": str(folder), "ansible_python_interpreter": sys.executable}
    play: dict[str, Any] = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables}
    plays = [
        {**play, "tasks": [{**ENGINE, "tags": ["engine"]}]},
        {**play, "vars_files": [str(ROOT / "playbooks/vars/wiring.yml")], "roles": [{"role": str(folder / "roles/vllm_service"), "tags": ["service"]}]},
    ]  # fmt: skip
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", folder / "play.yml", "--check", *options],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}, stdout=subprocess.PIPE, check=True, timeout=60,
    )  # fmt: skip
    engine, launcher = json.loads((folder / "told").read_text())
    return engine, launcher


@pytest.mark.parametrize(
    ("options", "engine", "launcher"),
    [
        ([], True, True),
        (["--skip-tags", "launcher"], True, False),
        (["--tags", "service"], False, False),
    ],
)
def test_the_role_learns_what_this_run_would_have_installed(
    tmp_path: Path, options: list[str], engine: bool, launcher: bool
) -> None:
    assert told(tmp_path, *options) == (
        f"{tmp_path}/opt/0.32.0-cuda" if engine else "",
        hashlib.sha256(LAUNCHER.encode()).hexdigest() if launcher else "",
    )
    assert (tmp_path / "opt/current").readlink() == Path("0.31.0-cuda")
