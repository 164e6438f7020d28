#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: See to a host's NVIDIA driver
version_added: 0.2.0
description:
  - Looks at GPUs, kernel, packages and firmware, and decides what is to be done about the driver. The role P(gpuops.vllm.vllm_nvidia#role) calls it
    once for each O(phase).
  - A driver that is there and new enough stays as it is, and is held. A host without an NVIDIA GPU is left alone.
  - Fails with the reason and the next step where the driver cannot be installed or cannot run.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Tells what would be done, and does nothing. Package sources are not asked.
    support: full
  diff_mode:
    description: Shows the files of APT, needrestart and modprobe, and in check mode what else would be done.
    support: full
options:
  phase:
    description:
      - V(check) changes nothing, refuses what cannot work, and warns of a reboot that is to come and not allowed.
      - V(install) writes the package source and the pins, and returns in RV(argv) the command that installs what is missing.
      - V(configure) holds the packages, keeps others from changing or restarting the driver, loads the module and starts the driver's daemons.
      - V(prove) fails where module and libraries differ, or a GPU or C(nvidia-uvm) is missing.
    type: str
    choices: [check, install, configure, prove]
    required: true
  name:
    description: The host's name for messages.
    type: str
    required: true
  catalogue:
    description: Branches, systems, packages and their names, as the role has them.
    type: dict
    required: true
  manage:
    description: Whether anything may be changed; else a driver that is missing or too old is refused.
    type: bool
    default: true
  branch:
    description: Branch of the driver that is installed where there is none, or one that is too old.
    type: str
    default: "580"
  source:
    description: V(nvidia), V(ubuntu), or V(auto) for the one that the driver is from already, else the system's own choice.
    type: str
    default: auto
  update:
    description: Brings a driver that is new enough to the newest version of the branch, also back to it from a newer branch.
    type: bool
    default: false
  repository:
    description: Address of NVIDIA's repositories, or of a mirror with the same folders (C(debian12/x86_64/)).
    type: str
    required: true
  key:
    description: Key of the repository as text. By default the one in the repository, if its fingerprint is the known one.
    type: str
    default: ''
  key_fingerprint:
    description: Fingerprint that the key must have; by default the known one for a key from the repository, and any for one in O(key).
    type: str
    default: ''
  allow_reboot:
    description: Whether a reboot may follow. Else a host that needs one is refused.
    type: bool
    default: false
  min_driver:
    description: Oldest driver that the engine runs on; empty for any.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: See whether the driver will do
  gpuops.vllm.nvidia_driver:
    phase: check
    name: "{{ inventory_hostname }}"
    catalogue: "{{ __vllm_nvidia_catalogue }}"
    repository: https://mirror.example.com/nvidia
  register: found
"""

RETURN = r"""
action:
  description: V(none) without a GPU, V(keep) for a driver that stays, V(install) for one that is missing, too old or not whole.
  returned: success
  type: str
actions:
  description: What was done or would be, in order.
  returned: success
  type: list
  elements: str
pending:
  description: Whether a later phase has something to do.
  returned: success
  type: bool
comes:
  description: Whether another driver runs after this phase and those after it, so that what the GPUs show now does not count.
  returned: success
  type: bool
argv:
  description: The command that installs the packages; empty where there is nothing to install.
  returned: success
  type: list
  elements: str
environment:
  description: The environment of that command.
  returned: success
  type: dict
reboot:
  description: Why the host has to be rebooted; empty where it has not.
  returned: success
  type: list
  elements: str
driver_version:
  description: Version of the driver's libraries before this call; empty where there is none.
  returned: success
  type: str
  sample: 580.126.20
"""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.gpuops.vllm.plugins.module_utils import (
    _apt,
    _driver,
    _driver_apt,
    _driver_host,
    _files,
    _nvidia_smi,
    _systemd,
)

ROOT = Path("/")
SOURCE = Path("/etc/apt/sources.list.d/vllm-nvidia.sources")
KEY = Path("/etc/apt/keyrings/vllm-nvidia.asc")
# Before any other's, such as those of NVIDIA's own pinning packages: the first record that fits counts.
PIN = Path("/etc/apt/preferences.d/00-vllm-nvidia.pref")
UPGRADES = Path("/etc/apt/apt.conf.d/52vllm-nvidia")
NEEDRESTART = Path("/etc/needrestart/conf.d/vllm-nvidia.conf")
MODPROBE = Path("/etc/modprobe.d/vllm-nvidia.conf")
OTHER_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))

# What a power cut left half done is completed first.
INSTALL = ("/bin/sh", "-c", f'{" ".join(_apt.COMPLETE)} && exec "$@"', "sh")
KERNEL_PACKAGES = ("linux-image-*", "linux-headers-*", "linux-modules-*", "linux-generic*")
PERSISTENCED = "nvidia-persistenced.service"
FABRIC_MANAGER = "nvidia-fabricmanager.service"
FOLDER_OF_MACHINE = {"x86_64": "x86_64", "aarch64": "sbsa"}
KEY_TIMEOUT_S = 30
INITRAMFS = "/boot/initrd.img-{kernel}"


class Driver:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.catalogue: dict[str, Any] = self.params["catalogue"]
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.before: dict[Path, str | None] = {}
        self.host = self.look()

    def look(self) -> _driver.Host:
        return _driver_host.read(self.params["name"], _nvidia_smi.run, ROOT, self.catalogue)

    def decide(self, **changes: Any) -> _driver.Decision:
        """The decision, where ``changes`` stand in the place of what the user wants. Fails where it is a refusal."""
        names = ("manage", "branch", "source", "update", "allow_reboot", "min_driver")
        wanted = _driver.Wanted(
            **{name: self.params[name] for name in names},
            has_key=bool(self.params["key"] or self.params["key_fingerprint"]),
        )
        if problem := _driver_apt.address_problem("vllm_nvidia_repository", self.params["repository"]):
            self.fail(problem)
        decision = _driver.decide(self.host, replace(wanted, **changes), self.catalogue)
        if decision.action == "refuse":
            self.fail(decision.refusal)
        return decision

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, actions=self.actions, changed=bool(self.actions))

    def exit(self, decision: _driver.Decision, **result: Any) -> NoReturn:
        changed = bool(self.actions) and self.params["phase"] != "check"
        if changed and self.module.check_mode:
            self.diff.append({"prepared": "".join(f"{action}\n" for action in self.actions)})
        self.module.exit_json(
            **{
                "argv": [],
                "environment": _apt.ENVIRONMENT,
                "reboot": list(decision.reboot),
                "pending": bool(self.actions),
                "comes": decision.action == "install",
                **result,
            },
            changed=changed,
            action=decision.action,
            actions=self.actions,
            driver_version=_driver.installed_version(self.host),
            diff=self.diff,
        )

    def run(self, *argv: str) -> tuple[int, str, str]:
        rc, out, err = self.module.run_command(list(argv))
        return int(rc), str(out), str(err)

    def command(self, *argv: str) -> str:
        """Run a command that has to succeed."""
        rc, out, err = self.run(*argv)
        if rc != 0:
            self.fail(f"On {self.host.name} '{' '.join(argv[:4])}' failed with {rc}: {(err or out).strip()[-2000:]}")
        return out

    # ---- The phases --------------------------------------------------------------------------------------------------

    def check(self) -> NoReturn:
        decision = self.decide()
        self.look_ahead(decision)
        if decision.action == "keep":
            for problem in (_driver.next_boot_problem(self.host), _driver.subnet_manager_problem(self.host)):
                if problem:
                    self.module.warn(problem)
        if not self.params["allow_reboot"] and (ahead := _driver.reboot_ahead(self.host, decision)):
            self.module.warn(ahead)
        comes = (
            decision.action == "install" or bool(decision.reboot) or (decision.action == "keep" and self.is_to_load())
        )
        self.exit(decision, comes=comes)

    def look_ahead(self, decision: _driver.Decision) -> None:
        """List what the later phases would do."""
        if decision.action == "install":
            what = ", ".join(decision.packages) + (
                f" {decision.version}" if decision.version else f" of the branch {decision.branch}"
            )
            self.actions.append(f"install {what}, since {'; '.join(decision.reasons)}")
            self.actions += [f"write {path}" for path in self.differing(self.files(decision))]
        elif decision.action == "keep":
            self.actions += self.left_to_do(decision)
            self.actions += [f"reboot, since {reason}" for reason in decision.reboot]

    def install(self) -> NoReturn:
        decision = self.decide()
        if decision.action != "install":
            self.exit(decision)
        if self.module.check_mode:
            self.look_ahead(decision)
            self.exit(decision)
        try:
            source = self.source_files() if decision.source == "nvidia" else {}
            self.write_files(self.files(decision) | source)
            rc, out, err = self.run(*_apt.apt_get("update"))
            if rc != 0 or "\nE:" in f"\n{err}":
                raise LookupError(f"apt-get update failed: {' '.join(_apt.complaint(err + out))}")
            argv = self.installation(decision)
        except LookupError as error:
            self.put_back()
            self.fail(
                f"{self.host.name} needs a driver ({'; '.join(decision.reasons)}), and it cannot be installed: {error}. Nothing was installed. Look at "
                "vllm_nvidia_branch, vllm_nvidia_source and vllm_nvidia_repository, and at 'apt-get update' on the host."
            )
        if argv:
            self.actions.append(f"install {' '.join(argv[argv.index('--') + 1 :])}")
        self.exit(decision, argv=argv)

    def configure(self) -> NoReturn:
        # What was updated is as it is wanted, and a reboot is spoken of at the end.
        decision = self.decide(update=False, allow_reboot=True)
        if decision.action == "install":
            if self.module.check_mode:
                self.exit(decision)
            self.fail(
                f"The installation on {self.host.name} has ended, and still {'; '.join(decision.reasons)}. See journalctl --unit=vllm-install-nvidia on it."
            )
        if decision.action == "none" or not self.params["manage"]:
            self.exit(decision)
        if self.module.check_mode:
            self.actions += self.left_to_do(decision)
            self.exit(decision)
        self.write_files(self.files(decision))
        if free := self.not_held(decision):
            self.command("apt-mark", "hold", *free)
            self.actions.append(f"held {' '.join(free)}")
        if self.initramfs_is_old():
            self.command("update-initramfs", "-u", "-k", "all")
            self.actions.append("made the initramfs anew, without nouveau")
        loads = self.is_to_load()
        reboot = list(decision.reboot) or self.load()
        for unit, begin in self.units_to_enable(bool(reboot)):
            self.command("systemctl", "enable", *(["--now"] if begin else []), unit)
            self.actions.append(f"enabled {unit}")
        if reboot and (problem := _driver.next_boot_problem(self.host)):
            self.fail(f"A reboot is needed ({' and '.join(reboot)}), and it would not help: {problem}")
        if reboot and not self.params["allow_reboot"]:
            self.fail(_driver.reboot_needed(self.host.name, reboot))
        self.exit(decision, reboot=reboot, comes=loads or bool(reboot))

    def prove(self) -> NoReturn:
        if self.host.loaded and not self.host.uvm and not self.module.check_mode:
            # As vllm-nvidia-nodes.service does at boot.
            self.run("nvidia-modprobe", "-c", "0", "-u")
            self.host = self.look()
        problems = _driver.proof_problems(self.host)
        fabric = (
            _systemd.show(FABRIC_MANAGER, ["ActiveState"], self.run_list)["ActiveState"]
            if self.host.nvswitch
            else "active"
        )
        if fabric != "active":
            problems.append(
                f"The fabric manager is {fabric}, and without it CUDA fails with error 802: see journalctl --unit={FABRIC_MANAGER} on the host."
            )
        if problems and not self.module.check_mode:
            self.fail(f"The driver on {self.host.name} does not work. {' '.join(problems)}")
        self.exit(_driver.Decision("keep"))

    # ---- Packages ----------------------------------------------------------------------------------------------------

    def installation(self, decision: _driver.Decision) -> list[str]:
        """The command that installs what is missing, tried without doing it; [] for nothing. Raises LookupError where there is no such thing."""
        # APT changes a package that is held only where it is named.
        there = [
            one.name for one in self.host.packages if one.driver and _driver.is_driver_package(one.name, self.catalogue)
        ]
        optional = (*decision.optional, *(there if decision.may_remove else ()))
        offers = _apt.offered(self.run("apt-cache", "madison", *decision.packages, *optional, *decision.beside)[1])
        chosen = _driver_apt.choose(decision.packages, optional, offers, decision.branch, decision.version)
        wanted = [f"{name}={version}" for name, version in chosen.items()]
        for name in decision.beside:
            if name in offers:
                wanted.append(name)
            elif self.host.kernel in name and not self.is_installed(name):
                raise LookupError(
                    f"the package sources do not have {name}, which the running kernel needs for the driver. Update the kernel, reboot into it and run again"
                )
        options = [
            "--no-install-recommends",
            "--allow-change-held-packages",
            "--allow-downgrades",
            "-o",
            "APT::Ignore-Hold=true",
        ]
        argv = [*_apt.KEEP_SETTINGS, "install", *options, "--", *wanted]
        rc, out, err = self.run(*_apt.apt_get("--simulate", *argv))
        if rc != 0:
            raise LookupError(f"apt-get says: {' '.join(_apt.complaint(err + out))}")
        held = set(self.run("apt-mark", "showhold")[1].split())
        removed = _apt.touched(out, "Remv", "Purg")
        changed = [name for name in _apt.changed(out) if name in held]
        others = [f"remove {name}" for name in removed if not (decision.may_remove and self.is_ours(name, decision))]
        others += [f"change {name}, which somebody holds" for name in changed if not self.is_ours(name, decision)]
        if others:
            raise LookupError(f"it would {' and '.join(others)}")
        # "Conf" alone: of an installation that was cut off.
        left = any(line.startswith(("Inst ", "Conf ")) for line in out.splitlines())
        return [*INSTALL, *_apt.apt_get(*argv)] if left else []

    def is_ours(self, name: str, decision: _driver.Decision) -> bool:
        """Whether a package is one that this role holds."""
        return _driver.is_ours(name, decision.prebuilt, self.catalogue)

    def is_installed(self, name: str) -> bool:
        return _apt.statuses(self.run(*_apt.query([name]))[1]).get(name) == "installed"

    def not_held(self, decision: _driver.Decision) -> list[str]:
        names = set(_driver.to_hold(self.host, decision.prebuilt, self.catalogue)) if decision.version else set()
        return sorted(one.name for one in self.host.packages if one.name in names and not one.held)

    # ---- Files -------------------------------------------------------------------------------------------------------

    def files(self, decision: _driver.Decision) -> dict[Path, str]:
        """What keeps the driver as it is; nothing of it for one that no package has brought."""
        if decision.action == "keep" and not _driver.to_hold(self.host, False, self.catalogue):
            return {}
        patterns = self.catalogue["patterns"]
        return {
            PIN: _driver_apt.pin_text(decision.branch, self.catalogue["pinned"], decision.source == "nvidia"),
            UPGRADES: _driver_apt.upgrades_text([*patterns, *(KERNEL_PACKAGES if decision.prebuilt else ())]),
            NEEDRESTART: _driver_apt.NEEDRESTART,
            MODPROBE: _driver_apt.MODPROBE,
        }

    def differing(self, files: dict[Path, str]) -> dict[Path, str | None]:
        """The files that are not as they should be, with what is in them; kept for the diff."""
        found = {path: _files.read_text(path) for path in files}
        found = {path: before for path, before in found.items() if before != files[path]}
        self.diff += [
            {
                "before_header": str(path),
                "after_header": str(path),
                "before": _files.shown(before or ""),
                "after": files[path],
            }
            for path, before in found.items()
            if self.params["phase"] != "check"
        ]
        return found

    def write_files(self, files: dict[Path, str]) -> None:
        for path, before in self.differing(files).items():
            self.before.setdefault(path, before)
            _files.write_atomic(path, files[path], 0o644)
            self.actions.append(f"wrote {path}")

    def put_back(self) -> None:
        """Make the files what they were before this call."""
        for path, text in self.before.items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                _files.write_atomic(path, text, 0o644)
        self.actions, self.diff = [], []

    def source_files(self) -> dict[Path, str]:
        """The repository's entry and its key; nothing where the host has an entry of that address, which APT would not take twice."""
        system = self.catalogue["systems"][self.host.system]
        folder = FOLDER_OF_MACHINE.get(self.host.machine)
        if not folder:
            raise LookupError(f"NVIDIA's repository has no folder for {self.host.machine}")
        address = f"{self.params['repository'].rstrip('/')}/{system['folder']}/{folder}/"
        others = [
            path
            for place in OTHER_SOURCES
            for path in ([place] if place.is_file() else place.glob("*"))
            if path != SOURCE
        ]
        entries = {path: _files.read_text(path) or "" for path in others if path.suffix in (".list", ".sources")}
        for path, text in entries.items():
            if _driver_apt.trusts_blindly(text, address):
                raise LookupError(
                    f"{path} has an entry of {address} that APT trusts without a signature: remove it, or its trusted=yes, or name another mirror"
                )
        if any(_driver_apt.names_address(text, address) for text in entries.values()):
            return {}
        return {KEY: self.key(address, system), SOURCE: _driver_apt.source_text(address, str(KEY))}

    def key(self, address: str, system: dict[str, Any]) -> str:
        """The repository's key as it is to be written. Raises LookupError where it is not the right one."""
        given = str(self.params["key"]).strip()
        asked = self.params["key_fingerprint"] or ("" if given else system["key_fingerprint"])
        fingerprints = [asked] if asked else []
        if not given:
            with suppress(ValueError):
                return _driver_apt.checked_key(_files.read_text(KEY) or "", fingerprints)
        if not given and not system["key_file"]:
            raise LookupError("the name of the repository's key is not known here: give the key in vllm_nvidia_key")
        where = "vllm_nvidia_key" if given else f"{address}{system['key_file']}"
        text = given or self.fetch(where)
        try:
            return _driver_apt.checked_key(text, fingerprints)
        except ValueError as error:
            raise LookupError(f"the key in {where} {error}") from error

    @staticmethod
    def fetch(address: str) -> str:
        """Raises LookupError where there is none."""
        try:
            if address.startswith("file:"):
                return Path(address.removeprefix("file:")).read_text(encoding="utf-8")
            text: bytes = open_url(address, timeout=KEY_TIMEOUT_S).read(1_000_000)
            return text.decode(errors="replace")
        except Exception as error:
            raise LookupError(f"the key {address} cannot be read ({error})") from error

    # ---- The kernel and the daemons ----------------------------------------------------------------------------------

    def left_to_do(self, decision: _driver.Decision) -> list[str]:
        """What the phase `configure` has to do, in words."""
        if not self.params["manage"] or decision.action != "keep":
            return []
        todo = [f"write {path}" for path in self.differing(self.files(decision))]
        if free := self.not_held(decision):
            todo.append(f"hold {' '.join(free)}")
        if self.initramfs_is_old():
            todo.append("make the initramfs anew, without nouveau")
        if self.is_to_load():
            todo.append("load the kernel module")
        return todo + [f"enable {unit}" for unit, _begin in self.units_to_enable(bool(decision.reboot))]

    def initramfs_is_old(self) -> bool:
        image = Path(INITRAMFS.format(kernel=self.host.kernel))
        try:
            return image.stat().st_mtime < MODPROBE.stat().st_mtime and bool(
                self.module.get_bin_path("update-initramfs", opt_dirs=["/usr/sbin"])
            )
        except FileNotFoundError:
            return False

    def is_to_load(self) -> bool:
        if not self.params["manage"]:
            return False
        return (
            not self.host.loaded and bool(_driver.to_hold(self.host, False, self.catalogue)) and not self.host.nouveau
        )

    def load(self) -> list[str]:
        """Load the module of a driver that is there; why that needs a reboot, or []."""
        if not self.is_to_load():
            return []
        said = "there is no modprobe"
        if modprobe := self.module.get_bin_path("modprobe", opt_dirs=["/usr/sbin", "/sbin"]):
            said = self.run(modprobe, "nvidia-uvm")[2].strip()
        self.host = self.look()
        if not self.host.loaded:
            return [
                f"the driver's kernel module is not loaded and cannot be ({_nvidia_smi.words(said) or 'modprobe said nothing'})"
            ]
        self.actions.append("loaded the kernel module")
        return list(_driver.reboot_reasons(self.host))

    def units_to_enable(self, reboot: bool) -> list[tuple[str, bool]]:
        """The driver's daemons that do not start by themselves, and whether they can be started now."""
        wanted = [PERSISTENCED, *([FABRIC_MANAGER] if self.host.nvswitch else [])]
        found = []
        for unit in wanted:
            state = _systemd.show(unit, ["LoadState", "UnitFileState", "ActiveState"], self.run_list)
            stopped = unit == FABRIC_MANAGER and self.host.loaded and not reboot and state["ActiveState"] != "active"
            if state["LoadState"] == "loaded" and (state["UnitFileState"] == "disabled" or stopped):
                found.append((unit, bool(self.host.loaded) and not reboot))
        return found

    def run_list(self, argv: list[str]) -> tuple[int, str, str]:
        return self.run(*argv)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "phase": {"type": "str", "choices": ["check", "install", "configure", "prove"], "required": True},
            "name": {"type": "str", "required": True},
            "catalogue": {"type": "dict", "required": True},
            "manage": {"type": "bool", "default": True},
            "branch": {"type": "str", "default": "580"},
            "source": {"type": "str", "default": "auto"},
            "update": {"type": "bool", "default": False},
            "repository": {"type": "str", "required": True},
            # Public keys.
            "key": {"type": "str", "default": "", "no_log": False},
            "key_fingerprint": {"type": "str", "default": "", "no_log": False},
            "allow_reboot": {"type": "bool", "default": False},
            "min_driver": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    module.run_command_environ_update = _apt.ENVIRONMENT
    try:
        getattr(Driver(module), module.params["phase"])()
    except OSError as error:
        module.fail_json(msg=_files.disk_trouble(error))
    except RuntimeError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
