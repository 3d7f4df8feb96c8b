"""One block of a soup: bytes of the ingredients in, bytes of the soup out. Everything above only moves blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from souping.merge.kernels import Raw, divide, linear, narrow, widen
from souping.merge.methods import Combine


def mix(
    function: Combine,
    rows: Sequence[Raw],
    dtypes: Sequence[str],
    weights: Sequence[float],
    divisor: float | None,
    dtype: str,
    out: Raw,
    out_dtype: str,
) -> bool:
    """Mix rows [K][count] of `dtypes` into `out` [count], rounded once to `dtype`, then stored as `out_dtype`.

    Returns whether every element of the soup is finite.
    """
    tensors = [widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)]
    total = divide(function(tensors, weights), divisor)
    rounded = narrow(total, dtype)
    return store(rounded, dtype, out, out_dtype)


def store(rounded: Raw, dtype: str, out: Raw, out_dtype: str) -> bool:
    """Put bytes of `dtype` into `out` as `out_dtype`; returns whether all are finite."""
    if dtype == out_dtype:
        out[:] = rounded
    else:
        out[:] = narrow(widen(rounded, dtype), out_dtype)
    return bool(np.isfinite(widen(rounded, dtype)).all())


__all__ = ["linear", "mix", "store"]
