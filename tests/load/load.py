#!/usr/bin/env python3
"""The load client of this project: streamed chat completions, many at a time, and what became of each.

    tests/load/load.py --base-url https://llm.example.com/v1 --model llama --key-file key --streams 20 --duration-s 30

prints one JSON object (`Report`). As a library: `asyncio.run(Load(target).run(streams=20, requests=20))`, or `Background` where the
server is to be troubled meanwhile. A stream counts as

- whole: it said why it finished (any reason but "abort"), and then [DONE];
- cut: it began, and ended in any other way;
- failed: it never began; counted by HTTP status, or by the kind of the error where there was none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx

Kind = Literal["whole", "cut", "failed"]

PAUSE_AFTER_FAILURE_S = 0.05  # a server that refuses at once is asked again, not flooded


@dataclass(frozen=True)
class Target:
    """An endpoint: `base_url` ends in /v1, `ca_file` is a PEM file to trust in place of the system's, `silence_s` the longest wait."""

    base_url: str
    model: str
    key: str = ""
    ca_file: str | None = None
    silence_s: float = 600.0


@dataclass
class Stream:
    """One request, as it went; times in seconds of `time.perf_counter`."""

    started: float
    kind: Kind = "failed"
    reason: str = ""
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    sent: bool = False


@dataclass(frozen=True)
class Spread:
    """How seconds are spread; all 0 where nothing was measured."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True)
class Report:
    """What became of all streams; `failed` and `cut` by reason, times in seconds."""

    started: int
    whole: int
    cut: dict[str, int]
    failed: dict[str, int]
    events: int
    first_event_s: Spread
    gap_s: Spread
    duration_s: float

    @property
    def all_whole(self) -> bool:
        """True when something was asked, and nothing was cut or refused."""
        return 0 < self.started == self.whole

    def said(self) -> str:
        """The counts in a few words."""
        lost = [
            f"{count} {kind} ({reason})" for kind in ("cut", "failed") for reason, count in getattr(self, kind).items()
        ]
        return ", ".join([f"{self.whole} of {self.started} streams whole", *lost])


def spread(values: Sequence[float]) -> Spread:
    """Return nearest-rank percentiles."""
    ranked = sorted(values)
    return Spread(
        *(round(ranked[math.ceil(share * len(ranked)) - 1], 4) if ranked else 0.0 for share in (0.5, 0.99, 1))
    )


def report(streams: Sequence[Stream], duration_s: float) -> Report:
    """Sum up; `duration_s` from the first request to the last end."""
    gaps = [late - early for one in streams for early, late in zip(one.arrivals, one.arrivals[1:], strict=False)]
    return Report(
        started=len(streams),
        whole=sum(one.kind == "whole" for one in streams),
        cut=dict(Counter(one.reason for one in streams if one.kind == "cut")),
        failed=dict(Counter(one.reason for one in streams if one.kind == "failed")),
        events=sum(len(one.arrivals) for one in streams),
        first_event_s=spread([one.arrivals[0] - one.started for one in streams if one.arrivals]),
        gap_s=spread(gaps),
        duration_s=round(duration_s, 3),
    )


class Load:
    """Sends requests to one target. `body` is added to each request; it may be watched from another thread while it runs."""

    def __init__(self, target: Target, *, prompt: str = "Hi", max_tokens: int = 64, **body: Any) -> None:
        self.target = target
        self.streams: list[Stream] = []
        self._body = {
            "model": target.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            **body,
        }
        self._enough = threading.Event()

    @property
    def flowing(self) -> int:
        """How many streams have begun and not ended."""
        return sum(bool(one.arrivals) and not one.ended for one in tuple(self.streams))

    @property
    def begun(self) -> int:
        """How many have brought something, whether they have ended or not."""
        return sum(bool(one.arrivals) for one in tuple(self.streams))

    @property
    def sent(self) -> int:
        """How many requests have gone out whole. An engine that is busy may answer many of them at once, and late."""
        return sum(one.sent for one in tuple(self.streams))

    def stop(self) -> None:
        """Send no more requests; those under way go on to their end."""
        self._enough.set()

    async def run(self, streams: int, requests: int | None = None, duration_s: float | None = None) -> Report:
        """Keep so many streams going until so many requests were sent, or so many seconds have passed, or `stop` is called."""
        trusted = ssl.create_default_context(cafile=self.target.ca_file)
        started = time.perf_counter()
        until = started + (math.inf if duration_s is None else duration_s)
        left = iter(range(requests)) if requests is not None else iter(int, 1)  # the second one never ends

        async def one_after_another(client: httpx.AsyncClient) -> None:
            while not self._enough.is_set() and time.perf_counter() < until and next(left, None) is not None:
                one = Stream(time.perf_counter())
                self.streams.append(one)
                await self._ask(client, one)
                one.ended = time.perf_counter()
                if one.kind == "failed":
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

        async with httpx.AsyncClient(
            verify=trusted,
            headers={"Authorization": f"Bearer {self.target.key}"} if self.target.key else {},
            timeout=httpx.Timeout(self.target.silence_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        ) as client:
            await asyncio.gather(*(one_after_another(client) for _ in range(streams)))
        return report(self.streams, time.perf_counter() - started)

    async def _ask(self, client: httpx.AsyncClient, one: Stream) -> None:
        """Send one request and note what becomes of it."""
        finish = ""

        async def watch(event: str, _details: object) -> None:
            one.sent |= event.endswith(".send_request_body.complete")

        try:
            url, watched = f"{self.target.base_url}/chat/completions", {"trace": watch}
            async with client.stream("POST", url, json=self._body, extensions=watched) as answer:
                if answer.status_code != 200:
                    one.reason = str(answer.status_code)
                    return
                one.kind, one.reason = "cut", "ended without [DONE]"
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    one.arrivals.append(time.perf_counter())
                    if line == "data: [DONE]":
                        one.kind, one.reason = (
                            ("cut", finish or "no finish_reason") if finish in ("", "abort") else ("whole", "")
                        )
                        return
                    event = json.loads(line[6:])
                    if "error" in event:
                        one.reason = "error event"
                        return
                    finish = next((said["finish_reason"] for said in event["choices"] if said["finish_reason"]), finish)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            one.reason = type(error).__name__


class Background:
    """A load in a thread of its own, for whoever troubles the server meanwhile."""

    def __init__(self, load: Load, streams: int, requests: int | None = None, duration_s: float | None = None) -> None:
        self._load, self._counted = load, requests is not None
        self._report: Report | None = None
        self._thread = threading.Thread(
            target=self._run, args=(streams, requests, duration_s), daemon=True, name="load"
        )
        self._thread.start()

    def _run(self, streams: int, requests: int | None, duration_s: float | None) -> None:
        self._report = asyncio.run(self._load.run(streams, requests, duration_s))

    def wait_for_flow(self, streams: int, within_s: float = 10.0) -> None:
        """Wait until so many streams have begun and not ended; raises TimeoutError."""
        self._wait(lambda: self._load.flowing, streams, within_s)

    def wait_until_begun(self, streams: int, within_s: float = 10.0) -> None:
        """Wait until so many streams have brought something, in all; raises TimeoutError."""
        self._wait(lambda: self._load.begun, streams, within_s)

    def wait_until_sent(self, streams: int, within_s: float = 10.0) -> None:
        """Wait until so many requests have gone out, in all; raises TimeoutError."""
        self._wait(lambda: self._load.sent, streams, within_s)

    def ended_after(self, moment_s: float) -> int:
        """How many streams have ended since a moment of `time.perf_counter`."""
        return sum(one.ended > moment_s for one in self._load.streams)

    def _wait(self, count: Callable[[], int], streams: int, within_s: float) -> None:
        end = time.monotonic() + within_s
        while count() < streams:
            if time.monotonic() > end:
                lost = Counter(one.reason for one in tuple(self._load.streams) if one.ended and one.kind != "whole")
                raise TimeoutError(f"{count()} of {streams} streams after {within_s} s; lost: {dict(lost) or 'none'}")
            time.sleep(0.02)

    def report(self, within_s: float) -> Report:
        """Wait for the end, which comes soon where only `duration_s` or nothing bounds it, and sum up; raises TimeoutError."""
        if not self._counted:
            self._load.stop()
        self._thread.join(within_s)
        if self._report is None:
            raise TimeoutError(f"{self._load.flowing} streams still flow after {within_s} s")
        return self._report


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when every stream was whole."""
    parser = argparse.ArgumentParser(
        description="Streams chat completions and counts what becomes of them; prints JSON."
    )
    parser.add_argument("--base-url", required=True, help="ends in /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key-file", type=Path, help="holds the client key; none: OPENAI_API_KEY")
    parser.add_argument("--ca-file", help="certificate authorities (PEM) to trust in place of the system's")
    parser.add_argument("--streams", type=int, default=1, help="how many at a time")
    parser.add_argument("--requests", type=int, help="how many in all")
    parser.add_argument("--duration-s", type=float, help="for how long new ones are sent")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt", default="Hi")
    parser.add_argument("--silence-s", type=float, default=600.0, help="longest wait for the next event")
    options = parser.parse_args(argv)
    if options.requests is None and options.duration_s is None:
        parser.error("needs --requests or --duration-s: it would never end")
    key = options.key_file.read_text().strip() if options.key_file else os.environ.get("OPENAI_API_KEY", "")
    target = Target(options.base_url.rstrip("/"), options.model, key, options.ca_file, options.silence_s)
    load = Load(target, prompt=options.prompt, max_tokens=options.max_tokens)
    done = asyncio.run(load.run(options.streams, options.requests, options.duration_s))
    print(json.dumps(asdict(done)))
    return 0 if done.all_whole else 1


if __name__ == "__main__":
    sys.exit(main())
