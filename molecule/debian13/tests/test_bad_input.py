"""Bad input stops in the first play, before a host is changed, and names variable, value and remedy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import endpoint
import playbook
import pytest
import yaml

testinfra_hosts = ["ansible://deb13"]

MODEL = {"name": "demo", "model": "/srv/models/demo"}
OTHER = {"name": "other", "model": "/srv/models/demo"}
KEY = "not-a-real-key-0123456789"
TWO_GPUS = [{"index": index, "name": "H100", "memory_gib": 80, "compute_capability": "9.0"} for index in (0, 1)]

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no models": ({"vllm_models": []}, ["vllm_models is []", "Add one"]),
    "a path as name": ({"vllm_models": [{**MODEL, "name": "../x"}]}, ["vllm_models[0].name is '../x'", "Rename it"]),
    "a blank in a name": ({"vllm_models": [{**MODEL, "name": "a b"}]}, ["vllm_models[0].name is 'a b'", "Rename it"]),
    "a dash before a name": ({"vllm_models": [{**MODEL, "name": "-x"}]}, ["vllm_models[0].name is '-x'", "Rename it"]),
    "a name of 200 characters": (
        {"vllm_models": [{**MODEL, "name": "x" * 200}]},
        ["vllm_models[0].name is 'xxx", "Rename it"],
    ),
    "two models of one name": ({"vllm_models": [MODEL, MODEL]}, ["both claim the name 'demo'", "Give each its own"]),
    "two models on one port": (
        {"vllm_models": [{**MODEL, "port": 8000}, {**OTHER, "port": 8000}]},
        ["'demo' and 'other' both claim the port 8000", "Give each its own"],
    ),
    "two models on one GPU": (
        {
            "vllm_gpu_profile": "auto",
            "vllm_plan_gpus": TWO_GPUS,
            "vllm_models": [{**MODEL, "gpus": [0]}, {**OTHER, "gpus": [0]}],
        },
        ["GPU 0 is shared", "sums up to 1.80 (demo-0: 0.9, other-0: 0.9)", "give each its own GPU"],
    ),
    "no client key": ({"vllm_api_keys": []}, ["vllm_api_keys"]),
    "an empty key": (
        {"vllm_api_keys": [{"name": "a", "key": ""}]},
        ["vllm_api_keys, entry 1", "is empty", "openssl rand"],
    ),
    "a key of two lines": (
        {"vllm_api_keys": [{"name": "a", "key": f"{KEY}\n{KEY}"}]},
        ["vllm_api_keys, entry 1", "more than one line", "openssl rand"],
    ),
    "a domain that is none": (
        {"vllm_domain": "https://llm.example.com/"},
        ["vllm_domain is 'https://llm.example.com/'"],
    ),
    "a header that is none": (
        {"vllm_nginx_session_header": "X Id"},
        ["vllm_nginx_session_header is X Id", "X-Session-Id"],
    ),
    "no domain": ({"vllm_domain": ""}, ["vllm_domain"]),
    "weights that are not there": (
        {"vllm_models": [{**MODEL, "model": "/srv/models/none"}]},
        ["'/srv/models/none'", "no such folder", "correct the path"],
    ),
    "an unknown TLS mode": ({"vllm_tls_mode": "magic"}, ["vllm_tls_mode is 'magic'", "letsencrypt"]),
    "an unknown profile": ({"vllm_gpu_profile": "h900"}, ["vllm_gpu_profile is 'h900'", "needs auto or one of"]),
    "a hub token of two lines": ({"vllm_hf_token": f"{KEY}\nx"}, ["vllm_hf_token"]),
}


@dataclass(frozen=True)
class Stopped:
    """What site.yml refused each case with, and all that it printed."""

    refused: dict[str, str]
    said: str


@pytest.fixture(scope="module")
def mark(host: Any) -> str:
    """A file made before the cases: whatever they change on the machine is newer."""
    host.check_output("touch /root/before-bad-input")
    return "/root/before-bad-input"


@pytest.fixture(scope="module")
def stopped(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Every case is a host of its own, all of them this machine. A run stops at the first task that refuses any: the next has the others."""
    common = yaml.safe_load((endpoint.TOP / "molecule/inventory/host_vars/deb13.yml").read_text())
    common["ansible_host"] = "10.77.0.13"
    file = tmp_path_factory.mktemp("bad-input") / "hosts.json"
    names = {f"case{number}": case for number, case in enumerate(CASES)}
    refused: dict[str, str] = {}
    said = ""
    while left := {name: case for name, case in names.items() if case not in refused}:
        hosts = {name: {**common, **CASES[case][0]} for name, case in left.items()}
        file.write_text(json.dumps({"vllm_servers": {"hosts": hosts}}))
        done = playbook.run("site.yml", hosts=list(left), inventories=[str(file)])
        assert done.status != 0, done.said
        assert "PLAY [Install the engine" not in done.said
        assert set(done.changed.values()) == {0}
        assert done.refused, done.said
        said += done.said
        # YAML doubles the quotes of a text that it quotes.
        refused |= {names[name]: text.replace("''", "'") for name, text in done.refused.items()}
    return Stopped(refused, said)


@pytest.mark.parametrize("case", CASES)
def test_it_stops_in_the_first_play(case: str, stopped: Stopped) -> None:
    for word in CASES[case][1]:
        assert word in stopped.refused[case]


def test_no_key_is_shown(stopped: Stopped) -> None:
    assert KEY not in stopped.said


@pytest.mark.usefixtures("stopped")
def test_nothing_on_the_machine_was_changed(host: Any, mark: str) -> None:
    places = "/etc /opt /usr /srv /var/lib /var/cache/vllm /root"
    assert host.check_output(f"find {places} -xdev -newer {mark} -not -path '/root/.ansible*' -not -path /root") == ""
