#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: instances
short_description: Make exactly these vLLM instances serve on the host
version_added: 0.1.0
description:
  - Writes the units and the files of each instance, compares what is wanted with what serves, and restarts only what differs.
  - Each instance has a digest over its engine file, environment, unit, launcher, engine and key. The launcher records the digest it
    serves after its first real token; as long as that record differs from the wanted digest, every run starts the instance
    again, whatever an earlier run left undone.
  - Instances that are no longer listed are stopped, disabled and removed. Their weights stay.
  - The action plugin of the same name calls the module until every instance serves, and shows the loading progress.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Reports what would be written, started, restarted and removed.
    support: full
  diff_mode:
    description: Shows units and engine files. Environment files and secrets are never shown.
    support: full
options:
  instances:
    description: The instances of this host, as the C(vllm_plan) role computes them.
    type: list
    elements: dict
    required: true
  units:
    description: Content of each unit file in C(/etc/systemd/system), by file name.
    type: dict
    required: true
  launcher:
    description: Time limits handed to C(vllm-start), in seconds, C(start_timeout_s), C(start_limit_s), C(stall_timeout_s) and C(drain_notice_s).
    type: dict
    required: true
  allow_restart:
    description: Whether a serving instance may be restarted. If not, the change is staged and reported as C(restart_pending).
    type: bool
    default: true
  started:
    description: Digests that earlier calls of the same task have started. Set by the action plugin, not by users.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Serve what the plan says
  gpuops.vllm.instances:
    instances: "{{ vllm_service_instances }}"
    units:
      vllm@.service: "{{ lookup('ansible.builtin.template', 'vllm@.service.j2') }}"
      vllm.target: "{{ lookup('ansible.builtin.file', 'vllm.target', rstrip=false) }}"
    launcher:
      start_timeout_s: 870
      start_limit_s: 3570
      stall_timeout_s: 120
      drain_notice_s: 0
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["start llama-0"]
restart_pending:
  description: Instances whose change waits for consent to restart.
  returned: always
  type: list
  elements: str
verdicts:
  description: State of each instance against its wanted digest.
  returned: always
  type: dict
  sample: {"llama-0": "serving"}
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _converge, _engine_file, _envfile, _systemd
from ansible_collections.gpuops.vllm.plugins.module_utils._files import read_text, read_untrusted, write_atomic

UNITS = Path("/etc/systemd/system")
ETC = Path("/etc/vllm")
RUN = Path("/run/vllm")
CACHE = Path("/var/cache/vllm")
LOCK = Path("/run/vllm-instances.lock")
LAUNCHER = Path("/usr/local/bin/vllm-start")
ENGINE = Path("/opt/vllm/current")
TARGET = "vllm.target"
PROPERTIES = ("ActiveState", "NRestarts", "StatusText", "NeedDaemonReload", "UnitFileState", "InvocationID")
JOURNAL_LINES = 12


def unit_of(name: str) -> str:
    return f"vllm@{name}.service"


class Converge:
    """One pass over the host. Every step looks first, so that a pass that was cut off anywhere is taken up by the next."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.instances: list[dict[str, Any]] = module.params["instances"]
        self.started: dict[str, str] = dict(module.params["started"])
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.restart_pending: list[str] = []
        self.verdicts: dict[str, _converge.Verdict] = {}

    def run(self) -> None:
        key = self.engine_key()
        if not self.module.params["allow_restart"]:
            self.refuse_what_only_a_restart_brings()
        reload_needed = self.write_units()
        leaving = sorted(set(self.present()) - {one["name"] for one in self.instances})
        # Without the plan's reasoning, which follows what the hub and the GPUs say today.
        kept = [{key: one[key] for key in one if key not in ("fit", "engine_args_from")} for one in self.instances]
        assigned = json.dumps({"version": 1, "instances": kept}, indent=2, sort_keys=True) + "\n"
        self.write(ETC / "instances.json", assigned, mode=0o600)
        digests = {one["name"]: self.write_instance(one, key) for one in self.instances}
        observed = {name: self.observe(name) for name in digests}
        if reload_needed or any(self.needs_reload(unit) for unit in [TARGET, *map(unit_of, digests)]):
            self.systemctl("daemon-reload")
        stopping = [name for name in leaving if self.remove(name)]
        self.enable(list(digests))
        self.verdicts = {
            name: _converge.judge(digests[name], observed[name], self.started.get(name)) for name in digests
        }
        failed = [name for name, verdict in self.verdicts.items() if verdict == "failed"]
        if failed:
            self.fail(failed[0], observed[failed[0]])
        if not stopping:
            self.start(digests, observed)
        self.finish(stopping, observed)

    # --- files ---

    def write(self, path: Path, content: str, mode: int = 0o644, show: bool = False) -> bool:
        before = read_text(path)
        # A wrong mode is repaired by writing the file anew, owned by root.
        if before == content and path.stat().st_mode & 0o7777 == mode:
            return False
        self.actions.append(f"write {path}")
        if show:
            self.diff.append(
                {"before_header": str(path), "after_header": str(path), "before": before or "", "after": content}
            )
        if not self.check:
            write_atomic(path, content, mode)
        return True

    def write_units(self) -> bool:
        written = [
            self.write(UNITS / name, content, show=True) for name, content in self.module.params["units"].items()
        ]
        return any(written)

    def write_instance(self, instance: Mapping[str, Any], key: str) -> str:
        """Write the files of one instance and return its wanted digest."""
        folder = ETC / "instances" / instance["name"]
        engine, environment = _engine_file.engine_yaml(instance), _engine_file.environment(instance)
        launcher = {
            **self.module.params["launcher"],
            "shutdown_timeout_s": int(instance["engine_args"].get("shutdown-timeout", 0)),
        }
        digest = _converge.digest(
            {
                "engine.yaml": engine,
                "env": environment,
                "launcher": _engine_file.launcher_json(instance, "", launcher),
                "unit": self.module.params["units"].get("vllm@.service", ""),
                "drop-ins": self.drop_ins(instance["name"]),
                "vllm-start": read_text(LAUNCHER) or "",
                "engine": os.path.realpath(ENGINE),
                "key": key,
            }
        )
        self.write(folder / "engine.yaml", engine, show=True)
        self.write(folder / "env", environment, mode=0o600)
        # Last: it names the digest, and with it that all the others are in place.
        self.write(folder / "instance.json", _engine_file.launcher_json(instance, digest, launcher))
        return digest

    def refuse_what_only_a_restart_brings(self) -> None:
        """Without consent to restart, an engine keeps its port and names: the proxy would look for it elsewhere."""
        for instance in self.instances:
            told = _converge.parse_json(read_text(ETC / "instances" / instance["name"] / "instance.json") or "")
            if not told or not self.observe(instance["name"]).running:
                continue
            for key in ("port", "served_as"):
                if told.get(key) != instance[key]:
                    self.module.fail_json(
                        msg=f"{instance['name']}: {key} {told.get(key)} -> {instance[key]} needs a restart, and vllm_service_allow_restart "
                        "is false. Allow it, or take the change back. Nothing was changed."
                    )

    def drop_ins(self, name: str) -> str:
        folders = [UNITS / "vllm@.service.d", UNITS / f"{unit_of(name)}.d"]
        return "\n".join(read_text(file) or "" for folder in folders for file in sorted(folder.glob("*.conf")))

    def engine_key(self) -> str:
        key = _envfile.parse(read_text(ETC / "secrets") or "").get("VLLM_API_KEY", "")
        if not key and not self.check:
            self.module.fail_json(
                msg=f"{ETC}/secrets holds no VLLM_API_KEY: vLLM would answer anybody. Run the role vllm_secrets first."
            )
        return key

    def present(self) -> list[str]:
        folder = ETC / "instances"
        return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []

    # --- systemd ---

    def runner(self, argv: list[str]) -> _systemd.Result:
        status, out, err = self.module.run_command(argv)
        return int(status), str(out), str(err)

    def systemctl(self, *arguments: str) -> None:
        if self.check:
            return
        status, out, err = self.runner(["systemctl", *arguments])
        if status != 0:
            self.module.fail_json(msg=f"systemctl {' '.join(arguments)}: {(err or out).strip()}", actions=self.actions)

    def show(self, unit: str) -> dict[str, str]:
        try:
            return _systemd.show(unit, PROPERTIES, self.runner)
        except RuntimeError as error:
            self.module.fail_json(msg=f"systemd does not answer: {error}. Check `systemctl status` on the host.")
            raise

    def needs_reload(self, unit: str) -> bool:
        return self.show(unit)["NeedDaemonReload"] == "yes"

    def observe(self, name: str) -> _converge.Observed:
        properties = self.show(unit_of(name))
        record = _converge.parse_record(read_untrusted(RUN / name / "state.json"))
        return _converge.Observed(
            active=properties["ActiveState"],
            restarts=int(properties["NRestarts"] or 0),
            state=record["state"],
            digest=record["digest"],
            status=properties["StatusText"],
        )

    def enable(self, names: list[str]) -> None:
        missing = [unit for unit in [TARGET, *map(unit_of, names)] if self.show(unit)["UnitFileState"] != "enabled"]
        if missing:
            self.actions.append(f"enable {', '.join(missing)}")
            self.systemctl("enable", "--quiet", *missing)

    def remove(self, name: str) -> bool:
        """Take an instance away; return whether it still stops."""
        unit = unit_of(name)
        if self.observe(name).running:
            self.actions.append(f"stop {name}")
            self.systemctl("disable", "--quiet", unit)
            self.systemctl("stop", "--no-block", unit)
            return True
        self.actions.append(f"remove {name}")
        self.systemctl("disable", "--quiet", unit)
        if not self.check:
            self.runner(["systemctl", "reset-failed", unit])
            shutil.rmtree(CACHE / name, ignore_errors=True)
            shutil.rmtree(ETC / "instances" / name)
        return False

    def start(self, digests: Mapping[str, str], observed: Mapping[str, _converge.Observed]) -> None:
        running = [name for name, one in observed.items() if one.running]
        for name in _converge.startable(self.instances, self.verdicts, running):
            if name in running and not self.module.params["allow_restart"]:
                self.restart_pending.append(name)
                continue
            self.actions.append(f"{'restart' if name in running else 'start'} {name}")
            if not self.check:
                # Forget earlier failures: the start limit counts ours as well.
                self.runner(["systemctl", "reset-failed", unit_of(name)])
            self.systemctl("restart", "--no-block", unit_of(name))
            self.started[name] = digests[name]
            self.verdicts[name] = "loading"
        if self.show(TARGET)["ActiveState"] not in ("active", "activating"):
            self.actions.append(f"start {TARGET}")
            self.systemctl("start", "--no-block", TARGET)

    # --- results ---

    def result(self) -> dict[str, Any]:
        return {
            "changed": bool(self.actions),
            "actions": self.actions,
            "diff": self.diff,
            "restart_pending": self.restart_pending,
            "verdicts": self.verdicts,
        }

    def finish(self, stopping: list[str], observed: Mapping[str, _converge.Observed]) -> None:
        result = self.result()
        if self.restart_pending:
            result["warnings"] = [
                f"restart pending: {name} (vllm_service_allow_restart is false)" for name in self.restart_pending
            ]
        waiting = [f"{name} stopping" for name in stopping]
        for name, verdict in self.verdicts.items():
            if verdict != "serving" and name not in self.restart_pending:
                status = _converge.steady(observed[name].status) or verdict
                waiting.append(f"{name} {'waits for its turn' if verdict == 'outdated' else status}")
        if waiting and not self.check:
            result.update(pending=True, status="; ".join(waiting), poll_args={"started": self.started})
        self.module.exit_json(**result)

    def fail(self, name: str, observed: _converge.Observed) -> None:
        invocation = self.show(unit_of(name))["InvocationID"]
        lines = _systemd.journal(unit_of(name), JOURNAL_LINES, invocation, self.runner)
        words = "\n".join(lines) or "(no line in the journal)"
        said = f" {observed.status}." if observed.status else ""
        self.module.fail_json(
            msg=f"{name} does not start: unit {observed.active}, {observed.restarts} automatic restarts.{said} "
            f"Its last words:\n{words}\nMend the cause and run again; all of it: journalctl -u {unit_of(name)}",
            **self.result(),
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "units": {"type": "dict", "required": True},
            "launcher": {"type": "dict", "required": True},
            "allow_restart": {"type": "bool", "default": True},
            "started": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    # Under a stricter umask of root's the engine's account could not enter the folders made here.
    os.umask(0o022)
    with LOCK.open("w", encoding="utf-8") as lock:
        # Two plays at once take turns, pass by pass.
        fcntl.flock(lock, fcntl.LOCK_EX)
        Converge(module).run()


if __name__ == "__main__":
    main()
