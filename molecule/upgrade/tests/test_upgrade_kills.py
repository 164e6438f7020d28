"""An upgrade that is killed at every changing task, and a rollback likewise: the next run completes it. In the drills alone."""

from __future__ import annotations

from typing import Any

import killing
import pytest
import record
from upgrading import ARGUMENTS, NEW, OLD, look, run, version_of

testinfra_hosts = ["ansible://gpu01"]
#: The way back has one changing task of the play's own, the link, which is one module's one rename.
ROLES = ("vllm_launcher", "vllm_engine", "vllm_service", "vllm_nginx")


@pytest.mark.skipif(not record.wanted(), reason="minutes long, so in the drills alone: GPUOPS_DRILLS=all")
@pytest.mark.parametrize("way", ["after", "middle"])
def test_the_next_run_completes_it(host: Any, way: str) -> None:
    title = killing.title(way, "upgrade.yml and rollback.yml")
    killed: list[str] = []
    try:
        # Without the new engine, and with the old one chosen, whatever other tests have left.
        host.check_output("rm -f /opt/vllm/last-change.json")
        assert run("site.yml", "--tags", "engine,service").status == 0
        host.check_output("rm -rf /opt/vllm/0.32.* /opt/vllm/last-change.json")
        for name, options, wanted in (
            ("playbooks/upgrade.yml", ("-e", f"vllm_version={NEW}"), NEW),
            ("playbooks/rollback.yml", (), OLD),
        ):
            walk = killing.walk(name, *ARGUMENTS, *options, machine="gpu01", way=way, roles=ROLES)
            killed += walk.killed
            now = look("gpu01")
            assert (version_of(now.current), now.answers) == (wanted, {wanted})
            assert set(now.serves) == {now.current}
            again = run(name, *options)
            assert (again.status, again.changed["gpu01"]) == (0, 0), again.said
            assert look("gpu01") == now
        assert killed
    except AssertionError as error:
        record.record(title, "ours", False, str(error).partition("\n")[0])
        raise
    record.record(title, "ours", True, f"whole after the next run, {len(killed)} kills")
