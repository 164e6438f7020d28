# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _checks

KEY = "SECRET-0123456789"


@pytest.mark.parametrize("domain", ["llm.example.com", "a.b", "x1.example.co.uk", "xn--bcher-kva.example"])
def test_good_domain(domain: str) -> None:
    assert _checks.domain_problems(domain, "vllm_domain") == []


@pytest.mark.parametrize(
    ("domain", "why"),
    [
        ("", "empty"),
        (None, "not a string"),
        (7, "not a string"),
        ("localhost", "a single label, which no certificate authority signs"),
        ("10.0.0.1", "an IP address"),
        ("https://llm.example.com", "not a DNS name"),
        ("llm.example.com:443", "not a DNS name"),
        ("LLM.example.com", "not a DNS name"),
        ("llm.example.com.", "not a DNS name"),
        ("llm.example.com\n", "not a DNS name"),
        ("*.example.com", "not a DNS name"),
        ("a b.example.com", "not a DNS name"),
        ("-x.example.com", "not a DNS name"),
        (f"{'a' * 64}.example.com", "not a DNS name"),
        ("a." * 130 + "com", "263 characters long, where DNS allows 253"),
        ("x;}server{.com", "not a DNS name"),
        ("bücher.example", "not a DNS name"),
    ],
)
def test_bad_domain(domain: Any, why: str) -> None:
    need = (
        "It needs the DNS name under which clients reach this host, in lower case and without https:// or a port, such as"
        " llm.example.com. Set vllm_domain in the inventory."
    )
    assert _checks.domain_problems(domain, "vllm_domain") == [f"vllm_domain is {domain!r}: {why}. {need}"]


def instance(model: str, replica: int, default: bool = False) -> dict[str, Any]:
    return {
        "name": f"{model}-{replica}",
        "model_name": model,
        "served_as": [model],
        "engine_args": {"max-model-len": 512},
        "default": default,
        "address": "127.0.0.1",
        "port": 8000 + replica,
        "env": {},
    }


def test_models_of_instances() -> None:
    models = _checks.proxy_models([instance("a", 0), instance("b", 1, True), instance("b", 2, True)])
    assert [(model["name"], model["default"]) for model in models] == [("a", False), ("b", True)]
    assert models[1]["replicas"] == [
        {"name": "b-1", "address": "127.0.0.1", "port": 8001},
        {"name": "b-2", "address": "127.0.0.1", "port": 8002},
    ]


def test_the_only_model_is_the_default() -> None:
    assert _checks.proxy_models([instance("a", 0)])[0]["default"] is True
    assert not any(model["default"] for model in _checks.proxy_models([instance("a", 0), instance("b", 1)]))
    assert _checks.proxy_models([]) == []


SETTINGS = {
    "mode": "letsencrypt",
    "email": "ops@example.com",
    "directory": "",
    "ca_file": "",
    "ca_file_exists": False,
    "ca_pem": "",
    "challenge": "http-01",
    "dns_plugin": "",
    "dns_credentials": {},
}
BY_DNS = {"challenge": "dns-01", "dns_plugin": "rfc2136", "dns_credentials": {"dns_rfc2136_secret": KEY}}
CREDENTIAL = "vllm_acme_dns_credentials, dns_rfc2136_secret (not shown): certbot's file cannot carry it."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"mode": "selfsigned", "email": ""}, ""),
        ({"mode": "selfsigned", "email": "nobody"}, ""),
        ({"mode": "acme", "email": "", "directory": "https://acme.example.com/dir"}, ""),
        (
            {"mode": "none"},
            "vllm_tls_mode is 'none': it needs one of letsencrypt, acme, provided, selfsigned. Correct it",
        ),
        ({"mode": ["acme"]}, "vllm_tls_mode is ['acme']: it needs one of"),
        ({"email": ""}, "vllm_acme_email is '': letsencrypt needs an address"),
        ({"email": "ops@localhost"}, "vllm_acme_email is 'ops@localhost': letsencrypt needs an address"),
        ({"email": "-m@example.com"}, "vllm_acme_email is '-m@example.com': letsencrypt needs an address"),
        ({"mode": "acme", "directory": "http://acme.example.com"}, "vllm_acme_directory is 'http://acme.example.com'"),
        (
            {"mode": "acme", "directory": "https://a.b/dir", "ca_file": "/nope"},
            "vllm_acme_ca_file is '/nope': there is no such file on the control node.",
        ),
        (BY_DNS, ""),
        ({"mode": "selfsigned", "challenge": "magic"}, ""),
        ({"challenge": "tls-alpn-01"}, "vllm_acme_challenge is 'tls-alpn-01': it needs one of http-01, dns-01."),
        ({"challenge": "dns-01"}, "vllm_acme_dns_plugin is '': vllm_acme_challenge: dns-01 needs one of cloudflare, "),
        (
            {**BY_DNS, "dns_plugin": "route53"},
            "vllm_acme_dns_plugin is 'route53': vllm_acme_challenge: dns-01 needs one of",
        ),
        (
            {**BY_DNS, "dns_credentials": {}},
            "vllm_acme_dns_credentials is empty. It needs what the plugin's documentation lists",
        ),
        ({**BY_DNS, "dns_credentials": KEY}, "vllm_acme_dns_credentials is not a mapping (not shown). It needs"),
        (
            {**BY_DNS, "dns_credentials": {"api_token": KEY}},
            "vllm_acme_dns_credentials has 'api_token', no setting of the plugin rfc2136. It needs",
        ),
        *(
            ({**BY_DNS, "dns_credentials": {"dns_rfc2136_secret": value}}, CREDENTIAL)
            for value in ("", f"{KEY}\nx", f"{KEY}\"'", f"{KEY}%(x)s")
        ),
    ],
)
def test_certificate_settings(changes: dict[str, Any], expected: str) -> None:
    problems = _checks.certificate_problems({**SETTINGS, **changes})
    assert [problem[: len(expected)] for problem in problems] == ([expected] if expected else [])
    assert KEY not in "".join(problems)


def test_the_credentials_file() -> None:
    """As configobj, with which certbot reads it, has them."""
    credentials = {"dns_rfc2136_server": "10.0.0.1", "dns_rfc2136_port": 53, "dns_rfc2136_secret": 'a, "b" #c='}
    assert _checks.credentials_file(credentials) == (
        'dns_rfc2136_port = "53"\ndns_rfc2136_secret = \'a, "b" #c=\'\ndns_rfc2136_server = "10.0.0.1"\n'
    )
    with pytest.raises(
        ValueError, match=r"^dns_rfc2136_secret \(not shown\) cannot be carried by certbot's file of credentials$"
    ):
        _checks.credentials_file({"dns_rfc2136_secret": f"{KEY}\n"})


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTUlJQg==\n-----END CERTIFICATE-----\n"
PRIVATE_KEY = "-----BEGIN EC PRIVATE KEY-----\nSECRET==\n-----END EC PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (CERTIFICATE, ""),
        (f"# The root\n{CERTIFICATE}{CERTIFICATE}".rstrip(), ""),
        ("", "holds no certificate"),
        ("SECRET", "holds no certificate"),
        (CERTIFICATE + PRIVATE_KEY, "holds a private key (not shown)"),
        (PRIVATE_KEY, "holds a private key (not shown)"),
        (CERTIFICATE[:-20], "holds PEM blocks that are no certificates, or are not whole"),
        (PRIVATE_KEY.replace("PRIVATE", "PUBLIC"), "holds PEM blocks that are no certificates, or are not whole"),
        (CERTIFICATE.replace("TUlJQg==", PRIVATE_KEY), "holds a private key (not shown)"),
    ],
)
def test_the_ca_file_holds_certificates_only(text: str, fault: str) -> None:
    settings = {
        **SETTINGS,
        "mode": "acme",
        "email": "",
        "directory": "https://a.b/dir",
        "ca_file": "/ca.pem",
        "ca_file_exists": True,
    }
    expected = (
        f"vllm_acme_ca_file is '/ca.pem': the file {fault}. It goes into the trust of every host, where all may read it, so"
        " it needs certificates (BEGIN CERTIFICATE, PEM) and nothing else. Name such a file."
    )
    assert _checks.certificate_problems({**settings, "ca_pem": text}) == ([expected] if fault else [])


@pytest.mark.parametrize("size", ["50m", "1M", "8k", "2G", "0", 1048576])
def test_good_size(size: Any) -> None:
    assert _checks.size_problems(size, "x") == []


@pytest.mark.parametrize("size", ["", "50 m", "50mb", "-1", "1m;", "1m\n", "m", "1.5m", True, None, 1.5])
def test_bad_size(size: Any) -> None:
    assert _checks.size_problems(size, "x") == [
        f"x is {size!r}: no size that NGINX reads. It needs a number of bytes, or one with k, m or g behind it, such as 50m."
        " Correct x."
    ]
