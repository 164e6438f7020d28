"""The programs that `make bench-proxy` measures, on loopback: the upstream, and before it NGINX alone, this collection's gateway or LiteLLM's proxy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import gateway
from streams import Way

UPSTREAM = Path(__file__).with_name("upstream.py")
MODEL = "bench"
LITELLM_KEY = "sk-the-benchs-key-0123456789"
# It imports for a minute of CPU time, more where there is other work.
START_S = 400.0


class Gateway(gateway.Gateway):
    """As Debian's nginx.conf has it."""

    PROCESSES = "worker_processes auto;\nevents { worker_connections 768; }\n"


#: The least that a proxy with TLS can be.
ALONE = """\
access_log off;
upstream engine {{
    zone engine 64k;
    server 127.0.0.1:{engine};
    keepalive 32;
}}
server {{
    listen 127.0.0.1:{https} ssl;
    include {tree}/tls.conf;
    ssl_certificate {root}/fullchain.pem;
    ssl_certificate_key {root}/privkey.pem;
    proxy_buffering off;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / {{
        proxy_pass http://engine;
    }}
}}
server {{
    listen 127.0.0.1:{status};
    location = /digest {{
        return 200 {digest};
    }}
}}
"""


class Alone(Gateway):
    """The same NGINX with the same TLS, and nothing else of the role."""

    def _write(self) -> None:
        super()._write()
        ports = {"engine": self.instances[0]["port"], "https": self.https_port, "status": self.status_port}
        text = ALONE.format(root=self.root, tree=self._tree, digest=self._tree.name, **ports)
        (self._tree / "vllm.conf").write_text(text)


@contextlib.contextmanager
def upstream(events_per_s: float) -> Iterator[tuple[int, int]]:
    """Start the paced upstream; its process and its port."""
    process = subprocess.Popen(
        [sys.executable, str(UPSTREAM), "--events-per-s", str(events_per_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def nginx(kind: type[Gateway], name: str, root: Path, port: int) -> Iterator[tuple[int, Way]]:
    """Start NGINX, with a second model so that the gateway must look into the body; its main process and the way."""
    instances = [gateway.instance(f"{model}-0", model, port) for model in (MODEL, "other")]
    root.mkdir()
    made = kind(root, instances, [{"name": "bench", "key": gateway.KEY}])
    try:
        trusted = ssl.create_default_context(cafile=str(root / "fullchain.pem"))
        yield made.pid, Way(name, made.https_port, gateway.DOMAIN, gateway.KEY, MODEL, trusted)
    finally:
        made.close()


def litellm_config(port: int) -> str:
    """LiteLLM's own advice for production, as far as it is about more than a database: YAML."""
    return json.dumps(
        {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {
                        "model": f"hosted_vllm/{name}",
                        "api_base": f"http://127.0.0.1:{port}/v1",
                        "api_key": "none",
                    },
                }
                for name in (MODEL, "other")
            ],
            "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True, "telemetry": False},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        }
    )


def litellm_environment(venv: Path, home: Path) -> Mapping[str, str]:
    """Nothing of ours; no debugging, no .env, and no prices from the internet at the start."""
    return {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "LITELLM_MASTER_KEY": LITELLM_KEY,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@contextlib.contextmanager
def litellm(venv: Path, root: Path, port: int) -> Iterator[tuple[int, Way]]:
    """Start LiteLLM's proxy with a worker for each core; its main process and the way. Raises RuntimeError with its last words."""
    config, log = root / "litellm.yaml", root / "litellm.log"
    config.write_text(litellm_config(port))
    here = gateway.free_port()
    options = ["--host", "127.0.0.1", "--port", str(here), "--num_workers", str(os.cpu_count()), "--telemetry", "False"]
    # Uvicorn ends a worker that has not answered it for 5 s, as none may where the cores are full, by ours or by others.
    options += ["--timeout_worker_healthcheck", "120"]
    with log.open("w") as words:
        process = subprocess.Popen(
            [str(venv / "bin" / "litellm"), "--config", str(config), *options],
            env=litellm_environment(venv, root),
            cwd=root,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    way = Way("litellm", here, "localhost", LITELLM_KEY, MODEL)
    try:
        until = time.monotonic() + START_S
        while ask(way)[0] != 200:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"LiteLLM does not serve: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield process.pid, way
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(way: Way, stream: bool = False) -> tuple[int, str]:
    """Return status and text of one answer on a connection of its own; 0 and the error where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", way.port, timeout=30)
    try:
        if way.tls:
            connection.connect()
            connection.sock = way.tls.wrap_socket(connection.sock, server_hostname=way.host)
        wanted = {"model": way.model, "messages": [{"role": "user", "content": "Is it there?"}]}
        body = json.dumps(wanted | ({"stream": True, "max_tokens": 3} if stream else {}))
        headers = {"Authorization": f"Bearer {way.key}", "Content-Type": "application/json", "Host": way.host}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()
