"""What apt-get and apt-cache print."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _apt

SIMULATION = """\
Inst nvidia-utils-580-server (580 x)
Inst libssl3 [3.0.1] (3.0.2 x)
Remv nvidia-utils-535-server [535.274.02-0]
Purg libcuda1:i386 [1]
Conf libssl3 (3.0.2 x)
"""


def test_what_a_simulation_removes_and_changes() -> None:
    assert _apt.touched(SIMULATION, "Remv", "Purg") == ["nvidia-utils-535-server", "libcuda1"]
    assert _apt.touched(SIMULATION, "Inst") == ["nvidia-utils-580-server", "libssl3"]
    assert _apt.changed(SIMULATION) == ["libssl3"]


def test_what_is_offered() -> None:
    said = "a | 2-1 | file:/b ./ Packages\na | 1-1 | file:/b ./ Packages\na | 2-1 | https://c ./ Packages\nN: nothing else\n"
    assert _apt.offered(said) == {"a": ["2-1", "1-1"]}


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "Reading package lists...\nErr:1 http://deb nginx\nE: Unable to locate package nginx\n",
            ["Err:1 http://deb nginx", "E: Unable to locate package nginx"],
        ),
        ("only this\n\n", ["only this"]),
    ],
)
def test_a_complaint_is_apts_own_errors_where_there_are_any(output: str, said: list[str]) -> None:
    assert _apt.complaint(output) == said
