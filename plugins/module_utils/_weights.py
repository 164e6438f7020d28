# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of a hub on a host's disk: where they lie, which commit of them is meant, and whether all of it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._files import read_untrusted
from ._wanted import REVISION, is_hub_id, is_path

COMMIT = re.compile(r"[0-9a-f]{40}")
#: The forms of weights that vllm-download can fetch: the transformers library's, and Mistral's own.
FORMATS = ("hf", "mistral")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
STAMP_MAX_BYTES = 4_000_000


class Source(NamedTuple):
    """What is to be served: a folder of the host, or a model of the hub with the revision that was asked for, "" for none."""

    model: str
    revision: str = ""


def sources(models: object) -> list[Source]:
    """Return what ``vllm_models`` asks for, each once; whatever is neither a folder nor of the hub is for the plan to refuse."""
    given = present(models)
    found = [
        Source(one["model"], _revision(one))
        for one in given
        if is_path(one.get("model")) or is_hub_id(one.get("model"))
    ]
    return list(dict.fromkeys(found))


def source_of(model: Mapping[str, Any]) -> Source:
    """Return the source of one entry of ``vllm_models``."""
    return Source(model.get("model", ""), _revision(model))


def present(models: object) -> list[Mapping[str, Any]]:
    """Return the entries of ``vllm_models`` that are models and not absent."""
    entries = models if isinstance(models, list) else []
    return [one for one in entries if isinstance(one, Mapping) and one.get("state", "present") == "present"]


def downloads(models: object, engine_args: object) -> list[dict[str, Any]]:
    """Return the models of the hub that ``vllm_models`` asks for, each with ``revision`` ("" for none) and ``format``, each once.

    :arg engine_args: those of the host, which the model's own beat.
    """
    found = []
    for one in present(models):
        source = source_of(one)
        if is_hub_id(source.model):
            told = [args for args in (engine_args, one.get("engine_args")) if isinstance(args, Mapping)]
            form = form_of({key: value for args in told for key, value in args.items()})
            found.append({"model": source.model, "revision": source.revision, "format": form})
    return [one for number, one in enumerate(found) if one not in found[:number]]


def _revision(model: Mapping[str, Any]) -> str:
    revision = model.get("revision")
    sound = is_hub_id(model.get("model")) and isinstance(revision, str) and REVISION.match(revision)
    return str(revision) if sound and ".." not in str(revision) else ""


def is_commit(revision: object) -> bool:
    """Whether it names a commit, which never moves."""
    return isinstance(revision, str) and COMMIT.fullmatch(revision) is not None


def commit_of(source: Source, assigned: Iterable[Mapping[str, Any]]) -> str:
    """Return the commit of a model of the hub: the one asked for, else the one that the last run wrote down for it, else "".

    :arg assigned: the instances of the last run, each with ``model``, ``revision`` and ``commit``.
    """
    if is_commit(source.revision):
        return source.revision
    for one in assigned:
        if (one.get("model"), one.get("revision") or "") == source and is_commit(one.get("commit")):
            return str(one["commit"])
    return ""


def repository(weights_dir: str, model: str) -> str:
    """Return the folder of a model in the hub's own cache below ``weights_dir`` (HF_HOME)."""
    return f"{weights_dir}/hub/models--{model.replace('/', '--')}"


def folder_of(source: Source, commit: str, weights_dir: str) -> str:
    """Return the folder that an engine loads: a path is itself. Without a commit it is one that is never there."""
    if is_path(source.model):
        return source.model
    return f"{repository(weights_dir, source.model)}/snapshots/{commit or source.revision or 'main'}"


def verified(weights_dir: str, model: str, commit: str) -> dict[str, bool]:
    """Return for each form of weights whether all of a commit is there, verified."""
    snapshot = f"{repository(weights_dir, model)}/snapshots/{commit}"
    return {form: is_whole(snapshot, form) for form in FORMATS}


def is_whole(snapshot: str, form: str) -> bool:
    """Whether vllm-download has verified all files of a model's folder in the hub's cache, and all have their size still."""
    return _as_in_stamp(stamp_of(snapshot, form), Path(snapshot))


def stamp_of(snapshot: str, form: str) -> Path:
    """Return where vllm-download lists the files of a model's folder in the hub's cache, once all of them are there."""
    folder = Path(snapshot)
    return folder.parents[1] / "verified" / stamp_name(folder.name, form)


def stamp_name(commit: str, form: str) -> str:
    """Return the name of the list that vllm-download writes when a commit is whole."""
    return f"{commit}.json" if form == FORMATS[0] else f"{commit}-{form}.json"


def _as_in_stamp(stamp: Path, snapshot: Path) -> bool:
    # The engine's account writes it: it only ever costs or saves a download.
    try:
        files = json.loads(read_untrusted(stamp, STAMP_MAX_BYTES))["files"]
        return bool(files) and all((snapshot / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def form_of(engine_args: Mapping[str, Any]) -> str:
    """Return the form of weights that an engine is told to load."""
    told = {engine_args.get("load-format"), engine_args.get("config-format")}
    return "mistral" if "mistral" in told else FORMATS[0]


def is_file_name(value: object) -> bool:
    """Whether an option's value names a file beside the weights: no path, and no template written out."""
    return isinstance(value, str) and FILE_NAME.fullmatch(value) is not None
