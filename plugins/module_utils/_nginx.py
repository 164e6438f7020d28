# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NGINX's configuration as text: fitted to the NGINX at hand, digested, and tested before it is live."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What stands in a file for the folder that it will lie in, and for the digest of the whole configuration.
TREE, DIGEST = "@tree@", "@digest@"

#: Files that the host itself adds, since what is in them must not pass through Ansible or its diff.
KEY_FILE, CLIENTS_FILE = "upstream_key.conf", "clients.conf"
SECRET_FILES = frozenset({KEY_FILE, CLIENTS_FILE})

_VERSION = re.compile(r"nginx version: nginx/(\d+)\.(\d+)\.(\d+)")
_OPENSSL = re.compile(r"(?:built|running) with OpenSSL (\d+)\.(\d+)")
_INCLUDE = re.compile(r"^([ \t]*)include[ \t]+(\S+?)[ \t]*;", re.MULTILINE)
# In a double-quoted string of NGINX a dollar begins a variable, and there is no escape for it.
_CARRIED_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)


@dataclass(frozen=True)
class Build:
    """What decides how a configuration has to be written."""

    version: tuple[int, int, int]
    openssl: tuple[int, int]
    ipv6: bool


def parse_build(text: str, ipv6: bool) -> Build:
    """Read ``nginx -V``. Raises ValueError where no version is in it."""
    version = _VERSION.search(text)
    if not version:
        raise ValueError(f"nginx -V does not name its version: {text.strip()[:200]!r}")
    openssl = _OPENSSL.findall(text)
    major, minor = openssl[-1] if openssl else ("0", "0")
    first, second, third = (int(number) for number in version.groups())
    return Build((first, second, third), (int(major), int(minor)), ipv6)


def adapt(text: str, build: Build) -> str:
    """Fit a file, written for NGINX 1.22 and OpenSSL 3.5 on a host with IPv6, to what the host has."""
    if not build.ipv6:
        text = re.sub(r"^[ \t]*listen \[::\].*\n", "", text, flags=re.MULTILINE)
    if build.version >= (1, 25, 1):
        # HTTP/2 moved from the socket to the server: once in each server that had it.
        text = re.sub(r"^([ \t]*)(listen (?!\[)[^;]*) http2;", r"\1http2 on;\n\1\2;", text, flags=re.MULTILINE)
        text = re.sub(r"^([ \t]*listen [^;]*) http2;", r"\1;", text, flags=re.MULTILINE)
    if build.openssl < (3, 5):
        # An unknown group keeps NGINX from starting.
        text = text.replace("X25519MLKEM768:", "")
    return text


def key_include(key: str) -> str:
    """The line that puts vLLM's own key on what goes upstream. Raises ValueError, without the key, if it cannot."""
    if not _CARRIED_KEY.fullmatch(key):
        raise ValueError(
            f"VLLM_API_KEY ({len(key)} characters, value not shown) is empty or holds a character that an NGINX file"
            " cannot carry: needs letters, digits and . _ ~ + / = - only"
        )
    return f'proxy_set_header Authorization "Bearer {key}";\n'


def digest(files: Mapping[str, str]) -> str:
    """Tells one configuration from another: 16 hex digits over every file's name and text."""
    state = hashlib.sha256()
    for name, text in sorted(files.items()):
        state.update(f"{name}\0{text}\0".encode())
    return state.hexdigest()[:16]


def place(files: Mapping[str, str], tree: Path) -> dict[str, str]:
    """Return the files of a configuration as they stand in the folder ``tree``, which is named by their digest."""
    return {path: text.replace(TREE, str(tree)).replace(DIGEST, tree.name) for path, text in files.items()}


def is_named_for(tree: Path, wanted: str) -> bool:
    """Whether a folder is the first or a later one (``DIGEST.2``) of this digest."""
    return tree.name.partition(".")[0] == wanted


def new_tree(root: Path, wanted: str) -> Path:
    """A folder that is not there yet. A later one of the same digest replaces files that somebody has changed by hand."""
    tree, number = root / wanted, 1
    while tree.exists():
        number += 1
        tree = root / f"{wanted}.{number}"
    return tree


def unplace(text: str, tree: Path) -> str:
    """Undo `place`, so that two configurations differ only where they really do."""
    return text.replace(str(tree), TREE).replace(tree.name, DIGEST)


def staged_main(
    main: str, entry: Path, staged: Path, without: Collection[str], expand: Callable[[str], list[str]]
) -> str:
    """Return the text of ``nginx.conf`` as it would read with ``staged`` in the place of ``entry``.

    The includes that reach ``entry`` (there or not) or a file in ``without`` are written out, all else stays. ``expand``
    lists the files that match a pattern. Raises ValueError if no include reaches ``entry``.
    """
    reached = False

    def written_out(match: re.Match[str]) -> str:
        nonlocal reached
        indent, pattern = match.group(1), match.group(2).strip("\"'")
        pattern = str(entry.parent.parent / pattern)
        files = [path for path in expand(pattern) if path != str(entry) and path not in without]
        if fnmatch.fnmatch(str(entry), pattern) and Path(pattern).parent == entry.parent:
            reached = True
            files.append(str(staged))
        elif len(files) == len(expand(pattern)):
            return match.group(0)
        return "\n".join(f"{indent}include {path};" for path in files)

    text = _INCLUDE.sub(written_out, main)
    if not reached:
        raise ValueError(f"nginx.conf has no line 'include {entry.parent}/*.conf;' in its http block")
    return text


def words(output: str) -> str:
    """NGINX's own complaints out of what a command printed: the errors, else all of it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\[(emerg|alert|crit|error)\]", line)]
    return "\n".join(dict.fromkeys(errors or lines)) or "(nothing was said)"


def with_lines(complaint: str, files: Mapping[str, str]) -> str:
    """Add the line of each file that a complaint names, because a refused configuration is taken away again."""
    said = []
    for line in complaint.splitlines():
        said.append(line)
        match = re.search(r"/([\w.-]+):(\d+)$", line)
        if match and match.group(1) in files and match.group(1) not in SECRET_FILES:
            text = files[match.group(1)].splitlines()
            said += [f"  {text[int(match.group(2)) - 1].strip()}"] if int(match.group(2)) <= len(text) else []
    return "\n".join(said)


def confinement(sandbox: str, later: Iterable[str]) -> list[str]:
    """The sandbox's settings ``KEY=value``, as systemd would have them: those of our drop-in, then what later ones say of the same keys."""
    own = _settings(sandbox)
    keys = {setting.partition("=")[0] for setting in own}
    return own + [line for text in later for line in _settings(text) if line.partition("=")[0] in keys]


def _settings(drop_in: str) -> list[str]:
    found, section = [], ""
    for line in map(str.strip, drop_in.splitlines()):
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith(("#", ";")):
            key, _equals, value = line.partition("=")
            found.append(f"{key.strip()}={value.strip()}")
    return found


def has_own_tmp(settings: Sequence[str]) -> bool:
    """Whether ``PrivateTmp`` is on at last."""
    values = [value for key, _equals, value in (setting.partition("=") for setting in settings) if key == "PrivateTmp"]
    return bool(values) and values[-1].lower() not in ("no", "false", "off", "0", "")


def lines_with_tmp(dump: str) -> list[str]:
    """Lines of ``nginx -T`` that lead into /tmp or /var/tmp, each with its file."""
    found, file = [], ""
    for line in map(str.strip, dump.splitlines()):
        if named := re.fullmatch(r"# configuration file (.+):", line):
            file = named[1]
        elif not line.startswith("#") and re.search(r"""(?:^|[\s"':=])/(?:var/)?tmp(?:[/\s;"']|$)""", line):
            found.append(f"  {file}: {line}")
    return found


def hint(complaint: str) -> str:
    """The next step, where a complaint of NGINX's is a known one."""
    if "duplicate default server" in complaint:
        return (
            "Another vhost of this host claims default_server on port 80 or 443: 'grep -r default_server /etc/nginx' names"
            " it. Take default_server out of it, or leave it there by vllm_nginx_default_server: false."
        )
    if "map_hash_bucket_size" in complaint and "duplicate" in complaint:
        return (
            "This host sets map_hash_bucket_size already: leave the line out by vllm_nginx_map_hash_bucket_size: 0 (the"
            " host's own must be 128 or more)."
        )
    if "Address already in use" in complaint or re.search(r"bind\(\) to .* failed", complaint):
        return "Another program holds the port: 'ss -ltnp' names it. Stop it, and run the play again."
    if "js_import" in complaint or "js_set" in complaint:
        return "The module libnginx-mod-http-js is not loaded: look in /etc/nginx/modules-enabled/."
    named = re.search(r" in (/\S+):\d+$", complaint, re.MULTILINE)
    if named and not named[1].startswith("/etc/nginx/vllm/"):
        return (
            f"{named[1]} is none of this role's files. Correct it or move it out of /etc/nginx, and run the play again."
        )
    return "Correct it, and run the play again."
