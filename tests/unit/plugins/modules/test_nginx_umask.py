# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules make folders that NGINX's workers enter, whatever root's umask is."""

from __future__ import annotations

import os
from types import ModuleType
from typing import NoReturn

import pytest
from ansible_collections.gpuops.vllm.plugins.modules import certificate, nginx_config


class StoppedError(Exception):
    """Raised where a module would begin to read its input."""


@pytest.mark.parametrize("module", [certificate, nginx_config], ids=lambda module: module.__name__.rpartition(".")[2])
def test_main_sets_the_umask(module: ModuleType, monkeypatch: pytest.MonkeyPatch, umask_077: None) -> None:
    def stop(**_options: object) -> NoReturn:
        raise StoppedError

    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(StoppedError):
        module.main()
    assert os.umask(0o077) == 0o022
