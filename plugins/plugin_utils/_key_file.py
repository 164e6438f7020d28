# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A YAML file of the inventory with clients' keys, edited as text: comments, order and values encrypted one by one stay as they are."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _clients

VAULT_TAG = "!vault"
#: Turns a new key into what the file is to have for it; None: as it is. The second argument is the old one's ciphertext.
Encrypt = Callable[[str, str], str]


class KeyFileError(ValueError):
    """The file cannot be edited; says why and what to do, without a key."""


@dataclass(frozen=True)
class Entry:
    """One key of the file."""

    node: yaml.MappingNode
    values: dict[str, yaml.Node]

    def text(self, name: str) -> str:
        """A value as it is written; ``""`` where there is none or it is no text."""
        value = self.values.get(name)
        return value.value if isinstance(value, yaml.ScalarNode) else ""


def rotate(
    text: str,
    variable: str,
    keys: Mapping[str, str],
    until: datetime.datetime,
    now: datetime.datetime,
    encrypt: Encrypt,
) -> str:
    """Return ``text`` with a new key for each client of ``keys`` (key by client's name), and its keys from before good until ``until``.

    What has expired of those clients is left out. A client known by ``key_sha256`` gets the new key's digest. Raises KeyFileError.
    """
    entries = _entries(text, variable)
    edits: list[tuple[int, int, str]] = []
    for client, key in keys.items():
        own = [entry for entry in entries if entry.text("name") == client]
        if not own:
            known = ", ".join(dict.fromkeys(entry.text("name") for entry in entries))
            raise KeyFileError(f"{variable} has no client {client!r}, but {known}. Correct vllm_rotate_clients.")
        alive = [entry for entry in own if not _expired(entry, now)]
        if not alive:
            raise KeyFileError(
                f"Every key of {client!r} has ended. Give it a new one by hand, if it is to have one again."
            )
        edits += [_removal(text, entry, entries) for entry in own if entry not in alive]
        edits += [edit for entry in alive for edit in _ending(entry, until)]
        ends = [_moment(entry) for entry in alive]
        # Who has a key only until some day gets none that lasts longer.
        last = max(one for one in ends if one) if all(ends) else None
        start = alive[-1].node.start_mark.index
        edits.append((start, start, _written(alive[-1], key, last, encrypt) + _between(text, alive[-1])))
    edited = text
    # Of two at the same place the later one of the list comes to stand before the other.
    for start, end, new in sorted(edits, key=lambda edit: edit[0], reverse=True):
        edited = edited[:start] + new + edited[end:]
    try:
        _prove(_entries(edited, variable), entries, keys)
    except (KeyFileError, yaml.YAMLError):
        raise KeyFileError(
            "It is written in a way that cannot be edited here. Write one entry below another, each as a block."
        ) from None
    return edited


def _prove(after: Sequence[Entry], before: Sequence[Entry], keys: Mapping[str, str]) -> None:
    """Raise KeyFileError unless only what was meant has changed."""

    def known(entries: Sequence[Entry], own: bool) -> list[dict[str, Any]]:
        return [_plain(entry.node) for entry in entries if (entry.text("name") in keys) == own]

    added = [one for one in known(after, True) if all(_key_of(one) != _key_of(old) for old in known(before, True))]
    if known(after, False) != known(before, False) or sorted(one["name"] for one in added) != sorted(keys):
        raise KeyFileError


def _key_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("key_sha256") or entry.get("key"))


def _entries(text: str, variable: str) -> list[Entry]:
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        # Its own words show the line, which may be a key's.
        mark = getattr(error, "problem_mark", None)
        raise KeyFileError(f"It is no YAML{f', line {mark.line + 1}' if mark else ''}. Correct it.") from None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for name, value in pairs if name.value == variable]
    if len(found) != 1 or not isinstance(found[0], yaml.SequenceNode):
        raise KeyFileError(f"It does not have {variable} as a list. Name the file in which that stands.")
    items = found[0].value
    if not all(isinstance(item, yaml.MappingNode) for item in items):
        raise KeyFileError(f"{variable} has an entry that is no mapping. Correct it.")
    return [Entry(item, {name.value: value for name, value in item.value}) for item in items]


def _expired(entry: Entry, now: datetime.datetime) -> bool:
    moment = _moment(entry)
    return moment is not None and moment <= now


def _text(moment: datetime.datetime) -> str:
    return f'"{moment.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"'


def _moment(entry: Entry) -> datetime.datetime | None:
    node = entry.values.get("expires")
    return _clients.moment(_plain(node)) if node else None


def _ending(entry: Entry, until: datetime.datetime) -> Iterator[tuple[int, int, str]]:
    """Have an entry end, unless it ends before anyway."""
    moment = _moment(entry)
    if moment and moment <= until:
        return
    said = _text(until)
    if old := entry.values.get("expires"):
        yield old.start_mark.index, old.end_mark.index, said
    else:
        # Before the first member.
        start = int(entry.node.value[0][0].start_mark.index)
        following = ", " if entry.node.flow_style else "\n" + " " * entry.node.start_mark.column
        yield start, start, f"expires: {said}{following}"


def _written(entry: Entry, key: str, end: datetime.datetime | None, encrypt: Encrypt) -> str:
    """An entry with the same rights as ``entry``, another key, and an end if there is one."""
    members = [("name", entry.text("name"))]
    if end:
        members.append(("expires", _text(end)))
    old = entry.values.get("key")
    if is_digest(entry):
        members.append(("key_sha256", json.dumps(_clients.digest_of({"key": key}))))
    elif old is None or "{{" in entry.text("key"):
        raise KeyFileError(
            f"The key of {entry.text('name')!r} stands elsewhere. Put it into this file itself, as text, or give the client a new key by hand."
        )
    elif old.tag == VAULT_TAG:
        members.append(("key", f"{VAULT_TAG} |\n{encrypt(key, entry.text('key'))}"))
    else:
        members.append(("key", json.dumps(key)))
    members += [(name, json.dumps(_plain(entry.values[name]))) for name in _clients.SHARED if name in entry.values]
    if entry.node.flow_style:
        # A block, as a ciphertext is, cannot stand on a line; then nothing is written, see `_prove`.
        return "{" + ", ".join(f"{name}: {value}" for name, value in members) + "}"
    inner = "\n" + " " * entry.node.start_mark.column
    return inner.join(f"{name}: " + value.rstrip("\n").replace("\n", f"{inner}  ") for name, value in members)


def _between(text: str, entry: Entry) -> str:
    """What stands between two entries of the list: a comma, or a new line with a dash."""
    start = entry.node.start_mark
    before = text[start.index - start.column : start.index]
    if before.strip() == "-":
        return f"\n{before}"
    if entry.node.flow_style:
        return ", "
    raise KeyFileError(f"The entry of {entry.text('name')!r} does not begin on a line of its own. Write it so.")


def _removal(text: str, entry: Entry, entries: Sequence[Entry]) -> tuple[int, int, str]:
    """An entry: its lines, or on a line with others what stands between it and a neighbour as well."""
    start, end = entry.node.start_mark.index, _end(entry)
    if "\n" in _between(text, entry):
        return text.rfind("\n", 0, start) + 1, text.find("\n", end - 1) + 1 or len(text), ""
    place = entries.index(entry)
    if place + 1 < len(entries):
        return start, entries[place + 1].node.start_mark.index, ""
    return _end(entries[place - 1]), end, ""


def _end(entry: Entry) -> int:
    """Where an entry's text ends; a block ends after its new line."""
    return (
        entry.node.end_mark.index if entry.node.flow_style else max(one.end_mark.index for one in _leaves(entry.node))
    )


def _leaves(node: yaml.Node) -> Iterator[yaml.Node]:
    """What a node ends with; PyYAML has a block end at what follows it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        for item in node.value:
            yield from _leaves(item[1] if isinstance(node, yaml.MappingNode) else item)
    else:
        yield node


def is_digest(entry: Entry) -> bool:
    """Whether the file has only the digest of a key."""
    return "key_sha256" in entry.values


def hashed(text: str, variable: str) -> set[str]:
    """Clients of which the file has only the digest of the last key."""
    return {
        name
        for name, entry in {entry.text("name"): entry for entry in _entries(text, variable)}.items()
        if is_digest(entry)
    }


class _Loader(yaml.SafeLoader):
    """Knows encrypted values, as their ciphertext."""


_Loader.add_constructor(VAULT_TAG, lambda loader, node: str(node.value))


def _plain(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
