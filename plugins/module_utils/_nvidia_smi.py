# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``nvidia-smi`` says of the GPUs of this host."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import TypedDict

FIELDS = ("index", "uuid", "name", "memory.total", "compute_cap", "driver_version", "pci.bus_id")
COMMAND = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")


class Gpu(TypedDict):
    """One GPU; ``index`` counts in PCI bus order, ``memory_gib`` is what the driver shows."""

    index: int
    uuid: str
    name: str
    memory_gib: float
    compute_capability: str
    driver_version: str


def parse(text: str) -> list[Gpu]:
    """Return the GPUs in the CSV that `COMMAND` prints. Raises ValueError for a line that is none."""
    rows: list[tuple[str, Gpu]] = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) != len(FIELDS):
            raise ValueError(f"nvidia-smi printed {','.join(row)!r}: expected {len(FIELDS)} fields")
        _index, uuid, name, memory_mib, capability, driver, bus_id = (field.strip() for field in row)
        try:
            memory_gib = round(float(memory_mib) / 1024, 1)
            float(capability)
        except ValueError:
            raise ValueError(
                f"nvidia-smi printed {','.join(row)!r}: memory or compute capability is no number"
            ) from None
        gpu = Gpu(
            index=0, uuid=uuid, name=name, memory_gib=memory_gib, compute_capability=capability, driver_version=driver
        )
        rows.append((bus_id, gpu))
    rows.sort(key=lambda pair: pair[0])
    for index, (_bus_id, gpu) in enumerate(rows):
        gpu["index"] = index
    return [gpu for _bus_id, gpu in rows]


def read(run: Callable[[tuple[str, ...]], tuple[int, str, str]]) -> tuple[list[Gpu], str]:
    """Return the GPUs and, where they could not be read, why (one line).

    ``run`` executes a command and returns its exit status, stdout and stderr; a missing program is exit status 127.
    """
    status, out, err = run(COMMAND)
    if status == 127:
        return [], ""
    if status != 0:
        words = (out + " " + err).strip().splitlines() or [f"exit status {status}"]
        return [], f"nvidia-smi failed: {words[0].strip()}"
    try:
        return parse(out), ""
    except ValueError as error:
        return [], str(error)
