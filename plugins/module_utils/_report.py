# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan for people (a table) and for programs (JSON). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FITS = {"fits": True, "does not fit": False}
#: Figures of `_fit.Judge` that a report carries, null where nothing was computed. Memory is GiB of each GPU.
FIGURES = (
    "gpu_gib", "budget_gib", "weights_gib", "activation_gib", "non_torch_gib", "cuda_graphs_gib", "kv_gib", "request_gib",
    "kv_tokens", "max_model_len", "max_concurrency",
)  # fmt: skip
COLUMNS = (
    "host",
    "instance",
    "model",
    "GPUs",
    "profile",
    "weights",
    "KV cache",
    "tokens",
    "requests x length",
    "verdict",
)
RIGHT = ("weights", "KV cache", "tokens", "requests x length")


def document(plans: Mapping[str, Mapping[str, Any]], unreached: Sequence[str]) -> dict[str, Any]:
    """Return the report: ``instances`` of all hosts, ``problems`` and ``warnings`` by host, and the hosts not reached."""
    return {
        "version": 1,
        "instances": [row(one) for plan in plans.values() for one in plan.get("instances", ())],
        "problems": {host: plan["problems"] for host, plan in plans.items() if plan.get("problems")},
        "warnings": {host: plan["plan_warnings"] for host, plan in plans.items() if plan.get("plan_warnings")},
        "unreached": list(unreached),
    }


def failures(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by host what stands against its plan, a line each; why an instance does not fit is in the table's notes."""
    found = {host: list(problems) for host, problems in report["problems"].items()}
    for one in report["instances"]:
        if one["fits"] is False and not one["misfit_allowed"]:
            found.setdefault(one["host"], []).append(f"'{one['name']}' does not fit, see above for what would")
    return found


def row(instance: Mapping[str, Any]) -> dict[str, Any]:
    """Return one instance of the report. ``fits`` is null where nothing could be checked."""
    fit = instance.get("fit") or {}
    same = (
        "name",
        "host",
        "model",
        "profile",
        "tensor_parallel",
        "gpus",
        "port",
        "served_as",
        "engine_args",
        "engine_args_from",
    )
    return {
        **{key: instance[key] for key in same},
        **{key: fit.get(key, "") for key in ("gpu", "gpu_kind", "gpu_source")},
        **{key: fit.get(key) for key in FIGURES},
        "fits": FITS.get(fit.get("verdict", "")),
        "misfit_allowed": bool(fit.get("misfit_allowed")),
        "verdict": fit.get("verdict", "not checked"),
        "numbers": fit.get("numbers", "unknown"),
        "reasons": fit.get("reasons", []),
        "suggestions": fit.get("suggestions", []),
    }


def table(report: Mapping[str, Any]) -> str:
    """Return the report as text: a line an instance, and below what stands against it."""
    lines = [COLUMNS, *(_cells(one) for one in report["instances"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = [
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for cell, width, name in zip(line, widths, COLUMNS, strict=True)
        ).rstrip()
        for line in lines
    ]
    return printable("\n".join([*text, *_notes(report)]) + "\n")


def printable(text: str) -> str:
    """Return a text with '?' in the place of what a terminal would obey; what hosts and hubs say ends up there."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    gpus = f"{one['tensor_parallel']} x {one['gpu_kind'] or one['gpu']}" if one["gpu"] else "-"
    checked = one["kv_tokens"] is not None
    verdict = one["verdict"] + (", unverified" if checked and "unverified" in one["numbers"] else "")
    figures = (
        f"{one['weights_gib']:.1f} GiB",
        f"{max(0, one['kv_gib']):.1f} GiB",
        f"{one['kv_tokens']:,}",
        f"{one['max_concurrency']:.1f} x {one['max_model_len']:,}",
    ) if checked else ("-",) * 4  # fmt: skip
    return (one["host"], one["name"], one["model"], gpus, one["profile"], *figures, verdict)


def _notes(report: Mapping[str, Any]) -> Iterable[str]:
    said: dict[tuple[str, ...], list[str]] = {}
    for one in report["instances"]:
        if one["reasons"] and one["fits"] is not True:
            ways = (f"  {number}. {way['text']}" for number, way in enumerate(one["suggestions"], start=1))
            note = (f"({one['model']}): {one['verdict']}", *(f"  {reason}" for reason in one["reasons"]), *ways)
            # Replicas have the same to say.
            said.setdefault((one["host"], *note), []).append(one["name"])
    for (host, first, *rest), names in said.items():
        yield from ("", f"{host} {', '.join(names)} {first}", *rest)
    declared = dict.fromkeys(one["host"] for one in report["instances"] if one["gpu_source"] == "declared")
    if declared:
        yield from ("", f"Planned for GPUs that vllm_plan_gpus declares, without asking: {', '.join(declared)}")
    if any("unverified" in one["numbers"] for one in report["instances"]):
        yield ""
        yield "unverified: the catalogue has these models' numbers from memory; the hub or a folder on the host would tell exactly."
    for host, warnings in report["warnings"].items():
        yield ""
        yield from (f"{host}: {warning}" for warning in warnings)
    for host in report["unreached"]:
        yield ""
        yield f"{host}: not planned, since it could not be reached or failed above"
