# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _clients

KEY = "SECRET-0123456789"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def test_good_keys() -> None:
    keys = [{"name": "team-a", "key": "!" * 16}, {"name": "b", "key": "~" * 512}]
    assert _clients.problems(keys, "vllm_api_keys") == []


NEED = "It needs a list of {name, key}, one entry for each key; keep the keys in a vault. Correct vllm_api_keys."


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], f"vllm_api_keys is an empty list: nobody could use the endpoint. {NEED}"),
        (KEY, f"vllm_api_keys is not a list but a string (value not shown). {NEED}"),
        ({"name": "a", "key": KEY}, f"vllm_api_keys is not a list but a mapping (value not shown). {NEED}"),
        (None, f"vllm_api_keys is not a list but nothing (value not shown). {NEED}"),
        ([KEY], f"vllm_api_keys, entry 1 is not a mapping but a string (value not shown). {NEED}"),
        (
            [{"name": "a", "key": KEY, KEY: 1}],
            "vllm_api_keys, entry 1 has 1 option(s) besides name, key, key_sha256, expires, models, requests_per_minute, concurrent_requests."
            " Correct vllm_api_keys.",
        ),
    ],
)
def test_bad_key_list(keys: Any, expected: str) -> None:
    assert _clients.problems(keys, "vllm_api_keys") == [expected]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        (f"{KEY}\n", "more than one line"),
        (f"{KEY}\nX: y", "more than one line"),
        ("a b" * 8, "not printable ASCII without blanks"),
        ("schlüssel" * 3, "not printable ASCII without blanks"),
        ("x" * 15, "15 characters long"),
        ("x" * 513, "513 characters long"),
        (1234567890123456, "not a string but a number"),
        (None, "not a string but nothing"),
    ],
)
def test_bad_key(key: Any, why: str) -> None:
    (problem,) = _clients.problems([{"name": "team-a", "key": key}], "vllm_api_keys")
    assert problem == (
        f"vllm_api_keys, entry 1: its key (not shown) is {why}. It needs 16 to 512 printable ASCII characters on one line,"
        " without blanks. Make one with `openssl rand -hex 32`. Correct vllm_api_keys."
    )


@pytest.mark.parametrize("name", ["", "Team", "a b", "-a", "a-", "a" * 65, 'x" "y', None, "a\n"])
def test_bad_client_name(name: Any) -> None:
    (problem,) = _clients.problems([{"name": name, "key": KEY}], "vllm_api_keys")
    assert problem.startswith("vllm_api_keys, entry 1: its name is no slug.")


def test_a_key_is_of_one_entry() -> None:
    keys = [{"name": "a", "key": KEY}, {"name": "b", "key_sha256": DIGEST}]
    assert _clients.problems(keys, "vllm_api_keys") == [
        "vllm_api_keys, entry 2 has the key of entry 1. Give each its own key."
    ]


def test_the_keys_of_a_client_may_do_the_same() -> None:
    old = {"name": "a", "key": KEY, "requests_per_minute": 60, "expires": "2027-01-31T00:00:00Z"}
    assert _clients.problems([old, {**old, "key": KEY[::-1], "expires": None}], "vllm_api_keys") == []
    (problem,) = _clients.problems([old, {"name": "a", "key": KEY[::-1]}], "vllm_api_keys")
    assert problem.startswith(
        "vllm_api_keys, entry 2 is of the client 'a', as entry 1 is, but differs in models, requests_per_minute,"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"key_sha256": DIGEST}, "it has both key and key_sha256."),
        ({"key": None, "key_sha256": DIGEST}, "it has both key and key_sha256."),
        ({"expires": "soon"}, "its expires is no moment with a time zone."),
        ({"expires": "2027-01-31T00:00:00"}, "its expires is no moment with a time zone."),
        ({"expires": datetime.date(2027, 1, 31)}, "its expires is no moment with a time zone."),
        ({"expires": 1800000000}, "its expires is no moment with a time zone."),
        ({"models": "llama"}, "its models is no list of names."),
        ({"models": [7]}, "its models is no list of names."),
        (
            {"models": ["llama", "none"]},
            "its models has 1 name(s) that no model here has. It needs some of llama, qwen.",
        ),
        ({"requests_per_minute": 0}, "its requests_per_minute is no limit. It needs a number from 1 to 100000,"),
        ({"requests_per_minute": True}, "its requests_per_minute is no limit."),
        ({"concurrent_requests": "8"}, "its concurrent_requests is no limit. It needs a number from 1 to 10000,"),
    ],
)
def test_bad_option(options: dict[str, Any], why: str) -> None:
    (problem,) = _clients.problems([{"name": "a", "key": KEY, **options}], "vllm_api_keys", ["qwen", "llama"])
    assert problem.startswith(f"vllm_api_keys, entry 1: {why}")
    assert problem.endswith(" Correct vllm_api_keys.")


def test_a_hash_that_is_none_is_not_shown() -> None:
    (problem,) = _clients.problems([{"name": "a", "key_sha256": KEY}], "vllm_api_keys")
    assert "its key_sha256 (not shown) is no SHA-256." in problem
    assert KEY not in problem


def test_no_message_holds_a_key() -> None:
    keys = [KEY, {KEY: KEY}, {"name": KEY.upper(), "key": f"{KEY}\n"}, {"name": "a", "key": [KEY]}, [KEY]]
    assert KEY not in "".join(_clients.problems(keys, "vllm_api_keys"))


def test_records() -> None:
    keys = [
        {
            "name": "a",
            "key": KEY,
            "models": ["llama"],
            "requests_per_minute": 60,
            "expires": "2027-01-31T01:00:00+01:00",
        },
        {
            "name": "b",
            "key_sha256": "0" * 64,
            "expires": datetime.datetime(2027, 1, 31),
        },  # as YAML makes it of an unquoted one
    ]
    moment = 1801353600
    first, second = _clients.records(keys)
    assert first == {
        "name": "a", "digest": DIGEST, "expires": moment, "models": ["llama"], "requests_per_minute": 60, "concurrent_requests": 0,
    }  # fmt: skip
    assert (second["digest"], second["expires"], second["models"]) == ("0" * 64, moment, [])
    with pytest.raises(ValueError, match="is an empty list"):
        _clients.records([])


def test_what_nginx_gets_does_not_depend_on_order() -> None:
    keys = [{"name": name, "key": name * 16, "concurrent_requests": 8} for name in "ba"]
    for text_of in (_clients.clients_conf, _clients.limits_conf):
        text = text_of(_clients.records(keys))
        assert text == text_of(_clients.records(keys[::-1])) != ""
        assert "a" * 16 not in text
