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
    again, whatever an earlier run left undone. A record is not believed that names another digest than this start of the unit was given.
  - What serves is kept under C(/var/lib/vllm/instances). Where wanted settings do not start, the instance goes back to the files and the engine that
    it served with last, and the task fails when it serves again, with the engine's own words. That digest is not tried again, on this run or a later
    one, until it changes or O(retry_failed) is true; every run fails over it and says what serves. Unit, launcher and secrets are the host's and
    stay as they are wanted.
  - Where nothing has served before, or that does not start either, every run tries anew, and systemd's start limit ends each try.
  - Other instances go on. Only a replica that is up is left as it is when another one of its model has failed, and so is an instance that was to get
    a port or a GPU of an instance that went back.
  - Where the weights that an instance is to start with are not there, or their download has not ended, nothing is changed and the task fails.
  - Instances that are no longer listed are stopped, disabled and removed. Their weights stay.
  - The action plugin of the same name calls the module until every instance serves, and shows the loading progress.
author:
  - The gpuops.vllm authors (@gpuops)
extends_documentation_fragment: [gpuops.vllm.claim]
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
  weights:
    description:
      - The models of the hub that they serve, as the C(vllm_plan) role computes them, each with C(path), C(format) and C(present).
      - One that was not C(present) must be whole and verified by now. Of a model that is not listed, only the folder is looked for.
    type: list
    elements: dict
    default: []
  units:
    description: Content of each unit file in C(/etc/systemd/system), by file name.
    type: dict
    required: true
  launcher:
    description: Time limits handed to C(vllm-start), in seconds, C(start_timeout_s), C(start_limit_s), C(stall_timeout_s) and C(drain_notice_s).
    type: dict
    required: true
  upcoming:
    description:
      - "What the same run puts on the host before it comes to this module: C(engine), the environment that C(/opt/vllm/current) leads to then, and
        C(launcher_sha256), the SHA-256 of C(/usr/local/bin/vllm-start). Where one is empty or left out, what is there stays."
      - Looked at in check mode only, in which nothing was put there.
    type: dict
    default: {}
  allow_restart:
    description:
      - Whether a serving instance may be restarted. If not, the change is staged and reported as C(restart_pending).
      - A change that the proxy would follow at once, of port, names or the engine's key, is refused then.
    type: bool
    default: true
  retry_failed:
    description: Whether to try a digest again that has failed on an earlier run.
    type: bool
    default: false
  started:
    description: Digests that earlier calls of the same task have started. Set by the action plugin, not by users.
    type: dict
    default: {}
  tried:
    description: Digests that earlier calls of the same task have seen fail. Set by the action plugin, not by users.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Serve what the plan says
  gpuops.vllm.instances:
    instances: "{{ vllm_service_instances }}"
    weights: "{{ vllm_service_weights }}"
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
  description:
    - State of each instance against its wanted digest.
    - V(failed) does not start so, and what served before serves, if anything; V(held) is left as it is because of another that has failed.
  returned: always
  type: dict
  sample: {"llama-0": "serving"}
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import (
    _claim,
    _converge,
    _engine_file,
    _secrets,
    _systemd,
    _weights,
)
from ansible_collections.gpuops.vllm.plugins.module_utils._files import (
    disk_trouble,
    read_text,
    read_untrusted,
    shown,
    write_atomic,
)

UNITS = Path("/etc/systemd/system")
ETC = Path("/etc/vllm")
STATE = Path("/var/lib/vllm/instances")
RUN = Path("/run/vllm")
CACHE = Path("/var/cache/vllm")
LAUNCHER = Path("/usr/local/bin/vllm-start")
ENGINE = Path("/opt/vllm/current")
PROC = Path("/proc")
TARGET = "vllm.target"
PROPERTIES = (
    "ActiveState",
    "NRestarts",
    "StatusText",
    "NeedDaemonReload",
    "UnitFileState",
    "InvocationID",
    "Job",
    "MainPID",
)
JOURNAL_LINES = 12
#: What an entry of instances.json says of the weights.
WEIGHTS = ("model", "revision", "commit", "path")
#: Characters of the engine's words that are kept.
WORDS = 4000


def unit_of(name: str) -> str:
    return f"vllm@{name}.service"


@dataclass(frozen=True)
class Wanted:
    """An instance as it is to be: its digest, its files by name, and its entry in instances.json."""

    digest: str
    files: dict[str, str]
    entry: dict[str, Any]


@dataclass
class Instance:
    """An instance in one pass: what is wanted, what the host shows, and what is decided from that."""

    wanted: Wanted
    observed: _converge.Observed
    served: _converge.Served | None
    failed: _converge.Failed | None
    #: Against the wanted digest, and against the one that it is led to now, which may be that of before.
    verdict: _converge.Verdict
    move: _converge.Verdict
    #: What it goes back to, who has its port or a GPU of it by now, and because of whom it stays as it is.
    back: _converge.Served | None = None
    taken_by: str = ""
    held_by: str = ""
    needs_consent: bool = False

    @property
    def goal(self) -> Wanted | _converge.Served:
        """What it is led to now."""
        return self.back or self.wanted


class Converge:
    """One pass over the host. Every step looks first, so that a pass that was cut off anywhere is taken up by the next."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check: bool = module.check_mode
        self.weights: list[dict[str, Any]] = module.params["weights"]
        self.started: dict[str, str] = dict(module.params["started"])
        self.tried: dict[str, str] = dict(module.params["tried"])
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.key = ""
        self.entries: dict[str, dict[str, Any]] = {}
        self.instances: dict[str, Instance] = {}

    def run(self) -> None:
        self.key = self.engine_key()
        self.entries = self.assigned()
        self.instances = {one["name"]: self.look(one) for one in self.module.params["instances"]}
        self.judge()
        self.refuse_missing_weights()
        self.ask_for_consent()
        if self.write_units() or any(self.needs_reload(unit) for unit in [TARGET, *map(unit_of, self.instances)]):
            self.systemctl("daemon-reload")
        leaving = sorted(set(self.present()) - set(self.instances))
        stopping = [name for name in leaving if self.remove(name)]
        chosen = [] if stopping else self.choose()
        self.enable(self.write_instances(chosen))
        if not stopping:
            self.start(chosen)
        self.finish(stopping)

    # --- what is wanted, and what is there ---

    def look(self, planned: Mapping[str, Any]) -> Instance:
        name = planned["name"]
        wanted, observed = self.render(planned), self.observe(name)
        served = self.last_served(name, wanted, observed)
        failed = _converge.parse_failed(read_text(STATE / name / "failed.json") or "")
        verdict = _converge.judge(wanted.digest, observed, self.started.get(name))
        return Instance(wanted, observed, served, failed, verdict, move=verdict)

    def render(self, instance: Mapping[str, Any]) -> Wanted:
        engine, environment = _engine_file.engine_yaml(instance), _engine_file.environment(instance)
        launcher = {
            **self.module.params["launcher"],
            "shutdown_timeout_s": int(instance["engine_args"].get("shutdown-timeout", 0)),
            # The environment itself, not the link of the moment: going back is going back to this one.
            "engine": os.path.realpath(self.upcoming("engine") or ENGINE),
        }
        digest = _converge.digest(
            {
                "engine.yaml": engine,
                "env": environment,
                "launcher": _engine_file.launcher_json(instance, "", launcher),
                "unit": self.module.params["units"].get("vllm@.service", ""),
                "drop-ins": self.drop_ins(instance["name"]),
                "vllm-start": self.launcher(),
                "key": self.key,
            }
        )
        told = _engine_file.launcher_json(instance, digest, launcher)
        # Without the plan's reasoning, which follows what the hub and the GPUs say today.
        entry = {key: instance[key] for key in instance if key not in ("fit", "engine_args_from")}
        return Wanted(digest, {"engine.yaml": engine, "env": environment, "instance.json": told}, entry)

    def upcoming(self, what: str) -> str:
        return str(self.module.params["upcoming"].get(what, "")) if self.check else ""

    def launcher(self) -> str:
        """The launcher's text; in check mode the checksum of one that would be here by now stands for it."""
        text, upcoming = read_text(LAUNCHER) or "", self.upcoming("launcher_sha256")
        there = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        return text if upcoming in ("", there) else upcoming

    def drop_ins(self, name: str) -> str:
        folders = [UNITS / "vllm@.service.d", UNITS / f"{unit_of(name)}.d"]
        return "\n".join(read_text(file) or "" for folder in folders for file in sorted(folder.glob("*.conf")))

    def secrets(self) -> dict[str, str]:
        return _secrets.parse(read_text(ETC / "secrets") or "")

    def engine_key(self) -> str:
        if self.check:
            # Or the one that would have been made by now.
            return _secrets.wanted(self.secrets(), {})[_secrets.ENGINE_KEY]
        key = self.secrets().get(_secrets.ENGINE_KEY, "")
        if not key:
            self.module.fail_json(
                msg=f"{ETC}/secrets holds no VLLM_API_KEY: vLLM would answer anybody. Run the role vllm_secrets first."
            )
        return key

    def present(self) -> list[str]:
        folder = ETC / "instances"
        return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []

    def assigned(self) -> dict[str, dict[str, Any]]:
        """What instances.json says now, by name."""
        found: Any = _converge.parse_json(read_text(ETC / "instances.json") or "").get("instances")
        whole = isinstance(found, list) and all(isinstance(one, dict) and "name" in one for one in found)
        if not whole:
            return {}
        return {str(one["name"]): one for one in found}

    def last_served(self, name: str, wanted: Wanted, observed: _converge.Observed) -> _converge.Served | None:
        """What served last, written down where that is new. Bookkeeping: it does not count as a change of the host."""
        path = STATE / name / "served.json"
        stored = _converge.parse_served(read_text(path) or "")
        files = {file: read_text(ETC / "instances" / name / file) or "" for file in _converge.FILES}
        told = _converge.parse_json(files["instance.json"])
        if not observed.serves or observed.digest != told.get("digest"):
            return stored
        since = now()
        if stored and stored.digest == observed.digest:
            # The same digest is the same files; on disk those of a run that was cut off may lie among them.
            since, files = stored.since, stored.files
        # The launcher's own file is the truth of what runs; instances.json is written at another moment.
        own = {field: told[field] for field in ("name", "address", "port", "served_as", "gpus") if field in told}
        entry: dict[str, Any] = self.entries.get(name, wanted.entry) | own
        current = _converge.Served(observed.digest, since, files, entry)
        if current != stored:
            self.keep(path, current)
        return current

    def keep(self, path: Path, record: _converge.Served | _converge.Failed | _converge.Begun) -> None:
        if not self.check:
            # Environments and the engine's words are for root alone.
            STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, _converge.dump(record), 0o600)

    # --- decisions ---

    def judge(self) -> None:
        for name, digest in self.started.items():
            if name in self.instances and _converge.led_away(digest, self.instances[name].observed):
                self.module.fail_json(
                    msg=f"{name} was stopped, or started with other settings, by somebody else while this run waited for it; nothing more is done "
                    "here. Run again if yours should win.",
                    **self.result(),
                )
        for name, one in self.instances.items():
            digest = one.wanted.digest
            if one.verdict == "serving":
                one.failed = None
                if not self.check:
                    (STATE / name / "failed.json").unlink(missing_ok=True)
            elif one.verdict == "failed" and self.tried.get(name) != digest:
                self.tried[name] = digest
                self.note(name, _converge.Failed(digest, now(), self.last_words(name)))
        for name, one in self.instances.items():
            if one.verdict != "serving":
                self.look_back(name, one)
        self.hold()

    def look_back(self, name: str, one: Instance) -> None:
        """Lead an instance whose wanted digest has failed to what served before, where there is something."""
        digest, record, served = one.wanted.digest, one.failed, one.served
        if record is None or record.digest != digest:
            return
        here = self.tried.get(name) == digest
        if here:
            one.verdict = one.move = "failed"
        if served is None or served.digest == digest:
            return
        one.taken_by = next(
            (
                taker
                for taker, other in self.instances.items()
                if taker != name
                and other.verdict in ("serving", "loading")
                and _converge.takes_from(other.wanted.entry, one.wanted.entry, served.entry)
            ),
            "",
        )
        if one.taken_by:
            return
        move = _converge.judge(served.digest, one.observed, self.started.get(name))
        # Where what served before did not start either, a later run begins anew: there is nothing to lose.
        known = not self.module.params["retry_failed"] and (not record.back or move in ("serving", "loading"))
        if not here and not known:
            return
        one.verdict, one.move, one.back = "failed", move, served
        if move == "failed" and not record.back:
            self.note(name, replace(record, back=self.last_words(name)))

    def hold(self) -> None:
        """Leave as it is what must wait for one that has failed."""
        failed = [name for name, one in self.instances.items() if one.verdict == "failed"]
        for name, culprit in self.held_back(failed).items():
            one = self.instances[name]
            one.held_by, one.verdict, one.move = culprit, "held", "held"

    def held_back(self, culprits: list[str]) -> dict[str, str]:
        """What cannot be led on as long as these stay as they are, each with its culprit."""
        if not culprits:
            return {}
        wanted = [one.wanted.entry for one in self.instances.values()]
        # One that has another key than the proxy comes with serves nobody.
        up = [name for name, one in self.instances.items() if one.observed.up and not self.has_old_key(name)]
        return _converge.held_back(wanted, self.verdicts(), culprits, up, self.kept())

    def verdicts(self) -> dict[str, _converge.Verdict]:
        return {name: one.verdict for name, one in self.instances.items()}

    def kept(self) -> dict[str, dict[str, Any]]:
        """The entries with which instances have served, as far as they still may be needed."""
        return {
            name: one.served.entry
            for name, one in self.instances.items()
            if one.served and (one.back or one.move != "failed")
        }

    def refuse_missing_weights(self) -> None:
        """A start without the weights would be taken for settings that failed, and not be tried again once they are there."""
        outdated = {name: one.wanted.entry for name, one in self.instances.items() if one.verdict == "outdated"}
        missing = [f"{name} {lack}" for name, entry in outdated.items() if (lack := self.lack_of_weights(entry))]
        if missing and not self.check:
            self.module.fail_json(msg="\n".join([*missing, "Nothing was changed."]), **self.result())

    def lack_of_weights(self, entry: Mapping[str, Any]) -> str:
        """What there is not yet of the weights that an instance is to start with, and what brings it; "" where all is there."""
        model, path, form = entry["model"], entry["path"], _weights.form_of(entry["engine_args"])
        hub = bool(entry.get("commit"))
        way = (
            "Run site.yml with --tags weights,service."
            if hub
            else "Put the model there, or correct vllm_models[].model."
        )
        if not is_folder(path):
            return f"is to serve {model}: {path} is not on this host. {way}"
        # Where there is no hub to verify it by, the plan calls present what it finds nothing wrong with.
        taken = all(one["present"] for one in self.weights if (one["path"], one["format"]) == (path, form))
        if taken or _weights.is_whole(path, form):
            return ""
        return f"is to serve {model}, whose download has not ended: {_weights.stamp_of(path, form)} is not there, or what it lists is not. {way}"

    def ask_for_consent(self) -> None:
        """Without consent to restart, say what waits for it, and refuse what cannot wait."""
        if self.module.params["allow_restart"]:
            return
        pending = [name for name, one in self.instances.items() if one.observed.up and one.move == "outdated"]
        for name in pending:
            self.refuse_another_address(name, self.instances[name])
            self.refuse_another_key(name)
        # Also what would get the port or the GPU of one of them.
        for name in [*pending, *self.held_back(pending)]:
            self.instances[name].needs_consent = True

    def refuse_another_address(self, name: str, one: Instance) -> None:
        """An engine that is not restarted keeps its port and names: the proxy would look for it elsewhere."""
        told = _converge.parse_json(read_text(ETC / "instances" / name / "instance.json") or "")
        for key in ("port", "served_as"):
            if told and not one.back and told.get(key) != one.wanted.entry[key]:
                self.module.fail_json(
                    msg=f"{name}: {key} {told.get(key)} -> {one.wanted.entry[key]} needs a restart, and vllm_service_allow_restart "
                    "is false. Allow it, or take the change back. Nothing was changed.",
                    **self.result(),
                )

    def refuse_another_key(self, name: str) -> None:
        """An engine that is not restarted keeps its key as well: the proxy would come with one that it does not know."""
        if self.has_old_key(name):
            self.module.fail_json(
                msg=f"{name} has the {_secrets.ENGINE_KEY} that it was started with, {ETC}/secrets holds a new one, and vllm_service_allow_restart is false: "
                f"with the new one the proxy would get 401 for every request. It keeps the old one, which works until something else restarts {name}. "
                "Run with vllm_service_allow_restart: true. No instance was changed.",
                **self.result(),
            )

    def has_old_key(self, name: str) -> bool:
        return self.key_at_start(name) not in ("", self.key)

    def key_at_start(self, name: str) -> str:
        """The key that an instance's main process was given, "" where that cannot be told."""
        try:
            given = (PROC / self.show(unit_of(name))["MainPID"] / "environ").read_bytes()
        except OSError:
            return ""
        return _secrets.of_process(given)

    def restart_pending(self) -> list[str]:
        return [name for name, one in self.instances.items() if one.needs_consent]

    def choose(self) -> list[str]:
        """What is (re)started now. What goes back to what served before comes first."""
        ordered = sorted(self.instances.items(), key=lambda item: item[1].back is None)
        entries = [one.goal.entry for _name, one in ordered]
        moves = {name: one.move for name, one in ordered if not one.needs_consent}
        up = [name for name, one in self.instances.items() if one.observed.up]
        return _converge.startable(entries, moves, up, self.kept())

    # --- files ---

    def write(self, path: Path, content: str, mode: int = 0o644, show: bool = False) -> bool:
        before = read_text(path)
        # A wrong mode is repaired by writing the file anew, owned by root.
        if before == content and path.stat().st_mode & 0o7777 == mode:
            return False
        self.actions.append(f"write {path}")
        if show:
            self.diff.append(
                {"before_header": str(path), "after_header": str(path), "before": shown(before or ""), "after": content}
            )
        if not self.check:
            write_atomic(path, content, mode)
        return True

    def write_units(self) -> bool:
        written = [
            self.write(UNITS / name, content, show=True) for name, content in self.module.params["units"].items()
        ]
        return any(written)

    def write_instances(self, chosen: list[str]) -> list[str]:
        """Write the files of each instance as it is or is to be now, and what is assigned with that; return the instances that are there.

        What waits for its turn or is held back keeps its files, port and GPUs: a reboot brings up what served.
        """
        entries = []
        for name, one in self.instances.items():
            waits = one.move in ("outdated", "held", "stopping") and name not in chosen
            # Without consent to restart, the change is staged for the next start.
            staged = one.needs_consent and one.observed.up and not one.back
            if staged:
                self.write_files(name, one.wanted.files)
                # Port and names are the same. The weights are those of the next start, and so those that the next plan goes on with.
                weights = {key: one.wanted.entry[key] for key in WEIGHTS if key in one.wanted.entry}
                entries.append(self.entries.get(name, one.wanted.entry) | weights)
            elif one.back or not waits or (self.check and one.move != "held"):
                self.write_files(name, one.goal.files)
                entries.append(one.goal.entry)
            elif name in self.entries:
                entries.append(self.entries[name])
        text = json.dumps({"version": 1, "instances": entries}, indent=2, sort_keys=True) + "\n"
        self.write(ETC / "instances.json", text, mode=0o600)
        return [entry["name"] for entry in entries]

    def write_files(self, name: str, files: Mapping[str, str]) -> None:
        for file, mode in _converge.FILES.items():
            self.write(ETC / "instances" / name / file, files[file], mode, show=file == "engine.yaml")

    # --- systemd ---

    def runner(self, argv: list[str]) -> _systemd.Result:
        status, out, err = self.module.run_command(argv)
        return int(status), str(out), str(err)

    def systemctl(self, *arguments: str) -> None:
        if self.check:
            return
        status, out, err = self.runner(["systemctl", *arguments])
        if status != 0:
            self.module.fail_json(
                msg=f"systemctl {' '.join(arguments)}: {(err or out).strip()}. What systemd itself says: journalctl --boot _PID=1 --lines=20, on the host. "
                "When the cause is gone, run the play again: it takes up what is left.",
                **self.result(),
            )

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
        believed = record["digest"] == self.begun(name, properties["InvocationID"])
        return _converge.Observed(
            active=properties["ActiveState"],
            restarts=int(properties["NRestarts"] or 0),
            state=record["state"],
            digest=record["digest"] if believed else "",
            status=properties["StatusText"],
            job=properties["Job"] not in ("", "0"),
        )

    def begun(self, name: str, invocation: str) -> str:
        """The digest that this start of the unit was given, which the engine's account cannot make another.

        The launcher reads it once, as it starts. What was on disk when a play first looked is that: it looks before it writes.
        """
        path = STATE / name / "begun.json"
        stored = _converge.parse_begun(read_text(path) or "")
        if stored and stored.invocation == invocation:
            return stored.digest
        told = _converge.parse_json(read_text(ETC / "instances" / name / "instance.json") or "")
        current = _converge.Begun(invocation, str(told.get("digest", "")))
        if invocation:
            self.keep(path, current)
        return current.digest

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
            for folder in (CACHE, RUN, STATE):
                shutil.rmtree(folder / name, ignore_errors=True)
            # Last: as long as it is there, a removal that was cut off is taken up again.
            shutil.rmtree(ETC / "instances" / name)
        return False

    def start(self, chosen: list[str]) -> None:
        for name in chosen:
            one = self.instances[name]
            verb = "restart" if one.observed.running else "start"
            self.actions.append(f"{verb} {name}{' with what served before' if one.back else ''}")
            if not self.check:
                # Forget earlier failures: the start limit counts ours as well.
                self.runner(["systemctl", "reset-failed", unit_of(name)])
            self.systemctl("restart", "--no-block", unit_of(name))
            self.started[name] = one.goal.digest
            one.move = "loading"
            if not one.back:
                one.verdict = "loading"
        target = self.show(TARGET)
        # Queued until every instance has loaded: a start of it would be one of each instance that has failed as well.
        if target["ActiveState"] not in ("active", "activating") and target["Job"] in ("", "0"):
            self.actions.append(f"start {TARGET}")
            self.systemctl("start", "--no-block", TARGET)

    # --- results ---

    def result(self) -> dict[str, Any]:
        return {
            "changed": bool(self.actions),
            "actions": self.actions,
            "diff": self.diff,
            "restart_pending": self.restart_pending(),
            "verdicts": self.verdicts(),
        }

    def finish(self, stopping: list[str]) -> None:
        result = self.result()
        if result["restart_pending"]:
            result["warnings"] = [
                f"restart pending: {name} (vllm_service_allow_restart is false)" for name in result["restart_pending"]
            ]
        waiting = [f"{name} stopping" for name in stopping]
        for name, one in self.instances.items():
            if one.move in ("loading", "stopping", "outdated") and not one.needs_consent:
                status = _converge.steady(one.observed.status) or one.move
                progress = "waits for its turn" if one.move == "outdated" else status
                waiting.append(f"{name} {'does not start, goes back: ' if one.back else ''}{progress}")
        if waiting and not self.check:
            result.update(
                pending=True,
                status="; ".join(waiting),
                poll_args={"started": self.started, "tried": self.tried},
            )
            self.module.exit_json(**result)
        complaints = [self.complaint(name, one) for name, one in self.instances.items() if one.verdict == "failed"]
        if complaints:
            complaints += [
                f"{name} stays as it is, because of {one.held_by}: settings that failed there, or a port or GPU that stays there."
                for name, one in self.instances.items()
                if one.held_by
            ]
            self.module.fail_json(msg="\n".join(complaints), **result)
        self.module.exit_json(**result)

    def complaint(self, name: str, one: Instance) -> str:
        record = one.failed or _converge.Failed(one.wanted.digest, now(), "(not recorded)")
        return _converge.failure_text(name, record, one.back, one.move, name in self.started, one.taken_by)

    def note(self, name: str, record: _converge.Failed) -> None:
        self.instances[name].failed = record
        self.keep(STATE / name / "failed.json", record)

    def last_words(self, name: str) -> str:
        """Why an instance does not start, by its launcher and its engine, without the host's secrets."""
        observed, unit = self.instances[name].observed, unit_of(name)
        # After an automatic restart the reason stands in what the start before said.
        invocation = "" if observed.restarts else self.show(unit)["InvocationID"]
        lines = _systemd.journal(unit, JOURNAL_LINES, invocation, self.runner)
        said = f" {observed.status}." if observed.status else ""
        words = "\n".join(lines) or "(no line in the journal)"
        text = f"unit {observed.active}, {observed.restarts} automatic restarts.{said} Its last words:\n{words}"
        return _converge.scrubbed(text, self.secrets().values())[-WORDS:]


def is_folder(path: str) -> bool:
    return Path(path).is_dir()


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "weights": {"type": "list", "elements": "dict", "default": []},
            "units": {"type": "dict", "required": True},
            "launcher": {"type": "dict", "required": True},
            "upcoming": {"type": "dict", "default": {}},
            "allow_restart": {"type": "bool", "default": True},
            "retry_failed": {"type": "bool", "default": False},
            "claim": {"type": "str", "default": ""},
            "started": {"type": "dict", "default": {}},
            "tried": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    # Under a stricter umask of root's the engine's account could not enter the folders made here.
    os.umask(0o022)
    converge = Converge(module)
    try:
        # Two plays at once take turns, pass by pass.
        with _claim.turn(module.params["claim"], module.check_mode):
            converge.run()
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=disk_trouble(error), **converge.result())


if __name__ == "__main__":
    main()
