"""Dtypes by their tag in a safetensors header: names in torch, bits of an element, and which can be souped."""

from __future__ import annotations

from collections.abc import Iterable

FLOATS = ("F32", "BF16", "F16")
"""Tags of what can be souped, widest first."""
OTHER_FLOATS = ("F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")
BITS = {
    "F64": 64, "C64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16,
    "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}  # fmt: skip
TAGS = {
    "float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
"""{torch's name: tag} of what a checkpoint is read into."""
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
