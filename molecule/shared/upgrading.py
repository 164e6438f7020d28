"""A host with the stand-in engines of the scenario upgrade: how it is upgraded, and how it stands."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import endpoint
import killing
import load
import playbook

HERE = "molecule/upgrade"
#: What every run of a playbook on these machines is told: their inventory, and what the stand-in wants of a host.
ARGUMENTS = ("--inventory", f"{HERE}/inventory", "--extra-vars", f"@{HERE}/files/stand_in.yml")
OLD, NEW, BROKEN, LARGE, OTHER_HASH = (f"0.3{minor}.0" for minor in range(1, 6))
CERTIFICATE = "/etc/vllm/tls/current/fullchain.pem"
LOOK = """
import json, os, subprocess, sys
show = ["systemctl", "show", "--property=InvocationID", "--value"]
seen = {"current": os.readlink("/opt/vllm/current"), "certificate": open(sys.argv[1]).read(), "started": [], "serves": []}
for one in sorted(os.listdir("/etc/vllm/instances")):
    state = json.load(open(f"/run/vllm/{one}/state.json"))
    told = json.load(open(f"/etc/vllm/instances/{one}/instance.json"))
    assert (state["state"], state["digest"]) == ("serving", told["digest"]), (one, state)
    seen["started"].append(subprocess.check_output([*show, f"vllm@{one}"], text=True).strip())
    seen["serves"].append(os.path.basename(told["engine"]))
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Seen:
    """A host: where its link leads, which start of each instance serves with which engine, and which versions answer."""

    current: str
    started: tuple[str, ...]
    serves: tuple[str, ...]
    answers: set[str]


def look(name: str) -> Seen:
    """Look at a host, and refuse one of which an instance does not serve."""
    seen = json.loads(killing.ssh(name, f"python3 - {CERTIFICATE}", LOOK))
    client = endpoint.client(name, certificate=seen["certificate"])
    said = [client.completions.create(model="gpuops-demo", prompt="Hi", max_tokens=2) for _ in range(6)]
    answers = re.findall(r"vllm-(\S+)-fake", " ".join(str(one.system_fingerprint) for one in said))
    return Seen(seen["current"], tuple(seen["started"]), tuple(seen["serves"]), set(answers))


def streams(name: str, folder: Path) -> load.Background:
    """Begin streams on a host, each two seconds long, until their report is asked for. ``folder`` is for the certificate that they trust."""
    ca = folder / "ca.pem"
    ca.write_text(killing.ssh(name, f"cat {CERTIFICATE}"))
    key = endpoint.KEY.read_text().strip()
    target = load.Target(endpoint.url(name, "/v1"), "gpuops-demo", key, str(ca), silence_s=60)
    running = load.Background(load.Load(target, max_tokens=40), streams=6)
    running.wait_for_flow(4)
    return running


def run(name: str, *arguments: str, hosts: tuple[str, ...] = ("gpu01",), **variables: Any) -> playbook.Done:
    """Run a playbook on machines of the scenario."""
    return playbook.run(name, *ARGUMENTS, *arguments, hosts=hosts, **variables)


def upgrade(version: str, *arguments: str, hosts: tuple[str, ...] = ("gpu01",), **variables: Any) -> playbook.Done:
    """Run upgrade.yml."""
    return run("playbooks/upgrade.yml", *arguments, hosts=hosts, vllm_version=version, **variables)


def engine(version: str) -> playbook.Done:
    """Bring an engine by the role alone."""
    return run(f"{HERE}/files/engine.yml", vllm_version=version)


def version_of(name: str) -> str:
    """Return the version of an environment."""
    return name.partition("-")[0]
