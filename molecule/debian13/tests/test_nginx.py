"""NGINX in its sandbox: what it still can do, how it stops, and what becomes of one that ran before."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from typing import Any

import endpoint
import nginx
import playbook
import pytest

testinfra_hosts = ["ansible://deb13"]
PLAY = "molecule/debian13/files/nginx.yml"
LOG = "/var/log/nginx/vllm_access.log"
SANDBOX = "/etc/systemd/system/nginx.service.d/vllm-sandbox.conf"
# A site of somebody else's, whose certificate is where the sandbox does not let NGINX look.
SITE = (
    "server { listen 8443 ssl; server_name other; ssl_certificate /tmp/other.pem; ssl_certificate_key /tmp/other.pem; }"
)


def ask() -> int:
    return endpoint.http().get(endpoint.url("deb13", "/v1/models"), headers=authorization()).status_code


def authorization() -> dict[str, str]:
    return {"Authorization": f"Bearer {endpoint.KEY.read_text().strip()}"}


def test_it_is_confined_from_its_first_start_on(host: Any) -> None:
    assert nginx.is_confined(host)
    assert nginx.exposure(host) <= 2.8


def test_a_rotated_log_is_left_and_a_new_one_written(host: Any) -> None:
    """As the distribution's logrotate does it."""
    host.check_output("mv %s /root/rotated.log && invoke-rc.d nginx rotate", LOG)
    deadline = time.monotonic() + 5
    while not host.file(LOG).exists and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ask() == 200
    assert json.loads(host.file(LOG).content_string.splitlines()[-1])["status"] == 200


def test_a_stop_waits_for_a_request_longer_than_the_distributions_five_seconds(host: Any) -> None:
    body = json.dumps({"model": "gpt-4", "prompt": "Hi", "max_tokens": 2}).encode()
    trusted = ssl.create_default_context(cafile=str(endpoint.CA))
    connection = HTTPSConnection("deb13.vllm.test", timeout=30, context=trusted)
    connection.putrequest("POST", "/v1/completions")
    for name, value in {
        **authorization(),
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }.items():
        connection.putheader(name, value)
    connection.endheaders(body[:10])
    try:
        host.check_output("systemctl stop --no-block nginx.service")
        time.sleep(6.5)
        assert host.check_output("systemctl show --property=ActiveState --value nginx.service") == "deactivating"
        connection.send(body[10:])
        answer = connection.getresponse()
        assert (answer.status, "choices" in json.loads(answer.read())) == (200, True)
    finally:
        connection.close()
        # Waits for the stop.
        host.check_output("systemctl start nginx.service")
    assert ask() == 200


@pytest.fixture
def running_before(host: Any) -> Iterator[None]:
    """NGINX as it runs on a host where it was before us, with a site that the sandbox would break."""
    host.check_output("rm %s && systemctl daemon-reload", SANDBOX)
    host.check_output(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout /tmp/key.pem -out /tmp/crt.pem"
    )
    host.check_output("cat /tmp/key.pem /tmp/crt.pem > /tmp/other.pem")
    host.check_output("echo %s > /etc/nginx/conf.d/other.conf && systemctl restart nginx.service", SITE)
    yield
    host.check_output("rm -f /etc/nginx/conf.d/other.conf /tmp/key.pem /tmp/crt.pem /tmp/other.pem")


@pytest.mark.usefixtures("running_before")
def test_a_site_that_the_sandbox_would_break_does_not_wait_for_a_reboot_to_be_down(host: Any) -> None:
    pid = host.check_output("systemctl show --property=MainPID --value nginx.service")
    done = playbook.run(PLAY, hosts=["deb13"])
    assert 'cannot load certificate "/tmp/other.pem"' in done.refused["deb13"]
    # Nothing has changed for the next start.
    assert not host.file(SANDBOX).exists
    host.check_output("rm /etc/nginx/conf.d/other.conf && systemctl reload nginx.service")
    done = playbook.run(PLAY, hosts=["deb13"])
    assert (done.status, done.changed) == (0, {"deb13": 1}), done.said
    assert "is in force from its next start" in " ".join(done.said.split())
    assert host.check_output("systemctl show --property=MainPID --value nginx.service") == pid
    assert not nginx.is_confined(host)
    host.check_output("systemctl restart nginx.service")
    assert nginx.is_confined(host)
    done = playbook.run(PLAY, hosts=["deb13"])
    assert (done.status, done.changed, "is in force" in done.said) == (0, {"deb13": 0}, False), done.said
