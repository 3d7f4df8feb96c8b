"""Arithmetic of one block: bytes of the ingredients in, bytes of the soup out.

The specification, which is also what mergekit 0.1.5's `linear` and torch's `add_(x, alpha=w)` on fp32 do:
`acc = +0; acc = fma(w_k, x_k, acc)` in the plan's order with w_k rounded to fp32, then one rounding to the output
dtype (nearest, ties to even). It is written in numpy first. Below that, LLVM compiles it for the dtypes at hand into
one pass over the block, with the same bits.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.header import TORCH_DTYPES
from souping.checkpoints.views import widen
from souping.core.fields import pick
from souping.core.native import compiled, features
from souping.core.text import named
from souping.core.types import UserError, Weights

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]
Raw = NDArray[np.uint8]
Combine = Callable[[Sequence[Float32], Sequence[float]], Float32]
"""A method on fp32 rows: combine(rows, weights) -> row."""
EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
"""Bits that are all set in NaN and infinity."""
NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
"""The quiet NaN that every NaN becomes."""
BLOCK = 1 << 19  # elements: smaller ones fit the second-level cache, but each costs 0.1 ms of Python


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
        return np.where(nan, np.uint32(NAN[dtype]), bits).view(np.uint8)
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(nan, np.uint32(NAN[dtype]), rounded).astype(np.uint16).view(np.uint8)


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
"""Methods that have a compiled form and one in torch; True if differences to the first row, the base, are summed."""


def torch_dtype(tag: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[tag])  # torch's
    return dtype


def finite(raw: Raw, dtype: str) -> bool:
    """Whether no element is NaN or infinite (all exponent bits set)."""
    bits: NDArray[Any] = raw.view(np.uint32 if dtype == "F32" else np.uint16)
    return not bool(((bits & EXPONENT[dtype]) == EXPONENT[dtype]).any())


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

    Returns whether every element of the soup is finite. Sums and sums of differences are compiled if LLVM is there;
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
    """The result of a method, which may be the user's, as fp32.

    Raises:
        UserError: it is no array of the tensors' shape.
    """
    if not isinstance(soup, np.ndarray) or soup.shape != shape or soup.dtype.kind != "f":
        made = f"{soup.dtype} {soup.shape}" if isinstance(soup, np.ndarray) else type(soup).__name__
        raise UserError(f"merge method {named(function)} gave {made}, not fp32 {shape} like its tensors")
    return soup.astype(np.float32, copy=False)


def alike(rows: Sequence[Raw], dtypes: Sequence[str]) -> list[Raw]:
    """The rows as they are, or widened to fp32 if their dtypes differ."""
    if len(set(dtypes)) == 1:
        return list(rows)
    return [widen(row, tag).view(np.uint8) for row, tag in zip(rows, dtypes, strict=True)]


def store(soup: Raw, dtype: str, out: Raw, stored: str) -> bool:
    """Put bytes of `dtype` into `out` as `stored`; returns whether all are finite."""
    wide = widen(soup, dtype)
    out[:] = soup if dtype == stored else narrow(wide, stored)
    return bool(np.isfinite(wide).all())


# Compiled by LLVM: widen, multiply-add in the plan's order, round, check and store happen in registers, 32 elements at
# a time. Without llvmlite, or on a processor without fused multiply-add, numpy does the work.

WIDTH = 32
FLOAT16 = ("f16c", "fullfp16", "fp16")
Native = Callable[[Sequence[Raw], Sequence[float], Raw], bool]
"""native(rows, weights, out) -> whether all is finite"""


@functools.cache
def native(delta: bool, source: str, dtype: str, stored: str) -> Native | None:
    """A kernel for rows of `source`, rounded to `dtype` and stored as `stored`; None if LLVM cannot help.

    `delta` adds weighted differences to the first row, else rows are summed.
    """
    if "F16" in (source, dtype, stored) and not any(features().get(name) for name in FLOAT16):
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    address = compiled(assembly(delta, source, dtype, stored))
    if address is None:
        return None
    call = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, long, long, pointer)(address)
    size = {"F32": 4}.get(stored, 2)

    def run(rows: Sequence[Raw], weights: Sequence[float], out: Raw) -> bool:
        pointers = np.array([row.ctypes.data for row in rows], np.uintp)
        values = np.array(weights, np.float32)
        count = out.nbytes // size
        return bool(call(pointers.ctypes.data, values.ctypes.data, len(rows), count, out.ctypes.data) == 0)

    return run


def assembly(delta: bool, source: str, dtype: str, stored: str) -> str:
    """LLVM assembly of `i32 kernel(rows, weights, K, count, out)`, which returns 0 if everything is finite."""
    loops, before, start = [], "entry", "0"
    for w in (WIDTH, 1):
        loops.append(_loop(w, before, start, delta, source, dtype, stored).replace("$W", str(w)))
        before, start = f"end{w}", f"%i{w}"
    declared = "\n".join(
        f"declare <{w} x float> @llvm.fma.v{w}f32(<{w} x float>, <{w} x float>, <{w} x float>)\n"
        f"declare i32 @llvm.vector.reduce.or.v{w}i32(<{w} x i32>)"
        for w in (WIDTH, 1)
    )
    return f"""{declared}
define i32 @kernel(ptr %rows, ptr %weights, i64 %K, i64 %count, ptr noalias %out) {{
entry:
  %first = load ptr, ptr %rows
  br label %head{WIDTH}
{loops[0]}  br label %head1
{loops[1]}  %bad = or i32 %found{WIDTH}, %found1
  ret i32 %bad
}}
"""


def _loop(w: int, before: str, start: str, delta: bool, source: str, dtype: str, stored: str) -> str:
    """The loop over blocks of `w` elements from `start`, up to its label `end<w>`; sets `%i<w>` and `%found<w>`."""
    f, base = f"<{w} x float>", _load(w, "base", source, "%first") if delta else ""
    part = f"%part$W = fsub {f} %x$W, %base$W" if delta else ""
    value, finish = "%acc$W", ""
    if delta:
        value, finish = "%moved$W", f"%moved$W = fadd {f} %base$W, %acc$W"
    return f"""head$W:
  %i$W = phi i64 [ {start}, %{before} ], [ %next$W, %done$W ]
  %seen$W = phi <{w} x i32> [ zeroinitializer, %{before} ], [ %seen.next$W, %done$W ]
  %next$W = add i64 %i$W, {w}
  %fits$W = icmp sle i64 %next$W, %count
  br i1 %fits$W, label %body$W, label %end$W
body$W:
  {base}
  br label %row$W
row$W:
  %k$W = phi i64 [ {int(delta)}, %body$W ], [ %k.next$W, %row$W ]
  %sum$W = phi {f} [ zeroinitializer, %body$W ], [ %acc$W, %row$W ]
  %place$W = getelementptr ptr, ptr %rows, i64 %k$W
  %from$W = load ptr, ptr %place$W
{_load(w, "x", source, "%from$W")}
  {part}
  %wplace$W = getelementptr float, ptr %weights, i64 %k$W
  %weight$W = load float, ptr %wplace$W
{_splat(w, "%weight$W", "c")}
  %acc$W = call {f} @llvm.fma.v{w}f32({f} %c$W, {f} {"%part$W" if delta else "%x$W"}, {f} %sum$W)
  %k.next$W = add i64 %k$W, 1
  %more$W = icmp slt i64 %k.next$W, %K
  br i1 %more$W, label %row$W, label %done$W
done$W:
  {finish}
{_narrow(w, value, "soup", dtype)}
  %flags$W = and <{w} x i32> %soup$W, {_all(w, EXPONENT[dtype])}
  %wrong$W = icmp eq <{w} x i32> %flags$W, {_all(w, EXPONENT[dtype])}
  %mark$W = zext <{w} x i1> %wrong$W to <{w} x i32>
  %seen.next$W = or <{w} x i32> %seen$W, %mark$W
{_store(w, dtype, stored)}
  br label %head$W
end$W:
  %found$W = call i32 @llvm.vector.reduce.or.v{w}i32(<{w} x i32> %seen$W)
"""


def _all(w: int, value: int) -> str:
    """A constant vector of 32-bit integers."""
    return "<" + ", ".join([f"i32 {value}"] * w) + ">"


def _splat(w: int, value: str, name: str) -> str:
    return f"""  %{name}.one$W = insertelement <{w} x float> undef, float {value}, i32 0
  %{name}$W = shufflevector <{w} x float> %{name}.one$W, <{w} x float> undef, <{w} x i32> zeroinitializer"""


def _load(w: int, name: str, dtype: str, row: str) -> str:
    """`%name` = fp32 values of the row at `%i`."""
    cell = {"F32": "float", "F16": "half", "BF16": "i16"}[dtype]
    target = f"%{name}$W" if dtype == "F32" else f"%{name}.raw$W"
    text = f"""  %{name}.at$W = getelementptr {cell}, ptr {row}, i64 %i$W
  {target} = load <{w} x {cell}>, ptr %{name}.at$W, align 1"""
    if dtype == "F16":
        text += f"\n  %{name}$W = fpext <{w} x half> {target} to <{w} x float>"
    if dtype == "BF16":
        text += f"\n  %{name}.bits$W = zext <{w} x i16> {target} to <{w} x i32>\n" + _from_bf16(w, f"{name}.bits", name)
    return text


def _from_bf16(w: int, bits: str, name: str) -> str:
    return f"""  %{name}.up$W = shl <{w} x i32> %{bits}$W, {_all(w, 16)}
  %{name}$W = bitcast <{w} x i32> %{name}.up$W to <{w} x float>"""


def _narrow(w: int, value: str, name: str, dtype: str) -> str:
    """`%name` = bits (in 32) of fp32 `value` rounded to `dtype`, ties to even; every NaN is the same one."""
    f, i = f"<{w} x float>", f"<{w} x i32>"
    if dtype == "F16":
        body = f"""  %{name}.half$W = fptrunc {f} {value} to <{w} x half>
  %{name}.short$W = bitcast <{w} x half> %{name}.half$W to <{w} x i16>
  %{name}.got$W = zext <{w} x i16> %{name}.short$W to {i}"""
    elif dtype == "F32":
        body = f"  %{name}.got$W = bitcast {f} {value} to {i}"
    else:
        body = f"""  %{name}.bits$W = bitcast {f} {value} to {i}
  %{name}.high$W = lshr {i} %{name}.bits$W, {_all(w, 16)}
  %{name}.odd$W = and {i} %{name}.high$W, {_all(w, 1)}
  %{name}.bias$W = add {i} %{name}.odd$W, {_all(w, 0x7FFF)}
  %{name}.sum$W = add {i} %{name}.bits$W, %{name}.bias$W
  %{name}.got$W = lshr {i} %{name}.sum$W, {_all(w, 16)}"""
    return f"""{body}
  %{name}.nan$W = fcmp uno {f} {value}, zeroinitializer
  %{name}$W = select <{w} x i1> %{name}.nan$W, {i} {_all(w, NAN[dtype])}, {i} %{name}.got$W"""


def _store(w: int, dtype: str, stored: str) -> str:
    """Write the soup's bits to `%out`, through fp32 where they are stored as another dtype."""
    text, bits = "", "soup"
    if stored != dtype:
        text, bits = _widen_bits(w, dtype) + "\n" + _narrow(w, "%wide$W", "cast", stored) + "\n", "cast"
    size = 32 if stored == "F32" else 16
    value = f"%{bits}$W"
    if size == 16:
        text += f"  %low$W = trunc <{w} x i32> {value} to <{w} x i16>\n"
        value = "%low$W"
    return f"""{text}  %to$W = getelementptr i{size}, ptr %out, i64 %i$W
  store <{w} x i{size}> {value}, ptr %to$W, align 1"""


def _widen_bits(w: int, dtype: str) -> str:
    """`%wide` = fp32 values of the bits in `%soup`."""
    if dtype == "F32":
        return f"  %wide$W = bitcast <{w} x i32> %soup$W to <{w} x float>"
    if dtype == "BF16":
        return _from_bf16(w, "soup", "wide")
    return f"""  %wide.low$W = trunc <{w} x i32> %soup$W to <{w} x i16>
  %wide.half$W = bitcast <{w} x i16> %wide.low$W to <{w} x half>
  %wide$W = fpext <{w} x half> %wide.half$W to <{w} x float>"""


# ------------------------------------------------------------ methods

Gram = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Merge method: how tensors become one.

    `function(tensors, weights)` gets the ingredients in the recipe's order; with `base=True` the base model comes
    first, with weight 0, and `coefficients` sees the Gram matrix of the differences to it.
    """

    function: Combine
    coefficients: Callable[[Gram, Weights], Weights] | None = None
    base: bool = False
    whole: bool = False
    least: int = 1
    most: int | None = None

    def __call__(self, tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        """The method on whole tensors, fp32 in and out: the plain form of what the engine streams."""
        values = tuple(weights)
        if self.coefficients is not None:
            values = self.weigh(gram(tensors, self.base), values)
        return self.function(tensors, values)

    def weigh(self, inner: Gram, weights: Weights) -> Weights:
        """The weights that `function` gets, from the weights of the recipe."""
        if self.coefficients is None:
            return weights
        if self.base:
            return (0.0, *self.coefficients(inner, weights[1:]))
        return self.coefficients(inner, weights)


def gram(tensors: Sequence[Float32], base: bool) -> Gram:
    """Inner products [K, K] in fp64 of the tensors, or with `base` of their differences to the first one."""
    wide = [tensor.astype(np.float64).ravel() for tensor in tensors]
    if base:
        wide = [tensor - wide[0] for tensor in wide[1:]]
    result = np.zeros((len(wide), len(wide)))
    for i, left in enumerate(wide):
        for j in range(i + 1):
            result[i, j] = result[j, i] = float((left * wide[j]).sum())
    return result


def slerp_weights(inner: Gram, weights: Weights) -> Weights:
    """Spherical interpolation of two tensors (Shoemake 1985) at t = w_1 / (w_0 + w_1).

    sin((1-t) a)/sin(a) and sin(t a)/sin(a) with a the angle between them; straight where |cos a| > 0.9995 or a tensor
    is zero.
    """
    t = weights[1] / (weights[0] + weights[1])
    norms = np.sqrt(np.diag(inner))
    if min(norms) <= 1e-8:
        return (1 - t, t)
    cosine = float(np.clip(inner[0, 1] / (norms[0] * norms[1]), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t, t)
    angle = np.arccos(cosine)
    return (float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle)))


def stock_weights(inner: Gram, weights: Weights) -> Weights:
    """Model Stock (arXiv 2403.19522, equation for N models): t = N c / (1 + (N-1) c).

    c is the mean cosine between the fine-tuned models' differences to the base; the soup is the base moved by t times
    their weighted mean difference (the paper's mean is the uniform one). A pole (1 + (N-1) c = 0) keeps the base.
    """
    count, norms = len(weights), np.sqrt(np.diag(inner))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = float(np.mean([inner[i, j] / max(norms[i] * norms[j], 1e-12) for i, j in pairs]))
    below = 1 + (count - 1) * cosine
    t = count * cosine / below if abs(below) > 1e-6 else 0.0
    total = sum(weights)
    return tuple(t * weight / total for weight in weights)


METHODS: dict[str, Method] = {
    "linear": Method(function=linear),
    "task_arithmetic": Method(function=delta, base=True),
    "slerp": Method(function=linear, coefficients=slerp_weights, least=2, most=2),
    "model_stock": Method(function=delta, coefficients=stock_weights, base=True, least=2),
}


def get_method(name: str) -> Method:
    """The method of that name (UserError if there is none)."""
    if name not in METHODS:
        pick(name, METHODS, "merge.method", "; others run with merge=mergekit")
    return METHODS[name]


def check_method(name: str, weights: Weights) -> None:
    """Refuse a number of ingredients, or weights, that the method is not defined for (UserError)."""
    method, count = get_method(name), len(weights)
    if count < method.least or (method.most is not None and count > method.most):
        wanted = f"exactly {method.most}" if method.most == method.least else f"at least {method.least}"
        raise UserError(f"merge.method={name} needs {wanted} ingredients with a weight above zero, there are {count}")
    if method.coefficients is not None and (min(weights) < 0 or not sum(weights)):
        raise UserError(f"merge.method={name} needs weights that are not negative, not {list(weights)}")
