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


@pytest.mark.parametrize(
    ("options", "unnamed"),
    [
        ([], "3 hosts (gpu01, gpu02, gpu03), and vllm_uninstall is '', which does not name them."),
        (
            ["-e", "vllm_uninstall=yes"],
            "3 hosts (gpu01, gpu02, gpu03), and vllm_uninstall is 'yes', which does not name them.",
        ),
        (
            ["-e", "vllm_uninstall=gpu01,rack7"],
            "1 host (gpu02), and vllm_uninstall is 'gpu01,rack7', which does not name it.",
        ),
        (["--limit", "localhost,gpu02"], "1 host (gpu02), and vllm_uninstall is '', which does not name it."),
    ],
    ids=["nothing said", "yes", "one is missing", "limit"],
)
def test_no_host_is_touched_that_was_not_named(tmp_path: Path, options: list[str], unnamed: str) -> None:
    said = play(tmp_path, *options)
    assert f"away from {unnamed} No host was touched." in said
    missing = unnamed.partition("(")[2].partition(")")[0].replace(", ", ",")
    assert f"-e vllm_uninstall={missing}" in said
    assert "UNREACHABLE" not in said


def test_the_inventory_cannot_say_it(tmp_path: Path) -> None:
    """Or it would have been said once and for all."""
    said = play(tmp_path, vllm_uninstall="all")
    assert "and vllm_uninstall is '', which does not name them." in said
    assert "UNREACHABLE" not in said


@pytest.mark.parametrize(
    "options",
    [["-e", "vllm_uninstall=gpu01,rack7", "--limit", "localhost,gpu01,gpu03"], ["--check"]],
    ids=["named", "check"],
)
def test_who_was_named_or_only_looks_comes_to_the_hosts(tmp_path: Path, options: list[str]) -> None:
    said = play(tmp_path, *options)
    assert "No host was touched" not in said
    reached = set(re.findall(r"(gpu0\d) : ok=1 changed=0 unreachable=1|(gpu0\d) : ok=0 changed=0 unreachable=1", said))
    assert len(reached) == (3 if options == ["--check"] else 2), said
