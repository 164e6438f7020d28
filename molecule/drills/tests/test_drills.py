"""Each drill of the service against ours. With `make drills` also against the naive way and, where that passes, with a part taken away:
each drill must fail there, or it shows nothing."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import endpoint
import hostile
import load
import parts
import playbook
import pytest
import record
import service_drills as drills
import units
from record import Way
from service_drills import Seen
from subject import Shell, Subject
from vllm_lab.machine import last_words
from vllm_lab.model import MACHINES

testinfra_hosts = ["ansible://deb13"]
HOST = "deb13"
ADDRESS = "10.77.0.13"
INVENTORY = "molecule/drills/inventory"
NAMES = (
    "crash",
    "hang-core",
    "hang-api",
    "quiet",
    "busy",
    "slow",
    "fault",
    "stop",
    "full",
    "hostile",
    "gpu-a",
    "gpu-b",
    "leaving",
)


@dataclass(frozen=True)
class Drill:
    """A drill by its name in the table; those of one row of `lane` go one after another, the rows side by side."""

    name: str
    lane: str
    run: Callable[[Subject], Seen]
    naive_fails: bool


# --- what only this machine shows -----------------------------------------------------------------


def port_of(subject: Subject) -> int:
    """The port of the instance, as its engine file says."""
    file = (
        f"/etc/vllm/instances/{subject.name}-0/engine.yaml"
        if subject.way == "ours"
        else f"/etc/naive/{subject.name}.yaml"
    )
    return int(subject.shell.out(f"sed -n 's/^port: //p' {file}"))


def hostile_values(subject: Subject) -> Seen:
    """What the engine's process has in its environment, byte for byte."""
    values: dict[str, str] = json.loads((endpoint.TOP / ".build" / "hostile.json").read_text())
    if subject.way == "naive":
        lines = "".join(f"{name}={value}\n" for name, value in values.items())
        subject.shell.out(f"printf %s {shlex.quote(lines)} >> /etc/naive/{subject.name}.env")
        subject.begin()
    pid = subject.wait(lambda look: look.engine > 0, within_s=20).engine
    seen = subject.shell.out(f"base64 -w0 /proc/{pid}/environ")
    found = dict(entry.split(b"=", 1) for entry in base64.b64decode(seen).split(b"\0") if b"=" in entry)
    wrong = [value for name, value in values.items() if found.get(name.encode()) != value.encode()]
    fixed = [value for value in wrong if value in hostile.FIXED]
    said = f"{len(values) - len(wrong)} of {len(values)} values exact"
    return Seen(not wrong, said + (f"; not, for example: {', '.join(map(repr, fixed[:3]))}" if fixed else ""))


def secrets_missing(subject: Subject) -> Seen:
    """The secrets are gone: the unit ends in `failed`, and serves once they are there again."""
    shell = subject.shell
    file = "/etc/vllm/secrets" if subject.way == "ours" else f"/etc/naive/{subject.name}.env"
    shell.out(f"mv {file} {file}.away")
    try:
        subject.launch()
        after = subject.wait(lambda look: look.active == "failed", within_s=22)
        # systemd tells of each try that could not even begin.
        tries = sum("Failed to load environment files" in words for _when, words in subject.journal(subject.launched_s))
    finally:
        shell.out(f"mv {file}.away {file}")
    subject.systemctl("reset-failed")
    subject.systemctl("start", wait=False)
    again = subject.wait(lambda look: look.serving, within_s=20)
    ok = after.active == "failed" and 0 < tries <= 5 and again.serving
    return Seen(
        ok, f"{tries} tries, then {after.active}; {'serves' if again.serving else 'does not serve'} once they are back"
    )


def play(tags: str, **variables: Any) -> playbook.Done:
    """Run site.yml on the machine."""
    return playbook.run("site.yml", "--tags", tags, hosts=[HOST], inventories=[INVENTORY], **variables)


def secrets_open(subject: Subject) -> Seen:
    """Anybody may read or change the secrets: the next play repairs that."""
    shell, file = subject.shell, "/etc/vllm/secrets"
    if subject.way == "naive":
        file = f"/etc/naive/{subject.name}.env"
        shell.out(f"chown vllm:vllm {file} && chmod 0644 {file}")
        served = subject.begin().serving
        mode = shell.out(f"stat -c '%a %U' {file}").strip()
        return Seen(mode == "600 root", f"starts without a word, {mode} as before" if served else mode)
    content = shell.out(f"cat {file}")
    shell.out(f"chown vllm:vllm {file} && chmod 0644 {file}")
    done = play("secrets")
    after = shell.out(f"stat -c '%a %U %G' {file}").strip()
    ok = done.status == 0 and after == "600 root root" and shell.out(f"cat {file}") == content
    return Seen(ok, f"{after} after the next play, and the same content")


def secrets_link(subject: Subject) -> Seen:
    """The secrets are a symbolic link to somebody else's file: the play refuses it, and writes nothing through it."""
    if subject.way == "naive":
        file = f"/etc/naive/{subject.name}.env"
        subject.shell.out(f"mv {file} /tmp/elsewhere && ln -s /tmp/elsewhere {file}")
        served = subject.begin().serving
        subject.shell.out(f"rm {file} && mv /tmp/elsewhere {file}")
        return Seen(not served, "starts without a word" if served else "refuses")
    shell, file = subject.shell, "/etc/vllm/secrets"
    shell.out(
        f"cp -p {file} /root/elsewhere && cp -p {file} /root/before && ln -sf /root/elsewhere {file}.link && mv -T {file}.link {file}"
    )
    done = play("secrets")
    untouched = shell.run("cmp /root/elsewhere /root/before").returncode == 0
    shell.out(f"mv -T /root/before {file} && rm /root/elsewhere")
    refused = done.refused.get(HOST, "")
    ok = done.status != 0 and "symbolic link" in refused and untouched
    return Seen(ok, "the play refuses it and names it, the file behind it is untouched" if ok else done.said[-300:])


def no_leak(subject: Subject) -> Seen:
    """The engine's key, wherever any account of the host may look."""
    shell = subject.shell
    pid = subject.begin().engine
    script = f"""umask 077
tr '\\0' '\\n' < /proc/{pid}/environ | sed -n 's/^VLLM_API_KEY=//p' > /root/.key
[ "$(wc -c < /root/.key)" -gt 20 ] || exit 3
{{ cat /proc/[0-9]*/cmdline; systemctl show '{subject.unit}'
  systemctl cat '{subject.unit}'; journalctl --boot --no-pager
  runuser -u nobody -- sh -c 'cat /proc/{pid}/environ /etc/vllm/secrets /etc/naive/{subject.name}.env /etc/vllm/instances/*/* /run/vllm/*/*'
}} > /root/.shown 2>/dev/null
grep -acF -f /root/.key /root/.shown; wc -c < /root/.shown; rm /root/.key /root/.shown"""
    done = shell.run(script)
    if done.returncode != 0 or len(done.stdout.split()) != 2:
        raise RuntimeError(f"not looked at: {done}")
    leaks, size = map(int, done.stdout.split())
    return Seen(
        leaks == 0 and size > 1000,
        f"in {leaks} lines of {size // 1024} KiB of argv, unit, properties, journal and readable files",
    )


RELOADED = "daemon-reload during a load longer than the start time-out"
#: As the inventory of the scenario has it.
START_TIMEOUT_S = 60

DRILLS = (
    Drill("kill -9 of the engine", "crash", drills.kill_engine, naive_fails=False),
    Drill("kill -9 of the main process", "crash", drills.kill_main, naive_fails=False),
    Drill("the engine exits with 0 unasked", "quiet", drills.exit_0, naive_fails=True),
    Drill("SIGSTOP of the engine with requests running", "hang-core", drills.hung_engine, naive_fails=True),
    Drill("SIGSTOP of the API server with requests running", "hang-api", drills.hung_api, naive_fails=True),
    Drill("idle", "quiet", drills.idle, naive_fails=False),
    Drill("busy, with a slow /health", "busy", drills.busy, naive_fails=False),
    Drill("slow load that makes progress", "slow", drills.slow_load, naive_fails=True),
    Drill(RELOADED, "gpu-a", lambda subject: drills.reloaded_load(subject, START_TIMEOUT_S), naive_fails=False),
    Drill("stuck load", "leaving", drills.stuck_load, naive_fails=False),
    Drill("permanent fault (out of memory)", "fault", drills.permanent_fault, naive_fails=True),
    Drill("refused configuration", "fault", drills.wrong_setting, naive_fails=True),
    Drill("port taken", "fault", lambda subject: drills.port_taken(subject, port_of(subject)), naive_fails=True),
    Drill("stop under 20 streams", "stop", drills.stop_streams, naive_fails=True),
    Drill("stop while loading", "stop", drills.stop_while_loading, naive_fails=False),
    Drill(
        "cache directory full", "full", lambda subject: drills.full_folder(subject, cache_of(subject)), naive_fails=True
    ),
    Drill(
        "/run full",
        "full",
        lambda subject: drills.full_folder(subject, f"/run/vllm/{subject.name}-0"),
        naive_fails=False,
    ),
    Drill("hostile values", "hostile", hostile_values, naive_fails=True),
    Drill("nothing secret shows", "hostile", no_leak, naive_fails=False),
    Drill("secrets readable by all", "hostile", secrets_open, naive_fails=True),
    Drill("secrets are a symbolic link", "hostile", secrets_link, naive_fails=True),
)
#: Those that need the machine for themselves.
STORM = "daemon-reloads without a pause during 20 starts"
MISSING = "secrets missing"
REMOVED = "model removed"
TURNS = "two instances on one GPU after a reboot"
REBOOT = "reboot"
#: What the naive way has nothing for: no state under /run, nobody who extends anything, and no play.
NOT_NAIVE = {"/run full", RELOADED, REMOVED}
ALL = [*(drill.name for drill in DRILLS), STORM, MISSING, REMOVED, REBOOT, TURNS]
NAIVE_FAILS = {drill.name for drill in DRILLS if drill.naive_fails} | {MISSING, TURNS}

#: Which instance a drill takes that has a part to lose, where it does not need the machine.
WITHOUT = {
    "kill -9 of the engine": "crash",
    "kill -9 of the main process": "hang-core",
    "idle": "quiet",
    "busy, with a slow /health": "busy",
    "stuck load": "hang-api",
    RELOADED: "gpu-a",
    "stop while loading": "stop",
    "/run full": "full",
    "nothing secret shows": "hostile",
}
#: What is taken away where it is no part of unit or launcher.
OTHER_PARTS = {REBOOT: "one is not enabled", REMOVED: "only the proxy's part of the play runs"}

Results = dict[tuple[str, Way], Seen | Exception]


def cache_of(subject: Subject) -> str:
    """Where its engine keeps what it compiled."""
    return f"/var/cache/vllm/{subject.name}-0" if subject.way == "ours" else f"/var/cache/naive/{subject.name}"


def ours(shell: Shell, certificate: str) -> dict[str, Subject]:
    """The collection's instances."""
    key = endpoint.KEY.read_text().strip()
    return {
        name: Subject(
            "ours",
            name,
            shell,
            f"vllm@{name}-0.service",
            load.Target(endpoint.url(HOST, f"/{name}/v1"), name, key, certificate, silence_s=30),
            f"/run/drills/{name}-0.env",
            f"/run/vllm/{name}-0/state.json",
        )
        for name in NAMES
    }


NAIVE_NGINX = """[Service]
ExecStart=/usr/sbin/nginx -c /etc/naive/nginx.conf -g "daemon off;"
[Install]
WantedBy=multi-user.target
"""


def naive(shell: Shell) -> dict[str, Subject]:
    """The naive way's instances, installed as a guide says."""
    made = {}
    for number, name in enumerate(NAMES):
        options = {"host": "127.0.0.1", "port": 9000 + number, "model": "/srv/models/demo", "served-model-name": [name]}
        options |= {"max-num-seqs": 32 if name == "stop" else 8, "shutdown-timeout": 60}
        shell.write(
            f"/etc/naive/{name}.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in options.items())
        )
        variables = {
            "PORT": 9000 + number,
            "VLLM_API_KEY": "naive-key-0123456789-0123456789",
            "FAKE_ENGINE_LOAD_S": "0.5",
        }
        shell.write(f"/etc/naive/{name}.env", "".join(f"{key}={value}\n" for key, value in variables.items()))
        target = load.Target(f"http://{ADDRESS}:{9100 + number}/v1", name, str(variables["VLLM_API_KEY"]), silence_s=30)
        made[name] = Subject("naive", name, shell, f"naive@{name}.service", target, f"/run/drills/naive-{name}.env")
    shell.write("/etc/systemd/system/naive-nginx.service", NAIVE_NGINX)
    units = " ".join(["naive-nginx.service", *(subject.unit for subject in made.values())])
    shell.out(
        f"chmod 0600 /etc/naive/*.env; systemctl daemon-reload; systemctl enable --quiet --now {units}", timeout_s=120
    )
    return made


class Run:
    """All drills of one way, in the order that takes least time."""

    def __init__(self, shells: dict[str, Shell], subjects: dict[str, Subject], results: Results) -> None:
        self._subjects, self._results = subjects, results
        self._way: Way = subjects["crash"].way
        for name, subject in subjects.items():
            subject.shell = shells[name]

    def note(self, name: str, run: Callable[[], Seen]) -> None:
        """Run one drill and keep what it showed, or why it could not be run."""
        begun = time.monotonic()
        try:
            result: Seen | Exception = run()
        except Exception as error:
            result = error
        self._results[name, self._way] = result
        print(f"{self._way}: {name}: {time.monotonic() - begun:.0f} s: {result}", flush=True)

    def lane(self, name: str) -> None:
        for drill in DRILLS:
            if drill.lane == name and not (self._way == "naive" and drill.name in NOT_NAIVE):
                self.note(drill.name, partial(drill.run, self._subjects[name]))

    def side_by_side(self) -> None:
        with ThreadPoolExecutor(max_workers=len(NAMES)) as pool:
            list(pool.map(self.lane, dict.fromkeys(drill.lane for drill in DRILLS)))
        if self._way == "ours":
            self.once_more()

    def once_more(self) -> None:
        """Those that failed have the machine to themselves now: what was late beside a dozen others is in time then, and a fault stays one."""
        for drill in DRILLS:
            result = self._results[drill.name, self._way]
            if not (isinstance(result, Seen) and result.ok):
                print(f"{self._way}: {drill.name}: once more, alone", flush=True)
                self.note(drill.name, partial(drill.run, self._subjects[drill.lane]))

    def alone(self) -> None:
        some = [self._subjects[name] for name in ("crash", "quiet", "stop", "hang-core")]
        self.note(STORM, partial(drills.storm, some))
        self.note(MISSING, partial(secrets_missing, self._subjects["fault"]))

    def removal(self) -> None:
        self.note(REMOVED, self.removed)

    def removed(self, tags: str = "service,proxy") -> Seen:
        """A play with one model less."""
        with ThreadPoolExecutor(max_workers=len(NAMES)) as pool:
            list(pool.map(Subject.begin, self._subjects.values()))
        mains = {name: subject.look().main for name, subject in self._subjects.items() if name != "leaving"}
        done = play(tags, leaving=[])
        shell = self._subjects["crash"].shell
        others = {name: self._subjects[name].look() for name in mains}
        restarted = [name for name, main in mains.items() if others[name].main != main or not others[name].serving]
        left = shell.out(
            "systemctl list-units --all --plain --no-legend 'vllm@leaving*'; ls -d /etc/vllm/instances/leaving* /var/cache/vllm/leaving* /run/vllm/leaving*"
            " /etc/systemd/system/vllm.target.wants/*leaving* 2>/dev/null; pgrep -fa 'leavin[g]-0'; true"
        ).split("\n")
        left = [line for line in left if line]
        weights = shell.run("test -s /srv/models/demo/config.json").returncode == 0
        gone = load_fails(self._subjects["leaving"])
        ok = done.status == 0 and not restarted and not left and weights and gone == {"404": 1}
        said = f"others go on: {not restarted}, left: {left or 'nothing'}, its path answers {gone}, weights stay: {weights}"
        return Seen(ok, said if done.status == 0 else f"{said}; {done.refused}")

    def without_parts(self) -> None:
        """The drills of `parts.PARTS`, each with its part taken away: side by side, and then those that need the machine."""
        self._way = "without"
        lanes = dict.fromkeys(WITHOUT.values())
        with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
            list(pool.map(self.lane_without, lanes))
        some = [self._subjects[name] for name in ("crash", "quiet", "stop", "hang-core")]
        with parts.without(parts.PARTS[STORM], some):
            self.note(STORM, partial(drills.storm, some))
        pair = [self._subjects["gpu-a"], self._subjects["gpu-b"]]
        self._subjects["quiet"].systemctl("disable")
        with parts.without(parts.PARTS[TURNS], pair):
            self.reboot()

    def lane_without(self, lane: str) -> None:
        for drill in DRILLS:
            if WITHOUT.get(drill.name) == lane:
                subject = self._subjects[lane]
                with parts.without(parts.PARTS[drill.name], [subject]):
                    self.note(drill.name, partial(drill.run, subject))

    def kept(self) -> None:
        """The model is gone from the inventory, and the part of the play that takes it away does not run."""
        self._way = "without"
        self.note(REMOVED, partial(self.removed, "proxy"))
        self._way = "ours"

    def reboot(self) -> None:
        self.note(REBOOT, self.rebooted)
        self.note(TURNS, lambda: drills.overlap(self._subjects["gpu-a"], self._subjects["gpu-b"]))

    def rebooted(self) -> Seen:
        shell = self._subjects["crash"].shell
        first = "cut -d ' ' -f 22 /proc/1/stat"  # when the first process was started
        boot = shell.out(first)
        begun = time.monotonic()
        shell.run("systemctl --no-block reboot")
        for subject in self._subjects.values():
            subject.shell.disconnect()
        while time.monotonic() < begun + 60:
            try:
                if shell.out(first, timeout_s=5) != boot:
                    break
            except (RuntimeError, subprocess.TimeoutExpired):
                pass
            time.sleep(0.5)
        while True:
            try:
                return self.served_again(begun)
            except RuntimeError as error:  # it went down once more
                if time.monotonic() > begun + 60:
                    raise RuntimeError(f"{error}; its console: {last_words(MACHINES[HOST])}") from error
            time.sleep(0.5)

    def served_again(self, begun: float) -> Seen:
        """Whether all that is enabled serves within a minute."""
        late: list[str] = []
        waiting = [subject for name, subject in self._subjects.items() if name != "leaving"]
        for subject in waiting:
            if not subject.wait(lambda look: look.serving, within_s=max(1.0, begun + 60 - time.monotonic())).serving:
                late.append(subject.name)
        answered = [subject.name for subject in waiting if subject.back(time.monotonic(), 10) is None]
        took_s = time.monotonic() - begun
        return Seen(
            not late and not answered,
            f"{len(waiting)} instances answer after {took_s:.0f} s; not: {late or answered or 'none'}",
        )


def load_fails(subject: Subject) -> dict[str, int]:
    """How a request to it is refused."""
    return load.Background(load.Load(subject.target, max_tokens=2), 1, 1).report(within_s=20).failed


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """Everything is run at once, before the first test looks at it."""
    found: Results = {}
    shells = {name: Shell(HOST) for name in NAMES}
    try:
        certificate = Path(tmp_path_factory.mktemp("drills")) / "ca.pem"
        certificate.write_text(shells["crash"].out("cat /etc/vllm/tls/current/fullchain.pem"))
        mine = Run(shells, ours(shells["crash"], str(certificate)), found)
        only = os.environ.get("GPUOPS_DRILLS_ONLY", "side_by_side,alone,removal,reboot").split(",")
        if record.wanted():
            mine.kept()
        for step in (mine.side_by_side, mine.alone, mine.removal, mine.reboot):
            if step.__name__ in only:
                step()
        if record.wanted():
            mine.without_parts()
            theirs = Run(shells, naive(shells["crash"]), found)
            for step in (theirs.side_by_side, theirs.alone, theirs.reboot):
                step()
        for (name, way), result in sorted(found.items(), key=lambda one: ALL.index(one[0][0])):
            seen = result if isinstance(result, Seen) else Seen(False, repr(result))
            said = f"{gone(name)}: {seen.seen}" if way == "without" else seen.seen
            record.record(name, way, seen.ok, said)
        yield found
    finally:
        for shell in shells.values():
            shell.close()


def gone(name: str) -> str:
    """What a drill is without, in words."""
    return OTHER_PARTS.get(name) or parts.PARTS[name].words


def judged(results: Results, name: str, way: Way) -> Seen:
    result = results[name, way]
    assert isinstance(result, Seen), f"the drill could not be run: {result!r}"
    return result


@pytest.mark.parametrize("name", ALL)
def test_ours(results: Results, name: str) -> None:
    ok, seen = judged(results, name, "ours")
    assert ok, seen


if record.wanted():

    @pytest.mark.parametrize("name", sorted(NAIVE_FAILS))
    def test_the_naive_way_fails(results: Results, name: str) -> None:
        ok, seen = judged(results, name, "naive")
        assert not ok, f"this drill shows nothing: {seen}"

    @pytest.mark.parametrize("name", sorted({*parts.PARTS, *OTHER_PARTS}))
    def test_without_its_part_ours_fails(results: Results, name: str) -> None:
        ok, seen = judged(results, name, "without")
        assert not ok, f"without the part ({gone(name)}) it passes: {seen}"


@pytest.mark.usefixtures("results")
def test_systemd_finds_nothing_wrong_with_the_units(host: Any) -> None:
    assert units.complaints(host, "quiet-0") == ""
    assert units.exposure(host, egress=False) <= 1.3
    assert units.exposure(host, egress=True) <= 1.6
