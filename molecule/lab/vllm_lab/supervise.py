# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that keeps one machine running: `python3 -m vllm_lab.supervise RECORD CGROUPS COMMAND...`.

CGROUPS are the folders of the cgroups that the machine is to live in, joined by ':'; often none.
systemd-nspawn ends with status 133 when the machine wants to reboot, and is then started again; also when a machine that had
rebooted falls over, a few times, so that one hitch of nspawn is not the end of a long run. A TERM ends the machine
at once. If this process is killed, nspawn dies with it; the machine itself may live on, and `down` finds it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from .system import process_start, write

REBOOT = 133
#: How often in a row a machine that falls over is started again.
TRIES = 3
JOIN = 'IFS=:; for group in $1; do echo 0 > "$group/cgroup.procs"; done; shift; exec setpriv --pdeathsig KILL "$@"'


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Supervisor:
    """Starts a command again as long as it asks for it."""

    def __init__(self, record: Path, cgroups: str, command: list[str]) -> None:
        """Take what to run.

        Args:
            record: Where the process numbers go, for `down`.
            cgroups: Folders, joined by ':'.
            command: One boot of the machine.
        """
        self.record = record
        self.command = ["sh", "-ec", JOIN, "sh", cgroups, *command]
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """End the machine: without its first process the kernel ends all others, and nspawn tidies up."""
        self.stopping = True
        if self.process is not None:
            for child in children(self.process.pid):
                os.kill(child, signal.SIGKILL)

    def run(self) -> int:
        """Run until the machine is off; the exit status of its last boot."""
        status, rebooted, fallen = REBOOT, False, 0
        while not self.stopping:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
            self._write_record()
            if self.stopping:  # told so between the two lines above
                self.stop(signal.SIGTERM, None)
            status = self.process.wait()
            print(f"{time.strftime('%T')} a boot ended with {status}", flush=True)
            rebooted |= status == REBOOT
            fallen = 0 if status == REBOOT else fallen + 1
            if status == 0 or not rebooted or fallen > TRIES:
                break
        return status

    def _write_record(self) -> None:
        pids = {"supervisor": os.getpid(), "nspawn": self.process.pid if self.process else 0}
        write(self.record, json.dumps({name: [pid, process_start(pid)] for name, pid in pids.items()}) + "\n")


if __name__ == "__main__":
    supervisor = Supervisor(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    signal.signal(signal.SIGTERM, supervisor.stop)
    sys.exit(supervisor.run())
