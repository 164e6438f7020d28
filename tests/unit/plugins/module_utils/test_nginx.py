# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _nginx

BOOKWORM = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.8 7 Feb 2023 (running with OpenSSL 3.0.15 3 Sep 2024)\n"
TRIXIE = "nginx version: nginx/1.26.3\nbuilt with OpenSSL 3.5.0 8 Apr 2025 (running with OpenSSL 3.5.1 1 Jul 2025)\n"
TEXT = """\
server {
    listen 443 ssl http2;
    listen [::]:443 ssl http2;
    ssl_ecdh_curve X25519MLKEM768:X25519;
}
"""


def test_build() -> None:
    assert _nginx.parse_build(BOOKWORM, ipv6=True) == _nginx.Build((1, 22, 1), (3, 0), True)
    assert _nginx.parse_build(TRIXIE, ipv6=False) == _nginx.Build((1, 26, 3), (3, 5), False)
    with pytest.raises(ValueError, match="does not name its version: 'bash: nginx: not found'"):
        _nginx.parse_build("bash: nginx: not found\n", ipv6=True)


@pytest.mark.parametrize(
    ("version", "openssl", "ipv6", "expected"),
    [
        ((1, 22, 1), (3, 5), True, TEXT),
        ((1, 25, 0), (3, 5), True, TEXT),
        ((1, 22, 1), (3, 0), True, TEXT.replace("X25519MLKEM768:", "")),
        ((1, 22, 1), (3, 5), False, TEXT.replace("    listen [::]:443 ssl http2;\n", "")),
        (
            (1, 25, 1),
            (3, 5),
            True,
            "server {\n    http2 on;\n    listen 443 ssl;\n    listen [::]:443 ssl;\n"
            "    ssl_ecdh_curve X25519MLKEM768:X25519;\n}\n",
        ),
    ],
)
def test_adapt(version: tuple[int, int, int], openssl: tuple[int, int], ipv6: bool, expected: str) -> None:
    assert _nginx.adapt(TEXT, _nginx.Build(version, openssl, ipv6)) == expected


def test_key_include() -> None:
    assert _nginx.key_include("aB3._~+/=-") == 'proxy_set_header Authorization "Bearer aB3._~+/=-";\n'


@pytest.mark.parametrize("key", ["", "a$b", 'a"b', "a\\b", "a b", "a\n", "a;b", "ä"])
def test_key_that_nginx_cannot_carry(key: str) -> None:
    with pytest.raises(
        ValueError, match=r"^VLLM_API_KEY \(\d characters, value not shown\) is empty or holds"
    ) as error:
        _nginx.key_include(key)
    assert not key or repr(key) not in str(error.value)


def test_digest_counts_names_and_texts() -> None:
    digests = {
        _nginx.digest(files) for files in ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1"}, {"a": "1", "c": "2"})
    }
    assert len(digests) == 4
    assert _nginx.digest({"a": "1", "b": "2"}) == _nginx.digest({"b": "2", "a": "1"})


def test_place_and_back() -> None:
    files = {"vllm.conf": "include @tree@/x;\nreturn 200 '@digest@';\n"}
    tree = Path("/etc/nginx/vllm/0123456789abcdef")
    placed = _nginx.place(files, tree)
    assert placed == {"vllm.conf": f"include {tree}/x;\nreturn 200 '0123456789abcdef';\n"}
    assert _nginx.unplace(placed["vllm.conf"], tree) == files["vllm.conf"]


def test_new_tree_is_never_one_that_is_there(tmp_path: Path) -> None:
    assert _nginx.new_tree(tmp_path, "abc") == tmp_path / "abc"
    (tmp_path / "abc").mkdir()
    second = _nginx.new_tree(tmp_path, "abc")
    assert second == tmp_path / "abc.2"
    assert _nginx.is_named_for(second, "abc")
    assert not _nginx.is_named_for(second, "ab")


MAIN = """\
include /etc/nginx/modules-enabled/*.conf;
http {
\tinclude mime.types;
    include /etc/nginx/conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
    # include /etc/nginx/conf.d/vllm.conf;
}
"""
ENTRY = Path("/etc/nginx/conf.d/vllm.conf")
STAGED = Path("/etc/nginx/vllm/new/vllm.conf")


def staged(there: dict[str, list[str]], without: list[str] | None = None, main: str = MAIN) -> str:
    return _nginx.staged_main(main, ENTRY, STAGED, without or [], lambda pattern: there.get(pattern, []))


def test_staged_main_on_a_first_run() -> None:
    assert staged({}) == MAIN.replace("/etc/nginx/conf.d/*.conf", str(STAGED))


def test_staged_main_keeps_what_others_have() -> None:
    there = {"/etc/nginx/conf.d/*.conf": ["/etc/nginx/conf.d/a.conf", str(ENTRY)]}
    expected = MAIN.replace(
        "include /etc/nginx/conf.d/*.conf;", f"include /etc/nginx/conf.d/a.conf;\n    include {STAGED};"
    )
    assert staged(there) == expected


def test_staged_main_without_the_default_site() -> None:
    sites = ["/etc/nginx/sites-enabled/default", "/etc/nginx/sites-enabled/shop"]
    text = staged({"/etc/nginx/sites-enabled/*": sites}, without=sites[:1])
    assert "include /etc/nginx/sites-enabled/shop;" in text
    assert "default" not in text


def test_staged_main_needs_an_include() -> None:
    with pytest.raises(ValueError, match="has no line 'include /etc/nginx/conf"):
        staged({}, main="http {\n    include /etc/nginx/conf.d/sub/*.conf;\n}\n")


def test_words_prefer_errors() -> None:
    output = "nginx: [warn] a\nnginx: [emerg] b in /x:1\nnginx: [emerg] b in /x:1\nnginx: configuration test failed\n"
    assert _nginx.words(output) == "nginx: [emerg] b in /x:1"
    assert _nginx.words("odd\n\n") == "odd"
    assert _nginx.words("\n") == "(nothing was said)"


def test_the_line_that_is_refused_is_shown_unless_it_is_secret() -> None:
    files = {"vllm.conf": "one\n  two;\n", "upstream_key.conf": "SECRET\n"}
    assert _nginx.with_lines("[emerg] bad in /t/vllm.conf:2", files) == "[emerg] bad in /t/vllm.conf:2\n  two;"
    assert _nginx.with_lines("[emerg] bad in /t/vllm.conf:9", files) == "[emerg] bad in /t/vllm.conf:9"
    assert "SECRET" not in _nginx.with_lines("[emerg] bad in /t/upstream_key.conf:1", files)


@pytest.mark.parametrize(
    ("complaint", "step"),
    [
        ("[emerg] a duplicate default server for 0.0.0.0:80 in /x:1", "vllm_nginx_default_server: false"),
        ('[emerg] "map_hash_bucket_size" directive is duplicate', "vllm_nginx_map_hash_bucket_size: 0"),
        ("[emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)", "'ss -ltnp' names it"),
        ('[emerg] unknown directive "js_import" in /x:1', "libnginx-mod-http-js"),
        ("[emerg] anything else", "Correct it, and run the play again."),
        ("[emerg] bad in /etc/nginx/vllm/0123456789abcdef/vllm.conf:2\n  bad;", "Correct it, and run the play again."),
        (
            '[emerg] unknown directive "x" in /etc/nginx/conf.d/other.conf:3',
            "/etc/nginx/conf.d/other.conf is none of this role's files.",
        ),
    ],
)
def test_hint(complaint: str, step: str) -> None:
    assert step in _nginx.hint(complaint)
