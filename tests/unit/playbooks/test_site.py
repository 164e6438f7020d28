"""Which host's turn it is in playbooks/site.yml, and what one that fails means for the others: the plays' own keywords, with a stand-in for the roles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[3]
HOSTS = ("gpu01", "gpu02", "gpu03")
ROLES = {"Serve the models": "serve", "Open the endpoint": "proxy"}
NAMES = REPO / "playbooks/tasks/names.yml"
KEYWORDS = ("hosts", "serial", "max_fail_percentage", "any_errors_fatal", "vars")


def site(folder: Path, *options: str, bad: str = "", **inventory: Any) -> tuple[set[str], str]:
    """Run the plays that check, serve and open the endpoint, where the engines of ``bad`` do not start.

    Returns what was done, with each host's batch, and what was said where the run failed.
    """
    plays: list[dict[str, Any]] = [
        {"hosts": "vllm_servers", "gather_facts": False, "any_errors_fatal": True, "tasks": [{"ansible.builtin.import_tasks": str(NAMES)}]}
    ]  # fmt: skip
    for play in yaml.safe_load((REPO / "playbooks/site.yml").read_text()):
        if role := ROLES.get(play.get("name")):
            script = f'echo "{role} $1: $2" >> "{folder}/done"; [ {role} = proxy ] || [ "$1" != "{bad}" ]'
            argv = ["sh", "-c", script, "sh", "{{ inventory_hostname }}", "{{ ansible_play_batch | sort | join(' ') }}"]
            task = {"name": role, "ansible.builtin.command": {"argv": argv}}
            plays.append({key: play[key] for key in KEYWORDS if key in play} | {"gather_facts": False, "tasks": [task]})
    assert len(plays) == 1 + len(ROLES)
    (folder / "site.yml").write_text(json.dumps(plays))
    (folder / "vars").symlink_to(REPO / "playbooks/vars")
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    group = {"hosts": dict.fromkeys(HOSTS, local), "vars": inventory}
    (folder / "hosts.json").write_text(json.dumps({"vllm_servers": group}))
    (folder / "done").write_text("")
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.json", folder / "site.yml", *options],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    said = done.stdout + done.stderr
    return set((folder / "done").read_text().splitlines()), said if done.returncode else ""


def test_one_by_one_a_bad_setting_stops_at_the_first_host(tmp_path: Path) -> None:
    done, said = site(tmp_path, "-e", json.dumps({"vllm_serial": [1, "100%"]}), bad="gpu01")
    assert said
    assert done == {"serve gpu01: gpu01"}


def test_two_by_two_a_bad_setting_stops_at_the_batch(tmp_path: Path) -> None:
    done, said = site(tmp_path, "-e", "vllm_serial=2", bad="gpu02")
    assert said
    assert done == {"serve gpu01: gpu01 gpu02", "serve gpu02: gpu01 gpu02"}


def test_all_at_once_the_other_hosts_get_their_proxy_as_well(tmp_path: Path) -> None:
    done, said = site(tmp_path, bad="gpu02")
    assert said
    assert done == {
        *(f"serve {name}: gpu01 gpu02 gpu03" for name in HOSTS),
        *(f"proxy {name}: gpu01 gpu03" for name in ("gpu01", "gpu03")),
    }


def test_a_serial_that_no_play_would_see_is_refused(tmp_path: Path) -> None:
    done, said = site(tmp_path, vllm_serial=[1, "100%"])
    assert done == set()
    assert 'The inventory sets vllm_serial to [1, "100%"]' in said
    assert 'say -e \'{"vllm_serial": [1, "100%"]}\'' in " ".join(said.split())
