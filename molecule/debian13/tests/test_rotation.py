"""A client's new key: by a reload alone, while streams run, and with a time in which both keys work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import endpoint
import openai
import playbook
import pytest
import yaml

testinfra_hosts = ["ansible://deb13"]
# The engine takes eight at a time, and the playbook asks for answers of its own.
STREAMS = 6


def stream_on(over: threading.Event) -> list[str]:
    """How each stream ended of those that one client asks for, one after another."""
    client, ends = endpoint.client("deb13"), []
    while not over.is_set():
        events = list(client.completions.create(model="gpt-4", prompt="Hi", max_tokens=200, stream=True))
        ends.append(str(events[-1].choices[0].finish_reason))
    return ends


def test_a_new_key_comes_without_a_gap(host: Any, tmp_path: Path) -> None:
    file = tmp_path / "host_vars" / "deb13.yml"
    file.parent.mkdir()
    old = endpoint.KEY.read_text().strip()
    file.write_text(f"vllm_api_keys:\n  # Ours.\n  - name: demo\n    key: {old}\n")
    (tmp_path / "hosts.yml").write_text("vllm_servers: {hosts: {deb13: {}}}\n")
    nginx = host.check_output("systemctl show --property MainPID --property ActiveEnterTimestamp nginx")
    over = threading.Event()
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream_on, over) for _ in range(STREAMS)]
        try:
            done = playbook.run(
                "playbooks/rotate_keys.yml",
                hosts=["deb13"],
                inventories=[str(tmp_path / "hosts.yml")],
                vllm_api_keys_file=str(file),
                vllm_rotate_clients="demo",
                vllm_rotate_grace_s=3600,
            )
        finally:
            over.set()
        # A stream that is cut or refused is an exception.
        ends = [end for one in streams for end in one.result()]
    assert set(ends) == {"stop"}
    assert len(ends) > STREAMS
    try:
        assert done.status == 0, done.said
        new, from_before = (entry["key"] for entry in yaml.safe_load(file.read_text())["vllm_api_keys"])
        assert from_before == old
        assert old not in done.said
        assert new not in done.said
        for key in (old, new):
            assert endpoint.client("deb13", key=key).models.list().data
        with pytest.raises(openai.AuthenticationError):
            endpoint.client("deb13", key=new.upper()).models.list()
        assert nginx == host.check_output("systemctl show --property MainPID --property ActiveEnterTimestamp nginx")
    finally:
        assert playbook.run("site.yml", "--tags", "proxy", hosts=["deb13"]).status == 0


def test_a_file_that_the_keys_do_not_come_from_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yml"
    file.write_text("vllm_api_keys:\n  - {name: demo, key: another-key-0123456789}\n")
    before = file.read_text()
    done = playbook.run(
        "playbooks/rotate_keys.yml", hosts=["deb13"], vllm_api_keys_file=str(file), vllm_rotate_clients=["demo"]
    )
    assert "is another list than that of" in done.refused["deb13"]
    assert (file.read_text(), done.changed["deb13"]) == (before, 0)
