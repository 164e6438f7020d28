#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_config
short_description: Bring NGINX to a configuration, tested before it is live
version_added: 0.1.0
description:
  - Puts a set of files into a folder of its own under C(/etc/nginx/vllm/), has NGINX test the whole configuration with
    them in place, and only then links C(/etc/nginx/conf.d/vllm.conf) to them.
  - Reloads NGINX when what it has loaded differs from what is wanted. It asks NGINX itself, on the loopback port, so a
    play that was cut off between the link and the reload is cured by the next one. NGINX is started where it does not
    run and is never restarted, since a restart cuts streams.
  - A configuration that NGINX refuses changes nothing, and its complaint is the error. So it is where nothing is to change but a file of somebody
    else's in C(/etc/nginx) is broken, with which NGINX would not start at the next boot.
  - The key of vLLM is read on the host and is written for root alone. It never passes through Ansible.
  - Where there is no certificate yet, a self-signed one is made, so that NGINX starts and the challenge of a
    certificate authority can be answered.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Nothing is written; the configuration is not tested by NGINX.
    support: full
  diff_mode:
    description: The files, without vLLM's key and the digests of the clients' keys.
    support: full
options:
  domain:
    description: DNS name of the endpoint.
    type: str
    required: true
  files:
    description:
      - Text of each file by its name; C(vllm.conf) is the one that NGINX is led to.
      - C(@tree@) stands for the folder that the files will lie in, and C(@digest@) for the digest of them all.
      - They are written for NGINX 1.22 with IPv6 and OpenSSL 3.5, and are fitted to what the host has.
      - C(upstream_key.conf) and C(clients.conf) are added.
    type: dict
    required: true
  clients:
    description: What NGINX knows of the clients, as P(gpuops.vllm.nginx_clients#filter) returns it.
    type: str
    required: true
  secrets_file:
    description: File in the format of systemd's C(EnvironmentFile) with C(VLLM_API_KEY).
    type: path
    default: /etc/vllm/secrets
  tls_dir:
    description: Folder in which C(current) links to the folder of the certificate that is served.
    type: path
    default: /etc/vllm/tls
  status_port:
    description: Port on 127.0.0.1 on which the configuration answers its digest under C(/digest).
    type: int
    default: 8790
  replace_default_site:
    description:
      - Whether the distribution's welcome page gives way, as long as nobody has edited it. Its file stays in
        C(sites-available); only its link in C(sites-enabled) goes.
    type: bool
    default: true
  timeout_s:
    description: Seconds within which NGINX must have loaded the configuration.
    type: int
    default: 15
"""

EXAMPLES = r"""
- name: Bring NGINX to its configuration
  gpuops.vllm.nginx_config:
    domain: llm.example.com
    clients: "{{ vllm_nginx_api_keys | gpuops.vllm.nginx_clients }}"
    files:
      vllm.conf: "{{ lookup('ansible.builtin.template', 'vllm.conf.j2') }}"
"""

RETURN = r"""
digest:
  description: Digest of the wanted configuration; empty in check mode where the host has no vLLM key yet.
  returned: success
  type: str
actions:
  description: What was done, or would be, in order.
  returned: success
  type: list
  elements: str
"""

import hashlib
import http.client
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import (
    _certificate,
    _claim,
    _envfile,
    _files,
    _nginx,
    _systemd,
)

NGINX_DIR = Path("/etc/nginx")
ROOT = NGINX_DIR / "vllm"
ENTRY = NGINX_DIR / "conf.d" / "vllm.conf"
DEFAULT_SITE = NGINX_DIR / "sites-enabled" / "default"
ERROR_LOG = Path("/var/log/nginx/error.log")
MAIN_FILE = "vllm.conf"
UNIT = "nginx.service"


def matches(pattern: str) -> list[str]:
    """Files that an include with this absolute pattern reads, in NGINX's order."""
    return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))


class Proxy:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.tls_dir = Path(self.params["tls_dir"])
        self.actions: list[str] = []
        self.build: _nginx.Build | None = None

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, actions=self.actions, changed=bool(self.actions))

    # ---- What is wanted ----------------------------------------------------------------------------------------------

    def find_nginx(self) -> None:
        nginx = self.module.get_bin_path("nginx")
        if nginx:
            _rc, out, err = self.module.run_command([nginx, "-V"])
            self.build = _nginx.parse_build(out + err, ipv6=Path("/proc/net/if_inet6").exists())
        elif not self.module.check_mode:
            self.fail(
                "nginx is not installed on this host. Install it (the role vllm_nginx does), and run the play again."
            )

    def upstream_key(self) -> str:
        """vLLM's own key; ``""`` only in check mode, where the run before this step would have made it."""
        path = Path(self.params["secrets_file"])
        text = _files.read_text(path)
        key = _envfile.parse(text).get("VLLM_API_KEY", "") if text is not None else ""
        if not key and not self.module.check_mode:
            fault = "is not there" if text is None else "has no VLLM_API_KEY"
            self.fail(
                f"{path} {fault}, and the proxy needs vLLM's key. The role vllm_secrets makes it: run that before."
            )
        return key

    def wanted(self) -> dict[str, str]:
        build = self.build
        files = {name: _nginx.adapt(text, build) if build else text for name, text in self.params["files"].items()}
        if key := self.upstream_key():
            files[_nginx.KEY_FILE] = _nginx.key_include(key)
        files[_nginx.CLIENTS_FILE] = self.params["clients"]
        return files

    # ---- What is there -----------------------------------------------------------------------------------------------

    def live_tree(self) -> Path | None:
        """The folder that NGINX is led to."""
        if not ENTRY.is_symlink():
            if ENTRY.exists():
                self.fail(
                    f"{ENTRY} is a file of somebody else's, where this role puts a link. Move it, and run the play again."
                )
            return None
        return (ENTRY.parent / ENTRY.readlink()).resolve().parent

    def read_tree(self, tree: Path | None) -> dict[str, str]:
        if tree is None or not tree.is_dir():
            return {}
        paths = [path for path in sorted(tree.iterdir()) if path.is_file()]
        # A file that others may read although it is secret is as good as none: it is written again.
        return {path.name: path.read_text(encoding="utf-8") for path in paths if self.mode_fits(path)}

    @staticmethod
    def mode_fits(path: Path) -> bool:
        return path.name not in _nginx.SECRET_FILES or path.stat().st_mode & 0o077 == 0

    def loaded_digest(self) -> str:
        """What NGINX says it has loaded; ``""`` where nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.params["status_port"], timeout=2)
        try:
            connection.request("GET", "/digest")
            answer = connection.getresponse()
            text = answer.read(64).decode("ascii", "replace")
            return text.strip() if answer.status == 200 else ""
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    def up_to_date(self, digest: str) -> bool:
        if self.loaded_digest() != digest:
            return False
        return _certificate.served(self.params["domain"]) == _certificate.on_disk(self.tls_dir)

    def default_site_to_go(self) -> bool:
        """Whether the welcome page is there, as its package brought it."""
        if not self.params["replace_default_site"] or not DEFAULT_SITE.is_symlink() or not DEFAULT_SITE.exists():
            return False
        page = DEFAULT_SITE.resolve()
        query = ["dpkg-query", "--show", "--showformat=${Conffiles}\n", "nginx-common", "nginx"]
        _rc, out, _err = self.module.run_command(query)
        # dpkg keeps MD5 sums; nothing is secured by this one.
        checksum = hashlib.md5(page.read_bytes(), usedforsecurity=False).hexdigest()
        return bool(re.search(rf"^ ?{re.escape(str(page))} {checksum}", out, re.MULTILINE))

    # ---- What is done ------------------------------------------------------------------------------------------------

    def write(self, tree: Path, files: dict[str, str]) -> None:
        tree.mkdir(mode=0o755, parents=True)
        for name, text in files.items():
            _files.write_atomic(tree / name, text, 0o600 if name in _nginx.SECRET_FILES else 0o644)

    def test(self, tree: Path, without: list[str]) -> None:
        """Have NGINX judge its whole configuration as it would be; on a refusal, say why and take the folder back."""
        text = (NGINX_DIR / "nginx.conf").read_text(encoding="utf-8")
        try:
            main = _nginx.staged_main(text, ENTRY, tree / MAIN_FILE, without, matches)
        except ValueError as error:
            self.fail(f"{error}, so nothing of this role would be read. Put it back into {NGINX_DIR}/nginx.conf.")
        # Beside nginx.conf, because relative paths in it count from there.
        _files.remove_left_behind(NGINX_DIR, "vllm-test")
        handle, name = tempfile.mkstemp(prefix=f".vllm-test.{os.getpid()}.", suffix=".conf", dir=NGINX_DIR)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(main)
            rc, out, err = self.module.run_command(["nginx", "-t", "-q", "-c", name])
        finally:
            Path(name).unlink()
        if rc != 0:
            said = _nginx.words(out + err).replace(name, str(NGINX_DIR / "nginx.conf"))
            complaint = _nginx.with_lines(said, self.read_tree(tree))
            new = tree != self.live_tree()
            if new:
                shutil.rmtree(tree)
            what = (
                "the new configuration"
                if new
                else "its configuration as it lies there now, and would not start at the next boot"
            )
            self.fail(
                f"NGINX refuses {what}; what runs was left as it is. It says:\n{complaint}\n{_nginx.hint(complaint)}"
            )

    def link(self, tree: Path, default_site: bool) -> None:
        if default_site:
            DEFAULT_SITE.unlink()
            self.actions.append("took the distribution's default site out of sites-enabled")
        _certificate.flip(ENTRY, os.path.relpath(tree / MAIN_FILE, ENTRY.parent))

    def enable(self) -> bool:
        """Have NGINX start at boot and run now. Returns whether it runs already."""
        state = _systemd.show(UNIT, ["UnitFileState", "ActiveState"], self.module.run_command)
        if state["UnitFileState"] != "enabled":
            self.actions.append("enabled nginx at boot")
            if not self.module.check_mode:
                self.systemctl("enable")
        return state["ActiveState"] == "active"

    def systemctl(self, verb: str) -> tuple[int, str]:
        rc, out, err = self.module.run_command(["systemctl", verb, UNIT])
        return rc, out + err

    def load(self, digest: str, runs: bool) -> str:
        """Start or reload NGINX and wait until it answers with the configuration. Returns why it did not."""
        before = ERROR_LOG.stat().st_size if ERROR_LOG.exists() else 0
        verb = "reload" if runs else "start"
        rc, said = self.systemctl(verb)
        deadline = time.monotonic() + self.params["timeout_s"]
        while rc == 0 and time.monotonic() < deadline:
            if self.up_to_date(digest):
                self.actions.append(f"{verb}ed nginx")
                return ""
            time.sleep(0.1)
        if rc == 0:
            said = f"after {self.params['timeout_s']} s it still answers with another configuration or certificate"
        log = ""
        if ERROR_LOG.exists():
            with ERROR_LOG.open(encoding="utf-8", errors="replace") as stream:
                stream.seek(before)
                log = stream.read(20_000)
        if not runs:
            log += "\n".join(_systemd.journal(UNIT, 10, runner=self.module.run_command))
        complaint = _nginx.words(log or said)
        return f"NGINX did not {verb}. It says:\n{complaint}\n{_nginx.hint(complaint)}"

    def converge(self) -> NoReturn:
        wanted = self.wanted()
        digest = _nginx.digest(wanted)
        live = self.live_tree()
        there = self.read_tree(live)
        intact = live is not None and _nginx.is_named_for(live, digest) and there == _nginx.place(wanted, live)
        tree = live if live and intact else _nginx.new_tree(ROOT, digest)
        diff = self.diff(live, there, wanted)
        placeholder = _certificate.needs_placeholder(self.tls_dir, self.params["domain"])
        default_site = self.default_site_to_go()
        if placeholder:
            self.actions.append("made a self-signed certificate, until there is a better one")
        if self.module.check_mode:
            self.foresee(tree, intact, default_site, placeholder, diff)

        if placeholder:
            _certificate.make_placeholder(self.tls_dir, self.params["domain"], self.module.run_command)
        if tree != live:
            self.write(tree, _nginx.place(wanted, tree))
        # Also what is there already: a file of somebody else's may have broken it since, and the next boot must not be who finds out.
        self.test(tree, [str(DEFAULT_SITE)] if default_site else [])
        if tree != live or default_site:
            self.link(tree, default_site)
            self.actions.append("tested and linked the configuration")
        runs = self.enable()
        if (not runs or not self.up_to_date(tree.name)) and (fault := self.load(tree.name, runs)):
            self.take_back(live, tree, default_site)
            self.fail(fault)
        for other in ROOT.iterdir():
            if other.is_dir() and other != tree:
                shutil.rmtree(other)
        self.module.exit_json(changed=bool(self.actions), digest=tree.name, actions=self.actions, diff=diff)

    def take_back(self, live: Path | None, tree: Path, default_site: bool) -> None:
        """Lead NGINX to what it still runs, so that the next start of the host is the same."""
        if live is None:
            ENTRY.unlink()
        elif live != tree:
            _certificate.flip(ENTRY, os.path.relpath(live / MAIN_FILE, ENTRY.parent))
        if default_site:
            DEFAULT_SITE.symlink_to("/etc/nginx/sites-available/default")
        if live != tree:
            shutil.rmtree(tree)

    def foresee(
        self, tree: Path, same: bool, default_site: bool, placeholder: bool, diff: list[dict[str, str]]
    ) -> NoReturn:
        """Check mode: say what would be done."""
        if default_site:
            self.actions.append("would take the distribution's default site out of sites-enabled")
        if not same:
            self.actions.append("would test and link the configuration")
        if self.build is None:
            self.actions.append("nginx is not installed yet")
        elif not self.enable() or placeholder or not same or not self.up_to_date(tree.name):
            self.actions.append("would load it")
        has_key = _nginx.KEY_FILE in self.wanted()
        self.module.exit_json(
            changed=bool(self.actions), digest=tree.name if has_key else "", actions=self.actions, diff=diff
        )

    def diff(self, live: Path | None, there: dict[str, str], wanted: dict[str, str]) -> list[dict[str, str]]:
        """The files that differ, without a secret; for those only which clients there are."""
        before = {name: _nginx.unplace(text, live) for name, text in there.items()} if live else {}
        changes = []
        for name in sorted({*before, *wanted} - _nginx.SECRET_FILES):
            old, new = before.get(name, ""), wanted.get(name, "")
            if old != new:
                header = f"{ROOT}/{name}"
                changes.append({"before_header": header, "after_header": header, "before": old, "after": new})
        for name in sorted(_nginx.SECRET_FILES & {*before, *wanted}):
            old, new = before.get(name, ""), wanted.get(name, "")
            if old != new:
                changes.append({"prepared": f"{ROOT}/{name}: {self.hidden(old)} -> {self.hidden(new)}\n"})
        return changes

    @staticmethod
    def hidden(text: str) -> str:
        # The first map is the one to the names.
        names = re.findall(r'^"[0-9a-f]{64}" "([^"]+)";$', text.partition("}")[0], re.MULTILINE)
        if names:
            return f"clients {', '.join(dict.fromkeys(names))} (keys not shown)"
        return "a key (not shown)" if text else "nothing"


def main() -> None:
    # Under a stricter umask of root's NGINX's workers could not enter the folders made here.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "domain": {"type": "str", "required": True},
            "files": {"type": "dict", "required": True},
            "clients": {"type": "str", "required": True, "no_log": True},
            "secrets_file": {"type": "path", "default": "/etc/vllm/secrets", "no_log": False},
            "tls_dir": {"type": "path", "default": "/etc/vllm/tls"},
            "status_port": {"type": "int", "default": 8790},
            "replace_default_site": {"type": "bool", "default": True},
            "timeout_s": {"type": "int", "default": 15},
            "claim": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    # What is read here is compared with the programs' own words.
    module.run_command_environ_update = {"LC_ALL": "C"}
    proxy = Proxy(module)
    try:
        proxy.find_nginx()
        # Two plays at once end in the one's or the other's configuration, never in half of each.
        with _claim.turn(module.params["claim"], module.check_mode):
            proxy.converge()
    except _claim.RefusedError as error:
        proxy.fail(str(error))
    except (OSError, RuntimeError, ValueError) as error:
        proxy.fail(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else f"{error}.")


if __name__ == "__main__":
    main()
