"""vLLM 0.31 to 0.32 and back, the CPU build, one instance: how long the gap is, and a client that rides it out. In the drills alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import endpoint
import openai
import playbook
import pytest
import record

testinfra_hosts = ["ansible://gpu01"]
OLD, NEW = "0.31.0", "0.32.0"
#: The client that counts the gap asks so often.
PAUSE_S = 0.25


class Clients:
    """Two clients that ask one after another: one that never retries and counts the gap, and OpenAI's own with its defaults."""

    def __init__(self) -> None:
        self.gap_s = 0.0
        self.patient = 0
        self.lost: list[str] = []
        self._enough = threading.Event()

    def ask(self, client: openai.OpenAI) -> None:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8)

    def measure(self) -> None:
        """Note the longest time from the last answer before a refusal to the first one after it."""
        client, answered = endpoint.client("gpu01"), time.monotonic()
        refused = False
        while not self._enough.is_set():
            try:
                self.ask(client)
            except openai.APIError:
                refused = True
            else:
                if refused:
                    self.gap_s = max(self.gap_s, time.monotonic() - answered)
                answered, refused = time.monotonic(), False
            time.sleep(PAUSE_S)

    def be_patient(self) -> None:
        """Ask with the retries that the SDK has of its own."""
        key = endpoint.KEY.read_text().strip()
        client = openai.OpenAI(base_url=endpoint.url("gpu01", "/v1"), api_key=key, http_client=endpoint.http())
        while not self._enough.is_set():
            try:
                self.ask(client)
            except openai.APIError as error:
                self.lost.append(f"{type(error).__name__}: {error}")
            else:
                self.patient += 1
            time.sleep(PAUSE_S)

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=work, daemon=True) for work in (self.measure, self.be_patient)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            # The last requests are the new engine's.
            time.sleep(5)
            self._enough.set()
            for thread in threads:
                thread.join(180)


@pytest.mark.skipif(not record.wanted(), reason="minutes long, so in the drills alone: GPUOPS_DRILLS=all")
def test_there_and_back(host: Any) -> None:
    lab = [sys.executable, str(endpoint.TOP / "molecule/lab/lab.py")]
    subprocess.run([*lab, "reset", "--no-layers", "gpu01"], check=True, timeout=120)
    done = playbook.run("site.yml", hosts=["gpu01"], timeout_s=900, vllm_version=OLD)
    assert done.status == 0, done.said
    for name, options, wanted in (
        ("playbooks/upgrade.yml", ("-e", f"vllm_version={NEW}"), NEW),
        ("playbooks/rollback.yml", (), OLD),
    ):
        clients = Clients()
        with clients.asking():
            done = playbook.run(name, *options, hosts=["gpu01"], timeout_s=900)
        served = host.check_output("/opt/vllm/current/bin/vllm --version").splitlines()[-1]
        ok = done.status == 0 and served.startswith(wanted) and not clients.lost and clients.patient > 0 < clients.gap_s
        words = f"gap {clients.gap_s:.0f} s, the play {done.seconds:.0f} s; OpenAI's client with its own retries: {clients.patient} answers, "
        words += f"{len(clients.lost)} errors"
        record.record(f"{name.rpartition('/')[2]} of one instance (real vLLM, {wanted})", "ours", ok, words)
        assert ok, f"{words}\n{clients.lost}\n{done.said}"
