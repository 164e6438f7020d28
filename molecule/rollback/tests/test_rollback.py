"""Settings that do not start, and two plays at once: what serves afterwards, and what is said. In this order, on one machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import playbook
import pytest

testinfra_hosts = ["ansible://deb13"]
HOST = "deb13"
#: What the scenario has converged with.
GOOD = {"max-num-seqs": 8, "max-model-len": 512}
#: Ends with 2, which the unit does not try again.
BAD_ENV = {"FAKE_ENGINE_FAULT": "exit:2"}
#: Ask the engine itself; run on the machine, which has no curl.
ASK = """
import json, re, sys, urllib.request
key = re.search('VLLM_API_KEY="([^"]+)"', open("/etc/vllm/secrets").read())[1]
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
body = json.dumps({"model": "gpuops-demo", "prompt": "Hi"}).encode()
url = f"http://127.0.0.1:{sys.argv[1]}/v1/completions"
print(json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20))["choices"][0]["text"])
"""


def model(
    engine_args: dict[str, Any] | None = None, env: dict[str, str] | None = None, **changed: Any
) -> dict[str, Any]:
    common = {"name": "demo", "model": "/srv/models/demo", "served_as": ["gpuops-demo"]}
    return {**common, "engine_args": engine_args or GOOD, **({"env": env} if env else {}), **changed}


def serve(*models: dict[str, Any], **variables: Any) -> playbook.Done:
    return playbook.run("molecule/rollback/files/service.yml", hosts=[HOST], vllm_models=list(models), **variables)


def site(one: dict[str, Any]) -> playbook.Done:
    return playbook.run("site.yml", "--tags", "service", hosts=[HOST], vllm_models=[one])


@dataclass(frozen=True)
class Seen:
    """The instance as the host shows it."""

    digest: str
    invocation: str
    answer: str
    engine_file: str
    port: int


def look(host: Any) -> Seen:
    """Read what serves, and refuse a machine whose records, files and unit do not agree on one thing."""
    state = json.loads(host.file("/run/vllm/demo-0/state.json").content_string)
    told = json.loads(host.file("/etc/vllm/instances/demo-0/instance.json").content_string)
    assigned = json.loads(host.file("/etc/vllm/instances.json").content_string)["instances"]
    assert (state["state"], state["digest"]) == ("serving", told["digest"])
    assert [(one["name"], one["port"], one["gpus"]) for one in assigned] == [("demo-0", told["port"], told["gpus"])]
    show = host.check_output("systemctl show --property=ActiveState,InvocationID --value vllm@demo-0.service")
    active, invocation = show.split()
    assert active == "active"
    answer = host.check_output("python3 -c %s %s", ASK, str(told["port"]))
    engine_file = host.file("/etc/vllm/instances/demo-0/engine.yaml").content_string
    return Seen(state["digest"], invocation, answer, engine_file, told["port"])


def same(one: Seen, other: Seen) -> bool:
    """Whether the same settings serve, be it after a restart."""
    return (one.digest, one.answer, one.engine_file, one.port) == (
        other.digest,
        other.answer,
        other.engine_file,
        other.port,
    )


BAD = model(env=BAD_ENV, port=8123)


@pytest.fixture(scope="module")
def before() -> Iterator[dict[str, Seen]]:
    yield {}


@pytest.mark.drill(
    "a setting that does not start", "the play fails with the engine's own words, and the old setting serves again"
)
def test_after_bad_settings_the_old_ones_serve_again(host: Any, before: dict[str, Seen]) -> None:
    before["good"] = look(host)
    done = serve(BAD)
    assert done.status != 0
    assert "demo-0 does not start with the settings wanted" in done.refused[HOST]
    assert "RuntimeError: told to fail" in done.refused[HOST]
    assert "serves again. Change the setting, or set vllm_service_retry_failed: true" in done.refused[HOST]
    assert "deb13 | demo-0 does not start, goes back: " in done.said
    assert same(look(host), before["good"])
    before["after"] = look(host)


@pytest.mark.drill("the same setting again", "the play fails, changed=0, same InvocationID: nothing was tried again")
def test_a_further_run_touches_nothing_and_fails(host: Any, before: dict[str, Seen]) -> None:
    done = serve(BAD)
    assert done.status != 0
    assert "RuntimeError: told to fail" in done.refused[HOST]
    assert "still serves, and nothing was tried again" in done.refused[HOST]
    assert done.changed[HOST] == 0
    assert look(host) == before["after"]


def test_told_so_it_tries_once_more(host: Any, before: dict[str, Seen]) -> None:
    done = serve(BAD, vllm_service_retry_failed=True)
    assert done.status != 0
    assert "serves again" in done.refused[HOST]
    now = look(host)
    assert same(now, before["good"]) and now.invocation != before["after"].invocation


def test_an_engine_that_does_not_start_is_taken_back(host: Any, before: dict[str, Seen]) -> None:
    host.check_output("ln -sfn broken /opt/vllm/current")
    try:
        done = serve(model())
        assert done.status != 0
        assert "ImportError: libcudart.so.13" in done.refused[HOST]
        assert same(look(host), before["good"])
        assert "/opt/vllm/fake/bin/vllm" in host.check_output(
            "systemctl status --no-pager --lines=0 --full vllm@demo-0"
        )
    finally:
        host.check_output("ln -sfn fake /opt/vllm/current")


def test_other_settings_serve(host: Any, before: dict[str, Seen]) -> None:
    done = serve(model({**GOOD, "max-num-seqs": 9}))
    assert done.status == 0, done.said
    assert "max-num-seqs: 9" in look(host).engine_file
    assert not host.file("/var/lib/vllm/instances/demo-0/failed.json").exists


@pytest.mark.drill(
    "two plays at once", "one ends well and the host is wholly its own, the other is refused and told by whom"
)
def test_of_two_plays_at_once_the_later_one_has_the_host(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them takes the host over last is theirs; all that is on it must then be that one's."""
    wanted = {
        who: model({**GOOD, "max-num-seqs": seats}, {"FAKE_ENGINE_LOAD_S": "4"}, port=port)
        for who, seats, port in (("alice", 5, 8005), ("bob", 6, 8006))
    }
    with ThreadPoolExecutor() as pool:
        plays = {}
        for who, one in wanted.items():
            monkeypatch.setenv("LOGNAME", who)
            plays[who] = pool.submit(site, one)
            time.sleep(2)
        ended = {who: play.result(timeout=120) for who, play in plays.items()}
    winners = [who for who, done in ended.items() if done.status == 0]
    assert len(winners) == 1, {who: done.said for who, done in ended.items()}
    (winner,), (loser,) = winners, set(ended) - set(winners)
    assert f"another run ({winner}@" in ended[loser].refused[HOST]
    now = look(host)
    args = wanted[winner]["engine_args"]
    assert (now.port, f"max-num-seqs: {args['max-num-seqs']}" in now.engine_file) == (wanted[winner]["port"], True)
    (assigned,) = json.loads(host.file("/etc/vllm/instances.json").content_string)["instances"]
    assert assigned["engine_args"]["max-num-seqs"] == args["max-num-seqs"]
    assert json.loads(host.file("/var/lib/vllm/instances/demo-0/served.json").content_string)["digest"] == now.digest


def test_a_removed_model_leaves_no_trace(host: Any) -> None:
    done = serve(model(state="absent"), model(name="other"))
    assert done.status == 0, done.said
    assert host.check_output("find /etc/vllm /var/lib/vllm /run/vllm /var/cache/vllm -name '*demo-0*'") == ""
    assert host.run("systemctl is-active vllm@demo-0.service").stdout.strip() == "inactive"
    assert host.run("systemctl is-enabled vllm@demo-0.service").stdout.strip() == "disabled"
