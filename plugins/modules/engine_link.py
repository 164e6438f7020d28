#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: engine_link
short_description: Choose the engine that instances start with, and remove those that nothing needs
version_added: 0.1.0
description:
  - Points the link C(current) at one of the environments that the C(vllm_engine) role has built, by one rename. Nothing is restarted by that; each
    instance keeps the engine that it was started with until M(gpuops.vllm.instances) restarts it.
  - The last change is kept in C(last-change.json) beside the link, so that O(way) finds the way back. Going back and forth leaves it as it is. So the
    same call again changes nothing, whatever a run that was cut off has left undone.
  - A change that was made with O(hold) or O(way) is one that the inventory may not say. A run without them that would undo it, or that wants any other
    version, is refused, since it would restart every instance at once. Once a run wants the version that is there, the inventory says so too, and the
    change is held no longer.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
attributes:
  check_mode:
    description: Reports where the link would lead and what would be removed. The environment need not be there yet.
    support: full
  diff_mode:
    description: Shows where the link leads, and what is removed.
    support: full
options:
  root:
    description: Folder of the environments and of the link.
    type: path
    default: /opt/vllm
  name:
    description: Name of the environment, a folder in O(root).
    type: str
  way:
    description: Along the last change, V(back) to the engine that it came from or V(forth) to the one that it led to.
    type: str
    choices: [back, forth]
  hold:
    description: Whether the engine stays until inventory and host agree, also where a run without this wants the one before.
    type: bool
    default: false
  keep:
    description:
      - How many finished environments stay. First the one that C(current) leads to, then the one that it led to before, then the newest.
      - What an instance serves with, or would go back to, stays beyond that number. Unfinished ones go, unless they are being built.
      - Left out, or 0, nothing is removed.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Point the link at a finished environment
  gpuops.vllm.engine_link:
    name: 0.32.0-cuda-96e43fbd
    keep: 2

- name: Point it to where it led before
  gpuops.vllm.engine_link:
    way: back
"""

RETURN = r"""
name:
  description: The environment that the link leads to now, or would.
  returned: success
  type: str
path:
  description: The same as a path.
  returned: success
  type: str
version:
  description: The version of vLLM in it, by its name.
  returned: success
  type: str
before:
  description: The environment that the link led to before this call; empty where there was no link.
  returned: success
  type: str
other:
  description: The environment at the other end of the last change; empty where there is none.
  returned: success
  type: str
behind:
  description: The instances that do not serve with the environment of RV(name), and so are still to be restarted or started.
  returned: success
  type: list
  elements: str
held:
  description: Whether the last change was held before this call, so that inventory and host may not agree.
  returned: success, and where O(way) leads nowhere
  type: bool
removed:
  description: The environments that were removed, or would be.
  returned: success
  type: list
  elements: str
"""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _converge, _engines, _systemd
from ansible_collections.gpuops.vllm.plugins.module_utils._files import (
    disk_trouble,
    read_text,
    read_untrusted,
    write_atomic,
)

#: Where instances say what they serve with, and what they would go back to.
INSTANCES = (Path("/etc/vllm/instances"), Path("/var/lib/vllm/instances"))
#: Where their launchers say how they are.
RUN = Path("/run/vllm")
MARKER = ".complete"
LINK = "current"
RECORD = "last-change.json"
ENDED = ("", "dead", "exited", "failed")


class Engines:
    """One call. Record, link and removals follow each other such that the next call completes one that was cut off."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.root = Path(module.params["root"])
        self.current = self.linked()
        self.change = _engines.parse(read_text(self.root / RECORD) or "")
        self.held = self.change.held if self.change else False

    def run(self) -> dict[str, Any]:
        wanted = self.wanted()
        if not self.check and not self.finished(wanted):
            self.module.fail_json(
                msg=f"{self.root / wanted} is not there, or not finished: the role vllm_engine builds it before this. Run the play again as a whole. "
                f"{self.root / LINK} is as it was."
            )
        self.remember(wanted)
        self.point(wanted)
        removed = self.remove_surplus(wanted)
        gone = "".join(f"removed: {self.root / name}\n" for name in removed)
        return {
            "changed": wanted != self.current or bool(removed),
            "name": wanted,
            "path": str(self.root / wanted),
            "version": _engines.version_of(wanted),
            "before": self.current,
            "other": self.change.other(wanted) if self.change else "",
            "behind": self.behind(wanted),
            "held": self.held,
            "removed": removed,
            "diff": {
                "before_header": str(self.root / LINK),
                "after_header": str(self.root / LINK),
                "before": f"{self.current}\n" if self.current else "",
                "after": f"{wanted}\n{gone}",
            },
        }

    def linked(self) -> str:
        """The environment that the link leads to, "" where there is none."""
        try:
            return (self.root / LINK).readlink().name
        except OSError:
            return ""

    def finished(self, name: str) -> bool:
        return (self.root / name / MARKER).exists()

    def wanted(self) -> str:
        way, name = self.module.params["way"], self.module.params["name"]
        if way:
            return self.along(way)
        if self.change and not self.module.params["hold"] and self.change.undone_by(self.current, name):
            self.module.fail_json(
                msg=f"vLLM {_engines.version_of(self.current)} ({self.current}) was chosen for this host by an upgrade or a rollback, and this run would take "
                f"it to {_engines.version_of(name)} ({name}), on all hosts at once. Set vllm_version: {_engines.version_of(self.current)} in the "
                "inventory; or, if the other version is wanted after all, run upgrade.yml, which goes host by host. Nothing was changed."
            )
        return str(name)

    def along(self, way: _engines.Way) -> str:
        """The end of the last change that lies this way."""
        if self.change is None:
            there = f"is {self.current}, the only one so far" if self.current else "is not there"
            self.module.fail_json(
                msg=f"There is no engine to go {way} to: no change of it is recorded in {self.root / RECORD}, and {self.root / LINK} {there}. "
                "Another version is installed by upgrade.yml, or by site.yml with vllm_version. Nothing was changed.",
                held=self.held,
            )
            raise AssertionError
        name = self.change.end(way)
        if not self.finished(name):
            self.module.fail_json(
                msg=f"{self.root / name}, to go {way} to, is not there any more. vllm_engine_keep says how many stay. Run upgrade.yml with "
                f"-e vllm_version={_engines.version_of(name)}, which builds it anew. Nothing was changed.",
                held=self.held,
            )
        return name

    def remember(self, wanted: str) -> None:
        """Write the change down before it is made: a run that dies between the two has not changed anything, and knows the way back."""
        params, change = self.module.params, self.change
        if params["way"] and change:
            change = _engines.Change(change.before, change.after, held=True)
        elif self.current and wanted != self.current:
            change = _engines.Change(self.current, wanted, params["hold"])
        elif change and not params["hold"]:
            change = _engines.Change(change.before, change.after)
        if change and change != self.change:
            text = _engines.dump(change)
            # As the next run will read it, which takes what was put there by hand for nothing to go back to.
            self.change = _engines.parse(text)
            if not self.check:
                write_atomic(self.root / RECORD, text, 0o644)

    def point(self, wanted: str) -> None:
        if self.check:
            return
        new = self.root / f".{LINK}.new"
        # A run that was killed may have left it.
        new.unlink(missing_ok=True)
        if wanted == self.current:
            return
        # One rename: whoever starts vLLM meanwhile gets the old environment or the new one, whole.
        new.symlink_to(wanted)
        new.replace(self.root / LINK)

    def behind(self, wanted: str) -> list[str]:
        """The instances that serve with another environment, or do not serve so far."""
        path = os.path.realpath(self.root / wanted)
        told = {
            file.parent.name: _converge.parse_json(read_text(file) or "")
            for file in sorted(INSTANCES[0].glob("*/instance.json"))
        }
        states = {name: _converge.parse_record(read_untrusted(RUN / name / "state.json")) for name in told}
        return [
            name
            for name, one in told.items()
            if one.get("engine") != path or states[name] != {"state": "serving", "digest": str(one.get("digest"))}
        ]

    # --- what nothing needs ---

    def remove_surplus(self, wanted: str) -> list[str]:
        keep = self.module.params["keep"]
        if keep <= 0:
            return []
        there = self.environments()
        if wanted not in {one.name for one in there}:
            # In check mode: by now it would have been built.
            there.append(_engines.Environment(wanted, math.inf))
        other = self.change.other(wanted) if self.change else ""
        removed = _engines.surplus(there, keep, wanted, other, {*self.in_use(there), *self.being_built(there)})
        return [name for name in removed if self.check or self.remove(name)]

    def environments(self) -> list[_engines.Environment]:
        folders = [entry.name for entry in self.root.iterdir() if entry.is_dir()] if self.root.is_dir() else []
        found = []
        for name in _engines.ours(folders):
            marker = self.root / name / MARKER
            found.append(_engines.Environment(name, marker.stat().st_mtime if marker.exists() else None))
        return found

    def in_use(self, there: list[_engines.Environment]) -> set[str]:
        """Those that instances were last told to start with, serve with or would go back to. Also a broken record counts."""
        records = [
            read_text(file) or "" for folder in INSTANCES for file in (*folder.glob("*/*.json"),) if file.is_file()
        ]
        # The records of what served hold other files as text, with their quotes escaped.
        return _engines.named_in(
            (text.replace('\\"', '"') for text in records), (one.name for one in there), str(self.root)
        )

    def being_built(self, there: list[_engines.Environment]) -> set[str]:
        """Those that an installation is at, perhaps another run's."""
        return {one.name for one in there if one.finished_at is None and self.building(one.name)}

    def building(self, name: str) -> bool:
        try:
            shown = _systemd.show(f"vllm-install-{name}.service", ("SubState",), self.module.run_command)
        except RuntimeError:
            # Not known, so not to be taken from under it.
            return True
        return shown["SubState"] not in ENDED

    def remove(self, name: str) -> bool:
        """Remove an environment; what is left of it when that is cut off does not look finished."""
        folder = self.root / name
        try:
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            self.module.warn(f"{folder}, which nothing needs, could not be removed: {error}")
            return False
        return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/vllm"},
            "name": {"type": "str"},
            "way": {"type": "str", "choices": ["back", "forth"]},
            "hold": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 0},
            "claim": {"type": "str", "default": ""},
        },
        required_one_of=[("name", "way")],
        mutually_exclusive=[("name", "way")],
        supports_check_mode=True,
    )
    try:
        # Two plays at once take turns, and the later one decides.
        with _claim.turn(module.params["claim"], module.check_mode):
            result = Engines(module).run()
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=disk_trouble(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
