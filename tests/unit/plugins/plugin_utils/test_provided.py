"""A chain and a key of the user's own, judged before any host is touched."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _provided
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DOMAIN = "llm.example.com"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def signed(
    name: str,
    key: Key,
    issuer: tuple[str, Key],
    names: tuple[str, ...] = (),
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + 90 * DAY,
) -> str:
    """A certificate (PEM)."""
    builder = (
        x509.CertificateBuilder(named(issuer[0]), named(name), key.public_key(), x509.random_serial_number(), begins, ends)
        .add_extension(x509.BasicConstraints(not names, None), critical=True)
    )  # fmt: skip
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False
        )
    return builder.sign(issuer[1], hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def pem(key: Key, password: bytes = b"") -> str:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


ROOT_KEY, KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _each in range(3))
WEAK_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505
ROOT = signed("Root", ROOT_KEY, ("Root", ROOT_KEY))
LEAF = signed(DOMAIN, KEY, ("Root", ROOT_KEY), (DOMAIN,))
CHAIN_FILE = "/etc/pki/chain.pem"

Judge = Callable[..., list[str]]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """The problems of a pair that is good but for `changes`; `mode` is that of the key's file, and `key_text` what is in it."""

    def judged(key_text: str = pem(KEY), mode: int = 0o600, stored: str = "", **changes: Any) -> list[str]:
        file = tmp_path / "key.pem"
        file.write_text(stored or key_text)
        file.chmod(mode)
        settings = {
            "domain": DOMAIN, "chain_file": CHAIN_FILE, "chain_pem": LEAF + ROOT, "key_file": str(file), "key_pem": key_text, "key": "",
        }  # fmt: skip
        found = _provided.problems({**settings, **changes}, NOW.timestamp())
        return [problem.replace(str(file), "/key.pem") for problem in found]

    return judged


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chain_pem": LEAF},
        {"chain_pem": f"# ours\n{LEAF}\n{ROOT}".rstrip()},
        {"chain_pem": signed(DOMAIN, KEY, ("Root", ROOT_KEY), ("other.example.com", "*.example.com")) + ROOT},
        {"key": pem(KEY), "key_file": "", "key_pem": ""},
        {"mode": 0o644, "stored": "$ANSIBLE_VAULT;1.1;AES256\n3030\n"},
    ],
)
def test_a_good_pair(judge: Judge, changes: dict[str, Any]) -> None:
    assert judge(**changes) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chain_file": "", "chain_pem": ""}, "vllm_tls_chain_file is '': vllm_tls_mode: provided needs the path"),
        ({"chain_pem": ""}, f"vllm_tls_chain_file is '{CHAIN_FILE}': there is no such file on the control node"),
        ({"key_file": "", "key_pem": ""}, "vllm_tls_key_file is '': vllm_tls_mode: provided needs the path"),
        ({"key_pem": ""}, "vllm_tls_key_file is '/key.pem': there is no such file on the control node"),
        ({"key": pem(KEY)}, "vllm_tls_key and vllm_tls_key_file are both set"),
        ({"chain_pem": LEAF + pem(KEY)}, f"vllm_tls_chain_file is '{CHAIN_FILE}': it holds a private key (not shown)"),
        ({"chain_pem": "no PEM"}, f"vllm_tls_chain_file is '{CHAIN_FILE}': it cannot be read as certificates."),
        ({"chain_pem": LEAF[:-30]}, f"vllm_tls_chain_file is '{CHAIN_FILE}': it cannot be read as certificates."),
        (
            {"chain_pem": LEAF + signed("Other", OTHER_KEY, ("Other", OTHER_KEY))},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its certificate 1 (CN={DOMAIN}) is not signed by the next (CN=Other). Put the endpoint's own first",
        ),
        (
            {"chain_pem": LEAF, "domain": "llm.other.com"},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its first certificate is for {DOMAIN}, and vllm_domain is 'llm.other.com'.",
        ),
        (
            {"chain_pem": signed(DOMAIN, KEY, ("Root", ROOT_KEY), ("*.com", "*.llm.example.com"))},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its first certificate is for *.com, *.llm.example.com, and vllm_domain is '{DOMAIN}'.",
        ),
        (
            {"chain_pem": signed(DOMAIN, KEY, ("Root", ROOT_KEY))},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its first certificate is for no DNS name, and vllm_domain is '{DOMAIN}'.",
        ),
        (
            {"chain_pem": signed(DOMAIN, KEY, ("Root", ROOT_KEY), (DOMAIN,), ends=NOW)},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its certificate 1 (CN={DOMAIN}) expired on 2026-11-26 12:00 UTC. Get a new one.",
        ),
        (
            {"chain_pem": LEAF + signed("Root", ROOT_KEY, ("Root", ROOT_KEY), ends=NOW - timedelta(hours=1))},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its certificate 2 (CN=Root) expired on 2026-11-26 11:00 UTC.",
        ),
        (
            {"chain_pem": signed(DOMAIN, KEY, ("Root", ROOT_KEY), (DOMAIN,), begins=NOW + DAY)},
            f"vllm_tls_chain_file is '{CHAIN_FILE}': its certificate 1 (CN={DOMAIN}) is not valid before 2026-11-27 12:00 UTC.",
        ),
        ({"mode": 0o640}, "vllm_tls_key_file is '/key.pem': others than its owner may read it (mode 0640). Say chmod 0600"),
        ({"key_text": pem(KEY, b"secret")}, "vllm_tls_key_file is '/key.pem': it is encrypted with a passphrase"),
        ({"key_text": pem(KEY)[:-40]}, "vllm_tls_key_file is '/key.pem': it cannot be read as a private key."),
        *[
            ({"key_text": text}, "vllm_tls_key_file is '/key.pem': there is more than one private key in it, or other text")
            for text in (
                pem(KEY).replace("\n", "\r\n"),
                pem(KEY) + pem(KEY),
                pem(KEY) + LEAF,
                "Bag Attributes\n" + pem(KEY),
                "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + pem(KEY),
            )
        ],
        (
            {"key_text": pem(OTHER_KEY)},
            f"vllm_tls_key_file is '/key.pem': it is not the key of the first certificate in vllm_tls_chain_file (CN={DOMAIN}).",
        ),
        (
            {"key": pem(OTHER_KEY), "key_file": "", "key_pem": ""},
            "vllm_tls_key (not shown): it is not the key of the first certificate in vllm_tls_chain_file",
        ),
        (
            {"key_text": pem(WEAK_KEY), "chain_pem": signed(DOMAIN, WEAK_KEY, ("Root", ROOT_KEY), (DOMAIN,))},
            "vllm_tls_key_file is '/key.pem': an RSA key of 1024 bits, which OpenSSL refuses.",
        ),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_served(judge: Judge, changes: dict[str, Any], expected: str) -> None:
    assert [problem[: len(expected)] for problem in judge(**changes)] == [expected]


def test_the_wrong_way_round(judge: Judge) -> None:
    assert judge(chain_pem=ROOT + LEAF)[0].startswith(
        f"vllm_tls_chain_file is '{CHAIN_FILE}': its certificate 1 (CN=Root) is not signed by the next (CN={DOMAIN})."
    )


@pytest.mark.parametrize("text", [pem(OTHER_KEY), pem(KEY)[:-40], pem(KEY, b"secret")])
def test_no_word_of_a_key_is_shown(judge: Judge, text: str) -> None:
    """Wherever it was put."""
    said = "".join([*judge(key_text=text, mode=0o644), *judge(key=text, key_file=""), *judge(chain_pem=LEAF + text)])
    assert said
    assert [line for line in text.splitlines()[1:-1] if line[:10] in said] == []
