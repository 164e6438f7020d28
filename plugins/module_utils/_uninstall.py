# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection puts on a host: the one list by which it is taken away again.

Paths are patterns of `glob` for whole files and folders. A role that writes to a new place gets an entry here; a test compares this list with
the paths in roles and modules, and another one a machine before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ansible_collections.gpuops.vllm.plugins.module_utils import _apt
from ansible_collections.gpuops.vllm.plugins.module_utils._systemd import parse_show

ACCOUNT = "vllm"
_HEX = "[0-9a-f]"

# ---- Units -------------------------------------------------------------------------------------------------------------

#: What brings the instances up at boot. These go first, so that a reboot in between serves nothing.
BOOT_LINKS = (
    "/etc/systemd/system/multi-user.target.wants/vllm.target",
    "/etc/systemd/system/vllm.target.wants/vllm@*.service",
)
#: What runs, or is remembered by systemd as having run.
UNITS = (
    "vllm.target",
    "vllm@*.service",
    "vllm-download.service",
    "vllm-install-*.service",
    "vllm-nvidia-nodes.service",
)
UNIT_FILES = (
    "/etc/systemd/system/vllm@.service",
    "/etc/systemd/system/vllm.target",
    "/etc/systemd/system/vllm-nvidia-nodes.service",
    "/etc/systemd/system/nginx.service.d/vllm-sandbox.conf",
    "/etc/systemd/system/nginx.service.d/vllm-drain.conf",
    "/etc/systemd/system/certbot.service.d/vllm.conf",
)
#: Units of others with drop-ins of ours: systemd is told where a run was cut off between their removal and that.
OTHERS_UNITS = ("nginx.service", "certbot.service")

# ---- The site ----------------------------------------------------------------------------------------------------------

SITE = "/etc/nginx/conf.d/vllm.conf"
#: It goes only once NGINX has forgotten the site: as long as it is there, a reload may be due.
SITE_FILES = "/etc/nginx/vllm"

# ---- The firewall ------------------------------------------------------------------------------------------------------

FIREWALL_UNITS = ("vllm-firewall-rollback.timer", "vllm-firewall-rollback.service", "vllm-firewall.service")
FIREWALL_FILES = (
    "/etc/systemd/system/sysinit.target.wants/vllm-firewall.service",
    "/etc/systemd/system/vllm-firewall.service",
    "/etc/vllm/firewall.nft",
    "/run/vllm-firewall-trial.json",
    "/run/vllm-firewall-rollback.nft",
)

# ---- The certificate ---------------------------------------------------------------------------------------------------

RENEWAL = "/etc/letsencrypt/renewal/vllm.conf"
#: certbot's own, in the order in which `certbot delete` removes them.
CERTIFICATE = (RENEWAL, "/etc/letsencrypt/live/vllm", "/etc/letsencrypt/archive/vllm")
#: Older versions of certbot keep a second copy of each private key there.
KEY_COPIES = "/etc/letsencrypt/keys/*_key-certbot.pem"
TRUSTED = "/usr/local/share/ca-certificates/vllm-acme.crt"
TRUSTED_LINK = "/etc/ssl/certs/vllm-acme.pem"

# ---- Files -------------------------------------------------------------------------------------------------------------

FILES = (
    "/etc/letsencrypt/vllm-dns.ini",
    "/etc/nginx/.vllm-test.[0-9]*.conf",
    "/usr/local/sbin/vllm-install-certificate",
    "/usr/local/bin/vllm-download",
    "/usr/local/bin/vllm-start",
    "/run/vllm-download-proxy",
    "/run/vllm-download-list.json",
    "/var/cache/vllm-packages",
    "/run/vllm",
    "/var/cache/vllm",
    "/var/www/vllm-acme",
    # What certbot's hook and the modules put there; the rest is somebody else's.
    "/etc/vllm/tls/current",
    "/etc/vllm/tls/placeholder-*",
    f"/etc/vllm/tls/{_HEX * 16}",
    f"/etc/vllm/tls/.{_HEX * 16}.[0-9]*",
    "/opt/vllm/install",
    "/opt/vllm/uv",
    f"/opt/vllm/[0-9]*-*-{_HEX * 8}",
    "/opt/vllm/last-change.json",
)
#: Goes only where it leads to one of the environments above, and not to a vLLM that somebody has put there.
ENGINE_LINK = "/opt/vllm/current"
_OWN_ENGINE = re.compile(r"[0-9][^/]*-[^/]*-[0-9a-f]{8}/?")

#: What keeps the driver as it is: source, key and pin of its packages, and what leaves it alone at updates. Only if told.
DRIVER_FILES = (
    "/etc/apt/sources.list.d/vllm-nvidia.sources",
    "/etc/apt/keyrings/vllm-nvidia.asc",
    "/etc/apt/preferences.d/00-vllm-nvidia.pref",
    "/etc/apt/apt.conf.d/52vllm-nvidia",
    "/etc/needrestart/conf.d/vllm-nvidia.conf",
    "/etc/modprobe.d/vllm-nvidia.conf",
)

#: What the download, and the libraries of the hub that it and the engine have, put into the folder of weights; the inner folder goes when it is empty.
WEIGHTS = (
    "hub/models--*",
    "hub/.locks",
    "hub/version.txt",
    "hub/CACHEDIR.TAG",
    "modules",
    "xet",
    ".vllm-download.lock",
)
WEIGHTS_FOLDER = "hub"
#: uv's, in its cache; the mark last, by which it is known.
CACHE = ("*-v[0-9]*", ".git", ".gitignore", ".lock", "CACHEDIR.TAG")
#: Installs packages for a play that may be gone: ended in the midst, they are left half installed.
DRIVER_UNIT = "vllm-install-nvidia.service"

#: Last: what says which instances there were.
RECORDS = ("/var/lib/vllm/instances", "/etc/vllm/instances", "/etc/vllm/instances.json", "/etc/vllm/secrets")

#: Folders that go when nothing is left in them, the inner one before the outer one.
FOLDERS = (
    "/etc/systemd/system/vllm.target.wants",
    "/etc/systemd/system/nginx.service.d",
    "/etc/systemd/system/certbot.service.d",
    "/etc/vllm/tls",
    "/etc/vllm",
    "/var/lib/vllm",
    "/opt/vllm",
)
#: Of these somebody wants to know why they are still there.
OWN_FOLDERS = frozenset({"/etc/vllm/tls", "/etc/vllm", "/var/lib/vllm", "/opt/vllm"})

#: What stays on purpose, by pattern, and why.
KEPT = {
    "/run/vllm-claim.json": "an earlier run of site.yml must not go on; it goes with the next boot",
    "/run/vllm-instances.lock": "other runs may wait for it; it goes with the next boot",
    "/etc/systemd/system/vllm@*.service.d": "your own settings of the units",
    "/var/log/nginx/vllm_access.log*": "the record of who asked",
    "/var/log/letsencrypt/*": "certbot's record",
    "/etc/letsencrypt/accounts": "certbot's account, which its other certificates may use",
}


def own_engine(target: str) -> bool:
    """Whether a link leads to an environment that the collection has made: ``0.32.0-cuda-1a2b3c4d``."""
    return bool(_OWN_ENGINE.fullmatch(target.removeprefix("/opt/vllm/")))


# ---- systemd -----------------------------------------------------------------------------------------------------------

_UNIT_PROPERTIES = ("Id", "ActiveState", "Job")


def show_argv(patterns: Iterable[str]) -> list[str]:
    """The command whose output `busy` and `failed` read. Of a pattern it shows what systemd has loaded."""
    return ["systemctl", "show", "--no-pager", f"--property={','.join(_UNIT_PROPERTIES)}", "--", *patterns]


def _units(shown: str) -> list[dict[str, str]]:
    blocks = [block for block in shown.split("\n\n") if block.strip()]
    return [parse_show(block.strip("\n"), _UNIT_PROPERTIES) for block in blocks]


def busy(shown: str) -> list[str]:
    """Names of the units that run, or are about to."""
    return [
        unit["Id"]
        for unit in _units(shown)
        if unit["ActiveState"] not in ("inactive", "failed", "") or unit["Job"] not in ("", "0")
    ]


def failed(shown: str) -> list[str]:
    """Names of the units that systemd remembers as failed."""
    return [unit["Id"] for unit in _units(shown) if unit["ActiveState"] == "failed"]


# ---- Packages ----------------------------------------------------------------------------------------------------------


def other_packages(simulated: str, named: Iterable[str]) -> list[str]:
    """The packages beside ``named`` that ``apt-get --simulate purge`` would remove or install."""
    return sorted(set(_apt.touched(simulated, "Purg", "Remv", "Inst")) - set(named))
