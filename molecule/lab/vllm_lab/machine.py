# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One machine: its tree, its processes, and the way in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from . import acme, debian, network, surroundings
from .model import CACHE, DEMO_MODEL, LOCAL, MACHINES, STATE, Machine, nspawn_argv, overlay_options
from .system import (
    LabError,
    booted_by_systemd,
    cgroups,
    end_process,
    is_alive,
    is_mounted,
    read_json,
    remove_cgroup,
    remove_tree,
    run,
    say,
    wait_for,
    write,
)

BOOT_TIMEOUT_S = 90
UV_CACHE = CACHE / "uv"
LAYERS = CACHE / "layers"
SSH_KEY = LOCAL / "ssh_key"
HOST_KEY = LOCAL / "ssh_host_key"
KNOWN_HOSTS = LOCAL / "known_hosts"


# --------------------------------------------------------------------------------------------------------------- keys


def make_keys() -> None:
    """Make the key that opens the machines, and the one they identify themselves with, known beforehand."""
    LOCAL.mkdir(mode=0o700, exist_ok=True)
    for key in (SSH_KEY, HOST_KEY):
        if not key.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gpuops.vllm lab", "-f", key)
    public = " ".join(HOST_KEY.with_suffix(".pub").read_text(encoding="ascii").split()[:2])
    lines = [f"{machine.fqdn},{machine.name},{machine.address} {public}\n" for machine in MACHINES.values()]
    write(KNOWN_HOSTS, "".join(lines))
    STATE.mkdir(exist_ok=True)
    for path in (SSH_KEY, KNOWN_HOSTS):  # a place that an inventory can name without knowing this checkout
        link = STATE / path.name
        if not link.is_symlink():
            link.symlink_to(path)


def ssh_argv(machine: Machine, *command: str) -> list[str]:
    """The command line of a root shell, or of a command, in a machine."""
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": "2",
        "UserKnownHostsFile": KNOWN_HOSTS,
        "LogLevel": "ERROR",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "/dev/null", "-i", str(SSH_KEY), *flags, f"root@{machine.address}", *command]


# --------------------------------------------------------------------------------------------------------------- tree


def layer(key: str) -> Path:
    """A saved layer.

    Raises:
        LabError: There is none of that name.
    """
    path = LAYERS / key
    if not path.is_dir():
        raise LabError(f"no layer {key!r} in {LAYERS}: make it with `save-layer NAME PATH {key}`")
    return path


def make_tree(machine: Machine, layers: list[str]) -> None:
    """Mount a machine's tree and put into it what makes it this machine."""
    base = debian.build_base(machine.release)
    for name in ("upper", "work", "root"):
        (machine.directory / name).mkdir(parents=True)
    options = overlay_options([*(layer(key) for key in layers), base], machine.directory)
    run(
        "mount",
        "-t",
        "overlay",
        "-o",
        options,
        f"vllmlab-{machine.name}",
        machine.root,
        hint=f"The kernel needs overlayfs, and {machine.directory} must not itself lie on one, as in a container",
    )
    _configure(machine)


def _configure(machine: Machine) -> None:
    root = machine.root
    etc = root / "etc"
    write(etc / "machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write(etc / "hostname", f"{machine.name}\n")
    write(etc / "hosts", network.machine_hosts(machine))
    resolvers = [
        Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
        for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    ]
    write(etc / "resolv.conf", "".join(f"nameserver {server}\n" for server in surroundings.name_servers(*resolvers)))
    write(etc / "apt/sources.list.d/debian.sources", debian.host_sources(machine.release))
    write(etc / "apt/apt.conf.d/90lab", debian.host_settings() + debian.MACHINE_APT)
    debian.give_packages(machine.release, root)
    os.utime(root / "var/lib/apt/lists", (0, 0))  # empty, so not to be taken for freshly fetched
    write(etc / "pip.conf", surroundings.render_pip_conf(_pip_settings()))
    write(etc / "ssh/ssh_host_ed25519_key", HOST_KEY.read_text(encoding="ascii"), 0o600)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    write(root / "root/.ssh/authorized_keys", SSH_KEY.with_suffix(".pub").read_text(encoding="ascii"), 0o600)
    _trust_authorities(root)
    if machine.purpose == "server" and DEMO_MODEL.is_dir():
        shutil.copytree(DEMO_MODEL, root / "srv/models/demo")
    if machine.purpose == "acme":
        acme.install(machine)


def _trust_authorities(root: Path) -> None:
    certificates = surroundings.authorities(os.environ)
    for number, certificate in enumerate(certificates):
        write(root / f"usr/local/share/ca-certificates/control-host-{number:03}.crt", certificate)
    if certificates:
        run("chroot", root, "update-ca-certificates", "--verbose")


def _pip_settings() -> dict[str, list[str]]:
    return surroundings.pip_settings(os.environ, surroundings.pip_config_texts(os.environ))


# ---------------------------------------------------------------------------------------------------- start, stop, state


def is_running(machine: Machine) -> bool:
    """Whether the machine's processes and tree are there."""
    return is_alive(_record(machine).get("supervisor")) and is_mounted(machine.root)


def layers_of(machine: Machine) -> list[str]:
    """The layers a machine was made with."""
    return list(read_json(machine.directory / "machine.json").get("layers", []))


def _record(machine: Machine) -> dict[str, list[int]]:
    return read_json(machine.directory / "processes.json")


def start(machine: Machine, layers: list[str]) -> None:
    """Make a machine and begin to boot it; `wait_until_ready` waits for the end of that."""
    make_tree(machine, layers)
    write(machine.directory / "machine.json", json.dumps({"layers": layers}) + "\n")
    network.plug_in(machine)
    UV_CACHE.mkdir(parents=True, exist_ok=True)
    read_only = [path for path in surroundings.local_paths(_pip_settings()) if path.exists()]
    binds = {UV_CACHE: Path("/var/cache/uv")} if machine.purpose == "server" else {}
    argv = nspawn_argv(machine, binds, read_only, booted_by_systemd=booted_by_systemd())
    own_cgroups = cgroups(machine.netns)
    for path in own_cgroups:
        path.mkdir()
    record = machine.directory / "processes.json"
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",  # cgroup v2 in the machine, whatever the control host uses
        "SYSTEMD_NSPAWN_TMPFS_TMP": "0",  # /tmp on disk, as on the Debian this stands for
    }
    with (machine.directory / "console.log").open("w", encoding="utf-8") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm_lab.supervise", str(record), ":".join(map(str, own_cgroups)), *argv],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    if not wait_for(record.exists, timeout_s=10, interval_s=0.01) or process.poll() is not None:
        process.terminate()
        raise LabError(f"{machine.name}: systemd-nspawn did not start: {last_words(machine)}")


def wait_until_ready(machine: Machine) -> None:
    """Wait until a machine has booted and answers by SSH.

    Raises:
        LabError: It did not, or units of its own failed.
    """
    ready = machine.directory / "ready"
    if ready.exists():
        return
    state = ""

    def answered() -> bool:
        nonlocal state
        done = subprocess.run(
            ssh_argv(machine, "systemctl is-system-running --wait; systemctl --failed --plain --no-legend"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        state = done.stdout.strip()
        return bool(state) or not is_running(machine)

    if not wait_for(answered, BOOT_TIMEOUT_S) or not state:
        raise LabError(f"{machine.name}: no answer by SSH within {BOOT_TIMEOUT_S} s: {last_words(machine)}")
    if state != "running":
        raise LabError(f"{machine.name}: booted, but not well: {' | '.join(state.splitlines())}")
    ready.touch()


def last_words(machine: Machine) -> str:
    """The last lines of a machine's console."""
    log = machine.directory / "console.log"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "it said nothing"


def stop(machine: Machine) -> None:
    """End a machine and delete it, whatever state it is in; what it fetched by apt is kept."""
    record = _record(machine)
    for name, signals in (("supervisor", (signal.SIGTERM, signal.SIGKILL)), ("nspawn", (signal.SIGKILL,))):
        for number in signals:
            if not end_process(record.get(name), number, timeout_s=10) and number == signal.SIGKILL:
                raise LabError(f"{machine.name}: {name} (process {record[name][0]}) does not end")
    if not wait_for(lambda: not _kill_inside(machine), timeout_s=10):
        raise LabError(f"{machine.name}: some of its processes do not end")
    for path in cgroups(machine.netns):
        remove_cgroup(path)
    remove_tree(network.NSPAWN_RUN / "propagate" / machine.netns)  # nspawn leaves it behind when it is killed
    network.unplug(machine)
    debian.keep_packages(machine.release, machine.directory / "upper")
    remove_tree(machine.directory)


def _kill_inside(machine: Machine) -> int:
    """Kill what still runs in a machine (it outlives a killed nspawn); how many processes that were.

    A shell of the control host that has merely entered the machine's network is left alone.
    """
    found = 0
    for pid in network.processes(machine):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            if not Path(f"/proc/{pid}/ns/pid").samefile("/proc/self/ns/pid"):
                os.kill(pid, signal.SIGKILL)
                found += 1
    return found


def save_layer(machine: Machine, path: Path, key: str) -> Path:
    """Keep a folder of a running machine as a layer that later machines may start from.

    Args:
        machine: Where the folder is.
        path: The folder, absolute, as the machine sees it.
        key: The layer's name.

    Returns:
        The layer's place on the control host.

    Raises:
        LabError: The folder is not there, or the key is no plain name.
    """
    source = machine.root / path.relative_to("/")
    if not key.replace("-", "").replace(".", "").replace("_", "").isalnum() or key.startswith("."):
        raise LabError(f"layer {key!r}: letters, digits, '.', '_' and '-' only")
    if not is_mounted(machine.root) or not source.is_dir():
        raise LabError(f"{machine.name} has no folder {path}")
    target = LAYERS / key
    new = LAYERS / f".{key}.new"
    remove_tree(new)
    new.mkdir(parents=True, mode=0o755)
    parents = [parent for parent in reversed(path.parents) if parent != Path("/")]
    for parent in parents:
        original = machine.root / parent.relative_to("/")
        copy = new / parent.relative_to("/")
        copy.mkdir()
        shutil.copystat(original, copy)
        os.chown(copy, original.stat().st_uid, original.stat().st_gid)
    run("cp", "--archive", "--reflink=auto", source, new / path.relative_to("/"))
    if target.exists():  # machines may still stand on the old one: it goes with its name, they keep it until they end
        raise LabError(f"layer {key!r} is there already: choose another key, or delete {target} while the lab is down")
    new.rename(target)
    say(f"lab: layer {key} is in {target}")
    return target
