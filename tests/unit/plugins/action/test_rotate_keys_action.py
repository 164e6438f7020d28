# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rotation by Ansible itself, of files as users have them."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible_collections.gpuops.vllm.plugins.action import rotate_keys

PASSWORD = "vault-password-for-tests"
OLD = "the-old-key-0123456789"
PLAIN = f"# Ours.\nvllm_api_keys:\n  - name: a\n    key: {OLD}\n"


@pytest.fixture
def rotate(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    (tmp_path / "password").write_text(PASSWORD)

    def run(*arguments: str, password: bool = True, **options: Any) -> tuple[int, str]:
        command = ["ansible", "localhost", "--diff", "-m", "gpuops.vllm.rotate_keys"]
        command += ["-a", json.dumps({"path": str(tmp_path / "keys.yml"), "clients": ["a"], **options})]
        command += ["--vault-id", f"ours@{tmp_path}/password"] if password else []
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "False"}
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    return run


def vault() -> VaultLib:
    return VaultLib([("ours", VaultSecret(PASSWORD.encode()))])


def keys_of(text: str) -> list[str]:
    return [entry["key"] for entry in yaml.safe_load(text)["vllm_api_keys"]]


def test_a_plain_file(tmp_path: Path, rotate: Any) -> None:
    file = tmp_path / "keys.yml"
    file.write_text(PLAIN)
    file.chmod(0o640)
    status, said = rotate(grace_s=60)
    assert status == 0, said
    new, old = keys_of(file.read_text())
    assert (old, len(new), file.stat().st_mode & 0o777) == (OLD, 64, 0o640)
    assert file.read_text().startswith("# Ours.\n")
    assert "a: a new key; those from before end at" in said
    assert old not in said
    assert new not in said


def test_check_mode_writes_nothing(tmp_path: Path, rotate: Any) -> None:
    (tmp_path / "keys.yml").write_text(PLAIN)
    status, said = rotate("--check", handover_dir=str(tmp_path / "new"))
    assert (status, (tmp_path / "keys.yml").read_text()) == (0, PLAIN), said
    assert "CHANGED" in said
    assert not (tmp_path / "new").exists()


def test_a_file_encrypted_as_a_whole(tmp_path: Path, rotate: Any) -> None:
    file = tmp_path / "keys.yml"
    secret = VaultSecret(PASSWORD.encode())
    file.write_bytes(vault().encrypt(PLAIN.encode(), secret, vault_id="ours"))
    assert rotate()[0] == 0
    assert file.read_text().startswith("$ANSIBLE_VAULT;1.2;AES256;ours\n")
    assert keys_of(vault().decrypt(file.read_bytes()).decode())[1] == OLD
    before = file.read_bytes()
    status, said = rotate(password=False)
    assert (status, file.read_bytes()) == (2, before)
    assert "Give the vault's password" in said


def test_a_file_encrypted_key_by_key(tmp_path: Path, rotate: Any) -> None:
    file = tmp_path / "keys.yml"
    sealed = vault().encrypt(OLD.encode(), VaultSecret(PASSWORD.encode()), vault_id="ours").decode()
    file.write_text(
        "vllm_api_keys:\n  - name: a\n    key: !vault |\n" + "".join(f"      {line}\n" for line in sealed.splitlines())
    )
    status, said = rotate()
    assert status == 0, said
    loaded = yaml.load(file.read_text().replace("!vault ", ""), yaml.SafeLoader)["vllm_api_keys"]
    new, old = (vault().decrypt(entry["key"].encode()).decode() for entry in loaded)
    assert (old, len(new)) == (OLD, 64)


def test_a_client_known_by_digest_gets_its_key_in_a_file(tmp_path: Path, rotate: Any) -> None:
    file, folder = tmp_path / "keys.yml", tmp_path / "new"
    file.write_text(f"vllm_api_keys:\n  - name: a\n    key_sha256: {hashlib.sha256(OLD.encode()).hexdigest()}\n")
    before = file.read_text()
    status, said = rotate()
    assert (status, file.read_text()) == (2, before)
    assert "vllm_rotate_handover_dir" in said
    assert rotate(handover_dir=str(folder))[0] == 0
    new = (folder / "a.key").read_text().strip()
    assert hashlib.sha256(new.encode()).hexdigest() in file.read_text()
    assert new not in file.read_text()
    assert (folder.stat().st_mode & 0o777, (folder / "a.key").stat().st_mode & 0o777) == (0o700, 0o600)
    after = file.read_text()
    status, said = rotate(handover_dir=str(folder))
    assert (status, file.read_text(), (folder / "a.key").read_text().strip()) == (2, after, new)
    assert "Hand it over and remove it" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clients": []}, "vllm_rotate_clients is empty"),
        ({"clients": ["b"]}, "has no client 'b', but a"),
        ({"grace_s": -1}, "vllm_rotate_grace_s is -1"),
        ({"path": "/no/such/file"}, "No such file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, rotate: Any, options: Any, said: str) -> None:
    (tmp_path / "keys.yml").write_text(PLAIN)
    status, printed = rotate(**options)
    assert status == 2
    assert said in printed
    assert (tmp_path / "keys.yml").read_text() == PLAIN


def test_a_key_that_opens_nothing_is_not_left_to_be_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rotate_keys, "write_atomic", full)
    (tmp_path / "keys.yml").write_text(PLAIN)
    action: Any = rotate_keys.ActionModule.__new__(rotate_keys.ActionModule)
    action._loader = SimpleNamespace(path_dwim=str, _vault=vault())
    action._task = SimpleNamespace(check_mode=False)
    options = {"path": str(tmp_path / "keys.yml"), "variable": "vllm_api_keys", "handover_dir": str(tmp_path / "new")}
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(OSError, match="No space"):
        action._change(options, {"a": "the-new-key-0123456789"}, now, now)
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / "keys.yml").read_text() == PLAIN
