"""A client's new key: by a reload alone, while streams run, and with a time in which both keys work."""

from __future__ import annotations

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
# At 50 ms each, longer than the playbook takes.
TOKENS = 480


def stream() -> int:
    """The number of tokens that came, of a stream that came to its end."""
    events = list(
        endpoint.client("deb13").completions.create(model="gpt-4", prompt="Hi", max_tokens=TOKENS, stream=True)
    )
    assert events[-1].choices[0].finish_reason == "length"
    return sum(bool(event.choices[0].text) for event in events)


def test_a_new_key_comes_without_a_gap(host: Any, tmp_path: Path) -> None:
    file = tmp_path / "host_vars" / "deb13.yml"
    file.parent.mkdir()
    old = endpoint.KEY.read_text().strip()
    file.write_text(f"vllm_api_keys:\n  # Ours.\n  - name: demo\n    key: {old}\n")
    (tmp_path / "hosts.yml").write_text("vllm_servers: {hosts: {deb13: {}}}\n")
    nginx = host.check_output("systemctl show --property MainPID --property ActiveEnterTimestamp nginx")
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream) for _ in range(STREAMS)]
        done = playbook.run(
            "playbooks/rotate_keys.yml",
            hosts=["deb13"],
            inventories=[str(tmp_path / "hosts.yml")],
            vllm_api_keys_file=str(file),
            vllm_rotate_clients="demo",
            vllm_rotate_grace_s=3600,
        )
        running = sum(not one.done() for one in streams)
        assert [one.result() for one in streams] == [TOKENS] * STREAMS
    try:
        assert done.status == 0, done.said
        assert running > 0, f"the streams ended before the playbook did, after {done.seconds:.0f} s"
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
