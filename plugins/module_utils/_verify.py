# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An endpoint as a client sees it: requests over verified TLS, and a judgement of each answer."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from ansible_collections.gpuops.vllm.plugins.module_utils import _probes

HTTPS_PORT, HTTP_PORT = 443, 80
#: Events that are closer than this came in together: a reader takes some 0.05 ms for each that lies ready.
TOGETHER_S = 0.0005
# Few enough for a proxy that buffers to hold them all; a small model on a busy machine has spoken them before the reader
# gets its turn, now and then.
STREAM_TOKENS = 48
STREAM_ATTEMPTS = 40
#: From this attempt on there is a pause before each, s: an engine that has just been started may keep every core busy for a while.
STREAM_QUICK, STREAM_PAUSE_S = 10, 1.0
# A buffer of 4 KiB lets these tokens go in three pieces.
STREAM_MIN_ARRIVALS = 8
MIN_DAYS = 14.0
DAY_S = 86400
RENEW = (
    "Nothing has renewed it in time. On the host, 'systemctl list-timers certbot.timer' and 'journalctl -u certbot' say why; site.yml with --tags"
    " certificate gets a new one, or installs the one that you have put in the place of the old (vllm_tls_mode: provided)."
)


@dataclass(frozen=True)
class Check:
    """One thing that was tried. ``remedy`` is the next step where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case, and the body as JSON where it is JSON, else as text."""

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Model:
    """A model and the path that leads to it: ``""`` for the default one, else ``/NAME``."""

    prefix: str
    served_as: Sequence[str]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask and as whom. ``context`` decides which authority is trusted; ``timeout_s`` is for each step."""

    domain: str
    key: str
    context: ssl.SSLContext
    timeout_s: float

    def connect(self) -> ssl.SSLSocket:
        """A connection of its own. Raises OSError, also for a certificate that does not verify."""
        connection = socket.create_connection((self.domain, HTTPS_PORT), self.timeout_s)
        return self.context.wrap_socket(connection, server_hostname=self.domain)

    def open(self, method: str, path: str, key: str | None, body: Any = None) -> http.client.HTTPResponse:
        """Send a request on a connection of its own. Raises OSError, also for a certificate that does not verify."""
        connection = http.client.HTTPSConnection(self.domain, HTTPS_PORT, timeout=self.timeout_s, context=self.context)
        headers = {"Connection": "close", "Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, key: str | None = "") -> Answer:
        """Send a request with the client's key, with another or (None) without one."""
        with self.open(method, path, self.key if key == "" else key, body) as response:
            text = response.read().decode("utf-8", "replace")
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, as_json(text))


def as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def trust(ca_file: str, ca_pem: str) -> ssl.SSLContext:
    """Trust these authorities only, or the system's where none is named. Raises OSError for a file that is not PEM."""
    if ca_file or ca_pem:
        return ssl.create_default_context(cafile=ca_file or None, cadata=ca_pem or None)
    return ssl.create_default_context()


def openai_error(body: Any) -> str:
    """The message of an error in the form that OpenAI's SDKs read; ``""`` where it is not one."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping) or not {"message", "type", "code"} <= set(error):
        return ""
    return str(error["message"])


def shown(body: Any) -> str:
    """An answer in one short line."""
    text = body if isinstance(body, str) else json.dumps(body)
    return " ".join(text.split())[:200]


# ---- Generating ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A way to ask a model for something, and how to see that it is there."""

    path: str
    question: Mapping[str, Any]
    streams: bool
    produced: Callable[[Any], bool]


def _completion_tokens(body: Any) -> bool:
    return int(((body or {}).get("usage") or {}).get("completion_tokens") or 0) > 0


def _vector(body: Any) -> bool:
    return bool(body["data"][0]["embedding"])


KINDS = (
    Kind("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}, True, _completion_tokens),
    Kind("/v1/completions", {"prompt": "Hello"}, True, _completion_tokens),
    Kind("/v1/embeddings", {"input": "Hello"}, False, _vector),
)


def ask_model(endpoint: Endpoint, prefix: str, name: str) -> tuple[Kind | None, str]:
    """Have a model produce a token (or a vector) in the first way that it knows. Returns that way, or why there is none."""
    first_fault = ""
    for kind in KINDS:
        limits = {"max_tokens": 4, "temperature": 0} if kind.streams else {}
        answer = endpoint.ask("POST", prefix + kind.path, {"model": name, **kind.question, **limits})
        if answer.status == 200 and isinstance(answer.body, Mapping):
            try:
                if kind.produced(answer.body):
                    return kind, ""
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                pass
            return None, f"200 without a token: {shown(answer.body)}"
        first_fault = first_fault or f"{answer.status}: {openai_error(answer.body) or shown(answer.body)}"
        if answer.status not in {400, 404}:
            break
    return None, first_fault


@dataclass
class Stream:
    """When the events of a stream came in: seconds since the request."""

    times_s: list[float] = field(default_factory=list)

    def arrivals(self) -> int:
        """How often something came in: once for what a buffer let go at once, else nearly as often as there are events."""
        return bool(self.times_s) + sum(later - earlier >= TOGETHER_S for earlier, later in pairwise(self.times_s))

    def described(self) -> str:
        span_ms = (self.times_s[-1] - self.times_s[0]) * 1000 if self.times_s else 0.0
        return f"{len(self.times_s)} events in {self.arrivals()} arrivals over {span_ms:.0f} ms"


def read_events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of each server-sent event, as soon as it is there, without the closing ``[DONE]``."""
    rest = b""
    while piece := response.read1(65536):
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data:").strip()
            if event.startswith(b"data:") and data != b"[DONE]":
                yield data


def stream_once(endpoint: Endpoint, prefix: str, name: str, kind: Kind) -> Stream:
    """Stream some tokens and note when they come. Raises ValueError where no stream is given."""
    # ignore_eos is vLLM's: a model that answers in three words would tell nothing about buffering.
    body = {"model": name, **kind.question, "stream": True, "max_tokens": STREAM_TOKENS, "ignore_eos": True}
    started = time.perf_counter()
    with endpoint.open("POST", prefix + kind.path, endpoint.key, body) as response:
        content_type = response.getheader("Content-Type") or ""
        if response.status != 200 or not content_type.startswith("text/event-stream"):
            said = response.read().decode("utf-8", "replace")
            raise ValueError(f"{response.status}, {content_type or 'no type'}: {shown(as_json(said))}")
        return Stream([time.perf_counter() - started for _event in read_events(response)])


# ---- Checks ----------------------------------------------------------------------------------------------------------


def check_certificate(endpoint: Endpoint, now: float, min_days: float = MIN_DAYS) -> list[Check]:
    """TLS with the name and the chain verified, and then how long the certificate is still good. ``now`` in seconds since the epoch.

    Fewer than ``min_days`` are too few, but never more than a sixth of its lifetime: short-lived ones are renewed at a third.
    """
    name = "certificate"
    try:
        with (
            socket.create_connection((endpoint.domain, HTTPS_PORT), endpoint.timeout_s) as connection,
            endpoint.context.wrap_socket(connection, server_hostname=endpoint.domain) as tls,
        ):
            certificate: dict[str, Any] = tls.getpeercert() or {}
            version = tls.version()
    except ssl.SSLCertVerificationError as error:
        remedy = (
            "For an authority that this machine does not know, set vllm_verify_ca_file to its CA (PEM). A self-signed"
            " placeholder means that vllm_certbot has not got a certificate yet: run site.yml with --tags certificate."
        )
        said = error.verify_message or str(error)
        return [Check(name, False, said, RENEW if "expired" in said else remedy)]
    except OSError as error:
        remedy = f"Does vllm_domain ({endpoint.domain}) lead to the host, and is port 443 open from here?"
        return [Check(name, False, str(error), remedy)]
    issuer = {str(key): str(value) for part in certificate.get("issuer", ()) for key, value in part}
    begins, ends = (ssl.cert_time_to_seconds(str(certificate[moment])) for moment in ("notBefore", "notAfter"))
    by = issuer.get("organizationName") or issuer.get("commonName") or "?"
    left, lifetime = (ends - now) / DAY_S, (ends - begins) / DAY_S
    return [
        Check(name, True, f"{version}, from {by}"),
        Check(
            "certificate's end", left >= min(min_days, lifetime / 6), f"{left:.1f} of {lifetime:.0f} days left", RENEW
        ),
    ]


def check_redirect(endpoint: Endpoint) -> Check:
    """Port 80 leads to HTTPS, under the same name."""
    remedy = "Run site.yml with --tags proxy, and see that port 80 is open and no other vhost answers for this name."
    connection = http.client.HTTPConnection(endpoint.domain, HTTP_PORT, timeout=endpoint.timeout_s)
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        return Check("redirect", False, str(error), remedy)
    finally:
        connection.close()
    target = answer.getheader("Location") or ""
    ok = answer.status in {301, 308} and target == f"https://{endpoint.domain}/v1/models"
    return Check("redirect", ok, f"{answer.status} to {target or 'nowhere'}", remedy)


def check_keys(endpoint: Endpoint, prefix: str) -> list[Check]:
    """The right key opens, a wrong one and none do not; a key in the wrong case is a wrong one."""
    path = f"{prefix}/v1/models"
    proxy = "Only the proxy knows client keys: run site.yml with --tags proxy, and see that clients come through it."
    checks = []
    answer = endpoint.ask("GET", path)
    remedy = "Is this key in vllm_api_keys? For a 503, see 'systemctl status vllm.target' on the host."
    checks.append(Check("right key", answer.status == 200, f"GET {path}: {answer.status}", remedy))
    wrong_keys: dict[str, str | None] = {"wrong key": "no-such-key-0123456789", "missing key": None}
    if endpoint.key != endpoint.key.swapcase():
        wrong_keys["key in the wrong case"] = endpoint.key.swapcase()
    for name, key in wrong_keys.items():
        answer = endpoint.ask("GET", path, key=key)
        ok = answer.status == 401 and bool(openai_error(answer.body))
        checks.append(Check(name, ok, f"GET {path}: {answer.status}", proxy))
    return checks


def check_further_keys(endpoint: Endpoint, prefix: str, keys: Sequence[str]) -> Check:
    """Each of these opens as well."""
    path = f"{prefix}/v1/models"
    statuses = [endpoint.ask("GET", path, key=key).status for key in keys]
    detail = f"GET {path}: {', '.join(map(str, statuses))}"
    remedy = "Is the proxy's configuration that of this inventory? Run site.yml with --tags proxy."
    # Who is told to come less often has shown a key that opens.
    return Check("further keys", all(status in {200, 429} for status in statuses), detail, remedy)


def check_model(endpoint: Endpoint, model: Model) -> list[Check]:
    """Every name answers with a token, the list shows them, another name is a 404, and a stream is one."""
    where = f"{model.prefix}/v1"
    remedy = "See 'journalctl -u vllm@NAME-0' on the host, and the proxy's log /var/log/nginx/vllm_access.log."
    answer = endpoint.ask("GET", f"{where}/models")
    listed = answer.body.get("data") if answer.status == 200 and isinstance(answer.body, Mapping) else []
    names = [str(entry.get("id")) for entry in listed or [] if isinstance(entry, Mapping)]
    ok = set(model.served_as) <= set(names)
    checks = [Check(f"{where}/models", ok, f"{answer.status}: {', '.join(names) or shown(answer.body)}", remedy)]

    working: tuple[str, Kind] | None = None
    for name in model.served_as:
        kind, fault = ask_model(endpoint, model.prefix, name)
        checks.append(
            Check(f"{where} model {name}", kind is not None, fault or f"a token by {kind and kind.path}", remedy)
        )
        if kind and not working:
            working = name, kind

    unknown = {"model": "no-such-model", "messages": [{"role": "user", "content": "Hello"}]}
    answer = endpoint.ask("POST", f"{where}/chat/completions", unknown)
    ok = answer.status == 404 and bool(openai_error(answer.body))
    checks.append(Check(f"{where} unknown model", ok, f"{answer.status}: {shown(answer.body)}", remedy))

    if working and working[1].streams:
        checks.append(check_stream(endpoint, model.prefix, *working))
    return checks


def check_stream(
    endpoint: Endpoint, prefix: str, name: str, kind: Kind, pause: Callable[[float], object] = time.sleep
) -> Check:
    """Events come one after another. The best of some attempts counts: a busy reader finds several, a buffer holds all."""
    title = f"{prefix}/v1 stream"
    best = Stream()
    for attempt in range(STREAM_ATTEMPTS):
        if attempt >= STREAM_QUICK:
            pause(STREAM_PAUSE_S)
        try:
            stream = stream_once(endpoint, prefix, name, kind)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Check(title, False, str(error), "See the proxy's log /var/log/nginx/vllm_access.log on the host.")
        if not best.times_s or stream.arrivals() > best.arrivals():
            best = stream
        if best.arrivals() >= STREAM_MIN_ARRIVALS:
            return Check(title, True, best.described())
    remedy = (
        "Something between here and vLLM holds events back: another proxy in front of the host? The proxy's own"
        " proxy_buffering is off after site.yml with --tags proxy."
    )
    return Check(title, False, best.described(), remedy)


def check_closed(addresses: Sequence[str], ports: Sequence[int], timeout_s: float) -> list[Check]:
    """No engine's port can be reached from here. ``addresses`` are names or addresses of the host."""
    found: dict[str, None] = {}
    for address in addresses:
        try:
            for info in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM):
                found[str(info[4][0])] = None
        except OSError as error:
            return [Check(f"{address} closed", False, f"not resolved: {error}", "Does this name lead to the host?")]
    outside = [address for address in found if not ipaddress.ip_address(address.partition("%")[0]).is_loopback]
    if not outside:
        detail = "not proven: from here the host has loopback addresses only"
        return [Check("engine ports closed", True, detail)]
    return [_check_port(address, port, timeout_s) for port in sorted(set(ports)) for address in outside]


def _check_port(address: str, port: int, timeout_s: float) -> Check:
    name = f"port {port} closed"
    try:
        socket.create_connection((address, port), timeout_s).close()
    except OSError as error:
        return Check(name, True, f"{address}: {error}")
    remedy = "vLLM must listen on 127.0.0.1 only: see 'ss -ltnp' on the host for what listens there, and stop it."
    return Check(name, False, f"{address} answers on port {port}", remedy)


def check_probes(answers: Sequence[_probes.Answer]) -> Check:
    """No request got through that nothing behind the endpoint may see."""
    through = [f"{answer.probe.name}: {answer.said}" for answer in answers if not answer.refused]
    remedy = "Only the proxy of this role may be reached under the name: see what answers there, and run site.yml with --tags proxy."
    detail = f"{len(answers) - len(through)} of {len(answers)} refused" + (
        f"; not: {'; '.join(through)}" if through else ""
    )
    return Check("probes", not through, detail, remedy)


def verify(
    endpoint: Endpoint,
    models: Sequence[Model],
    addresses: Sequence[str],
    ports: Sequence[int],
    further_keys: Sequence[str] = (),
    min_days: float = MIN_DAYS,
) -> list[Check]:
    """Try all that a client relies on. Where the certificate fails, what needs it is not tried."""
    checks = check_closed(addresses, ports, timeout_s=3.0)
    checks.append(check_redirect(endpoint))
    certificate = check_certificate(endpoint, time.time(), min_days)
    checks += certificate
    if not certificate[0].ok:
        return checks
    steps: list[tuple[str, Callable[[], list[Check]]]] = []
    if models:
        steps.append(("keys", partial(check_keys, endpoint, models[0].prefix)))
    if models and further_keys:
        steps.append(("further keys", lambda: [check_further_keys(endpoint, models[0].prefix, further_keys)]))
    steps += [(f"{model.prefix}/v1", partial(check_model, endpoint, model)) for model in models]
    for name, step in steps:
        try:
            checks += step()
        except (OSError, http.client.HTTPException) as error:
            remedy = "See the proxy's logs in /var/log/nginx/ on the host."
            checks.append(Check(name, False, f"{type(error).__name__}: {error}", remedy))
    return checks


def report(checks: Sequence[Check]) -> str:
    """The failed checks, each with its next step."""
    failed = [check for check in checks if not check.ok]
    lines = [f"- {check.name}: {check.detail}\n  {check.remedy}" for check in failed]
    return f"{len(failed)} of {len(checks)} checks failed:\n" + "\n".join(lines)
