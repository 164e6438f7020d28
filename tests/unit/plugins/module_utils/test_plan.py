"""The plan: what each host gets, what is kept, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus, _wanted, _weights
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, known_model_problems, make_plan

FOLDER = Path(__file__).parents[4] / "roles/vllm_plan/vars/main"
DATA: dict[str, Any] = {}
for file in FOLDER.glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
PROFILES = DATA["__vllm_plan_profiles"]
CATALOGUES = {
    "known_models": DATA["__vllm_plan_known_models"],
    "known_gpus": DATA["__vllm_plan_known_gpus"],
    "options": DATA["__vllm_plan_options"],
    "since": DATA["__vllm_plan_option_since"],
    "rules": DATA["__vllm_plan_rules"],
}


def gpu(kind: str, **changes: Any) -> dict[str, Any]:
    ((found,), problems) = _gpus.declared([kind], DATA["__vllm_plan_known_gpus"])
    assert problems == []
    return {**found, **changes}


H100, A100, T4 = gpu("h100-sxm-80gb"), gpu("a100-sxm-40gb"), gpu("t4-16gb")
UNKNOWN = {"name": "NVIDIA T1000", "memory_gib": 7.8, "compute_capability": "7.5"}


def host(*gpus: dict[str, Any], **changes: Any) -> Host:
    numbered = [{**one, "index": index} for index, one in enumerate(gpus)]
    return Host(**{"name": "gpu01", "gpus": numbered, "profiles": PROFILES, **CATALOGUES, **changes})


def model(name: Any = "llama", **changes: Any) -> dict[str, Any]:
    return {"name": name, "model": f"/srv/models/{name}", **changes}


def planned(models: Any, where: Host) -> list[dict[str, Any]]:
    plan = make_plan(models, where)
    assert plan.problems + plan.misfits == []
    return plan.instances


def refused(models: Any, where: Host | None = None) -> list[str]:
    plan = make_plan(models, where or host(gpu_profile="cpu"))
    assert plan.problems
    return plan.problems


# --- what is given out ---------------------------------------------------------------------------------------


def test_one_model_on_one_gpu() -> None:
    (instance,) = planned([model()], host(H100))
    assert instance == {
        "name": "llama-0",
        "model_name": "llama",
        "replica": 0,
        "host": "gpu01",
        "model": "/srv/models/llama",
        "path": "/srv/models/llama",
        "revision": None,
        "commit": None,
        "served_as": ["llama"],
        "default": True,
        "profile": "h100_fp8",
        "device": "cuda",
        "gpus": [0],
        "tensor_parallel": 1,
        "address": "127.0.0.1",
        "port": 8000,
        "engine_args": {
            "dtype": "auto",
            "gpu-memory-utilization": 0.9,
            "max-model-len": 16384,
            "max-num-batched-tokens": 8192,
            "max-num-seqs": 256,
            "quantization": "fp8_per_tensor",
        },
        "engine_args_from": {
            "dtype": "profile h100_fp8",
            "gpu-memory-utilization": "profile h100_fp8",
            "max-model-len": "profile h100_fp8",
            "max-num-batched-tokens": "profile h100_fp8",
            "max-num-seqs": "profile h100_fp8",
            "quantization": "profile h100_fp8, unquantised",
        },
        "env": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"},
        "fit": {
            "gpu": "NVIDIA H100 80GB HBM3",
            "gpu_kind": "h100-sxm-80gb",
            "gpu_gib": 79.1,
            "gpu_source": "declared",
            "verdict": "not checked",
            "numbers": "unknown",
            "reasons": [
                "unknown: not checked, since nothing is known of it: neither a config.json nor an entry in vllm_plan_known_models. With GPUs from "
                "vllm_plan_gpus the host is not asked for its folder: name the hub's id as model, add it to vllm_plan_known_models, or remove vllm_plan_gpus"
            ],
            "suggestions": [],
        },
    }


@pytest.mark.parametrize(("gpu", "profile", "dtype"), [(H100, "h100_fp8", "auto"), (A100, "a100_fp16", "float16")])
def test_the_gpu_chooses_the_profile(gpu: dict[str, Any], profile: str, dtype: str) -> None:
    (instance,) = planned([model()], host(gpu))
    assert (instance["profile"], instance["engine_args"]["dtype"]) == (profile, dtype)


def test_a_quantised_checkpoint_is_not_quantised_again() -> None:
    (instance,) = planned(
        [model()],
        host(
            H100,
            numbers={
                "/srv/models/llama": {
                    "config": {"quantization_config": {"quant_method": "compressed-tensors"}},
                    "source": "the host",
                }
            },
        ),
    )
    assert "quantization" not in instance["engine_args"]


def test_arguments_of_the_model_beat_the_hosts_beat_the_profiles() -> None:
    (instance,) = planned(
        [model(engine_args={"max_model_len": 4096}, env={"A": 1})],
        host(
            H100,
            base_engine_args={"shutdown-timeout": 60},
            engine_args={"max-model-len": 8192, "max-num-seqs": 64},
            env={"A": "0", "B": "2"},
        ),
    )
    assert instance["engine_args"]["max-model-len"] == 4096
    assert instance["engine_args"]["max-num-seqs"] == 64
    assert instance["engine_args"]["gpu-memory-utilization"] == 0.9
    assert instance["engine_args"]["shutdown-timeout"] == 60
    assert (instance["env"]["A"], instance["env"]["B"]) == ("1", "2")


def test_replicas_and_tensor_parallel_share_the_gpus_out() -> None:
    first, second, other = planned([model(replicas=2, tensor_parallel=2), model("qwen")], host(*[H100] * 5))
    assert [one["gpus"] for one in (first, second, other)] == [[0, 1], [2, 3], [4]]
    assert [one["port"] for one in (first, second, other)] == [8000, 8001, 8002]
    assert first["engine_args"]["tensor-parallel-size"] == 2
    assert second["env"]["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "tensor-parallel-size" not in other["engine_args"]


def test_named_gpus_and_ports_are_kept_free_for_who_named_them() -> None:
    first, second = planned([model("a"), model("b", gpus=[0], port=8000)], host(H100, H100))
    assert (first["gpus"], first["port"]) == ([1], 8001)
    assert (second["gpus"], second["port"]) == ([0], 8000)


def test_a_second_model_leaves_the_first_where_it_is() -> None:
    before = planned([model("b")], host(H100, H100))
    after = planned([model("a"), model("b")], host(H100, H100, assigned=before))
    assert [(one["name"], one["port"], one["gpus"]) for one in after] == [("a-0", 8001, [1]), ("b-0", 8000, [0])]


def test_several_gpus_are_kept_as_they_were() -> None:
    before = [{"name": "llama-0", "gpus": [1, 0], "port": 8000}]
    (instance,) = planned([model(tensor_parallel=2)], host(H100, H100, assigned=before))
    assert instance["gpus"] == [1, 0]


@pytest.mark.parametrize("gpus", [[1], [0, 1], [2, 3], None])
def test_gpus_that_are_gone_or_no_longer_enough_are_given_out_anew(gpus: list[int] | None) -> None:
    before = [{"name": "llama-0", "gpus": gpus, "port": 8000}]
    width = 1 if gpus == [0, 1] else 2
    (instance,) = planned([model(tensor_parallel=width)], host(H100, H100, assigned=before))
    assert instance["gpus"] == [0, 1][:width]


def test_a_port_that_is_named_beats_the_one_there_was() -> None:
    before = planned([model()], host(gpu_profile="cpu"))
    (instance,) = planned([model(port=9000)], host(gpu_profile="cpu", assigned=before))
    assert instance["port"] == 9000


def test_the_port_of_a_model_that_goes_is_not_given_out_while_it_may_still_listen() -> None:
    before = planned([model("a")], host(gpu_profile="cpu"))
    (instance,) = planned([model("b")], host(gpu_profile="cpu", assigned=before))
    assert instance["port"] == 8001


def test_the_only_model_is_the_default_and_of_several_the_one_marked() -> None:
    assert [one["default"] for one in planned([model(replicas=2)], host(gpu_profile="cpu"))] == [True, True]
    assert [one["default"] for one in planned([model("a"), model("b", default=True)], host(gpu_profile="cpu"))] == [
        False,
        True,
    ]
    assert [one["default"] for one in planned([model("a"), model("b")], host(gpu_profile="cpu"))] == [False, False]


def test_an_absent_model_is_left_out() -> None:
    assert [one["name"] for one in planned([model("a"), model("b", state="absent")], host(gpu_profile="cpu"))] == [
        "a-0"
    ]


def test_a_host_without_gpu_serves_with_the_profile_cpu_named() -> None:
    (instance,) = planned([model()], host(gpu_profile="cpu"))
    assert (instance["device"], instance["gpus"]) == ("cpu", [])
    assert "CUDA_VISIBLE_DEVICES" not in instance["env"]


def test_gpus_of_two_kinds_each_get_their_profile() -> None:
    first, second = planned([model("a", gpus=[0]), model("b", gpus=[1])], host(H100, A100))
    assert (first["profile"], second["profile"]) == ("h100_fp8", "a100_fp16")


# --- what is refused -----------------------------------------------------------------------------------------

PATH_NEED = (
    "needs a model of the hub, for example Qwen/Qwen3-32B, or the absolute path of a model folder on the host, "
    "for example /srv/models/llama. Correct it."
)
SLUG_NEED = "needs 1 to 32 of a-z, 0-9 and '-', with no '-' at either end, and not v1, health, metrics. Rename it, for example 'llama'."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../x", "'../x'"),
        ("a b", "'a b'"),
        ("-x", "'-x'"),
        ("x-", "'x-'"),
        ("x" * 200, f"'{'x' * 56}..."),
        ("x" * 33, f"'{'x' * 33}'"),
        ("UPPER", "'UPPER'"),
        ("a\n", "'a\\n'"),
        ("v1", "'v1'"),
        ("health", "'health'"),
        ("", "''"),
        (None, "not set"),
        (7, "7"),
    ],
)
def test_a_name_that_is_no_slug_is_refused(name: Any, shown: str) -> None:
    assert f"vllm_models[0].name is {shown}: {SLUG_NEED}" in refused(
        [model(name=name) if name is None else {"name": name, "model": "/srv/m"}]
    )


@pytest.mark.parametrize(
    ("models", "shown"),
    [([], "[]"), (None, "not set"), ({}, "{}"), ("llama", "'llama'")],
)
def test_no_models_is_refused(models: Any, shown: str) -> None:
    assert refused(models) == [
        f"vllm_models is {shown}: needs a list with at least one model. Add one, for example [{{name: llama, model: /srv/models/llama}}]."
    ]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([model("a"), model("a")], "vllm_models: 'a' and 'a' both claim the name 'a'. Give each its own."),
        (
            [model("a", port=8000), model("b", port=8000)],
            "vllm_models: 'a' and 'b' both claim the port 8000. Give each its own.",
        ),
        (
            [model("a", port=8000, replicas=2), model("b", port=8001)],
            "vllm_models: 'a' and 'b' both claim the port 8001. Give each its own.",
        ),
        (
            [model("a", served_as=["x"]), model("b", served_as=["x"])],
            "vllm_models: 'a' and 'b' both claim the served_as name 'x'. Give each its own.",
        ),
        ([model("a"), model("a-0")], "vllm_models: 'a' and 'a-0' both claim the unit name 'a-0'. Give each its own."),
        (
            [model("a", default=True), model("b", default=True)],
            "vllm_models: 'a' and 'b' are both marked default. Mark one.",
        ),
    ],
)
def test_what_two_models_claim_is_refused_with_both_named(models: list[dict[str, Any]], message: str) -> None:
    assert message in refused(models, host(H100, H100, H100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "name"}, f"vllm_models[0].model is 'name': {PATH_NEED}"),
        ({"model": "org/../../etc"}, f"vllm_models[0].model is 'org/../../etc': {PATH_NEED}"),
        ({"model": "org/a..b"}, f"vllm_models[0].model is 'org/a..b': {PATH_NEED}"),
        ({"model": "/srv/a\nb"}, f"vllm_models[0].model is '/srv/a\\nb': {PATH_NEED}"),
        ({"model": None}, f"vllm_models[0].model is not set: {PATH_NEED}"),
        ({"model": ["org/a"]}, f"vllm_models[0].model is ['org/a']: {PATH_NEED}"),
        ({"model": "org/.."}, f"vllm_models[0].model is 'org/..': {PATH_NEED}"),
        ({"model": "https://hub/a/b"}, f"vllm_models[0].model is 'https://hub/a/b': {PATH_NEED}"),
        ({"model": "/srv/../etc"}, f"vllm_models[0].model is '/srv/../etc': {PATH_NEED}"),
        ({"replicas": 0}, "vllm_models[0].replicas is 0: needs a whole number from 1 to 64. Correct it."),
        # Nothing is allocated for them.
        ({"replicas": 10**12}, "vllm_models[0].replicas is 1000000000000: needs a whole number from 1 to 64. Correct it."),
        ({"tensor_parallel": True}, "vllm_models[0].tensor_parallel is True: needs a whole number from 1 to 64. Correct it."),
        ({"tensor_parallel": 65}, "vllm_models[0].tensor_parallel is 65: needs a whole number from 1 to 64. Correct it."),
        ({"tensor_parallel": "2"}, "vllm_models[0].tensor_parallel is '2': needs a whole number from 1 to 64. Correct it."),
        ({"port": 80}, "vllm_models[0].port is 80: needs a whole number from 1024 to 65535. Correct it."),
        ({"port": True}, "vllm_models[0].port is True: needs a whole number from 1024 to 65535. Correct it."),
        ({"port": 65536}, "vllm_models[0].port is 65536: needs a whole number from 1024 to 65535. Correct it."),
        ({"port": 65533, "replicas": 4}, "vllm_models[0].port is 65533: needs room up to 65535 for 4 replicas. Lower it."),
        ({"revision": 7}, "vllm_models[0].revision is 7: needs a branch, tag or commit of the hub, in quotes. Correct or remove it."),
        ({"revision": "-x"}, "vllm_models[0].revision is '-x': needs a branch, tag or commit of the hub, in quotes. Correct or remove it."),
        ({"revision": "a/../b"}, "vllm_models[0].revision is 'a/../b': needs a branch, tag or commit of the hub, in quotes. Correct or remove it."),
        ({"default": "yes"}, "vllm_models[0].default is 'yes': needs true or false. Correct it."),
        ({"state": "gone"}, "vllm_models[0].state is 'gone': needs present or absent. Correct it."),
        ({"served_as": "gpt-4"}, "vllm_models[0].served_as is 'gpt-4': needs a list of names, for example [llama, gpt-4]. Correct or remove it."),
        ({"served_as": ["a b"]}, "vllm_models[0].served_as holds 'a b': needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."),
        ({"served_as": []}, "vllm_models[0].served_as is []: needs a list of names, for example [llama, gpt-4]. Correct or remove it."),
        ({"served_as": ["-a"]}, "vllm_models[0].served_as holds '-a': needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."),
        ({"served_as": [7]}, "vllm_models[0].served_as holds 7: needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."),
        ({"gpus": 0}, "vllm_models[0].gpus is 0: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"gpus": [True]}, "vllm_models[0].gpus is [True]: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"gpus": [-1]}, "vllm_models[0].gpus is [-1]: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"gpus": [0, "1"]}, "vllm_models[0].gpus is [0, '1']: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"gpus": [0, 0]}, "vllm_models[0].gpus is [0, 0]: names a GPU twice. Name each once."),
        ({"gpus": ["0"]}, "vllm_models[0].gpus is ['0']: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"engine_args": {"port": 9}}, "vllm_models[0].engine_args.port is set: the plan decides it. Remove it and use vllm_models[].port."),
        ({"engine_args": [1]}, "vllm_models[0].engine_args is [1]: needs a mapping, for example {max-model-len: 16384}. Correct it."),
        ({"engine_args": {"no-config": True}}, "vllm_models[0].engine_args.no-config is set: the plan decides it. Remove it and use vllm_models[].engine_args."),
        ({"engine_args": {"api_key": "x"}}, "vllm_models[0].engine_args.api-key is set: the plan decides it. Remove it and use vllm_api_keys for clients; the engine's own key is made on the host."),
        ({"engine_args": {"--dtype": "x"}}, "vllm_models[0].engine_args has the key '--dtype': needs an option of 'vllm serve' without dashes in front. Correct it."),
        ({"engine_args": {"dtype": "-x"}}, "vllm_models[0].engine_args.dtype is '-x': vLLM takes a value that starts with '-' for an option. Write it otherwise."),
        ({"env": {"VLLM_API_KEY": "x"}}, "vllm_models[0].env.VLLM_API_KEY is set: the plan decides it. Remove it and use nothing: it is made on the host."),
        ({"env": "A=x"}, "vllm_models[0].env is 'A=x': needs a mapping, for example {VLLM_LOGGING_LEVEL: INFO}. Correct it."),
        ({"env": {"A": ["x"]}}, "vllm_models[0].env.A is no text that an environment file carries: needs text without NUL and half characters. Correct it."),
        ({"env": {"A": "x\0y"}}, "vllm_models[0].env.A is no text that an environment file carries: needs text without NUL and half characters. Correct it."),
        ({"env": {7: "x"}}, "vllm_models[0].env has the name 7: needs A-Z, 0-9 and '_'. Correct it."),
        *(({"env": {name: "x"}}, f"vllm_models[0].env.{name} is set: the plan decides it. Remove it and use vllm_hf_token.") for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")),
        ({"engine_args": {"hf_token": "x"}}, "vllm_models[0].engine_args.hf-token is set: the plan decides it. Remove it and use vllm_hf_token."),
        ({"env": {"a": "x"}}, "vllm_models[0].env has the name 'a': needs A-Z, 0-9 and '_'. Correct it."),
        # What systemd refuses in an environment file.
        *(
            ({"env": {"A": f"x{letter}y"}}, "vllm_models[0].env.A is no text that an environment file carries: needs text without NUL and half characters. Correct it.")
            for letter in ("\ud800", "\ufdd0", "\ufffe", "\U0001ffff")
        ),
        ({"profile": ["cpu"]}, "vllm_gpu_profile is ['cpu'] for 'llama': needs auto or one of a100_awq, a100_fp16, ada_fp8, b200_fp8, blackwell_fp8, cpu, generic_fp16, h100_fp8, h200_fp8. Correct it."),
        ({"tensor_parallel": 2, "profile": "cpu"}, "vllm_models: 'llama' has GPUs and the profile 'cpu', which uses none. Remove one of them."),
        ({"profile": "h900"}, "vllm_gpu_profile is 'h900' for 'llama': needs auto or one of a100_awq, a100_fp16, ada_fp8, b200_fp8, blackwell_fp8, cpu, generic_fp16, h100_fp8, h200_fp8. Correct it."),
        ({"gpus": [0], "profile": "cpu"}, "vllm_models: 'llama' has GPUs and the profile 'cpu', which uses none. Remove one of them."),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    assert refused([model(**changes)], host(H100)) == [message]


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    (message,) = refused([model(max_model_len=1)])
    assert message.startswith("vllm_models[0] has the key 'max_model_len': needs one of name, model, ")


def test_no_gpu_is_refused_with_the_ways_out() -> None:
    (message,) = refused([model()], host())
    assert message.startswith("vllm_gpu_profile is 'auto' and gpu01 shows no GPU: needs a GPU, or a profile named.")


def test_a_gpu_that_no_profile_suits_is_refused() -> None:
    (message,) = refused([model()], host(UNKNOWN))
    assert message.startswith("vllm_gpu_profile is 'auto' and no profile suits NVIDIA T1000 (7.8 GiB, 7.5) on gpu01:")


def test_each_kind_of_gpu_that_no_profile_suits_is_named_once() -> None:
    old = {**UNKNOWN, "name": "Old", "compute_capability": ""}
    (message,) = refused([model(gpus=[0, 1, 2], tensor_parallel=3)], host(UNKNOWN, old, UNKNOWN))
    assert "no profile suits NVIDIA T1000 (7.8 GiB, 7.5), Old (7.8 GiB, unknown) on gpu01: needs one of a100" in message
    assert message.endswith("h100_fp8, h200_fp8. Add one in vllm_plan_profiles.")


def test_a_pinned_profile_that_the_gpu_cannot_run_is_refused_naming_both() -> None:
    assert refused([model()], host(A100, gpu_profile="h100_fp8")) == [
        "the profile 'h100_fp8' of 'llama' needs compute capability 8.9 and 79 GiB: GPU 0 of gpu01 is a NVIDIA A100-SXM4-40GB with 8.0 and 39.39 GiB. "
        "Choose another profile, or auto."
    ]


SHARE = "or let two models share a GPU: name it in gpus of both, with gpu-memory-utilization that sums up to less."


def test_more_gpus_than_there_are_is_refused() -> None:
    assert refused([model("a"), model("b")], host(H100)) == [
        "vllm_models: 'b-0' needs 1 free GPU(s): gpu01 has 0 (0: a-0). Take a model away, lower tensor_parallel or replicas, use another host, "
        + SHARE
    ]
    assert refused([model("a", gpus=[1]), model("b", gpus=[0]), model("c")], host(H100, H100)) == [
        "vllm_models: 'c-0' needs 1 free GPU(s): gpu01 has 0 (0: b-0, 1: a-0). Take a model away, lower tensor_parallel or replicas, use another host, "
        + SHARE
    ]
    assert refused([model("a", tensor_parallel=2)], host(H100)) == [
        "vllm_models: 'a-0' needs 2 free GPU(s): gpu01 has 1 (none taken). Take a model away, lower tensor_parallel or replicas, use another host, "
        + SHARE
    ]
    assert refused([model("a", gpus=[3])], host(H100, H100)) == [
        "vllm_models: 'a' has GPU 3: gpu01 shows the GPUs 0, 1. Correct gpus."
    ]
    assert refused([model("a", gpus=[0], tensor_parallel=2)], host(H100, H100)) == [
        "vllm_models: 'a' has gpus [0]: needs replicas x tensor_parallel = 2 of them. Correct one."
    ]


def test_a_new_model_never_moves_another() -> None:
    before = planned([model("old")], host(H100, H100))
    where = host(H100, H100, assigned=before)
    assert refused([model("new", gpus=[0]), model("old")], where) == [
        "vllm_models: 'new-0' asks for GPU 0, which 'old-0' runs on. Choose another GPU, or name gpus for both.",
    ]
    assert refused([model("new", port=8000), model("old")], where) == [
        "vllm_models: 'new-0' asks for port 8000, which 'old-0' has. Choose another port, or name port for both.",
    ]


def test_only_absent_models_are_refused() -> None:
    absent = model(state="absent")
    assert refused([absent]) == [
        "vllm_models has no model with state 'present': needs at least one. Add one, or take the host out of vllm_servers."
    ]
    assert refused([absent, "text"]) == [
        "vllm_models[1] is 'text': needs a mapping with at least name and model. Rewrite it."
    ]


def test_a_problem_is_told_once() -> None:
    assert len(refused([model(), model(), model()])) == 1
    assert len(refused([model(replicas=2)], host())) == 1


def test_options_are_spelt_as_on_the_command_line_but_for_what_is_below_one() -> None:
    asked = {"max_num_seqs": 8, "compilation_config.inner_key": 1, "no-enable-prefix-caching": True}
    (instance,) = planned([model(engine_args=asked)], host(gpu_profile="cpu"))
    profiles_own = {"dtype", "max-model-len", "max-num-seqs"}
    assert set(instance["engine_args"]) == {*profiles_own, "compilation-config.inner_key", "no-enable-prefix-caching"}


@pytest.mark.parametrize(
    ("value", "text"), [("x" * 58, f"'{'x' * 58}'"), ("x" * 59, f"'{'x' * 56}..."), (None, "not set"), ([None], "[None]")]
)  # fmt: skip
def test_a_value_is_shown_on_one_line_of_sixty_characters(value: object, text: str) -> None:
    assert _wanted.shown(value) == text
    assert len(text) <= 60


def test_all_problems_are_told_at_once() -> None:
    assert len(refused([model("a b"), model("ok", replicas=0), "text"])) == 3


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"engine_args": {"api-key": [""]}}, "vllm_plan_profiles.own.engine_args.api-key is set: the plan decides it."),
        (
            {"unquantized_engine_args": {"hf_token": "x"}},
            "vllm_plan_profiles.own.unquantized_engine_args.hf-token is set: the plan decides it.",
        ),
        ({"env": {"VLLM_API_KEY": "x"}}, "vllm_plan_profiles.own.env.VLLM_API_KEY is set: the plan decides it."),
        ({"env": {"VLLM_HOST_IP": "0.0.0.0"}}, "vllm_plan_profiles.own.env.VLLM_HOST_IP is set: the plan decides it."),
    ],
)
def test_a_profile_of_the_users_may_not_set_what_the_plan_decides(part: dict[str, Any], message: str) -> None:
    profiles = {**PROFILES, "own": {"device": "cpu", **part}}
    (problem,) = refused([model()], host(gpu_profile="own", profiles=profiles))
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (None, " is not set: needs a mapping with device, requires and engine_args. Rewrite it."),
        ({"engine_arg": {}}, " has the key 'engine_arg': needs one of device, requires, requires_quantization, auto, engine_args, unquantized_engine_args, env. Correct or remove it."),
        ({"device": "tpu"}, ".device is 'tpu': needs cuda or cpu. Correct it."),
        ({"device": ["cpu"]}, ".device is ['cpu']: needs cuda or cpu. Correct it."),
        ({"auto": "no"}, ".auto is 'no': needs true or false. Correct it."),
        ({"requires_quantization": "awq"}, ".requires_quantization is 'awq': needs a list, for example [awq]. Correct it."),
        ({"requires_quantization": [1]}, ".requires_quantization is [1]: needs a list, for example [awq]. Correct it."),
        ({"requires": None}, '.requires is not set: needs a mapping, for example {compute_capability: "9.0", memory_gib: 79}. Correct it.'),
        ({"requires": {"memory": 1}}, """.requires is {'memory': 1}: needs a mapping, for example {compute_capability: "9.0", memory_gib: 79}. Correct it."""),
        ({"requires": {"compute_capability": "Hopper"}}, """.requires.compute_capability is 'Hopper': needs one such as "9.0". Correct it."""),
        ({"requires": {"compute_capability": None}}, '.requires.compute_capability is not set: needs one such as "9.0". Correct it.'),
        *(
            ({"requires": {"memory_gib": value}}, f".requires.memory_gib is {shown}: needs the GiB that CUDA sees, such as 79. Correct it.")
            for value, shown in (("79", "'79'"), (-1, "-1"), (10**6, "1000000"), (float("nan"), "nan"), (None, "not set"), (True, "True"))
        ),
        ({"engine_args": None}, ".engine_args is not set: needs a mapping, for example {max-model-len: 16384}. Correct it."),
        ({"env": ["A"]}, ".env is ['A']: needs a mapping, for example {VLLM_LOGGING_LEVEL: INFO}. Correct it."),
    ],
)  # fmt: skip
def test_a_profile_of_the_users_that_cannot_be_meant_is_refused(profile: object, message: str) -> None:
    profiles = {**PROFILES, "own": profile}
    assert refused([model()], host(H100, profiles=profiles)) == [f"vllm_plan_profiles.own{message}"]


def test_a_profile_whose_name_is_no_text_is_refused() -> None:
    (problem,) = refused([model()], host(H100, profiles={**PROFILES, 7: {}}))
    assert problem == "vllm_plan_profiles has the key 7: needs a name. Rename it, for example own_fp8."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "h100_fp8"),
        # The catalogue's word holds as long as the GPU can do it, and one other profile can.
        ({"profile": "a100_fp16"}, "a100_fp16"),
        ({"memory_gib": 40.0}, "ada_fp8"),
        ({"profile": "", "compute_capability": "7.5", "memory_gib": 1.0}, "zz_easy"),
        # The most demanding that it can run, and none that asks to be named.
        ({"profile": "", "compute_capability": "8.0"}, "a100_fp16"),
        ({"profile": "", "compute_capability": "10.0", "memory_gib": 190}, "b200_fp8"),
    ],
)
def test_auto_takes_the_catalogues_profile_or_the_most_demanding(changes: dict[str, Any], expected: str) -> None:
    demanding = {"auto": False, "requires": {"compute_capability": "8.0", "memory_gib": 40}, "engine_args": {}}
    profiles = {**PROFILES, "zz_named_only": demanding, "zz_cpu": {"device": "cpu"}, "zz_easy": {"engine_args": {}}}
    (instance,) = planned([model()], host({**H100, **changes}, profiles=profiles))
    assert instance["profile"] == expected


@pytest.mark.parametrize(
    ("requires", "needs"),
    [
        ({"compute_capability": "9.0"}, "compute capability 9.0"),
        ({"memory_gib": 79}, "79 GiB"),
        ({"compute_capability": "9.0", "memory_gib": 79}, "compute capability 9.0 and 79 GiB"),
    ],
)
def test_a_gpu_that_is_too_small_or_too_old_for_a_named_profile(requires: dict[str, Any], needs: str) -> None:
    where = host({**A100, "compute_capability": ""}, gpu_profile="own", profiles={"own": {"requires": requires}})
    assert refused([model()], where) == [
        f"the profile 'own' of 'llama' needs {needs}: GPU 0 of gpu01 is a NVIDIA A100-SXM4-40GB with an unknown one and 39.39 GiB. "
        "Choose another profile, or auto."
    ]


@pytest.mark.parametrize(("memory_gib", "runs"), [(98.0, True), (97.99, False)])
def test_a_percent_or_two_of_memory_that_a_driver_keeps_forbid_no_profile(memory_gib: float, runs: bool) -> None:
    own = {"requires": {"memory_gib": 100}}
    found = make_plan([model()], host({**H100, "memory_gib": memory_gib}, gpu_profile="own", profiles={"own": own}))
    assert (found.problems == []) is runs


@pytest.mark.parametrize("port", [80, 65536, "8000", None, True])
def test_a_first_port_that_is_none_is_refused(port: Any) -> None:
    shown = "not set" if port is None else repr(port)
    assert refused([model()], host(gpu_profile="cpu", first_port=port)) == [
        f"vllm_plan_first_port is {shown}: needs a whole number from 1024 to 65535. Correct it."
    ]


def test_no_port_left_is_refused() -> None:
    assert refused([model(replicas=2)], host(gpu_profile="cpu", first_port=65535)) == [
        "vllm_plan_first_port is 65535: needs a free port for 'llama-1' from there to 65535. Lower it."
    ]


CONFIG = {"config": {"hidden_size": 64}}
NO_SIZES: tuple[Any, ...] = ("72", 0, -1, 10**6, float("nan"), True, [])


@pytest.mark.parametrize(
    ("known", "problems"),
    [
        ({}, []),
        ({"a/b": CONFIG}, []),
        ({"a/b": CONFIG, "a/c": {"base": "a/b"}, "a/d": {"base": "a/b", "weights_gb": 1.5}}, []),
        (["a/b"], ["vllm_plan_known_models is ['a/b']: needs a mapping of models. Correct it."]),
        ({7: CONFIG}, ["vllm_plan_known_models has the key 7: needs the hub's id or a path. Correct it."]),
        ({"a/b": None}, ["vllm_plan_known_models['a/b'] is no mapping with a config: needs the keys of a config.json below config. Correct it."]),
        ({"a/b": {"config": None}}, ["vllm_plan_known_models['a/b'] is no mapping with a config: needs the keys of a config.json below config. Correct it."]),
        ({"a/b": {"config": ["x"]}}, ["vllm_plan_known_models['a/b'] is no mapping with a config: needs the keys of a config.json below config. Correct it."]),
        ({"a/b": {}}, ["vllm_plan_known_models['a/b'] has neither config nor base: needs one. Paste the model's config.json as config."]),
        ({"a/b": {"base": "no/such"}}, ["vllm_plan_known_models['a/b'].base is 'no/such': needs another known model. Correct it."]),
        ({"a/b": {"base": None}}, ["vllm_plan_known_models['a/b'].base is not set: needs another known model. Correct it."]),
        ({"a/b": {"base": ["a/b"]}}, ["vllm_plan_known_models['a/b'].base is ['a/b']: needs another known model. Correct it."]),
        ({"a/a": CONFIG, "a/b": {"base": "a/a"}, "a/c": {"base": "a/b"}}, ["vllm_plan_known_models['a/c'].base is 'a/b', which has a base itself: needs a model that has none. Correct it."]),
        *(
            ({"a/b": {**CONFIG, "weights_gb": size}}, [f"vllm_plan_known_models['a/b'].weights_gb is {size!r}: needs the size on disk in 10^9 bytes. Correct or remove it."])
            for size in NO_SIZES
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_known_model(known: object, problems: list[str]) -> None:
    assert known_model_problems(known) == problems


def test_a_second_replica_with_a_port_gets_the_next_one() -> None:
    found = planned([model(replicas=2, port=65534)], host(gpu_profile="cpu"))
    assert [one["port"] for one in found] == [65534, 65535]


def test_any_other_line_of_text_is_an_environment() -> None:
    value = "a\tb '\"$`\\ \u00e4 \u4e2d \U0001f600 \ue000"
    (instance,) = planned([model(env={"A": value})], host(H100))
    assert instance["env"]["A"] == value


def test_environments_are_laid_over_one_another_as_text() -> None:
    profiles = {"own": {"device": "cpu", "env": {"A": 1, "B": 1, "C": 1}}}
    where = host(gpu_profile="own", profiles=profiles, env={"B": 2, "C": 2})
    (instance,) = planned([model(env={"C": 3.5})], where)
    assert instance["env"] == {"A": "1", "B": "2", "C": "3.5"}


# --- models of the hub ---------------------------------------------------------------------------------------

HUB, COMMIT = "org/llama", "1" * 40
SNAPSHOT = f"/var/lib/vllm/weights/hub/models--org--llama/snapshots/{COMMIT}"


def hub_host(**changes: Any) -> Host:
    commits = {_weights.Source(HUB): COMMIT}
    options = DATA["__vllm_plan_file_options"]
    return host(gpu_profile="cpu", commits=commits, file_options=options, **changes)


def test_a_model_of_the_hub_is_served_from_its_commit() -> None:
    (instance,) = planned([model(model=HUB)], hub_host())
    assert (instance["path"], instance["commit"], instance["revision"]) == (SNAPSHOT, COMMIT, None)


def test_a_revision_of_a_folder_is_refused() -> None:
    assert refused([model(revision="v1")]) == [
        "vllm_models[0].revision is 'v1', and vllm_models[0].model a folder of the host, which has none. Remove it."
    ]


@pytest.mark.parametrize("option", ["chat-template", "tool-parser-plugin", "reasoning-parser-plugin"])
@pytest.mark.parametrize(
    ("value", "files", "used"),
    [
        ("x.jinja", {SNAPSHOT: ["x.jinja"]}, f"{SNAPSHOT}/x.jinja"),
        # Nobody knows the files: the engine will say.
        ("x.jinja", {}, f"{SNAPSHOT}/x.jinja"),
        ("/srv/x.jinja", {SNAPSHOT: []}, "/srv/x.jinja"),
        ("{{ messages }}", {SNAPSHOT: []}, "{{ messages }}"),
    ],
)
def test_a_file_beside_the_weights_goes_by_its_name(option: str, value: str, files: dict[str, Any], used: str) -> None:
    (instance,) = planned([model(model=HUB, engine_args={option: value})], hub_host(files=files))
    assert instance["engine_args"][option] == used


def test_a_file_that_the_model_does_not_have_is_refused() -> None:
    wanted = [model(model=HUB, engine_args={"chat_template": "y.jinja"})]
    assert refused(wanted, hub_host(files={SNAPSHOT: ["config.json", "b.jinja", "a.jinja"]})) == [
        "vllm_models: 'llama' has engine_args.chat-template: y.jinja, and org/llama no such file (*.jinja: a.jinja, b.jinja). "
        "Name one of the model's files, or the absolute path of one of the host's."
    ]


def test_and_so_does_one_of_a_folder_of_the_host() -> None:
    folder = "/srv/models/llama"
    (instance,) = planned([model(engine_args={"chat-template": "x.jinja"})], hub_host(files={folder: ["x.jinja"]}))
    assert instance["engine_args"]["chat-template"] == f"{folder}/x.jinja"
