"""Kernels fused into one pass over the block and compiled by LLVM when first needed; the bits are `reference`'s.

Widen, multiply-add in the plan's order, round, check and store happen in registers, 32 elements at a time. The
code is LLVM's assembly, made for the dtypes at hand; llvmlite turns it into machine code in about ten milliseconds and
imports faster than torch or numba. Without llvmlite, or on a processor without fused multiply-add, `reference` is used.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np

from souping.merge.kernels.reference import Raw

WIDTH = 32
LOCK = threading.Lock()
FLOAT16 = ("f16c", "fullfp16", "fp16")
Native = Callable[[Sequence[Raw], Sequence[float], Raw], bool]
"""native(rows, weights, out) -> whether all is finite"""


def native(delta: bool, source: str, dtype: str, stored: str) -> Native | None:
    """A kernel for rows of `source`, rounded to `dtype` and stored as `stored`; None where LLVM cannot help.

    `delta` adds weighted differences to the first row, else rows are summed. Made once, whoever asks first.
    """
    with LOCK:
        return _native(delta, source, dtype, stored)


@functools.cache
def _native(delta: bool, source: str, dtype: str, stored: str) -> Native | None:
    engine = _engine()
    if engine is None:
        return None
    compiler, features = engine
    if "F16" in (source, dtype, stored) and not any(features.get(name) for name in FLOAT16):
        return None
    text = assembly(delta, source, dtype, stored)
    address = compiler(text)
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    call = ctypes.CFUNCTYPE(ctypes.c_int32, pointer, pointer, long, long, pointer)(address)
    size = {"F32": 4}.get(stored, 2)

    def run(rows: Sequence[Raw], weights: Sequence[float], out: Raw) -> bool:
        pointers = np.array([row.ctypes.data for row in rows], np.uintp)
        values = np.array(weights, np.float32)
        count = out.nbytes // size
        return bool(call(pointers.ctypes.data, values.ctypes.data, len(rows), count, out.ctypes.data) == 0)

    return run


@functools.cache
def _engine() -> tuple[Callable[[str], int], dict[str, bool]] | None:
    """(compile, features of this processor), or None."""
    try:
        from llvmlite import binding
    except ImportError:
        return None
    try:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        features = binding.get_host_cpu_features()
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(binding.get_host_cpu_name(), features.flatten(), opt=3, jit=True)
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    except (RuntimeError, AttributeError, OSError):
        return None
    if not (features.get("fma") or target.name.startswith("aarch64")):
        return None

    def address(text: str) -> int:
        """The address of `mix` in the module `text`."""
        name = f"mix{abs(hash(text))}"
        module = binding.parse_assembly(text.replace("@mix(", f"@{name}("))
        module.verify()
        engine.add_module(module)
        engine.finalize_object()
        return int(engine.get_function_address(name))

    return address, dict(features)


def assembly(delta: bool, source: str, dtype: str, stored: str) -> str:
    """LLVM assembly of `i32 mix(rows, weights, K, count, out)`, which returns 0 where all is finite."""
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
define i32 @mix(ptr %rows, ptr %weights, i64 %K, i64 %count, ptr noalias %out) {{
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


EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
NAN = {"F32": 0x7FC00000, "BF16": 0x7FC0, "F16": 0x7E00}


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
