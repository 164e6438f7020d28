# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done about a host's NVIDIA driver: nothing, install these packages, reboot, or refuse and say why.

The catalogue (``roles/vllm_nvidia/vars``) has ``branches``, ``systems``, ``sets`` (the packages of one system and source), ``patterns`` and
``exceptions`` (the names of driver packages), and ``pinned`` (the same for APT's pin).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus, _nvidia_smi, _profiles

SOURCES = ("auto", "nvidia", "ubuntu")
#: NVIDIA's package, which no role installs.
SUBNET_MANAGER = "nvlsm"
#: Blackwell and what comes after, and Grace Hopper: only the open kernel modules know these.
FIRST_BLACKWELL = 0x2900
GRACE_HOPPER = frozenset({"2342", "2345", "2348"})

_DRIVER_VERSION = re.compile(r"(?:[0-9]+:)?([0-9]{3}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)(?:-.*)?")
#: The libraries of the driver and what asks them, under the names of Debian, of Ubuntu and of NVIDIA's repository.
_USER_SPACE = re.compile(
    r"libcuda1|libnvidia-ml1|nvidia-smi|nvidia-driver-cuda|libnvidia-compute(-[0-9]{3}(-server)?)?|nvidia-utils-[0-9]{3}(-server)?"
)
#: The kernel modules as a source that the host builds, and as Ubuntu's own builds.
_MODULE_SOURCE = re.compile(
    r"nvidia-kernel(-open)?-dkms|nvidia-open-kernel-dkms|nvidia-dkms(-[0-9]{3})?(-server)?(-open)?"
)
_PREBUILT = re.compile(r"linux-(modules|objects)-nvidia-[0-9]{3}.*")
_FABRIC_MANAGER = re.compile(r"nvidia-fabricmanager(-[0-9]{3})?")
#: A kernel's metapackage, of which there is one for headers and for prebuilt modules as well.
_METAPACKAGE = re.compile(
    r"linux-(image|headers)-(?![0-9])[a-z0-9.-]+|linux-(generic|virtual|aws|azure|gcp|oracle|nvidia|lowlatency)[a-z0-9.-]*"
)
_IMAGE = re.compile(r"linux-image-((?![0-9])[a-z0-9.-]+)")


@dataclass(frozen=True)
class Package:
    """One installed package."""

    name: str
    version: str
    maintainer: str = ""
    held: bool = False

    @property
    def driver(self) -> str:
        """The driver's version in the package's, or "" where it has none."""
        return driver_version(self.version)


@dataclass(frozen=True)
class Host:
    """What a host shows.

    ``system`` is such as ``debian-12``, ``machine`` and ``kernel`` are what uname says. ``gpus`` are those on the PCI bus that the engine runs on,
    ``old_gpus`` older ones beside them. ``nvlink5`` is whether its NVSwitch is one of NVLink 5.
    ``loaded`` is the version of the kernel module that runs, ``library`` that of libcuda.so on disk,
    ``enrolled`` whether the firmware knows the key that modules built here are signed with. ``next_kernel`` is the newest one, which boots next, and
    ``next_module`` the version of the driver's module for it, "" for none and None where that is not known.
    """

    name: str
    system: str = ""
    machine: str = "x86_64"
    kernel: str = ""
    gpus: Sequence[_gpus.PciGpu] = ()
    old_gpus: Sequence[_gpus.PciGpu] = ()
    nvswitch: bool = False
    nvlink5: bool = False
    packages: Sequence[Package] = ()
    loaded: str = ""
    library: str = ""
    nouveau: bool = False
    secure_boot: bool = False
    enrolled: bool = False
    answer: _nvidia_smi.Answer | None = None
    uvm: bool = False
    next_kernel: str = ""
    next_module: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What the user asks for, by the role's variables of the same names. ``has_key``: whether a key of the repository is given."""

    manage: bool = True
    branch: str = "580"
    source: str = "auto"
    update: bool = False
    allow_reboot: bool = False
    min_driver: str = "580"
    has_key: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done.

    ``action``: ``none`` (no GPU), ``keep`` (the driver stays as it is), ``install``, ``refuse``. ``packages`` are wanted in one version of the driver,
    ``optional`` as well where they are offered, ``beside`` in whatever version fits. ``version`` is the driver's version that it has to be, "" for the
    newest of ``branch``. ``reboot`` says why the host has to be rebooted, as things are now.
    """

    action: str
    reasons: tuple[str, ...] = ()
    refusal: str = ""
    branch: str = ""
    source: str = ""
    packages: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    version: str = ""
    prebuilt: bool = False
    may_remove: bool = False
    reboot: tuple[str, ...] = field(default=())


def driver_version(version: str) -> str:
    """Return ``580.126.20`` of ``580.126.20-0ubuntu0.24.04.1``, or "" where it is no driver's version (``6.8.0-88.89``)."""
    found = _DRIVER_VERSION.fullmatch(version)
    return found[1] if found else ""


def branch_of(version: str) -> str:
    """Return ``580`` of ``580.126.20``."""
    return version.partition(".")[0]


def is_driver_package(name: str, catalogue: Mapping[str, Any]) -> bool:
    """Return whether a package is part of the driver, by its name."""
    return _matches(name, catalogue["patterns"]) and not _matches(name, catalogue["exceptions"])


def is_kernel_metapackage(name: str) -> bool:
    """Return whether a package only names the newest kernel, its headers or both."""
    return bool(_METAPACKAGE.fullmatch(name))


def kernel_names(packages: Iterable[str]) -> list[str]:
    """Return what the names of the installed kernel metapackages end in, such as ``amd64`` or ``generic-hwe-24.04``."""
    return sorted({found[1] for name in packages if (found := _IMAGE.fullmatch(name))})


def installed_version(host: Host) -> str:
    """Return the version of the driver's libraries, or "" where there are none."""
    versions = [one.driver for one in host.packages if _USER_SPACE.fullmatch(one.name) and one.driver]
    newest = max(versions, key=_profiles.version_tuple, default="")
    rows = host.answer.rows if host.answer else ()
    return newest or host.library or next((row.driver_version for row in rows if row.driver_version), "")


def decide(host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> Decision:
    """Return what is to be done."""
    if problems := wanted_problems(wanted, catalogue):
        return Decision("refuse", refusal=" ".join(problems))
    if not host.gpus and not (host.answer and host.answer.rows):
        # Also where all are too old for the engine: the plan says so.
        return Decision("none")
    version = installed_version(host)
    if not version:
        decision = _decide_without(host, wanted, catalogue)
    elif _profiles.version_tuple(version) < _profiles.version_tuple(wanted.min_driver):
        decision = _decide_old(version, host, wanted, catalogue)
    else:
        decision = _decide_there(version, host, wanted, catalogue)
    if decision.action == "install" and (problem := subnet_manager_problem(host)):
        return _refuse(f"{problem} Nothing was installed.")
    return decision


def wanted_problems(wanted: Wanted, catalogue: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables, whatever the host, one sentence each."""
    found = []
    branches = catalogue["branches"]
    if wanted.branch not in branches:
        known = ", ".join(f"{branch} (until {entry['until']})" for branch, entry in branches.items())
        found.append(f"vllm_nvidia_branch is '{wanted.branch}': needs one of {known}. Correct it.")
    elif _profiles.version_tuple(wanted.branch) < _profiles.version_tuple(branch_of(wanted.min_driver)):
        found.append(
            f"vllm_nvidia_branch is '{wanted.branch}', and vLLM needs a driver from {wanted.min_driver} on. Choose a newer branch. "
            "(An engine of your own that needs less: set vllm_plan_min_driver.)"
        )
    if wanted.source not in SOURCES:
        found.append(f"vllm_nvidia_source is '{wanted.source}': needs one of {', '.join(SOURCES)}. Correct it.")
    return found


def is_ours(name: str, prebuilt: bool, catalogue: Mapping[str, Any]) -> bool:
    """Return whether a package is part of the driver, or of the kernel that prebuilt modules are for."""
    return is_driver_package(name, catalogue) or (prebuilt and is_kernel_metapackage(name))


def to_hold(host: Host, prebuilt: bool, catalogue: Mapping[str, Any]) -> list[str]:
    """Return the packages that nothing may change unasked: the driver, and where its modules are prebuilt the kernel, which would come without."""
    return [one.name for one in host.packages if is_ours(one.name, prebuilt, catalogue)]


def reboot_reasons(host: Host) -> tuple[str, ...]:
    """Return why the driver can only run after a reboot; nothing where the module may just not be loaded yet."""
    version = installed_version(host)
    if host.loaded and version and host.loaded != version:
        return (f"the kernel runs the driver's module {host.loaded}, and the libraries are {version}",)
    if not host.loaded and version and host.nouveau:
        return ("the kernel runs nouveau, which keeps the GPU from the driver",)
    return ()


def subnet_manager_problem(host: Host) -> str:
    """Return why the fabric manager would not start, or ""."""
    if not host.nvlink5 or any(one.name == SUBNET_MANAGER for one in host.packages):
        return ""
    return (
        f"{host.name} has NVSwitches of NVLink 5 (HGX B200, B300), whose fabric manager does not start without NVIDIA's subnet manager: the package "
        f"{SUBNET_MANAGER} is not installed, and the role vllm_nvidia does not install it. Add NVIDIA's repository to the host, install {SUBNET_MANAGER} "
        "from it, and run the play again."
    )


def next_boot_problem(host: Host) -> str:
    """Return why the driver would not run after the next boot, or ""."""
    version = installed_version(host)
    if not version or host.next_kernel in ("", host.kernel) or host.next_module in (None, version):
        return ""
    has = f"has the driver's module {host.next_module}" if host.next_module else "has no module of the driver"
    return (
        f"{host.name} boots next into the kernel {host.next_kernel}, which {has}, and the libraries are {version}: the GPUs would be gone. Install "
        f"linux-headers-{host.next_kernel} and run 'dkms autoinstall -k {host.next_kernel}' (with prebuilt modules: install those for that kernel), or "
        "remove that kernel."
    )


def proof_problems(host: Host) -> list[str]:
    """Return what is missing of a driver that runs: one version of module and libraries, every GPU, and uvm."""
    found = [f"{reason[:1].upper()}{reason[1:]}." for reason in reboot_reasons(host)]
    if not host.loaded:
        found.append(
            "The kernel's module nvidia is not loaded. Look for 'nvidia' in 'dkms status' and 'dmesg' on the host."
        )
    shown = len(host.answer.rows) if host.answer else 0
    on_bus = len(host.gpus) + len(host.old_gpus)
    if shown != on_bus or not host.answer or not host.answer.complete:
        said = " ".join(host.answer.problems) if host.answer else "nvidia-smi is not installed."
        found.append(f"nvidia-smi shows {shown} of the {on_bus} GPUs on the PCI bus. {said}".strip())
    if host.loaded and not host.uvm:
        found.append(
            "The kernel's module nvidia-uvm is not loaded, which CUDA needs: see 'modprobe nvidia-uvm' on the host."
        )
    return found


# --- the three cases -------------------------------------------------------------------------------------------


def _decide_without(host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> Decision:
    """No libraries of a driver are there."""
    if host.answer and host.answer.problems and not host.packages:
        # Somebody's own: it is not known what its reboot or removal would take with it.
        return _refuse(f"{host.name}: {' '.join(host.answer.problems)}")
    return _install(("it has no NVIDIA driver",), host, wanted, catalogue)


def _decide_old(version: str, host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> Decision:
    """The libraries are older than the engine needs."""
    what = f"{host.name} has the NVIDIA driver {version}, and vLLM needs {wanted.min_driver} or newer"
    core = _core(host)
    if not core:
        return _refuse(
            f"{what}. It was not installed from packages, so no package can take its place. Remove it (its own nvidia-uninstall does) and run the "
            "play again, or put a newer one in its place yourself."
        )
    own = [one for one in core if "debian" in one.maintainer.lower()]
    if own and _origin(host) != "nvidia":
        return _refuse(
            f"{what}. It is Debian's own ({', '.join(f'{one.name} {one.version}' for one in own)}), of which Debian has no newer one, and which shares "
            f"names and files with NVIDIA's packages. Remove it: apt-get purge {' '.join(one.name for one in own)} && apt-get autoremove --purge, then "
            "run the play again, which installs NVIDIA's."
        )
    return _install((f"its driver is {version}, older than {wanted.min_driver}",), host, wanted, catalogue)


def _decide_there(version: str, host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> Decision:
    """The libraries are new enough: the driver stays, unless it cannot work as it is or the user wants another."""
    core = _core(host)
    versions = sorted({one.driver for one in core if one.driver})
    if wanted.update:
        return _install((f"vllm_nvidia_update is set, and its driver is {version}",), host, wanted, catalogue)
    # It is mended as it is, and not brought to another branch.
    own = replace(wanted, branch=branch_of(version)) if branch_of(version) in catalogue["branches"] else wanted
    if len(versions) > 1:
        listed = ", ".join(f"{one.name} {one.driver}" for one in core if one.driver)
        return _install((f"its driver's packages are of several versions ({listed})",), host, own, catalogue)
    has_module = host.loaded or any(
        _MODULE_SOURCE.fullmatch(one.name) or _PREBUILT.fullmatch(one.name) for one in host.packages
    )
    if core and not has_module:
        return _install((f"it has the driver's libraries {version} without a kernel module",), host, own, catalogue)
    managers = [one for one in host.packages if _FABRIC_MANAGER.fullmatch(one.name)]
    if core and host.nvswitch and [one.driver for one in managers] != [version]:
        there = f"{managers[0].name} {managers[0].driver}" if managers else "no fabric manager"
        return _install_fabric_manager(version, there, host, wanted, catalogue)
    reboot = reboot_reasons(host)
    if reboot and not (wanted.manage and wanted.allow_reboot):
        return _refuse(reboot_needed(host.name, reboot))
    answers = host.answer and (host.answer.rows or host.answer.lost)
    if host.answer and not answers and not reboot and (host.loaded or not core):
        return _refuse(f"{host.name}: {' '.join(host.answer.problems)}")
    return Decision(
        "keep",
        branch=branch_of(version),
        source=_origin(host),
        version=version,
        prebuilt=any(_PREBUILT.fullmatch(one.name) for one in host.packages),
        reboot=reboot,
    )


def reboot_needed(name: str, reasons: Sequence[str]) -> str:
    """Return the sentence that stops a run for want of a reboot."""
    return (
        f"Reboot needed: on {name} {' and '.join(reasons)}. Reboot it when that suits you and run the play again, or have the play do it with "
        "vllm_nvidia_allow_reboot: true (vllm_serial takes the hosts in batches)."
    )


def reboot_ahead(host: Host, decision: Decision) -> str:
    """Return what an installation without leave to reboot does to what runs, or "" where it stops nothing."""
    if decision.action != "install" or host.loaded in ("", decision.version):
        return ""
    return (
        f"{host.name} runs the driver's module {host.loaded}, and the newest driver of the branch {decision.branch} is about to be installed "
        f"({'; '.join(decision.reasons)}). If that is of another version, this run ends with 'Reboot needed', and until that reboot an instance that "
        "stops does not start again. Have the play reboot it with vllm_nvidia_allow_reboot: true (vllm_serial takes the hosts in batches), or run it "
        "when a reboot suits you."
    )


# --- what is installed -----------------------------------------------------------------------------------------


def _install(reasons: tuple[str, ...], host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> Decision:
    """Return the installation of a whole driver of the wanted branch, or why it cannot be."""
    why = f"{host.name} needs a driver of the branch {wanted.branch} ({'; '.join(reasons)})"
    if not wanted.manage:
        return _refuse(f"{why}, and vllm_nvidia_manage is false. Install one, or set it to true.")
    if host.system not in catalogue["systems"]:
        return _refuse(
            f"{why}, and {host.system or 'its system'} is not one of {', '.join(catalogue['systems'])}. Install one yourself."
        )
    source = _source(host, wanted, catalogue)
    chosen = _set(host.system, source, wanted.branch, catalogue)
    if chosen is None:
        offers = "; ".join(
            f"vllm_nvidia_source: {one['source']} with {', '.join(one['branches'])}"
            for one in catalogue["sets"]
            if one["system"] == _distribution(host.system)
        )
        return _refuse(
            f"{why}, and there is no such driver for {host.system} with vllm_nvidia_source: {wanted.source}. There are: {offers}. Choose one of these."
        )
    kinds = _kind_of_modules(host, wanted, catalogue)
    if isinstance(kinds, Decision):
        return kinds
    if problem := _key_problem(host, source, wanted, catalogue):
        return _refuse(f"{why}, {problem}")
    if not chosen["prebuilt"] and host.secure_boot and not host.enrolled:
        return _refuse(f"{why}, {_secure_boot(host, catalogue)}")
    images = kernel_names(one.name for one in host.packages)
    # Prebuilt modules are newer only with their kernel.
    kernels = (
        [one.name for one in host.packages if is_kernel_metapackage(one.name)]
        if chosen["prebuilt"] and wanted.update
        else []
    )
    manager = (chosen["fabric_manager"],) if host.nvswitch else ()
    return Decision(
        "install",
        reasons=reasons,
        branch=wanted.branch,
        source=source,
        packages=_named((*chosen["packages"], *chosen["modules"][kinds], *manager), wanted.branch, host, images),
        optional=_named(chosen["if_offered"], wanted.branch, host, images),
        beside=_named((*chosen["beside"][kinds], *kernels), wanted.branch, host, images),
        prebuilt=bool(chosen["prebuilt"]),
        may_remove=True,
        reboot=reboot_reasons(host),
    )


def _install_fabric_manager(
    version: str, there: str, host: Host, wanted: Wanted, catalogue: Mapping[str, Any]
) -> Decision:
    """Return the installation of the fabric manager that fits the driver, which stays."""
    why = f"{host.name} has an NVSwitch, the driver {version} and {there}: CUDA needs the fabric manager {version}, exactly as the driver"
    known = host.system in catalogue["systems"]
    source = _source(host, replace(wanted, source="auto"), catalogue) if known else ""
    branch = branch_of(version)
    chosen = _set(host.system, source, branch, catalogue) if known else None
    if not wanted.manage or chosen is None:
        return _refuse(f"{why}. Install it, or update the driver with vllm_nvidia_manage and vllm_nvidia_update: true.")
    if problem := _key_problem(host, source, wanted, catalogue):
        return _refuse(f"{why}, {problem}")
    return Decision(
        "install",
        reasons=(f"it has an NVSwitch and {there}",),
        branch=branch,
        source=source,
        packages=_named((chosen["fabric_manager"],), branch, host, []),
        version=version,
        prebuilt=any(_PREBUILT.fullmatch(one.name) for one in host.packages),
        reboot=reboot_reasons(host),
    )


def _kind_of_modules(host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> str | Decision:
    """Return ``open`` or ``proprietary``; a refusal where the GPUs of a host need both."""
    if not host.old_gpus:
        return "open"
    old = ", ".join(f"10de:{gpu.device_id} at {gpu.bus_id}" for gpu in host.old_gpus)
    newest_need = [
        gpu for gpu in host.gpus if int(gpu.device_id, 16) >= FIRST_BLACKWELL or gpu.device_id in GRACE_HOPPER
    ]
    if not newest_need and not catalogue["branches"][wanted.branch].get("open_only"):
        return "proprietary"
    because = (
        f"the GPU at {newest_need[0].bus_id} only by the open ones"
        if newest_need
        else f"the branch {wanted.branch} has only the open ones"
    )
    return _refuse(
        f"{host.name} has a GPU older than Turing ({old}), which is driven by the proprietary kernel modules, and {because}. Take the old GPU out"
        f"{'' if newest_need else ', or choose another vllm_nvidia_branch'}."
    )


def _key_problem(host: Host, source: str, wanted: Wanted, catalogue: Mapping[str, Any]) -> str:
    if source != "nvidia" or wanted.has_key or catalogue["systems"][host.system].get("key_fingerprint"):
        return ""
    return (
        f"and the key of NVIDIA's repository for {host.system} is not known here. Give it in vllm_nvidia_key (the text from BEGIN PGP PUBLIC KEY BLOCK on), "
        "or take the driver of the distribution (vllm_nvidia_source)."
    )


def _secure_boot(host: Host, catalogue: Mapping[str, Any]) -> str:
    certificate = catalogue["systems"][host.system]["signing_certificate"]
    prebuilt = any(one["system"] == _distribution(host.system) and one["prebuilt"] for one in catalogue["sets"])
    other = " Or take the distribution's signed modules: vllm_nvidia_source: ubuntu." if prebuilt else ""
    return (
        f"whose modules are built on the host, and Secure Boot is on and does not know the key they are signed with ({certificate}): the kernel would refuse "
        "them. Install dkms and mokutil; 'dkms generate_mok' makes the key where there is none (older dkms: on the first build of any module); "
        f"'mokutil --import {certificate}' asks for a password, which the firmware's console wants at the next boot. Then run the play again. "
        f"Or turn Secure Boot off.{other}"
    )


def _source(host: Host, wanted: Wanted, catalogue: Mapping[str, Any]) -> str:
    """Return where the driver is to come from: by default from where the one comes that is there."""
    if wanted.source != "auto":
        return wanted.source
    return _origin(host) or str(catalogue["systems"][host.system]["source"])


def _origin(host: Host) -> str:
    """Return whose packages the driver is of, "" for nobody's that is known."""
    core = _core(host)
    makers = " ".join(one.maintainer.lower() for one in core)
    # Debian has no package of that name; who maintains it is not sure.
    if "nvidia.com" in makers or any(one.name == "nvidia-driver-cuda" for one in core):
        return "nvidia"
    return "ubuntu" if "ubuntu" in makers else ""


def _set(system: str, source: str, branch: str, catalogue: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for one in catalogue["sets"]:
        if (one["system"], one["source"]) == (_distribution(system), source) and branch in one["branches"]:
            found: Mapping[str, Any] = one
            return found
    return None


def _named(names: Iterable[str], branch: str, host: Host, images: Sequence[str]) -> tuple[str, ...]:
    """Return names of packages for this branch and kernel; one with ``{image}`` for each of the kernel metapackages."""
    found: list[str] = []
    for name in names:
        for image in images if "{image}" in name else [""]:
            found.append(name.format(branch=branch, kernel=host.kernel, image=image))
    return tuple(dict.fromkeys(found))


def _core(host: Host) -> list[Package]:
    """Return the packages that must be of one version: the libraries, and the modules' source."""
    return [one for one in host.packages if _USER_SPACE.fullmatch(one.name) or _MODULE_SOURCE.fullmatch(one.name)]


def _distribution(system: str) -> str:
    return system.partition("-")[0]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse(why: str) -> Decision:
    return Decision("refuse", refusal=why)
