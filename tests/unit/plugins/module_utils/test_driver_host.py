"""What is read of a host about its driver, from trees like those of real hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _driver_host, _nvidia_smi
from ansible_collections.gpuops.vllm.plugins.module_utils._driver import Package

REPO = Path(__file__).resolve().parents[4]
DATA = Path(__file__).parents[1] / "data/nvidia_smi"
CATALOGUE: dict[str, Any] = yaml.safe_load((REPO / "roles/vllm_nvidia/vars/main.yml").read_text())[
    "__vllm_nvidia_catalogue"
]
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
NOT_CHECKED = "sys/firmware/efi/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
KEYS = "sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23"
CERTIFICATE = b"0\x82\x03\x01a certificate"
DPKG = """\
installed\tinstall\tbase-files\t12.4+deb12u12\tSantiago Vila <sanvila@debian.org>
installed\thold\tnvidia-driver-cuda\t580.126.20-1\tNVIDIA CORPORATION <cudatools@nvidia.com>
installed\tinstall\tlibcuda1\t580.126.20-1\tNVIDIA CORPORATION <cudatools@nvidia.com>
config-files\tdeinstall\tnvidia-kernel-dkms\t535.247.01-1~deb12u1\tDebian NVIDIA Maintainers <x@lists.alioth.debian.org>
half-configured\tinstall\tnvidia-kernel-open-dkms\t580.126.20-1\tNVIDIA CORPORATION <cudatools@nvidia.com>
installed\tinstall\tlinux-image-amd64\t6.1.158-1\tDebian Kernel Team <debian-kernel@lists.debian.org>
installed\tinstall\tlinux-image-6.1.0-41-amd64\t6.1.158-1\tDebian Kernel Team <debian-kernel@lists.debian.org>
installed\tinstall\tnvlsm\t2025.10.11-1\tNVIDIA CORPORATION <cudatools@nvidia.com>
installed\tinstall\tlibnvidia-container1\t1.18.0-1\tNVIDIA CORPORATION <cudatools@nvidia.com>
"""


class Tree:
    """A host's files. Its programs are nvidia-smi, if ``smi`` says something, and dpkg-query."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.smi: tuple[int, str, str] = (127, "", "")
        self.modinfo: tuple[int, str, str] = (127, "", "")
        self.asked: list[str] = []
        self.put("etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n')

    def put(self, path: str, content: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    def pci(self, place: str, device: str, kind: str = "0x030200") -> None:
        for name, text in (("vendor", "0x10de"), ("device", f"0x{device}"), ("class", kind)):
            self.put(f"sys/bus/pci/devices/0000:{place}:00.0/{name}", f"{text}\n")

    def read(self) -> Any:
        def run(argv: tuple[str, ...]) -> tuple[int, str, str]:
            self.asked.append(argv[0])
            if argv[0] == "modinfo":
                assert argv == ("modinfo", "-k", "6.10.0-42-amd64", "-F", "version", "nvidia")
                return self.modinfo
            return self.smi if argv[0] == "nvidia-smi" else (0, DPKG, "")

        return _driver_host.read("gpu01", run, self.root, CATALOGUE)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_host_without_a_gpu_is_asked_nothing_more(tree: Tree) -> None:
    host = tree.read()
    assert (host.gpus, host.packages, host.system) == ((), (), "")
    assert tree.asked == ["nvidia-smi"]


def test_a_host_with_a_gpu(tree: Tree) -> None:
    tree.pci("18", "2330")
    tree.pci("05", "1bb3")
    tree.pci("03", "22a3", "0x068000")
    tree.put("sys/module/nvidia/version", "580.95.05\n")
    tree.put("sys/module/nouveau/coresize", "1\n")
    for version in ("535.247.01", "580.126.20"):
        tree.put(f"usr/lib/x86_64-linux-gnu/libcuda.so.{version}", "")
    tree.put("usr/lib/x86_64-linux-gnu/libcuda.so.1", "")
    host = tree.read()
    assert [gpu.device_id for gpu in host.gpus] == ["2330"]
    assert [gpu.device_id for gpu in host.old_gpus] == ["1bb3"]
    assert (host.system, host.nvswitch, host.nvlink5, host.loaded) == ("debian-12", True, False, "580.95.05")
    assert host.nouveau
    assert (host.library, host.uvm, host.answer, host.secure_boot) == ("580.126.20", False, None, False)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ((0, "580.126.20\n", ""), "580.126.20"),
        ((1, "", "modinfo: ERROR: Module nvidia not found."), ""),
        ((127, "", ""), None),
    ],
)
def test_the_kernel_that_boots_next(tree: Tree, answer: tuple[int, str, str], version: str | None) -> None:
    tree.pci("18", "2330")
    assert tree.read().next_kernel == ""
    # Newer by its number, not by its letters.
    for kernel in ("6.9.0-1-amd64", "6.10.0-42-amd64", "6.10.0-9-amd64"):
        tree.put(f"boot/vmlinuz-{kernel}", "")
    tree.modinfo = answer
    host = tree.read()
    assert (host.next_kernel, host.next_module) == ("6.10.0-42-amd64", version)


def test_packages_are_those_of_the_driver_that_are_installed(tree: Tree) -> None:
    nvidias = "NVIDIA CORPORATION <cudatools@nvidia.com>"
    assert _driver_host.packages(DPKG, CATALOGUE) == (
        Package("nvidia-driver-cuda", "580.126.20-1", nvidias, held=True),
        Package("libcuda1", "580.126.20-1", nvidias),
        Package("linux-image-amd64", "6.1.158-1", "Debian Kernel Team <debian-kernel@lists.debian.org>"),
        Package("nvlsm", "2025.10.11-1", nvidias),
    )


def test_a_gpu_that_only_nvidia_smi_shows_counts(tree: Tree) -> None:
    tree.smi = (0, (DATA / "h200.csv").read_text(), "")
    host = tree.read()
    assert host.answer.rows
    assert host.packages


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, (False, False)),
        ({SECURE_BOOT: b"\x06\0\0\0\x00"}, (False, False)),
        ({SECURE_BOOT: b"\x06\0\0\0\x01"}, (True, False)),
        # Switched off in shim (mokutil --disable-validation).
        ({SECURE_BOOT: b"\x06\0\0\0\x01", NOT_CHECKED: b"\x06\0\0\0\x01"}, (False, False)),
        (
            {SECURE_BOOT: b"\x06\0\0\0\x01", KEYS: b"\x06\0\0\0other", "var/lib/dkms/mok.pub": CERTIFICATE},
            (True, False),
        ),
        (
            {
                SECURE_BOOT: b"\x06\0\0\0\x01",
                KEYS: b"\x06\0\0\0list" + CERTIFICATE + b"more",
                "var/lib/dkms/mok.pub": CERTIFICATE,
            },
            (True, True),
        ),
        ({SECURE_BOOT: b"\x06\0\0\0\x01", KEYS: b"\x06\0\0\0list", "var/lib/dkms/mok.pub": b""}, (True, False)),
    ],
)
def test_secure_boot_and_the_key_it_knows(tree: Tree, files: dict[str, bytes], wanted: tuple[bool, bool]) -> None:
    tree.pci("18", "2330")
    for path, content in files.items():
        tree.put(path, content)
    host = tree.read()
    assert (host.secure_boot, host.enrolled) == wanted


@pytest.mark.parametrize(
    ("os_release", "system"),
    [
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "ubuntu-24.04"),
        ("VERSION_ID=\"13\"\nID='debian'\n", "debian-13"),
        ("", "-"),
    ],
)
def test_a_system_by_its_own_word(os_release: str, system: str) -> None:
    assert _driver_host.system_of(os_release) == system


def test_the_query_is_one_that_dpkg_answers() -> None:
    status, out, _err = _nvidia_smi.run(_driver_host.DPKG_QUERY)
    assert status == 0
    line = next(line for line in out.splitlines() if "\tdpkg\t" in line)
    assert line.split("\t")[:3] == ["installed", "install", "dpkg"]
