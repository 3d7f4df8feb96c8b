"""How a soup's chunks get into a worker of vLLM: this process's memory, mapped there (stand-ins for vLLM's parts)."""

from __future__ import annotations

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from souping.core.protocols import WeightStream
from souping.evaluate.engines.vllm import Vllm, VllmEngine, llm_arguments
from souping.evaluate.generate import LocalEvaluator
from souping.merge import CandidatePool
from souping.merge.local import LocalMerge


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
        self.model = Model()

    def collective_rpc(self, method: str) -> None:
        module, name = self.extension.rsplit(".", 1)
        __import__(module)
        self.worker = getattr(sys.modules[module], name)()
        self.worker.vllm_config = self.worker.device = None
        self.worker.model_runner = SimpleNamespace(get_model=lambda: self.model)
        getattr(self.worker, method)()

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        self.calls.append("update")
        transfer = self.worker.weight_transfer_engine
        transfer.receive_weights(transfer.update_info_cls(**request["update_info"]))

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")


PARTS = {
    "vllm": {"LLM": Llm, "SamplingParams": dict},
    "vllm.platforms": {},
    "vllm.config": {},
    "vllm.config.weight_transfer": {"WeightTransferConfig": SimpleNamespace},
    "vllm.distributed": {},
    "vllm.distributed.weight_transfer": {},
    "vllm.distributed.weight_transfer.ipc_engine": {"IPCWeightTransferEngine": Transfer},
    "vllm.model_executor": {},
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
    engine: Any = Vllm(
        family / "ant", llm_arguments(family / "ant", VllmEngine(), LocalEvaluator().machine)
    )
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
    engine: Any = Vllm(
        family / "ant", llm_arguments(family / "ant", VllmEngine(), LocalEvaluator().machine)
    )
    with pytest.raises(RuntimeError, match="tied embeddings"):
        engine.load_soup(stream)
    with pytest.raises(RuntimeError, match="tied embeddings"):
        engine.reload(family / "bee")
    assert engine._llm.calls == []
