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
  - With O(bundle) it installs from that bundle alone, without a network; only the packages that are needed are sent to the host, and they are
    deleted afterwards. The host's own package sources and lists are neither asked nor changed, and no package is removed.
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
  bundle:
    description: A bundle, a folder on the control node, which O(name) must be in; empty to use the host's package sources.
    type: path
    default: ""
  bundle_sha256:
    description: The SHA-256 of the bundle's manifest, as M(gpuops.vllm.bundle_check) has read it; with another one nothing is sent. Empty for any.
    type: str
    default: ""
  folder:
    description: Set by the action plugin, the folder on the host with an index and packages.
    type: str
    default: ""
  step:
    description: Set by the action plugin; V(files) only says which files an installation wants, V(missing) only which packages.
    type: str
    choices: [all, files, missing]
    default: all
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
files:
  description: The files of the folder that the installation wants.
  returned: with O(step=files)
  type: list
  elements: str
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _apt, _bundle


def missing_packages(wanted: Iterable[str], dpkg_query: str) -> list[str]:
    """Those that are not installed, by what `_apt.query` says."""
    statuses = _apt.statuses(dpkg_query)
    return [name for name in wanted if statuses.get(name) != "installed"]


def offline(folder: str) -> list[str]:
    """The options by which apt-get knows the packages of a folder alone, and leaves what the host knows of others as it is.

    That they are trusted holds for this command only. What is in the folder was compared with the bundle's manifest.
    """
    values = {
        "Dir::Etc::sourcelist": f"{folder}/sources.list",
        "Dir::Etc::sourceparts": f"{folder}/none",
        "Dir::State::lists": f"{folder}/lists",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    # A host that is newer than the bundle must not lose anything to it.
    return [*(part for name, value in values.items() for part in ("-o", f"{name}={value}")), "--no-remove"]


def prepare(folder: str) -> None:
    """Name the folder as a source, in a file of its own."""
    (Path(folder) / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (Path(folder) / "sources.list").write_text(f"deb [trusted=yes] file:{folder}/debs ./\n", encoding="utf-8")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "lock_timeout_s": {"type": "int", "default": _apt.LOCK_TIMEOUT_S},
            "bundle": {"type": "path", "default": ""},
            "bundle_sha256": {"type": "str", "default": ""},
            "folder": {"type": "str", "default": ""},
            "step": {"type": "str", "choices": ["all", "files", "missing"], "default": "all"},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = _apt.ENVIRONMENT
    params: dict[str, Any] = module.params
    folder = params["folder"]
    _rc, known, _err = module.run_command(_apt.query(params["name"]))
    missing = missing_packages(params["name"], known)
    if not missing and folder:
        # Of a run that was cut off.
        shutil.rmtree(folder, ignore_errors=True)
    if not missing or module.check_mode or params["step"] == "missing":
        module.exit_json(changed=bool(missing), missing=missing)
    apt = _apt.apt_get(
        *_apt.KEEP_SETTINGS, *(offline(folder) if folder else []), lock_timeout_s=params["lock_timeout_s"]
    )
    install = ["install", "--no-install-recommends", "--", *missing]
    commands = [[*apt, "update"], [*apt, *install]]
    if folder:
        prepare(folder)
        commands = (
            [[*apt, "update"], [*apt, "--print-uris", *install]] if params["step"] == "files" else [[*apt, *install]]
        )
    out = ""
    for command in commands:
        rc, out, err = module.run_command(command)
        if rc != 0 and "dpkg was interrupted" in out + err:
            module.run_command(list(_apt.COMPLETE))
            rc, out, err = module.run_command(command)
        if rc != 0:
            said = "\n".join(_apt.complaint(err + out))
            remedy = (
                "The host has other versions than the bundle was made with: bring it to the newest ones of its release, or make a bundle of "
                "today: delete its manifest.json, then run bundle.yml, which changes nothing of a whole one."
                if folder
                else "Are the host's package sources reachable? 'apt-get update' on the host shows it."
            )
            module.fail_json(
                msg=f"apt-get could not install {', '.join(missing)} (exit status {rc}). It says:\n{said}\n{remedy}",
                missing=missing,
            )
    if params["step"] == "files":
        module.exit_json(changed=False, missing=missing, files=sorted(_bundle.printed_uris(out)))
    if folder:
        shutil.rmtree(folder)
    module.exit_json(changed=True, missing=missing)


if __name__ == "__main__":
    main()
