"""The environment file: what is written reads back, also by systemd's rules for double quotes."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _envfile

HOSTILE = [
    "",
    "plain",
    "two words",
    " blank at both ends ",
    "tab\tinside",
    "$HOME ${HOME} $(id)",
    "`id`",
    "\"double\" and 'single'",
    "percent %i %% %n",
    "back\\slash",
    "trailing backslash\\",
    "#not a comment ; neither",
    "line\nbreak",
    "carriage\rreturn",
    "snow ☃ and ünïcode",
    "A=B",
    "x" * 5000,
    '\\"',
    "\\\\$`",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_reads_back_and_leaves_its_neighbours_alone(value: str) -> None:
    variables = {"BEFORE": "b", "VALUE": value, "AFTER": "a"}
    assert _envfile.parse(_envfile.render(variables)) == variables


def test_plain_lines_and_comments_are_read() -> None:
    assert _envfile.parse("# A=1\nHF_TOKEN=abc\n\nVLLM_API_KEY='x y'\n") == {"HF_TOKEN": "abc", "VLLM_API_KEY": "x y"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"A B": "x"}, "'A B' is not an environment variable name"),
        ({"A": "x\0y"}, "the value of A holds a NUL byte, which no environment can carry"),
    ],
)
def test_what_no_environment_carries_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        _envfile.render(variables)
    assert str(caught.value) == message


def test_an_open_quote_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        _envfile.parse('A="never closed\n')
    assert str(caught.value) == "the value of A has no closing double quote"
