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
from ._wanted import is_path, number

if TYPE_CHECKING:
    from ._plan import Host

UNVERIFIED = "recalled"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
#: Options that load something beside the model, which is not counted.
UNCOUNTED = ("speculative-config", "spec-model", "enable-lora")
#: What the KV cache may hold, by the beginning of its name, for the plan to count it.
COUNTED_CACHES = ("auto", "fp8", "bfloat16", "float16")


@dataclass(frozen=True)
class Numbers:
    """What is known of a model. ``source`` is a word for people; ``stored_bytes`` is the checkpoint's size, None for unknown."""

    config: Mapping[str, Any]
    stored_bytes: int | None
    source: str


@dataclass(frozen=True)
class Room:
    """What there is beside an instance: GPUs it could spread over (its own and free ones of that kind), sets of free GPUs of other kinds
    that it could move to, each with its numbers, and the utilization that others take of its GPUs.
    """

    gpus_free: int = 0
    elsewhere: tuple[tuple[Mapping[str, Any], tuple[int, ...]], ...] = ()
    taken: float = 0.0


@dataclass(frozen=True)
class Case:
    """One instance to judge: the model as the inventory has it, and the GPUs it would run on."""

    model: Mapping[str, Any]
    source: str
    profile: str
    pinned: bool
    gpus: Sequence[Mapping[str, Any]]
    env: Mapping[str, str] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
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
        self._ways_out: dict[str, list[dict[str, Any]]] = {}

    @cached_property
    def kinds(self) -> list[_gpus.Gpu]:
        """One GPU of each known kind."""
        return _gpus.declared(list(self.host.known_gpus), self.host.known_gpus)[0]

    def judge(self, case: Case, findings: Findings) -> Outcome:
        """Return the outcome; what vLLM would refuse goes to ``findings``."""
        numbers = self.numbers(case.source)
        report = {
            **where(case.gpus),
            "verdict": "not checked",
            "numbers": numbers.source,
            "reasons": [],
            "suggestions": [],
        }
        before = len(findings.problems)
        arguments = self.arguments(case, findings)
        _profiles.check_options(arguments, self.host.options, self.host.vllm_version, case.name, findings)
        _profiles.check_values(arguments, case.name, findings)
        shape = self.shape(case.source)
        if isinstance(shape, str):
            if case.smallest is not None:
                report["reasons"] = [f"unknown: not checked, since {shape}{_not_asked(case)}"]
            return Outcome(arguments, report)
        if len(findings.problems) == before:
            self.settle(case, arguments, shape, findings)
        if case.smallest is None:
            report["reasons"] = [f"the profile {case.profile} uses no GPU"]
            return Outcome(arguments, report)
        if len(findings.problems) > before:
            report |= {"verdict": "refused", "reasons": findings.problems[before:]}
            return Outcome(arguments, report)
        if unknown := _uncountable(arguments, shape):
            report["reasons"] = [f"unknown: not checked, since the plan does not know what {unknown} takes"]
            return Outcome(arguments, report)
        setting = self.setting(case, arguments, shape)
        fit = self.fit(case, arguments, shape)
        report |= _figures(fit)
        if fit.fits and (beside := [key for key in UNCOUNTED if _asks_for(arguments, key)]):
            report |= {
                "verdict": "not checked",
                "reasons": [f"it fits without {beside[0]}, whose memory the plan does not count"],
            }
        if fit.fits:
            if setting.max_model_len and fit.concurrency < _advice.MARGIN:
                findings.warnings.append(
                    f"'{case.name}' fits with nothing to spare ({fit.concurrency:.2f} requests of {fit.max_model_len:,} tokens), and the count may be "
                    "off by a twentieth. Lower max-model-len a little, or expect vLLM to refuse."
                )
            return Outcome(arguments, report)
        reason = _reason(fit, setting, float(case.smallest["memory_gib"]))
        found = self.ways_out(case, arguments, shape)
        report |= {"reasons": [reason], "suggestions": found}
        return Outcome(arguments, report, reason + _ways_out(found, allowed=self.host.allow_misfit))

    def ways_out(self, case: Case, arguments: Arguments, shape: Shape) -> list[dict[str, Any]]:
        """Return the changes that would make a case fit; they are looked for once, since replicas have the same."""
        gpu = case.smallest or {}
        kind = [gpu.get(key) for key in ("name", "kind", "memory_gib", "compute_capability")]
        asked = [case.model.get(key) for key in ("engine_args", "gpus", "revision")]
        same = repr((case.source, case.profile, case.pinned, len(case.gpus), kind, asked, case.env, case.room))
        if same not in self._ways_out:
            self._ways_out[same] = _advice.suggestions(
                _advice.Variant(case.source, gpu, len(case.gpus)),
                shape,
                self.options(case, arguments, shape),
                lambda variant: self.weigh(case, variant),
            )
        return self._ways_out[same]

    def utilization(self, case: Case) -> float:
        """Return the part of its GPUs' memory that a case takes, 0 for a value that is none."""
        given = self.arguments(case, Findings()).values.get("gpu-memory-utilization")
        taken = _memory.DEFAULT_UTILIZATION if given is None else given
        return number(taken) or 0.0 if _profiles.is_utilization(taken) else 0.0

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
        _profiles.fit_model(
            arguments,
            shape,
            case.smallest,
            self.host.rules,
            self.host.options,
            case.name,
            findings,
            pinned=case.pinned,
            env=case.env,
        )
        only = profile.get("requires_quantization")
        if only and shape.quantization not in only:
            findings.problems.append(
                f"the profile '{case.profile}' of '{case.name}' needs a checkpoint quantised by {', '.join(only)}: this one is "
                f"{shape.quantization or 'not quantised'}. Take such a checkpoint{self.quantised_by(only, case.source)}, or vllm_gpu_profile: auto."
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
        return replace(
            setting,
            hopper=_profiles.capability(gpu.get("compute_capability"))[0] == 9,
            graphs=setting.graphs and case.env.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS") != "0",
        )

    # --- what would fit --------------------------------------------------------------------------------------

    def weigh(self, case: Case, variant: _advice.Variant) -> Fit | None:
        """Return the fit of a variant of the case, None where vLLM would refuse it."""
        shape = self.shape(variant.model)
        profile = case.profile
        pinned = case.pinned and _profiles.runs(variant.gpu, self.host.profiles[profile])
        if variant.gpu is not case.smallest and not pinned:
            profile = _profiles.auto([variant.gpu], self.host.profiles) or ""
        if isinstance(shape, str) or not profile:
            return None
        changed = Case(
            model=case.model,
            source=variant.model,
            profile=profile,
            pinned=pinned,
            gpus=[variant.gpu] * variant.tensor_parallel,
            env=case.env,
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
            checkpoints=tuple(self.smaller_checkpoints(case, shape, setting)),
            gpus_on_host=case.room.gpus_free,
            here=case.room.elsewhere,
            other_gpus=tuple(gpu for gpu in self.kinds if gpu["kind"] != kind),
            pinned_profile=self.host.profiles[case.profile] if case.pinned else None,
            drops=tuple(key for key in ("gpus", "revision") if case.model.get(key)),
            utilization=setting.utilization,
            highest_utilization=max(setting.utilization, round(_advice.OFFERED_UTILIZATION - case.room.taken, 2)),
            max_model_len=setting.max_model_len,
            kv_is_fp8=setting.kv_fp8,
        )

    def family(self, source: str) -> list[str]:
        """Return known checkpoints of the same model: those that name it, or that it names, as their base."""
        known = self.host.known_models
        base = known.get(source, {}).get("base") or source
        return [other for other, entry in known.items() if other != source and entry.get("base") == base]

    def quantised_by(self, methods: Sequence[str], source: str) -> str:
        """Return known checkpoints of the same model that one of these methods quantised to four bits, for a sentence."""
        shapes = {other: self.shape(other) for other in self.family(source)}
        found = [
            other
            for other, one in shapes.items()
            if isinstance(one, Shape) and one.storage and one.storage.method in methods and one.storage.expert < 1
        ]
        return f" ({' or '.join(found)})" if found else ""

    def smaller_checkpoints(self, case: Case, shape: Shape, setting: Setting) -> list[str]:
        """Return known checkpoints of the same model that take less memory, those that keep most of it first."""
        now = _memory.weights_gib(shape, setting, self.stored_bytes(case.source))
        fp8_cache = _profiles.capability((case.smallest or {}).get("compute_capability")) >= (8, 9)
        found = []
        for other in self.family(case.source):
            candidate = self.shape(other)
            if isinstance(candidate, str) or not candidate.storage or (candidate.kv_cache_fp8 and not fp8_cache):
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
            config = {**known.config, **{key: config[key] for key in config if key in QUANTIZATION_KEYS}}
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


def _asks_for(arguments: Arguments, option: str) -> bool:
    """Whether an option is set, as a whole or one field of it."""
    return any(
        key.partition(".")[0] == option and value not in (None, False) for key, value in arguments.values.items()
    )


def _uncountable(arguments: Arguments, shape: Shape) -> str:
    """Return the argument that the maths knows nothing of, "" where there is none."""
    method, cache = (str(arguments.values.get(key) or "") for key in ("quantization", "kv-cache-dtype"))
    if shape.storage is None and method and not method.startswith("fp8"):
        return f"quantization {method}"
    return f"kv-cache-dtype {cache}" if cache and not cache.startswith(COUNTED_CACHES) else ""


def _not_asked(case: Case) -> str:
    """Return why a folder is not known where the host is not asked, and what to do."""
    if not is_path(case.source) or (case.smallest or {}).get("source") != "declared":
        return ""
    return (
        ". With GPUs from vllm_plan_gpus the host is not asked for its folder: name the hub's id as model, "
        "add it to vllm_plan_known_models, or remove vllm_plan_gpus"
    )


def where(gpus: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a report says of an instance's GPUs: ``gpu_kind`` has each kind once, ``gpu`` the one with the least memory."""
    if not gpus:
        return {}
    gpu = min(gpus, key=lambda one: float(one["memory_gib"]))
    return {
        "gpu": gpu["name"],
        "gpu_kind": " and ".join(dict.fromkeys(str(one.get("kind") or one["name"]) for one in gpus)),
        "gpu_gib": round(float(gpu["memory_gib"]), 2),
        "gpu_source": gpu.get("source", "declared"),
    }


def _figures(fit: Fit) -> dict[str, Any]:
    return {
        "verdict": "fits" if fit.fits else "does not fit",
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


def _reason(fit: Fit, setting: Setting, memory_gib: float) -> str:
    graphs = f", CUDA graphs {fit.graphs_gib:.2f}" if fit.graphs_gib else ""
    parts = f"weights {fit.weights_gib:.2f}, activation of the first start {fit.activation_gib:.2f}, libraries {fit.non_torch_gib:.2f}{graphs}"
    request = f"one request of {fit.max_model_len:,} tokens needs {fit.request_gib:.2f} GiB"
    if setting.kv_cache_bytes:
        return (
            f"each GPU has {memory_gib:.2f} GiB; {parts}, the CUDA context {_memory.CONTEXT_GIB:.2f} and the KV cache of {fit.kv_gib:.2f} GiB that "
            f"kv-cache-memory-bytes asks for must fit into it, and {request}."
        )
    left = f"{fit.kv_gib:.2f} GiB" if fit.kv_gib > 0 else f"nothing ({fit.kv_gib:.2f} GiB)"
    return (
        f"of each GPU gpu-memory-utilization {setting.utilization} takes {fit.budget_gib:.2f} GiB; {parts} leave {left} for the KV cache, and "
        f"{request}."
    )


def _ways_out(found: Sequence[Mapping[str, Any]], *, allowed: bool) -> str:
    if not found:
        return "\n  No change of one host that the plan knows would make it fit. Take a smaller model."
    ways = "".join(f"\n  {number}. {one['text']}" for number, one in enumerate(found, start=1))
    last = "" if allowed else "\n  Or try all the same: vllm_plan_allow_misfit: true on this host."
    return f"\n  What fits, the smallest change first:{ways}{last}"
