"""Puts the shared helpers, the load client and the lab on the path of every scenario's tests, and keeps what drills show."""

from __future__ import annotations

import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "shared"), str(HERE.parent / "tests" / "load"), str(HERE / "lab")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "drill(name, seen): a row of docs/drills.md; `seen`: what it means that the test passed"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the verdict of a test that is a drill."""
    report = yield
    mark = item.get_closest_marker("drill")
    if mark and call.when == "call" and not report.skipped:
        name, seen = mark.args
        import_module("record").record(name, "ours", report.passed, seen if report.passed else f"not: {seen}")
    return report
