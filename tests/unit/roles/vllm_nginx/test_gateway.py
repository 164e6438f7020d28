# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One address for many models: which engine a request reaches, and what is answered where none can be."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

ROUTES = ("chat/completions", "completions", "responses", "messages", "embeddings")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("name", "slug"), [("llama-3", "llama"), ("gpt-4", "llama"), ("org/qwen", "qwen")])
def test_the_requests_model_picks_the_engine(gateway: Any, route: str, name: str, slug: str) -> None:
    status, said = gateway.chat({"messages": [], "model": name}, f"/v1/{route}")
    assert (status, said["path"]) == (200, f"/v1/{route}")
    assert said["engine"].startswith(f"{slug}-")


def test_the_engine_gets_the_whole_request_and_its_own_key(gateway: Any) -> None:
    body = json.dumps({"model": "org/qwen", "prompt": "x" * (20 << 20)}).encode()
    status, _headers, said = gateway.ask("POST", "/v1/completions?beta=true", body)
    assert (status, said["bytes"], said["path"]) == (200, len(body), "/v1/completions?beta=true")
    asked = gateway.engines["qwen-0"].asked[-1]
    assert asked["body"] == body
    assert asked["headers"]["Authorization"] == "Bearer the-engines-key-0123456789"
    assert asked["headers"]["Host"] == "localhost"
    assert "buffered to a temporary file" not in gateway.log()


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"model": {"type": "string"}}}}}
DEEP: Any = "bottom"
for _level in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"content": 'say "model": "org/qwen"'}], "model": "gpt-4"},
        {"messages": [{"content": '\\"model": "org/qwen'}], "model": "gpt-4"},
        {"tools": [TOOL], "model": "gpt-4"},
        {"metadata": {"model": "org/qwen"}, "model": "gpt-4"},
        {"model": "gpt-4", "metadata": {"model": "org/qwen"}},
        # Short requests are read, of long ones only what is looked for.
        {"messages": [{"content": 'say "model": "org/qwen"' * 2000}], "model": "gpt-4"},
        {"metadata": {"model": "org/qwen"}, "messages": "y" * 20000, "model": "gpt-4"},
        b'{"model": "gpt-4", "model": "gpt-4"}',
        {"x": DEEP, "model": "gpt-4"},
        b'{ "model" \n : \t "gpt\\u002d4" }',
        b'{"m\\u006fdel": "org/qwen", "model": "gpt-4"}',
        b'{"model": "gpt-4"',
    ],
)
def test_it_is_the_requests_own_model(gateway: Any, body: Any) -> None:
    status, said = gateway.chat(body)
    assert status == 200, said
    assert said["engine"].startswith("llama-")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "no-such"}, 404, "model_not_found"),
        ({"model": "GPT-4"}, 404, "model_not_found"),
        ({"model": 'a"b\u2028'}, 404, "model_not_found"),
        ({"model": "constructor"}, 404, "model_not_found"),
        ({"messages": []}, 400, "model_missing"),
        ({"model": ""}, 400, "model_missing"),
        ({"model": 7}, 400, "bad_request"),
        ({"MODEL": "gpt-4"}, 400, "model_missing"),
        ({'"model': "gpt-4"}, 400, "model_missing"),
        ({"model": "x" * 600}, 404, "model_not_found"),
        ({"model": "x" * 600, "messages": "y" * 20000}, 400, "model_missing"),
        (b"", 400, "model_missing"),
        # Each would cost memory for as long as the answer lasts.
        (b"{" + b'"model":"gpt-4",' * 2000 + b'"x":1}', 400, "bad_request"),
        (b"no json", 400, "model_missing"),
        (b'{"model": "\xff\xfe"}', 404, "model_not_found"),
        (b'{"a": {"model": "x"}, "model": "gpt-4"', 400, "bad_request"),
        (b'{"a": {"model": "x"}, "model": "y", "z": "' + b"z" * (2 << 20) + b'"}', 400, "bad_request"),
    ],
)
def test_a_request_for_no_model_is_told_so(gateway: Any, body: Any, status: int, code: str) -> None:
    before = sum(len(engine.asked) for engine in gateway.engines.values())
    got, said = gateway.chat(body)
    assert (got, said["error"]["code"]) == (status, code)
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert sum(len(engine.asked) for engine in gateway.engines.values()) == before


def test_all_names_are_listed(gateway: Any) -> None:
    status, _headers, said = gateway.ask("GET", "/v1/models")
    assert (status, said["object"]) == (200, "list")
    assert [(one["id"], one["object"], one["max_model_len"]) for one in said["data"]] == [
        ("llama-3", "model", 16384),
        ("gpt-4", "model", 16384),
        ("org/qwen", "model", None),
    ]


def test_a_model_has_a_path_of_its_own(gateway: Any) -> None:
    status, said = gateway.chat({"model": "whatever"}, "/qwen/v1/chat/completions")
    assert (status, said["engine"], said["path"]) == (200, "qwen-0", "/v1/chat/completions")
    status, _headers, said = gateway.ask("GET", "/qwen/v1/models")
    assert (status, said["engine"], said["method"]) == (200, "qwen-0", "GET")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/qwen/v1/models", 405),
        ("GET", "/v1/models/gpt-4", 404),
        ("POST", "/v1/tokenize", 404),
        ("GET", "/metrics", 404),
        ("POST", "/@vllm", 404),
        ("GET", "/_vllm_error/401", 404),
    ],
)
def test_nothing_else_is_there(gateway: Any, method: str, path: str, status: int) -> None:
    got, _headers, said = gateway.ask(method, path, b'{"model": "gpt-4"}' if method == "POST" else None)
    assert (got, set(said["error"])) == (status, {"message", "type", "param", "code"})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/qwen/v1/chat/completions"])
@pytest.mark.parametrize("key", [None, "", "A-CLIENTS-KEY-0123456789", "the-engines-key-0123456789"])
def test_without_a_key_nothing_is_told(gateway: Any, path: str, key: str | None) -> None:
    status, headers, said = gateway.ask("GET" if path.endswith("models") else "POST", path, None, key)
    assert (status, said["error"]["code"], headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")


def served_by(gateway: Any, count: int = 30) -> set[str]:
    return {gateway.chat({"model": "gpt-4"})[1].get("engine", "none") for _ in range(count)}


def test_a_replica_that_is_away_gets_nothing(gateway: Any) -> None:
    """At once, and without a reload."""
    names = [f"llama-{index}" for index in range(3)]
    assert served_by(gateway) == set(names)
    try:
        gateway.set_away("llama-1")
        assert served_by(gateway) == {"llama-0", "llama-2"}
        gateway.set_away("llama-0")
        assert served_by(gateway) == {"llama-2"}
        assert gateway.ask("GET", "/ready", key=None)[0] == 200
        gateway.set_away("llama-2")
        status, headers, said = gateway.ask("POST", "/v1/chat/completions", {"model": "gpt-4"})
        assert (status, headers["retry-after"], said["error"]["code"]) == (503, "10", "service_unavailable")
        assert gateway.ask("GET", "/ready", key=None)[0] == 503
        assert gateway.chat({"model": "org/qwen"})[0] == 200
    finally:
        for name in names:
            gateway.set_away(name, away=False)
    assert served_by(gateway) == set(names)


def test_one_that_has_not_begun_gets_nothing(gateway: Any) -> None:
    state = gateway.root / "run" / "qwen-0" / "state.json"
    state.unlink()
    try:
        assert gateway.chat({"model": "org/qwen"})[0] == 503
        assert gateway.ask("GET", "/ready", key=None)[0] == 503
    finally:
        state.touch()
    status, headers, said = gateway.ask("GET", "/ready", key=None)
    assert (status, said, headers["content-length"]) == (200, None, "0")


def test_the_log_says_who_asked_for_which_model(gateway: Any) -> None:
    before = len(gateway.logged())
    gateway.chat({"model": "gpt-4", "prompt": "a-secret-prompt"})
    gateway.chat({"model": "no-such"})
    found, missing = gateway.logged(before, 2)
    assert (found["client"], found["model"], found["path"], found["status"]) == (
        "a",
        "llama",
        "/v1/chat/completions",
        200,
    )
    assert (missing["model"], missing["status"]) == ("", 404)
    assert "a-secret-prompt" not in json.dumps(gateway.logged())


def test_requests_are_spread(gateway: Any) -> None:
    counted = Counter(gateway.chat({"model": "llama-3"})[1]["engine"] for _ in range(60))
    assert len(counted) == 3
    assert min(counted.values()) > 10


# ---- Clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "client"), [("known-as-a-hash-0123456789", "hashed"), ("the-new-one-0123456789", "rotating")]
)
def test_a_key_is_its_clients(gateway: Any, key: str, client: str) -> None:
    before = len(gateway.logged())
    assert gateway.chat({"model": "gpt-4"}, key=key)[0] == 200
    assert gateway.logged(before, 1)[0]["client"] == client


def test_a_key_that_has_expired_is_none(gateway: Any) -> None:
    status, said = gateway.chat({"model": "gpt-4"}, key="the-old-one-0123456789")
    assert (status, said["error"]["code"]) == (401, "invalid_api_key")


def test_a_client_with_a_scope_knows_of_nothing_else(gateway: Any) -> None:
    key = "for-one-model-0123456789"
    assert gateway.chat({"model": "org/qwen"}, key=key)[0] == 200
    for path, body in (
        ("/v1/chat/completions", {"model": "gpt-4"}),
        ("/llama/v1/chat/completions", {"model": "gpt-4"}),
    ):
        status, said = gateway.chat(body, path, key)
        assert (status, said["error"]["code"]) == (404, "model_not_found")
    assert gateway.ask("GET", "/llama/v1/models", key=key)[0] == 404
    listed = gateway.ask("GET", "/v1/models", key=key)[2]["data"]
    assert [one["id"] for one in listed] == ["org/qwen"]


def test_so_many_a_minute(gateway: Any) -> None:
    answers = [
        gateway.ask("POST", "/v1/chat/completions", {"model": "gpt-4"}, "few-a-minute-0123456789") for _ in range(5)
    ]
    assert [status for status, _headers, _said in answers] == [200, 200, 200, 429, 429]
    _status, headers, said = answers[-1]
    assert (headers["retry-after"], said["error"]["code"]) == ("10", "rate_limit_exceeded")
    assert gateway.chat({"model": "gpt-4"})[0] == 200


def test_so_many_at_a_time(gateway: Any) -> None:
    def ask() -> int:
        return int(gateway.chat({"model": "org/qwen"}, key="two-at-a-time-0123456789")[0])

    engine = gateway.engines["qwen-0"]
    engine.answers.clear()
    before = engine.arrived
    try:
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(ask) for _ in range(2)]
            deadline = time.monotonic() + 10
            while engine.arrived < before + 2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert ask() == 429
            engine.answers.set()
            assert [one.result() for one in running] == [200, 200]
    finally:
        engine.answers.set()
    assert ask() == 200


# ---- Replicas that die -----------------------------------------------------------------------------------------------


def test_a_dead_replica_costs_no_request(make_gateway: Callable[..., Any]) -> None:
    """Its launcher died with it and says nothing: the refused connection leads on to the other, for a POST as well."""
    gateway = make_gateway({"llama": (["llama-3"], 2)})
    gateway.engines["llama-0"].stop()
    answers = [gateway.chat({"model": "llama-3"}) for _ in range(20)]
    assert [(status, said["engine"]) for status, said in answers] == [(200, "llama-1")] * 20


def test_a_replica_that_dies_under_load_takes_only_its_own_requests_along(make_gateway: Callable[..., Any]) -> None:
    gateway = make_gateway({"llama": (["llama-3"], 2)})
    for engine in gateway.engines.values():
        engine.pace_s = 0.05
    body = {"model": "llama-3", "stream": True, "max_tokens": 40, "messages": []}

    def stream(_number: int) -> bool:
        try:
            return bool(gateway.stream(body).endswith("data: [DONE]\n\n"))
        except http.client.HTTPException:
            return False

    with ThreadPoolExecutor(20) as pool:
        streams = [pool.submit(stream, number) for number in range(20)]
        deadline = time.monotonic() + 10
        while sum(engine.arrived for engine in gateway.engines.values()) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        taken = gateway.engines["llama-0"].arrived
        gateway.engines["llama-0"].die()
        after = [gateway.chat({"model": "llama-3"})[0] for _ in range(20)]
        whole = [one.result() for one in streams]
    assert (taken, after) == (10, [200] * 20)
    assert whole.count(False) == taken


def test_without_a_model_the_only_one_or_the_default_one_answers(make_gateway: Callable[..., Any]) -> None:
    assert make_gateway({"llama": (["llama-3"], 1)}).chat({"prompt": "Hi"})[1]["engine"] == "llama-0"
    two = make_gateway({"llama": (["llama-3"], 1), "qwen": (["q"], 1)}, default="qwen")
    assert two.chat({"prompt": "Hi"})[1]["engine"] == "qwen-0"


def test_a_session_stays_with_its_replica_as_long_as_that_is_there(make_gateway: Callable[..., Any]) -> None:
    gateway = make_gateway({"llama": (["llama-3"], 3), "qwen": (["q"], 1)}, vllm_nginx_session_header="X-Session-Id")

    def where(session: str) -> str:
        answers = [
            gateway.ask("POST", "/v1/completions", {"model": "llama-3"}, **{"X-Session-Id": session})[2]["engine"]
            for _ in range(3)
        ]
        assert len(set(answers)) == 1, (session, answers)
        return str(answers[0])

    sessions = [f"session-{number}" for number in range(24)]
    before = {session: where(session) for session in sessions}
    assert set(before.values()) == {"llama-0", "llama-1", "llama-2"}
    gateway.set_away("llama-1")
    after = {session: where(session) for session in sessions}
    assert {session for session in sessions if after[session] != before[session]} == {
        session for session in sessions if before[session] == "llama-1"
    }
    gateway.set_away("llama-0")
    assert {where(session) for session in sessions} == {"llama-2"}
    gateway.set_away("llama-0", away=False)
    gateway.set_away("llama-1", away=False)
    # Without the header, wherever there is least to do.
    assert set(Counter(gateway.chat({"model": "llama-3"})[1]["engine"] for _ in range(30))) == set(before.values())
    assert gateway.ask("POST", "/v1/completions", {"model": "q"}, **{"X-Session-Id": "x"})[2]["engine"] == "qwen-0"
