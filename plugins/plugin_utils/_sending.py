# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For action plugins: bring files of a bundle to the host of the task."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpuops.vllm.plugins.module_utils import _parcels
from ansible_collections.gpuops.vllm.plugins.module_utils._bundle import size_text

display = Display()
SHOW_S = 5.0
#: Of this run, and removed with it.
LOCAL_TMP: str = vars(constants)["DEFAULT_LOCAL_TMP"]
GIB = 1 << 30


def send(
    action: ActionBase,
    task_vars: dict[str, Any],
    bundle: Path,
    files: Sequence[tuple[str, _parcels.Wanted]],
    place: Mapping[str, Any],
) -> int:
    """Bring files to the host, those that it lacks; return their bytes. Raises AnsibleActionFail.

    :arg files: each by its path in the bundle, with what the host is to have.
    :arg place: ``dest``, ``owner`` and ``reserve_gib`` of `gpuops.vllm.bundle_files`.
    """
    wanted = [one for _name, one in files]
    arguments = {"bundle": str(bundle), **place}
    found = _call(action, task_vars, {**arguments, "files": [one._asdict() for one in wanted]})
    there = found["there"]
    loads = list(_parcels.parcels([one.size for one in wanted], there))
    size = sum(map(_parcels.total, loads))
    reserve = int(place.get("reserve_gib", 1) * GIB)
    if size and size + reserve > found["free"]:
        raise AnsibleActionFail(
            f"{place['dest']} has {size_text(found['free'])} free, and the bundle's files take {size_text(size)}, with {size_text(reserve)} to be left. "
            "Make room on the host, and run the play again. Nothing was sent."
        )
    if action._task.check_mode or not loads:
        return size
    sent, shown = 0, time.monotonic()
    for pieces in loads:
        numbers = sorted({piece.number for piece in pieces})
        listed = [wanted[number]._asdict() for number in numbers]
        moved = [[numbers.index(piece.number), piece.offset, piece.length] for piece in pieces]
        _send_parcel(
            action,
            task_vars,
            {**arguments, "files": listed, "pieces": moved},
            pieces,
            [bundle / name for name, _one in files],
        )
        sent += _parcels.total(pieces)
        if time.monotonic() - shown >= SHOW_S or sent == size:
            display.display(
                f"{task_vars.get('inventory_hostname', '')} | sent {size_text(sent)} of {size_text(size)} of the bundle"
            )
            shown = time.monotonic()
    return size


def _send_parcel(
    action: ActionBase,
    task_vars: dict[str, Any],
    arguments: Mapping[str, Any],
    pieces: Sequence[_parcels.Piece],
    sources: Sequence[Path],
) -> None:
    descriptor, local = tempfile.mkstemp(prefix="parcel-", dir=LOCAL_TMP)
    remote = action._make_tmp_path()
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _parcels.write_parcel(stream, pieces, lambda number: sources[number])
        place = action._connection._shell.join_path(remote, "parcel")
        action._transfer_file(local, place)
        _call(action, task_vars, {**arguments, "parcel": place})
    except OSError as error:
        raise AnsibleActionFail(
            f"vllm_bundle_dir: {error.filename or local}: {error.strerror or error}. Is there room in {LOCAL_TMP} of the control node?"
        ) from None
    finally:
        Path(local).unlink(missing_ok=True)
        action._remove_tmp_path(remote)
        # Else it is taken for the one of the next parcel.
        action._connection._shell.tmpdir = None


def _call(action: ActionBase, task_vars: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = action._execute_module(
        module_name="gpuops.vllm.bundle_files", module_args=dict(arguments), task_vars=task_vars
    )
    if result.get("failed"):
        raise AnsibleActionFail(str(result.get("msg") or result))
    return result
