# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's configuration in a real NGINX on loopback, in front of servers that say what reached them."""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.client
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.plugins.filter.core import flatten, to_bool
from ansible_collections.gpuops.vllm.plugins.module_utils import _checks, _clients, _nginx

REPO = Path(__file__).resolve().parents[4]
ROLE = REPO / "roles/vllm_nginx"
UNPACKED = REPO / ".build" / "nginx"
DOMAIN = "llm.example.com"
KEY = "a-clients-key-0123456789"
CLIENTS: list[dict[str, Any]] = [
    {"name": "a", "key": KEY},
    {"name": "hashed", "key_sha256": hashlib.sha256(b"known-as-a-hash-0123456789").hexdigest()},
    {"name": "scoped", "key": "for-one-model-0123456789", "models": ["qwen"]},
    {"name": "rotating", "key": "the-old-one-0123456789", "expires": "2020-01-01T00:00:00Z"},
    {"name": "rotating", "key": "the-new-one-0123456789", "expires": "2100-01-01T00:00:00+01:00"},
    {"name": "few", "key": "few-a-minute-0123456789", "requests_per_minute": 3},
    {"name": "narrow", "key": "two-at-a-time-0123456789", "concurrent_requests": 2},
]
ENGINE_KEY = "the-engines-key-0123456789"


def render(template: str, **changes: Any) -> str:
    """Render a template of the role with its defaults and `changes`."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=True)
    environment.filters |= {
        "bool": to_bool,
        "flatten": flatten,
        "to_json": json.dumps,
        "gpuops.vllm.proxy_models": _checks.proxy_models,
    }
    variables = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8")),
        **yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8")),
        "vllm_nginx_domain": DOMAIN,
        **changes,
    }
    text = (ROLE / "templates" / template).read_text(encoding="utf-8")
    return html.unescape(environment.from_string(text).render(variables))


class Engine:
    """An HTTP server in the place of an instance: answers what it was asked, and by whose name it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.arrived = 0
        #: Cleared, it answers nobody.
        self.answers = threading.Event()
        self.answers.set()
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                engine.arrived += 1
                engine.answers.wait()
                asked = {"engine": engine.name, "method": self.command, "path": self.path, "bytes": len(body)}
                engine.asked.append({**asked, "headers": dict(self.headers), "body": body})
                answer = json.dumps(asked).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


class Gateway:
    """NGINX with the role's configuration; `models` maps each model's name to its served names and number of replicas."""

    def __init__(self, root: Path, models: Mapping[str, tuple[list[str], int]], default: str = "") -> None:
        self.root = root
        self.engines = {
            f"{name}-{index}": Engine(f"{name}-{index}") for name, (_s, n) in models.items() for index in range(n)
        }
        self.instances: list[dict[str, Any]] = [
            {
                "name": f"{name}-{index}",
                "model_name": name,
                "served_as": served_as,
                "engine_args": {"max-model-len": 16384} if name == "llama" else {},
                "address": "127.0.0.1",
                "port": self.engines[f"{name}-{index}"].port,
                "default": name == default,
            }
            for name, (served_as, replicas) in models.items()
            for index in range(replicas)
        ]
        self.http_port, self.https_port, self.status_port = free_port(), free_port(), free_port()
        for instance in self.instances:
            (root / "run" / instance["name"]).mkdir(parents=True)
            (root / "run" / instance["name"] / "state.json").touch()
        self._write()
        self._nginx = [str(nginx()), "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]
        self._process = subprocess.Popen([*self._nginx, "-g", "daemon off;"], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"NGINX does not start: {self._process.communicate(timeout=5)[1]}{self.log()}")
            time.sleep(0.05)

    def _write(self) -> None:
        tree = self.root / "tree"
        tree.mkdir()
        subprocess.run(
            [
                *[
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "2",
                ],
                *["-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"],
                *["-keyout", str(self.root / "privkey.pem"), "-out", str(self.root / "fullchain.pem")],
            ],
            check=True,
            capture_output=True,
        )
        build = subprocess.run([str(nginx()), "-V"], capture_output=True, text=True, check=True).stderr
        variables = {"vllm_nginx_instances": self.instances, "vllm_nginx_status_port": self.status_port}
        files = {name: (ROLE / "files" / name).read_text(encoding="utf-8") for name in ("tls.conf", "vllm.js")}
        files |= {name: render(f"{name}.j2", **variables) for name in ("vllm.conf", "errors.conf")}
        files["models.js"] = f"export default {json.dumps(_checks.proxy_models(self.instances))};\n"
        files[_nginx.KEY_FILE] = _nginx.key_include(ENGINE_KEY)
        files[_nginx.CLIENTS_FILE] = _clients.clients_conf(_clients.records(CLIENTS))
        files["limits.conf"] = _clients.limits_conf(_clients.records(CLIENTS))
        for name, text in files.items():
            fitted = self._here(_nginx.adapt(text, _nginx.parse_build(build, ipv6=False)))
            (tree / name).write_text(fitted.replace(_nginx.TREE, str(tree)).replace(_nginx.DIGEST, "digest"))
        folders = "".join(
            f"{kind}_temp_path {self.root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        module = UNPACKED / "usr/lib/nginx/modules/ngx_http_js_module.so"
        load = f"load_module {module if module.exists() else '/usr/lib/nginx/modules/ngx_http_js_module.so'};\n"
        (self.root / "nginx.conf").write_text(
            f"{load}worker_processes 1;\npid {self.root}/pid;\nerror_log {self.root}/error.log info;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"events {{}}\nhttp {{\n{folders}include {tree}/vllm.conf;\n}}\n"
        )

    def _here(self, text: str) -> str:
        """The only differences from a host: ports and folders."""
        for there, instead in {
            "listen 80": f"listen 127.0.0.1:{self.http_port}",
            "listen 443": f"listen 127.0.0.1:{self.https_port}",
            "/etc/vllm/tls/current": str(self.root),
            "/run/vllm": str(self.root / "run"),
            "/var/log/nginx/vllm_access.log": str(self.root / "access.log"),
        }.items():
            text = text.replace(there, instead)
        return text

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.status_port), 1):
            return True
        return False

    def log(self) -> str:
        """NGINX's error log."""
        file = self.root / "error.log"
        return file.read_text() if file.exists() else ""

    def logged(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in (self.root / "access.log").read_text().splitlines()]

    def ask(
        self, method: str, path: str, body: Any = None, key: str | None = KEY, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """One request on a connection of its own: status, headers in lower case, and the JSON that came. `body`: JSON, or bytes as they are."""
        context = ssl.create_default_context(cafile=str(self.root / "fullchain.pem"))
        raw = socket.create_connection(("127.0.0.1", self.https_port), 30)
        connection = http.client.HTTPSConnection(DOMAIN, timeout=30)
        connection.sock = context.wrap_socket(raw, server_hostname=DOMAIN)
        sent = {"Content-Type": "application/json", **headers}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), sent)
            answer = connection.getresponse()
            text = answer.read()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                json.loads(text or "null"),
            )
        finally:
            connection.close()

    def chat(self, body: Any, path: str = "/v1/chat/completions", key: str = KEY) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        status, _headers, answer = self.ask("POST", path, body, key)
        return status, answer

    def set_away(self, instance: str, away: bool = True) -> None:
        """What its launcher does."""
        marker = self.root / "run" / instance / "away"
        if away:
            marker.touch()
        else:
            marker.unlink()

    def close(self) -> None:
        """End everything."""
        self._process.terminate()
        self._process.communicate(timeout=10)
        for engine in self.engines.values():
            engine.stop()


@pytest.fixture(name="render")
def fixture_render() -> Callable[..., str]:
    """`render` for the tests."""
    return render


def nginx() -> str | None:
    """The one that `scripts/nginx` has unpacked, or the system's."""
    unpacked = UNPACKED / "usr/sbin/nginx"
    return str(unpacked) if unpacked.exists() else shutil.which("nginx")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def make_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """Make one; all end with the module."""
    if nginx() is None:
        pytest.skip("no NGINX here: `scripts/nginx .build/nginx` unpacks Debian's")
    made: list[Gateway] = []

    def make(models: Mapping[str, tuple[list[str], int]], default: str = "") -> Gateway:
        made.append(Gateway(tmp_path_factory.mktemp("gateway"), models, default))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    """Two models behind it, one with three replicas."""
    return make_gateway({"llama": (["llama-3", "gpt-4"], 3), "qwen": (["org/qwen"], 1)})
