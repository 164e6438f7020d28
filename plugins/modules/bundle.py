#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Make one folder from which hosts without a network are installed
version_added: 0.1.0
description:
  - Downloads the wheels of engines and of uv by their locks, Debian packages with all that they depend on, and models of the hub, and adds the
    collection itself and a manifest with the size and the SHA-256 of each file.
  - The folder is for hosts of this machine's release and architecture, since apt and pip choose for it.
  - The manifest is removed first and written last, so that a bundle whose making was cut off does not look whole. What is there and right is kept.
  - A folder that has all that is asked for, by names and sizes, is left as it is and not read. Remove its C(manifest.json) to have each file verified by its
    source again.
  - Runs as an action plugin on the control node, as the user who runs the play; root is not needed, and no package is installed.
  - The token for gated models is taken from the variable C(vllm_bundle_hf_token), not from an option, which Ansible might show.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Says whether something is missing, and downloads nothing.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
options:
  path:
    description: The folder; made where it is missing. One with files of somebody else is refused.
    type: path
    required: true
  engines:
    description:
      - Engines as the role C(vllm_engine) describes them, each with C(name), C(lock), C(installer), C(python), C(index_url), C(find_links),
        C(torch_page) and C(packages).
    type: list
    elements: dict
    default: []
  packages:
    description: Names of Debian packages.
    type: list
    elements: str
    default: []
  models:
    description: Models of the hub, each with C(model), C(revision) and C(format).
    type: list
    elements: dict
    default: []
  hub_endpoint:
    description: Address of the model hub.
    type: str
    default: ""
  update_models:
    description: Asks the hub anew which commit a branch or a tag is; else the one stays that the bundle has.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Make a bundle of NGINX
  gpuops.vllm.bundle:
    path: /opt/example/bundle
    packages: [nginx]
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The folder.
  returned: success
  type: str
sha256:
  description: The SHA-256 of its manifest, and so of all of it; empty in check mode where there is none yet.
  returned: success
  type: str
bytes:
  description: Bytes of all files.
  returned: success
  type: int
collection:
  description: The file in the folder from which a control node installs the collection; empty in check mode where there is none yet.
  returned: success
  type: str
collection_sha256:
  description: Its SHA-256.
  returned: success
  type: str
"""
