# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `uninstall` on a tree of its own, with programs that do what a host's would."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim
from ansible_collections.gpuops.vllm.plugins.modules import uninstall

ENGINE = "0.32.0-cpu-1a2b3c4d"
PAIR = "0123456789abcdef"
RENEWAL = "archive_dir = /etc/letsencrypt/archive/vllm\n\n[renewalparams]\nserver = https://acme.example.com/dir\n"
#: What a host has that this collection has brought, with its content; links begin with "->".
OURS = {
    "etc/systemd/system/multi-user.target.wants/vllm.target": "->/etc/systemd/system/vllm.target",
    "etc/systemd/system/vllm.target.wants/vllm@llama-0.service": "->/etc/systemd/system/vllm@.service",
    "etc/systemd/system/vllm@.service": "",
    "etc/systemd/system/vllm.target": "",
    "etc/systemd/system/vllm-nvidia-nodes.service": "",
    "etc/systemd/system/nginx.service.d/vllm-sandbox.conf": "",
    "etc/systemd/system/nginx.service.d/vllm-drain.conf": "",
    "etc/systemd/system/certbot.service.d/vllm.conf": "",
    "etc/systemd/system/sysinit.target.wants/vllm-firewall.service": "->/etc/systemd/system/vllm-firewall.service",
    "etc/systemd/system/vllm-firewall.service": "",
    "etc/nginx/conf.d/vllm.conf": "->../vllm/abc/vllm.conf",
    "etc/nginx/vllm/abc/vllm.conf": "    listen 127.0.0.1:PORT;\n",
    "etc/nginx/vllm/abc/upstream_key.conf": "secret",
    "etc/letsencrypt/vllm-dns.ini": "secret",
    "usr/local/share/ca-certificates/vllm-acme.crt": "",
    "usr/local/sbin/vllm-install-certificate": "",
    "usr/local/bin/vllm-start": "",
    "usr/local/bin/vllm-download": "",
    "run/vllm/llama-0/state.json": "",
    "var/cache/vllm/llama-0/kernel": "",
    "var/cache/uv/CACHEDIR.TAG": "",
    "var/cache/uv/archive-v0/wheel": "",
    "var/www/vllm-acme/.well-known/acme-challenge/token": "",
    "opt/vllm/current": f"->{ENGINE}",
    f"opt/vllm/{ENGINE}/bin/vllm": "",
    "opt/vllm/install/uv.txt": "",
    "opt/vllm/last-change.json": "{}",
    "opt/vllm/uv/bin/uv": "",
    "etc/vllm/tls/current": f"->{PAIR}",
    f"etc/vllm/tls/{PAIR}/privkey.pem": "secret",
    "etc/vllm/tls/placeholder-llm.example.com/privkey.pem": "secret",
    "etc/vllm/firewall.nft": "",
    "etc/vllm/secrets": "secret",
    # Of a run that was killed while it wrote.
    "etc/vllm/.secrets.999999999.abc": "secret",
    "etc/vllm/instances.json": "",
    "etc/vllm/instances/llama-0/env": "secret",
    "var/lib/vllm/instances/llama-0/served.json": "",
}
#: What a host has besides, and keeps.
OTHERS = {
    "etc/nginx/conf.d/app.conf": "",
    "etc/nginx/sites-available/default": "",
    "etc/systemd/system/nginx.service": "",
    "opt/other/bin": "",
    "usr/local/bin/vllm": "",
    "var/lib/other": "",
}
CERTIFICATE = {
    "etc/letsencrypt/renewal/vllm.conf": RENEWAL,
    "etc/letsencrypt/live/vllm/privkey.pem": "->../../archive/vllm/privkey1.pem",
    "etc/letsencrypt/archive/vllm/privkey1.pem": "key",
    "etc/letsencrypt/keys/0000_key-certbot.pem": "key",
}
OTHER_CERTIFICATE = {
    "etc/letsencrypt/renewal/other.conf": "",
    "etc/letsencrypt/keys/0001_key-certbot.pem": "another key",
    "etc/letsencrypt/accounts/acme/dir/private_key.json": "",
}
WEIGHTS = {"var/lib/vllm/weights/hub/models--org--model/blobs/1": "weights"}


class EndedError(Exception):
    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class KilledError(BaseException):
    """In the place of a signal that ends the process at once."""


class Host:
    """A tree, and the programs of a host as far as the module asks them."""

    def __init__(self, root: Path, accounts: set[str]) -> None:
        self.root, self.accounts = root, accounts
        self.groups = {"vllm"}
        self.running = ["vllm.target", "vllm@llama-0.service"]
        self.slow: list[str] = []
        self.failed: list[str] = []
        self.firewall = ["vllm-firewall.service"]
        self.table = True
        self.nginx = "active"
        self.objection = ""
        self.site: socket.socket | None = None
        self.stale = False
        self.ran: list[list[str]] = []
        self.installed: list[str] = []
        self.held: set[str] = set()
        self.simulated = ""
        self.check_mode = False
        self.params: dict[str, Any] = {
            "weights": False,
            "weights_dir": "/var/lib/vllm/weights",
            "certificates": False,
            "driver": False,
            "cache_dir": "/var/cache/uv",
            "packages": [],
            "timeout_s": 1,
            "claim": "",
        }

    # ---- The tree ----------------------------------------------------------------------------------------------------

    def make(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.startswith("->"):
                path.symlink_to(content[2:])
            else:
                path.write_text(content.replace("PORT", str(self.port())))

    def files(self) -> set[str]:
        found = [path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir()]
        return {str(path.relative_to(self.root)) for path in found}

    def folders(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_dir()}

    def port(self) -> int:
        return self.site.getsockname()[1] if self.site else 1

    # ---- What the module calls ---------------------------------------------------------------------------------------

    def get_bin_path(self, name: str, opt_dirs: list[str] | None = None) -> str | None:
        return f"/usr/sbin/{name}"

    def run_command(self, argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        name, *words = argv
        if words[:1] == ["show"]:
            return 0, self.show(words), ""
        self.ran.append(argv)
        if name == "systemctl":
            return self.systemctl(words)
        if name == "/usr/sbin/nginx":
            return int(bool(self.objection)), "", self.objection
        if name == "/usr/sbin/nft":
            if words[0] == "list":
                return int(not self.table), "", ""
            assert "delete table inet vllm" in str(data)
            self.table = False
        elif name == "userdel":
            self.accounts.discard(words[0])
        elif name == "groupdel":
            self.groups.discard(words[0])
        elif name == "update-ca-certificates":
            (self.root / "etc/ssl/certs/vllm-acme.pem").unlink(missing_ok=True)
        elif name == "dpkg":
            assert words[-2:] == ["--configure", "-a"]
        elif name == "dpkg-query":
            return 0, "".join(f"installed {one}\n" for one in words[3:] if one in self.installed), ""
        elif name == "apt-get":
            if self.held & {*words} and "--allow-change-held-packages" not in words:
                return 100, "", "E: Held packages were changed and -y was used without --allow-change-held-packages."
            if "--simulate" in words:
                return 0, self.simulated, ""
            self.installed = [one for one in self.installed if one not in words]
        else:
            raise AssertionError(argv)
        return 0, "", ""

    def show(self, words: list[str]) -> str:
        asked = words[2].removeprefix("--property=").split(",")
        if asked == ["NeedDaemonReload"]:
            return f"NeedDaemonReload={'yes' if self.stale else 'no'}\n"
        if asked == ["ActiveState"]:
            return f"ActiveState={self.nginx}\n"
        firewall = "vllm-firewall.service" in words
        units = dict.fromkeys(self.firewall if firewall else self.running, "active")
        units |= {} if firewall else dict.fromkeys(self.failed, "failed")
        return "\n".join(f"Id={one}\nActiveState={state}\nJob=0\n" for one, state in units.items())

    def systemctl(self, words: list[str]) -> tuple[int, str, str]:
        if words[0] == "stop":
            stays = [one for one in self.running if one in self.slow]
            self.running = [one for one in self.running if one not in words or one in stays]
            self.firewall = [one for one in self.firewall if one not in words]
        elif words[0] == "reset-failed":
            self.failed = [one for one in self.failed if one not in words]
        elif words[0] == "daemon-reload":
            self.stale = False
        elif words[0] == "reload" and self.site:
            self.site.close()
            self.site = None
        return 0, "", ""

    def exit_json(self, **result: Any) -> NoReturn:
        raise EndedError(result)

    def fail_json(self, **result: Any) -> NoReturn:
        raise EndedError({"failed": True, **result})

    # ---- Runs --------------------------------------------------------------------------------------------------------

    def once(self) -> dict[str, Any]:
        """One call of the module."""
        before = self.files()
        with pytest.raises(EndedError) as ended:
            uninstall.Uninstall(self).run()  # type: ignore[arg-type]
        if self.check_mode:
            assert self.files() == before
            changing = [
                argv for argv in self.ran if argv[1:2] not in (["list"], ["--show"]) and "--simulate" not in argv
            ]
            assert changing == []
        return ended.value.result


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(uninstall, "ROOT", tmp_path)
    one = Host(tmp_path, {"vllm"})

    def account(name: str) -> Any:
        if name not in one.accounts:
            raise KeyError(name)
        return SimpleNamespace(pw_uid=os.geteuid(), gr_mem=[])

    def group(name: str) -> Any:
        if name not in one.groups:
            raise KeyError(name)
        return SimpleNamespace(gr_mem=[])

    monkeypatch.setattr(pwd, "getpwnam", account)
    monkeypatch.setattr("grp.getgrnam", group)
    one.site = socket.create_server(("127.0.0.1", 0))
    one.make(OURS | OTHERS | {"etc/ssl/certs/vllm-acme.pem": "->/usr/local/share/ca-certificates/vllm-acme.crt"})
    yield one
    if one.site:
        one.site.close()


def test_all_goes_and_nothing_else(host: Host) -> None:
    result = host.once()
    assert host.files() == set(OTHERS)
    gone = {"etc/vllm", "opt/vllm", "var/lib/vllm", "run/vllm", "var/cache/vllm", "var/cache/uv", "var/www/vllm-acme"}
    assert not gone & host.folders()
    assert not [folder for folder in host.folders() if folder.endswith(("nginx.service.d", "vllm.target.wants"))]
    assert (host.accounts, host.groups) == (set(), set())
    assert (host.running, host.firewall, host.table, host.site) == ([], [], False, None)
    assert result["changed"] is True
    assert result["kept"] == []


def test_a_second_run_changes_nothing(host: Host) -> None:
    host.once()
    host.ran.clear()
    result = host.once()
    assert (result["changed"], result["actions"], result["diff"]) == (False, [], {})
    assert [argv for argv in host.ran if argv[1:2] != ["list"]] == []


def test_on_a_bare_host_nothing_is_to_be_done(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.setattr(uninstall, "ROOT", tmp_path / "bare")
    bare = Host(tmp_path / "bare", host.accounts)
    bare.running, bare.firewall, bare.table = [], [], False
    host.accounts.clear()
    host.groups.clear()
    for bare.check_mode in (True, False):
        assert bare.once()["changed"] is False


def test_serving_ends_first_and_the_records_go_last(host: Host) -> None:
    actions = host.once()["actions"]
    place = {action: number for number, action in enumerate(actions)}
    stop, site = place["stopped vllm@llama-0.service"], place["took the site out of NGINX"]
    firewall, launcher = place["opened the firewall"], place["removed /usr/local/bin/vllm-start"]
    assert place["removed /etc/systemd/system/multi-user.target.wants/vllm.target"] < stop < site < firewall < launcher
    assert launcher < place["removed the account vllm"] < place["removed /etc/vllm/instances.json"]
    assert place["removed /etc/vllm/instances.json"] < place["removed /etc/vllm/secrets"]


def test_nothing_is_removed_while_something_still_stops(host: Host) -> None:
    host.slow = ["vllm@llama-0.service"]
    before = host.files()
    result = host.once()
    assert result["pending"] is True
    assert result["status"] == "stopping vllm@llama-0.service"
    links = {name for name in OURS if name.endswith(("wants/vllm.target", "vllm@llama-0.service"))}
    assert before - host.files() == links
    host.slow = []
    assert host.once().get("pending") is None
    assert host.files() == set(OTHERS)


def test_what_has_failed_is_forgotten(host: Host) -> None:
    host.failed = ["vllm@llama-0.service"]
    host.running = []
    host.once()
    assert host.failed == []


def test_check_mode_tells_what_would_go(host: Host) -> None:
    host.check_mode = True
    told = host.once()
    host.check_mode = False
    host.ran.clear()
    done = host.once()
    # The group goes with the account.
    assert [one for one in done["actions"] if one != "removed the group vllm"] == told["actions"]
    assert "/usr/local/bin/vllm-start\n" in told["diff"]["before"]
    assert "vllm@llama-0.service (runs)\n" in told["diff"]["before"]
    assert told["diff"]["after"] == ""


def kill_at(host: Host, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the module and have it die before its nth step that changes something; whether it came so far."""
    left = step

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            if args and isinstance(args[0], list) and (args[0][1:2] == ["show"] or args[0][1:2] == ["list"]):
                return real(*args, **options)
            left -= 1
            if left == 0:
                raise KilledError
            return real(*args, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(host, "run_command", dying(host.run_command))
        patched.setattr(Path, "unlink", dying(Path.unlink))
        patched.setattr(Path, "rmdir", dying(Path.rmdir))
        patched.setattr("shutil.rmtree", dying(shutil.rmtree))
        try:
            uninstall.Uninstall(host).run()  # type: ignore[arg-type]
        except KilledError:
            return True
        except EndedError:
            return False
    return False


def test_whenever_it_is_killed_the_next_run_ends_the_same(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.make(CERTIFICATE)
    steps = 0
    while kill_at(host, steps + 1, monkeypatch):
        steps += 1
        host.once()
        assert host.files() == set(OTHERS) | set(CERTIFICATE), f"killed at step {steps}"
        assert (host.running, host.firewall, host.table, host.site, host.accounts, host.groups) == (
            [],
            [],
            False,
            None,
            set(),
            set(),
        )
        assert not [folder for folder in host.folders() if folder.endswith("/vllm") and "letsencrypt" not in folder]
        assert host.once()["changed"] is False
        renew(host)
    # Far more than the programs that it runs.
    assert steps > 40


def renew(host: Host) -> None:
    """Make the host again as it was."""
    for name in CERTIFICATE:
        (host.root / name).unlink()
    host.accounts.add("vllm")
    host.groups.add("vllm")
    host.running = ["vllm.target", "vllm@llama-0.service"]
    host.firewall, host.table = ["vllm-firewall.service"], True
    host.site = socket.create_server(("127.0.0.1", 0))
    host.make(OURS | CERTIFICATE | {"etc/ssl/certs/vllm-acme.pem": "->/usr/local/share/ca-certificates/vllm-acme.crt"})


# ---- What stays, and what goes only if told ------------------------------------------------------------------------------


def test_weights_stay_and_with_them_their_account(host: Host) -> None:
    host.make(WEIGHTS)
    result = host.once()
    assert host.files() == set(OTHERS) | set(WEIGHTS)
    assert host.accounts == {"vllm"}
    assert result["kept"] == [
        "/var/lib/vllm/weights: the weights (vllm_uninstall_weights: true removes them)",
        "the account vllm: the weights are its own",
    ]
    host.params["weights"] = True
    host.once()
    assert host.files() == set(OTHERS)
    assert host.accounts == set()
    assert "var/lib/vllm" not in host.folders()


def test_of_the_weights_only_what_is_of_the_hub_goes(host: Host) -> None:
    mine = {"var/lib/vllm/weights/tuned/model.safetensors": "", "var/lib/vllm/weights/hub/notes": ""}
    host.make(WEIGHTS | mine)
    host.params["weights"] = True
    result = host.once()
    assert host.files() == set(OTHERS) | set(mine)
    assert result["kept"][:2] == [
        "/var/lib/vllm/weights: holds what is not of the hub (hub, tuned)",
        "the account vllm: the weights are its own",
    ]
    assert host.once()["changed"] is False


@pytest.mark.parametrize("place", ["/var/lib/vllm/weights", "/var/lib/vllm/weights/hub"])
def test_weights_on_a_file_system_of_its_own_stay(host: Host, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Other hosts may serve them."""
    host.make(WEIGHTS)
    host.params["weights"] = True
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith(place))
    result = host.once()
    assert host.files() == set(OTHERS) | set(WEIGHTS)
    assert result["kept"][0] == "/var/lib/vllm/weights: a file system of its own, which other hosts may use"


def test_a_driver_that_is_being_installed_is_not_cut_off(host: Host) -> None:
    host.running.append("vllm-install-nvidia.service")
    before = host.files()
    result = host.once()
    assert result["failed"] is True
    assert "Wait for its end (journalctl --follow --unit vllm-install-nvidia.service)" in result["msg"]
    assert host.files() == before
    assert not any("stop" in one for one in host.ran)


def test_an_empty_folder_of_weights_holds_nobody(host: Host) -> None:
    (host.root / "var/lib/vllm/weights").mkdir(parents=True)
    host.once()
    assert "var/lib/vllm" not in host.folders()
    assert host.accounts == set()


@pytest.mark.parametrize("kind", ["of another account", "a link"])
def test_what_is_not_the_accounts_own_is_not_taken_for_weights(host: Host, kind: str) -> None:
    host.make({"srv/data/1": ""})
    host.params |= {"weights": True, "weights_dir": "/srv/data"}
    if kind == "a link":
        (host.root / "srv/link").symlink_to("data")
        host.params["weights_dir"] = "/srv/link"
    else:
        host.accounts.clear()
    before = host.files()
    result = host.once()
    assert result["failed"] is True
    assert result["msg"].startswith(
        f"vllm_weights_dir is '{host.params['weights_dir']}', and that is not the folder of weights"
    )
    assert host.files() == before
    assert host.running


def test_the_certificate_stays_and_is_not_renewed_any_more(host: Host) -> None:
    host.make(CERTIFICATE | OTHER_CERTIFICATE)
    result = host.once()
    assert host.files() == {*OTHERS, *CERTIFICATE, *OTHER_CERTIFICATE}
    text = (host.root / "etc/letsencrypt/renewal/vllm.conf").read_text()
    assert text == RENEWAL.replace("[renewalparams]\n", "[renewalparams]\nautorenew = False\n")
    assert [one.partition(":")[0] for one in result["kept"]] == [
        "/etc/letsencrypt/renewal, live and archive",
        "/etc/letsencrypt/accounts",
    ]
    assert host.once()["changed"] is False


def test_the_certificate_goes_if_told_with_every_copy_of_its_key(host: Host) -> None:
    host.make(CERTIFICATE | OTHER_CERTIFICATE)
    host.params["certificates"] = True
    host.once()
    assert host.files() == {*OTHERS, *OTHER_CERTIFICATE}


def test_what_others_have_put_there_stays_and_is_named(host: Host) -> None:
    mine = {
        "etc/vllm/ca.pem": "",
        "opt/vllm/mine/bin/vllm": "",
        "etc/systemd/system/vllm@.service.d/my.conf": "",
        "etc/vllm/tls/own.pem": "",
    }
    mine |= {
        "etc/systemd/system/nginx.service.d/zz-local.conf": "",
        "etc/systemd/system/vllm.target.wants/exporter.service": "",
    }
    host.make(mine)
    (host.root / "opt/vllm/current").unlink()
    (host.root / "opt/vllm/current").symlink_to("mine")
    result = host.once()
    assert host.files() == {*OTHERS, *mine, "opt/vllm/current"}
    assert result["kept"] == [
        "/etc/vllm/tls: holds what this collection has not put there (own.pem)",
        "/etc/vllm: holds what this collection has not put there (ca.pem, tls)",
        "/opt/vllm: holds what this collection has not put there (current, mine)",
        "/etc/systemd/system/vllm@.service.d: your own settings of the units",
    ]


def test_the_driver_stays_as_it_is_unless_told(host: Host) -> None:
    driver = {"etc/apt/preferences.d/00-vllm-nvidia.pref": "", "etc/modprobe.d/vllm-nvidia.conf": ""}
    host.make(driver)
    assert host.once()["kept"] == [
        "the driver's source, pin and exceptions from updates (vllm_uninstall_driver: true removes them)"
    ]
    assert host.files() == {*OTHERS, *driver}
    host.params["driver"] = True
    host.once()
    assert host.files() == set(OTHERS)


def test_a_cache_that_is_none_stays(host: Host) -> None:
    host.make({"srv/cache/data": ""})
    host.params["cache_dir"] = "/srv/cache"
    host.once()
    assert "srv/cache/data" in host.files()


def test_what_others_have_in_the_cache_stays(host: Host) -> None:
    host.make({"var/cache/uv/mine/data": ""})
    host.once()
    assert host.files() == {*OTHERS, "var/cache/uv/mine/data"}


def test_a_cache_on_a_file_system_of_its_own_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("/var/cache/uv"))
    assert host.once()["kept"] == ["/var/cache/uv: a file system of its own, which other hosts may use"]
    assert "var/cache/uv/CACHEDIR.TAG" in host.files()


# ---- NGINX -----------------------------------------------------------------------------------------------------------------


def test_where_nginx_would_not_start_without_the_site_the_site_stays(host: Host) -> None:
    host.objection = 'nginx: [emerg] unknown log format "vllm" in /etc/nginx/conf.d/app.conf:3'
    result = host.once()
    assert result["failed"] is True
    assert "unknown log format" in result["msg"]
    assert "/etc/nginx/conf.d/app.conf is none of this role's files" in result["msg"]
    assert (host.root / "etc/nginx/conf.d/vllm.conf").is_symlink()
    assert host.site is not None
    assert not [argv for argv in host.ran if argv[1:2] == ["reload"]]
    host.objection = ""
    host.once()
    assert host.files() == set(OTHERS)


def test_a_reload_that_does_not_come_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(host, "systemctl", lambda words: (0, "", ""))
        host.running = []
        result = host.once()
    assert result["failed"] is True
    assert "after 1 s it still has the site" in result["msg"]
    assert "etc/nginx/vllm/abc/vllm.conf" in host.files()


def test_an_nginx_that_does_not_run_is_not_started(host: Host) -> None:
    host.nginx = "inactive"
    host.once()
    assert not [argv for argv in host.ran if "nginx.service" in argv]


def test_somebody_elses_site_in_its_place_stays(host: Host) -> None:
    entry = host.root / "etc/nginx/conf.d/vllm.conf"
    entry.unlink()
    entry.symlink_to("/etc/nginx/sites-available/default")
    host.once()
    assert entry.is_symlink()


# ---- Packages --------------------------------------------------------------------------------------------------------------


def test_packages_go_if_named(host: Host) -> None:
    host.installed = ["certbot", "nginx"]
    host.params["packages"] = ["certbot", "libnuma1"]
    host.simulated = "Purg certbot [4.0.0-2]\n"
    assert host.once()["actions"][-1] == "purged certbot"
    assert host.installed == ["nginx"]
    host.simulated = ""
    assert host.once()["changed"] is False


def test_packages_that_are_held_go_if_named(host: Host) -> None:
    host.installed, host.held = ["nvidia-smi"], {"nvidia-smi"}
    host.params["packages"] = ["nvidia-smi"]
    host.once()
    assert host.installed == []


def test_a_package_that_others_need_is_refused_before_anything_is_changed(host: Host) -> None:
    host.installed = ["openssl"]
    host.params["packages"] = ["openssl"]
    host.simulated = "Purg ca-certificates:all [2023]\nPurg openssl [3.0]\nInst other (1.0)\n"
    before = host.files()
    result = host.once()
    assert result["msg"] == (
        "vllm_uninstall_packages is openssl, and with them apt-get would remove or install ca-certificates, other. "
        "Name these as well if they may go, or leave out what they need. Nothing was changed."
    )
    assert (host.files(), host.installed) == (before, ["openssl"])
    assert host.running


# ---- Two runs at once -------------------------------------------------------------------------------------------------------


def test_a_claim_is_asked_for(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module goes on only while the claim is its run's."""
    monkeypatch.setattr(_claim, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(_claim, "CLAIM", tmp_path / "claim.json")
    earlier = _claim.take("alice@ops1")
    _claim.take("bob@ops2")
    monkeypatch.setattr(uninstall, "AnsibleModule", lambda **_options: host)
    host.params["claim"] = earlier
    with pytest.raises(EndedError, match="bob@ops2"):
        uninstall.main()
    assert host.running
