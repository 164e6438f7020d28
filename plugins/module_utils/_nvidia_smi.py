# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``nvidia-smi`` says of the GPUs of this host, and in one sentence each why it does not."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIELDS = (
    "index", "uuid", "name", "memory.total", "memory.reserved", "compute_cap", "driver_version", "pci.bus_id",
    "pci.device_id", "mig.mode.current",
)  # fmt: skip
# A driver that does not know one of the others is asked without it; without these a row tells nothing.
ESSENTIAL = ("name", "memory.total", "pci.bus_id")
TIMEOUT_S = 15
# A row has some hundred bytes; whatever stands in nvidia-smi's place, this is read of it and as many problems are told.
OUTPUT_MAX_BYTES = 1_000_000
MOST_PROBLEMS = 64

Run = Callable[[tuple[str, ...]], tuple[int, str, str]]

BUS_ID = re.compile(r"([0-9A-Fa-f]{1,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])")
CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}")
DRIVER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,3}")
_MIB = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
_PCI_ID = re.compile(r"0x([0-9A-Fa-f]{4})10DE", re.IGNORECASE)
_UNKNOWN_FIELD = re.compile(r'Field "([^"\n]+)" is not a valid field to query')
# Followed by "GPU0000:41:00.0: GPU is lost. ...", "GPU 0000:41:00.0: ...", "GPU1: 0000:34:00.0: ..." or only "GPU1: ...".
_LOST = "unable to determine the device handle"

# What it says when it shows no GPU at all, what that means, and what to do. The first that matches counts.
_FAILURES = (
    (
        "Driver/library version mismatch",
        (
            "the loaded kernel module is of another version than the libraries, as after an update without a reboot. "
            "Reboot the host"
        ),
    ),
    (
        "couldn't communicate with the NVIDIA driver",
        (
            "the kernel module is not loaded, as after a kernel update without modules for it. Look for NVRM and nouveau in "
            "'dmesg', install the modules for the running kernel and reboot the host"
        ),
    ),
    (
        "No devices were found",
        "the driver runs, but starts no GPU. Look for NVRM and Xid lines in 'dmesg'; GPUs from Blackwell on need the open kernel modules",
    ),
    (
        "couldn't find libnvidia-ml.so",
        "nvidia-smi is there without the driver's libraries. Install nvidia-smi and the libraries from one version of the driver",
    ),
    ("Insufficient Permissions", "this account may not open /dev/nvidia*. Run the play with become"),
)


@dataclass(frozen=True)
class Row:
    """One GPU as it is printed; "" and None stand for what the driver does not tell. Memory in MiB."""

    uuid: str
    name: str
    memory_total_mib: float
    memory_reserved_mib: float | None
    compute_capability: str
    driver_version: str
    pci_bus_id: str
    pci_id: str
    mig: bool


@dataclass(frozen=True)
class Answer:
    """Rows in PCI bus order, and each problem in one sentence with its next step.

    ``complete`` is false where not every working GPU can be counted on to have a row; ``lost`` are the bus ids of GPUs
    that no longer answer, "" for one that is not named.
    """

    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    complete: bool = True


def run(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> tuple[int, str, str]:
    """Run a program and return exit status, stdout and stderr.

    The status is 127 where there is none, 124 after ``timeout_s`` seconds, and 125 where it prints more than `OUTPUT_MAX_BYTES`. Then it
    is killed with what it has started; one that waits inside the driver cannot even be killed: it is left behind after a second.
    """
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        return (127, "", "") if isinstance(error, FileNotFoundError) else (126, "", str(error))
    try:
        out, err = (printed.decode(errors="replace") for printed in _printed(process, deadline))
        return process.wait(_left_s(deadline)), out, err
    except (TimeoutError, subprocess.TimeoutExpired):
        status = 124
    except OverflowError:
        status = 125
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    return status, "", ""


def _printed(process: subprocess.Popen[bytes], deadline: float) -> list[bytes]:
    """Return stdout and stderr, read to their ends. Raises TimeoutError after the deadline, OverflowError for too much."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(stream) for stream in (process.stdout, process.stderr) if stream]
        printed = {stream.fileno(): bytearray() for stream in streams}
        waiting = stack.enter_context(selectors.DefaultSelector())
        for number in printed:
            waiting.register(number, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _events in waiting.select(_left_s(deadline)):
                if piece := os.read(key.fd, 65536):
                    printed[key.fd] += piece
                else:
                    waiting.unregister(key.fd)
            if sum(map(len, printed.values())) > OUTPUT_MAX_BYTES:
                raise OverflowError
        return [bytes(one) for one in printed.values()]


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def command(fields: Sequence[str] = FIELDS) -> tuple[str, ...]:
    """Return the query for these fields, MiB without the unit."""
    return ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def read(run: Run) -> Answer | None:
    """Return what nvidia-smi says, or None where it is not installed."""
    fields = list(FIELDS)
    while True:
        status, out, err = run(command(fields))
        unknown = _UNKNOWN_FIELD.search(out) or _UNKNOWN_FIELD.search(err)
        if not unknown or unknown[1] not in fields or unknown[1] in ESSENTIAL:
            break
        fields.remove(unknown[1])
    if status == 127:
        return None
    if status == 124:
        return _failed(
            f"nvidia-smi gave no answer within {TIMEOUT_S} s: the driver hangs. Look for NVRM and Xid lines in 'dmesg' and reboot the host."
        )
    if status == 125:
        return _failed(
            f"nvidia-smi printed more than {OUTPUT_MAX_BYTES} bytes: needs one line a GPU. Run it on the host and see whether it is NVIDIA's own."
        )
    # A lost GPU makes it end with an error although it shows the others.
    answer = parse(out if status == 0 else f"{out}\n{err}", fields)
    if answer.complete and (answer.rows or answer.lost):
        return answer
    if status == 0:
        return answer if answer.problems else _failed(_malformed(""))
    return _failed(_failure(status, out, err))


def parse(text: str, fields: Sequence[str] = FIELDS) -> Answer:
    """Return the GPUs in the CSV that `command` prints, whatever the text is."""
    rows: list[Row] = []
    problems: list[str] = []
    lost: list[str] = []
    complete = True
    places: set[str] = set()
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.lower().startswith(_LOST):
            found = BUS_ID.search(line)
            lost.append(bus_id(found[0]) if found else "")
            problems.append(_lost(line))
            continue
        if line.upper().startswith("WARNING:"):
            problems.append(f"nvidia-smi warns: {words(line[8:])}.")
            continue
        cells = [cell.strip() for cell in line.split(",")]
        told = {name: cell for name, cell in zip(fields, cells, strict=False) if _tells(cell)}
        position = bus_id(told.get("pci.bus_id", ""))
        if len(cells) != len(fields) or not position:
            problems += [_malformed(line)] if complete else []
            complete = False
            continue
        if position in places:
            problems.append(
                f"nvidia-smi shows two GPUs at {position}: needs one line a GPU, and the first counts. Run it on the host and see whether "
                "it is NVIDIA's own."
            )
            continue
        places.add(position)
        total = _mib(told.get("memory.total"))
        if not total or "name" not in told:
            # The driver knows the card but cannot talk to it: [Unknown Error], [GPU is lost], ERR!
            lost.append(position)
            problems.append(_silent(position, dict(zip(fields, cells, strict=True))))
            continue
        rows.append(_row(told, position, total))
    rows.sort(key=lambda row: pci_order(row.pci_bus_id))
    return Answer(tuple(rows), tuple(dict.fromkeys(problems))[:MOST_PROBLEMS], tuple(lost), complete)


def bus_id(text: str) -> str:
    """Return ``00000000:8D:00.0`` as sysfs writes it, ``0000:8d:00.0``, or "" for what is none."""
    found = BUS_ID.fullmatch(text.strip())
    if not found:
        return ""
    domain, bus, device, function = found.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function}".lower()


def pci_order(position: str) -> tuple[int, ...]:
    """Return the key that sorts bus ids as CUDA_DEVICE_ORDER=PCI_BUS_ID does."""
    return tuple(int(part, 16) for part in re.split(r"[:.]", position) if part)


def words(text: str) -> str:
    """Return what a program said for a message: one line of at most 200 characters."""
    line = ", ".join(filter(None, (" ".join(line.split()) for line in text.splitlines()))).rstrip(" .,")
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= 200 else f"{line[:197]}..."


def _row(told: dict[str, str], position: str, total_mib: float) -> Row:
    capability, device = told.get("compute_cap", ""), _PCI_ID.fullmatch(told.get("pci.device_id", ""))
    driver, reserved_mib = told.get("driver_version", ""), _mib(told.get("memory.reserved"))
    return Row(
        uuid=words(told.get("uuid", "")),
        name=words(told["name"]) or "?",
        memory_total_mib=total_mib,
        memory_reserved_mib=reserved_mib if reserved_mib is not None and reserved_mib < total_mib else None,
        compute_capability=capability if CAPABILITY.fullmatch(capability) else "",
        driver_version=driver if DRIVER.fullmatch(driver) else "",
        pci_bus_id=position,
        pci_id=device[1].lower() if device else "",
        mig=told.get("mig.mode.current", "").lower() == "enabled",
    )


def _tells(cell: str) -> bool:
    """Return whether a cell holds a value and not [N/A], [Not Supported], [Unknown Error], ERR! or nothing."""
    return bool(cell) and not cell.startswith("[") and cell not in {"N/A", "ERR!"}


def _mib(text: str | None) -> float | None:
    return float(text) if text and _MIB.fullmatch(text) else None


def _failed(problem: str) -> Answer:
    return Answer(problems=(problem,), complete=False)


def _failure(status: int, out: str, err: str) -> str:
    said = words(f"{out}\n{err}")
    for mark, meaning in _FAILURES:
        if mark.lower() in said.lower():
            return f"nvidia-smi says '{said}': {meaning}."
    said = f" and says '{said}'" if said else " without a word"
    return f"nvidia-smi ends with exit status {status}{said}. Run it on the host and look for NVRM and Xid lines in 'dmesg'."


def _malformed(line: str) -> str:
    shown = f"'{words(line)}'" if line else "nothing"
    return f"nvidia-smi printed {shown}: needs one line a GPU with {len(FIELDS)} fields. Run it on the host and see whether it is NVIDIA's own."


def _lost(said: str) -> str:
    return (
        f"nvidia-smi says '{words(said)}': the GPU has fallen off the bus. Look for Xid lines in 'dmesg' and reboot the host; "
        "if it does not come back, have the card and its power seen to."
    )


def _silent(position: str, cells: dict[str, str]) -> str:
    name = "name" if not _tells(cells["name"]) else "memory.total"
    return (
        f"nvidia-smi shows {words(cells[name]) or 'nothing'!r} for {name} of the GPU at {position}: it does not answer. Look for Xid lines "
        "in 'dmesg' and reboot the host; if it stays so, have the card seen to."
    )
