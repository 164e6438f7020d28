"""The engine that the role installed judges every engine file that a profile or a shipped inventory leads to."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endpoint
import pytest
import yaml

testinfra_hosts = ["ansible://gpu01"]
TOOLS = endpoint.TOP / "tests" / "engine_judge"
PROFILES = endpoint.TOP / "roles" / "vllm_plan" / "vars" / "main" / "profiles.yml"
WRONG = {
    "no-such-flag: 3": "unrecognized arguments: --no-such-flag",
    "dtype: fp8": "argument --dtype: invalid choice",
    "enable-prefix-caching: false": "is dropped by vLLM",
}


def archive(files: dict[str, bytes]) -> str:
    """Return a tar of these files in base64, small enough for a command line."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return base64.b64encode(packed.getvalue()).decode()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The engine files by name, made here on the control node."""
    folder: Path = tmp_path_factory.mktemp("engine") / "files"
    subprocess.run([sys.executable, TOOLS / "render.py", folder], check=True, timeout=120)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def verdicts(host: Any, rendered: dict[str, bytes]) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """The judge's exit status and verdicts by file, of the rendered files and of the wrong ones, from the machine."""
    wrong = {f"wrong-{number}.yaml": f"model: /srv/models/x\n{line}\n".encode() for number, line in enumerate(WRONG)}
    judge = {"judge.py": (TOOLS / "judge.py").read_bytes()}
    folder = host.check_output("mktemp -d /root/engine-files.XXXXXX")
    try:
        # xz may not be on the machine, Python is.
        host.check_output(
            "cd %s && printf %%s %s | base64 -d | python3 -c %s",
            folder,
            archive({**rendered, **wrong, **judge}),
            "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|xz').extractall()",
        )
        # Its home is the folder and no bytecode is written: nothing is left behind.
        run = host.run(
            "cd %s && HOME=%s PYTHONDONTWRITEBYTECODE=1 timeout 300 /opt/vllm/current/bin/python judge.py *.yaml",
            folder,
            folder,
        )
        found = [json.loads(line) for line in run.stdout.splitlines()]
        assert len(found) == len(rendered) + len(wrong), run.stderr
        yield run.rc, {verdict["file"]: verdict for verdict in found}
    finally:
        host.check_output("rm -r %s", folder)


def test_vllm_takes_every_file_as_it_is_written(
    verdicts: tuple[int, dict[str, dict[str, Any]]], rendered: dict[str, bytes]
) -> None:
    assert len(rendered) >= len(yaml.safe_load(PROFILES.read_text())["__vllm_plan_profiles"]) > 1
    assert [verdict for name, verdict in verdicts[1].items() if name in rendered and not verdict["ok"]] == []


def test_a_wrong_file_is_refused(verdicts: tuple[int, dict[str, dict[str, Any]]]) -> None:
    status, by_name = verdicts
    assert status == 1
    for number, error in enumerate(WRONG.values()):
        verdict = by_name[f"wrong-{number}.yaml"]
        assert not verdict["ok"]
        assert error in verdict["error"]
