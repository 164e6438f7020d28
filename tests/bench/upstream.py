#!/usr/bin/env python3
"""The engine of `make bench-proxy`: answers chat completions at an even pace, and tells in each event when it sent it.

    tests/bench/upstream.py --events-per-s 50

prints its port. A streamed answer has `max_tokens` events with a content, the first at once and the others at the pace, counted from the
first so that no delay adds up. An event's content is the time at which it was sent, in nanoseconds of CLOCK_MONOTONIC, which all
processes of a machine share. A request without "stream": true gets a short answer at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import sys
import time

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
STREAM = re.compile(rb'"stream" *: *true')
USAGE = re.compile(rb'"include_usage" *: *true')
TOKENS = re.compile(rb'"max_(?:completion_)?tokens" *: *(\d+)')

EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
)
USAGE_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":400,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Request-Id: bench\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 400, "total_tokens": 402, "completion_tokens": 2},
    }
).encode()
SHORT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
# What LiteLLM may ask for when it starts.
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"vllm"}]}'


def chunk(data: bytes) -> bytes:
    """Frame data as a chunk of HTTP/1.1."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def content() -> bytes:
    """Return an event that is sent now."""
    return EVENT % (b'"content":"%d "' % time.monotonic_ns(), b"null")


class Connection(asyncio.Protocol):
    """One client, whose requests are answered one after another. `period_s`: between two events of a stream."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = LENGTH.search(self._received, 0, end)
        size = end + (int(length[1]) if length else 0)
        if len(self._received) < size:
            return
        body, self._received = self._received[end:size], self._received[size:]
        if not length:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(MODELS), MODELS))
        elif STREAM.search(body):
            tokens = TOKENS.search(body)
            self._begin(int(tokens[1]) if tokens else 16, bool(USAGE.search(body)))
        else:
            self._transport.write(SHORT)

    def _begin(self, events: int, usage: bool) -> None:
        self._sent, self._events, self._usage, self._start = 1, events, usage, self._loop.time()
        role = chunk(EVENT % (b'"role":"assistant","content":""', b"null"))
        self._transport.write(STREAM_HEAD + role + chunk(content()))
        self._go_on()

    def _go_on(self) -> None:
        if self._sent < self._events:
            self._timer = self._loop.call_at(self._start + self._sent * self._period_s, self._send)
            return
        end = chunk(EVENT % (b"", b'"stop"'))
        if self._usage:
            end += chunk(USAGE_EVENT % (400 + self._events, self._events))
        self._transport.write(end + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _send(self) -> None:
        self._sent += 1
        self._transport.write(chunk(content()))
        self._go_on()


async def serve(events_per_s: float, port: int) -> None:
    """Answer until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(1 / events_per_s), "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # No pause of ours may be taken for one of the proxy's.
    gc.freeze()
    gc.disable()
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description="Streams chat completions at a pace; prints its port.")
    parser.add_argument("--events-per-s", type=float, default=50.0, help="of each stream")
    parser.add_argument("--port", type=int, default=0, help="0: any")
    options = parser.parse_args()
    asyncio.run(serve(options.events_per_s, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
