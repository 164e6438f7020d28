# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role vllm_nginx's configuration in a real NGINX on loopback, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import html
import http.client
import http.server
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible.plugins.filter.core import flatten, to_bool
from ansible_collections.gpuops.vllm.plugins.module_utils import _checks, _clients, _nginx

REPO = Path(__file__).resolve().parents[2]
ROLE = REPO / "roles/vllm_nginx"
UNPACKED = REPO / ".build" / "nginx"
DOMAIN = "llm.example.com"
KEY = "a-clients-key-0123456789"
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


class Server(http.server.ThreadingHTTPServer):
    """Takes many connections at once."""

    daemon_threads = True
    request_queue_size = 256


class Engine:
    """An HTTP server in the place of an instance: answers what it was asked, and by whose name it is.

    A request with ``"stream": true`` gets ``max_tokens`` events, one each `pace_s` seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.arrived = 0
        self.pace_s = 0.0
        self.connections: set[socket.socket] = set()
        #: A stream to say as it is, in these pieces, in the place of its events.
        self.pieces: list[bytes] = []
        #: Members of answers in one piece, besides what was asked.
        self.also: dict[str, Any] = {}
        #: Cleared, it answers nobody.
        self.answers = threading.Event()
        self.answers.set()
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                # Who asked may be gone.
                with contextlib.suppress(OSError):
                    self._answer()

            def _answer(self) -> None:
                engine.connections.add(self.connection)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                engine.arrived += 1
                engine.answers.wait()
                asked = {"engine": engine.name, "method": self.command, "path": self.path, "bytes": len(body)}
                engine.asked.append({**asked, "headers": dict(self.headers), "body": body})
                request = json.loads(body) if b'"stream": true' in body else {}
                if request.get("stream"):
                    self._stream(request)
                    return
                answer = json.dumps({**asked, **engine.also}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _stream(self, request: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in engine.pieces or engine.events(request):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    time.sleep(engine.pace_s)
                self.wfile.write(b"0\r\n\r\n")

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def events(request: Mapping[str, Any]) -> list[bytes]:
        """A stream as vLLM's."""
        said: list[Any] = [{"choices": [{"delta": {"content": f"{n} "}}]} for n in range(request["max_tokens"])]
        if (request.get("stream_options") or {}).get("include_usage"):
            said.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": request["max_tokens"]}})
        return [f"data: {json.dumps(one)}\n\n".encode() for one in said] + [b"data: [DONE]\n\n"]

    def die(self) -> None:
        """As by SIGKILL: every connection breaks, and no new one comes about."""
        self.stop()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


def instance(name: str, model: str, port: int, **changes: Any) -> dict[str, Any]:
    """An instance on loopback, as the plan computes it."""
    return {
        "name": name,
        "model_name": model,
        "served_as": [model],
        "engine_args": {},
        "address": "127.0.0.1",
        "port": port,
        "default": False,
        **changes,
    }


class Gateway:
    """NGINX with the role's configuration below `root`, in front of `instances`, for `clients` (an inventory's keys).

    `variables` are the role's own. It is closed by `close`.
    """

    #: How many processes, for nginx.conf: a test reads what one did.
    PROCESSES = "worker_processes 1;\nevents {}\n"

    def __init__(
        self, root: Path, instances: Sequence[Mapping[str, Any]], clients: Sequence[Mapping[str, Any]], **variables: Any
    ) -> None:
        self.root = root
        self.http_port, self.https_port, self.status_port = free_port(), free_port(), free_port()
        self._trees = itertools.count()
        self._trusted = ""
        self._wanted: dict[str, Any] = {"instances": instances, "clients": clients, "variables": variables}
        self.make_certificate()
        self._write()
        self._nginx = [str(nginx()), "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]
        self._process = subprocess.Popen([*self._nginx, "-g", "daemon off;"], stderr=subprocess.PIPE, text=True)
        self._wait()

    @property
    def pid(self) -> int:
        """NGINX's main process."""
        return self._process.pid

    def configure(self, **changes: Any) -> None:
        """Change `instances`, `clients` or `variables`, by a reload as on a host."""
        self._wanted |= changes
        self._write()
        self.reload()

    def reload(self) -> None:
        """Wait until the configuration as it lies there is the one that answers."""
        subprocess.run([*self._nginx, "-t", "-q"], check=True, capture_output=True, text=True)
        subprocess.run([*self._nginx, "-s", "reload"], check=True, capture_output=True, text=True)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while self._digest() != self._tree.name:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (
                    self._process.communicate(timeout=5)[1] if self._process.poll() is not None else ""
                ) + self.log()
                raise AssertionError(f"NGINX does not load {self._tree}: {said}")
            time.sleep(0.02)

    def _digest(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.status_port, timeout=5)
        try:
            connection.request("GET", "/digest", headers={"Host": "localhost"})
            return connection.getresponse().read().decode().strip()
        except OSError:
            return ""
        finally:
            connection.close()

    @property
    def instances(self) -> list[dict[str, Any]]:
        """What it leads to."""
        return list(self._wanted["instances"])

    def served(self) -> bytes:
        """The certificate that new connections get."""
        connection = self.connect(verify=False)
        try:
            assert isinstance(connection.sock, ssl.SSLSocket)
            return connection.sock.getpeercert(binary_form=True) or b""
        finally:
            connection.close()

    def make_certificate(self) -> None:
        """A new one in the place of that from before, which answers from the next reload on."""
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        subject = ["-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"]
        pair = ["-keyout", str(self.root / "privkey.pem"), "-out", str(self.root / "fullchain.pem")]
        subprocess.run(
            ["openssl", "req", "-x509", *curve, "-days", "2", *subject, *pair], check=True, capture_output=True
        )
        self._trusted += (self.root / "fullchain.pem").read_text()

    def _write(self) -> None:
        self._tree = self.root / f"tree{next(self._trees)}"
        self._tree.mkdir()
        instances = self._wanted["instances"]
        for one in instances:
            folder = self.root / "run" / one["name"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "state.json").touch()
        build = subprocess.run([str(nginx()), "-V"], capture_output=True, text=True, check=True).stderr
        own = {
            "vllm_nginx_instances": instances,
            "vllm_nginx_status_port": self.status_port,
            **self._wanted["variables"],
        }
        files = {name: (ROLE / "files" / name).read_text(encoding="utf-8") for name in ("vllm.js",)}
        files |= {name: render(f"{name}.j2", **own) for name in ("vllm.conf", "errors.conf", "tls.conf")}
        files["models.js"] = f"export default {json.dumps(_checks.proxy_models(instances))};\n"
        files[_nginx.KEY_FILE] = _nginx.key_include(ENGINE_KEY)
        records = _clients.records(self._wanted["clients"])
        files[_nginx.CLIENTS_FILE] = _clients.clients_conf(records)
        files["limits.conf"] = _clients.limits_conf(records)
        for name, text in files.items():
            fitted = self._here(_nginx.adapt(text, _nginx.parse_build(build, ipv6=False)))
            placed = fitted.replace(_nginx.TREE, str(self._tree)).replace(_nginx.DIGEST, self._tree.name)
            (self._tree / name).write_text(placed)
        folders = "".join(
            f"{kind}_temp_path {self.root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        module = UNPACKED / "usr/lib/nginx/modules/ngx_http_js_module.so"
        load = f"load_module {module if module.exists() else '/usr/lib/nginx/modules/ngx_http_js_module.so'};\n"
        (self.root / "nginx.conf").write_text(
            f"{load}{self.PROCESSES}pid {self.root}/pid;\nerror_log {self.root}/error.log info;\n"
            + ("user root;\n" if os.geteuid() == 0 else "")
            + f"http {{\n{folders}include {self._tree}/vllm.conf;\n}}\n"
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

    def log(self) -> str:
        """NGINX's error log."""
        file = self.root / "error.log"
        return file.read_text() if file.exists() else ""

    def logged(self, since: int = 0, count: int = 0) -> list[dict[str, Any]]:
        """The access log without its first ``since`` lines, once it has ``count`` more: NGINX writes a line when it has answered."""
        deadline = time.monotonic() + 10
        while len(lines := self._log_lines()[since:]) < count:
            assert time.monotonic() < deadline, f"{len(lines)} of {count} lines were logged"
            time.sleep(0.02)
        return [json.loads(line) for line in lines]

    def _log_lines(self) -> list[str]:
        file = self.root / "access.log"
        return (
            [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if file.exists()
            else []
        )

    def connect(self, verify: bool = True) -> http.client.HTTPSConnection:
        """A connection that is open already; it trusts every certificate that this gateway has had."""
        context = ssl.create_default_context(cadata=self._trusted)
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        raw = socket.create_connection(("127.0.0.1", self.https_port), 30)
        connection = http.client.HTTPSConnection(DOMAIN, timeout=30)
        connection.sock = context.wrap_socket(raw, server_hostname=DOMAIN)
        return connection

    def ask(
        self, method: str, path: str, body: Any = None, key: str | None = KEY, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """One request on a connection of its own: status, headers in lower case, and the JSON that came. `body`: JSON, or bytes as they are."""
        connection = self.connect()
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

    def stream(self, body: Any, path: str = "/v1/chat/completions", key: str = KEY) -> str:
        """The events of a POST, as they came."""
        connection = self.connect()
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
            with connection.getresponse() as answer:
                text = answer.read().decode()
                assert answer.status == 200, text
                return text
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
        """End NGINX."""
        self._process.terminate()
        self._process.communicate(timeout=10)


def nginx() -> str | None:
    """The one that `scripts/nginx` has unpacked, or the system's."""
    unpacked = UNPACKED / "usr/sbin/nginx"
    return str(unpacked) if unpacked.exists() else shutil.which("nginx")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
