"""What counts as a step of a module on its host, and what it is called."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "tests/kill/host/sitecustomize.py"
sys.path.append(str(SOURCE.parents[3] / "molecule" / "shared"))
SPEC = importlib.util.spec_from_file_location("kill_host", SOURCE)
assert SPEC and SPEC.loader
kill_host = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kill_host)

WRITE = os.O_WRONLY | os.O_CREAT


@pytest.mark.parametrize(
    ("event", "arguments", "step"),
    [
        ("open", ("/etc/vllm/.secrets.4711.ab12cd_x", None, WRITE), "open /etc/vllm/.secrets.*.*"),
        ("open", ("/etc/vllm/secrets", "r", os.O_RDONLY), ""),
        ("open", ("/tmp/x", None, WRITE), ""),
        ("open", (3, None, WRITE), ""),
        ("open", ("/etc/nginx/.vllm-test.4711.ab12cd_x.conf", None, WRITE), "open /etc/nginx/.vllm-test.*.*.conf"),
        ("os.rename", ("/etc/vllm/.a.4711.ab12cd_x", "/etc/vllm/a", -1, -1), "os.rename /etc/vllm/a"),
        ("os.mkdir", (f"/etc/nginx/vllm/{'0a' * 32}", 0o755, -1), "os.mkdir /etc/nginx/vllm/*"),
        ("open", (f"/etc/nginx/vllm/{'0a' * 32}/api.conf", None, WRITE), "open /etc/nginx/vllm/*/*"),
        ("open", (f"/etc/nginx/vllm/{'0a' * 32}.14/.a.conf.4711.ab12cd_x", None, WRITE), "open /etc/nginx/vllm/*/*"),
        ("open", (f"/var/www/x/vllm-4711-{'0a' * 16}", None, WRITE), "open /var/www/x/vllm-*-*"),
        ("os.mkdir", (f"/etc/nginx/vllm/{'0a' * 32}.14", 0o755, -1), "os.mkdir /etc/nginx/vllm/*.*"),
        ("os.symlink", ("there", "/etc/vllm/tls/.current.4711", -1), "os.symlink /etc/vllm/tls/.current.*"),
        ("os.remove", (b"/etc/vllm/x", -1), "os.remove /etc/vllm/x"),
        ("subprocess.Popen", ("/bin/systemctl", ["systemctl", "restart", "a"], None, None), "run systemctl restart a"),
        ("subprocess.Popen", ("/bin/systemctl", [b"systemctl", b"show", b"a"], None, None), ""),
        (
            "subprocess.Popen",
            ("/x", ["/x/apt-get", "--yes", "-o", "a::b=1", "install", "--", "nginx"], None, None),
            "run apt-get install nginx",
        ),
        ("subprocess.Popen", ("/x", ["dpkg-query", "--show"], None, None), ""),
        ("import", ("x",), ""),
    ],
)
def test_a_step_has_one_name_in_every_run(event: str, arguments: tuple[Any, ...], step: str) -> None:
    assert kill_host.step_of(event, arguments) == step


def test_only_a_module_has_steps() -> None:
    class Frame:
        def __init__(self, name: str, back: Frame | None) -> None:
            self.f_code = type("Code", (), {"co_filename": name})
            self.f_back = back

    zipped = "/root/.ansible/tmp/ansible_copy_payload_x/ansible_copy_payload.zip/"
    basic = Frame(f"{zipped}ansible/module_utils/basic.py", Frame(f"{zipped}ansible/modules/copy.py", None))
    ours = Frame(
        "/usr/lib/python3.13/os.py", Frame(f"{zipped}ansible_collections/gpuops/vllm/plugins/modules/unit.py", None)
    )
    assert (kill_host.module_of(basic), kill_host.module_of(ours)) == ("copy", "unit")
    assert kill_host.module_of(Frame("/usr/bin/certbot", None)) == ""
