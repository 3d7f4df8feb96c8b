"""Safetensors headers from untrusted files, and the dtypes that they name.

The format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data
(https://huggingface.co/docs/safetensors). Nothing is allocated before the file's real size has been compared.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from souping.core.text import check_pointer, read_json, shown
from souping.core.types import Json, UserError

# Dtypes by their tag in a header

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


# Headers

MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_RANK = 64


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint and where its bytes are: `offset` counts from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return _product(self.shape)


def read_header(path: Path, label: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of their data. Reads no weight.

    Raises:
        UserError: the file is truncated, or its header is wrong (length, JSON, dtype, shape, overlap, overrun, holes).
    """
    file = label or path.name
    size, raw = _raw_header(path)
    if not raw.startswith(b"{"):
        raise broken(path, "its header is not JSON")
    table: dict[str, Any] = parse_json(path, raw)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise broken(path, "its __metadata__ is not a table of texts")
    start = 8 + len(raw)
    tensors = sorted(
        (_tensor(path, file, start, *entry) for entry in table.items()), key=lambda t: (t.offset, t.nbytes)
    )
    _check_layout(path, tensors, start, size)
    return {t.name: t for t in tensors}


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int], int, int]]) -> bytes:
    """The header of a safetensors file with its length in front, padded to 8 bytes.

    `tensors` are (name, dtype, shape, offset in the data, bytes).
    """
    entries: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    for name, dtype, shape, offset, nbytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def broken(path: Path, why: str, tensor: str | None = None) -> UserError:
    """The error for a file that cannot be trusted."""
    where = f", tensor {shown(tensor)}" if tensor is not None else ""
    return UserError(f"{path}{where}: {why}. Download or save this checkpoint again.")


def _raw_header(path: Path) -> tuple[int, bytes]:
    """(file size, header bytes)."""
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(8)
        if len(head) < 8:
            raise broken(path, f"truncated: {size} bytes are too few for a safetensors file")
        check_pointer(path, head + file.read(32))
        file.seek(8)
        length = struct.unpack("<Q", head)[0]
        if length > MAX_HEADER or length > size - 8:
            raise broken(path, f"its header claims {length} bytes, the file has {size}")
        raw = file.read(length)
    if len(raw) != length:
        raise broken(path, "truncated while it was read")
    return size, raw


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses a key given twice (two parsers would read two different models)."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {shown(key)} is there twice")
        table[key] = value
    return table


def parse_json(path: Path, raw: bytes) -> Any:
    """JSON from an untrusted file, duplicate keys refused; every failure is one UserError that names the file."""
    check_pointer(path, raw[:40])
    try:
        return read_json(raw.decode("utf-8"), unique_keys)
    except ValueError as error:
        raise broken(path, f"not valid JSON ({shown(str(error))})") from None


def _whole(values: Json) -> TypeGuard[list[int]]:
    """A list of integers that are not negative (true is not an integer here)."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _tensor(path: Path, file: str, start: int, name: str, entry: Json) -> Tensor:
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise broken(path, "the header's entry lacks dtype, shape or data_offsets", name)
    if shown(name) == "" or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise broken(path, "a tensor's name is empty or not text", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(path, f"unknown dtype {shown(str(dtype))}", name)
    if not _whole(shape) or len(shape) > MAX_RANK or not _whole(offsets) or len(offsets) != 2:
        raise broken(path, "shape or data_offsets is not a short list of whole numbers", name)
    begin, end = offsets
    bits = _product(shape) * BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        claim = f"{dtype} {shape if len(str(shape)) < 80 else '[...]'}"
        raise broken(path, f"its place has {end - begin} bytes, which is not the size of {claim}", name)
    return Tensor(name, dtype, tuple(shape), file, start + begin, end - begin)


def _product(shape: tuple[int, ...] | list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
        if count > 1 << 62:  # no file is that large: stop before the number grows
            return 1 << 62
    return count if 0 not in shape else 0


def _check_layout(path: Path, tensors: list[Tensor], start: int, size: int) -> None:
    """The data must tile the rest of the file: no overlap, no hole, no overrun."""
    cursor = start
    for tensor in tensors:
        if tensor.offset < cursor:
            raise broken(path, "its bytes overlap another tensor's", tensor.name)
        if tensor.offset > cursor:
            raise broken(path, f"{tensor.offset - cursor} bytes before it belong to no tensor", tensor.name)
        cursor += tensor.nbytes
        if cursor > size:
            raise broken(path, f"truncated: its bytes end at {cursor}, the file at {size}", tensor.name)
    if cursor != size:
        raise broken(path, f"{size - cursor} bytes after the last tensor belong to none")
