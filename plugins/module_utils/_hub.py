# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's metadata from the hub, never its weights: its commit, its files' names, config.json, and the bytes of the weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from . import _checkpoint

# Real configs have kilobytes, real indexes a few megabytes; who answers may be anybody, and no time-out ends a parser.
CONFIG_MAX_BYTES = _checkpoint.CONFIG_MAX_BYTES
INDEX_MAX_BYTES = 16_000_000
LIST_MAX_BYTES = 8_000_000
PARSED_INDEX_MAX_BYTES = 2_000_000
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
CHUNK_BYTES = 65536

MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
COMMIT = re.compile(r"[0-9a-f]{40}")
TOKEN = re.compile(r"[!-~]+")
#: What an index says before or after the names of all tensors.
TOTAL_SIZE = re.compile(rb'"metadata"\s*:\s*(\{[^{}]{0,1000}\})')


_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Metadata:
    """What the plan asks of a model: its config.json, and the bytes of its weights, both of one commit.

    ``weights_bytes`` is None where the hub does not say; with one file of weights it counts that file's header, too.
    """

    config: dict[str, Any]
    weights_bytes: int | None


@dataclass(frozen=True)
class Snapshot:
    """A revision of a model: its commit (40 hexadecimal digits), and the names of its files that any terminal can show."""

    commit: str
    files: tuple[str, ...]


class Refusal(str):
    """A problem that is the hub's own word on this model or this token: asking again changes nothing."""

    __slots__ = ()


def resolve(model: str, revision: str, endpoint: str, token: str, timeout_s: float) -> Snapshot | str:
    """Return what a revision of ``model`` is, or one line that says why not and what to do; arguments as of `fetch`."""
    return _asked(model, revision, endpoint, token, timeout_s, lambda hub, found: found(hub.snapshot()))


def fetch(model: str, revision: str, endpoint: str, token: str, timeout_s: float) -> Metadata | str:
    """Return the metadata of ``model`` (``org/name``), or one line that says why not and what to do.

    :arg revision: branch, tag or commit; empty for main.
    :arg endpoint: the hub's address, ``http(s)://HOST[:PORT][/PATH]``.
    :arg token: goes to that host only; empty for none.
    :arg timeout_s: for everything together.
    """
    return _asked(model, revision, endpoint, token, timeout_s, _Hub.read)


def _asked(
    model: str,
    revision: str,
    endpoint: str,
    token: str,
    timeout_s: float,
    read: Callable[[_Hub, Callable[[_Found], None]], None],
) -> _Found | str:
    """Return the last that ``read`` has found within the time-out, or the problem."""
    problem = _invalid(model, revision, endpoint, token)
    if problem:
        return problem
    hub = _Hub(model, revision or "main", endpoint.rstrip("/"), token, timeout_s)
    results: list[_Found | str] = []

    def work() -> None:
        try:
            read(hub, results.append)
        except _HubError as error:
            results.append(error.problem)

    # A resolver that hangs and a server that drips its headers know no timeout: only leaving them behind ends both.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return results[-1] if results else hub.late()


def _invalid(model: str, revision: str, endpoint: str, token: str) -> str | None:
    """Check what becomes part of an address or a header, before anything is sent. The token is not repeated."""
    if not MODEL.fullmatch(model) or ".." in model:
        return f"{model!r} is no model of a hub: needs ORG/NAME of letters, digits, '.', '_' and '-'"
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        return (
            f"{model}: revision {revision!r} is no branch, tag or commit: needs letters, digits, '.', '_', '-' and '/'"
        )
    if not _is_endpoint(endpoint):
        return "the hub's address (vllm_hub_endpoint) needs the form http(s)://HOST[:PORT][/PATH], without user, password or query"
    if token and not TOKEN.fullmatch(token):
        return "vllm_hf_token (value not shown) holds a blank, a line break or a character outside printable ASCII: needs one line as the hub gave it"
    return None


def _is_endpoint(endpoint: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(endpoint)
        sound = TOKEN.fullmatch(endpoint) is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return sound and parts.scheme in ("http", "https") and not (parts.query or parts.fragment or "@" in parts.netloc)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address. Raises ValueError for a port that is none."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _count(text: str) -> int | None:
    """Return a header's number of bytes, or None where it is none."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _total_size(index: bytes) -> int | None:
    """Return the bytes of all tensors that an index names, without parsing the names where they are many."""
    ends = index[:4096] + b"\n" + index[-4096:]
    try:
        if found := TOTAL_SIZE.search(ends):
            return _checkpoint.total_size({"metadata": json.loads(found[1])})
        return _checkpoint.total_size(json.loads(index)) if len(index) <= PARSED_INDEX_MAX_BYTES else None
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class _Answer:
    """``headers`` are those of the hub itself, under lower case names, not those of a host it redirected to."""

    status: int
    headers: dict[str, str]
    length: int | None
    body: bytes


class _HubError(Exception):
    """The message is the problem that is told."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class _Hub:
    """One model of one hub, asked within one deadline for everything."""

    def __init__(self, model: str, revision: str, endpoint: str, token: str, timeout_s: float) -> None:
        self.model = model
        self.revision = revision
        self.endpoint = endpoint
        self.token = token
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        # From the environment only: what macOS would add is read by a call that must not follow a fork, as in Ansible's workers.
        # Without a handler for errors each answer comes back as it is, and no redirect is followed unseen.
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(urllib.request.getproxies_environment()),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.UnknownHandler(),
        ):
            self.opener.add_handler(handler)

    def read(self, found: Callable[[Metadata], None]) -> None:
        """Hand on the config, and once more when the size of the weights is known, too."""
        config = self.config()
        found(Metadata(config, None))
        # Without the size there is still the shape, which tells it, too.
        with contextlib.suppress(_HubError):
            found(Metadata(config, self.weights_bytes()))

    def late(self) -> str:
        remedy = "try again, or correct vllm_hub_endpoint and HTTPS_PROXY"
        return f"{self.model}: {self.endpoint} did not answer within {self.timeout_s:g} s; {remedy}"

    def snapshot(self) -> Snapshot:
        revision = urllib.parse.quote(self.revision, safe="")
        answer = self.request("GET", f"{self.endpoint}/api/models/{self.model}/revision/{revision}", LIST_MAX_BYTES)
        if answer.status != 200:
            raise _HubError(self.refusal(answer))
        told = self.parsed("list of files", answer.body) if len(answer.body) <= LIST_MAX_BYTES else None
        commit = told.get("sha") if isinstance(told, dict) else None
        listed = told.get("siblings") if isinstance(told, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(listed, list):
            raise _HubError(
                f"{self.model}: {self.endpoint} does not say which commit {self.revision} is; correct vllm_hub_endpoint"
            )
        names = (one.get("rfilename") for one in listed if isinstance(one, dict))
        return Snapshot(commit, tuple(name for name in names if isinstance(name, str) and name.isprintable()))

    def config(self) -> dict[str, Any]:
        answer = self.get("config.json", CONFIG_MAX_BYTES)
        if answer.status != 200:
            raise _HubError(self.refusal(answer))
        commit = answer.headers.get("x-repo-commit", "")
        if COMMIT.fullmatch(commit):
            # The next files shall be of the same commit.
            self.revision = commit
        config = self.parsed("config.json", answer.body)
        if not isinstance(config, dict):
            raise _HubError(
                f"{self.model}: config.json of {self.endpoint} holds no JSON object; correct vllm_hub_endpoint or the model"
            )
        if _checkpoint.quantization_method(config):
            return config
        answer = self.get("hf_quant_config.json", CONFIG_MAX_BYTES)
        if answer.status == 404:
            return config
        if answer.status != 200:
            raise _HubError(self.refusal(answer))
        return _checkpoint.with_modelopt(config, self.parsed("hf_quant_config.json", answer.body))

    def weights_bytes(self) -> int | None:
        name = "model.safetensors.index.json"
        answer = self.get(name, INDEX_MAX_BYTES)
        if answer.status == 200:
            return _total_size(answer.body)
        if answer.status != 404:
            return None
        answer = self.ask("HEAD", "model.safetensors", 0)
        if linked := _count(answer.headers.get("x-linked-size", "")):
            return linked
        return answer.length or None if answer.status == 200 else None

    def refusal(self, answer: _Answer) -> str:
        """Say what an answer without the file means. The hub answers 401 for a model that is not there, too."""
        problem = self._refusal(answer)
        of_the_model = answer.status in (401, 403, 404) and answer.headers.get("x-error-code") != "EntryNotFound"
        return Refusal(problem) if of_the_model else problem

    def _refusal(self, answer: _Answer) -> str:
        code = answer.headers.get("x-error-code", "")
        if answer.status in (401, 403):
            licence = f"accept its licence on {self.endpoint}/{self.model}"
            if not self.token:
                remedy = f"correct the name, or, for a gated or private model, {licence} and set vllm_hf_token"
                return f"{self.model}: the hub answers {answer.status} without a token: {remedy}"
            if code == "RepoNotFound":
                remedy = "correct the name or the token"
                return f"{self.model}: {self.endpoint} knows no such model, or vllm_hf_token may not see it: {remedy}"
            remedy = f"{licence} with the token's account, or set a token that may read it"
            return f"{self.model}: the hub answers {answer.status} to vllm_hf_token: {remedy}"
        if answer.status == 404:
            if code == "EntryNotFound":
                return f"{self.model}: revision {self.revision} on {self.endpoint} holds no config.json: name a model in the transformers format"
            if code == "RevisionNotFound":
                return f"{self.model}: {self.endpoint} has no revision {self.revision} of it: correct the revision"
            return f"{self.model}: {self.endpoint} has no such model or no revision {self.revision} of it: correct the name or the revision"
        if answer.status == 429:
            more = "" if self.token else ", or set vllm_hf_token, whose limit is higher"
            return f"{self.model}: {self.endpoint} limits the number of requests (429): wait some minutes{more}"
        return f"{self.model}: {self.endpoint} answers {answer.status}: try again later, or correct vllm_hub_endpoint"

    def parsed(self, name: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise _HubError(
                f"{self.model}: {self.endpoint} sends a {name} that is not JSON; correct vllm_hub_endpoint or the model"
            ) from None

    def get(self, name: str, limit: int) -> _Answer:
        answer = self.ask("GET", name, limit)
        if answer.status == 200 and len(answer.body) > limit:
            raise _HubError(
                f"{self.model}: {self.endpoint} sends a {name} of more than {limit} bytes; correct vllm_hub_endpoint or the model"
            )
        return answer

    def ask(self, method: str, name: str, limit: int) -> _Answer:
        revision = urllib.parse.quote(self.revision, safe="")
        return self.request(method, f"{self.endpoint}/{self.model}/resolve/{revision}/{name}", limit)

    def request(self, method: str, url: str, limit: int) -> _Answer:
        """Ask for an address, through a few redirects. Reads one byte more than ``limit``, so that too much shows."""
        own: dict[str, str] = {}
        try:
            for _hop in range(MAX_REDIRECTS + 1):
                with self.open(method, url) as response:
                    headers = {key.lower(): value for key, value in response.headers.items()}
                    if _origin(url) == _origin(self.endpoint):
                        own |= headers
                    place = headers.get("location", "") if response.status in REDIRECTS else ""
                    # A large file lies elsewhere, at an address that is signed for GET; its size is told here.
                    if not place or (method == "HEAD" and "x-linked-size" in own):
                        wanted = method == "GET" and response.status == 200
                        body = self.body(response, limit + 1) if wanted else b""
                        return _Answer(response.status, own, _count(headers.get("content-length", "")), body)
                url = self.redirected(url, place)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _HubError(self.unreachable(error)) from None
        raise _HubError(
            f"{self.model}: {self.endpoint} redirects more than {MAX_REDIRECTS} times; correct vllm_hub_endpoint"
        )

    def open(self, method: str, url: str) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, method=method, headers={"User-Agent": "gpuops.vllm"})  # noqa: S310 # scheme is checked
        if self.token and _origin(url) == _origin(self.endpoint):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        response: http.client.HTTPResponse = self.opener.open(request, timeout=self.left_s())
        return response

    def redirected(self, url: str, place: str) -> str:
        """Return where a redirect leads, on http only where the endpoint is that itself."""
        target = urllib.parse.urljoin(url, place)
        if _origin(target)[0] not in {"https", _origin(self.endpoint)[0]}:
            raise _HubError(
                f"{self.model}: {self.endpoint} redirects to an address without TLS; correct vllm_hub_endpoint"
            )
        return target

    def body(self, response: http.client.HTTPResponse, most: int) -> bytes:
        body = bytearray()
        while len(body) < most and (piece := response.read1(min(CHUNK_BYTES, most - len(body)))):
            body += piece
            self.left_s()
        return bytes(body)

    def left_s(self) -> float:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def unreachable(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return self.late()
        text = getattr(reason, "strerror", None) or (str(reason) if isinstance(reason, (OSError, str)) else "")
        words = "".join(letter if letter.isprintable() else " " for letter in text or type(reason).__name__)[:200]
        remedy = "check the network, HTTPS_PROXY and vllm_hub_endpoint"
        return f"{self.model}: {self.endpoint} cannot be reached ({words}): {remedy}"
