"""vllm-download with a bundle in the place of the hub: the same blobs, links and stamp, and nothing is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import FIRST, MODEL, Hub, Runner

NAMES = ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json")


def brought(run: Runner, repository: Path, place: Path) -> list[str]:
    """Put files where a bundle's come, with their list; return the options of the program."""
    files: list[tuple[str, int, str]] = []
    for number, name in enumerate(NAMES):
        data = (repository / name).read_bytes()
        checksum = hashlib.sha256(data).hexdigest()
        # The hub names small files as git does.
        if number == 0:
            checksum = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        files.append((name, len(data), checksum))
        blob = run.repository / "blobs" / f"{checksum}.incomplete"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
    place.write_text(json.dumps([{"model": MODEL, "commit": FIRST, "format": "hf", "files": files}]))
    return [str(run.repository / "blobs" / one[2]) for one in files]


def test_what_a_bundle_has_brought_is_verified_and_gets_its_name(
    run: Runner, repository: Path, hub: Hub, tmp_path: Path
) -> None:
    blobs = brought(run, repository, tmp_path / "list.json")
    done = run(options=("--listed", str(tmp_path / "list.json")))
    assert done.status == 0, done.said
    assert run.snapshot() == {name: (repository / name).read_bytes() for name in NAMES}
    assert {str(path) for path in (run.repository / "blobs").iterdir()} == set(blobs)
    stamp = json.loads((run.repository / "verified" / f"{FIRST}.json").read_text())
    assert set(stamp["files"]) == set(NAMES)
    assert hub.asked() == []
    assert "nothing to download" in run(options=("--listed", "/nowhere")).said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda blob: blob.write_bytes(b"x" * blob.stat().st_size), "is not what the bundle's list says: checksum"),
        (lambda blob: blob.write_bytes(b"x"), "is not what the bundle's list says: 1 bytes where"),
        (lambda blob: blob.unlink(), "has not come from the bundle. Run the play again"),
    ],
    ids=["other bytes", "too few", "gone"],
)
def test_what_is_not_right_gets_no_name(
    run: Runner, repository: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    blobs = brought(run, repository, tmp_path / "list.json")
    damage(Path(f"{blobs[1]}.incomplete"))
    done = run(options=("--listed", str(tmp_path / "list.json")))
    assert done.status == 1
    assert said in done.said
    assert not Path(blobs[1]).exists()
    assert not Path(f"{blobs[1]}.incomplete").exists()
    assert not (run.repository / "verified" / f"{FIRST}.json").exists()
    brought(run, repository, tmp_path / "list.json")
    assert run(options=("--listed", str(tmp_path / "list.json"))).status == 0


@pytest.mark.parametrize("text", ["{", "[]", '[{"model": 1}]'])
def test_a_list_that_is_none_ends_it(run: Runner, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    done = run(options=("--listed", str(tmp_path / "list.json")))
    assert done.status == 1
    assert "Run the play again" in done.said
