"""What is decided about a driver, for hosts with the packages and versions that Debian, Ubuntu and NVIDIA really have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _driver, _nvidia_smi
from ansible_collections.gpuops.vllm.plugins.module_utils._driver import Host, Package, Wanted, decide
from ansible_collections.gpuops.vllm.plugins.module_utils._gpus import PciGpu

REPO = Path(__file__).resolve().parents[4]
DATA = Path(__file__).parents[1] / "data/nvidia_smi"
CATALOGUE: dict[str, Any] = yaml.safe_load((REPO / "roles/vllm_nvidia/vars/main.yml").read_text())[
    "__vllm_nvidia_catalogue"
]

H100 = PciGpu("0000:18:00.0", "2330")
B200 = PciGpu("0000:19:00.0", "2901")
P4 = PciGpu("0000:05:00.0", "1bb3")
DEBIANS = "Debian NVIDIA Maintainers <pkg-nvidia-devel@lists.alioth.debian.org>"
NVIDIAS = "NVIDIA CORPORATION <cudatools@nvidia.com>"
UBUNTUS = "Ubuntu Core Developers <ubuntu-devel-discuss@lists.ubuntu.com>"
IMAGE = Package("linux-image-amd64", "6.1.158-1", "Debian Kernel Team <debian-kernel@lists.debian.org>")


def said(name: str, status: int = 0) -> _nvidia_smi.Answer | None:
    return _nvidia_smi.read(lambda _argv: (status, (DATA / name).read_text(), ""))


def packages(maker: str, version: str, *names: str) -> tuple[Package, ...]:
    return tuple(Package(name, version, maker) for name in names)


def nvidia(version: str) -> tuple[Package, ...]:
    """A driver of NVIDIA's repository on Debian."""
    return packages(
        NVIDIAS, f"{version}-1", "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "nvidia-kernel-open-dkms"
    )


def ubuntu(version: str, branch: str = "580") -> tuple[Package, ...]:
    names = (
        f"libnvidia-compute-{branch}-server",
        f"nvidia-utils-{branch}-server",
        f"nvidia-headless-no-dkms-{branch}-server-open",
    )
    kernel = Package(f"linux-modules-nvidia-{branch}-server-open-generic", "6.8.0-88.89", UBUNTUS)
    return (*packages(UBUNTUS, f"{version}-0ubuntu0.24.04.1", *names), kernel)


BARE = Host("gpu01", "debian-12", kernel="6.1.0-41-amd64", gpus=(H100,), packages=(IMAGE,))
RUNNING = replace(
    BARE, packages=(IMAGE, *nvidia("580.126.20")), loaded="580.126.20", answer=said("h100_8.csv"), uvm=True
)
NOBLE = replace(
    BARE,
    system="ubuntu-24.04",
    kernel="6.8.0-88-generic",
    packages=(Package("linux-image-generic", "6.8.0-88.89", UBUNTUS),),
)
YES = Wanted(allow_reboot=True)


def refused(host: Host, wanted: Wanted = YES) -> str:
    decision = decide(host, wanted, CATALOGUE)
    assert decision.action == "refuse", decision
    return decision.refusal


# --- nothing to do ---------------------------------------------------------------------------------------------


def test_a_host_without_a_gpu_is_left_alone() -> None:
    assert decide(Host("web01", "fedora-43"), Wanted(manage=False), CATALOGUE) == _driver.Decision("none")


def test_a_host_whose_gpus_are_all_too_old_is_the_plans_affair() -> None:
    assert decide(replace(BARE, gpus=(), old_gpus=(P4,)), YES, CATALOGUE).action == "none"


@pytest.mark.parametrize("version", ["580.65.06", "580.126.20", "595.45.04", "620.10"])
def test_a_driver_that_is_new_enough_stays_whatever_its_branch(version: str) -> None:
    decision = decide(replace(RUNNING, packages=(IMAGE, *nvidia(version)), loaded=version), Wanted(), CATALOGUE)
    assert (decision.action, decision.branch, decision.reboot) == ("keep", version[:3], ())


def test_what_is_held_is_the_driver_and_the_kernel_only_where_modules_are_prebuilt() -> None:
    more = packages(NVIDIAS, "1.18.0-1", "nvidia-container-toolkit", "libnvidia-container1")
    assert _driver.to_hold(replace(RUNNING, packages=(*RUNNING.packages, *more)), False, CATALOGUE) == [
        "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "nvidia-kernel-open-dkms",
    ]  # fmt: skip
    host = replace(
        NOBLE, packages=(*NOBLE.packages, *ubuntu("580.159.03")), loaded="580.159.03", answer=said("h100_8.csv")
    )
    assert decide(host, Wanted(), CATALOGUE).prebuilt
    assert _driver.to_hold(host, True, CATALOGUE) == [
        "linux-image-generic", "libnvidia-compute-580-server", "nvidia-utils-580-server", "nvidia-headless-no-dkms-580-server-open",
        "linux-modules-nvidia-580-server-open-generic",
    ]  # fmt: skip


def test_a_driver_of_nobodys_packages_stays_and_there_is_nothing_to_hold() -> None:
    host = replace(BARE, loaded="580.126.20", library="580.126.20", answer=said("h100_8.csv"))
    assert decide(host, Wanted(), CATALOGUE).action == "keep"
    assert _driver.to_hold(host, False, CATALOGUE) == []


def test_a_lost_gpu_is_the_plans_affair() -> None:
    assert decide(replace(RUNNING, answer=said("lost.txt", 15)), Wanted(), CATALOGUE).action == "keep"


# --- what is installed -----------------------------------------------------------------------------------------


def test_a_bare_debian_host() -> None:
    decision = decide(BARE, Wanted(), CATALOGUE)
    assert (decision.action, decision.source, decision.branch, decision.version) == ("install", "nvidia", "580", "")
    assert decision.packages == ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")
    assert decision.optional == ("nvidia-persistenced", "nvidia-modprobe", "firmware-nvidia-gsp")
    assert decision.beside == ("linux-headers-6.1.0-41-amd64", "linux-headers-amd64")
    assert not decision.prebuilt


def test_a_bare_ubuntu_host_gets_prebuilt_modules_for_its_kernels() -> None:
    hwe = Package("linux-image-generic-hwe-24.04", "6.17.0-20.20", UBUNTUS)
    decision = decide(replace(NOBLE, packages=(*NOBLE.packages, hwe)), Wanted(), CATALOGUE)
    assert (decision.source, decision.prebuilt) == ("ubuntu", True)
    assert decision.packages == ("nvidia-utils-580-server", "nvidia-headless-no-dkms-580-server-open")
    assert decision.beside == (
        "linux-modules-nvidia-580-server-open-6.8.0-88-generic",
        "linux-modules-nvidia-580-server-open-generic",
        "linux-modules-nvidia-580-server-open-generic-hwe-24.04",
    )


def test_ubuntu_with_nvidias_repository() -> None:
    decision = decide(NOBLE, Wanted(source="nvidia"), CATALOGUE)
    assert decision.packages == (
        "libnvidia-compute-580",
        "nvidia-compute-utils-580",
        "nvidia-utils-580",
        "nvidia-dkms-580-open",
    )
    assert decision.beside == ("linux-headers-6.8.0-88-generic", "linux-headers-generic")


@pytest.mark.parametrize(("host", "manager"), [(BARE, "nvidia-fabricmanager"), (NOBLE, "nvidia-fabricmanager-580")])
def test_an_nvswitch_brings_the_fabric_manager_in_the_same_transaction(host: Host, manager: str) -> None:
    assert manager in decide(replace(host, nvswitch=True), Wanted(), CATALOGUE).packages
    assert manager not in decide(host, Wanted(), CATALOGUE).packages


@pytest.mark.parametrize(
    ("version", "there"),
    [("", "no fabric manager"), ("580.95.05-1", "nvidia-fabricmanager 580.95.05"), ("580.126.20-1", "")],
)
def test_a_fabric_manager_has_exactly_the_drivers_version(version: str, there: str) -> None:
    manager = packages(NVIDIAS, version, "nvidia-fabricmanager") if version else ()
    decision = decide(replace(RUNNING, nvswitch=True, packages=(*RUNNING.packages, *manager)), Wanted(), CATALOGUE)
    if there:
        assert (decision.action, decision.packages, decision.version) == (
            "install",
            ("nvidia-fabricmanager",),
            "580.126.20",
        )
        assert decision.reasons == (f"it has an NVSwitch and {there}",)
        assert not decision.may_remove
    else:
        assert decision.action == "keep"


SUBNET_MANAGER = packages(NVIDIAS, "2025.10.11-1", "nvlsm")


@pytest.mark.parametrize("host", [BARE, RUNNING], ids=["without a driver", "without its fabric manager"])
def test_nvlink_5_is_refused_without_its_subnet_manager(host: Host) -> None:
    host = replace(host, nvswitch=True, nvlink5=True)
    refusal = decide(host, Wanted(), CATALOGUE).refusal
    assert "gpu01 has NVSwitches of NVLink 5 (HGX B200, B300)" in refusal
    assert "install nvlsm from it, and run the play again. Nothing was installed." in refusal
    there = replace(host, packages=(*host.packages, *SUBNET_MANAGER))
    assert decide(there, Wanted(), CATALOGUE).action == "install"


def test_a_driver_that_stays_is_only_told_of_its_missing_subnet_manager() -> None:
    manager = packages(NVIDIAS, "580.126.20-1", "nvidia-fabricmanager")
    host = replace(RUNNING, nvswitch=True, nvlink5=True, packages=(*RUNNING.packages, *manager))
    assert decide(host, Wanted(), CATALOGUE).action == "keep"
    assert "does not start without NVIDIA's subnet manager" in _driver.subnet_manager_problem(host)
    assert "nvlsm" not in _driver.to_hold(replace(host, packages=SUBNET_MANAGER), False, CATALOGUE)


def test_an_old_driver_of_nvidias_is_brought_to_the_branch() -> None:
    decision = decide(
        replace(RUNNING, packages=(IMAGE, *nvidia("570.172.08")), loaded="570.172.08"), Wanted(), CATALOGUE
    )
    assert (decision.action, decision.reasons) == ("install", ("its driver is 570.172.08, older than 580",))


def test_an_old_driver_of_ubuntus_is_replaced_by_one_of_the_same_source() -> None:
    host = replace(
        NOBLE, packages=(*NOBLE.packages, *ubuntu("535.274.02", "535")), loaded="535.274.02", answer=said("h100_8.csv")
    )
    assert decide(host, Wanted(), CATALOGUE).packages[0] == "nvidia-utils-580-server"
    stays = replace(
        host, packages=packages(NVIDIAS, "570.86.15-0ubuntu1", "libnvidia-compute-570", "nvidia-dkms-570-open")
    )
    assert decide(stays, Wanted(), CATALOGUE).source == "nvidia"


def test_packages_of_several_versions_are_brought_to_one() -> None:
    mixed = (*nvidia("580.126.20")[:3], *packages(NVIDIAS, "580.95.05-1", "nvidia-kernel-open-dkms"))
    decision = decide(replace(RUNNING, packages=mixed, loaded="580.95.05"), Wanted(), CATALOGUE)
    assert decision.action == "install"
    assert "of several versions" in decision.reasons[0]
    assert "nvidia-kernel-open-dkms 580.95.05" in decision.reasons[0]


def test_a_driver_is_mended_in_its_own_branch() -> None:
    mixed = (*nvidia("595.45.04")[:3], *packages(NVIDIAS, "595.40.01-1", "nvidia-kernel-open-dkms"))
    assert decide(replace(RUNNING, packages=mixed, loaded="595.40.01"), Wanted(), CATALOGUE).branch == "595"
    assert decide(replace(RUNNING, packages=mixed[:3], loaded=""), Wanted(), CATALOGUE).branch == "595"


def test_libraries_without_a_module_get_one() -> None:
    decision = decide(
        replace(RUNNING, packages=nvidia("580.126.20")[:3], loaded="", answer=said("no_communication.txt", 9)),
        Wanted(),
        CATALOGUE,
    )
    assert decision.reasons == ("it has the driver's libraries 580.126.20 without a kernel module",)


def test_another_branch_only_by_the_users_word() -> None:
    newer = replace(RUNNING, packages=(IMAGE, *nvidia("595.45.04")), loaded="595.45.04")
    decision = decide(newer, Wanted(update=True), CATALOGUE)
    assert (decision.action, decision.branch) == ("install", "580")
    assert decide(newer, Wanted(), CATALOGUE).action == "keep"


def test_an_old_gpu_beside_the_others_wants_the_proprietary_modules() -> None:
    assert "nvidia-kernel-dkms" in decide(replace(BARE, old_gpus=(P4,)), Wanted(), CATALOGUE).packages
    assert "only by the open ones" in refused(replace(BARE, gpus=(B200,), old_gpus=(P4,)))
    assert "the branch 620 has only the open ones" in refused(replace(BARE, old_gpus=(P4,)), Wanted(branch="620"))


def test_prebuilt_modules_are_updated_with_their_kernel() -> None:
    host = replace(
        NOBLE, packages=(*NOBLE.packages, *ubuntu("580.126.09")), loaded="580.126.09", answer=said("h100_8.csv")
    )
    assert "linux-image-generic" in decide(host, Wanted(update=True), CATALOGUE).beside
    assert "linux-image-generic" not in decide(NOBLE, Wanted(), CATALOGUE).beside
    assert "linux-image-amd64" not in decide(RUNNING, Wanted(update=True), CATALOGUE).beside


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            Wanted(branch="585"),
            "vllm_nvidia_branch is '585': needs one of 580 (until 2028-06), 595 (until 2027-03), 620 (until 2029-09)",
        ),
        (
            Wanted(branch="580", min_driver="595.10"),
            "vllm_nvidia_branch is '580', and vLLM needs a driver from 595.10 on",
        ),
        (Wanted(source="debian"), "vllm_nvidia_source is 'debian': needs one of auto, nvidia, ubuntu"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_on_every_host(wanted: Wanted, words: str) -> None:
    assert words in refused(Host("web01"), wanted)


@pytest.mark.parametrize("version", ["535.261.03-1~deb12u1", "550.163.01-2"])
def test_debians_own_driver_is_refused_with_its_removal(version: str) -> None:
    own = packages(DEBIANS, version, "libcuda1", "nvidia-smi", "nvidia-kernel-dkms")
    message = refused(
        replace(BARE, packages=(IMAGE, *own), loaded=version.partition("-")[0], answer=said("h100_8.csv"))
    )
    assert message.startswith(
        f"gpu01 has the NVIDIA driver {version.partition('-')[0]}, and vLLM needs 580 or newer. It is Debian's own"
    )
    assert "apt-get purge libcuda1 nvidia-smi nvidia-kernel-dkms && apt-get autoremove --purge" in message


def test_an_old_driver_of_nobodys_packages_is_refused() -> None:
    message = refused(replace(BARE, library="550.163.01", loaded="550.163.01"))
    assert (
        "gpu01 has the NVIDIA driver 550.163.01, and vLLM needs 580 or newer. It was not installed from packages"
        in message
    )


@pytest.mark.parametrize(("recording", "status"), [("mismatch.txt", 18), ("no_communication.txt", 9)])
def test_somebodys_own_driver_that_does_not_run_is_refused_in_its_words(recording: str, status: int) -> None:
    answer = said(recording, status)
    assert answer is not None
    assert refused(replace(BARE, packages=(), answer=answer)) == f"gpu01: {answer.problems[0]}"


def test_a_driver_that_hangs_is_refused_at_once() -> None:
    answer = _nvidia_smi.read(lambda _argv: (124, "", ""))
    assert "gave no answer within 15 s" in refused(replace(RUNNING, answer=answer))


def test_nothing_is_installed_where_the_user_keeps_the_driver_himself() -> None:
    assert "and vllm_nvidia_manage is false. Install one" in refused(BARE, Wanted(manage=False))


def test_a_system_that_is_not_known() -> None:
    assert "and fedora-43 is not one of debian-12, debian-13" in refused(replace(BARE, system="fedora-43"))
    assert decide(replace(RUNNING, system="fedora-43"), Wanted(), CATALOGUE).action == "keep"


def test_a_driver_that_a_source_does_not_have_names_those_that_there_are() -> None:
    assert "There are: vllm_nvidia_source: nvidia with 580, 595, 620." in refused(BARE, Wanted(source="ubuntu"))
    message = refused(NOBLE, Wanted(source="nvidia", branch="595"))
    assert "There are: vllm_nvidia_source: nvidia with 580; vllm_nvidia_source: ubuntu with 580, 595." in message


def test_a_key_that_is_not_known_has_to_be_given() -> None:
    resolute = replace(NOBLE, system="ubuntu-26.04")
    assert "Give it in vllm_nvidia_key" in refused(resolute, Wanted(source="nvidia"))
    assert decide(resolute, Wanted(source="nvidia", has_key=True), CATALOGUE).action == "install"
    assert decide(resolute, Wanted(), CATALOGUE).action == "install"


def test_secure_boot_without_an_enrolled_key_is_told_before_the_install() -> None:
    locked: dict[str, Any] = {"secure_boot": True, "enrolled": False}
    message = refused(replace(BARE, **locked))
    assert "mokutil --import /var/lib/dkms/mok.pub" in message
    assert "vllm_nvidia_source" not in message
    assert decide(replace(BARE, secure_boot=True, enrolled=True), Wanted(), CATALOGUE).action == "install"
    assert decide(replace(NOBLE, **locked), Wanted(), CATALOGUE).action == "install"
    assert "vllm_nvidia_source: ubuntu" in refused(replace(NOBLE, **locked), Wanted(source="nvidia"))
    assert decide(replace(RUNNING, **locked), Wanted(), CATALOGUE).action == "keep"


# --- reboots and the proof -------------------------------------------------------------------------------------


def test_a_module_of_another_version_needs_a_reboot() -> None:
    old = replace(RUNNING, loaded="580.95.05", answer=said("mismatch.txt", 18))
    message = refused(old, Wanted())
    assert message.startswith(
        "Reboot needed: on gpu01 the kernel runs the driver's module 580.95.05, and the libraries are 580.126.20."
    )
    assert "vllm_nvidia_allow_reboot: true" in message
    decision = decide(old, YES, CATALOGUE)
    assert (decision.action, len(decision.reboot)) == ("keep", 1)
    assert "Reboot needed" in refused(old, Wanted(manage=False, allow_reboot=True))


def test_nouveau_needs_a_reboot_and_a_module_that_is_only_not_loaded_does_not() -> None:
    unloaded = replace(RUNNING, loaded="", answer=said("no_communication.txt", 9))
    assert "nouveau" in refused(replace(unloaded, nouveau=True), Wanted())
    assert decide(unloaded, Wanted(), CATALOGUE) == replace(decide(RUNNING, Wanted(), CATALOGUE))


def test_a_bare_host_needs_no_reboot_beforehand() -> None:
    assert decide(replace(BARE, nouveau=True), Wanted(), CATALOGUE).reboot == ()


EIGHT = tuple(PciGpu(f"0000:{place}:00.0", "2330") for place in ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db"))


def test_a_driver_that_runs_is_proven() -> None:
    assert _driver.proof_problems(replace(RUNNING, gpus=EIGHT)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loaded": "580.95.05"}, "The kernel runs the driver's module 580.95.05, and the libraries are 580.126.20."),
        ({"loaded": ""}, "The kernel's module nvidia is not loaded."),
        ({"gpus": EIGHT[:7]}, "nvidia-smi shows 8 of the 7 GPUs on the PCI bus."),
        ({"answer": None}, "nvidia-smi shows 0 of the 8 GPUs on the PCI bus. nvidia-smi is not installed."),
        ({"uvm": False}, "The kernel's module nvidia-uvm is not loaded"),
    ],
)
def test_what_a_driver_lacks_is_said(changes: dict[str, Any], words: str) -> None:
    problems = _driver.proof_problems(replace(RUNNING, **{"gpus": EIGHT, **changes}))
    assert [problem for problem in problems if words in problem] != []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"next_kernel": "6.1.0-41-amd64", "next_module": ""}, ""),
        ({"next_kernel": "6.1.0-42-amd64", "next_module": None}, ""),
        ({"next_kernel": "6.1.0-42-amd64", "next_module": "580.126.20"}, ""),
        (
            {"next_kernel": "6.1.0-42-amd64", "next_module": ""},
            "kernel 6.1.0-42-amd64, which has no module of the driver, and the libraries are 580.126.20",
        ),
        ({"next_kernel": "6.1.0-42-amd64", "next_module": "580.95.05"}, "which has the driver's module 580.95.05"),
    ],
)
def test_a_kernel_that_boots_next_without_the_module_is_told(changes: dict[str, Any], words: str) -> None:
    problem = _driver.next_boot_problem(replace(RUNNING, **changes))
    assert (words in problem) if words else (problem == "")


# --- names and versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "driver"),
    [
        ("580.126.20-0ubuntu0.24.04.1", "580.126.20"), ("580.173.02-1ubuntu1", "580.173.02"), ("535.261.03-1~deb12u1", "535.261.03"),
        ("620.10", "620.10"), ("6.8.0-88.89", ""), ("1.18.0-1", ""), ("1:3.4.0-1", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_drivers_version_in_a_packages(version: str, driver: str) -> None:
    assert _driver.driver_version(version) == driver


@pytest.mark.parametrize(
    ("name", "is_driver"),
    [
        ("libcuda1", True), ("nvidia-dkms-580-server-open", True), ("linux-modules-nvidia-580-server-open-6.8.0-88-generic", True),
        ("nvidia-fabricmanager-580", True), ("firmware-nvidia-gsp", True), ("nvidia-container-toolkit", False), ("libnvidia-container1", False),
        ("nvidia-driver-pinning-580", False), ("libnvidia-egl-gbm1", False), ("linux-image-amd64", False), ("cuda-toolkit-13-0", False),
    ],
)  # fmt: skip
def test_what_is_a_drivers_package(name: str, is_driver: bool) -> None:
    assert _driver.is_driver_package(name, CATALOGUE) is is_driver


@pytest.mark.parametrize(("name", "is_one"), [
    ("linux-image-amd64", True), ("linux-headers-generic-hwe-24.04", True), ("linux-generic", True), ("linux-aws", True),
    ("linux-image-6.1.0-41-amd64", False), ("linux-headers-6.8.0-88", False), ("linux-libc-dev", False), ("linux-base", False),
])  # fmt: skip
def test_what_is_a_kernels_metapackage(name: str, is_one: bool) -> None:
    assert _driver.is_kernel_metapackage(name) is is_one


def test_the_catalogue_has_what_the_code_reads() -> None:
    for entry in CATALOGUE["systems"].values():
        assert entry.keys() == {"source", "folder", "key_file", "key_fingerprint", "signing_certificate"}
    for one in CATALOGUE["sets"]:
        assert one.keys() == {
            "system", "source", "branches", "prebuilt", "packages", "modules", "if_offered", "fabric_manager", "beside",
        }  # fmt: skip
        assert set(one["branches"]) <= set(CATALOGUE["branches"])
        for kind in ("open", "proprietary"):
            names = [*one["packages"], *one["modules"][kind], *one["if_offered"], one["fabric_manager"]]
            # Else a pin or a hold would pass it by.
            assert all(_driver.is_driver_package(name.format(branch="580"), CATALOGUE) for name in names)
