# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on one instance: its arguments, whether the model fits its GPUs, why not, and what would. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from . import _advice, _gpus, _memory, _model, _profiles
from ._memory import Fit, Setting
from ._model import Shape
from ._profiles import Arguments, Findings

if TYPE_CHECKING:
    from ._plan import Host

UNVERIFIED = "recalled"


@dataclass(frozen=True)
class Numbers:
    """What is known of a model. ``source`` is a word for people; ``stored_bytes`` is the checkpoint's size, None for unknown."""

    config: Mapping[str, Any]
    stored_bytes: int | None
    source: str


@dataclass(frozen=True)
class Case:
    """One instance to judge: the model as the inventory has it, and the GPUs it would run on."""

    model: Mapping[str, Any]
    source: str
    profile: str
    pinned: bool
    gpus: Sequence[Mapping[str, Any]]
    gpus_free: int = 0
    shared: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.model["name"])

    @property
    def smallest(self) -> Mapping[str, Any] | None:
        """The GPU that decides: vLLM takes the same from each."""
        return min(self.gpus, key=lambda gpu: float(gpu["memory_gib"]), default=None)


@dataclass(frozen=True)
class Outcome:
    """Arguments of an instance, the figures for the report, and why it does not fit ("" where it does, or nobody knows)."""

    arguments: Arguments
    report: dict[str, Any]
    misfit: str = ""


class Judge:
    """Judges the instances of one host; a model's numbers are read once."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.version = _profiles.version_tuple(host.vllm_version)
        self.numbers = cache(self._numbers)
        self.shape = cache(self._shape)

    @cached_property
    def kinds(self) -> list[_gpus.Gpu]:
        """One GPU of each known kind."""
        return _gpus.declared(list(self.host.known_gpus), self.host.known_gpus)[0]

    def judge(self, case: Case, findings: Findings) -> Outcome:
        """Return the outcome; what vLLM would refuse goes to ``findings``."""
        numbers = self.numbers(case.source)
        report: dict[str, Any] = {"verdict": "not checked", "numbers": numbers.source, "reasons": [], "suggestions": []}
        before = len(findings.problems)
        arguments = self.arguments(case, findings)
        _profiles.check_values(arguments, case.name, findings)
        shape = self.shape(case.source)
        if isinstance(shape, str):
            if case.smallest is not None:
                report["reasons"] = [f"unknown: not checked, since {shape}"]
            return Outcome(arguments, report)
        if len(findings.problems) == before:
            self.settle(case, arguments, shape, findings)
        if case.smallest is None:
            report["reasons"] = [f"the profile {case.profile} uses no GPU"]
            return Outcome(arguments, report)
        if len(findings.problems) > before:
            report |= {"verdict": "refused", "reasons": findings.problems[before:]}
            return Outcome(arguments, report)
        method = str(arguments.values.get("quantization") or "")
        if shape.storage is None and method and not method.startswith("fp8"):
            report["reasons"] = [f"unknown: not checked, since the plan does not know what quantization {method} takes"]
            return Outcome(arguments, report)
        fit = self.fit(case, arguments, shape)
        report |= _figures(fit, case)
        if fit.fits:
            return Outcome(arguments, report)
        reason = _reason(fit, self.setting(case, arguments, shape).utilization)
        found = _advice.suggestions(
            _advice.Variant(case.source, case.smallest, len(case.gpus)),
            shape,
            self.options(case, arguments, shape),
            lambda variant: self.weigh(case, variant),
        )
        report |= {"reasons": [reason], "suggestions": found}
        return Outcome(arguments, report, reason + _ways_out(found))

    # --- arguments -------------------------------------------------------------------------------------------

    def arguments(self, case: Case, findings: Findings) -> Arguments:
        """Merge base < profile < host < model, and take out what this vLLM has not."""
        host, profile = self.host, self.host.profiles[case.profile]
        named = f"profile {case.profile}"
        layers = [
            ("every engine", host.base_engine_args, False),
            (named, profile.get("engine_args", {}), False),
        ]
        if not self.is_quantised(case.source):
            layers.append((f"{named}, unquantised", profile.get("unquantized_engine_args", {}), False))
        layers += [
            ("vllm_default_engine_args", host.engine_args, True),
            (f"vllm_models: {case.name}", {**(case.model.get("engine_args") or {})}, True),
            ("a change", case.changes, False),
        ]
        arguments = _profiles.merged(layers)
        _profiles.fit_version(arguments, host.since, host.vllm_version, case.name, findings)
        return arguments

    def settle(self, case: Case, arguments: Arguments, shape: Shape, findings: Findings) -> None:
        """Adapt arguments to the model, and refuse what vLLM would."""
        profile = self.host.profiles[case.profile]
        _profiles.fit_model(arguments, shape, case.smallest, self.host.rules, case.name, findings, pinned=case.pinned)
        only = profile.get("requires_quantization")
        if only and shape.quantization not in only:
            findings.problems.append(
                f"the profile '{case.profile}' of '{case.name}' needs a checkpoint quantised by {', '.join(only)}: this one is "
                f"{shape.quantization or 'not quantised'}. Take such a checkpoint, or vllm_gpu_profile: auto."
            )
        width = len(case.gpus)
        if problem := _cannot_divide(shape, width):
            findings.problems.append(f"vllm_models: '{case.name}' has tensor_parallel {width}: {problem}")

    def fit(self, case: Case, arguments: Arguments, shape: Shape) -> Fit:
        """Return the maths for one instance, whose arguments have been checked."""
        memory = float(min(gpu["memory_gib"] for gpu in case.gpus))
        return _memory.fit(
            shape, self.setting(case, arguments, shape), memory, self.version, self.stored_bytes(case.source)
        )

    def setting(self, case: Case, arguments: Arguments, shape: Shape) -> Setting:
        gpu = case.smallest or {"memory_gib": 0, "name": ""}
        said = {key: value for key, value in arguments.values.items() if value is not None}
        setting = _memory.setting_of({**default_batch(gpu), **said}, shape, len(case.gpus))
        return replace(setting, hopper=_profiles.capability(gpu.get("compute_capability"))[0] == 9)

    # --- what would fit --------------------------------------------------------------------------------------

    def weigh(self, case: Case, variant: _advice.Variant) -> Fit | None:
        """Return the fit of a variant of the case, None where vLLM would refuse it."""
        shape = self.shape(variant.model)
        profile = case.profile
        if variant.gpu is not case.smallest:
            profile = _profiles.auto([variant.gpu], self.host.profiles) or ""
        if isinstance(shape, str) or not profile:
            return None
        changed = Case(
            model=case.model,
            source=variant.model,
            profile=profile,
            pinned=case.pinned,
            gpus=[variant.gpu] * variant.tensor_parallel,
            changes=variant.engine_args,
        )
        findings = Findings()
        arguments = self.arguments(changed, findings)
        self.settle(changed, arguments, shape, findings)
        return None if findings.problems else self.fit(changed, arguments, shape)

    def options(self, case: Case, arguments: Arguments, shape: Shape) -> _advice.Options:
        """Return what there is to choose from for a case that does not fit."""
        setting = self.setting(case, arguments, shape)
        kind = (case.smallest or {}).get("kind")
        return _advice.Options(
            checkpoints=tuple(self.smaller_checkpoints(case.source, shape, setting)),
            gpus_on_host=case.gpus_free,
            other_gpus=tuple(
                gpu
                for gpu in self.kinds
                if gpu["kind"] != kind
            ),
            utilization=setting.utilization,
            # Beside another instance there is no more to take.
            highest_utilization=setting.utilization if case.shared else _advice.HIGHEST_UTILIZATION,
            max_model_len=setting.max_model_len,
            kv_is_fp8=setting.kv_fp8,
        )

    def smaller_checkpoints(self, source: str, shape: Shape, setting: Setting) -> list[str]:
        """Return known checkpoints of the same model that take less memory, those that keep most of it first."""
        now = _memory.weights_gib(shape, setting, self.stored_bytes(source))
        found = []
        for other in self.host.known_models:
            if other == source or not self.is_quantised(other):
                continue
            candidate = self.shape(other)
            if isinstance(candidate, str) or not candidate.storage or not _same_model(candidate, shape):
                continue
            size = _memory.weights_gib(candidate, setting, self.stored_bytes(other))
            if size < 0.98 * now:
                found.append((-size, other))
        return [other for _size, other in sorted(found)]

    # --- numbers ---------------------------------------------------------------------------------------------

    def _numbers(self, source: str) -> Numbers:
        known = self._known(source)
        read = self.host.numbers.get(source)
        if not read:
            return known
        config = read["config"]
        if known.config and isinstance(_shape_of(config), str):
            # Some files of the hub leave out what transformers has as a default.
            config = {**known.config, **{key: config[key] for key in config if "quantization" in key}}
        return Numbers(config, read.get("weights_bytes"), read["source"])

    def _known(self, source: str) -> Numbers:
        entry = self.host.known_models.get(source)
        if not entry:
            return Numbers({}, None, "unknown")
        base = self.host.known_models.get(str(entry.get("base")), {})
        size = entry.get("weights_gb")
        sources = {str(one["source"]) for one in (entry, base) if one.get("source")}
        return Numbers(
            config={**base.get("config", {}), **entry.get("config", {})},
            stored_bytes=int(float(size) * 1e9) if size else None,
            source="catalogue, unverified" if UNVERIFIED in sources else "catalogue",
        )

    def _shape(self, source: str) -> Shape | str:
        config = self.numbers(source).config
        if not config:
            return "nothing is known of it: neither a config.json nor an entry in vllm_plan_known_models"
        return _shape_of(config)

    def stored_bytes(self, source: str) -> int | None:
        return self.numbers(source).stored_bytes

    def is_quantised(self, source: str) -> bool:
        return bool(_model.quantization_config(self.numbers(source).config))


def _shape_of(config: Mapping[str, Any]) -> Shape | str:
    """Return the shape of a model, or why there is none."""
    try:
        return _model.shape(config)
    except _model.UnknownShapeError as error:
        return str(error)


def default_batch(gpu: Mapping[str, Any]) -> dict[str, int]:
    """Return what vLLM's server batches where nobody says: by the GPU's memory, and less on an A100."""
    memory = float(gpu["memory_gib"])
    if memory >= 160:
        return {"max-num-batched-tokens": 16384, "max-num-seqs": 1024}
    if memory >= 70 and "a100" not in str(gpu["name"]).lower():
        return {"max-num-batched-tokens": 8192, "max-num-seqs": 1024}
    return {"max-num-batched-tokens": 2048, "max-num-seqs": 256}


def _cannot_divide(shape: Shape, width: int) -> str:
    """Return why tensor parallelism over so many GPUs is impossible, "" where it is not."""
    if width < 2:
        return ""
    allowed = [one for one in range(1, 17) if not _undivided(shape, one)]
    part = _undivided(shape, width)
    return f"it must divide {part}. Take one of {', '.join(map(str, allowed))}." if part else ""


def _undivided(shape: Shape, width: int) -> str:
    if shape.heads % width:
        return f"the model's {shape.heads} attention heads"
    if not shape.latent_dim and shape.kv_heads % width and width % shape.kv_heads:
        return f"the model's {shape.kv_heads} key-value heads, or be a multiple of them"
    for size, what in ((shape.dense_mlp, "MLP"), (shape.expert_mlp, "experts")):
        if size % width:
            return f"the width of the model's {what}, {size}"
    return ""


def _same_model(one: Shape, other: Shape) -> bool:
    def outline(shape: Shape) -> tuple[int, ...]:
        return (shape.hidden_size, shape.layer_count, shape.vocab_size, shape.parameters)

    return outline(one) == outline(other)


def _figures(fit: Fit, case: Case) -> dict[str, Any]:
    gpu = case.smallest or {}
    return {
        "verdict": "fits" if fit.fits else "does not fit",
        "gpu": gpu["name"],
        "gpu_kind": gpu.get("kind", ""),
        "gpu_gib": round(float(gpu["memory_gib"]), 2),
        "budget_gib": round(fit.budget_gib, 2),
        "weights_gib": round(fit.weights_gib, 2),
        "activation_gib": round(fit.activation_gib, 2),
        "non_torch_gib": round(fit.non_torch_gib, 2),
        "cuda_graphs_gib": round(fit.graphs_gib, 2),
        "kv_gib": round(fit.kv_gib, 2),
        "request_gib": round(fit.request_gib, 2),
        "kv_tokens": fit.kv_tokens,
        "max_model_len": fit.max_model_len,
        "max_concurrency": round(fit.concurrency, 2),
    }


def _reason(fit: Fit, utilization: float) -> str:
    graphs = f", CUDA graphs {fit.graphs_gib:.2f}" if fit.graphs_gib else ""
    left = f"{fit.kv_gib:.2f} GiB" if fit.kv_gib > 0 else f"nothing ({fit.kv_gib:.2f} GiB)"
    return (
        f"of each GPU gpu-memory-utilization {utilization} takes {fit.budget_gib:.2f} GiB; weights {fit.weights_gib:.2f}, activation of the first start "
        f"{fit.activation_gib:.2f}, libraries {fit.non_torch_gib:.2f}{graphs} leave {left} for the KV cache, and one request of {fit.max_model_len:,} "
        f"tokens needs {fit.request_gib:.2f} GiB."
    )


def _ways_out(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "\n  No change of one host that the plan knows would make it fit. Take a smaller model."
    last = "\n  Or try all the same: vllm_plan_allow_misfit: true on this host."
    ways = "".join(f"\n  {number}. {one['text']}" for number, one in enumerate(found, start=1))
    return f"\n  What fits, the smallest change first:{ways}{last}"
