"""nvidia-smi's table, and its failures, never as a traceback.

h200.csv, no_devices.txt and unknown_field.txt were printed by driver 580.159.04 (the UUID is made up); the others have the
same form, with the words that people report.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _nvidia_smi
from hypothesis import example, given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data/nvidia_smi"
H100 = (DATA / "h100_8.csv").read_text().splitlines(keepends=True)


def answer(name: str, status: int = 0) -> _nvidia_smi.Answer:
    found = _nvidia_smi.read(lambda _argv: (status, (DATA / name).read_text(), ""))
    assert found is not None
    return found


def test_h200_as_recorded() -> None:
    assert answer("h200.csv") == _nvidia_smi.Answer(
        rows=(
            _nvidia_smi.Row(
                uuid="GPU-00000000-0000-0000-0000-000000000000",
                name="NVIDIA H200",
                memory_total_mib=143771,
                memory_reserved_mib=616,
                compute_capability="9.0",
                driver_version="580.159.04",
                pci_bus_id="0000:00:06.0",
                pci_id="2335",
                mig=False,
            ),
        )
    )


def test_rows_come_in_pci_order() -> None:
    mixed = _nvidia_smi.parse("".join([*reversed(H100), H100[0].replace("00000000:18", "00010000:01")]))
    assert [row.pci_bus_id.removesuffix(":00.0") for row in mixed.rows] == [
        *(f"0000:{bus}" for bus in ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")),
        "10000:01",
    ]


@pytest.mark.parametrize(
    ("name", "status", "rows", "lost", "problem"),
    [
        (
            "lost.txt",
            15,
            3,
            ("0000:41:00.0",),
            "nvidia-smi says 'Unable to determine the device handle for GPU0000:41:00.0: GPU is lost. Reboot the system to recover "
            "this GPU': the GPU has fallen off the bus. Look for Xid lines in 'dmesg' and reboot the host; if it does not come back, "
            "have the card and its power seen to.",
        ),
        (
            "lost_unnamed.txt",
            0,
            1,
            ("",),
            "nvidia-smi says 'Unable to determine the device handle for GPU1: Unknown Error': the GPU has fallen off the bus. Look for "
            "Xid lines in 'dmesg' and reboot the host; if it does not come back, have the card and its power seen to.",
        ),
        (
            "unknown_error.csv",
            0,
            1,
            ("0000:2a:00.0",),
            "nvidia-smi shows '[Unknown Error]' for name of the GPU at 0000:2a:00.0: it does not answer. Look for Xid lines in 'dmesg' "
            "and reboot the host; if it stays so, have the card seen to.",
        ),
        (
            "err.csv",
            0,
            0,
            ("0000:18:00.0",),
            "nvidia-smi shows 'ERR!' for memory.total of the GPU at 0000:18:00.0: it does not answer. Look for Xid lines in 'dmesg' "
            "and reboot the host; if it stays so, have the card seen to.",
        ),
        ("inforom.csv", 0, 1, (), "nvidia-smi warns: infoROM is corrupted at gpu 0000:18:00.0."),
    ],
)
def test_other_gpus_are_shown_beside_a_broken_one(
    name: str, status: int, rows: int, lost: tuple[str, ...], problem: str
) -> None:
    found = answer(name, status)
    assert (len(found.rows), found.lost, found.problems, found.complete) == (rows, lost, (problem,), True)


@pytest.mark.parametrize(
    ("status", "out", "err", "problem"),
    [
        (
            6,
            "no_devices.txt",
            "",
            "nvidia-smi says 'No devices were found': the driver runs, but starts no GPU. Look for NVRM and Xid lines in 'dmesg'; GPUs from "
            "Blackwell on need the open kernel modules.",
        ),
        (
            18,
            "mismatch.txt",
            "",
            "nvidia-smi says 'Failed to initialize NVML: Driver/library version mismatch, NVML library version: 580.173': the loaded kernel "
            "module is of another version than the libraries, as after an update without a reboot. Reboot the host.",
        ),
        (
            9,
            "no_communication.txt",
            "",
            "nvidia-smi says 'NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
            "driver is installed and running': the kernel module is not loaded, as after a kernel update without modules for it. Look for "
            "NVRM and nouveau in 'dmesg', install the modules for the running kernel and reboot the host.",
        ),
        (
            4,
            "permissions.txt",
            "",
            "nvidia-smi says 'Failed to initialize NVML: Insufficient Permissions': this account may not open /dev/nvidia*. Run the play with become.",
        ),
        (
            12,
            "",
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.",
            "nvidia-smi says 'NVIDIA-SMI couldn't find libnvidia-ml.so library in your system': nvidia-smi is there without the driver's "
            "libraries. Install nvidia-smi and the libraries from one version of the driver.",
        ),
        (
            124,
            "",
            "",
            "nvidia-smi gave no answer within 15 s: the driver hangs. Look for NVRM and Xid lines in 'dmesg' and reboot the host.",
        ),
        (
            125,
            "",
            "",
            "nvidia-smi printed more than 1000000 bytes: needs one line a GPU. Run it on the host and see whether it is NVIDIA's own.",
        ),
        (
            255,
            "",
            "Something new.\n",
            "nvidia-smi ends with exit status 255 and says 'Something new'. Run it on the host and look for NVRM and Xid lines in 'dmesg'.",
        ),
        (
            -11,
            "",
            "",
            "nvidia-smi ends with exit status -11 without a word. Run it on the host and look for NVRM and Xid lines in 'dmesg'.",
        ),
        (
            0,
            "truncated.csv",
            "",
            "nvidia-smi printed '1, GPU-00000000-0000-0000-0000-000000000001, NVIDIA H100 80G': needs one line a GPU with 10 fields. "
            "Run it on the host and see whether it is NVIDIA's own.",
        ),
        (
            0,
            "",
            "",
            "nvidia-smi printed nothing: needs one line a GPU with 10 fields. Run it on the host and see whether it is NVIDIA's own.",
        ),
    ],
)
def test_every_failure_is_one_sentence(status: int, out: str, err: str, problem: str) -> None:
    text = (DATA / out).read_text() if out else ""
    found = _nvidia_smi.read(lambda _argv: (status, text, err))
    assert found is not None
    assert found.problems == (problem,)
    assert not found.complete


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ("81559", "nan", True),
        ("81559", "-1", True),
        ("81559", "0", True),
        ("81559", "80 GiB", True),
        ("NVIDIA H100 80GB HBM3", "[N/A]", True),
        ("551", "most", False),
        # More than there is would leave less than nothing.
        ("551", "90000", False),
        ("551", "81559", False),
    ],
)
def test_memory_that_is_no_number_and_a_missing_name(old: str, new: str, lost: bool) -> None:
    found = _nvidia_smi.parse(H100[0].replace(old, new))
    assert [row.memory_reserved_mib for row in found.rows] == ([] if lost else [None])
    assert found.lost == (("0000:18:00.0",) if lost else ())


def test_cells_that_tell_nothing_are_empty() -> None:
    cells = H100[0].replace("GPU-00000000-0000-0000-0000-000000000000", "ERR!").replace("580.126.20", "[N/A]")
    (row,) = _nvidia_smi.parse(cells.replace("9.0", "Hopper").replace("0x233010DE", "0x23301234")).rows
    assert (row.uuid, row.driver_version, row.compute_capability, row.pci_id, row.mig) == ("", "", "", "", False)


@pytest.mark.parametrize(
    ("told", "version"),
    [
        *((same, same) for same in ("580", "580.1", "580.159.04", "5800.1.2.3")),
        *((other, "") for other in ("9" * 5000, "58000", "580.1.2.3.4", "580.", "٥٨٠.1", "580.1-open", "5 80")),
    ],
)
def test_the_version_of_a_driver_is_numbers(told: str, version: str) -> None:
    (row,) = _nvidia_smi.parse(H100[0].replace("580.126.20", told)).rows
    assert row.driver_version == version


def test_a_name_is_one_short_line_that_no_terminal_minds() -> None:
    uuid = "GPU-00000000-0000-0000-0000-000000000000"
    (row,) = _nvidia_smi.parse(
        H100[0].replace("NVIDIA H100", "NV\x1b[31m\x00\udcff  H100").replace(uuid, "GPU\x07")
    ).rows
    assert (row.name, row.uuid) == ("NV?[31m?? H100 80GB HBM3", "GPU?")
    (row,) = _nvidia_smi.parse(H100[0].replace("NVIDIA H100", "N" * 10**6).replace(uuid, "U" * 10**6)).rows
    assert (len(row.name), len(row.uuid)) == (200, 200)
    (row,) = _nvidia_smi.parse(H100[0].replace("NVIDIA H100 80GB HBM3", ".")).rows
    assert row.name == "?"


def test_a_gpu_that_is_shown_twice_is_told_and_counted_once() -> None:
    found = _nvidia_smi.parse("".join([H100[0], H100[1], H100[0].replace("H100", "H200"), H100[0]]))
    assert [(row.pci_bus_id, row.name) for row in found.rows] == [
        ("0000:18:00.0", "NVIDIA H100 80GB HBM3"),
        ("0000:2a:00.0", "NVIDIA H100 80GB HBM3"),
    ]
    assert found.problems == (
        "nvidia-smi shows two GPUs at 0000:18:00.0: needs one line a GPU, and the first counts. Run it on the host and see whether it is NVIDIA's own.",
    )


def test_problems_are_told_once_each_and_not_without_end() -> None:
    lost = "Unable to determine the device handle for GPU 0000:41:00.0: x\n"
    assert len(_nvidia_smi.parse(lost * 20_000).problems) == 1
    assert len(_nvidia_smi.parse("".join(f"WARNING: {n}\n" for n in range(20_000))).problems) == 64


def test_no_nvidia_smi_is_no_problem() -> None:
    assert _nvidia_smi.read(lambda _argv: (127, "", "")) is None


@pytest.mark.parametrize("stream", ["out", "err"])
def test_fields_that_an_older_driver_does_not_know_are_left_out(stream: str) -> None:
    """Driver 470 knows neither of these; each refusal names one field."""
    known = set(_nvidia_smi.FIELDS) - {"memory.reserved", "compute_cap"}
    row = dict(zip(_nvidia_smi.FIELDS, map(str.strip, H100[0].split(",")), strict=True))

    def run(argv: tuple[str, ...]) -> tuple[int, str, str]:
        fields = argv[1].removeprefix("--query-gpu=").split(",")
        for field in fields:
            if field not in known:
                refusal = (DATA / "unknown_field.txt").read_text().replace("memory.reserved", field)
                return (2, refusal, "") if stream == "out" else (2, "", refusal)
        return 0, ", ".join(row[field] for field in fields) + "\n", ""

    found = _nvidia_smi.read(run)
    assert found is not None
    assert found.problems == ()
    assert [(row.name, row.memory_reserved_mib, row.compute_capability, row.pci_id) for row in found.rows] == [
        ("NVIDIA H100 80GB HBM3", None, "", "2330")
    ]


def test_a_field_that_is_always_refused_ends() -> None:
    asked = []

    def run(argv: tuple[str, ...]) -> tuple[int, str, str]:
        asked.append(argv)
        return 2, 'Field "name" is not a valid field to query.\n', ""

    found = _nvidia_smi.read(run)
    assert asked == [_nvidia_smi.command()]
    assert found is not None
    assert found.problems[0].startswith("nvidia-smi ends with exit status 2 and says")


def test_a_hanging_program_is_given_up() -> None:
    started = time.monotonic()
    assert _nvidia_smi.run(("sleep", "60"), timeout_s=0.05) == (124, "", "")
    assert time.monotonic() - started < 5


def test_what_a_hanging_program_has_started_ends_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = f"sleep 60 & echo $! > {child}.new; mv {child}.new {child}; wait"
    assert _nvidia_smi.run(("sh", "-c", program), timeout_s=0.5) == (124, "", "")
    try:
        process = os.pidfd_open(int(child.read_text()))
    except ProcessLookupError:
        return
    with os.fdopen(process) as ended:
        # Readable once it has ended.
        assert select.select([ended], [], [], 5)[0], "the child still runs"


@pytest.mark.parametrize("redirection", ["", " >&2"])
def test_a_program_that_prints_without_end_is_given_up(redirection: str) -> None:
    assert _nvidia_smi.OUTPUT_MAX_BYTES == 1_000_000
    started = time.monotonic()
    assert _nvidia_smi.run(("sh", "-c", f"yes{redirection}"), timeout_s=60) == (125, "", "")
    assert time.monotonic() - started < 30


def test_as_much_as_is_read_may_be_printed_to_both() -> None:
    program = "import sys; sys.stderr.write('e' * 500_000); print('o' * 499_999)"
    status, out, err = _nvidia_smi.run((sys.executable, "-c", program))
    assert (status, len(out), len(err)) == (0, 500_000, 500_000)


def test_one_byte_more_is_too_much() -> None:
    program = "import sys; sys.stderr.write('e' * 500_000); print('o' * 500_000)"
    assert _nvidia_smi.run((sys.executable, "-c", program)) == (125, "", "")


def test_a_program_that_only_closes_its_streams_is_given_up() -> None:
    assert _nvidia_smi.run(("sh", "-c", "exec >&- 2>&-; sleep 60"), timeout_s=0.3) == (124, "", "")


def test_run() -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.buffer.write(b'\\xff'); sys.exit(3)"
    assert _nvidia_smi.run((sys.executable, "-c", program)) == (3, "out\n\ufffd", "err\n")
    assert _nvidia_smi.run(("no-such-program-here",)) == (127, "", "")
    assert _nvidia_smi.run((str(DATA),))[0] == 126


CELL = st.sampled_from(
    [
        "0",
        "81559",
        "551",
        "9.0",
        "[N/A]",
        "[Unknown Error]",
        "ERR!",
        "",
        "nan",
        "1e9",
        "00000000:18:00.0",
        "0x233010DE",
        "Enabled",
        "٣",
    ]
)
LINE = st.one_of(
    st.text(max_size=80),
    st.lists(CELL, max_size=12).map(",".join),
    st.sampled_from(
        [
            *H100,
            "Unable to determine the device handle for GPU",
            "WARNING:",
            'Field "uuid" is not a valid field to query.',
        ]
    ),
)


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(LINE, max_size=6).map("\n".join), st.integers(-15, 255))
@example('Field "memory.reserved" is not a valid field to query.', 2)
def test_any_text_gives_a_result(text: str, status: int) -> None:
    """Whatever it prints: whole rows or a sentence, each on one line, and never both nothing."""
    found = _nvidia_smi.read(lambda _argv: (status, text, text))
    if found is None:
        assert status == 127
        return
    assert found.rows or found.problems
    for row in found.rows:
        assert row.name and row.memory_total_mib > 0 and _nvidia_smi.bus_id(row.pci_bus_id) == row.pci_bus_id
        assert row.compute_capability == "" or float(row.compute_capability) >= 0
    for problem in found.problems:
        assert problem.endswith(".")
        assert problem.isprintable()
        assert len(problem) < 600
