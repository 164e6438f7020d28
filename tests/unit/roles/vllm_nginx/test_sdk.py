# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What OpenAI's SDK, as it is, makes of the gateway's answers when a model is not there."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gateway as harness
import openai
import pytest


@pytest.fixture(scope="module")
def served(make_gateway: Callable[..., Any]) -> Any:
    return make_gateway({"m": (["m"], 1)}, vllm_nginx_read_timeout_s=1)


@pytest.fixture
def client(served: Any) -> Iterator[openai.OpenAI]:
    """With its own number of retries; only the name leads to loopback."""
    context = ssl.create_default_context(cafile=str(served.root / "fullchain.pem"))
    http = openai.DefaultHttpxClient(verify=context)
    http.event_hooks["request"].append(lambda request: request.extensions.update(sni_hostname=harness.DOMAIN))
    base_url = f"https://127.0.0.1:{served.https_port}/v1"
    with openai.OpenAI(
        base_url=base_url, api_key=harness.KEY, http_client=http, default_headers={"Host": harness.DOMAIN}
    ) as one:
        yield one


def ask(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])


def loads(served: Any, ends_in_s: float, load_s: float = 600) -> None:
    """What a launcher says while it loads: since when, and until when by the last load."""
    served.set_away("m-0")
    moment = time.time() + ends_in_s
    os.utime(served.root / "run" / "m-0" / "away", (moment - load_s, moment))


@pytest.mark.parametrize(
    ("ends_in_s", "load_s", "told"),
    [
        (20, 30, range(21, 24)),
        (300, 600, [60]),
        (1, 2, [5]),
        # It takes longer than the last one.
        (-1, 20, [30]),
        (-60, 20, [30]),
        # Nobody knows how long the last one took.
        (0, 0, [10]),
        (-60, 0, [10]),
    ],
)
def test_the_answer_says_when_to_come_back(served: Any, ends_in_s: int, load_s: int, told: Any) -> None:
    try:
        loads(served, ends_in_s, load_s)
        status, headers, said = served.ask("POST", "/v1/completions", {"model": "m"})
        assert (status, said["error"]["code"]) == (503, "service_unavailable")
        assert int(headers["retry-after"]) in told
    finally:
        served.set_away("m-0", away=False)


def test_a_client_rides_out_a_restart(served: Any, client: openai.OpenAI) -> None:
    loads(served, 5)
    back = threading.Timer(6, served.set_away, ["m-0", False])
    back.start()
    start = time.monotonic()
    assert ask(client)
    assert 6 <= time.monotonic() - start < 20
    back.join()


def test_a_prompt_that_takes_too_long_is_run_once(served: Any, client: openai.OpenAI) -> None:
    engine = served.engines["m-0"]
    before = engine.arrived
    engine.answers.clear()
    try:
        with pytest.raises(openai.InternalServerError) as error:
            ask(client)
    finally:
        engine.answers.set()
    assert (error.value.status_code, error.value.code) == (504, "timeout")
    assert engine.arrived == before + 1
