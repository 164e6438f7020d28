# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's folder on disk: is it whole, can the engine read it, how is it quantised, how much do its weights take."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from . import _model

# The engine's unit has ProtectHome=yes and PrivateTmp=yes: it sees none of these.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
# The folders are read as root and may be anybody's: these, not the folder, decide how much is read. The first limit is
# safetensors' own, the second is for all shards together; real configs have kilobytes, real indexes a few megabytes.
HEADER_MAX_BYTES = 100_000_000
HEADERS_MAX_BYTES = 256_000_000
CONFIG_MAX_BYTES = 4_000_000
INDEX_MAX_BYTES = 64_000_000


def problems(path: str, user: str = "vllm") -> list[str]:
    """Return why ``user`` cannot serve the folder ``path``, one sentence each; an empty list when it can.

    Reads only: config.json, the safetensors index, and each shard's header and size.
    """
    # A file may have any name, and messages go to a terminal.
    return [_printable(one) for one in _problems(Path(path), user)]


def _problems(folder: Path, user: str) -> list[str]:
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


def metadata(path: str, user: str = "vllm") -> dict[str, Any] | None:
    """Return what the plan asks of the folder ``path``, or None where ``user`` may not read it or its config.json is none.

    ``config_json`` is config.json as ASCII, with ModelOpt's quantisation in it where that lies beside: as text whatever is
    in it passes Ansible. ``files`` are the names in it. ``weights_bytes`` is what all tensors take together, or None where neither index nor shards tell.
    """
    folder = Path(path)
    try:
        config = None if _unreadable(folder, user) else _config(folder)
        if config is None:
            return None
        return {"config_json": json.dumps(config), "weights_bytes": _weights_bytes(folder), "files": _names(folder)}
    except (OSError, ValueError, RecursionError):
        return None


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """Return the ``quant_method`` that a config.json names, or None for an unquantised checkpoint."""
    section = _model.quantization_config(config)
    method = section.get("quant_method") or ("modelopt" if section.get("quant_algo") else None)
    return str(method) if method else None


def with_modelopt(config: dict[str, Any], hf_quant_config: object) -> dict[str, Any]:
    """Return the config with what hf_quant_config.json says, as newer ModelOpt writes it into config.json itself."""
    section = hf_quant_config.get("quantization") if isinstance(hf_quant_config, dict) else None
    if _model.quantization_config(config) or not isinstance(section, dict) or not section.get("quant_algo"):
        return config
    return {**config, "quantization_config": {"quant_method": "modelopt", **section}}


def total_size(index: object) -> int | None:
    """Return the bytes of all tensors that a safetensors index names, or None where it does not say."""
    section = index.get("metadata") if isinstance(index, dict) else None
    size = section.get("total_size") if isinstance(section, dict) else None
    # Some tools write 1.5e10.
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**63 else None


def _names(folder: Path) -> list[str]:
    """Return the names of the files in a folder that any terminal can show."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name.isprintable() and entry.is_file())


def _config(folder: Path) -> dict[str, Any] | None:
    config = _json_or_none(folder / "config.json", CONFIG_MAX_BYTES)
    if not isinstance(config, dict):
        return None
    return with_modelopt(config, _json_or_none(folder / "hf_quant_config.json", CONFIG_MAX_BYTES))


def _json_or_none(file: Path, limit: int) -> Any:
    try:
        return _read_json(file, limit)
    except (OSError, ValueError, RecursionError):
        return None


def _weights_bytes(folder: Path) -> int | None:
    """Return the bytes of all tensors: what the index says, else the sizes of the shards without their headers."""
    index = _json_or_none(folder / "model.safetensors.index.json", INDEX_MAX_BYTES)
    if size := total_size(index):
        return size
    # A folder may hold the weights twice, for example as consolidated.safetensors too; then the engine loads these.
    try:
        named = index.get("weight_map") if isinstance(index, dict) else None
        shards = set(named.values()) if isinstance(named, dict) else {"model.safetensors"}
        if not all(_is_shard_name(shard) for shard in shards):
            return None
        if not isinstance(named, dict) and not (folder / "model.safetensors").is_file():
            shards = {entry.name for entry in folder.glob("*.safetensors")}
        return sum(_tensor_bytes(folder / shard) for shard in shards) or None
    except (OSError, TypeError, ValueError, struct.error):
        return None


def _tensor_bytes(shard: Path) -> int:
    """Return the bytes of a shard's tensors. ValueError or struct.error where it is none."""
    with _open_regular(shard) as stream:
        size = os.fstat(stream.fileno()).st_size
        (header_size,) = struct.unpack("<Q", stream.read(8))
    if header_size > min(size - 8, HEADER_MAX_BYTES):
        raise ValueError(f"{shard.name} has no header")
    return int(size - 8 - header_size)


def _open_regular(file: Path) -> BinaryIO:
    """Open a regular file; ValueError for anything else, which is not even opened: a device or a FIFO would notice."""
    place = os.open(file, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise ValueError(f"{file.name} is not a regular file")
        return Path(f"/proc/self/fd/{place}").open("rb")
    finally:
        os.close(place)


def _read_json(file: Path, limit: int) -> Any:
    """Parse a small JSON file; ValueError where it is no regular file, too large or no JSON, RecursionError if too deep."""
    with _open_regular(file) as stream:
        text = stream.read(limit + 1)
    if len(text) > limit:
        raise ValueError(f"{file.name} has more than {limit} bytes")
    return json.loads(text)


def _unreadable(folder: Path, user: str) -> str | None:
    """Return the first path that the user cannot enter or read."""
    owner, groups = _identity(user)
    files = [folder, *(entry for entry in sorted(folder.iterdir()) if entry.is_file())]
    # A link is as readable as what it leads to, and that has folders of its own above it.
    real = [parent for file in files for parent in reversed(Path(os.path.realpath(file)).parents)]
    for place in dict.fromkeys([*reversed(folder.parents), folder, *real]):
        if not _allows(place.stat(), owner, groups, 0o1):
            return str(place)
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
        # The plan gets it as JSON again.
        json.dumps(_read_json(file, CONFIG_MAX_BYTES))
    except (ValueError, RecursionError):
        return ["its config.json is not JSON; copy the file again"]
    return []


def _weight_problems(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if os.path.lexists(index):
        try:
            shards = sorted(set(_read_json(index, INDEX_MAX_BYTES)["weight_map"].values()))
            if not all(_is_shard_name(shard) for shard in shards):
                raise ValueError
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return [f"its {index.name} is not an index of shards; copy the file again"]
    else:
        shards = sorted(entry.name for entry in folder.glob("*.safetensors"))
        if not shards:
            other = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            return [] if other else ["it holds no weights (*.safetensors); copy the whole model folder"]
    problems, room = [], HEADERS_MAX_BYTES
    for shard in shards:
        read, found = _shard_problems(folder / shard, room)
        problems += found
        room -= read
    return problems


def _is_shard_name(name: object) -> bool:
    """Whether it is a file beside the index; a path would lead out of the folder."""
    return isinstance(name, str) and name.isprintable() and "/" not in name and name not in ("", ".", "..")


def _shard_problems(shard: Path, room: int) -> tuple[int, list[str]]:
    """Compare a shard's size with the one its header promises (8 bytes length, JSON header, tensors).

    Returns the bytes of the header that were read, at most ``room``, and what is wrong.
    """
    if not shard.is_file():
        return 0, [f"{shard.name} is missing; copy the file again"]
    read = 0
    try:
        with _open_regular(shard) as stream:
            size = os.fstat(stream.fileno()).st_size
            (header_size,) = struct.unpack("<Q", stream.read(8))
            if header_size > min(size, HEADER_MAX_BYTES):
                raise ValueError
            if header_size > room:
                return 0, [
                    f"the headers up to {shard.name} have more than {HEADERS_MAX_BYTES} bytes; copy the folder again"
                ]
            read = header_size
            header = json.loads(stream.read(header_size))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        expected = 8 + header_size + end
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return read, [f"{shard.name} is not a whole safetensors file; copy the file again"]
    if size != expected:
        return read, [f"{shard.name} has {size} bytes where its header promises {expected}; copy the file again"]
    return read, []


def _printable(text: str) -> str:
    """Return a text with escapes in the place of what no terminal should get, such as half a character."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
