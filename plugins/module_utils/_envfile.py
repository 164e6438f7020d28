# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file format of systemd's ``EnvironmentFile=``, written and read without loss."""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*\Z")

# Inside double quotes systemd (systemd.exec(5)) takes a backslash off these four and keeps all else as it is.
_ESCAPED = re.compile(r'([\\"$`])')
_UNESCAPE = re.compile(r'\\([\\"$`])')
_ASSIGNMENT = re.compile(r"^[ \t]*([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)


def render(variables: Mapping[str, str]) -> str:
    """Return ``NAME="value"`` lines in the order given; every value reads back byte for byte.

    Raises ValueError for a name that is no variable name and for a value with a NUL byte, which no environment can hold.
    """
    lines = []
    for name, value in variables.items():
        if not NAME.match(name):
            raise ValueError(f"{name!r} is not an environment variable name")
        if "\0" in value:
            raise ValueError(f"the value of {name} holds a NUL byte, which no environment can carry")
        escaped = _ESCAPED.sub(r"\\\1", value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def parse(text: str) -> dict[str, str]:
    """Return the variables of an environment file: what `render` wrote, and plain ``NAME=value`` lines.

    Raises ValueError when a double quote is never closed.
    """
    variables: dict[str, str] = {}
    position = 0
    while match := _ASSIGNMENT.search(text, position):
        name, start = match.group(1), match.end()
        if text[start : start + 1] == '"':
            end = _closing_quote(text, start + 1)
            if end < 0:
                raise ValueError(f"the value of {name} has no closing double quote")
            variables[name] = _UNESCAPE.sub(r"\1", text[start + 1 : end])
            position = end + 1
        else:
            line = text[start:].split("\n", 1)[0]
            variables[name] = line.strip().strip("'")
            position = start + len(line)
    return variables


def _closing_quote(text: str, start: int) -> int:
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text[position] == '"':
            return position
        else:
            position += 1
    return -1
