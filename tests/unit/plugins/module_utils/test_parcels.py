# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _parcels
from ansible_collections.gpuops.vllm.plugins.module_utils._parcels import Piece, Wanted

CONTENTS = [b"a" * 10, b"", b"bc" * 20, b"d"]


@pytest.mark.parametrize(
    ("there", "pieces"),
    [
        ([-1, -1, -1, -1], [[(0, 0, 10), (1, 0, 0), (2, 0, 6)], [(2, 6, 16)], [(2, 22, 16)], [(2, 38, 2), (3, 0, 1)]]),
        # What has come is not sent again, also in the middle of a file.
        ([10, 0, 30, -1], [[(2, 30, 10), (3, 0, 1)]]),
        ([10, 0, 40, 1], []),
        ([10, -1, 40, 1], [[(1, 0, 0)]]),
    ],
)
def test_parcels_have_their_size_and_miss_nothing(there: list[int], pieces: list[list[tuple[int, int, int]]]) -> None:
    found = list(_parcels.parcels([len(one) for one in CONTENTS], there, limit=16))
    assert [[tuple(piece) for piece in parcel] for parcel in found] == pieces


def wanted(folder: Path) -> list[Wanted]:
    return [
        Wanted(f"{folder}/to/{number}", len(data), hashlib.sha256(data).hexdigest())
        for number, data in enumerate(CONTENTS)
    ]


def bring(folder: Path, files: list[Wanted], limit: int = 16, most: int = 99) -> list[str]:
    """Send what is missing, at most so many parcels; return what was wrong."""
    for number, data in enumerate(CONTENTS):
        (folder / f"from-{number}").write_bytes(data)
    problems = []
    loads = _parcels.parcels([one.size for one in files], [_parcels.bytes_there(one) for one in files], limit)
    for _number, pieces in zip(range(most), loads, strict=False):
        parcel = io.BytesIO()
        _parcels.write_parcel(parcel, pieces, lambda number: folder / f"from-{number}")
        parcel.seek(0)
        problems += [_parcels.append(parcel, files[piece.number], piece) for piece in pieces]
    return [one for one in problems if one]


def names(folder: Path) -> set[str]:
    return {one.name for one in (folder / "to").iterdir()}


def test_all_comes_and_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    files = wanted(tmp_path)
    assert bring(tmp_path, files, most=2) == []
    assert names(tmp_path) == {"0", "1", "2.incomplete"}
    assert [_parcels.bytes_there(one) for one in files] == [10, 0, 22, -1]
    assert bring(tmp_path, files) == []
    assert [Path(one.path).read_bytes() for one in files] == CONTENTS
    assert names(tmp_path) == {"0", "1", "2", "3"}


def test_what_came_wrong_is_deleted(tmp_path: Path) -> None:
    files = wanted(tmp_path)
    bring(tmp_path, files, most=2)
    with (tmp_path / "to/2.incomplete").open("r+b") as stream:
        stream.write(b"x")
    (problem,) = bring(tmp_path, files)
    assert problem.startswith(f"{files[2].path} has arrived with the SHA-256 ")
    assert names(tmp_path) == {"0", "1", "3"}
    assert bring(tmp_path, files) == []


def test_what_somebody_else_verifies_stays_unfinished(tmp_path: Path) -> None:
    files = [one._replace(sha256="") for one in wanted(tmp_path)]
    bring(tmp_path, files)
    assert names(tmp_path) == {f"{number}.incomplete" for number in range(4)}
    assert list(_parcels.parcels([one.size for one in files], [_parcels.bytes_there(one) for one in files])) == []


def test_what_is_longer_than_it_should_be_counts_as_none(tmp_path: Path) -> None:
    (file,) = wanted(tmp_path)[3:]
    (tmp_path / "to").mkdir()
    (tmp_path / "to/3").write_bytes(b"longer")
    (tmp_path / "to/3.incomplete").write_bytes(b"longer as well")
    assert _parcels.bytes_there(file) == -1
    assert bring(tmp_path, wanted(tmp_path)) == []
    assert (tmp_path / "to/3").read_bytes() == CONTENTS[3]


@pytest.mark.parametrize("name", ["0", "0.incomplete"])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    """The folder of the weights belongs to the engine's account."""
    (tmp_path / "to").mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789")
    (tmp_path / "to" / name).symlink_to(secret)
    files = wanted(tmp_path)[:1]
    assert _parcels.bytes_there(files[0]) == -1
    if name.endswith("incomplete"):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            bring(tmp_path, files)
    else:
        bring(tmp_path, files)
    assert secret.read_bytes() == b"0123456789"


def test_a_file_that_is_shorter_than_the_manifest_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"ab")
    with pytest.raises(OSError, match="shorter than the manifest says") as raised:
        _parcels.write_parcel(io.BytesIO(), [Piece(0, 0, 3)], lambda _number: tmp_path / "short")
    assert raised.value.filename == str(tmp_path / "short")


def test_another_file_of_the_same_size_is_sent_anew(tmp_path: Path) -> None:
    """As the index of another bundle, which a run that failed has left."""
    files = wanted(tmp_path)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/0").write_bytes(b"b" * 10)
    # Whole, and cut off before it got its name.
    (tmp_path / "to/2.incomplete").write_bytes(CONTENTS[2])
    assert [_parcels.bytes_there(one) for one in files] == [-1, -1, -1, -1]
    assert bring(tmp_path, files) == []
    assert [(tmp_path / f"to/{number}").read_bytes() for number in range(4)] == CONTENTS
