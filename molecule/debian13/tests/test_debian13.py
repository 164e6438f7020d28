"""The second platform."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import endpoint
import openai
import pytest

testinfra_hosts = ["ansible://deb13"]


def test_it_is_debian_13(host: Any) -> None:
    assert (host.system_info.distribution, host.system_info.release.split(".")[0]) == ("debian", "13")


def test_the_endpoint_answers() -> None:
    answer = endpoint.client("deb13").chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": "Hi"}]
    )
    assert answer.choices[0].message.content
    with pytest.raises(openai.AuthenticationError):
        endpoint.client("deb13", key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        endpoint.client("deb13").chat.completions.create(model="none", messages=[{"role": "user", "content": "Hi"}])


def test_a_paced_stream_keeps_its_pace() -> None:
    stream = endpoint.client("deb13").completions.create(model="gpt-4", prompt="Hi", max_tokens=20, stream=True)
    arrivals = [time.monotonic() for _event in stream]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    # The engine sends a token every 50 ms. The last events (finish, usage) may come with it.
    assert len(gaps) >= 5
    assert sum(gap > 0.03 for gap in gaps) >= 0.7 * len(gaps), gaps


def test_a_request_may_have_50_megabytes_and_no_more() -> None:
    headers = {"Authorization": f"Bearer {endpoint.KEY.read_text().strip()}", "Content-Type": "application/json"}
    answers = {}
    for size_mib in (49, 51):
        body = json.dumps({"model": "gpt-4", "prompt": "Hi", "max_tokens": 2, "user": "x" * (size_mib << 20)})
        answers[size_mib] = endpoint.http().post(
            endpoint.url("deb13", "/v1/completions"), headers=headers, content=body
        )
    assert answers[49].status_code == 200
    assert answers[51].status_code == 413
    assert answers[51].json()["error"]["message"]


def test_readiness_is_told_on_loopback_only(host: Any) -> None:
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8790/health').status)"
    assert host.check_output("python3 -c %s", ask) == "200"
    assert endpoint.http().get(endpoint.url("deb13", "/health")).status_code == 404


def test_the_sandbox_is_tight(host: Any) -> None:
    level = host.check_output("systemd-analyze security --no-pager vllm@demo-0.service").rsplit(": ", 1)[1].split()[0]
    assert float(level) <= 1.6
