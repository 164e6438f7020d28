"""The control host's apt sources, and what the machines get of them."""

from __future__ import annotations

import pytest
from vllm_lab import debian
from vllm_lab.debian import Source
from vllm_lab.model import RELEASE_PACKAGES

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://old.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components:
 main
"""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_deb822_gives_enabled_binary_entries() -> None:
    assert debian.parse_deb822(DEB822) == [
        Source(
            ("http://mirror.example/debian",),
            ("bookworm", "bookworm-updates", "bookworm-backports"),
            ("main", "contrib"),
            KEYRING,
        ),
        Source(("http://mirror.example/security",), ("bookworm-security",), ("main",)),
    ]


def test_one_line_format() -> None:
    text = """\
# deb http://off.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # ours
deb [arch=amd64 signed-by=/k.gpg] https://other.example/repo stable main
"""
    assert debian.parse_one_line(text) == [
        Source(("http://mirror.example/debian",), ("bookworm",), ("main", "contrib")),
        Source(("https://other.example/repo",), ("stable",), ("main",), "/k.gpg"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        Source(("https://packages.example/repo",), ("bookworm",), ("main",), "/usr/share/keyrings/vendor.gpg"),
        Source(("https://packages.example/repo",), ("bookworm",), ("stable",)),
        Source(("https://packages.example/repo",), ("vendor-bookworm",), ("main",)),
        Source(("cdrom:[Debian]/",), ("bookworm",), ("main",)),
    ],
)
def test_what_is_not_debian_itself_is_left_out(source: Source) -> None:
    assert debian.debian_sources([source], "bookworm") == []


def test_another_release_comes_from_the_same_mirrors() -> None:
    sources = debian.debian_sources(debian.parse_deb822(DEB822), "bookworm")
    assert (
        debian.render_sources(sources, "bookworm", "trixie")
        == f"""\
Types: deb
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: {KEYRING}

Types: deb
URIs: http://mirror.example/security
Suites: trixie-security
Components: main
"""
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('Acquire::http::Proxy "http://proxy.example:3128";', True),
        ('Acquire::https::Proxy::repo.example "DIRECT";', True),
        ('Acquire::Check-Valid-Until "false";', True),
        ('Acquire::GzipIndexes "true";', False),
        ('APT::Get::Show-User-Simulation-Note "no";', False),
    ],
)
def test_which_apt_settings_machines_need(line: str, wanted: bool) -> None:
    assert bool(debian.APT_SETTING.fullmatch(line)) is wanted


def test_the_base_tree_is_named_by_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = debian.base_tree("trixie")
    assert before == debian.base_tree("trixie")
    monkeypatch.setitem(RELEASE_PACKAGES, "trixie", ("systemd", "vim"))
    assert before.name.startswith("trixie-")
    assert debian.base_tree("trixie") != before
