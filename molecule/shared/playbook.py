"""Runs a playbook on machines of the lab as an operator would: from the top of the checkout, by its command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import endpoint

RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Done:
    """A run that has ended: what it said (``refused`` by host, on one line each), its exit status, and the changed tasks by host."""

    said: str
    status: int
    changed: dict[str, int]
    refused: dict[str, str]
    seconds: float


def run(
    playbook: str,
    *arguments: str,
    hosts: Sequence[str],
    inventories: Sequence[str] = (),
    collections: Path | None = None,
    timeout_s: float = 300,
    **variables: object,
) -> Done:
    """Run a playbook on some machines; ``inventories`` come on top of the lab's own, ``variables`` as extra variables.

    ``collections``: a folder with the collection in the place of this checkout's.
    """
    command = ["ansible-playbook", playbook, "--limit", ",".join([*hosts, "localhost"])]
    command += [part for one in ("molecule/inventory", *inventories) for part in ("--inventory", one)]
    if variables:
        command += ["--extra-vars", json.dumps(variables)]
    start = time.monotonic()
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [*command, *arguments],
        cwd=endpoint.TOP,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(endpoint.TOP / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            **({"ANSIBLE_COLLECTIONS_PATH": str(collections)} if collections else {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    refusals = re.findall(r"^fatal: \[(\w+)\](.*?)(?=^\S|\Z)", done.stdout, re.MULTILINE | re.DOTALL)
    return Done(
        said=done.stdout + done.stderr,
        status=done.returncode,
        changed={host: int(count) for host, count in RECAP.findall(done.stdout)},
        refused={host: " ".join(text.split()) for host, text in refusals},
        seconds=time.monotonic() - start,
    )
