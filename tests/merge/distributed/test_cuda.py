"""The GPU path of `merge=accelerate`: its order of work with stand-ins for CUDA, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from souping.core.types import UserError
from souping.merge.distributed.worker import Team
from souping.merge.kernels.gpu import agrees
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from tests.support.ranks import (
    fill,
    planned,
    siblings,
    spoil,
    staging,
)


class Stream:
    """Stands in for a CUDA stream or event: work is done when it is queued."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


GPU_CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "float32": {"dtype": "float32"},
    "slerp": {"method": "slerp", "weights": (0.25, 0.0, 0.75)},
    "task_arithmetic": {"method": "task_arithmetic"},
    "alone": {"weights": (0.0, 1.0, 0.0)},
}


def cook_on(device: torch.device, plan: MergePlan, stage: Path) -> list[int]:
    from souping.merge.distributed.cuda import CudaShardWriter

    cooked: list[int] = []
    with CudaShardWriter(plan, stage, device) as writer:
        writer.fill(progress=lambda done, _: cooked.append(done))
    return cooked


def check_gpu(case: str, device: torch.device, tmp_path: Path) -> None:
    folders, fields = siblings(tmp_path / "pool", torch.bfloat16, torch.float16), GPU_CASES[case]
    if case == "task_arithmetic":
        fields = {**fields, "base": str(folders["a"])}
    plan = planned(folders, **fields)
    local = LocalMerge().write(plan, tmp_path / "local")
    stage = staging(plan, tmp_path / "gpu")
    assert cook_on(device, plan, stage)[-1] == plan.nbytes
    for path in stage.iterdir():
        assert path.read_bytes() == (local / path.name).read_bytes()


@pytest.mark.parametrize("case", GPU_CASES)
def test_the_gpu_path_without_a_gpu(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its order of reading, mixing and writing, with stand-ins that work at once."""
    pretend_cuda(monkeypatch)
    check_gpu(case, torch.device("cpu"), tmp_path)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    from souping.merge.distributed import cuda

    empty = torch.empty
    for name in ("Stream", "Event", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more))
    monkeypatch.setattr(cuda, "LARGEST", 1 << 16)  # several blocks in flight


def test_the_gpu_path_refuses_nan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_cuda(monkeypatch)
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    spoil(folders, float("nan"))
    plan = planned(folders)
    with pytest.raises(UserError, match=r"NaN or infinity in tensor model\.z\.weight"):
        cook_on(torch.device("cpu"), plan, staging(plan, tmp_path / "gpu"))


def test_a_rank_with_a_gpu_cooks_on_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_cuda(monkeypatch)
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16))
    team = Team(rank=0, ranks=1, local=1, gpu=torch.device("cpu"), group=None)
    fill(team, plan, staging(plan, tmp_path / "gpu"))
    local = LocalMerge().write(plan, tmp_path / "local")
    assert (tmp_path / "gpu/model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", GPU_CASES)
def test_the_gpu_path_on_a_gpu(case: str, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    assert agrees(device)
    check_gpu(case, device, tmp_path)
