"""The module `instances` against a folder in place of the host's / and a systemd that only remembers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim, _weights
from ansible_collections.gpuops.vllm.plugins.modules import instances as module_under_test

COMMIT = "c" * 40
LAUNCHER = "#!/usr/bin/python3\n"
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
        #: An engine file with one of these words does not start.
        self.bad: list[str] = []
        self.journal = "INFO loading\nValueError: no such thing\n"
        self.restarts = 0
        #: How often each unit has started.
        self.starts: dict[str, int] = {}
        #: The main process of each unit's last start.
        self.pids: dict[str, int] = {}
        #: The verb that systemctl does not do.
        self.refused = ""

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        verb, *rest = [word for word in argv[1:] if not word.startswith("-")]
        if argv[0] == "journalctl":
            earlier = (
                ""
                if any(word.startswith("_SYSTEMD_INVOCATION_ID=start") for word in argv)
                else "ValueError: said by the start before\n"
            )
            return 0, earlier + self.journal, ""
        if verb == "show":
            unit = rest[-1]
            enabled = "enabled" if unit in self.enabled else "disabled"
            if self.active.get(unit) == "queued" and "activating" not in self.active.values():
                self.active[unit] = "active"
            state = self.active.get(unit, "inactive")
            return (
                0,
                f"ActiveState={'inactive' if state == 'queued' else state}\nNRestarts={self.restarts}\nStatusText=\nNeedDaemonReload=no\nUnitFileState={enabled}\n"
                f"InvocationID={f'start{self.starts[unit]}' if unit in self.starts else ''}\n"
                f"Job={'7' if state == 'queued' else ''}\nMainPID={self.pids.get(unit, 0)}\n",
                "",
            )
        self.calls.append(" ".join([verb, *rest]))
        if verb == self.refused:
            return 1, "", "Failed: Transport endpoint is not connected\n"
        for unit in rest:
            if verb == "enable":
                self.enabled.add(unit)
            elif verb == "disable":
                self.enabled.discard(unit)
            elif verb == "restart":
                self.active[unit] = "activating"
                self.begin(unit)
            elif verb == "start":
                # The target, which is ordered after its instances.
                self.active[unit] = "queued"
            elif verb == "stop":
                self.active[unit] = "inactive"
        return 0, "", ""

    def begin(self, unit: str) -> None:
        """As systemd does: another invocation, and another main process with the environment of now."""
        self.starts[unit] = self.starts.get(unit, 0) + 1
        self.pids[unit] = 1000 + sum(self.starts.values())
        environ = self.root / "proc" / str(self.pids[unit]) / "environ"
        environ.parent.mkdir(parents=True)
        key = (self.root / "etc/secrets").read_text().strip().replace('"', "")
        environ.write_text(f"PATH=/usr/bin\0{key}\0HOME=/\0")

    def record(self, name: str, state: str) -> None:
        """As the launcher does."""
        told = json.loads((self.root / "etc/instances" / name / "instance.json").read_text())
        record = self.root / "run" / name / "state.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"state": state, "digest": told["digest"]}))

    def load(self, name: str) -> None:
        self.record(name, "serving")
        self.active[f"vllm@{name}.service"] = "active"

    def settle(self) -> None:
        """Whatever loads has loaded, or has failed."""
        for unit, state in list(self.active.items()):
            name = unit.partition("@")[2].removesuffix(".service")
            if state != "activating":
                continue
            if any(word in (self.root / "etc/instances" / name / "engine.yaml").read_text() for word in self.bad):
                self.record(name, "failed")
                self.active[unit] = "failed"
            else:
                self.load(name)

    def play(self, *names: str, passes: int = 20, **params: Any) -> dict[str, Any]:
        """As the action plugin does: call the module until it is no longer pending, or ``passes`` times; the last result, with all actions."""
        actions: list[str] = []
        polled: dict[str, Any] = {}
        for _pass in range(passes):
            result = self.run(*names, **params, **polled)
            actions += result["actions"]
            if not result.get("pending") or result.get("failed"):
                break
            polled = result["poll_args"]
            self.settle()
        return {**result, "actions": [one for one in actions if not one.startswith(("write ", "enable "))]}

    def serving(self, name: str) -> str:
        """The engine file that is in place, where its digest serves."""
        told = json.loads((self.root / "etc/instances" / name / "instance.json").read_text())
        record = json.loads((self.root / "run" / name / "state.json").read_text())
        assert (record["state"], record["digest"]) == ("serving", told["digest"])
        return (self.root / "etc/instances" / name / "engine.yaml").read_text()

    def run(self, *names: str, **params: Any) -> dict[str, Any]:
        """One call of the module, serving these instances."""
        with pytest.raises(ModuleEndedError) as ended:
            module_under_test.Converge(FakeModule(self, self.arguments(*names, **params))).run()  # type: ignore[arg-type]
        return ended.value.result

    def arguments(self, *names: str, **params: Any) -> dict[str, Any]:
        return {
            "instances": [instance(name) for name in names],
            "weights": [],
            "units": UNITS,
            "launcher": {"start_timeout_s": 900},
            "upcoming": {},
            "allow_restart": True,
            "retry_failed": False,
            "claim": "",
            "started": {},
            "tried": {},
            **params,
        }


class FakeModule:
    def __init__(self, host: FakeHost, params: dict[str, Any]) -> None:
        self.check_mode = bool(params.pop("check", False))
        self.params = params
        self.run_command = host.run_command

    def exit_json(self, **result: Any) -> None:
        raise ModuleEndedError(result)

    def fail_json(self, **result: Any) -> None:
        raise ModuleEndedError({"failed": True, **result})


def instance(name: str, **changed: Any) -> dict[str, Any]:
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
        **changed,
    }


def bad(name: str, **changed: Any) -> dict[str, Any]:
    """An instance with a setting that does not start, see `FakeHost.bad`."""
    return instance(name, engine_args={"nonsense": 1}, **changed)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    for name, place in {
        "UNITS": "units",
        "ETC": "etc",
        "RUN": "run",
        "CACHE": "cache",
        "STATE": "state",
        "PROC": "proc",
        "ENGINE": "engine",
        "LAUNCHER": "launcher",
    }.items():
        monkeypatch.setattr(module_under_test, name, tmp_path / place)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secrets").write_text(f'VLLM_API_KEY="{"k" * 43}"\n')
    (tmp_path / "launcher").write_text(LAUNCHER)
    # Every folder with a model is there, but for those that a test calls missing.
    monkeypatch.setattr(module_under_test, "is_folder", lambda path: "missing" not in path)
    found = FakeHost(tmp_path)
    found.bad = ["nonsense"]
    return found


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


def test_without_its_weights_an_instance_is_not_started(host: FakeHost) -> None:
    """Where they come later, the same settings are tried."""
    serve(host, "a-0")
    before = host.serving("a-0")
    host.calls.clear()
    changed = instance("a-0", model="/srv/models/missing", path="/srv/models/missing")
    refused = host.play(instances=[changed])
    assert refused["failed"] is True
    assert refused["msg"] == (
        "a-0 is to serve /srv/models/missing: /srv/models/missing is not on this host. Put the model there, or correct vllm_models[].model.\n"
        "Nothing was changed."
    )
    assert (refused["changed"], host.calls, host.serving("a-0")) == (False, [], before)
    assert not (host.root / "state/a-0/failed.json").exists()
    assert host.play(instances=[changed], check=True).get("failed") is None


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A commit of org/m in the hub's cache, as a download leaves it that was killed at the very end."""
    folder = tmp_path / "weights/hub/models--org--m/snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"12345")
    return folder


def verify(snapshot: Path, name: str = f"{COMMIT}.json") -> None:
    """As vllm-download does when all is there."""
    stamp = snapshot.parents[1] / "verified" / name
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(json.dumps({"files": {"model.safetensors": 5}}))


def of_hub(snapshot: Path, *, present: bool = False, **changed: Any) -> dict[str, Any]:
    """What the module gets of an instance that is to serve this commit in Mistral's form; ``present``: as the plan has found it."""
    options = {"load-format": "mistral"}
    one = instance("a-0", model="org/m", commit=COMMIT, path=str(snapshot), engine_args=options, **changed)
    weights = {"model": "org/m", "commit": COMMIT, "path": str(snapshot), "format": "mistral", "present": present}
    return {"instances": [one], "weights": [weights]}


def test_no_instance_starts_with_a_download_that_has_not_ended(host: FakeHost, snapshot: Path) -> None:
    """As with --tags service after a download that was killed."""
    serve(host, "a-0")
    before = host.serving("a-0")
    host.calls.clear()
    # All of the other form of weights is there.
    verify(snapshot)
    refused = host.play(**of_hub(snapshot))
    assert (refused.get("failed"), refused["changed"], host.calls, host.serving("a-0")) == (True, False, [], before)
    stamp = snapshot.parents[1] / f"verified/{COMMIT}-mistral.json"
    assert refused["msg"] == (
        f"a-0 is to serve org/m, whose download has not ended: {stamp} is not there, or what it lists is not. Run site.yml with --tags weights,service.\n"
        "Nothing was changed."
    )
    assert host.play(**of_hub(snapshot), check=True).get("failed") is None
    # What the rest of the same run has downloaded meanwhile.
    verify(snapshot, stamp.name)
    assert host.play(**of_hub(snapshot))["actions"] == ["restart a-0"]
    # It serves: another start would be with all of it, and there is none.
    stamp.unlink()
    assert host.play(**of_hub(snapshot))["changed"] is False


def test_where_there_is_no_hub_the_plan_says_what_is_there(host: FakeHost, snapshot: Path) -> None:
    """Nothing can be verified there: the weights were copied from elsewhere."""
    assert host.play(**of_hub(snapshot, present=True))["actions"] == ["start a-0", "start vllm.target"]


def test_a_commit_that_is_not_there_is_to_be_downloaded(host: FakeHost) -> None:
    refused = host.play(**of_hub(Path("/weights/missing")))
    assert (
        "a-0 is to serve org/m: /weights/missing is not on this host. Run site.yml with --tags weights,service."
        in refused["msg"]
    )


def test_what_serves_is_left_alone_without_its_weights(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(host, "a-0")
    host.calls.clear()
    monkeypatch.setattr(module_under_test, "is_folder", lambda path: False)
    result = host.run("a-0")
    assert (result.get("failed"), result["verdicts"], host.calls) == (None, {"a-0": "serving"}, [])


def test_what_went_back_is_not_asked_for_the_weights_that_failed(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(host, "a-0")
    assert "serves again" in host.play(instances=[bad("a-0")])["msg"]
    monkeypatch.setattr(module_under_test, "is_folder", lambda path: False)
    assert "still serves" in host.play(instances=[bad("a-0")])["msg"]


def test_a_second_run_does_nothing(host: FakeHost) -> None:
    serve(host, "a-0")
    host.calls.clear()
    result = host.run("a-0")
    assert (result["changed"], result["actions"], host.calls) == (False, [], [])
    assert result["verdicts"] == {"a-0": "serving"}
    assert "pending" not in result


def test_a_target_that_waits_for_its_instances_is_not_started_again(host: FakeHost) -> None:
    """Each start of it would start anew what it wants and what has failed."""
    waiting = host.run("a-0")["poll_args"]
    host.record("a-0", "loading")
    assert host.run("a-0", **waiting)["actions"] == []
    # Another run meanwhile, as on a host that boots.
    assert host.run("a-0")["changed"] is False
    assert host.calls.count("start vllm.target") == 1


def test_a_play_killed_before_the_restart_is_cured(host: FakeHost) -> None:
    serve(host, "a-0")
    changed = {**instance("a-0"), "engine_args": {"max-model-len": 5}}
    # As if the earlier play had written everything, and was killed before its restart.
    host.run(instances=[changed], allow_restart=False)
    host.calls.clear()
    result = host.run(instances=[changed])
    # What is assigned follows what serves.
    assert result["actions"] == [f"write {host.root}/etc/instances.json", "restart a-0"]
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


@pytest.mark.parametrize(
    ("file", "restarts"),
    [
        ("units/vllm@.service.d/own.conf", True),
        ("units/vllm@.service", False),
        ("etc/secrets", False),
        ("etc/instances.json", False),
        ("etc/instances/a-0/engine.yaml", False),
        ("state/a-0/served.json", False),
        ("state/a-0/failed.json", False),
        ("run/a-0/state.json", True),
    ],
)
def test_a_byte_that_is_no_text_ends_no_run(host: FakeHost, file: str, restarts: bool) -> None:
    """What is ours is mended; what is the operator's counts as it is."""
    host.play("a-0")
    path = host.root / file
    path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before.replace(b"serving", b"s\xe9rving") + b"# caf\xe9\n")
    result = host.play("a-0")
    assert (result.get("failed"), "restart a-0" in result["actions"]) == (None, restarts)
    json.dumps(result, ensure_ascii=False).encode()
    assert host.play("a-0")["changed"] is False


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


@pytest.fixture
def new_key(host: FakeHost) -> str:
    """A key that the secrets file holds since an instance was started."""
    host.play("a-0")
    host.calls.clear()
    key = "n" * 43
    (host.root / "etc/secrets").write_text(f'VLLM_API_KEY="{key}"\n')
    return key


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("changed", [{}, {"env": {"A": "2"}}], ids=["key", "key and settings"])
def test_without_consent_the_proxy_is_not_given_a_key_that_no_engine_has(
    host: FakeHost, new_key: str, check: bool, changed: dict[str, Any]
) -> None:
    for _run in range(2):
        refused = host.run(instances=[instance("a-0", **changed)], allow_restart=False, check=check)
        assert (refused["failed"], refused["changed"], host.calls) == (True, False, [])
        assert refused["msg"] == (
            f"a-0 has the VLLM_API_KEY that it was started with, {host.root}/etc/secrets holds a new one, and vllm_service_allow_restart is false: with the "
            "new one the proxy would get 401 for every request. It keeps the old one, which works until something else restarts a-0. Run with "
            "vllm_service_allow_restart: true. No instance was changed."
        )
        assert new_key not in json.dumps(refused)
    assert host.play(instances=[instance("a-0", **changed)])["actions"] == ["restart a-0"]


def test_an_engine_that_has_restarted_with_the_new_key_is_no_reason_to_keep_the_old_one(
    host: FakeHost, new_key: str
) -> None:
    """As after a crash."""
    host.begin("vllm@a-0.service")
    assert host.run("a-0", allow_restart=False)["restart_pending"] == ["a-0"]


def test_a_key_that_cannot_be_told_refuses_nothing(host: FakeHost, new_key: str) -> None:
    host.pids.clear()
    assert host.run("a-0", allow_restart=False)["restart_pending"] == ["a-0"]


def of_commit(digit: str, **changed: Any) -> dict[str, Any]:
    commit = digit * 40
    return instance(
        "a-0", model="org/m", revision=None, commit=commit, path=f"/weights/snapshots/{commit}", gpus=[0], **changed
    )


def assigned(host: FakeHost) -> dict[str, Any]:
    (found,) = json.loads((host.root / "etc/instances.json").read_text())["instances"]
    return dict(found)


@pytest.fixture
def staged_weights(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What vllm_weights_update has brought, without consent to restart."""
    monkeypatch.setattr(_weights, "is_whole", lambda *_: True)
    host.play(instances=[of_commit("1")])
    wanted = [of_commit("2", env={"A": "2"}) | {"gpus": [1]}]
    for _run in range(2):
        assert host.run(instances=wanted, allow_restart=False)["restart_pending"] == ["a-0"]
    return wanted


def test_weights_that_are_staged_are_what_the_next_plan_wants(
    host: FakeHost, staged_weights: list[dict[str, Any]]
) -> None:
    """Else it would want those of before again, and the update would be gone without a word."""
    found = assigned(host)
    assert [found[key] for key in ("commit", "path")] == [staged_weights[0][key] for key in ("commit", "path")]
    # What the engine that is up has.
    assert found["gpus"] == [0]
    assert host.play(instances=staged_weights)["actions"] == ["restart a-0"]


def test_from_staged_weights_it_goes_back_to_those_that_served(
    host: FakeHost, staged_weights: list[dict[str, Any]]
) -> None:
    host.bad = ["2" * 40]
    assert "serves again" in host.play(instances=staged_weights)["msg"]
    assert (assigned(host)["commit"], assigned(host)["gpus"]) == ("1" * 40, [0])


def test_an_engine_that_claims_to_serve_what_is_staged_is_not_believed(host: FakeHost) -> None:
    """Its account writes the record, and can read the digest that is staged."""
    host.play("a-0")
    changed = [instance("a-0", env={"A": "2"})]
    host.run(instances=changed, allow_restart=False)
    host.record("a-0", "serving")
    for check in (True, False):
        result = host.run(instances=changed, allow_restart=False, check=check)
        assert (result["restart_pending"], result["verdicts"]) == (["a-0"], {"a-0": "outdated"})
    assert host.play(instances=changed)["actions"] == ["restart a-0"]
    assert host.run(instances=changed)["verdicts"] == {"a-0": "serving"}


def test_nor_one_that_has_said_nothing_until_then(host: FakeHost) -> None:
    host.run("a-0")
    host.record("a-0", "loading")
    host.active["vllm@a-0.service"] = "active"
    changed = [instance("a-0", env={"A": "2"})]
    host.run(instances=changed, allow_restart=False)
    host.record("a-0", "serving")
    assert host.run(instances=changed, allow_restart=False)["restart_pending"] == ["a-0"]


def test_what_is_staged_serves_once_something_else_has_restarted_it(host: FakeHost) -> None:
    """As after a reboot. The change was taken back, and brought again."""
    host.play("a-0")
    changed = [instance("a-0", env={"A": "2"})]
    host.run(instances=changed, allow_restart=False)
    assert host.run("a-0", allow_restart=False)["verdicts"] == {"a-0": "serving"}
    assert host.run(instances=changed, allow_restart=False)["restart_pending"] == ["a-0"]
    host.starts["vllm@a-0.service"] += 1
    host.load("a-0")
    result = host.run(instances=changed, allow_restart=False)
    assert (result["changed"], result["verdicts"]) == (True, {"a-0": "serving"})
    assert result["actions"] == [f"write {host.root}/etc/instances.json"]
    assert host.run(instances=changed, allow_restart=False)["changed"] is False


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


@pytest.mark.parametrize(
    ("upcoming", "restarts"),
    [
        ({}, False),
        ({"engine": "", "launcher_sha256": ""}, False),
        ({"engine": "engine", "launcher_sha256": hashlib.sha256(LAUNCHER.encode()).hexdigest()}, False),
        ({"engine": "0.33.0-cuda"}, True),
        ({"launcher_sha256": hashlib.sha256(b"new").hexdigest()}, True),
    ],
)
def test_check_mode_counts_with_what_the_run_would_have_put_there(
    host: FakeHost, upcoming: dict[str, str], restarts: bool
) -> None:
    host.play("a-0")
    upcoming = {
        name: value if "sha" in name or not value else str(host.root / value) for name, value in upcoming.items()
    }
    assert ("restart a-0" in host.run("a-0", check=True, upcoming=upcoming)["actions"]) == restarts
    # By then it is there, or was not to be put there.
    assert host.run("a-0", upcoming=upcoming)["changed"] is False


def test_check_mode_counts_with_a_key_that_would_be_made(host: FakeHost) -> None:
    """In place of one that protects nothing."""
    (host.root / "etc/secrets").write_text('VLLM_API_KEY="short"\n')
    host.play("a-0")
    assert "restart a-0" in host.run("a-0", check=True)["actions"]


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


@pytest.mark.parametrize("others", [{"engine_args": {"max-num-seqs": 7}}, None], ids=["other settings", "stopped"])
def test_a_run_that_another_has_overtaken_ends(host: FakeHost, others: dict[str, Any] | None) -> None:
    """Also without a claim: neither waits for ever for what will not come, nor takes it back."""
    waiting = host.run("a-0")["poll_args"]
    if others is None:
        host.active["vllm@a-0.service"] = "inactive"
    else:
        host.play(instances=[instance("a-0", **others)])
    host.calls.clear()
    result = host.run("a-0", **waiting)
    assert result["failed"] is True
    assert "a-0 was stopped, or started with other settings, by somebody else" in result["msg"]
    assert host.calls == []


def test_what_systemd_does_not_do_is_told_with_what_was_done_before(host: FakeHost) -> None:
    host.refused = "enable"
    refused = host.run("a-0")
    assert (refused["failed"], refused["changed"]) == (True, True)
    assert f"write {host.root}/etc/instances/a-0/engine.yaml" in refused["actions"]
    assert (
        "systemctl enable --quiet vllm.target vllm@a-0.service: Failed: Transport endpoint is not connected. "
        in refused["msg"]
    )
    assert "journalctl --boot _PID=1" in refused["msg"] and "run the play again" in refused["msg"]
    host.refused = ""
    assert host.play("a-0").get("failed") is None


def test_a_full_disk_is_told_with_what_was_done_before(
    host: FakeHost, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim, "LOCK", host.root / "lock")
    monkeypatch.setattr(module_under_test, "AnsibleModule", lambda **_: FakeModule(host, host.arguments("a-0")))
    full_disk(2)
    with pytest.raises(ModuleEndedError) as ended:
        module_under_test.main()
    result, place = ended.value.result, host.root / "etc/instances/a-0"
    assert (result["failed"], result["changed"]) == (True, True)
    assert result["msg"] == (
        f"{place}/engine.yaml: No space left on device. Is there room, and is the file system writable? df -h {place}; df -i {place}; "
        f"findmnt --target {place}, on the host. When the cause is gone, run the play again: it takes up what is left."
    )
    assert f"write {host.root}/units/vllm@.service" in result["actions"]
    full_disk(-1)
    assert host.play("a-0").get("failed") is None


# --- settings that do not start ---


def test_the_old_settings_serve_again_and_the_play_fails(host: FakeHost) -> None:
    host.play("a-0")
    before, assigned = host.serving("a-0"), (host.root / "etc/instances.json").read_text()
    result = host.play(instances=[bad("a-0", port=8009, gpus=[3])])
    assert result["failed"] is True
    assert result["actions"] == ["restart a-0", "start a-0 with what served before"]
    assert result["verdicts"] == {"a-0": "failed"}
    assert "a-0 does not start with the settings wanted" in result["msg"]
    assert "ValueError: no such thing" in result["msg"]
    assert "serves again. Change the setting, or set vllm_service_retry_failed: true" in result["msg"]
    assert host.serving("a-0") == before
    # What the plan and the proxy go by is what serves.
    assert (host.root / "etc/instances.json").read_text() == assigned


def test_progress_says_that_it_goes_back(host: FakeHost) -> None:
    host.play("a-0")
    result = host.play(instances=[bad("a-0")], passes=2)
    assert result["status"] == "a-0 does not start, goes back: loading"


@pytest.mark.parametrize("check", [False, True])
def test_a_failed_digest_is_not_tried_again(host: FakeHost, check: bool) -> None:
    host.play("a-0")
    host.play(instances=[bad("a-0")])
    host.calls.clear()
    for _run in range(2):
        result = host.play(instances=[bad("a-0")], check=check)
        assert (result["failed"], result["changed"], result["actions"], host.calls) == (True, False, [], [])
        assert "ValueError: no such thing" in result["msg"]
        assert "still serves, and nothing was tried again" in result["msg"]


def test_a_failed_digest_is_tried_again_when_told_so(host: FakeHost) -> None:
    host.play("a-0")
    host.play(instances=[bad("a-0")])
    again = host.play(instances=[bad("a-0")], retry_failed=True)
    assert again["failed"] is True
    assert again["actions"] == ["restart a-0", "start a-0 with what served before"]
    host.bad = []
    mended = host.play(instances=[bad("a-0")], retry_failed=True)
    assert (mended.get("failed"), mended["actions"]) == (None, ["restart a-0"])
    assert "nonsense" in host.serving("a-0")
    # It has served: from now on it is as good as any other.
    assert host.play(instances=[bad("a-0")])["changed"] is False
    assert not (host.root / "state/a-0/failed.json").exists()


def test_other_settings_are_tried_anew(host: FakeHost) -> None:
    host.play("a-0")
    host.play(instances=[bad("a-0")])
    good = instance("a-0", engine_args={"max-num-seqs": 9})
    result = host.play(instances=[good])
    assert (result.get("failed"), result["actions"]) == (None, ["restart a-0"])
    assert "max-num-seqs: 9" in host.serving("a-0")
    assert not (host.root / "state/a-0/failed.json").exists()
    # Going back is now going back to these.
    host.play(instances=[bad("a-0")])
    assert "max-num-seqs: 9" in host.serving("a-0")


def test_going_back_is_going_back_to_the_engine_of_then(host: FakeHost) -> None:
    link = host.root / "engine"
    link.symlink_to(host.root / "0.32.0-cuda")
    host.play("a-0")
    link.unlink()
    link.symlink_to(host.root / "0.33.0-cuda")
    host.bad = ["served-model-name"]
    told = host.root / "etc/instances/a-0/instance.json"
    host.play("a-0", passes=1)
    assert json.loads(told.read_text())["engine"] == str(host.root / "0.33.0-cuda")
    host.play("a-0")
    assert json.loads(told.read_text())["engine"] == str(host.root / "0.32.0-cuda")


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_play_killed_on_the_way_back_is_cured(host: FakeHost, passes: int) -> None:
    host.play("a-0")
    before = host.serving("a-0")
    host.play(instances=[bad("a-0")], passes=passes)
    result = host.play(instances=[bad("a-0")])
    assert result["failed"] is True
    assert host.serving("a-0") == before
    assert host.play(instances=[bad("a-0")])["changed"] is False


def test_files_of_a_run_cut_off_between_them_are_not_taken_for_what_served(host: FakeHost) -> None:
    host.play("a-0")
    before = host.serving("a-0")
    host.run("a-0")
    # The engine file is new, the rest and what serves is old.
    (host.root / "etc/instances/a-0/engine.yaml").write_text("nonsense: 1\n")
    host.play(instances=[bad("a-0")])
    assert host.serving("a-0") == before


def test_what_served_unseen_by_a_play_is_gone_back_to(host: FakeHost) -> None:
    """The play that started it was killed while it loaded."""
    host.run("a-0")
    host.settle()
    before = host.serving("a-0")
    host.play(instances=[bad("a-0")])
    assert host.serving("a-0") == before


def test_where_nothing_served_every_run_tries(host: FakeHost) -> None:
    for verb in ("start", "start"):
        result = host.play(instances=[bad("a-0")])
        assert result["failed"] is True
        assert f"{verb} a-0" in result["actions"]
        assert "There is nothing else to go back to. Mend the cause" in result["msg"]
    # systemd's own start limit is the judge of a unit that has failed: it is not started beyond what the run did.
    assert sum(call == "restart vllm@a-0.service" for call in host.calls) == 2


def test_where_neither_starts_both_reasons_are_told_and_the_next_run_begins_anew(host: FakeHost) -> None:
    host.play("a-0")
    host.bad = ["model"]
    result = host.play(instances=[bad("a-0")])
    assert result["failed"] is True
    assert "does not start either: unit failed" in result["msg"]
    assert result["actions"] == ["restart a-0", "start a-0 with what served before"]
    # The host was at fault and is mended.
    host.bad = []
    assert host.play(instances=[bad("a-0")])["actions"] == ["start a-0"]
    assert "nonsense" in host.serving("a-0")


def test_the_engines_words_are_kept_without_secrets(host: FakeHost) -> None:
    secrets = host.root / "etc/secrets"
    secrets.write_text('HF_TOKEN="hf_abcdefgh"\n' + secrets.read_text())
    host.journal = f"key {'k' * 43}\ntoken hf_abcdefgh\n"
    host.play("a-0")
    result = host.play(instances=[bad("a-0")])
    kept = host.root / "state/a-0/failed.json"
    for text in (result["msg"], kept.read_text()):
        assert "key ***" in text and "token ***" in text
        assert "k" * 43 not in text and "hf_abcdefgh" not in text
    for path in (kept, host.root / "state/a-0/served.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (host.root / "state").stat().st_mode & 0o777 == 0o700


def test_the_reason_is_looked_for_in_the_starts_before_where_systemd_has_tried_again(host: FakeHost) -> None:
    host.play("a-0")
    assert "said by the start before" not in host.play(instances=[bad("a-0")])["msg"]
    wanted = [instance("a-0", engine_args={"other": 1})]
    polled = host.run(instances=wanted)["poll_args"]
    host.restarts = 2
    host.run(instances=wanted, **polled)
    assert "said by the start before" in (host.root / "state/a-0/failed.json").read_text()


def test_check_mode_keeps_no_books(host: FakeHost) -> None:
    host.run("a-0")
    host.settle()
    host.run("a-0", check=True)
    assert not (host.root / "state").exists()


def test_other_models_go_on(host: FakeHost) -> None:
    host.play("a-0", "b-0")
    good = instance("b-0", engine_args={"max-num-seqs": 9})
    result = host.play(instances=[bad("a-0"), good])
    assert result["failed"] is True
    assert result["verdicts"] == {"a-0": "failed", "b-0": "serving"}
    assert "max-num-seqs: 9" in host.serving("b-0")
    assert "b-0" not in result["msg"]


def test_a_replica_that_serves_is_spared_what_another_failed_with(host: FakeHost) -> None:
    both = [instance("a-0", gpus=[0]), instance("a-1", gpus=[1], port=8001)]
    host.play(instances=both)
    before = [host.serving(name) for name in ("a-0", "a-1")]
    assigned = (host.root / "etc/instances.json").read_text()
    host.calls.clear()
    wanted = [bad("a-0", gpus=[0]), bad("a-1", gpus=[1], port=8001)]
    result = host.play(instances=wanted)
    assert result["verdicts"] == {"a-0": "failed", "a-1": "held"}
    assert "a-1 stays as it is, because of a-0" in result["msg"]
    assert "restart vllm@a-1.service" not in host.calls
    assert [host.serving(name) for name in ("a-0", "a-1")] == before
    assert (host.root / "etc/instances.json").read_text() == assigned
    assert host.play(instances=wanted)["changed"] is False


def test_one_that_comes_to_help_serves_before_the_other_is_restarted_and_goes_after(host: FakeHost) -> None:
    first, second = instance("a-0", gpus=[0]), instance("a-1", gpus=[1], port=8001)
    host.play(instances=[first])
    change = {"env": {"A": "2"}}
    both = [first | change, second | change]
    result = host.run(instances=both)
    assert "start a-1" in result["actions"] and "restart a-0" not in result["actions"]
    host.settle()
    result = host.play(instances=both)
    assert result["actions"] == ["restart a-0"]
    assert host.play(instances=both[:1])["actions"] == ["stop a-1", "remove a-1"]
    assert host.starts["vllm@a-0.service"] == 2


def test_with_a_new_key_replicas_are_restarted_one_after_the_other(host: FakeHost) -> None:
    both = [instance("a-0", gpus=[0]), instance("a-1", gpus=[1], port=8001)]
    host.play(instances=both)
    (host.root / "etc/secrets").write_text(f'VLLM_API_KEY="{"n" * 43}"\n')
    first = host.run(instances=both)
    assert "restart a-0" in first["actions"] and "restart a-1" not in first["actions"]
    host.settle()
    assert host.play(instances=both)["actions"] == ["restart a-1"]


def test_a_replica_with_an_old_key_is_not_held_for_another_that_failed(host: FakeHost) -> None:
    """The proxy comes with the new one, and would get nothing from it but 401."""
    first, second = instance("a-0", gpus=[0]), instance("a-1", gpus=[1], port=8001)
    host.play(instances=[first, second])
    (host.root / "etc/secrets").write_text(f'VLLM_API_KEY="{"n" * 43}"\n')
    result = host.play(instances=[bad("a-0", gpus=[0]), second])
    assert result["failed"] and result["verdicts"] == {"a-0": "failed", "a-1": "serving"}
    assert host.starts["vllm@a-1.service"] == 2


def test_where_the_one_that_comes_to_help_does_not_start_the_other_is_spared(host: FakeHost) -> None:
    first = instance("a-0", gpus=[0])
    host.play(instances=[first])
    result = host.play(instances=[bad("a-0", gpus=[0]), bad("a-1", gpus=[1], port=8001)])
    assert result["failed"] and result["verdicts"] == {"a-0": "held", "a-1": "failed"}
    assert host.starts["vllm@a-0.service"] == 1
    assert host.play(instances=[first])["actions"] == ["remove a-1"]
    assert host.starts["vllm@a-0.service"] == 1
    assert not (host.root / "etc/instances/a-1").exists()


def test_nobody_gets_a_gpu_before_its_owner_serves_without_it(host: FakeHost) -> None:
    host.play(instances=[instance("a-0", gpus=[0, 1])])
    wanted = [instance("a-0", gpus=[0]), instance("b-0", gpus=[1], port=8001)]
    result = host.run(instances=wanted)
    assert result["status"] == "a-0 loading; b-0 waits for its turn"
    assert not (host.root / "etc/instances/b-0").exists()
    assert host.play(instances=wanted).get("failed") is None
    assert host.serving("b-0")


@pytest.mark.parametrize("kept", [{"gpus": [0, 1]}, {"port": 8005}])
def test_an_owner_that_goes_back_keeps_its_gpu_and_its_port(host: FakeHost, kept: dict[str, Any]) -> None:
    host.play(instances=[instance("a-0", **{"gpus": [0], **kept})])
    taker = instance("b-0", gpus=[1], port=8005)
    wanted = [bad("a-0", gpus=[0]), taker]
    for _run in range(2):
        result = host.play(instances=wanted)
        assert result["verdicts"] == {"a-0": "failed", "b-0": "held"}
        assert not (host.root / "etc/instances/b-0").exists()
        assert [one["name"] for one in json.loads((host.root / "etc/instances.json").read_text())["instances"]] == [
            "a-0"
        ]
    assert result["changed"] is False
    assert host.serving("a-0")


def test_two_that_change_places_do_not_wait_for_each_other(host: FakeHost) -> None:
    host.play(instances=[instance("a-0", gpus=[0]), instance("b-0", gpus=[1], port=8001)])
    result = host.play(instances=[instance("a-0", gpus=[1]), instance("b-0", gpus=[0], port=8001)])
    assert (result.get("failed"), result["verdicts"]) == (None, {"a-0": "serving", "b-0": "serving"})


def test_after_a_change_of_places_nobody_goes_back_to_what_is_taken(host: FakeHost) -> None:
    host.play(instances=[instance("a-0", gpus=[0]), instance("b-0", gpus=[1], port=8001)])
    wanted = [bad("a-0", gpus=[1]), instance("b-0", gpus=[0], port=8001)]
    result = host.play(instances=wanted)
    assert result["verdicts"] == {"a-0": "failed", "b-0": "serving"}
    assert "cannot go back to what served before: b-0 has its port or a GPU of it" in result["msg"]
    # Nothing serves there, so that the next run tries again.
    assert "start a-0" in host.play(instances=wanted)["actions"]


def test_without_consent_all_replicas_are_pending_and_nobody_waits(host: FakeHost) -> None:
    host.play(instances=[instance("a-0"), instance("a-1", port=8001)])
    changed = [instance(name, port=port, env={"A": "2"}) for name, port in (("a-0", 8000), ("a-1", 8001))]
    result = host.run(instances=changed, allow_restart=False)
    assert result["restart_pending"] == ["a-0", "a-1"]
    assert "pending" not in result


def test_without_consent_nobody_gets_a_gpu_that_another_still_has(host: FakeHost) -> None:
    host.play(instances=[instance("a-0", gpus=[0, 1])])
    wanted = [instance("a-0", gpus=[0]), instance("b-0", gpus=[1], port=8001)]
    for _run in range(2):
        result = host.run(instances=wanted, allow_restart=False)
        assert result["restart_pending"] == ["a-0", "b-0"]
        assert "pending" not in result
        assert not (host.root / "etc/instances/b-0").exists()
    (assigned,) = json.loads((host.root / "etc/instances.json").read_text())["instances"]
    assert assigned["gpus"] == [0, 1]


def test_without_consent_what_serves_after_a_failure_stays_as_it_is(host: FakeHost) -> None:
    host.play("a-0")
    host.play(instances=[bad("a-0", port=8009)])
    result = host.run(instances=[bad("a-0", port=8009)], allow_restart=False)
    assert (result["failed"], result["changed"], result["restart_pending"]) == (True, False, [])
    assert "still serves" in result["msg"]


def test_a_removed_instance_leaves_no_trace(host: FakeHost) -> None:
    host.play("a-0", "b-0")
    host.play(instances=[bad("a-0"), instance("b-0")])
    host.play("b-0")
    left = [path for path in host.root.rglob("*a-0*") if path.name != "vllm@a-0.service.d"]
    assert left == []
    # A new one of that name owes nothing to the old one.
    assert "start a-0" in host.play(instances=[bad("a-0"), instance("b-0")])["actions"]
