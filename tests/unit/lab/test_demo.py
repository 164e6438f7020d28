"""What `make demo` says and writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from vllm_lab.model import REPO

import demo


def test_phases_are_added_up_by_role() -> None:
    phases = demo.Phases("lab", 0.0)
    phases.enter("site.yml", 2.0)
    for now_s, line in enumerate(
        [
            "PLAY [Check every host and plan] ****\n",
            "TASK [gpuops.vllm.vllm_engine : install | Install uv] ***\n",
            "ok: [gpu01]\n",
            "\x1b[0;35mTASK [vllm_engine : install | Make the environment] ***\x1b[0m\n",
            "TASK [gpuops.vllm.vllm_nginx : configure | Write] ***\n",
        ],
        start=3,
    ):
        phases.read(line, float(now_s))
    phases.enter("end", 10.0)
    assert (
        phases.summary() == "lab 2, site.yml 1, Check every host and plan 1, vllm_engine 3, vllm_nginx 3; 10 s in all"
    )


def test_the_environment_survives_a_shell(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(demo.render_env("a'b $c"), encoding="ascii")
    done = subprocess.run(
        ["sh", "-c", f'. {file}; echo "$OPENAI_API_KEY|$OPENAI_BASE_URL|$SSL_CERT_FILE|$NODE_EXTRA_CA_CERTS"'],
        capture_output=True,
        text=True,
        check=True,
    )
    ca = REPO / ".lab" / "ca.pem"
    assert done.stdout == f"a'b $c|https://gpu01.vllm.test/v1|{ca}|{ca}\n"


def test_the_curl_line_names_the_key_by_its_file_only() -> None:
    line = demo.curl_line("gpuops-demo", "What's this?")
    assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0
    assert str(demo.ENV_FILE) in line
    assert '"Authorization: Bearer $OPENAI_API_KEY"' in line


def test_the_question_is_one_the_model_was_trained_on() -> None:
    assert demo.first_question().endswith("?")


def test_a_wrong_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["sideways"]) == 2
    assert capsys.readouterr().err == "usage: demo.py up|down\n"
