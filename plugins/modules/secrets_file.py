#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: secrets_file
short_description: Keep the secrets of vLLM in one file that only root can read
version_added: 0.1.0
description:
  - Writes an C(EnvironmentFile) for systemd, C(root:root) C(0600), quoted so that every value reads back byte for byte.
  - Makes C(VLLM_API_KEY), the engine's own key, on the host if there is none. It never leaves the host.
  - A wrong owner or mode is repaired. A symbolic link in the file's place is refused.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Tells whether the file would change.
    support: full
  diff_mode:
    description: Never shows content.
    support: none
options:
  path:
    description: The file.
    type: path
    default: /etc/vllm/secrets
  hf_token:
    description: Token for the model hub, or an empty string for none.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Keep the secrets
  gpuops.vllm.secrets_file:
    hf_token: "{{ vllm_secrets_hf_token }}"
"""

RETURN = r"""
repaired:
  description: What was changed, without any value.
  returned: always
  type: list
  elements: str
  sample: ["mode 0644"]
"""

import os
import stat
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _envfile, _secrets
from ansible_collections.gpuops.vllm.plugins.module_utils._files import disk_trouble, read_text, shown, write_atomic

MODE = 0o600


def attribute_changes(path: Path) -> list[str]:
    """Return what is wrong with the file's owner and mode."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return []
    found = []
    if (status.st_uid, status.st_gid) != (0, 0):
        found.append(f"owner {status.st_uid}:{status.st_gid}")
    if stat.S_IMODE(status.st_mode) != MODE:
        found.append(f"mode {stat.S_IMODE(status.st_mode):04o}")
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/vllm/secrets"},
            "hf_token": {"type": "str", "default": "", "no_log": True},
            "claim": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        with _claim.turn(module.params["claim"], module.check_mode):
            keep(module)
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=disk_trouble(error))


def keep(module: AnsibleModule) -> None:
    """Compare, write, and end the module."""
    path = Path(module.params["path"])
    problem = _secrets.value_problem("vllm_hf_token", module.params["hf_token"])
    if problem:
        module.fail_json(msg=f"{problem}. Correct it.")
    if path.is_symlink():
        module.fail_json(
            msg=f"{path} is a symbolic link to {path.readlink()}: the secrets must be a file of root's. Remove the link and run again."
        )
    text = read_text(path) or ""
    current = _secrets.parse(text)
    wanted = _secrets.wanted(current, {"HF_TOKEN": module.params["hf_token"]})
    repaired = attribute_changes(path)
    if current != wanted or shown(text) != text:
        repaired.append("content")
    if repaired and not module.check_mode:
        # A new file of root's: a wrong owner or mode goes with the old one.
        write_atomic(path, _envfile.render(wanted), MODE)
    module.exit_json(changed=bool(repaired), repaired=repaired)


if __name__ == "__main__":
    main()
