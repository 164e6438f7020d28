# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said about a certificate of the user's own before any host is touched."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

try:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
except ImportError:
    # ansible-core brings it; only ansible-test judges this file without.
    x509 = None  # type: ignore[assignment]

_CHAIN, _KEY_FILE, _KEY = "vllm_tls_chain_file", "vllm_tls_key_file", "vllm_tls_key"
#: As the program on the host reads it (roles/vllm_certbot/files/vllm-install-certificate), and nothing beside it.
_KEY_ALONE = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----\n(?:[A-Za-z0-9+/=]+\n)+-----END \1-----\n")
_MIN_RSA_BITS = 2048


def problems(settings: Mapping[str, Any], now: float | None = None) -> list[str]:
    """Return what keeps a chain and a key from being served for a domain; ``[]`` if nothing does.

    ``settings`` has ``domain``; ``chain_file`` and ``key_file``, paths on this machine; ``chain_pem`` and ``key_pem``, their texts, empty where there
    is no such file; and ``key``, a PEM text in the place of ``key_file``. No word of a key is ever part of a message. ``now`` is in seconds since
    the epoch.
    """
    if not hasattr(getattr(x509, "Certificate", None), "not_valid_after_utc"):
        return [
            "vllm_tls_mode: provided needs Python's cryptography 42 or newer on the control node. Upgrade it there with ansible-core's own pip."
        ]
    found = list(_missing(settings))
    if found:
        return found
    chain, fault = _read_chain(str(settings["chain_pem"]))
    if not fault:
        fault = _chain_fault(chain, settings["domain"], time.time() if now is None else now)
    if fault:
        found.append(f"{_CHAIN} is {settings['chain_file']!r}: {fault}")
    found += [
        f"{_KEY} (not shown): {fault}" if settings["key"] else f"{_KEY_FILE} is {settings['key_file']!r}: {fault}"
        for fault in _key_faults(settings, chain)
    ]
    return found


def _missing(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is not there at all."""
    if not settings["chain_file"]:
        yield (
            f"{_CHAIN} is '': vllm_tls_mode: provided needs the path, on the control node, of the certificate and what signed it (PEM, the"
            " endpoint's own first). Set it in the inventory."
        )
    elif not settings["chain_pem"]:
        yield f"{_CHAIN} is {settings['chain_file']!r}: there is no such file on the control node, or it is empty. Correct the path."
    if settings["key"] and settings["key_file"]:
        yield f"{_KEY} and {_KEY_FILE} are both set, and only one of them can be the key. Remove one."
    elif not settings["key"] and not settings["key_file"]:
        yield (
            f"{_KEY_FILE} is '': vllm_tls_mode: provided needs the path of the private key (PEM, mode 0600 or encrypted by ansible-vault), or"
            f" its text in {_KEY}, from a vault. Set one of them in the inventory."
        )
    elif settings["key_file"] and not settings["key_pem"]:
        yield f"{_KEY_FILE} is {settings['key_file']!r}: there is no such file on the control node, or it is empty. Correct the path."


def _read_chain(text: str) -> tuple[list[Any], str]:
    """The certificates of a PEM text, and what is wrong with it."""
    if "PRIVATE KEY-----" in text:
        return (
            [],
            "it holds a private key (not shown), and all may read the chain. Keep certificates alone in this file.",
        )
    try:
        return x509.load_pem_x509_certificates(text.encode()), ""
    except ValueError:
        return [], "it cannot be read as certificates. It needs them in PEM (BEGIN CERTIFICATE), whole."


def _chain_fault(chain: Sequence[Any], domain: str, now: float) -> str:
    leaf = chain[0]
    for number, (one, issuer) in enumerate(pairwise(chain), start=1):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, exceptions.InvalidSignature):
            return (
                f"its certificate {number} ({_name(one)}) is not signed by the next ({_name(issuer)}). Put the endpoint's own first, then each time"
                " the one that signed it."
            )
    names = _dns_names(leaf)
    if not any(_covers(name, domain) for name in names):
        return (
            f"its first certificate is for {', '.join(names) or 'no DNS name'}, and vllm_domain is {domain!r}. Name the chain of that domain, or"
            " correct vllm_domain."
        )
    at = datetime.fromtimestamp(now, UTC)
    for number, one in enumerate(chain, start=1):
        which = f"its certificate {number} ({_name(one)})"
        if one.not_valid_after_utc <= at:
            return f"{which} expired on {_moment(one.not_valid_after_utc)}. Get a new one."
        if one.not_valid_before_utc > at:
            return f"{which} is not valid before {_moment(one.not_valid_before_utc)}. Wait until then, or look at this machine's clock."
    return ""


def _key_faults(settings: Mapping[str, Any], chain: Sequence[Any]) -> Iterator[str]:
    if settings["key_file"]:
        path = Path(settings["key_file"])
        mode = path.stat().st_mode & 0o777
        with path.open("rb") as stream:
            encrypted = stream.read(14) == b"$ANSIBLE_VAULT"
        if mode & 0o077 and not encrypted:
            yield f"others than its owner may read it (mode {mode:04o}). Say chmod 0600, or ansible-vault encrypt; and get a new key if somebody has read it."
    try:
        key = load_pem_private_key(str(settings["key"] or settings["key_pem"]).encode(), password=None)
    except TypeError:
        yield "it is encrypted with a passphrase, and NGINX starts without anybody to type it. Take that off (openssl pkey), and keep it in a vault."
        return
    except (ValueError, exceptions.UnsupportedAlgorithm):
        # Not their words, which may quote what they cannot read.
        yield "it cannot be read as a private key. It needs one key in PEM (BEGIN PRIVATE KEY), whole."
        return
    if not _KEY_ALONE.fullmatch(str(settings["key"] or settings["key_pem"]).strip() + "\n"):
        yield (
            "there is more than one private key in it, or other text (a certificate, EC PARAMETERS, Bag Attributes, line ends of Windows). It needs the key"
            " alone: openssl pkey -in FILE -out NEW."
        )
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _MIN_RSA_BITS:
        yield f"an RSA key of {key.key_size} bits, which OpenSSL refuses. It needs {_MIN_RSA_BITS} or more, or an ECDSA key."
    if chain and key.public_key() != chain[0].public_key():
        yield f"it is not the key of the first certificate in {_CHAIN} ({_name(chain[0])}). Name the one that the certificate was asked for with."


def _name(certificate: Any) -> str:
    return certificate.subject.rfc4514_string() or ", ".join(_dns_names(certificate)) or "without a name"


def _dns_names(certificate: Any) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [str(name).lower() for name in names.get_values_for_type(x509.DNSName)]


def _covers(name: str, domain: str) -> bool:
    """A wildcard stands for one label."""
    return name == domain or (name.startswith("*.") and domain.partition(".")[2] == name[2:])


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
