"""The client and the upstream of `make bench-proxy`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
import streams
import upstream
from streams import Answer, Seen, Streams, Way

REPO = Path(__file__).resolve().parents[3]


def event(sent: int, blank: str = "") -> bytes:
    text = json.dumps({"choices": [{"delta": {"content": f"{sent} "}}]}, separators=(",", f":{blank}"))
    return b"data: " + text.encode() + b"\n\n"


def answer_of(events: list[bytes], head: bytes = b"") -> bytes:
    body = b"".join(upstream.chunk(one) for one in [*events, b"data: [DONE]\n\n"])
    return b"HTTP/1.1 200 OK\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def test_an_answer_is_the_same_in_whatever_pieces_it_comes() -> None:
    whole = answer_of([event(1234567), event(2345678, " "), event(3456789)])
    for size in (*range(1, 60), len(whole)):
        one, sent = Answer(), list[int]()
        for start in range(0, len(whole), size):
            assert not one.ended
            sent += one.feed(whole[start : start + size])
        assert (sent, one.ended, one.status, one.closes) == ([1234567, 2345678, 3456789], True, 200, False), size


def test_an_event_counts_once_it_is_whole() -> None:
    one, whole = Answer(), answer_of([event(1234567)])
    end = whole.index(b"\n\n") + 2
    assert one.feed(whole[: end - 1]) == []
    assert one.feed(whole[end - 1 : end]) == [1234567]


def test_an_answer_with_a_length_ends_by_it() -> None:
    one = Answer()
    one.feed(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab")
    assert (one.status, one.closes, one.ended) == (503, True, False)
    one.feed(b"cd")
    assert one.ended


@pytest.fixture
def paced() -> Iterator[Callable[[float], int]]:
    """Start upstreams; all end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(events_per_s: float) -> int:
        program = [sys.executable, str(REPO / "tests/bench/upstream.py"), "--events-per-s", str(events_per_s)]
        started.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True))
        stdout = started[-1].stdout
        assert stdout
        return int(stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def measure(port: int, count: int, events: int | None) -> Seen[float]:
    way = Way("direct", port, "localhost", "none", "bench")
    run: Streams[float] = Streams(way, count, way.request("Hi", events), pause_s=0.01, apart_s=0.1)
    return run.run(0.2, 1.0, 3.0, time.monotonic)


def test_streams_come_at_the_upstreams_pace(paced: Callable[[float], int]) -> None:
    seen = measure(paced(100), 4, 20)
    assert (seen.failed, seen.unanswered) == ({}, 0)
    assert seen.ended >= 4
    # On the whole: where it was late once it catches up.
    assert 9e6 < sum(seen.sent_gap) / len(seen.sent_gap) < 11e6
    # An event has left before it is here, and a request before its first event is.
    assert 0 < min(seen.transit) < min(seen.first)
    assert len(seen.transit) == pytest.approx(400, rel=0.25)


def test_short_answers_are_measured_to_their_end(paced: Callable[[float], int]) -> None:
    seen = measure(paced(100), 2, None)
    assert (seen.failed, len(seen.transit)) == ({}, 0)
    assert seen.ended > 20
    assert abs(len(seen.first) - seen.ended) <= 2


def test_errors_and_cut_streams_are_counted_and_asked_again() -> None:
    """A server that refuses, cuts a stream short, and then falls silent."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    turns = [
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        head + upstream.chunk(event(time.monotonic_ns())),
        answer_of([event(time.monotonic_ns())], b"Connection: close\r\n"),
        None,
    ]
    kept: list[socket.socket] = []

    def serve(server: socket.socket) -> None:
        for turn in turns:
            connection, _address = server.accept()
            connection.recv(1 << 16)
            if turn is None:
                kept.append(connection)
                return
            connection.sendall(turn)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        way = Way("direct", server.getsockname()[1], "localhost", "none", "bench")
        run: Streams[float] = Streams(way, 1, way.request("Hi", 5))
        seen = run.run(0.0, 2.0, 0.1, time.monotonic)
        thread.join(5)
    for connection in kept:
        connection.close()
    assert seen.failed == {"502": 1, "cut": 1}
    assert (seen.ended, seen.unanswered) == (1, 1)
    assert len(seen.first) == 2


def test_a_request_carries_what_the_way_needs() -> None:
    way = streams.Way("gateway", 1, "llm.example.com", "the-key", "bench")
    head, _, body = way.request("Hi", 7).partition(b"\r\n\r\n")
    assert b"\r\nHost: llm.example.com\r\nAuthorization: Bearer the-key\r\n" in head
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert json.loads(body) == {
        "model": "bench",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 7,
    }


def test_a_process_is_read_with_any_name() -> None:
    stat = "7 (a) b ( c) S 5 7 7 0 -1 4194560 1 2 0 0 250 50 9 9 20 0 1 0 5 6 7"
    assert processes.fields(stat) == (5, 300 / processes.TICKS_PER_S)


def test_cores_are_busy_with_all_but_waiting() -> None:
    ticks = processes.TICKS_PER_S
    busy, everything = processes.cores(
        f"cpu  {ticks} {ticks} {ticks} {5 * ticks} {ticks} 0 {ticks} {ticks} 9 9\ncpu0 1"
    )
    assert (busy, everything) == (5, 11)


def test_a_family_and_its_time_are_found() -> None:
    spin = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'print(1, flush=True)\\nwhile True: pass']); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout
        process.stdout.readline()
        family = processes.family(process.pid)
        assert len(family) == 2
        before, began = processes.read({"it": family}), time.monotonic()
        time.sleep(0.5)
        use = processes.between(before, processes.read({"it": family}), time.monotonic() - began)
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    # Of one core; others may want it as well.
    assert 0.02 < use.busiest < 1.2
    assert use.share("it") == pytest.approx(use.busiest / use.cores, rel=0.05)
    assert use.busy * use.cores > use.busiest * 0.8
