# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate that NGINX serves: ``TLS_DIR/current`` is a link to a folder with ``fullchain.pem`` and ``privkey.pem``.

Who fills it changes (a placeholder, certbot), the path never does.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpuops.vllm.plugins.module_utils import _files
from ansible_collections.gpuops.vllm.plugins.module_utils._systemd import Runner

CHAIN, KEY = "fullchain.pem", "privkey.pem"
#: A self-signed certificate renews itself nowhere, so it lives long enough for nobody to wait for that.
PLACEHOLDER_DAYS = 3650
_PLACEHOLDER = "placeholder-"

# As a leaf and not as an authority: Go and Rust refuse an authority that serves.
_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
x509_extensions = leaf
prompt = no
[name]
CN = {common_name}
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:{domain}
"""


def current(tls_dir: Path) -> str:
    """Name of the folder that ``current`` links to; ``""`` where there is no complete pair behind it."""
    link = tls_dir / "current"
    if not link.is_symlink() or not (link / CHAIN).is_file() or not (link / KEY).is_file():
        return ""
    return link.readlink().name


def placeholder_name(domain: str) -> str:
    return f"{_PLACEHOLDER}{domain}"


def needs_placeholder(tls_dir: Path, domain: str) -> bool:
    """Whether there is no certificate yet, or only a placeholder for another domain."""
    name = current(tls_dir)
    return not name or (name.startswith(_PLACEHOLDER) and name != placeholder_name(domain))


def make_placeholder(tls_dir: Path, domain: str, runner: Runner) -> None:
    """Make a self-signed pair for the domain and link ``current`` to it. Raises RuntimeError with openssl's words."""
    tls_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = tls_dir / placeholder_name(domain)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    config = folder / "openssl.cnf"
    # A common name holds 64 characters at most; clients read the subjectAltName.
    config.write_text(_OPENSSL_CONFIG.format(domain=domain, common_name=domain[:64]), encoding="ascii")
    command = ["openssl", "req", "-x509", "-days", str(PLACEHOLDER_DAYS), "-nodes"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    previous = os.umask(0o077)
    try:
        rc, out, err = runner(
            [*command, "-config", str(config), "-keyout", str(folder / KEY), "-out", str(folder / CHAIN)]
        )
    finally:
        os.umask(previous)
    if rc != 0:
        raise RuntimeError(f"openssl could not make a self-signed certificate for {domain}: {(err or out).strip()}")
    config.unlink()
    (folder / CHAIN).chmod(0o644)
    flip(tls_dir / "current", folder.name)


def flip(link: Path, target: str) -> None:
    """Make ``link`` point to ``target`` in one step: there is no moment without it."""
    _files.remove_left_behind(link.parent, link.name)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def on_disk(tls_dir: Path) -> bytes:
    """The leaf certificate (DER) that NGINX is to serve. Raises ValueError if the file holds none."""
    text = (tls_dir / "current" / CHAIN).read_text(encoding="ascii")
    match = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", text, re.DOTALL)
    if not match:
        raise ValueError(f"{tls_dir}/current/{CHAIN} holds no certificate")
    return ssl.PEM_cert_to_DER_cert(match.group(0))


def served(domain: str, timeout_s: float = 3.0) -> bytes:
    """The leaf certificate (DER) that this host serves for the domain; ``b""`` where nothing answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The question is which certificate it is; whether it is a good one is the client's to ask.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", 443), timeout_s) as connection,
        context.wrap_socket(connection, server_hostname=domain) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""
    return b""


@dataclass(frozen=True)
class Lineage:
    """What certbot keeps of a certificate."""

    server: str
    #: The webroot, or the name of certbot's plugin, such as ``dns-rfc2136``.
    through: str
    domains: tuple[str, ...]
    begins: float
    ends: float


def parse_lineage(renewal: str, certificate: str) -> Lineage:
    """Read certbot's ``renewal/NAME.conf`` and what ``openssl x509 -dates -ext subjectAltName`` says of the certificate.

    Times are seconds since the epoch. Raises ValueError where a date is missing.
    """
    dates = dict(re.findall(r"^(notBefore|notAfter)=(.+)$", certificate, re.MULTILINE))
    if len(dates) != 2:
        raise ValueError("openssl names no dates")
    settings = dict(re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", renewal, re.MULTILINE))
    plugin = settings.get("authenticator", "")
    return Lineage(
        server=settings.get("server", ""),
        through=settings.get("webroot_path", "").rstrip(",") if plugin == "webroot" else plugin,
        domains=tuple(re.findall(r"DNS:([^\s,]+)", certificate)),
        begins=ssl.cert_time_to_seconds(dates["notBefore"]),
        ends=ssl.cert_time_to_seconds(dates["notAfter"]),
    )


def renewed(renewal: str, wanted: bool) -> str:
    """certbot's ``renewal/NAME.conf`` as it has to read for ``certbot renew`` to renew the certificate, or not to."""
    off = r"^[ \t]*autorenew[ \t]*=[ \t]*(?i:false|no|off|0)[ \t]*(?:\n|\Z)"
    if wanted:
        return re.sub(off, "", renewal, flags=re.MULTILINE)
    if re.search(off, renewal, re.MULTILINE):
        return renewal
    text = re.sub(r"^[ \t]*autorenew[ \t]*=.*\n?", "", renewal, flags=re.MULTILINE)
    return re.sub(r"^(\[renewalparams\].*\n)", r"\1autorenew = False\n", text, count=1, flags=re.MULTILINE)


def order_reason(found: Lineage | None, domain: str, server: str, through: str, now: float) -> str:
    """Why a certificate has to be ordered; ``""`` if there is no reason to. ``through`` as in `Lineage`.

    The timer renews at a third of the lifetime; one that is down to a sixth was forgotten.
    """
    if found is None:
        return "there is none yet"
    if found.domains != (domain,):
        return f"the one at hand is for {', '.join(found.domains) or 'no name'}"
    if found.server != server:
        return f"the one at hand is from {found.server or 'nobody'}"
    if found.through != through:
        return f"the one at hand renews through {found.through or 'nothing'}"
    if now >= found.ends:
        return "the one at hand has expired"
    if found.ends - now < (found.ends - found.begins) / 6:
        return f"the one at hand expires in {int((found.ends - now) // 3600)} h and was not renewed"
    return ""


def order_command(order: Mapping[str, str], name: str, hook: str, replace: bool) -> list[str]:
    """The certbot command that gets one certificate.

    ``order`` has domain, server, email and webroot; or, with dns_plugin, dns_credentials (a file) and dns_propagation_s (``"0"``: the plugin's own).
    """
    command = ["certbot", "certonly", "--non-interactive", "--agree-tos"]
    command += ["--cert-name", name, "--domain", order["domain"], "--server", order["server"]]
    command += ["--key-type", "ecdsa", "--deploy-hook", hook]
    if plugin := order.get("dns_plugin"):
        command += [f"--dns-{plugin}", f"--dns-{plugin}-credentials", order["dns_credentials"]]
        if order["dns_propagation_s"] != "0":
            command += [f"--dns-{plugin}-propagation-seconds", order["dns_propagation_s"]]
    else:
        command += ["--webroot", "--webroot-path", order["webroot"]]
    command += ["--email", order["email"]] if order["email"] else ["--register-unsafely-without-email"]
    if replace:
        # certbot would keep one that is still good, whoever signed it and whatever names are in it.
        command += ["--force-renewal", "--renew-with-new-domains"]
    return command


def authority_errors(log: str) -> list[str]:
    """The authority's own words in certbot's log, each once: ``badNonce: JWS has an invalid anti-replay nonce``.

    certbot 2.1 on Python 3.11 prints only "AttributeError: can't set attribute" in place of them.
    """
    found = re.findall(r'"type": "urn:ietf:params:acme:error:(\w+)",\s*"detail": "((?:[^"\\]|\\.)*)"', log)
    return list(dict.fromkeys(f"{kind}: {detail}" for kind, detail in found))


# ---- Whether the name leads here ---------------------------------------------------------------------------------------

_NO_WAY_FROM_HERE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def addresses(getent: str) -> list[str]:
    """The addresses that ``getent ahosts`` prints, each once."""
    return list(dict.fromkeys(line.split()[0] for line in getent.splitlines() if line.strip()))


def fetch(address: str, domain: str, path: str, timeout_s: float, port: int = 80) -> str:
    """What one address of a name answers on port 80, at most 200 characters. Raises OSError, also for another status than 200."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Host": domain})
        answer = connection.getresponse()
        text = answer.read(200).decode("ascii", "replace")
        if answer.status != 200:
            raise OSError(f"answers {answer.status} {answer.reason}")
        return text
    except http.client.HTTPException as error:
        raise OSError(f"does not speak HTTP ({type(error).__name__})") from None
    finally:
        connection.close()


def way_fault(found: Sequence[str], own: Sequence[str], token: str, ask: Callable[[str], str]) -> str:
    """Why the addresses ``found`` of a name do not all lead to this host, whose own are ``own``; ``""`` if they do.

    ``ask`` fetches what an address answers. Through a load balancer the address is not one of ``own``, so that only the answer counts.
    """
    if not found:
        return "no name server knows an address of it"
    unproven = 0
    for address in found:
        try:
            text = ask(address)
            fault = "" if text == token else f"port 80 answers with something else ({text[:60]!r})"
        except OSError as error:
            # A host without IPv6 cannot say whether its name's IPv6 address is right.
            if error.errno in _NO_WAY_FROM_HERE and ":" in address:
                unproven += 1
                continue
            fault = f"port 80: {error.strerror or error}"
        if fault:
            whose = "which this host has" if address in own else f"and this host has {', '.join(own) or 'no address'}"
            return f"it leads to {address}, {whose}; there {fault}"
    return "" if unproven < len(found) else f"it leads to {', '.join(found)}, where this host has no way to"
