"""The role's preflight as Ansible runs it: all that is wrong is told at once, and nothing secret with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: gpuops.vllm.vllm_weights
        tasks_from: preflight
"""
SECRET = "s3cret-of-nobody"


def preflight(folder: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    (folder / "play.yml").write_text(PLAY)
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-vvv", "-i", "localhost,", "-e", json.dumps(variables), folder / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_all_that_is_wrong_is_told_at_once_and_no_password(tmp_path: Path) -> None:
    done = preflight(
        tmp_path,
        vllm_weights_dir="/home/models",
        vllm_weights_hub_endpoint=f"https://user:{SECRET}@hub.example.com",
        vllm_weights_http_proxy=f"proxy.example.com:3128/{SECRET}",
        vllm_weights_https_proxy=f'http://user:"{SECRET}@proxy.example.com:3128',
        vllm_weights_no_proxy="a;b",
        vllm_weights_ca_file="ca.pem",
    )
    assert done.returncode == 2, done.stdout
    for words in (
        "vllm_weights_dir is '/home/models': needs an absolute path outside /home",
        "vllm_hub_endpoint (value not shown) is no address of a hub",
        "vllm_http_proxy (value not shown) is no address",
        "vllm_https_proxy (value not shown) is no address",
        "vllm_no_proxy is 'a;b': needs names",
        "vllm_ca_file is 'ca.pem': needs the absolute path",
    ):
        assert words in done.stdout
    # What a command line holds, this test has put there itself.
    assert SECRET not in done.stdout.partition("TASK [")[2]


@pytest.mark.parametrize("proxy", ["", f"http://user:{SECRET}%40@proxy.example.com:3128/", "https://[fd00::1]:3128"])
def test_what_is_right_passes(tmp_path: Path, proxy: str) -> None:
    done = preflight(
        tmp_path, vllm_weights_https_proxy=proxy, vllm_weights_no_proxy="localhost, .example.com,10.0.0.0/8"
    )
    assert done.returncode == 0, done.stdout


REFUSED = [
    "/", "//", "/etc", "/etc/vllm", "/var/lib/vllm", "/var/lib/vllm/", "/var/lib/vllm/instances", "/var/cache/vllm/x", "/opt/vllm/weights", "/opt",
    "/run/weights", "/usr/share", "/lib64", "/dev", "/srv/../etc", "/srv//x", "/srv/./x", "/srv/my models", "/srv/%h", "/srv/a\nb", "/srv/a'b", "srv", "",
]  # fmt: skip
TAKEN = [
    "/var/lib/vllm/weights",
    "/var/lib/vllm-models",
    "/srv/vllm/weights",
    "/mnt/disk-1/",
    "/data",
    "/library",
    "/opt/models",
    "/usr/local/models",
    "/srv/..x",
]


def test_a_directory_that_vllm_must_not_own_is_refused(tmp_path: Path) -> None:
    """It becomes vllm's: with what root keeps of its instances in it, vllm could choose what is gone back to."""
    hosts = {f"host{number}": {"vllm_weights_dir": folder} for number, folder in enumerate([*REFUSED, *TAKEN])}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(PLAY.replace("localhost", "all"))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    recap = done.stdout.partition("PLAY RECAP")[2]
    failed = {hosts[line.split()[0]]["vllm_weights_dir"] for line in recap.splitlines() if "failed=1" in line}
    assert failed == set(REFUSED), done.stdout
    assert sum("failed=0" in line for line in recap.splitlines()) == len(TAKEN)
