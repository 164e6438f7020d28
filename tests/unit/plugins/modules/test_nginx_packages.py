# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpuops.vllm.plugins.modules import packages

KNOWN = "installed nginx\nnot-installed certbot\nconfig-files nginx-light\n"


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (["nginx"], []),
        (["nginx", "certbot"], ["certbot"]),
        (["nginx-light", "libnginx-mod-http-js"], ["nginx-light", "libnginx-mod-http-js"]),
        ([], []),
    ],
)
def test_missing_packages(wanted: list[str], missing: list[str]) -> None:
    assert packages.missing_packages(wanted, KNOWN) == missing


def test_complaint_is_apts_own_errors() -> None:
    output = "Reading package lists...\nErr:1 http://deb nginx\nE: Unable to locate package nginx\n"
    assert packages.complaint(output) == "Err:1 http://deb nginx\nE: Unable to locate package nginx"
    assert packages.complaint("only this\n") == "only this"
