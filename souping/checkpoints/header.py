"""Safetensors headers from untrusted files, and the dtypes that they name.

The format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data
(https://huggingface.co/docs/safetensors). Nothing is allocated before the file's real size has been compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from souping.checkpoints.ranges import pointed_file
from souping.core.files import regular
from souping.core.parsing import read_json
from souping.core.text import check_pointer, shown
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
size_of = {tag: bits // 8 for tag, bits in BITS.items()}.__getitem__
"""Bytes of an element of a dtype; called for every chunk."""


def widest(tags: Iterable[str]) -> str:
    """The dtype that holds every value of float dtypes: bf16 with fp16 needs fp32. Of others, the first by name."""
    present = set(tags)
    if len(present) == 1 or not present <= set(FLOATS):
        return sorted(present)[0]
    return "F32"


# Headers

METADATA = "__metadata__"
"""The format's own entry among the tensors."""
MAX_HEADER = 100_000_000  # the format's own limit, in bytes
MAX_RANK = 64
LONGEST_NAME = 4096
"""Characters of a tensor's name at most."""
MAX_JSON = 200_000_000
MAX_RECIPE = 10_000_000
"""Bytes of a recipe.json at most."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint and where its bytes are: `offset` counts from the start of `file`.

    `rounded` is the dtype of its soups if that is not its own: FP8 weights are read as fp32 and written as bf16.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    rounded: str | None = None

    @property
    def soup_dtype(self) -> str:
        return self.rounded or self.dtype

    @property
    def end(self) -> int:
        """The first byte of the file after the tensor."""
        return self.offset + self.nbytes

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path, label: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of their data. Reads no weight.

    Each has `label` as its `file`; the default is the name without a folder.

    Raises:
        UserError: the file is truncated, or its header is wrong (length, JSON, dtype, shape, overlap, overrun, holes).
    """
    table, length, size = _read_table(path)
    name = None  # of the entry at hand, for the message
    try:
        table.pop(METADATA, None)
        tensors = []
        for name, entry in table.items():
            tensors.append(_tensor(label or path.name, 8 + length, name, entry))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise broken(path, f"its header is wrong: {shown(str(error))}", name) from None
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def read_metadata(path: Path) -> dict[str, Any]:
    """The `__metadata__` of a safetensors file, empty if there is none."""
    table, _, _ = _read_table(path)
    metadata = table.get(METADATA) if isinstance(table, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _read_table(path: Path) -> tuple[Any, int, int]:
    """(JSON of the header, bytes of the header, bytes of the file)."""
    with pointed_file(path) as (file, size):
        head = file.read(40)
        check_pointer(path, head)
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise broken(
                path,
                f"truncated, or no safetensors file: its header claims {length} bytes of {size}",
            )
        file.seek(8)
        return parse_json(path, file.read(length)), length, size


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int], int, int]]) -> bytes:
    """The header of a safetensors file with its length in front, padded to 8 bytes.

    `tensors` are (name, dtype, shape, offset in the data, bytes).
    """
    entries: dict[str, Json] = {METADATA: {"format": "pt"}}
    for name, dtype, shape, offset, nbytes in tensors:
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UserError(
            f"the names of a file's tensors need {len(text)} bytes, and safetensors allows {MAX_HEADER}: "
            "set a smaller merge.max_shard_size"
        )
    return len(text).to_bytes(8, "little") + text


def check_name(path: Path, name: Json) -> str:
    """A tensor's name. Raises UserError for one that safetensors cannot hold."""
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise broken(path, f"a name is not a text of at most {LONGEST_NAME} characters")
    # Half a surrogate pair does not survive UTF-8.
    if name == METADATA or name != name.encode("utf-8", "replace").decode():
        raise broken(path, "safetensors cannot hold this name", name)
    return name


def broken(path: Path, why: str, tensor: str | None = None) -> UserError:
    """The error for a file that cannot be trusted."""
    where = f", tensor {shown(tensor)}" if tensor is not None else ""
    return UserError(f"{path}{where}: {why}. Download or save this checkpoint again.")


def inside(folder: Path, name: str, tensor: str | None = None) -> Path:
    """`folder/name`, if it really is inside the folder.

    One exception: links in the cache of huggingface_hub. In CACHE/REPOSITORY/snapshots/REVISION (`folder`), files are
    links to CACHE/REPOSITORY/blobs/DIGEST, or if the repositories share their blobs to CACHE/blobs/XX/DIGEST.

    Raises:
        UserError: an absolute name, `..`, or a symlink that leads out.
    """
    relative = PurePosixPath(name)
    path = folder / name
    odd_characters = "\0" in name or "\\" in name
    if odd_characters or not relative.parts or ".." in relative.parts or relative.is_absolute():
        raise broken(folder, f"the file name {shown(name)} leaves the folder", tensor)
    try:
        target = path.resolve()
        root = folder.resolve()
        # Fails at a loop of links, which `resolve` passes over since Python 3.13. A file that is missing or cannot be
        # read is for the caller to report.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
    except (OSError, RuntimeError, ValueError):
        raise broken(folder / shown(name), "its symlinks cannot be followed", tensor) from None
    own = target.parent == root.parent.parent / "blobs"
    shared = len(root.parents) > 2 and target.parent.parent == root.parents[2] / "blobs"
    hub_blob = root.parent.name == "snapshots" and (own or shared)
    if not target.is_relative_to(root) and not hub_blob:
        raise broken(path, "a symlink that leads out of the folder", tensor)
    return regular(path)


def small(path: Path, limit: int = MAX_JSON) -> bytes:
    """All bytes of a file that has to be small (UserError: it has more than `limit`)."""
    if regular(path).stat().st_size > limit:
        raise broken(path, f"larger than {limit} bytes, which no such file is")
    return path.read_bytes()


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


def json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file. Raises UserError for anything else, as `parse_json`."""
    table = parse_json(path, small(path))
    if not isinstance(table, dict):
        raise broken(path, f"{path.name} is not a JSON object")
    return table


def _tensor(file: str, start: int, name: str, entry: Any) -> Tensor:
    """The tensor of a header's entry; the data begins at byte `start` of the file.

    Raises:
        TypeError, KeyError, ValueError: the entry is wrong.
    """
    name.encode()  # ValueError for half a surrogate pair, which JSON allows
    dtype = entry["dtype"]
    shape = entry["shape"]
    begin, end = entry["data_offsets"]
    whole_numbers = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if len(shape) > MAX_RANK or not whole_numbers:
        raise ValueError("shape or data_offsets is not a short list of whole numbers")
    if dtype not in BITS:
        raise ValueError(f"unknown dtype {dtype}")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise ValueError(
            f"its place has {end - begin} bytes, which is not the size of {dtype} {shape}"[:200]
        )
    return Tensor(name, dtype, tuple(shape), file, start + begin, end - begin)


def _check_layout(path: Path, tensors: list[Tensor], start: int, size: int) -> None:
    """Refuse tensors, in the order of their data, that do not fill the bytes `start .. size` of the file exactly."""
    for tensor in tensors:
        if tensor.offset < start:
            raise broken(path, "its bytes overlap another tensor's", tensor.name)
        if tensor.offset > start:
            raise broken(path, "its bytes leave a hole before them", tensor.name)
        start = tensor.end
    if start != size:
        raise broken(
            path, f"truncated, or with a rest: its tensors end at byte {start}, the file at {size}"
        )
