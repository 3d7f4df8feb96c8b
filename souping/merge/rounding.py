"""Rounding of a soup's fp32 numbers to the stored dtype, and fused multiply-add, which rounds once: both in numpy.

Other code rounds most soups, to the same bits: the kernels that `methods._llvm_rounded` compiles for `linear` and
`task_arithmetic`, and on a GPU `accelerate._torch_rounded`.
"""

from __future__ import annotations

import numpy as np

from souping.checkpoints.views import Float32, Raw, widen
from souping.core.types import FloatArray, IntArray

EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
"""Bits that are all set in NaN and infinity."""
NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
"""The quiet NaN that every NaN becomes."""


def narrow(values: Float32, dtype: str) -> Raw:
    """fp32 [count] rounded once to `dtype` (nearest, ties to even), as bytes; every NaN becomes the quiet one."""
    values = np.ascontiguousarray(values)
    if dtype == "F16":
        with np.errstate(over="ignore", invalid="ignore"):
            half = values.astype(np.float16)
        half[np.isnan(half)] = np.float16("nan")
        return half.view(np.uint8)
    bits = values.view(np.uint32)
    # Without their sign, the bits of NaN are above those of infinity.
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if dtype == "F32":
        return np.where(nan, np.uint32(NAN[dtype]), bits).view(np.uint8)
    # To the nearest of the upper 16 bits: half a unit is added, less where the last bit is even.
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(nan, np.uint32(NAN[dtype]), rounded).astype(np.uint16).view(np.uint8)


def write_as(soup: Raw, dtype: str, out: Raw, out_dtype: str) -> bool:
    """Put bytes of `dtype` into `out` as `out_dtype`; returns whether all are finite."""
    wide = widen(soup, dtype)
    out[:] = soup if dtype == out_dtype else narrow(wide, out_dtype)
    return bool(np.isfinite(wide).all())


def finite(raw: Raw, dtype: str) -> bool:
    """Whether no element of these bytes is NaN or infinite (all exponent bits set)."""
    bits = raw.view(np.uint32 if dtype == "F32" else np.uint16)
    exponents = np.bitwise_and(bits, EXPONENT[dtype])
    return not bool(np.equal(exponents, EXPONENT[dtype]).any())


def fma(weight: float, values: Float32, total: Float32) -> Float32:
    """`weight * values + total` with a single rounding to fp32; `weight` counts as rounded to fp32.

    The product of two fp32 is exact in fp64, so only the sum can round twice. If the fp64 sum could be a tie of
    the fp32 rounding, it is moved by its own error first (rounding to odd, Boldo and Melquiond 2008).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.float64(np.float32(weight)) * values.astype(np.float64).reshape(-1)
        wide = total.astype(np.float64).reshape(-1)
        sums = product + wide
        bits = sums.view(np.uint64)
        # Of the 29 bits that fp32 does not have, a tie has the highest alone; below 2^-125 fp32 has fewer bits.
        tie = (bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
        small = np.abs(sums) < 2.0**-125
        doubtful = np.flatnonzero(tie | (small & (sums != 0)))
        if len(doubtful):
            _round_to_odd(sums, product, wide, doubtful)
        return sums.astype(np.float32).reshape(total.shape)


def _round_to_odd(sums: FloatArray, a: FloatArray, b: FloatArray, at: IntArray) -> None:
    """Replace, in place, the `sums` = a + b at the places `at` that are inexact and even by an odd neighbour.

    The odd neighbour is the one on the side of the rounding error, which Knuth's TwoSum gives.
    """
    s = sums[at]
    a = a[at]
    b = b[at]
    b_part = s - a
    error = (a - (s - b_part)) + (b - b_part)
    even = (s.view(np.uint64) & np.uint64(1)) == 0
    move = even & (error != 0) & np.isfinite(error)
    sums[at[move]] = np.nextafter(s[move], np.copysign(np.inf, error[move]))
