# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads of a host what `_driver.decide` wants to know."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gpuops.vllm.plugins.module_utils import _driver, _gpus, _nvidia_smi

#: One line for each package that dpkg knows.
DPKG_QUERY = (
    "dpkg-query", "--show", "--showformat=${db:Status-Status}\\t${db:Status-Want}\\t${Package}\\t${Version}\\t${Maintainer}\\n",
)  # fmt: skip
#: Of the firmware: whether it checks what is booted, whether shim was told not to, and the keys that the owner has enrolled.
_EFI = Path("firmware/efi")
_SECURE_BOOT = _EFI / "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_NOT_CHECKED = _EFI / "efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
_ENROLLED = ("efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23", "mok-variables/MokListRT", "mok-variables/db")
#: Where packages and NVIDIA's own installer put it.
LIBRARIES = ("usr/lib/*-linux-gnu/libcuda.so.*", "usr/lib64/libcuda.so.*", "usr/lib/libcuda.so.*")
_LIBRARY = re.compile(r"libcuda\.so\.([0-9]{3}(?:\.[0-9]{1,4}){1,2})")
#: A file of the firmware's variables begins with four bytes of attributes.
_ATTRIBUTES = 4

Run = Callable[[tuple[str, ...]], tuple[int, str, str]]


def read(name: str, run: Run, root: Path, catalogue: Mapping[str, Any]) -> _driver.Host:
    """Return what the host shows. ``run`` executes a command, as `_nvidia_smi.run` does; ``root`` is /."""
    sysfs = root / "sys"
    gpus, old = _gpus.pci_gpus(sysfs)
    answer = _nvidia_smi.read(run)
    if not gpus and not old and not (answer and answer.rows):
        # Nothing more is asked where there is no GPU.
        return _driver.Host(name)
    system = system_of(_text(root / "etc/os-release"))
    certificate = str(catalogue["systems"].get(system, {}).get("signing_certificate", "")).lstrip("/")
    _status, known, _err = run(DPKG_QUERY)
    uname = os.uname()
    newest = next_kernel(root)
    return _driver.Host(
        name=name,
        system=system,
        machine=uname.machine,
        kernel=uname.release,
        gpus=tuple(gpus),
        old_gpus=tuple(old),
        nvswitch=_gpus.has_nvswitch(sysfs),
        nvlink5=_gpus.has_nvlink5_switch(sysfs),
        packages=packages(known, catalogue),
        loaded=_text(sysfs / "module/nvidia/version").strip(),
        library=library(root),
        nouveau=(sysfs / "module/nouveau").is_dir(),
        secure_boot=_is_set(sysfs / _SECURE_BOOT) and not _is_set(sysfs / _NOT_CHECKED),
        enrolled=bool(certificate) and is_enrolled(_bytes(root / certificate), sysfs),
        answer=answer,
        uvm=(sysfs / "module/nvidia_uvm").is_dir(),
        next_kernel=newest,
        # The running one's is loaded, or told by what is missing.
        next_module=module_of(newest, run) if newest not in ("", uname.release) else None,
    )


def system_of(os_release: str) -> str:
    """Return such as ``debian-12`` and ``ubuntu-24.04``."""
    values = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    return "-".join(values.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))


def packages(dpkg_query: str, catalogue: Mapping[str, Any]) -> tuple[_driver.Package, ...]:
    """Return the driver's packages that are installed, its subnet manager, and the kernel's metapackages, of what `DPKG_QUERY` prints."""
    found = []
    for line in dpkg_query.splitlines():
        status, want, name, version, maintainer = (line.split("\t", 4) + [""] * 5)[:5]
        if status == "installed" and (
            name == _driver.SUBNET_MANAGER
            or _driver.is_driver_package(name, catalogue)
            or _driver.is_kernel_metapackage(name)
        ):
            found.append(_driver.Package(name, version, maintainer, want == "hold"))
    return tuple(found)


def library(root: Path) -> str:
    """Return the version of libcuda.so on disk, "" where there is none; the newest of several."""
    versions = [match[1] for path in root.glob("usr/lib*/**/libcuda.so.*") if (match := _LIBRARY.fullmatch(path.name))]
    return max(versions, key=lambda version: [int(part) for part in version.split(".")], default="")


def next_kernel(root: Path) -> str:
    """Return the newest installed kernel, which boots next; "" where none is seen."""
    names = [path.name.removeprefix("vmlinuz-") for path in root.glob("boot/vmlinuz-[0-9]*")]
    return max(names, key=lambda name: [int(number) for number in re.findall("[0-9]+", name)], default="")


def module_of(kernel: str, run: Run) -> str | None:
    """Return the version of the driver's module for a kernel, "" for none, None where that cannot be asked."""
    status, out, _err = run(("modinfo", "-k", kernel, "-F", "version", "nvidia"))
    return None if status in (124, 126, 127) else out.strip() if status == 0 else ""


def is_enrolled(certificate: bytes, sysfs: Path) -> bool:
    """Return whether the firmware knows a certificate (DER)."""
    return bool(certificate) and any(certificate in _bytes(sysfs / _EFI / name) for name in _ENROLLED)


def _is_set(variable: Path) -> bool:
    return _bytes(variable)[_ATTRIBUTES : _ATTRIBUTES + 1] == b"\x01"


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    """Return a file's bytes; none where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
