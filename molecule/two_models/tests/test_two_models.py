"""After the second model has gone again."""

from __future__ import annotations

from typing import Any

import endpoint
import openai
import pytest

testinfra_hosts = ["ansible://gpu02"]


def test_the_first_still_answers() -> None:
    assert {model.id for model in endpoint.client("gpu02").models.list()} == {"gpuops-demo", "gpt-4"}


def test_the_second_left_nothing_but_its_weights(host: Any) -> None:
    units = host.check_output("systemctl list-units --all --plain --no-legend 'vllm@*'").splitlines()
    assert [line.split()[0] for line in units] == ["vllm@demo-0.service"]
    assert host.check_output("ls /etc/vllm/instances") == "demo-0"
    assert not host.file("/var/cache/vllm/second-0").exists
    assert not host.socket("tcp://127.0.0.1:8001").is_listening
    assert host.file("/srv/models/demo/config.json").exists


def test_its_name_is_gone() -> None:
    with pytest.raises(openai.NotFoundError):
        endpoint.client("gpu02").completions.create(model="second", prompt="Hello!")


def test_the_seconds_path_is_gone() -> None:
    with pytest.raises(openai.NotFoundError):
        endpoint.client("gpu02", "/second").models.list()
