"""While both models serve: each answers to its own names, under its own path and under the common one. Run by the scenario's side effect."""

from __future__ import annotations

import endpoint
import openai
import pytest

HOST = "gpu02"


def ask(prefix: str, model: str) -> str:
    answer = endpoint.client(HOST, prefix).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello!"}], temperature=0
    )
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(
    ("prefix", "model"),
    [("/demo", "gpuops-demo"), ("/demo", "gpt-4"), ("/second", "second"), ("", "gpuops-demo"), ("", "second")],
)
def test_each_answers_to_its_own_names(prefix: str, model: str) -> None:
    assert ask(prefix, model).startswith("Hello!")


@pytest.mark.parametrize(
    ("prefix", "model"), [("/demo", "second"), ("/second", "gpuops-demo"), ("/second", "gpt-4"), ("", "third")]
)
def test_each_knows_nothing_of_the_other(prefix: str, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(prefix, model)


def test_each_lists_only_its_own() -> None:
    listed = {
        prefix: {model.id for model in endpoint.client(HOST, prefix).models.list()}
        for prefix in ("", "/demo", "/second")
    }
    assert listed == {"": {"gpuops-demo", "gpt-4", "second"}, "/demo": {"gpuops-demo", "gpt-4"}, "/second": {"second"}}
