# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots and removes the lab's machines. Run as root: `python3 molecule/lab/lab.py --help`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vllm_lab import acme, debian, machine, network
from vllm_lab.model import CACHE, LOCAL, LOCK, MACHINES, REPO, STATE, Machine
from vllm_lab.system import (
    LabError,
    ignore_signals,
    raise_on_signals,
    read_json,
    remove_tree,
    run,
    say,
    write,
)

LAB_FILE = STATE / "lab.json"
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh": "openssh-client",
    "openssl": "openssl",
    "setpriv": "util-linux",
}


# --------------------------------------------------------------------------------------------------------- conditions


def install_missing() -> None:
    """Install the Debian packages whose programs are not there, and say so."""
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if packages:
        say(f"lab: installing on this machine: {' '.join(packages)}")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)


@contextmanager
def the_only_one() -> Iterator[None]:
    """Wait until no other lab command runs, and keep others waiting. Leaves no file behind."""
    while True:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("lab: waiting for another lab command to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if LOCK.exists() and os.path.samestat(os.fstat(descriptor), LOCK.stat()):
            break
        os.close(descriptor)  # its owner deleted it while we waited
    try:
        yield
    finally:
        LOCK.unlink(missing_ok=True)
        os.close(descriptor)


def check_owner() -> None:
    """Refuse to touch the lab of another checkout, as long as that is there.

    Raises:
        LabError: Naming the other checkout.
    """
    owner = read_json(LAB_FILE).get("checkout", str(REPO))
    if owner != str(REPO) and Path(owner).is_dir():
        raise LabError(
            f"a lab is up from another checkout, {owner}: end it there with `python3 molecule/lab/lab.py down`"
        )


def running() -> list[Machine]:
    """The machines that are up."""
    return [one for one in MACHINES.values() if machine.is_running(one)]


# ------------------------------------------------------------------------------------------------------------ commands


def up(names: list[str], layers: list[str]) -> None:
    """Bring machines up; those that are up stay as they are. If it fails, all that this call made is undone."""
    for key in layers:
        machine.layer(key)
    _remove_orphans()
    wanted = [MACHINES[name] for name in names]
    missing = [one for one in wanted if not machine.is_running(one)]
    for one in wanted:
        if layers and one not in missing and machine.layers_of(one) != layers:
            say(f"lab: {one.name} is up with the layers {machine.layers_of(one)}; `reset` makes it anew with others")
    try:
        if missing:
            _prepare()
            _start(missing, layers)
        for one in wanted:
            try:
                machine.wait_until_ready(one)
            except LabError as error:
                if one not in missing:
                    raise
                # One boot of many that goes wrong is not the end of a long run.
                say(f"lab: {error}; once more")
                _start([one], layers)
                machine.wait_until_ready(one)
        for one in wanted:
            if one.purpose == "acme":
                acme.wait_until_ready(one)
    except BaseException:
        ignore_signals()
        _undo(missing)
        raise
    say(f"lab: started {' '.join(one.name for one in missing)}" if missing else "lab: nothing to do")


def _undo(machines: list[Machine]) -> None:
    """Remove machines; what goes wrong here is told, but does not hide why they are removed."""
    steps: list[Callable[[], None]] = [partial(machine.stop, one) for one in machines]
    for step in [*steps, _take_down_if_empty]:
        try:
            step()
        except LabError as error:
            print(f"lab: while undoing: {error}", file=sys.stderr)


def _remove_orphans() -> None:
    """Remove a lab that nobody can enter any more: its checkout, or the keys in it, are gone."""
    owner = read_json(LAB_FILE).get("checkout")
    if owner and not (owner == str(REPO) and machine.SSH_KEY.exists()):
        say(f"lab: removing the lab of {owner}, whose keys are gone")
        down([])
        raise_on_signals()


def _prepare() -> None:
    """Make what all machines share."""
    install_missing()
    if not LAB_FILE.exists():
        network.check_free()
        write(LAB_FILE, json.dumps({"checkout": str(REPO), **network.snapshot()}) + "\n")
    machine.make_keys()


def _start(machines: list[Machine], layers: list[str]) -> None:
    """Boot machines side by side."""
    for one in machines:
        debian.build_base(one.release)
    network.bring_up()
    for one in machines:
        machine.stop(one)  # what a crash or a power-off left of it
        machine.start(one, layers if one.purpose == "server" else [])
    network.write_hosts(running())


def down(names: list[str]) -> None:
    """Remove machines, all without names; with the last one all that the lab changed is put back."""
    ignore_signals()
    chosen = [MACHINES[name] for name in names] or list(MACHINES.values())
    gone = [one.name for one in chosen if one.directory.exists()]
    for one in chosen:
        machine.stop(one)
    _take_down_if_empty()
    say(f"lab: removed {' '.join(gone)}" if gone else "lab: nothing to do")


def _take_down_if_empty() -> None:
    if any(one.directory.exists() for one in MACHINES.values()):
        network.write_hosts(running())
        return
    if LAB_FILE.exists():  # written before the first change, deleted after the last
        network.take_down(read_json(LAB_FILE))
    remove_tree(LOCAL)
    remove_tree(STATE)


def reset(name: str, layers: list[str] | None) -> None:
    """Replace a machine by a fresh one, with the same layers unless others are given."""
    one = MACHINES[name]
    keep = machine.layers_of(one) if layers is None else layers
    for key in keep:
        machine.layer(key)
    ignore_signals()
    machine.stop(one)
    raise_on_signals()
    up([name], keep)


def status() -> None:
    """Print what is there."""
    owner = read_json(LAB_FILE).get("checkout")
    print(f"lab: {f'up, from {owner}' if owner else 'down'}")
    for one in MACHINES.values():
        state = "up" if machine.is_running(one) else "broken" if one.directory.exists() else "-"
        print(f"{one.name:6} {one.address:11} {one.release:9} {state:7} {' '.join(machine.layers_of(one))}".rstrip())
    layers = sorted(path.name for path in machine.LAYERS.glob("[!.]*"))
    print(f"caches in {CACHE}; layers: {' '.join(layers) or 'none'}")


# -------------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Boots and removes the lab's machines.")
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="bring machines up")
    up_parser.add_argument("names", nargs="+", metavar="NAME")
    up_parser.add_argument("--layer", action="append", default=[], metavar="KEY", help="start from a saved layer")
    down_parser = commands.add_parser("down", help="remove machines; all, and the lab, without names")
    down_parser.add_argument("names", nargs="*", metavar="NAME")
    reset_parser = commands.add_parser("reset", help="replace a machine by a fresh one")
    reset_parser.add_argument("name", metavar="NAME")
    group = reset_parser.add_mutually_exclusive_group()
    group.add_argument("--layer", action="append", metavar="KEY", help="start from this layer instead of the same")
    group.add_argument("--no-layers", dest="layer", action="store_const", const=[], help="start from plain Debian")
    commands.add_parser("status", help="show machines and caches")
    save = commands.add_parser("save-layer", help="keep a folder of a machine for later machines")
    save.add_argument("name", metavar="NAME")
    save.add_argument("path", type=Path)
    save.add_argument("key")
    has = commands.add_parser("has-layer", help="exit status 0 if the layer is there")
    has.add_argument("key")
    ssh = commands.add_parser("ssh", help="a root shell, or a command, in a machine")
    ssh.add_argument("name", metavar="NAME")
    ssh.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    named = [*getattr(options, "names", []), *([options.name] if "name" in options else [])]
    unknown = [name for name in named if name not in MACHINES]
    if unknown:
        parser.error(f"no machine {unknown[0]!r}: the lab has {', '.join(MACHINES)}")
    return options


def main(argv: list[str]) -> int:
    """Run one command; its exit status."""
    options = parse(argv)
    if options.command == "status":
        status()
        return 0
    if options.command == "has-layer":
        return 0 if (machine.LAYERS / options.key).is_dir() else 1
    if options.command == "ssh":
        return subprocess.run(machine.ssh_argv(MACHINES[options.name], *options.rest), check=False).returncode
    started = time.monotonic()
    raise_on_signals()
    os.umask(0o022)  # whatever the caller's: users in the machines have to read what is put there
    try:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it boots machines and makes networks")
        with the_only_one():
            check_owner()
            if options.command == "up":
                up(options.names, options.layer)
            elif options.command == "down":
                down(options.names)
            elif options.command == "reset":
                reset(options.name, options.layer)
            else:
                machine.save_layer(MACHINES[options.name], options.path, options.key)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"lab: stopped by {interrupt or 'SIGINT'}; all that this call made is gone again", file=sys.stderr)
        return 130
    say(f"lab: {options.command} took {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
