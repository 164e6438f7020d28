#!/usr/bin/python

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: certificate
short_description: Get an endpoint's certificate and have NGINX serve it
version_added: 0.1.0
description:
  - Orders a certificate by certbot, through the webroot of port 80 or a DNS plugin, when there is none, or when the one at hand is for another
    name, from another authority, or was forgotten by the timer. At most one order a run, and none on a second run.
  - Before an order by port 80 it looks up the name, and fetches a token of its own from each of its addresses, as the authority will, since failed
    orders are counted.
  - A certificate that is there but is not the one NGINX is led to, because a play was cut off in between, is installed.
  - Enables certbot's timer, whose renewals go through the same deploy hook.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Says what would be done; nothing is ordered and no token is fetched.
    support: full
  diff_mode:
    description: There is no text to compare; RV(actions) tells what is done and why.
    support: none
options:
  mode:
    description:
      - V(acme) orders from O(server).
      - V(provided) installs O(chain_pem) with O(key_pem).
      - V(selfsigned) makes a self-signed certificate.
      - To either of these one from an authority gives way, and is not renewed any more.
    type: str
    choices: [acme, provided, selfsigned]
    required: true
  domain:
    description: DNS name of the endpoint.
    type: str
    required: true
  server:
    description: Directory URL of the certificate authority.
    type: str
    default: ''
  email:
    description: Address that the authority writes to; empty for none.
    type: str
    default: ''
  ca_pem:
    description:
      - Certificates (PEM) that vouch for the authority's own HTTPS, where the host does not know it yet.
      - They go into the host's trust, since certbot's timer has no other place to find them. Empty takes them out again.
    type: str
    default: ''
  chain_pem:
    description: With O(mode=provided), the endpoint's certificate and then each time the one that signed it (PEM).
    type: str
    default: ''
  key_pem:
    description: With O(mode=provided), its private key (PEM).
    type: str
    default: ''
  webroot:
    description: Folder from which port 80 answers C(/.well-known/acme-challenge/).
    type: path
    default: /var/www/vllm-acme
  tls_dir:
    description: Folder in which C(current) links to the folder of the certificate that is served.
    type: path
    default: /etc/vllm/tls
  hook:
    description: Program that installs a lineage; its argument is the lineage's folder.
    type: path
    default: /usr/local/sbin/vllm-install-certificate
  dns_plugin:
    description: Name of certbot's DNS plugin (such as V(rfc2136)) by which the domain is proven; empty for the webroot.
    type: str
    default: ''
  dns_credentials:
    description: Text of the plugin's file of credentials, as P(gpuops.vllm.certbot_credentials#filter) returns it. It is written for root alone.
    type: str
    default: ''
  dns_propagation_s:
    description: Seconds to wait until all name servers know the record; V(0) for the plugin's own time.
    type: int
    default: 0
  check_http:
    description: Whether to look up the name and fetch a token before an order by the webroot. Not every network lets a host reach itself so.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Get a certificate
  gpuops.vllm.certificate:
    mode: acme
    domain: llm.example.com
    email: ops@example.com
    server: https://acme.example.com/directory
"""

RETURN = r"""
actions:
  description: What was done, or would be, and why, in order.
  returned: success
  type: list
  elements: str
"""

import os
import re
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _certificate, _claim, _files, _systemd

#: One lineage, whatever the domain: after a change of name no forgotten one goes on renewing and installing itself.
LINEAGE = "vllm"
LETSENCRYPT = Path("/etc/letsencrypt")
RENEWAL = LETSENCRYPT / "renewal" / f"{LINEAGE}.conf"
LIVE = LETSENCRYPT / "live" / LINEAGE
CREDENTIALS = LETSENCRYPT / f"{LINEAGE}-dns.ini"
TRUSTED = Path("/usr/local/share/ca-certificates/vllm-acme.crt")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
TIMER = "certbot.timer"
#: certbot runs a deploy hook once. What NGINX could not load then, for a file of somebody else's, is loaded by a later run of the timer.
DROP_IN = Path("/etc/systemd/system/certbot.service.d/vllm.conf")
LOG = Path("/var/log/letsencrypt/letsencrypt.log")
HTTP_TIMEOUT_S = 10
RELOAD_TIMEOUT_S = 10
#: An order is made once. Only a refused nonce, which is the authority's word for "say that again", is not the end of it;
#: certbot itself says it again only once for each request.
ORDER_ATTEMPTS = 3


class Certificate:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.tls_dir = Path(self.params["tls_dir"])
        self.domain: str = self.params["domain"]
        self.actions: list[str] = []

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, actions=self.actions, changed=bool(self.actions))

    def run(
        self, command: list[str], what: str, attempts: int = 1, data: str | None = None, next_step: str = ""
    ) -> None:
        """Run a command with ``data`` to read. A further attempt is only for an authority that asks for one, see `ORDER_ATTEMPTS`."""
        for attempt in range(1, attempts + 1):
            rc, out, err = self.module.run_command(command, data=data, binary_data=True)
            if rc == 0:
                return
            errors = _certificate.authority_errors(_files.shown(_files.read_text(LOG) or "")) if attempts > 1 else []
            if attempt == attempts or "badNonce" not in " ".join([out, err, *errors]):
                lines = [line for line in (out + err).splitlines() if line.strip()]
                said = "\n".join(f"  {line}" for line in [*lines[-15:], *errors])
                self.fail(f"{what} failed (exit status {rc}). It says:\n{said}\n{next_step}".rstrip())

    # ---- Trust -------------------------------------------------------------------------------------------------------

    def trust(self) -> None:
        """Put the authority's own CA into the host's trust, or take it out."""
        wanted = self.params["ca_pem"].strip()
        there = _files.read_text(TRUSTED)
        if wanted:
            bundle = _files.read_text(BUNDLE) or ""
            if there == f"{wanted}\n" and wanted in bundle:
                return
            self.actions.append(f"put the authority's CA into the host's trust ({TRUSTED})")
        elif there is None:
            return
        else:
            self.actions.append(f"took {TRUSTED} out of the host's trust")
        if self.module.check_mode:
            return
        if wanted:
            _files.write_atomic(TRUSTED, f"{wanted}\n", 0o644)
        else:
            TRUSTED.unlink()
        self.run(["update-ca-certificates"], "update-ca-certificates")

    # ---- Credentials of a DNS provider -------------------------------------------------------------------------------

    def keep_credentials(self) -> None:
        """Have the file for the DNS plugin as it is wanted, or take it away."""
        wanted = self.params["dns_credentials"] if self.params["dns_plugin"] else ""
        # A provider's words may quote them.
        self.module.no_log_values.update(
            value for value in re.findall(r"""= ["'](.*)["']$""", wanted, re.MULTILINE) if len(value) >= 12
        )
        there = _files.read_text(CREDENTIALS)
        if wanted:
            if there == wanted and CREDENTIALS.stat().st_mode & 0o077 == 0:
                return
            self.actions.append(f"wrote the DNS credentials ({CREDENTIALS})")
        elif there is None:
            return
        else:
            self.actions.append(f"removed the DNS credentials ({CREDENTIALS})")
        if self.module.check_mode:
            return
        if wanted:
            _files.write_atomic(CREDENTIALS, wanted, 0o600)
        else:
            CREDENTIALS.unlink()

    def give_up_lineage(self) -> None:
        """Have certbot forget its certificate, and how it was got; the one that is installed stays."""
        self.keep_credentials()
        self.retry(wanted=False)
        if RENEWAL.exists():
            self.actions.append("gave up certbot's certificate, so that it does not come back when it renews")
            if not self.module.check_mode:
                self.run(["certbot", "delete", "--non-interactive", "--cert-name", LINEAGE], "certbot delete")

    # ---- Provided ----------------------------------------------------------------------------------------------------

    def provided(self) -> None:
        wanted = {_certificate.CHAIN: self.params["chain_pem"], _certificate.KEY: self.params["key_pem"]}
        wanted = {name: f"{text.strip()}\n" for name, text in wanted.items()}
        install = any(_files.read_text(self.tls_dir / "current" / name) != text for name, text in wanted.items())
        if install:
            self.actions.append("installed the certificate")
            if not self.module.check_mode:
                hook = [self.params["hook"], "--tls-dir", str(self.tls_dir), "-"]
                self.run(hook, "The installation of the certificate", data="".join(wanted.values()))
        if not (install and self.module.check_mode):
            self.have_it_served(reloaded=install)
        # Only now: had NGINX refused it, the one from before would still be renewed.
        self.give_up_lineage()
        self.trust()

    # ---- Self-signed -------------------------------------------------------------------------------------------------

    def selfsigned(self) -> None:
        self.trust()
        self.give_up_lineage()
        if _certificate.current(self.tls_dir) != _certificate.placeholder_name(self.domain):
            self.actions.append("made a self-signed certificate")
            if not self.module.check_mode:
                _certificate.make_placeholder(self.tls_dir, self.domain, self.module.run_command)
        self.have_it_served(reloaded=False)

    def have_it_served(self, reloaded: bool) -> None:
        """Reload NGINX where it serves another certificate; a reload that is under way is waited for."""
        if not (self.tls_dir / "current").exists() or self.is_served(RELOAD_TIMEOUT_S if reloaded else 0):
            return
        self.actions.append("reloaded nginx")
        if self.module.check_mode:
            return
        self.run(["nginx", "-t", "-q"], "NGINX's test of its configuration")
        self.run(["systemctl", "reload", "nginx.service"], "systemctl reload nginx")
        if not self.is_served(RELOAD_TIMEOUT_S):
            self.fail(
                f"NGINX was reloaded, but after {RELOAD_TIMEOUT_S} s it does not serve {self.tls_dir}/current for"
                f" {self.domain}. See /var/log/nginx/error.log, and whether another vhost answers for that name."
            )

    def is_served(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while _certificate.served(self.domain) != _certificate.on_disk(self.tls_dir):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        return True

    # ---- From an authority -------------------------------------------------------------------------------------------

    def lineage(self) -> _certificate.Lineage | None:
        renewal = _files.read_text(RENEWAL)
        if renewal is None or not (LIVE / "cert.pem").exists():
            return None
        query = ["openssl", "x509", "-noout", "-dates", "-ext", "subjectAltName", "-in", str(LIVE / "cert.pem")]
        rc, out, err = self.module.run_command(query)
        if rc != 0:
            self.fail(f"openssl cannot read {LIVE}/cert.pem: {(err or out).strip()}")
        return _certificate.parse_lineage(renewal, out)

    def installed(self) -> bool:
        live, served = LIVE / _certificate.CHAIN, self.tls_dir / "current" / _certificate.CHAIN
        return live.exists() and served.exists() and live.read_bytes() == served.read_bytes()

    def acme(self) -> None:
        self.trust()
        found = self.lineage()
        plugin = self.params["dns_plugin"]
        through = f"dns-{plugin}" if plugin else str(self.params["webroot"])
        reason = _certificate.order_reason(found, self.domain, self.params["server"], through, time.time())
        if plugin:
            self.keep_credentials()
        if reason:
            if not self.module.check_mode:
                self.order(replace=found is not None)
            self.actions.append(f"ordered a certificate from {self.params['server']}: {reason}")
        install = not self.installed()
        if install:
            # After an order the hook has run already. certbot only logs it when a hook fails; here it counts.
            self.actions.append("installed the certificate")
            if not self.module.check_mode:
                hook = [self.params["hook"], "--tls-dir", str(self.tls_dir), str(LIVE)]
                self.run(hook, "The installation of the certificate")
        if not self.module.check_mode:
            self.have_it_served(reloaded=bool(reason) or install)
        if not plugin:
            # Only now, when nothing renews by them any more.
            self.keep_credentials()
        self.retry(wanted=True)
        self.renew()
        self.timer()

    def order(self, replace: bool) -> None:
        # NGINX would load no new certificate, so none is to be spent.
        self.run(["nginx", "-t", "-q"], "Nothing was ordered: NGINX's test of its configuration")
        order = {
            name: str(self.params[name])
            for name in ("domain", "server", "webroot", "email", "dns_plugin", "dns_propagation_s")
        }
        order["dns_credentials"] = str(CREDENTIALS)
        if not order["dns_plugin"]:
            webroot = Path(self.params["webroot"])
            webroot.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self.params["check_http"]:
                self.fetch_token(webroot / ".well-known" / "acme-challenge")
        hook = f"{self.params['hook']} --tls-dir {self.tls_dir}"
        command = _certificate.order_command(order, LINEAGE, hook, replace)
        what = f"The order of a certificate for {self.domain} from {self.params['server']}"
        # The play does not come here again by itself; certbot's log has more than its last lines.
        next_step = (
            f"What was served before is served on. More is in {LOG}. Can this host reach the authority, and the authority this host's name? When the"
            " cause is gone, run the play again (--tags certificate is enough)."
        )
        self.run(command, what, ORDER_ATTEMPTS, next_step=next_step)

    def fetch_token(self, folder: Path) -> None:
        """Ask for a token as the authority will. An order that fails counts against the authority's limits."""
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for left in folder.glob("vllm-*-*"):
            # Of a run that was killed meanwhile.
            if not Path("/proc", left.name.split("-")[1]).exists():
                left.unlink(missing_ok=True)
        token = secrets.token_hex(16)
        path = folder / f"vllm-{os.getpid()}-{token}"
        path.write_text(token, encoding="ascii")
        path.chmod(0o644)
        url = f"/.well-known/acme-challenge/{path.name}"
        ask = partial(_certificate.fetch, domain=self.domain, path=url, timeout_s=HTTP_TIMEOUT_S)
        try:
            fault = _certificate.way_fault(self.lookup(), self.own_addresses(), token, ask)
        finally:
            path.unlink()
        if fault:
            self.fail(
                f"vllm_domain is {self.domain!r}, and it does not lead back to this host: {fault}. Its DNS record must name this host, and port 80 must"
                " be open to the certificate authority. Nothing was ordered, and what was served before is served on. Correct that and run the play"
                " again (--tags certificate is enough); if only this host itself cannot reach it, set vllm_certbot_check_http: false."
            )

    def lookup(self) -> list[str]:
        """The domain's addresses: what name servers say, as an authority asks them, else what /etc/hosts says."""
        for service in ("dns", "files"):
            _rc, out, _err = self.module.run_command(["getent", "-s", service, "ahosts", self.domain])
            if found := _certificate.addresses(out):
                return found
        return []

    def own_addresses(self) -> list[str]:
        _rc, out, _err = self.module.run_command(["hostname", "-I"])
        return str(out).split()

    def retry(self, wanted: bool) -> None:
        """Have each run of the timer install what an earlier one could not, or not any more."""
        hook = f"{self.params['hook']} --tls-dir {self.tls_dir} --if-new {LIVE}"
        text = f"# Made by the role gpuops.vllm.vllm_certbot.\n[Service]\nExecStopPost=-{hook}\n" if wanted else None
        if _files.read_text(DROP_IN) == text:
            return
        self.actions.append(
            "had certbot's timer install what an earlier run could not" if wanted else f"removed {DROP_IN}"
        )
        if self.module.check_mode:
            return
        if text is None:
            DROP_IN.unlink()
        else:
            _files.write_atomic(DROP_IN, text, 0o644)
        self.run(["systemctl", "daemon-reload"], "systemctl daemon-reload")

    def renew(self) -> None:
        """Have certbot renew the certificate again, where an uninstall has told it not to."""
        text = _files.read_text(RENEWAL)
        if text is None or text == (wanted := _certificate.renewed(text, wanted=True)):
            return
        self.actions.append("had certbot renew the certificate again")
        if not self.module.check_mode:
            _files.write_atomic(RENEWAL, wanted, RENEWAL.stat().st_mode & 0o777)

    def timer(self) -> None:
        state = _systemd.show(TIMER, ["UnitFileState", "ActiveState"], self.module.run_command)
        if state["UnitFileState"] == "enabled" and state["ActiveState"] == "active":
            return
        self.actions.append(f"enabled {TIMER}")
        if not self.module.check_mode:
            self.run(["systemctl", "enable", "--now", TIMER], f"systemctl enable {TIMER}")

    def converge(self) -> NoReturn:
        {"acme": self.acme, "provided": self.provided, "selfsigned": self.selfsigned}[self.params["mode"]]()
        self.module.exit_json(changed=bool(self.actions), actions=self.actions)


def main() -> None:
    # Under a stricter umask of root's NGINX's workers could not enter the webroot.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["acme", "provided", "selfsigned"], "required": True},
            "domain": {"type": "str", "required": True},
            "server": {"type": "str", "default": ""},
            "email": {"type": "str", "default": ""},
            "ca_pem": {"type": "str", "default": ""},
            "chain_pem": {"type": "str", "default": ""},
            "key_pem": {"type": "str", "default": "", "no_log": True},
            "webroot": {"type": "path", "default": "/var/www/vllm-acme"},
            "tls_dir": {"type": "path", "default": "/etc/vllm/tls"},
            "hook": {"type": "path", "default": "/usr/local/sbin/vllm-install-certificate"},
            "dns_plugin": {"type": "str", "default": ""},
            "dns_credentials": {"type": "str", "default": "", "no_log": True},
            "dns_propagation_s": {"type": "int", "default": 0},
            "check_http": {"type": "bool", "default": True},
            "claim": {"type": "str", "default": ""},
        },
        required_if=[("mode", "acme", ["server"]), ("mode", "provided", ["chain_pem", "key_pem"])],
        supports_check_mode=True,
    )
    # What is read here is compared with the programs' own words.
    module.run_command_environ_update = {"LC_ALL": "C"}
    certificate = Certificate(module)
    try:
        with _claim.turn(module.params["claim"], module.check_mode):
            certificate.converge()
    except _claim.RefusedError as error:
        certificate.fail(str(error))
    except (OSError, RuntimeError, ValueError) as error:
        certificate.fail(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
