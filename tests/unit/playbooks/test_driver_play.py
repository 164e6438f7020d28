"""Where the plays meet the driver's role: when the plan may overlook what is there now, and when the role is not even asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
SITE: list[dict[str, Any]] = yaml.safe_load((REPO / "playbooks/site.yml").read_text())
(DRIVER,) = (play for play in SITE if play.get("name") == "See to the driver")
(INSTALL,) = (task for task in DRIVER["tasks"] if "ansible.builtin.import_role" in task and "vars" not in task)
#: What the preflight says of a host: without a GPU, with a driver that stays, and with one that comes.
FOUND = {
    "cpu": {"action": "none", "pending": False, "comes": False},
    "good": {"action": "keep", "pending": False, "comes": False},
    "bare": {"action": "install", "pending": True, "comes": True},
}


def said(tmp_path: Path, *options: str) -> dict[str, dict[str, Any]]:
    """For each host what the plan is told, and what the driver's play would do."""
    asked = {
        "comes": "{{ vllm_plan_driver_comes }}",
        "runs": INSTALL["when"].join(("{{ ", " }}")),
    }
    task = {
        "ansible.builtin.copy": {
            "content": "{{ asked | to_json }}",
            "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}",
        },
        "tags": ["always"],
    }
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(REPO / "playbooks/vars/wiring.yml")],
        "vars": {"asked": asked},
        "tasks": [task],
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {name: {**local, "vllm_nvidia_found": found} for name, found in FOUND.items()}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    program = str(Path(sys.executable).parent / "ansible-playbook")
    command = [program, "-i", str(tmp_path / "hosts.json"), str(tmp_path / "play.yml"), *options]
    subprocess.run(
        command,
        check=True,
        timeout=60,
        capture_output=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )
    return {name: json.loads((tmp_path / name).read_text()) for name in FOUND}


@pytest.mark.parametrize(
    ("options", "comes"),
    [
        ((), True),
        (("--tags", "driver,service"), True),
        (("--tags", "service"), False),
        (("--skip-tags", "driver"), False),
    ],
)
def test_the_plan_overlooks_a_missing_driver_only_where_this_run_brings_one(
    tmp_path: Path, options: tuple[str, ...], comes: bool
) -> None:
    told = said(tmp_path, *options)
    assert {name: one["comes"] for name, one in told.items()} == {"cpu": False, "good": False, "bare": comes}
    assert {name: one["runs"] for name, one in told.items()} == {"cpu": False, "good": False, "bare": True}


def test_the_driver_is_checked_before_the_plan_is_made_and_installed_before_the_engine() -> None:
    names = [play.get("name", "") for play in SITE]
    check, driver, engine = (names.index(name) for name in ("Check every host and plan its instances, before any host is changed", "See to the driver", "Install the engine and what it needs"))  # fmt: skip
    assert check < driver < engine
    tasks = [
        task.get("ansible.builtin.import_role", {}).get("name") or task.get("ansible.builtin.import_tasks")
        for task in SITE[check]["tasks"]
    ]
    # The plan is made in the latter.
    assert tasks.index("gpuops.vllm.vllm_nvidia") < tasks.index("tasks/preflight.yml")


def test_hosts_are_rebooted_in_the_batches_in_which_they_serve() -> None:
    (serve,) = (play for play in SITE if play.get("name") == "Serve the models")
    assert (DRIVER["serial"], DRIVER["max_fail_percentage"]) == (serve["serial"], serve["max_fail_percentage"])


SYSTEMCTL = """#!/bin/sh
# Says of vllm.target what the file of this call's number has, the last one for ever.
cd "$(dirname "$0")"
echo "$*" >> asked
calls=$(wc -l < asked)
[ -e "$calls" ] || calls=last
cat "$calls"
"""
#: For each host whether it was rebooted, and what systemd says of its target, call by call.
TARGETS = {
    "kept": (False, [("inactive", "enabled")]),
    "loads": (True, [("inactive", "enabled"), ("inactive", "enabled"), ("active", "enabled")]),
    "bare": (True, [("inactive", "")]),
    "hangs": (True, [("inactive", "enabled")]),
}


def test_a_host_that_was_rebooted_serves_again_before_the_next_one_goes(tmp_path: Path) -> None:
    tasks = yaml.safe_load((REPO / "roles/vllm_nvidia/tasks/reboot.yml").read_text())
    (task,) = [one for one in tasks if "ansible.builtin.command" in one]
    task |= {"delay": 1, "environment": {"PATH": f"{tmp_path}/{{{{ inventory_hostname }}}}:{os.environ['PATH']}"}}
    hosts = {}
    for name, (rebooted, answers) in TARGETS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "systemctl").write_text(SYSTEMCTL)
        (folder / "systemctl").chmod(0o755)
        for number, (active, enabled) in enumerate(answers, 1):
            text = f"ActiveState={active}\nUnitFileState={enabled}\n"
            (folder / str(number)).write_text(text)
            (folder / "last").write_text(text)
        hosts[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_nvidia_reboot_timeout_s": 20,
            # As the task before leaves it where it was skipped.
            "__vllm_nvidia_reboot": {"rebooted": True} if rebooted else {"skipped": True},
        }
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.json", tmp_path / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    asked = {name: len((tmp_path / name / "asked").read_text().splitlines()) if (tmp_path / name / "asked").exists() else 0 for name in TARGETS}  # fmt: skip
    assert asked["hangs"] >= 4
    assert {**asked, "hangs": 0} == {"kept": 0, "loads": 3, "bare": 1, "hangs": 0}
    ignored = [line.split()[0] for line in done.stdout.splitlines() if "ignored=1" in line]
    assert ignored == ["hangs"]


@pytest.mark.parametrize(
    ("options", "refused"), [((), {"bare"}), (("--skip-tags", "driver"), set()), (("--tags", "service"), set())]
)
def test_a_bundle_is_refused_where_this_run_would_bring_a_driver(
    tmp_path: Path, options: tuple[str, ...], refused: set[str]
) -> None:
    tasks = yaml.safe_load((REPO / "playbooks/tasks/bundle.yml").read_text())
    (task,) = (one for one in tasks if one["name"] == "Refuse a driver that no bundle has")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(REPO / "playbooks/vars/wiring.yml")],
        "tasks": [{**task, "tags": ["always"]}],
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "vllm_bundle_dir": "/srv/b"}
    hosts: dict[str, Any] = {name: {**local, "vllm_nvidia_found": found} for name, found in FOUND.items()}
    # As in upgrade.yml, which asks nothing of the driver.
    hosts["unasked"] = local
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.json", tmp_path / "play.yml", *options],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    told = {
        name
        for name in hosts
        if f"{name} needs an NVIDIA driver, and the bundle (vllm_bundle_dir: /srv/b)" in done.stdout
    }
    assert (told, done.returncode) == (refused, 2 if refused else 0), done.stdout
