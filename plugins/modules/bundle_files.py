#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_files
short_description: Bring an engine's wheels or a model's weights from a bundle to a host
version_added: 0.1.0
description:
  - Sends those files of a bundle that a host lacks, many in a parcel and large ones in several, and goes on where an earlier run was cut off.
  - Wheels get their names only when their SHA-256 is that of the bundle's manifest. Weights stay unfinished, as those of a download that was cut off,
    until C(vllm-download) has verified them.
  - The rest of the work is done by an action plugin on the control node.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Says whether something would be sent.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
options:
  bundle:
    description: The bundle, a folder on the control node.
    type: path
    required: true
  bundle_sha256:
    description: The SHA-256 of the bundle's manifest, as M(gpuops.vllm.bundle_check) has read it; with another one nothing is sent. Empty for any.
    type: str
    default: ''
  engine:
    description: Name of an engine of the bundle, whose wheels are wanted.
    type: str
    default: ''
  models:
    description: Models of the bundle, each with C(model), C(commit) and C(format), whose weights are wanted.
    type: list
    elements: dict
    default: []
  dest:
    description: The folder on the host; for weights the hub's cache (C(HF_HOME)).
    type: path
    required: true
  owner:
    description: The account that the files belong to, and that writes them; empty for root.
    type: str
    default: ''
  reserve_gib:
    description: GiB of the disk that are left free.
    type: float
    default: 1
  files:
    description: Set by the action plugin, the files wanted with C(path), C(size) and C(sha256).
    type: list
    elements: dict
    default: []
  parcel:
    description: Set by the action plugin, what has come.
    type: path
  pieces:
    description: Set by the action plugin, what is in the parcel.
    type: list
    elements: list
    default: []
"""

EXAMPLES = r"""
- name: Bring the wheels
  gpuops.vllm.bundle_files:
    bundle: /opt/example/bundle
    engine: 0.32.0-cuda-1a2b3c4d
    dest: /opt/example/wheels
"""

RETURN = r"""
sent:
  description: Bytes that were sent, or would be.
  returned: success
  type: int
listed:
  description: The files of each model, with C(model), C(commit), C(format) and C(files), each a list of name, size and checksum.
  returned: with O(models)
  type: list
  elements: dict
"""

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _parcels


@contextlib.contextmanager
def working_as(owner: str) -> Iterator[None]:
    """Work as that account, since its folders may hold links of its own making; "" for root. Raises KeyError and OSError."""
    if not owner:
        yield
        return
    account = pwd.getpwnam(owner)
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    if user == account.pw_uid:
        yield
        return
    os.setgroups([])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


def free_bytes(path: Path) -> int:
    """Return the room of the disk that a folder is on, or will be."""
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.is_dir())).free


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "bundle_sha256": {"type": "str", "default": ""},
            "engine": {"type": "str", "default": ""},
            "models": {"type": "list", "elements": "dict", "default": []},
            "dest": {"type": "path", "required": True},
            "owner": {"type": "str", "default": ""},
            "reserve_gib": {"type": "float", "default": 1},
            "files": {"type": "list", "elements": "dict", "default": []},
            "parcel": {"type": "path"},
            "pieces": {"type": "list", "elements": "list", "default": []},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    files = [_parcels.Wanted(one["path"], int(one["size"]), one["sha256"]) for one in params["files"]]
    os.umask(0o022)
    problems: list[str] = []
    there: list[int] = []
    free = 0
    try:
        with contextlib.ExitStack() as stack:
            # As root: the account may not look into the folder where it lies.
            parcel = stack.enter_context(Path(params["parcel"]).open("rb")) if params["parcel"] else None
            stack.enter_context(working_as("" if module.check_mode else params["owner"]))
            if parcel is None:
                there, free = [_parcels.bytes_there(one) for one in files], free_bytes(Path(params["dest"]))
            for piece in (_parcels.Piece(*(int(number) for number in one)) for one in params["pieces"]):
                problems.append(_parcels.append(parcel, files[piece.number], piece))
    except KeyError:
        module.fail_json(
            msg=f"owner: {params['owner']} is no account of this host. Run the play from its beginning, which makes it."
        )
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or params['dest']}: {error.strerror or error}. Is there room, and is the file system writable? "
            "When the cause is gone, run the play again: it goes on where it stopped."
        )
    if any(problems):
        said = "; ".join(one for one in problems if one)
        module.fail_json(msg=f"{said}. It was deleted. Run the play again: it sends that file anew.")
    module.exit_json(changed=bool(problems), there=there, free=free)


if __name__ == "__main__":
    main()
