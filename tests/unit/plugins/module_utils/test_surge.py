"""What may serve beside a plan's instances while the engine is upgraded."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host
from ansible_collections.gpuops.vllm.plugins.module_utils._surge import surge_instances

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"


def gpus(*names: str, **changes: Any) -> list[dict[str, Any]]:
    return [{"index": index, "name": name, **changes} for index, name in enumerate(names)]


def planned(name: str, port: int, *on: int, **changes: Any) -> dict[str, Any]:
    model, _dash, replica = name.rpartition("-")
    env = {"A": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, on))}
    return {
        "name": name, "model_name": model, "replica": int(replica), "device": "cuda", "port": port, "gpus": list(on), "env": env,
        "served_as": [model], "engine_args": {"max-num-seqs": 8}, **changes,
    }  # fmt: skip


def surge(
    instances: list[dict[str, Any]], has: list[dict[str, Any]], assigned: list[dict[str, Any]] | None = None
) -> dict[str, tuple[int, list[int]]]:
    """Port and GPUs of each, by name."""
    where = Host(name="gpu01", gpus=has, profiles={}, assigned=instances if assigned is None else assigned)
    return {one["name"]: (one["port"], one["gpus"]) for one in surge_instances(instances, where)}


def test_it_is_like_the_first_but_for_name_port_and_gpus() -> None:
    first = planned("demo-0", 8000, 0, default=True, commit="c")
    (second,) = surge_instances(
        [first],
        Host(
            name="gpu01",
            gpus=gpus(A100, A100),
            profiles={},
            assigned=[{"name": "demo-0", "port": 8000, "served_as": ["demo"]}],
        ),
    )
    env = first["env"] | {"CUDA_VISIBLE_DEVICES": "1"}
    assert second == first | {"name": "demo-1", "replica": 1, "port": 8001, "gpus": [1], "env": env}
    # Nobody changes the first by it.
    assert second["engine_args"] is not first["engine_args"]


@pytest.mark.parametrize(
    ("instances", "has", "found"),
    [
        # As many as the first has, the lowest ones; each GPU and port once.
        ([planned("a-0", 8000, 1, 3)], gpus(*[A100] * 4), {"a-1": (8001, [0, 2])}),
        ([planned("a-0", 8000, 0, 1)], gpus(A100, A100, A100), {}),
        (
            [planned("a-0", 8000, 0), planned("b-0", 8001, 1), planned("c-0", 8002, 2)],
            gpus(*[A100] * 5),
            {"a-1": (8003, [3]), "b-1": (8004, [4])},
        ),
        # Of its kind, and whole.
        ([planned("a-0", 8000, 0)], gpus(A100, T4, A100), {"a-1": (8001, [2])}),
        ([planned("a-0", 8000, 0)], gpus(A100, T4), {}),
        ([planned("a-0", 8000, 0, 1)], gpus(A100, T4, A100, T4), {}),
        ([planned("a-0", 8000, 0)], [*gpus(A100), {"index": 1, "name": A100, "mig": True}], {}),
        # Replicas take each other's place.
        ([planned("a-0", 8000, 0), planned("a-1", 8001, 1)], gpus(*[A100] * 4), {}),
        ([planned("a-0", 8000, device="cpu")], gpus(A100, A100), {}),
        # The name is another model's.
        ([planned("a-0", 8000, 0), planned("a-1-0", 8001, 1)], gpus(*[A100] * 3), {"a-1-1": (8002, [2])}),
    ],
)
def test_who_gets_one(
    instances: list[dict[str, Any]], has: list[dict[str, Any]], found: dict[str, tuple[int, list[int]]]
) -> None:
    assert surge(instances, has) == found


ONE = planned("a-0", 8000, 0)


@pytest.mark.parametrize(
    ("assigned", "found"),
    [
        # One of a run that was cut off keeps what it has.
        ([ONE, planned("a-1", 8005, 2)], {"a-1": (8005, [2])}),
        # Not what is too little by now, or taken.
        ([ONE, planned("a-1", 8000, 0)], {"a-1": (8001, [1])}),
        ([ONE, planned("a-1", 8005, 1, 2)], {"a-1": (8005, [1])}),
        # What still runs has its port and GPU, also where it goes or moves.
        ([ONE, planned("gone-0", 8001, 1)], {"a-1": (8002, [2])}),
        ([planned("a-0", 8000, 1)], {"a-1": (8001, [2])}),
        # Not served yet, or elsewhere.
        ([], {}),
        ([planned("a-0", 8009, 0)], {}),
        # By another name.
        ([planned("a-0", 8000, 0, served_as=["old"])], {}),
    ],
)
def test_what_the_host_has_counts(assigned: list[dict[str, Any]], found: dict[str, tuple[int, list[int]]]) -> None:
    assert surge([ONE], gpus(A100, A100, A100), assigned) == found


def test_nobody_gets_one_while_another_moves() -> None:
    """The proxy is told of all at once."""
    both = [ONE, planned("b-0", 8001, 1)]
    assert surge(both, gpus(*[A100] * 3)) == {"a-1": (8002, [2])}
    assert surge(both, gpus(*[A100] * 3), [ONE, planned("b-0", 8007, 1)]) == {}
