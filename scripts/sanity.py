#!/usr/bin/env python3
"""Run `ansible-test sanity` over a copy of the collection.

ansible-test insists on a working directory `.../ansible_collections/NAMESPACE/NAME` that is no link, and asks git for its
files, which ignores what make builds in the checkout: hence a copy in a temporary place. It also makes virtual environments
in `$HOME` and fetches pip for them from a web server: here it gets a home in the user's cache, the pip settings of the
environment, and the pip that comes with Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuops-vllm" / "ansible-test"

# The rest is tests and programs, which `make lint` judges by stricter rules.
SEEN = ("CHANGELOG.rst", "changelogs", "galaxy.yml", "meta", "plugins", "tests/config.yml", "tests/sanity")

# Named where ansible-test looks for the pip of its own release (ansible-core 2.19 wants pip 24.2).
GET_PIP = Path(".ansible/test/cache/get_pip_24_2.py")
GET_PIP_SOURCE = """\
import ensurepip

ensurepip.bootstrap()
"""

SKIPPED = {
    "pslint": "PowerShell, of which there is none here",
    "shellcheck": "no shell scripts in what ships",
    "yamllint": "`make lint` runs yamllint and ansible-lint with this project's settings",
}


def copy_collection(collection: Path) -> None:
    """Copy what ansible-test shall see to the directory `collection`."""
    with tempfile.TemporaryDirectory(prefix="gpuops-vllm-") as temporary:
        subprocess.run([REPO / "scripts" / "export", temporary], check=True)
        for name in SEEN:
            source = Path(temporary) / name
            if source.exists():
                (collection / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, collection / name)


def pip_settings(environment: dict[str, str]) -> str:
    """Return a pip.conf that says what pip obeys now.

    ansible-test hands pip neither the environment nor the user's own pip.conf.

    Args:
        environment: the variables pip is run with.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], env=environment, check=True, capture_output=True, text=True
    )
    settings: dict[str, str] = {}
    for line in listing.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        # Options of the environment are listed first and win.
        if section in {":env:", "global", "install"}:
            settings.setdefault(option, value.strip("'\""))
    if "SSL_CERT_FILE" in environment:
        settings.setdefault("cert", environment["SSL_CERT_FILE"])
    settings.setdefault("quiet", "2")
    return "\n".join(["[global]", *(f"{option} = {value}" for option, value in sorted(settings.items())), ""])


def prepare_home(home: Path, environment: dict[str, str]) -> None:
    """Lay out the home directory ansible-test works in.

    Args:
        home: the directory; virtual environments made in it by an earlier run stay.
        environment: the variables pip is run with.
    """
    for path, text in ((GET_PIP, GET_PIP_SOURCE), (Path(".config/pip/pip.conf"), pip_settings(environment))):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text, encoding="utf-8")


def main() -> int:
    """Run the sanity tests; return ansible-test's exit code."""
    environment = dict(os.environ)
    prepare_home(CACHE, environment)
    for test, reason in SKIPPED.items():
        print(f"sanity: {test} left out: {reason}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [str(Path(sys.executable).parent / "ansible-test"), "sanity", "--python", python, "--color", "no"]
    for test in SKIPPED:
        command += ["--skip-test", test]
    command += sys.argv[1:]
    environment["HOME"] = str(CACHE)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with tempfile.TemporaryDirectory(prefix="gpuops-vllm-") as temporary:
        collection = Path(temporary) / "ansible_collections" / "gpuops" / "vllm"
        copy_collection(collection)
        return subprocess.run(command, cwd=collection, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
