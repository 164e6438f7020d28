"""A machine before and after, somebody else's site meanwhile, and the way back. In this order, on one machine: pytest would run tests without `host` first."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import endpoint
import playbook
import pytest
from vllm_lab.model import MACHINES

testinfra_hosts = ["ansible://deb13"]
HOST = "deb13"
PLAY = "playbooks/uninstall.yml"
OTHER = f"http://{MACHINES[HOST].address}:8081"
LONG_BYTES = 400_000

#: What is not as before on purpose, by kind, as a pattern of its name, and why.
LEFT: dict[str, dict[str, str]] = {
    "files": {
        "/run/vllm-claim.json": "keeps an earlier run of site.yml from going on, until the next boot",
        "/run/vllm-instances.lock": "others may wait for it, until the next boot",
        "/var/log/nginx/vllm_access.log": "the record of who asked",
        "/var/log/letsencrypt(/.*)?": "certbot's record",
        "/etc/letsencrypt(/.*)?": "the certificate, which is not renewed any more, and certbot's account",
        "/var/lib/letsencrypt(/.*)?": "certbot's own",
        "/etc/nginx/sites-enabled/default": "the welcome page, which site.yml has taken away: nobody knows whether it was wanted",
        "/etc/(group|passwd|gshadow|shadow|subuid|subgid)-?": "the group render, which other programs use, and the copies that account tools keep",
        "/etc/.pwd.lock": "of the account tools",
        "/etc/ssl/certs(/.*)?": "written anew, with the same authorities (see below)",
        "/var/lib/logrotate.*|/var/lib/misc.*": "of the system's own timers",
        "/run/(utmp|nginx.pid|certbot.*|credentials.*)": "of running programs",
    },
    "units": {
        "run-.*|certbot.service|systemd-.*|apt-.*|dpkg-.*|e2scrub.*|logrotate.*|man-db.*|fstrim.*|ssh.*|emergency.*|rescue.*|.*-pre.target|.*.target": (
            "the system's own, which come and go"
        ),
    },
    "ports": {r"tcp (0\.0\.0\.0|\[::\]):80": "the welcome page's, which is away (see above)"},
    "accounts": {"render:.*": "a group of the system's, which other programs use"},
}
#: Of the units these above all must not hide behind a pattern.
OURS = re.compile(r".*vllm.*")


@pytest.fixture(scope="module")
def before(host: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(host.check_output("cat /root/before.json"))
    return found


def look(host: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(host.check_output("python3 /root/snapshot.py"))
    return found


def differences(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> dict[str, dict[str, list[str]]]:
    """What is there now and was not, was and is not, or is another, by kind; without what is left on purpose."""
    found = {}
    for kind, entries in before.items():
        names = {*entries, *now[kind]}
        changed = {name: [entries.get(name, "-"), now[kind].get(name, "-")] for name in names}
        allowed = LEFT.get(kind, {})
        found[kind] = {
            name: both
            for name, both in sorted(changed.items())
            if both[0] != both[1]
            and not any(
                re.fullmatch(pattern, name) for pattern in allowed if kind != "units" or not OURS.fullmatch(name)
            )
        }
    return {kind: entries for kind, entries in found.items() if entries}


def answers() -> bool:
    models = endpoint.client(HOST).models.list()
    return "gpt-4" in [one.id for one in models]


def test_the_machine_serves_and_differs(host: Any, before: dict[str, dict[str, str]]) -> None:
    """Else nothing below says anything."""
    assert answers()
    found = differences(before, look(host))
    assert set(found) == {"files", "units", "accounts", "tables", "ports"}
    for path in ("/etc/vllm/secrets", "/usr/local/bin/vllm-start", "/etc/nginx/conf.d/vllm.conf"):
        assert path in found["files"]
    assert "tcp 0.0.0.0:443" in found["ports"]


def test_hosts_that_were_not_named_are_not_touched(host: Any) -> None:
    done = playbook.run(PLAY, hosts=[HOST], vllm_uninstall="gpu01")
    assert done.status != 0
    assert "No host was touched" in done.refused[HOST]
    assert answers()


def test_check_mode_tells_what_would_go(host: Any) -> None:
    done = playbook.run(PLAY, "--check", "--diff", hosts=[HOST])
    assert (done.status, done.changed[HOST]) == (0, 1), done.said
    for line in (
        "-vllm@demo-0.service (runs)",
        "-/etc/vllm/secrets",
        "-nftables: table inet vllm",
        "-account vllm",
        "-/usr/local/bin/vllm-start",
    ):
        assert line in done.said.splitlines()
    assert host.service("vllm@demo-0.service").is_running
    assert answers()


@pytest.fixture(scope="module")
def download() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody fetches a long file from the other site, all the while."""
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--output",
        "/dev/null",
        "--write-out",
        "%{size_download}",
        f"{OTHER}/long",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_killed_in_the_midst(host: Any, download: subprocess.Popen[bytes]) -> None:
    command = [
        "ansible-playbook",
        PLAY,
        "--limit",
        HOST,
        "--inventory",
        "molecule/inventory",
        "--extra-vars",
        f"vllm_uninstall={HOST}",
    ]
    process = subprocess.Popen(command, cwd=endpoint.TOP, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "stopping" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Between the stop and all that comes after it.
    assert host.file("/etc/vllm/secrets").exists
    assert not host.file("/etc/systemd/system/multi-user.target.wants/vllm.target").exists


def test_what_the_collection_has_put_there_is_gone(
    host: Any, before: dict[str, dict[str, str]], download: subprocess.Popen[bytes]
) -> None:
    done = playbook.run(PLAY, hosts=[HOST], vllm_uninstall=HOST)
    # 0 where the call that was on the host when the play was killed had the time to finish.
    assert done.status == 0 and done.changed[HOST] in (0, 1), done.said
    print(f"uninstall: {done.seconds:.1f} s")
    assert differences(before, look(host)) == {}
    assert not host.check_output("systemctl --failed --plain --no-legend")
    # The bundle is sorted alike, and holds the same authorities.
    assert "Pebble" not in host.check_output("cat /etc/ssl/certs/ca-certificates.crt")
    assert not host.run("find /etc/ssl/certs -xtype l").stdout


def test_the_other_site_was_served_all_the_while(host: Any, download: subprocess.Popen[bytes]) -> None:
    assert endpoint.http().get(f"{OTHER}/hello").text == "hello\n"
    size, _nothing = download.communicate(timeout=60)
    assert (download.returncode, int(size)) == (0, LONG_BYTES)
    assert host.service("nginx").is_enabled


def test_it_says_what_stays(host: Any) -> None:
    done = playbook.run(PLAY, hosts=[HOST], vllm_uninstall=HOST)
    assert (done.status, done.changed[HOST]) == (0, 0), done.said
    for words in (
        "certificate, which is not renewed any more",
        "/var/log/nginx/vllm_access.log",
        "(current, fake)",
    ):
        assert words in " ".join(done.said.split())


def test_certbot_leaves_the_certificate_alone(host: Any) -> None:
    """Its hook and its way through port 80 are gone."""
    said = host.run("certbot renew --no-random-sleep-on-renew")
    assert said.rc == 0, said.stderr
    assert "not yet due for renewal" in said.stdout + said.stderr


def test_site_serves_again_with_the_same_certificate(host: Any) -> None:
    first = host.check_output("sha256sum < /etc/letsencrypt/live/vllm/cert.pem")
    start = time.monotonic()
    done = playbook.run("site.yml", hosts=[HOST], vllm_firewall_enabled=False)
    assert done.status == 0, done.said
    print(f"site.yml after it: {time.monotonic() - start:.1f} s")
    assert answers()
    assert host.check_output("sha256sum < /etc/letsencrypt/live/vllm/cert.pem") == first
    assert "autorenew" not in host.file("/etc/letsencrypt/renewal/vllm.conf").content_string
