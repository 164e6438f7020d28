"""Which host's turn it is in playbooks/site.yml, and what one that fails means for the others: the plays as they are, with a stand-in for each role."""

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
PLAYS = ("Serve the models", "Get the certificate")
NAMES = REPO / "playbooks/tasks/names.yml"
KEYWORDS = ("hosts", "serial", "max_fail_percentage", "any_errors_fatal", "vars", "vars_files")
ROLE = "ansible.builtin.import_role"
TASKS = "ansible.builtin.import_tasks"
ASSIGNED = "/etc/vllm/instances.json"
#: Writes down which role has which host with which batch, and the port that the proxy is given; fails as `gpuops.vllm.instances` does.
STAND_IN = """
import json
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({"done": {}, "line": {}, "role": {}, "failures": {"type": "dict"}})
with open(module.params["done"], "a") as file:
    print(module.params["role"], module.params["line"], file=file)
failure = (module.params["failures"] or {}).get(module.params["role"])
if failure:
    module.fail_json(**failure)
module.exit_json()
"""
#: An address of documentation, where nobody is.
NOBODY = {"ansible_connection": "ssh", "ansible_host": "192.0.2.1", "ansible_ssh_common_args": "-o ConnectTimeout=1"}
#: What the module says of an instance that went back, and of one whose weights are not there.
WENT_BACK = {"msg": "demo-0 does not start", "verdicts": {"demo-0": "failed", "more-0": "serving", "more-1": "held"}}
REFUSED = {"msg": "demo-0 is to serve org/model", "verdicts": {"demo-0": "outdated", "more-0": "failed"}}


def standing_in(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task of the play, where a stand-in is in the place of the role, and this machine's files in that of the host's."""
    task = {
        key: [standing_in(one, folder) for one in value] if key in ("block", "rescue", "always") else value
        for key, value in task.items()
    }
    if ROLE in task:
        role = task.pop(ROLE)["name"].removeprefix("gpuops.vllm.vllm_")
        ports = " {{ vllm_nginx_instances | map(attribute='port') | join(' ') }}" if role == "nginx" else ""
        line = "{{ inventory_hostname }}: {{ ansible_play_batch | sort | join(' ') }}" + ports
        task["stand_in"] = {
            "role": role,
            "line": line,
            "done": str(folder / "done"),
            "failures": "{{ failures | default({}) }}",
        }
    elif TASKS in task:
        task[TASKS] = str(REPO / "playbooks" / task[TASKS])
    elif "ansible.builtin.slurp" in task:
        assert task["ansible.builtin.slurp"] == {"src": ASSIGNED}
        task["ansible.builtin.slurp"] = {"src": str(folder / "instances.json")}
    return task


def site(
    folder: Path, *options: str, bad: dict[str, dict[str, Any]] | None = None, lost: str = "", **inventory: Any
) -> tuple[list[str], str]:
    """Run the plays that check, serve and get the certificate, where roles fail on the hosts of ``bad`` (results by role), and ``lost`` is away.

    Returns what was done in its order, with each host's batch and the ports of its proxy, and what was said where the run failed.
    """
    plays: list[dict[str, Any]] = [
        {"hosts": "vllm_servers", "gather_facts": False, "any_errors_fatal": True, "tasks": [{"ansible.builtin.import_tasks": str(NAMES)}]}
    ]  # fmt: skip
    for play in yaml.safe_load((REPO / "playbooks/site.yml").read_text()):
        if play.get("name") in PLAYS:
            roles = [{ROLE: {"name": role["role"]}, "tags": role["tags"]} for role in play.get("roles", [])]
            tasks = [standing_in(task, folder) for task in [*roles, *play.get("tasks", [])]]
            plays.append({key: play[key] for key in KEYWORDS if key in play} | {"gather_facts": False, "tasks": tasks})
    assert len(plays) == 1 + len(PLAYS)
    (folder / "site.yml").write_text(json.dumps(plays))
    (folder / "vars").symlink_to(REPO / "playbooks/vars")
    (folder / "library").mkdir()
    (folder / "library/stand_in.py").write_text(STAND_IN)
    (folder / "instances.json").write_text(json.dumps({"version": 1, "instances": [{"port": 8000}]}))
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {
        name: {**local, "failures": (bad or {}).get(name, {}), **(NOBODY if name == lost else {})} for name in HOSTS
    }
    group = {"hosts": hosts, "vars": {"vllm_plan_instances": [{"port": 9000}], **inventory}}
    (folder / "hosts.json").write_text(json.dumps({"vllm_servers": group}))
    (folder / "done").write_text("")
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.json", folder / "site.yml", *options],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    said = done.stdout + done.stderr
    return (folder / "done").read_text().splitlines(), said if done.returncode else ""


def failed(said: str) -> set[str]:
    """The hosts that ended as failed."""
    recap = said.partition("PLAY RECAP")[2].splitlines()
    return {line.split()[0] for line in recap if " failed=" in line and " failed=0 " not in line}


def test_each_batch_has_its_proxy_before_the_next_one_restarts(tmp_path: Path) -> None:
    done, said = site(tmp_path, "-e", "vllm_serial=2")
    assert said == ""
    *batches, last, first_certificate, _second, _third = done
    assert set(batches[:2]) == {"service gpu01: gpu01 gpu02", "service gpu02: gpu01 gpu02"}
    assert set(batches[2:4]) == {"nginx gpu01: gpu01 gpu02 9000", "nginx gpu02: gpu01 gpu02 9000"}
    assert [*batches[4:], last] == ["service gpu03: gpu03", "nginx gpu03: gpu03 9000"]
    assert first_certificate.startswith("certbot ")


def test_when_a_later_batch_fails_the_earlier_one_has_its_proxy(tmp_path: Path) -> None:
    done, said = site(tmp_path, "-e", "vllm_serial=1", bad={"gpu02": {"service": WENT_BACK}})
    assert failed(said) == {"gpu02"}
    assert done == [
        "service gpu01: gpu01",
        "nginx gpu01: gpu01 9000",
        "service gpu02: gpu02",
        "nginx gpu02: gpu02 8000",
    ]


def test_two_by_two_a_bad_setting_stops_after_the_batch_and_its_proxies(tmp_path: Path) -> None:
    done, said = site(tmp_path, "-e", "vllm_serial=2", bad={"gpu02": {"service": WENT_BACK}})
    assert "gpu02" in failed(said)
    assert set(done) == {
        *(f"service {name}: gpu01 gpu02" for name in ("gpu01", "gpu02")),
        "nginx gpu01: gpu01 gpu02 9000",
        "nginx gpu02: gpu01 gpu02 8000",
    }


def test_a_host_that_is_lost_stops_the_batches_after_it(tmp_path: Path) -> None:
    """Ansible by itself counts only those that fail."""
    done, said = site(tmp_path, "-e", json.dumps({"vllm_serial": [2, "100%"]}), lost="gpu01")
    assert "gpu01 cannot be reached any more" in said
    assert not any("gpu03" in line for line in done)


def test_all_at_once_a_host_that_is_lost_keeps_none_from_its_certificate(tmp_path: Path) -> None:
    done, said = site(tmp_path, lost="gpu01")
    assert "cannot be reached any more" not in said
    assert {line.split()[1] for line in done if line.startswith("certbot")} == {"gpu02:", "gpu03:"}


def test_a_proxy_that_fails_stops_the_batches_after_it(tmp_path: Path) -> None:
    done, said = site(
        tmp_path, "-e", json.dumps({"vllm_serial": [2, "100%"]}), bad={"gpu01": {"nginx": {"msg": "nginx: [emerg]"}}}
    )
    assert "nginx: [emerg]" in said
    assert len(done) == 4
    assert not any("gpu03" in line for line in done)


def test_all_at_once_every_host_gets_its_proxy_and_those_that_serve_their_certificate(tmp_path: Path) -> None:
    done, said = site(tmp_path, bad={"gpu02": {"service": WENT_BACK}})
    assert failed(said) == {"gpu02"}
    assert said.count("demo-0 does not start") >= 1
    assert set(done) == {
        *(f"service {name}: gpu01 gpu02 gpu03" for name in HOSTS),
        *(f"nginx {name}: gpu01 gpu02 gpu03 9000" for name in ("gpu01", "gpu03")),
        # The ports of what serves there, not of what was wanted.
        "nginx gpu02: gpu01 gpu02 gpu03 8000",
        *(f"certbot {name}: gpu01 gpu03" for name in ("gpu01", "gpu03")),
    }


def test_the_end_says_what_failed_first(tmp_path: Path) -> None:
    _done, said = site(tmp_path, bad={"gpu02": {"service": WENT_BACK}})
    end = said.partition("TASK [End with the failure]")[2].partition("PLAY [")[0]
    assert "demo-0 does not start" in end


def test_where_all_was_refused_the_proxy_stays_as_it_is(tmp_path: Path) -> None:
    """A new engine key is in the file by then, and the engines still have the old one."""
    done, said = site(
        tmp_path, bad={"gpu02": {"service": REFUSED}, "gpu03": {"service": {"msg": "systemd does not answer"}}}
    )
    assert failed(said) == {"gpu02", "gpu03"}
    assert [line for line in done if line.startswith("nginx ")] == ["nginx gpu01: gpu01 gpu02 gpu03 9000"]


def test_tags_take_their_own_part(tmp_path: Path) -> None:
    for tag, role in (("service", "service"), ("proxy", "nginx"), ("certificate", "certbot")):
        (folder := tmp_path / tag).mkdir()
        done, said = site(folder, "--tags", tag, bad={"gpu02": {"service": WENT_BACK}})
        assert {line.split()[0] for line in done} == {role}
        assert failed(said) == ({"gpu02"} if tag == "service" else set())
        assert len(done) == len(HOSTS)


def test_a_serial_that_no_play_would_see_is_refused(tmp_path: Path) -> None:
    done, said = site(tmp_path, vllm_serial=[1, "100%"])
    assert done == []
    assert 'The inventory sets vllm_serial to [1, "100%"]' in said
    assert 'say -e \'{"vllm_serial": [1, "100%"]}\'' in " ".join(said.split())
