# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes the keys of clients in a file of the inventory."""

from __future__ import annotations

import datetime
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import AnsibleVaultError, VaultLib, is_encrypted
from ansible.plugins.action import ActionBase
from ansible_collections.gpuops.vllm.plugins.module_utils._files import write_atomic
from ansible_collections.gpuops.vllm.plugins.modules.rotate_keys import DOCUMENTATION
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _key_file
from ansible_collections.gpuops.vllm.plugins.plugin_utils._arguments import checked_arguments


class Vault:
    """Ansible's vault, with the secrets of this run."""

    def __init__(self, vault: VaultLib) -> None:
        self._vault = vault

    def open(self, data: bytes) -> tuple[str, Any]:
        """The text of a file, and how to encrypt it as it was: a secret and its name; None where it was not encrypted."""
        if not is_encrypted(data):
            return data.decode(), None
        text, vault_id, secret = self._vault.decrypt_and_get_vault_id(data)
        return text.decode(), (secret, vault_id)

    def seal(self, text: str, how: Any) -> bytes:
        """The reverse of `open`."""
        if how is None:
            return text.encode()
        secret, vault_id = how
        sealed: bytes = self._vault.encrypt(text.encode(), secret, vault_id=vault_id)
        return sealed

    def like(self, text: str, ciphertext: str) -> str:
        """Encrypt a value with the secret of another one."""
        return self.seal(text, self.open(ciphertext.encode())[1]).decode()


class ActionModule(ActionBase):
    """Thin adapter around `_key_file`; works on the control node only."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = checked_arguments(self, DOCUMENTATION)
        if not args["clients"]:
            raise AnsibleActionFail("vllm_rotate_clients is empty: it needs the names of clients. Name them.")
        if args["grace_s"] < 0:
            raise AnsibleActionFail(
                f"vllm_rotate_grace_s is {args['grace_s']}: it needs 0 or more seconds. Correct it."
            )
        now = datetime.datetime.now(datetime.UTC)
        until = now + datetime.timedelta(seconds=args["grace_s"])
        keys = {client: secrets.token_hex(32) for client in args["clients"]}
        try:
            self._change(args, keys, now, until)
        except _key_file.KeyFileError as error:
            raise AnsibleActionFail(f"vllm_api_keys_file, {args['path']}: {error}") from None
        except AnsibleVaultError as error:
            raise AnsibleActionFail(
                f"vllm_api_keys_file, {args['path']}: {error} Give the vault's password to this run."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            # A decoder's own words show the bytes.
            said = error if isinstance(error, OSError) else "it is no text in UTF-8"
            raise AnsibleActionFail(
                f"vllm_api_keys_file, {args['path']}: {said}. Correct it; nothing was changed."
            ) from None
        moment = f"{until:%Y-%m-%dT%H:%M:%SZ}"
        said = "".join(f"{client}: a new key; those from before end at {moment}\n" for client in keys)
        return {
            **result,
            "changed": True,
            "until": moment,
            "grace_s": args["grace_s"],
            "clients": list(keys),
            "diff": {"prepared": said},
        }

    def _change(
        self, args: dict[str, Any], keys: dict[str, str], now: datetime.datetime, until: datetime.datetime
    ) -> None:
        path = Path(self._loader.path_dwim(args["path"])).resolve()
        vault = Vault(self._loader._vault)
        data = path.read_bytes()
        text, how = vault.open(data)
        edited = _key_file.rotate(text, args["variable"], keys, until, now, vault.like)
        folder = Path(self._loader.path_dwim(args["handover_dir"])) if args["handover_dir"] else None
        hidden = sorted(_key_file.hashed(text, args["variable"]) & keys.keys())
        if hidden and not folder:
            raise _key_file.KeyFileError(
                f"It has only the digest of the key of {', '.join(hidden)}. Set vllm_rotate_handover_dir to a folder for the new ones."
            )
        if self._task.check_mode:
            return
        if path.read_bytes() != data:
            raise _key_file.KeyFileError("Somebody else has changed it meanwhile. Run this again.")
        prepared = _prepare(folder, keys) if folder else {}
        try:
            write_atomic(path, vault.seal(edited, how).decode(), stat.S_IMODE(path.stat().st_mode))
        except BaseException:
            # A key that opens nothing must not be handed to anybody.
            for new in prepared:
                new.unlink(missing_ok=True)
            raise
        for new, final in prepared.items():
            new.rename(final)


def _prepare(folder: Path, keys: dict[str, str]) -> dict[Path, Path]:
    """Write each key beside the file that is to be handed over; return what becomes what."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {folder / f".{client}.key.new": folder / f"{client}.key" for client in keys}
    if taken := [str(final) for final in files.values() if final.exists()]:
        raise _key_file.KeyFileError(f"{', '.join(taken)} is there from before. Hand it over and remove it.")
    for new, key in zip(files, keys.values(), strict=True):
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{key}\n")
    return files
