# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proxy speaks, by real handshakes and in the eyes of others' scanners."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway as harness
import pytest

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
PROFILES = {"intermediate": ["1.2", "1.3"], "modern": ["1.3"]}
SCANNERS = harness.REPO / ".venv-scanners" / "bin"

scanned = pytest.mark.skipif(
    not (SCANNERS / "sslyze").exists(), reason="no scanners here: `make .venv-scanners/.made` installs them"
)


@pytest.fixture(scope="module")
def gateways(make_gateway: Callable[..., Any]) -> dict[str, Any]:
    """One for each profile."""
    return {
        profile: make_gateway({"llama": (["llama-3"], 2), "qwen": (["org/qwen"], 1)}, vllm_nginx_tls_profile=profile)
        for profile in PROFILES
    }


def spoken(gateway: Any, version: ssl.TLSVersion, name: str = harness.DOMAIN) -> str:
    """The version that a client who speaks only this one agrees on with the proxy; ``""`` where they do not agree."""
    context = ssl.create_default_context(cafile=str(gateway.root / "fullchain.pem"))
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", gateway.https_port), 10) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=name) as tls:
                return str(tls.version()).removeprefix("TLSv")
        except ssl.SSLError as error:
            assert error.reason == "TLSV1_ALERT_PROTOCOL_VERSION", error
            return ""


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_spoken(gateways: dict[str, Any], profile: str) -> None:
    agreed = {name: spoken(gateways[profile], version) for name, version in VERSIONS.items()}
    assert [name for name in VERSIONS if agreed[name] == name] == PROFILES[profile]


def complaints(gateway: Any, profile: str) -> list[str]:
    """What sslyze says against the proxy, measured by Mozilla's guideline."""
    target = f"127.0.0.1:{gateway.https_port}"
    command = [str(SCANNERS / "sslyze"), f"--mozilla_config={profile}", "--sni", harness.DOMAIN, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    verdict = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")[2]
    assert target in verdict, done.stdout + done.stderr
    return re.findall(r"^ +\* (.*)$", verdict, re.MULTILINE)


@scanned
@pytest.mark.parametrize("profile", PROFILES)
def test_sslyze_finds_nothing_but_a_certificate_of_the_tests(gateways: dict[str, Any], profile: str) -> None:
    nobody = f"certificate_path_validation: Certificate path validation failed for CN={harness.DOMAIN}."
    assert complaints(gateways[profile], profile) == [nobody]


@scanned
def test_sslyze_finds_what_is_weaker(gateways: dict[str, Any]) -> None:
    """Else it might not look."""
    said = complaints(gateways["intermediate"], "modern")
    assert [line for line in said if line.startswith("tls_versions: TLS versions {'TLSv1.2'} are supported")] != []


@scanned
def test_gixy_finds_nothing(gateways: dict[str, Any], tmp_path: Path) -> None:
    """In the configuration as it is on a host, with Strict-Transport-Security for as long as the guideline wants it."""
    gateway = gateways["intermediate"]
    main = (gateway.root / "nginx.conf").read_text()
    (tree,) = re.findall(r"include (\S+)/vllm\.conf;", main)
    places = {
        f"127.0.0.1:{gateway.http_port}": "80",
        f"127.0.0.1:{gateway.https_port}": "443",
        f"127.0.0.1:{gateway.status_port}": "127.0.0.1:8790",
        tree: str(tmp_path),
        "max-age=86400": "max-age=63072000",
    }
    files = {"nginx.conf": main, **{path.name: path.read_text() for path in Path(tree).iterdir()}}
    for name, text in files.items():
        (tmp_path / name).write_text(re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], text))
    command = [str(SCANNERS / "gixy"), "--format=json", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert [(one["plugin"], one["reason"], one["config"]) for one in json.loads(done.stdout)] == []
