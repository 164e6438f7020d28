# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills an Ansible module on its host right before it changes something, each step once; molecule/shared/killing.py puts it there.

Python tells an audit hook of every file opened for writing, rename, link, removal and program started. At the first such step of a
module that ``killed`` beside this file does not hold yet, the step is added there and the process ends by SIGKILL. So whatever two
steps a module takes, one run dies between them. In the middle of the programs that take long it dies with them, as in a power cut.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from death import kill_myself

KILLED = Path(__file__).with_name("killed")
PLACES = ("/etc/", "/opt/", "/usr/", "/var/", "/srv/", "/run/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS = ("rename", "remove", "rmdir", "mkdir", "symlink", "link", "chmod", "chown", "truncate")
CHANGES = frozenset({"shutil.rmtree", *(f"os.{call}" for call in CALLS)})
EVENTS = CHANGES | {"open", "subprocess.Popen"}
# They only read, and start programs for that.
READERS = ("setup", "host_info", "gpu_info")
# Programs that only tell something: dead before them is dead after the step before.
QUESTIONS = re.compile(r"^(dpkg-query|openssl x509|journalctl|getent|nginx -V|systemctl (show|is-\w+|--version)) ?")
# Seconds until the middle of a program: dpkg unpacks, the order is under way, the hook has linked.
MIDDLES = {
    "run apt-get": 4.0,
    "run certbot": 1.5,
    "run update-ca-certificates": 0.3,
    "run vllm-install-certificate": 0.15,
}
# What differs from run to run: digests, counters, process ids and the random end of a temporary name.
VARYING = re.compile(r"[0-9a-f]{16,}|(?<=\.)[a-z0-9_]{8}(?=$|\.conf$)|(?<=\.)\d+(?=[./]|$)|(?<=/vllm-)\d+(?=-)")
MODULE = re.compile(r"payload\.zip/(?:\w+/)*modules/(\w+)\.py$")


def module_of(frame: Any) -> str:
    """Return the module that runs in this frame's callers; empty where none does that changes anything."""
    while frame is not None:
        if found := MODULE.search(frame.f_code.co_filename):
            return "" if found[1] in READERS else found[1]
        frame = frame.f_back
    return ""


def step_of(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the change that is about to be made, in words that are the same in every run; empty for none."""
    if event == "subprocess.Popen":
        words = [os.fsdecode(word) for word in arguments[1]] if not isinstance(arguments[1], str) else [arguments[1]]
        program = " ".join([Path(words[0]).name, *words[1:]])
        told = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        return "" if QUESTIONS.match(program) else VARYING.sub("*", " ".join(["run", Path(words[0]).name, *told[:2]]))
    if event == "open":
        path, _mode, flags = arguments
        if not isinstance(flags, int) or not flags & WRITING:
            return ""
    elif event in CHANGES:
        path = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
    else:
        return ""
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    name = os.fsdecode(path)
    if name.startswith("/") and (not name.startswith(PLACES) or "__pycache__" in name):
        return ""
    folder, _, base = VARYING.sub("*", name).rpartition("/")
    # The files of a tree that nothing leads to yet are all alike; a killed run leaves one, and the next begins another.
    tree = "/etc/nginx/vllm/*"
    return f"{event} {tree}/*" if folder in (tree, f"{tree}.*") else f"{event} {folder}/{base}"


class Hook:
    """The audit hook; it looks away while it works itself."""

    def __init__(self) -> None:
        self.busy = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy or event not in EVENTS:
            return
        self.busy = True
        try:
            if (step := step_of(event, arguments)) and (module := module_of(sys._getframe())):
                self.at(f"{module} : before {step}")
                for program, seconds in MIDDLES.items():
                    if step.startswith(program):
                        self.later(f"{module} : in the middle of {step}", seconds)
        finally:
            self.busy = False

    def at(self, step: str) -> None:
        """Die here, unless an earlier run has."""
        if not self.is_done(step):
            with KILLED.open("a", encoding="utf-8") as killed:
                killed.write(json.dumps({"task": step, "when": "on the host"}) + "\n")
                killed.flush()
                os.fsync(killed.fileno())
            kill_myself()

    def later(self, step: str, seconds: float) -> None:
        """Die some time from now, if the module still works then."""
        if not self.is_done(step):
            timer = threading.Timer(seconds, self.at, (step,))
            timer.daemon = True
            timer.start()

    @staticmethod
    def is_done(step: str) -> bool:
        lines = KILLED.read_text().splitlines() if KILLED.exists() else []
        return step in (json.loads(line)["task"] for line in lines)


if KILLED.with_name("armed").exists():
    # The programs that a module starts are no modules.
    os.environ.pop("PYTHONPATH", None)
    sys.addaudithook(Hook())
