# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose run decides what a host serves: the claim of the latest run, and the lock under which hosts are changed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ._files import read_text, write_atomic

LOCK = Path("/run/vllm-instances.lock")
CLAIM = Path("/run/vllm-claim.json")
#: Longer than any module of this collection holds the lock: an order of a certificate may take minutes.
PATIENCE_S = 600.0


class RefusedError(Exception):
    """This run may not change the host now; the text says why, and what to do."""


def take(who: str) -> str:
    """Make the host this run's, whoever had it; return the id of the new claim. The caller holds the lock.

    :arg who: whose run it is, for the message that another run ends with.
    """
    claim = secrets.token_hex(16)
    content = {"id": claim, "who": who, "since": int(time.time())}
    write_atomic(CLAIM, json.dumps(content, indent=2, sort_keys=True) + "\n", 0o644)
    return claim


def objection(claim: str) -> str:
    """Return why a run with this claim may not go on, or "". A run without a claim, and a host without one, have none."""
    if not claim:
        return ""
    try:
        held = json.loads((read_text(CLAIM) or "{}").encode())
        if held.get("id", claim) == claim:
            return ""
        since = time.strftime("%H:%M:%S UTC", time.gmtime(int(held["since"])))
        who = str(held["who"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{CLAIM} is not what this collection wrote. Remove it and run again."
    return (
        f"another run ({who}, since {since}) has taken this host over and decides what it serves; nothing more is done here. "
        "Run again if yours should win."
    )


@contextlib.contextmanager
def turn(claim: str = "", check: bool = False, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Change the host alone, and only while the claim is this run's. Raises `RefusedError`.

    A process that is killed leaves no lock behind: the kernel lets go of it. In check mode (``check``) there is nothing to guard.
    """
    if check:
        yield
        return
    with os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as lock:
        # Whoever can read a file can lock it; one of an earlier version could be read by all.
        os.fchmod(lock.fileno(), 0o600)
        _lock(lock, patience_s)
        if complaint := objection(claim):
            raise RefusedError(complaint)
        yield


def _lock(lock: IO[str], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RefusedError(
                    f"another run has been changing this host for {patience_s:.0f} s. `fuser -v {LOCK}` names its process; "
                    "run again when it has ended."
                ) from None
            time.sleep(0.2)
        else:
            return
