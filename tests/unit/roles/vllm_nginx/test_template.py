# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role's main template makes of its variables, as -e and INI inventories hand them over too: as strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.modules import certificate, nginx_config

INSTANCE = {
    "name": "a-0",
    "model_name": "a",
    "served_as": ["a"],
    "engine_args": {},
    "address": "127.0.0.1",
    "port": 8000,
}


@pytest.fixture
def text_of(render: Callable[..., str]) -> Callable[..., str]:
    """The text of vllm.conf.j2 with one model and changes."""
    return partial(render, "vllm.conf.j2", vllm_nginx_instances=[INSTANCE])


@pytest.mark.parametrize(("value", "there"), [(True, True), ("true", True), (False, False), ("false", False)])
def test_the_default_server(value: Any, there: bool, text_of: Callable[..., str]) -> None:
    assert ("default_server" in text_of(vllm_nginx_default_server=value)) is there


@pytest.mark.parametrize(("value", "there"), [(128, True), ("128", True), (0, False), ("0", False)])
def test_the_map_hash_bucket_size(value: Any, there: bool, text_of: Callable[..., str]) -> None:
    assert ("map_hash_bucket_size 128;" in text_of(vllm_nginx_map_hash_bucket_size=value)) is there


def test_an_engine_cannot_steer_nginx(text_of: Callable[..., str]) -> None:
    """X-Accel-Redirect would lead to any internal location, the others undo what is set here."""
    (ignored,) = re.findall(r"proxy_ignore_headers (.*);", text_of())
    assert set(ignored.split()) == {
        f"X-Accel-{name}" for name in ("Redirect", "Expires", "Limit-Rate", "Buffering", "Charset")
    }


def test_slow_headers_are_not_waited_for(text_of: Callable[..., str]) -> None:
    """NGINX takes the default server's value before it knows the name, so every public server has it."""
    servers = text_of().split("\nserver {")[1:]
    public = [server for server in servers if "listen 127.0.0.1" not in server]
    assert len(public) == 3
    assert all("client_header_timeout 10s;" in server for server in public)


def test_paths_are_the_modules_own(text_of: Callable[..., str]) -> None:
    """The template spells out what the modules take by default."""
    defaults: dict[str, str] = {}
    for module in (nginx_config, certificate):
        options = yaml.safe_load(module.DOCUMENTATION)["options"]
        defaults |= {name: options[name]["default"] for name in ("tls_dir", "webroot") if name in options}
    text = text_of()
    assert f"ssl_certificate {defaults['tls_dir']}/current/fullchain.pem;" in text
    assert f"ssl_certificate_key {defaults['tls_dir']}/current/privkey.pem;" in text
    assert f"root {defaults['webroot']};" in text
