# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes against the role's own NGINX, where what reaches an engine is seen; and against one that lets all through."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _probes

HOST, KEY = "llm.example.com", "a-clients-key-0123456789"


def test_nothing_reaches_an_engine(gateway: Any) -> None:
    context = ssl.create_default_context(cafile=str(gateway.root / "fullchain.pem"))

    def connect() -> socket.socket:
        return context.wrap_socket(
            socket.create_connection(("127.0.0.1", gateway.https_port), 15), server_hostname=HOST
        )

    before = sum(len(engine.asked) for engine in gateway.engines.values())
    answers = _probes.run(connect, HOST, KEY)
    assert [(answer.probe.name, answer.said) for answer in answers if not answer.refused] == []
    assert len(answers) > 80
    assert sum(len(engine.asked) for engine in gateway.engines.values()) == before
    sound = _probes.Probe(
        "sound", b"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    )
    (answer,) = _probes.run(connect, HOST, KEY, [sound])
    assert (answer.statuses, answer.refused) == ((200,), False)


@pytest.fixture
def engine_port(gateway: Any) -> int:
    """An engine without anything before it."""
    return int(gateway.engines["qwen-0"].port)


def test_an_engine_alone_refuses_little(engine_port: int) -> None:
    some = [
        probe
        for probe in _probes.PROBES
        if probe.name in ("GET /metrics", "path /v1/..;/metrics", "no key", "Host missing")
    ]
    answers = _probes.run(lambda: socket.create_connection(("127.0.0.1", engine_port), 5), HOST, KEY, some)
    assert [answer.refused for answer in answers] == [False] * 4
