# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client's view, tried on a small HTTPS server on loopback that misbehaves in one way at a time."""

from __future__ import annotations

import http.server
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _certificate, _systemd, _verify

KEY = "Right-key-0123456789"
DOMAIN = "localhost"


class Engine(http.server.BaseHTTPRequestHandler):
    """An endpoint; `faults` names what is wrong with it."""

    protocol_version = "HTTP/1.1"
    faults: frozenset[str] = frozenset()

    def log_message(self, *_args: Any) -> None:
        pass

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "t", "param": None, "code": "c"}
        self.answer(status, {"error": "Unauthorized"} if "bare errors" in self.faults else {"error": error})

    def authorized(self) -> bool:
        sent = self.headers.get("Authorization", "")
        if "any case" in self.faults:
            return sent.lower() == f"bearer {KEY.lower()}"
        return sent == f"Bearer {KEY}" or "open" in self.faults

    def do_GET(self) -> None:
        if not self.authorized():
            return self.refuse(401, "wrong key")
        return self.answer(200, {"data": [{"id": "demo"}, {"id": "gpt-4"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.authorized():
            return self.refuse(401, "wrong key")
        if body["model"] not in {"demo", "gpt-4"}:
            return self.refuse(404, "no such model")
        chat = self.path.endswith("/chat/completions")
        if "no chat" in self.faults and chat:
            return self.refuse(400, "no chat template")
        if "down" in self.faults:
            return self.refuse(503, "not available")
        if body.get("stream"):
            return self.stream(body["max_tokens"])
        return self.answer(200, {"usage": {"completion_tokens": 0 if "mute" in self.faults else 4}})

    def stream(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = [b'data: {"n": 1}\n\n'] * count + [b"data: [DONE]\n\n"]
        pieces = [b"".join(events)] if "buffered" in self.faults else events
        for piece in [*pieces, b""]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            if piece:
                time.sleep(0.003)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tls_dir = tmp_path_factory.mktemp("tls")
    _certificate.make_placeholder(tls_dir, DOMAIN, _systemd.run)
    return tls_dir / "current"


@pytest.fixture
def endpoint(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_verify.Endpoint]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "fullchain.pem", certificate / "privkey.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(_verify, "HTTPS_PORT", server.server_port)
    monkeypatch.setattr(Engine, "faults", frozenset())
    yield _verify.Endpoint(DOMAIN, KEY, _verify.trust(str(certificate / "fullchain.pem"), ""), 5.0)
    server.shutdown()
    thread.join()
    server.server_close()


MODEL = _verify.Model("/demo", ["demo", "gpt-4"])


def failed(checks: list[_verify.Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


def test_all_is_well(endpoint: _verify.Endpoint) -> None:
    checks = [*_verify.check_keys(endpoint, ""), *_verify.check_model(endpoint, MODEL)]
    assert failed(checks) == []
    assert [check.name for check in checks] == [
        "right key",
        "wrong key",
        "missing key",
        "key in the wrong case",
        "/demo/v1/models",
        "/demo/v1 model demo",
        "/demo/v1 model gpt-4",
        "/demo/v1 unknown model",
        "/demo/v1 stream",
    ]


def test_further_keys_must_open_as_well(endpoint: _verify.Endpoint) -> None:
    assert _verify.check_further_keys(endpoint, "", [KEY, KEY]).ok
    check = _verify.check_further_keys(endpoint, "", [KEY, "no-such-key-0123456789"])
    assert (check.ok, check.detail) == (False, "GET /v1/models: 200, 401")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("open", ["wrong key", "missing key", "key in the wrong case"]),
        ("any case", ["key in the wrong case"]),
        ("bare errors", ["wrong key", "missing key", "key in the wrong case", "/demo/v1 unknown model"]),
        ("mute", ["/demo/v1 model demo", "/demo/v1 model gpt-4"]),
        ("down", ["/demo/v1 model demo", "/demo/v1 model gpt-4"]),
        ("buffered", ["/demo/v1 stream"]),
        ("no chat", ["/demo/v1 unknown model"]),
    ],
)
def test_each_fault_is_found(
    endpoint: _verify.Endpoint, monkeypatch: pytest.MonkeyPatch, fault: str, expected: list[str]
) -> None:
    monkeypatch.setattr(Engine, "faults", frozenset({fault}))
    checks = [*_verify.check_keys(endpoint, ""), *_verify.check_model(endpoint, MODEL)]
    if fault == "no chat":
        # A model without a chat template is asked by completions; an unknown name is still unknown.
        expected = []
    assert failed(checks) == expected


def test_a_name_that_is_not_listed(endpoint: _verify.Endpoint) -> None:
    checks = _verify.check_model(endpoint, _verify.Model("", ["demo", "other"]))
    assert failed(checks) == ["/v1/models", "/v1 model other"]


def test_certificate(endpoint: _verify.Endpoint) -> None:
    check, end = _verify.check_certificate(endpoint, time.time())
    assert (check.ok, check.detail) == (True, "TLSv1.3, from localhost")
    assert end.ok
    assert re.fullmatch(r"36\d\d\.\d of 36\d\d days left", end.detail)


@pytest.mark.parametrize(
    ("days", "left", "min_days", "ok"),
    [(90, 14.5, 14, True), (90, 13.5, 14, False), (90, 13.5, 7, True), (6, 1.1, 14, True), (6, 0.9, 14, False), (365, 20.0, 21, False)],
)  # fmt: skip
def test_how_long_it_is_still_good(
    endpoint: _verify.Endpoint, monkeypatch: pytest.MonkeyPatch, days: int, left: float, min_days: int, ok: bool
) -> None:
    now = 1_800_000_000.0
    moments = {"a": now + (left - days) * 86400, "b": now + left * 86400}
    monkeypatch.setattr(ssl.SSLSocket, "getpeercert", lambda _socket: {"notBefore": "a", "notAfter": "b"})
    monkeypatch.setattr(ssl, "cert_time_to_seconds", moments.__getitem__)
    check, end = _verify.check_certificate(endpoint, now, min_days)
    assert (check.ok, end.ok, end.detail) == (True, ok, f"{left} of {days} days left")
    assert "certbot.timer" in end.remedy


def test_certificate_of_an_unknown_authority(endpoint: _verify.Endpoint) -> None:
    stranger = _verify.Endpoint(DOMAIN, KEY, _verify.trust("", ""), 5.0)
    (check,) = _verify.check_certificate(stranger, time.time())
    assert not check.ok
    assert check.detail.startswith("self-signed certificate")
    assert "vllm_verify_ca_file" in check.remedy


def test_certificate_for_another_name(endpoint: _verify.Endpoint) -> None:
    other = _verify.Endpoint("127.0.0.1", KEY, endpoint.context, 5.0)
    (check,) = _verify.check_certificate(other, time.time())
    assert not check.ok
    assert "127.0.0.1" in check.detail


def test_nothing_else_is_tried_without_a_certificate(endpoint: _verify.Endpoint) -> None:
    stranger = _verify.Endpoint(DOMAIN, KEY, _verify.trust("", ""), 5.0)
    checks = _verify.verify(stranger, [MODEL], [], [])
    assert [check.name for check in checks] == ["engine ports closed", "redirect", "certificate"]


def test_closed_and_open_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        opened = _verify._check_port("127.0.0.1", port, 1.0)
    assert opened.detail == f"127.0.0.1 answers on port {port}"
    assert not opened.ok
    assert _verify._check_port("127.0.0.1", port, 1.0).ok


def test_loopback_proves_nothing() -> None:
    (check,) = _verify.check_closed(["localhost", "127.0.0.1"], [8000], 1.0)
    assert check.ok
    assert check.detail == "not proven: from here the host has loopback addresses only"


def test_a_name_that_does_not_resolve() -> None:
    (check,) = _verify.check_closed(["no-such-host.invalid"], [8000], 1.0)
    assert not check.ok
    assert check.detail.startswith("not resolved: ")


@pytest.mark.parametrize(
    ("times_s", "arrivals"),
    [
        ([], 0),
        ([0.1] * 10, 1),
        ([0.1, 0.2, 0.3, 0.4], 4),
        ([0.1, 0.2, 0.2001, 0.2002, 0.3], 3),
    ],
)
def test_what_comes_together_is_one_arrival(times_s: list[float], arrivals: int) -> None:
    assert _verify.Stream(times_s).arrivals() == arrivals


@pytest.mark.parametrize(("held", "ok", "pauses"), [(0, True, 0), (25, True, 16), (99, False, 30)])
def test_a_stream_that_is_held_back_has_some_time_until_the_cores_are_free(
    monkeypatch: pytest.MonkeyPatch, held: int, ok: bool, pauses: int
) -> None:
    streams = iter([*[_verify.Stream([0.1] * 49)] * held, _verify.Stream([0.01 * n for n in range(49)])])
    monkeypatch.setattr(_verify, "stream_once", lambda *_arguments: next(streams))
    endpoint = _verify.Endpoint("api.example.com", "key", ssl.create_default_context(), 1.0)
    paused: list[float] = []
    check = _verify.check_stream(endpoint, "", "model", _verify.KINDS[0], paused.append)
    assert (check.ok, len(paused)) == (ok, pauses)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m", "type": "t", "param": None, "code": 404}}, "m"),
        ({"error": "Unauthorized"}, ""),
        ({"error": {"message": "m"}}, ""),
        ("<html>", ""),
        (None, ""),
        ([], ""),
    ],
)
def test_openai_error(body: Any, message: str) -> None:
    assert _verify.openai_error(body) == message


def test_report_names_the_failed_and_the_next_step() -> None:
    checks = [_verify.Check("a", True, "fine"), _verify.Check("b", False, "401", "Look there.")]
    assert _verify.report(checks) == "1 of 2 checks failed:\n- b: 401\n  Look there."


def test_ca_file_that_is_not_there() -> None:
    with pytest.raises(OSError, match="No such file"):
        _verify.trust("/no/such/ca.pem", "")
