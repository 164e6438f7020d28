"""What the repository-wide tests look at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def tracked() -> dict[str, str]:
    """Return the text of every file that git tracks or would track, by its path in the repository.

    Links and files that are not UTF-8 are left out.
    """
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    )
    texts: dict[str, str] = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = REPO / name
        if path.is_symlink() or not path.is_file():
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    assert len(texts) > 50, "git lists hardly any file: is this a checkout?"
    return texts
