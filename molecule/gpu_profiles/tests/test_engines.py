"""What is served on an H100 and on A100s: the engine files differ as the profiles say, and the engines run with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import endpoint
import pytest
import yaml

PROFILES = yaml.safe_load((endpoint.TOP / "roles/vllm_plan/vars/main/profiles.yml").read_text())["__vllm_plan_profiles"]
HUB_CACHE = "/var/lib/vllm/weights/hub"
MODEL_ID = "mistralai/Mistral-7B-Instruct-v0.3"
# Machine and instance, with the GPU that it has.
INSTANCES = {
    ("gpu01", "by-path-0"): "0",
    ("gpu02", "by-path-0"): "0",
    ("deb13", "by-path-0"): "0",
    ("deb13", "by-id-0"): "1",
}
H100, A100, SMALL_A100, BY_ID = INSTANCES

Options = dict[str, Any]


def file_of(instance: str) -> str:
    return f"/etc/vllm/instances/{instance}/engine.yaml"


@pytest.fixture(scope="module")
def files(machines: dict[str, Any]) -> dict[tuple[str, str], Options]:
    """The engine file of each instance, as it lies on its machine."""
    return {
        (name, instance): yaml.safe_load(machines[name].file(file_of(instance)).content_string)
        for name, instance in INSTANCES
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each key whose values differ, with both values; None stands for a key that is not there."""
    return {
        key: (one.get(key), other.get(key)) for key in {*one, *other} if key not in one or one[key] != other.get(key)
    }


def asked_for(profile: str) -> Options:
    """Return the options that a profile has for an unquantised checkpoint."""
    entry = PROFILES[profile]
    return {**entry["engine_args"], **entry.get("unquantized_engine_args", {})}


def test_an_h100_quantises_and_an_a100_cannot(files: dict[tuple[str, str], Options]) -> None:
    keys = ("quantization", "dtype", "max-num-batched-tokens")
    assert {where: tuple(options.get(key) for key in keys) for where, options in files.items()} == {
        H100: ("fp8_per_tensor", "auto", 8192),
        A100: (None, "float16", 2048),
        SMALL_A100: (None, "float16", 2048),
        BY_ID: (None, "float16", 2048),
    }


def test_the_files_differ_exactly_as_the_profiles_do(files: dict[tuple[str, str], Options]) -> None:
    between_profiles = difference(asked_for("h100_fp8"), asked_for("a100_fp16"))
    assert difference(files[H100], files[A100]) == between_profiles != {}
    for where, profile in ((H100, "h100_fp8"), (A100, "a100_fp16")):
        assert asked_for(profile).items() <= files[where].items()


def test_the_profile_is_the_kinds_and_not_the_memorys(files: dict[tuple[str, str], Options]) -> None:
    """80 GB and 40 GB, Debian 12 and 13."""
    assert files[A100] == files[SMALL_A100]


def test_a_model_of_the_hub_is_served_from_the_weights_directory(files: dict[tuple[str, str], Options]) -> None:
    assert difference(files[SMALL_A100], files[BY_ID]) == {
        "model": ("/srv/models/mistral", f"{HUB_CACHE}/models--{MODEL_ID.replace('/', '--')}/snapshots/{'1' * 40}"),
        "served-model-name": (["gpt-4"], [MODEL_ID]),
        "port": (8000, 8001),
    }


@pytest.mark.parametrize("where", INSTANCES, ids="-".join)
def test_the_engine_runs_with_its_file_on_its_gpu(where: tuple[str, str], machines: dict[str, Any]) -> None:
    name, instance = where
    machine = machines[name]
    state = json.loads(machine.file(f"/run/vllm/{instance}/state.json").content_string)
    assert state["state"] == "serving"
    command = machine.check_output("tr '\\0' ' ' < /proc/%s/cmdline", str(state["pid"]))
    assert command.strip().endswith(f"/bin/vllm serve --config {file_of(instance)}")
    environment = machine.check_output("tr '\\0' '\\n' < /proc/%s/environ", str(state["pid"])).splitlines()
    wanted = {"CUDA_DEVICE_ORDER=PCI_BUS_ID", f"CUDA_VISIBLE_DEVICES={INSTANCES[where]}"}
    assert {line for line in environment if line.startswith("CUDA_") and "CACHE" not in line} == wanted


@pytest.mark.parametrize("where", INSTANCES, ids="-".join)
def test_each_answers_over_https(
    where: tuple[str, str], files: dict[tuple[str, str], Options], machines: dict[str, Any]
) -> None:
    name, options = where[0], files[where]
    certificate = machines[name].file("/etc/vllm/tls/current/fullchain.pem").content_string
    client = endpoint.client(name, certificate=certificate)
    [served] = options["served-model-name"]
    own = endpoint.client(name, f"/{where[1].removesuffix('-0')}", certificate=certificate)
    (card,) = (model.model_dump() for model in own.models.list())
    assert (card["id"], card["root"]) == (served, options["model"])
    listed = {model.id: model.model_dump()["max_model_len"] for model in client.models.list()}
    assert listed[served] == card["max_model_len"] == options["max-model-len"]
    answer = client.chat.completions.create(model=served, messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content


@pytest.mark.parametrize("name", ["gpu01", "deb13"])
def test_the_device_files_are_made_before_the_engine_starts(name: str, machines: dict[str, Any]) -> None:
    """The engine may not make them itself, not even by a setuid program."""
    machine = machines[name]
    assert machine.file("/run/nvidia-modprobe.said").content_string == "-c 0 -u\n"
    made, started = (
        int(machine.check_output("systemctl show --value --property=%s %s", moment, unit))
        for unit, moment in (
            ("vllm-nvidia-nodes.service", "ExecMainExitTimestampMonotonic"),
            ("vllm@by-path-0.service", "ExecMainStartTimestampMonotonic"),
        )
    )
    assert 0 < made < started
