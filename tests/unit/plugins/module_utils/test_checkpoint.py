"""A model folder: whole, readable, and quantised or not."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _checkpoint


def write_shard(path: Path, size: int = 16) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_checkpoint, "HIDDEN", ("/home",))
    for place in [tmp_path, *tmp_path.parents][:3]:
        place.chmod(0o755)
    model = tmp_path / "model"
    model.mkdir(mode=0o755)
    (model / "config.json").write_text("{}")
    write_shard(model / "model.safetensors")
    return model


def test_a_whole_folder_passes(folder: Path) -> None:
    assert _checkpoint.problems(str(folder)) == []


def index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}})
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "it holds no config.json; copy the whole model folder, as the hub lists it",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "its config.json is not JSON; copy the file again"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "it holds no weights (*.safetensors); copy the whole model folder",
        ),
        (index, "second.safetensors is missing; copy the file again"),
        (
            lambda folder: write_shard(folder / "model.safetensors", 15),
            "model.safetensors has {size} bytes where its header promises {whole}; copy the file again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"junk"),
            "model.safetensors is not a whole safetensors file; copy the file again",
        ),
    ],
)
def test_a_broken_folder_is_refused_with_the_file(folder: Path, spoil: Callable[[Path], object], problem: str) -> None:
    whole = (folder / "model.safetensors").stat().st_size
    spoil(folder)
    assert _checkpoint.problems(str(folder)) == [problem.format(size=whole - 1, whole=whole)]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path, folder: Path) -> None:
    assert _checkpoint.problems(str(tmp_path / "none")) == [
        "there is no such folder on this host; put the weights there or correct the path"
    ]


def test_a_place_that_the_sandbox_hides_is_refused() -> None:
    assert _checkpoint.problems("/home/me/model") == [
        "the service's sandbox hides /home; move the weights, for example below /srv/models"
    ]


def test_a_file_that_the_service_user_cannot_read_is_named(folder: Path) -> None:
    (folder / "config.json").chmod(0o600)
    assert _checkpoint.problems(str(folder), "no-such-user") == [
        f"user no-such-user cannot read {folder}/config.json; allow it, for example with chmod o+rX"
    ]
    assert _checkpoint.problems(str(folder), "root") == []


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ([], None),
    ],
)
def test_the_quantization_is_read_from_the_config(folder: Path, config: object, method: str | None) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert _checkpoint.quantization(str(folder)) == method


DEEP = "[" * 200_000
NO_INDEX = "its model.safetensors.index.json is not an index of shards; copy the file again"
NO_SHARD = "model.safetensors is not a whole safetensors file; copy the file again"


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def write_header(folder: Path, text: str) -> None:
    header = text.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o644)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "config.json").write_text(DEEP), "its config.json is not JSON; copy the file again"),
        (lambda folder: write_index(folder, DEEP), NO_INDEX),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "/etc/shadow"}}'), NO_INDEX),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "../model.safetensors"}}'), NO_INDEX),
        (lambda folder: write_index(folder, '{"weight_map": {"a": ".."}}'), NO_INDEX),
        (lambda folder: write_index(folder, '{"weight_map": {"a": 1}}'), NO_INDEX),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "\\ud800"}}'), NO_INDEX),
        (lambda folder: fifo(folder / "model.safetensors.index.json"), NO_INDEX),
        (lambda folder: (folder / "model.safetensors.index.json").symlink_to("nowhere"), NO_INDEX),
        (lambda folder: write_header(folder, DEEP), NO_SHARD),
        (lambda folder: write_header(folder, '{"w": {"data_offsets": [0, "16"]}}'), NO_SHARD),
        (lambda folder: write_header(folder, '{"w": {"data_offsets": [0, null]}}'), NO_SHARD),
        (lambda folder: write_header(folder, '{"w": {"data_offsets": [0]}}'), NO_SHARD),
    ],
)
def test_a_hostile_file_is_refused_and_not_followed(
    folder: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(folder)
    assert _checkpoint.problems(str(folder)) == [problem]


def test_a_config_that_is_too_deep_has_no_quantization(folder: Path) -> None:
    (folder / "config.json").write_text(DEEP)
    assert _checkpoint.quantization(str(folder)) is None


def test_a_pipe_in_the_place_of_the_config_is_not_waited_for(folder: Path) -> None:
    fifo(folder / "config.json")
    assert _checkpoint.quantization(str(folder)) is None
    assert _checkpoint.problems(str(folder)) == [
        "it holds no config.json; copy the whole model folder, as the hub lists it"
    ]


def test_json_is_read_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _checkpoint.JSON_MAX_BYTES == 64_000_000
    monkeypatch.setattr(_checkpoint, "JSON_MAX_BYTES", 10)
    (folder / "config.json").write_text('{"a": 456}')
    assert _checkpoint.problems(str(folder)) == []
    (folder / "config.json").write_text('{"a": 4567}')
    assert _checkpoint.problems(str(folder)) == ["its config.json is not JSON; copy the file again"]
    (folder / "config.json").write_text("{}")
    write_index(folder, '{"weight_map": {"a": "model.safetensors"}}')
    assert _checkpoint.problems(str(folder)) == [NO_INDEX]


def test_a_header_is_read_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _checkpoint.HEADER_MAX_BYTES == 100_000_000
    shard = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(_checkpoint, "HEADER_MAX_BYTES", struct.unpack("<Q", shard[:8])[0])
    assert _checkpoint.problems(str(folder)) == []
    monkeypatch.setattr(_checkpoint, "HEADER_MAX_BYTES", _checkpoint.HEADER_MAX_BYTES - 1)
    assert _checkpoint.problems(str(folder)) == [NO_SHARD]
