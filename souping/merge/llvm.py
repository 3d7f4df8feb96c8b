"""Arithmetic of `kernels` compiled by LLVM, which makes a loop of vectors of it.

Widen, multiply-add in the order of the plan, round, check and store happen in registers. Without llvmlite, or on a
processor without fma or f16c, numpy does the work.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence

from souping.checkpoints.header import size_of
from souping.checkpoints.views import Raw
from souping.core.native import compiled

EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
"""Bits that are all set in NaN and infinity."""
NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}
"""The quiet NaN that every NaN becomes."""


MOST_ROWS = 500
"""Rows that a kernel can take."""
FEW_ROWS = 8
"""Up to this many rows LLVM picks the interleave count; beyond, it picks 1, which is 25 % slower than 4."""
Native = Callable[[Sequence[Raw], Sequence[float], Raw], bool]
"""native(rows, weights, out) -> whether all is finite"""


@functools.cache
def native(delta: bool, sources: tuple[str, ...], dtype: str, out_dtype: str) -> Native | None:
    """A kernel for rows of these dtypes, rounded to `dtype` and written as `out_dtype`; None if LLVM cannot help.

    `delta` adds weighted differences to the first row, else rows are summed.
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
    """LLVM assembly of `i32 kernel(row, weight, .., count, out)`, which returns 0 if everything is finite."""
    lines = [_load(k, source) for k, source in enumerate(sources)]
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
    body = "\n".join([*lines, _narrow(total, "soup", dtype), _store(dtype, out_dtype)])
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
    """`%x<k>` = the fp32 value of row k at `%i`."""
    cell = {"F32": "float", "F16": "half", "BF16": "i16"}[dtype]
    loaded = f"  %at{k} = getelementptr {cell}, ptr %row{k}, i64 %i\n  %raw{k} = load {cell}, ptr %at{k}, align 1\n"
    if dtype == "BF16":
        return f"{loaded}  %bits{k} = zext i16 %raw{k} to i32\n{_from_bf16(f'bits{k}', f'x{k}')}"
    widening = "fpext" if dtype == "F16" else "bitcast"
    return f"{loaded}  %x{k} = {widening} {cell} %raw{k} to float"


def _from_bf16(bits: str, name: str) -> str:
    return f"  %{name}.up = shl i32 %{bits}, 16\n  %{name} = bitcast i32 %{name}.up to float"


def _narrow(value: str, name: str, dtype: str) -> str:
    """`%name` = bits (in 32) of fp32 `value` rounded to `dtype`, ties to even; every NaN is the same one."""
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
        text = f"{_widen_bits(dtype)}\n{_narrow('%wide', 'cast', out_dtype)}\n"
        bits = "cast"
    # An i32 is not truncated to i32; adding 0 gives it the name.
    narrowed = f"%low = add i32 %{bits}, 0"
    if size < 32:
        narrowed = f"%low = trunc i32 %{bits} to i{size}"
    return f"""{text}  {narrowed}
  %to = getelementptr i{size}, ptr %out, i64 %i
  store i{size} %low, ptr %to, align 1"""


def _widen_bits(dtype: str) -> str:
    """`%wide` = fp32 value of the bits in `%soup`."""
    if dtype == "F32":
        return "  %wide = bitcast i32 %soup to float"
    if dtype == "BF16":
        return _from_bf16("soup", "wide")
    return """  %wide.low = trunc i32 %soup to i16
  %wide.half = bitcast i16 %wide.low to half
  %wide = fpext half %wide.half to float"""
