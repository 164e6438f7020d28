# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The token by which a host asks whether it reaches itself, before anything is ordered."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _certificate
from ansible_collections.gpuops.vllm.plugins.modules import certificate

DOMAIN = "llm.example.com"


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that leads nowhere else."""

    def translate_path(self, path: str) -> str:
        assert self.headers["Host"] == DOMAIN
        return super().translate_path(path.removeprefix("/.well-known/acme-challenge"))

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def port_80(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real server for the tokens, on a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(_certificate, "fetch", partial(_certificate.fetch, port=server.server_port))
    yield
    server.shutdown()
    server.server_close()


def module(says: dict[str, str]) -> Any:
    """A module whose commands say this."""

    def fail_json(**result: Any) -> None:
        raise AssertionError(result["msg"])

    return SimpleNamespace(
        params={"tls_dir": "/nowhere", "domain": DOMAIN},
        run_command=lambda command: (0, says.get(" ".join(command[:3]), ""), ""),
        fail_json=fail_json,
    )


@pytest.mark.usefixtures("port_80")
def test_the_token_of_a_killed_run_goes(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    living = f"vllm-{os.getppid()}-aa"
    for name in (f"vllm-{process.pid}-aa", living, "of-certbot"):
        (tmp_path / name).touch()
    # What /etc/hosts says counts only where no name server knows it.
    says = {"getent -s dns": "127.0.0.1 STREAM x\n", "getent -s files": "127.0.0.9 STREAM x\n"}
    certificate.Certificate(module(says)).fetch_token(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living, "of-certbot"}


@pytest.mark.usefixtures("port_80")
@pytest.mark.parametrize(
    ("says", "fault"),
    [
        ({}, "no name server knows an address of it"),
        (
            {"getent -s dns": "127.0.0.1 STREAM x\n127.0.0.2 STREAM\n", "hostname -I": "10.0.0.1 127.0.0.2 \n"},
            "it leads to 127.0.0.2, which this host has; there port 80: Connection refused",
        ),
    ],
)
def test_a_name_that_leads_elsewhere(tmp_path: Path, says: dict[str, str], fault: str) -> None:
    expected = f"vllm_domain is '{DOMAIN}', and it does not lead back to this host: {fault}. Its DNS record must name"
    with pytest.raises(AssertionError) as caught:
        certificate.Certificate(module(says)).fetch_token(tmp_path)
    assert str(caught.value).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_token(tmp_path: Path, port_80: None) -> None:
    with pytest.raises(OSError, match=r"^answers 404 File not found$"):
        _certificate.fetch("127.0.0.1", DOMAIN, "/.well-known/acme-challenge/none", 5)
