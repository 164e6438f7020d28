# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's folder on disk: is it whole, can the engine read it, how is it quantised."""

from __future__ import annotations

import grp
import json
import os
import pwd
import struct
from pathlib import Path

# The engine's unit has ProtectHome=yes and PrivateTmp=yes: it sees none of these.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


def problems(path: str, user: str = "vllm") -> list[str]:
    """Return why ``user`` cannot serve the folder ``path``, one sentence each; an empty list when it can.

    Reads only: config.json, the safetensors index, and each shard's header and size.
    """
    folder = Path(path)
    for hidden in HIDDEN:
        if folder == Path(hidden) or Path(hidden) in folder.parents:
            return [f"the service's sandbox hides {hidden}; move the weights, for example below /srv/models"]
    try:
        if not folder.is_dir():
            return ["there is no such folder on this host; put the weights there or correct the path"]
        unreadable = _unreadable(folder, user)
        if unreadable:
            return [f"user {user} cannot read {unreadable}; allow it, for example with chmod o+rX"]
        return _config_problems(folder) + _weight_problems(folder)
    except OSError as error:
        return [f"it cannot be read: {error.strerror} ({error.filename})"]


def quantization(path: str) -> str | None:
    """Return ``quant_method`` of the checkpoint's config.json, or None for an unquantised or unreadable one."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    section = config.get("quantization_config") or config.get("compression_config") or {}
    method = section.get("quant_method") if isinstance(section, dict) else None
    return str(method) if method else None


def _unreadable(folder: Path, user: str) -> str | None:
    """Return the first path that the user cannot enter or read."""
    owner, groups = _identity(user)
    for place in [*reversed(folder.parents), folder]:
        if not _allows(place.stat(), owner, groups, 0o1):
            return str(place)
    files = [folder, *(entry for entry in sorted(folder.iterdir()) if entry.is_file())]
    return next((str(file) for file in files if not _allows(file.stat(), owner, groups, 0o4)), None)


def _identity(user: str) -> tuple[int | None, set[int]]:
    """Return the user's id and groups; a user that is not there yet has none and is like anybody else."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return None, set()
    return account.pw_uid, {account.pw_gid} | {group.gr_gid for group in grp.getgrall() if user in group.gr_mem}


def _allows(status: os.stat_result, owner: int | None, groups: set[int], bit: int) -> bool:
    if status.st_uid == owner:
        return bool(status.st_mode & bit << 6)
    return bool(status.st_mode & (bit << 3 if status.st_gid in groups else bit))


def _config_problems(folder: Path) -> list[str]:
    file = folder / "config.json"
    if not file.is_file():
        return ["it holds no config.json; copy the whole model folder, as the hub lists it"]
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return ["its config.json is not JSON; copy the file again"]
    return []


def _weight_problems(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"its {index.name} is not an index of shards; copy the file again"]
    else:
        shards = sorted(entry.name for entry in folder.glob("*.safetensors"))
        if not shards:
            other = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            return [] if other else ["it holds no weights (*.safetensors); copy the whole model folder"]
    return [problem for shard in shards for problem in _shard_problems(folder / shard)]


def _shard_problems(shard: Path) -> list[str]:
    """Compare a shard's size with the one its header promises (8 bytes length, JSON header, tensors)."""
    if not shard.is_file():
        return [f"{shard.name} is missing; copy the file again"]
    size = shard.stat().st_size
    try:
        with shard.open("rb") as stream:
            (header_size,) = struct.unpack("<Q", stream.read(8))
            if header_size > size:
                raise ValueError
            header = json.loads(stream.read(header_size))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return [f"{shard.name} is not a whole safetensors file; copy the file again"]
    expected = 8 + header_size + end
    if size != expected:
        return [f"{shard.name} has {size} bytes where its header promises {expected}; copy the file again"]
    return []
