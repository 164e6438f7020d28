# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `nvidia_driver` on a host whose APT and systemd do as they are told. The scenario `nvidia` has the real ones."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _nvidia_smi
from ansible_collections.gpuops.vllm.plugins.modules import nvidia_driver

REPO = Path(__file__).resolve().parents[4]
DATA = Path(__file__).parents[1] / "data/nvidia_smi"
CATALOGUE: dict[str, Any] = yaml.safe_load((REPO / "roles/vllm_nvidia/vars/main.yml").read_text())[
    "__vllm_nvidia_catalogue"
]
NVIDIAS = "NVIDIA CORPORATION <cudatools@nvidia.com>"
PLACES = ("SOURCE", "KEY", "PIN", "UPGRADES", "NEEDRESTART", "MODPROBE")
DRIVER = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced", "libcuda1")
KERNEL = "6.1.0-41-amd64"
BODY = b"\x04" + b"a public key" * 4
TEXT = base64.b64encode(bytes([0xC6, len(BODY)]) + BODY).decode()
ARMORED = f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{TEXT[:64]}\n{TEXT[64:]}\n-----END PGP PUBLIC KEY BLOCK-----\n"
FINGERPRINT = hashlib.sha1(b"\x99" + len(BODY).to_bytes(2, "big") + BODY, usedforsecurity=False).hexdigest().upper()


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class Host:
    """A Debian 12 with one H100. ``installed`` has versions by name, ``said`` the commands that changed something."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.check_mode = False
        self.installed: dict[str, str] = {}
        self.held: set[str] = set()
        self.offers = {name: ["595.45.04-1", "580.126.20-1"] for name in (*DRIVER, "nvidia-fabricmanager")}
        self.offers[f"linux-headers-{KERNEL}"] = ["6.1.158-1"]
        self.units = {"nvidia-persistenced.service": "disabled"}
        self.update: tuple[int, str, str] = (0, "", "")
        self.simulation: tuple[int, str, str] = (0, "Inst nvidia-driver-cuda (580.126.20-1)\n", "")
        self.modprobe: Callable[[], None] = lambda: None
        self.said: list[str] = []
        self.warnings: list[str] = []
        self.put("etc/os-release", "ID=debian\nVERSION_ID=12\n")
        for name, text in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")):
            self.put(f"sys/bus/pci/devices/0000:18:00.0/{name}", text)
        self.put("mirror/debian12/x86_64/3bf863cc.pub", ARMORED)
        self.params: dict[str, Any] = {
            "name": "gpu01", "catalogue": CATALOGUE, "manage": True, "branch": "580", "source": "auto", "update": False,
            "repository": f"file:{root}/mirror", "key": "", "key_fingerprint": FINGERPRINT, "allow_reboot": False, "min_driver": "580",
        }  # fmt: skip

    def put(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def install(self, version: str = "580.126.20", loaded: str = "") -> None:
        self.installed = dict.fromkeys(DRIVER, f"{version}-1")
        if loaded:
            self.put("sys/module/nvidia/version", loaded)

    def run(self, argv: tuple[str, ...]) -> tuple[int, str, str]:
        """What is asked without the module."""
        if argv[0] == "dpkg-query":
            rows = (
                f"installed\t{'hold' if name in self.held else 'install'}\t{name}\t{version}\t{NVIDIAS}"
                for name, version in self.installed.items()
            )
            return 0, "\n".join(rows), ""
        if argv[0] == "modinfo":
            return 1, "", "modinfo: ERROR: Module nvidia not found."
        loaded = self.root / "sys/module/nvidia/version"
        if not self.installed:
            return 127, "", ""
        version = self.installed["libcuda1"].removesuffix("-1")
        if not loaded.exists():
            return 9, (DATA / "no_communication.txt").read_text(), ""
        if loaded.read_text() != version:
            return 18, (DATA / "mismatch.txt").read_text(), ""
        return 0, (DATA / "h100_8.csv").read_text().splitlines()[0], ""

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        command = " ".join(argv)
        if argv[0] == "apt-cache":
            rows = [f" {name} | {version} | file:/x" for name in argv[2:] for version in self.offers.get(name, [])]
            return 0, "\n".join(rows), ""
        if argv[0].endswith("apt-get"):
            self.said.append("update" if argv[-1] == "update" else "simulate")
            return self.update if argv[-1] == "update" else self.simulation
        if argv[:2] == ["systemctl", "show"]:
            state = self.units.get(argv[-1])
            return (
                0,
                f"LoadState={'loaded' if state else 'not-found'}\nUnitFileState={state or ''}\nActiveState=inactive\n",
                "",
            )
        if argv[0] == "dpkg-query":
            return 0, "", ""
        if argv[:2] == ["apt-mark", "showhold"]:
            return 0, "\n".join(self.held), ""
        self.said.append(command)
        if argv[0] == "apt-mark":
            self.held |= set(argv[2:])
        if argv[:2] == ["systemctl", "enable"]:
            self.units[argv[-1]] = "enabled"
        if argv[0] == "modprobe":
            self.modprobe()
            return 1, "", "modprobe: FATAL: Module nvidia-uvm not found"
        return 0, "", ""

    def get_bin_path(self, name: str, opt_dirs: list[str] | None = None) -> str:
        return name

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})

    def call(self, phase: str, **params: Any) -> dict[str, Any]:
        """Call the module once; the result."""
        self.said.clear()
        self.params = {**self.params, **params, "phase": phase}
        with pytest.raises(EndedError) as ended:
            getattr(nvidia_driver.Driver(self), phase)()  # type: ignore[arg-type]
        return ended.value.result

    def files(self) -> set[str]:
        return {name for name in PLACES if getattr(nvidia_driver, name).exists()}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in PLACES:
        monkeypatch.setattr(nvidia_driver, name, tmp_path / "etc" / name.lower())
    monkeypatch.setattr(nvidia_driver, "OTHER_SOURCES", (tmp_path / "sources.list", tmp_path / "sources.list.d"))
    monkeypatch.setattr(nvidia_driver, "ROOT", tmp_path)
    monkeypatch.setattr("os.uname", lambda: type("uname", (), {"machine": "x86_64", "release": KERNEL}))
    found = Host(tmp_path)
    monkeypatch.setattr(_nvidia_smi, "run", found.run)
    return found


# --- a bare host -----------------------------------------------------------------------------------------------


def test_a_bare_host_gets_source_pins_and_the_command(host: Host) -> None:
    done = host.call("install")
    assert host.files() == set(PLACES)
    assert done["argv"][-4:] == [
        "nvidia-driver-cuda=580.126.20-1", "nvidia-kernel-open-dkms=580.126.20-1", "nvidia-persistenced=580.126.20-1", f"linux-headers-{KERNEL}",
    ]  # fmt: skip
    assert (done["changed"], done["action"], done["comes"]) == (True, "install", True)
    assert f"Signed-By: {nvidia_driver.KEY}" in nvidia_driver.SOURCE.read_text()
    assert nvidia_driver.KEY.read_text() == ARMORED


@pytest.mark.parametrize("phase", ["check", "install", "configure", "prove"])
def test_in_check_mode_nothing_is_written_or_asked(host: Host, phase: str) -> None:
    host.check_mode = True
    done = host.call(phase)
    assert host.files() == set()
    assert host.said == []
    assert "failed" not in done
    if phase in ("check", "install"):
        assert done["actions"][:1] == [
            "install nvidia-driver-cuda, nvidia-kernel-open-dkms of the branch 580, since it has no NVIDIA driver"
        ]


def test_a_diff_shows_the_files_once(host: Host) -> None:
    host.check_mode = True
    assert host.call("check")["diff"] == []
    *shown, told = host.call("install")["diff"]
    assert told["prepared"].startswith("install nvidia-driver-cuda, nvidia-kernel-open-dkms of the branch 580, since")
    assert [one["after_header"] for one in shown] == [
        str(getattr(nvidia_driver, name)) for name in ("PIN", "UPGRADES", "NEEDRESTART", "MODPROBE")
    ]
    host.check_mode = False
    assert len(host.call("install")["diff"]) == 6
    host.install(loaded="580.126.20")
    assert host.call("configure")["diff"] == []


def test_the_check_changes_nothing_and_says_what_comes(host: Host) -> None:
    done = host.call("check")
    assert (done["changed"], done["pending"], done["comes"], done["driver_version"]) == (False, True, True, "")
    assert host.files() == set()


def test_a_switch_brings_the_fabric_manager_along(host: Host) -> None:
    for name, text in (("vendor", "0x10de"), ("device", "0x22a3"), ("class", "0x068000")):
        host.put(f"sys/bus/pci/devices/0000:03:00.0/{name}", text)
    assert "nvidia-fabricmanager=580.126.20-1" in host.call("install")["argv"]


def test_an_installation_that_was_cut_off_goes_on(host: Host) -> None:
    host.simulation = (0, "Conf nvidia-kernel-open-dkms (580.126.20-1)\n", "")
    assert host.call("install")["argv"] != []
    host.simulation = (0, "0 upgraded, 0 newly installed\n", "")
    assert host.call("install")["argv"] == []


# --- nothing is left of what is refused ------------------------------------------------------------------------


def refused(host: Host, **params: Any) -> str:
    before = host.files()
    done = host.call("install", **params)
    assert done["failed"]
    assert done["changed"] is False
    assert host.files() == before
    return str(done["msg"])


def test_a_branch_that_the_repository_does_not_have(host: Host) -> None:
    assert (
        "do not have a driver of the branch 620 in all its parts. They have nvidia-driver-cuda: 595.45.04, 580.126.20"
        in refused(host, branch="620")
    )


def test_files_of_before_are_as_before(host: Host) -> None:
    nvidia_driver.PIN.write_text("mine\n")
    host.update = (100, "", "E: no route to host")
    assert "apt-get update failed: E: no route to host. Nothing was installed" in refused(host)
    assert nvidia_driver.PIN.read_text() == "mine\n"


def test_a_key_with_another_fingerprint(host: Host) -> None:
    message = refused(host, key_fingerprint="")
    assert (
        f"3bf863cc.pub has the fingerprint {FINGERPRINT}, and not {CATALOGUE['systems']['debian-12']['key_fingerprint']}"
        in message
    )
    assert host.said == []


def test_a_key_that_is_given(host: Host) -> None:
    (host.root / "mirror/debian12/x86_64/3bf863cc.pub").unlink()
    assert "cannot be read" in refused(host)
    assert "the key in vllm_nvidia_key is no OpenPGP key" in refused(host, key="none")
    assert "failed" not in host.call("install", key=ARMORED, key_fingerprint="")


# GnuPG and APT see a block here as well, since they do not look at the end of the line.
HIDDEN = ARMORED.replace("BLOCK-----\n", "BLOCK----- \n", 1)


@pytest.mark.parametrize("text", [ARMORED + HIDDEN, HIDDEN + ARMORED, f"a word before\n{ARMORED}", f"{ARMORED}after\n"])
def test_a_key_with_something_beside_it_is_refused(host: Host, text: str) -> None:
    host.put("mirror/debian12/x86_64/3bf863cc.pub", text)
    assert "3bf863cc.pub is no OpenPGP key (needs one block from " in refused(host)


def test_what_is_written_is_what_was_checked(host: Host) -> None:
    host.put("mirror/debian12/x86_64/3bf863cc.pub", ARMORED.replace("\n\n", "\r\nVersion: 2\r\n\r\n"))
    host.call("install")
    assert nvidia_driver.KEY.read_text() == ARMORED


@pytest.mark.parametrize("beside", [HIDDEN, "\udcff"])
def test_a_key_that_is_there_is_judged_as_one_that_is_fetched(host: Host, beside: str) -> None:
    host.call("install")
    nvidia_driver.KEY.write_bytes((ARMORED + beside).encode(errors="surrogateescape"))
    assert host.call("install")["actions"][0] == f"wrote {nvidia_driver.KEY}"
    assert nvidia_driver.KEY.read_text() == ARMORED


def test_a_key_that_is_there_is_not_fetched_again(host: Host) -> None:
    host.call("install")
    (host.root / "mirror/debian12/x86_64/3bf863cc.pub").unlink()
    assert "failed" not in host.call("install")


def test_other_packages_are_not_removed_for_it(host: Host) -> None:
    host.simulation = (
        0,
        "Remv nvidia-kernel-dkms [535]\nRemv linux-image-amd64 [6.1]\nInst nvidia-driver-cuda (580)\n",
        "",
    )
    assert "it would remove linux-image-amd64." in refused(host)


def test_what_others_hold_is_not_changed_for_it(host: Host) -> None:
    host.held = {"dkms", "libcuda1"}
    host.simulation = (0, "Inst libcuda1 [570.1.1-1] (580)\nInst dkms [3.0.10-8] (1:3.4.0-1)\n", "")
    assert "it would change dkms, which somebody holds." in refused(host)


def test_an_update_names_what_is_held_since_apt_changes_nothing_else_of_that(host: Host) -> None:
    host.install("580.95.05", loaded="580.95.05")
    done = host.call("install", update=True)
    assert "libcuda1=580.126.20-1" in done["argv"]
    assert done["argv"][done["argv"].index("--") - 2 :][:2] == ["-o", "APT::Ignore-Hold=true"]


def test_headers_of_the_running_kernel_that_nobody_has(host: Host) -> None:
    del host.offers[f"linux-headers-{KERNEL}"]
    assert f"do not have linux-headers-{KERNEL}" in refused(host)


def test_an_address_with_a_password_is_not_shown(host: Host) -> None:
    message = refused(host, repository="https://user:secret@mirror.example.com/x")
    assert "vllm_nvidia_repository" in message
    assert "secret" not in message


def test_an_entry_of_that_address_is_not_doubled(host: Host) -> None:
    address = f"{host.params['repository']}/debian12/x86_64/"
    host.put("sources.list.d/cuda-debian12-x86_64.list", f"deb [signed-by=/x.gpg] {address} /\n")
    host.call("install")
    assert host.files() == {"PIN", "UPGRADES", "NEEDRESTART", "MODPROBE"}


def test_an_entry_without_a_signature_is_not_installed_from(host: Host) -> None:
    address = f"{host.params['repository']}/debian12/x86_64/"
    host.put("sources.list.d/mirror.list", f"deb [trusted=yes] {address} /\n")
    assert "that APT trusts without a signature: remove it, or its trusted=yes" in refused(host)
    assert host.files() == set()


# --- a driver that is there ------------------------------------------------------------------------------------


def test_a_driver_that_is_there_is_held_and_then_left_alone(host: Host) -> None:
    host.install(loaded="580.126.20")
    assert host.call("install")["argv"] == []
    done = host.call("configure")
    assert host.held == set(DRIVER)
    assert host.said == [
        "apt-mark hold libcuda1 nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced",
        "systemctl enable --now nvidia-persistenced.service",
    ]
    assert host.files() == {"PIN", "UPGRADES", "NEEDRESTART", "MODPROBE"}
    assert (done["changed"], done["reboot"], done["comes"]) == (True, [], False)
    for phase in ("check", "install", "configure"):
        again = host.call(phase)
        assert (again["changed"], again["pending"], again["actions"], host.said) == (False, False, [], [])


def test_a_driver_of_another_branch_is_pinned_to_its_own(host: Host) -> None:
    host.install("595.45.04", loaded="595.45.04")
    host.call("configure")
    assert "Pin: version 595.*\nPin-Priority: 1001" in nvidia_driver.PIN.read_text()


def test_a_driver_that_the_user_keeps_himself_is_not_touched(host: Host) -> None:
    host.install(loaded="580.126.20")
    assert host.call("check", manage=False)["pending"] is False
    host.call("configure")
    assert (host.files(), host.said, host.held) == (set(), [], set())


def test_a_reboot_without_leave_is_refused_after_the_rest_is_done(host: Host) -> None:
    host.install(loaded="580.95.05")
    done = host.call("configure")
    assert done["msg"].startswith("Reboot needed: on gpu01 the kernel runs the driver's module 580.95.05")
    assert host.held == set(DRIVER)
    # Where it will run after the reboot, it is not started before.
    assert host.said[-1] == "systemctl enable nvidia-persistenced.service"
    assert len(host.call("configure", allow_reboot=True)["reboot"]) == 1


@pytest.mark.parametrize(
    ("loaded", "params", "warned"),
    [
        ("570.86.15", {}, True),
        ("570.86.15", {"allow_reboot": True}, False),
        # Nothing runs that could stop.
        ("", {}, False),
        ("580.126.20", {}, False),
        ("580.126.20", {"update": True}, True),
    ],
)
def test_a_reboot_to_come_is_warned_of_before_anything_is_changed(
    host: Host, loaded: str, params: dict[str, Any], warned: bool
) -> None:
    host.install(loaded or "570.86.15", loaded=loaded)
    assert "failed" not in host.call("check", **params)
    assert [one.startswith(f"gpu01 runs the driver's module {loaded}") for one in host.warnings] == [True] * warned
    assert all("vllm_nvidia_allow_reboot: true" in one for one in host.warnings)


def test_a_fabric_manager_for_the_driver_that_runs_wants_no_reboot(host: Host) -> None:
    for name, text in (("vendor", "0x10de"), ("device", "0x22a3"), ("class", "0x068000")):
        host.put(f"sys/bus/pci/devices/0000:03:00.0/{name}", text)
    host.install(loaded="580.126.20")
    assert host.call("check")["action"] == "install"
    assert host.warnings == []


def test_a_module_that_is_not_loaded_is_loaded(host: Host) -> None:
    host.install()

    def modprobe() -> None:
        host.put("sys/module/nvidia/version", "580.126.20")
        host.put("sys/module/nvidia_uvm/coresize", "1")

    host.modprobe = modprobe
    assert host.call("check")["comes"]
    done = host.call("configure")
    assert (done["reboot"], done["comes"]) == ([], True)
    assert "loaded the kernel module" in done["actions"]
    assert "failed" not in host.call("prove")


def test_check_mode_loads_no_module(host: Host) -> None:
    host.install(loaded="580.126.20")
    (host.root / "sys/module/nvidia_uvm/coresize").unlink(missing_ok=True)
    host.check_mode = True
    host.call("prove")
    assert host.said == []


def test_a_module_that_cannot_be_loaded_wants_a_reboot(host: Host) -> None:
    host.install()
    assert "cannot be (modprobe: FATAL: Module nvidia-uvm not found)" in host.call("configure")["msg"]


def test_no_reboot_into_a_kernel_without_the_module(host: Host) -> None:
    host.install(loaded="580.126.20")
    host.put("boot/vmlinuz-6.1.0-42-amd64", "")
    assert "failed" not in host.call("check")
    assert "boots next into the kernel 6.1.0-42-amd64, which has no module of the driver" in host.warnings[0]
    host.install(loaded="580.95.05")
    message = host.call("configure", allow_reboot=True)["msg"]
    assert "and it would not help: gpu01 boots next into the kernel 6.1.0-42-amd64" in message


def test_nvlink_5_without_its_subnet_manager_is_refused_or_warned_of(host: Host) -> None:
    for name, text in (("vendor", "0x15b3"), ("device", "0x1021"), ("class", "0x020700"), ("vpd", "SMDL=SW_MNG")):
        host.put(f"sys/bus/pci/devices/0000:05:00.0/{name}", text)
    said = host.call("check")
    assert "has NVSwitches of NVLink 5" in said["msg"]
    assert said["changed"] is False
    host.install(loaded="580.126.20")
    host.installed["nvidia-fabricmanager"] = "580.126.20-1"
    assert host.call("check")["action"] == "keep"
    assert "does not start without NVIDIA's subnet manager" in host.warnings[0]


def test_an_installation_that_did_nothing_is_an_error(host: Host) -> None:
    assert "has ended, and still it has no NVIDIA driver" in host.call("configure")["msg"]


def test_what_does_not_work_is_not_proven(host: Host) -> None:
    host.install(loaded="580.95.05")
    message = host.call("prove", allow_reboot=True)["msg"]
    assert "The driver on gpu01 does not work. The kernel runs the driver's module 580.95.05" in message
    assert "nvidia-smi shows 0 of the 1 GPUs" in message


def test_an_initramfs_that_is_older_than_nouveaus_end_is_made_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.install(loaded="580.126.20")
    host.call("configure")
    image = host.put("boot/initrd", "")
    monkeypatch.setattr(nvidia_driver, "INITRAMFS", str(image))
    assert host.call("check")["pending"] is False
    os.utime(image, (1, 1))
    assert host.call("check")["actions"] == ["make the initramfs anew, without nouveau"]
    host.call("configure")
    assert host.said == ["update-initramfs -u -k all"]
