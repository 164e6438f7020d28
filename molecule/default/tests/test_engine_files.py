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
from typing import Any, NamedTuple

import endpoint
import pytest
import yaml

testinfra_hosts = ["ansible://gpu01"]
TOOLS = endpoint.TOP / "tests" / "engine_judge"
OPTIONS = endpoint.TOP / "roles" / "vllm_plan" / "vars" / "main" / "options.yml"
PROFILES = endpoint.TOP / "roles" / "vllm_plan" / "vars" / "main" / "profiles.yml"
WRONG = {
    "no-such-flag: 3": "unrecognized arguments: --no-such-flag",
    "dtype: fp8": "argument --dtype: invalid choice",
    "enable-prefix-caching: false": "is dropped by vLLM",
}


class Judged(NamedTuple):
    """The judge's exit status, its verdicts by file, and the catalogue of options that it would write."""

    status: int
    by_name: dict[str, dict[str, Any]]
    options: str


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


def options(host: Any, folder: str) -> str:
    """Return the catalogue of options as the machine's vLLM has it."""
    return str(
        host.check_output(
            "cd %s && HOME=%s PYTHONDONTWRITEBYTECODE=1 timeout 300 /opt/vllm/current/bin/python options.py; echo .",
            folder,
            folder,
        )
    ).removesuffix(".")


@pytest.fixture(scope="module")
def verdicts(host: Any, rendered: dict[str, bytes]) -> Iterator[Judged]:
    """The judge's exit status and verdicts by file, of the rendered files and of the wrong ones, from the machine."""
    wrong = {f"wrong-{number}.yaml": f"model: /srv/models/x\n{line}\n".encode() for number, line in enumerate(WRONG)}
    judge = {name: (TOOLS / name).read_bytes() for name in ("judge.py", "options.py")}
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
        yield Judged(run.rc, {verdict["file"]: verdict for verdict in found}, options(host, folder))
    finally:
        host.check_output("rm -r %s", folder)


def test_vllm_takes_every_file_as_it_is_written(verdicts: Judged, rendered: dict[str, bytes]) -> None:
    assert len(rendered) >= len(yaml.safe_load(PROFILES.read_text())["__vllm_plan_profiles"]) > 1
    assert [verdict for name, verdict in verdicts.by_name.items() if name in rendered and not verdict["ok"]] == []


def test_the_catalogue_of_options_is_the_parsers(verdicts: Judged) -> None:
    assert OPTIONS.read_text(encoding="utf-8") == verdicts.options


def test_a_wrong_file_is_refused(verdicts: Judged) -> None:
    assert verdicts.status == 1
    for number, error in enumerate(WRONG.values()):
        verdict = verdicts.by_name[f"wrong-{number}.yaml"]
        assert not verdict["ok"]
        assert error in verdict["error"]
