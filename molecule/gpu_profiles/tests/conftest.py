"""The machines of this scenario, all at once: its tests compare them."""

from __future__ import annotations

from typing import Any

import endpoint
import pytest
import testinfra  # type: ignore[import-untyped]

NAMES = ("gpu01", "gpu02", "deb13")


@pytest.fixture(scope="session")
def machines() -> dict[str, Any]:
    """Testinfra's host for each machine."""
    inventory = str(endpoint.TOP / "molecule" / "inventory")
    return {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory) for name in NAMES}
