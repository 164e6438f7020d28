# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that nothing behind an endpoint may ever see: bypasses of the paths, the key and the name, smuggling, oversize, slowness.

Each is sent as bytes, by a client that has a right key wherever the probe is about anything else. It must be refused: by a status of 300 or
more in every answer that comes, or by the end of the connection.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

#: Seconds for an answer. Headers that are not sent to their end must be given up sooner: the endpoint allows 10 s.
TIMEOUT_S = 15.0
_STATUS = re.compile(rb"^HTTP/\d\.\d (\d{3})", re.MULTILINE)
_BODY = b'{"model": "", "prompt": "Hi"}'


@dataclass(frozen=True)
class Probe:
    """What is sent: ``{host}`` and ``{key}`` stand for the endpoint's own."""

    name: str
    request: bytes


@dataclass(frozen=True)
class Answer:
    """The statuses that came back, ``()`` where the connection was ended without one, and the seconds until its end or the answer."""

    probe: Probe
    statuses: tuple[int, ...]
    seconds: float
    refused: bool

    @property
    def said(self) -> str:
        """In a few words."""
        return ", ".join(map(str, self.statuses)) or (
            "no answer" if self.refused else f"nothing in {self.seconds:.0f} s"
        )


def _get(
    target: str,
    method: str = "GET",
    headers: str = "",
    host: str = "Host: {host}\r\n",
    key: str = "Authorization: Bearer {key}\r\n",
) -> bytes:
    return f"{method} {target} HTTP/1.1\r\n{host}{key}{headers}Connection: close\r\n\r\n".encode()


def _post(
    headers: str, body: bytes, target: str = "/v1/completions", key: str = "Authorization: Bearer {key}\r\n"
) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: {{host}}\r\n{key}{headers}\r\n".encode() + body


#: What vLLM has beside the API, some of it only with options or in development mode.
_HIDDEN = (
    "/metrics", "/health", "/version", "/ping", "/load", "/docs", "/redoc", "/openapi.json", "/server_info", "/is_sleeping",
    "/v1/models/x", "/_vllm_error/401", "/digest", "/.env", "/.well-known/acme-challenge/../../v1",
)  # fmt: skip
_HIDDEN_POSTS = (
    "/invocations", "/tokenize", "/detokenize", "/pooling", "/score", "/rerank", "/classify", "/sleep", "/wake_up", "/collective_rpc",
    "/reset_prefix_cache", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/chat/completions/render", "/v1/completions/render",
)  # fmt: skip
_TRICKS = (
    "/v1/..;/metrics", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/%252e%252e/metrics", "/v1/models/../../metrics", "//metrics", "/v1//..//metrics",
    "/v1/models/", "/v1/models%00", "/v1/models%0d%0aX:%20y", "/v1/models%3f", "/v1/models;/metrics", "/V1/models", "/v1\\models", "/v1/models%20",
    "http://127.0.0.1:8000/metrics", "*",
)  # fmt: skip
_SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LENGTH = f"Content-Length: {len(_BODY)}\r\n"

PROBES: tuple[Probe, ...] = (
    *(Probe(f"GET {path}", _get(path)) for path in _HIDDEN),
    *(Probe(f"POST {path}", _post(_LENGTH, _BODY, path)) for path in _HIDDEN_POSTS),
    *(Probe(f"path {path}", _get(path)) for path in _TRICKS),
    *(Probe(f"{method} on a path of the API", _get("/v1/models", method)) for method in ("PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "PROPFIND")),
    Probe("GET on a path that takes POST", _get("/v1/chat/completions")),
    Probe("CONNECT", _get("127.0.0.1:8000", "CONNECT")),
    Probe("no key", _get("/v1/models", key="")),
    Probe("an empty key", _get("/v1/models", key="Authorization: Bearer \r\n")),
    Probe("the key without Bearer", _get("/v1/models", key="Authorization: {key}\r\n")),
    Probe("the key as basic authentication", _get("/v1/models", key="Authorization: Basic {key}\r\n")),
    Probe("the key in the query", _get("/v1/models?api_key={key}&key={key}", key="")),
    Probe("the key as X-Api-Key", _get("/v1/models", key="X-Api-Key: {key}\r\n")),
    Probe("the key in a cookie", _get("/v1/models", key="Cookie: Authorization=Bearer {key}\r\n")),
    Probe("a wrong key before the right one", _get("/v1/models", key="Authorization: Bearer wrong\r\nAuthorization: Bearer {key}\r\n")),
    Probe("two keys in one", _get("/v1/models", key="Authorization: Bearer wrong, Bearer {key}\r\n")),
    Probe("a trusted address", _get("/v1/models", headers="X-Forwarded-For: 127.0.0.1\r\nX-Real-Ip: 127.0.0.1\r\n", key="")),
    Probe("another path by header", _get("/", headers="X-Original-Url: /v1/models\r\nX-Rewrite-Url: /v1/models\r\n")),
    *(
        Probe(f"Host {host or 'missing'}", _get("/v1/models", host=f"Host: {host}\r\n" if host else ""))
        for host in ("", "127.0.0.1", "localhost", "{host}.evil.example", "{host}@127.0.0.1", "x?", "{host}/metrics", "{host}\r\nHost: localhost")
    ),
    Probe("length and chunks", _post(f"{_LENGTH}Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + _SMUGGLED)),
    Probe("two lengths", _post("Content-Length: 4\r\nContent-Length: 60\r\n", b"abcd" + _SMUGGLED)),
    *(
        Probe(f"length {length!r}", _post(f"Content-Length: {length}\r\n", _BODY + _SMUGGLED))
        for length in ("-1", "+29", "0x1d", "29, 29", "99999999999999999999")
    ),
    *(
        Probe(f"coding {coding!r}", _post(f"Transfer-Encoding:{coding}\r\n", b"0\r\n\r\n" + _SMUGGLED))
        for coding in (" xchunked", " chunked, identity", " identity", " gzip, chunked", "\x0bchunked", " chunked\r\nTransfer-Encoding: x")
    ),
    Probe("a blank before the colon", _post("Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + _SMUGGLED)),
    Probe("a chunk of a wrong size", _post("Transfer-Encoding: chunked\r\n", b"zz\r\nabc\r\n0\r\n\r\n")),
    Probe("a chunk of a negative size", _post("Transfer-Encoding: chunked\r\n", b"-1\r\nabc\r\n0\r\n\r\n")),
    Probe("a NUL in a header", _get("/v1/models", headers="X-A: a\0b\r\n")),
    Probe("a bare CR in a header", _get("/v1/models", headers="X-A: a\rb: c\r\n")),
    Probe("a folded header", _get("/v1/models", headers="X-A: a\r\n b\r\n")),
    Probe("HTTP/0.9", b"GET /v1/models\r\n"),
    Probe("HTTP/3.7", _get("/v1/models").replace(b"HTTP/1.1", b"HTTP/3.7")),
    Probe("HTTP/2 without saying so", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Probe("an address of 40 kB", _get("/v1/models?" + "a" * 40_000)),
    Probe("a header of 40 kB", _get("/v1/models", headers=f"X-A: {'a' * 40_000}\r\n")),
    Probe("headers of 200 kB", _get("/v1/models", headers="".join(f"X-{n}: {'a' * 1000}\r\n" for n in range(200)))),
    Probe("a body of a terabyte", _post("Content-Length: 1099511627776\r\n", _BODY)),
    Probe("headers that do not end", b"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nX-A: "),
)  # fmt: skip


def run(connect: Callable[[], socket.socket], host: str, key: str, probes: Sequence[Probe] = PROBES) -> list[Answer]:
    """Send each on a connection of its own, a few at a time; in their order. ``connect`` gives one, past TLS."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(lambda probe: _send(connect, host, key, probe), probes))


def _send(connect: Callable[[], socket.socket], host: str, key: str, probe: Probe) -> Answer:
    request = probe.request.replace(b"{host}", host.encode()).replace(b"{key}", key.encode())
    received, ended = b"", False
    begun = time.monotonic()
    try:
        with connect() as connection:
            connection.settimeout(TIMEOUT_S)
            connection.sendall(request)
            # What follows an answer on the same connection would be one to what was smuggled in.
            while piece := connection.recv(65536):
                received += piece
                connection.settimeout(1.0)
            ended = True
    except TimeoutError:
        pass
    except OSError:
        ended = True
    statuses = tuple(int(status) for status in _STATUS.findall(received))
    refused = all(status >= 300 for status in statuses) and (bool(statuses) or (ended and not received.strip()))
    return Answer(probe, statuses, time.monotonic() - begun, refused)
