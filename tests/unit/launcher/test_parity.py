"""Compares the stand-in engine with a real vLLM, which `GPUOPS_REAL_VLLM` names; a CPU build will do:

    GPUOPS_REAL_VLLM=/path/to/venv/bin/vllm pytest tests/unit/launcher/test_parity.py

Compared are the status, the headers that matter, the shape of the JSON (keys in order, kinds of values) and the events.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
FAKE_ENGINE = ROOT / "tests" / "fake_engine" / "vllm"
REAL_ENGINE = os.environ.get("GPUOPS_REAL_VLLM", "")
KEY = "parity-test-key-0123456789"
PATIENCE_S = 240.0
HEADERS = ("content-type", "transfer-encoding", "server", "vary", "allow")

if not REAL_ENGINE:
    pytest.skip("GPUOPS_REAL_VLLM names no real vLLM", allow_module_level=True)


class Answer(NamedTuple):
    """What is compared of one answer."""

    status: int
    headers: dict[str, str | None]
    content: Any


class Running:
    """One engine process."""

    def __init__(self, program: str, folder: Path, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        config: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "model": str(ROOT / "demo" / "model"),
            "served-model-name": ["demo", "gpt-4"],
            "shutdown-timeout": 20,
            "enforce-eager": True,
            "max-num-seqs": 8,
            "max-model-len": 512,
        }
        folder.mkdir(parents=True)
        file = folder / "engine.yaml"
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in {**config, **options}.items()))
        env = {
            **os.environ,
            "VLLM_API_KEY": KEY,
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "FAKE_ENGINE_ANSWER": "You are welcome.",
            "PATH": f"{Path(program).parent}:{os.environ['PATH']}",
        }
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [program, "serve", "--config", str(file)], env=env, stdout=output, stderr=output, start_new_session=True
            )

    def output(self) -> str:
        """All that the engine printed."""
        return self._output.read_text(errors="replace")

    def request(self, method: str, path: str, body: Any = None, key: str = KEY) -> http.client.HTTPResponse:
        """One request, whose answer is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method, path, body if isinstance(body, str) or body is None else json.dumps(body), headers)
        return connection.getresponse()

    def ready(self) -> None:
        """Wait for the first answer of /health."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), self.request("GET", "/health", key="") as response:
                assert response.status == 200
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.output()[-3000:]}")

    def ended(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End what is left, children too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def shape(value: Any, key: str = "") -> Any:
    """Keys in order and kinds of values; only names that clients rely on are kept as they are."""
    if isinstance(value, dict):
        return [(name, shape(inner, name)) for name, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if key in ("object", "owned_by", "role", "finish_reason", "type", "code", "param", "error", "detail", "root", "id"):
        return re.sub(r"[0-9a-f]{16}$", "HEX", value) if isinstance(value, str) else value
    return type(value).__name__


def events(raw: str) -> list[Any]:
    """Shapes of server-sent events, repetitions left out: the number of tokens is the model's own."""
    assert raw.endswith("\n\n")
    parts = raw.removesuffix("\n\n").split("\n\n")
    assert all(re.fullmatch(r"data: .+", part) for part in parts)
    shapes = [shape(json.loads(part[6:])) if part != "data: [DONE]" else part for part in parts]
    return [new for old, new in zip([None, *shapes], shapes, strict=False) if new != old]


def ask(engine: Running, method: str, path: str, body: Any, key: str) -> Answer:
    """One answer, reduced to what is compared."""
    with engine.request(method, path, body, key) as response:
        raw = response.read().decode()
        headers = {name: response.headers[name] for name in HEADERS}
    kind = headers["content-type"] or ""
    content = shape(json.loads(raw)) if "json" in kind else events(raw) if "event-stream" in kind else raw
    if path == "/metrics":
        names = ("num_requests_running", "num_requests_waiting", "iteration_tokens_total_count", "kv_cache_usage_perc")
        content = sorted(re.findall(rf"^(vllm:(?:{'|'.join(names)}){{.*}}) [\d.e+-]+$", raw, re.MULTILINE))
    return Answer(response.status, headers, content)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    folder = tmp_path_factory.mktemp("parity")
    engines = [Running(str(FAKE_ENGINE), folder / "fake"), Running(REAL_ENGINE, folder / "real")]
    try:
        for engine in engines:
            engine.ready()
        yield engines[0], engines[1]
    finally:
        for engine in engines:
            engine.close()


CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Thanks"}], "temperature": 0}
TEXT = {"model": "gpt-4", "prompt": "Hi", "max_tokens": 3, "temperature": 0}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("method", "path", "body", "key"),
    [
        pytest.param("GET", "/health", None, "", id="health"),
        pytest.param("GET", "/ping", None, "", id="ping"),
        pytest.param("GET", "/load", None, "", id="load"),
        pytest.param("GET", "/version", None, "", id="version"),
        pytest.param("GET", "/metrics", None, "", id="metrics"),
        pytest.param("GET", "/v1/models", None, KEY, id="models"),
        pytest.param("GET", "/v1/models", None, "", id="models, no key"),
        pytest.param("GET", "/v1/models", None, "wrong", id="models, wrong key"),
        pytest.param("GET", "/v1/nothing", None, "", id="unknown route, no key"),
        pytest.param("GET", "/v1/nothing", None, KEY, id="unknown route"),
        pytest.param("GET", "/v1/chat/completions", None, KEY, id="wrong method"),
        pytest.param("POST", "/v1/embeddings", {"model": "demo", "input": "x"}, KEY, id="embeddings of a text model"),
        pytest.param("POST", "/v1/chat/completions", CHAT, KEY, id="chat"),
        pytest.param("POST", "/v1/chat/completions", CHAT, "", id="chat, no key"),
        pytest.param("POST", "/v1/chat/completions", {**CHAT, "model": "gpt-4"}, KEY, id="chat, other name"),
        pytest.param("POST", "/v1/chat/completions", {**CHAT, "model": "nope"}, KEY, id="chat, unknown model"),
        pytest.param("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 2}, KEY, id="chat, cut"),
        pytest.param("POST", "/v1/chat/completions", {**CHAT, "stream": True}, KEY, id="chat, stream"),
        pytest.param("POST", "/v1/chat/completions", {**CHAT, **WITH_USAGE}, KEY, id="chat, stream with usage"),
        pytest.param("POST", "/v1/chat/completions", {"model": "demo"}, KEY, id="chat without messages"),
        pytest.param("POST", "/v1/chat/completions", "{bad", KEY, id="chat, no JSON"),
        pytest.param("POST", "/invocations", CHAT, "", id="invocations need no key"),
        pytest.param("POST", "/v1/completions", TEXT, KEY, id="text"),
        pytest.param("POST", "/v1/completions", {**TEXT, "model": "nope"}, KEY, id="text, unknown model"),
        pytest.param("POST", "/v1/completions", {**TEXT, "stream": True}, KEY, id="text, stream"),
        pytest.param("POST", "/v1/completions", {**TEXT, **WITH_USAGE}, KEY, id="text, stream with usage"),
    ],
)
def test_answers(pair: tuple[Running, Running], method: str, path: str, body: Any, key: str) -> None:
    fake, real = (ask(engine, method, path, body, key) for engine in pair)
    assert fake == real


def test_the_end(pair: tuple[Running, Running]) -> None:
    """A stream that runs ends whole after TERM, a new request is refused meanwhile, and the status is 0."""
    seen = []
    for engine in pair:
        long = {**TEXT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with engine.request("POST", "/v1/completions", long) as response:
            first = response.readline()
            engine.process.terminate()
            raw = (first + response.read()).decode()
        seen.append((raw.endswith("data: [DONE]\n\n"), engine.ended()))
    assert seen == [(True, 0), (True, 0)]


@pytest.mark.parametrize("program", [str(FAKE_ENGINE), REAL_ENGINE], ids=["fake", "real"])
def test_term_while_loading_is_swallowed_once(program: str, tmp_path: Path) -> None:
    engine = Running(program, tmp_path / "engine")
    try:
        end = time.monotonic() + PATIENCE_S
        # The first line of its own log, not of what it imports: its signal handler stands.
        while "(APIServer" not in engine.output():
            assert time.monotonic() < end
            time.sleep(0.05)
        engine.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(0.4)
        engine.process.terminate()
        assert engine.ended() in (130, -signal.SIGTERM, 0)
    finally:
        engine.close()


@pytest.mark.parametrize("program", [str(FAKE_ENGINE), REAL_ENGINE], ids=["fake", "real"])
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"no-such-flag": 3}, 2, "vllm: error: unrecognized arguments: --no-such-flag"),
        ({"port": 0}, 1, "Address already in use"),
    ],
    ids=["flag", "port"],
)
def test_failures(program: str, tmp_path: Path, options: dict[str, Any], status: int, words: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if "port" in options:
            options = {"port": taken.getsockname()[1]}
        engine = Running(program, tmp_path / "engine", **options)
        try:
            assert engine.ended() == status
            assert words in engine.output()
        finally:
            engine.close()


def test_the_stand_in_knows_no_flag_that_vllm_does_not() -> None:
    flags = re.search(r'KNOWN_FLAGS = """(.*?)"""', FAKE_ENGINE.read_text(), re.DOTALL)
    assert flags is not None
    code = (
        "import sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "known = make_arg_parser(FlexibleArgumentParser())._option_string_actions\n"
        "print([flag for flag in sys.argv[1:] if '--' + flag not in known])\n"
    )
    python = str(Path(REAL_ENGINE).with_name("python"))
    done = subprocess.run([python, "-c", code, *flags[1].split()], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
