"""The built artifact, installed into an empty place, drives the same machine from there, and finds nothing to change."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import endpoint

testinfra_hosts = ["ansible://gpu01"]


def run(*argv: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_collection_runs_by_its_name(tmp_path: Path) -> None:
    # From the exported files, as `make build` does: a build in the checkout would read through .venv first.
    run("scripts/export", tmp_path / "source", cwd=endpoint.TOP)
    run("ansible-galaxy", "collection", "build", tmp_path / "source", "--output-path", tmp_path, cwd=tmp_path)
    no_config = tmp_path / "ansible.cfg"
    no_config.touch()
    (artifact,) = tmp_path.glob("gpuops-vllm-*.tar.gz")
    run(
        "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "--collections-path",
        tmp_path / "empty",
        artifact,
        cwd=tmp_path,
        ANSIBLE_CONFIG=str(no_config),  # with the checkout's, it is "already installed"
    )
    installed = {
        entry.name
        for entry in (tmp_path / "empty" / "ansible_collections" / "gpuops" / "vllm").iterdir()
        if entry.is_dir()
    }
    assert {"meta", "playbooks", "plugins", "roles"} <= installed
    assert not {"molecule", "tests", "demo", "inventory", "scripts"} & installed
    said = run(
        "ansible-playbook", "gpuops.vllm.site", "--inventory", endpoint.TOP / "inventory" / "demo",
        cwd=tmp_path, ANSIBLE_CONFIG=str(no_config), ANSIBLE_COLLECTIONS_PATH=str(tmp_path / "empty"), ANSIBLE_NOCOLOR="1",
    )  # fmt: skip
    assert re.search(r"^gpu01 +: ok=\d+ +changed=0 +unreachable=0 +failed=0 ", said, re.MULTILINE), said[-2000:]
    assert "PLAY [Verify the endpoint]" in said
