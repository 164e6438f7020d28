# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How apt-get and dpkg are asked, without questions to anybody and after others who use them, and what they print."""

from __future__ import annotations

import re
from collections.abc import Iterable

ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
LOCK_TIMEOUT_S = 300
#: For dpkg: a file of settings that somebody has changed stays.
_KEEP = ("--force-confdef", "--force-confold")
#: For apt-get, the same.
KEEP_SETTINGS = tuple(word for option in _KEEP for word in ("-o", f"Dpkg::Options::={option}"))
#: Completes what was cut off, as by a power cut: apt-get names the cure and leaves it to others.
COMPLETE = ("dpkg", *_KEEP, "--configure", "-a")
_CHANGED = re.compile(r"^Inst (\S+) \[", re.MULTILINE)


def apt_get(*words: str, lock_timeout_s: int = LOCK_TIMEOUT_S) -> list[str]:
    """The command that waits so many seconds for dpkg's lock."""
    return ["apt-get", "--quiet", "--yes", "-o", f"DPkg::Lock::Timeout={lock_timeout_s}", *words]


def query(names: Iterable[str]) -> list[str]:
    """The command whose output `statuses` reads. Its exit status is 1 where it does not know one of them."""
    return ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", "--", *names]


def statuses(known: str) -> dict[str, str]:
    """The status (``installed``, ``config-files``, ``not-installed``, ...) of each package that dpkg knows, by its name."""
    lines = (line.split(" ", 1) for line in known.splitlines() if " " in line)
    return {name: status for status, name in lines}


# ---- What apt prints ---------------------------------------------------------------------------------------------------


def offered(madison: str) -> dict[str, list[str]]:
    """The versions of each package in what ``apt-cache madison`` prints, newest first."""
    found: dict[str, list[str]] = {}
    for line in madison.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) >= 3 and cells[1] not in found.setdefault(cells[0], []):
            found[cells[0]].append(cells[1])
    return found


def touched(simulation: str, *actions: str) -> list[str]:
    """The packages of which ``apt-get --simulate`` says one of these: ``Inst``, ``Remv``, ``Purg``."""
    names = re.findall(rf"^(?:{'|'.join(actions)}) (\S+)", simulation, re.MULTILINE)
    return [name.partition(":")[0] for name in names]


def changed(simulation: str) -> list[str]:
    """The installed packages of which ``apt-get --simulate`` would take another version."""
    return [name.partition(":")[0] for name in _CHANGED.findall(simulation)]


def complaint(output: str) -> list[str]:
    """apt's errors, else its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "dpkg: error"))]
    return errors or lines[-10:]
