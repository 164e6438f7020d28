"""How NGINX's process and unit stand on a machine."""

from __future__ import annotations

import re
from typing import Any


def is_confined(host: Any) -> bool:
    """Whether the process that runs, not just its unit, may gain no privileges and has few of root's."""
    pid = host.check_output("systemctl show --property=MainPID --value nginx.service")
    status = dict(line.split(":\t", 1) for line in host.file(f"/proc/{pid}/status").content_string.splitlines())
    many = int(status["CapBnd"], 16) & (1 << 21 | 1 << 12 | 1 << 19)  # CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE
    return status["NoNewPrivs"] == "1" and status["Seccomp"] == "2" and not many


def exposure(host: Any) -> float:
    """What `systemd-analyze security` says of the unit; without the drop-in 9.6."""
    said = host.check_output("systemd-analyze security --no-pager nginx.service")
    found = re.search(r"exposure level for \S+: (\d+\.\d)", said)
    assert found, said
    return float(found[1])
