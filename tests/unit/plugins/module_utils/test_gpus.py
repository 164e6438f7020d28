"""GPUs as nvidia-smi shows them, as the PCI bus shows them, and as the inventory declares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus
from hypothesis import given, settings
from hypothesis import strategies as st

REPO = Path(__file__).resolve().parents[4]
DATA = Path(__file__).parents[1] / "data/nvidia_smi"
CATALOGUES = REPO / "roles/vllm_plan/vars/main"
SHIPPED: dict[str, dict[str, Any]] = yaml.safe_load((CATALOGUES / "gpus.yml").read_text())["__vllm_plan_known_gpus"]
PROFILES: dict[str, Any] = yaml.safe_load((CATALOGUES / "profiles.yml").read_text())["__vllm_plan_profiles"]

VGA, GPU_3D, AUDIO, USB, BRIDGE, INFINIBAND = "0x030000", "0x030200", "0x040300", "0x0c0330", "0x068000", "0x020700"
H100_PLACES = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")
NO_SMI = (127, "", "")


class Bus:
    """A tree like /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, place: str, device: str, kind: str = GPU_3D, vendor: str = "0x10de") -> Path:
        folder = self.root / "bus/pci/devices" / f"{place if place.count(':') else f'0000:{place}:00'}.0"
        folder.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("device", f"0x{device}"), ("class", kind)):
            (folder / name).write_text(f"{text}\n")
        return folder

    def driver(self, version: str) -> None:
        (self.root / "module/nvidia").mkdir(parents=True)
        (self.root / "module/nvidia/version").write_text(f"{version}\n")

    def read(self, answer: tuple[int, str, str] = NO_SMI) -> _gpus.Found:
        return _gpus.read(lambda _argv: answer, self.root, SHIPPED)


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def said(name: str, status: int = 0) -> tuple[int, str, str]:
    return status, (DATA / name).read_text(), ""


def kinds(gpus: Sequence[_gpus.Gpu]) -> list[str]:
    return [gpu["kind"] for gpu in gpus]


# --- nvidia-smi ------------------------------------------------------------------------------------------------


def test_h200_with_a_driver(bus: Bus) -> None:
    """CUDA's own figure on this machine is 150109880320 bytes."""
    bus.add("0000:00:06", "2335")
    gpus, problem, nvswitch, _complete = bus.read(said("h200.csv"))
    assert gpus == [
        {
            "index": 0,
            "uuid": "GPU-00000000-0000-0000-0000-000000000000",
            "name": "NVIDIA H200",
            "kind": "h200-sxm-141gb",
            "profile": "h200_fp8",
            "pci_id": "2335",
            "pci_bus_id": "0000:00:06.0",
            "memory_gib": 139.8,
            "compute_capability": "9.0",
            "fp8": True,
            "bandwidth_gb_s": 4800.0,
            "driver_version": "580.159.04",
            "mig": False,
            "source": "nvidia-smi",
        }
    ]
    assert abs(gpus[0]["memory_gib"] - 150109880320 / 2**30) < 0.01
    assert (problem, nvswitch) == ("", False)


def test_kind_and_profile_are_the_same_with_and_without_a_driver(bus: Bus) -> None:
    """Else the engine's arguments would change when the driver comes."""
    for place in reversed(H100_PLACES):
        bus.add(place, "2330")
    before, problem_before, _nvswitch, _complete = bus.read()
    after, problem_after, _nvswitch, _complete = bus.read(said("h100_8.csv"))
    assert (problem_before, problem_after) == ("", "")
    for key in (
        "index",
        "kind",
        "profile",
        "pci_id",
        "pci_bus_id",
        "name",
        "compute_capability",
        "fp8",
        "bandwidth_gb_s",
    ):
        assert [gpu[key] for gpu in before] == [gpu[key] for gpu in after], key
    assert [gpu["index"] for gpu in after] == list(range(8))
    assert {gpu["source"] for gpu in before} == {"sysfs"}
    assert all(abs(one["memory_gib"] - other["memory_gib"]) < 0.2 for one, other in zip(before, after, strict=True))


def test_driver_that_does_not_tell_reserved_memory(bus: Bus) -> None:
    """The total alone is more than CUDA sees: the catalogue's figure counts, or the total where that is less."""
    text = (DATA / "h100_8.csv").read_text().splitlines()[0].replace("81559, 551", "81559, [N/A]")
    assert bus.read((0, text, ""))[0][0]["memory_gib"] == 79.1
    assert bus.read((0, text.replace("81559", "40960"), ""))[0][0]["memory_gib"] == 40.0


def test_pci_id_comes_from_the_bus_where_the_driver_does_not_tell(bus: Bus) -> None:
    bus.add("18", "2330")
    text = (
        (DATA / "h100_8.csv")
        .read_text()
        .splitlines()[0]
        .replace("0x233010DE", "[N/A]")
        .replace("NVIDIA H100", "NVIDIA X")
    )
    assert [(gpu["kind"], gpu["pci_id"], gpu["name"]) for gpu in bus.read((0, text, ""))[0]] == [
        ("h100-sxm-80gb", "2330", "NVIDIA X 80GB HBM3")
    ]


def test_gpu_of_no_catalogue_goes_by_what_the_driver_says(bus: Bus) -> None:
    text = "0, GPU-a, NVIDIA RTX 6000 Ada Generation, 49140, 600, 8.9, 580.1, 00000000:01:00.0, 0x26B110DE, [N/A]\n"
    gpus, problem, _nvswitch, _complete = bus.read((0, text, ""))
    assert (gpus[0]["kind"], gpus[0]["profile"], gpus[0]["fp8"], gpus[0]["memory_gib"], problem) == (
        "",
        "",
        True,
        47.4,
        "",
    )
    assert gpus[0]["pci_id"] == "26b1"
    assert bus.read((0, text.replace("8.9", "8.6"), ""))[0][0]["fp8"] is False


def test_missing_compute_capability(bus: Bus) -> None:
    known, problem, _nvswitch, _complete = bus.read(said("no_capability.csv"))
    assert (known[0]["compute_capability"], known[0]["fp8"], problem) == ("9.0", True, "")
    other = (DATA / "no_capability.csv").read_text().replace("2330", "2BFF").replace("H100", "X100")
    gpus, problem, _nvswitch, _complete = bus.read((0, other, ""))
    assert gpus[0]["compute_capability"] == ""
    assert problem == (
        "nvidia-smi does not tell the compute capability of GPU 0 (NVIDIA X100 80GB HBM3): needs one, such as 9.0. "
        "Update the driver, or add this GPU to vllm_plan_known_gpus."
    )


def test_mig(bus: Bus) -> None:
    gpus, problem, _nvswitch, _complete = bus.read(said("a100_2_mig.csv"))
    assert [(gpu["mig"], gpu["kind"], gpu["pci_id"]) for gpu in gpus] == [
        (False, "a100-sxm-40gb", "20b0"),
        (True, "a100-sxm-40gb", "20b0"),
    ]
    assert problem == (
        "GPU 1 (NVIDIA A100-SXM4-40GB) has MIG enabled: needs it disabled, an instance takes whole GPUs. Run "
        "'nvidia-smi -i 0000:0f:00.0 -mig 0' on the host, or leave this GPU out with gpus in vllm_models."
    )


def test_gpu_that_only_the_bus_shows(bus: Bus) -> None:
    for place in (*H100_PLACES, "41"):
        bus.add(place, "2330")
    gpus, problem, _nvswitch, _complete = bus.read(said("h100_8.csv"))
    assert len(gpus) == 8
    assert problem == (
        "nvidia-smi shows 8 of the 9 GPUs on the PCI bus: missing is 0000:41:00.0 (NVIDIA H100 80GB HBM3), fallen off the bus or "
        "unknown to the driver. Look for NVRM and Xid lines in 'dmesg' and reboot the host."
    )


def test_lost_gpu_is_named_once(bus: Bus) -> None:
    for place in ("18", "2a", "41", "5d"):
        bus.add(place, "2330")
    gpus, problem, _nvswitch, _complete = bus.read(said("lost.txt", 15))
    assert [gpu["pci_bus_id"] for gpu in gpus] == ["0000:18:00.0", "0000:2a:00.0", "0000:5d:00.0"]
    assert problem.count("0000:41:00.0") == 1
    _gpus_found, problem, _nvswitch, _complete = bus.read(said("lost_unnamed.txt"))
    assert "missing is 0000:2a:00.0 (NVIDIA H100 80GB HBM3), 0000:41:00.0" in problem


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said("mismatch.txt", 18), "Driver/library version mismatch"),
        (said("no_devices.txt", 6), "No devices were found"),
        (said("truncated.csv"), "nvidia-smi printed '1, GPU-"),
        ((124, "", ""), "gave no answer within 15 s"),
    ],
)
def test_bus_counts_where_nvidia_smi_fails(bus: Bus, answer: tuple[int, str, str], words: str) -> None:
    for place in H100_PLACES:
        bus.add(place, "2330")
    bus.driver("580.159.04")
    gpus, problem, _nvswitch, _complete = bus.read(answer)
    assert kinds(gpus) == ["h100-sxm-80gb"] * 8
    assert {gpu["driver_version"] for gpu in gpus} == {"580.159.04"}
    assert words in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("answer", "places", "complete"),
    [
        (said("h100_8.csv"), H100_PLACES, True),
        (said("a100_2_mig.csv"), (), True),
        (said("inforom.csv"), ("18",), True),
        (NO_SMI, H100_PLACES, True),
        # One is gone, or nobody knows.
        (said("h100_8.csv"), (*H100_PLACES, "41"), False),
        (said("lost.txt", 15), ("18", "2a", "41", "5d"), False),
        (said("unknown_error.csv"), (), False),
        (said("mismatch.txt", 18), H100_PLACES, False),
    ],
)
def test_whether_a_gpu_may_be_missing(
    bus: Bus, answer: tuple[int, str, str], places: tuple[str, ...], complete: bool
) -> None:
    for place in places:
        bus.add(place, "2330")
    assert bus.read(answer).complete is complete


# --- PCI -------------------------------------------------------------------------------------------------------


def test_host_without_gpus(bus: Bus) -> None:
    assert bus.read() == ([], "", False, True)
    bus.add("00", "1237", "0x060000", "0x8086")
    assert bus.read() == ([], "", False, True)


def test_bare_host(bus: Bus) -> None:
    """Sorted by place; sound, USB and mainboards of NVIDIA's are no GPUs."""
    bus.add("10000:01:00", "2684", VGA)
    bus.add("2000:01:00", "27b8")
    bus.add("41", "20b2")
    bus.add("0f", "2684", VGA)
    bus.add("10", "22ba", AUDIO)
    bus.add("11", "1ad8", USB)
    gpus, problem, nvswitch, _complete = bus.read()
    assert [
        (gpu["index"], gpu["pci_bus_id"], gpu["kind"], gpu["memory_gib"], gpu["driver_version"]) for gpu in gpus
    ] == [
        (0, "0000:0f:00.0", "rtx-4090-24gb", 23.52, ""),
        (1, "0000:41:00.0", "a100-sxm-80gb", 79.25, ""),
        (2, "2000:01:00.0", "l4-24gb", 22.03, ""),
        (3, "10000:01:00.0", "rtx-4090-24gb", 23.52, ""),
    ]
    assert (problem, nvswitch) == ("", False)


def test_unknown_id(bus: Bus) -> None:
    for place in ("41", "42"):
        bus.add(place, "2bff")
    gpus, problem, _nvswitch, _complete = bus.read()
    assert [(gpu["name"], gpu["kind"], gpu["memory_gib"], gpu["compute_capability"], gpu["fp8"]) for gpu in gpus] == [
        ("NVIDIA 10de:2bff", "", 0.0, "", False)
    ] * 2
    assert problem == (
        "The PCI id 10de:2bff of the GPU at 0000:41:00.0, 0000:42:00.0 is not in the catalogue: memory and compute capability are unknown. "
        "Install the NVIDIA driver, or add an entry to vllm_plan_known_gpus."
    )


def test_old_display_card_is_left_out(bus: Bus) -> None:
    bus.add("02", "128b", VGA)
    assert bus.read() == (
        [],
        "The only GPU on the PCI bus is older than Turing (10de:128b at 0000:02:00.0): vLLM needs compute capability 7.5 or more. "
        "Use another GPU.",
        False,
        True,
    )
    bus.add("41", "20b0")
    gpus, problem, _nvswitch, _complete = bus.read()
    assert (kinds(gpus), gpus[0]["index"], problem) == (["a100-sxm-40gb"], 0, "")


def test_gpus_of_virtual_machines_are_left_out(bus: Bus) -> None:
    (bus.add("41", "2bb5") / "physfn").mkdir()
    driver = bus.root / "bus/pci/drivers/vfio-pci"
    driver.mkdir(parents=True)
    (bus.add("42", "2bb5") / "driver").symlink_to(driver)
    bus.add("43", "2bb5")
    assert [gpu["pci_bus_id"] for gpu in bus.read()[0]] == ["0000:43:00.0"]


def test_device_that_cannot_be_read_is_passed_over(bus: Bus) -> None:
    (bus.add("41", "2330") / "device").unlink()
    (bus.add("42", "2330") / "class").write_bytes(b"\xff\xff")
    bus.add("43", "2330")
    assert len(bus.read()[0]) == 1


@pytest.mark.parametrize(
    ("device", "kind", "vendor", "vpd", "expected", "nvlink5"),
    [
        ("1af1", BRIDGE, "0x10de", b"", True, False),
        ("22a3", BRIDGE, "0x10de", b"", True, False),
        ("03ef", BRIDGE, "0x10de", b"", False, False),  # an nForce mainboard
        ("22a3", GPU_3D, "0x10de", b"", False, False),
        ("22a3", BRIDGE, "0x8086", b"", False, False),
        ("1021", INFINIBAND, "0x15b3", b"\x82\x10PN\x00SMDL=SW_MNG\x78", True, True),
        ("1021", INFINIBAND, "0x15b3", b"\x82\x10PN\x00MCX75310", False, False),
        ("1021", INFINIBAND, "0x8086", b"SMDL=SW_MNG", False, False),
    ],
)
def test_nvswitch(bus: Bus, device: str, kind: str, vendor: str, vpd: bytes, expected: bool, nvlink5: bool) -> None:
    bus.add("18", "2901")
    folder = bus.add("05", device, kind, vendor)
    if vpd:
        (folder / "vpd").write_bytes(vpd)
    assert bus.read()[2] is expected
    assert _gpus.has_nvlink5_switch(bus.root) is nvlink5


# --- the catalogue ---------------------------------------------------------------------------------------------


def test_shipped_catalogue() -> None:
    assert _gpus.catalogue_problems(SHIPPED, "__vllm_plan_known_gpus") == []
    ids = [one for entry in SHIPPED.values() for one in entry["pci_ids"]]
    assert len(ids) == len(set(ids))
    for kind, entry in SHIPPED.items():
        capability = float(entry["compute_capability"])
        assert entry["fp8"] == (capability >= 8.9), kind
        assert capability >= float(PROFILES[entry["profile"]]["requires"]["compute_capability"]), kind
        assert entry["memory_gib"] >= PROFILES[entry["profile"]]["requires"]["memory_gib"], kind
        assert entry["source"].startswith(("https://", "recalled", "measured")), kind
        assert entry["bandwidth_gb_s"] >= 300, kind
        # Marketing counts in 10^9 bytes or leaves out what ECC and the driver take: CUDA always sees less than the name says.
        assert entry["memory_gib"] < float(kind.rsplit("-", 1)[1].removesuffix("gb")), kind


def test_every_gpu_of_the_catalogue_is_found_by_id_and_by_name() -> None:
    for kind, entry in SHIPPED.items():
        for pci_id in entry["pci_ids"]:
            assert _gpus.kind_of(pci_id, "", SHIPPED) == kind
        for name in entry.get("names") or [entry["name"]]:
            assert _gpus.kind_of("", name, SHIPPED) == kind
            assert _gpus.kind_of("ffff", name.upper(), SHIPPED) == kind


@pytest.mark.parametrize(
    ("pci_id", "name", "kind"),
    [
        ("2bff", "NVIDIA B", "big"),
        ("2bff", "NVIDIA S", "small"),
        ("2bff", "", "small"),
        ("2bff", "NVIDIA other", "small"),
        ("", "NVIDIA other", ""),
        ("", "", ""),
    ],
)
def test_two_kinds_with_one_id(pci_id: str, name: str, kind: str) -> None:
    catalogue = {
        "big": {"name": "NVIDIA B", "pci_ids": ["2bff"], "memory_gib": 94.0, "compute_capability": "12.0"},
        "small": {"names": ["NVIDIA S"], "pci_ids": ["2bff"], "memory_gib": 47.0, "compute_capability": "12.0"},
    }
    assert _gpus.kind_of(pci_id, name, catalogue) == kind


GOOD = {"name": "NVIDIA X", "memory_gib": 94.9, "compute_capability": "12.0"}
KEYS = "name, names, pci_ids, memory_gib, compute_capability, fp8, bandwidth_gb_s, profile, source"


@pytest.mark.parametrize(
    ("catalogue", "problems"),
    [
        ({}, []),
        ({"x": GOOD}, []),
        ({"x": {**GOOD, "compute_capability": 12.0, "memory_gib": 95}}, []),
        (
            ["x"],
            [
                "v is ['x']: needs a mapping from a kind of GPU to what is known of it, for example {my-gpu: {name: NVIDIA X, "
                'pci_ids: ["2bb9"], memory_gib: 94.9, compute_capability: "12.0"}}. Rewrite it.'
            ],
        ),
        ({"X!": GOOD}, ["v has the key 'X!': needs a-z, 0-9, '.', '_' and '-'. Rename it, for example my-gpu."]),
        ({"x": None}, ["v.x is not set: needs a mapping with name, memory_gib and compute_capability. Rewrite it."]),
        (
            {"x": {}},
            [
                "v.x.name is not set: needs the name as nvidia-smi prints it. Correct it.",
                "v.x.memory_gib is not set: needs the GiB that CUDA sees, such as 79.1. Correct it.",
                'v.x.compute_capability is not set: needs one such as "9.0". Correct it; https://developer.nvidia.com/cuda-gpus lists them.',
            ],
        ),
        ({"x": {**GOOD, "memory": 1}}, [f"v.x has the key 'memory': needs one of {KEYS}. Correct or remove it."]),
        ({"x": {**GOOD, "names": []}}, ["v.x.names is []: needs the name as nvidia-smi prints it. Correct it."]),
        (
            {"x": {**GOOD, "pci_ids": [2330]}},
            [
                'v.x.pci_ids is [2330]: needs a list of four lower-case hex digits each, in quotes, such as ["2330"]. Correct it; '
                "'lspci -nn -d 10de:' shows them."
            ],
        ),
        (
            {"x": {**GOOD, "memory_gib": "94"}},
            ["v.x.memory_gib is '94': needs the GiB that CUDA sees, such as 79.1. Correct it."],
        ),
        (
            {"x": {**GOOD, "memory_gib": float("inf")}},
            ["v.x.memory_gib is inf: needs the GiB that CUDA sees, such as 79.1. Correct it."],
        ),
        ({"x": {**GOOD, "fp8": "yes"}}, ["v.x.fp8 is 'yes': needs true or false. Correct or remove it."]),
        (
            {"x": {**GOOD, "bandwidth_gb_s": -1}},
            ["v.x.bandwidth_gb_s is -1: needs the memory bandwidth in GB/s. Correct or remove it."],
        ),
        ({"x": {**GOOD, "profile": 1}}, ["v.x.profile is 1: needs text. Correct or remove it."]),
    ],
)
def test_catalogue_problems(catalogue: object, problems: list[str]) -> None:
    assert _gpus.catalogue_problems(catalogue, "v") == problems


def test_wrong_entries_are_not_used(bus: Bus) -> None:
    bus.add("41", "2330")
    wrong: dict[str, Any] = {"x": {"pci_ids": ["2330"]}, "y": 1, "z": SHIPPED["h100-sxm-80gb"]}
    gpus, _problem, _nvswitch, _complete = _gpus.read(lambda _argv: NO_SMI, bus.root, wrong)
    assert kinds(gpus) == ["z"]


# --- vllm_plan_gpus --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], []),
        (["h100-sxm-80gb"], ["h100-sxm-80gb"]),
        ([{"kind": "h100-sxm-80gb", "count": 2}, "l4-24gb"], ["h100-sxm-80gb", "h100-sxm-80gb", "l4-24gb"]),
        ([{"kind": "a100-sxm-40gb"}], ["a100-sxm-40gb"]),
    ],
)
def test_declared_kinds(entries: list[Any], expected: list[str]) -> None:
    gpus, problems = _gpus.declared(entries, SHIPPED)
    assert (kinds(gpus), problems) == (expected, [])
    assert [gpu["index"] for gpu in gpus] == list(range(len(expected)))
    for gpu in gpus:
        entry = SHIPPED[gpu["kind"]]
        assert (gpu["memory_gib"], gpu["compute_capability"], gpu["fp8"], gpu["profile"], gpu["source"]) == (
            entry["memory_gib"],
            entry["compute_capability"],
            entry["fp8"],
            entry["profile"],
            "declared",
        )


@pytest.mark.parametrize(
    ("entry", "kind", "profile", "capability", "fp8"),
    [
        ({"name": "NVIDIA X", "memory_gib": 95, "compute_capability": "8.9"}, "", "", "8.9", True),
        ({"name": "NVIDIA X", "memory_gib": 95, "compute_capability": 8.6}, "", "", "8.6", False),
        ({"name": "NVIDIA X", "memory_gib": 95, "compute_capability": 10}, "", "", "10.0", True),
        (
            {"index": 0, "name": "NVIDIA A100-SXM4-80GB", "memory_gib": 95, "compute_capability": "8.0"},
            "a100-sxm-80gb",
            "a100_fp16",
            "8.0",
            False,
        ),
    ],
)
def test_declared_in_full(entry: dict[str, Any], kind: str, profile: str, capability: str, fp8: bool) -> None:
    gpus, problems = _gpus.declared([entry], SHIPPED)
    assert problems == []
    assert [
        (
            gpu["index"],
            gpu["kind"],
            gpu["profile"],
            gpu["compute_capability"],
            gpu["fp8"],
            gpu["memory_gib"],
            gpu["source"],
        )
        for gpu in gpus
    ] == [(0, kind, profile, capability, fp8, 95.0, "declared")]


KNOWN = {"a": SHIPPED["h100-sxm-80gb"], "b": SHIPPED["l4-24gb"]}
FULL = {"name": "X", "memory_gib": 1, "compute_capability": "9.0"}


@pytest.mark.parametrize(
    ("entries", "problems"),
    [
        (
            "a",
            ["vllm_plan_gpus is 'a': needs a list, for example [{kind: h100-sxm-80gb, count: 8}]. Rewrite it."],
        ),
        (
            [7],
            [
                "vllm_plan_gpus[0] is 7: needs a kind such as h100-sxm-80gb, or a mapping with kind and count. Rewrite it."
            ],
        ),
        (
            ["a", "h100"],
            [
                "vllm_plan_gpus[1].kind is 'h100': needs one of a, b. Correct it, or add the GPU to vllm_plan_known_gpus."
            ],
        ),
        (
            [{"kind": ["a"]}],
            ["vllm_plan_gpus[0].kind is ['a']: needs one of a, b. Correct it, or add the GPU to vllm_plan_known_gpus."],
        ),
        (
            [{"kind": "a", "count": 0}],
            ["vllm_plan_gpus[0].count is 0: needs a whole number from 1 to 64. Correct it."],
        ),
        (
            [{"kind": "a", "count": True}],
            ["vllm_plan_gpus[0].count is True: needs a whole number from 1 to 64. Correct it."],
        ),
        (
            [{"kind": "a", "memory_gib": 80}],
            ["vllm_plan_gpus[0] has the key 'memory_gib': needs one of kind, count. Correct or remove it."],
        ),
        (
            [{}],
            [
                "vllm_plan_gpus[0].name is not set: needs the name of the GPU, or kind in its place. Add one.",
                "vllm_plan_gpus[0].memory_gib is not set: needs the GiB that CUDA sees, such as 79.1. Correct it.",
                'vllm_plan_gpus[0].compute_capability is not set: needs one such as "9.0". Correct it; '
                "https://developer.nvidia.com/cuda-gpus lists them.",
            ],
        ),
        (
            [FULL, {**FULL, "index": 0}],
            ["vllm_plan_gpus[1].index is 0: needs 1, its place in PCI bus order. Correct or remove it."],
        ),
        (
            [{**FULL, "count": 2}],
            ["vllm_plan_gpus[0].count is 2 without a kind: needs kind. Add it, or repeat the entry."],
        ),
        (
            ["h100", {**FULL, "index": 1}],
            [
                "vllm_plan_gpus[0].kind is 'h100': needs one of a, b. Correct it, or add the GPU to vllm_plan_known_gpus."
            ],
        ),
    ],
)
def test_declared_problems(entries: object, problems: list[str]) -> None:
    assert _gpus.declared(entries, KNOWN)[1] == problems


# --- anything --------------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["a", "12.0", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*_gpus.ENTRY_KEYS, "kind", "count", "index", "a", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True, database=None)
@pytest.mark.parametrize(
    "ask",
    [
        lambda value: _gpus.declared([value], KNOWN)[1],
        lambda value: _gpus.declared(value, KNOWN)[1],
        lambda value: _gpus.catalogue_problems(value, "v"),
        lambda value: _gpus.catalogue_problems({"x": value}, "v"),
    ],
)
@given(value=ANYTHING)
def test_any_input_gives_sentences(ask: Callable[[Any], list[str]], value: Any) -> None:
    for problem in ask(value):
        assert problem.endswith((".", "lists them.")) and "\n" not in problem
