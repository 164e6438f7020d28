# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever changes the proxy while it serves: every stream is whole, and no request fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gateway as harness
import pytest

STREAMS = 20
TOKENS = 600
OLD = {"name": "a", "key": harness.KEY}
NEW = {"name": "a", "key": "the-key-that-comes-next-0123456789"}


def wait(condition: Callable[[], bool]) -> None:
    """For a moment workers from before take new connections, too."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def renew(gateway: Any) -> None:
    before = gateway.served()
    gateway.make_certificate()
    gateway.reload()
    wait(lambda: gateway.served() != before)


def rotate(gateway: Any) -> None:
    gateway.configure(clients=[{**OLD, "expires": "2100-01-01T00:00:00Z"}, NEW])


def add_a_model(gateway: Any) -> None:
    other = harness.instance("other-0", "other", gateway.engines["m-0"].port)
    gateway.configure(instances=[*gateway.instances, other])
    wait(lambda: gateway.chat({"model": "other"})[0] == 200)


def reload_five_times(gateway: Any) -> None:
    for _ in range(5):
        gateway.configure()


@pytest.mark.parametrize("change", [renew, rotate, add_a_model, reload_five_times])
def test_no_stream_is_cut_and_no_request_fails(make_gateway: Callable[..., Any], change: Callable[[Any], None]) -> None:
    gateway = make_gateway({"m": (["m"], 1)})
    gateway.engines["m-0"].pace_s = 0.05
    done, statuses = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            statuses.append(gateway.chat({"model": "m"})[0])

    body = {"model": "m", "stream": True, "max_tokens": TOKENS, "messages": []}
    with ThreadPoolExecutor(STREAMS + 1) as pool:
        streams = [pool.submit(gateway.stream, body) for _ in range(STREAMS)]
        asking = pool.submit(ask)
        try:
            wait(lambda: gateway.engines["m-0"].arrived >= STREAMS)
            change(gateway)
            # It was in the midst of them that the change came.
            assert not any(stream.done() for stream in streams)
            gateway.engines["m-0"].pace_s = 0.001
            said = [stream.result() for stream in streams]
        finally:
            done.set()
        asking.result()
    whole = "".join(event.decode() for event in harness.Engine.events({"max_tokens": TOKENS}))
    assert said == [whole] * STREAMS
    assert set(statuses) == {200}


def test_an_old_key_works_until_it_ends_and_the_new_one_at_once(make_gateway: Callable[..., Any]) -> None:
    gateway = make_gateway({"m": (["m"], 1)})

    def statuses() -> list[int]:
        return [gateway.chat({"model": "m"}, key=one["key"])[0] for one in (OLD, NEW)]

    gateway.configure(clients=[OLD])
    wait(lambda: statuses() == [200, 401])
    end = time.time() + 5
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    gateway.configure(clients=[{**OLD, "expires": moment}, NEW])
    wait(lambda: statuses() == [200, 200])
    # No reload: the moment itself is enough.
    time.sleep(max(0.0, end - time.time()))
    assert statuses() == [401, 200]
