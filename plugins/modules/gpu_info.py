#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Read the NVIDIA GPUs of a host
version_added: 0.1.0
description:
  - Reads the GPUs from C(nvidia-smi). Where it is not installed or shows none, reads them from the PCI bus, so that a host can be
    planned before it has a driver; what CUDA will see then comes from O(known_gpus).
  - A driver that hangs, fails or has lost a GPU is no failure of this module. RV(problem) says what is wrong and what to do.
  - Changes nothing.
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
  known_gpus:
    description:
      - What is known of GPUs, by a kind such as V(h100-sxm-80gb). The role P(gpuops.vllm.vllm_plan#role) has a catalogue.
      - Each has C(name) or a list C(names) as C(nvidia-smi) prints it, C(memory_gib) in GiB visible to CUDA and
        C(compute_capability). It may have C(pci_ids), a list of device ids of vendor 10de in lower-case hex, C(fp8), whether it has
        FP8 tensor cores, C(bandwidth_gb_s) in GB/s, C(profile) and C(source).
      - Entries that lack one of the first three or have a wrong type are not used.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Read the GPUs
  gpuops.vllm.gpu_info:
  register: found

- name: Stop where a GPU does not answer
  ansible.builtin.assert:
    that: found.problem == ''
    fail_msg: "{{ found.problem }}"

- name: Read a host that has no driver yet
  gpuops.vllm.gpu_info:
    known_gpus:
      my-gpu:
        name: NVIDIA X
        pci_ids: ["2bff"]
        memory_gib: 94.9
        compute_capability: "12.0"
"""

RETURN = r"""
gpus:
  description: GPUs in PCI bus order.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: Number of the GPU for CUDA with C(CUDA_DEVICE_ORDER=PCI_BUS_ID), from 0.
      type: int
      returned: always
    uuid:
      description: The driver's id of the card; empty without a driver.
      type: str
      returned: always
      sample: GPU-00000000-0000-0000-0000-000000000000
    name:
      description: Name as C(nvidia-smi) prints it; C(NVIDIA 10de:2bff) for a GPU that neither driver nor catalogue know.
      type: str
      returned: always
      sample: NVIDIA H100 80GB HBM3
    kind:
      description: Its key in O(known_gpus), by PCI id, else by name; empty where there is none.
      type: str
      returned: always
      sample: h100-sxm-80gb
    profile:
      description: Profile that the catalogue names for it, or empty.
      type: str
      returned: always
      sample: h100_fp8
    pci_id:
      description: PCI device id in lower-case hex.
      type: str
      returned: always
      sample: '2330'
    pci_bus_id:
      description: Place on the PCI bus, as in /sys.
      type: str
      returned: always
      sample: '0000:8d:00.0'
    memory_gib:
      description:
        - GiB visible to CUDA, that is the total less what the driver keeps for itself.
        - The catalogue's figure without a driver, and 0 where nothing is known.
      type: float
      returned: always
      sample: 79.1
    compute_capability:
      description: Compute capability, or empty where it is not known.
      type: str
      returned: always
      sample: '9.0'
    fp8:
      description: Whether it has FP8 tensor cores.
      type: bool
      returned: always
    bandwidth_gb_s:
      description: Memory bandwidth in GB/s, or 0 where it is not known.
      type: float
      returned: always
      sample: 3352.0
    driver_version:
      description: Version of the driver, or empty.
      type: str
      returned: always
      sample: 580.159.04
    mig:
      description: Whether MIG is enabled.
      type: bool
      returned: always
    source:
      description: Where this was read, V(nvidia-smi) or V(sysfs).
      type: str
      returned: always
problem:
  description: What is wrong with the GPUs and what to do, in one line; empty where nothing is.
  returned: always
  type: str
complete:
  description: Whether no GPU is missing; where one is, those behind it may have other numbers than before.
  returned: always
  type: bool
nvswitch:
  description: Whether the GPUs are joined by an NVSwitch, so that CUDA needs the fabric manager.
  returned: always
  type: bool
driver_version:
  description: Version of the driver; empty where there is no GPU or no driver.
  returned: always
  type: str
  sample: 580.159.04
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus, _nvidia_smi

SYSFS = Path("/sys")


def main() -> None:
    module = AnsibleModule(argument_spec={"known_gpus": {"type": "dict", "default": {}}}, supports_check_mode=True)
    found = _gpus.read(_nvidia_smi.run, SYSFS, module.params["known_gpus"])
    driver_version = found.gpus[0]["driver_version"] if found.gpus else ""
    module.exit_json(changed=False, **found._asdict(), driver_version=driver_version)


if __name__ == "__main__":
    main()
