"""A model folder: whole, readable, and quantised or not."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

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


def metadata(folder: Path, user: str = "vllm") -> dict[str, Any] | None:
    """Return the metadata with the config as it was written."""
    found = _checkpoint.metadata(str(folder), user)
    return found and {"config": json.loads(found["config_json"]), "weights_bytes": found["weights_bytes"]}


def quantization(folder: Path) -> str | None:
    found = metadata(folder)
    return _checkpoint.quantization_method(found["config"]) if found else None


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "modelopt"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"quantization_config": "fp8"}, None),
    ],
)
def test_the_quantization_is_read_from_the_config(folder: Path, config: object, method: str | None) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert quantization(folder) == method


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


def test_a_pipe_in_the_place_of_a_file_is_not_even_opened(folder: Path) -> None:
    fifo(folder / "config.json")
    fifo(folder / "model.safetensors.index.json")
    opened = []

    def write(name: str) -> None:
        os.close(os.open(folder / name, os.O_WRONLY))
        opened.append(name)

    writers = [
        Thread(target=write, args=(name,), daemon=True) for name in ("config.json", "model.safetensors.index.json")
    ]
    for writer in writers:
        writer.start()
    assert metadata(folder) is None
    _checkpoint.problems(str(folder))
    with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
        _checkpoint._open_regular(folder / "config.json")
    before = list(opened)
    for writer, name in zip(writers, ("config.json", "model.safetensors.index.json"), strict=True):
        while writer.is_alive():
            os.close(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK))
            writer.join(0.01)
    assert before == []


def test_a_pipe_in_the_place_of_the_config_is_no_config(folder: Path) -> None:
    fifo(folder / "config.json")
    assert _checkpoint.problems(str(folder)) == [
        "it holds no config.json; copy the whole model folder, as the hub lists it"
    ]


def test_json_is_read_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_checkpoint.CONFIG_MAX_BYTES, _checkpoint.INDEX_MAX_BYTES) == (4_000_000, 64_000_000)
    monkeypatch.setattr(_checkpoint, "CONFIG_MAX_BYTES", 10)
    (folder / "config.json").write_text('{"a": 456}')
    assert _checkpoint.problems(str(folder)) == []
    (folder / "config.json").write_text('{"a": 4567}')
    assert _checkpoint.problems(str(folder)) == ["its config.json is not JSON; copy the file again"]
    assert metadata(folder) is None
    (folder / "config.json").write_text("{}")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": FP8}))
    assert metadata(folder) == {"config": {}, "weights_bytes": 16}
    write_index(folder, '{"weight_map": {"a": "model.safetensors"}}')
    assert _checkpoint.problems(str(folder)) == []
    monkeypatch.setattr(_checkpoint, "INDEX_MAX_BYTES", 10)
    assert _checkpoint.problems(str(folder)) == [NO_INDEX]


def test_a_header_is_read_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _checkpoint.HEADER_MAX_BYTES == 100_000_000
    shard = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(_checkpoint, "HEADER_MAX_BYTES", struct.unpack("<Q", shard[:8])[0])
    assert _checkpoint.problems(str(folder)) == []
    monkeypatch.setattr(_checkpoint, "HEADER_MAX_BYTES", _checkpoint.HEADER_MAX_BYTES - 1)
    assert _checkpoint.problems(str(folder)) == [NO_SHARD]


def test_the_headers_of_all_shards_are_read_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _checkpoint.HEADERS_MAX_BYTES == 256_000_000
    for name in ("n", "o", "p"):
        (folder / f"{name}.safetensors").symlink_to("model.safetensors")
    (header,) = struct.unpack("<Q", (folder / "model.safetensors").read_bytes()[:8])
    monkeypatch.setattr(_checkpoint, "HEADERS_MAX_BYTES", 4 * header)
    assert _checkpoint.problems(str(folder)) == []
    monkeypatch.setattr(_checkpoint, "HEADERS_MAX_BYTES", 4 * header - 1)
    assert _checkpoint.problems(str(folder)) == [
        f"the headers up to p.safetensors have more than {4 * header - 1} bytes; copy the folder again"
    ]


def test_a_file_with_an_odd_name_is_shown_as_no_terminal_minds(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m.safetensors")).write_text("x")
    assert _checkpoint.problems(str(folder)) == [
        "\\udcff\\x1b[31m.safetensors is not a whole safetensors file; copy the file again"
    ]
    named = folder.with_name("\x1b[2J\N{GREEK SMALL LETTER ALPHA}")
    folder.rename(named)
    named.chmod(0o700)
    (problem,) = _checkpoint.problems(str(named), "no-such-user")
    assert f"cannot read {named.parent}/\\x1b[2J\N{GREEK SMALL LETTER ALPHA};" in problem


FP8 = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


@pytest.mark.parametrize(
    ("config", "beside", "method"),
    [
        ({}, {"producer": {"name": "modelopt"}, "quantization": FP8}, "modelopt"),
        ({"quantization_config": {"quant_method": "awq"}}, {"quantization": FP8}, "awq"),
        ({}, {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, None),
        ({}, {"quantization": "FP8"}, None),
        ({}, [], None),
    ],
)
def test_modelopt_tells_its_quantization_in_a_file_of_its_own(
    folder: Path, config: dict[str, object], beside: object, method: str | None
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    assert quantization(folder) == method


def test_the_metadata_are_the_config_and_the_bytes_of_all_tensors(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 64}')
    assert metadata(folder) == {"config": {"hidden_size": 64}, "weights_bytes": 16}


def test_the_metadata_have_the_quantization_that_lies_beside(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": FP8}))
    assert metadata(folder) == {
        "config": {"quantization_config": {"quant_method": "modelopt", **FP8}},
        "weights_bytes": 16,
    }


def twice(folder: Path) -> None:
    write_shard(folder / "consolidated.safetensors", 999)


def two_shards(folder: Path) -> None:
    index(folder)
    write_shard(folder / "second.safetensors", 100)
    write_shard(folder / "consolidated.safetensors", 999)


def other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    write_shard(folder / "b.safetensors", 100)


@pytest.mark.parametrize(
    ("change", "weights_bytes"),
    [
        (twice, 16),
        (two_shards, 116),
        (other_name, 116),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": 4711}}'), 4711),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": 1.5e10}}'), 15_000_000_000),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": -1}}'), 16),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": true}}'), 16),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": NaN}}'), 16),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": 1e999}}'), 16),
        (lambda folder: write_index(folder, '{"metadata": {"total_size": "9"}}'), 16),
        (lambda folder: write_index(folder, "{"), 16),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "gone.safetensors"}}'), None),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "../model/model.safetensors"}}'), None),
        (lambda folder: write_index(folder, '{"weight_map": {"a": ["model.safetensors"]}}'), None),
        (lambda folder: write_index(folder, '{"weight_map": {"a": "\\ud800"}}'), None),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), None),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 9) + bytes(8)), None),
        (lambda folder: (folder / "model.safetensors").unlink(), None),
        (lambda folder: fifo(folder / "model.safetensors"), None),
        (lambda folder: fifo(folder / "model.safetensors.index.json"), 16),
    ],
)
def test_the_bytes_of_the_weights_are_read_or_not_known(
    folder: Path, change: Callable[[Path], object], weights_bytes: int | None
) -> None:
    change(folder)
    assert metadata(folder) == {"config": {}, "weights_bytes": weights_bytes}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text(DEEP),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        lambda folder: fifo(folder / "config.json"),
    ],
)
def test_a_config_that_cannot_be_read_has_no_metadata(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder)
    assert metadata(folder) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"x": {"__ansible_type": "TaggedStr", "value": "a"}}',
        '{"x": {"__ansible_vault": "$ANSIBLE_VAULT;1.1;AES256"}, "__ansible_unsafe": "{{ 1 }}"}',
        '{"\\ud800": "a\\udfff"}',
        '{"x": NaN, "y": "\N{GREEK SMALL LETTER ALPHA}\\u001b[2J"}',
        '{"x": ' + "[" * 300 + "]" * 300 + "}",
    ],
)
def test_a_config_is_handed_on_as_ascii_whatever_is_in_it(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    found = _checkpoint.metadata(str(folder))
    assert found is not None
    assert found["config_json"].isascii()
    assert found["config_json"].isprintable()
    # As text, since NaN equals nothing.
    assert repr(json.loads(found["config_json"])) == repr(json.loads(text))


def test_what_the_service_cannot_read_has_no_metadata(folder: Path, tmp_path: Path) -> None:
    """The module is root: it would show of a link's target what the folder's owner may not see."""
    elsewhere = tmp_path / "secret"
    elsewhere.mkdir()
    (elsewhere / "auth.json").write_text('{"auths": "secret"}')
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(elsewhere / "auth.json")
    assert metadata(folder, "no-such-user") == {"config": {"auths": "secret"}, "weights_bytes": 16}
    for hidden in (elsewhere / "auth.json", elsewhere, folder):
        mode = hidden.stat().st_mode
        hidden.chmod(0o700)
        assert metadata(folder, "no-such-user") is None, hidden
        assert len(_checkpoint.problems(str(folder), "no-such-user")) == 1, hidden
        hidden.chmod(mode)
    assert metadata(folder, "no-such-user")


def test_a_path_that_is_not_there_has_no_metadata(tmp_path: Path) -> None:
    assert _checkpoint.metadata(str(tmp_path / "none")) is None
    assert _checkpoint.metadata("\0") is None
