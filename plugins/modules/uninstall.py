#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: uninstall
short_description: Take away what this collection has put on a host
version_added: 0.1.0
description:
  - Stops the instances, lets them drain as any stop does, takes the site out of NGINX by a reload, opens the firewall of this collection, and removes
    units, programs, engines, caches, secrets and the account. Whatever is there it removes, and nothing has to be there, so a run that was cut off
    is simply run again.
  - NGINX and its other sites go on. Debian packages stay, unless O(packages) names them, since nobody knows who else needs them by now.
  - Weights stay unless O(weights) is true, and with them the account that they belong to, whose number might else be given to another account.
  - A certificate that certbot got stays unless O(certificates) is true, with certbot's account, since authorities hand out few for the same name.
    certbot no longer renews it; the next run of C(playbooks/site.yml) takes it up again.
  - In C(/etc/vllm), C(/var/lib/vllm) and C(/opt/vllm) only what the collection has put there is removed. RV(kept) says what stays.
  - The action plugin of the same name calls the module until everything has stopped.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Tells what would be stopped and removed.
    support: full
  diff_mode:
    description: The units and paths that go, without their content.
    support: full
options:
  weights:
    description:
      - Whether the models of the hub in O(weights_dir) go as well. Other files there stay, and so does all of a file system of its own, which other hosts
        may use. Where nothing is left, the folder and the account go with them.
    type: bool
    default: false
  weights_dir:
    description: Where they are. It is removed only while it belongs to the account.
    type: path
    default: /var/lib/vllm/weights
  certificates:
    description: Whether certbot's certificate goes as well. It is not revoked.
    type: bool
    default: false
  driver:
    description:
      - Whether the settings go that keep a GPU's driver as it is. The driver's own packages go if O(packages) names them, and are still held if not.
    type: bool
    default: false
  cache_dir:
    description: The cache of uv. What uv has put there is removed, but not where it is a file system of its own, which other hosts may use.
    type: path
    default: /var/cache/uv
  packages:
    description:
      - Debian packages to purge, also those that are held. Where others need one of them the module refuses, before it changes anything.
    type: list
    elements: str
    default: []
  timeout_s:
    description: Seconds within which NGINX must have forgotten the site.
    type: int
    default: 15
"""

EXAMPLES = r"""
- name: Take everything away but the weights and the certificate
  gpuops.vllm.uninstall:
"""

RETURN = r"""
actions:
  description: What was done, or would be, in order.
  returned: always
  type: list
  elements: str
  sample: ["stopped vllm@llama-0.service", "removed /usr/local/bin/vllm-start"]
kept:
  description: What of the collection's stays, and why, one line each.
  returned: success
  type: list
  elements: str
"""

import contextlib
import errno
import grp
import os
import pwd
import re
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import (
    _apt,
    _certificate,
    _claim,
    _files,
    _firewall,
    _nginx,
    _systemd,
    _uninstall,
)

#: Under which the host's files are; another one for tests.
ROOT = Path("/")
#: What uv, as every tool that keeps to it, puts into a cache.
CACHE_MARK = "CACHEDIR.TAG"
OTHER_DISK = "a file system of its own, which other hosts may use"
#: Held ones were named by whoever runs this.
PURGE = ("--allow-change-held-packages", "purge")


class Uninstall:
    """One pass over the host. Every step looks first, so that a pass that was cut off anywhere is taken up by the next."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.check: bool = module.check_mode
        self.actions: list[str] = []
        #: The same as what there is before it, for the diff.
        self.things: list[str] = []
        self.kept: list[str] = []
        #: What is gone, or would be.
        self.gone: set[Path] = set()
        self.weights_dir = self.path(self.params["weights_dir"])

    def run(self) -> NoReturn:
        self.refuse_half_a_driver()
        packages = self.packages_to_purge()
        self.refuse_weights_of_others()
        self.take_away(_uninstall.BOOT_LINKS)
        if self.stop():
            self.wait()
        self.close_site()
        self.give_up_certificate()
        self.open_ports()
        self.remove_units()
        self.remove_files()
        self.remove_account()
        self.take_away(_uninstall.RECORDS)
        self.remove_folders()
        self.purge(packages)
        self.tell_what_stays()
        self.module.exit_json(**self.result(), kept=self.kept)

    # ---- How things are done -----------------------------------------------------------------------------------------

    @staticmethod
    def path(path: str) -> Path:
        return ROOT / path.lstrip("/")

    @staticmethod
    def shown(path: Path) -> str:
        return f"/{path.relative_to(ROOT)}"

    def found(self, pattern: str) -> list[Path]:
        """What a pattern names, and what writers that were killed have left of it."""
        place = self.path(pattern)
        if set("*[") & set(pattern):
            return sorted(ROOT.glob(pattern.lstrip("/")))
        # Not by glob, which leaves out a link that leads nowhere.
        whole = [place] if os.path.lexists(place) else []
        return whole + (_files.left_behind(place.parent, place.name) if place.parent.is_dir() else [])

    def result(self) -> dict[str, Any]:
        lines = "".join(f"{thing}\n" for thing in self.things)
        diff = {"before_header": "on this host", "after_header": "after it", "before": lines, "after": ""}
        return {"changed": bool(self.actions), "actions": self.actions, "diff": diff if lines else {}}

    def wait(self) -> NoReturn:
        """Have the action plugin call again: a model may take minutes to end what it has begun."""
        status = f"stopping {', '.join(self.busy_units())}"
        self.module.exit_json(**self.result(), pending=True, status=status)

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, **self.result())

    def done(self, action: str, thing: str = "") -> bool:
        """Write down an action and what goes by it; whether to do it."""
        self.actions.append(action)
        self.things += [thing] if thing else []
        return not self.check

    def command(self, *argv: str, data: str | None = None) -> str:
        """Run a command that has to succeed."""
        rc, out, err = self.module.run_command(list(argv), data=data)
        if rc != 0:
            self.fail(
                f"{' '.join(argv)} failed with {rc}: {(err or out).strip()}. When the cause is gone, run the play again: it takes up what is left."
            )
        return str(out)

    def take_away(self, patterns: Iterable[str]) -> bool:
        """Remove what these patterns name; whether there was anything."""
        anything = False
        for pattern in patterns:
            for path in self.found(pattern):
                anything = True
                self.remove(path)
        return anything

    def remove(self, path: Path) -> None:
        self.gone.add(path)
        if not self.done(f"removed {self.shown(path)}", self.shown(path)):
            return
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        try:
            shutil.rmtree(path)
        except OSError as error:
            # A file system of its own is empty by now, and stays mounted.
            if error.errno != errno.EBUSY or any(path.iterdir()):
                raise
            os.chown(path, 0, 0)

    def stays(self, folder: Path) -> list[str]:
        """Names in a folder that are not gone."""
        return sorted(path.name for path in folder.iterdir() if path not in self.gone)

    # ---- What is refused before anything is changed ------------------------------------------------------------------

    def packages_to_purge(self) -> list[str]:
        named = self.params["packages"]
        if not named:
            return []
        _rc, known, _err = self.module.run_command(_apt.query(named))
        there = [name for name, status in _apt.statuses(known).items() if status != "not-installed"]
        if there and (others := _uninstall.other_packages(self.simulate(there), there)):
            self.fail(
                f"vllm_uninstall_packages is {', '.join(named)}, and with them apt-get would remove or install {', '.join(others)}. "
                "Name these as well if they may go, or leave out what they need. Nothing was changed."
            )
        return there

    def simulate(self, names: list[str]) -> str:
        return self.command(*_apt.apt_get("--simulate", *PURGE, "--", *names))

    def refuse_half_a_driver(self) -> None:
        if _uninstall.DRIVER_UNIT in self.busy_units():
            self.fail(
                f"{_uninstall.DRIVER_UNIT} is installing a driver, which goes on where its run was cut off, and would be left half installed. Wait for its end "
                f"(journalctl --follow --unit {_uninstall.DRIVER_UNIT}), and run the play again. Nothing was changed."
            )

    def refuse_weights_of_others(self) -> None:
        if not self.params["weights"] or not self.weights_dir.exists():
            return
        owner = self.weights_dir.lstat().st_uid
        if self.weights_dir.is_symlink() or (owner != self.account_id() and self.stays(self.weights_dir)):
            self.fail(
                f"vllm_weights_dir is {self.params['weights_dir']!r}, and that is not the folder of weights that the account {_uninstall.ACCOUNT} owns: "
                "it is not removed. Correct the variable, or remove the folder by hand and leave vllm_uninstall_weights out. Nothing was changed."
            )

    # ---- What runs ---------------------------------------------------------------------------------------------------

    def busy_units(self) -> list[str]:
        return _uninstall.busy(self.command(*_uninstall.show_argv(_uninstall.UNITS)))

    def stop(self) -> bool:
        """Have everything stop that serves or downloads; whether something still does."""
        busy = self.busy_units()
        for unit in busy:
            self.done(f"stopped {unit}", f"{unit} (runs)")
        if self.check:
            return False
        if busy:
            self.command("systemctl", "stop", "--no-block", "--", *busy)
        shown = self.command(*_uninstall.show_argv(_uninstall.UNITS))
        if _uninstall.busy(shown):
            return True
        if failed := _uninstall.failed(shown):
            self.command("systemctl", "reset-failed", "--", *failed)
        return False

    # ---- The site ----------------------------------------------------------------------------------------------------

    def close_site(self) -> None:
        """Have NGINX forget the site by a reload, once it has tested what is left."""
        site, files = self.path(_uninstall.SITE), self.path(_uninstall.SITE_FILES)
        target = str(site.readlink()) if site.is_symlink() else ""
        # Somebody else's in its place has nothing to do with us.
        linked = Path(os.path.normpath(site.parent / target)).is_relative_to(files) if target else False
        if not linked and not files.exists():
            return
        self.actions.append("took the site out of NGINX")
        nginx = self.module.get_bin_path("nginx", opt_dirs=["/usr/sbin", "/sbin"])
        port = self.status_port(files)
        if linked:
            self.remove(site)
        if nginx and not self.check:
            self.reload(nginx, site, target if linked else "", port)
        self.take_away([_uninstall.SITE_FILES])

    @staticmethod
    def status_port(files: Path) -> int:
        """The port on loopback by which NGINX shows that it has the site; 0 where that is not known."""
        texts = [_files.read_text(path) or "" for path in sorted(files.glob("*/vllm.conf"))]
        ports = re.findall(r"^\s*listen 127\.0\.0\.1:([0-9]+);", "\n".join(texts), re.MULTILINE)
        return int(ports[0]) if ports else 0

    def reload(self, nginx: str, site: Path, target: str, port: int) -> None:
        rc, out, err = self.module.run_command([nginx, "-t", "-q"])
        if rc != 0:
            if target:
                site.symlink_to(target)
            complaint = _nginx.words(out + err)
            self.fail(
                f"NGINX refuses its configuration without this site, so the site is still there; no model serves any more. It says:\n{complaint}\n"
                f"{_nginx.hint(complaint)}"
            )
        if _systemd.show("nginx.service", ["ActiveState"], self.module.run_command)["ActiveState"] != "active":
            return
        self.command("systemctl", "reload", "nginx.service")
        deadline = time.monotonic() + self.params["timeout_s"]
        while port and listens(port):
            if time.monotonic() > deadline:
                self.fail(
                    f"NGINX was reloaded, but after {self.params['timeout_s']} s it still has the site (port {port} on loopback answers). "
                    "See /var/log/nginx/error.log, and run the play again."
                )
            time.sleep(0.1)

    # ---- The certificate ---------------------------------------------------------------------------------------------

    def give_up_certificate(self) -> None:
        renewal = self.path(_uninstall.RENEWAL)
        text = _files.read_text(renewal)
        if self.params["certificates"]:
            self.remove_key_copies()
            self.take_away(_uninstall.CERTIFICATE)
        elif text is not None:
            wanted = _certificate.renewed(text, wanted=False)
            if wanted != text and self.done(
                "had certbot no longer renew the certificate", "renewal of the certificate by certbot"
            ):
                _files.write_atomic(renewal, wanted, renewal.stat().st_mode & 0o777)
            self.kept.append(
                f"{_uninstall.RENEWAL.rpartition('/')[0]}, live and archive: certbot's certificate, which is not renewed any more "
                "(vllm_uninstall_certificates: true removes it)"
            )
        trusted, link = self.path(_uninstall.TRUSTED), self.path(_uninstall.TRUSTED_LINK)
        if self.take_away([_uninstall.TRUSTED]) or link.is_symlink():
            # Its link is what tells of a run that was cut off here.
            self.gone |= {trusted, link}
            if self.done("took the authority's CA out of the host's trust", "trust in the authority's CA"):
                self.command("update-ca-certificates", "--fresh")

    def remove_key_copies(self) -> None:
        keys = {path.read_bytes() for path in self.found(f"{_uninstall.CERTIFICATE[-1]}/privkey*.pem")}
        for path in self.found(_uninstall.KEY_COPIES):
            if path.read_bytes() in keys:
                self.remove(path)

    # ---- The firewall ------------------------------------------------------------------------------------------------

    def open_ports(self) -> None:
        """Take the table away. Without it nothing is dropped, so nobody is locked out at any moment."""
        nft = self.module.get_bin_path("nft", opt_dirs=["/usr/sbin", "/sbin"])
        units = _uninstall.busy(self.command(*_uninstall.show_argv(_uninstall.FIREWALL_UNITS)))
        listing = ["list", "table", _firewall.FAMILY, _firewall.TABLE]
        loaded = bool(nft) and self.module.run_command([nft, *listing])[0] == 0
        if units and not self.check:
            # The clock of rules on trial first: it must not put back what goes now.
            self.command("systemctl", "stop", "--", *units)
        if loaded and self.done("opened the firewall", f"nftables: table {_firewall.FAMILY} {_firewall.TABLE}"):
            self.command(str(nft), "-f", "-", data=_firewall.REMOVAL)
        self.take_away(_uninstall.FIREWALL_FILES)

    # ---- Files -------------------------------------------------------------------------------------------------------

    def remove_units(self) -> None:
        removed = self.take_away(_uninstall.UNIT_FILES) or any("systemd/system" in str(path) for path in self.gone)
        stale = any(
            _systemd.show(unit, ["NeedDaemonReload"], self.module.run_command)["NeedDaemonReload"] == "yes"
            for unit in _uninstall.OTHERS_UNITS
        )
        if removed or stale:
            self.actions.append("had systemd read its units")
            if not self.check:
                self.command("systemctl", "daemon-reload")

    def remove_files(self) -> None:
        link = self.path(_uninstall.ENGINE_LINK)
        if link.is_symlink() and _uninstall.own_engine(str(link.readlink())):
            self.remove(link)
        self.take_away(_uninstall.FILES)
        if self.params["driver"]:
            self.take_away(_uninstall.DRIVER_FILES)
        elif any(self.found(pattern) for pattern in _uninstall.DRIVER_FILES):
            self.kept.append(
                "the driver's source, pin and exceptions from updates (vllm_uninstall_driver: true removes them)"
            )
        cache = self.path(self.params["cache_dir"])
        if (cache / CACHE_MARK).is_file():
            if os.path.ismount(cache):
                self.kept.append(f"{self.params['cache_dir']}: {OTHER_DISK}")
            else:
                self.take_away(f"{self.params['cache_dir']}/{name}" for name in _uninstall.CACHE)
                self.remove_if_empty(cache)
        if self.weights_dir.is_dir():
            hub = self.weights_dir / _uninstall.WEIGHTS_FOLDER
            if self.params["weights"] and not any(map(os.path.ismount, (self.weights_dir, hub))):
                self.take_away(f"{self.params['weights_dir']}/{name}" for name in _uninstall.WEIGHTS)
                self.remove_if_empty(hub)
            self.remove_if_empty(self.weights_dir)

    def remove_if_empty(self, folder: Path) -> None:
        if folder.is_dir() and not folder.is_symlink() and not self.stays(folder):
            self.remove(folder)

    def weights_stay(self) -> bool:
        return self.weights_dir.is_dir() and self.weights_dir not in self.gone

    @staticmethod
    def account_id() -> int | None:
        try:
            return pwd.getpwnam(_uninstall.ACCOUNT).pw_uid
        except KeyError:
            return None

    def remove_account(self) -> None:
        if self.weights_stay():
            why = "the weights (vllm_uninstall_weights: true removes them)"
            if self.params["weights"]:
                others = ", ".join(self.stays(self.weights_dir))
                mounts = (self.weights_dir, self.weights_dir / _uninstall.WEIGHTS_FOLDER)
                why = OTHER_DISK if any(map(os.path.ismount, mounts)) else f"holds what is not of the hub ({others})"
            self.kept.append(f"{self.params['weights_dir']}: {why}")
            if self.account_id() is not None:
                self.kept.append(f"the account {_uninstall.ACCOUNT}: the weights are its own")
            return
        if self.account_id() is not None and self.done(
            f"removed the account {_uninstall.ACCOUNT}", f"account {_uninstall.ACCOUNT}"
        ):
            self.command("userdel", _uninstall.ACCOUNT)
        with contextlib.suppress(KeyError):
            # Where userdel leaves it, or a run was cut off.
            if not self.check and not grp.getgrnam(_uninstall.ACCOUNT).gr_mem:
                self.done(f"removed the group {_uninstall.ACCOUNT}", f"group {_uninstall.ACCOUNT}")
                self.command("groupdel", _uninstall.ACCOUNT)

    def remove_folders(self) -> None:
        for place in _uninstall.FOLDERS:
            folder = self.path(place)
            if not folder.is_dir() or folder.is_symlink():
                continue
            left = self.stays(folder)
            others = [name for name in left if folder / name != self.weights_dir]
            if not left:
                self.gone.add(folder)
                if self.done(f"removed {place}", place):
                    # Not where it is a file system of its own.
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            elif place in _uninstall.OWN_FOLDERS and others:
                self.kept.append(f"{place}: holds what this collection has not put there ({', '.join(others)})")

    def purge(self, names: list[str]) -> None:
        if names and self.done(f"purged {', '.join(names)}", f"Debian packages: {', '.join(names)}"):
            self.command(*_apt.COMPLETE)
            self.command(*_apt.apt_get(*PURGE, "--", *names))

    def tell_what_stays(self) -> None:
        for pattern, why in _uninstall.KEPT.items():
            self.kept += [f"{self.shown(path)}: {why}" for path in self.found(pattern)]


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "weights": {"type": "bool", "default": False},
            "weights_dir": {"type": "path", "default": "/var/lib/vllm/weights"},
            "certificates": {"type": "bool", "default": False},
            "driver": {"type": "bool", "default": False},
            "cache_dir": {"type": "path", "default": "/var/cache/uv"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 15},
            "claim": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    module.run_command_environ_update = _apt.ENVIRONMENT
    uninstall = Uninstall(module)
    try:
        with _claim.turn(module.params["claim"], module.check_mode):
            uninstall.run()
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=_files.disk_trouble(error), **uninstall.result())
    except RuntimeError as error:
        module.fail_json(msg=str(error), **uninstall.result())


if __name__ == "__main__":
    main()
