# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a driver as it is, as the text of files; which version of its packages to take; and whose key a key is."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from ansible_collections.gpuops.vllm.plugins.module_utils import _driver, _profiles

HEADER = "# Written by gpuops.vllm (role vllm_nvidia).\n"
_BEGIN, _END = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
_PUBLIC_KEY = 6
#: Signatures, keys, names, subkeys and attributes: what an exported key is made of.
_TAGS_OF_A_KEY = frozenset({2, _PUBLIC_KEY, 13, 14, 17})
_ADDRESS = re.compile(r"(?:https?|file):/\S+")

MODPROBE = (
    HEADER
    + """# nouveau would take the GPU before the driver does.
blacklist nouveau
options nouveau modeset=0
"""
)
NEEDRESTART = (
    HEADER
    + """# A restart ends streams and loads a model anew, and without the driver's daemons the GPU stops: that is for the play to decide.
$nrconf{override_rc}{qr(^vllm)} = 0;
$nrconf{override_rc}{qr(^nvidia-)} = 0;
"""
)


def address_problem(variable: str, address: str) -> str:
    """Return what is wrong with a repository's address, or ""."""
    if not _ADDRESS.fullmatch(address) or "@" in urlsplit(address).netloc:
        shown = "" if "@" in address else f" is '{address}'"
        return f"{variable}{shown}: needs an address such as https://mirror.example.com/nvidia or file:/srv/nvidia, without a password. Correct it."
    return ""


def source_text(address: str, key_path: str) -> str:
    """Return the entry (deb822) of a repository without suites."""
    return f"{HEADER}Types: deb\nURIs: {address}\nSuites: /\nSigned-By: {key_path}\n"


def pin_text(branch: str, names: Sequence[str], nvidias: bool) -> str:
    """Return the preferences that take of the driver one branch, and nothing else unasked from NVIDIA's repository, where it is used (``nvidias``)."""
    records = [("The driver, also where this is a step back.", " ".join(names), f"version {branch}.*", 1001)]
    if nvidias:
        # By its Release file: the host of a mirror may have the distribution as well.
        release = "release o=NVIDIA"
        # Current drivers want a newer dkms than Debian 12 has.
        records.append(("What builds the modules.", "dkms", release, 500))
        records.append(
            ("The rest of NVIDIA's repository only where it is installed already, or asked for.", "*", release, 100)
        )
    body = "\n".join(
        f"# {why}\nPackage: {which}\nPin: {pin}\nPin-Priority: {priority}\n" for why, which, pin, priority in records
    )
    return f"{HEADER}\n{body}"


def upgrades_text(patterns: Iterable[str]) -> str:
    """Return the settings by which unattended-upgrades leaves these packages alone; it wants regular expressions."""
    expressions = [re.escape(pattern).replace(r"\*", ".*").replace(r"\-", "-") for pattern in patterns]
    listed = "".join(f'    "^{one}$";\n' for one in expressions)
    return f"{HEADER}Unattended-Upgrade::Package-Blacklist {{\n{listed}}};\n"


def names_address(text: str, address: str) -> bool:
    """Return whether a file of sources has an entry, not commented out, of this address."""
    wanted = address.rstrip("/")
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return any(word.rstrip("/") == wanted for line in lines for word in line.split())


def trusts_blindly(text: str, address: str) -> bool:
    """Return whether a file of sources has an entry of this address whose signature APT would not look at."""
    wanted = address.rstrip("/")
    entries = re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    lines = [
        line for entry in entries for line in ([entry] if re.search(r"(?im)^types:", entry) else entry.splitlines())
    ]
    blind = re.compile(r"(?im)^trusted:\s*(?:yes|true|1|on)\b|\[[^]]*\btrusted=(?:yes|true|1|on)\b")
    return any(names_address(one, wanted) and bool(blind.search(one)) for one in lines)


# --- which version ----------------------------------------------------------------------------------------------


def choose(
    packages: Sequence[str],
    optional: Sequence[str],
    offers: Mapping[str, Sequence[str]],
    branch: str,
    version: str = "",
) -> dict[str, str]:
    """Return which version of each package to install: all of the newest driver of the branch that all ``packages`` are offered in.

    ``version`` is the driver's version that it must be. Raises LookupError, which says what is offered instead.
    """
    by_driver = {name: _by_driver(offers.get(name, ())) for name in (*packages, *optional)}
    common = set.intersection(*(set(by_driver[name]) for name in packages))
    fitting = [one for one in common if (one == version if version else _driver.branch_of(one) == branch)]
    if not fitting:
        listed = "; ".join(f"{name}: {', '.join(by_driver[name]) or 'none'}" for name in packages)
        wanted = f"the driver {version}" if version else f"a driver of the branch {branch}"
        raise LookupError(f"the package sources do not have {wanted} in all its parts. They have {listed}")
    newest = max(fitting, key=_profiles.version_tuple)
    return {name: by_driver[name][newest] for name in (*packages, *optional) if newest in by_driver[name]}


def _by_driver(versions: Iterable[str]) -> dict[str, str]:
    """Return for each driver's version the newest package version of it."""
    found: dict[str, str] = {}
    for version in versions:
        if driver := _driver.driver_version(version):
            found.setdefault(driver, version)
    return found


# --- keys ------------------------------------------------------------------------------------------------------


def checked_key(text: str, fingerprints: Collection[str]) -> str:
    """Return the key in an armored text, armored anew, if it has one of these fingerprints. With none of them any key will do.

    Only the result may be written where APT reads it: APT and GnuPG find keys in a text in more ways than are looked at here.
    Raises ValueError, which says what is wrong.
    """
    try:
        packets = _dearmored(text)
        found = _fingerprints(packets)
    except ValueError as error:
        raise ValueError(f"is no OpenPGP key ({error})") from error
    wanted = {one.replace(" ", "").upper() for one in fingerprints}
    if wanted and not set(found) <= wanted:
        raise ValueError(f"has the fingerprint {', '.join(found)}, and not {', '.join(sorted(wanted))}")
    encoded = base64.b64encode(packets).decode()
    body = "".join(f"{encoded[at : at + 64]}\n" for at in range(0, len(encoded), 64))
    return f"{_BEGIN}\n\n{body}{_END}\n"


def _dearmored(text: str) -> bytes:
    """Return what is in the one block of a text. Raises ValueError where there is anything else, or the block is malformed."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 3 or (lines[0], lines[-1]) != (_BEGIN, _END) or any("-----" in line for line in lines[1:-1]):
        raise ValueError(f"needs one block from {_BEGIN} to {_END}, and nothing before or after it")
    start = lines.index("") + 1 if "" in lines else 1
    body = lines[start:-1]
    if body and body[-1].startswith("="):
        # The checksum, which nobody has to write or look at.
        body.pop()
    return base64.b64decode("".join(body).encode("ascii", errors="replace"), validate=True)


def _fingerprints(packets: bytes) -> list[str]:
    """Return the fingerprints of the primary keys. Raises ValueError where there are none, or there is anything that belongs to no key."""
    found = []
    for tag, content in _packets(packets):
        if tag not in _TAGS_OF_A_KEY:
            raise ValueError(f"a packet of the kind {tag}")
        if tag == _PUBLIC_KEY:
            found.append(_fingerprint(content))
    if not found:
        raise ValueError("no public key in it")
    return found


def _fingerprint(content: bytes) -> str:
    """RFC 4880, 12.2."""
    if content[:1] != b"\x04":
        raise ValueError("not a key of version 4")
    return hashlib.sha1(b"\x99" + len(content).to_bytes(2, "big") + content, usedforsecurity=False).hexdigest().upper()


def _packets(data: bytes) -> Iterable[tuple[int, bytes]]:
    """Yield tag and content of each packet. RFC 4880, 4.2."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("not a packet")
        if head & 0x40:
            tag, (length, at) = head & 0x3F, _new_length(data, at + 1)
        else:
            size = 1 << (head & 3)
            if size == 8:
                raise ValueError("a packet without a length")
            tag, length, at = (head >> 2) & 0x0F, int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """Return a length in the new format, and where it ends."""
    first = data[at] if at < len(data) else 255
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    raise ValueError("a packet in parts")
