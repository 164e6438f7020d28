# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian inside the machines: package sources, base trees, and the packages that machines have already fetched."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .model import CACHE, RELEASE_PACKAGES
from .system import LabError, read_all, remove_tree, run, say

RECIPE = "1"  # raise it when the way a base tree is built changes
POCKETS = ("", "-updates", "-security")
# Settings of the control host's apt that its machines need too.
APT_SETTING = re.compile(r"Acquire::(https?::Proxy|Check-Valid-Until|Check-Date|Retries)\b.*;")
MACHINE_APT = """\
// The lab keeps what is fetched for the next machine, and needs no translations.
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
"""


@dataclass(frozen=True)
class Source:
    """One entry of an apt sources file."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary-package entries of a `.sources` file."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.lower()
                fields[key] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() in {"yes", "true"}:
            found.append(
                Source(
                    tuple(fields.get("uris", "").split()),
                    tuple(fields.get("suites", "").split()),
                    tuple(fields.get("components", "").split()),
                    fields.get("signed-by", ""),
                )
            )
    return found


def parse_one_line(text: str) -> list[Source]:
    """The binary-package entries of a `sources.list`."""
    found = []
    for match in re.finditer(r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)[ \t]+([^#\n]+)", text, re.MULTILINE):
        options = dict(option.split("=", 1) for option in (match[1] or "").split() if "=" in option)
        found.append(Source((match[2],), (match[3],), tuple(match[4].split()), options.get("signed-by", "")))
    return found


def debian_sources(sources: list[Source], codename: str) -> list[Source]:
    """Those of the sources that are Debian itself: a suite of this release, `main`, signed by Debian or by default."""
    wanted = {codename + pocket for pocket in POCKETS}
    found = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if suite.rstrip("/") in wanted)
        signed = not source.signed_by or "debian-archive" in source.signed_by
        uris = tuple(uri for uri in source.uris if not uri.startswith("cdrom:"))
        if suites and uris and signed and "main" in source.components:
            found.append(Source(uris, suites, ("main",), source.signed_by))
    return found


def render_sources(sources: list[Source], codename: str, release: str) -> str:
    """A `.sources` file for a release, fetched from where the control host fetches its own."""
    paragraphs = []
    for source in sources:
        suites = [suite.replace(codename, release, 1) for suite in source.suites]
        lines = ["Types: deb", f"URIs: {' '.join(source.uris)}", f"Suites: {' '.join(suites)}", "Components: main"]
        if source.signed_by:
            lines.append(f"Signed-By: {source.signed_by}")
        paragraphs.append("\n".join(lines) + "\n")
    return "\n".join(paragraphs)


def _resolve_mirror_files(source: Source) -> Source:
    """Cloud images name a file of mirrors; its first mirror does."""
    uris = []
    for uri in source.uris:
        path = Path(uri.removeprefix("mirror+file:").replace("//", "/"))
        if uri.startswith("mirror+file:") and path.is_file():
            uris.append(path.read_text(encoding="utf-8").split()[0])
        else:
            uris.append(uri)
    return Source(tuple(uris), source.suites, source.components, source.signed_by)


def host_sources(release: str) -> str:
    """The control host's Debian sources, for a release.

    Raises:
        LabError: The control host is no Debian, or has no source of it.
    """
    release_file = Path("/etc/os-release").read_text(encoding="utf-8")
    codename = re.search(r"^VERSION_CODENAME=(\S+)", release_file, re.MULTILINE)
    if not codename or not re.search(r"^ID=debian$", release_file, re.MULTILINE):
        raise LabError(
            "the lab needs Debian 12 or 13 as the control host: its machines use the control host's apt sources"
        )
    etc = Path("/etc/apt")
    texts822 = read_all(sorted((etc / "sources.list.d").glob("*.sources")))
    texts = read_all([etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))])
    sources = [source for text in texts822 for source in parse_deb822(text)]
    sources += [source for text in texts for source in parse_one_line(text)]
    own = [_resolve_mirror_files(source) for source in debian_sources(sources, codename[1])]
    if not own:
        raise LabError(f"/etc/apt has no Debian source with the suite {codename[1]!r} and the component 'main'")
    return render_sources(own, codename[1], release)


def host_settings() -> str:
    """The lines of the control host's apt configuration that its machines need: proxies, leniency about dates."""
    return "".join(f"{line}\n" for line in run("apt-config", "dump").splitlines() if APT_SETTING.fullmatch(line))


def base_tree(release: str) -> Path:
    """Where the base tree of a release lies, or will lie; the name changes with what goes into it."""
    recipe = "\n".join([RECIPE, release, *RELEASE_PACKAGES[release]])
    return CACHE / "base" / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def build_base(release: str) -> Path:
    """Build the base tree of a release unless it is there. It keeps no trace of the mirror or of this machine.

    Raises:
        LabError: mmdebstrap failed; the message ends with its last words.
    """
    tree = base_tree(release)
    if tree.is_dir():
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    for leftover in tree.parent.glob(f"{release}-*.new.*"):
        remove_tree(leftover)
    say(f"lab: building the Debian tree {tree.name} (about half a minute, once)")
    new = Path(tempfile.mkdtemp(prefix=f"{tree.name}.new.", dir=tree.parent))
    try:
        _mmdebstrap(release, new)
        new.chmod(0o755)  # mkdtemp's 0700 would lock every user but root out of the machine
        new.rename(tree)
    finally:
        remove_tree(new)
    return tree


def _mmdebstrap(release: str, target: Path) -> None:
    cleanup = (
        'rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap'
        ' "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf'
    )
    argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(RELEASE_PACKAGES[release])}",
        *(f"--aptopt={line}" for line in host_settings().splitlines()),
        f"--customize-hook={cleanup}",
        release,
        str(target),
        "-",
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        # A session of its own: Ctrl-C is ours to pass on, and we wait until its children are gone.
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
        )
        try:
            process.communicate(host_sources(release))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode != 0:
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
            raise LabError(f"mmdebstrap {release}: {' | '.join(words[-3:])}")


# ---------------------------------------------------------------------------------------- packages fetched by machines


def give_packages(release: str, root: Path) -> None:
    """Put the packages that earlier machines fetched where this one's apt looks first.

    Copies, not a shared folder: apt locks that folder, so two machines could not install at once. apt checks every
    package against the index it has just read, so an old or broken file costs a download and nothing else.
    """
    archives = root / "var/cache/apt/archives"
    archives.mkdir(parents=True, exist_ok=True)
    for package in (CACHE / "apt" / release).glob("*.deb"):
        shutil.copyfile(package, archives / package.name)


def keep_packages(release: str, tree: Path) -> None:
    """Keep the packages that a machine fetched for later ones."""
    cache = CACHE / "apt" / release
    cache.mkdir(parents=True, exist_ok=True)
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        if not (cache / package.name).exists():
            new = cache / f".{package.name}.new"
            shutil.copyfile(package, new)
            new.rename(cache / package.name)
