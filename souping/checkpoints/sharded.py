"""Folders of sharded checkpoints: torch.distributed.checkpoint (DCP) and files by rank, read slice by slice.

No process group, no model and no torch: metadata is read as data (`pickles`), a tensor's pieces are found by their
place in the tensor (never by file or number), and pieces that do not tile it are refused. What is no weight (optimiser
state, random number generators, objects) stays unread.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from souping.checkpoints.archives import Archive, Extent, file_slice, sizes, tag_of
from souping.checkpoints.header import FLOATS, broken, inside, parse_json, read_header, read_metadata, small
from souping.checkpoints.pickles import MAX_PICKLE, METADATA, RANK, TENSORS, Data, Made, unpickle
from souping.checkpoints.views import Part, StoredTensor, View
from souping.core.text import listed, shown
from souping.core.types import UserError

META = ".metadata"
PLACES = (
    "", "pytorch_model_fsdp_0", "model_and_optim", "actor", "actor/dist_ckpt", "actor/model/dist_ckpt", "dist_ckpt",
    "model/dist_ckpt", "policy/weights", "policy/weights/model", "sharded",
)  # fmt: skip
"""Where trainers put the weights below a checkpoint's folder."""
RANK_FILE = re.compile(r"(?:model_world_size_(\d+)_rank_|pytorch_model_fsdp_\d+_rank)(\d+)\.(?:pt|bin)")
SHARD_FILE = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
NO_WEIGHTS = re.compile(
    r"(?:[^./]+[./])?(?:optimizers?|optim|chained_\d+|lr_schedulers?|scheduler|opt_param_scheduler|dataloader|"
    r"train_state|rng_state|rerun_state_machine\w*|common_state)(?:[./].*)?|.*\._extra_state(?:[./].*)?"
)
OPTIMISER = re.compile(r"(?:[^./]+[./])?(?:optimizers?|optim|chained_\d+)(?:[./].*)?")
ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError)
SAME = 1 << 20
FRESH = 1_000_000_000
"""Nanoseconds within which a file may change twice without another stamp, on any file system."""


@dataclass(frozen=True)
class Entry:
    """One stored box of a tensor: `length` bytes from `offset` of a file, relative to the checkpoint's folder."""

    name: str
    dtype: str
    start: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Sharded:
    """Weights of a sharded checkpoint by their stored names, and the files that hold them, relative to `folder`.

    `root` is where the layout's own files are, relative to it too.
    """

    folder: Path
    root: str
    layout: str
    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, root: str, layout: str, boxes: Boxes, files: Iterable[str]) -> Sharded:
        """Raises UserError for boxes that do not tile their tensor."""
        tensors = {}
        for name, (dtype, shape, parts) in boxes.items():
            try:
                tensors[name] = StoredTensor(dtype, shape, parts)
            except ERRORS as error:
                raise broken(folder / root, str(error)[:200], name) from None
        if not tensors:
            raise UserError(f"{folder / root} holds no weights: nothing to soup.")
        return cls(folder, root, layout, tensors, tuple(files))

    def as_stored(self) -> tuple[dict[str, list[View]], dict[str, tuple[int, ...]]]:
        """Views of all float tensors by their stored names, and their shapes."""
        shapes = {name: tensor.shape for name, tensor in self.tensors.items() if tensor.dtype in FLOATS}
        return {name: [View.of(name, shape)] for name, shape in shapes.items()}, shapes


Boxes = dict[str, tuple[str, tuple[int, ...], list[Part]]]
"""{name: (dtype, shape, parts)}"""


def find(folder: Path) -> tuple[str, str] | None:
    """(place below the folder, layout) of a sharded checkpoint; None where there is none.

    Raises:
        UserError: it is one that cannot be read; what to do is said.
    """
    for place in PLACES:
        root = folder / place
        if not root.is_dir():
            continue
        names = {path.name for path in root.iterdir()}
        if META in names:
            return place, "dcp"
        if any(SHARD_FILE.fullmatch(name) for name in names):
            return place, "safetensors"
        if any(RANK_FILE.fullmatch(name) for name in names):
            return place, "ranks"
        _refuse(root, names)
    return None


def _refuse(root: Path, names: set[str]) -> None:
    """Layouts that are not read."""
    if "zero_to_fp32.py" in names or any(root.glob("*/*zero_pp_rank_*")):
        raise UserError(
            f"{root} holds DeepSpeed ZeRO partitions, not weights: python {root / 'zero_to_fp32.py'} {root} OUT "
            "--safe_serialization, then give OUT"
        )
    if any(root.glob("*/.zarray")):
        raise UserError(f"{root} is a zarr checkpoint: convert it to torch_dist with an older Megatron-Core")
    if any(re.fullmatch(r"__\d+\.metadata", name) for name in names):
        raise UserError(f"{root} was saved with use_collectives=False, by rank: save it again with collectives")
    if any(name.endswith(".distcp") for name in names):
        raise UserError(f"{root} is half-written: its {META} is missing")


def read_sharded(folder: Path, allow_pickle: bool) -> Sharded | None:
    """The sharded checkpoint in a folder, or below it where trainers put one.

    Raises:
        UserError: it is broken, of a kind that cannot be read, or by rank and pickled files are not allowed.
    """
    found = find(folder)
    if found is None:
        return None
    if found[1] == "ranks" and not allow_pickle:
        raise UserError(f"{folder / found[0]} holds pickled weights by rank: to read them, set merge.allow_pickle=true")
    stats = [(path.name, path.stat()) for path in sorted((folder / found[0]).iterdir())]
    stamps = tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)
    fresh = time.time_ns() - max(s.st_ctime_ns for _, s in stats) < FRESH
    return (_read.__wrapped__ if fresh else _read)(folder, *found, stamps)


@lru_cache(maxsize=32)
def _read(folder: Path, place: str, layout: str, stamps: tuple[tuple[str | int, ...], ...]) -> Sharded:
    """A run opens a checkpoint several times; what its `stamps` say is unchanged is not read again."""
    prefix = f"{place}/" if place else ""
    if layout == "dcp":
        return _read_dcp(folder, place, prefix)
    return (_read_shards if layout == "safetensors" else _read_ranks)(folder, place, prefix)


# torch.distributed.checkpoint


def metadata(folder: Path, root: str) -> Data:
    """The `.metadata` of a checkpoint, as data."""
    path = inside(folder, f"{root}/{META}" if root else META)
    table = unpickle(small(path, MAX_PICKLE), METADATA, path)
    if not isinstance(table, Made) or not table.kind.endswith("Metadata") or not isinstance(table.state, dict):
        raise broken(path, "no metadata of torch.distributed.checkpoint")
    return table


def _read_dcp(folder: Path, root: str, prefix: str) -> Sharded:
    table = metadata(folder, root)
    boxes: Boxes = {}
    entries = [e for e in entries_of(table, folder / root, prefix) if not NO_WEIGHTS.fullmatch(e.name)]
    for entry, part in places(folder, entries):
        boxes.setdefault(entry.name, (entry.dtype, shape_of(table, entry.name), []))[2].append(part)
    files = [f"{prefix}{META}", *sorted({entry.file for entry in entries})]
    return Sharded.of(folder, root, "dcp", boxes, files)


def shape_of(table: Data, name: str) -> tuple[int, ...]:
    return sizes(table["state_dict_metadata"][name]["size"])


def entries_of(table: Data, root: Path, prefix: str) -> list[Entry]:
    """The stored boxes of all tensors that a `.metadata` names."""
    name = None
    try:
        stored = {}
        for key, info in table["storage_data"].items():
            offset = key.state.get("offset")
            stored[key["fqn"], None if offset is None else sizes(offset)] = info
        entries: list[Entry] = []
        for name, entry in table["state_dict_metadata"].items():
            if entry.kind.endswith(".TensorStorageMetadata"):
                entries += _entries(name, entry, stored, prefix)
            elif not entry.kind.endswith(".BytesStorageMetadata"):
                raise TypeError(f"it is a {entry.kind}")
    except ERRORS as error:
        raise broken(root / META, f"its entry is wrong ({type(error).__name__}: {error})"[:200], name) from None
    return entries


def _entries(name: str, entry: Data, stored: Mapping[tuple[str, Data], Data], prefix: str) -> Iterator[Entry]:
    dtype, layout = entry["properties"].state[:2]
    tag, shape = tag_of(dtype), sizes(entry["size"])
    if layout.args != ("torch.strided",):
        raise TypeError(f"its layout is {layout.args}")
    for chunk in entry["chunks"]:
        start, size = sizes(chunk["offsets"]), sizes(chunk["sizes"])
        if len(start) != len(shape) or len(size) != len(shape):
            raise ValueError("a part of it has another number of dimensions")
        if 0 in size:
            continue
        info = stored[name, start]
        if info.state.get("transform_descriptors"):
            raise ValueError(f"it is stored as {info['transform_descriptors']}, which is not read")
        file, offset, length = info["relative_path"], info["offset"], info["length"]
        if not isinstance(file, str) or type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            raise TypeError("its place is no file and bytes")
        yield Entry(name, tag, start, size, f"{prefix}{file}", offset, length)


@dataclass(frozen=True)
class Slice:
    """What a `.metadata` names in a file: a box of a tensor, or an object."""

    name: str
    file: str
    offset: int
    length: int


def stored_slices(table: Data, sharded: Sharded, prefix: str) -> list[Slice]:
    """All that a `.metadata` names, in archives of torch.save.

    Raises:
        UserError: it is broken, or a file is of another kind.
    """
    try:
        slices = [
            Slice(key["fqn"], f"{prefix}{info['relative_path']}", info["offset"], info["length"])
            for key, info in table["storage_data"].items()
        ]
    except ERRORS as error:
        raise broken(sharded.folder / sharded.root / META, f"an entry is wrong ({error})"[:200]) from None
    for file in sorted({one.file for one in slices}):
        with inside(sharded.folder, file).open("rb") as opened:
            if opened.read(4) != b"PK\x03\x04":
                raise UserError(f"{file} of {sharded.folder} is of a kind that is not written: use merge.format=hf")
    return slices


def places(folder: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Part]]:
    """Where the bytes of stored boxes are in their files."""
    ordered = sorted(entries, key=lambda entry: (entry.file, entry.offset))
    for name, group in itertools.groupby(ordered, key=lambda entry: entry.file):
        path = inside(folder, name)
        if not path.is_file():
            raise broken(folder, f"its file {shown(name)} is missing")
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                for entry in group:
                    yield entry, place_in(path, file, entry)[0]
            else:
                yield from _in_safetensors(path, group)


def place_in(path: Path, file: BinaryIO, entry: Entry) -> tuple[Part, Extent]:
    """Where a box is in the file, and its record in the archive that begins at the entry's offset."""
    if entry.offset + entry.length > path.stat().st_size:
        raise broken(path, "truncated: its bytes are beyond the end", entry.name)
    archive = Archive.open(path, file_slice(file, entry.offset), entry.length)
    dtype, shape, record = archive.place(archive.unpickled(TENSORS), entry.name)
    if (dtype, shape) != (entry.dtype, entry.sizes) or record.nbytes != archive.entries["data/0"].nbytes:
        raise broken(path, f"a stored part is {dtype} {list(shape)}, the metadata says otherwise", entry.name)
    return Part(entry.file, entry.offset + record.offset, entry.start, entry.sizes), record


def _in_safetensors(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Part]]:
    """Boxes in a file that `serialization_format=SAFETENSORS` wrote: one box of a tensor in each file."""
    header = read_header(path)
    for entry in entries:
        tensor = header.get(entry.name)
        if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.sizes):
            raise broken(path, "a stored part is not what the metadata says", entry.name)
        yield entry, Part(entry.file, tensor.offset, entry.start, entry.sizes)


def _read_shards(folder: Path, root: str, prefix: str) -> Sharded:
    """DCP's layout of safetensors files by rank, which say where their tensors begin."""
    files = sorted(path.name for path in (folder / root).iterdir() if SHARD_FILE.fullmatch(path.name))
    boxes: Boxes = {}
    for name in files:
        path = inside(folder, prefix + name)
        starts = _starts(path)
        for tensor in read_header(path, prefix + name).values():
            start = starts.get(tensor.name)
            if start is None or len(start) != len(tensor.shape):
                raise broken(path, "DCP_SHARDING_INFO does not say where it begins", tensor.name)
            part = Part(tensor.file, tensor.offset, start, tensor.shape)
            dtype, shape, parts = boxes.setdefault(tensor.name, (tensor.dtype, tensor.shape, []))
            if dtype != tensor.dtype:
                raise broken(path, f"{tensor.dtype} here, {dtype} in another file", tensor.name)
            ends = (max(n, a + m) for n, a, m in zip(shape, start, tensor.shape, strict=True))
            boxes[tensor.name] = (dtype, tuple(ends), [*parts, part])
    boxes = {name: box for name, box in boxes.items() if not NO_WEIGHTS.fullmatch(name)}
    return Sharded.of(folder, root, "safetensors", boxes, [prefix + name for name in files])


def _starts(path: Path) -> dict[str, tuple[int, ...]]:
    text = read_metadata(path).get("DCP_SHARDING_INFO")
    table = parse_json(path, text.encode("utf-8", "replace")) if isinstance(text, str) else None
    try:
        assert table is not None
        return {name: sizes(tuple(entry["saved_offsets"])) for name, entry in table.items()}
    except (*ERRORS, AssertionError):
        raise broken(path, "its DCP_SHARDING_INFO is missing or wrong") from None


# Files by rank


@dataclass(frozen=True)
class Local:
    """What one rank holds of a tensor: `start` is None where every rank holds the whole."""

    dtype: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    record: Extent
    dim: int | None = None
    start: tuple[int, ...] | None = None


def _read_ranks(folder: Path, root: str, prefix: str) -> Sharded:
    """Files `model_world_size_W_rank_R.pt` of FSDP: DTensors, ShardedTensors, or plain tensors that are replicated."""
    found = [(match, path.name) for path in (folder / root).iterdir() if (match := RANK_FILE.fullmatch(path.name))]
    ranks = {int(match[2]): prefix + name for match, name in found}
    world = {int(match[1]) for match, _ in found if match[1]} or {len(ranks)}
    if len(world) != 1 or sorted(ranks) != list(range(*world)):
        raise UserError(f"{folder / root} has files of ranks {listed(map(str, sorted(ranks)))} only: some are missing")
    files = [ranks[rank] for rank in sorted(ranks)]
    held = [dict(_locals(inside(folder, name))) for name in files]
    boxes: Boxes = {}
    for name in held[0]:
        if any(name not in one for one in held):
            raise broken(folder / root, "some ranks lack it", name)
        mine = [one[name] for one in held]
        if len({(one.dtype, one.shape, one.dim) for one in mine}) != 1:
            raise broken(folder / root, "ranks differ in its dtype, shape or placement", name)
        boxes[name] = (mine[0].dtype, mine[0].shape, _parts(folder, name, mine, files))
    return Sharded.of(folder, root, "ranks", boxes, files)


def _parts(folder: Path, name: str, held: Sequence[Local], files: Sequence[str]) -> list[Part]:
    first = held[0]
    pairs = list(zip(held, files, strict=True))
    if first.start is not None:
        return [Part(file, one.record.offset, one.start, one.size) for one, file in pairs if one.start is not None]
    if first.dim is None:
        for one, file in pairs[1:]:
            if not _equal(folder / files[0], first.record, folder / file, one.record):
                raise broken(folder / file, "replicated, but not the same in every rank", name)
        return [Part(files[0], first.record.offset, (0,) * len(first.shape), first.shape)]
    parts, at = [], 0
    for one, file in pairs:
        start = tuple(at if d == first.dim else 0 for d in range(len(first.shape)))
        if at < first.shape[first.dim] and one.size[first.dim]:  # further ranks hold copies (HSDP)
            parts.append(Part(file, one.record.offset, start, one.size))
            at += one.size[first.dim]
    return parts


def _equal(a: Path, left: Extent, b: Path, right: Extent) -> bool:
    with a.open("rb") as one, b.open("rb") as other:
        one.seek(left.offset)
        other.seek(right.offset)
        rest = left.nbytes if left.nbytes == right.nbytes else -1
        while rest > 0:
            if one.read(min(rest, SAME)) != other.read(min(rest, SAME)):
                return False
            rest -= SAME
    return left.nbytes == right.nbytes


def _locals(path: Path) -> Iterator[tuple[str, Local]]:
    with path.open("rb") as file:
        archive = Archive.open(path, file_slice(file), path.stat().st_size)
        state = archive.unpickled(RANK)
        if not isinstance(state, dict):
            raise broken(path, "not a table of tensors")
        for name, value in state.items():
            if not isinstance(name, str):
                raise broken(path, "not a table of tensors by name")
            if not NO_WEIGHTS.fullmatch(name):
                try:
                    yield name, _local(archive, name, value)
                except ERRORS as error:
                    raise broken(path, f"it cannot be read ({error})"[:200], name) from None


def _local(archive: Archive, name: str, value: Data) -> Local:
    if not isinstance(value, Made):
        raise TypeError(f"it is a {type(value).__name__}")
    if value.kind == "torch._tensor._rebuild_from_type_v2":
        made = Made(value.args[1].name, (), state=value.args[3])
        if made.kind.endswith(".DTensor"):
            dtype, size, record = archive.place(made["_local_tensor"], name)
            return Local(dtype, sizes(value.args[2][2]), size, record, _dimension(made["_spec"]))
        return _shard(archive, name, *made.state[:2])
    dtype, size, record = archive.place(value, name)
    return Local(dtype, size, size, record)


def _shard(archive: Archive, name: str, shards: Data, table: Data) -> Local:
    """What a rank holds of a ShardedTensor, which may be nothing."""
    shape = sizes(table["size"])
    if not shards:
        nothing = (0,) * len(shape)
        return Local(tag_of(table["tensor_properties"].state[0]), shape, nothing, Extent(0, 0, (0, 0)), start=nothing)
    if len(shards) != 1:
        raise ValueError("a rank holds several shards of it")
    dtype, size, record = archive.place(shards[0]["tensor"], name)
    return Local(dtype, shape, size, record, start=sizes(tuple(shards[0]["metadata"]["shard_offsets"])))


def _dimension(spec: Data) -> int | None:
    """The dimension that is cut over the ranks, None for a tensor that each holds whole."""
    kinds = [one.kind.rpartition(".")[2] for one in spec["placements"]]
    if kinds in (["Shard"], ["Replicate", "Shard"]):
        dim = spec["placements"][-1]["dim"]
        if type(dim) is not int or dim < 0:
            raise TypeError("its placement has no dimension")
        return int(dim)
    if set(kinds) == {"Replicate"}:
        return None
    raise ValueError(f"its placement {' x '.join(kinds)} is not read: save a full state dict, or use DCP")
