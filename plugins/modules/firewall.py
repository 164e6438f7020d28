#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Close all ports of a host but a few, without locking SSH out
version_added: 0.1.0
description:
  - Keeps a table C(inet vllm) of nftables that drops what comes in, but for SSH, the public ports, what the host has
    asked for itself, loopback, and what IP itself needs. Other tables are not touched, nor is what the host forwards.
  - The ports of SSH are those at which its server listens, that by which this very play came in, and
    O(ssh_ports). Without any the module refuses.
  - New rules are on trial at first. The host takes them back by itself after O(rollback_s) seconds, unless a new SSH
    connection of the play has come in through them by then. Only after that are they written down for the next boot.
    So a play that locks itself out, or ends in between, leaves the host as it was.
  - A play that did not come by SSH cannot try that; it warns.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: What is wrong with the settings is an error; nothing is loaded or written.
    support: full
  diff_mode:
    description: The table, as nft lists it.
    support: full
options:
  state:
    description: Whether there is to be a firewall. V(absent) takes table, unit and file away.
    type: str
    choices: [present, absent]
    default: present
  public_tcp:
    description: TCP ports that everybody reaches.
    type: list
    elements: int
    default: []
  ssh_ports:
    description: TCP ports of SSH beside those that are found.
    type: list
    elements: int
    default: []
  ssh_from:
    description: Addresses and networks that reach SSH; all where there is none. The play's own must be among them.
    type: list
    elements: str
    default: []
  allow:
    description:
      - What else comes in. Each entry has some of C(from) (addresses and networks), C(interface), C(ports) (numbers and
        ranges), C(protocol) (by default V(tcp) where there are ports), and all of them have to fit.
    type: list
    elements: raw
    default: []
  unit:
    description: Text of C(vllm-firewall.service), which loads C(/etc/vllm/firewall.nft) at boot. Needed for V(present).
    type: str
    default: ""
  rollback_s:
    description: Seconds after which rules that nobody has confirmed are taken back.
    type: int
    default: 60
  confirm:
    description: Set by the action plugin, on a new connection, to confirm the rules that the first call has put on trial.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Close all ports but SSH, HTTP and HTTPS
  gpuops.vllm.firewall:
    public_tcp: [80, 443]
    allow:
      - {ports: [9100], from: [10.0.0.0/8]}
    unit: "{{ lookup('ansible.builtin.file', 'vllm-firewall.service', rstrip=false) }}"
"""

RETURN = r"""
ssh_ports:
  description: The ports of SSH that are open.
  returned: success, for V(present)
  type: list
  elements: int
actions:
  description: What was done, or would be, in order.
  returned: success
  type: list
  elements: str
"""

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _files, _firewall, _systemd

RULES = Path("/etc/vllm/firewall.nft")
UNIT = "vllm-firewall.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
#: The trial: what is on it, and what puts back what was before.
TRIAL = Path("/run/vllm-firewall-trial.json")
ROLLBACK = Path("/run/vllm-firewall-rollback.nft")
ROLLBACK_UNIT = "vllm-firewall-rollback"
#: Seconds for the kernel to meet the connections that are there, before what it does not know is dropped.
ACQUAINTANCE_S = 1.0


class Firewall:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.nft = module.get_bin_path("nft", opt_dirs=["/usr/sbin", "/sbin"])
        self.actions: list[str] = []

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, actions=self.actions, changed=bool(self.actions))

    def command(self, *argv: str, data: str | None = None) -> str:
        """Run a command that has to succeed."""
        rc, out, err = self.module.run_command(list(argv), data=data)
        if rc != 0:
            self.fail(f"{' '.join(argv[:4])} failed with {rc}: {(err or out).strip()}")
        return str(out)

    # ---- What is wanted ----------------------------------------------------------------------------------------------

    def wanted(self) -> tuple[str, list[int]]:
        """The rules, and the ports of SSH in them."""
        params = self.params
        problems = [
            *_firewall.port_problems("vllm_firewall_ssh_ports", params["ssh_ports"]),
            *_firewall.source_problems("vllm_firewall_ssh_from", params["ssh_from"]),
            *_firewall.allow_problems(params["allow"]),
        ]
        if params["rollback_s"] < 15:
            problems.append(
                f"vllm_firewall_rollback_s is {params['rollback_s']}: a new connection may take that long. Set it to 15 or more."
            )
        connection = _firewall.connection_of(os.getpid())
        shown = self.command("systemctl", "show", "--property=MainPID,Listen", *_firewall.SSH_UNITS)
        ports = {*params["ssh_ports"], *_firewall.ssh_ports(shown), *([connection.port] if connection else [])}
        if not problems:
            problems = _firewall.ssh_problems(ports, params["ssh_from"], connection)
        if problems:
            self.fail("\n".join(problems))
        return _firewall.rules(params["public_tcp"], ports, params["ssh_from"], params["allow"]), sorted(ports)

    def as_listed(self, text: str) -> str:
        """How this host's nft lists these rules: loaded in a network of their own, where they judge nothing."""
        script = f"{self.nft} -f - && {self.nft} --stateless list table {_firewall.FAMILY} {_firewall.TABLE}"
        rc, out, err = self.module.run_command(["unshare", "--net", "--", "/bin/sh", "-c", script], data=text)
        if rc != 0:
            self.fail(
                f"nft refuses the rules, and none were loaded. It says:\n{(err or out).strip()}\nThey are:\n{text}"
            )
        return str(out)

    # ---- What is there -----------------------------------------------------------------------------------------------

    def loaded(self) -> str:
        """The table as nft lists it; "" where there is none."""
        if not self.nft:
            return ""
        argv = [self.nft, "--stateless", "list", "table", _firewall.FAMILY, _firewall.TABLE]
        rc, out, _err = self.module.run_command(argv)
        return str(out) if rc == 0 else ""

    def trial(self) -> dict[str, Any]:
        """What is on trial; {} for nothing."""
        found: dict[str, Any] = json.loads(_files.read_text(TRIAL) or "{}")
        return found

    # ---- What is done ------------------------------------------------------------------------------------------------

    def end_trial(self, take_back: bool) -> None:
        """Stop the clock, and put back what was before."""
        self.module.run_command(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"])
        if take_back and ROLLBACK.exists():
            self.command(str(self.nft), "-f", str(ROLLBACK))
        for path in (TRIAL, ROLLBACK):
            path.unlink(missing_ok=True)

    def begin_trial(self, text: str, before: str) -> str:
        """Load the rules, with a clock that takes them back. Returns what `keep_trial` has to be told."""
        token = secrets.token_hex(8)
        connection = _firewall.connection_of(os.getpid())
        _files.write_atomic(ROLLBACK, _firewall.REMOVAL + before, 0o600)
        record = {"token": token, "rules": text, "by_ssh": connection is not None}
        _files.write_atomic(TRIAL, json.dumps(record), 0o600)
        # The clock first: whatever ends this run, the host is as before when it has run down.
        self.command(
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={ROLLBACK_UNIT}",
            "--description=Take back firewall rules that nobody confirmed",
            f"--on-active={self.params['rollback_s']}",
            "--timer-property=AccuracySec=100ms",
            "--",
            "/bin/sh",
            "-c",
            f"{self.nft} -f {ROLLBACK} && rm -f {ROLLBACK} {TRIAL}",
        )
        if not before:
            self.command(str(self.nft), "-f", "-", data=_firewall.lenient(text))
            time.sleep(ACQUAINTANCE_S)
        self.command(str(self.nft), "-f", "-", data=text)
        record["ticks"] = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        _files.write_atomic(TRIAL, json.dumps(record), 0o600)
        return token

    def keep_trial(self) -> NoReturn:
        """The second call, on a connection of its own: write down what it came in through."""
        trial = self.trial()
        if not trial:
            self.fail(
                f"The new firewall rules were taken back: no new SSH connection had come in through them within {self.params['rollback_s']} s. "
                "The host is as it was before. Compare the ports and sources that 'ansible-playbook --check --diff --tags firewall' shows with the way "
                "that SSH takes to this host."
            )
        if trial.get("token") != self.params["confirm"]:
            self.fail("Another run has put other firewall rules on trial. Run again if yours should win.")
        connection = _firewall.connection_of(os.getpid())
        if trial["by_ssh"] and (connection is None or connection.ticks <= trial["ticks"]):
            self.fail(
                "This play's second connection was not a new one, so it proves nothing; the new firewall rules are taken back in a moment. "
                "Does the connection plugin keep one that reset_connection does not end?"
            )
        if not trial["by_ssh"]:
            self.module.warn(
                f"{os.uname().nodename}: this play did not come by SSH, so nobody has tried whether SSH passes the new firewall rules. Try it now: "
                f"'nft delete table {_firewall.FAMILY} {_firewall.TABLE}' on the host opens it."
            )
        text = str(trial["rules"])
        self.module.run_command(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"])
        # It may have been about to go off.
        self.module.run_command(["systemctl", "stop", f"{ROLLBACK_UNIT}.service"])
        if self.loaded() != self.as_listed(text):
            self.end_trial(take_back=True)
            self.fail("The new firewall rules were taken back before they could be confirmed. Run the play again.")
        self.write_down(text)
        self.end_trial(take_back=False)
        self.module.exit_json(changed=True, actions=self.actions)

    def write_down(self, text: str) -> None:
        """Have the rules loaded at every boot."""
        written = False
        for path, content in ((RULES, text), (UNIT_FILE, self.params["unit"])):
            if _files.read_text(path) != content:
                self.actions.append(f"wrote {path}")
                written = True
                if not self.module.check_mode:
                    _files.write_atomic(path, content, 0o644)
        state = _systemd.show(UNIT, ["UnitFileState", "ActiveState", "NeedDaemonReload"], self.module.run_command)
        begin = (state["UnitFileState"], state["ActiveState"]) != ("enabled", "active")
        if begin:
            self.actions.append(f"enabled {UNIT}")
        if self.module.check_mode:
            return
        if written or state["NeedDaemonReload"] == "yes":
            self.command("systemctl", "daemon-reload")
        if begin:
            self.command("systemctl", "enable", "--now", UNIT)

    def present(self) -> NoReturn:
        text, ports = self.wanted()
        if not self.nft and not self.module.check_mode:
            self.fail(
                "nft is not installed on this host. Install it (the role vllm_firewall does), and run the play again."
            )
        if self.trial() and not self.module.check_mode:
            # Of a run that was cut off.
            self.end_trial(take_back=True)
            self.actions.append("took back rules that nobody had confirmed")
        before = self.loaded()
        listed = self.as_listed(text) if self.nft else text
        diff = {"before": before, "after": listed} if before != listed else {}
        result = {"ssh_ports": ports, "diff": diff}
        if before != listed:
            self.actions.append("put the rules on trial" if self.nft else "loaded the rules")
            if not self.module.check_mode:
                token = self.begin_trial(text, before)
                self.module.exit_json(changed=True, pending=token, actions=self.actions, **result)
        self.write_down(text)
        self.module.exit_json(changed=bool(self.actions), actions=self.actions, **result)

    def absent(self) -> NoReturn:
        before = self.loaded()
        left = [path for path in (UNIT_FILE, RULES) if path.exists()]
        self.actions += [f"removed {path}" for path in left]
        if before:
            self.actions.append(f"removed the table {_firewall.FAMILY} {_firewall.TABLE}")
        diff = {"before": before, "after": ""} if before else {}
        if not self.module.check_mode and self.actions:
            self.end_trial(take_back=False)
            if UNIT_FILE.exists():
                self.command("systemctl", "disable", "--now", UNIT)
            if self.loaded():
                self.command(str(self.nft), "-f", "-", data=_firewall.REMOVAL)
            for path in left:
                path.unlink(missing_ok=True)
            self.command("systemctl", "daemon-reload")
        self.module.exit_json(changed=bool(self.actions), actions=self.actions, diff=diff)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "public_tcp": {"type": "list", "elements": "int", "default": []},
            "ssh_ports": {"type": "list", "elements": "int", "default": []},
            "ssh_from": {"type": "list", "elements": "str", "default": []},
            "allow": {"type": "list", "elements": "raw", "default": []},
            "unit": {"type": "str", "default": ""},
            "rollback_s": {"type": "int", "default": 60},
            "confirm": {"type": "str", "default": ""},
            "claim": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    # What is read here is compared with what nft said before.
    module.run_command_environ_update = {"LC_ALL": "C"}
    try:
        with _claim.turn(module.params["claim"], module.check_mode):
            firewall = Firewall(module)
            if module.params["state"] == "absent":
                firewall.absent()
            if module.params["confirm"]:
                firewall.keep_trial()
            firewall.present()
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=_files.disk_trouble(error))
    except RuntimeError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
