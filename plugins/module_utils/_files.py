# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path


def read_text(path: Path) -> str | None:
    """Return the file's text, or None where there is no file.

    Bytes that are no UTF-8 become surrogates, which `write_atomic` makes these bytes again and ``encode()`` refuses.
    """
    try:
        # As it is: by default a carriage return would read as a line break.
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return None


def shown(text: str) -> str:
    """Return a text of `read_text` as a message or a diff can carry it."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def read_untrusted(path: Path, limit: int = 65536) -> str:
    """Return at most ``limit`` bytes of a regular file that another account may have put there, else an empty text.

    A link, a pipe or a device in its place is not followed, waited for or read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, limit).decode(errors="replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""
    finally:
        os.close(descriptor)


def disk_trouble(error: OSError) -> str:
    """Say which file the disk did not take or give, why, and what to do."""
    path = str(error.filename or "a file")
    place = Path(path).parent
    return (
        f"{path}: {error.strerror or error}. Is there room, and is the file system writable? df -h {place}; df -i {place}; findmnt --target {place}, "
        "on the host. When the cause is gone, run the play again: it takes up what is left."
    )


def left_behind(folder: Path, name: str) -> list[Path]:
    """Temporary files ``.NAME.PID`` and ``.NAME.PID.ANYTHING`` whose process was killed before it could rename them."""
    pattern = re.compile(rf"\.{re.escape(name)}\.([0-9]+)(\..*)?")
    found = ((entry, pattern.fullmatch(entry.name)) for entry in folder.iterdir())
    return [entry for entry, match in found if match and not Path("/proc", match[1]).exists()]


def remove_left_behind(folder: Path, name: str) -> None:
    """Remove what is `left_behind`."""
    for entry in left_behind(folder, name):
        with contextlib.suppress(OSError):
            entry.unlink()


def write_atomic(path: Path, content: str, mode: int) -> None:
    """Replace ``path`` by ``content`` with ``mode``; a crash at any moment leaves the old file whole.

    The temporary file of a writer that was killed goes with the next write. Raises OSError, which names ``path``.
    """
    try:
        _write_atomic(path, content, mode)
    except OSError as error:
        # A full disk names no file, and the name of a temporary one helps nobody.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _write_atomic(path: Path, content: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_behind(path.parent, path.name)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
