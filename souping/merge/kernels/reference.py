"""Exact fp32 arithmetic on blocks, in numpy: what every faster kernel has to equal bit for bit.

The specification, which is also what mergekit 0.1.5's `linear` and torch's `add_(x, alpha=w)` on fp32 do:
`acc = +0; acc = fma(w_k, x_k, acc)` in the plan's order with w_k rounded to fp32, then one rounding to the output
dtype (nearest, ties to even).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Raw = NDArray[np.uint8]
Combine = Callable[[Sequence[Float32], Sequence[float]], Float32]
"""A method on fp32 rows: combine(rows, weights) -> row."""
BLOCK = 1 << 19  # elements: smaller ones fit the second-level cache, but each costs 0.1 ms of Python


def widen(raw: Raw, dtype: str) -> Float32:
    """Bytes [count * itemsize] of `dtype` as fp32 [count], exactly."""
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: Float32, dtype: str) -> Raw:
    """fp32 [count] rounded once to `dtype` (nearest, ties to even), as bytes; every NaN becomes the quiet one."""
    values = np.ascontiguousarray(values)
    if dtype == "F16":
        with np.errstate(over="ignore", invalid="ignore"):
            half = values.astype(np.float16)
        half[np.isnan(half)] = np.float16("nan")
        return half.view(np.uint8)
    bits = values.view(np.uint32)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if dtype == "F32":
        return np.where(nan, np.uint32(0x7FC00000), bits).view(np.uint8)
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(nan, np.uint32(0x7FC0), rounded).astype(np.uint16).view(np.uint8)


def fma(weight: float, values: Float32, total: Float32) -> Float32:
    """`weight * values + total` with a single rounding to fp32; `weight` counts as rounded to fp32.

    The product of two fp32 is exact in fp64, so only the sum can round twice. Where the fp64 sum could be a tie of
    the fp32 rounding it is moved by its own error first (rounding to odd, Boldo and Melquiond 2008).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.float64(np.float32(weight)) * values.astype(np.float64).reshape(-1)
        wide = total.astype(np.float64).reshape(-1)
        sums = product + wide
        bits = sums.view(np.uint64)
        ties = (bits & np.uint64(0x0FFFFFFF)) == 0
        small = np.abs(sums) < 2.0**-125
        doubtful = np.flatnonzero((ties & ((bits & np.uint64(0x10000000)) != 0)) | (small & (sums != 0)))
        if len(doubtful):
            _round_to_odd(sums, product, wide, doubtful)
        return sums.astype(np.float32).reshape(total.shape)


def _round_to_odd(
    sums: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64], at: NDArray[np.intp]
) -> None:
    """Replace inexact sums whose last bit is even by their odd neighbour on the side of the error (Knuth's TwoSum)."""
    s, a, b = sums[at], a[at], b[at]
    part = s - a
    error = (a - (s - part)) + (b - part)
    even = (s.view(np.uint64) & np.uint64(1)) == 0
    move = even & (error != 0) & np.isfinite(error)
    sums[at[move]] = np.nextafter(s[move], np.copysign(np.inf, error[move]))


def linear(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """sum_k w_k x_k, in order."""
    total = np.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total = fma(weight, tensor, total)
    return total


def delta(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """x_0 + sum_k w_k (x_k - x_0): `tensors[0]` is the base and `weights[0]` is not used."""
    base, total = tensors[0], np.zeros_like(tensors[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            total = fma(weight, tensor - base, total)
        return base + total


DIFFERENCES: dict[Combine, bool] = {linear: False, delta: True}
"""Methods that have a compiled form and one in torch; True where differences to the first row are summed, the base."""


def finite(raw: Raw, dtype: str) -> bool:
    """Whether no element is NaN or infinite (all exponent bits set)."""
    mask = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[dtype]
    if dtype == "F32":
        return not bool(((raw.view(np.uint32) & np.uint32(mask)) == mask).any())
    return not bool(((raw.view(np.uint16) & np.uint16(mask)) == mask).any())
