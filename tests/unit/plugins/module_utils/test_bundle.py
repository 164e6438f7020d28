# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _bundle
from ansible_collections.gpuops.vllm.plugins.module_utils._bundle import (
    BundleError,
    Content,
    Engine,
    Model,
    System,
    Weight,
)

ENGINE = "0.32.0-cuda-1a2b3c4d"
COMMIT = "1" * 40
CONTENTS = {
    "wheels/vllm-0.32.0-py3-none-any.whl": b"wheel",
    "debs/Packages": b"index",
    "debs/g++_4%3a12.2_amd64.deb": b"deb",
}
BLOB = hashlib.sha256(b"weights").hexdigest()
MODEL = Model("org/llama", ("", "main"), COMMIT, "hf", (Weight("model.safetensors", 7, BLOB),))


def manifest(**changes: Any) -> _bundle.Manifest:
    contents = {**CONTENTS, MODEL.blob(MODEL.files[0]): b"weights"}
    whole = _bundle.Manifest(
        collection="0.1.0",
        system=System("Debian 12", "x86_64", "3.11"),
        request="r",
        engines=(Engine(ENGINE, "uv", ("wheels/vllm-0.32.0-py3-none-any.whl",)),),
        packages=("g++", "nginx"),
        models=(MODEL,),
        files={name: Content(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()},
    )
    return dataclasses.replace(whole, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle."""
    for name, data in {**CONTENTS, MODEL.blob(MODEL.files[0]): b"weights"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.json").write_text(manifest().text())
    return tmp_path


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    read, sha256 = _bundle.read(folder)
    assert read == manifest()
    assert sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def test_a_manifest_that_is_not_the_one_wanted_is_refused_before_it_is_read(folder: Path) -> None:
    sha256 = _bundle.read(folder)[1]
    assert _bundle.read(folder, sha256)[0] == manifest()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(
        BundleError, match=f"manifest has the SHA-256 .* {sha256[:12]}.*it is another bundle, or was changed"
    ):
        _bundle.read(folder, sha256)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "there is no whole bundle"),
        (lambda content: "{", "is damaged"),
        (lambda content: [], "is damaged"),
        (lambda content: {**content, "format": 2}, "its format is 2, and this version of the collection reads 1"),
        (lambda content: {**content, "files": {}}, "is damaged"),
        # Paths and names from elsewhere lead nowhere but into their folder.
        (lambda content: {**content, "files": {**content["files"], "../../etc/passwd": {"size": 1, "sha256": "0" * 64}}}, "is damaged"),
        (lambda content: {**content, "files": {**content["files"], "/etc/passwd": {"size": 1, "sha256": "0" * 64}}}, "is damaged"),
        (lambda content: {**content, "files": {**content["files"], "wheels/x": {"size": 1, "sha256": "0"}}}, "is damaged"),
        (lambda content: {**content, "engines": [{**content["engines"][0], "name": "../x"}]}, "is damaged"),
        (lambda content: {**content, "models": [{**content["models"][0], "files": [["x", 1, "../../y"]]}]}, "is damaged"),
        (lambda content: {**content, "models": [{**content["models"][0], "files": [["a/../../x", 7, BLOB]]}]}, "is damaged"),
        (lambda content: {**content, "models": [{**content["models"][0], "files": [["/x", 7, BLOB]]}]}, "is damaged"),
        (lambda content: {**content, "models": [{**content["models"][0], "files": [["a\nb", 7, BLOB]]}]}, "is damaged"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_bundle_is_refused(folder: Path, change: Any, said: str) -> None:
    path = folder / "manifest.json"
    if change:
        changed = change(json.loads(path.read_text()))
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    else:
        path.unlink()
    with pytest.raises(BundleError, match=said) as raised:
        _bundle.read(folder)
    assert str(raised.value).startswith(f"vllm_bundle_dir is {folder}: ")


def test_a_whole_bundle_has_nothing_wrong_and_every_byte_is_read(folder: Path) -> None:
    read: list[int] = []
    assert _bundle.corrupted(folder, manifest(), read.append) == []
    assert sum(read) == _bundle.total(manifest().files.values())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b"whee1"), "debs/Packages has the SHA-256 "),
        (lambda path: path.write_bytes(b"longer"), "debs/Packages has 6 bytes where the manifest says 5"),
        (lambda path: path.unlink(), "debs/Packages: No such file or directory"),
    ],
    ids=["one byte", "another size", "gone"],
)
def test_a_damaged_file_is_named(folder: Path, damage: Any, said: str) -> None:
    damage(folder / "debs/Packages")
    (problem,) = _bundle.corrupted(folder, manifest())
    assert problem.startswith(said)
    message = _bundle.refusal(folder, [problem])
    assert "1 of its files are not what its manifest says" in message
    assert message.endswith("No host was changed.")


def host(**changes: Any) -> _bundle.Wanted:
    same = _bundle.Wanted("gpu01", ("Debian 12", "Debian 12.9"), "x86_64", "3.11", ENGINE, "uv", ("nginx",))
    return dataclasses.replace(same, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"releases": ("Debian 13",)}, ["the bundle is for Debian 12, and gpu01 runs Debian 13"]),
        ({"architecture": "aarch64"}, ["the bundle is for the architecture x86_64, and gpu01 is aarch64"]),
        ({"python": "3.13"}, ["the bundle is for Python 3.11, and gpu01 has 3.13"]),
        ({"engine": "0.31.0-cuda-0a0b0c0d"}, [f"gpu01 wants the engine 0.31.0-cuda-0a0b0c0d (vllm_version, vllm_engine_flavour, its lock), and the bundle has {ENGINE}"]),
        ({"installer": "newer"}, ["the bundle has another version of uv"]),
        ({"packages": ("certbot", "nginx")}, ["gpu01 wants the packages certbot, which the bundle lacks"]),
        ({"releases": ("Ubuntu 24.04",), "architecture": "aarch64"}, ["the bundle is for Debian 12", "the bundle is for the architecture"]),
        # An engine of the user's own asks nothing of the bundle.
        ({"engine": "", "installer": "", "python": "3.13"}, []),
    ],
)  # fmt: skip
def test_a_bundle_for_other_hosts_is_refused_with_each_reason(changes: dict[str, Any], said: list[str]) -> None:
    problems = _bundle.host_problems(manifest(), host(**changes))
    assert [problem[: len(start)] for problem, start in zip(problems, said, strict=True)] == said


def test_a_model_is_found_by_what_was_asked_for_and_by_its_commit() -> None:
    found = [_bundle.find_model(manifest(), "org/llama", revision) for revision in ("", "main", COMMIT, "v2", "2" * 40)]
    assert found == [MODEL, MODEL, MODEL, None, None]
    assert _bundle.find_model(manifest(), "org/other", "") is None
    assert _bundle.has_commit(manifest(), "org/llama", COMMIT, "hf") == MODEL
    assert _bundle.has_commit(manifest(), "org/llama", COMMIT, "mistral") is None


def test_a_lock_is_taken_apart() -> None:
    lock = f"# made by\n--only-binary :all:\nA==1 ; python_version < '4' \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n\nc==2\n"
    options, entries = _bundle.requirements(lock)
    assert options == ["--only-binary :all:"]
    assert [one.text.split(" ")[0] for one in entries] == ["A==1", "c==2"]
    assert [one.hashes for one in entries] == [{"a" * 64, "b" * 64}, frozenset()]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vllm-0.32.0-py3-none-any.whl", "vllm"),
        ("Typing_Extensions-4.1-py3-none-any.whl", "typing-extensions"),
        ("typing-extensions==4.1 --hash=sha256:00", "typing-extensions"),
        ("uv==0.13.9 ; sys_platform == 'linux'", "uv"),
        ("nvidia_cublas_cu12-12.1-py3-none-any.whl", "nvidia-cublas-cu12"),
        ("zope.interface==5", "zope-interface"),
    ],
)
def test_a_wheel_and_a_lock_say_the_same_name(text: str, name: str) -> None:
    assert _bundle.project(text) == name


def test_apts_files_are_read() -> None:
    said = (
        "Reading package lists...\nNeed to get 1 B of archives.\n"
        f"'http://deb.test/g%2b%2b_4%3a12.2_amd64.deb' g++_4%3a12.2_amd64.deb 1356 SHA256:{'0a' * 32}\n"
        f"'http://old.test/old_1_all.deb' old_1_all.deb 9 MD5Sum:{'2c' * 16}\n"
        "'file:/srv/debs/./nginx_1.22_amd64.deb' nginx_1.22_amd64.deb 532468 \n"
    )
    assert _bundle.printed_uris(said) == {
        "g++_4%3a12.2_amd64.deb": (1356, "0a" * 32),
        # Whoever wants to can make another file with that.
        "old_1_all.deb": (9, ""),
        "nginx_1.22_amd64.deb": (532468, ""),
    }


def test_an_index_says_where_the_file_is_and_what_is_in_it() -> None:
    entry = _bundle.index_entry(
        "Package: nginx\nDescription: a server\n of files\n\n", "nginx_1.deb", Content(3, "abc")
    )
    assert (
        entry == "Package: nginx\nDescription: a server\n of files\nFilename: ./nginx_1.deb\nSize: 3\nSHA256: abc\n\n"
    )
