"""One block of a soup: bytes of the ingredients in, bytes of the soup out. Everything above only moves blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from souping.core.text import named
from souping.core.types import UserError
from souping.merge.kernels.compiled import native
from souping.merge.kernels.reference import DIFFERENCES, Combine, Float32, Raw, narrow, widen


def mix_block(
    function: Combine,
    rows: Sequence[Raw],
    dtypes: Sequence[str],
    weights: Sequence[float],
    dtype: str,
    out: Raw,
    stored: str,
) -> bool:
    """Mix rows [K][count] of `dtypes` into `out` [count]: rounded once to `dtype`, then cast to `stored`.

    Returns whether every element of the soup is finite. Sums and sums of differences run fused where LLVM is there;
    the bytes are the same either way.
    """
    if function in DIFFERENCES:
        source = dtypes[0] if len(set(dtypes)) == 1 else "F32"
        kernel = native(DIFFERENCES[function], source, dtype, stored)
        if kernel is not None:
            return kernel(alike(rows, dtypes), weights, out)
    tensors = [widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)]
    total = _plain(function(tensors, weights), function, tensors[0].shape)
    return store(narrow(total, dtype), dtype, out, stored)


def _plain(soup: Float32, function: Combine, shape: tuple[int, ...]) -> Float32:
    """What a method, which may be the user's, made, as fp32.

    Raises:
        UserError: it is no array of the tensors' shape.
    """
    if not isinstance(soup, np.ndarray) or soup.shape != shape or soup.dtype.kind != "f":
        made = f"{soup.dtype} {soup.shape}" if isinstance(soup, np.ndarray) else type(soup).__name__
        raise UserError(f"merge method {named(function)} gave {made}, not fp32 {shape} like its tensors")
    return soup.astype(np.float32, copy=False)


def alike(rows: Sequence[Raw], dtypes: Sequence[str]) -> list[Raw]:
    """The rows as they are, or widened to fp32 where their dtypes differ."""
    if len(set(dtypes)) == 1:
        return list(rows)
    return [widen(row, tag).view(np.uint8) for row, tag in zip(rows, dtypes, strict=True)]


def store(soup: Raw, dtype: str, out: Raw, stored: str) -> bool:
    """Put bytes of `dtype` into `out` as `stored`; returns whether all are finite."""
    wide = widen(soup, dtype)
    out[:] = soup if dtype == stored else narrow(wide, stored)
    return bool(np.isfinite(wide).all())
