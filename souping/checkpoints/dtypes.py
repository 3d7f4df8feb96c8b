"""Dtypes in one table: tag in a safetensors header, name in torch, bits of an element, and which are souped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """Element's type; `torch` is empty where torch has none that a checkpoint is read into."""

    tag: str
    torch: str
    bits: int
    floating: bool = False


TABLE = (
    Dtype("F32", "float32", 32, True),
    Dtype("BF16", "bfloat16", 16, True),
    Dtype("F16", "float16", 16, True),
    Dtype("F64", "float64", 64, True),
    Dtype("C64", "", 64, True),
    Dtype("F8_E4M3", "float8_e4m3fn", 8, True),
    Dtype("F8_E5M2", "float8_e5m2", 8, True),
    Dtype("F8_E8M0", "", 8, True),
    Dtype("F4", "", 4, True),
    Dtype("F6_E2M3", "", 6, True),
    Dtype("F6_E3M2", "", 6, True),
    Dtype("I64", "int64", 64),
    Dtype("I32", "int32", 32),
    Dtype("I16", "int16", 16),
    Dtype("I8", "int8", 8),
    Dtype("U64", "", 64),
    Dtype("U32", "", 32),
    Dtype("U16", "", 16),
    Dtype("U8", "uint8", 8),
    Dtype("BOOL", "bool", 8),
)
FLOATS = ("F32", "BF16", "F16")
"""Tags of what is souped, widest first."""
OTHER_FLOATS = tuple(dtype.tag for dtype in TABLE if dtype.floating and dtype.tag not in FLOATS)
BITS = {dtype.tag: dtype.bits for dtype in TABLE}
TAGS = {dtype.torch: dtype.tag for dtype in TABLE if dtype.torch}
"""{torch's name: tag}"""
TORCH_DTYPES = {tag: name for name, tag in TAGS.items()}
TORCH_NAMES = {TORCH_DTYPES[tag]: tag for tag in FLOATS}
"""{torch's name: tag} of what is souped."""
ITEM = {name: BITS[tag] // 8 for name, tag in TORCH_NAMES.items()}
"""{torch's name: bytes of an element} of what is souped."""


def size_of(tag: str) -> int:
    """Bytes of an element."""
    return BITS[tag] // 8


def widest(tags: Iterable[str]) -> str:
    """The dtype that holds every value of all of them: bf16 with fp16 needs fp32. Others come back as they are."""
    present = set(tags)
    if len(present) == 1 or not present <= set(FLOATS):
        return sorted(present)[0]
    return "F32"
