# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module keeps on a host beside the certificate: the credentials of a DNS provider, and the timer's second try."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.modules import certificate

SECRET = "SECRET-0123456789"
TEXT = f'dns_rfc2136_port = "53"\ndns_rfc2136_secret = "{SECRET}"\n'

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The module with these parameters, and its files in a folder of the test's."""
    monkeypatch.setattr(certificate, "CREDENTIALS", tmp_path / "vllm-dns.ini")
    monkeypatch.setattr(certificate, "DROP_IN", tmp_path / "certbot.service.d" / "vllm.conf")
    monkeypatch.setattr(certificate, "RENEWAL", tmp_path / "renewal" / "vllm.conf")
    ran: list[list[str]] = []

    def run_command(command: list[str], **_options: Any) -> tuple[int, str, str]:
        ran.append(command)
        return 0, "", ""

    def made(check_mode: bool = False, **params: str) -> certificate.Certificate:
        defaults = {"tls_dir": "/etc/vllm/tls", "domain": "x", "hook": "/hook", "dns_plugin": "", "dns_credentials": ""}
        module: Any = SimpleNamespace(
            params={**defaults, **params}, check_mode=check_mode, run_command=run_command, ran=ran, no_log_values=set()
        )
        return certificate.Certificate(module)

    return made


def test_the_credentials_are_for_root_alone_and_go_with_their_use(make: Make) -> None:
    wanted = {"dns_plugin": "rfc2136", "dns_credentials": TEXT}
    first, again = make(**wanted), make(**wanted)
    first.keep_credentials()
    again.keep_credentials()
    assert (first.actions, again.actions) == ([f"wrote the DNS credentials ({certificate.CREDENTIALS})"], [])
    assert certificate.CREDENTIALS.read_text() == TEXT
    assert stat.S_IMODE(certificate.CREDENTIALS.stat().st_mode) == 0o600
    # What a provider's words may quote; not the port, which stands in many words.
    assert first.module.no_log_values == {SECRET}
    # The text of another challenge is not kept.
    other = make(dns_credentials=TEXT)
    other.keep_credentials()
    assert other.actions == [f"removed the DNS credentials ({certificate.CREDENTIALS})"]
    assert not certificate.CREDENTIALS.exists()


def test_credentials_that_others_can_read_are_written_again(make: Make) -> None:
    wanted = {"dns_plugin": "rfc2136", "dns_credentials": TEXT}
    make(**wanted).keep_credentials()
    certificate.CREDENTIALS.chmod(0o640)
    make(**wanted).keep_credentials()
    assert stat.S_IMODE(certificate.CREDENTIALS.stat().st_mode) == 0o600


def test_check_mode_keeps_nothing(make: Make) -> None:
    foreseen = make(check_mode=True, dns_plugin="rfc2136", dns_credentials=TEXT)
    foreseen.keep_credentials()
    foreseen.retry(wanted=True)
    assert len(foreseen.actions) == 2
    assert not certificate.CREDENTIALS.exists()
    assert not certificate.DROP_IN.exists()


def test_the_timers_second_try_comes_and_goes(make: Make) -> None:
    first, again, off, still_off = (make() for _each in range(4))
    first.retry(wanted=True)
    again.retry(wanted=True)
    assert "ExecStopPost=-/hook --tls-dir /etc/vllm/tls --if-new /etc/letsencrypt/live/vllm\n" in (
        certificate.DROP_IN.read_text()
    )
    off.retry(wanted=False)
    still_off.retry(wanted=False)
    assert [len(one.actions) for one in (first, again, off, still_off)] == [1, 0, 1, 0]
    assert first.module.ran == [["systemctl", "daemon-reload"]] * 2
    assert not certificate.DROP_IN.exists()


def test_a_certificate_that_an_uninstall_has_kept_is_renewed_again(make: Make) -> None:
    certificate.RENEWAL.parent.mkdir()
    certificate.RENEWAL.write_text("[renewalparams]\nautorenew = False\nserver = https://acme.example.com/dir\n")
    certificate.RENEWAL.chmod(0o640)
    told, first, again = make(check_mode=True), make(), make()
    told.renew()
    assert "autorenew" in certificate.RENEWAL.read_text()
    first.renew()
    again.renew()
    assert (told.actions, first.actions, again.actions) == (
        first.actions,
        ["had certbot renew the certificate again"],
        [],
    )
    assert certificate.RENEWAL.read_text() == "[renewalparams]\nserver = https://acme.example.com/dir\n"
    assert stat.S_IMODE(certificate.RENEWAL.stat().st_mode) == 0o640
    certificate.RENEWAL.unlink()
    again.renew()
    assert again.actions == []
