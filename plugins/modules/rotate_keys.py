#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: rotate_keys
short_description: Give clients new keys in a file of the inventory, and let the old ones end later
version_added: 0.1.0
description:
  - Adds an entry with a new key to the list for each client, with what the client may do, and has its keys from before end after O(grace_s). Keys of
    these clients that have ended are left out.
  - The file is edited as text, so comments and order stay. It may be encrypted by Ansible Vault as a whole, or key by key; what is written is
    encrypted as what was there, with the same secret.
  - Touches no host. Runs as an action plugin on the control node. No key is in its result.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Reads and edits, and writes nothing.
    support: full
  diff_mode:
    description: Tells of each client what changes, without a key.
    support: full
options:
  path:
    description: YAML file with the list.
    type: path
    required: true
  variable:
    description: Name of the list in the file.
    type: str
    default: vllm_api_keys
  clients:
    description: Names of the clients.
    type: list
    elements: str
    required: true
  grace_s:
    description: Seconds during which the old keys still work.
    type: int
    default: 604800
  handover_dir:
    description:
      - Folder on the control node in which each new key is put for its client, as V(CLIENT.key) with mode 0600; made where it is missing. Empty for none.
      - A client whose key the file has as C(key_sha256) needs one, since nothing else has the new key.
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Give a client a new key
  gpuops.vllm.rotate_keys:
    path: group_vars/vllm_servers/keys.yml
    clients: [team-a]
    grace_s: 86400
"""

RETURN = r"""
until:
  description: The moment when the old keys end.
  returned: success
  type: str
grace_s:
  description: Seconds until then.
  returned: success
  type: int
clients:
  description: The clients with a new key.
  returned: success
  type: list
  elements: str
"""
