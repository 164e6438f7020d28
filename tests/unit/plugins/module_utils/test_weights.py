"""Models of a hub on a disk: what is looked for, where it lies, and when all of it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _weights
from ansible_collections.gpuops.vllm.plugins.module_utils._weights import Source

PATH, HUB, COMMIT = "/srv/models/llama", "org/llama", "1" * 40


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (None, []),
        ("llama", []),
        ({"model": HUB}, []),
        ([{"model": HUB}, {"model": PATH}, {"model": HUB}], [Source(HUB), Source(PATH)]),
        ([{"model": HUB}, {"model": HUB, "revision": "v1"}], [Source(HUB), Source(HUB, "v1")]),
        ([{"model": HUB, "state": "absent"}, {"model": PATH, "state": "present"}], [Source(PATH)]),
        # A folder has no revision, and what is none is for the plan to refuse.
        ([{"model": PATH, "revision": "v1"}, {"model": HUB, "revision": 7}, {"model": HUB, "revision": "a/../b"}], [Source(PATH), Source(HUB)]),
        ([HUB, None, {}, {"model": None}, {"model": 7}, {"model": "name"}, {"model": "/srv/../etc"}, {"model": [HUB]}], []),
    ],
)  # fmt: skip
def test_what_is_looked_for(models: object, found: list[Source]) -> None:
    assert _weights.sources(models) == found


def test_a_folder_of_the_host_is_itself_and_one_of_the_hub_has_its_commit_in_it() -> None:
    assert _weights.folder_of(Source(PATH), "", "/weights") == PATH
    assert (
        _weights.folder_of(Source(HUB, "v1"), COMMIT, "/weights")
        == f"/weights/hub/models--org--llama/snapshots/{COMMIT}"
    )


@pytest.mark.parametrize("damage", ["", "no stamp", "another size", "a file gone", "no JSON", "no files", "a list"])
def test_a_commit_is_whole_while_its_files_are_as_the_stamp_says(tmp_path: Path, damage: str) -> None:
    repository = tmp_path / "hub/models--org--llama"
    snapshot, stamp = repository / "snapshots" / COMMIT, repository / f"verified/{COMMIT}.json"
    snapshot.mkdir(parents=True)
    stamp.parent.mkdir()
    (snapshot / "a").write_bytes(b"12345")
    said: Any = {"files": {"a": 6 if damage == "another size" else 5}}
    if damage == "no files":
        said = {"files": {}}
    stamp.write_text({"no JSON": "{", "a list": "[]"}.get(damage, json.dumps(said)))
    if damage == "no stamp":
        stamp.unlink()
    if damage == "a file gone":
        (snapshot / "a").unlink()
    assert _weights.verified(str(tmp_path), HUB, COMMIT) == {"hf": damage == "", "mistral": False}


@pytest.mark.parametrize(
    ("value", "is_name"),
    [
        ("tool_chat_template_x.jinja", True),
        ("parser.py", True),
        ("/srv/x.jinja", False),
        ("templates/x.jinja", False),
        ("..", False),
        ("{{ messages }}", False),
        ("a\nb", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_a_bare_name_is_a_file_beside_the_weights(value: object, is_name: bool) -> None:
    assert _weights.is_file_name(value) is is_name


def test_what_a_bundle_needs_of_the_hub() -> None:
    models = [
        {"name": "a", "model": "org/llama"},
        {"name": "b", "model": "org/llama"},
        {
            "name": "c",
            "model": "org/llama",
            "revision": "v2",
            "engine_args": {"load-format": "auto", "config-format": "hf"},
        },
        {"name": "d", "model": "/srv/models/mine"},
        {"name": "e", "model": "org/gone", "state": "absent"},
    ]
    assert _weights.downloads(models, {"load-format": "mistral"}) == [
        {"model": "org/llama", "revision": "", "format": "mistral"},
        {"model": "org/llama", "revision": "v2", "format": "hf"},
    ]
    assert _weights.downloads(None, None) == []
