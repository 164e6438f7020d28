"""The gates' own guards: a Molecule run that did nothing is not green."""

from __future__ import annotations

import molecule_gate
import pytest

CREATE = """\
INFO     [default > create] Executing
PLAY RECAP *********************************************************************
localhost                  : ok=1    changed=1    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
INFO     [default > create] Executed: Successful
"""
CONVERGE = """\
INFO     [two_models > converge] Executing
PLAY RECAP *********************************************************************
\x1b[33mgpu02\x1b[0m                      : ok=12   changed=3    unreachable=0    failed=0    skipped=0    rescued=0
INFO     [two_models > converge] Executed: Successful
"""
VERIFY = """\
INFO     [two_models > verify] Executing
INFO     [two_models > verify] Executing Testinfra tests found in molecule/two_models/tests/...
============================== 3 passed, 1 skipped in 0.02s ===============================
INFO     [two_models > verify] Executed: Successful
"""
NO_TEST = VERIFY.replace("3 passed, 1 skipped", "no tests ran")
ALL_SKIPPED = VERIFY.replace("3 passed, 1 skipped", "4 skipped")
NO_HOST = "INFO     [two_models > converge] Executing\nPLAY [all] ***\nskipping: no hosts matched\n\nPLAY RECAP ***\n"
BROKEN = CONVERGE.replace("INFO     [two_models > converge] Executed: Successful", "") + (
    "CRITICAL Ansible return code was 2\nERROR    [two_models > converge] \x1b[31mExecuted: Failed\x1b[0m\n"
)


def read(log: str) -> tuple[dict[str, molecule_gate.Scenario], float]:
    """Read a log whose lines came one a second."""
    return molecule_gate.read_log((float(second), line) for second, line in enumerate(log.splitlines(keepends=True)))


@pytest.mark.parametrize(
    ("log", "hosts", "tests", "problem"),
    [
        (CREATE + CONVERGE + VERIFY, {"gpu02"}, 3, ""),
        (CREATE + CONVERGE + VERIFY + VERIFY, {"gpu02"}, 6, ""),
        (CREATE + CONVERGE, {"gpu02"}, 0, "no test passed"),
        (CREATE + CONVERGE + NO_TEST, {"gpu02"}, 0, "no test passed"),
        (CREATE + CONVERGE + ALL_SKIPPED, {"gpu02"}, 0, "no test passed"),
        (CREATE + VERIFY, set(), 3, "no task ran on any machine"),
        (CREATE + CONVERGE.replace("ok=12", "ok=0 ") + VERIFY, set(), 3, "no task ran on any machine"),
        (CREATE + NO_HOST + CONVERGE + VERIFY, {"gpu02"}, 3, "a play ran on no host (no hosts matched)"),
        (CREATE + BROKEN, {"gpu02"}, 0, "converge failed"),
    ],
)
def test_problem(log: str, hosts: set[str], tests: int, problem: str) -> None:
    """Each way of doing nothing has its own complaint."""
    scenario = read(log)[0]["two_models"]
    assert scenario.hosts == hosts
    assert scenario.tests == tests
    assert scenario.problem.split(":")[0] == problem


def test_scenario_that_did_not_run_is_not_found() -> None:
    """Molecule stops at the first failure."""
    assert set(read(CREATE + CONVERGE)[0]) == {"two_models"}


def test_seconds() -> None:
    """Making the machines is nobody's scenario."""
    scenarios, machines = read(CREATE + CONVERGE + VERIFY)
    assert machines == 4.0
    assert scenarios["two_models"].seconds == 7.0
