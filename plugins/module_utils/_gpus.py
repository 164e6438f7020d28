# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a host: as the driver shows them, as PCI shows them before there is a driver, or as the inventory declares them.

A catalogue maps a kind, such as ``h100-sxm-80gb``, to what is known of it: ``name`` (or ``names``), ``pci_ids``,
``memory_gib`` (visible to CUDA), ``compute_capability``, ``fp8``, ``bandwidth_gb_s``, ``profile`` and ``source``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ansible_collections.gpuops.vllm.plugins.module_utils import _nvidia_smi

Catalogue = Mapping[str, Mapping[str, Any]]

# The first capability with FP8 tensor cores.
FP8_FROM = (8, 9)
# PCI device ids rise with the generations: the first Turing is 1e02, the oldest that a CUDA 13 wheel runs on (7.5).
FIRST_TURING = 0x1E00
# The first NVSwitch was of 2018; bridges of vendor 10de below are nForce mainboards.
FIRST_NVSWITCH = 0x1AC0

ENTRY_KEYS = (
    "name", "names", "pci_ids", "memory_gib", "compute_capability", "fp8", "bandwidth_gb_s", "profile", "source",
)  # fmt: skip
DECLARED_KEYS = ("index", "name", "memory_gib", "compute_capability")


class Gpu(TypedDict):
    """One GPU. ``index`` counts in PCI bus order, as CUDA does; ``memory_gib`` is what CUDA sees."""

    index: int
    uuid: str
    name: str
    kind: str
    profile: str
    pci_id: str
    pci_bus_id: str
    memory_gib: float
    compute_capability: str
    fp8: bool
    bandwidth_gb_s: float
    driver_version: str
    mig: bool
    source: str


@dataclass(frozen=True)
class PciGpu:
    """A GPU on the PCI bus: ``0000:8d:00.0`` and ``2335``."""

    bus_id: str
    device_id: str


class Found(NamedTuple):
    """What a host shows: its GPUs, what is wrong with them (one line, "" for nothing), and whether there is an NVSwitch.

    ``complete`` is false where a GPU is missing or none can be asked: those behind it may have other numbers than before.
    """

    gpus: list[Gpu]
    problem: str
    nvswitch: bool
    complete: bool


# --- what is there ---------------------------------------------------------------------------------------------


def read(run: _nvidia_smi.Run, sysfs_root: Path, catalogue: Catalogue) -> Found:
    """Return the GPUs of this host. ``run`` executes a command, as `_nvidia_smi.run` does; ``sysfs_root`` is /sys."""
    known = _known(catalogue)
    on_bus, too_old = pci_gpus(sysfs_root)
    answer = _nvidia_smi.read(run)
    if answer is not None and answer.complete and (answer.rows or answer.lost):
        gpus = [_shown_gpu(index, row, on_bus, known) for index, row in enumerate(answer.rows)]
        missing = _missing(answer, on_bus, known)
        problems = [*answer.problems, *missing, *_live_problems(gpus)]
        complete = not missing and not answer.lost
    else:
        driver = _line(sysfs_root / "module/nvidia/version")
        gpus = [_bare_gpu(index, device, driver, known) for index, device in enumerate(on_bus)]
        problems = [*(answer.problems if answer else ()), *_unknown(gpus)]
        if too_old and not gpus:
            problems.append(_too_old(too_old))
        complete = answer is None
    return Found(gpus, " ".join(problems), has_nvswitch(sysfs_root), complete)


def pci_gpus(sysfs_root: Path) -> tuple[list[PciGpu], list[PciGpu]]:
    """Return NVIDIA's GPUs in PCI bus order, and beside them those that are too old for the engine.

    Left out: the sound and USB functions of a card, virtual functions, and cards that are given to a virtual machine.
    """
    found = [
        PciGpu(path.name, device)
        for path, vendor, device, kind in _pci_devices(sysfs_root)
        if vendor == "10de" and kind.startswith(("0300", "0302")) and not _given_away(path)
    ]
    found.sort(key=lambda gpu: _nvidia_smi.pci_order(gpu.bus_id))
    new = [gpu for gpu in found if int(gpu.device_id, 16) >= FIRST_TURING]
    return new, [gpu for gpu in found if gpu not in new]


def has_nvswitch(sysfs_root: Path) -> bool:
    """Return whether the GPUs are joined by an NVSwitch, so that CUDA needs the fabric manager.

    Up to Hopper it is a bridge of NVIDIA's.
    """
    bridge = any(
        vendor == "10de" and kind.startswith("0680") and int(device, 16) >= FIRST_NVSWITCH
        for _path, vendor, device, kind in _pci_devices(sysfs_root)
    )
    return bridge or has_nvlink5_switch(sysfs_root)


def has_nvlink5_switch(sysfs_root: Path) -> bool:
    """Return whether it is an NVSwitch of NVLink 5 (HGX B200 and B300), whose fabric manager needs a subnet manager.

    Only the ConnectX-7 that manages it shows; it differs from a network card by SW_MNG in its vital product data.
    """
    devices = _pci_devices(sysfs_root)
    # Reading that data is slow, and no other host needs it.
    has_gpus = any(vendor == "10de" and kind.startswith("0302") for _path, vendor, _device, kind in devices)
    return has_gpus and any(b"SW_MNG" in _bytes(path / "vpd") for path, vendor, *_rest in devices if vendor == "15b3")


def kind_of(pci_id: str, name: str, catalogue: Catalogue) -> str:
    """Return the catalogue's key for a GPU: by PCI id, by name where that leaves several or none, else ""."""
    by_id = [kind for kind, entry in catalogue.items() if pci_id and pci_id in entry.get("pci_ids", ())]
    by_name = [kind for kind in by_id or catalogue if name and name.lower() in map(str.lower, _names(catalogue[kind]))]
    if by_name:
        return by_name[0]
    # Told apart by nothing: plan with the smaller one.
    return min(by_id, key=lambda kind: float(catalogue[kind]["memory_gib"]), default="")


def _shown_gpu(index: int, row: _nvidia_smi.Row, on_bus: Sequence[PciGpu], catalogue: Catalogue) -> Gpu:
    pci_id = row.pci_id or next((gpu.device_id for gpu in on_bus if gpu.bus_id == row.pci_bus_id), "")
    gpu = _gpu(index, kind_of(pci_id, row.name, catalogue), catalogue)
    memory_gib = (row.memory_total_mib - (row.memory_reserved_mib or 0)) / 1024
    if row.memory_reserved_mib is None and gpu["memory_gib"]:
        memory_gib = min(memory_gib, gpu["memory_gib"])
    capability = row.compute_capability or gpu["compute_capability"]
    gpu.update(
        {
            "uuid": row.uuid,
            "name": row.name,
            "pci_id": pci_id,
            "pci_bus_id": row.pci_bus_id,
            "memory_gib": round(memory_gib, 2),
            "compute_capability": capability,
            "fp8": gpu["fp8"] if gpu["kind"] else _has_fp8(capability),
            "driver_version": row.driver_version,
            "mig": row.mig,
            "source": "nvidia-smi",
        }
    )
    return gpu


def _bare_gpu(index: int, device: PciGpu, driver: str, catalogue: Catalogue) -> Gpu:
    gpu = _gpu(index, kind_of(device.device_id, "", catalogue), catalogue)
    gpu.update(
        {
            "name": gpu["name"] or f"NVIDIA 10de:{device.device_id}",
            "pci_id": device.device_id,
            "pci_bus_id": device.bus_id,
            "driver_version": driver,
            "source": "sysfs",
        }
    )
    return gpu


def _gpu(index: int, kind: str, catalogue: Catalogue) -> Gpu:
    """Return a GPU with what the catalogue knows of its kind."""
    entry = catalogue.get(kind, {})
    capability = _capability(entry.get("compute_capability")) or ""
    return Gpu(
        index=index,
        uuid="",
        name=_names(entry)[0] if entry else "",
        kind=kind,
        profile=entry.get("profile", ""),
        pci_id="",
        pci_bus_id="",
        memory_gib=float(entry.get("memory_gib", 0)),
        compute_capability=capability,
        fp8=bool(entry.get("fp8", _has_fp8(capability))),
        bandwidth_gb_s=float(entry.get("bandwidth_gb_s", 0)),
        driver_version="",
        mig=False,
        source="",
    )


def _missing(answer: _nvidia_smi.Answer, on_bus: Sequence[PciGpu], catalogue: Catalogue) -> list[str]:
    """Return a sentence on GPUs that PCI shows and nvidia-smi does not even name."""
    shown = {row.pci_bus_id for row in answer.rows}
    named = shown | set(answer.lost)
    missing = [gpu for gpu in on_bus if gpu.bus_id not in named]
    if not missing:
        return []
    listed = ", ".join(
        f"{gpu.bus_id} ({_names(catalogue[kind])[0] if kind else f'10de:{gpu.device_id}'})"
        for gpu in missing
        for kind in [kind_of(gpu.device_id, "", catalogue)]
    )
    return [
        (
            f"nvidia-smi shows {len(shown)} of the {len(on_bus)} GPUs on the PCI bus: missing is {listed}, fallen off the bus or unknown to the "
            "driver. Look for NVRM and Xid lines in 'dmesg' and reboot the host."
        )
    ]


def _live_problems(gpus: Sequence[Gpu]) -> list[str]:
    found = []
    for gpu in gpus:
        if gpu["mig"]:
            found.append(
                f"GPU {gpu['index']} ({gpu['name']}) has MIG enabled: needs it disabled, an instance takes whole GPUs. "
                f"Run 'nvidia-smi -i {gpu['pci_bus_id']} -mig 0' on the host, or leave this GPU out with gpus in vllm_models."
            )
        if not gpu["compute_capability"]:
            found.append(
                f"nvidia-smi does not tell the compute capability of GPU {gpu['index']} ({gpu['name']}): needs one, such as 9.0. "
                "Update the driver, or add this GPU to vllm_plan_known_gpus."
            )
    return found


def _unknown(gpus: Sequence[Gpu]) -> list[str]:
    places: dict[str, list[str]] = {}
    for gpu in gpus:
        if not gpu["kind"]:
            places.setdefault(gpu["pci_id"], []).append(gpu["pci_bus_id"])
    return [
        f"The PCI id 10de:{pci_id} of the GPU at {', '.join(positions)} is not in the catalogue: memory and compute capability are unknown. "
        "Install the NVIDIA driver, or add an entry to vllm_plan_known_gpus."
        for pci_id, positions in places.items()
    ]


def _too_old(gpus: Sequence[PciGpu]) -> str:
    listed = ", ".join(f"10de:{gpu.device_id} at {gpu.bus_id}" for gpu in gpus)
    return f"The only GPU on the PCI bus is older than Turing ({listed}): vLLM needs compute capability 7.5 or more. Use another GPU."


# --- sysfs -----------------------------------------------------------------------------------------------------


def _pci_devices(sysfs_root: Path) -> list[tuple[Path, str, str, str]]:
    """Return folder, vendor, device and class of each PCI device, in hex without 0x."""
    try:
        folders = sorted((sysfs_root / "bus/pci/devices").iterdir())
    except OSError:
        return []
    found = []
    for path in folders:
        vendor, device, kind = (_line(path / name).removeprefix("0x") for name in ("vendor", "device", "class"))
        if _nvidia_smi.bus_id(path.name) and all(re.fullmatch("[0-9a-f]{4,6}", one) for one in (vendor, device, kind)):
            found.append((path, vendor, device, kind))
    return found


def _given_away(path: Path) -> bool:
    """Return whether a GPU is a virtual function, or bound to a driver that hands it to a virtual machine."""
    try:
        driver = (path / "driver").readlink().name
    except OSError:
        driver = ""
    return driver == "vfio-pci" or (path / "physfn").exists()


def _line(path: Path) -> str:
    return _bytes(path).decode(errors="replace").strip()


def _bytes(path: Path) -> bytes:
    """Return the first bytes of a file; none where it cannot be read, as of a device that has just gone."""
    try:
        with path.open("rb") as stream:
            return stream.read(4096)
    except OSError:
        return b""


# --- what the inventory says -----------------------------------------------------------------------------------


def declared(entries: object, catalogue: Catalogue) -> tuple[list[Gpu], list[str]]:
    """Return the GPUs that ``vllm_plan_gpus`` declares, and what is wrong with it.

    An entry is a kind, ``{kind: h100-sxm-80gb, count: 8}``, or a GPU of no catalogue with name, memory_gib (GiB visible to
    CUDA) and compute_capability.
    """
    variable, known = "vllm_plan_gpus", _known(catalogue)
    if not isinstance(entries, list):
        return [], [
            f"{variable} is {_shown(entries)}: needs a list, for example [{{kind: h100-sxm-80gb, count: 8}}]. Rewrite it."
        ]
    gpus: list[Gpu] = []
    problems: list[str] = []
    for position, entry in enumerate(entries):
        where = f"{variable}[{position}]"
        asked: object = {"kind": entry} if isinstance(entry, str) else entry
        if not isinstance(asked, Mapping):
            problems.append(
                f"{where} is {_shown(entry)}: needs a kind such as h100-sxm-80gb, or a mapping with kind and count. Rewrite it."
            )
        elif "kind" in asked:
            found = _kind_problems(where, asked, known)
            problems += found
            if not found:
                for _each in range(asked.get("count", 1)):
                    gpus.append(_gpu(len(gpus), asked["kind"], known))
        else:
            found = _explicit_problems(where, asked, None if problems else len(gpus))
            problems += found
            if not found:
                gpus.append(_explicit(len(gpus), asked, known))
    for gpu in gpus:
        gpu["source"] = "declared"
    return gpus, problems


def _kind_problems(where: str, asked: Mapping[str, Any], catalogue: Catalogue) -> list[str]:
    found = _unknown_keys(where, asked, ("kind", "count"))
    if not isinstance(asked["kind"], str) or asked["kind"] not in catalogue:
        found.append(
            f"{where}.kind is {_shown(asked['kind'])}: needs one of {', '.join(sorted(catalogue))}. "
            "Correct it, or add the GPU to vllm_plan_known_gpus."
        )
    if not _whole(asked.get("count", 1), 1, 64):
        found.append(f"{where}.count is {_shown(asked['count'])}: needs a whole number from 1 to 64. Correct it.")
    return found


def _explicit_problems(where: str, asked: Mapping[str, Any], index: int | None) -> list[str]:
    """``index`` is the number that this GPU gets; None where that is unknown, as an entry before it is wrong."""
    found = _unknown_keys(where, asked, ("kind", "count", *DECLARED_KEYS))
    if "count" in asked:
        found.append(
            f"{where}.count is {_shown(asked['count'])} without a kind: needs kind. Add it, or repeat the entry."
        )
    if index is not None and (asked.get("index", index) != index or isinstance(asked.get("index"), bool)):
        found.append(
            f"{where}.index is {_shown(asked['index'])}: needs {index}, its place in PCI bus order. Correct or remove it."
        )
    if not isinstance(asked.get("name"), str) or not asked["name"].strip():
        found.append(
            f"{where}.name is {_shown(asked.get('name'))}: needs the name of the GPU, or kind in its place. Add one."
        )
    return found + _figure_problems(where, asked)


def _explicit(index: int, asked: Mapping[str, Any], catalogue: Catalogue) -> Gpu:
    gpu = _gpu(index, kind_of("", asked["name"], catalogue), catalogue)
    capability = _capability(asked["compute_capability"]) or ""
    gpu.update(
        {
            "name": asked["name"],
            "memory_gib": float(asked["memory_gib"]),
            "compute_capability": capability,
            "fp8": _has_fp8(capability),
        }
    )
    return gpu


def catalogue_problems(catalogue: object, where: str) -> list[str]:
    """Return what is wrong with a catalogue of GPUs, one sentence each. ``where`` is the variable's name."""
    if not isinstance(catalogue, Mapping):
        return [
            (
                f"{where} is {_shown(catalogue)}: needs a mapping from a kind of GPU to what is known of it, for example "
                '{my-gpu: {name: NVIDIA X, pci_ids: ["2bb9"], memory_gib: 94.9, compute_capability: "12.0"}}. Rewrite it.'
            )
        ]
    return [problem for kind, entry in catalogue.items() for problem in _entry_problems(where, kind, entry)]


def _entry_problems(variable: str, kind: object, entry: object) -> list[str]:
    where = f"{variable}.{kind}"
    if not isinstance(kind, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", kind):
        return [
            f"{variable} has the key {_shown(kind)}: needs a-z, 0-9, '.', '_' and '-'. Rename it, for example my-gpu."
        ]
    if not isinstance(entry, Mapping):
        return [
            f"{where} is {_shown(entry)}: needs a mapping with name, memory_gib and compute_capability. Rewrite it."
        ]
    found = _unknown_keys(where, entry, ENTRY_KEYS)
    names = entry.get("names", [entry.get("name")])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        key = "names" if "names" in entry else "name"
        found.append(f"{where}.{key} is {_shown(entry.get(key))}: needs the name as nvidia-smi prints it. Correct it.")
    ids = entry.get("pci_ids", [])
    if not isinstance(ids, list) or not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{4}", one) for one in ids):
        found.append(
            f"{where}.pci_ids is {_shown(ids)}: needs a list of four lower-case hex digits each, in quotes, such as "
            "[\"2330\"]. Correct it; 'lspci -nn -d 10de:' shows them."
        )
    found += _figure_problems(where, entry)
    if not isinstance(entry.get("fp8", False), bool):
        found.append(f"{where}.fp8 is {_shown(entry['fp8'])}: needs true or false. Correct or remove it.")
    if "bandwidth_gb_s" in entry and not _positive(entry["bandwidth_gb_s"]):
        found.append(
            f"{where}.bandwidth_gb_s is {_shown(entry['bandwidth_gb_s'])}: needs the memory bandwidth in GB/s. Correct or remove it."
        )
    found += [
        f"{where}.{key} is {_shown(entry[key])}: needs text. Correct or remove it."
        for key in ("profile", "source")
        if key in entry and not isinstance(entry[key], str)
    ]
    return found


def _figure_problems(where: str, entry: Mapping[str, Any]) -> list[str]:
    found = []
    if not _positive(entry.get("memory_gib")):
        found.append(
            f"{where}.memory_gib is {_shown(entry.get('memory_gib'))}: needs the GiB that CUDA sees, such as 79.1. Correct it."
        )
    if _capability(entry.get("compute_capability")) is None:
        found.append(
            f'{where}.compute_capability is {_shown(entry.get("compute_capability"))}: needs one such as "9.0". Correct it; '
            "https://developer.nvidia.com/cuda-gpus lists them."
        )
    return found


# --- small helpers ---------------------------------------------------------------------------------------------


def _names(entry: Mapping[str, Any]) -> list[str]:
    return list(entry["names"]) if "names" in entry else [entry["name"]]


def _known(catalogue: object) -> Catalogue:
    """Return the entries that can be used; `catalogue_problems` tells of the others."""
    entries = catalogue if isinstance(catalogue, Mapping) else {}
    return {kind: entry for kind, entry in entries.items() if not _entry_problems("", kind, entry)}


def _capability(value: object) -> str | None:
    """Return a compute capability as text, also for a number that YAML made of it; None for anything else."""
    if _positive(value):
        value = f"{value:.1f}"
    return value if isinstance(value, str) and _nvidia_smi.CAPABILITY.fullmatch(value) else None


def _has_fp8(capability: str) -> bool:
    major, _dot, minor = capability.partition(".")
    return bool(capability) and (int(major), int(minor)) >= FP8_FROM


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1_000_000


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _unknown_keys(where: str, entry: Mapping[Any, Any], known: Sequence[str]) -> list[str]:
    unknown = sorted(str(key) for key in entry if key not in known)
    if not unknown:
        return []
    return [f"{where} has the key {unknown[0]!r}: needs one of {', '.join(known)}. Correct or remove it."]


def _shown(value: object) -> str:
    """Return a value for a message: quoted, one line, at most 60 characters."""
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
