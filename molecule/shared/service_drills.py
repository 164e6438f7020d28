"""The drills of a service, each once: what is done to it, and what it must show. `Seen.ok` says whether it did.

A drill gets a subject, which it may leave in any state. It raises only when it could not be run.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from load import Report
from subject import Look, Subject


class Seen(NamedTuple):
    """What a drill saw: whether it is as it must be, and the figures."""

    ok: bool
    seen: str


@dataclass(frozen=True)
class Times:
    """What the subject is set to, in seconds: watchdog, stall limit, the pause between two looks at it, RestartSec, start time-out."""

    watchdog_s: float = 15.0
    stall_s: float = 3.0
    probe_s: float = 5.0
    restart_s: float = 10.0
    start_s: float = 4.0
    stuck_s: float = 40.0  # in which a load that stands still must have failed


TIMES = Times()
# A restart takes RestartSec, the load, and this much: a dozen instances are drilled side by side on two cores.
GRACE_S = 5.0
# How long a load is waited for; it counts in no limit.
LOAD_S = 60.0
SLOW_ANSWER = {"TOKEN_S": "0.05", "ANSWER": "word " * 80}
# So long that the first stream has not ended when the last of 20 begins, on a machine that has other things to do.
SLOWER_ANSWER = {"TOKEN_S": "0.05", "ANSWER": "word " * 160}


def figure(seconds: float | None) -> str:
    """Seconds as a reader likes them."""
    return "never" if seconds is None else f"{seconds:.1f} s"


def comes_back(
    subject: Subject, before: Look, killed_s: float, limit_s: float, load_s: float = LOAD_S
) -> tuple[bool, str, Look]:
    """Wait for the next whole answer; judge it by `limit_s` beside RestartSec and the load, and look for what was left."""
    back_s = subject.back(killed_s, limit_s + TIMES.restart_s + GRACE_S + load_s)
    # An engine answers others a moment before the launcher has its own answer.
    after = subject.wait(lambda look: look.serving and look.load_s > 0, within_s=10 if back_s else 0)
    if back_s is None:
        return False, f"never back, now {after.active}: {after.words}", after
    left = subject.alive(before.processes)
    ok = back_s - after.load_s <= limit_s + TIMES.restart_s + GRACE_S and not left and after.restarts > before.restarts
    said = f"answers again after {figure(back_s)}, of which {figure(after.load_s)} load"
    return ok, said + (f"; left behind: {left}" if left else ", nothing left behind"), after


# --- death ----------------------------------------------------------------------------------------


def kill_engine(
    subject: Subject, before: Look | None = None, dies_within_s: float = 1.0, loads_within_s: float = LOAD_S
) -> Seen:
    """SIGKILL to the engine core. `dies_within_s`: what the engine itself takes to end after that."""
    before = before or subject.begin()
    killed_s = subject.kill("KILL", before.core)
    ok, said, _after = comes_back(subject, before, killed_s, dies_within_s, loads_within_s)
    return Seen(ok, said)


def kill_main(subject: Subject) -> Seen:
    """SIGKILL to the unit's main process, while the engine has a child that would live on."""
    before = subject.begin(FAULT="orphan")
    killed_s = subject.kill("KILL", before.main)
    ok, said, _after = comes_back(subject, before, killed_s, 0)
    return Seen(ok and len(before.processes) >= 3, said)


def exit_0(subject: Subject) -> Seen:
    """The engine ends with 0 and nobody asked it to: systemd must not take that for a success."""
    before = subject.begin(FAULT="exit0_after:3")
    after = subject.wait(lambda look: look.main != before.main, within_s=10)
    subject.shell.write(subject.file, "")  # the next engine is a sound one
    told = [words for _when, words in subject.journal(before.started_s) if "Failed with result" in words]
    again = subject.wait(lambda look: look.serving, within_s=TIMES.restart_s + 10)
    verdict = told[-1].split(": ", 1)[-1] if told else f"systemd was told of a success ({after.result})"
    return Seen(bool(told) and again.serving, f"{verdict} {'started again' if again.serving else 'stays away'}")


# --- hangs ----------------------------------------------------------------------------------------


def hangs(subject: Subject, which: str) -> Seen:
    """SIGSTOP to one of the engine's processes with requests under way."""
    before = subject.begin(**SLOW_ANSWER)
    background = subject.load(streams=2, requests=2)
    background.wait_for_flow(2)
    stopped_s = subject.kill("STOP", getattr(before, which))
    limit_s = TIMES.watchdog_s + TIMES.stall_s + TIMES.probe_s
    end = stopped_s + limit_s + TIMES.restart_s + GRACE_S + 5
    # Its answer would come only after it is back, so its unit is asked.
    after = subject.wait(lambda look: look.serving and look.main != before.main, within_s=end - time.monotonic())
    if not (after.serving and after.main != before.main):
        return Seen(False, f"hangs for {figure(after.at_s - stopped_s)} and more, and systemd says {after.active}")
    ok, said, _after = comes_back(subject, before, stopped_s, limit_s)
    return Seen(ok, said)


def hung_engine(subject: Subject) -> Seen:
    """The engine core stands still; /health goes on answering."""
    return hangs(subject, "core")


def hung_api(subject: Subject) -> Seen:
    """The API server stands still."""
    return hangs(subject, "engine")


def idle(subject: Subject) -> Seen:
    """Nobody asks anything for longer than watchdog and stall limit together."""
    before = subject.begin()
    rest_s = TIMES.watchdog_s + TIMES.stall_s + 4
    time.sleep(rest_s)
    after = subject.look()
    ok = after.main == before.main and after.serving and subject.answers()
    return Seen(
        ok,
        f"{'still there and answers' if ok else f'{after.active}: {after.words}'} after {figure(rest_s)} without a request",
    )


def busy(subject: Subject) -> Seen:
    """Twice as many streams as it takes at a time, and a /health that answers late."""
    before = subject.begin(FAULT="slow_health:4", **SLOW_ANSWER)
    background = subject.load(streams=16)
    time.sleep(TIMES.watchdog_s + TIMES.stall_s + 2)
    done = background.report(within_s=40)
    after = subject.look()
    ok = after.main == before.main and after.serving and done.all_whole
    return Seen(ok, f"{done.said()}, {'not restarted' if after.main == before.main else 'restarted'}")


# --- starts ---------------------------------------------------------------------------------------


def slow_load(subject: Subject) -> Seen:
    """A load that makes progress takes three times the start time-out."""
    subject.launch(LOAD_S=str(3 * TIMES.start_s))
    after = subject.wait(
        lambda look: look.serving or look.restarts > 0 or look.result != "success", within_s=6 * TIMES.start_s
    )
    ok = after.serving and after.restarts == 0 and after.load_s > 2 * TIMES.start_s
    limit = f"with a start time-out of {TIMES.start_s:.0f} s"
    return Seen(ok, f"ready after {figure(after.load_s)} {limit}" if ok else f"given up ({after.result}) {limit}")


def reloaded_load(subject: Subject, after_s: float) -> Seen:
    """systemd reloads, as with every package's unit, once a load that makes progress is longer than the start time-out."""
    subject.launch(LOAD_S=str(after_s + 6))
    subject.wait(lambda look: look.at_s > subject.launched_s + after_s + 2 or look.restarts > 0, within_s=after_s + 5)
    subject.shell.out("systemctl daemon-reload")
    after = subject.wait(lambda look: look.serving or look.restarts > 0 or look.result != "success", within_s=12)
    ok = after.serving and after.restarts == 0 and after.load_s > after_s
    return Seen(ok, f"ready after {figure(after.load_s)}" if ok else f"given up ({after.result})")


def stuck_load(subject: Subject) -> Seen:
    """A load that stands still ends as a failure."""
    subject.launch(FAULT="stuck_load")
    after = subject.wait(lambda look: look.restarts > 0 or look.sub == "auto-restart", within_s=TIMES.stuck_s + 5)
    ended = after.restarts > 0 or after.sub == "auto-restart"
    took_s = after.at_s - subject.launched_s
    return Seen(
        ended and took_s <= TIMES.stuck_s,
        f"{'given up' if ended else 'still loading'} after {figure(took_s)}: {after.words or after.result}",
    )


def ends_in_failed(subject: Subject, within_s: float) -> tuple[Look, int]:
    """Wait until the unit is given up; the last look, and how often it was started since it was launched."""
    after = subject.wait(lambda look: look.active == "failed", within_s)
    return after, sum(words.startswith("Starting ") for _when, words in subject.journal(subject.launched_s))


def permanent_fault(subject: Subject) -> Seen:
    """The engine runs out of memory at each start: systemd gives it up."""
    subject.launch(FAULT="oom")
    after, count = ends_in_failed(subject, within_s=25)
    clear = "KV cache is needed" in after.words
    ok = after.active == "failed" and count <= 5 and clear
    return Seen(ok, f"{count} starts, then {after.active}; status: {after.words[:80] or 'nothing'}")


def wrong_setting(subject: Subject) -> Seen:
    """The engine refuses its configuration: one start, and its own words in the status."""
    subject.launch(FAULT="exit:2")
    after, count = ends_in_failed(subject, within_s=10)
    ok = after.active == "failed" and count == 1 and "told to fail" in after.words
    return Seen(
        ok, f"{count} start{'s' if count != 1 else ''}, then {after.active}; status: {after.words[:80] or 'nothing'}"
    )


SQUATTER = """
import http.server, sys
class Yes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Yes).serve_forever()
"""


def port_taken(subject: Subject, port: int) -> Seen:
    """Another program has the port, and answers 200 to /health."""
    subject.systemctl("stop")
    unit = f"squatter-{port}"
    subject.shell.write(f"/run/{unit}.py", SQUATTER)
    subject.shell.out(f"systemd-run --quiet --collect --unit={unit} python3 /run/{unit}.py {port}; sleep 0.5")
    try:
        subject.launch()
        fooled = subject.wait(lambda look: look.serving, within_s=3).serving
        after, count = ends_in_failed(subject, within_s=25)
    finally:
        subject.shell.out(f"systemctl stop {unit}")
    subject.systemctl("reset-failed")
    subject.systemctl("start", wait=False)
    again = subject.wait(lambda look: look.serving, within_s=15)
    ok = not fooled and after.active == "failed" and count <= 5 and "in use" in after.words and again.serving
    told = "READY was told for the other program" if fooled else f"status: {after.words[:70] or 'nothing'}"
    return Seen(
        ok,
        f"{told}; {count} starts, then {after.active}; {'serves' if again.serving else 'does not serve'} once the port is free",
    )


# --- stops ----------------------------------------------------------------------------------------


def stop_under(subject: Subject, streams: int, flowing: int, **body: object) -> Seen:
    """`systemctl stop` of one that serves, once all streams were asked for through the proxy and so many of them have begun."""
    background = subject.load(streams, streams, **body)
    # What comes after the stop is told to come again, as it should be.
    background.wait_until_sent(streams, within_s=60)
    background.wait_until_begun(flowing, within_s=60)
    begun_s = time.perf_counter()
    subject.systemctl("stop")
    took_s = time.perf_counter() - begun_s
    done: Report = background.report(within_s=60)
    under = background.ended_after(begun_s)
    return Seen(
        done.all_whole and under >= flowing,
        f"{done.said()}, {under} of them ended after the stop began, stopped after {figure(took_s)}",
    )


def stop_streams(subject: Subject) -> Seen:
    """`systemctl stop` under 20 streams of eight seconds."""
    subject.begin(**SLOWER_ANSWER)
    return stop_under(subject, streams=20, flowing=20)


def stop_now(subject: Subject, within_s: float) -> Seen:
    """`systemctl stop` of one that loads, when vLLM swallows the first TERM."""
    loading = subject.look()
    begun_s = time.monotonic()
    subject.systemctl("stop", wait=False)
    after = subject.wait(lambda look: look.active in ("inactive", "failed"), within_s)
    took_s = time.monotonic() - begun_s
    left = subject.alive(loading.processes)
    if after.active not in ("inactive", "failed"):
        subject.systemctl("kill", "--signal=KILL")
    ok = loading.active == "activating" and loading.engine > 0 and after.active == "inactive" and not left
    return Seen(ok, f"{after.active} after {figure(took_s)}" + (f", left behind: {left}" if left else ""))


def stop_while_loading(subject: Subject) -> Seen:
    """The same two seconds into a long load."""
    subject.launch(LOAD_S="60")
    subject.wait(lambda look: look.core > 0, within_s=10)
    time.sleep(2)
    return stop_now(subject, within_s=8)


# --- surroundings ---------------------------------------------------------------------------------


# Tells systemd of itself 500 times a second, as a broken unit beside ours may: the socket takes ten, so it is full while systemd reloads.
CHATTER = """
import os, socket, time
talk = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while True:
    talk.sendto(b"STATUS=still here", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.002)
"""


def storm(subjects: list[Subject], rounds: int = 5) -> Seen:
    """Start each of them so many times while systemd reloads without a pause, and another unit talks to it all the time."""
    shell, calm = subjects[0].shell, threading.Event()
    reloads = 0

    def reload() -> None:
        nonlocal reloads
        while not calm.is_set():
            shell.out("systemctl daemon-reload", timeout_s=120)
            reloads += 1

    def start_often(subject: Subject) -> int:
        lost = 0
        for _round in range(rounds):
            subject.launch(LOAD_S="0.2")
            # What has not come by then was lost, and the start would hang until its time-out.
            lost += not subject.wait(lambda look: look.serving, within_s=15).serving
        return lost

    shell.write("/run/chatter.py", CHATTER)
    shell.out("systemd-run --quiet --collect --unit=chatter --property=NotifyAccess=main python3 /run/chatter.py")
    storming = threading.Thread(target=reload, daemon=True)
    storming.start()
    try:
        with ThreadPoolExecutor(max_workers=len(subjects)) as pool:
            lost = sum(pool.map(start_often, subjects))
    finally:
        calm.set()
        storming.join(120)
        shell.out("systemctl stop chatter; rm /run/chatter.py")
    count = rounds * len(subjects)
    return Seen(lost == 0, f"{count - lost} of {count} starts became ready during {reloads} daemon-reloads")


def full_folder(subject: Subject, folder: str) -> Seen:
    """No room in a folder while it starts: it says so, and serves once there is room again."""
    shell = subject.shell
    subject.begin()
    subject.systemctl("stop")
    shell.out(
        f"mkdir -p {folder} && mount -t tmpfs -o size=4k,mode=0755 tmpfs {folder} && chown vllm:vllm {folder} && head -c 4096 /dev/zero > {folder}/full"
    )
    try:
        subject.launch()
        # Before READY or after: the words are what counts.
        after = subject.wait(lambda look: "o space left" in look.words, within_s=8)
    finally:
        shell.out(f"rm -f {folder}/full; umount --lazy {folder}")
    freed_s = time.monotonic()
    clear = "o space left" in after.words
    again = subject.wait(lambda look: look.serving and look.started_s > freed_s, within_s=TIMES.restart_s + GRACE_S + 6)
    recovered = again.serving and subject.answers()
    said = f"status: {after.words[:80] or 'nothing'}"
    return Seen(
        clear and recovered,
        f"{said}; {'serves again by itself' if recovered else f'stays {again.active}'} once there is room",
    )


def intervals(subject: Subject) -> list[tuple[float, float]]:
    """When its engine loaded in this boot, by the engine's own lines: (from, to), s."""
    found: list[tuple[float, float]] = []
    begun = None
    for when, words in subject.journal():
        if "vLLM API server version" in words:
            begun = when
        elif "Application startup complete" in words and begun is not None:
            found.append((begun, when))
            begun = None
    return found


def overlap(one: Subject, other: Subject) -> Seen:
    """Whether two that share a GPU have loaded one after the other."""
    loads = [intervals(one), intervals(other)]
    if not all(loads):
        return Seen(False, f"one of them has not loaded: {loads}")
    (one_from, one_to), (other_from, other_to) = (mine[-1] for mine in loads)
    gap_s = max(other_from - one_to, one_from - other_to)
    return Seen(
        gap_s >= 0,
        f"{'one after the other' if gap_s >= 0 else 'together for'} {figure(-gap_s) if gap_s < 0 else ''}".strip(),
    )
