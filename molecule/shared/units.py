"""What systemd itself thinks of the units, on whichever version a machine has."""

from __future__ import annotations

import re
from typing import Any

TEMPLATE = "/etc/systemd/system/vllm@.service"


def complaints(host: Any, instance: str) -> str:
    """What `systemd-analyze verify` says of all units; nothing is right."""
    # It looks for the programs as well, and a machine without a GPU has none of NVIDIA's.
    nodes = "/run/analyzed/vllm-nvidia-nodes.service"
    host.check_output("mkdir -p /run/analyzed")
    host.check_output(
        "sed s,/usr/bin/nvidia-modprobe,/usr/bin/true, /etc/systemd/system/vllm-nvidia-nodes.service > %s", nodes
    )
    done = host.run("systemd-analyze verify --man=no %s vllm.target %s", f"vllm@{instance}.service", nodes)
    return f"{done.stdout}{done.stderr}" or ("" if done.rc == 0 else f"status {done.rc}")


def exposure(host: Any, egress: bool) -> float:
    """How exposed the unit is, by `systemd-analyze security`, as it stands and with `vllm_service_allow_egress`; a plain one is at 9."""
    copy = "/run/analyzed/vllm@one.service"
    host.check_output("mkdir -p /run/analyzed")
    host.check_output("sed %s %s > %s", "/^IPAddress/d" if egress else "", TEMPLATE, copy)
    said = host.check_output("systemd-analyze security --offline=true --no-pager %s", copy)
    found = re.search(r"exposure level for \S+: (\d+\.\d)", said)
    assert found, said
    return float(found[1])
