"""The load client against the fake engine and against servers that misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import load
import pytest

ROOT = Path(__file__).resolve().parents[3]
KEY = "unit-test-key"
PROGRAM = ROOT / "tests" / "load" / "load.py"


class Fake:
    """A fake engine that serves `demo` on a port of its own; `core` is the process without which no token comes."""

    def __init__(self, folder: Path, **environ: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        config = folder / "engine.yaml"
        options = {"host": "127.0.0.1", "port": self.port, "model": "demo", "shutdown-timeout": 5, "max-num-seqs": 64}
        config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in options.items()))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fake_engine/vllm"), "serve", "--config", str(config)],
            env={**os.environ, "VLLM_API_KEY": KEY, "FAKE_ENGINE_LOAD_S": "0", **environ},
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "the fake engine does not start"
                time.sleep(0.02)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.core = int(children[0])

    def target(self, **changed: Any) -> load.Target:
        return load.Target(**{"base_url": f"http://127.0.0.1:{self.port}/v1", "model": "demo", "key": KEY, **changed})


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    made = Fake(tmp_path, FAKE_ENGINE_TOKEN_S="0.02")
    yield made
    made.process.kill()
    made.process.wait()


def run(target: load.Target, streams: int = 1, requests: int | None = None, **more: Any) -> load.Report:
    return asyncio.run(load.Load(target, max_tokens=12).run(streams, requests, **more))


def test_whole_streams_are_counted_with_their_pace(fake: Fake) -> None:
    done = run(fake.target(), streams=4, requests=8)
    assert (done.started, done.whole, done.cut, done.failed) == (8, 8, {}, {})
    assert done.all_whole
    # The role's event, 12 tokens, [DONE].
    assert done.events == 8 * 14
    assert 0 < done.first_event_s.p50 <= done.first_event_s.p99 <= done.first_event_s.max < 2
    assert 0.015 < done.gap_s.p50 < 0.2
    # Two rounds of 12 tokens; one after another it would take four times as long.
    assert 0.48 <= done.duration_s < 1.9


def test_a_duration_ends_the_sending_and_cuts_nothing(fake: Fake) -> None:
    done = run(fake.target(), streams=2, duration_s=1.5)
    assert done.all_whole
    assert done.started >= 4
    assert 1.5 <= done.duration_s < 6


def test_streams_that_the_engine_aborts_are_cut(fake: Fake) -> None:
    watched = load.Load(fake.target(), max_tokens=1000)
    background = load.Background(watched, streams=3, requests=3)
    background.wait_for_flow(3)
    os.kill(fake.core, signal.SIGKILL)
    done = background.report(within_s=10)
    assert (done.started, done.whole, done.cut, done.failed) == (3, 0, {"abort": 3}, {})
    assert not done.all_whole
    assert done.said() == "0 of 3 streams whole, 3 cut (abort)"


def test_streams_whose_server_is_killed_are_cut(fake: Fake) -> None:
    background = load.Background(load.Load(fake.target(), max_tokens=1000), streams=3, requests=3)
    background.wait_for_flow(3)
    fake.process.kill()
    done = background.report(within_s=10)
    assert (done.whole, sum(done.cut.values()), done.failed) == (0, 3, {})


def test_a_silent_stream_is_cut_after_its_time(fake: Fake) -> None:
    background = load.Background(load.Load(fake.target(silence_s=0.5), max_tokens=1000), streams=1, requests=1)
    background.wait_for_flow(1)
    os.kill(fake.core, signal.SIGSTOP)
    assert background.report(within_s=10).cut == {"ReadTimeout": 1}
    os.kill(fake.core, signal.SIGCONT)


def test_a_load_that_is_stopped_sends_no_more(fake: Fake) -> None:
    background = load.Background(load.Load(fake.target(), max_tokens=5), streams=2)
    background.wait_for_flow(1)
    done = background.report(within_s=10)
    assert done.all_whole


def test_what_was_sent_and_what_ended_after_a_moment_is_counted(fake: Fake) -> None:
    begun_s = time.perf_counter()
    background = load.Background(load.Load(fake.target(), max_tokens=5), streams=3, requests=6)
    background.wait_until_sent(6)
    assert background.report(within_s=10).all_whole
    assert (background.ended_after(begun_s), background.ended_after(time.perf_counter())) == (6, 0)


def test_what_nobody_listens_to_was_not_sent(fake: Fake) -> None:
    target = dataclasses.replace(fake.target(), base_url="http://127.0.0.1:9/v1")
    nobody = load.Background(load.Load(target), streams=2, requests=2)
    with pytest.raises(TimeoutError, match=r"0 of 1 streams after 1 s; lost: {.ConnectError.: \d+}"):
        nobody.wait_until_sent(1, within_s=1)


def test_what_never_began_failed_by_its_reason(fake: Fake) -> None:
    assert run(fake.target(key="wrong"), requests=2).failed == {"401": 2}
    assert run(fake.target(model="none"), requests=1).failed == {"404": 1}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        refused = run(fake.target(base_url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"), requests=2)
    assert refused.failed == {"ConnectError": 2}
    assert (refused.started, refused.whole, refused.first_event_s) == (2, 0, load.Spread(0, 0, 0))


FINISHED = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(FINISHED, "ended without [DONE]", id="ends too early"),
        pytest.param("data: [DONE]\n\n", "no finish_reason", id="never said why it finished"),
        pytest.param('data: {"error": {"message": "x"}}\n\n' + "data: [DONE]\n\n", "error event", id="error"),
        pytest.param("data: {bad\n\n", "JSONDecodeError", id="no JSON"),
        pytest.param(": keep-alive\n\n" + FINISHED + "data: [DONE]\n\n", "", id="whole, with a comment"),
    ],
)
def test_only_a_reason_and_done_make_a_whole_stream(body: str, reason: str) -> None:
    class Odd(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        done = run(load.Target(f"http://127.0.0.1:{server.server_port}/v1", "x"), requests=1)
        server.shutdown()
    assert done.cut == ({reason: 1} if reason else {})
    assert done.whole == (0 if reason else 1)


def test_percentiles_are_nearest_rank() -> None:
    assert load.spread([float(number) for number in range(1, 101)]) == load.Spread(50, 99, 100)
    assert load.spread([3.0]) == load.Spread(3, 3, 3)


def test_the_command_prints_json_and_says_by_its_status_whether_all_were_whole(fake: Fake, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    command = [sys.executable, str(PROGRAM), "--base-url", f"http://127.0.0.1:{fake.port}/v1/", "--model", "demo"]
    done = subprocess.run(
        [*command, "--key-file", str(key), "--streams", "3", "--requests", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["started"], said["whole"], said["cut"], said["failed"]) == (3, 3, {}, {})
    assert set(said["gap_s"]) == {"p50", "p99", "max"}
    refused = subprocess.run([*command, "--requests", "1"], capture_output=True, text=True, check=False)
    assert (refused.returncode, json.loads(refused.stdout)["failed"]) == (1, {"401": 1})
    endless = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (endless.returncode, "--duration-s" in endless.stderr) == (2, True)
