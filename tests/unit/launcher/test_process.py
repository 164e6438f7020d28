"""The launcher as a process: what systemd hears, what the next one reads, how it ends."""

from __future__ import annotations

import fcntl
import http.client
import http.server
import json
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Rig

ROOT = Path(__file__).resolve().parents[3]
FAKE_ENGINE = ROOT / "tests" / "fake_engine" / "vllm"
KEY = "unit-test-key-0123456789"


def post(rig: Rig, **body: Any) -> http.client.HTTPResponse:
    """A completion request to the engine."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps({"model": "demo", "prompt": "Hi", **body}), headers)
    return connection.getresponse()


def engine_pid(rig: Rig) -> int:
    pid: int = rig.state()["pid"]
    return pid


def core_pid(rig: Rig) -> int:
    """The process of the engine that makes the tokens."""
    children = Path(f"/proc/{engine_pid(rig)}/task/{engine_pid(rig)}/children").read_text().split()
    (core,) = [
        child for child in children if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"VLLM::EngineCore")
    ]
    return int(core)


def asked(rig: Rig) -> int:
    """How many tokens the engine was asked for."""
    return rig.output().count('"POST /v1/completions')


@pytest.fixture
def stopped_on_exit(rig: Rig) -> Iterator[None]:
    """Let a stopped engine go on, so that it can be ended."""
    yield
    for pid in (engine_pid(rig), core_pid(rig)):
        os.kill(pid, signal.SIGCONT)


def test_a_whole_life(rig: Rig) -> None:
    rig.write(drain_notice_s=0.3)
    rig.start(FAKE_ENGINE_LOAD_S="0.6")
    assert "EXTEND_TIMEOUT_USEC=60000000" in rig.wait_for("STATUS=loading for 0 s: loading weights 50%.*")
    away = rig.state_file.with_name("away")
    assert (rig.state()["state"], away.exists()) == ("loading", True)
    assert rig.wait_for("READY=1") == "READY=1\nSTATUS=serving"
    assert not away.exists()
    state = rig.state()
    assert (state["state"], state["digest"]) == ("serving", "digest-1")
    assert state["message"].startswith("first token by POST /v1/completions after ")
    assert abs(state["since"] - time.time()) < 10
    assert stat.S_IMODE(rig.state_file.stat().st_mode) == 0o644
    assert not any("WATCHDOG" in message for message in rig.messages)
    assert rig.wait_for("WATCHDOG=1") == "WATCHDOG=1\nSTATUS=serving: 0 running, 0 waiting"

    told = time.monotonic()
    rig.process.send_signal(signal.SIGTERM)
    assert rig.wait_for("STOPPING=1") == "STOPPING=1\nSTATUS=draining: stop requested"
    assert (rig.state()["state"], away.exists()) == ("draining", True)
    with post(rig, max_tokens=1) as response:  # whoever was not told yet is still served
        assert response.status == 200
    assert rig.ended() == 0
    assert time.monotonic() - told > 0.3
    assert (rig.state_file.exists(), away.exists()) == (False, True)
    assert "Application startup complete." in rig.output()
    assert KEY not in rig.output()


def test_the_time_of_away_is_when_it_is_likely_to_be_back(rig: Rig) -> None:
    load_s, away = rig.state_file.with_name("load_s"), rig.state_file.with_name("away")
    load_s.parent.mkdir(parents=True)
    load_s.write_text("40")
    rig.start(FAKE_ENGINE_LOAD_S="0.6")
    rig.wait_for("STATUS=loading for 0 s: loading weights 50%.*")
    assert 20 < away.stat().st_mtime - time.time() <= 40
    rig.wait_for("READY=1")
    took = int(load_s.read_text())
    assert took < 20
    rig.process.send_signal(signal.SIGTERM)
    rig.wait_for("STOPPING=1")
    assert away.stat().st_mtime - time.time() <= took


def test_what_others_put_in_the_place_of_its_hint_does_no_harm(rig: Rig) -> None:
    load_s = rig.state_file.with_name("load_s")
    load_s.parent.mkdir(parents=True)
    os.mkfifo(load_s)
    rig.start(FAKE_ENGINE_LOAD_S="0.6")
    rig.wait_for("STATUS=loading for 0 s: loading weights 50%.*")
    assert rig.state_file.with_name("away").stat().st_mtime <= time.time()
    rig.wait_for("READY=1")


def test_streams_end_whole(rig: Rig) -> None:
    rig.start(FAKE_ENGINE_TOKEN_S="0.05", FAKE_ENGINE_ANSWER="a b c d e f g h i j")
    rig.wait_for("READY=1")
    with post(rig, stream=True, max_tokens=50) as response:
        first = response.readline()
        rig.process.send_signal(signal.SIGTERM)
        rig.wait_for("STATUS=draining: stop requested; 1 running, 0 waiting")
        rest = response.read()
    assert (first + rest).count(b'"text"') == 11
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rig.ended() == 0


def test_what_the_engine_inherits(rig: Rig) -> None:
    rig.replace_engine(
        "import json, os, signal, sys\n"
        "blocked = sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        f"json.dump([sys.argv, dict(os.environ), blocked], open({str(rig.root / 'seen')!r}, 'w'))\n"
    )
    rig.start(MY_OPTION="x y")
    assert rig.ended() == 1
    argv, environ, blocked = json.loads((rig.root / "seen").read_text())
    venv = rig.root / "venvs" / "0.32.0"
    assert argv == [f"{venv}/bin/vllm", "serve", "--config", f"{rig.folder}/engine.yaml"]
    assert environ["PATH"].split(":")[0] == f"{venv}/bin"
    assert (environ["VLLM_API_KEY"], environ["MY_OPTION"]) == (KEY, "x y")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(environ)
    assert blocked == []


def test_term_while_loading(rig: Rig) -> None:
    rig.start(FAKE_ENGINE_LOAD_S="60")
    rig.wait_for("loading weights")
    rig.process.terminate()
    rig.wait_for("STOPPING=1")
    assert rig.ended() == 0
    assert "engine ended with 130 after" in rig.output()  # by its second TERM, not by KILL
    assert not rig.state_file.exists()
    assert not any("READY" in message for message in rig.heard())


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("exit:2", 2, "engine exited with 2 while loading: RuntimeError: told to fail"),
        ("exit:1", 1, "engine exited with 1 while loading: RuntimeError: told to fail"),
        ("exit:78", 1, "engine exited with 78 while loading: RuntimeError: told to fail"),
        ("oom", 1, "engine exited with 1 while loading: ValueError: To serve at least one request"),
    ],
)
def test_the_engine_ends_unasked(rig: Rig, fault: str, status: int, message: str) -> None:
    rig.start(FAKE_ENGINE_FAULT=fault)
    assert rig.ended() == status
    assert rig.state()["state"] == "failed"
    assert rig.state()["message"].startswith(message)
    assert rig.state()["pid"] is None
    assert rig.heard()[-1].startswith(f"STATUS=failed: {message}")


def test_a_flag_that_does_not_exist(rig: Rig) -> None:
    rig.write(engine={"no-such-flag": 3})
    rig.start()
    assert rig.ended() == 2
    message = "engine exited with 2 while loading: vllm: error: unrecognized arguments: --no-such-flag"
    assert rig.state()["message"] == message


def test_the_engines_core_dies(rig: Rig) -> None:
    rig.start(FAKE_ENGINE_FAULT="exit0_request:1")
    rig.wait_for("READY=1")
    with pytest.raises(http.client.HTTPException):
        post(rig)
    assert rig.ended() == 1  # though the engine says 0
    assert rig.state()["message"].startswith(
        "engine exited with 0 while serving: [shutdown] MPClient: engine core exited"
    )


def test_the_engine_is_killed(rig: Rig) -> None:
    rig.start()
    rig.wait_for("READY=1")
    os.kill(engine_pid(rig), signal.SIGKILL)
    assert rig.ended() == 1
    assert rig.state()["message"].startswith("engine killed by SIGKILL while serving (out of memory?): ")


def test_requests_that_make_no_token(rig: Rig) -> None:
    rig.write(engine={"shutdown-timeout": 0})
    rig.start(FAKE_ENGINE_FAULT="hang_after:1")
    rig.wait_for("READY=1")
    rig.wait_for("WATCHDOG=1")
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    headers = {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", '{"model": "demo", "prompt": "Hi"}', headers)  # never answered
    assert "with 1 requests running" in rig.wait_for("STATUS=not alive: no token for ")
    rig.wait_until(lambda: rig.state()["state"] == "failed")
    assert rig.silent_for("WATCHDOG=1", 0.4)
    rig.process.terminate()
    assert rig.ended() == 0


@pytest.mark.usefixtures("stopped_on_exit")
def test_a_stopped_server_loses_the_watchdog_until_it_goes_on(rig: Rig) -> None:
    rig.start()
    rig.wait_for("READY=1")
    rig.wait_for("WATCHDOG=1")
    os.kill(engine_pid(rig), signal.SIGSTOP)
    rig.wait_for("STATUS=not alive: /health does not answer")
    assert rig.silent_for("WATCHDOG=1", 0.5)
    assert rig.state()["message"] == "watchdog: /health does not answer"
    os.kill(engine_pid(rig), signal.SIGCONT)
    rig.wait_for("WATCHDOG=1")
    assert rig.state()["state"] == "serving"


@pytest.mark.usefixtures("stopped_on_exit")
def test_a_hang_that_begins_while_nobody_asks_is_noticed(rig: Rig) -> None:
    rig.pace["idle_probe_s"] = 0.3
    rig.start()
    rig.wait_for("READY=1")
    rig.wait_for("WATCHDOG=1")
    os.kill(core_pid(rig), signal.SIGSTOP)
    rig.wait_for("STATUS=not alive: no token for 0 s, though the watchdog asked for one")
    rig.wait_until(lambda: rig.state()["state"] == "failed")
    # Longer than one try waits for its answer, and than the pause until the next.
    assert rig.silent_for("WATCHDOG=1", 1.5)
    os.kill(core_pid(rig), signal.SIGCONT)
    rig.wait_for("WATCHDOG=1")
    assert rig.state()["message"] == "watchdog: alive again"


def test_an_idle_engine_is_asked_again_and_again_and_stays(rig: Rig) -> None:
    rig.pace["idle_probe_s"] = 0.3
    rig.start()
    rig.wait_for("READY=1")
    rig.wait_until(lambda: asked(rig) > 4)
    rig.wait_for("WATCHDOG=1")
    assert rig.state()["message"].startswith("first token by POST ")
    assert not any("not alive" in message for message in rig.heard())


def test_a_busy_engine_and_one_that_drains_are_not_asked(rig: Rig) -> None:
    # A token takes longer than the ordinary patience of these tests.
    rig.pace |= {"idle_probe_s": 0.3, "probe_timeout_s": 5}
    rig.write(engine={"max-num-seqs": 1}, stall_timeout_s=5, drain_notice_s=1)
    rig.start(FAKE_ENGINE_TOKEN_S="0.5", FAKE_ENGINE_ANSWER="a b c")
    rig.wait_for("READY=1")
    with post(rig, stream=True, max_tokens=50) as response:
        assert b"[DONE]" in response.read()
        # A token of our own would have waited behind the request.
        assert any("1 running, 0 waiting" in message for message in rig.heard())
        assert not any("1 waiting" in message for message in rig.heard())
    rig.process.terminate()
    rig.wait_for("STOPPING=1")
    before = asked(rig)
    assert rig.ended() == 0
    assert asked(rig) == before


def test_a_stuck_load_asks_for_no_more_time_and_is_ended(rig: Rig) -> None:
    rig.write(start_timeout_s=1)
    rig.start(FAKE_ENGINE_FAULT="stuck_load")
    rig.wait_for("STATUS=failed: not ready after 1 s")
    late = [message for message in rig.messages if message.startswith("STATUS=loading")][-3:]
    assert len(late) == 3
    assert not any("EXTEND" in message for message in late)
    assert rig.ended() == 1
    assert re.fullmatch(
        r"not ready after 1 s \(start_timeout_s\), and \d s without progress; last words: Starting to load model .*",
        rig.state()["message"],
    )


def test_a_load_that_moves_may_take_longer_than_the_timeout(rig: Rig) -> None:
    rig.write(start_timeout_s=0.3)
    rig.start(FAKE_ENGINE_LOAD_S="2")
    rig.wait_for("READY=1")
    assert len([one for one in rig.messages if "EXTEND_TIMEOUT_USEC=" in one]) > 5


def test_a_load_that_moves_ends_at_its_limit(rig: Rig) -> None:
    rig.write(start_timeout_s=0.3, start_limit_s=1)
    rig.start(FAKE_ENGINE_LOAD_S="60")
    rig.wait_for(r"STATUS=failed: not ready after 1 s \(start_limit_s\)")
    assert rig.ended() == 1


@pytest.fixture
def neighbour(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Another instance, demo-1, of the same host."""
    made = type(rig)(tmp_path_factory.mktemp("neighbour"))
    (rig.root / "run").mkdir()
    (made.root / "run").symlink_to(rig.root / "run")
    made.rename("demo-1")
    yield made
    made.close()


def test_instances_on_one_gpu_load_one_after_the_other(rig: Rig, neighbour: Rig) -> None:
    rig.write(gpus=[0, 1])
    neighbour.write(gpus=[1, 2])
    rig.start(FAKE_ENGINE_LOAD_S="1.5")
    rig.wait_for("STATUS=loading")
    neighbour.start("demo-1")
    assert "EXTEND_TIMEOUT_USEC=60000000" in neighbour.wait_for(
        "STATUS=waiting for 0 s: another instance loads on the same GPU"
    )
    assert neighbour.state()["state"] == "waiting"
    neighbour.wait_for("STATUS=loading")
    assert rig.state()["state"] == "serving"
    neighbour.wait_for("READY=1")


def test_instances_on_other_gpus_load_side_by_side(rig: Rig, neighbour: Rig) -> None:
    rig.write(gpus=[0])
    neighbour.write(gpus=[1])
    rig.start(FAKE_ENGINE_LOAD_S="60")
    rig.wait_for("STATUS=loading")
    neighbour.start("demo-1")
    neighbour.wait_for("READY=1")
    assert rig.state()["state"] == "loading"


def test_the_turn_passes_on_when_a_load_fails(rig: Rig, neighbour: Rig) -> None:
    rig.write(gpus=[0], start_timeout_s=1)
    neighbour.write(gpus=[0])
    rig.start(FAKE_ENGINE_FAULT="stuck_load")
    rig.wait_for("STATUS=loading")
    neighbour.start("demo-1")
    neighbour.wait_for("STATUS=waiting")
    assert rig.ended() == 1
    neighbour.wait_for("READY=1")


def test_term_while_it_waits_for_its_turn(rig: Rig) -> None:
    rig.write(gpus=[0])
    lock = rig.root / "run" / "loading" / "gpu-0.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rig.start()
        rig.wait_for("STATUS=waiting")
        rig.process.terminate()
        assert rig.ended() == 0
    assert not rig.state_file.exists()
    assert "engine started" not in rig.output()


def test_a_turn_that_never_comes_is_not_waited_for_for_ever(rig: Rig) -> None:
    rig.write(gpus=[0, 3], start_limit_s=1)
    rig.pace["hint_s"] = 0.5
    lock = rig.root / "run" / "loading" / "gpu-3.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rig.start()
        assert "fuser" not in rig.wait_for("STATUS=waiting for 0 s: another instance loads on the same GPU")
        rig.wait_for(f"STATUS=waiting for 1 s: .*; to see which: fuser -v {lock}\n")
        rig.wait_for("STATUS=failed: waiting for 1 s: another instance loads on the same GPU; to see which: fuser -v ")
        assert rig.ended() == 1
    assert rig.state()["state"] == "failed"


def test_the_engine_of_the_instance_is_run_not_that_of_the_link(rig: Rig) -> None:
    older = rig.root / "venvs" / "0.31.0" / "bin"
    older.mkdir(parents=True)
    (older / "vllm").write_text("#!/bin/sh\necho older; exit 5\n")
    (older / "vllm").chmod(0o755)
    rig.write(engine_path=str(older.parent))
    rig.start()
    assert rig.ended() == 1
    assert rig.state()["message"] == "engine exited with 5 while loading: older"


def test_no_token_is_not_ready(rig: Rig) -> None:
    rig.write(start_timeout_s=1)
    rig.start(FAKE_ENGINE_FAULT="no_token")
    assert rig.ended() == 1
    assert not any("READY" in message for message in rig.heard())


def test_the_port_is_taken(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = type(rig)(tmp_path_factory.mktemp("other"))
    other.start()
    try:
        other.wait_for("READY=1")
        rig.write(engine={"port": other.port}, port=other.port)
        rig.start()
        assert rig.ended() == 1
        assert "Address already in use" in rig.state()["message"]
    finally:
        other.close()


LISTING = """
import http.server, json
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer unit-test-key-0123456789"
        self.send_response(401 if self.path == "/v1/models" and not known else 200)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": "{listed}"}}]}}).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Server).serve_forever()
"""


class Obliging(http.server.BaseHTTPRequestHandler):
    """Another program, which answers 200 to whatever it is asked and knows no route of vLLM's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


def test_another_program_that_is_healthy_is_not_ours(rig: Rig) -> None:
    rig.replace_engine("import sys, time\ntime.sleep(1)\nprint('OSError: Address already in use')\nsys.exit(1)")
    with http.server.ThreadingHTTPServer(("127.0.0.1", rig.port), Obliging) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        rig.start()
        assert rig.ended() == 1
        other.shutdown()
    assert rig.state()["message"] == "engine exited with 1 while loading: OSError: Address already in use"
    assert not any("READY" in message for message in rig.heard())


@pytest.mark.parametrize(("listed", "ready"), [("demo", True), ("another", False)])
def test_a_model_without_a_known_route_is_ready_when_it_is_listed(rig: Rig, listed: str, ready: bool) -> None:
    rig.write(start_timeout_s=1, start_limit_s=1)
    rig.replace_engine(LISTING.format(port=rig.port, listed=listed))
    rig.start()
    if ready:
        assert rig.wait_for("READY=1")
        assert rig.state()["message"].startswith("/health answers, no route makes a token")
        rig.process.terminate()
    rig.ended()
    assert any("READY" in message for message in rig.heard()) == ready


def test_without_room_for_its_record_it_does_not_start_and_says_so(rig: Rig) -> None:
    (rig.state_file.parent / "state.new").mkdir(parents=True)  # stands for a full /run
    rig.start()
    rig.wait_for(r"STATUS=failed: .*/state\.new")
    assert rig.ended() == 1
    assert "failed: [Errno" in rig.output()
    assert "Traceback" not in rig.output()


def test_without_room_for_its_record_it_goes_on_serving_and_drains(rig: Rig) -> None:
    rig.start()
    rig.wait_for("STATUS=loading")
    (rig.state_file.parent / "state.new").mkdir()
    rig.wait_for("READY=1")
    with post(rig, max_tokens=20, stream=True) as response:
        response.readline()  # the headers come before the engine counts the request
        rig.process.terminate()
        assert b"[DONE]" in response.read()
    assert rig.ended() == 0


def test_a_server_with_another_key_is_not_ours(rig: Rig) -> None:
    rig.write(engine={"api-key": ["another"]})
    rig.start()
    assert rig.ended() == 78
    assert "refuses VLLM_API_KEY: is another program there?" in rig.state()["message"]
    assert not any("READY" in message for message in rig.heard())


def test_an_engine_that_ignores_term_is_killed(rig: Rig) -> None:
    rig.write(shutdown_timeout_s=0.1)
    rig.start(FAKE_ENGINE_FAULT="deaf")
    rig.wait_for("READY=1")
    rig.process.terminate()
    assert rig.ended() == 0
    assert "the engine does not stop: killing it" in rig.output()


@pytest.mark.parametrize(
    ("args", "environ", "instance", "message"),
    [
        ([], {"VLLM_API_KEY": ""}, {}, "VLLM_API_KEY is empty or missing"),
        ([], {"VLLM_API_KEY": "  "}, {}, "VLLM_API_KEY is empty or missing"),
        (["../x"], {}, {}, "NAME is '../x'"),
        (["a b"], {}, {}, "NAME is 'a b'"),
        (["-x"], {}, {}, "NAME is '-x'"),
        (["demo-0", "more"], {}, {}, "usage: vllm-start NAME"),
        (["other-0"], {}, {}, "other-0/instance.json cannot be read"),
        ([], {}, {"port": "8000"}, "instance.json: port is '8000', needs a int"),
        ([], {}, {"served_as": []}, "instance.json: served_as is [], needs a list[str]"),
        ([], {}, {"name": "other-0"}, "name is 'other-0', needs 'demo-0'"),
        ([], {}, {"start_timeout_s": None}, "start_timeout_s is None, needs a float"),
    ],
)
def test_wrong_input(
    rig: Rig, args: list[str], environ: dict[str, str], instance: dict[str, Any], message: str
) -> None:
    rig.write(**instance)
    rig.start(*args, stdout=None, **environ)
    assert rig.ended() == 78
    assert message in rig.output()
    assert message in rig.heard()[-1]


@pytest.mark.parametrize("missing", ["engine.yaml", "vllm"])
def test_missing_files(rig: Rig, missing: str) -> None:
    (rig.engine if missing == "vllm" else rig.folder / missing).unlink()
    rig.start()
    assert rig.ended() == 78
    assert f"/{missing} is missing; run the play again" in rig.output()


def test_a_secret_in_the_engines_words_stays_out_of_the_state(rig: Rig) -> None:
    rig.replace_engine("import os\nraise SystemExit('ValueError: key ' + os.environ['VLLM_API_KEY'])\n")
    rig.start()
    assert rig.ended() == 1
    assert rig.state()["message"] == "engine exited with 1 while loading: ValueError: key ***"
    assert not any(KEY in message for message in rig.heard())


def test_output_comes_through_byte_for_byte(rig: Rig) -> None:
    rig.replace_engine(
        "import os\n"
        "data = bytes(range(256)) * 12000\n"
        "while data:\n    data = data[os.write(1, data[:65536]):]\n"
        "os.write(2, b'the end')\n"
    )
    rig.start()
    assert rig.ended() == 1
    raw = rig.output_file.read_bytes()
    assert bytes(range(256)) * 12000 + b"the end\nvllm-start: failed: " in raw


def test_a_lost_output_does_not_block_the_engine(rig: Rig) -> None:
    rig.replace_engine("import os\nfor _ in range(64): os.write(1, b'x' * 65536)\nraise SystemExit(3)\n")
    read, write = os.pipe()
    rig.start(stdout=write)
    os.close(write)
    os.close(read)
    assert rig.ended() == 1
    assert rig.state()["message"].startswith("engine exited with 3 while loading")


def test_a_child_that_keeps_the_output_open_holds_nothing_up(rig: Rig) -> None:
    rig.start(FAKE_ENGINE_FAULT="orphan")
    rig.wait_for("READY=1")
    started = time.monotonic()
    os.kill(engine_pid(rig), signal.SIGKILL)
    assert rig.ended() == 1
    assert time.monotonic() - started < 3


def test_a_busy_systemd_holds_nothing_up_and_loses_nothing(rig: Rig) -> None:
    rig.start(FAKE_ENGINE_LOAD_S="1.5")  # more messages than the socket holds, and nobody reads
    rig.wait_until(lambda: rig.state_file.exists() and rig.state()["state"] == "serving")
    rig.wait_for("READY=1")
    assert len([message for message in rig.messages if "STATUS=loading" in message]) > 10
    rig.wait_for("WATCHDOG=1")


def test_without_systemd(rig: Rig) -> None:
    rig.start(NOTIFY_SOCKET="")
    rig.wait_until(lambda: rig.state_file.exists() and rig.state()["state"] == "serving")
    rig.process.send_signal(signal.SIGINT)
    assert rig.ended() == 0


def test_the_stand_ins_version() -> None:
    done = subprocess.run([FAKE_ENGINE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "0.32.0\n"


def test_the_installed_program_starts_with_the_systems_python() -> None:
    launcher = ROOT / "roles" / "vllm_launcher" / "files" / "vllm-start"
    done = subprocess.run([launcher], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 78
    assert done.stderr == ("vllm-start: usage: vllm-start NAME; NAME is '', needs an instance's name such as llama-0\n")
