"""The arithmetic of `kernels` in torch, for devices other than the CPU.

`add_(x, alpha=w)` is one fused multiply-add on fp32, in the plan's order; division and roundings are IEEE's. Whether
the device at hand really does that is tried before it is trusted (`agrees`): a rank whose device rounds otherwise uses
the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.merge.kernels import reference
from souping.merge.kernels.reference import ITEMSIZE, Combine, Raw
from souping.merge.live import TORCH_DTYPES

if TYPE_CHECKING:
    import torch

DIFFERENCES: dict[Combine, bool] = {reference.linear: False, reference.delta: True}
"""Methods that run here; True where the first row is a base that the others' differences are added to."""
QUIET = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
SAMPLE = 4099


def blend(
    function: Combine,
    rows: Sequence[torch.Tensor],
    dtypes: Sequence[str],
    weights: Sequence[float],
    divisor: torch.Tensor | None,
    dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix rows [K] of bytes [count * itemsize] of `dtypes`; returns the soup's bytes and whether all is finite [].

    `function` is one of `DIFFERENCES`. `divisor` is an fp32 tensor on the device: torch turns a division by a number
    into a multiplication by its reciprocal there, which rounds otherwise.
    """
    import torch

    base = _widen(rows[0], dtypes[0]) if DIFFERENCES[function] else None
    first = 0 if base is None else 1
    count = rows[0].numel() // ITEMSIZE[dtypes[0]]
    total = torch.zeros(count, dtype=torch.float32, device=rows[0].device)
    for row, tag, weight in zip(rows[first:], dtypes[first:], weights[first:], strict=True):
        value = _widen(row, tag)
        total.add_(value if base is None else value - base, alpha=float(np.float32(weight)))
    if base is not None:
        total.add_(base)
    if divisor is not None:
        total.div_(divisor)
    return _narrow(total, dtype)


def _widen(row: torch.Tensor, dtype: str) -> torch.Tensor:
    import torch

    return row.view(_torch_dtype(dtype)).to(torch.float32)


def _narrow(total: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One rounding to `dtype`; devices have NaNs of their own, files get the quiet one."""
    import torch

    soup = total.to(_torch_dtype(dtype))
    bits = soup.view(torch.int32 if ITEMSIZE[dtype] == 4 else torch.int16)
    bits.masked_fill_(torch.isnan(soup), QUIET[dtype])
    return bits.view(torch.uint8), torch.isfinite(soup).all()


def _torch_dtype(tag: str) -> Any:
    import torch

    return getattr(torch, TORCH_DTYPES[tag])


def agrees(device: torch.device) -> bool:
    """Whether the device's bits are those of `kernels` on a sample with all kinds of values."""
    return all(
        _same(device, function, source, dtype, divisor)
        for function in DIFFERENCES
        for source in ITEMSIZE
        for dtype in ITEMSIZE
        for divisor in (None, 3.0)
    )


def _same(device: torch.device, function: Combine, source: str, dtype: str, divisor: float | None) -> bool:
    import torch

    raws, weights = _sample(source), (0.15, 0.85, 0.5, 1 / 3)
    with np.errstate(over="ignore", invalid="ignore"):
        total = function([reference.widen(raw, source) for raw in raws], weights)
        wanted = reference.narrow(reference.divide(total, divisor), dtype)
    by = None if divisor is None else torch.tensor([divisor], dtype=torch.float32, device=device)
    rows = [torch.from_numpy(raw).to(device) for raw in raws]
    got, finite = blend(function, rows, [source] * len(rows), weights, by, dtype)
    return np.array_equal(got.cpu().numpy(), wanted) and bool(finite) == reference.finite(wanted, dtype)


def _sample(dtype: str) -> list[Raw]:
    """Four rows: two of ordinary numbers, two of random bits."""
    dice = np.random.default_rng(len(dtype))
    ordinary = [reference.narrow(dice.standard_normal(SAMPLE, np.float32), dtype) for _ in range(2)]
    size = SAMPLE * ITEMSIZE[dtype]
    return [*ordinary, *(np.frombuffer(dice.bytes(size), np.uint8).copy() for _ in range(2))]
