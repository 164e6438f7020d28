# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of several modules need."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def umask_077() -> Iterator[None]:
    """A hardened root's umask."""
    previous = os.umask(0o077)
    yield
    os.umask(previous)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with the number of files that the disk has room for; with -1 there is room again."""
    room = -1

    def fsync(_descriptor: int) -> None:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= 1

    def leave(files: int) -> None:
        nonlocal room
        room = files

    monkeypatch.setattr(os, "fsync", fsync)
    return leave
