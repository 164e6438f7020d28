"""nvidia-smi's table, and its failures, never as a traceback."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _nvidia_smi

H200 = "0, GPU-b, NVIDIA H200, 143771, 9.0, 580.159.04, 00000000:8D:00.0\n"
A100 = "1, GPU-a, NVIDIA A100-SXM4-40GB, 40960, 8.0, 580.159.04, 00000000:07:00.0\n"


def test_gpus_are_counted_in_pci_order() -> None:
    gpus = _nvidia_smi.parse(H200 + A100)
    assert [(gpu["index"], gpu["name"], gpu["memory_gib"], gpu["compute_capability"]) for gpu in gpus] == [
        (0, "NVIDIA A100-SXM4-40GB", 40.0, "8.0"),
        (1, "NVIDIA H200", 140.4, "9.0"),
    ]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((127, "", ""), ""),
        ((6, "No devices were found\n", ""), "nvidia-smi failed: No devices were found"),
        (
            (18, "", "Failed to initialize NVML: Driver/library version mismatch\nmore"),
            "nvidia-smi failed: Failed to initialize NVML: Driver/library version mismatch",
        ),
        ((124, "", ""), "nvidia-smi failed: exit status 124"),
        ((0, "0, GPU-a, NVIDIA\n", ""), "nvidia-smi printed '0,GPU-a,NVIDIA': expected 7 fields"),
        (
            (0, H200.replace("143771", "[N/A]"), ""),
            "nvidia-smi printed '0,GPU-b,NVIDIA H200,[N/A],9.0,580.159.04,00000000:8D:00.0': memory or compute capability is no number",
        ),
    ],
)
def test_every_failure_is_one_line(answer: tuple[int, str, str], problem: str) -> None:
    assert _nvidia_smi.read(lambda _argv: answer) == ([], problem)
