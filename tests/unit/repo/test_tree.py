"""What no single file can see: names of machines, addresses, pins, and what ships."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

REPO = Path(__file__).resolve().parents[3]

# With galaxy.yml's build_ignore this must cover every top-level entry: a new one wants a decision.
SHIPPED = {
    "CHANGELOG.rst",
    "LICENSE",
    "README.md",
    "changelogs",
    "docs",
    "galaxy.yml",
    "meta",
    "playbooks",
    "plugins",
    "roles",
}
# Where every Debian machine has it; not a trait of this one.
COMMON_PATHS = {"/", "/root", "/usr", "/usr/local", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt"}
# Package registries, written so that this file does not name one.
REGISTRIES = re.compile(r"p[y]pi\.org|py[t]honhosted\.org|registry\.[n]pmjs|deb\.[d]ebian\.org|security\.[d]ebian\.org")
VENDORS = re.compile(r"https://[\w.-]*\b(?:pytorch\.org|letsencrypt\.org|download\.nvidia\.com)[^\s\"'`|)}]*")


def traits_of_this_machine() -> set[str]:
    """Return paths and registry hosts that only this machine knows: where the checkout, Python and pip's sources lie."""
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    values = [word for line in configured.splitlines() for word in line.partition("=")[2].strip("'\"").split()]
    values += [value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "NPM_CONFIG_"))]
    traits = {str(REPO), sys.prefix, sys.base_prefix}
    if Path(sys.base_prefix).is_relative_to(Path.home()):
        # A Python of the user's own, such as ~/.pyenv/versions/3.11.7: the folder of that tool.
        traits.add(str(Path.home() / Path(sys.base_prefix).relative_to(Path.home()).parts[0]))
    for value in values:
        url = urlsplit(value)
        if url.scheme in {"http", "https"} and url.hostname:
            traits.add(url.hostname)
        elif url.path.startswith("/"):
            traits.add(url.path)
    return {trait.rstrip("/") for trait in traits} - COMMON_PATHS - {""}


def test_no_file_names_this_machine(tracked: dict[str, str]) -> None:
    """A path or mirror of the machine it was written on breaks it everywhere else."""
    traits = traits_of_this_machine()
    pattern = re.compile(rf"(?<![\w.}}])(?:{'|'.join(map(re.escape, sorted(traits)))})(?![\w-])")
    guilty = [f"{name}: {match[0]}" for name, text in tracked.items() for match in pattern.finditer(text)]
    assert guilty == []


def test_no_file_names_a_package_registry(tracked: dict[str, str]) -> None:
    """pip, uv, apt and npm are told by the environment where to look."""
    guilty = [f"{name}: {match[0]}" for name, text in tracked.items() for match in REGISTRIES.finditer(text)]
    assert guilty == []


def test_vendor_addresses_stand_once_in_a_default(tracked: dict[str, str]) -> None:
    """PyTorch's index, NVIDIA's repositories and the ACME directories: one place to change them, and it is a variable."""
    found: dict[str, list[str]] = {}
    for name, text in tracked.items():
        if name.endswith(".md") or name == str(Path(__file__).relative_to(REPO)):
            continue
        for match in VENDORS.finditer(text):
            found.setdefault(match[0], []).append(name)
    assert found, "no vendor address found: has the pattern gone stale?"
    for address, names in found.items():
        assert len(names) == 1, f"{address} stands in {names}"
        assert fnmatch.fnmatch(names[0], "roles/*/defaults/main.yml"), f"{address} stands in {names[0]}"


def test_every_top_level_entry_ships_or_is_ignored(tracked: dict[str, str]) -> None:
    """`ansible-galaxy collection build` takes whatever build_ignore leaves."""
    ignored = yaml.safe_load(tracked["galaxy.yml"])["build_ignore"]
    top = {name.split("/", 1)[0] for name in tracked}
    undecided = {name for name in top - SHIPPED if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert undecided == set()
    assert not SHIPPED & set(ignored)


def test_requirements_are_pinned_exactly(tracked: dict[str, str]) -> None:
    """And those environments that have ansible-core agree on it."""
    cores = set()
    tools = (f"tests/{one}requirements.txt" for one in ("", "bench/", "importer-", "scanner-"))
    for name in ("requirements.txt", "constraints.txt", "tests/bench/constraints.txt", *tools):
        for line in tracked[name].splitlines():
            if line.startswith(("#", "-c ")):
                continue
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z]+\])?==[\w.]+", line), f"{name}: {line}"
            if line.startswith("ansible-core=="):
                cores.add(line)
    assert len(cores) == 1, cores


def test_collection_link_points_at_the_checkout() -> None:
    """Playbooks, linters and tests find `gpuops.vllm` through it."""
    link = REPO / ".collections/ansible_collections/gpuops/vllm"
    assert link.is_symlink()
    assert link.resolve() == REPO
    assert not link.readlink().is_absolute()


def test_plugins_carry_the_licence(tracked: dict[str, str]) -> None:
    """Galaxy and ansible-test look for these three lines."""
    head = (
        "# Copyright (c) 2026 The gpuops.vllm authors\n"
        "# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)\n"
        "# SPDX-License-Identifier: GPL-3.0-or-later\n"
    )
    plugins = {name: text for name, text in tracked.items() if fnmatch.fnmatch(name, "plugins/*.py")}
    assert plugins
    assert [name for name, text in plugins.items() if head not in text[: len(head) + 30]] == []
