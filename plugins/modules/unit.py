#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: unit
short_description: Run a long command as a transient systemd unit
version_added: 0.1.0
description:
  - Runs a command once, as a transient service of systemd, and follows it to its end.
  - The command does not depend on the SSH connection. A play that was cut off is simply run again, and attaches to the
    command if it is still running.
  - While it runs, the host's name, the command's last line and the seconds so far are shown every few seconds.
  - What an earlier, finished run left behind is never taken for the result of this one.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Reports whether the command would be run, and runs nothing.
    support: full
  diff_mode:
    description: There is no diff, since what the command changes is not known.
    support: none
options:
  name:
    description:
      - Name of the unit, with or without C(.service).
      - Two plays that give the same name and the same command share one run.
    type: str
    required: true
  argv:
    description:
      - The program, as an absolute path, and its arguments. No shell, and nothing is expanded.
    type: list
    elements: str
    required: true
  description:
    description:
      - What the command does, for C(systemctl status) and the progress line. By default the unit's name.
    type: str
    default: ''
  creates:
    description:
      - A path that the command makes when it succeeds. When it is there already, nothing is run.
      - A command that succeeds without making it has failed.
    type: path
  environment:
    description:
      - Environment variables of the command. Every user of the host can read them, so never put a secret here.
    type: dict
    default: {}
  properties:
    description:
      - More properties of the service, for example C(User) or C(MemoryMax), as in C(systemd-run --property).
      - A list gives a property that may come more than once, for example C(EnvironmentFile), each of its values.
    type: dict
    default: {}
  timeout_s:
    description:
      - Seconds after which systemd ends the command.
    type: int
    default: 3600
  remedy:
    description:
      - What the user should look at when the command fails; the end of the error message.
    type: str
    default: ''
  invocation:
    description:
      - Set by the action plugin, to ask again about the run that an earlier call started or found.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Install | Build the environment
  gpuops.vllm.unit:
    name: example-install
    description: Install example 1.2.3
    argv: [/usr/bin/python3, /opt/example/install.py, --prefix, /opt/example/1.2.3]
    creates: /opt/example/1.2.3/.complete
    environment:
      TMPDIR: /var/tmp
    timeout_s: 1800
    remedy: Is the package index reachable from this host?
"""

RETURN = r"""
unit:
  description: Name of the unit.
  returned: always
  type: str
elapsed_s:
  description: Seconds that the command took; 0 when it was not run.
  returned: always
  type: int
journal:
  description: The last lines that the command wrote.
  returned: when the command ran and succeeded
  type: list
  elements: str
"""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _systemd

JOURNAL_LINES = 15
STATUS_LENGTH = 120
PROPERTIES = (
    "LoadState",
    "Transient",
    "SubState",
    "Result",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
    "InvocationID",
    "LogExtraFields",
)
#: A field of every journal line of the run, which tells later calls what command the unit runs.
DIGEST_FIELD = "GPUOPS_COMMAND"
#: Sub-states in which the command does not run (any more).
ENDED = ("dead", "exited", "failed")


@dataclass(frozen=True)
class State:
    """What systemd knows of the unit."""

    exists: bool
    transient: bool
    sub_state: str
    result: str
    exit_status: str
    invocation: str
    elapsed_s: int
    digest: str

    @property
    def running(self) -> bool:
        return self.exists and self.sub_state not in ENDED


def unit_name(name: str) -> str:
    return name if name.endswith(".service") else f"{name}.service"


def command_digest(params: dict[str, Any]) -> str:
    """Tells one command from another: over all that decides what is run, but not how long it may take."""
    parts = [params["argv"], params["environment"], params["properties"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def parse_state(values: dict[str, str]) -> State:
    """The unit's state from ``systemctl show``; ``elapsed_s`` ends where the command did."""
    exited = values["ExecMainExitTimestampMonotonic"]
    end_s = int(exited) / 1e6 if exited.isdigit() and int(exited) > 0 else None
    _field, _separator, digest = values["LogExtraFields"].partition(f"{DIGEST_FIELD}=")
    return State(
        exists=values["LoadState"] != "not-found",
        transient=values["Transient"] == "yes",
        sub_state=values["SubState"],
        result=values["Result"],
        exit_status=values["ExecMainStatus"],
        invocation=values["InvocationID"],
        elapsed_s=_systemd.seconds_since(values["ExecMainStartTimestampMonotonic"], end_s),
        digest=digest.partition("\n")[0].strip(),
    )


def failure_message(unit: str, state: State, lines: list[str], timeout_s: int, remedy: str) -> str:
    """Why the run failed, in the command's own last words, and what to do next."""
    reasons = {
        "exit-code": f"exit status {state.exit_status}",
        "timeout": f"not done within timeout_s: {timeout_s}",
        "signal": f"ended by signal {state.exit_status}",
        "oom-kill": "out of memory",
    }
    reason = reasons.get(state.result, state.result or "unknown reason")
    said = "\n".join(f"  {line}" for line in lines) or "  (nothing in the journal)"
    advice = f"{remedy.strip()} " if remedy.strip() else ""
    return (
        f"{unit} failed after {state.elapsed_s} s: {reason}. Its last lines:\n{said}\n"
        f"{advice}The whole log: journalctl --unit={unit}. When the cause is gone, run the play again."
    )


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.unit = unit_name(self.params["name"])
        self.digest = command_digest(self.params)

    def state(self) -> State:
        return parse_state(_systemd.show(self.unit, PROPERTIES, self.module.run_command))

    def journal(self, state: State, lines: int) -> list[str]:
        return _systemd.journal(self.unit, lines, state.invocation, self.module.run_command)

    def created(self) -> bool:
        return bool(self.params["creates"]) and os.path.lexists(self.params["creates"])

    def fail(self, message: str, **result: Any) -> NoReturn:
        self.module.fail_json(msg=message, unit=self.unit, **{"elapsed_s": 0, **result})

    def exit(self, **result: Any) -> NoReturn:
        self.module.exit_json(unit=self.unit, **{"elapsed_s": 0, **result})

    def begin(self) -> NoReturn:
        """The first call: nothing to do, attach to a run of the same command, or start one."""
        if not self.params["argv"] or not self.params["argv"][0].startswith("/"):
            self.fail(f"argv must start with an absolute path, found: {self.params['argv'][:1]}")
        if self.created():
            self.exit(changed=False)
        state = self.state()
        if state.exists and not state.transient:
            self.fail(f"{self.unit} is a unit of this host, not a transient one. Give this task another name.")
        if self.module.check_mode:
            self.exit(changed=True)
        if not state.running:
            state = self.start(state)
        if state.running and state.digest != self.digest:
            self.fail(
                f"{self.unit} is running another command for {state.elapsed_s} s. Wait for it, or end it by"
                f" 'systemctl stop {self.unit}', and run the play again."
            )
        self.report(state)

    def start(self, left_over: State) -> State:
        if left_over.exists:
            # A finished run keeps the name; its result is of no interest here.
            self.module.run_command(["systemctl", "stop", "--", self.unit])
            self.module.run_command(["systemctl", "reset-failed", "--", self.unit])
        properties = {
            # The start returns when the program runs, so that this run's invocation is known and not an earlier one's.
            "Type": "exec",
            # Without it systemd forgets a run that succeeded before anybody has asked.
            "RemainAfterExit": "yes",
            "RuntimeMaxSec": f"{self.params['timeout_s']}s",
            "LogExtraFields": f"{DIGEST_FIELD}={self.digest}",
            **{
                key: [str(one) for one in value] if isinstance(value, list) else str(value)
                for key, value in self.params["properties"].items()
            },
        }
        environment = {key: str(value) for key, value in self.params["environment"].items()}
        argv = _systemd.transient_argv(
            self.unit, self.params["argv"], self.params["description"], environment, properties
        )
        rc, out, err = self.module.run_command(argv)
        state = self.state()
        # Another play may have been faster with the same command: then this one attaches.
        if rc != 0 and not state.running:
            self.fail(f"systemd-run could not start {self.unit} (exit status {rc}): {(err or out).strip()}")
        return state

    def report(self, state: State) -> NoReturn:
        """How far the run is, or how it ended."""
        if state.running:
            line = "".join(self.journal(state, 1)[-1:])[:STATUS_LENGTH]
            what = self.params["description"] or self.unit
            self.exit(
                changed=True,
                pending=True,
                status=f"{what}: {line}" if line else what,
                elapsed_s=state.elapsed_s,
                poll_args={"invocation": state.invocation},
            )
        lines = self.journal(state, JOURNAL_LINES)
        if state.sub_state != "exited":
            message = failure_message(self.unit, state, lines, self.params["timeout_s"], self.params["remedy"])
            self.fail(message, changed=True, elapsed_s=state.elapsed_s)
        # The finished unit stays: another play may be waiting for the same run. The next start clears it away.
        if self.params["creates"] and not self.created():
            said = "\n".join(f"  {line}" for line in lines)
            self.fail(
                f"{self.unit} succeeded, but creates: {self.params['creates']} is not there. Its last lines:\n{said}",
                changed=True,
                elapsed_s=state.elapsed_s,
            )
        self.exit(changed=True, elapsed_s=state.elapsed_s, journal=lines)

    def go_on(self) -> NoReturn:
        """A later call, about the run that an earlier one started or found."""
        state = self.state()
        if state.exists and state.invocation == self.params["invocation"]:
            self.report(state)
        # A later run of the same name has cleared it away, or the host was rebooted.
        if self.created():
            self.exit(changed=True)
        self.fail(
            f"{self.unit} is gone before its end was seen: stopped by hand, or the host was rebooted."
            " Run the play again."
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "argv": {"type": "list", "elements": "str", "required": True},
            "description": {"type": "str", "default": ""},
            "creates": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
            "properties": {"type": "dict", "default": {}},
            "timeout_s": {"type": "int", "default": 3600},
            "remedy": {"type": "str", "default": ""},
            "invocation": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    # What is read here is compared with systemd's own words.
    module.run_command_environ_update = {"LC_ALL": "C"}
    run = Run(module)
    try:
        if module.params["invocation"]:
            run.go_on()
        run.begin()
    except RuntimeError as error:
        run.fail(str(error))


if __name__ == "__main__":
    main()
