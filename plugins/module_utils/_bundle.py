# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: one folder with all that hosts without a network are installed from, and the manifest by which every file is verified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
MANIFEST = "manifest.json"
#: An index of the packages, as apt reads it.
INDEX = "debs/Packages"
CHUNK_BYTES = 1 << 20
MANIFEST_MAX_BYTES = 64 << 20
PROBLEMS_SHOWN = 5

#: Ends of names of files with weights, as vllm-download takes them.
WEIGHTS = (".safetensors", ".bin", ".pt")

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+%~!:@=-]{0,250}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,100}")

AGAIN = (
    "Copy the bundle again from where it was made; if it is the same there, delete that file and run bundle.yml again."
)
OF_THIS_INVENTORY = "Make a bundle with this inventory (bundle.yml), or set vllm_bundle_dir to one that was."


class BundleError(Exception):
    """What is wrong with a bundle and what to do, as the user reads it."""


class Content(NamedTuple):
    """What a file of the bundle holds: bytes, and their SHA-256."""

    size: int
    sha256: str


class Weight(NamedTuple):
    """A file of a model: its name there, its bytes, and the hub's checksum, which is the name of its blob."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Engine:
    """An engine by the name of its environment (version, flavour, lock), with what its installation wants.

    ``installer``: the SHA-256 of the lock of uv. ``files``: wheels, by their path in the bundle.
    """

    name: str
    installer: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model of the hub at one commit. ``revisions``: what was asked for when that commit was found, "" for none."""

    model: str
    revisions: tuple[str, ...]
    commit: str
    format: str
    files: tuple[Weight, ...]

    def blob(self, weight: Weight) -> str:
        """Return the path of a file's content in the bundle."""
        return f"weights/hub/models--{self.model.replace('/', '--')}/blobs/{weight.checksum}"


@dataclass(frozen=True)
class System:
    """What hosts must be like: "Debian 12", the kernel's name of the machine ("x86_64"), "3.11"."""

    release: str
    architecture: str
    python: str


@dataclass(frozen=True)
class Manifest:
    """All of a bundle. ``packages``: the names that were asked for; their dependencies are among ``files`` as well."""

    collection: str
    system: System
    request: str
    engines: tuple[Engine, ...]
    packages: tuple[str, ...]
    models: tuple[Model, ...]
    files: Mapping[str, Content]

    def text(self) -> str:
        """Return it as it is written."""
        content = {"format": FORMAT, **asdict(self), "files": {name: one._asdict() for name, one in self.files.items()}}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def sha256_of(path: Path, count: Callable[[int], object] = lambda size: None) -> Content:
    """Return what a file holds; ``count`` is told of each piece's bytes. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
            size += len(piece)
            count(len(piece))
    return Content(size, digest.hexdigest())


# ---- Reading -----------------------------------------------------------------------------------------------------------


def read(folder: Path, sha256: str = "") -> tuple[Manifest, str]:
    """Return the manifest of a bundle, and its own SHA-256; one with another than ``sha256`` is refused, if that is given. Raises BundleError."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            data = stream.read(MANIFEST_MAX_BYTES)
    except OSError as error:
        raise BundleError(
            f"vllm_bundle_dir is {folder}: there is no whole bundle ({path}: {error.strerror}). Set it to a folder of this machine that bundle.yml has made, "
            "or run bundle.yml to its end."
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise BundleError(
            f"vllm_bundle_dir is {folder}: its manifest has the SHA-256 {found[:12]}..., and {sha256[:12]}... is needed (vllm_bundle_sha256, or what this "
            "run has checked): it is another bundle, or was changed. Copy the bundle again from where it was made, or set vllm_bundle_sha256 to what "
            "bundle.yml has said."
        )
    try:
        return parse(data.decode()), found
    except BundleError as error:
        raise BundleError(f"vllm_bundle_dir is {folder}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError(f"vllm_bundle_dir is {folder}: its {MANIFEST} is damaged. {AGAIN}") from None


def parse(text: str) -> Manifest:
    """Return a manifest. Raises BundleError for another format, and ValueError, KeyError or TypeError for a damaged one."""
    content = json.loads(text)
    if content["format"] != FORMAT:
        raise BundleError(
            f"its format is {content['format']!r}, and this version of the collection reads {FORMAT}. Make it again with the collection of this version."
        )
    files = {
        _path(name): Content(int(one["size"]), _matching(SHA256, one["sha256"]))
        for name, one in content["files"].items()
    }
    manifest = Manifest(
        collection=str(content["collection"]),
        system=System(**{key: str(value) for key, value in content["system"].items()}),
        request=str(content["request"]),
        engines=tuple(
            Engine(_matching(ENGINE_NAME, one["name"]), str(one["installer"]), tuple(one["files"]))
            for one in content["engines"]
        ),
        packages=tuple(str(name) for name in content["packages"]),
        models=tuple(_model(one) for one in content["models"]),
        files=files,
    )
    for name in needed(manifest):
        if name not in files:
            raise KeyError(name)
    return manifest


def needed(manifest: Manifest) -> Iterator[str]:
    """Yield the paths that a manifest names anywhere but in its list of files."""
    for engine in manifest.engines:
        yield from engine.files
    for model in manifest.models:
        yield from map(model.blob, model.files)
    if manifest.packages:
        yield INDEX


def _model(content: Mapping[str, Any]) -> Model:
    files = tuple(
        Weight(_file_name(name), int(size), _matching(CHECKSUM, checksum)) for name, size, checksum in content["files"]
    )
    revisions = tuple(str(one) for one in content["revisions"])
    return Model(str(content["model"]), revisions, str(content["commit"]), str(content["format"]), files)


def _path(name: str) -> str:
    """Return a path that leads nowhere but below where it is put. Raises ValueError."""
    for part in name.split("/"):
        _matching(PART, part)
    return name


def _file_name(name: str) -> str:
    """Return the name of a model's file, which is no path in the bundle; the rule is vllm-download's (``chosen``). Raises ValueError."""
    if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable():
        raise ValueError(name)
    return name


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text


# ---- Checking ----------------------------------------------------------------------------------------------------------


def corrupted(folder: Path, manifest: Manifest, count: Callable[[int], object] = lambda size: None) -> list[str]:
    """Return what is not as the manifest says, a sentence a file, after reading all of them. ``count`` is told of bytes read."""

    def look(item: tuple[str, Content]) -> str:
        name, wanted = item
        path = folder / name
        try:
            size = path.stat().st_size
            # A file of another size need not be read.
            found = Content(size, "") if size != wanted.size else sha256_of(path, count)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found.size != wanted.size:
            return f"{name} has {found.size} bytes where the manifest says {wanted.size}"
        if found != wanted:
            return f"{name} has the SHA-256 {found.sha256[:12]}... where the manifest says {wanted.sha256[:12]}..."
        return ""

    with ThreadPoolExecutor(max_workers=4) as pool:
        return [problem for problem in pool.map(look, sorted(manifest.files.items())) if problem]


def refusal(folder: Path, problems: Sequence[str]) -> str:
    """Return the message of a bundle with such files."""
    shown = "; ".join(problems[:PROBLEMS_SHOWN]) + ("; ..." if len(problems) > PROBLEMS_SHOWN else "")
    return f"vllm_bundle_dir is {folder}, and {len(problems)} of its files are not what its manifest says: {shown}. {AGAIN} No host was changed."


@dataclass(frozen=True)
class Wanted:
    """What a host needs of a bundle. ``releases``: the names of its release, of which one must fit; ``engine``: "" for none."""

    host: str
    releases: tuple[str, ...]
    architecture: str
    python: str
    engine: str = ""
    installer: str = ""
    packages: tuple[str, ...] = ()


def host_problems(manifest: Manifest, wanted: Wanted) -> list[str]:
    """Return why a host cannot be installed from a bundle, one sentence each."""
    system = manifest.system
    problems = []
    if system.release not in wanted.releases:
        problems.append(
            f"the bundle is for {system.release}, and {wanted.host} runs {wanted.releases[0]}. Run bundle.yml on a machine with that release."
        )
    if system.architecture != wanted.architecture:
        problems.append(
            f"the bundle is for the architecture {system.architecture}, and {wanted.host} is {wanted.architecture}. Run bundle.yml on a machine of that "
            "architecture."
        )
    if wanted.engine and system.python != wanted.python:
        problems.append(
            f"the bundle is for Python {system.python}, and {wanted.host} has {wanted.python}. Run bundle.yml on a machine whose /usr/bin/python3 is that."
        )
    engines = {one.name: one for one in manifest.engines}
    if wanted.engine and wanted.engine not in engines:
        problems.append(
            f"{wanted.host} wants the engine {wanted.engine} (vllm_version, vllm_engine_flavour, its lock), and the bundle has "
            f"{', '.join(sorted(engines)) or 'none'}. {OF_THIS_INVENTORY}"
        )
    elif wanted.engine and engines[wanted.engine].installer != wanted.installer:
        problems.append(
            f"the bundle has another version of uv than this version of the collection. {OF_THIS_INVENTORY}"
        )
    if missing := sorted(set(wanted.packages) - set(manifest.packages)):
        problems.append(
            f"{wanted.host} wants the packages {', '.join(missing)}, which the bundle lacks. {OF_THIS_INVENTORY}"
        )
    return problems


def find_model(manifest: Manifest, model: str, revision: str) -> Model | None:
    """Return what a bundle has of a model at a revision (branch, tag, commit; "" for none)."""
    for one in manifest.models:
        if one.model == model and (revision == one.commit or revision in one.revisions):
            return one
    return None


def has_commit(manifest: Manifest, model: str, commit: str, form: str) -> Model | None:
    """Return what a bundle has of a model at a commit, in a form of weights."""
    return next((one for one in manifest.models if (one.model, one.commit, one.format) == (model, commit, form)), None)


# ---- Locks and packages ------------------------------------------------------------------------------------------------


class Requirement(NamedTuple):
    """An entry of a lock: its lines, and the SHA-256 of the files that will do."""

    text: str
    hashes: frozenset[str]


def requirements(lock: str) -> tuple[list[str], list[Requirement]]:
    """Return the options (lines with ``-``) and the entries of a lock."""
    options, entries = [], []
    for line in re.sub(r"\\\n", " ", lock).splitlines():
        stripped = line.strip()
        if stripped.startswith("-"):
            options.append(stripped)
        elif stripped and not stripped.startswith("#"):
            entries.append(Requirement(stripped, frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", stripped))))
    return options, entries


def project(text: str) -> str:
    """Return the normalised name of a package, from its entry in a lock or from the name of its wheel."""
    name = re.match(r"[A-Za-z0-9._-]*?(?=-[0-9]|[=<>!~;@ \[]|$)", text)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def printed_uris(output: str) -> dict[str, Content]:
    """Return the files that ``apt-get --print-uris`` names, as its lists have them; "" for a SHA-256 that is not printed.

    It prints another hash unless it is asked with Acquire::ForceHash=SHA256, and none of a file that it need not fetch.
    """
    found = re.findall(r"(?m)^'[^']+' (\S+) (\d+)(?: SHA256:([0-9a-f]{64}))?", output)
    return {name: Content(int(size), sha256) for name, size, sha256 in found}


def index_entry(control: str, name: str, content: Content) -> str:
    """Return a package's paragraph of an index: its own fields, and where its file is."""
    fields = "\n".join(line for line in control.strip().splitlines() if line.strip())
    return f"{fields}\nFilename: ./{name}\nSize: {content.size}\nSHA256: {content.sha256}\n\n"


def request_digest(content: object) -> str:
    """Return by what a bundle is known to be what is asked for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def total(files: Iterable[Content]) -> int:
    """Return their bytes."""
    return sum(one.size for one in files)


def size_text(count: float) -> str:
    """Return bytes as people say it."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
