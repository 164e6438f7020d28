"""The engine's key is made once, is never empty, and stays."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _secrets

KEY = "k" * 43


def test_a_key_is_made_where_there_is_none_and_differs_each_time() -> None:
    first, second = (_secrets.wanted({}, {})["VLLM_API_KEY"] for _ in range(2))
    assert len(first) >= 32 and first != second
    assert _secrets.KEY_VALUE.match(first)


def test_a_good_key_stays_while_the_token_moves() -> None:
    assert _secrets.wanted({"VLLM_API_KEY": KEY, "HF_TOKEN": "old"}, {"HF_TOKEN": "new"}) == {
        "HF_TOKEN": "new",
        "VLLM_API_KEY": KEY,
    }


@pytest.mark.parametrize("bad", ["", "short", "x" * 31, "two words " * 5, "line\nbreak" * 5, '$quoted"' * 5])
def test_a_key_that_protects_nothing_is_replaced(bad: str) -> None:
    assert _secrets.wanted({"VLLM_API_KEY": bad}, {})["VLLM_API_KEY"] != bad


def test_an_empty_token_leaves_no_line() -> None:
    assert "HF_TOKEN" not in _secrets.wanted({"VLLM_API_KEY": KEY, "HF_TOKEN": "old"}, {"HF_TOKEN": ""})


def test_a_broken_file_counts_as_empty() -> None:
    assert _secrets.parse('VLLM_API_KEY="never closed') == {}


@pytest.mark.parametrize("value", ["s3cret s3cret", "s3cret\ns3cret", "s3crét", "s3cret\n"])
def test_a_value_that_no_header_carries_is_named_but_not_shown(value: str) -> None:
    problem = _secrets.value_problem("vllm_hf_token", value)
    assert problem is not None and problem.startswith("vllm_hf_token holds a blank")
    assert value not in problem


@pytest.mark.parametrize("value", ["", "hf_abcDEF123"])
def test_an_ordinary_value_passes(value: str) -> None:
    assert _secrets.value_problem("vllm_hf_token", value) is None
