"""Files of `torch.save`, alone or as slices of a `.distcp`: where the bytes of their tensors are.

They are zip archives that compress nothing: `NAME/data.pkl` says what is there, `NAME/data/KEY` are raw storages. The
pickle is read as data, so nothing in it runs.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from souping.checkpoints.header import TAGS, Tensor, broken, size_of
from souping.checkpoints.pickles import MAX_PICKLE, TENSORS, Data, Made, Named, unpickle
from souping.checkpoints.views import row_major
from souping.core.types import UserError

MAX_DIRECTORY = 50_000_000
END, FAR_END, ENTRY = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4s6H3I5H2I")
LOCATOR, LOCAL = 20, 30
WINDOW = 2048
FULL = 0xFFFFFFFF
STORAGES = {
    "torch.FloatStorage": "F32", "torch.BFloat16Storage": "BF16", "torch.HalfStorage": "F16",
    "torch.DoubleStorage": "F64", "torch.LongStorage": "I64", "torch.IntStorage": "I32", "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8", "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL",
}  # fmt: skip
"""{class of a storage: dtype}"""
Slice = Callable[[int, int], bytes]
"""slice(offset, size) -> so many bytes of the archive from there on, fewer at its end"""


@dataclass(frozen=True)
class Extent:
    """Entry of an archive: where its bytes are, and where its checksum is written down (twice)."""

    offset: int
    nbytes: int
    checksums: tuple[int, int]


@dataclass(frozen=True)
class Listed:
    """Entry as the directory lists it: its bytes follow its header, before `end`."""

    header: int
    nbytes: int
    checksum: int
    end: int


@dataclass(frozen=True)
class Archive:
    """Zip archive whose directory was read; offsets count from its start."""

    path: Path
    read: Slice
    entries: Mapping[str, Listed]

    @classmethod
    def open(cls, path: Path, read: Slice, size: int) -> Archive:
        """Read the directory of an archive of so many bytes in a file. Raises UserError where it is none."""
        try:
            windowed = windows(read, size)
            return cls(path, windowed, _directory(windowed, size))
        except (struct.error, ValueError, IndexError) as error:
            raise broken(path, f"no archive of torch.save where one should be ({error})") from None

    def extent(self, name: str) -> Extent:
        """Where an entry's bytes are (KeyError or ValueError: nowhere)."""
        entry = self.entries[name]
        local = self.read(entry.header, LOCAL)
        if len(local) < LOCAL or local[:4] != b"PK\x03\x04":
            raise ValueError("an entry is not where it should be")
        offset = entry.header + LOCAL + sum(struct.unpack_from("<2H", local, 26))
        if offset + entry.nbytes > entry.end:
            raise ValueError("an entry stands out")
        late = local[6] & 8  # its checksum comes after the bytes
        return Extent(offset, entry.nbytes, (offset + entry.nbytes + 4 if late else entry.header + 14, entry.checksum))

    def content(self, name: str) -> bytes:
        try:
            record = self.extent(name)
        except (KeyError, ValueError) as error:
            raise broken(self.path, f"its archive has no {name} that can be read ({error})") from None
        if record.nbytes > MAX_PICKLE:
            raise broken(self.path, f"its {name} is larger than {MAX_PICKLE} bytes")
        return self.read(record.offset, record.nbytes)

    def unpickled(self, allowed: Collection[str]) -> Data:
        """What the archive's pickle holds."""
        if "byteorder" in self.entries and self.content("byteorder") != b"little":
            raise broken(self.path, "its numbers are not little-endian")
        data = self.content("data.pkl")
        if len(data) > WINDOW:
            return unpickle(data, allowed, self.path)
        return _unpickled(data, frozenset(allowed), self.path)

    def place(self, value: Data, name: str) -> tuple[str, tuple[int, ...], Extent]:
        """(dtype, shape, place) of a contiguous tensor that its pickle makes. Raises UserError for anything else."""
        try:
            return self._place(value)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise broken(self.path, f"no contiguous tensor of a known dtype ({error})"[:200], name) from None

    def _place(self, value: Data) -> tuple[str, tuple[int, ...], Extent]:
        if isinstance(value, Made) and value.kind.endswith("._rebuild_parameter"):
            value = value.args[0]
        if not isinstance(value, Made) or value.kind != "torch._utils._rebuild_tensor_v2":
            raise TypeError(f"it is a {value.kind if isinstance(value, Made) else type(value).__name__}")
        storage, first, shape, strides = value.args[:4]
        shape = sizes(shape)
        if any(n > 1 and a != b for n, a, b in zip(shape, sizes(strides), row_major(shape), strict=True)):
            raise ValueError("its elements are not in order")
        dtype = STORAGES[storage.args[1].name]
        record, item = self.extent(f"data/{storage.args[2]}"), size_of(dtype)
        count = math.prod(shape)
        if first < 0 or (first + count) * item > record.nbytes:
            raise ValueError("its elements are beyond the end of its storage")
        return dtype, shape, Extent(record.offset + first * item, count * item, record.checksums)


@lru_cache(maxsize=256)
def _unpickled(data: bytes, allowed: frozenset[str], path: Path) -> Data:
    """What a small pickle holds: boxes of one shape have the same."""
    return unpickle(data, allowed, path)


def sizes(value: Data) -> tuple[int, ...]:
    """A `torch.Size`, or a tuple of numbers (TypeError or ValueError for anything else)."""
    numbers = value.args[0] if isinstance(value, Made) and value.kind == "torch.Size" else value
    if isinstance(value, Made) and not value.args:
        return ()
    if not isinstance(numbers, tuple | list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise TypeError("a size is not a tuple of numbers")
    if len(numbers) > 16 or math.prod(numbers) >= 1 << 48:
        raise ValueError("a size is larger than any tensor's")
    return tuple(numbers)


def tag_of(dtype: Data) -> str:
    """The tag of a dtype that a pickle names (KeyError for an unknown one)."""
    return TAGS[dtype.name.removeprefix("torch.") if isinstance(dtype, Named) else ""]


def windows(read: Slice, size: int) -> Slice:
    """The reader with the first and last bytes of an archive kept, where all but large storages are."""
    edge = max(0, size - WINDOW)
    head, tail = read(0, min(WINDOW, size)), read(edge, size - edge)

    def windowed(offset: int, nbytes: int) -> bytes:
        if offset >= 0 and nbytes >= 0 and offset + nbytes <= len(head):
            return head[offset : offset + nbytes]
        if edge <= offset and nbytes >= 0:
            return tail[offset - edge : offset - edge + nbytes]
        return read(offset, nbytes)

    return windowed


def _directory(read: Slice, size: int) -> dict[str, Listed]:
    tail = read(max(0, size - END.size), END.size)
    mark, *_, count, length, start, comment = END.unpack(tail)
    if mark != b"PK\x05\x06" or comment:
        raise ValueError("no end of a directory")
    if FULL in (length, start) or count == 0xFFFF:
        far = read(size - END.size - LOCATOR - FAR_END.size, FAR_END.size)
        mark, *_, count, length, start = FAR_END.unpack(far)
        if mark != b"PK\x06\x06":
            raise ValueError("no end of a large directory")
    if length > MAX_DIRECTORY or start + length > size:
        raise ValueError("its directory stands out")
    raw, at, entries = read(start, length), 0, dict[str, Listed]()
    for _ in range(count):
        entry = ENTRY.unpack_from(raw, at)
        nlen, xlen, clen = entry[10:13]
        name = raw[at + ENTRY.size : at + ENTRY.size + nlen].decode("utf-8", "replace").partition("/")[2]
        extra = raw[at + ENTRY.size + nlen : at + ENTRY.size + nlen + xlen]
        nbytes, header = _far(extra, entry[9], entry[16])
        if entry[0] != b"PK\x01\x02" or entry[4] or name in entries:
            raise ValueError("an entry is compressed, or there twice")
        entries[name] = Listed(header, nbytes, start + at + 16, start)
        at += ENTRY.size + nlen + xlen + clen
    return entries


def _far(extra: bytes, nbytes: int, header: int) -> tuple[int, int]:
    """Size and place of an entry, which are in its extra field where they need more than 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            nbytes = values.pop(0) if nbytes == FULL else nbytes
            if header == FULL:
                header = values[-1]
        at += 4 + length
    return nbytes, header


def file_slice(file: BinaryIO, start: int = 0) -> Slice:
    """Reader of an open file, or of what begins at `start` in it."""

    def read(offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise ValueError("a place before the start")
        return os.pread(file.fileno(), size, start + offset)

    return read


def read_pickled(path: Path, label: str) -> dict[str, Tensor]:
    """The tensors of a pickled file and where their bytes are.

    Raises:
        UserError: it holds more than plain, contiguous tensors, or it is truncated.
    """
    with path.open("rb") as file:
        try:
            archive = Archive.open(path, file_slice(file), path.stat().st_size)
            state = archive.unpickled(TENSORS)
        except UserError as error:
            raise UserError(f"{error}. It holds more than plain tensors, or is broken.") from None
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise broken(path, "not a table of tensors")
        tensors = {}
        for name, value in state.items():
            dtype, shape, record = archive.place(value, name)
            tensors[name] = Tensor(name, dtype, shape, label, record.offset, record.nbytes)
    return tensors
