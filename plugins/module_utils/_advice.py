# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would make a model fit: the smallest changes first, each checked by the same maths as the verdict. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ._memory import Fit
from ._model import Shape
from ._profiles import capability, runs

#: The most that is offered. More is taken where the user says so, and warned of from _profiles.HIGHEST_UTILIZATION on.
OFFERED_UTILIZATION = 0.95
#: GPUs of one host that tensor parallelism is tried over.
TENSOR_PARALLEL = (2, 4, 8)
#: What a suggestion must have to spare of KV cache: the maths may be off by a tenth (tests/unit/plugins/module_utils/test_memory.py).
MARGIN = 1.1
#: A context below this serves no chat.
SHORTEST_CONTEXT = 1024


@dataclass(frozen=True)
class Variant:
    """An instance as it might be. ``gpu`` is a GPU as the plan sees them, ``engine_args`` what changes."""

    model: str
    gpu: Mapping[str, Any]
    tensor_parallel: int
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    def with_args(self, extra: Mapping[str, Any]) -> Variant:
        """Return it with more engine arguments changed."""
        return replace(self, engine_args={**self.engine_args, **extra})


class Weigh(Protocol):
    """Computes the fit of a variant; None where it cannot run at all, or nothing is known of it."""

    def __call__(self, variant: Variant) -> Fit | None: ...


@dataclass(frozen=True)
class Options:
    """What there is to choose from: checkpoints of the same model, free GPUs of the same kind, other GPUs of this host with their
    numbers, other kinds of GPU. ``pinned_profile`` is None under auto; ``drops`` are keys of the model that hold for what it is now only.
    """

    checkpoints: tuple[str, ...]
    gpus_on_host: int
    here: tuple[tuple[Mapping[str, Any], tuple[int, ...]], ...]
    other_gpus: tuple[Mapping[str, Any], ...]
    pinned_profile: Mapping[str, Any] | None
    drops: tuple[str, ...]
    utilization: float
    highest_utilization: float
    max_model_len: int
    kv_is_fp8: bool


def suggestions(now: Variant, shape: Shape, options: Options, weigh: Weigh) -> list[dict[str, Any]]:
    """Return the changes that make it fit, in the order of how much they keep of what was asked for.

    Each has ``text``, ``change`` (what to write where; null for what goes away), ``kv_tokens`` and ``max_concurrency``.
    """
    hits = _first((replace(now, gpu=gpu) for gpu, _numbers in options.here), weigh)
    hits += _gentle(now, options, weigh)
    for checkpoint in options.checkpoints:
        hits += _least(replace(now, model=checkpoint), options, weigh)
    hits += _wider(now, shape, options, weigh)
    hits += _shorter(now, options, weigh)
    hits += _elsewhere(now, shape, options, weigh)
    return [_entry(now, variant, fit, options) for variant, fit in hits]


Hit = tuple[Variant, Fit]


def _first(variants: Iterable[Variant], weigh: Weigh) -> list[Hit]:
    """Return the first variant that fits, in a list of one, or none."""
    weighed = ((variant, weigh(variant)) for variant in variants)
    return next(([(variant, fit)] for variant, fit in weighed if fit is not None and _holds(fit)), [])


def _gentle(variant: Variant, options: Options, weigh: Weigh) -> list[Hit]:
    """Keep model, GPU and context: an FP8 KV cache, a higher utilization in steps of 0.01; both only where neither will do."""
    fp8 = [variant.with_args({"kv-cache-dtype": "fp8"})] if _takes_fp8_cache(variant, options) else []
    first, last = round(options.utilization * 100) + 1, round(options.highest_utilization * 100)
    steps = [{"gpu-memory-utilization": step / 100} for step in range(first, last + 1)]
    alone = _first(fp8, weigh) + _first(map(variant.with_args, steps), weigh)
    return alone or _first((one.with_args(step) for one in fp8 for step in steps), weigh)


def _least(variant: Variant, options: Options, weigh: Weigh) -> list[Hit]:
    """Return the variant as it is, or with the gentlest change that makes it fit."""
    return _first([variant], weigh) or _gentle(variant, options, weigh)[:1]


def _wider(now: Variant, shape: Shape, options: Options, weigh: Weigh) -> list[Hit]:
    """Spread it over more GPUs of the same kind, as few as will do."""
    widths = [width for width in TENSOR_PARALLEL if width > now.tensor_parallel and shape.heads % width == 0]
    hits = (_least(replace(now, tensor_parallel=width), options, weigh) for width in widths)
    return next((hit for hit in hits if hit), [])


def _shorter(now: Variant, options: Options, weigh: Weigh) -> list[Hit]:
    """Cut the context to what fits: as it is, else with a higher utilization, else with an FP8 KV cache as well."""
    extras: list[dict[str, Any]] = [
        {},
        {"gpu-memory-utilization": max(options.utilization, options.highest_utilization)},
    ]
    if _takes_fp8_cache(now, options):
        extras.append({**extras[-1], "kv-cache-dtype": "fp8"})
    for extra in extras:
        fit = weigh(now.with_args({**extra, "max-model-len": "auto"}))
        # Steps of 256 read better.
        tokens = int(fit.max_model_len / MARGIN) // 256 * 256 if fit is not None else 0
        if SHORTEST_CONTEXT <= tokens < options.max_model_len:
            return _first([now.with_args({**extra, "max-model-len": tokens})], weigh)
    return []


def _elsewhere(now: Variant, shape: Shape, options: Options, weigh: Weigh) -> list[Hit]:
    """Take another kind of GPU: as few as will do, of those the smallest."""
    widths = [width for width in (1, *TENSOR_PARALLEL) if shape.heads % width == 0]
    choices = sorted(
        (width, gpu["memory_gib"], gpu["kind"], gpu)
        for gpu in options.other_gpus
        for width in widths
        if width >= now.tensor_parallel
    )
    variants = (replace(now, gpu=gpu, tensor_parallel=width) for width, _memory, _kind, gpu in choices)
    return _first(variants, weigh)


def _holds(fit: Fit) -> bool:
    return fit.fits and fit.concurrency >= MARGIN


def _takes_fp8_cache(variant: Variant, options: Options) -> bool:
    return capability(variant.gpu["compute_capability"]) >= (8, 9) and not options.kv_is_fp8


def _entry(now: Variant, variant: Variant, fit: Fit, options: Options) -> dict[str, Any]:
    change: dict[str, Any] = {}
    words, without = [], []
    numbers = next((numbers for gpu, numbers in options.here if gpu is variant.gpu), None)
    if variant.model != now.model:
        change["model"] = variant.model
        words.append(f"model: {variant.model}")
        without += [key for key in options.drops if key == "revision"]
    if numbers is not None:
        change["gpus"] = list(numbers)
        words.append(f"gpus: {list(numbers)} ({variant.gpu['name']})")
    elif variant.gpu is not now.gpu:
        change["gpu"] = variant.gpu["kind"]
        words.append(f"{variant.tensor_parallel} x {variant.gpu['name']}")
    if variant.gpu is not now.gpu and options.pinned_profile and not runs(variant.gpu, options.pinned_profile):
        change["profile"] = "auto"
        words.append("profile: auto")
    if variant.tensor_parallel != now.tensor_parallel:
        change["tensor_parallel"] = variant.tensor_parallel
        missing = (
            "" if variant.tensor_parallel <= options.gpus_on_host else f" (the host has {options.gpus_on_host} for it)"
        )
        words.append(f"tensor_parallel: {variant.tensor_parallel}{missing if variant.gpu is now.gpu else ''}")
        without += [key for key in options.drops if key == "gpus"]
    if variant.engine_args:
        change["engine_args"] = dict(variant.engine_args)
        args = ", ".join(f"{key}: {value}" for key, value in sorted(variant.engine_args.items()))
        words.append(f"engine_args: {{{args}}}")
    change |= dict.fromkeys(without)
    text = " with ".join(words) + "".join(f", without {key}" for key in without)
    return {
        "text": f"{text} ({fit.kv_tokens:,} KV tokens, {fit.concurrency:.1f} requests of {fit.max_model_len:,})",
        "change": change,
        "kv_tokens": fit.kv_tokens,
        "max_concurrency": round(fit.concurrency, 2),
    }
