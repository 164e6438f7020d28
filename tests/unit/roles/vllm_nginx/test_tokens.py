# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many tokens a request had: what the access log says of it, and that nobody else notices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ASKED = {"model": "m", "stream": True, "max_tokens": 3, "messages": []}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
TOKEN: dict[str, Any] = {"choices": [{"delta": {"content": "h\u00e9"}}]}


@pytest.fixture(scope="module")
def served(make_gateway: Callable[..., Any]) -> Any:
    return make_gateway({"m": (["m"], 1)})


@pytest.fixture
def engine(served: Any) -> Iterator[Any]:
    one = served.engines["m-0"]
    yield one
    one.pieces, one.also, one.pace_s = [], {}, 0.0


@pytest.fixture
def logged(served: Any) -> Callable[[], tuple[Any, Any]]:
    """The tokens in the access log's next line."""
    before = len(served.logged())

    def read() -> tuple[Any, Any]:
        (line,) = served.logged(before, 1)
        return line["prompt_tokens"], line["completion_tokens"]

    return read


def events(text: str) -> list[Any]:
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]


def test_a_streams_tokens_are_logged_and_nobody_notices(served: Any, engine: Any, logged: Any) -> None:
    said = events(served.stream(ASKED))
    assert [one["choices"][0]["delta"]["content"] for one in said] == ["0 ", "1 ", "2 "]
    assert logged() == (7, 3)
    asked = json.loads(engine.asked[-1]["body"])
    assert asked.pop("stream_options") == {"include_usage": True}
    assert asked == ASKED


def test_who_asks_for_the_tokens_gets_them(served: Any, engine: Any, logged: Any) -> None:
    body = json.dumps({**ASKED, "stream_options": {"include_usage": True}}).encode()
    assert events(served.stream(body))[-1] == USAGE
    assert engine.asked[-1]["body"] == body
    assert logged() == (7, 3)


@pytest.mark.parametrize(
    "body",
    [
        {**ASKED, "stream_options": {"include_usage": False}},
        {"model": "m", "max_tokens": 3, "metadata": {"stream": True}},
        {"model": "m", "max_tokens": 3, "messages": [{"content": '"stream": true'}]},
        {**ASKED, "x": "y" * (1 << 20)},
        # njs would stand still for seconds over names that collide.
        {**ASKED, **{f"x{number}": 0 for number in range(3000)}},
    ],
)
def test_else_a_request_reaches_vllm_as_it_is(served: Any, engine: Any, logged: Any, body: Any) -> None:
    text = json.dumps(body).encode()
    served.stream(text) if body.get("stream") else served.chat(text)
    assert engine.asked[-1]["body"] == text
    assert logged() == (None, None)


@pytest.mark.parametrize(
    ("also", "tokens"),
    [
        (
            {"usage": {"prompt_tokens": 12, "total_tokens": 20, "completion_tokens": 8, "prompt_tokens_details": None}},
            (12, 8),
        ),
        ({"usage": {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 6}}, (5, 6)),
        ({"data": [0.5] * 5000, "usage": {"prompt_tokens": 9, "total_tokens": 9}}, (9, None)),
        # As long as NGINX must not hold.
        ({"data": "x" * (2 << 20), "usage": {"prompt_tokens": 9}}, (None, None)),
        ({"text": '"prompt_tokens": 99, "completion_tokens": 99'}, (None, None)),
    ],
)
def test_an_answer_in_one_piece_tells_them(served: Any, engine: Any, logged: Any, also: Any, tokens: Any) -> None:
    engine.also = also
    status, said = served.chat({"model": "m", "messages": []})
    assert (status, {name: said[name] for name in also}) == (200, also)
    assert logged() == tokens


@pytest.mark.parametrize("size", [1, 7, 50])
def test_an_event_may_come_in_pieces(served: Any, engine: Any, logged: Any, size: int) -> None:
    whole = (
        "".join(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in (TOKEN, TOKEN, USAGE)).encode()
        + b"data: [DONE]\n\n"
    )
    engine.pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    engine.pace_s = 0.002
    assert events(served.stream(ASKED)) == [TOKEN, TOKEN]
    assert logged() == (7, 3)


def test_a_stream_that_breaks_off_comes_as_far_as_it_came(served: Any, engine: Any) -> None:
    engine.pieces = [b"data: 1\n\n", b"data: {half"]
    assert served.stream(ASKED) == "data: 1\n\ndata: {half"


def test_each_event_goes_on_at_once(served: Any, engine: Any) -> None:
    engine.pace_s = 0.2
    connection = served.connect()
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(ASKED), {"Authorization": "Bearer a-clients-key-0123456789"}
    )
    moments = []
    with connection.getresponse() as answer:
        while answer.readline():
            moments.append(time.monotonic())
    connection.close()
    assert moments[4] - moments[0] > 0.3


def test_a_refusal_has_none(served: Any, logged: Any) -> None:
    assert served.chat({"model": "no-such"})[0] == 404
    assert logged() == (None, None)


def test_a_number_may_be_cut_by_a_buffer(served: Any, engine: Any) -> None:
    before = len(served.logged())
    paddings = range(3500, 4200, 8)
    for padding in paddings:
        engine.also = {"padding": "x" * padding, "usage": {"prompt_tokens": 1234567, "completion_tokens": 7654321}}
        served.chat({"model": "m", "messages": []})
    told = [(one["prompt_tokens"], one["completion_tokens"]) for one in served.logged(before, len(paddings))]
    assert told == [(1234567, 7654321)] * len(paddings)
