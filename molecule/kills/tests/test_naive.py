"""The same against the usual way, a file and a handler: the play says that all is well, and something else serves, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import killing
import playbook
import pytest
import record

testinfra_hosts = ["ansible://deb13"]
NAIVE = "tests/naive_play/site.yml"
ASK = (
    "import json, time, urllib.request\n"
    "for attempt in range(50):\n"
    "    try:\n"
    "        answer = json.load(urllib.request.urlopen('http://127.0.0.1:8900/v1/models'))\n"
    "        break\n"
    "    except OSError:\n"
    "        time.sleep(0.2)\n"
    "print(answer['data'][0]['max_model_len'])\n"
)


@pytest.fixture
def naive(host: Any) -> Iterator[None]:
    """The naive engine serves 512, and is gone again after the test."""
    try:
        done = playbook.run(NAIVE, hosts=["deb13"], max_model_len=512)
        assert done.status == 0, done.said
        assert served(host) == 512
        yield
    finally:
        host.run(
            "systemctl disable --now naive-vllm.service; rm -f /etc/naive-engine.yaml /etc/systemd/system/naive-vllm.service"
        )


def served(host: Any) -> int:
    """Ask what serves for its length, which is in the file that the play writes."""
    return int(host.check_output("python3 -c %s", ASK))


pytestmark = [
    pytest.mark.skipif(
        not record.wanted(), reason="the comparison with the usual way belongs to the drills: GPUOPS_DRILLS=all"
    ),
    pytest.mark.usefixtures("naive"),
]


def test_a_handler_is_lost_with_the_play(host: Any) -> None:
    walk = killing.walk(NAIVE, machine="deb13", way="after", roles=["naive"], max_model_len=256)
    assert walk.killed == ["naive : Write the engine's configuration, after its change"]
    assert "max-model-len: 256" in host.file("/etc/naive-engine.yaml").content_string
    assert (walk.last.status, walk.last.changed["deb13"]) == (0, 0)
    assert served(host) == 512
    seen = "the next run: rc 0, changed=0, and the old setting goes on serving (512, the file says 256)"
    record.record(killing.title("after", "a machine that serves"), "naive", False, seen)


def test_a_setting_that_does_not_start_is_no_failure(host: Any) -> None:
    done = playbook.run(NAIVE, hosts=["deb13"], max_model_len="none")
    assert done.status == 0, done.said
    restarts = "systemctl show --property=NRestarts --value naive-vllm.service"
    host.check_output(f"timeout 20 sh -c 'until [ $({restarts}) -gt 0 ]; do sleep 0.1; done'")
    seen = "rc 0; nothing serves, and systemd starts it again and again"
    record.record("a setting that does not start", "naive", False, seen)
    again = playbook.run(NAIVE, hosts=["deb13"], max_model_len="none")
    # Changed or not: systemd may be about to start it again by itself at that moment, or not.
    assert again.status == 0
    record.record("the same setting again", "naive", False, "rc 0, and still nothing serves")


def test_two_plays_at_once_both_end_well(host: Any) -> None:
    with ThreadPoolExecutor() as pool:
        plays = {
            length: pool.submit(playbook.run, NAIVE, hosts=["deb13"], max_model_len=length) for length in (128, 1024)
        }
    ended = {length: play.result() for length, play in plays.items()}
    assert [done.status for done in ended.values()] == [0, 0]
    seen = f"both end with 0, and one of them was told wrong: {served(host)} serves, the file says "
    seen += host.check_output("sed -n 's/^max-model-len: //p' /etc/naive-engine.yaml")
    record.record("two plays at once", "naive", False, seen)
