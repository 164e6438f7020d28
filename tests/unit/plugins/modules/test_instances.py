"""The module `instances` against a folder in place of the host's / and a systemd that only remembers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.modules import instances as module_under_test

UNITS = {"vllm@.service": "[Service]\nExecStart=/usr/local/bin/vllm-start %i\n", "vllm.target": "[Unit]\n"}


class ModuleEndedError(Exception):
    """The module ended with this result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class FakeHost:
    """Remembers units; `load` plays the part of the launcher that has its first token."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.active: dict[str, str] = {}
        self.enabled: set[str] = set()
        self.calls: list[str] = []

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        verb, *rest = [word for word in argv[1:] if not word.startswith("-")]
        if argv[0] == "journalctl":
            return 0, "INFO loading\nValueError: no such thing\n", ""
        if verb == "show":
            unit = rest[-1]
            enabled = "enabled" if unit in self.enabled else "disabled"
            state = self.active.get(unit, "inactive")
            return (
                0,
                f"ActiveState={state}\nNRestarts=0\nStatusText=\nNeedDaemonReload=no\nUnitFileState={enabled}\n",
                "",
            )
        self.calls.append(" ".join([verb, *rest]))
        for unit in rest:
            if verb == "enable":
                self.enabled.add(unit)
            elif verb == "disable":
                self.enabled.discard(unit)
            elif verb == "restart":
                self.active[unit] = "activating"
            elif verb == "start":
                self.active[unit] = "active"
            elif verb == "stop":
                self.active[unit] = "inactive"
        return 0, "", ""

    def load(self, name: str) -> None:
        told = json.loads((self.root / "etc/instances" / name / "instance.json").read_text())
        record = self.root / "run" / name / "state.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"state": "serving", "digest": told["digest"]}))
        self.active[f"vllm@{name}.service"] = "active"

    def run(self, *names: str, **params: Any) -> dict[str, Any]:
        """One call of the module, serving these instances."""
        arguments = {
            "instances": [instance(name) for name in names],
            "units": UNITS,
            "launcher": {"start_timeout_s": 900},
            "allow_restart": True,
            "started": {},
            **params,
        }
        with pytest.raises(ModuleEndedError) as ended:
            module_under_test.Converge(FakeModule(self, arguments)).run()  # type: ignore[arg-type]
        return ended.value.result


class FakeModule:
    def __init__(self, host: FakeHost, params: dict[str, Any]) -> None:
        self.check_mode = bool(params.pop("check", False))
        self.params = params
        self.run_command = host.run_command

    def exit_json(self, **result: Any) -> None:
        raise ModuleEndedError(result)

    def fail_json(self, **result: Any) -> None:
        raise ModuleEndedError({"failed": True, **result})


def instance(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model_name": name.rpartition("-")[0],
        "model": "/srv/models/m",
        "path": "/srv/models/m",
        "served_as": ["m"],
        "address": "127.0.0.1",
        "port": 8000,
        "gpus": [],
        "engine_args": {"shutdown-timeout": 60},
        "env": {"A": "1"},
    }


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    for name, place in {
        "UNITS": "units",
        "ETC": "etc",
        "RUN": "run",
        "CACHE": "cache",
        "ENGINE": "engine",
        "LAUNCHER": "launcher",
    }.items():
        monkeypatch.setattr(module_under_test, name, tmp_path / place)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secrets").write_text(f'VLLM_API_KEY="{"k" * 43}"\n')
    (tmp_path / "launcher").write_text("#!/usr/bin/python3\n")
    return FakeHost(tmp_path)


def serve(host: FakeHost, *names: str) -> None:
    host.run(*names)
    for name in names:
        host.load(name)


def test_a_bare_host_gets_files_units_and_a_start(host: FakeHost) -> None:
    result = host.run("a-0")
    assert result["pending"] is True
    assert result["status"] == "a-0 loading"
    assert host.calls == [
        "daemon-reload",
        "enable vllm.target vllm@a-0.service",
        "reset-failed vllm@a-0.service",
        "restart vllm@a-0.service",
        "start vllm.target",
    ]
    assert json.loads((host.root / "etc/instances.json").read_text())["instances"][0]["port"] == 8000
    assert 'model: "/srv/models/m"' in (host.root / "etc/instances/a-0/engine.yaml").read_text()
    assert (host.root / "etc/instances/a-0/env").stat().st_mode & 0o777 == 0o600


def test_a_second_run_does_nothing(host: FakeHost) -> None:
    serve(host, "a-0")
    host.calls.clear()
    result = host.run("a-0")
    assert (result["changed"], result["actions"], host.calls) == (False, [], [])
    assert result["verdicts"] == {"a-0": "serving"}
    assert "pending" not in result


def test_a_play_killed_before_the_restart_is_cured(host: FakeHost) -> None:
    serve(host, "a-0")
    changed = {**instance("a-0"), "engine_args": {"max-model-len": 5}}
    # As if the earlier play had written everything, and was killed before its restart.
    host.run(instances=[changed], allow_restart=False)
    host.calls.clear()
    result = host.run(instances=[changed])
    assert result["actions"] == ["restart a-0"]
    assert "restart vllm@a-0.service" in host.calls


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "launcher").write_text("#!/usr/bin/python3 -I\n"),
        lambda root: (root / "etc/secrets").write_text(f'VLLM_API_KEY="{"n" * 43}"\n'),
        lambda root: (root / "engine").symlink_to(root / "0.33.0-cpu"),
        lambda root: (
            (root / "units/vllm@a-0.service.d").mkdir(),
            (root / "units/vllm@a-0.service.d/own.conf").write_text("[Service]\n"),
        ),
    ],
    ids=["launcher", "engine key", "engine", "drop-in"],
)
def test_whatever_makes_the_instance_what_it_is_restarts_it(host: FakeHost, change: Any) -> None:
    serve(host, "a-0")
    change(host.root)
    assert "restart a-0" in host.run("a-0")["actions"]


def test_a_new_hub_token_restarts_nothing(host: FakeHost) -> None:
    serve(host, "a-0")
    secrets = host.root / "etc/secrets"
    secrets.write_text('HF_TOKEN="new"\n' + secrets.read_text())
    assert host.run("a-0")["changed"] is False


def test_without_consent_a_change_is_staged_and_told_on_every_run(host: FakeHost) -> None:
    serve(host, "a-0")
    changed = [{**instance("a-0"), "engine_args": {"max-num-seqs": 9}}]
    for _run in range(2):
        host.calls.clear()
        result = host.run(instances=changed, allow_restart=False)
        assert result["restart_pending"] == ["a-0"]
        assert result["warnings"] == ["restart pending: a-0 (vllm_service_allow_restart is false)"]
        assert "pending" not in result and host.calls == []
    assert "max-num-seqs: 9" in (host.root / "etc/instances/a-0/engine.yaml").read_text()


@pytest.mark.parametrize(("key", "value"), [("port", 8009), ("served_as", ["other"])])
def test_without_consent_the_proxy_is_not_sent_elsewhere(host: FakeHost, key: str, value: Any) -> None:
    serve(host, "a-0")
    before = (host.root / "etc/instances/a-0/engine.yaml").read_text()
    result = host.run(instances=[{**instance("a-0"), key: value}], allow_restart=False)
    assert result["failed"] is True
    assert f"a-0: {key} " in result["msg"] and "vllm_service_allow_restart is false" in result["msg"]
    assert (host.root / "etc/instances/a-0/engine.yaml").read_text() == before


def test_a_longer_drain_of_one_model_restarts_no_other(host: FakeHost) -> None:
    serve(host, "a-0")
    host.calls.clear()
    host.run(instances=[instance("a-0"), {**instance("b-0"), "engine_args": {"shutdown-timeout": 600}}])
    assert not any("a-0" in call for call in host.calls)


@pytest.mark.parametrize("record", ["[]", '"x"', "[" * 100_000, "{", '{"state": ["serving"], "digest": null}'])
def test_a_record_that_is_none_is_no_record(host: FakeHost, record: str) -> None:
    serve(host, "a-0")
    (host.root / "run/a-0/state.json").write_text(record)
    assert "restart a-0" in host.run("a-0")["actions"]


def test_what_is_no_plain_file_is_not_waited_for(host: FakeHost) -> None:
    serve(host, "a-0")
    record = host.root / "run/a-0/state.json"
    record.unlink()
    os.mkfifo(record)
    assert "restart a-0" in host.run("a-0")["actions"]
    record.unlink()
    record.symlink_to("/dev/zero")
    host.active["vllm@a-0.service"] = "active"
    assert "restart a-0" in host.run("a-0")["actions"]


def test_a_second_model_leaves_the_first_alone(host: FakeHost) -> None:
    serve(host, "a-0")
    host.calls.clear()
    host.run("a-0", "b-0")
    assert not any("a-0" in call for call in host.calls)
    assert "restart vllm@b-0.service" in host.calls


def test_an_instance_no_longer_planned_goes_before_another_starts(host: FakeHost) -> None:
    serve(host, "a-0")
    first = host.run("b-0")
    assert first["status"] == "a-0 stopping; b-0 waits for its turn"
    assert "vllm@a-0.service" not in host.enabled
    assert "restart b-0" not in first["actions"] and "start b-0" not in first["actions"]
    second = host.run("b-0")
    assert second["actions"][:1] == ["remove a-0"]
    assert "start b-0" in second["actions"]
    assert not (host.root / "etc/instances/a-0").exists()


def test_check_mode_tells_and_touches_nothing(host: FakeHost) -> None:
    result = host.run("a-0", check=True)
    assert "start a-0" in result["actions"] and result["changed"] is True
    assert host.calls == []
    assert not (host.root / "etc/instances.json").exists()
    shown = json.dumps(result["diff"])
    assert "vllm@.service" in shown and "k" * 43 not in shown


def test_a_start_that_fails_ends_with_the_engines_words(host: FakeHost) -> None:
    started = host.run("a-0")["poll_args"]["started"]
    host.active["vllm@a-0.service"] = "failed"
    result = host.run("a-0", started=started)
    assert result["failed"] is True
    assert "ValueError: no such thing" in result["msg"]
    assert "journalctl -u vllm@a-0.service" in result["msg"]
    # The next play tries again.
    assert "start a-0" in host.run("a-0")["actions"]


def test_no_engine_key_stops_before_anything_starts(host: FakeHost) -> None:
    (host.root / "etc/secrets").write_text('VLLM_API_KEY=""\n')
    result = host.run("a-0")
    assert result["failed"] is True and "VLLM_API_KEY" in result["msg"]
    assert host.calls == []
    assert not (host.root / "etc/instances.json").exists()
