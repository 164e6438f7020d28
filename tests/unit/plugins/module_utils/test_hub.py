# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub's metadata, asked of a stand-in on loopback that also misbehaves."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _hub

MODEL = "some-org/Some-Model_7B.v1"
TOKEN = "hf_NotATokenOfAnybody"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"model_type": "llama", "hidden_size": 64}
INDEX = {"metadata": {"total_size": 12345}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    #: Sends the rest in the place of body.
    play: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None


@dataclass
class StandIn:
    """A server: what it answers, by path or by the file's name, and what it was asked."""

    address: str
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def has(self, name: str, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.replies[name] = Reply(200, body, {key.replace("_", "-"): value for key, value in headers.items()})

    def says(self, name: str, status: int, **headers: str) -> None:
        self.replies[name] = Reply(status, b"", {key.replace("_", "-"): value for key, value in headers.items()})

    def tokens(self) -> set[str | None]:
        return {token for _, _, token in self.asked}


def start() -> tuple[StandIn, Callable[[], None]]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.asked.append((self.command, self.path, self.headers["Authorization"]))
            name = self.path.rsplit("/", 1)[-1]
            reply = stand_in.replies.get(self.path) or stand_in.replies.get(name) or Reply(404)
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            if reply.play:
                reply.play(self)
                return
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(reply.body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *address: Any) -> None:
            if not isinstance(sys.exception(), OSError):  # the other side may hang up
                super().handle_error(*address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in = StandIn(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return stand_in, stop


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], StandIn]]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    stops = []

    def another() -> StandIn:
        stand_in, stop = start()
        stops.append(stop)
        return stand_in

    yield another
    for stop in stops:
        stop()


@pytest.fixture
def hub(servers: Callable[[], StandIn]) -> StandIn:
    stand_in = servers()
    stand_in.has("config.json", CONFIG, X_Repo_Commit=COMMIT)
    stand_in.has("model.safetensors.index.json", INDEX)
    return stand_in


def fetch(hub: StandIn, revision: str = "", token: str = TOKEN, timeout_s: float = 10.0) -> _hub.Metadata | str:
    return _hub.fetch(MODEL, revision, hub.address, token, timeout_s)


def test_the_config_and_the_size_of_the_weights_come_from_one_commit(hub: StandIn) -> None:
    assert fetch(hub) == _hub.Metadata(CONFIG, 12345)
    assert hub.asked == [
        ("GET", f"/{MODEL}/resolve/main/config.json", f"Bearer {TOKEN}"),
        ("GET", f"/{MODEL}/resolve/{COMMIT}/hf_quant_config.json", f"Bearer {TOKEN}"),
        ("GET", f"/{MODEL}/resolve/{COMMIT}/model.safetensors.index.json", f"Bearer {TOKEN}"),
    ]


def test_without_a_token_none_is_sent(hub: StandIn) -> None:
    fetch(hub, token="")
    assert hub.tokens() == {None}


def test_a_revision_and_an_address_with_a_path_are_kept(hub: StandIn) -> None:
    hub.has("config.json", CONFIG)
    found = _hub.fetch(MODEL, "refs/pr/1", f"{hub.address}/mirror/", "", 10.0)
    assert found == _hub.Metadata(CONFIG, 12345)
    assert {path.rsplit("/", 1)[0] for _, path, _ in hub.asked} == {f"/mirror/{MODEL}/resolve/refs%2Fpr%2F1"}


def test_a_commit_that_is_none_is_not_put_into_an_address(hub: StandIn) -> None:
    hub.has("config.json", CONFIG, X_Repo_Commit="../../../other/model/resolve/main")
    assert fetch(hub) == _hub.Metadata(CONFIG, 12345)
    assert f"/{MODEL}/resolve/main/model.safetensors.index.json" in [path for _, path, _ in hub.asked]


def test_one_file_of_weights_is_only_measured(hub: StandIn) -> None:
    hub.says("model.safetensors.index.json", 404)
    hub.says("model.safetensors", 200, Content_Length="777")
    assert fetch(hub) == _hub.Metadata(CONFIG, 777)
    assert hub.asked[-1][0] == "HEAD"


def test_the_size_of_a_file_that_lies_elsewhere_is_what_the_hub_says(
    hub: StandIn, servers: Callable[[], StandIn]
) -> None:
    elsewhere = servers()
    hub.says("model.safetensors.index.json", 404)
    hub.says("model.safetensors", 302, Location=f"{elsewhere.address}/blob", X_Linked_Size="888")
    assert fetch(hub) == _hub.Metadata(CONFIG, 888)
    assert elsewhere.asked == []


def test_a_size_told_only_by_the_other_host_is_asked_for_there(hub: StandIn, servers: Callable[[], StandIn]) -> None:
    elsewhere = servers()
    elsewhere.says("blob", 200, Content_Length="999")
    hub.says("model.safetensors.index.json", 404)
    hub.says("model.safetensors", 302, Location=f"{elsewhere.address}/blob")
    assert fetch(hub) == _hub.Metadata(CONFIG, 999)
    assert elsewhere.asked == [("HEAD", "/blob", None)]


@pytest.mark.parametrize("size", ["", "many", "-5", "0", "9" * 30, "²"])
def test_a_size_that_is_none_is_left_out(hub: StandIn, size: str) -> None:
    assert not _hub._count(size)
    hub.says("model.safetensors.index.json", 404)
    hub.says("model.safetensors", 302, Location="/blob", X_Linked_Size=size)
    assert fetch(hub) == _hub.Metadata(CONFIG, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_stays_with_the_hub_when_that_redirects(
    hub: StandIn, servers: Callable[[], StandIn], status: int
) -> None:
    elsewhere = servers()
    elsewhere.has("config.json", CONFIG, X_Repo_Commit="f" * 40)
    hub.says("config.json", status, Location=f"{elsewhere.address}/x/config.json", X_Repo_Commit=COMMIT)
    assert fetch(hub) == _hub.Metadata(CONFIG, 12345)
    assert elsewhere.asked == [("GET", "/x/config.json", None)]
    # The commit is the hub's own, too.
    assert hub.asked[-1][1] == f"/{MODEL}/resolve/{COMMIT}/model.safetensors.index.json"
    assert hub.tokens() == {f"Bearer {TOKEN}"}


def test_another_port_of_the_same_machine_is_another_host(hub: StandIn, servers: Callable[[], StandIn]) -> None:
    elsewhere = servers()
    elsewhere.says("config.json", 302, Location=f"{hub.address}/back/config.json")
    hub.replies["/back/config.json"] = Reply(200, json.dumps(CONFIG).encode())
    hub.says("config.json", 302, Location=f"{elsewhere.address}/config.json")
    assert isinstance(fetch(hub), _hub.Metadata)
    assert elsewhere.tokens() == {None}


def test_a_model_that_was_renamed_is_found_under_its_new_name(hub: StandIn) -> None:
    hub.replies[f"/{MODEL}/resolve/main/config.json"] = Reply(
        307, b"", {"Location": "/new/name/resolve/main/config.json"}
    )
    assert fetch(hub) == _hub.Metadata(CONFIG, 12345)
    assert hub.tokens() == {f"Bearer {TOKEN}"}


def test_circles_end(hub: StandIn) -> None:
    hub.says("config.json", 302, Location=f"/{MODEL}/resolve/main/config.json")
    assert fetch(hub) == f"{MODEL}: {hub.address} redirects more than 5 times; correct vllm_hub_endpoint"
    assert len(hub.asked) == 6


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/config.json", "file:///etc/hostname", "data:,{}"])
def test_a_redirect_to_another_protocol_is_not_followed(hub: StandIn, place: str) -> None:
    hub.says("config.json", 302, Location=place)
    assert fetch(hub) == f"{MODEL}: {hub.address} redirects to an address without TLS; correct vllm_hub_endpoint"


def test_a_redirect_away_from_tls_is_refused() -> None:
    hub = _hub._Hub(MODEL, "main", "https://hub.invalid", TOKEN, 1.0)
    with pytest.raises(_hub._HubError, match="redirects to an address without TLS"):
        hub.redirected("https://hub.invalid/a", "http://hub.invalid/a")
    assert hub.redirected("https://hub.invalid/a", "/b") == "https://hub.invalid/b"


def test_modelopt_tells_its_quantisation_in_a_file_of_its_own(hub: StandIn) -> None:
    hub.has("hf_quant_config.json", {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}})
    found = fetch(hub)
    assert isinstance(found, _hub.Metadata)
    assert found.config["quantization_config"] == {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
    }


def test_a_config_that_names_its_quantisation_is_enough(hub: StandIn) -> None:
    hub.has("config.json", {**CONFIG, "quantization_config": {"quant_method": "fp8"}})
    fetch(hub)
    assert [path.rsplit("/", 1)[-1] for _, path, _ in hub.asked] == ["config.json", "model.safetensors.index.json"]


@pytest.mark.parametrize(
    ("status", "code", "token", "problem"),
    [
        (
            401,
            "GatedRepo",
            "",
            "{model}: the hub answers 401 without a token: correct the name, or, for a gated or private model, accept its licence on {hub}/{model} and set vllm_hf_token",
        ),
        (
            403,
            "GatedRepo",
            TOKEN,
            "{model}: the hub answers 403 to vllm_hf_token: accept its licence on {hub}/{model} with the token's account, or set a token that may read it",
        ),
        (
            401,
            "RepoNotFound",
            TOKEN,
            "{model}: {hub} knows no such model, or vllm_hf_token may not see it: correct the name or the token",
        ),
        (404, "RevisionNotFound", TOKEN, "{model}: {hub} has no revision v9 of it: correct the revision"),
        (
            404,
            "EntryNotFound",
            TOKEN,
            "{model}: revision v9 on {hub} holds no config.json: name a model in the transformers format",
        ),
        (
            404,
            "",
            TOKEN,
            "{model}: {hub} has no such model or no revision v9 of it: correct the name or the revision",
        ),
        (429, "", TOKEN, "{model}: {hub} limits the number of requests (429): wait some minutes"),
        (
            429,
            "",
            "",
            "{model}: {hub} limits the number of requests (429): wait some minutes, or set vllm_hf_token, whose limit is higher",
        ),
        (503, "", TOKEN, "{model}: {hub} answers 503: try again later, or correct vllm_hub_endpoint"),
    ],
)
def test_a_refusal_says_what_to_do(hub: StandIn, status: int, code: str, token: str, problem: str) -> None:
    hub.says("config.json", status, X_Error_Code=code)
    assert fetch(hub, "v9", token) == problem.format(model=MODEL, hub=hub.address)


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_quantisation_that_cannot_be_read_is_not_taken_for_none(hub: StandIn, status: int) -> None:
    hub.says("hf_quant_config.json", status)
    assert isinstance(fetch(hub), str)


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"", b"\xff\xfe\x00", b"[" * 200_000, b"1" * 5000])
def test_garbage_is_no_config(hub: StandIn, body: bytes) -> None:
    hub.has("config.json", body)
    assert (
        fetch(hub)
        == f"{MODEL}: {hub.address} sends a config.json that is not JSON; correct vllm_hub_endpoint or the model"
    )


def test_a_config_is_an_object(hub: StandIn) -> None:
    hub.has("config.json", [CONFIG])
    assert (
        fetch(hub)
        == f"{MODEL}: config.json of {hub.address} holds no JSON object; correct vllm_hub_endpoint or the model"
    )


@pytest.mark.parametrize("index", [b"<html>", b"[" * 200_000, b"[]", b"{}", b'{"metadata": {"total_size": "12"}}'])
def test_an_index_that_is_none_only_leaves_the_size_out(hub: StandIn, index: bytes) -> None:
    hub.has("model.safetensors.index.json", index)
    assert fetch(hub) == _hub.Metadata(CONFIG, None)


MANY = {f"model.layers.{number}.weight": "model-00001-of-00002.safetensors" for number in range(50_000)}


@pytest.mark.parametrize(
    ("index", "size"),
    [
        ({"metadata": {"total_size": 9e9}, "weight_map": MANY}, 9_000_000_000),
        ({"metadata": {"total_parameters": 3, "total_size": 7}, "weight_map": MANY}, 7),
        ({"weight_map": MANY, "metadata": {"total_size": 7}}, 7),
        ({"weight_map": MANY, "metadata": {"total_size": "7"}}, None),
        ({"weight_map": MANY, "metadata": {"total_size": -7}}, None),
        # Between thousands of names: not looked for.
        ({"a": MANY, "metadata": {"total_size": 7}, "weight_map": MANY}, None),
        ({"weight_map": MANY}, None),
        # A small one is parsed.
        ({"metadata": {"format": {"name": "pt"}, "total_size": 7}, "weight_map": {}}, 7),
    ],
)
def test_the_size_is_read_without_the_names(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, index: dict[str, Any], size: int | None
) -> None:
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(len(text)) or loads(text))  # type: ignore[func-returns-value]
    hub.has("model.safetensors.index.json", json.dumps(index, indent=2).encode())
    assert fetch(hub) == _hub.Metadata(CONFIG, size)
    assert max(parsed) < 10_000


def test_files_are_read_up_to_a_limit(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_hub.CONFIG_MAX_BYTES, _hub.INDEX_MAX_BYTES) == (4_000_000, 16_000_000)
    size = len(json.dumps(CONFIG))
    monkeypatch.setattr(_hub, "CONFIG_MAX_BYTES", size)
    assert isinstance(fetch(hub), _hub.Metadata)
    monkeypatch.setattr(_hub, "CONFIG_MAX_BYTES", size - 1)
    assert (
        fetch(hub)
        == f"{MODEL}: {hub.address} sends a config.json of more than {size - 1} bytes; correct vllm_hub_endpoint or the model"
    )
    monkeypatch.setattr(_hub, "CONFIG_MAX_BYTES", size)
    monkeypatch.setattr(_hub, "INDEX_MAX_BYTES", 10)
    assert fetch(hub) == _hub.Metadata(CONFIG, None)


def test_an_endless_file_is_left_at_the_limit(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.end_headers()
        piece = b"x" * 65536
        while len(sent) < 4000:
            handler.wfile.write(piece)
            sent.append(len(piece))

    monkeypatch.setattr(_hub, "CONFIG_MAX_BYTES", 100_000)
    hub.replies["config.json"] = Reply(200, play=endless)
    answer = fetch(hub)
    assert isinstance(answer, str)
    assert "more than 100000 bytes" in answer
    # What the system's buffers took on the way is no part of it.
    assert sum(sent) < 50_000_000


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.flush_headers()
    for _ in range(90):
        handler.wfile.write(b"X-Slow: 1\r\n")
        time.sleep(0.02)


def drip_body(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    for _ in range(90):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def silence(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(2)


@pytest.mark.parametrize("play", [drip, drip_body, silence])
def test_a_slow_hub_is_given_up_in_time(
    hub: StandIn, play: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    hub.replies["config.json"] = Reply(200, play=play)
    began = time.monotonic()
    assert (
        fetch(hub, timeout_s=0.3)
        == f"{MODEL}: {hub.address} did not answer within 0.3 s; try again, or correct vllm_hub_endpoint and HTTPS_PROXY"
    )
    assert time.monotonic() - began < 1.5


def test_a_connection_that_takes_too_long_is_told_as_time() -> None:
    hub = _hub._Hub(MODEL, "main", "https://hub.invalid", TOKEN, 7.5)
    assert hub.unreachable(urllib.error.URLError(TimeoutError("timed out"))) == hub.late()
    assert "https://hub.invalid did not answer within 7.5 s" in hub.late()


def test_weights_that_cannot_be_seen_have_no_size(hub: StandIn) -> None:
    hub.says("model.safetensors.index.json", 404)
    hub.says("model.safetensors", 403, Content_Length="29")
    assert fetch(hub) == _hub.Metadata(CONFIG, None)


def test_a_config_in_hand_is_not_lost_to_a_slow_index(hub: StandIn) -> None:
    hub.replies["model.safetensors.index.json"] = Reply(200, play=silence)
    assert fetch(hub, timeout_s=0.5) == _hub.Metadata(CONFIG, None)


def test_a_hub_that_is_not_there_is_named(hub: StandIn, servers: Callable[[], StandIn]) -> None:
    # A port that is bound and not listened on stays nobody else's.
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler, False) as closed:
        closed.server_bind()
        address = f"http://127.0.0.1:{closed.server_address[1]}"
        assert (
            _hub.fetch(MODEL, "", address, TOKEN, 5.0)
            == f"{MODEL}: {address} cannot be reached (Connection refused): check the network, HTTPS_PROXY and vllm_hub_endpoint"
        )


def test_an_answer_that_is_no_http_is_told(hub: StandIn) -> None:
    def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler._headers_buffer = []  # type: ignore[attr-defined]
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    hub.replies["config.json"] = Reply(200, play=cut)
    answer = fetch(hub)
    assert isinstance(answer, str)
    assert answer.startswith(f"{MODEL}: {hub.address} cannot be reached (")
    assert "\n" not in answer


def test_a_proxy_is_asked_and_exceptions_are_heeded(
    hub: StandIn, servers: Callable[[], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = servers()
    proxy.has("config.json", CONFIG)
    monkeypatch.setenv("http_proxy", proxy.address)
    assert fetch(hub) == _hub.Metadata(CONFIG, None)
    assert hub.asked == []
    assert proxy.asked[0][1] == f"{hub.address}/{MODEL}/resolve/main/config.json"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(hub) == _hub.Metadata(CONFIG, 12345)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt2",
        "/etc/passwd",
        "../x/y",
        "a/..",
        "a/b/c",
        "a/b..c",
        "a/b\n",
        "a/b?x=1",
        "a/b#c",
        "a/b c",
        "a/%2e%2e",
        "ä/b",
        "a/" + "b" * 97,
        "-a/b",
        "a@b/c",
    ],
)
def test_a_model_that_is_none_is_never_asked_for(hub: StandIn, model: str) -> None:
    assert (
        _hub.fetch(model, "", hub.address, TOKEN, 5.0)
        == f"{model!r} is no model of a hub: needs ORG/NAME of letters, digits, '.', '_' and '-'"
    )
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["../main", "a b", "a?b", "/main", "-x", "a..b", "m\n"])
def test_a_revision_that_is_none_is_never_asked_for(hub: StandIn, revision: str) -> None:
    assert (
        fetch(hub, revision)
        == f"{MODEL}: revision {revision!r} is no branch, tag or commit: needs letters, digits, '.', '_', '-' and '/'"
    )
    assert hub.asked == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "hub.invalid",
        "ftp://hub.invalid",
        "file:///etc",
        "https://",
        "https://user:secret@hub.invalid",
        "https://@hub.invalid",
        "https://hub.invalid/?a=b",
        "https://hub.invalid/#a",
        "https://hub.invalid:0",
        "https://hub.invalid:99999",
        "https://hub.invalid:x",
        "https://hub invalid",
        "https://[::1",
        "https://hub.invalid\n",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(endpoint: str) -> None:
    assert (
        _hub.fetch(MODEL, "", endpoint, TOKEN, 5.0)
        == "the hub's address (vllm_hub_endpoint) needs the form http(s)://HOST[:PORT][/PATH], without user, password or query"
    )


@pytest.mark.parametrize("token", [f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN}\n", f"{TOKEN} ", f"{TOKEN}é", "\udcff"])
def test_a_token_that_is_none_is_neither_sent_nor_shown(hub: StandIn, token: str) -> None:
    assert (
        fetch(hub, token=token)
        == "vllm_hf_token (value not shown) holds a blank, a line break or a character outside printable ASCII: needs one line as the hub gave it"
    )
    assert hub.asked == []


def test_no_problem_shows_the_token(hub: StandIn) -> None:
    answers = []
    for status in (302, 400, 401, 403, 404, 429, 500):
        hub.says("config.json", status, Location="http://[::1/")
        answers.append(fetch(hub))
    assert len(answers) == 7
    assert all(isinstance(answer, str) and TOKEN not in answer and "\n" not in answer for answer in answers)


# --- which commit, and which files ---------------------------------------------------------------------------


def resolve(hub: StandIn, revision: str = "", token: str = TOKEN) -> _hub.Snapshot | str:
    return _hub.resolve(MODEL, revision, hub.address, token, 10.0)


def test_a_branch_is_resolved_to_its_commit_and_files(hub: StandIn) -> None:
    hub.has("v1", {"sha": COMMIT, "siblings": [{"rfilename": "config.json"}, {"rfilename": "a/b.jinja"}, {}, 7]})
    assert resolve(hub, "v1") == _hub.Snapshot(COMMIT, ("config.json", "a/b.jinja"))
    assert hub.asked == [("GET", f"/api/models/{MODEL}/revision/v1", f"Bearer {TOKEN}")]


def test_a_name_that_leads_a_terminal_is_none(hub: StandIn) -> None:
    """A message may list the files that there are."""
    names = ["\x1b]0;x\x07.jinja", "a\nb.jinja", "\ud800.jinja", "\u202e.jinja", "\u00e4.jinja"]
    hub.has("main", {"sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
    assert resolve(hub) == _hub.Snapshot(COMMIT, ("\u00e4.jinja",))


@pytest.mark.parametrize("said", [{}, [], {"sha": "main", "siblings": []}, {"sha": COMMIT}, {"sha": 7, "siblings": []}])
def test_an_answer_without_a_commit_is_none(hub: StandIn, said: object) -> None:
    hub.has("main", said)
    assert resolve(hub) == f"{MODEL}: {hub.address} does not say which commit main is; correct vllm_hub_endpoint"


@pytest.mark.parametrize(
    ("status", "code", "final"),
    [
        (401, "GatedRepo", True),
        (403, "", True),
        (404, "RevisionNotFound", True),
        (404, "EntryNotFound", False),
        (429, "", False),
        (503, "", False),
    ],
)
def test_only_the_hubs_own_no_is_final(hub: StandIn, status: int, code: str, final: bool) -> None:
    hub.says("main", status, X_Error_Code=code)
    assert isinstance(resolve(hub), _hub.Refusal) is final
    hub.says("config.json", status, X_Error_Code=code)
    assert isinstance(fetch(hub), _hub.Refusal) is final


def test_a_hub_that_is_not_there_is_not_final() -> None:
    found = _hub.resolve(MODEL, "", "http://127.0.0.1:9", "", 5.0)
    assert isinstance(found, str)
    assert not isinstance(found, _hub.Refusal)
