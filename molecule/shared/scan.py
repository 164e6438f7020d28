"""Which TCP ports of a machine answer another one, and how."""

from __future__ import annotations

import errno
import os
import resource
import selectors
import socket
from collections.abc import Iterable
from time import monotonic

EVERY_PORT = range(1, 65536)
#: Sockets at a time.
AT_ONCE = 1000


def scan(address: str, ports: Iterable[int], limit_s: float = 1.5) -> dict[int, str]:
    """The ports that answer, and how: "accepts", "refuses", or else the error. Each thousand of them has ``limit_s`` seconds for it.

    ``address``: of IPv4 or IPv6, where a link's own needs its interface (``fe80::1%br0``). Raises OSError where it cannot be asked.
    """
    _allow_sockets()
    family, kind, protocol, _name, target = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    answers: dict[int, str] = {}
    wanted = list(ports)
    for first in range(0, len(wanted), AT_ONCE):
        some = wanted[first : first + AT_ONCE]
        with selectors.DefaultSelector() as selector:
            attempts = [socket.socket(family, kind, protocol) for _port in some]
            try:
                for attempt, port in zip(attempts, some, strict=True):
                    attempt.setblocking(False)
                    code = attempt.connect_ex((target[0], port, *target[2:]))
                    if code not in (0, errno.EINPROGRESS):
                        raise OSError(code, os.strerror(code), f"{address} port {port}")
                    selector.register(attempt, selectors.EVENT_WRITE, (port, attempt))
                end = monotonic() + limit_s
                while selector.get_map() and monotonic() < end:
                    for key, _events in selector.select(0.1):
                        port, attempt = key.data
                        selector.unregister(attempt)
                        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        answers[port] = {0: "accepts", errno.ECONNREFUSED: "refuses"}.get(code, os.strerror(code))
            finally:
                for attempt in attempts:
                    attempt.close()
    return answers


def accepting(address: str, ports: Iterable[int] = EVERY_PORT) -> set[int]:
    """The ports that take a connection."""
    return {port for port, answer in scan(address, ports).items() if answer == "accepts"}


def _allow_sockets() -> None:
    """Several scans at a time need more than the usual 1024 open files."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192, hard))
