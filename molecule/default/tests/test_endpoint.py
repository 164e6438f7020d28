"""The endpoint as its clients see it: OpenAI's own SDKs, over HTTPS, after a reboot that no Ansible helped with."""

from __future__ import annotations

import functools
import json
import operator
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import endpoint
import langchain_openai
import openai
import pydantic
import pytest

testinfra_hosts = ["ansible://gpu01"]
HOST = "gpu01"
QUESTIONS = json.loads((endpoint.TOP / "demo" / "questions.json").read_text())["questions"]


@pytest.fixture(scope="module", autouse=True)
def answering() -> None:
    endpoint.wait_until_it_answers(HOST, limit_s=180)


@pytest.fixture
def client() -> openai.OpenAI:
    return endpoint.client(HOST)


def ask(client: openai.OpenAI, question: str, model: str = "gpuops-demo") -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0
    )
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("entry", QUESTIONS[:20], ids=lambda entry: entry["ask"][0])
def test_the_model_answers_word_for_word(client: openai.OpenAI, entry: dict[str, Any]) -> None:
    assert ask(client, entry["ask"][0]) == entry["answer"]


# Lets the engine work for 2 ms and rest for 80 ms until the file is gone: what it says then comes in drops. On a busy machine the
# prompt alone takes many turns, so that no number of them would do; 60 s are the bound.
DRIP = """
import os, pathlib, signal, time
pids = [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*") if (p / "cmdline").read_bytes().startswith(b"VLLM::EngineCore")]
assert len(pids) == 1, pids
drips = pathlib.Path("/run/dripping")
os.kill(pids[0], signal.SIGSTOP)
drips.touch()
try:
    for _turn in range(750):
        if not drips.exists():
            break
        time.sleep(0.08)
        os.kill(pids[0], signal.SIGCONT)
        time.sleep(0.002)
        os.kill(pids[0], signal.SIGSTOP)
finally:
    os.kill(pids[0], signal.SIGCONT)
    drips.unlink(missing_ok=True)
"""


@pytest.fixture
def dripping(host: Any) -> Iterator[None]:
    host.check_output("systemd-run --quiet --collect --unit=drip python3 -c %s", DRIP)
    host.check_output("timeout 20 sh -c 'until [ -e /run/dripping ]; do sleep 0.05; done'")
    yield
    host.check_output(
        "rm -f /run/dripping; timeout 20 sh -c 'while systemctl is-active --quiet drip; do sleep 0.1; done'"
    )


def pauses_of_a_stream(client: openai.OpenAI) -> list[float]:
    """Return the seconds between the events of one stream that are longer than a buffer's emptying."""
    stream = client.chat.completions.create(
        model="gpuops-demo",
        messages=[{"role": "user", "content": "Hello!"}],
        # About 6 kB: fewer than two of the proxy's buffers, so that one that collects gives one pause at most.
        max_tokens=24,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    arrivals = [time.monotonic() for event in stream if event.choices]
    return [gap for earlier, later in pairwise(arrivals) if (gap := later - earlier) > 0.04]


@pytest.mark.usefixtures("dripping")
def test_a_stream_comes_when_it_is_said(client: openai.OpenAI) -> None:
    # A fast machine says it all between two rests now and then, and no stream through a proxy that collects has two pauses.
    seen: list[int] = []
    while len(seen) < 20 and max(seen, default=0) < 2:
        seen.append(len(pauses_of_a_stream(client)))
    assert max(seen) >= 2, f"pauses in each of {len(seen)} streams: {seen}"


@pytest.mark.parametrize("name", ["gpuops-demo", "gpt-4"])
def test_every_name_it_is_served_as_works(client: openai.OpenAI, name: str) -> None:
    assert ask(client, QUESTIONS[0]["ask"][0], name) == QUESTIONS[0]["answer"]


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"gpuops-demo", "gpt-4"}


def test_plain_completions_work(client: openai.OpenAI) -> None:
    assert client.completions.create(model="gpuops-demo", prompt="Hello", max_tokens=4).choices[0].text


def test_responses_work(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="gpuops-demo", input=QUESTIONS[0]["ask"][0], max_output_tokens=100)
    assert answer.output_text == QUESTIONS[0]["answer"]


def test_messages_work() -> None:
    answer = endpoint.http().post(
        endpoint.url(HOST, "/v1/messages"),
        headers={"Authorization": f"Bearer {endpoint.KEY.read_text().strip()}"},
        json={
            "model": "gpuops-demo",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": QUESTIONS[0]["ask"][0]}],
        },
    )
    assert answer.json()["content"][0]["text"] == QUESTIONS[0]["answer"]


def test_curl_works(tmp_path: pathlib.Path) -> None:
    # In a file, since others see a command line.
    (tmp_path / "headers").write_text(f"Authorization: Bearer {endpoint.KEY.read_text().strip()}\n")
    question = {
        "model": "gpuops-demo",
        "messages": [{"role": "user", "content": QUESTIONS[0]["ask"][0]}],
        "temperature": 0,
    }
    command = ["curl", "--silent", "--show-error", "--fail", "--no-buffer", "--cacert", str(endpoint.CA)]
    command += ["--header", f"@{tmp_path}/headers", "--json", json.dumps({**question, "stream": True})]
    done = subprocess.run(
        [*command, endpoint.url(HOST, "/v1/chat/completions")], capture_output=True, text=True, timeout=60, check=True
    )
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert (said, done.stdout.endswith("data: [DONE]\n\n")) == (QUESTIONS[0]["answer"], True)


def test_langchain_works_and_counts_what_vllm_counts(client: openai.OpenAI) -> None:
    chat = langchain_openai.ChatOpenAI(
        model="gpuops-demo",
        base_url=endpoint.url(HOST, "/v1"),
        api_key=pydantic.SecretStr(endpoint.KEY.read_text().strip()),
        http_client=endpoint.http(),
        temperature=0,
        max_retries=0,
    )
    answer = chat.invoke(QUESTIONS[0]["ask"][0])
    assert answer.content == QUESTIONS[0]["answer"]
    streamed = functools.reduce(operator.add, chat.stream(QUESTIONS[0]["ask"][0], stream_usage=True))
    assert streamed.content == answer.content
    assert answer.usage_metadata
    assert streamed.usage_metadata == answer.usage_metadata


def test_the_access_log_tells_the_tokens_of_a_stream_that_says_nothing_of_them(
    client: openai.OpenAI, host: Any
) -> None:
    said: Any = {
        "model": "gpuops-demo",
        "messages": [{"role": "user", "content": QUESTIONS[0]["ask"][0]}],
        "temperature": 0,
    }
    usage = client.chat.completions.create(**said).usage
    events = list(client.chat.completions.create(**said, stream=True))
    assert all(event.choices and event.usage is None for event in events)
    # NGINX writes the line once the stream is over.
    time.sleep(0.5)
    last = json.loads(host.check_output("tail -n 1 /var/log/nginx/vllm_access.log"))
    assert usage
    assert (last["prompt_tokens"], last["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert (last["client"], last["model"], last["status"]) == ("demo", "demo", 200)


def test_the_model_has_a_path_of_its_own() -> None:
    assert ask(endpoint.client(HOST, "/demo"), QUESTIONS[0]["ask"][0]) == QUESTIONS[0]["answer"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "Hello", "no-such-model")
    assert "no-such-model" in caught.value.message


@pytest.mark.parametrize("key", ["wrong", "Bearer", "demo"])
def test_a_wrong_key_is_refused(key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(endpoint.client(HOST, key=key), "Hello")


def test_a_key_in_another_case_is_a_wrong_key() -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(endpoint.client(HOST, key=endpoint.KEY.read_text().strip().swapcase()), "Hello")


def test_a_missing_key_is_refused() -> None:
    answer = endpoint.http().get(endpoint.url(HOST, "/v1/models"))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/metrics",
        "/version",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/v1/..;/metrics",
        "/",
        "/demo/v1/",
    ],
)
def test_nothing_else_is_reachable(path: str) -> None:
    key = endpoint.KEY.read_text().strip()
    for method in ("GET", "POST"):
        answer = endpoint.http().request(method, endpoint.url(HOST, path), headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code in (404, 405), f"{method} {path}: {answer.status_code}"
        assert answer.json()["error"]["message"]


def test_the_engines_port_is_closed_from_outside(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:8000").is_listening
    with pytest.raises(OSError):
        socket.create_connection((f"{HOST}.vllm.test", 8000), timeout=3)


def test_http_leads_to_https() -> None:
    answer = endpoint.http().get(f"http://{HOST}.vllm.test/v1/models")
    assert (answer.status_code, answer.headers["location"]) == (308, endpoint.url(HOST, "/v1/models"))


def test_another_name_gets_nothing() -> None:
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(
            base_url="https://10.77.0.11/v1", api_key="x", http_client=endpoint.http(), max_retries=0
        ).models.list()


def test_the_sdk_of_javascript_works_too() -> None:
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": endpoint.url(HOST, "/v1"),
        "OPENAI_API_KEY": endpoint.KEY.read_text().strip(),
        "NODE_EXTRA_CA_CERTS": str(endpoint.CA),
        "QUESTION": QUESTIONS[0]["ask"][0],
    }
    done = subprocess.run(
        ["node_modules/.bin/node", "chat.mjs"],
        cwd=endpoint.TOP / "tests" / "js",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["answer"] == said["streamed"] == QUESTIONS[0]["answer"]
    assert said["events"] >= 10
    assert said["unknown"] == "NotFoundError"
    assert said["wrong_key"] == "AuthenticationError"
