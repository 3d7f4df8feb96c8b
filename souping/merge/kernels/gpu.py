"""Arithmetic of `kernels` in torch, for devices other than the CPU: the one place where soups are mixed by torch.

`add_(x, alpha=w)` is one fused multiply-add on fp32, in the plan's order; roundings are IEEE's. Whether
the device at hand really does that is tried before ranks trust it (`agrees`): one whose device rounds otherwise uses
the CPU. Adapters' products are summed in fp64, which keeps them independent of how a matrix library splits the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.dtypes import FLOATS, TORCH_DTYPES, size_of
from souping.merge.kernels.reference import DIFFERENCES, Combine, Float32, Raw, finite, narrow, widen

if TYPE_CHECKING:
    import torch

QUIET = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
SAMPLE = 4099


def blend(
    function: Combine,
    rows: Sequence[torch.Tensor],
    dtypes: Sequence[str],
    weights: Sequence[float],
    dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix rows [K] of bytes [count * itemsize] of `dtypes`; returns the soup's bytes and whether all is finite [].

    `function` is one of `DIFFERENCES`.
    """
    import torch

    base = _wide(rows[0], dtypes[0]) if DIFFERENCES[function] else None
    first = 0 if base is None else 1
    count = rows[0].numel() // size_of(dtypes[0])
    total = torch.zeros(count, dtype=torch.float32, device=rows[0].device)
    for row, tag, weight in zip(rows[first:], dtypes[first:], weights[first:], strict=True):
        value = _wide(row, tag)
        total.add_(value if base is None else value - base, alpha=float(np.float32(weight)))
    if base is not None:
        total.add_(base)
    return _rounded(total, dtype)


def copied(row: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of `dtype` as they are, and whether all is finite []."""
    import torch

    return row, torch.isfinite(row.view(torch_dtype(dtype))).all()


def add_product(base: Float32, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """base [n, columns] + left [n, rank] @ right [rank, columns] in fp64, rounded to fp32, where the factors are."""
    import torch

    rows = torch.tensor(base, device=left.device).double()
    return rows.addmm_(left, right).float()


def torch_dtype(tag: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[tag])  # torch's
    return dtype


def _wide(row: torch.Tensor, dtype: str) -> torch.Tensor:
    import torch

    return row.view(torch_dtype(dtype)).to(torch.float32)


def _rounded(total: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One rounding to `dtype`; devices have NaNs of their own, files get the quiet one."""
    import torch

    soup = total.to(torch_dtype(dtype))
    bits = soup.view(torch.int32 if size_of(dtype) == 4 else torch.int16)
    bits.masked_fill_(torch.isnan(soup), QUIET[dtype])
    return bits.view(torch.uint8), torch.isfinite(soup).all()


def agrees(device: torch.device) -> bool:
    """Whether the device's bits are those of `kernels` on a sample with all kinds of values."""
    return all(
        _same(device, function, source, dtype) for function in DIFFERENCES for source in FLOATS for dtype in FLOATS
    )


def _same(device: torch.device, function: Combine, source: str, dtype: str) -> bool:
    import torch

    raws, weights = _sample(source), (0.15, 0.85, 0.5, 1 / 3)
    with np.errstate(over="ignore", invalid="ignore"):
        total = function([widen(raw, source) for raw in raws], weights)
        wanted = narrow(total, dtype)
    rows = [torch.from_numpy(raw).to(device) for raw in raws]
    got, good = blend(function, rows, [source] * len(rows), weights, dtype)
    return np.array_equal(got.cpu().numpy(), wanted) and bool(good) == finite(wanted, dtype)


def _sample(dtype: str) -> list[Raw]:
    """Four rows: two of ordinary numbers, two of random bits."""
    dice = np.random.default_rng(len(dtype))
    ordinary = [narrow(dice.standard_normal(SAMPLE, np.float32), dtype) for _ in range(2)]
    size = SAMPLE * size_of(dtype)
    return [*ordinary, *(np.frombuffer(dice.bytes(size), np.uint8).copy() for _ in range(2))]
