# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many files, or large ones, brought to a host in parcels of bounded size; what has arrived is not sent again."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

PARCEL_BYTES = 128 << 20
CHUNK_BYTES = 1 << 20
SUFFIX = ".incomplete"


class Wanted(NamedTuple):
    """A file that a host is to have: its absolute path there, its bytes, and their SHA-256, "" where somebody else verifies it.

    Without a SHA-256 it stays under its name with `SUFFIX` until then.
    """

    path: str
    size: int
    sha256: str


class Piece(NamedTuple):
    """So many bytes of the file with that number in a list, from an offset on."""

    number: int
    offset: int
    length: int


def parcels(sizes: Sequence[int], there: Sequence[int], limit: int = PARCEL_BYTES) -> Iterator[list[Piece]]:
    """Yield what to send together: pieces of files, in order, up to ``limit`` bytes a parcel.

    :arg sizes: bytes of each file. :arg there: those that the host has of it; -1 where it has not even an empty one.
    """
    parcel: list[Piece] = []
    room = limit
    for number, (size, has) in enumerate(zip(sizes, there, strict=True)):
        offset = max(has, 0)
        while offset < size or (has < 0 and offset == 0):
            length = min(room, size - offset)
            parcel.append(Piece(number, offset, length))
            offset, room = offset + length, room - length
            if room == 0:
                yield parcel
                parcel, room = [], limit
            if size == 0:
                break
    if parcel:
        yield parcel


# ---- On the host -------------------------------------------------------------------------------------------------------


def bytes_there(wanted: Wanted) -> int:
    """Return how many bytes of a file are there, -1 for none; what is longer than it should be, or whole with another SHA-256, counts as none."""
    path, begun = Path(wanted.path), Path(wanted.path + SUFFIX)
    size = _regular_size(path)
    if size == wanted.size:
        if not wanted.sha256:
            return size
        with path.open("rb") as stream:
            if _sha256_of(stream) == wanted.sha256:
                return size
    size = _regular_size(begun)
    # One that was cut off before its SHA-256 was seen to be right, and so has no name, is sent anew.
    return size if size < wanted.size or (size == wanted.size and not wanted.sha256) else -1


def _regular_size(path: Path) -> int:
    """Return a file's bytes, -1 for none and for what is no file."""
    try:
        found = path.lstat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _sha256_of(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := stream.read(CHUNK_BYTES):
        digest.update(data)
    return digest.hexdigest()


def append(parcel: Any, wanted: Wanted, piece: Piece) -> str:
    """Put the next bytes of an open parcel where they belong; return what is wrong with the file once it is whole, or "".

    Raises OSError.
    """
    path = Path(wanted.path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(wanted.path + SUFFIX, flags, 0o644), "r+b") as stream:
        # What another run has written beyond it is written again.
        stream.truncate(piece.offset)
        stream.seek(piece.offset)
        left = piece.length
        while left:
            data = parcel.read(min(CHUNK_BYTES, left))
            if not data:
                raise OSError(None, "the parcel ended early", wanted.path)
            stream.write(data)
            left -= len(data)
        if piece.offset + piece.length < wanted.size or not wanted.sha256:
            return ""
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        digest = _sha256_of(stream)
    if digest != wanted.sha256:
        Path(wanted.path + SUFFIX).unlink()
        return f"{wanted.path} has arrived with the SHA-256 {digest[:12]}... where {wanted.sha256[:12]}... was sent"
    Path(wanted.path + SUFFIX).replace(path)
    return ""


def total(pieces: Iterable[Piece]) -> int:
    """Return their bytes."""
    return sum(one.length for one in pieces)


def write_parcel(target: Any, pieces: Iterable[Piece], source: Callable[[int], Path]) -> None:
    """Write the bytes of pieces into an open file, one after the other; ``source`` gives a file by its number. Raises OSError."""
    for piece in pieces:
        with source(piece.number).open("rb") as stream:
            stream.seek(piece.offset)
            left = piece.length
            while left:
                data = stream.read(min(CHUNK_BYTES, left))
                if not data:
                    raise OSError(None, "it is shorter than the manifest says", str(source(piece.number)))
                target.write(data)
                left -= len(data)
