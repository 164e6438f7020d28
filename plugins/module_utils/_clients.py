# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use an endpoint: client keys as an inventory has them, what is wrong with them, and what a proxy needs to know of them.

No message and no result here holds a key; what stands at a wrong place may be one, so it is not shown either.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", re.ASCII)
# What a Bearer header carries unharmed: printable ASCII without the blank.
_KEY = re.compile(r"[!-~]+", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
KEY_MIN_LENGTH = 16
KEY_MAX_LENGTH = 512
#: The limits of a client, each with the highest number that makes sense.
LIMITS = {"requests_per_minute": 100_000, "concurrent_requests": 10_000}
#: What all keys of one client have in common.
SHARED = ("models", *LIMITS)
OPTIONS = ("name", "key", "key_sha256", "expires", *SHARED)


def problems(keys: Any, variable: str, models: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with a list of clients' keys; ``[]`` if nothing is.

    ``variable`` is the name that the user knows the list by. ``models`` are the slugs that an entry's ``models`` may name; none: any.
    """
    need = f"It needs a list of {{name, key}}, one entry for each key; keep the keys in a vault. Correct {variable}."
    if isinstance(keys, (str, bytes, Mapping)) or not isinstance(keys, Sequence):
        return [f"{variable} is not a list but {_kind(keys)} (value not shown). {need}"]
    if not keys:
        return [f"{variable} is an empty list: nobody could use the endpoint. {need}"]
    found = []
    first_of_name: dict[str, int] = {}
    first_of_key: dict[str, int] = {}
    for number, entry in enumerate(keys, start=1):
        where = f"{variable}, entry {number}"
        if not isinstance(entry, Mapping):
            found.append(f"{where} is not a mapping but {_kind(entry)} (value not shown). {need}")
            continue
        unknown = [option for option in entry if option not in OPTIONS]
        if unknown:
            # Only their number: what stands there by mistake may be a key.
            found.append(f"{where} has {len(unknown)} option(s) besides {', '.join(OPTIONS)}. Correct {variable}.")
        faults = [_name_fault(entry.get("name")), _key_fault(entry), _expiry_fault(entry), _models_fault(entry, models)]
        faults += [_limit_fault(entry, option, top) for option, top in LIMITS.items()]
        found += [f"{where}: {fault} Correct {variable}." for fault in faults if fault]
        if any(faults):
            continue
        earlier = first_of_name.setdefault(entry["name"], number)
        if [keys[earlier - 1].get(option) for option in SHARED] != [entry.get(option) for option in SHARED]:
            found.append(
                f"{where} is of the client {entry['name']!r}, as entry {earlier} is, but differs in {', '.join(SHARED)}. Keys of one client"
                " share what it may do: give both the same, or the client another name."
            )
        same = first_of_key.setdefault(digest_of(entry), number)
        if same != number:
            found.append(f"{where} has the key of entry {same}. Give each its own key.")
    return found


def records(keys: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each key what a proxy needs: ``name``, ``digest`` (SHA-256, 64 hexadecimal digits), ``expires`` (seconds since the epoch, 0:
    never), ``models`` (slugs, none: all), ``requests_per_minute`` and ``concurrent_requests`` (0: no limit).

    Raises ValueError, without a key's value, where `problems` finds something.
    """
    if found := problems(keys, "client_records"):
        raise ValueError(" ".join(found))
    return [
        {
            "name": entry["name"],
            "digest": digest_of(entry),
            "expires": int(when.timestamp()) if (when := moment(entry.get("expires"))) else 0,
            "models": list(entry.get("models") or []),
            **{option: int(entry.get(option) or 0) for option in LIMITS},
        }
        for entry in keys
    ]


def digest_of(entry: Mapping[str, Any]) -> str:
    """The SHA-256 of an entry's key, which may be all that the inventory has of it."""
    return str(entry.get("key_sha256") or hashlib.sha256(str(entry.get("key")).encode()).hexdigest())


# ---- What NGINX reads of it ------------------------------------------------------------------------------------------


def clients_conf(clients: Sequence[Mapping[str, Any]]) -> str:
    """Maps from ``$vllm_key_digest`` to ``$vllm_key_client`` and ``$vllm_key_expires``, and from ``$vllm_client`` to ``$vllm_scope`` (slugs,
    empty: all) and to what limits count by. It does not depend on the order of ``clients``.
    """
    ordered = sorted(clients, key=lambda one: (one["name"], one["digest"]))
    text = _map("$vllm_key_digest", "$vllm_key_client", {one["digest"]: one["name"] for one in ordered})
    text += _map(
        "$vllm_key_digest", "$vllm_key_expires", {one["digest"]: one["expires"] for one in ordered if one["expires"]}
    )
    text += _map(
        "$vllm_client", "$vllm_scope", {one["name"]: " ".join(one["models"]) for one in ordered if one["models"]}
    )
    for option, limit in _limits(ordered):
        variable = f"vllm_{option}_{limit}"
        text += _map(
            "$vllm_client", f"${variable}", {one["name"]: one["name"] for one in ordered if one[option] == limit}
        )
        if option == "requests_per_minute":
            text += f"limit_req_zone ${variable} zone={variable}:1m rate={limit}r/m;\n"
        else:
            text += f"limit_conn_zone ${variable} zone={variable}:1m;\n"
    return text


def limits_conf(clients: Sequence[Mapping[str, Any]]) -> str:
    """The limits themselves, for a server: NGINX counts nobody whose value for a zone is empty."""
    lines = []
    for option, limit in _limits(clients):
        zone = f"vllm_{option}_{limit}"
        # A minute's worth at once, as people understand it, and then one by one.
        burst = f" burst={limit - 1}" if limit > 1 else ""
        lines.append(
            f"limit_req zone={zone}{burst} nodelay;\n"
            if option == "requests_per_minute"
            else f"limit_conn {zone} {limit};\n"
        )
    return "".join(lines)


def _limits(clients: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return sorted({(option, one[option]) for one in clients for option in LIMITS if one[option]})


def _map(source: str, target: str, values: Mapping[str, object]) -> str:
    lines = "".join(f'"{key}" "{value}";\n' for key, value in values.items())
    return f'map {source} {target} {{\ndefault "";\n{lines}}}\n'


# ---- What is wrong with one entry ------------------------------------------------------------------------------------


def _name_fault(name: object) -> str:
    if isinstance(name, str) and _SLUG.fullmatch(name):
        return ""
    return "its name is no slug. It needs 1 to 64 lower-case letters, digits or inner hyphens, such as team-a; the access log shows it."


def _key_fault(entry: Mapping[str, Any]) -> str:
    if "key_sha256" in entry:
        if "key" in entry:
            return "it has both key and key_sha256. It needs one of them."
        if isinstance(entry["key_sha256"], str) and _DIGEST.fullmatch(entry["key_sha256"]):
            return ""
        return "its key_sha256 (not shown) is no SHA-256. It needs 64 lower-case hexadecimal digits, as `printf %s KEY | sha256sum` prints them."
    fault = _text_fault(entry.get("key"))
    if not fault:
        return ""
    return (
        f"its key (not shown) is {fault}. It needs {KEY_MIN_LENGTH} to {KEY_MAX_LENGTH} printable ASCII characters on one line, without blanks."
        " Make one with `openssl rand -hex 32`."
    )


def _text_fault(key: object) -> str:
    if not isinstance(key, str):
        return f"not a string but {_kind(key)}"
    if not key:
        return "empty"
    if "\n" in key or "\r" in key:
        return "more than one line"
    if not _KEY.fullmatch(key):
        return "not printable ASCII without blanks"
    if not KEY_MIN_LENGTH <= len(key) <= KEY_MAX_LENGTH:
        return f"{len(key)} characters long"
    return ""


def moment(value: object) -> datetime.datetime | None:
    """A moment with its zone; YAML makes one of an unquoted text by itself, in UTC. None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
        return value if value.tzinfo else None
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return None


def _expiry_fault(entry: Mapping[str, Any]) -> str:
    if entry.get("expires") in (None, "") or moment(entry["expires"]):
        return ""
    return "its expires is no moment with a time zone. It needs one such as 2027-01-31T00:00:00Z."


def _models_fault(entry: Mapping[str, Any], known: Iterable[str]) -> str:
    models, known = entry.get("models"), sorted(known)
    if models in (None, []):
        return ""
    if (
        isinstance(models, (str, Mapping))
        or not isinstance(models, Sequence)
        or not all(isinstance(one, str) for one in models)
    ):
        return "its models is no list of names. It needs names of vllm_models, or nothing for all."
    if known and (unknown := [one for one in models if one not in known]):
        return f"its models has {len(unknown)} name(s) that no model here has. It needs some of {', '.join(known)}."
    if not all(_SLUG.fullmatch(one) for one in models):
        return "its models has a name that no model can have. It needs names of vllm_models."
    return ""


def _limit_fault(entry: Mapping[str, Any], option: str, top: int) -> str:
    value = entry.get(option)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= top):
        return ""
    return f"its {option} is no limit. It needs a number from 1 to {top}, or nothing for none."


def _kind(value: object) -> str:
    """A value's type in a word that does not depend on Ansible's wrappers."""
    for kind, word in (
        (type(None), "nothing"),
        (bool, "a boolean"),
        (int, "a number"),
        (float, "a number"),
        (str, "a string"),
        (Mapping, "a mapping"),
        (Sequence, "a list"),
    ):
        if isinstance(value, kind):
            return word
    return "something else"
