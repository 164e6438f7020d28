#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_unit
short_description: Put NGINX's unit into a sandbox, without a restart
version_added: 0.1.0
description:
  - Keeps two drop-ins of C(nginx.service). One confines NGINX, one lets streams end when it is stopped, as by a reboot.
  - Called before the package is installed, the first start is in the sandbox. An NGINX that runs already is not
    restarted, since that would cut streams. The sandbox is then in force from its next start, which a warning of each
    run says until it has come.
  - Each call has an NGINX that runs test its configuration, that of other sites too, inside of the sandbox. Where only
    the sandbox would break it, the sandbox is taken away for the next start, and the task fails. So no reboot takes a
    site down.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Nothing is written; the configuration is not tested by NGINX.
    support: full
  diff_mode:
    description: The drop-ins.
    support: full
options:
  sandbox:
    description: Text of the drop-in that confines NGINX, or an empty string for none.
    type: str
    required: true
  drain:
    description: Text of the drop-in that decides how NGINX is stopped.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Confine NGINX from its next start on
  gpuops.vllm.nginx_unit:
    sandbox: "{{ lookup('ansible.builtin.file', 'sandbox.conf', rstrip=false) }}"
    drain: "{{ lookup('ansible.builtin.template', 'drain.conf.j2') }}"
"""

RETURN = r"""
pending:
  description: Whether NGINX runs since before its sandbox.
  returned: success
  type: bool
actions:
  description: What was done, or would be, in order.
  returned: success
  type: list
  elements: str
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _files, _nginx, _systemd

FOLDER = Path("/etc/systemd/system/nginx.service.d")
SANDBOX = "vllm-sandbox.conf"
DRAIN = "vllm-drain.conf"
UNIT = "nginx.service"


class Unit:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.wanted: dict[str, str] = {SANDBOX: module.params["sandbox"], DRAIN: module.params["drain"]}
        self.there = {name: _files.read_text(FOLDER / name) or "" for name in self.wanted}
        self.actions: list[str] = []

    def running_for_s(self) -> float | None:
        """Seconds since systemd started NGINX; None where it does not run."""
        # Not the start of the main process: an upgrade of the package replaces that one inside of the old confinement.
        state = _systemd.show(UNIT, ["ActiveState", "InactiveExitTimestampMonotonic"], self.module.run_command)
        stamp = state["InactiveExitTimestampMonotonic"]
        if state["ActiveState"] not in ("active", "reloading") or not stamp.isdigit():
            return None
        return time.clock_gettime(time.CLOCK_MONOTONIC) - int(stamp) / 1e6

    def is_pending(self, age_s: float) -> bool:
        """Whether NGINX, which has run for so long, runs outside of the wanted sandbox."""
        if self.there[SANDBOX] != self.wanted[SANDBOX]:
            return True
        return time.time() - (FOLDER / SANDBOX).stat().st_mtime < age_s

    def objection(self, pending: bool) -> str:
        """Why NGINX, once it is started anew, would not do its work in the sandbox, or ""."""
        # systemd reads them in this order, and what comes later may loosen it.
        later = [path for path in sorted(FOLDER.glob("*.conf")) if path.name > SANDBOX]
        confined = _nginx.confinement(self.wanted[SANDBOX], [_files.read_text(path) or "" for path in later])
        nginx = self.module.get_bin_path("nginx", required=True)
        argv = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", *(f"--property={one}" for one in confined)]
        rc, out, err = self.module.run_command([*argv, "--", nginx, "-T"])
        if rc != 0:
            # What is broken anyway is for nginx_config to tell.
            broken, _out, _err = self.module.run_command([nginx, "-t", "-q"])
            return "" if broken else f"NGINX says of its configuration, tested there:\n{_nginx.words(err)}"
        # In force already, it is not for the next start to show it.
        if pending and _nginx.has_own_tmp(confined) and (lines := _nginx.lines_with_tmp(out)):
            return "The sandbox has a /tmp of its own, so this would not be found:\n" + "\n".join(lines)
        return ""

    def keep(self, name: str, text: str) -> None:
        """Write a drop-in, or remove it for an empty text."""
        if self.there[name] == text:
            return
        self.actions.append(f"{'wrote' if text else 'removed'} {FOLDER / name}")
        if self.module.check_mode:
            return
        if text:
            _files.write_atomic(FOLDER / name, text, 0o644)
        else:
            (FOLDER / name).unlink(missing_ok=True)
            # Somebody else's drop-ins may be there as well.
            with contextlib.suppress(OSError):
                FOLDER.rmdir()

    def reload(self) -> None:
        """Have systemd read the drop-ins, also those of a run that was cut off before this."""
        if _systemd.show(UNIT, ["NeedDaemonReload"], self.module.run_command)["NeedDaemonReload"] != "yes":
            return
        rc, out, err = self.module.run_command(["systemctl", "daemon-reload"])
        if rc != 0:
            self.module.fail_json(
                msg=f"systemctl daemon-reload failed with {rc}: {(err or out).strip()}", actions=self.actions
            )
        self.actions.append("had systemd read its units")

    def converge(self) -> NoReturn:
        age_s = self.running_for_s() if self.wanted[SANDBOX] else None
        pending = age_s is not None and self.is_pending(age_s)
        if age_s is not None and not self.module.check_mode and (why := self.objection(pending)):
            self.keep(SANDBOX, "")
            self.reload()
            self.module.fail_json(
                msg=f"NGINX runs on this host, and would not start again in the sandbox that is meant for it. {why}\n"
                f"So its next start will be without. Correct that; or loosen the sandbox by a file {FOLDER}/zz-local.conf; "
                "or do without, by vllm_nginx_sandbox: false. Then run the play again.",
                actions=self.actions,
                changed=bool(self.actions),
            )
        for name, text in self.wanted.items():
            self.keep(name, text)
        if not self.module.check_mode:
            self.reload()
        if pending:
            self.module.warn(
                # Ansible shows what several hosts say alike only once.
                f"{os.uname().nodename}: NGINX runs since before its sandbox, which is in force from its next start. It is not restarted here, "
                "since that cuts streams: 'systemctl restart nginx' on the host does it, or the next reboot."
            )
        diff = [
            {"before": self.there[name], "after": text, "before_header": name, "after_header": name}
            for name, text in self.wanted.items()
            if self.there[name] != text
        ]
        self.module.exit_json(changed=bool(self.actions), pending=pending, actions=self.actions, diff=diff)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sandbox": {"type": "str", "required": True},
            "drain": {"type": "str", "required": True},
            "claim": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    module.run_command_environ_update = {"LC_ALL": "C"}
    params: dict[str, Any] = module.params
    try:
        with _claim.turn(params["claim"], module.check_mode):
            Unit(module).converge()
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=_files.disk_trouble(error))
    except RuntimeError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
