"""Numerics: every way to compute a block, on a GPU too, gives the same bytes, and those are the specified ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from souping.checkpoints.header import FLOATS, size_of
from souping.checkpoints.views import Raw, widen
from souping.core.types import FloatArray, UserError, Weights
from souping.merge import accelerate, methods, rounding
from souping.merge.accelerate import AccelerateMerge, CudaMixer, usable_gpu
from souping.merge.local import LocalMerge
from souping.merge.methods import (
    METHODS,
    Method,
    delta,
    linear,
    mix_block,
    slerp_weights,
    stock_weights,
)
from souping.merge.rounding import narrow
from souping.merge.writer import fill_shards
from tests.support.checkpoints import expected, load, same_bits
from tests.support.merges import contents, planned, siblings, staging

TAGS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SPECIAL = np.array(
    [0, 0x80000000, 1, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001], np.uint32
)


def random_row(seed: int, count: int, dtype: str) -> Raw:
    rng = np.random.default_rng(seed)
    half = count // 2
    values = (rng.standard_normal(count) * 0.02).astype(np.float32)
    values[:half] = rng.integers(0, 2**32, half, dtype=np.uint32).view(np.float32)
    values[: len(SPECIAL)] = SPECIAL[: len(values)].view(np.float32)
    return narrow(values, dtype)


@pytest.mark.skipif(
    methods.native(False, ("F32",), "F32", "F32") is None, reason="llvmlite is not installed"
)
@pytest.mark.parametrize("function", [linear, delta])
@pytest.mark.parametrize("dtype", TAGS)
def test_fused_kernel_equals_numpy_bit_for_bit(function: object, dtype: str) -> None:
    combine = linear if function is linear else delta
    for sources in (["F32"] * 2, ["BF16"] * 3, ["F16"] * 20, list(TAGS)):
        for out_dtype in TAGS:
            for count in (1, 31, 2049):
                raw = [random_row(count + k, count, source) for k, source in enumerate(sources)]
                weights = (
                    np.random.default_rng(len(sources)).dirichlet(np.ones(len(sources))).tolist()
                )
                size = size_of(out_dtype) * count
                fast = np.empty(size, np.uint8)
                plain = np.empty(size, np.uint8)
                assert (
                    methods.native(combine is delta, tuple(sources), dtype, out_dtype) is not None
                )
                good = mix_block(combine, raw, sources, weights, dtype, fast, out_dtype)
                total = combine(
                    [widen(r, source) for r, source in zip(raw, sources, strict=True)], weights
                )
                assert rounding.write_as(narrow(total, dtype), dtype, plain, out_dtype) == good
                assert fast.tobytes() == plain.tobytes(), (sources, out_dtype, count)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(a=FINITE, b=FINITE, w=st.floats(-2, 2, width=32))
def test_fma_rounds_once(a: float, b: float, w: float) -> None:
    exact = Fraction(w) * Fraction(a) + Fraction(b)
    got = float(rounding.fma(w, np.array([a], np.float32), np.array([b], np.float32))[0])
    if math.isinf(got):
        assert abs(exact) >= Fraction(2**128) - Fraction(2**103)
        return
    with np.errstate(over="ignore"):
        below, above = (np.nextafter(np.float32(got), np.float32(end)) for end in (-np.inf, np.inf))
    error = abs(exact - Fraction(got))
    neighbours = [Fraction(float(x)) for x in (below, above) if np.isfinite(x)]
    assert all(error <= abs(exact - x) for x in neighbours)
    if any(error == abs(exact - x) for x in neighbours):
        assert int(np.float32(got).view(np.uint32)) % 2 == 0


def test_double_rounding_is_caught() -> None:
    """The sum is 2^-70 below a tie of fp32; rounded to fp64 first it lands on the tie, and then goes the wrong way."""
    weight = 1 + 2.0**-23
    value = 2.0**-24 * (1 - 2.0**-23)
    total = 1 + 2.0**-23
    twice = np.float32(np.float64(weight) * np.float64(value) + np.float64(total))
    once = rounding.fma(weight, np.array([value], np.float32), np.array([total], np.float32))[0]
    assert once == np.float32(1 + 2.0**-23)
    assert twice == np.float32(1 + 2.0**-22)


@pytest.mark.parametrize("dtype", TAGS)
def test_narrow_rounds_as_torch_does(dtype: str) -> None:
    values = np.concatenate(
        [np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32), SPECIAL]
    ).view(np.float32)
    mine = torch.from_numpy(narrow(values, dtype)).view(TAGS[dtype])
    theirs = torch.from_numpy(values.copy()).to(TAGS[dtype])
    assert torch.equal(mine.float().nan_to_num(123.0), theirs.float().nan_to_num(123.0))
    assert torch.equal(mine.isnan(), theirs.isnan())


def bound(weights: Sequence[float], tensors: Sequence[np.ndarray], got: np.ndarray) -> np.ndarray:
    """One rounding of bf16 plus the error of an fp32 sum: 4 * 2^-24 * sum |w x|."""
    size = np.zeros(got.shape)
    for weight, tensor in zip(weights, tensors, strict=True):
        size += abs(weight) * np.abs(tensor.astype(np.float64))
    return np.asarray(np.abs(got) * 2.0**-8 + 4 * 2.0**-24 * size + 2.0**-133)


@pytest.mark.parametrize("name", METHODS)
def test_methods_against_float64(name: str) -> None:
    rng = np.random.default_rng(3)
    method = METHODS[name]
    base = rng.standard_normal(999).astype(np.float32)
    others = [
        base + rng.standard_normal(999).astype(np.float32) * np.float32(0.3) for _ in range(2)
    ]
    tensors = [base, *others] if method.base else others
    weights = [0.0, 0.35, 0.65] if method.base else [0.35, 0.65]
    got = method(tensors, weights).astype(np.float64)
    w = base.astype(np.float64)
    a, b = [t.astype(np.float64) for t in others]
    if name == "linear":
        want = 0.35 * a + 0.65 * b
    elif name == "task_arithmetic":
        want = w + 0.35 * (a - w) + 0.65 * (b - w)
    elif name == "slerp":
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        want = (np.sin(0.35 * angle) * a + np.sin(0.65 * angle) * b) / np.sin(angle)
    else:
        cosine = (a - w) @ (b - w) / np.linalg.norm(a - w) / np.linalg.norm(b - w)
        t = 2 * cosine / (1 + cosine)
        want = t * (0.35 * a + 0.65 * b) + (1 - t) * w
    assert np.all(np.abs(got - want) <= bound([1.0] * len(tensors), tensors, want))


def test_weights_at_the_edges() -> None:
    """Of model_stock: cos = 1: all of the mean difference; cos = 0: none of it; at the pole the base is kept."""
    assert slerp_weights(np.array([[1.0, 2.0], [2.0, 4.0]]), (0.25, 0.75)) == (0.25, 0.75)
    assert slerp_weights(np.zeros((2, 2)), (0.25, 0.75)) == (0.25, 0.75)
    assert stock_weights(np.ones((2, 2)), (0.5, 0.5)) == (0.5, 0.5)
    assert stock_weights(np.eye(3), (1 / 3, 1 / 3, 1 / 3)) == (0.0, 0.0, 0.0)
    assert stock_weights(np.array([[1.0, -1.0], [-1.0, 1.0]]), (0.5, 0.5)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "NoneType"),
        (1.0, "float"),
        (np.zeros(3, np.float32), r"float32 \(3,\)"),
        (np.zeros(4, int), "int64"),
    ],
)
def test_a_wrong_result_of_a_users_method_is_refused(made: object, said: str) -> None:
    def mine(tensors: Sequence[np.ndarray], weights: Sequence[float]) -> Any:
        return made

    rows = [np.ones(4, np.float32).view(np.uint8)] * 2
    with pytest.raises(
        UserError, match=rf"merge method tests.*mine \(.*test_methods.py:\d+\) gave {said}"
    ):
        mix_block(mine, rows, ["F32", "F32"], [0.5, 0.5], "F32", np.empty(16, np.uint8), "F32")


@pytest.mark.parametrize("broken", ["add_", "to"])
def test_a_device_that_rounds_otherwise(
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
    assert not accelerate.device_agrees(torch.device("cpu"))
    monkeypatch.setattr(accelerate, "device_agrees", lambda _: False)
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
    function = methods.delta if delta else methods.linear
    with np.errstate(all="ignore"):
        total = function([widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)], weights)
        wanted = rounding.narrow(total, dtype)
    got, finite = accelerate.blend(
        function, [torch.from_numpy(r) for r in rows], dtypes, weights, dtype
    )
    assert got.numpy().tobytes() == wanted.tobytes()
    assert bool(finite) == rounding.finite(wanted, dtype)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU in a GPU's place: work is done when it is queued."""
    empty = torch.empty
    for name in ("Stream", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    monkeypatch.setattr(
        torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more)
    )
    monkeypatch.setattr(accelerate, "LARGEST_BLOCK_ELEMENTS", 1 << 16)  # several blocks at a time
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
    local = contents(LocalMerge().write(plan, tmp_path / "local"))
    done = list[int]()
    stage = staging(plan, tmp_path / "gpu")
    fill_shards(plan, stage, lambda now, _: done.append(now), mixer=CudaMixer(plan, device))
    assert done[-1] == plan.nbytes
    assert contents(stage) == {name: local[name] for name in plan.shards}


@pytest.mark.parametrize("case", CASES)
def test_the_gpu_path_without_a_gpu(case: str, stand_ins: torch.device, tmp_path: Path) -> None:
    check_gpu(case, stand_ins, tmp_path)


def test_a_single_rank_writes_with_its_gpu(
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
    assert accelerate.device_agrees(device)
    check_gpu(case, device, tmp_path)


def swapped(inner: FloatArray, weights: Weights) -> Weights:
    return weights[::-1]


def test_a_method_of_whole_tensors_gets_its_coefficients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Method(function=linear, coefficients=swapped, whole=True)
    monkeypatch.setitem(METHODS, "swapped", method)
    plan = planned(siblings(tmp_path / "pool", torch.float32), (0.25, 0.0, 0.75), method="swapped")
    soup = load(LocalMerge().write(plan, tmp_path / "soup"))
    a = load(tmp_path / "pool" / "a")
    c = load(tmp_path / "pool" / "c")
    for name, tensor in soup.items():
        assert same_bits(tensor, expected([a[name], c[name]], (0.75, 0.25), torch.float32))
