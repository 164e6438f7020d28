"""The engine file: YAML that says what the plan says, with vLLM's traps stepped around."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _engine_file


def instance(**changes: Any) -> dict[str, Any]:
    return {
        "name": "llama-0",
        "model": "meta-llama/Llama",
        "path": "/srv/models/llama",
        "revision": None,
        "served_as": ["llama", "gpt-4"],
        "address": "127.0.0.1",
        "port": 8000,
        "gpus": [0],
        "engine_args": {},
        "env": {},
        **changes,
    }


def loaded(**engine_args: Any) -> dict[str, Any]:
    arguments = {key.replace("_", "-"): value for key, value in engine_args.items()}
    return dict(yaml.safe_load(_engine_file.engine_yaml(instance(engine_args=arguments))))


def test_the_plan_decides_where_and_what_is_served() -> None:
    assert loaded(host="0.0.0.0", port=1) == {
        "host": "127.0.0.1",
        "model": "/srv/models/llama",
        "port": 8000,
        "served-model-name": ["llama", "gpt-4"],
    }


@pytest.mark.parametrize(
    ("value", "read_back"),
    [
        (16384, 16384),
        (0.9, 0.9),
        (1e-05, 1e-05),
        (1.5e300, 1.5e300),
        (True, True),
        ("yes", "yes"),
        ("0123", "0123"),
        ('a "quoted" \\ ünïcode: value # no comment', 'a "quoted" \\ ünïcode: value # no comment'),
        (["a", 1], ["a", 1]),
        ({"method": "ngram", "n": 2}, {"method": "ngram", "n": 2}),
        # vLLM takes a list of maps only as JSON strings.
        ([{"b": 1, "a": 2}], ['{"a": 2, "b": 1}']),
    ],
)
def test_a_value_keeps_its_type(value: Any, read_back: Any) -> None:
    assert loaded(option=value)["option"] == read_back


def test_false_is_written_the_way_vllm_reads_it() -> None:
    options = loaded(enable_prefix_caching=False, no_enable_log_requests=False)
    assert options["no-enable-prefix-caching"] is True
    assert "enable-prefix-caching" not in options
    assert options["enable-log-requests"] is True


def test_null_leaves_an_option_to_vllm() -> None:
    assert "dtype" not in loaded(dtype=None)


def test_the_folder_alone_says_which_commit_it_is() -> None:
    assert "revision" not in _engine_file.engine_yaml(instance(revision="v1", commit="1" * 40))


def test_the_launcher_is_told_where_its_engine_listens() -> None:
    told = json.loads(_engine_file.launcher_json(instance(), "d1", {"start_timeout_s": 900}))
    assert told == {
        "name": "llama-0",
        "address": "127.0.0.1",
        "port": 8000,
        "served_as": ["llama", "gpt-4"],
        "gpus": [0],
        "digest": "d1",
        "start_timeout_s": 900,
    }
