# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said about an endpoint's name and its certificate before any host is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
# What starts with a hyphen certbot would take for an option.
_EMAIL = re.compile(r"(?!-)[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_SIZE = re.compile(r"[0-9]+[kKmMgG]?", re.ASCII)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII)
_CREDENTIAL = re.compile(r"[^\x00-\x1f\x7f]+")
_HTTPS_URL = re.compile(r"https://[^\s/]+/?\S*")
ACME_MODES = ("letsencrypt", "acme")
CHALLENGES = ("http-01", "dns-01")
# certbot's plugins in Debian and Ubuntu (python3-certbot-dns-NAME) that read their credentials from a file of settings.
DNS_PLUGINS = ("cloudflare", "digitalocean", "dnsimple", "gandi", "gehirn", "linode", "ovh", "rfc2136", "sakuracloud")
TLS_MODES = (*ACME_MODES, "provided", "selfsigned")


def domain_problems(value: Any, variable: str) -> list[str]:
    """Return what keeps ``value`` from being the DNS name of an endpoint; ``[]`` if nothing does.

    ``variable`` is the name that the user knows the value by.
    """
    why = _domain_fault(value)
    if not why:
        return []
    message = (
        f"{variable} is {value!r}: {why}. It needs the DNS name under which clients reach this host, in lower case and"
        f" without https:// or a port, such as llm.example.com. Set {variable} in the inventory."
    )
    return [message]


def _domain_fault(value: Any) -> str:
    if not isinstance(value, str):
        return "not a string"
    if not value:
        return "empty"
    if len(value) > 253:
        return f"{len(value)} characters long, where DNS allows 253"
    labels = value.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return "not a DNS name"
    if len(labels) < 2:
        return "a single label, which no certificate authority signs"
    if labels[-1].isdigit():
        return "an IP address"
    return ""


def size_problems(value: Any, variable: str) -> list[str]:
    """Return what keeps ``value`` from being a size as NGINX writes it; ``[]`` if nothing does.

    ``variable`` is the name that the user knows the value by.
    """
    if isinstance(value, (int, str)) and _SIZE.fullmatch(str(value)):
        return []
    message = (
        f"{variable} is {value!r}: no size that NGINX reads. It needs a number of bytes, or one with k, m or g behind it,"
        f" such as 50m. Correct {variable}."
    )
    return [message]


def certificate_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return what keeps a certificate from being had; ``[]`` if nothing does.

    ``settings`` has ``mode``, ``email``, ``directory``, ``ca_file``, ``ca_file_exists`` (on the control node), ``ca_pem``, that file's text,
    ``challenge``, ``dns_plugin`` and ``dns_credentials``. No word of the text or of the credentials' values is ever part of a message.
    """
    mode = settings["mode"]
    if mode not in TLS_MODES:
        return [f"vllm_tls_mode is {mode!r}: it needs one of {', '.join(TLS_MODES)}. Correct it in the inventory."]
    problems = []
    email = settings["email"]
    if mode in ACME_MODES and (mode == "letsencrypt" or email) and not _EMAIL.fullmatch(str(email)):
        problems.append(
            f"vllm_acme_email is {email!r}: {mode} needs an address that somebody reads, such as ops@example.com. Set it"
            " in the inventory; for a trial without one, vllm_tls_mode: selfsigned."
        )
    if mode in ACME_MODES:
        problems += _challenge_problems(settings)
    if mode == "acme":
        if not _HTTPS_URL.fullmatch(str(settings["directory"])):
            problems.append(
                f"vllm_acme_directory is {settings['directory']!r}: vllm_tls_mode: acme needs the https:// URL of the"
                " authority's directory, such as https://acme.example.com/directory. Set it in the inventory."
            )
        if settings["ca_file"] and not settings["ca_file_exists"]:
            problems.append(
                f"vllm_acme_ca_file is {settings['ca_file']!r}: there is no such file on the control node. It needs the"
                " certificates (PEM) that vouch for vllm_acme_directory, or nothing where the hosts know them already."
            )
        elif settings["ca_file"] and (fault := _ca_fault(settings["ca_pem"])):
            problems.append(
                f"vllm_acme_ca_file is {settings['ca_file']!r}: the file {fault}. It goes into the trust of every host, where"
                " all may read it, so it needs certificates (BEGIN CERTIFICATE, PEM) and nothing else. Name such a file."
            )
    return problems


def _challenge_problems(settings: Mapping[str, Any]) -> list[str]:
    challenge, plugin, credentials = (settings[name] for name in ("challenge", "dns_plugin", "dns_credentials"))
    if challenge not in CHALLENGES:
        return [
            f"vllm_acme_challenge is {challenge!r}: it needs one of {', '.join(CHALLENGES)}. Correct it in the inventory."
        ]
    if challenge != "dns-01":
        return []
    if plugin not in DNS_PLUGINS:
        return [
            f"vllm_acme_dns_plugin is {plugin!r}: vllm_acme_challenge: dns-01 needs one of {', '.join(DNS_PLUGINS)}. Set it in the inventory."
        ]
    needs = f"It needs what the plugin's documentation lists, such as {{dns_{plugin}_...: ...}}, from a vault."
    if not isinstance(credentials, Mapping) or not credentials:
        return [f"vllm_acme_dns_credentials is {'empty' if not credentials else 'not a mapping (not shown)'}. {needs}"]
    wrong = [name for name in credentials if not re.fullmatch(rf"dns_{plugin}_[a-z0-9_]+", str(name), re.ASCII)]
    if wrong:
        return [
            f"vllm_acme_dns_credentials has {', '.join(map(repr, wrong))}, no setting of the plugin {plugin}. {needs}"
        ]
    return [
        f"vllm_acme_dns_credentials, {name} (not shown): certbot's file cannot carry it. It is empty or holds a line break, both kinds of quotes or"
        " '%('. Correct it."
        for name, value in credentials.items()
        if not _is_credential(str(value))
    ]


def _is_credential(value: str) -> bool:
    return bool(_CREDENTIAL.fullmatch(value)) and "%(" not in value and not ('"' in value and "'" in value)


def credentials_file(credentials: Mapping[str, Any]) -> str:
    """The file of settings in which a DNS plugin of certbot's reads ``credentials``. Raises ValueError, without the value, for one that it cannot carry."""
    lines = []
    for name, value in sorted((str(name), str(value)) for name, value in credentials.items()):
        if not _is_credential(value):
            raise ValueError(f"{name} (not shown) cannot be carried by certbot's file of credentials")
        quote = "'" if '"' in value else '"'
        lines.append(f"{name} = {quote}{value}{quote}\n")
    return "".join(lines)


def _ca_fault(text: str) -> str:
    rest, certificates = _CERTIFICATE.subn("", text)
    if "PRIVATE KEY" in rest:
        return "holds a private key (not shown)"
    if "-----" in rest:
        return "holds PEM blocks that are no certificates, or are not whole"
    return "" if certificates else "holds no certificate"


def proxy_models(instances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group a host's instances by model, in the order given, for the proxy and for who checks it.

    Each is ``{name, default, served_as, max_model_len, replicas: [{name, address, port}]}``. ``default`` marks the model that gets
    what names no model: the one that says so, or the only one there is. ``max_model_len`` is in tokens, None where vLLM decides.
    """
    models: dict[str, dict[str, Any]] = {}
    for instance in instances:
        name, length = instance["model_name"], instance["engine_args"].get("max-model-len")
        model = models.setdefault(
            name,
            {
                "name": name,
                "default": False,
                "served_as": list(instance["served_as"]),
                "max_model_len": length if isinstance(length, int) and length > 0 else None,
                "replicas": [],
            },
        )
        model["default"] = model["default"] or bool(instance.get("default"))
        model["replicas"].append({field: instance[field] for field in ("name", "address", "port")})
    found = list(models.values())
    if len(found) == 1:
        found[0]["default"] = True
    return found
