"""vllm-download with the real huggingface_hub: what it keeps, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import FIRST, MODEL, SECOND, TOKEN, Hub, Runner

LARGE = "model-00001-of-00002.safetensors"
NEEDED = {
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    LARGE,
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "parser.py",
}
GATED: dict[str, Any] = {"gated": True}


def test_a_commit_is_whole_in_the_hubs_own_layout_and_nothing_else(run: Runner, repository: Path) -> None:
    done = run()
    assert done.status == 0, done.said
    assert run.snapshot() == {name: (repository / name).read_bytes() for name in NEEDED}
    checksum = hashlib.sha256((repository / LARGE).read_bytes()).hexdigest()
    link = run.repository / "snapshots" / FIRST / LARGE
    assert str(link.readlink()) == f"../../blobs/{checksum}"
    assert {path.name for path in (run.repository / "blobs").iterdir() if "." in path.name} == set()
    assert f"{MODEL} at {FIRST[:12]}: 7 files, 0.75 MiB" in done.said
    assert f"{MODEL}: whole and verified" in done.said


def test_the_hubs_own_library_finds_it_without_the_hub(run: Runner) -> None:
    """As the engine does, offline."""
    run()
    script = f"import huggingface_hub as h; print(h.snapshot_download({MODEL!r}, revision={FIRST!r}))"
    found = subprocess.run(
        [*run.argv()[:1], "-c", script],
        env={**run.environment, "HF_HOME": str(run.home), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert found.strip() == str(run.repository / "snapshots" / FIRST)


def test_what_is_whole_costs_no_request(run: Runner, hub: Hub) -> None:
    run()
    before = len(hub.asked())
    done = run()
    assert (done.status, done.said) == (0, "nothing to download: 1 of 1 models are whole\n")
    assert len(hub.asked()) == before


def test_a_new_commit_shares_what_is_the_same_and_leaves_the_old_one(run: Runner, hub: Hub, repository: Path) -> None:
    run()
    second = repository.parent / "second"
    subprocess.run(["cp", "-r", repository, second], check=True)
    (second / "config.json").write_bytes(b'{"model_type": "other"}')
    hub.says(repos={MODEL: {"commits": {FIRST: str(repository), SECOND: str(second)}}})
    before, asked = run.snapshot(), len(hub.asked())
    assert run({"model": MODEL, "commit": SECOND}).status == 0
    assert run.snapshot() == before
    assert run.snapshot(SECOND)["config.json"] == b'{"model_type": "other"}'
    assert [entry["path"].rsplit("/", 1)[-1] for entry in hub.asked()[asked:] if "resolve" in entry["path"]] == [
        "config.json"
    ]


@pytest.mark.parametrize("left", [{}, {"no_ranges": True}])
def test_a_cut_connection_is_taken_up_again(run: Runner, hub: Hub, repository: Path, left: dict[str, Any]) -> None:
    hub.fails(path=f"cdn.*{LARGE}", cut_after=100_000, times=2)
    if left:
        # Whoever does not know ranges sends all of it again.
        hub.fails(path=f"cdn.*{LARGE}", **left)
    done = run()
    assert done.status == 0, done.said
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()
    ranges = [entry["range"] for entry in hub.asked("cdn") if LARGE in entry["path"]]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert "next try in 0 s (1 of 2)" in done.said


def test_whoever_gets_on_is_not_given_up(run: Runner, hub: Hub, repository: Path) -> None:
    """Five cuts, where three tries in a row are all there are."""
    hub.fails(path=f"cdn.*{LARGE}", cut_after=100_000)
    done = run()
    assert done.status == 0, done.said
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()


def test_a_download_that_was_killed_goes_on_where_it_stopped(run: Runner, hub: Hub, repository: Path) -> None:
    hub.fails(path=f"cdn.*{LARGE}", bytes_per_s=400_000)
    process = subprocess.Popen(run.argv(), env=run.environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    partial = f"{hashlib.sha256((repository / LARGE).read_bytes()).hexdigest()}.incomplete"
    while not (kept := [path for path in run.home.rglob(partial) if path.stat().st_size > 50_000]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    size = kept[0].stat().st_size
    hub.says(faults=[])
    assert run().status == 0
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()
    assert [entry["range"] for entry in hub.asked("cdn") if LARGE in entry["path"]] == [None, f"bytes={size}-"]


def test_wrong_bytes_are_deleted_and_fetched_once_more(run: Runner, hub: Hub, repository: Path) -> None:
    hub.fails(path="config.json", wrong=True, times=1)
    done = run()
    assert done.status == 0, done.said
    assert "config.json: checksum" in done.said
    assert "; deleted, and fetched anew" in done.said
    assert run.snapshot()["config.json"] == (repository / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["config.json", LARGE])
def test_bytes_that_stay_wrong_are_never_put_in_place(run: Runner, hub: Hub, name: str) -> None:
    hub.fails(path=f"{name}", wrong=True)
    done = run()
    assert done.status == 1
    assert f"{MODEL}: {name} is not what the hub's list says, twice: checksum" in done.said
    assert name not in run.snapshot()
    wrong = hub.content(name)
    assert not any(path.read_bytes() == wrong for path in run.repository.rglob("*") if path.is_file())
    assert not (run.repository / "verified").exists()


def test_more_than_is_named_is_not_kept(run: Runner, hub: Hub, repository: Path, program: ModuleType) -> None:
    class Endless:
        count = 0

        def write(self, piece: memoryview) -> int:
            self.count += len(piece)
            return len(piece)

    stream = Endless()
    transfer = program.Transfer(stream, hashlib.sha256(), 0, 10)
    transfer.write(b"12345")
    with pytest.raises(program.ContentError, match="more than the 10 bytes"):
        transfer.write(b"123456")
    assert stream.count == 5


@pytest.mark.parametrize("damage", ["truncate", "remove", "dangle", "grow"])
def test_what_was_damaged_is_mended(run: Runner, repository: Path, damage: str) -> None:
    run()
    file = run.repository / "snapshots" / FIRST / LARGE
    if damage == "truncate":
        os.truncate(file, 1000)
    elif damage == "remove":
        file.unlink()
    elif damage == "grow":
        with file.open("ab") as stream:
            stream.write(b"more")
    else:
        file.resolve().unlink()
    done = run()
    assert done.status == 0, done.said
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()
    named = (repository / LARGE).stat().st_size
    assert (f"{LARGE}: 1000 bytes where {named} are named; deleted, and fetched anew" in done.said) is (
        damage == "truncate"
    )


def test_what_another_program_left_of_a_download_is_judged_like_all_else(run: Runner, repository: Path) -> None:
    checksum = hashlib.sha256((repository / LARGE).read_bytes()).hexdigest()
    partial = run.repository / "blobs" / f"{checksum}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * ((repository / LARGE).stat().st_size + 1))
    assert run().status == 0
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()


def test_a_blob_that_another_program_left_is_believed_only_after_a_look(run: Runner, repository: Path) -> None:
    checksum = hashlib.sha256((repository / LARGE).read_bytes()).hexdigest()
    blob = run.repository / "blobs" / checksum
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * (repository / LARGE).stat().st_size)
    assert run().status == 0
    assert run.snapshot()[LARGE] == (repository / LARGE).read_bytes()


def test_a_damaged_file_without_a_hub_is_told(run: Runner, hub: Hub) -> None:
    run()
    os.truncate(run.repository / "snapshots" / FIRST / LARGE, 1000)
    done = run(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.status == 1
    assert (
        "3 times in a row without a byte more. Check that this host reaches http://127.0.0.1:9 (vllm_hub_endpoint, "
        in done.said
    )


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        (GATED, "", "the model is gated and there is no token. Accept its licence on {hub}/{model}, and set vllm_hf_token"),
        ({"gated": "not yet"}, TOKEN, "the model is gated, and the account of vllm_hf_token may not have it. Accept its licence on {hub}/{model}"),
        ({}, "hf_WrongOne", "the hub refuses the token (401). Set vllm_hf_token to one that is valid."),
        ({"private": True}, "", "there is no such model, or it is private and there is no token (401). Correct vllm_models[].model, or set"),
        (None, TOKEN, "there is no such model, or vllm_hf_token may not see it (404). Correct either."),
        ({"commits": {SECOND: "/nowhere"}}, TOKEN, f"the hub has no commit {FIRST}. Correct vllm_models[].revision."),
    ],
)  # fmt: skip
def test_a_refusal_ends_it_at_once_with_what_to_do(
    run: Runner, hub: Hub, repository: Path, repo: dict[str, Any] | None, token: str, words: str
) -> None:
    repos = {} if repo is None else {MODEL: {"commits": {FIRST: str(repository)}, **repo}}
    hub.says(repos=repos)
    done = run(HF_TOKEN=token)
    assert done.status == 1
    assert words.format(hub=hub.address, model=MODEL) in done.said
    assert "next try" not in done.said
    if token:
        assert token not in done.said


def test_a_gated_model_comes_with_a_token_that_no_other_host_sees(run: Runner, hub: Hub, repository: Path) -> None:
    hub.says(repos={MODEL: {**GATED, "commits": {FIRST: str(repository)}}})
    done = run(HF_TOKEN=TOKEN)
    assert done.status == 0, done.said
    assert {entry["token"] for entry in hub.asked("/resolve/")} == {True}
    assert {(entry["token"], entry["host"].partition(":")[0]) for entry in hub.asked("/cdn/")} == {(False, "localhost")}


def test_the_hubs_wish_to_wait_is_heeded(run: Runner, hub: Hub) -> None:
    hub.fails(path="resolve.*config.json", status=429, headers={"Retry-After": "1"}, times=1)
    start = time.monotonic()
    done = run()
    assert done.status == 0, done.said
    assert time.monotonic() - start > 1
    assert "config.json: the hub answers 429; next try in 1 s (1 of 2)" in done.said


def test_but_not_for_a_day(run: Runner, hub: Hub, program: ModuleType) -> None:
    pace = program.Pace(6)
    assert [pace.wait_s(failures, None) for failures in (1, 2, 3, 9)] == [2, 4, 8, 60]
    assert [pace.wait_s(1, asked) for asked in (0.5, 30, 86400)] == [2, 30, 300]


def test_a_hub_that_stays_busy_is_given_up(run: Runner, hub: Hub) -> None:
    hub.fails(path="/api/", status=429, headers={"Retry-After": "86400"})
    done = run(options=("--longest-wait-s", "0.1"))
    assert done.status == 1
    assert "list of files: the hub answers 429, 3 times in a row without a byte more" in done.said
    assert len(hub.asked("/api/")) == 3


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_in_trouble_is_asked_again(run: Runner, hub: Hub, status: int) -> None:
    hub.fails(path="/api/", status=status, times=2)
    assert run().status == 0


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(run: Runner, hub: Hub) -> None:
    done = run(options=("--reserve-gib", "9000000"))
    assert done.status == 1
    assert "0.75 MiB are to be downloaded, with 9000000.00 GiB to be left (vllm_weights_reserve_gib)" in done.said
    assert hub.asked("resolve") == []


def test_what_is_there_already_needs_no_room(program: ModuleType, tmp_path: Path) -> None:
    program.check_room(tmp_path, 0, 10**18)
    with pytest.raises(program.DownloadError, match="Nothing was downloaded"):
        program.check_room(tmp_path, 1, 10**18)


def test_a_list_of_another_commit_is_none(run: Runner, hub: Hub) -> None:
    hub.says(answers_for=SECOND)
    done = run()
    assert done.status == 1
    assert f"the hub answers for the commit {SECOND} where {FIRST} was asked; check vllm_hub_endpoint" in done.said
    assert hub.asked("resolve") == []


def test_a_list_without_checksums_is_no_list(run: Runner, hub: Hub) -> None:
    hub.says(no_checksums=True)
    done = run()
    assert done.status == 1
    assert "gives no checksum or size of chat_template.jinja, so that it cannot be verified" in done.said
    assert hub.asked("resolve") == []


def listed(**file: Any) -> str:
    return json.dumps({"id": MODEL, "sha": FIRST, "siblings": [{"rfilename": "m.safetensors", **file}]})


@pytest.mark.parametrize(
    "body",
    [
        "<html>please sign in</html>",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"id": MODEL, "sha": FIRST, "siblings": ["m.safetensors"]}),
        listed(lfs={"sha256": "1" * 64}),
    ],
    ids=["a page", "a list", "nothing", "too deep", "names alone", "half a checksum"],
)
def test_whatever_else_answers_is_no_hub(run: Runner, hub: Hub, body: str) -> None:
    """Such as the page of a proxy that wants somebody to sign in. In a sentence, since no traceback passes the look for secrets."""
    hub.fails(path="/api/", body=body)
    done = run()
    assert done.status == 1
    assert f"{MODEL}: what {hub.address} answers is no list of files (" in done.said
    assert "Check vllm_hub_endpoint and the way there (vllm_https_proxy, vllm_no_proxy)." in done.said
    assert len(done.said.splitlines()) == 1


@pytest.mark.parametrize("size", [-1, True, "7", 10**400])
def test_a_size_that_is_none_is_none(run: Runner, hub: Hub, size: object) -> None:
    hub.fails(path="/api/", body=listed(blobId="1" * 40, size=size))
    done = run()
    assert done.status == 1
    assert "gives no checksum or size of m.safetensors, so that it cannot be verified" in done.said


def test_progress_says_how_much_how_fast_and_how_long(run: Runner, hub: Hub) -> None:
    hub.fails(path=f"cdn.*{LARGE}", bytes_per_s=400_000)
    said = run(options=("--progress-s", "0.3")).said
    lines = [line for line in said.splitlines() if " of 0.75 MiB, " in line]
    assert lines, said
    assert all(line.endswith((" MiB/s, less than a minute left", " MiB/s, waiting")) for line in lines)


def test_two_at_once_do_not_share_a_folder(run: Runner, hub: Hub) -> None:
    hub.fails(path=f"cdn.*{LARGE}", bytes_per_s=200_000)
    with subprocess.Popen(run.argv(), env=run.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        done = run()
        process.kill()
    assert (done.status, done.said) == (1, f"another vllm-download works in {run.home}. Wait for its end.\n")


def test_no_other_account_can_hold_the_lock(run: Runner) -> None:
    """Whoever can open a file for reading can lock it."""
    assert run().status == 0
    assert (run.home / ".vllm-download.lock").stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_lock_s_place_is_not_followed(run: Runner, tmp_path: Path) -> None:
    (run.home / ".vllm-download.lock").symlink_to(tmp_path / "elsewhere")
    done = run()
    assert (done.status, (tmp_path / "elsewhere").exists()) == (1, False)
    lock = run.home / ".vllm-download.lock"
    assert str(lock) in done.said
    assert (
        f"All below {run.home} must be the account vllm's, on a disk that takes writes: see namei -l {lock}"
        in done.said
    )


def test_a_disk_that_is_full_wherever_it_is_found_needs_room(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(home: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(home / "hub"))

    monkeypatch.setattr(program, "alone", full)
    monkeypatch.setattr(program, "prepare_environment", lambda home: None)
    asked = json.dumps([{"model": MODEL, "commit": FIRST}])
    assert program.main(["--home", str(tmp_path), "--reserve-gib", "0", "--attempts", "1", asked]) == 1
    assert capsys.readouterr().out == (
        f"{tmp_path}: No space left on device ({tmp_path}/hub). Make room below vllm_weights_dir, or choose another, and run the play again.\n"
    )


def test_a_proxy_is_used_and_its_password_never_said(run: Runner, hub: Hub) -> None:
    hub.says(proxy_password="s3cret-of-nobody")
    # The library goes past a proxy for this machine's own names unless it is told that there are none.
    through: dict[str, Any] = {"HTTP_PROXY": hub.address.replace("//", "//proxy:s3cret-of-nobody@"), "NO_PROXY": ""}
    done = run(**through, HF_ENDPOINT=hub.address)
    assert done.status == 0, done.said
    assert {entry["proxied"] for entry in hub.asked()} == {True}
    # Whatever the engines are told: a download is online.
    assert run({"model": MODEL, "commit": SECOND}, HF_HUB_OFFLINE="1").said.count("has no commit") == 1
    wrong = run(
        {"model": MODEL, "commit": SECOND}, **{**through, "HTTP_PROXY": hub.address.replace("//", "//proxy:wr0ng-one@")}
    )
    assert wrong.status == 1
    assert f"{MODEL}: the proxy wants another user or password (407). Correct vllm_https_proxy" in wrong.said
    assert "wr0ng-one" not in wrong.said
    assert "next try" not in wrong.said


def test_an_authority_of_ones_own_is_trusted_where_it_is_named(tls_hub: Hub, tmp_path: Path, library: str) -> None:
    run = Runner(tmp_path / "home", library, tls_hub)
    run.home.mkdir()
    stranger = run()
    assert stranger.status == 1
    assert (
        f"the certificate of {tls_hub.address} is not by an authority that this host knows. Name the file with yours in vllm_ca_file."
        in stranger.said
    )
    assert "next try" not in stranger.said
    assert run(SSL_CERT_FILE=str(tmp_path / "ca.pem")).status == 0


def test_no_line_holds_a_secret_whoever_writes_it(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_secrets", set())
    program.remember_secrets(
        {"HF_TOKEN": TOKEN, "https_proxy": "http://proxy:a%40b@proxy.example.com:3128", "NO_PROXY": "x"}
    )
    program.say(f"one {TOKEN} two a%40b three a@b four\nfive")
    assert capsys.readouterr().out == "one *** two *** three *** four five\n"


def test_authorities_that_cannot_be_read_are_named(run: Runner, hub: Hub) -> None:
    done = run(SSL_CERT_FILE="/no/such.pem")
    assert done.status == 1
    assert done.said.startswith("vllm_ca_file is /no/such.pem: there is no such file on this host")


@pytest.mark.parametrize(
    ("names", "form", "kept"),
    [
        (["a.safetensors", "pytorch_model.bin", "model.pt"], "hf", ["a.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "model.pt", "config.json"], "hf", ["pytorch_model.bin", "config.json"]),
        (["model.pt", "optimizer.pt"], "hf", ["model.pt"]),
        (["consolidated.safetensors", "params.json"], "hf", ["consolidated.safetensors", "params.json"]),
        (["consolidated.safetensors", "a.safetensors"], "hf", ["a.safetensors"]),
        (["consolidated-00001-of-2.safetensors", "a.safetensors"], "mistral", ["consolidated-00001-of-2.safetensors"]),
        (["a.safetensors", "original/a.safetensors", "sub/b.safetensors", "1_Pooling/config.json"], "hf", ["a.safetensors", "1_Pooling/config.json"]),
        (["a.safetensors", "LICENSE", "README.md", "x.PNG", ".gitattributes", "tokenizer.model.v3", "merges.txt"], "hf",
         ["a.safetensors", "LICENSE", "tokenizer.model.v3", "merges.txt"]),
    ],
)  # fmt: skip
def test_only_what_vllm_reads_is_fetched(program: ModuleType, names: list[str], form: str, kept: list[str]) -> None:
    assert program.chosen(names, form) == kept


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a//b", "./a", "a\nb"])
def test_a_name_that_leads_elsewhere_ends_it(program: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="leads elsewhere"):
        program.chosen(["a.safetensors", name])


def test_a_repository_without_weights_is_told(run: Runner, hub: Hub, repository: Path) -> None:
    for file in [*repository.glob("*.safetensors"), *repository.glob("*.bin")]:
        file.unlink()
    done = run()
    assert done.status == 1
    assert "it has no weights that vLLM reads (*.safetensors, *.bin, *.pt). Correct vllm_models." in done.said


@pytest.mark.parametrize(
    "text", ["[{}]", "{", json.dumps([{"model": "../x", "commit": FIRST}]), '[{"model": "a/b", "commit": "main"}]', "7"]
)
def test_wrong_arguments_end_it(run: Runner, text: str) -> None:
    done = subprocess.run(
        [*run.argv()[:-1], text], env=run.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_stamp_is_what_the_plan_reads(run: Runner) -> None:
    from ansible_collections.gpuops.vllm.plugins.module_utils import _weights  # noqa: PLC0415

    run()
    assert _weights.verified(str(run.home), MODEL, FIRST) == {"hf": True, "mistral": False}
    assert _weights.folder_of(_weights.Source(MODEL), FIRST, str(run.home)) == str(run.repository / "snapshots" / FIRST)
    listed = json.loads((run.repository / "verified" / _weights.stamp_name(FIRST, "hf")).read_text())["files"]
    assert set(listed) == NEEDED
    os.truncate(run.repository / "snapshots" / FIRST / LARGE, 7)
    assert _weights.verified(str(run.home), MODEL, FIRST) == {"hf": False, "mistral": False}
