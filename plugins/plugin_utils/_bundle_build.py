# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a bundle on a machine with a network, by that machine's own pip, apt and Python.

The manifest goes first and comes last: a folder whose making was cut off is no bundle. What is there already and right is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.gpuops.vllm.plugins.module_utils import _apt, _bundle, _files, _hub
from ansible_collections.gpuops.vllm.plugins.module_utils._bundle import BundleError, Content, size_text

TOP = Path(__file__).resolve().parents[2]
DOWNLOADER = TOP / "roles/vllm_weights/files/vllm-download"
OS_RELEASE = Path("/etc/os-release")
PYTHON = "/usr/bin/python3"
#: A file of a folder that bundle.yml has made: in another one nothing is removed.
MARKER = ".vllm-bundle"
FOLDERS = ("wheels", "debs", "weights", "collection")
#: So many packages at a time: pip keeps what it has fetched when it ends, and only then can it be told how far it is.
AT_A_TIME = 8
HUB_TIMEOUT_S = 30.0
PROGRESS_S = 10.0


@dataclass(frozen=True)
class WantedEngine:
    """An engine that a host wants, as the role vllm_engine says; ``python``: from this version to before that one."""

    name: str
    lock: Path
    installer: Path
    python: tuple[str, str]
    index_url: str = ""
    find_links: tuple[str, ...] = ()
    torch_page: str = ""


@dataclass(frozen=True)
class Request:
    """What to put into a bundle. ``models``: each (id, revision or "", form of weights)."""

    engines: tuple[WantedEngine, ...] = ()
    packages: tuple[str, ...] = ()
    models: tuple[tuple[str, str, str], ...] = ()
    hub_endpoint: str = ""
    hub_token: str = field(default="", repr=False)
    update_models: bool = False


class Builder:
    """One making of a bundle.

    :arg say: shows a line to the user.
    """

    def __init__(self, folder: Path, request: Request, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.request = request
        self.say = say
        self.system = this_system()
        self.collection = collection_version()
        self.before = self._before()
        self._known: dict[tuple[Path, int, int], Content] = {}

    def _before(self) -> _bundle.Manifest | None:
        try:
            return _bundle.read(self.folder)[0]
        except BundleError:
            return None

    def digest(self) -> str:
        """Return by what an earlier bundle is known to be what is asked for now."""
        wanted = self.request
        return _bundle.request_digest(
            {
                "collection": self.collection,
                "system": [self.system.release, self.system.architecture, self.system.python],
                "engines": sorted((one.name, content_of(one.installer)) for one in wanted.engines),
                "packages": sorted(wanted.packages),
                "models": sorted(wanted.models),
            }
        )

    def is_whole(self) -> bool:
        """Whether the folder has all that is asked for, each file with its size."""
        if self.before is None or self.before.request != self.digest() or self.request.update_models:
            return False
        return all(size_of(self.folder / name) == one.size for name, one in self.before.files.items())

    def build(self) -> None:
        """Make it. Raises BundleError and OSError."""
        self._refuse_what_cannot_be_made()
        with self._alone(), tempfile.TemporaryDirectory(prefix="vllm-bundle-") as work:
            (self.folder / _bundle.MANIFEST).unlink(missing_ok=True)
            tools = Tools(Path(work), self.say)
            engines = tuple(self._wheels(one, tools) for one in self.request.engines)
            debs = self._debs(tools)
            models = self._weights(tools, [self.folder / path for engine in engines for path in engine.files])
            kept = {*debs, self._collection()}
            kept |= {path for engine in engines for path in engine.files}
            kept |= {model.blob(one) for model in models for one in model.files}
            self._prune(kept)
            manifest = _bundle.Manifest(
                collection=self.collection,
                system=self.system,
                request=self.digest(),
                engines=engines,
                packages=tuple(sorted(self.request.packages)),
                models=models,
                files=self._contents(sorted(kept)),
            )
            try:
                _bundle.parse(manifest.text())
            except (ValueError, KeyError) as error:
                raise BundleError(
                    f"{error.args[0]!r} is a name that cannot be put into a bundle. Take what has it out of the inventory. No manifest was written."
                ) from None
            _files.write_atomic(self.folder / _bundle.MANIFEST, manifest.text(), 0o644)

    def _refuse_what_cannot_be_made(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / MARKER).exists():
            raise BundleError(
                f"vllm_bundle_dir is {self.folder}: it has files that bundle.yml did not put there. Choose a new folder; nothing was changed."
            )
        # What lies behind a link would be pruned with the rest.
        hub = self.folder / "weights" / "hub"
        for path in (*(self.folder / name for name in FOLDERS), hub, *hub.glob("models--*")):
            if path.is_symlink():
                raise BundleError(
                    f"vllm_bundle_dir is {self.folder}: {path.relative_to(self.folder)} is a link to {path.readlink()}, and what is not of the bundle is "
                    "removed there. Put a folder in its place, or choose a new vllm_bundle_dir; nothing was changed."
                )
        if self.request.packages and not shutil.which("apt-get"):
            raise BundleError(
                f"this machine runs {self.system.release} without apt-get: needs the release of the hosts. Run bundle.yml on a machine with that release."
            )
        for engine in self.request.engines:
            first, end = (version(one) for one in engine.python)
            if not first <= version(self.system.python) < end:
                raise BundleError(
                    f"this machine's {PYTHON} is {self.system.python}, and the lock of {engine.name} is for {engine.python[0]} and newer, below "
                    f"{engine.python[1]}. Run bundle.yml on a machine with the release of the hosts."
                )
        if self.request.models and not self.request.engines:
            raise BundleError(
                "vllm_models names models of the hub and vllm_engine_manage is false: their download wants the engine's own libraries. Set "
                "vllm_engine_manage: true for bundle.yml (-e), or copy vllm_weights_dir of another host."
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (self.folder / MARKER).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BundleError(f"another bundle.yml works in {self.folder}. Wait for its end.") from None
            yield

    # ---- Wheels ----

    def _wheels(self, engine: WantedEngine, tools: Tools) -> _bundle.Engine:
        """Have all wheels of an engine and of its installer."""
        folder = self.folder / "wheels"
        files: dict[str, None] = {}
        for lock in (engine.installer, engine.lock):
            options, entries = _bundle.requirements(lock.read_text(encoding="utf-8"))
            there = set(self._hashes(folder).values())
            missing = [one for one in entries if not one.hashes & there]
            missing = [one for one in missing if not copied(one, engine.find_links, folder)]
            for start in range(0, len(missing), AT_A_TIME):
                self.say(f"wheels of {engine.name}: {len(entries) - len(missing) + start} of {len(entries)} packages")
                texts = [*options, *(one.text for one in missing[start : start + AT_A_TIME])]
                tools.pip_download(texts, folder, engine)
            hashes = frozenset().union(*(one.hashes for one in entries))
            found = sorted(self._hashes(folder).items())
            files |= dict.fromkeys(f"wheels/{path.name}" for path, sha256 in found if sha256 in hashes)
        return _bundle.Engine(engine.name, content_of(engine.installer), tuple(files))

    def _hashes(self, folder: Path) -> dict[Path, str]:
        """Return the SHA-256 of each wheel."""
        return {path: self._content(path).sha256 for path in folder.glob("*.whl")}

    def _content(self, path: Path, count: Callable[[int], object] = lambda size: None) -> Content:
        """Return what a file holds; one that has not changed since it was asked for is not read again."""
        found = path.stat()
        known = (path, found.st_mtime_ns, found.st_size)
        if known not in self._known:
            self._known[known] = _bundle.sha256_of(path, count)
        else:
            count(found.st_size)
        return self._known[known]

    # ---- Debian packages ----

    def _debs(self, tools: Tools) -> list[str]:
        """Have the packages with all that they depend on, as for a machine that has none, and their index."""
        if not self.request.packages:
            return []
        folder = self.folder / "debs"
        names = tools.apt_download(sorted(self.request.packages), folder)
        entries = []
        for name in names:
            done = run(["dpkg-deb", "--field", str(folder / name)])
            entries.append(_bundle.index_entry(done, name, _bundle.sha256_of(folder / name)))
        _files.write_atomic(self.folder / _bundle.INDEX, "".join(entries), 0o644)
        return [_bundle.INDEX, *(f"debs/{name}" for name in names)]

    # ---- Weights ----

    def _weights(self, tools: Tools, wheels: Sequence[Path]) -> tuple[_bundle.Model, ...]:
        """Have the models, each file verified by the hub's checksum as on a host. ``wheels``: those of the locks."""
        commits: dict[tuple[str, str, str], str] = {}
        for model, revision, form in self.request.models:
            commits[model, revision, form] = self._commit(model, revision)
        if not commits:
            return ()
        wanted = dict.fromkeys((model, commit, form) for (model, _revision, form), commit in commits.items())
        home = self.folder / "weights"
        there = {(one.model, one.commit, one.format): one for one in self.before.models} if self.before else {}
        self._discard_damaged(home)
        whole = {
            key: one
            for key, one in there.items()
            if key in wanted and all(size_of(self.folder / one.blob(file)) == file.size for file in one.files)
        }
        if missing := [key for key in wanted if key not in whole]:
            tools.download_models(home, missing, wheels, self.request)
        models = []
        for key in wanted:
            model, commit, form = key
            files = whole[key].files if key in whole else downloaded(home, model, commit, form)
            revisions = sorted(
                {revision for (name, revision, _form), one in commits.items() if (name, one) == (model, commit)}
            )
            models.append(_bundle.Model(model, tuple(revisions), commit, form, files))
        # Links, which not every disk can hold, and what only they mean anything to.
        for repository in (home / "hub").glob("models--*"):
            for name in ("snapshots", "verified", "refs"):
                shutil.rmtree(repository / name, ignore_errors=True)
        return tuple(models)

    def _discard_damaged(self, home: Path) -> None:
        """Delete blobs that are not what their name says: hosts would refuse them for ever."""
        blobs = [one for one in home.glob("hub/models--*/blobs/*") if _bundle.CHECKSUM.fullmatch(one.name)]
        with Progress("verifying weights", sum(map(size_of, blobs)), self.say) as progress:
            for blob in blobs:
                found = git_sha1(blob) if len(blob.name) == 40 else self._content(blob, progress.add).sha256
                if found != blob.name:
                    self.say(f"weights: {blob} is damaged; deleted, and fetched anew")
                    blob.unlink()

    def _commit(self, model: str, revision: str) -> str:
        if self.before and not self.request.update_models:
            found = _bundle.find_model(self.before, model, revision)
            if found:
                return found.commit
        snapshot = _hub.resolve(model, revision, self.request.hub_endpoint, self.request.hub_token, HUB_TIMEOUT_S)
        if isinstance(snapshot, str):
            raise BundleError(
                f"{snapshot}. Correct vllm_models, vllm_hf_token or vllm_hub_endpoint, and run bundle.yml again."
            )
        return snapshot.commit

    # ---- The rest ----

    def _collection(self) -> str:
        """Have the collection itself, for a control node that has no network either."""
        path = self.folder / "collection" / f"gpuops-vllm-{self.collection}.tar.gz"
        self.say(f"collection: {path.name}")
        # Anew each time: the bundle's hash vouches for it, and nothing would vouch for one that is there.
        path.unlink(missing_ok=True)
        pack_collection(TOP, path)
        return str(path.relative_to(self.folder))

    def _prune(self, kept: set[str]) -> None:
        """Remove what earlier makings have left and nothing needs."""
        for name in FOLDERS:
            for path in sorted((self.folder / name).rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif str(path.relative_to(self.folder)) not in kept:
                    path.unlink()

    def _contents(self, names: Sequence[str]) -> dict[str, Content]:
        progress = Progress("hashing", sum(size_of(self.folder / name) for name in names), self.say)
        with progress:
            return {name: self._content(self.folder / name, progress.add) for name in names}


class Tools:
    """This machine's programs, each with a folder of its own to work in."""

    def __init__(self, work: Path, say: Callable[[str], None]) -> None:
        self.work = work
        self.say = say
        self._links: bool | None = None

    def python(self) -> str:
        """Return a Python with pip, of the version that the hosts have."""
        prefix = self.work / "venv"
        if not prefix.exists():
            run([PYTHON, "-I", "-m", "venv", str(prefix)], hint="Install the package python3-venv on this machine.")
        return str(prefix / "bin" / "python")

    def pip_download(self, lines: Sequence[str], folder: Path, engine: WantedEngine) -> None:
        lock = self.work / "requirements.txt"
        lock.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [self.python(), "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", f"--dest={folder}", f"--requirement={lock}"]
        if engine.index_url:
            command.append(f"--index-url={engine.index_url}")
        links = list(engine.find_links)
        if not links and engine.torch_page and not self._has_links():
            links = [engine.torch_page]
        run([*command, *(f"--find-links={one}" for one in links)])

    def _has_links(self) -> bool:
        """Whether this machine's pip is told of a folder or page with wheels, which is then asked in the place of torch's."""
        if self._links is None:
            settings = run([self.python(), "-I", "-m", "pip", "config", "list"])
            self._links = bool(re.search(r"(?m)\.find-links=", settings))
        return self._links

    def apt_download(self, packages: Sequence[str], folder: Path) -> list[str]:
        """Have the packages and all that they need in a folder; return the names of their files."""
        state = self.work / "apt"
        for name in ("lists/partial", "archives/partial"):
            (state / name).mkdir(parents=True)
        (state / "status").touch()
        options = {
            "Dir::State": state,
            # As on a machine without any package: what this one has makes no difference.
            "Dir::State::status": state / "status",
            "Dir::State::lists": state / "lists",
            "Dir::Cache": state,
            "Dir::Cache::archives": state / "archives",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        words = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        self.say("packages: reading the lists of this machine's sources")
        run([*_apt.apt_get(*words), "update"], environment=_apt.ENVIRONMENT, hint=SOURCES)
        install = ["--no-install-recommends", "install", "--", *packages]
        # Without that hash it prints an MD5.
        printing = ["-o", "Acquire::ForceHash=SHA256", "--print-uris"]
        said = run([*_apt.apt_get(*words), *printing, *install], environment=_apt.ENVIRONMENT, hint=SOURCES)
        wanted = _bundle.printed_uris(said)
        missing = {name: one.size for name, one in wanted.items() if not holds(folder / name, one)}
        if missing:
            self.say(f"packages: {len(missing)} of {len(wanted)} to download, {size_text(sum(missing.values()))}")
            (folder / "partial").mkdir(exist_ok=True)
            for name in missing:
                # apt takes a file for its own by the size alone.
                (folder / name).unlink(missing_ok=True)
            words += ["-o", f"Dir::Cache::archives={folder}", "--download-only"]
            run([*_apt.apt_get(*words), *install], environment=_apt.ENVIRONMENT, hint=SOURCES)
        if lacks := sorted(name for name in missing if not (folder / name).exists()):
            raise BundleError(
                f"apt-get has not put {', '.join(lacks[:5])} into {folder}: of a source by file: or cdrom: it copies nothing. Name an http source "
                "in this machine's /etc/apt, and run bundle.yml again."
            )
        if others := sorted(name for name in missing if not holds(folder / name, wanted[name])):
            raise BundleError(
                f"{', '.join(others[:5])} in {folder} is not what this machine's package lists say: needs the SHA-256 of a list. "
                "Name a source in this machine's /etc/apt whose lists have one, and run bundle.yml again."
            )
        return sorted(wanted)

    def download_models(
        self, home: Path, models: Iterable[tuple[str, str, str]], wheels: Iterable[Path], request: Request
    ) -> None:
        python = self.python()
        self.say("weights: preparing the download")
        # A folder that has the locks' wheels and no other: pip takes the newest that it finds.
        locked = self.work / "wheels"
        locked.mkdir()
        for wheel in wheels:
            (locked / wheel.name).symlink_to(wheel)
        command = [python, "-I", "-m", "pip", "install", "--isolated", "--quiet", "--disable-pip-version-check"]
        command += ["--no-index", f"--find-links={locked}", "huggingface_hub"]
        run(command, environment={"PIP_CONFIG_FILE": os.devnull})
        wanted = [{"model": model, "commit": commit, "format": form} for model, commit, form in models]
        environment = {"HF_ENDPOINT": request.hub_endpoint, "HF_HUB_DISABLE_XET": "1", "DO_NOT_TRACK": "1"}
        if request.hub_token:
            # Never in the arguments, which every user can read.
            environment["HF_TOKEN"] = request.hub_token
        argv = [python, "-I", str(DOWNLOADER), f"--home={home}", "--reserve-gib=1", "--attempts=6", json.dumps(wanted)]
        run(argv, environment=environment, show=lambda line: self.say(f"weights: {line}"))


SOURCES = "Are this machine's package sources reachable? apt-get update shows it."


class Progress:
    """Says every few seconds how many bytes are done."""

    def __init__(self, what: str, size: int, say: Callable[[str], None]) -> None:
        self.what, self.size, self.say = what, size, say
        self.done = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count

    def _report(self) -> None:
        while not self._end.wait(PROGRESS_S):
            self.say(f"{self.what}: {size_text(self.done)} of {size_text(self.size)}")

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def run(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    hint: str = "",
    show: Callable[[str], None] | None = None,
    folder: str | None = None,
) -> str:
    """Return what a program writes; ``show`` is told of each line. Raises BundleError with its last lines."""
    lines: list[str] = []
    try:
        with subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                lines.append(line)
                if show:
                    show(line.strip())
    except OSError as error:
        raise BundleError(f"{argv[0]}: {error.strerror}. {hint}".rstrip()) from None
    if process.returncode != 0:
        said = "\n".join(f"  {line.rstrip()}" for line in lines[-12:])
        raise BundleError(
            f"{Path(argv[0]).name} failed with exit status {process.returncode}. Its last lines:\n{said}\n"
            f"{hint}{' ' if hint else ''}When the cause is gone, run bundle.yml again: it keeps what it has."
        )
    return "".join(lines)


def copied(entry: _bundle.Requirement, folders: Iterable[str], target: Path) -> bool:
    """Whether a folder of wheels has the file that an entry of a lock is for, which is copied then.

    pip would take the one of an index that has another build under the same version, and find its hash wrong.
    """
    for folder in (Path(one.removeprefix("file://")) for one in folders):
        for wheel in folder.glob("*.whl"):
            if _bundle.project(wheel.name) == _bundle.project(entry.text) and content_of(wheel) in entry.hashes:
                shutil.copyfile(wheel, target / wheel.name)
                return True
    return False


def downloaded(home: Path, model: str, commit: str, form: str) -> tuple[_bundle.Weight, ...]:
    """Return the files that vllm-download has verified of a model. Raises OSError."""
    repository = home / "hub" / f"models--{model.replace('/', '--')}"
    stamp = repository / "verified" / (f"{commit}.json" if form == "hf" else f"{commit}-{form}.json")
    names: dict[str, int] = json.loads(stamp.read_text(encoding="utf-8"))["files"]
    snapshot = repository / "snapshots" / commit
    # A blob is named by the hub's checksum of it.
    return tuple(_bundle.Weight(name, size, (snapshot / name).readlink().name) for name, size in sorted(names.items()))


def pack_collection(top: Path, path: Path) -> None:
    """Write the collection as ansible-galaxy installs it. Raises BundleError and OSError."""
    if not (top / "MANIFEST.json").is_file():
        build = ["collection", "build", str(top), f"--output-path={path.parent}"]
        # Not from where the play was started, which Python would look for modules in.
        run([sys.executable, "-m", "ansible", "galaxy", *build], folder="/")
        return
    # An installed one has all that its artifact had.
    listed = json.loads((top / "FILES.json").read_text(encoding="utf-8"))["files"]
    names = ["MANIFEST.json", "FILES.json", *(one["name"] for one in listed if one["name"] != ".")]
    new = path.with_suffix(".new")
    with tarfile.open(new, "w:gz") as archive:
        for name in names:
            archive.add(top / name, name, recursive=False)
    new.replace(path)


def collection_version() -> str:
    """Return the version of this collection. Raises BundleError."""
    for name, pattern in (("MANIFEST.json", r'"version":\s*"([^"]+)"'), ("galaxy.yml", r"(?m)^version:\s*(\S+)")):
        path = TOP / name
        if path.is_file() and (found := re.search(pattern, path.read_text(encoding="utf-8"))):
            return found[1]
    raise BundleError(f"{TOP} has no MANIFEST.json and no galaxy.yml: install the collection anew")


def this_system() -> _bundle.System:
    """Return what this machine is, and so the hosts that are installed from its bundle. Raises BundleError."""
    try:
        words = dict(re.findall(r'(?m)^(ID|VERSION_ID)="?([^"\n]*)"?$', OS_RELEASE.read_text(encoding="utf-8")))
    except OSError:
        words = {}
    found = run([PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    return _bundle.System(
        f"{words.get('ID', 'unknown').capitalize()} {words.get('VERSION_ID', '')}".strip(), platform.machine(), found
    )


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def content_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return _bundle.sha256_of(path).sha256


def git_sha1(path: Path) -> str:
    """Return by what the hub, as git, knows a small file. Raises OSError."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def holds(path: Path, wanted: Content) -> bool:
    """Whether a file is there, and is that one. Raises OSError for one that cannot be read."""
    return size_of(path) == wanted.size and _bundle.sha256_of(path) == wanted


def size_of(path: Path) -> int:
    """Return a file's bytes, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
