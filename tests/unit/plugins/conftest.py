"""The folders of the tests are open to other accounts, as weights must be to the engine's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def others_may_look_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytest makes its own 0700; a worker of pytest-xdist has one more than pytest alone."""
    base = tmp_path_factory.getbasetemp()
    for place in (base, *base.parents):
        if place.name.startswith(("pytest-", "popen-")):
            place.chmod(0o755)
