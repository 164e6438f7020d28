"""playbooks/plan.yml as a user runs it: no host is there, and the answer comes all the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
FIELDS = {
    "name",
    "host",
    "profile",
    "engine_args",
    "weights_gib",
    "kv_gib",
    "kv_tokens",
    "max_concurrency",
    "fits",
    "reasons",
    "suggestions",
}
GUIDE = {
    "name": "llama",
    "model": "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "engine_args": {"max-model-len": 16384, "gpu-memory-utilization": 0.90},
}


def play(inventory: Path, *options: str, hub: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    """Run the playbook; unless told, the hub is nowhere, so that no test depends on a network."""
    program = Path(sys.executable).parent / "ansible-playbook"
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "HF_ENDPOINT": hub, "no_proxy": "*"}
    return subprocess.run(
        [program, "-i", inventory, REPO / "playbooks/plan.yml", *options],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip


def inventory(folder: Path, **hosts: dict[str, Any]) -> Path:
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({"vllm_servers": {"hosts": hosts}}))
    return file


def test_the_example_is_planned_without_a_host_and_without_a_warning(tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    done = play(REPO / "inventory/example", "-e", f"vllm_plan_report_path={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert len(re.findall(r"^\S+\.example\.com .* fits$", done.stdout, re.MULTILINE)) == 6
    found = json.loads(report.read_text())
    assert [one["name"] for one in found["instances"]] == [
        "qwen-0",
        "mistral-0",
        "mistral-0",
        "llama-0",
        "llama-1",
        "qwen-moe-0",
    ]
    assert all(set(one) >= FIELDS and one["fits"] is True for one in found["instances"])


def test_what_does_not_fit_is_shown_with_all_others_and_ends_in_a_failure(tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    hosts = {
        "big": {"vllm_plan_gpus": ["h200-sxm-141gb"], "vllm_models": [GUIDE]},
        "small": {"vllm_plan_gpus": ["h100-sxm-80gb"], "vllm_models": [GUIDE]},
    }
    done = play(inventory(tmp_path, **hosts), "-e", f"vllm_plan_report_path={report}")
    assert done.returncode == 2
    assert re.search(r"^big +llama-0 .* fits, unverified$", done.stdout, re.MULTILINE)
    assert re.search(r"^small +llama-0 .* does not fit, unverified$", done.stdout, re.MULTILINE)
    assert "  1. engine_args: {gpu-memory-utilization: 0.95, kv-cache-dtype: fp8}" in done.stdout
    assert "- 'llama-0' does not fit, see above for what would" in done.stdout
    # Each host fails for its own.
    assert re.search(r"^big .* failed=0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^small .* failed=1 ", done.stdout, re.MULTILINE)
    by_host = {one["host"]: one for one in json.loads(report.read_text())["instances"]}
    assert (by_host["big"]["fits"], by_host["small"]["fits"]) == (True, False)


def test_a_misfit_may_be_let_pass(tmp_path: Path) -> None:
    hosts = {"small": {"vllm_plan_gpus": ["h100-sxm-80gb"], "vllm_models": [GUIDE], "vllm_plan_allow_misfit": True}}
    done = play(inventory(tmp_path, **hosts))
    assert done.returncode == 0, done.stdout
    assert "small: 'llama-0' does not fit, and goes on, since vllm_plan_allow_misfit is true." in done.stdout


def test_check_mode_writes_no_report(tmp_path: Path) -> None:
    hosts = {"big": {"vllm_plan_gpus": ["h200-sxm-141gb"], "vllm_models": [GUIDE]}}
    done = play(inventory(tmp_path, **hosts), "--check", "-e", f"vllm_plan_report_path={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["hosts.yml"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"vllm_plan_gpus": ["h900"]}, "vllm_plan_gpus[0].kind is 'h900': needs"),
        ({"vllm_plan_known_gpus": {"x": {}}}, "vllm_plan_known_gpus.x.name is not set: needs the name as nvidia-smi prints it. Correct it."),
        ({"vllm_plan_known_models": {"a/b": {"base": "no/such"}}}, "vllm_plan_known_models['a/b'].base is 'no/such': needs another known model."),
        ({"vllm_version": "0.23.0"}, "vllm_version is 0.23.0: needs 0.24.0 or newer"),
        ({"vllm_plan_report_path": "/nowhere/plan.json"}, "vllm_plan_report_path is '/nowhere/plan.json': No such file or directory. Choose"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_sentence(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    where = {"vllm_plan_gpus": ["h200-sxm-141gb"], "vllm_models": [GUIDE], **variables}
    done = play(inventory(tmp_path, gpu01=where))
    assert done.returncode == 2
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_slip_on_one_host_hides_no_other(tmp_path: Path) -> None:
    hosts = {
        "good": {"vllm_plan_gpus": ["h200-sxm-141gb"], "vllm_models": [GUIDE]},
        "wrong": {"vllm_plan_gpus": ["h900"], "vllm_models": [GUIDE]},
    }
    done = play(inventory(tmp_path, **hosts))
    assert done.returncode == 2
    assert re.search(r"^good +llama-0 .* fits, unverified$", done.stdout, re.MULTILINE)
    assert "- vllm_plan_gpus[0].kind is 'h900': needs" in done.stdout
    assert re.search(r"^good .* failed=0 ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("options", [(), ("--tags", "service"), ("--check",)])
def test_an_inventory_without_hosts_is_no_plan_that_works(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = play(inventory(tmp_path), *options)
    assert done.returncode == 2
    assert "The inventory has no host in the group vllm_servers" in done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        # The inventory's names are others, and these would silently be none.
        ({"vllm_plan_gpu_profile": "generic_fp16", "vllm_plan_engine_args": {"max-model-len": 8192}},
         "The inventory sets vllm_plan_engine_args, vllm_plan_gpu_profile: the playbooks set these themselves, from vllm_default_engine_args, vllm_gpu_profile. Rename or remove them."),
        ({"vllm_gpu_profile": "{{ site_profle }}"}, "'site_profle' is undefined"),
        ({"vllm_default_engine_args": "{{ site_args }}"}, "'site_args' is undefined"),
        ({"vllm_version": "{{ site_verson }}"}, "'site_verson' is undefined"),
        ({"vllm_hf_token": "{{ vault_tokn }}", "vllm_models": [{"name": "x", "model": "no/body"}]}, "'vault_tokn' is undefined"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [(), ("--limit", "gpu01")], ids=str)
def test_a_slip_in_a_name_is_no_default(
    tmp_path: Path, variables: dict[str, Any], message: str, options: tuple[str, ...]
) -> None:
    where = {"vllm_plan_gpus": ["h200-sxm-141gb"], "vllm_models": [GUIDE], **variables}
    done = play(inventory(tmp_path, gpu01=where), *options)
    assert done.returncode == 2
    assert message in " ".join((done.stdout + done.stderr).split())


def test_the_readmes_example_says_what_the_readme_says(tmp_path: Path) -> None:
    section = (REPO / "README.md").read_text().partition("## Will it fit?")[2].partition("\n## ")[0]
    written, shown = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("yaml", "console"))
    assert written is not None
    assert shown is not None
    (tmp_path / "hosts.yml").write_text(written[1])
    done = play(tmp_path / "hosts.yml")
    assert shown[1].partition("\n")[2].strip() in done.stdout


@pytest.fixture
def gated_hub() -> Iterator[tuple[str, list[str]]]:
    """A hub with one gated model; yields its address and the tokens that it was shown."""
    shown: list[str] = []
    files: dict[str, dict[str, Any]] = {
        "main": {"sha": COMMIT, "siblings": [{"rfilename": "config.json"}]},
        "config.json": known_config("Qwen/Qwen3-8B"),
        "model.safetensors.index.json": {"metadata": {"total_size": 16_381_470_720}, "weight_map": {}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization", ""))
            folder, _, name = self.path.rpartition("/")
            places = ("/api/models/our/model/revision", f"/our/model/resolve/{COMMIT}")
            welcome = shown[-1] == f"Bearer {TOKEN}" and folder in places
            body = json.dumps(files.get(name, {})).encode() if welcome else b"{}"
            self.send_response((200 if name in files else 404) if welcome else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()


TOKEN = "hf_nobodysToken"
COMMIT = "1" * 40


def known_config(model: str) -> dict[str, Any]:
    catalogue = yaml.safe_load((REPO / "roles/vllm_plan/vars/main/models.yml").read_text())
    found: dict[str, Any] = catalogue["__vllm_plan_known_models"][model]["config"]
    return found


def test_the_hub_tells_a_models_numbers_to_who_has_the_token(tmp_path: Path, gated_hub: tuple[str, list[str]]) -> None:
    address, shown = gated_hub
    host = {
        "vllm_plan_gpus": ["l40s-48gb"],
        "vllm_models": [{"name": "ours", "model": "our/model"}],
        "vllm_hf_token": TOKEN,
    }
    report = tmp_path / "plan.json"
    done = play(inventory(tmp_path, gpu01=host), "-vvv", "-e", f"vllm_plan_report_path={report}", hub=address)
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(report.read_text())["instances"]
    assert (found["numbers"], found["fits"]) == ("the hub", True)
    assert set(shown) == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr + report.read_text()


def test_a_hub_that_refuses_is_told_and_blocks_nothing(tmp_path: Path, gated_hub: tuple[str, list[str]]) -> None:
    host = {"vllm_plan_gpus": ["l40s-48gb"], "vllm_models": [{"name": "ours", "model": "our/model"}]}
    done = play(inventory(tmp_path, gpu01=host), hub=gated_hub[0])
    assert done.returncode == 0, done.stdout
    assert re.search(r"^gpu01 +ours-0 .* not checked$", done.stdout, re.MULTILINE)
    assert "vllm_hf_token" in done.stdout + done.stderr
