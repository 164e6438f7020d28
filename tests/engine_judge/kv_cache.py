"""Asks vLLM's own code how it lays out a KV cache, and for the weights of one GPU: run it with the Python of a vLLM.

    /opt/vllm/current/bin/python kv_cache.py CASES.json

No GPU and no weights are needed: vLLM is made to believe that it stands on an H100, and builds its model without storage
(the ``meta`` device) as one rank of so many. What the layers then ask for goes through the functions that size the KV cache
at an engine's start. Of a model that sees, only the text part is built.

A case: config (of the hub), tensor_parallel, kv_cache_dtype, max_model_len, max_num_batched_tokens, kv_bytes. One line of
JSON a case, in their order: num_blocks, kv_tokens, max_concurrency, fits, longest (the context that `auto` would give, up to
the model's own), weights_bytes (the parameters of one GPU), error.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

# vLLM logs to stdout, which is for the answers.
ANSWERS = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
FOLDER = Path(tempfile.mkdtemp(prefix="kv-cache-"))
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CACHE_ROOT": str(FOLDER),
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

# The keys of a case that make another model of it; the others only ask it another question.
MODEL_KEYS = ("config", "tensor_parallel", "kv_cache_dtype")
# Compiled parts of the CUDA build.
EXTENSIONS = (
    "_C",
    "_C_stable_libtorch",
    "_moe_C",
    "_moe_C_stable_libtorch",
    "vllm_flash_attn._vllm_fa2_C",
    "vllm_flash_attn._vllm_fa3_C",
)
GIB = 2**30

# By name, since only a vLLM's Python has them.
torch = import_module("torch")


class Absent(ModuleType):
    """Stands in for a library that is imported and never used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class AbsentFinder:
    """Finds torchvision, which the models that see import and a CPU build leaves out."""

    @staticmethod
    def find_spec(name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, AbsentFinder, is_package=True) if name.partition(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """There is nothing to run."""


def pretend_gpu() -> Any:
    """Make vLLM take this machine for one with eight H100; return the platform."""
    for name in EXTENSIONS:
        sys.modules.setdefault(f"vllm.{name}", ModuleType(f"vllm.{name}"))
    interface = import_module("vllm.platforms.interface")

    class Pretended(import_module("vllm.platforms.cuda").NonNvmlCudaPlatform):  # type: ignore[misc]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return interface.DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * GIB

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 132

        @classmethod
        def current_device(cls) -> str:
            return "meta"

        @classmethod
        def device_count(cls) -> int:
            return 8

    platform = Pretended()
    import_module("vllm.platforms")._current_platform = platform  # type: ignore[attr-defined]
    # Without Triton, vLLM's stand-in for it makes a function of what has fields.
    stand_in = import_module("vllm.triton_utils").triton
    if type(stand_in).__name__ == "TritonPlaceholder":
        stand_in.Config = lambda kwargs, **options: SimpleNamespace(**{"num_stages": 1, "kwargs": kwargs, **options})
    kernels = import_module("vllm._custom_ops")
    for name in dir(kernels):
        if "supports" in name or "supported" in name:
            setattr(kernels, name, lambda *_args, **_options: True)
    libraries: Any = import_module("vllm.utils.import_utils")
    libraries.has_deep_gemm = libraries.has_triton_kernels = lambda: True
    flashmla: Any = import_module("vllm.v1.attention.ops.flashmla")
    flashmla.is_flashmla_dense_supported = flashmla.is_flashmla_sparse_supported = lambda: (True, None)
    torch.cuda.Stream = torch.cuda.Event = SimpleNamespace
    torch.accelerator.empty_cache = lambda: None
    # The inspection of a model's class is another process, which would not know of any of this.
    import_module("vllm.model_executor.models.registry")._run_in_subprocess = lambda inspect: inspect()  # type: ignore[attr-defined]
    # Asked last: a torchvision that is there is taken. Transformers goes on without where it can.
    import_module("transformers.utils").is_torchvision_available()
    sys.meta_path.append(AbsentFinder)
    import_module("vllm.v1.worker.workspace").init_workspace_manager(torch.device("meta"))
    return platform


@contextmanager
def lenient_kernels() -> Iterator[None]:
    """Let layers take hold of kernels that the build lacks: none is ever run."""
    namespace = torch._ops._OpNamespace
    found = namespace.__getattr__

    def look_up(self: Any, name: str) -> Any:
        try:
            return found(self, name)
        except AttributeError:
            if name.startswith("__") or not self.name.startswith("_"):
                raise
            return lambda *_args, **_options: False

    namespace.__getattr__ = look_up
    try:
        yield
    finally:
        namespace.__getattr__ = found


def pretend_ranks(count: int) -> None:
    """Make this process the first of ``count`` that share a model by tensor parallelism."""

    def group(size: int) -> Any:
        processes = SimpleNamespace(size=lambda: size, rank=lambda: 0)
        return SimpleNamespace(
            world_size=size, rank=0, rank_in_group=0, local_rank=0, ranks=list(range(size)),
            first_rank=0, last_rank=size - 1, is_first_rank=True, is_last_rank=size == 1,
            unique_name="pretended", device=torch.device("meta"), cpu_group=processes, device_group=processes,
            device_communicator=None,
        )  # fmt: skip

    state: Any = import_module("vllm.distributed.parallel_state")
    state._TP, state._EP, state._WORLD = group(count), group(count), group(count)
    state._PP = state._DP = state._DCP = state._PCP = group(1)


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of the text model alone."""
    if "text_config" not in config:
        return dict(config)
    outer = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
    return {**outer, **config["text_config"]}


class Engine:
    """vLLM's model and configuration for one case, on the first GPU."""

    def __init__(self, case: Mapping[str, Any], platform: Any) -> None:
        config = text_part(case["config"])
        folder = Path(tempfile.mkdtemp(dir=FOLDER))
        # transformers' names are also vLLM's.
        names = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        written = json.dumps({**config, "architectures": [names[config["model_type"]]]})
        (folder / "config.json").write_text(written, encoding="utf-8")
        pretend_ranks(case["tensor_parallel"])
        platform.device_type = "cuda"
        arguments = import_module("vllm.engine.arg_utils").EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            tensor_parallel_size=case["tensor_parallel"],
            kv_cache_dtype=case["kv_cache_dtype"],
            max_num_batched_tokens=8192,
        )
        self.config = arguments.create_engine_config()
        self.longest: int = self.config.model_config.max_model_len
        # Some buffers name their device.
        platform.device_type = "meta"
        loader: Any = import_module("vllm.model_executor.model_loader.utils")
        with ExitStack() as stack:
            stack.enter_context(import_module("vllm.config").set_current_vllm_config(self.config))
            stack.enter_context(
                import_module("vllm.utils.torch_utils").set_default_torch_dtype(self.config.model_config.dtype)
            )
            stack.enter_context(lenient_kernels())
            stack.enter_context(torch.device("meta"))
            model = loader.initialize_model(self.config)
            self.weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
            platform.update_block_size_for_backend(self.config)
            attention: Any = import_module("vllm.v1.worker.gpu.attn_utils")
            self.specs = attention.get_kv_cache_spec(self.config)
            self._resolve_layout()

    def _resolve_layout(self) -> None:
        layers = self.config.compilation_config.static_forward_context.values()
        backends = {layer.get_attn_backend() for layer in layers if hasattr(layer, "get_attn_backend")}
        layouts: Any = import_module("vllm.v1.attention.backends.utils")
        names = [layout.name for layout in layouts.get_supported_kv_cache_layouts(backends)]
        layouts.resolve_kv_cache_layout(self.config, [names], self.specs.values())

    def _layout(self, kv_bytes: int, max_model_len: int) -> Any:
        """Return what an engine's start would make of the memory; ``max_model_len`` -1 takes what fits. Raises ValueError."""
        model = self.config.model_config
        model.original_max_model_len = max_model_len
        model.max_model_len = self.longest if max_model_len == -1 else max_model_len
        utils: Any = import_module("vllm.v1.core.kv_cache_utils")
        return utils.get_kv_cache_configs(self.config, [dict(self.specs)], [kv_bytes])[0]

    def ask(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one case."""
        utils: Any = import_module("vllm.v1.core.kv_cache_utils")
        self.config.scheduler_config.max_num_batched_tokens = case["max_num_batched_tokens"]
        answer: dict[str, Any] = {"weights_bytes": self.weights_bytes, "longest": 0, "error": None}
        with suppress(ValueError):
            self._layout(case["kv_bytes"], -1)
            answer["longest"] = self.config.model_config.max_model_len
        try:
            found = self._layout(case["kv_bytes"], case["max_model_len"])
            answer["fits"] = True
        except ValueError as error:
            answer |= {"fits": False, "error": str(error)}
            groups = utils.get_kv_cache_groups(self.config, dict(self.specs))
            found = utils.get_kv_cache_config_from_groups(self.config, groups, case["kv_bytes"])
        tokens, concurrency = utils.get_kv_cache_capacity(self.config, found)
        answer |= {
            "num_blocks": found.num_blocks,
            "groups": [len(group.layer_names) for group in found.kv_cache_groups],
            "block_size": self.config.cache_config.block_size,
        }
        return {**answer, "kv_tokens": tokens, "max_concurrency": concurrency}


def main(file: str) -> None:
    platform = pretend_gpu()
    cases = json.loads(Path(file).read_text(encoding="utf-8"))
    for _key, alike in itertools.groupby(cases, key=lambda case: [case[key] for key in MODEL_KEYS]):
        engine: Engine | str | None = None
        for case in alike:
            try:
                engine = engine or Engine(case, platform)
                answer = engine.ask(case) if isinstance(engine, Engine) else {"error": engine}
            except Exception as error:
                traceback.print_exc()
                engine = f"{type(error).__name__}: {error}"
                answer = {"error": engine}
            ANSWERS.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
