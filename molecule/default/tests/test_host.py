"""What stands on the host, asserted where it lives: the account, the process, the unit's properties, the sockets."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import endpoint
import nginx
import pytest
import scan
from vllm_lab.model import BRIDGE, MACHINES

testinfra_hosts = ["ansible://gpu01"]
UNIT = "vllm@demo-0.service"


@pytest.fixture(scope="module", autouse=True)
def answering() -> None:
    endpoint.wait_until_it_answers("gpu01", limit_s=180)


def properties(host: Any, unit: str = UNIT) -> dict[str, str]:
    lines = host.check_output("systemctl show --no-pager %s", unit).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def engine_key(host: Any) -> str:
    found = re.search(r'^VLLM_API_KEY="(.+)"$', host.file("/etc/vllm/secrets").content_string, re.MULTILINE)
    assert found, "no engine key in /etc/vllm/secrets"
    return found[1]


def test_the_account_can_do_nothing_but_serve(host: Any) -> None:
    user = host.user("vllm")
    assert (user.shell, user.home) == ("/usr/sbin/nologin", "/nonexistent")
    assert user.uid < 1000
    assert {"render", "video"} <= set(user.groups)
    assert not host.file("/nonexistent").exists


def test_the_weights_directory_is_the_accounts_and_the_engines_hub_home(host: Any) -> None:
    assert host.file("/var/lib/vllm/weights").user == "vllm"
    pid = properties(host)["MainPID"]
    assert "HF_HOME=/var/lib/vllm/weights" in host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pid).splitlines()


def test_the_unit_is_what_an_operator_expects(host: Any) -> None:
    found = properties(host)
    wanted = {
        "Type": "notify",
        "User": "vllm",
        "Restart": "always",
        "RestartUSec": "10s",
        "TimeoutStartUSec": "1h",
        "StandardOutput": "journal",
        "UnitFileState": "enabled",
        "ActiveState": "active",
        "NRestarts": "0",
        "LimitCORE": "0",
        "KillMode": "mixed",
    }
    assert {key: found[key] for key in wanted} == wanted


def test_the_sandbox_is_tight(host: Any) -> None:
    # 9.4 is what a plain unit gets; 1.6 is the goal.
    level = re.search(
        r"exposure level for \S+: (\d+\.\d)", host.check_output("systemd-analyze security --no-pager %s", UNIT)
    )
    assert level and float(level[1]) <= 1.6, level


def test_it_is_the_static_launcher_that_runs_as_vllm(host: Any) -> None:
    main = host.process.get(pid=int(properties(host)["MainPID"]))
    assert main.user == "vllm"
    assert "/usr/local/bin/vllm-start demo-0" in main.args


def test_what_is_ordered_after_the_target_waits_for_the_model(host: Any) -> None:
    at_that_time = json.loads(host.file("/run/after-vllm.json").content_string)
    assert at_that_time["state"] == "serving"
    later, ready = (
        int(properties(host, unit)[stamp])
        for unit, stamp in (
            ("after-vllm.service", "ExecMainStartTimestampMonotonic"),
            (UNIT, "ActiveEnterTimestampMonotonic"),
        )
    )
    assert later >= ready > int(properties(host)["InactiveExitTimestampMonotonic"])


def test_the_secrets_are_roots_alone(host: Any) -> None:
    file = host.file("/etc/vllm/secrets")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    assert len(engine_key(host)) >= 32


@pytest.fixture(scope="module")
def patterns(host: Any) -> Iterator[str]:
    """A file of root's on the machine with every secret, for grep."""
    path = "/root/.secrets-to-look-for"
    client_key = endpoint.KEY.read_text().strip()
    host.check_output(f"(umask 077; printf '%s\\n' {engine_key(host)} {client_key} > {path})")
    yield path
    host.check_output(f"rm {path}")


@pytest.mark.parametrize(
    "command",
    [
        "systemctl show --no-pager vllm@demo-0.service nginx.service",
        "systemctl cat --no-pager vllm@demo-0.service",
        "cat /proc/[0-9]*/cmdline",
        "cat /var/log/nginx/*.log",
        "find / -xdev -type f -perm /o=r -size -200k -newer /etc/hostname -not -path '/proc/*' -exec cat {} +",
    ],
)
def test_no_secret_shows(host: Any, patterns: str, command: str) -> None:
    script = f"{command} > /root/.shown 2>/dev/null; wc -c < /root/.shown; grep -acF -f {patterns} /root/.shown; rm /root/.shown"
    size, leaks = host.run(f"(umask 077; {script})").stdout.split()
    assert int(size) > 100
    assert leaks == "0"


def test_the_journal_holds_no_secret(host: Any) -> None:
    said = host.check_output("journalctl --no-pager --unit='vllm@*' --unit=nginx --unit=certbot")
    assert len(said) > 100
    for secret in (engine_key(host), endpoint.KEY.read_text().strip()):
        assert secret not in said


ASK = """
import sys, urllib.error, urllib.request
key = sys.stdin.read().strip()
request = urllib.request.Request("http://127.0.0.1:8000/v1/models", headers={"Authorization": "Bearer " + key})
try:
    print(urllib.request.urlopen(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_the_engine_wants_its_own_key_and_no_client_has_it(host: Any) -> None:
    keys = {engine_key(host): "200", endpoint.KEY.read_text().strip(): "401", "": "401"}
    for key, status in keys.items():
        assert host.check_output("printf %%s %s | python3 -c %s", key, ASK) == status


def test_only_ssh_and_the_proxy_listen_to_the_world(host: Any) -> None:
    listening = host.check_output("ss -Hltn").splitlines()
    world = {
        line.split()[3].rsplit(":", 1)[1] for line in listening if not line.split()[3].startswith(("127.", "[::1]"))
    }
    assert world == {"22", "80", "443"}


def test_another_machine_reaches_ssh_http_and_https_and_nothing_else(host: Any) -> None:
    """Without a firewall: the engine and the loopback ports of the proxy are not there for others."""
    own = json.loads(host.check_output("ip -json -6 address show dev eth0 scope link"))[0]["addr_info"][0]["local"]
    assert scan.accepting(MACHINES["gpu01"].address) == {22, 80, 443}
    # Of IPv6 not every port, for the time it takes: vLLM begins at 8000.
    assert scan.accepting(f"{own}%{BRIDGE}", range(1, 10_001)) == {22, 80, 443}


def test_nginx_is_confined_from_its_first_start_on(host: Any) -> None:
    assert nginx.is_confined(host)
    assert nginx.exposure(host) <= 2.8


def served_serial() -> str:
    """Return the serial number of the certificate that clients get."""
    context = ssl.create_default_context(cafile=str(endpoint.CA))
    with (
        socket.create_connection(("gpu01.vllm.test", 443), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname="gpu01.vllm.test") as tls,
    ):
        return str((tls.getpeercert() or {})["serialNumber"])


def test_the_certificate_renews_and_is_served_without_a_restart(host: Any) -> None:
    assert properties(host, "certbot.timer")["UnitFileState"] == "enabled"
    before, nginx = served_serial(), properties(host, "nginx.service")["MainPID"]
    host.check_output("certbot renew --quiet --force-renewal --no-random-sleep-on-renew")
    deadline = time.monotonic() + 10
    while served_serial() == before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert served_serial() != before
    assert properties(host, "nginx.service")["MainPID"] == nginx
