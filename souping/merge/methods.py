"""Merge methods by name (`METHODS`), and their arithmetic: bytes of the ingredients in, bytes of the soup out.

The specification, which is also what mergekit 0.1.5's `linear` and torch's `add_(x, alpha=w)` on fp32 do:
`acc = +0; acc = fma(w_k, x_k, acc)` in the plan's order with w_k rounded to fp32, then one rounding to the output
dtype (nearest, ties to even). It is written in numpy.

LLVM compiles the same for the dtypes at hand, with the same bits, to one loop of vectors over the block: widen,
multiply-add in the order of the plan, round, check and store happen in registers. Without llvmlite, or on a processor
without fma or f16c, numpy does the work.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.header import TORCH_DTYPES, size_of
from souping.checkpoints.views import Float32, Raw, widen
from souping.core.fields import pick
from souping.core.native import compiled
from souping.core.text import named
from souping.core.types import FloatArray, UserError, Weights, frozen
from souping.merge.rounding import EXPONENT, NAN, fma, narrow, write_as

if TYPE_CHECKING:
    import torch

Combine = Callable[[Sequence[Float32], Sequence[float]], Float32]
"""A method on fp32 rows: combine(rows, weights) -> row."""
# elements of a block: smaller ones fit the second-level cache, but each block costs 0.1 ms of Python
BLOCK_ELEMENTS = 1 << 19


def linear(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """sum_k w_k x_k, in order."""
    total = np.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total = fma(weight, tensor, total)
    return total


def delta(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """x_0 + sum_k w_k (x_k - x_0) over k > 0. `tensors[0]` is the base, and `weights[0]` is not used."""
    base = tensors[0]
    total = np.zeros_like(tensors[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
            total = fma(weight, tensor - base, total)
        return base + total


COMPILED_METHODS: dict[Combine, bool] = {linear: False, delta: True}
"""Methods that have a compiled form and one in torch; whether each sums differences to the first row, the base."""


def torch_dtype(tag: str) -> torch.dtype:
    """torch's dtype of a tag such as BF16."""
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[tag])
    return dtype


def mix_block(
    function: Combine,
    rows: Sequence[Raw],
    dtypes: Sequence[str],
    weights: Sequence[float],
    dtype: str,
    out: Raw,
    out_dtype: str,
) -> bool:
    """Mix rows [K][count] of `dtypes` into `out` [count]: rounded once to `dtype`, then cast to `out_dtype`.

    Returns whether every element of the soup is finite. Sums and sums of differences are compiled if LLVM is there;
    the bytes are the same either way.
    """
    # None if LLVM cannot help here: then numpy does the same.
    if function in COMPILED_METHODS:
        kernel = native(COMPILED_METHODS[function], tuple(dtypes), dtype, out_dtype)
        if kernel is not None:
            return kernel(rows, weights, out)
    tensors = [widen(row, tag) for row, tag in zip(rows, dtypes, strict=True)]
    total = _checked(function(tensors, weights), function, tensors[0].shape)
    return write_as(narrow(total, dtype), dtype, out, out_dtype)


def _checked(soup: Float32, function: Combine, shape: tuple[int, ...]) -> Float32:
    """The result of a method, which may be the user's, as fp32.

    Raises:
        UserError: it is not an array of the tensors' shape.
    """
    if not isinstance(soup, np.ndarray) or soup.shape != shape or soup.dtype.kind != "f":
        what = type(soup).__name__
        if isinstance(soup, np.ndarray):
            what = f"{soup.dtype} {soup.shape}"
        raise UserError(
            f"merge method {named(function)} gave {what}, not fp32 {shape} like its tensors"
        )
    return soup.astype(np.float32, copy=False)


@frozen
class Method:
    """Merge method: how tensors become one.

    `function(tensors, weights)` gets the ingredients in the recipe's order; with `base=True` the base model comes
    first, with weight 0. `coefficients(inner products, weights)` are the weights that it gets, if they depend on the
    tensors: on their Gram matrix, or with `base` on that of the differences to the base. A method that is `whole` needs
    all elements of a tensor at once. It takes `least` to `most` ingredients.
    """

    function: Combine
    coefficients: Callable[[FloatArray, Weights], Weights] | None = None
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

    def weigh(self, inner: FloatArray, weights: Weights) -> Weights:
        """The weights that `function` gets, from the weights of the recipe.

        `inner` [K, K] are the inner products of `gram`. With a base, the first tensor is the base, whose weight is 0.
        """
        if self.coefficients is None:
            return weights
        if self.base:
            return (0.0, *self.coefficients(inner, weights[1:]))
        return self.coefficients(inner, weights)


def gram(tensors: Sequence[Float32], base: bool) -> FloatArray:
    """Inner products [K, K] in fp64 of the tensors, or with `base` of their differences to the first one."""
    vectors = [tensor.astype(np.float64).ravel() for tensor in tensors]
    if base:
        vectors = [vector - vectors[0] for vector in vectors[1:]]
    inner = np.zeros((len(vectors), len(vectors)))
    for i in range(len(vectors)):
        for j in range(i + 1):
            # Not a matrix product: its order of sums depends on the BLAS.
            product = float((vectors[i] * vectors[j]).sum())
            inner[i, j] = product
            inner[j, i] = product
    return inner


def slerp_weights(inner: FloatArray, weights: Weights) -> Weights:
    """Spherical interpolation of two tensors (Shoemake 1985) at t = w_1 / (w_0 + w_1); `inner` [2, 2] is their `gram`.

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
    return (
        float(np.sin((1 - t) * angle) / np.sin(angle)),
        float(np.sin(t * angle) / np.sin(angle)),
    )


def stock_weights(inner: FloatArray, weights: Weights) -> Weights:
    """Model Stock (arXiv 2403.19522, equation for N models): t = N c / (1 + (N-1) c).

    c is the mean cosine between the fine-tuned models' differences to the base, and `inner` [N, N] the `gram` of these.
    The soup is the base moved by t times the weighted mean difference (the paper's mean is the uniform one). A pole
    (1 + (N-1) c = 0) keeps the base.
    """
    count = len(weights)
    norms = np.sqrt(np.diag(inner))
    cosines = list[float]()
    for i in range(count):
        for j in range(i):
            # A model that is equal to the base has length 0: its cosines count as 0.
            cosines.append(inner[i, j] / max(norms[i] * norms[j], 1e-12))
    cosine = float(np.mean(cosines))
    denominator = 1 + (count - 1) * cosine
    t = count * cosine / denominator if abs(denominator) > 1e-6 else 0.0
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
    """Refuse numbers of ingredients, or weights, that the method is not defined for (UserError)."""
    method = get_method(name)
    count = len(weights)
    if count < method.least or (method.most is not None and count > method.most):
        number = f"at least {method.least}"
        if method.most == method.least:
            number = f"exactly {method.most}"
        raise UserError(
            f"merge.method={name} needs {number} ingredients with a weight above zero, there are {count}"
        )
    # The methods with coefficients divide by the sum of the weights.
    if method.coefficients is not None:
        check_interpolates(name, weights)


def check_interpolates(name: str, weights: Weights) -> None:
    """Refuse weights below 0 for a method between its ingredients (UserError)."""
    if min(weights) < 0:
        raise UserError(
            f"merge.method={name} takes no weights below 0 or above 1, as {list(weights)}: use merge.method=linear"
        )


# Sums compiled by LLVM

MOST_ROWS = 500
"""Rows that a kernel can take."""
FEW_ROWS = 8
"""Up to this many rows LLVM picks the interleave count; beyond, it picks 1, which is 25 % slower than 4."""
Native = Callable[[Sequence[Raw], Sequence[float], Raw], bool]
"""native(rows, weights, out) -> whether all is finite"""


@functools.cache
def native(delta: bool, sources: tuple[str, ...], dtype: str, out_dtype: str) -> Native | None:
    """The compiled sum of rows of the dtypes `sources`, rounded to `dtype` and written as `out_dtype`.

    With `delta`, weighted differences to the first row are added to it. None if there are too many rows, or no LLVM.
    """
    if len(sources) > MOST_ROWS:
        return None
    address = compiled(assembly(delta, sources, dtype, out_dtype))
    if address is None:
        return None
    arguments = [ctypes.c_void_p, ctypes.c_float] * len(sources)
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *arguments, ctypes.c_int64, ctypes.c_void_p)(address)
    size = size_of(out_dtype)

    def run(rows: Sequence[Raw], weights: Sequence[float], out: Raw) -> bool:
        pairs = zip([row.ctypes.data for row in rows], weights, strict=True)
        not_finite = call(*itertools.chain(*pairs), out.nbytes // size, out.ctypes.data)
        return bool(not_finite == 0)

    return run


def assembly(delta: bool, sources: Sequence[str], dtype: str, out_dtype: str) -> str:
    """LLVM assembly of `i32 kernel(row, weight, .., count, out)`, which returns 0 if everything is finite.

    The arguments are those of `native`.
    """
    lines = [_load(k, source) for k, source in enumerate(sources)]
    # `total` names the value of the sum so far; with `delta`, row 0 is the base.
    total = "0.0"
    for k in range(int(delta), len(sources)):
        value = f"%x{k}"
        if delta:
            lines.append(f"  %d{k} = fsub float %x{k}, %x0")
            value = f"%d{k}"
        lines.append(
            f"  %sum{k} = call float @llvm.fma.f32(float %w{k}, float {value}, float {total})"
        )
        total = f"%sum{k}"
    if delta:
        lines.append(f"  %moved = fadd float %x0, {total}")
        total = "%moved"
    body = "\n".join([*lines, _llvm_rounded(total, "soup", dtype), _store(dtype, out_dtype)])
    arguments = ", ".join(f"ptr noalias %row{k}, float %w{k}" for k in range(len(sources)))
    return f"""declare float @llvm.fma.f32(float, float, float)
define i32 @kernel({arguments}, i64 %count, ptr noalias %out) {{
entry:
  %some = icmp slt i64 0, %count
  br i1 %some, label %element, label %exit
element:
  %i = phi i64 [ 0, %entry ], [ %next, %element ]
  %seen = phi i32 [ 0, %entry ], [ %bad, %element ]
{body}
  %flags = and i32 %soup, {EXPONENT[dtype]}
  %wrong = icmp eq i32 %flags, {EXPONENT[dtype]}
  %mark = zext i1 %wrong to i32
  %bad = or i32 %seen, %mark
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %element, label %exit, !llvm.loop !0
exit:
  %found = phi i32 [ 0, %entry ], [ %bad, %element ]
  ret i32 %found
}}
!0 = distinct !{{!0, !1}}
!1 = !{{!"llvm.loop.interleave.count", i32 {4 if len(sources) > FEW_ROWS else 0}}}
"""


def _load(k: int, dtype: str) -> str:
    """LLVM assembly of `%x<k>`: element `%i` of row k, of `dtype`, as fp32."""
    cell = {"F32": "float", "F16": "half", "BF16": "i16"}[dtype]
    loaded = f"  %at{k} = getelementptr {cell}, ptr %row{k}, i64 %i\n  %raw{k} = load {cell}, ptr %at{k}, align 1\n"
    if dtype == "BF16":
        return f"{loaded}  %bits{k} = zext i16 %raw{k} to i32\n{_from_bf16(f'bits{k}', f'x{k}')}"
    widening = "fpext" if dtype == "F16" else "bitcast"
    return f"{loaded}  %x{k} = {widening} {cell} %raw{k} to float"


def _from_bf16(bits: str, name: str) -> str:
    """LLVM assembly of `%name`: the fp32 value of bf16 `%bits`, which are in an i32."""
    return f"  %{name}.up = shl i32 %{bits}, 16\n  %{name} = bitcast i32 %{name}.up to float"


def _llvm_rounded(value: str, name: str, dtype: str) -> str:
    """LLVM assembly of `%name`: bits, in an i32, of fp32 `value` rounded to `dtype`, ties to even.

    Every NaN becomes the quiet one.
    """
    if dtype == "F16":
        body = f"""  %{name}.half = fptrunc float {value} to half
  %{name}.short = bitcast half %{name}.half to i16
  %{name}.got = zext i16 %{name}.short to i32"""
    elif dtype == "F32":
        body = f"  %{name}.got = bitcast float {value} to i32"
    else:
        body = f"""  %{name}.bits = bitcast float {value} to i32
  %{name}.high = lshr i32 %{name}.bits, 16
  %{name}.odd = and i32 %{name}.high, 1
  %{name}.bias = add i32 %{name}.odd, {0x7FFF}
  %{name}.sum = add i32 %{name}.bits, %{name}.bias
  %{name}.got = lshr i32 %{name}.sum, 16"""
    return f"""{body}
  %{name}.nan = fcmp uno float {value}, 0.0
  %{name} = select i1 %{name}.nan, i32 {NAN[dtype]}, i32 %{name}.got"""


def _store(dtype: str, out_dtype: str) -> str:
    """LLVM assembly that writes `%soup`, bits of `dtype` in an i32, to element `%i` of `%out` as `out_dtype`.

    From one dtype to another it goes through fp32.
    """
    text = ""
    bits = "soup"
    size = 8 * size_of(out_dtype)  # in bits
    if out_dtype != dtype:
        text = f"{_widen_bits(dtype)}\n{_llvm_rounded('%wide', 'cast', out_dtype)}\n"
        bits = "cast"
    # An i32 is not truncated to i32; adding 0 gives it the name.
    narrowed = f"%low = add i32 %{bits}, 0"
    if size < 32:
        narrowed = f"%low = trunc i32 %{bits} to i{size}"
    return f"""{text}  {narrowed}
  %to = getelementptr i{size}, ptr %out, i64 %i
  store i{size} %low, ptr %to, align 1"""


def _widen_bits(dtype: str) -> str:
    """LLVM assembly of `%wide`: the fp32 value of the bits of `dtype` in `%soup`, an i32."""
    if dtype == "F32":
        return "  %wide = bitcast i32 %soup to float"
    if dtype == "BF16":
        return _from_bf16("soup", "wide")
    return """  %wide.low = trunc i32 %soup to i16
  %wide.half = bitcast i16 %wide.low to half
  %wide = fpext half %wide.half to float"""
