"""Files of `torch.save`, alone or as slices of a `.distcp`: where the bytes of their tensors are.

They are zip archives that compress nothing: `NAME/data.pkl` says what is there, `NAME/data/KEY` are raw storages. The
pickle is read as data, so nothing in it runs.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from souping.checkpoints.header import TAGS, Tensor, broken, check_name, size_of
from souping.checkpoints.layouts import common
from souping.checkpoints.pickles import MAX_PICKLE, READ_FAILURES, Data, Made, Named, unpickle
from souping.checkpoints.views import is_contiguous
from souping.core.text import listed, shown
from souping.core.types import EMA_KEY, UserError

LONGEST_DIRECTORY_BYTES = 50_000_000
"""Bytes of a directory at most."""
SMALL_PICKLE_BYTES = 2048
"""Pickles below this size are cached."""
ARCHIVE_PIECE_BYTES = 1 << 20
ARCHIVE_NAMES = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
"""How files that `torch.save` wrote are called."""
STATE_DICTS = ("state_dict", "model", "model_state_dict")
"""Where trainers put the weights in such a file, one below the other too."""
CHECKSUM_IN_HEADER = 14
CHECKSUM_IN_DESCRIPTOR = 4
CHECKSUM_BEFORE_NAME = 30
"""Where a zip file has an entry's checksum, in bytes: in its header, in the data descriptor behind it, and before the
entry's name in the directory."""
CHECKSUM_IS_BEHIND = 8
"""Flag of an entry whose checksum is in a data descriptor behind its bytes."""
LOCAL_HEADER = struct.Struct("<4s22x2H")


@dataclass(frozen=True)
class Extent:
    """Bytes of a file from `offset` on."""

    offset: int
    nbytes: int


class FileSlice:
    """Part of an open file, as a file that `zipfile` can read."""

    def __init__(self, file: BinaryIO, start: int, nbytes: int) -> None:
        """Bytes `start .. start + nbytes` of the file."""
        self._file = file
        self._start = start
        self._nbytes = nbytes
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._nbytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes from the current position; all that are left if it is negative."""
        count = self._nbytes - self._at
        if size >= 0:
            count = min(size, count)
        # `zipfile` reads the directory whole, and its size is what an untrusted file claims.
        count = min(count, LONGEST_DIRECTORY_BYTES)
        piece = os.pread(self._file.fileno(), count, self._start + self._at)
        self._at += len(piece)
        return piece


def read_pieces(file: BinaryIO, place: Extent) -> Iterator[bytes]:
    """The bytes of a place in a file, piece by piece."""
    for start in range(0, place.nbytes, ARCHIVE_PIECE_BYTES):
        count = min(ARCHIVE_PIECE_BYTES, place.nbytes - start)
        yield os.pread(file.fileno(), count, place.offset + start)


@dataclass(frozen=True)
class Archive:
    """Zip archive that is `nbytes` long and begins at byte `start` of an open file.

    `entries` are {name below the archive's one folder: entry}; `directory` is the byte in the archive at which its
    directory begins.
    """

    path: Path
    file: BinaryIO
    start: int
    nbytes: int
    entries: Mapping[str, zipfile.ZipInfo]
    directory: int

    @classmethod
    def open(cls, path: Path, file: BinaryIO, start: int = 0, nbytes: int | None = None) -> Archive:
        """Read the directory of an archive (UserError: it is broken); without `nbytes` it ends where the file does."""
        if nbytes is None:
            nbytes = path.stat().st_size - start
        try:
            archive = zipfile.ZipFile(FileSlice(file, start, nbytes))
        except (*READ_FAILURES, zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise broken(
                path, f"no archive of torch.save (1.6 or newer) where one should be ({error})"
            ) from None
        # torch looks up entries by name regardless of case, so two names must differ in more than case.
        listing = archive.infolist()
        entries = {entry.orig_filename.lower().partition("/")[2]: entry for entry in listing}
        if len(entries) < len(listing):
            raise broken(path, "an entry of its archive is there twice")
        return cls(path, file, start, nbytes, entries, archive.start_dir)

    def extent(self, name: str) -> Extent:
        """Where an entry's bytes are in the file.

        Raises:
            KeyError, ValueError: there is no such entry, or its bytes are compressed or outside of the archive.
        """
        entry = self.entries[name]
        last_offset = self.nbytes - LOCAL_HEADER.size - entry.file_size
        if entry.compress_type or not 0 <= entry.header_offset <= last_offset:
            raise ValueError("an entry is compressed, or outside")

        # An entry is a header, a name and an extra field, whose lengths the header has, and then the bytes.
        place = self.start + entry.header_offset
        header = os.pread(self.file.fileno(), LOCAL_HEADER.size, place)
        mark, name_length, extra_length = LOCAL_HEADER.unpack(header)
        begin = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if mark != b"PK\x03\x04" or begin + entry.file_size > self.nbytes:
            raise ValueError("an entry is not where it should be")
        return Extent(self.start + begin, entry.file_size)

    def sign(self) -> None:
        """Write the CRC-32 of every storage again, after its bytes have changed.

        A zip file has it twice: at the entry itself, before or behind its bytes, and in the directory.
        """
        directory = os.pread(
            self.file.fileno(), self.nbytes - self.directory, self.start + self.directory
        )
        place_of_name = -1
        for name, entry in self.entries.items():
            if not name.startswith("data/"):
                continue
            extent = self.extent(name)
            checksum = 0
            for piece in read_pieces(self.file, extent):
                checksum = zlib.crc32(piece, checksum)
            at_entry = self.start + entry.header_offset + CHECKSUM_IN_HEADER
            if entry.flag_bits & CHECKSUM_IS_BEHIND:
                at_entry = extent.offset + extent.nbytes + CHECKSUM_IN_DESCRIPTOR
            # The directory has the entries in this order, and `data/1` is a part of the name `data/10`.
            place_of_name = directory.index(entry.filename.encode(), place_of_name + 1)
            in_directory = self.start + self.directory + place_of_name - CHECKSUM_BEFORE_NAME
            for place in (at_entry, in_directory):
                os.pwrite(self.file.fileno(), checksum.to_bytes(4, "little"), place)

    def content(self, name: str) -> bytes:
        """All bytes of an entry that has to be small. Raises UserError if it is not, or is missing."""
        try:
            extent = self.extent(name)
        except READ_FAILURES as error:
            raise broken(
                self.path, f"its archive has no {name} that can be read ({error})"
            ) from None
        if extent.nbytes > MAX_PICKLE:
            raise broken(self.path, f"its {name} is larger than {MAX_PICKLE} bytes")
        return os.pread(self.file.fileno(), extent.nbytes, extent.offset)

    def unpickled(self) -> Data:
        """What the archive's pickle holds."""
        if "byteorder" in self.entries and self.content("byteorder") != b"little":
            raise broken(self.path, "its numbers are not little-endian")
        data = self.content("data.pkl")
        if len(data) < SMALL_PICKLE_BYTES:
            return _unpickle_once(data, self.path)
        return unpickle(data, self.path)

    def tensors(self) -> Mapping[str, Data]:
        """{name: pickled tensor}. Raises UserError if the pickle is not a table with names as keys."""
        state = self.unpickled()
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise broken(self.path, "not a table of tensors")
        return state

    def place(self, value: Data, name: str) -> tuple[str, tuple[int, ...], Extent]:
        """(dtype, shape, place in the file) of a contiguous pickled tensor. Raises UserError for anything else."""
        try:
            return self._place(value)
        except READ_FAILURES as error:
            raise broken(
                self.path, f"no contiguous tensor of a known dtype ({error})"[:200], name
            ) from None

    def _place(self, value: Data) -> tuple[str, tuple[int, ...], Extent]:
        """As `place`, but raises one of READ_FAILURES."""
        # A parameter is a tensor with a wrapper.
        is_parameter = isinstance(value, Made) and value.kind.endswith("._rebuild_parameter")
        if is_parameter and value.state is None:
            value = value.args[0]
        if not isinstance(value, Made):
            raise TypeError(f"it is a {type(value).__name__}")
        if value.kind != "torch._utils._rebuild_tensor_v2":
            raise TypeError(f"it is a {value.kind}")
        # (storage, offset, shape, strides, requires_grad, hooks, metadata): the metadata may negate the elements, and a
        # state puts others into the tensor.
        if value.state is not None or any(value.args[6:]):
            raise ValueError("its elements are not used as they are stored")
        storage, first, shape, strides = value.args[:4]
        (first,) = torch_size((first,))
        shape = torch_size(shape)
        if not is_contiguous(shape, torch_size(strides)):
            raise ValueError("its elements are not in order")
        # `storage.args` are ("storage", class, name, device, elements). Anything but a text may be endless when it is
        # written out, below and in a message.
        if not isinstance(storage.args[2], str):
            raise TypeError("its storage has no name")
        kind = storage.args[1].name.removeprefix("torch.").removesuffix("Storage")
        dtype = common()["storages"][kind]
        extent = self.extent(f"data/{storage.args[2]}")
        item_bytes = size_of(dtype)
        count = math.prod(shape)
        if (first + count) * item_bytes > extent.nbytes:
            raise ValueError("its elements are beyond the end of its storage")
        return dtype, shape, Extent(extent.offset + first * item_bytes, count * item_bytes)


@lru_cache(maxsize=256)
def _unpickle_once(data: bytes, path: Path) -> Data:
    """What a small pickle holds, from a cache: all boxes of one shape have the same pickle."""
    return unpickle(data, path)


def torch_size(value: Data) -> tuple[int, ...]:
    """A `torch.Size`, or a tuple of numbers (TypeError or ValueError for anything else)."""
    numbers = value
    if isinstance(value, Made) and value.kind == "torch.Size":
        numbers = value.args[0] if value.args else ()
    is_tuple = isinstance(numbers, tuple | list)
    if not is_tuple or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise TypeError("a size is not a tuple of numbers")
    if len(numbers) > 16 or math.prod(numbers) >= 1 << 48:
        raise ValueError("a size is larger than any tensor's")
    return tuple(numbers)


def tag_of(dtype: Data) -> str:
    """The tag of a dtype that a pickle names (KeyError for an unknown one)."""
    name = dtype.name if isinstance(dtype, Named) else ""
    return TAGS[name.removeprefix("torch.")]


def archive_at(path: Path) -> tuple[Path, str] | None:
    """(file, key) of an archive that FILE (its key is empty) or FILE#KEY names; None for anything else."""
    file = path
    key = ""
    if not path.is_file():
        name, _, key = path.name.rpartition("#")
        if not name:
            return None
        file = path.with_name(name)
    return (file, key) if file.name.endswith(ARCHIVE_NAMES) and file.is_file() else None


def averaged_at(path: Path) -> Path | None:
    """The folder that FOLDER#ema names; None for anything else."""
    folder = Path(str(path).removesuffix(EMA_KEY))
    return folder if folder != path and not path.exists() and folder.is_dir() else None


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder, an archive or FOLDER#ema."""
    return path.is_dir() or archive_at(path) is not None or averaged_at(path) is not None


def read_archive(path: Path, key: str) -> dict[str, Tensor]:
    """{name: tensor} of the table below a key, or of the one where trainers put the weights if the key is empty.

    Raises:
        UserError: there is no such table, or as `read_pickled`.
    """
    with path.open("rb") as file:
        archive = Archive.open(path, file)
        return _tensors(archive, _state_dict(archive.unpickled(), key, path), path.name)


def _state_dict(content: Data, key: str, path: Path) -> Mapping[str, Data]:
    """{name: pickled tensor} below a key of a file's content, then below names in STATE_DICTS while there is one.

    `a.b` is the key b in the table of key a, or a key with a dot. Raises UserError if there is no such table.
    """
    table = content
    keys = key.split(".") if key else []
    if isinstance(table, dict) and key in table:
        keys = [key]
    for part in keys:
        if not isinstance(table, dict) or part not in table:
            raise UserError(f"{path} has no key {shown(key)}: {_tables_in(content)}")
        table = table[part]

    # One level for each of these names at most: a table may hold itself.
    for _ in STATE_DICTS:
        inner = table if isinstance(table, dict) else {}
        name = next((name for name in STATE_DICTS if isinstance(inner.get(name), dict)), None)
        if name is None:
            break
        table = inner[name]
    if isinstance(table, dict) and any(isinstance(value, Made) for value in table.values()):
        return table
    where = shown(key) or ", ".join(STATE_DICTS)
    raise UserError(f"{path} has no tensors below {where}: {_tables_in(content)}")


def _tables_in(content: Data) -> str:
    """The end of a message: which keys of an archive to type instead."""
    table = content if isinstance(content, dict) else {}
    # The text of anything but a name may be endless.
    names = [key for key in table if isinstance(key, str) and isinstance(table[key], dict)]
    if not names:
        return "save a state_dict"
    return f"name the key of its weights, FILE#KEY (tables in it: {listed(names)})"


def read_pickled(path: Path, label: str) -> dict[str, Tensor]:
    """{name: tensor} of a pickled file; `label` is how the tensors name the file.

    Raises:
        UserError: it holds more than plain, contiguous tensors, or it is truncated.
    """
    with path.open("rb") as file:
        archive = Archive.open(path, file)
        return _tensors(archive, archive.tensors(), label)


def _tensors(archive: Archive, table: Mapping[str, Data], label: str) -> dict[str, Tensor]:
    """{name: tensor} of a table of pickled tensors, with the places of their bytes."""
    tensors = dict[str, Tensor]()
    for name, value in table.items():
        check_name(archive.path, name)
        dtype, shape, extent = archive.place(value, name)
        tensors[name] = Tensor(name, dtype, shape, label, extent.offset, extent.nbytes)
    return tensors
