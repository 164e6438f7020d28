"""The ways out of a misfit: which are tried, in which order, and what is said of them. The maths is a stand-in that fits what a case names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _advice
from ansible_collections.gpuops.vllm.plugins.module_utils._advice import Options, Variant
from ansible_collections.gpuops.vllm.plugins.module_utils._memory import Fit
from ansible_collections.gpuops.vllm.plugins.module_utils._model import Shape


def gpu(kind: str, memory_gib: float = 80, capability: str = "9.0") -> dict[str, Any]:
    return {"kind": kind, "name": f"NVIDIA {kind}", "memory_gib": memory_gib, "compute_capability": capability}


HERE = gpu("here")
BIG, BIGGER, SMALL = gpu("big", 140), gpu("bigger", 180), gpu("small", 24)
NOTHING = Options((), 8, (), (), None, (), 0.90, 0.95, 16384, False)
SHAPE = Shape("llama", 64, 1000, 8, 8, 8, 256, 0, 0, (), (), 2, None, False, 4096)
ARGS = "engine_args"


def fit(concurrency: float = 2.0, tokens: int = 16384) -> Fit:
    return Fit(70, 60, 1, 0.2, 0.5, 5, 4, tokens, int(concurrency * tokens), concurrency, concurrency >= 1)


def ways(
    suits: Callable[[Variant], bool], options: Options = NOTHING, *, now: Variant | None = None, heads: int = 8
) -> tuple[list[dict[str, Any]], list[Variant]]:
    """Return the changes that are suggested where ``suits`` says what fits, and the variants that were tried."""
    tried: list[Variant] = []

    def weigh(variant: Variant) -> Fit | None:
        tried.append(variant)
        return fit() if suits(variant) else fit(0.5)

    shape = Shape(**{**vars(SHAPE), "heads": heads})
    found = _advice.suggestions(now or Variant("org/model", HERE, 1), shape, options, weigh)
    return [one["change"] for one in found], tried


def change(options: Options, **changes: Any) -> Options:
    return Options(**{**vars(options), **changes})


# --- the same model on the same GPU --------------------------------------------------------------------------


def test_a_cache_of_fp8_and_more_utilization_are_offered_each_by_itself() -> None:
    found, _tried = ways(lambda one: one.gpu is HERE and one.tensor_parallel == 1 and bool(one.engine_args))
    assert found[:2] == [{ARGS: {"kv-cache-dtype": "fp8"}}, {ARGS: {"gpu-memory-utilization": 0.91}}]


def test_both_are_offered_only_where_neither_will_do() -> None:
    def suits(one: Variant) -> bool:
        return len(one.engine_args) == 2 and one.engine_args["gpu-memory-utilization"] >= 0.93

    found, tried = ways(suits)
    assert found[0] == {ARGS: {"kv-cache-dtype": "fp8", "gpu-memory-utilization": 0.93}}
    assert [one.engine_args for one in tried[:6]] == [
        {"kv-cache-dtype": "fp8"},
        *({"gpu-memory-utilization": step} for step in (0.91, 0.92, 0.93, 0.94, 0.95)),
    ]


@pytest.mark.parametrize(
    ("utilization", "steps"),
    [(0.92, [0.93, 0.94, 0.95]), (0.945, [0.95]), (0.95, []), (0.99, [])],
)
def test_utilization_is_raised_up_to_where_the_context_has_room(utilization: float, steps: list[float]) -> None:
    _found, tried = ways(lambda _one: False, change(NOTHING, utilization=utilization, kv_is_fp8=True))
    alone = [one for one in tried if one.tensor_parallel == 1 and list(one.engine_args) == ["gpu-memory-utilization"]]
    assert [one.engine_args["gpu-memory-utilization"] for one in alone] == steps


@pytest.mark.parametrize(
    ("capability", "is_fp8", "offered"), [("8.9", False, True), ("8.8", False, False), ("9.0", True, False)]
)
def test_a_cache_of_fp8_needs_its_cores_and_is_no_news_where_it_is_one(
    capability: str, is_fp8: bool, offered: bool
) -> None:
    now = Variant("org/model", gpu("here", capability=capability), 1)
    _found, tried = ways(lambda _one: False, change(NOTHING, kv_is_fp8=is_fp8), now=now)
    assert any("kv-cache-dtype" in one.engine_args for one in tried) is offered


@pytest.mark.parametrize(("concurrency", "offered"), [(1.09, False), (1.1, True)])
def test_what_only_just_fits_is_no_way_out(concurrency: float, offered: bool) -> None:
    found = _advice.suggestions(Variant("org/model", HERE, 1), SHAPE, NOTHING, lambda _one: fit(concurrency))
    assert bool(found) is offered


def test_what_vllm_would_refuse_for_a_last_block_is_no_way_out() -> None:
    refused = Fit(**{**vars(fit(2.0)), "fits": False})
    assert _advice.suggestions(Variant("org/model", HERE, 1), SHAPE, NOTHING, lambda _one: refused) == []


def test_what_cannot_run_is_no_way_out() -> None:
    options = change(NOTHING, checkpoints=("org/small",), other_gpus=(BIG,))
    assert _advice.suggestions(Variant("org/model", HERE, 1), SHAPE, options, lambda _one: None) == []


# --- another checkpoint, more GPUs ---------------------------------------------------------------------------


def test_a_checkpoint_is_offered_as_it_is_else_with_the_gentlest_change_alone() -> None:
    options = change(NOTHING, checkpoints=("org/fp8", "org/awq", "org/none"))

    def suits(one: Variant) -> bool:
        return one.model == "org/awq" or (one.model == "org/fp8" and bool(one.engine_args))

    found, _tried = ways(suits, options)
    assert found == [{"model": "org/fp8", ARGS: {"kv-cache-dtype": "fp8"}}, {"model": "org/awq"}]


@pytest.mark.parametrize(
    ("width", "heads", "tried_widths"),
    [(1, 8, [2, 4, 8]), (2, 8, [4, 8]), (8, 8, []), (1, 12, [2, 4]), (1, 7, [])],
)
def test_more_gpus_are_tried_as_far_as_they_divide_the_heads(width: int, heads: int, tried_widths: list[int]) -> None:
    now = Variant("org/model", HERE, width)
    _found, tried = ways(lambda _one: False, now=now, heads=heads)
    assert [one.tensor_parallel for one in tried if not one.engine_args] == tried_widths


def test_as_few_gpus_as_will_do_are_offered_gently_before_more_of_them() -> None:
    found, _tried = ways(lambda one: one.tensor_parallel >= 4 or (one.tensor_parallel == 2 and bool(one.engine_args)))
    assert found == [{"tensor_parallel": 2, ARGS: {"kv-cache-dtype": "fp8"}}]


# --- a shorter context ---------------------------------------------------------------------------------------


def shorter(longest: dict[int, int], options: Options = NOTHING) -> list[dict[str, Any]]:
    """Return what is suggested where so many tokens fit, by the number of arguments that are changed with it."""

    def weigh(variant: Variant) -> Fit | None:
        if "max-model-len" not in variant.engine_args:
            return None
        most = longest.get(len(variant.engine_args) - 1, 0)
        asked = variant.engine_args["max-model-len"]
        return fit(1.0, most) if asked == "auto" else fit(most / asked, asked)

    found = _advice.suggestions(Variant("org/model", HERE, 1), SHAPE, options, weigh)
    return [one["change"][ARGS] for one in found]


@pytest.mark.parametrize(
    ("longest", "options", "found"),
    [
        # 10000 / 1.1 is 9090: in steps of 256.
        ({0: 10000, 1: 12000}, NOTHING, [{"max-model-len": 8960}]),
        ({1: 10000, 2: 12000}, NOTHING, [{"gpu-memory-utilization": 0.95, "max-model-len": 8960}]),
        ({2: 10000}, NOTHING, [{"gpu-memory-utilization": 0.95, "kv-cache-dtype": "fp8", "max-model-len": 8960}]),
        ({2: 10000}, change(NOTHING, kv_is_fp8=True), []),
        ({1: 10000}, change(NOTHING, utilization=0.97), [{"gpu-memory-utilization": 0.97, "max-model-len": 8960}]),
        ({0: 1127}, NOTHING, [{"max-model-len": 1024}]),
        ({0: 1126}, NOTHING, []),
        ({0: 10000}, change(NOTHING, max_model_len=8960), []),
        ({0: 10000}, change(NOTHING, max_model_len=8961), [{"max-model-len": 8960}]),
        ({}, NOTHING, []),
    ],
)
def test_the_context_is_cut_to_what_fits(
    longest: dict[int, int], options: Options, found: list[dict[str, Any]]
) -> None:
    assert shorter(longest, options) == found


# --- another kind of GPU -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "heads", "suits", "found"),
    [
        # As few as will do, of those the smallest.
        (1, 8, ("big", "bigger", 1), {"gpu": "big"}),
        (1, 8, ("bigger", "", 1), {"gpu": "bigger"}),
        (1, 8, ("small", "", 4), {"gpu": "small", "tensor_parallel": 4}),
        (1, 6, ("small", "", 4), None),
        (2, 8, ("bigger", "", 1), None),
        (2, 8, ("bigger", "", 2), {"gpu": "bigger"}),
    ],
)
def test_another_gpu(width: int, heads: int, suits: tuple[str, str, int], found: dict[str, Any] | None) -> None:
    options = change(NOTHING, other_gpus=(BIGGER, BIG, SMALL))
    kinds, exactly = suits[:2], suits[2]
    changes, _tried = ways(
        lambda one: one.gpu["kind"] in kinds and one.tensor_parallel == exactly,
        options,
        now=Variant("org/model", HERE, width),
        heads=heads,
    )
    assert changes == ([found] if found else [])


# --- the words -----------------------------------------------------------------------------------------------

SAID = "(32,768 KV tokens, 2.0 requests of 16,384)"


@pytest.mark.parametrize(
    ("suits", "options", "text"),
    [
        (lambda one: one.tensor_parallel == 1 and one.engine_args == {"gpu-memory-utilization": 0.95, "kv-cache-dtype": "fp8"}, NOTHING,
         f"engine_args: {{gpu-memory-utilization: 0.95, kv-cache-dtype: fp8}} {SAID}"),
        (lambda one: one.model == "org/awq" and len(one.engine_args) == 1, change(NOTHING, checkpoints=("org/awq",), kv_is_fp8=True),
         f"model: org/awq with engine_args: {{gpu-memory-utilization: 0.91}} {SAID}"),
        (lambda one: one.tensor_parallel == 2, change(NOTHING, gpus_on_host=2), f"tensor_parallel: 2 {SAID}"),
        (lambda one: one.tensor_parallel == 2, change(NOTHING, gpus_on_host=1), f"tensor_parallel: 2 (the host has 1 for it) {SAID}"),
        (lambda one: one.gpu is BIG, change(NOTHING, other_gpus=(BIG,), gpus_on_host=1), f"1 x NVIDIA big {SAID}"),
        (lambda one: one.gpu is BIG and one.tensor_parallel == 2, change(NOTHING, other_gpus=(BIG,), gpus_on_host=1),
         f"2 x NVIDIA big with tensor_parallel: 2 {SAID}"),
    ],
)  # fmt: skip
def test_a_way_out_says_what_to_write_and_what_it_gives(
    suits: Callable[[Variant], bool], options: Options, text: str
) -> None:
    (found,) = _advice.suggestions(
        Variant("org/model", HERE, 1), SHAPE, options, lambda one: fit() if suits(one) else None
    )
    assert found["text"] == text
    assert (found["kv_tokens"], found["max_concurrency"]) == (32768, 2.0)


def test_the_order_is_how_much_is_kept_of_what_was_asked_for() -> None:
    options = change(NOTHING, checkpoints=("org/awq",), other_gpus=(BIG,))

    def weigh(variant: Variant) -> Fit | None:
        asked = variant.engine_args.get("max-model-len")
        return fit(2.0, 8192) if asked in ("auto", 7424) else fit() if asked is None else None

    found = _advice.suggestions(Variant("org/model", HERE, 1), SHAPE, options, weigh)
    assert [sorted(one["change"]) for one in found] == [[ARGS], [ARGS], ["model"], ["tensor_parallel"], [ARGS], ["gpu"]]
