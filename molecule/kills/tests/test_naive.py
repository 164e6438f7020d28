"""The same kill against the usual way, a file and a handler: the next run says all is well, and the old setting goes on serving."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.mark.skipif(
    not record.wanted(), reason="the comparison with the usual way belongs to the drills: GPUOPS_DRILLS=all"
)
@pytest.mark.usefixtures("naive")
def test_a_handler_is_lost_with_the_play(host: Any) -> None:
    walk = killing.walk(NAIVE, machine="deb13", way="after", roles=["naive"], max_model_len=256)
    assert walk.killed == ["naive : Write the engine's configuration, after its change"]
    assert "max-model-len: 256" in host.file("/etc/naive-engine.yaml").content_string
    assert (walk.last.status, walk.last.changed["deb13"]) == (0, 0)
    assert served(host) == 512
    seen = "the next run: rc 0, changed=0, and the old setting goes on serving (512, the file says 256)"
    record.record(killing.title("after", "a machine that serves"), "naive", False, seen)
