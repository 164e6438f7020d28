# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _certificate, _systemd

RENEWAL = """\
# renew_before_expiry = 30 days
version = 2.1.0
cert = /etc/letsencrypt/live/vllm/cert.pem

[renewalparams]
authenticator = webroot
server = https://acme.example.com/dir
webroot_path = /var/www/vllm-acme,
[[webroot_map]]
llm.example.com = /var/www/vllm-acme
"""
OPENSSL = """\
notBefore=Nov  1 00:00:00 2026 GMT
notAfter=Jan 30 00:00:00 2027 GMT
X509v3 Subject Alternative Name: critical
    DNS:llm.example.com
"""
BEGINS, DAY = 1793491200.0, 86400.0
LINEAGE = _certificate.Lineage(
    "https://acme.example.com/dir", "/var/www/vllm-acme", ("llm.example.com",), BEGINS, BEGINS + 90 * DAY
)


def test_parse_lineage() -> None:
    assert _certificate.parse_lineage(RENEWAL, OPENSSL) == LINEAGE
    with pytest.raises(ValueError, match="openssl names no dates"):
        _certificate.parse_lineage(RENEWAL, "unable to load certificate")


def test_certbot_is_told_not_to_renew_and_again_to() -> None:
    off = _certificate.renewed(RENEWAL, wanted=False)
    assert off == RENEWAL.replace("[renewalparams]\n", "[renewalparams]\nautorenew = False\n")
    assert _certificate.renewed(off, wanted=False) == off
    assert _certificate.renewed(off, wanted=True) == RENEWAL
    # What certbot itself may write stays as long as it means the same.
    own = RENEWAL.replace("[renewalparams]\n", "[renewalparams]\nautorenew = True\n")
    assert _certificate.renewed(own, wanted=True) == own
    assert _certificate.renewed(own, wanted=False) == off
    assert _certificate.parse_lineage(off, OPENSSL) == LINEAGE


@pytest.mark.parametrize(
    ("found", "domain", "server", "webroot", "days", "reason"),
    [
        (LINEAGE, "llm.example.com", LINEAGE.server, LINEAGE.through, 1, ""),
        # The timer renews from the 60th day on, and is left to it for half of what is left then.
        (LINEAGE, "llm.example.com", LINEAGE.server, LINEAGE.through, 74, ""),
        (
            LINEAGE,
            "llm.example.com",
            LINEAGE.server,
            LINEAGE.through,
            76,
            "the one at hand expires in 336 h and was not renewed",
        ),
        (LINEAGE, "llm.example.com", LINEAGE.server, LINEAGE.through, 90, "the one at hand has expired"),
        (None, "llm.example.com", LINEAGE.server, LINEAGE.through, 1, "there is none yet"),
        (LINEAGE, "new.example.com", LINEAGE.server, LINEAGE.through, 1, "the one at hand is for llm.example.com"),
        (
            LINEAGE,
            "llm.example.com",
            "https://other/dir",
            LINEAGE.through,
            1,
            "the one at hand is from https://acme.example.com/dir",
        ),
        (
            LINEAGE,
            "llm.example.com",
            LINEAGE.server,
            "/srv/acme",
            1,
            "the one at hand renews through /var/www/vllm-acme",
        ),
    ],
)
def test_order_reason(
    found: _certificate.Lineage | None, domain: str, server: str, webroot: str, days: int, reason: str
) -> None:
    assert _certificate.order_reason(found, domain, server, webroot, BEGINS + days * DAY) == reason


def test_order_command() -> None:
    order = {"domain": "llm.example.com", "server": "https://a/dir", "webroot": "/w", "email": "ops@example.com"}
    first = _certificate.order_command(order, "vllm", "/hook", replace=False)
    assert first[:2] == ["certbot", "certonly"]
    assert first[-5:] == ["--webroot", "--webroot-path", "/w", "--email", "ops@example.com"]
    assert "--force-renewal" not in first
    again = _certificate.order_command({**order, "email": ""}, "vllm", "/hook", replace=True)
    assert again[-3:] == ["--register-unsafely-without-email", "--force-renewal", "--renew-with-new-domains"]


@pytest.mark.parametrize(("seconds", "more"), [("0", []), ("30", ["--dns-rfc2136-propagation-seconds", "30"])])
def test_order_command_by_dns(seconds: str, more: list[str]) -> None:
    order = {"domain": "llm.example.com", "server": "https://a/dir", "webroot": "/w", "email": "ops@example.com"}
    order |= {"dns_plugin": "rfc2136", "dns_credentials": "/etc/letsencrypt/vllm-dns.ini", "dns_propagation_s": seconds}
    command = _certificate.order_command(order, "vllm", "/hook", replace=False)
    by_dns = ["--dns-rfc2136", "--dns-rfc2136-credentials", "/etc/letsencrypt/vllm-dns.ini", *more]
    assert command[command.index("/hook") + 1 : -2] == by_dns


def test_a_lineage_by_dns() -> None:
    renewal = RENEWAL.replace("webroot\n", "dns-rfc2136\n", 1).replace("webroot_path = /var/www/vllm-acme,\n", "")
    found = _certificate.parse_lineage(renewal, OPENSSL)
    assert found.through == "dns-rfc2136"
    reason = _certificate.order_reason(found, "llm.example.com", LINEAGE.server, "/var/www/vllm-acme", BEGINS)
    assert reason == "the one at hand renews through dns-rfc2136"


GETENT = """\
10.0.0.1        STREAM llm.example.com
10.0.0.1        DGRAM
2001:db8::1     STREAM
2001:db8::1     DGRAM
"""
REFUSED, NO_WAY = (
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
)


@pytest.mark.parametrize(
    ("getent", "said", "fault"),
    [
        (GETENT, {"10.0.0.1": "token", "2001:db8::1": "token"}, ""),
        (GETENT, {"10.0.0.1": "token", "2001:db8::1": NO_WAY}, ""),
        ("203.0.113.7 STREAM x\n", {"203.0.113.7": "token"}, ""),
        ("", {}, "no name server knows an address of it"),
        (GETENT, {"10.0.0.1": NO_WAY}, "it leads to 10.0.0.1, which this host has; there port 80: Network is unreachable"),
        ("2001:db8::1 STREAM x\n", {"2001:db8::1": NO_WAY}, "it leads to 2001:db8::1, where this host has no way to"),
        (
            GETENT,
            {"10.0.0.1": "token", "2001:db8::1": "Welcome"},
            "it leads to 2001:db8::1, and this host has 10.0.0.1, fe80::1; there port 80 answers with something else ('Welcome')",
        ),
        ("10.0.0.9 STREAM x\n", {"10.0.0.9": REFUSED}, "it leads to 10.0.0.9, and this host has 10.0.0.1, fe80::1; there port 80: Connection refused"),
        (GETENT, {"10.0.0.1": REFUSED}, "it leads to 10.0.0.1, which this host has; there port 80: Connection refused"),
    ],
)  # fmt: skip
def test_whether_a_name_leads_here(getent: str, said: dict[str, str | OSError], fault: str) -> None:
    def ask(address: str) -> str:
        answer = said[address]
        if isinstance(answer, OSError):
            raise answer
        return answer

    found = _certificate.addresses(getent)
    assert _certificate.way_fault(found, ["10.0.0.1", "fe80::1"], "token", ask) == fault


def test_placeholder_is_made_once_and_for_its_domain(tmp_path: Path) -> None:
    assert _certificate.needs_placeholder(tmp_path, "llm.example.com")
    _certificate.make_placeholder(tmp_path, "llm.example.com", _systemd.run)
    assert not _certificate.needs_placeholder(tmp_path, "llm.example.com")
    assert _certificate.needs_placeholder(tmp_path, "new.example.com")
    current = tmp_path / "current"
    assert current.readlink() == Path("placeholder-llm.example.com")
    assert (current / "privkey.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in current.iterdir()) == ["fullchain.pem", "privkey.pem"]
    query = [
        "openssl",
        "x509",
        "-noout",
        "-ext",
        "subjectAltName,basicConstraints",
        "-in",
        str(current / "fullchain.pem"),
    ]
    text = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    assert "DNS:llm.example.com" in text
    assert "CA:FALSE" in text
    assert _certificate.on_disk(tmp_path)[:1] == b"\x30"


def test_a_certificate_that_is_no_placeholder_is_left(tmp_path: Path) -> None:
    _certificate.make_placeholder(tmp_path, "old.example.com", _systemd.run)
    (tmp_path / "placeholder-old.example.com").rename(tmp_path / "0123456789abcdef")
    _certificate.flip(tmp_path / "current", "0123456789abcdef")
    assert not _certificate.needs_placeholder(tmp_path, "llm.example.com")
    (tmp_path / "current" / "privkey.pem").unlink()
    assert _certificate.needs_placeholder(tmp_path, "llm.example.com")


def test_openssl_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"could not make a self-signed certificate for x\.y: no entropy"):
        _certificate.make_placeholder(tmp_path, "x.y", lambda argv: (1, "", "no entropy\n"))


def test_the_authoritys_words_are_found_in_certbots_log() -> None:
    refused = '{\n   "type": "urn:ietf:params:acme:error:badNonce",\n   "detail": "JWS has an invalid \\"nonce\\"",\n   "status": 400\n}'
    log = f"DEBUG:acme.client:Received response:\nHTTP 400\n{refused}\nDEBUG: again\n{refused}\nAttributeError: can't set attribute\n"
    assert _certificate.authority_errors(log) == ['badNonce: JWS has an invalid \\"nonce\\"']
    assert _certificate.authority_errors("Received response:\nHTTP 200\n") == []
