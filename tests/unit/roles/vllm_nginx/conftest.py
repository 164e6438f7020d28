# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's configuration in a real NGINX on loopback, in front of servers that say what reached them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gateway as harness
import pytest

CLIENTS: list[dict[str, Any]] = [
    {"name": "a", "key": harness.KEY},
    {"name": "hashed", "key_sha256": hashlib.sha256(b"known-as-a-hash-0123456789").hexdigest()},
    {"name": "scoped", "key": "for-one-model-0123456789", "models": ["qwen"]},
    {"name": "rotating", "key": "the-old-one-0123456789", "expires": "2020-01-01T00:00:00Z"},
    {"name": "rotating", "key": "the-new-one-0123456789", "expires": "2100-01-01T00:00:00+01:00"},
    {"name": "few", "key": "few-a-minute-0123456789", "requests_per_minute": 3},
    {"name": "narrow", "key": "two-at-a-time-0123456789", "concurrent_requests": 2},
]


@pytest.fixture(name="render")
def fixture_render() -> Callable[..., str]:
    """`render` for the tests."""
    return harness.render


class Gateway(harness.Gateway):
    """A gateway with its engines; `models` maps each model's name to its served names and number of replicas."""

    def __init__(
        self, root: Path, models: Mapping[str, tuple[list[str], int]], default: str = "", **variables: Any
    ) -> None:
        names = {
            f"{model}-{index}": model for model, (_served_as, replicas) in models.items() for index in range(replicas)
        }
        self.engines = {name: harness.Engine(name) for name in names}
        instances = [
            harness.instance(
                name,
                model,
                self.engines[name].port,
                served_as=models[model][0],
                engine_args={"max-model-len": 16384} if model == "llama" else {},
                default=model == default,
            )
            for name, model in names.items()
        ]
        super().__init__(root, instances, CLIENTS, **variables)

    def close(self) -> None:
        """End NGINX and the engines."""
        super().close()
        for engine in self.engines.values():
            engine.stop()


@pytest.fixture(scope="module")
def make_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """Make one; all end with the module."""
    if harness.nginx() is None:
        pytest.skip("no NGINX here: `scripts/nginx .build/nginx` unpacks Debian's")
    made: list[Gateway] = []

    def make(models: Mapping[str, tuple[list[str], int]], default: str = "", **variables: Any) -> Gateway:
        made.append(Gateway(tmp_path_factory.mktemp("gateway"), models, default, **variables))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    """Two models behind it, one with three replicas."""
    return make_gateway({"llama": (["llama-3", "gpt-4"], 3), "qwen": (["org/qwen"], 1)})
