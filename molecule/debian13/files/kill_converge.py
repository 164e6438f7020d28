"""Kill the module that converges the instances the moment it has written a new engine file. Argument: that file."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

LOCK = Path("/run/vllm-instances.lock")


def converging() -> list[int]:
    """Return the processes that hold the lock of the module `instances`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(descriptor.readlink() == LOCK for descriptor in (entry / "fd").iterdir()):
                found.append(int(entry.name))
    return found


def main() -> int:
    """Watch for at most two minutes; the exit status says whether something was killed."""
    file = Path(sys.argv[1])
    before = file.stat().st_ino
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if file.stat().st_ino != before:
            victims = converging()
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            print(f"killed {victims}")
            return 0 if victims else 1
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
