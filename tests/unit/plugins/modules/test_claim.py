# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs at once: the later one has the host, and whatever changes what is served refuses the earlier one."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.action import claim as claim_action
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim
from ansible_collections.gpuops.vllm.plugins.modules import (
    certificate,
    claim,
    engine_link,
    firewall,
    instances,
    nginx_config,
    nginx_unit,
    secrets_file,
    uninstall,
)

REPO = Path(__file__).resolve().parents[4]
CLAIMED = {
    "certificate": certificate,
    "engine_link": engine_link,
    "firewall": firewall,
    "instances": instances,
    "nginx_config": nginx_config,
    "nginx_unit": nginx_unit,
    "secrets_file": secrets_file,
    "uninstall": uninstall,
}
each_module = pytest.mark.parametrize("module", CLAIMED.values(), ids=list(CLAIMED))


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class WentOnError(Exception):
    """Raised where a module would begin to change the host."""


def go_on(*_arguments: object) -> NoReturn:
    raise WentOnError


@pytest.fixture(autouse=True)
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_claim, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(_claim, "CLAIM", tmp_path / "claim.json")
    for module, name in (
        (instances.Converge, "run"),
        (nginx_config.Proxy, "converge"),
        (nginx_config.Proxy, "find_nginx"),
        (certificate.Certificate, "converge"),
        (secrets_file, "keep"),
        (engine_link, "Engines"),
        (firewall, "Firewall"),
        (nginx_unit, "Unit"),
        (uninstall.Uninstall, "run"),
    ):
        monkeypatch.setattr(module, name, (lambda *_: None) if name == "find_nginx" else go_on)
    return tmp_path


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, check: bool = False, **params: Any) -> dict[str, Any]:
    """Run a module's main with a stand-in for AnsibleModule, which checks its options; the result."""

    class Module:
        check_mode = check

        def __init__(self, argument_spec: dict[str, Any], **_options: object) -> None:
            assert set(params) <= set(argument_spec)
            types: dict[str, Any] = {"dict": {}, "list": [], "str": "", "path": "/nowhere", "bool": False, "int": 0}
            self.params = {name: types[spec["type"]] for name, spec in argument_spec.items()} | params

        def exit_json(self, **result: Any) -> NoReturn:
            raise EndedError(result)

        def fail_json(self, **result: Any) -> NoReturn:
            raise EndedError({"failed": True, **result})

    monkeypatch.setattr(module, "AnsibleModule", Module)
    with pytest.raises(EndedError) as ended:
        module.main()
    return ended.value.result


def take(monkeypatch: pytest.MonkeyPatch, who: str = "alice@ops1") -> str:
    result = run(claim, monkeypatch, who=who)
    assert (result.get("failed"), result["changed"]) == (None, False)
    return str(result["id"])


@each_module
def test_the_later_run_wins(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, later = take(monkeypatch, "bob@ops2"), take(monkeypatch)
    refused = run(module, monkeypatch, claim=earlier)
    assert refused["failed"] is True
    assert re.fullmatch(
        r"another run \(alice@ops1, since \d\d:\d\d:\d\d UTC\) has taken this host over and decides what it serves; "
        r"nothing more is done here\. Run again if yours should win\.",
        refused["msg"],
    )
    with pytest.raises(WentOnError):
        run(module, monkeypatch, claim=later)


@each_module
@pytest.mark.parametrize("params", [{"claim": ""}, {"claim": "of another", "check": True}], ids=["none", "check mode"])
def test_without_a_claim_or_in_check_mode_nobody_is_refused(
    module: ModuleType, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, paths: Path
) -> None:
    take(monkeypatch)
    (paths / "lock").unlink()
    with pytest.raises(WentOnError):
        run(module, monkeypatch, **params)
    assert (paths / "lock").exists() != bool(params.get("check"))


@each_module
def test_a_host_that_was_rebooted_lets_the_run_go_on(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, paths: Path
) -> None:
    mine = take(monkeypatch)
    (paths / "claim.json").unlink()
    with pytest.raises(WentOnError):
        run(module, monkeypatch, claim=mine)


def test_check_mode_claims_nothing(monkeypatch: pytest.MonkeyPatch, paths: Path) -> None:
    assert run(claim, monkeypatch, check=True) == {"changed": False, "id": ""}
    assert list(paths.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"id": "x"}',
        '{"id": "x", "since": "soon", "who": "a"}',
        '{"id": "x", "since": 1, "who": "caf\udce9"}',
    ],
)
def test_a_claim_that_is_none_is_not_guessed_at(text: str, paths: Path) -> None:
    (paths / "claim.json").write_bytes(text.encode(errors="surrogateescape"))
    assert _claim.objection("mine") == f"{paths}/claim.json is not what this collection wrote. Remove it and run again."
    assert _claim.objection("") == ""


def test_a_claim_waits_for_what_is_being_changed(paths: Path) -> None:
    with (paths / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(_claim.RefusedError, match="another run has been changing this host for 0 s"),
            _claim.turn(patience_s=0.0),
        ):
            pytest.fail("the lock is another's")
    with _claim.turn(patience_s=0.0):
        pass


def test_a_killed_run_leaves_no_lock(paths: Path) -> None:
    hold = "import fcntl, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, paths / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    with _claim.turn(patience_s=0.0):
        pass


@pytest.mark.parametrize("left", [None, 0o644])
def test_only_root_can_hold_the_lock(left: int | None, paths: Path) -> None:
    """Whoever can open a file for reading can lock it, and so keep every run from changing the host."""
    lock = paths / "lock"
    if left is not None:
        lock.touch()
        lock.chmod(left)
    with _claim.turn():
        assert lock.stat().st_mode & 0o777 == 0o600


def test_the_claim_is_written_whole_for_all_to_read(monkeypatch: pytest.MonkeyPatch, paths: Path) -> None:
    mine = take(monkeypatch)
    file = paths / "claim.json"
    told = json.loads(file.read_text())
    assert (told["id"], told["who"]) == (mine, "alice@ops1")
    assert len(mine) == 32 and file.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, paths: Path, full_disk: Callable[[int], None]) -> None:
    full_disk(0)
    refused = run(claim, monkeypatch, who="alice@ops1")
    assert refused["failed"] is True
    assert refused["msg"].startswith(f"{paths}/claim.json: No space left on device. Is there room")


def test_who_is_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "eve\n\x1b[31m" + "x" * 200)
    monkeypatch.setattr("socket.gethostname", lambda: "ops1")
    assert claim_action.who() == "eve[31m" + "x" * 93
    monkeypatch.setattr("getpass.getuser", go_away)
    assert claim_action.who() == "somebody@ops1"


def go_away() -> NoReturn:
    raise KeyError


def roles_of(play: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The roles that a play runs as a whole, also by a task or in a block, with their tags."""
    found = [(role["role"], role["tags"]) for role in play.get("roles", [])]
    for task in play.get("tasks", []):
        for part in [task, *task.get("block", [])]:
            role = part.get("ansible.builtin.import_role", {"tasks_from": ""})
            if "tasks_from" not in role:
                found.append((role["name"], task.get("tags", [])))
    return found


def test_site_hands_the_claim_to_all_that_take_one() -> None:
    """A role whose module takes a claim runs in a play that hands it on, and its tag makes the claim."""
    group = yaml.safe_load((REPO / "meta/runtime.yml").read_text())["action_groups"]["claimed"]
    assert sorted(group) == sorted(CLAIMED)
    plays = yaml.safe_load((REPO / "playbooks/site.yml").read_text())
    (claiming,) = [(play, task) for play in plays for task in play.get("pre_tasks", []) if "gpuops.vllm.claim" in task]
    found = set()
    for play in plays:
        for role, tags in roles_of(play):
            tasks = (REPO / "roles" / role.rpartition(".")[2] / "tasks").glob("*.yml")
            if any(f"gpuops.vllm.{module}:" in file.read_text() for file in tasks for module in group):
                found |= set(tags)
                assert play["module_defaults"] == claiming[0]["module_defaults"]
                assert plays.index(claiming[0]) <= plays.index(play)
    assert claiming[1]["tags"] == ["always"]
    assert set(re.findall(r"'(\w+)'", claiming[1]["when"])) == found | {"all", "tagged"}
