"""The service with a real engine: killed, stopped under load, stopped while it loads. The last file, since it leaves the instance stopped.

Each load takes most of a minute, so that these are steps of one story with one whole load in it, and run in this order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import endpoint
import load
import pytest
import service_drills as drills
import units
from record import record
from subject import Shell, Subject

testinfra_hosts = ["ansible://gpu01"]
# A real vLLM ends 3 to 6 s after its core.
DIES_WITHIN_S = 8.0
LOADS_WITHIN_S = 150.0


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    endpoint.wait_until_it_answers("gpu01", limit_s=180)
    shell = Shell("gpu01")
    target = load.Target(
        endpoint.url("gpu01", "/v1"), "gpt-4", endpoint.KEY.read_text().strip(), str(endpoint.CA), silence_s=60
    )
    unit = "vllm@demo-0.service"
    yield Subject("ours", "demo", shell, unit, target, "/run/drills/demo-0.env", "/run/vllm/demo-0/state.json")
    shell.close()


def shown(drill: str, seen: drills.Seen) -> None:
    """Keep what a drill showed, then judge it."""
    record(f"{drill} (real vLLM)", "ours", *seen)
    assert seen.ok, seen.seen


def test_the_engines_death_is_noticed_and_cured(subject: Subject) -> None:
    before = subject.look()
    assert before.core > 0, before
    shown("kill -9 of the engine", drills.kill_engine(subject, before, DIES_WITHIN_S, LOADS_WITHIN_S))


def test_a_stop_cuts_no_stream(subject: Subject) -> None:
    # It takes eight at a time; the others wait their turn, and are not refused either.
    seen = drills.stop_under(subject, streams=20, flowing=4, max_tokens=450, ignore_eos=True)
    shown("stop under 20 streams", seen)


def test_the_main_processes_death_leaves_nothing_behind(subject: Subject) -> None:
    subject.systemctl("start", wait=False)
    before = subject.wait(lambda look: look.core > 0, within_s=LOADS_WITHIN_S)
    assert before.core > 0, before
    subject.kill("KILL", before.main)
    again = subject.wait(lambda look: look.main not in (0, before.main), within_s=drills.TIMES.restart_s + 5)
    left = subject.alive(before.processes)
    words = f"started again {drills.figure(again.started_s - before.at_s)} after the look before it, left behind: {left or 'nothing'}"
    shown("kill -9 of the main process", drills.Seen(again.main not in (0, before.main) and not left, words))


def test_a_stop_while_it_loads_ends_in_seconds(subject: Subject) -> None:
    # That it takes a second TERM can be seen only once the engine has handlers, which is before its core.
    loading = subject.wait(lambda look: look.core > 0, within_s=60)
    assert loading.active == "activating", loading
    time.sleep(3)
    shown("stop while loading", drills.stop_now(subject, within_s=12))


def test_systemd_finds_nothing_wrong_with_the_units(host: Any) -> None:
    assert units.complaints(host, "demo-0") == ""
    assert units.exposure(host, egress=False) <= 1.3
    assert units.exposure(host, egress=True) <= 1.6
