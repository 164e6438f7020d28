# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.vllm.plugins.modules import packages

KNOWN = "installed nginx\nnot-installed certbot\nconfig-files nginx-light\n"


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (["nginx"], []),
        (["nginx", "certbot"], ["certbot"]),
        (["nginx-light", "libnginx-mod-http-js"], ["nginx-light", "libnginx-mod-http-js"]),
        ([], []),
    ],
)
def test_missing_packages(wanted: list[str], missing: list[str]) -> None:
    assert packages.missing_packages(wanted, KNOWN) == missing


#: apt-get as it is after dpkg was killed, until `dpkg --configure -a` has run.
APT = """#!/bin/sh
echo "apt-get $*" >> {log}
case "$*" in *install*) if [ -e {cut} ]; then
    echo "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem." >&2; exit 100
fi;; esac
"""
DPKG = """#!/bin/sh
echo "dpkg $*" >> {log}
{cure}
"""


@pytest.mark.parametrize(("cure", "status"), [("rm {cut}", 0), ("exit 1", 1)], ids=["cured", "not cured"])
def test_an_installation_that_was_cut_off_is_completed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cure: str,
    status: int,
) -> None:
    names = {"log": tmp_path / "log", "cut": tmp_path / "cut"}
    names["cut"].touch()
    programs = {"apt-get": APT, "dpkg": DPKG.replace("{cure}", cure), "dpkg-query": "#!/bin/sh\nexit 1\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text.format(**names) if "{" in text else text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with patch_module_args({"name": ["nginx"]}), pytest.raises(SystemExit) as ended:
        packages.main()
    assert ended.value.code == status
    result = json.loads(capsys.readouterr().out)
    steps = [
        " ".join(word for word in line.split() if not word.startswith("-"))
        for line in names["log"].read_text().splitlines()
    ]
    assert [step.split()[0] for step in steps] == ["apt-get", "apt-get", "dpkg", "apt-get"]
    assert result.get("changed", False) is (status == 0)
    assert status == 0 or "dpkg was interrupted" in result["msg"]
