"""The plan: what each host gets, what is kept, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpuops.vllm.plugins.module_utils import _gpus
from ansible_collections.gpuops.vllm.plugins.module_utils._plan import Host, make_plan

FOLDER = Path(__file__).parents[4] / "roles/vllm_plan/vars/main"
DATA: dict[str, Any] = {}
for file in FOLDER.glob("*.yml"):
    DATA |= yaml.safe_load(file.read_text())
PROFILES = DATA["__vllm_plan_profiles"]
CATALOGUES = {
    "known_models": DATA["__vllm_plan_known_models"],
    "known_gpus": DATA["__vllm_plan_known_gpus"],
    "since": DATA["__vllm_plan_option_since"],
    "rules": DATA["__vllm_plan_rules"],
}


def gpu(kind: str, **changes: Any) -> dict[str, Any]:
    ((found,), problems) = _gpus.declared([kind], DATA["__vllm_plan_known_gpus"])
    assert problems == []
    return {**found, **changes}


H100, A100, T4 = gpu("h100-sxm-80gb"), gpu("a100-sxm-40gb"), gpu("t4-16gb")
UNKNOWN = {"name": "Tesla V100", "memory_gib": 15.0, "compute_capability": "7.0"}


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
            "verdict": "not checked",
            "numbers": "unknown",
            "reasons": [
                "unknown: not checked, since nothing is known of it: neither a config.json nor an entry in vllm_plan_known_models"
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
        ({"model": "org/.."}, f"vllm_models[0].model is 'org/..': {PATH_NEED}"),
        ({"model": "https://hub/a/b"}, f"vllm_models[0].model is 'https://hub/a/b': {PATH_NEED}"),
        ({"model": "/srv/../etc"}, f"vllm_models[0].model is '/srv/../etc': {PATH_NEED}"),
        ({"replicas": 0}, "vllm_models[0].replicas is 0: needs a whole number from 1. Correct it."),
        ({"tensor_parallel": "2"}, "vllm_models[0].tensor_parallel is '2': needs a whole number from 1. Correct it."),
        ({"port": 80}, "vllm_models[0].port is 80: needs a whole number from 1024 to 65535. Correct it."),
        ({"default": "yes"}, "vllm_models[0].default is 'yes': needs true or false. Correct it."),
        ({"state": "gone"}, "vllm_models[0].state is 'gone': needs present or absent. Correct it."),
        ({"served_as": "gpt-4"}, "vllm_models[0].served_as is 'gpt-4': needs a list of names, for example [llama, gpt-4]. Correct or remove it."),
        ({"served_as": ["a b"]}, "vllm_models[0].served_as holds 'a b': needs 1 to 128 printable characters without blanks, not starting with '-'. Correct it."),
        ({"gpus": [0, 0]}, "vllm_models[0].gpus is [0, 0]: names a GPU twice. Name each once."),
        ({"gpus": ["0"]}, "vllm_models[0].gpus is ['0']: needs a list of GPU numbers, for example [0, 1]. Correct it."),
        ({"engine_args": {"port": 9}}, "vllm_models[0].engine_args.port is set: the plan decides it. Remove it and use vllm_models[].port."),
        ({"engine_args": {"api_key": "x"}}, "vllm_models[0].engine_args.api-key is set: the plan decides it. Remove it and use vllm_api_keys for clients; the engine's own key is made on the host."),
        ({"engine_args": {"--dtype": "x"}}, "vllm_models[0].engine_args has the key '--dtype': needs an option of 'vllm serve' without dashes in front. Correct it."),
        ({"engine_args": {"dtype": "-x"}}, "vllm_models[0].engine_args.dtype is '-x': vLLM takes a value that starts with '-' for an option. Write it otherwise."),
        ({"env": {"VLLM_API_KEY": "x"}}, "vllm_models[0].env.VLLM_API_KEY is set: the plan decides it. Remove it and use nothing: it is made on the host."),
        ({"env": {"a": "x"}}, "vllm_models[0].env has the name 'a': needs A-Z, 0-9 and '_'. Correct it."),
        ({"env": {"A": "x\ny"}}, "vllm_models[0].env.A is no single line of text. Correct it."),
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
    assert message.startswith("vllm_gpu_profile is 'auto' and no profile suits Tesla V100 (15.0 GiB, 7.0) on gpu01:")


def test_a_pinned_profile_that_the_gpu_cannot_run_is_refused_naming_both() -> None:
    assert refused([model()], host(A100, gpu_profile="h100_fp8")) == [
        "the profile 'h100_fp8' of 'llama' needs compute capability 8.9 and 79 GiB: GPU 0 of gpu01 is a NVIDIA A100-SXM4-40GB with 8.0 and 39.39 GiB. "
        "Choose another profile, or auto."
    ]


def test_more_gpus_than_there_are_is_refused() -> None:
    assert refused([model("a"), model("b")], host(H100)) == [
        "vllm_models: 'b-0' needs 1 free GPU(s): gpu01 has 0 (0: a-0). Take a model away, lower tensor_parallel or replicas, or use another host."
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
