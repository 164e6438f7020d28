"""Prints what is on this machine as JSON: files, units, accounts, tables of nftables, and ports that are listened on."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

FOLDERS = ("/etc", "/opt", "/usr/local", "/usr/sbin", "/usr/bin", "/var", "/run", "/srv", "/home")
#: What every running machine changes by itself.
BUSY = (
    "/run/systemd",
    "/run/udev",
    "/run/user",
    "/run/log",
    "/run/lock",
    "/run/dbus",
    "/run/sshd",
    "/run/host",
    "/run/motd.d",
    "/run/needrestart",
    "/var/tmp",
    "/var/cache/apt",
    "/var/cache/debconf",
    "/var/cache/ldconfig",
    "/var/cache/uv",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/systemd",
    "/var/log/journal",
    "/var/log/apt",
)


def entry(path: Path) -> str:
    """What a file is, so that another one in its place is seen."""
    status = path.lstat()
    owner = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{owner} -> {path.readlink()}"
    # Logs grow.
    if stat.S_ISREG(status.st_mode) and not str(path).startswith("/var/log"):
        return f"{owner} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return owner


def files() -> dict[str, str]:
    found = {}
    for top in FOLDERS:
        for folder, names, plain in os.walk(top):
            names[:] = [name for name in names if f"{folder}/{name}" not in BUSY]
            for name in [*names, *plain]:
                path = Path(folder, name)
                try:
                    found[str(path)] = entry(path)
                except FileNotFoundError:
                    continue
    return found


def said(*argv: str) -> list[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def units() -> dict[str, str]:
    """Units that systemd has loaded, and how those stand that a file describes."""
    loaded = [line.split()[:4] for line in said("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full")]
    # Of this very connection, and mounts and devices, which are not of systemd's making.
    kinds = (".service", ".target", ".timer", ".socket", ".path")
    found = {
        one[0]: " ".join(one[1:3])
        for one in loaded
        if one[0].endswith(kinds) and not one[0].startswith(("user", "session"))
    }
    for line in said("systemctl", "list-unit-files", "--no-legend", "--full"):
        found[f"file of {line.split()[0]}"] = line.split()[1]
    return found


def main() -> None:
    listening = {" ".join(line.split()[:1] + line.split()[4:5]) for line in said("ss", "-H", "-l", "-n", "-t", "-u")}
    print(
        json.dumps(
            {
                "files": files(),
                "units": units(),
                "accounts": dict.fromkeys([*said("getent", "passwd"), *said("getent", "group")], ""),
                "tables": dict.fromkeys(said("/usr/sbin/nft", "list", "tables"), ""),
                "ports": dict.fromkeys(listening, ""),
            }
        )
    )


if __name__ == "__main__":
    main()
