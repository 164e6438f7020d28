"""The launcher's decisions, as pure functions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]

METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 2.0
vllm:num_requests_running{engine="1",model_name="demo"} 0.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 7.0
vllm:num_requests_waiting{engine="1",model_name="demo"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="demo",reason="capacity"} 5.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="demo"} 39.0
vllm:iteration_tokens_total_count{engine="0",model_name="demo"} 44.0
vllm:iteration_tokens_total_count{engine="1",model_name="demo"} 3.0
vllm:iteration_tokens_total_sum{engine="0",model_name="demo"} 65.0
"""


def test_metrics_are_read_per_engine(launcher: ModuleType) -> None:
    assert launcher.parse_metrics(METRICS) == {"0": (2.0, 7.0, 44.0), "1": (0.0, 0.0, 3.0)}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "vllm:num_requests_running 1.0\n"])
def test_incomplete_metrics_say_nothing(launcher: ModuleType, text: str) -> None:
    assert launcher.parse_metrics(text) == {}


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        pytest.param([(0, True, 0, 0, 0), (500, True, 0, 0, 0)], "", id="idle for long"),
        pytest.param([(0, True, 1, 0, 5), (100, True, 1, 0, 5)], "", id="slow, within the limit"),
        pytest.param([(0, True, 1, 0, 5), (100, True, 1, 0, 6), (200, True, 1, 0, 7)], "", id="busy and moving"),
        pytest.param(
            [(0, True, 1, 0, 5), (130, True, 1, 0, 5)],
            "no token for 130 s with 1 requests running, 0 waiting",
            id="hung with a request",
        ),
        pytest.param(
            [(0, True, 0, 2, 5), (130, True, 0, 2, 5)],
            "no token for 130 s with 0 requests running, 2 waiting",
            id="hung before a request runs",
        ),
        pytest.param(
            [(0, True, 0, 0, 5), (500, True, 3, 0, 5), (600, True, 3, 0, 5)], "", id="the clock starts with the request"
        ),
        pytest.param([(0, True, 1, 0, 5), (130, True, 1, 0, 5), (131, True, 1, 0, 6)], "", id="alive again"),
        pytest.param([(0, False, 0, 0, 0)], "/health does not answer", id="no answer"),
    ],
)
def test_watchdog(launcher: ModuleType, looks: list[tuple[float, bool, int, int, int]], verdict: str) -> None:
    progress = launcher.Progress()
    for now, healthy, running, waiting, steps in looks:
        sample = launcher.Sample(healthy, {"0": launcher.Engine(running, waiting, steps)} if healthy else {})
        said = progress.verdict(sample, now, 120)
    assert said == verdict


@pytest.mark.parametrize(
    ("unanswered_s", "verdict"), [(119, ""), (121, "no token for 121 s, though the watchdog asked for one")]
)
def test_a_token_of_our_own_that_does_not_come(launcher: ModuleType, unanswered_s: float, verdict: str) -> None:
    sample = launcher.Sample(True, {"0": launcher.Engine(0, 0, 9)}, unanswered_s)
    assert launcher.Progress().verdict(sample, 1000, 120) == verdict


IDLE, MOVED, RUNNING, WAITING = (0, 0, 5), (0, 0, 6), (1, 0, 5), (0, 1, 5)


@pytest.mark.parametrize(
    ("looks", "asks", "still_s"),
    [
        pytest.param([(100, [IDLE]), (219, [IDLE])], [False, False], 119, id="not yet"),
        pytest.param([(100, [IDLE]), (220, [IDLE])], [False, True], 0, id="idle for long"),
        pytest.param([(100, [IDLE]), (200, [MOVED]), (300, [MOVED])], [False] * 3, 100, id="a request meanwhile"),
        pytest.param([(100, [IDLE]), (300, [RUNNING])], [False, False], 200, id="a request runs"),
        pytest.param([(100, [IDLE]), (300, [WAITING])], [False, False], 200, id="a request waits"),
        pytest.param([(100, [IDLE, IDLE]), (300, [IDLE, RUNNING])], [False, False], 200, id="one core of two is busy"),
        pytest.param([(100, [IDLE]), (300, [])], [False, False], 200, id="without metrics"),
        pytest.param([(100, [IDLE]), (230, []), (240, [IDLE])], [False, False, True], 0, id="metrics fail once"),
        pytest.param([(100, [IDLE]), (220, [IDLE]), (400, [IDLE])], [False, True, False], 180, id="asked, unanswered"),
        pytest.param([(100, [IDLE]), (220, [IDLE]), (300, [MOVED])], [False, True, False], 0, id="asked, others move"),
    ],
)
def test_when_a_token_of_our_own_is_asked_for(
    launcher: ModuleType, looks: list[tuple[float, list[tuple[int, int, int]]]], asks: list[bool], still_s: float
) -> None:
    stillness = launcher.Stillness()
    said: list[bool] = []
    for now, cores in looks:
        engines = {str(index): launcher.Engine(*core) for index, core in enumerate(cores)}
        said.append(stillness.ask(engines, now, any(said), 120))
    assert said == asks
    assert stillness.still_s(now) == still_s


def test_one_stalled_engine_of_two_is_seen(launcher: ModuleType) -> None:
    progress, engine = launcher.Progress(), launcher.Engine
    for now in (0, 60, 130):
        said = progress.verdict(launcher.Sample(True, {"0": engine(1, 0, now), "1": engine(2, 0, 9)}), now, 120)
    assert said == "no token for 130 s with 2 requests running, 0 waiting"


def test_without_metrics_health_alone_counts(launcher: ModuleType) -> None:
    assert launcher.Progress().verdict(launcher.Sample(True, {}), 1000, 120) == ""


@pytest.mark.parametrize(
    ("returncode", "stopping", "loading", "status"),
    [
        (0, True, False, 0),
        (130, True, True, 0),
        (-15, True, False, 0),
        (0, False, False, 1),
        (0, False, True, 1),
        (2, False, True, 2),
        (2, False, False, 1),
        (1, False, True, 1),
        (-9, False, False, 1),
        (78, False, True, 1),
    ],
)
def test_exit_code(launcher: ModuleType, returncode: int, stopping: bool, loading: bool, status: int) -> None:
    assert launcher.exit_code(returncode, stopping, loading) == status


@pytest.mark.parametrize(
    ("returncode", "loading", "notice"),
    [
        (-9, False, "engine killed by SIGKILL while serving (out of memory?): last words"),
        (-11, True, "engine killed by SIGSEGV while loading: last words"),
        (0, False, "engine exited with 0 while serving: last words"),
    ],
)
def test_death_notice(launcher: ModuleType, returncode: int, loading: bool, notice: str) -> None:
    assert launcher.death_notice(returncode, loading, "last words") == notice


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        (
            "(APIServer pid=1) INFO 11-23 21:19:26 [api_server.py:1] vLLM API server version 0.32.0",
            "starting the engine",
        ),
        (
            "(EngineCore pid=2) INFO 11-23 21:19:46 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
            "starting the engine",
        ),
        ("(Worker pid=3) INFO 11-23 21:20:10 [m.py:68] Starting to load model /srv/m...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 15/30 [00:10<00:10]", "loading weights 50%"),
        ("(Worker pid=3) INFO 11-23 21:20:10 [l.py:501] Loading weights took 0.00 seconds", "weights loaded"),
        ("(EngineCore pid=2) INFO 11-23 21:20:35 [kv.py:2327] CPU KV cache size: 2,097,152 tokens", "KV cache ready"),
        ("(Worker pid=3) INFO 11-23 21:20:11 [r.py:87] Warming up model for the compilation...", "compiling"),
        ("WARNING 11-23 21:23:57 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs", ""),
        ("INFO:     Application startup complete.", "starting the API server"),
        ("nothing in particular", ""),
    ],
)
def test_stage(launcher: ModuleType, line: str, stage: str) -> None:
    assert launcher.stage_of(line) == stage


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "the engine printed nothing"),
        (["hello", "  ", ""], "hello"),
        (["usage: vllm", "vllm: error: unrecognized arguments: --x", ""], "vllm: error: unrecognized arguments: --x"),
        (
            [
                "(EngineCore pid=7) ERROR 11-23 21:00:00 [core.py:1] \x1b[31mValueError: 5.00 GiB KV cache is needed\x1b[0m",
                "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
                "bye",
            ],
            "ValueError: 5.00 GiB KV cache is needed",
        ),
        (
            [
                "(APIServer pid=1) WARNING 11-23 21:56:59 [core_client.py:817] engine core exited unexpectedly; cleanup",
                "(APIServer pid=1) ERROR 11-23 21:56:59 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: x",
                "nanobind: leaked 4 instances!",
            ],
            "engine core exited unexpectedly; cleanup",
        ),
        (
            ["torch.OutOfMemoryError: CUDA out of memory.", "  at somewhere"],
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
    ],
)
def test_error(launcher: ModuleType, lines: list[str], error: str) -> None:
    assert launcher.error_of(lines) == error


def test_status_texts(launcher: ModuleType) -> None:
    assert launcher.loading_status(41.6, "") == "loading for 42 s"
    assert launcher.loading_status(41.6, "compiling") == "loading for 42 s: compiling"
    assert launcher.requests_text(launcher.Sample(True, {})) == ""
    engines = {"0": launcher.Engine(2, 1, 9), "1": launcher.Engine(3, 0, 9)}
    assert launcher.requests_text(launcher.Sample(True, engines)) == "5 running, 1 waiting"


@pytest.mark.parametrize(
    ("elapsed_s", "still_s", "verdict"),
    [
        (899, 899, ""),
        (901, 29, ""),
        (901, 31, "not ready after 901 s (start_timeout_s), and 31 s without progress"),
        (3599, 0, ""),
        (3601, 0, "not ready after 3601 s (start_limit_s)"),
    ],
)
def test_when_a_load_is_given_up(launcher: ModuleType, elapsed_s: float, still_s: float, verdict: str) -> None:
    instance = launcher.Instance("a-0", "d", "127.0.0.1", 8000, ["a"], 900, 120, 60, 0, 3600)
    assert launcher.load_verdict(elapsed_s, still_s, instance, 30) == verdict


class Routes(BaseHTTPRequestHandler):
    """Answers each route with the status that a test wants."""

    statuses: dict[str, tuple[int, str]]

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.statuses.get(self.path, (404, '{"detail":"Not Found"}'))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def routes_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("statuses", "answer"),
    [
        pytest.param({"/v1/completions": (200, "{}")}, "Ready('/v1/completions')", id="text model"),
        pytest.param(
            {"/v1/completions": (400, "no"), "/v1/chat/completions": (200, "{}")},
            "Ready('/v1/chat/completions')",
            id="chat",
        ),
        pytest.param({"/v1/embeddings": (200, "{}")}, "Ready('/v1/embeddings')", id="embedding model"),
        pytest.param({"/pooling": (200, "{}")}, "Ready('/pooling')", id="classifier"),
        pytest.param({"/v1/models": (200, '{"data": [{"id": "demo"}]}')}, "Ready('')", id="neither, such as speech"),
        pytest.param({"/v1/models": (200, '{"data": [{"id": "x"}]}')}, "None", id="neither, and not ours"),
        pytest.param({"/v1/models": (401, '{"data": [{"id": "demo"}]}')}, "None", id="neither, and refused"),
        pytest.param({"/v1/models": (200, "[1]")}, "None", id="neither, nor vLLM"),
        pytest.param({"/v1/models": (200, "demo")}, "None", id="no JSON"),
        pytest.param({}, "None", id="nothing but an answer"),
        pytest.param({"/v1/completions": (500, "no")}, "None", id="not yet"),
        pytest.param(
            {"/v1/completions": (503, "no"), "/v1/embeddings": (200, "{}")}, "None", id="overloaded is not absent"
        ),
        pytest.param({"/v1/completions": (401, "{}")}, "Refused: VLLM_API_KEY", id="another key"),
        pytest.param(
            {"/v1/completions": (404, "The model `demo` does not exist.")},
            "Refused: the model 'demo'",
            id="another model",
        ),
    ],
)
def test_first_token(launcher: ModuleType, routes_port: int, statuses: dict[str, tuple[int, str]], answer: str) -> None:
    Routes.statuses = statuses
    got = launcher.Client("0.0.0.0", routes_port, "k").first_token("demo", 5)
    if answer.startswith("Refused: "):
        assert isinstance(got, launcher.Refused)
        assert f"refuses {answer.removeprefix('Refused: ')}" in got.message
    else:
        assert str(got).replace("route=", "") == answer


def test_no_answer_is_not_a_token(launcher: ModuleType) -> None:
    assert launcher.Client("127.0.0.1", 1, "k").first_token("demo", 1) is None


def test_systemd_leaves_the_launcher_the_time_that_it_takes(launcher: ModuleType) -> None:
    """The role goes by numbers of its own, since no role reads the launcher."""
    variables = yaml.safe_load((ROOT / "roles" / "vllm_service" / "vars" / "main.yml").read_text())
    assert variables["__vllm_service_kill_after_s"] == launcher.Pace().kill_after_s
    assert variables["__vllm_service_pause_s"] == launcher.Pace().pause_s
