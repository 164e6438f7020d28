"""The client of `make bench-proxy`: many answers at a time from one process, cheap and exact.

One loop over epoll and plain or TLS sockets. A library would cost more per event than the proxies that are measured. Times are nanoseconds of
CLOCK_MONOTONIC, taken right before a request is written and right after bytes were read.
"""

from __future__ import annotations

import gc
import heapq
import json
import re
import select
import socket
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) .*?\r\n\r\n", re.DOTALL)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
#: The content of the upstream's events, as vLLM's compact JSON or another program's.
SENT = re.compile(rb'"content": ?"(\d{6,}) "')
DONE = b"data: [DONE]"
LAST_CHUNK = b"\r\n0\r\n\r\n"

Met = TypeVar("Met")


@dataclass(frozen=True)
class Way:
    """A way to the upstream: where a request goes, and how it names itself. `tls` has the certificate's name in `host`."""

    name: str
    port: int
    host: str
    key: str
    model: str
    tls: ssl.SSLContext | None = None

    def request(self, prompt: str, tokens: int | None) -> bytes:
        """A chat completion, with `tokens` events, or the short answer without any."""
        wanted = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        body = json.dumps(wanted | ({} if tokens is None else {"stream": True, "max_tokens": tokens})).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def connect(self) -> socket.socket:
        """A connection that is ready for a request."""
        raw = socket.create_connection(("127.0.0.1", self.port), 30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = self.tls.wrap_socket(raw, server_hostname=self.host) if self.tls else raw
        made.setblocking(False)
        return made


class Answer:
    """What has come of an answer so far. `ended`: it is whole, and the connection may be used again unless it `closes`."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = self.closes = False
        self._length: int | None = None
        self._done = False
        self._rest = b""

    def feed(self, data: bytes) -> list[int]:
        """Take what was read; the times of sending of those events that are whole now."""
        rest = self._rest + data if self._rest else data
        if not self.status:
            head = HEAD.match(rest)
            if not head:
                self._rest = rest
                return []
            self.status, self.closes = int(head[1]), bool(CLOSES.search(head[0]))
            length = LENGTH.search(head[0])
            self._length = int(length[1]) if length else None
            rest = rest[head.end() :]
        if self._length is not None:
            self._rest = rest
            self.ended = len(rest) >= self._length
            return []
        # An event ends with an empty line. The lines of HTTP's chunks end in CR LF and are none.
        cut = rest.rfind(b"\n\n") + 2
        events, self._rest = (b"", rest) if cut < 2 else (rest[:cut], rest[cut:])
        self._done = self._done or DONE in events
        self.ended = self._done and self._rest.endswith(LAST_CHUNK)
        return [int(sent) for sent in SENT.findall(events)]


@dataclass
class Seen(Generic[Met]):
    """What was measured in a window: nanoseconds, and counts.

    `first`: from a request to its first event, or to the end of an answer without events; `transit`: from an event's sending to its
    arrival; `gap`: between the events of a stream. `unanswered`: requests of the window that had nothing when waiting for them ended.
    """

    first: array[int] = field(default_factory=lambda: array("q"))
    transit: array[int] = field(default_factory=lambda: array("q"))
    gap: array[int] = field(default_factory=lambda: array("q"))
    sent_gap: array[int] = field(default_factory=lambda: array("q"))
    ended: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    window_s: float = 0.0
    meters: list[Met] = field(default_factory=list)


class _Stream:
    """One connection and the answer that comes by it."""

    __slots__ = ("answer", "arrived", "asked", "sent", "socket")

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.answer: Answer | None = None
        self.asked = self.arrived = self.sent = 0


class Streams(Generic[Met]):
    """So many answers at a time by one way, each connection asking again `pause_s` after it has its answer.

    `apart_s` is the time over which the first requests are spread, so that all that follow lie apart as well.
    """

    def __init__(self, way: Way, count: int, request: bytes, *, pause_s: float = 0.0, apart_s: float = 0.0) -> None:
        self._way, self._count, self._request, self._pause_s, self._apart_s = way, count, request, pause_s, apart_s
        self._seen: Seen[Met] = Seen()
        self._window = (0, 0)
        self._due: list[tuple[int, int]] = []
        self._streams: list[_Stream] = []
        self._epoll = select.epoll()

    def run(self, warm_s: float, measured_s: float, drain_s: float, meter: Callable[[], Met]) -> Seen[Met]:
        """Measure, after a time to warm up; `meter` is read at both ends of the window.

        Those of the window that have no event yet are waited for up to `drain_s`, and meanwhile all others go on.
        """
        self._streams = [_Stream(self._way.connect()) for _ in range(self._count)]
        for one in self._streams:
            self._epoll.register(one.socket, select.EPOLLIN)
        self._by_fd = {one.socket.fileno(): index for index, one in enumerate(self._streams)}
        gc.collect()
        gc.disable()
        try:
            start = time.monotonic_ns()
            spread = int(self._apart_s * 1e9 / self._count)
            self._due = [(start + index * spread, index) for index in range(self._count)]
            begin, end = start + int(warm_s * 1e9), start + int((warm_s + measured_s) * 1e9)
            self._window = (begin, end)
            self._until(begin)
            self._seen.meters.append(meter())
            opened = time.monotonic_ns()
            self._until(end)
            self._seen.meters.append(meter())
            self._seen.window_s = (time.monotonic_ns() - opened) / 1e9
            self._until(end + int(drain_s * 1e9), lambda: not self._waiting())
            self._seen.unanswered = self._waiting()
        finally:
            gc.enable()
            for one in self._streams:
                one.socket.close()
            self._epoll.close()
        return self._seen

    def _waiting(self) -> int:
        """How many requests of the window have nothing yet."""
        begin, end = self._window
        return sum(bool(one.answer) and begin <= one.asked < end and not one.arrived for one in self._streams)

    def _until(self, end: int, enough: Callable[[], bool] = lambda: False) -> None:
        while (now := time.monotonic_ns()) < end and not enough():
            while self._due and self._due[0][0] <= now:
                self._ask(heapq.heappop(self._due)[1])
            upto = min(end, self._due[0][0]) if self._due else end
            for fd, _event in self._epoll.poll(max(0, upto - time.monotonic_ns()) / 1e9):
                self._read(self._by_fd[fd])

    def _ask(self, index: int) -> None:
        one = self._streams[index]
        one.answer, one.arrived = Answer(), 0
        one.asked = time.monotonic_ns()
        try:
            if one.socket.send(self._request) != len(self._request):
                self._lost(index, "request not taken")
        except OSError as error:
            self._lost(index, type(error).__name__)

    def _read(self, index: int) -> None:
        one = self._streams[index]
        try:
            data = one.socket.recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._lost(index, type(error).__name__)
            return
        now = time.monotonic_ns()
        if not data or one.answer is None:
            # Closed between two requests: no loss.
            self._lost(index, "cut" if one.answer else "")
            return
        begin, end = self._window
        for sent in one.answer.feed(data):
            if not one.arrived:
                if begin <= one.asked < end:
                    self._seen.first.append(now - one.asked)
            elif begin <= now < end:
                self._seen.gap.append(now - one.arrived)
                self._seen.sent_gap.append(sent - one.sent)
            if begin <= now < end:
                self._seen.transit.append(now - sent)
            one.arrived, one.sent = now, sent
        if one.answer.ended:
            self._end(index, now)

    def _end(self, index: int, now: int) -> None:
        one = self._streams[index]
        assert one.answer
        begin, end = self._window
        if one.answer.status != 200:
            self._lost(index, str(one.answer.status))
            return
        if begin <= now < end:
            self._seen.ended += 1
        if not one.arrived:
            one.arrived = now
            if begin <= one.asked < end:
                self._seen.first.append(now - one.asked)
        if one.answer.closes:
            self._connect(index)
        one.answer = None
        heapq.heappush(self._due, (now + int(self._pause_s * 1e9), index))

    def _lost(self, index: int, reason: str) -> None:
        """Count, and go on with a new connection."""
        if reason:
            self._seen.failed[reason] += 1
            heapq.heappush(self._due, (time.monotonic_ns() + int(1e8), index))
        self._streams[index].answer = None
        self._connect(index)

    def _connect(self, index: int) -> None:
        one = self._streams[index]
        self._by_fd.pop(one.socket.fileno(), None)
        one.socket.close()
        one.socket = self._way.connect()
        self._by_fd[one.socket.fileno()] = index
        self._epoll.register(one.socket, select.EPOLLIN)
