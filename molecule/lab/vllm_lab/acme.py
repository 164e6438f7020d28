# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's ACME server: Pebble and its DNS, on the machine `acme`, with an HTTPS certificate that clients can check."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from .model import LOCAL, MACHINES, Machine
from .system import LabError, run, wait_for, write

CA = LOCAL / "acme-ca.pem"  # who signed Pebble's own HTTPS certificate
ISSUED_BY = LOCAL / "ca.pem"  # who signs what Pebble issues: what a client of an endpoint has to trust
CERTIFICATE = LOCAL / "acme.pem"
KEY = LOCAL / "acme.key"
START_TIMEOUT_S = 30
RECORDS_SCRIPT = """\
# Tells the DNS server the lab's names, as soon as it listens.
import json
import sys
import time
import urllib.request

deadline = time.monotonic() + 20
for name, address in json.load(open("/etc/pebble/records.json", encoding="utf-8")).items():
    body = json.dumps({"host": name + ".", "addresses": [address]}).encode()
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:8055/add-a", body, timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the DNS server does not take {name}: {error}")
            time.sleep(0.05)
"""
DNS_UNIT = """\
[Unit]
Description=DNS of the lab's ACME server

[Service]
ExecStart=/usr/bin/pebble-challtestsrv -defaultIPv4 "" -defaultIPv6 "" -dns01 127.0.0.1:8053 \\
  -http01 "" -https01 "" -tlsalpn01 "" -management :8055
ExecStartPost=/usr/bin/python3 /etc/pebble/records.py
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
PEBBLE_UNIT = """\
[Unit]
Description=ACME server of the lab
Requires=pebble-dns.service
After=pebble-dns.service

[Service]
# It would refuse a nonce now and then on purpose; a test should fail for a reason of its own.
Environment=PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0
ExecStart=/usr/bin/pebble -config /etc/pebble/pebble.json -dnsserver 127.0.0.1:8053 -strict
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def config() -> dict[str, dict[str, object]]:
    """Pebble's configuration: it validates on the ports that an ordinary web server answers on."""
    return {
        "pebble": {
            "listenAddress": "0.0.0.0:14000",
            "managementListenAddress": "0.0.0.0:15000",
            "certificate": "/etc/pebble/acme.pem",
            "privateKey": "/etc/pebble/acme.key",
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
        }
    }


def make_certificate(machine: Machine) -> None:
    """Make a CA and Pebble's HTTPS certificate, unless this checkout has them. The CA's key is not kept."""
    if KEY.exists():
        return
    ca_key, request, extensions = (LOCAL / name for name in ("acme-ca.key", "acme.csr", "acme.ext"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    new_key = KEY.with_suffix(".key.new")
    try:
        run(
            "openssl",
            "req",
            "-x509",
            *curve,
            "-days",
            "365",
            "-subj",
            "/CN=gpuops.vllm lab",
            "-keyout",
            ca_key,
            "-out",
            CA,
        )
        run("openssl", "req", *curve, "-subj", f"/CN={machine.fqdn}", "-keyout", new_key, "-out", request)
        write(extensions, f"subjectAltName=DNS:{machine.fqdn},IP:{machine.address}\nextendedKeyUsage=serverAuth\n")
        run(
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            CA,
            "-CAkey",
            ca_key,
            "-days",
            "365",
            "-extfile",
            extensions,
            "-out",
            CERTIFICATE,
        )
        new_key.rename(KEY)
    finally:
        for path in (ca_key, request, extensions, new_key):
            path.unlink(missing_ok=True)


def install(machine: Machine) -> None:
    """Put Pebble's configuration and units into a machine's tree, before it boots."""
    make_certificate(machine)
    folder = machine.root / "etc/pebble"
    write(folder / "pebble.json", json.dumps(config(), indent=2) + "\n")
    write(folder / "records.json", json.dumps({other.fqdn: other.address for other in MACHINES.values()}) + "\n")
    write(folder / "records.py", RECORDS_SCRIPT)
    write(folder / "acme.pem", CERTIFICATE.read_text(encoding="ascii"))
    write(folder / "acme.key", KEY.read_text(encoding="ascii"), 0o600)
    units = machine.root / "etc/systemd/system"
    for name, text in {"pebble-dns.service": DNS_UNIT, "pebble.service": PEBBLE_UNIT}.items():
        write(units / name, text)
        link = units / "multi-user.target.wants" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(f"../{name}")


def wait_until_ready(machine: Machine) -> None:
    """Wait until Pebble answers, and keep the root it signs with.

    Pebble makes a new root at every start. Certificates from before live on until they are renewed, so the file keeps
    the older roots of this lab too.

    Raises:
        LabError: Pebble does not answer.
    """
    context = ssl.create_default_context(cafile=str(CA))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    problem = ""

    def fetch(path: str) -> str:
        nonlocal problem
        try:
            with opener.open(f"https://{machine.address}:{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError) as error:
            problem = str(error)
            return ""

    if not wait_for(lambda: bool(fetch("14000/dir")), START_TIMEOUT_S):
        raise LabError(f"{machine.name}: Pebble does not answer within {START_TIMEOUT_S} s: {problem}")
    root = fetch("15000/roots/0")
    if "BEGIN CERTIFICATE" not in root:
        raise LabError(f"{machine.name}: Pebble does not tell its root certificate: {problem or root[:80]}")
    remember_root(ISSUED_BY, root)


def remember_root(file: Path, root: str) -> None:
    """Add a root certificate to a file of them, unless it is in there."""
    known = file.read_text(encoding="ascii") if file.exists() else ""
    if root.strip() not in known:
        write(file, root.strip() + "\n" + known)
