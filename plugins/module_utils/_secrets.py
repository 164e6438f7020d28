# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in /etc/vllm/secrets: the operator's hub token and the engine's own key. Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from . import _envfile

ENGINE_KEY = "VLLM_API_KEY"
#: Bytes of randomness in the engine's key: out of reach of guessing, also through a digest that it goes into.
KEY_BYTES = 32
#: What an HTTP header carries as it is.
HEADER_VALUE = re.compile(r"^[!-~]+\Z")
#: What NGINX's configuration carries as well, unquoted: a bearer token as RFC 6750 spells it.
KEY_VALUE = re.compile(r"^[A-Za-z0-9._~+/=-]+\Z")


def value_problem(name: str, value: str) -> str | None:
    """Return why a secret cannot be used, without showing it; None where it can. An empty one means "none"."""
    if value and not HEADER_VALUE.match(value):
        return f"{name} holds a blank, a line break or a character outside printable ASCII, which no HTTP header carries as it is"
    return None


def wanted(current: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables the file should hold: ``values`` that are not empty, and the engine's key, made only if there is none.

    An engine key that is empty, short or no bearer token is replaced: an empty one switches vLLM's authentication off.
    """
    key = current.get(ENGINE_KEY, "")
    if len(key) < KEY_BYTES or not KEY_VALUE.match(key):
        key = secrets.token_urlsafe(KEY_BYTES)
    return {**{name: value for name, value in sorted(values.items()) if value}, ENGINE_KEY: key}


def of_process(environ: bytes) -> str:
    """Return the engine's key in the environment that a process was started with (/proc/PID/environ), "" where there is none."""
    name = f"{ENGINE_KEY}=".encode()
    found = (entry.removeprefix(name) for entry in environ.split(b"\0") if entry.startswith(name))
    return next(found, b"").decode(errors="surrogateescape")


def parse(text: str) -> dict[str, str]:
    """Return the variables of the file's text; a broken one counts as empty, since the file is ours to write."""
    try:
        return _envfile.parse(text)
    except ValueError:
        return {}
