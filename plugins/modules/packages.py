#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Have Debian packages installed
version_added: 0.1.0
description:
  - Installs those packages that are missing, without recommended ones, after reading the package lists anew.
  - When none is missing, neither the package lists nor the network are touched.
  - Unlike M(ansible.builtin.apt), it needs no package lists to tell in check mode what would be installed, and it does not
    take the lists of a freshly made machine, which are new but empty, for good.
  - An installation that was cut off, so that C(apt-get) refuses to go on, is completed first.
  - Services are not restarted by needrestart meanwhile, since that would cut streams.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Names the packages that would be installed. Whether they exist is not asked.
    support: full
  diff_mode:
    description: There is no text to compare; RV(missing) tells what is installed.
    support: none
options:
  name:
    description: Names of the packages.
    type: list
    elements: str
    required: true
  lock_timeout_s:
    description: Seconds to wait for another program, such as unattended-upgrades, to let go of the package database.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Install NGINX
  gpuops.vllm.packages:
    name: [nginx, libnginx-mod-http-js]
"""

RETURN = r"""
missing:
  description: The packages that were installed, or would be.
  returned: success
  type: list
  elements: str
"""

from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}


def missing_packages(wanted: Iterable[str], dpkg_query: str) -> list[str]:
    """Those that are not installed; ``dpkg_query`` has lines ``STATUS NAME``, one for each package that dpkg knows."""
    lines = (line.split(" ", 1) for line in dpkg_query.splitlines() if " " in line)
    installed = {name for status, name in lines if status == "installed"}
    return [name for name in wanted if name not in installed]


def complaint(output: str) -> str:
    """apt's errors, else its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "dpkg: error"))]
    return "\n".join(errors or lines[-10:])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "lock_timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = ENVIRONMENT
    params: dict[str, Any] = module.params
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", "--", *params["name"]]
    # Its exit status is 1 where it does not know one of them.
    _rc, known, _err = module.run_command(query)
    missing = missing_packages(params["name"], known)
    if not missing or module.check_mode:
        module.exit_json(changed=bool(missing), missing=missing)
    apt = ["apt-get", "--quiet", "--yes", "-o", f"DPkg::Lock::Timeout={params['lock_timeout_s']}"]
    apt += ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    for command in ([*apt, "update"], [*apt, "install", "--no-install-recommends", "--", *missing]):
        rc, out, err = module.run_command(command)
        if rc != 0 and "dpkg was interrupted" in out + err:
            # As after a power cut. apt-get names the cure and leaves it to others.
            module.run_command(["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"])
            rc, out, err = module.run_command(command)
        if rc != 0:
            module.fail_json(
                msg=f"apt-get could not install {', '.join(missing)} (exit status {rc}). It says:\n{complaint(err + out)}\n"
                "Are the host's package sources reachable? 'apt-get update' on the host shows it.",
                missing=missing,
            )
    module.exit_json(changed=True, missing=missing)


if __name__ == "__main__":
    main()
