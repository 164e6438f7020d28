"""What the README promises of the play beside a plain run, each on the live machine with the fake engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import endpoint

testinfra_hosts = ["ansible://deb13"]
RECAP = re.compile(r"^deb13 +: .*changed=(\d+) .*failed=0 ", re.MULTILINE)


def play(*arguments: str, playbook: str = "site.yml", **variables: Any) -> tuple[str, int]:
    """Run a playbook that must succeed; return what it said and how much it changed."""
    done = subprocess.run(
        ["ansible-playbook", playbook, "--inventory", "molecule/inventory", "--limit", "deb13,localhost", *arguments]
        + [part for name, value in variables.items() for part in ("--extra-vars", json.dumps({name: value}))],
        cwd=endpoint.TOP,
        env={**os.environ, "ANSIBLE_CONFIG": str(endpoint.TOP / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    recap = RECAP.search(said)
    assert recap, said
    return said, int(recap[1])


def state(host: Any) -> dict[str, Any]:
    return dict(json.loads(host.file("/run/vllm/demo-0/state.json").content_string))


def test_a_tag_runs_the_checks_and_its_own_part_alone_and_booleans_may_be_text() -> None:
    said, changed = play("--tags", "proxy", "-e", "vllm_acme_staging=false", "-e", "vllm_nginx_default_server=true")
    assert changed == 0
    assert "vllm_plan : plan | Read the host" in said and "vllm_nginx : configure" in said
    assert "vllm_engine : install" not in said and "vllm_service : service |" not in said


def test_verify_runs_by_itself() -> None:
    said, changed = play(playbook="playbooks/verify.yml", vllm_verify_probes=True)
    assert changed == 0
    assert re.search(r"GET /metrics: '404'", said)
    assert "Check certificate, keys, tokens, streams and closed ports" in said


def test_without_consent_nothing_restarts(host: Any) -> None:
    before = state(host)
    for _run in range(2):
        said, _changed = play(vllm_default_env={"FAKE_ENGINE_TOKEN_S": "0.04"}, vllm_service_allow_restart=False)
        assert "restart pending: demo-0" in said
        assert state(host) == before
    # The change is taken back: what serves is what is wanted again.
    said, _changed = play()
    assert "restart pending" not in said
    assert state(host) == before


def test_no_secret_is_shown_or_lies_about(host: Any) -> None:
    """At the highest verbosity that people use, with both secrets of the inventory changed."""
    token, key = "hf_Hub9token9that9nobody9may9see", "Client9key9that9nobody9may9see9at9all"
    said, changed = play("-vvv", "--diff", vllm_hf_token=token, vllm_api_keys=[{"name": "demo", "key": key}])
    assert changed > 0
    engine_key = host.check_output("sed -n 's/^VLLM_API_KEY=\"\\(.*\\)\"$/\\1/p' /etc/vllm/secrets")
    assert len(engine_key) > 32
    places = {
        "the play's output": said,
        "the journal": host.check_output("journalctl --no-pager --output=export | tr -cd '[:print:]\\n'"),
        "units": host.check_output("systemctl show --no-pager '*'; cat /etc/systemd/system/*.service"),
        "command lines": host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        "files that anybody reads": host.check_output(
            "find /etc /run /var/lib/vllm /var/log -xdev -type f -perm -o=r -exec cat {} + 2>/dev/null | tr -cd '[:print:]\\n'"
        ),
    }
    shown = [(where, secret) for where, text in places.items() for secret in (token, key, engine_key) if secret in text]
    assert shown == []
    assert token in host.file("/etc/vllm/secrets").content_string


def test_a_trial_may_sign_its_own_certificate(host: Any) -> None:
    said, _changed = play(vllm_tls_mode="selfsigned")
    assert "Read the self-signed certificate" in said
    certificate = "openssl x509 -in /etc/vllm/tls/current/fullchain.pem -noout -issuer"
    assert "Pebble" not in host.check_output(certificate)
    play()
    assert "Pebble" in host.check_output(certificate)
