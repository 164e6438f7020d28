"""What drills record, and the table that is made of it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import molecule_gate
import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _wanted

REPO = Path(__file__).resolve().parents[3]


def module_of(path: str) -> ModuleType:
    """A program of the repository as a module, without a __pycache__ beside it."""
    loader = SourceFileLoader(Path(path).stem, str(REPO / path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What some drills have recorded."""
    record = module_of("molecule/shared/record.py")
    monkeypatch.setattr(record, "FILE", tmp_path / "new" / "drills.jsonl")
    record.record("kill", "ours", False, "never back")
    record.record("kill", "naive", False, "values 'a|b' and \x07\n of\n lines")
    record.record("kill", "without", False, "no restart: away")
    record.record("kill", "ours", True, "back after 12.0 s")
    record.record("full", "ours", False, "stays failed")
    return (tmp_path / "new" / "drills.jsonl").read_text().splitlines()


def test_the_last_result_of_a_drill_and_way_counts(lines: list[str]) -> None:
    drills = module_of("scripts/drills")
    assert drills.table(drills.read(lines)) == (
        "| drill | naive | ours without the part | ours |\n"
        "| --- | --- | --- | --- |\n"
        "| kill | **fails**: values 'a\\|b' and ? of lines | **fails**: no restart: away | passes: back after 12.0 s |\n"
        "| full | - | - | **fails**: stays failed |\n"
    )


def test_hostile_values_are_what_a_plan_takes() -> None:
    hostile = module_of("molecule/shared/hostile.py")
    one, other = hostile.values(1), hostile.values(2)
    assert one.keys() == other.keys()
    assert one != other
    assert len(one) > 60
    # By the collection's own rule, which nothing but the plan knows.
    assert _wanted.environment_problems("env", one) == []


def test_what_is_taken_away_is_in_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("molecule/shared", "molecule/lab", "tests/load"):
        monkeypatch.syspath_prepend(str(REPO / place))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    parts = import_module("parts")
    text = parts.LAUNCHER.read_text(encoding="utf-8")
    changed = [part for part in parts.PARTS.values() if part.launcher]
    assert len(changed) > 3
    for part in changed:
        assert parts.launcher_without(part) != text
        compile(parts.launcher_without(part), part.words, "exec")


def test_what_is_too_long_for_make_test_is_in_the_drills() -> None:
    """Or it would run nowhere."""
    assert set(module_of("scripts/drills").SCENARIOS) >= molecule_gate.DRILLS_ALONE
    assert set(molecule_gate.scenarios_of_the_repository()) > molecule_gate.DRILLS_ALONE
