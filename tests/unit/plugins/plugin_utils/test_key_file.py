# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of keys before and after a rotation."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.gpuops.vllm.plugins.plugin_utils import _key_file

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
UNTIL = NOW + datetime.timedelta(days=1)
NEW = "the-new-key-0123456789"
DIGEST = "eb3f1e71c6f3dc43c7ad5c1dcfff9b8ff1c1fe0ce9d8b6b42b5b3a2dcbf0ccb2"


def rotate(text: str, *clients: str) -> str:
    keys = dict.fromkeys(clients or ("a",), NEW)
    return _key_file.rotate(
        text, "vllm_api_keys", keys, UNTIL, NOW, lambda key, old: f"$CIPHER;{old.split()[0]}\n{key[::-1]}\n"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """\
# Ours.
vllm_api_keys:
  - name: b
    key: bbbb
  # The team on the third floor.
  - name: a
    key: aaaa # since May
    models: [x, "y"]
    requests_per_minute: 5

other: 1
""",
            f"""\
# Ours.
vllm_api_keys:
  - name: b
    key: bbbb
  # The team on the third floor.
  - name: a
    key: "{NEW}"
    models: ["x", "y"]
    requests_per_minute: 5
  - expires: "2030-01-02T00:00:00Z"
    name: a
    key: aaaa # since May
    models: [x, "y"]
    requests_per_minute: 5

other: 1
""",
            id="blocks",
        ),
        pytest.param(
            "vllm_api_keys:\n- {name: a, key: aaaa}\n- {name: b, key: bbbb}\n",
            f'vllm_api_keys:\n- {{name: a, key: "{NEW}"}}\n- {{expires: "2030-01-02T00:00:00Z", name: a, key: aaaa}}\n- {{name: b, key: bbbb}}\n',
            id="entries on a line",
        ),
        pytest.param(
            "vllm_api_keys: [{name: a, key: aaaa}]\n",
            f'vllm_api_keys: [{{name: a, key: "{NEW}"}}, {{expires: "2030-01-02T00:00:00Z", name: a, key: aaaa}}]\n',
            id="all on a line",
        ),
        pytest.param(
            """\
vllm_api_keys:
  - name: a
    key: first
    expires: 2029-12-31T00:00:00Z
  - name: a
    key: second
    expires: 2031-01-01T00:00:00Z
""",
            f"""\
vllm_api_keys:
  - name: a
    expires: "2031-01-01T00:00:00Z"
    key: "{NEW}"
  - name: a
    key: second
    expires: "2030-01-02T00:00:00Z"
""",
            id="what has expired goes, what would last longer ends, and the new one ends when the old one would have",
        ),
        pytest.param(
            """\
vllm_api_keys:
  - name: a
    key: second
  - name: a
    key: first
    expires: 2029-12-31T00:00:00Z
  - name: b
    key: bbbb
""",
            f"""\
vllm_api_keys:
  - name: a
    key: "{NEW}"
  - expires: "2030-01-02T00:00:00Z"
    name: a
    key: second
  - name: b
    key: bbbb
""",
            id="the last one has expired",
        ),
        pytest.param(
            "vllm_api_keys: [{name: a, key: y}, {name: a, key: x, expires: 2029-12-31T00:00:00Z}]\n",
            f'vllm_api_keys: [{{name: a, key: "{NEW}"}}, {{expires: "2030-01-02T00:00:00Z", name: a, key: y}}]\n',
            id="on a line the last one has expired",
        ),
        pytest.param(
            "vllm_api_keys: [{name: a, key: x, expires: 2029-12-31T00:00:00Z}, {name: a, key: y}]\n",
            f'vllm_api_keys: [{{name: a, key: "{NEW}"}}, {{expires: "2030-01-02T00:00:00Z", name: a, key: y}}]\n',
            id="on a line one has expired",
        ),
        pytest.param(
            """\
vllm_api_keys:
  - name: a
    expires: "2030-01-01T12:00:00Z"
    key: soon
""",
            f"""\
vllm_api_keys:
  - name: a
    expires: "2030-01-01T12:00:00Z"
    key: "{NEW}"
  - name: a
    expires: "2030-01-01T12:00:00Z"
    key: soon
""",
            id="what ends sooner still does",
        ),
        pytest.param(
            """\
vllm_api_keys:
  - name: a
    key: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      3030
  - name: b
    key: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      3131
""",
            f"""\
vllm_api_keys:
  - name: a
    key: !vault |
      $CIPHER;$ANSIBLE_VAULT;1.1;AES256
      {NEW[::-1]}
  - expires: "2030-01-02T00:00:00Z"
    name: a
    key: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      3030
  - name: b
    key: !vault |
      $ANSIBLE_VAULT;1.1;AES256
      3131
""",
            id="values encrypted one by one",
        ),
    ],
)
def test_only_what_is_meant_changes(before: str, after: str) -> None:
    assert rotate(before) == after


def test_a_client_known_by_digest_stays_so() -> None:
    said = rotate(f'vllm_api_keys:\n  - name: a\n    key_sha256: "{DIGEST}"\n')
    assert NEW not in said
    assert said.count("key_sha256") == 2


def test_several_at_once() -> None:
    said = rotate("vllm_api_keys:\n  - name: a\n    key: aaaa\n  - name: b\n    key: bbbb\n", "b", "a")
    assert (said.count(NEW), said.count("expires")) == (2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vllm_api_keys:\n  - name: b\n    key: bbbb\n", "has no client 'a', but b"),
        ('vllm_api_keys:\n  - name: a\n    key: "{{ vault_a }}"\n', "stands elsewhere"),
        ("vllm_api_keys:\n  - name: a\n", "stands elsewhere"),
        ("vllm_api_keys:\n  - {name: a, key: x, expires: 2029-12-31T00:00:00Z}\n", "Every key of 'a' has ended"),
        ("vllm_api_keys: secret-text\n", "as a list"),
        ("others: []\n", "as a list"),
        ("- just\n- a list\n", "as a list"),
        ("vllm_api_keys: [secret-text]\n", "no mapping"),
        ("vllm_api_keys: [\n", "no YAML, line 2"),
        ('vllm_api_keys: [{name: a, key: !vault "secret-text"}]', "cannot be edited"),
        ("vllm_api_keys:\n  -\n    name: a\n    key: secret-text\n", "line of its own"),
    ],
)
def test_what_cannot_be_edited_is_said_without_a_key(text: str, said: str) -> None:
    with pytest.raises(_key_file.KeyFileError) as error:
        rotate(text)
    assert said in str(error.value)
    assert "secret-text" not in str(error.value)
