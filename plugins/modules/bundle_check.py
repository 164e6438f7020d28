#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_check
short_description: Refuse a bundle that is damaged, or not for a host
version_added: 0.1.0
description:
  - With O(paths) reads every file of these bundles and compares it with the manifest.
  - With O(path) compares what a bundle has with what a host is and needs.
  - Changes nothing. Runs as an action plugin on the control node.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: Reads only.
    support: none
options:
  paths:
    description: Bundles to read, folders on the control node.
    type: list
    elements: path
    default: []
  path:
    description: The bundle of a host.
    type: path
    default: ""
  sha256:
    description: The SHA-256 of its manifest, as C(bundle.yml) has told it; empty where nobody could have changed the bundle since.
    type: str
    default: ""
  releases:
    description: Names of the host's release, such as C(Debian 12), of which one must be the bundle's.
    type: list
    elements: str
    default: []
  architecture:
    description: The host's, as the kernel calls it.
    type: str
    default: ""
  python:
    description: Version of the host's Python, C(MAJOR.MINOR).
    type: str
    default: ""
  engines:
    description: The engine that the host wants, with C(name) and C(installer_sha256); none where it wants none.
    type: list
    elements: dict
    default: []
  packages:
    description: Debian packages that the host wants.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Verify a bundle
  gpuops.vllm.bundle_check:
    paths: [/opt/example/bundle]
  delegate_to: localhost
"""

RETURN = r"""
bytes:
  description: Bytes that were read.
  returned: with O(paths)
  type: int
sha256:
  description: The SHA-256 of the manifest that was compared, for O(gpuops.vllm.packages#module:bundle_sha256) and others that read it later.
  returned: with O(path)
  type: str
"""
