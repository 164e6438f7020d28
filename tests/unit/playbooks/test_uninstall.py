"""playbooks/uninstall.yml asks whether it is meant, before it connects to any host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[3]
#: An address of documentation, where nobody is: whoever connects is told so.
NOBODY = {"ansible_host": "192.0.2.1", "ansible_ssh_common_args": "-o ConnectTimeout=1"}


def play(folder: Path, *options: str, **variables: Any) -> str:
    """Run the playbook, which is expected to fail, on three hosts that are not there; what it said, on one line."""
    group = {
        "hosts": {f"gpu0{number}": NOBODY for number in (1, 2, 3)},
        "vars": variables,
        "children": {"rack7": {"hosts": {"gpu03": {}}}},
    }
    (folder / "hosts.json").write_text(json.dumps({"vllm_servers": group}))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.json", REPO / "playbooks/uninstall.yml", *options],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    assert done.returncode != 0
    return " ".join((done.stdout + done.stderr).split())


def reached(said: str) -> set[str]:
    """The hosts that were connected to, which are not there."""
    return set(re.findall(r"(gpu0\d) : ok=\d changed=0 unreachable=1", said))


@pytest.mark.parametrize(
    ("options", "named", "unknown"),
    [
        ([], "", ""),
        (["-e", "vllm_uninstall=yes"], "yes", "yes"),
        (["-e", "vllm_uninstall=gpu01,rack8"], "gpu01,rack8", "rack8"),
        (["-e", "vllm_uninstall=gpu01", "--limit", "localhost,gpu02"], "gpu01", ""),
        (["--check", "-e", "vllm_uninstall=gpu1"], "gpu1", "gpu1"),
    ],
    ids=["nothing said", "yes", "no such group", "not of this run", "to look at"],
)
def test_no_host_is_touched_where_it_is_not_clear_which(
    tmp_path: Path, options: list[str], named: str, unknown: str
) -> None:
    said = play(tmp_path, *options)
    why = f", and there is no host or group {unknown}" if unknown else ""
    assert f"vllm_uninstall is '{named}'{why}: needs the names of hosts of this run" in said
    assert "No host was touched. See what would go by --check --diff" in said
    assert reached(said) == set()


def test_the_inventory_cannot_say_it(tmp_path: Path) -> None:
    """Or it would have been said once and for all."""
    said = play(tmp_path, vllm_uninstall="all")
    assert "vllm_uninstall is '': needs the names of hosts of this run" in said
    assert reached(said) == set()


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        (["-e", "vllm_uninstall=gpu01,rack7,"], {"gpu01", "gpu03"}),
        (["-e", "vllm_uninstall=vllm_servers", "--limit", "localhost,gpu02"], {"gpu02"}),
        (["--check"], {"gpu01", "gpu02", "gpu03"}),
        (["--check", "-e", "vllm_uninstall=gpu02"], {"gpu02"}),
    ],
    ids=["named", "named and of this run", "check", "check of one"],
)
def test_only_who_was_named_is_touched(tmp_path: Path, options: list[str], hosts: set[str]) -> None:
    said = play(tmp_path, *options)
    assert "No host was touched" not in said
    assert reached(said) == hosts
