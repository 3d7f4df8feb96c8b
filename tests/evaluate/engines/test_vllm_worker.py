"""How a soup's chunks get into a worker of vLLM: this process's memory, mapped there (stand-ins for vLLM's parts)."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.core.protocols import AdapterShape, WeightStream
from souping.core.types import UserError
from souping.evaluate.engines.vllm import Vllm, VllmEngine, llm_arguments
from souping.evaluate.generate import LocalEvaluator
from souping.merge import CandidatePool
from souping.merge.local import LocalMerge

MACHINE = LocalEvaluator().machine
SHAPE = AdapterShape(base=Path(), rank=8, modules=("q_proj",))


class Transfer:
    """Stands where vLLM's engine for weight updates would."""

    update_info_cls: Any = None

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        self.model = model


class Model:
    """Keeps the tensors that it is given, and does not copy them."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.tensors.update(weights)


class Llm:
    """vLLM with one worker, in this process."""

    def __init__(self, **arguments: Any) -> None:
        self.extension = arguments["worker_extension_cls"]
        self.calls: list[str] = []
        self.model: Any = Model()
        self.worker: Any = None
        self.adapters = Adapters() if arguments.get("enable_lora") else None
        self.llm_engine = self.adapters
        self.empties = True
        self.salts: list[str] = []

    def collective_rpc(self, method: str) -> list[Any]:
        if self.worker is None:
            module, name = self.extension.rsplit(".", 1)
            __import__(module)
            self.worker = getattr(sys.modules[module], name)()
            self.worker.device = None
            self.worker.vllm_config = SimpleNamespace(lora_config=self.adapters)
            self.worker.model_runner = SimpleNamespace(
                get_model=lambda: self.model,
                lora_manager=SimpleNamespace(_adapter_manager=self.adapters),
            )
        return [getattr(self.worker, method)()]

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        self.calls.append("update")
        transfer = self.worker.weight_transfer_engine
        transfer.receive_weights(transfer.update_info_cls(**request["update_info"]))

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return self.empties

    def generate(self, prompts: list[dict[str, Any]], *_: Any, **__: Any) -> list[Any]:
        self.salts += [prompt["cache_salt"] for prompt in prompts]
        completion = SimpleNamespace(token_ids=[1], finish_reason="stop")
        return [SimpleNamespace(outputs=[completion]) for _ in prompts]


class Adapters:
    """vLLM's adapters on one linear layer, of which one is active."""

    def __init__(self) -> None:
        self.loaded: dict[int, Any] = {}
        self.modules = {
            "q_proj": SimpleNamespace(
                lora_a_stacked=(torch.zeros(1, 1, 8, 5),), lora_b_stacked=(torch.zeros(1, 1, 3, 8),)
            )
        }

    def add_lora(self, request: Any) -> None:
        factors = load_file(Path(request.path) / "adapter_model.safetensors")
        assert not self.loaded
        self.loaded[request.lora_int_id] = SimpleNamespace(loras=factors)
        layer = self.modules["q_proj"]
        a, b = factors["q_proj"], factors.get("q_proj.b", torch.ones(3, 2))
        layer.lora_a_stacked[0][0, 0, : len(a)] = a
        layer.lora_b_stacked[0][0, 0, :, : len(a)] = b
        factors.pop("q_proj.b", None)

    def remove_lora(self, number: int) -> None:
        del self.loaded[number]

    def list_adapters(self) -> dict[int, Any]:
        return self.loaded


class Request(SimpleNamespace):
    def __init__(self, name: str, number: int, path: str) -> None:
        super().__init__(lora_name=name, lora_int_id=number, path=path)


class Packed(torch.nn.Module):
    """Linear layer of vLLM that has handed its weight to a library and kept nothing."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.input_size_per_partition = weight.shape[1]
        self.quant_method = SimpleNamespace(apply=lambda layer, units: units @ weight.T)


PARTS: dict[str, dict[str, object]] = {
    "vllm": {"LLM": Llm, "SamplingParams": dict},
    "vllm.platforms": {},
    "vllm.config": {},
    "vllm.config.weight_transfer": {"WeightTransferConfig": SimpleNamespace},
    "vllm.distributed": {},
    "vllm.distributed.weight_transfer": {},
    "vllm.distributed.weight_transfer.ipc_engine": {"IPCWeightTransferEngine": Transfer},
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": Request},
    "vllm.model_executor": {},
    "vllm.model_executor.layers": {},
    "vllm.model_executor.layers.linear": {"LinearBase": Packed},
    "vllm.model_executor.model_loader": {},
    "vllm.model_executor.model_loader.mtp_validation": {
        "disable_mtp_completeness_check": nullcontext
    },
}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """vLLM's modules, by stand-ins; the platform may become a CPU."""
    found = SimpleNamespace(cpu=False)
    for name, members in PARTS.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["vllm.platforms"])["current_platform"] = SimpleNamespace(
        is_cpu=lambda: found.cpu
    )
    monkeypatch.delitem(sys.modules, "souping.evaluate.engines.vllm_worker", raising=False)
    monkeypatch.setattr("souping.merge.local.CHUNK_BYTES", 5000)
    return found


def soup(family: Path) -> tuple[CandidatePool, WeightStream]:
    pool = LocalMerge().open({name: family / name for name in ("ant", "bee")})
    stream = pool.stream(pool.recipe({"ant": 0.4, "bee": 0.6}))
    assert stream is not None
    return pool, stream


def test_a_worker_gets_the_tensors_that_the_folder_would_hold(
    family: Path, tmp_path: Path, platform: SimpleNamespace
) -> None:
    pool, stream = soup(family)
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    engine.load_soup(stream)
    llm = engine._llm
    folder = pool.write(pool.recipe({"ant": 0.4, "bee": 0.6}), tmp_path / "soup")
    expected = load_file(folder / "model.safetensors")
    # The last chunk did not write over what a layer holds of the first.
    assert llm.model.tensors.keys() == expected.keys()
    assert all(llm.model.tensors[name].equal(expected[name]) for name in expected)
    chunks = len(list(stream.chunks()))
    assert chunks > 3
    assert llm.calls == ["start", *["update"] * chunks, "finish", "reset"]
    # A chunk's memory goes with the last layer that holds a piece of it.
    assert 0 < shared_files() <= chunks
    llm.model.tensors.clear()
    assert shared_files() == 0


def shared_files() -> int:
    """Open files of this process that are memory of chunks."""
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        # The folder's own descriptor is gone by now.
        with suppress(FileNotFoundError):
            count += "memfd:souping" in str(path.readlink())
    return count


def test_tied_embeddings_are_not_replaced_on_a_cpu(family: Path, platform: SimpleNamespace) -> None:
    platform.cpu = True
    _, stream = soup(family)
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    with pytest.raises(RuntimeError, match="tied embeddings"):
        engine.load_soup(stream)
    with pytest.raises(RuntimeError, match="tied embeddings"):
        engine.reload(family / "bee")
    assert engine._llm.calls == []


def test_a_cache_that_is_not_emptied_is_no_success(family: Path, platform: SimpleNamespace) -> None:
    _, stream = soup(family)
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    engine._llm.empties = False
    with pytest.raises(RuntimeError, match="prefix cache"):
        engine.load_soup(stream)


def test_prompts_share_a_prefix_cache_with_their_own_soup_alone(
    family: Path, platform: SimpleNamespace
) -> None:
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    for name in ("first", "second"):
        assert engine.generate([[5, 6], [5, 7]], [{}, {}], name) == [([1], "stop")] * 2
    assert engine._llm.salts == ["first", "first", "second", "second"]


@pytest.mark.parametrize("ours", [False, True])
def test_processes_of_vllm_that_ended_are_an_error_of_the_model(
    family: Path, platform: SimpleNamespace, ours: bool
) -> None:
    """As on kernels that lack its head size. An error of ours stays a fault of souping."""
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    kind = type("EngineDeadError", (Exception,), {"__module__": "vllm.v1.engine.exceptions"})
    error = KeyError("x") if ours else kind("See the stack trace above")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    engine._llm.generate = fail
    with pytest.raises(KeyError if ours else UserError) as raised:
        engine.generate([[5, 6]], [{}], "soup")
    assert ours or str(family / "ant") in str(raised.value)


@pytest.mark.parametrize("kind", [KeyError, NotImplementedError, UnicodeError])
def test_whatever_vllm_raises_at_its_start_is_an_error_of_the_model(
    family: Path, platform: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(**_: Any) -> None:
        raise kind("head size")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fail)
    with pytest.raises(UserError, match="head size"):
        Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))


def test_a_packed_weight_is_sampled_by_its_columns(family: Path, platform: SimpleNamespace) -> None:
    weight = torch.randn(5, 7)
    engine: Any = Vllm(family / "ant", llm_arguments(family / "ant", VllmEngine(), MACHINE))
    engine._llm.model = torch.nn.ModuleDict(
        {"plain": torch.nn.Linear(2, 2, bias=False), "packed": Packed(weight)}
    )
    samples = engine.sample_weights()
    assert samples.tensors == (
        ("plain.weight on rank 0", "float32", 4),
        ("packed.weight on rank 0", "float32", 20),
    )
    assert samples.unchecked == ()
    plain = engine._llm.model["plain"].weight
    assert samples.values[:4].tolist() == plain.flatten().tolist()
    assert samples.values[4:].tolist() == weight[:, [0, 2, 4, 6]].T.flatten().tolist()


def test_an_adapter_takes_the_place_of_the_one_before(
    family: Path, tmp_path: Path, platform: SimpleNamespace
) -> None:
    engine: Any = Vllm(
        family / "base", llm_arguments(family / "base", VllmEngine(), MACHINE, SHAPE)
    )
    for number in (1, 2):
        a = torch.randn(2, 5)
        b = torch.randn(3, 2)
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"q_proj": a, "q_proj.b": b}, folder / "adapter_model.safetensors")
        engine.take_adapter(folder, f"soup {number}")
        assert list(engine._llm.adapters.loaded) == [number]
        samples = engine.sample_weights()
        assert samples.tensors == (("q_proj adapter 0 on rank 0", "float32", 12),)
        # Of the 5 columns 4 are sampled.
        product = (b @ a)[:, [0, 1, 2, 4]].flatten()
        assert samples.values == pytest.approx(product.numpy(), abs=1e-6)


def test_a_module_of_an_adapter_that_the_engine_leaves_out_is_named(
    family: Path, tmp_path: Path, platform: SimpleNamespace
) -> None:
    engine: Any = Vllm(
        family / "base", llm_arguments(family / "base", VllmEngine(), MACHINE, SHAPE)
    )
    factors = {"q_proj": torch.ones(2, 5), "model.head": torch.ones(2, 5)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"model\.head") as error:
        engine.take_adapter(tmp_path, "soup")
    assert "merge.adapters=merge" in str(error.value)
