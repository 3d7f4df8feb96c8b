"""Soups mixed by torch: the bits of the kernels, and the order of work on a GPU, with stand-ins where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from souping.checkpoints.header import FLOATS, size_of
from souping.core.types import UserError
from souping.merge import accelerate, kernels
from souping.merge.accelerate import AccelerateMerge, CudaShardWriter, usable_gpu
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from tests.merge.test_accelerate import contents, planned, siblings, spoil, staging


def test_torch_on_this_processor_agrees() -> None:
    assert accelerate.agrees(torch.device("cpu"))


@pytest.mark.parametrize("broken", ["add_", "to"])
def test_a_device_that_rounds_otherwise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """Multiply, then add; cut instead of rounding."""
    to = torch.Tensor.to

    def add(self: torch.Tensor, other: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
        return self.copy_(self + other * alpha)

    def cut(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if arguments == (torch.bfloat16,):
            return to(self.view(torch.int32) >> 16, torch.int16).view(torch.bfloat16)
        return to(self, *arguments)

    monkeypatch.setattr(torch.Tensor, broken, {"add_": add, "to": cut}[broken])
    assert not accelerate.agrees(torch.device("cpu"))
    monkeypatch.setattr(accelerate, "agrees", lambda _: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    accelerate.log.disabled = False
    assert usable_gpu(0) is None
    assert "cuda:0 does not round as specified" in caplog.text


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.lists(st.sampled_from(sorted(FLOATS)), min_size=2, max_size=4),
    dtype=st.sampled_from(sorted(FLOATS)),
    delta=st.booleans(),
)
def test_torch_mixes_as_the_kernels(seed: int, dtypes: list[str], dtype: str, delta: bool) -> None:
    dice = np.random.default_rng(seed)
    rows = [np.frombuffer(dice.bytes(37 * size_of(tag)), np.uint8).copy() for tag in dtypes]
    weights = dice.uniform(-1, 2, len(rows)).tolist()
    function = kernels.delta if delta else kernels.linear
    with np.errstate(all="ignore"):
        total = function([kernels.widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)], weights)
        wanted = kernels.narrow(total, dtype)
    got, finite = accelerate.blend(function, [torch.from_numpy(r) for r in rows], dtypes, weights, dtype)
    assert got.numpy().tobytes() == wanted.tobytes()
    assert bool(finite) == kernels.finite(wanted, dtype)


class Stream:
    """Stands in for a CUDA stream: work is done when it is queued."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU in a GPU's place."""
    empty = torch.empty
    for name in ("Stream", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more))
    monkeypatch.setattr(accelerate, "LARGEST", 1 << 16)  # several blocks at a time
    return torch.device("cpu")


CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "float32": {"dtype": "float32"},
    "slerp": {"method": "slerp", "weights": (0.25, 0.0, 0.75)},
    "task_arithmetic": {"method": "task_arithmetic"},
    "alone": {"weights": (0.0, 1.0, 0.0)},
}


def check_gpu(case: str, device: torch.device, tmp_path: Path) -> None:
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16, torch.float16), **CASES[case])
    local, done = contents(LocalMerge().write(plan, tmp_path / "local")), list[int]()
    stage = staging(plan, tmp_path / "gpu")
    with CudaShardWriter(plan, stage, device) as writer:
        writer.fill(progress=lambda now, _: done.append(now))
    assert done[-1] == plan.nbytes
    assert contents(stage) == {name: local[name] for name in plan.shards}


@pytest.mark.parametrize("case", CASES)
def test_the_gpu_path_without_a_gpu(case: str, stand_ins: torch.device, tmp_path: Path) -> None:
    check_gpu(case, stand_ins, tmp_path)


def test_the_gpu_path_refuses_nan(stand_ins: torch.device, tmp_path: Path) -> None:
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    spoil(folders, float("nan"))
    plan: MergePlan = planned(folders)
    with (
        pytest.raises(UserError, match=r"NaN or infinity in tensor model\.z\.weight"),
        CudaShardWriter(plan, staging(plan, tmp_path / "gpu"), stand_ins) as writer,
    ):
        writer.fill()


def test_a_single_rank_writes_with_its_gpu_in_the_run_itself(
    stand_ins: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(accelerate, "usable_gpu", lambda number: stand_ins)
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16))
    out = AccelerateMerge(num_processes=1).write(plan, tmp_path / "gpu")
    assert contents(out) == contents(LocalMerge().write(plan, tmp_path / "local"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_path_on_a_gpu(case: str, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    assert accelerate.agrees(device)
    check_gpu(case, device, tmp_path)
