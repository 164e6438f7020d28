# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine inherits from the control host's environment: pip's settings, certificate authorities, name servers.

All of it is optional; an ordinary machine sets none of it.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .model import LOCAL
from .system import LabError

SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
# Settings that say where packages come from; the rest (cache, colours, user installs) is this machine's own business.
PIP_LISTS = ("find-links", "extra-index-url", "trusted-host", "constraint")
PIP_VALUES = ("index-url", "no-index", "proxy", "timeout", "retries", "disable-pip-version-check")


def pip_settings(environment: Mapping[str, str], config_texts: list[str]) -> dict[str, list[str]]:
    """pip's settings as pip itself would see them: the environment over the later file over the earlier one.

    Returns:
        For each setting its values, in order; those that hold one value have a list of one.
    """
    found: dict[str, list[str]] = {}
    for text in config_texts:
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(text)
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key.replace("_", "-"): value.split() for key, value in parser.items(section)}
    for name, value in environment.items():
        if name.startswith("PIP_"):
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value.split()
    wanted = (*PIP_LISTS, *PIP_VALUES)
    return {key: found[key] for key in wanted if found.get(key)}


def pip_config_texts(environment: Mapping[str, str]) -> list[str]:
    """The pip configuration files of the control host, the weakest first."""
    named = environment.get("PIP_CONFIG_FILE")
    paths = [
        Path("/etc/pip.conf"),
        Path.home() / ".pip/pip.conf",
        Path.home() / ".config/pip/pip.conf",
        *([Path(named)] if named else []),
    ]
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]


def render_pip_conf(settings: Mapping[str, list[str]]) -> str:
    """A machine's /etc/pip.conf. Certificates are checked against the machine's own bundle, which knows ours."""
    lines = ["[global]", f"cert = {SYSTEM_BUNDLE}"]
    for key, values in settings.items():
        lines.append(f"{key} = {values[0]}" if len(values) == 1 else "\n    ".join([f"{key} =", *values]))
    return "\n".join(lines) + "\n"


def local_paths(settings: Mapping[str, list[str]]) -> list[Path]:
    """The folders and files of the control host that the pip settings name, for the machine to see at the same path.

    A folder `simple` is an index; its pages point to files beside it, so its parent is what is needed.
    """
    found: dict[Path, None] = {}
    for key in ("find-links", "index-url", "extra-index-url", "constraint"):
        for value in settings.get(key, []):
            parts = urlsplit(value)
            if parts.scheme not in {"", "file"}:
                continue
            path = Path(unquote(parts.path))
            path = path.parent if path.name == "simple" else path
            if path.is_absolute() and path != Path("/"):
                found[path] = None
    return list(found)


def authorities(environment: Mapping[str, str]) -> list[str]:
    """The certificate authorities, in PEM, that the control host trusts beyond what Debian ships."""
    paths = sorted(Path("/usr/local/share/ca-certificates").rglob("*.crt"))
    for variable in BUNDLE_VARIABLES:
        path = Path(environment.get(variable) or SYSTEM_BUNDLE)
        # A shell that has read .demo/env names the lab's own root: the machines must not trust that one.
        if path.is_file() and path.resolve() != SYSTEM_BUNDLE.resolve() and LOCAL not in path.resolve().parents:
            paths.append(path)
    found: dict[str, None] = {}
    for path in paths:
        for certificate in CERTIFICATE.findall(path.read_text(encoding="utf-8", errors="replace")):
            found[certificate.rstrip() + "\n"] = None
    return list(found)


def name_servers(resolv_conf: str, upstream: str) -> list[str]:
    """The name servers a machine can use: the control host's, or those behind its resolver on the loopback.

    Args:
        resolv_conf: Text of /etc/resolv.conf.
        upstream: Text of systemd-resolved's own list, empty without it.

    Raises:
        LabError: Every name server listens on the control host's loopback only.
    """
    for text in (resolv_conf, upstream):
        servers = re.findall(r"^nameserver\s+(\S+)", text, re.MULTILINE)
        usable = [server for server in servers if not server.startswith("127.") and server != "::1"]
        if usable:
            return usable
    raise LabError(
        "/etc/resolv.conf names no server beyond this machine's loopback: the lab's machines cannot resolve names"
    )
