"""What the tests know of an endpoint of the lab: its address, its key, its authority, and an unmodified OpenAI client."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import openai

TOP = Path(__file__).resolve().parents[2]
CA = TOP / ".lab" / "ca.pem"
KEY = TOP / ".demo" / "api_key"


def url(host: str, path: str = "") -> str:
    """Return the URL of a path on a machine of the lab."""
    return f"https://{host}.vllm.test{path}"


def http(certificate: str = "") -> openai.DefaultHttpxClient:
    """Return a client that trusts a self-signed certificate (PEM), else the lab's authority, and nothing else."""
    trusted = ssl.create_default_context(cafile=None if certificate else str(CA), cadata=certificate or None)
    return openai.DefaultHttpxClient(verify=trusted, timeout=60, follow_redirects=False)


def client(host: str, prefix: str = "", key: str | None = None, certificate: str = "") -> openai.OpenAI:
    """Return OpenAI's client with only base_url and api_key set; `http_client` stands for SSL_CERT_FILE."""
    return openai.OpenAI(
        base_url=url(host, f"{prefix}/v1"),
        api_key=KEY.read_text().strip() if key is None else key,
        http_client=http(certificate),
        max_retries=0,
    )


def wait_until_it_answers(host: str, limit_s: float) -> float:
    """Ask the engine of `demo` for its models until it answers; return the seconds it took. Raises TimeoutError."""
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        try:
            client(host, "/demo").models.list()
        except openai.APIError:
            time.sleep(1)
        else:
            return time.monotonic() - start
    raise TimeoutError(f"{url(host)} did not answer within {limit_s} s")
