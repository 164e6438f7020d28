"""The module `unit` against a systemd that keeps one unit and a journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.modules import unit

ARGV = ["/usr/bin/build", "--all"]


class EndedError(Exception):
    """The module's result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result


@dataclass
class Systemd:
    """Answers the commands that the module runs. A started unit is in `begins`; tests move it on by hand."""

    begins: str = "running"
    values: dict[str, str] = field(default_factory=lambda: {"LoadState": "not-found", "SubState": "dead"})
    lines: dict[str, list[str]] = field(default_factory=dict)
    starts: list[list[str]] = field(default_factory=list)
    refusal: str = ""

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[:2] == ["systemctl", "show"]:
            return 0, "".join(f"{key}={value}\n" for key, value in self.values.items()), ""
        if argv[0] == "journalctl":
            count = next(int(part.partition("=")[2]) for part in argv if part.startswith("--lines="))
            run = argv[-1].partition("=")[2]
            return 0, "\n".join(self.lines.get(run, [])[-count:]), ""
        if argv[:2] == ["systemctl", "stop"]:
            self.values = {
                "LoadState": "loaded" if self.values["SubState"] == "failed" else "not-found",
                "SubState": "dead",
            }
            return 0, "", ""
        if argv[:2] == ["systemctl", "reset-failed"]:
            self.values = {"LoadState": "not-found", "SubState": "dead"}
            return 0, "", ""
        assert argv[0] == "systemd-run", argv
        if self.refusal:
            return 1, "", self.refusal
        if self.values["LoadState"] != "not-found":
            return 1, "", "Unit x.service was already loaded or has a fragment file."
        self.starts.append(argv)
        digest = next(part.partition("=")[2] for part in argv if part.startswith("--property=LogExtraFields"))
        self.put(self.begins, f"run{len(self.starts)}")
        self.values["LogExtraFields"] = digest.removeprefix("LogExtraFields=")
        return 0, "", ""

    def put(self, sub_state: str, invocation: str, **more: str) -> None:
        self.values = {
            "LoadState": "loaded",
            "Transient": "yes",
            "SubState": sub_state,
            "Result": "success",
            "ExecMainStatus": "0",
            "ExecMainStartTimestampMonotonic": "1000000",
            "ExecMainExitTimestampMonotonic": "0" if sub_state == "running" else "8000000",
            "InvocationID": invocation,
            "LogExtraFields": self.values.get("LogExtraFields", ""),
            **more,
        }


class Module:
    """The part of AnsibleModule that the module uses."""

    def __init__(self, systemd: Systemd, check_mode: bool, params: dict[str, Any]) -> None:
        self.run_command = systemd.run_command
        self.check_mode = check_mode
        self.params = params

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})


def call(systemd: Systemd, *, check_mode: bool = False, **params: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "name": "x",
        "argv": ARGV,
        "description": "Build x",
        "creates": None,
        "environment": {},
        "properties": {},
        "timeout_s": 60,
        "remedy": "",
        "invocation": "",
    }
    run = unit.Run(cast(AnsibleModule, Module(systemd, check_mode, {**defaults, **params})))
    with pytest.raises(EndedError) as ended:
        (run.go_on if params.get("invocation") else run.begin)()
    return ended.value.result


def test_a_run_is_started_and_followed_to_its_end() -> None:
    systemd = Systemd()
    first = call(systemd)
    assert (first["pending"], first["changed"], first["status"]) == (True, True, "Build x")
    assert first["poll_args"] == {"invocation": "run1"}
    systemd.lines["run1"] = ["one", "two"]
    assert call(systemd, **first["poll_args"])["status"] == "Build x: two"
    systemd.put("exited", "run1")
    assert call(systemd, **first["poll_args"]) == {
        "changed": True,
        "unit": "x.service",
        "elapsed_s": 7,
        "journal": ["one", "two"],
    }
    assert len(systemd.starts) == 1


def test_a_second_play_attaches_to_the_running_command() -> None:
    systemd = Systemd()
    call(systemd)
    again = call(systemd)
    assert again["poll_args"] == {"invocation": "run1"}
    assert len(systemd.starts) == 1


def test_another_command_under_the_name_is_not_taken_for_this_one() -> None:
    systemd = Systemd()
    call(systemd)
    result = call(systemd, argv=["/usr/bin/build", "--other"])
    assert result["failed"]
    assert "x.service is running another command" in result["msg"]
    assert "systemctl stop x.service" in result["msg"]
    # How long it may take, and what it is called, does not make it another command.
    assert call(systemd, timeout_s=5, description="y")["pending"]


@pytest.mark.parametrize(("sub_state", "result"), [("exited", "success"), ("failed", "exit-code")])
def test_what_an_earlier_run_left_is_not_this_runs_result(sub_state: str, result: str) -> None:
    systemd = Systemd()
    call(systemd)
    systemd.put(sub_state, "run1", Result=result)
    again = call(systemd)
    assert again["poll_args"] == {"invocation": "run2"}
    assert len(systemd.starts) == 2


def test_a_command_that_is_quick_needs_one_call() -> None:
    assert call(Systemd(begins="exited"))["journal"] == []


@pytest.mark.parametrize(
    ("result", "status", "reason"),
    [
        ("exit-code", "3", "exit status 3"),
        ("timeout", "15", "not done within timeout_s: 60"),
        ("signal", "9", "ended by signal 9"),
        ("oom-kill", "9", "out of memory"),
        ("resources", "0", "resources"),
    ],
)
def test_a_failure_says_why_and_what_next(result: str, status: str, reason: str) -> None:
    systemd = Systemd()
    call(systemd)
    systemd.lines["run1"] = [f"line {number}" for number in range(20)]
    systemd.put("failed", "run1", Result=result, ExecMainStatus=status)
    said = "\n".join(f"  line {number}" for number in range(5, 20))
    assert call(systemd, invocation="run1", remedy="Is there room?") == {
        "failed": True,
        "changed": True,
        "unit": "x.service",
        "elapsed_s": 7,
        "msg": f"x.service failed after 7 s: {reason}. Its last lines:\n{said}\n"
        "Is there room? The whole log: journalctl --unit=x.service. When the cause is gone, run the play again.",
    }


def test_what_is_there_already_is_not_made_again(tmp_path: Path) -> None:
    systemd = Systemd()
    assert call(systemd, creates=str(tmp_path)) == {"changed": False, "unit": "x.service", "elapsed_s": 0}
    assert systemd.starts == []


def test_a_success_that_made_nothing_is_a_failure(tmp_path: Path) -> None:
    systemd = Systemd(begins="exited", lines={"run1": ["bye"]})
    result = call(systemd, creates=str(tmp_path / "done"))
    assert result["failed"]
    assert result["msg"] == (f"x.service succeeded, but creates: {tmp_path}/done is not there. Its last lines:\n  bye")


def test_check_mode_starts_nothing(tmp_path: Path) -> None:
    systemd = Systemd()
    assert call(systemd, check_mode=True)["changed"]
    assert not call(systemd, check_mode=True, creates=str(tmp_path))["changed"]
    assert systemd.starts == []


def test_a_run_that_is_gone_is_not_a_success(tmp_path: Path) -> None:
    systemd = Systemd()
    assert "x.service is gone before its end was seen" in call(systemd, invocation="run1")["msg"]
    systemd.put("exited", "run2")
    assert call(systemd, invocation="run1")["failed"]
    assert call(systemd, invocation="run1", creates=str(tmp_path))["changed"]


def test_a_unit_of_the_host_is_left_alone() -> None:
    systemd = Systemd()
    systemd.put("running", "run1", Transient="no")
    result = call(systemd, name="x.service")
    assert result["msg"] == "x.service is a unit of this host, not a transient one. Give this task another name."


def test_a_relative_program_is_refused() -> None:
    assert call(Systemd(), argv=["build"])["msg"] == "argv must start with an absolute path, found: ['build']"


def test_a_program_that_is_not_there_is_told_in_systemds_words() -> None:
    systemd = Systemd(refusal="Failed to find executable /usr/bin/build")
    assert call(systemd)["msg"] == (
        "systemd-run could not start x.service (exit status 1): Failed to find executable /usr/bin/build"
    )


def test_the_command_is_bounded_and_its_result_kept() -> None:
    systemd = Systemd()
    call(systemd, timeout_s=90, properties={"Nice": 5}, environment={"LEVEL": 1})
    command = systemd.starts[0]
    assert {"--property=RuntimeMaxSec=90s", "--property=RemainAfterExit=yes", "--property=Type=exec"} < set(command)
    assert {"--property=Nice=5", "--setenv=LEVEL=1"} < set(command)
