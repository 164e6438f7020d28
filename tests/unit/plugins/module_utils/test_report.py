"""The report of a plan: what a person and a program read of it."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpuops.vllm.plugins.module_utils import _report

INSTANCE: dict[str, Any] = {
    "name": "llama-0",
    "host": "gpu01",
    "model": "org/llama",
    "profile": "h100_fp8",
    "tensor_parallel": 2,
    "gpus": [0, 1],
    "port": 8000,
    "served_as": ["llama"],
    "engine_args": {"dtype": "auto"},
    "engine_args_from": {"dtype": "profile h100_fp8"},
    "env": {"A": "kept out"},
    "fit": {
        "verdict": "fits",
        "numbers": "catalogue",
        "gpu": "NVIDIA H100 80GB HBM3",
        "gpu_kind": "h100-sxm-80gb",
        "weights_gib": 33.83,
        "kv_gib": 33.84,
        "kv_tokens": 221776,
        "max_model_len": 16384,
        "max_concurrency": 13.54,
        "reasons": [],
        "suggestions": [],
    },
}
MISFIT = {"verdict": "does not fit", "kv_gib": -0.44, "kv_tokens": 0, "max_concurrency": 0.0, "reasons": ["too big."], "suggestions": [{"text": "less"}]}  # fmt: skip


def instance(**changes: Any) -> dict[str, Any]:
    return {
        **INSTANCE,
        **{key: value for key, value in changes.items() if key != "fit"},
        "fit": INSTANCE["fit"] | changes.get("fit", {}),
    }


def report(*instances: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return _report.document({"gpu01": {"instances": list(instances), **changes}}, changes.get("unreached", []))


def test_a_line_holds_what_decides() -> None:
    head, line = _report.table(report(INSTANCE)).splitlines()
    assert head.split() == [
        "host",
        "instance",
        "model",
        "GPUs",
        "profile",
        "weights",
        "KV",
        "cache",
        "tokens",
        "requests",
        "x",
        "length",
        "verdict",
    ]
    assert (
        line
        == "gpu01  llama-0   org/llama  2 x h100-sxm-80gb  h100_fp8  33.8 GiB  33.8 GiB  221,776      13.5 x 16,384  fits"
    )


def test_fits_is_true_false_or_null() -> None:
    verdicts = ("fits", "does not fit", "not checked", "refused")
    found = report(*(instance(fit={"verdict": verdict}) for verdict in verdicts))
    assert [one["fits"] for one in found["instances"]] == [True, False, None, None]


def test_an_environment_stays_out_of_the_report() -> None:
    assert "kept out" not in str(report(INSTANCE))


def test_what_was_not_computed_is_a_dash_and_a_null() -> None:
    unchecked = {
        **INSTANCE,
        "fit": {"verdict": "not checked", "numbers": "unknown", "reasons": ["unknown: not checked"], "suggestions": []},
    }
    found = report(unchecked)
    assert found["instances"][0]["kv_tokens"] is None
    assert _report.table(found).splitlines()[1].split()[3:] == ["-", "h100_fp8", "-", "-", "-", "-", "not", "checked"]
    assert "  unknown: not checked" in _report.table(found).splitlines()


def test_a_misfit_shows_no_memory_below_nothing_and_the_ways_out() -> None:
    text = _report.table(report(instance(fit=MISFIT)))
    assert " 0.0 GiB " in text
    assert text.endswith("\ngpu01 llama-0 (org/llama): does not fit\n  too big.\n  1. less\n")


def test_what_stands_against_the_plans_is_a_line_each() -> None:
    found = report(instance(fit=MISFIT), problems=["no driver"])
    assert _report.failures(found) == {"gpu01": ["no driver", "'llama-0' does not fit, see above for what would"]}
    assert _report.failures(report(instance(fit=MISFIT | {"misfit_allowed": True}))) == {}


def test_replicas_have_one_note() -> None:
    text = _report.table(report(instance(fit=MISFIT), instance(fit=MISFIT, name="llama-1")))
    assert text.endswith("\ngpu01 llama-0, llama-1 (org/llama): does not fit\n  too big.\n  1. less\n")
    assert text.count("too big.") == 1


def test_hosts_that_were_not_asked_are_named_once() -> None:
    text = _report.table(report(instance(fit={"gpu_source": "declared"}), instance(fit={"gpu_source": "declared"})))
    assert text.endswith("\n\nPlanned for GPUs that vllm_plan_gpus declares, without asking: gpu01\n")


def test_numbers_from_memory_and_hosts_not_reached_are_told() -> None:
    text = _report.table(report(instance(fit={"numbers": "catalogue, unverified"}), unreached=["gpu02"]))
    assert "fits, unverified" in text
    assert "\nunverified: the catalogue has" in text
    assert text.endswith("\n\ngpu02: not planned, since it could not be reached or failed above\n")


def test_the_document_is_what_programs_read() -> None:
    plans: dict[str, dict[str, Any]] = {
        "gpu01": {"instances": [INSTANCE], "problems": [], "plan_warnings": ["old driver"]},
        "gpu02": {"instances": [], "problems": ["no GPU"], "plan_warnings": []},
        "gpu03": {},
    }
    assert _report.document(plans, ("gpu04",)) == {
        "version": 1,
        "instances": [
            {
                "name": "llama-0",
                "host": "gpu01",
                "model": "org/llama",
                "profile": "h100_fp8",
                "tensor_parallel": 2,
                "gpus": [0, 1],
                "port": 8000,
                "served_as": ["llama"],
                "engine_args": {"dtype": "auto"},
                "engine_args_from": {"dtype": "profile h100_fp8"},
                "gpu": "NVIDIA H100 80GB HBM3",
                "gpu_kind": "h100-sxm-80gb",
                "gpu_source": "",
                "gpu_gib": None,
                "budget_gib": None,
                "weights_gib": 33.83,
                "activation_gib": None,
                "non_torch_gib": None,
                "cuda_graphs_gib": None,
                "kv_gib": 33.84,
                "request_gib": None,
                "kv_tokens": 221776,
                "max_model_len": 16384,
                "max_concurrency": 13.54,
                "fits": True,
                "misfit_allowed": False,
                "verdict": "fits",
                "numbers": "catalogue",
                "reasons": [],
                "suggestions": [],
            }
        ],
        "problems": {"gpu02": ["no GPU"]},
        "warnings": {"gpu01": ["old driver"]},
        "unreached": ["gpu04"],
    }


def test_an_instance_that_was_not_judged_is_not_checked() -> None:
    found = _report.row({**INSTANCE, "fit": None})
    assert {key: found[key] for key in ("gpu", "gpu_kind", "fits", "misfit_allowed", "verdict", "numbers", "reasons", "suggestions")} == {
        "gpu": "", "gpu_kind": "", "fits": None, "misfit_allowed": False, "verdict": "not checked", "numbers": "unknown", "reasons": [], "suggestions": [],
    }  # fmt: skip


def test_nothing_in_the_table_moves_a_terminal() -> None:
    told = {
        "gpu": "NV\x1b[31mX",
        "gpu_kind": "",
        "numbers": "unknown",
        "reasons": ["why\x07\r\udcff\N{GREEK SMALL LETTER ALPHA}."],
        "verdict": "refused",
    }
    text = _report.table(
        report(instance(model="org/\x9b2J", fit=told), plan_warnings=["GPU\x1b]0;title\x07 lost\u202e"])
    )
    assert text.count("\n") == len(text.splitlines())
    assert text.replace("\n", "").isprintable()
    assert {"org/?2J", "NV?[31mX"} <= set(text.split())
    assert "\n  why???\N{GREEK SMALL LETTER ALPHA}.\n" in text
    assert "\ngpu01: GPU?]0;title? lost?\n" in text


def test_a_plan_without_instances_is_a_table_of_nothing() -> None:
    assert _report.table(report()) == (
        "host  instance  model  GPUs  profile  weights  KV cache  tokens  requests x length  verdict\n"
    )


def test_the_columns_stand_below_one_another_and_figures_to_the_right() -> None:
    other = instance(name="m-1", profile="cpu", fit={"weights_gib": 1.04, "kv_gib": 3.44, "kv_tokens": 9, "gpu_kind": "", "gpu": "Own GPU"})  # fmt: skip
    text = _report.table(report(INSTANCE, other | {"tensor_parallel": 1}))
    assert text == (
        "host   instance  model      GPUs               profile    weights  KV cache   tokens  requests x length  verdict\n"
        "gpu01  llama-0   org/llama  2 x h100-sxm-80gb  h100_fp8  33.8 GiB  33.8 GiB  221,776      13.5 x 16,384  fits\n"
        "gpu01  m-1       org/llama  1 x Own GPU        cpu        1.0 GiB   3.4 GiB        9      13.5 x 16,384  fits\n"
    )


def test_only_what_does_not_fit_has_notes_and_unverified_is_said_of_what_was_checked() -> None:
    told = {"numbers": "catalogue, unverified", "reasons": ["why."], "suggestions": [{"text": "a"}, {"text": "b"}]}
    fits = _report.table(report(instance(fit=told)))
    assert "why." not in fits
    misfit = _report.table(report(instance(fit=told | {"verdict": "does not fit"})))
    assert "\n\ngpu01 llama-0 (org/llama): does not fit\n  why.\n  1. a\n  2. b\n\nunverified: " in misfit
    refused = _report.table(report(instance(fit=told | {"verdict": "refused", "kv_tokens": None})))
    assert "refused\n\ngpu01 llama-0 (org/llama): refused\n  why.\n" in refused


def test_without_anything_to_tell_there_are_no_notes() -> None:
    assert "unverified" not in _report.table(report(INSTANCE))


def test_every_host_fails_for_its_own() -> None:
    plans: dict[str, dict[str, Any]] = {
        "a": {"instances": [instance(host="a", fit=MISFIT)]},
        "b": {"problems": ["one", "two"]},
    }
    assert _report.failures(_report.document(plans, [])) == {
        "a": ["'llama-0' does not fit, see above for what would"],
        "b": ["one", "two"],
    }
    assert _report.failures(report(INSTANCE, instance(fit={"verdict": "refused"}))) == {}
