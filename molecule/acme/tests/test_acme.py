"""An authority that refuses, is down, is misled or shut out; one's own certificate; a foreign file: the endpoint serves on, and the play says why.

The tests go on in the order of this file, under one loop of requests that must not lose any. All of them use the fixture `host`, or pytest would
take those without it out of that order.
"""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import endpoint
import openai
import playbook
import pytest
import testinfra  # type: ignore[import-untyped]
from vllm_lab import acme

testinfra_hosts = ["ansible://gpu02"]
HOST, DOMAIN = "gpu02", "gpu02.vllm.test"
INVENTORY = "molecule/acme/inventory"
LIVE = "/etc/letsencrypt/live/vllm"
RENEWAL = "/etc/letsencrypt/renewal/vllm.conf"
RENEW = "certbot renew --force-renewal --no-random-sleep-on-renew --quiet"
SERVED_ON = "What was served before is served on."


def proxy(**variables: Any) -> playbook.Done:
    """A run of the proxy alone."""
    return playbook.run("molecule/acme/files/proxy.yml", hosts=[HOST], inventories=[INVENTORY], **variables)


def certificate(*arguments: str, **variables: Any) -> playbook.Done:
    """A run of the certificate alone."""
    return playbook.run(
        "molecule/acme/files/certificate.yml", *arguments, hosts=[HOST], inventories=[INVENTORY], **variables
    )


def assert_nothing_changes(done: playbook.Done) -> None:
    assert (done.status, done.changed[HOST]) == (0, 0), done.said


def refused(done: playbook.Done) -> str:
    """Why the play failed, on one line."""
    assert done.status != 0, done.said
    return done.refused[HOST].replace("''", "'")


class Trust:
    """The roots that clients of this scenario know."""

    def __init__(self) -> None:
        self.pem = ""

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.pem)

    def learn(self) -> None:
        """The root of the authority as it runs now; it has another after each start."""
        ours = ssl.create_default_context(cafile=str(acme.CA))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ours))
        deadline = time.monotonic() + 10
        while True:
            try:
                with opener.open("https://acme.vllm.test:15001/roots/0", timeout=5) as answer:
                    self.pem += answer.read().decode()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


class Loop:
    """Requests one after another, each on a connection of its own, which have to be answered."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.answered = 0
        self.failed: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)
        self._thread.start()

    def _ask_on(self) -> None:
        key = endpoint.KEY.read_text().strip()
        while not self._end.wait(0.05):
            connection = http.client.HTTPSConnection(DOMAIN, timeout=10, context=self.trust.context())
            try:
                connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{time.strftime('%X')} {error!r}")
            finally:
                connection.close()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def trust() -> Trust:
    made = Trust()
    made.learn()
    return made


@pytest.fixture(scope="module", autouse=True)
def loop(trust: Trust) -> Iterator[Loop]:
    asking = Loop(trust)
    yield asking
    asking.end()


@pytest.fixture(autouse=True)
def serves_throughout(loop: Loop) -> Iterator[None]:
    """Each test, whatever it does to the authority."""
    loop.failed.clear()
    before = loop.answered
    yield
    assert loop.failed == []
    assert loop.answered > before


@pytest.fixture(scope="module")
def authority() -> Iterator[Any]:
    """The machine on which it runs; afterwards only the lab's own is left there."""
    machine = testinfra.get_host("ansible://acme", ansible_inventory=str(endpoint.TOP / "molecule" / "inventory"))
    yield machine
    machine.check_output("systemctl stop moody-pebble knot")


def start(authority: Any, host: Any, trust: Trust, **environment: str) -> None:
    """Start it anew. It knows none of its accounts any more, so certbot's goes too."""
    lines = "".join(f"{name}={value}\n" for name, value in {"PEBBLE_WFE_NONCEREJECT": "0", **environment}.items())
    authority.check_output("printf %%s %s > /run/moody/env && systemctl restart moody-pebble", lines)
    host.check_output("rm -rf /etc/letsencrypt/accounts")
    trust.learn()


def orders(authority: Any) -> int:
    """How often somebody has begun an order since it was started."""
    life = "_SYSTEMD_INVOCATION_ID=$(systemctl show --property=InvocationID --value moody-pebble)"
    return int(authority.check_output(f"journalctl --quiet {life} | grep -c 'POST /order-plz' || true"))


def served() -> str:
    """The certificate that a client gets (PEM)."""
    return ssl.get_server_certificate((DOMAIN, 443), timeout=10)


def served_instead_of(before: str) -> str:
    """What a client gets as soon as it is another; a reload takes a moment to be so."""
    deadline = time.monotonic() + 5
    while (now := served()) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert now != before
    return now


def nginx(host: Any) -> str:
    """Changes with a restart, and not with a reload."""
    return str(host.check_output("systemctl show --property=MainPID,ActiveEnterTimestamp,InvocationID nginx"))


@contextmanager
def wanted(host: Any) -> Iterator[str]:
    """An order is due, since the certificate at hand came from elsewhere; afterwards it is as it was. Yields what is served before."""
    host.check_output(
        f"cp {RENEWAL} /root/renewal.conf && sed -i 's#^server = .*#server = https://elsewhere.test/dir#' {RENEWAL}"
    )
    try:
        yield served()
    finally:
        host.check_output(f"mv /root/renewal.conf {RENEWAL}")


# ---- The ordinary way ------------------------------------------------------------------------------------------------


def test_the_first_issue(authority: Any, host: Any, trust: Trust) -> None:
    """By converge, which has ordered once."""
    assert served().strip() == host.file(f"{LIVE}/cert.pem").content_string.strip()
    assert orders(authority) == 1
    assert host.service("certbot.timer").is_running
    assert host.file("/etc/vllm/tls/current/privkey.pem").mode == 0o600


@pytest.mark.usefixtures("host")
def test_a_second_run_orders_nothing(authority: Any) -> None:
    assert_nothing_changes(proxy())
    assert_nothing_changes(certificate())
    assert orders(authority) == 1


def test_a_renewal_is_a_reload_and_a_stream_goes_on(host: Any, trust: Trust) -> None:
    before, runs = served(), nginx(host)
    key = endpoint.KEY.read_text().strip()
    http_client = openai.DefaultHttpxClient(verify=trust.context(), timeout=60)
    client = openai.OpenAI(base_url=f"https://{DOMAIN}/v1", api_key=key, http_client=http_client, max_retries=0)
    answer = client.chat.completions.create(
        model="gpuops-demo", messages=[{"role": "user", "content": "Hi"}], stream=True
    )  # fmt: skip
    first = next(answer)
    host.check_output(RENEW)
    served_instead_of(before)
    said = [event.choices[0] for event in [first, *answer] if event.choices]
    assert nginx(host) == runs
    assert said[-1].finish_reason == "stop"
    assert "".join(choice.delta.content or "" for choice in said).split() == [str(number) for number in range(200)]
    assert_nothing_changes(certificate())


# ---- What goes wrong with an authority -------------------------------------------------------------------------------


def test_a_name_that_leads_elsewhere(authority: Any, host: Any) -> None:
    begun = orders(authority)
    hosts = host.file("/etc/hosts").content_string
    host.check_output("sed 's/^10.77.0.12 /10.77.0.11 /' /etc/hosts > /root/hosts && cat /root/hosts > /etc/hosts")
    try:
        with wanted(host) as before:
            said = refused(certificate())
            assert served() == before
    finally:
        host.check_output("printf %%s %s > /etc/hosts", hosts)
    assert (
        f"vllm_domain is '{DOMAIN}', and it does not lead back to this host: it leads to 10.77.0.11, and this host has 10.77.0.12"
        in said
    )
    assert "Its DNS record must name this host" in said
    assert "Nothing was ordered" in said
    assert orders(authority) == begun


def test_port_80_is_blocked(authority: Any, host: Any) -> None:
    begun = orders(authority)
    inside = ["ip", "netns", "exec", "vllmlab-gpu02"]
    rules = (
        "table inet blocked { chain input { type filter hook input priority 0; tcp dport 80 reject with tcp reset; }; }"
    )
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        with wanted(host) as before:
            said = refused(certificate())
            assert served() == before
    finally:
        subprocess.run([*inside, "nft", "delete", "table", "inet", "blocked"], check=True)
    assert "it leads to 10.77.0.12, which this host has; there port 80: Connection refused" in said
    assert "port 80 must be open to the certificate authority. Nothing was ordered" in said
    assert orders(authority) == begun


def test_only_the_authority_is_misled(authority: Any, host: Any) -> None:
    """The host cannot see that; one order is made, and its message has the authority's words."""
    begun = orders(authority)
    record = " && ".join(
        f"knotc -b zone-{step}"
        for step in ("begin vllm.test", "unset vllm.test gpu02 A", "set vllm.test gpu02 1 A {}", "commit vllm.test")
    )
    authority.check_output(record.format("10.77.0.2"))
    try:
        with wanted(host) as before:
            said = refused(certificate())
            assert served() == before
    finally:
        authority.check_output(record.format("10.77.0.12"))
    assert f"The order of a certificate for {DOMAIN} from https://acme.vllm.test:14001/dir failed" in said
    assert "10.77.0.2" in said
    assert SERVED_ON in said
    assert orders(authority) == begun + 1


def test_a_nonce_storm(authority: Any, host: Any, trust: Trust) -> None:
    start(authority, host, trust, PEBBLE_WFE_NONCEREJECT="90")
    with wanted(host) as before:
        said = refused(certificate())
        assert served() == before
    assert "badNonce" in said
    assert SERVED_ON in said


def test_the_authority_is_down(authority: Any, host: Any) -> None:
    authority.check_output("systemctl stop moody-pebble")
    with wanted(host) as before:
        said = refused(certificate())
        assert served() == before
    assert "Connection refused" in said
    assert SERVED_ON in said


def test_when_it_is_back_the_play_goes_through(authority: Any, host: Any, trust: Trust) -> None:
    start(authority, host, trust)
    before, runs = served(), nginx(host)
    host.check_output(f"sed -i 's#^server = .*#server = https://elsewhere.test/dir#' {RENEWAL}")
    done = certificate()
    assert done.status == 0, done.said
    assert served() != before
    assert nginx(host) == runs


# ---- A configuration of somebody else's ------------------------------------------------------------------------------


@pytest.fixture
def foreign(host: Any) -> Iterator[str]:
    """A file that NGINX refuses."""
    path = "/etc/nginx/conf.d/foreign.conf"
    host.check_output("printf 'server {\\n    listen 8081;\\n    no_such_thing on;\\n}\\n' > %s", path)
    yield path
    host.check_output("rm -f %s", path)


def test_a_foreign_file_is_named_before_the_next_boot_finds_it(authority: Any, host: Any, foreign: str) -> None:
    runs, begun, before = nginx(host), orders(authority), served()
    link = host.check_output("readlink /etc/vllm/tls/current")
    said = refused(proxy())
    assert "would not start at the next boot; what runs was left as it is" in said
    assert f'unknown directive "no_such_thing" in {foreign}:3' in said
    assert f"{foreign} is none of this role's files" in said
    # With a change of ours as well.
    said = refused(proxy(vllm_nginx_retry_after_s=11))
    assert "NGINX refuses the new configuration; what runs was left as it is" in said
    assert foreign in said
    with wanted(host):
        said = refused(certificate())
    assert "Nothing was ordered: NGINX's test of its configuration failed" in said
    assert foreign in said
    assert (nginx(host), orders(authority)) == (runs, begun)
    # The timer renews all the same, and its hook leaves what is served in its place.
    assert foreign in host.run(f"{RENEW.removesuffix(' --quiet')} 2>&1").stdout
    assert (served(), host.check_output("readlink /etc/vllm/tls/current")) == (before, link)
    # When that is mended, the timer's next run loads it, and the play finds nothing to do.
    host.check_output("rm %s && systemctl start certbot.service", foreign)
    assert served_instead_of(before).strip() == host.file(f"{LIVE}/cert.pem").content_string.strip()
    assert_nothing_changes(proxy())
    assert nginx(host) == runs


# ---- One's own certificate, and back -----------------------------------------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain and a key of an authority of one's own."""
    folder: Path = tmp_path_factory.mktemp("own")
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl(folder, "req", "-x509", *new, "-days", "9", "-subj", "/CN=Own", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(folder, "req", *new, "-subj", f"/CN={DOMAIN}", "-keyout", "key.pem", "-out", "leaf.csr")
    (folder / "leaf.ext").write_text(f"subjectAltName=DNS:{DOMAIN}\n")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9", "-extfile", "leaf.ext", "-out", "leaf.pem")
    openssl(folder, "x509", "-req", "-in", "leaf.csr", *signing)
    (folder / "chain.pem").write_text((folder / "leaf.pem").read_text() + (folder / "ca.pem").read_text())
    (folder / "key.pem").chmod(0o600)
    return folder


def test_a_certificate_of_ones_own(host: Any, trust: Trust, own: Path, authority: Any) -> None:
    trust.pem += (own / "ca.pem").read_text()
    settings = {
        "vllm_tls_mode": "provided", "vllm_tls_chain_file": str(own / "chain.pem"), "vllm_tls_key_file": str(own / "key.pem"),
    }  # fmt: skip
    before, runs, current = served(), nginx(host), host.check_output("readlink /etc/vllm/tls/current")
    foreseen = certificate("--check", "--diff", "-vvv", **settings)
    assert (foreseen.status, foreseen.changed[HOST]) == (0, 1), foreseen.said
    assert (served(), host.check_output("readlink /etc/vllm/tls/current")) == (before, current)
    done = certificate("--diff", "-vvv", **settings)
    assert (done.status, done.changed[HOST]) == (0, 1), done.said
    assert served().strip() == (own / "leaf.pem").read_text().strip()
    assert nginx(host) == runs
    assert_nothing_changes(certificate(**settings))
    assert not host.file(RENEWAL).exists
    secret = (own / "key.pem").read_text().splitlines()[1:-1]
    said = foreseen.said + done.said + host.check_output("journalctl --quiet --boot")
    assert [line for line in secret if line in said] == []
    assert host.file("/etc/vllm/tls/current/privkey.pem").content_string == (own / "key.pem").read_text()


@pytest.mark.usefixtures("host")
def test_another_key_is_refused_before_the_host_is_touched(own: Path, tmp_path: Path) -> None:
    key = shutil.copy(own / "ca.key", tmp_path)
    Path(key).chmod(0o600)
    done = certificate(vllm_tls_mode="provided", vllm_tls_chain_file=str(own / "chain.pem"), vllm_tls_key_file=str(key))
    assert f"vllm_tls_key_file is '{key}': it is not the key of the first certificate" in refused(done)
    assert done.changed[HOST] == 0


# ---- By DNS ----------------------------------------------------------------------------------------------------------


def test_an_order_by_dns(authority: Any, host: Any) -> None:
    """Through the name server's own protocol for changes; port 80 has no part in it. From one's own certificate it is a new order as well."""
    secret = authority.check_output("grep -oP 'secret: \\K.*' /etc/knot/knot.conf")
    credentials = {
        "dns_rfc2136_server": "10.77.0.2", "dns_rfc2136_name": "certbot.", "dns_rfc2136_secret": secret, "dns_rfc2136_algorithm": "HMAC-SHA256",
    }  # fmt: skip
    settings: dict[str, Any] = {
        "vllm_acme_challenge": "dns-01",
        "vllm_acme_dns_plugin": "rfc2136",
        "vllm_certbot_dns_propagation_s": 1,
    }
    wrong = {**credentials, "dns_rfc2136_secret": "d3JvbmctMDEyMzQ1Njc4OQ=="}
    before, runs = served(), nginx(host)
    done = certificate(**settings, vllm_acme_dns_credentials=wrong)
    assert SERVED_ON in refused(done)
    assert wrong["dns_rfc2136_secret"] not in done.said
    assert served() == before
    done = certificate("--diff", "-vvv", **settings, vllm_acme_dns_credentials=credentials)
    assert done.status == 0, done.said
    assert served() != before
    assert nginx(host) == runs
    assert_nothing_changes(certificate(**settings, vllm_acme_dns_credentials=credentials))
    file = host.file("/etc/letsencrypt/vllm-dns.ini")
    assert (file.user, file.mode) == ("root", 0o600)
    assert secret not in done.said + host.check_output("journalctl --quiet --boot")
    before = served()
    host.check_output(RENEW)
    served_instead_of(before)


def test_back_to_port_80(host: Any) -> None:
    before = served()
    done = certificate()
    assert done.status == 0, done.said
    assert served() != before
    assert not host.file("/etc/letsencrypt/vllm-dns.ini").exists
