"""Folders of sharded checkpoints: torch.distributed.checkpoint (DCP) and files by rank, read slice by slice.

No process group, no model and no torch: metadata is read as data (`pickles`), a tensor's pieces are found by their
place in the tensor (never by file or number), and pieces that do not tile it are refused. What is not a weight
(optimiser state, random number generators, objects) stays unread.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from souping.checkpoints.archives import Archive, Extent, read_pieces, tag_of, torch_size
from souping.checkpoints.header import (
    FLOATS,
    Tensor,
    broken,
    check_name,
    inside,
    parse_json,
    read_header,
    read_metadata,
    small,
)
from souping.checkpoints.layouts import all_trainers, is_weight, weight_places
from souping.checkpoints.pickles import MAX_PICKLE, READ_FAILURES, Data, Made, unpickle
from souping.checkpoints.views import Part, Shape, StoredTensor, View
from souping.core.text import listed, shown
from souping.core.types import EMA_KEY, Names, UserError

META = ".metadata"
ZIP = b"PK\x03\x04"
RANK_FILE = re.compile(
    r"(?:model_world_size_(\d+)_rank_|pytorch_model_fsdp_\d+_rank)(\d+)\.(?:pt|bin)"
)
SHARD_FILE = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
OPTIMISER = re.compile(r"(?:[^./]+[./])?(?:(?:ema_)?optimizers?|optim|chained_\d+)(?:[./].*)?")
COARSEST_TICK_NS = 1_000_000_000
"""Nanoseconds within which a file may change twice without another stamp, on any file system."""


@dataclass(frozen=True)
class Sharded:
    """Weights by their stored names, and the files that hold them, relative to `folder`.

    A trainer's `layout` is dcp, safetensors or ranks, with files in `folder/root`; else both are empty.
    """

    folder: Path
    root: str
    layout: str
    tensors: Mapping[str, StoredTensor]
    files: Names

    @classmethod
    def whole(cls, folder: Path, tensors: Mapping[str, Tensor]) -> Sharded:
        """Tensors that are in one piece each, in no trainer's layout."""
        stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
        files = {tensor.file for tensor in tensors.values()}
        return cls(folder, "", "", stored, tuple(sorted(files)))

    @classmethod
    def of(cls, folder: Path, root: str, layout: str, pieces: Iterable[Piece]) -> Sharded:
        """Weights gathered from pieces in any order (UserError: the parts of a tensor do not tile it)."""
        gathered: dict[str, tuple[str, Shape | None, list[Part]]] = {}
        files = set[str]()
        for name, dtype, shape, part in pieces:
            first_dtype, first_shape, parts = gathered.setdefault(name, (dtype, shape, []))
            parts.append(part)
            files.add(part.file)
            if (first_dtype, first_shape) != (dtype, shape):
                what = f"{dtype} {shape or ''} here, {first_dtype} {first_shape or ''} in another"
                raise broken(folder / part.file, what, name)

        tensors = {}
        for name, (dtype, shape, parts) in gathered.items():
            try:
                full_shape = _shape_of(parts) if shape is None else shape
                tensors[name] = StoredTensor(dtype, full_shape, parts)
            except READ_FAILURES as error:
                raise broken(folder / root, str(error)[:200], name) from None
        if not tensors:
            raise UserError(f"{folder / root} holds no weights: nothing to soup.")
        names = sorted(files)
        if layout == "dcp":
            names.insert(0, f"{root}/{META}".lstrip("/"))
        return cls(folder, root, layout, tensors, tuple(names))

    def as_stored(self) -> dict[str, View]:
        """All float tensors by their stored names."""
        return {
            name: View.of(name, tensor.shape)
            for name, tensor in self.tensors.items()
            if tensor.dtype in FLOATS
        }


def _shape_of(parts: Sequence[Part]) -> Shape:
    """The shape of a tensor of which only the parts are known: the largest end of any part in each dimension."""
    ends = []
    for part in parts:
        ends.append([start + size for start, size in zip(part.start, part.sizes, strict=True)])
    return tuple(map(max, zip(*ends, strict=True)))


class Piece(NamedTuple):
    """Part of the tensor `name`. If the `shape` of the tensor is None, the tensor ends where its last part does."""

    name: str
    dtype: str
    shape: Shape | None
    part: Part


def find_sharded(folder: Path) -> tuple[str, str] | None:
    """(place below the folder, layout) of a sharded checkpoint; None if the folder has none.

    Raises:
        UserError: there is one of a kind that is not read.
    """
    for place in weight_places():
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
        _refuse_layout(root, names)
    return None


def _refuse_layout(root: Path, names: set[str]) -> None:
    """Refuse a folder whose files are of a layout that is not read, with what to do; `names` are the files."""
    if "zero_to_fp32.py" in names or any(root.glob("*/*zero_pp_rank_*")):
        raise UserError(
            f"{root} holds DeepSpeed ZeRO partitions, not weights: python {root / 'zero_to_fp32.py'} {root} OUT "
            "--safe_serialization, then give OUT"
        )
    if any(root.glob("*/.zarray")):
        raise UserError(
            f"{root} is a zarr checkpoint: convert it to torch_dist with an older Megatron-Core"
        )
    if any(re.fullmatch(r"__\d+\.metadata", name) for name in names):
        raise UserError(
            f"{root} was saved with use_collectives=False, by rank: save it again with collectives"
        )
    if any(name.endswith(".distcp") for name in names):
        raise UserError(f"{root} is half-written: its {META} is missing")


def read_sharded(folder: Path, allow_pickle: bool, averaged: bool = False) -> Sharded | None:
    """The sharded checkpoint in a folder, or below it where trainers put one; `averaged`: with the average in its
    optimiser state in place of the weights.

    Raises:
        UserError: it is broken, of a kind that cannot be read, by rank and pickled files are not allowed, or it has no
            average.
    """
    place_and_layout = find_sharded(folder)
    if place_and_layout is None:
        return None
    place, layout = place_and_layout
    root = folder / place
    if layout == "ranks" and not allow_pickle:
        raise UserError(
            f"{root} holds pickled weights by rank: to read them, set merge.allow_pickle=true"
        )
    stats = [(path.name, path.stat()) for path in sorted(root.iterdir())]
    stamps = tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)
    newest_ctime = max(stat.st_ctime_ns for _, stat in stats)
    # Files younger than a tick of the clock may change and keep their stamps: the cache of `_read` is bypassed.
    read = _read.__wrapped__ if time.time_ns() - newest_ctime < COARSEST_TICK_NS else _read
    return read(folder, place, layout, averaged, stamps)


@lru_cache(maxsize=32)
def _read(
    folder: Path,
    place: str,
    layout: str,
    averaged: bool,
    stamps: tuple[tuple[str | int, ...], ...],
) -> Sharded:
    """The weights in `folder/place`, from a cache while the `stamps` of its files are the same: runs open it often."""
    # Before the names of files: they are relative to `folder`, and the files are in `folder/place`.
    prefix = f"{place}/" if place else ""
    if averaged:
        return Sharded.of(folder, place, layout, _read_average(folder, prefix))
    readers = {"dcp": _read_dcp, "safetensors": _read_shards, "ranks": _read_ranks}
    return Sharded.of(folder, place, layout, readers[layout](folder, prefix))


# torch.distributed.checkpoint


@dataclass(frozen=True)
class Entry:
    """What a `.metadata` names: `length` bytes from `offset` of a file, which are a box of a tensor, or an object.

    The box begins at `start` of the tensor of a `shape` and has `sizes`; `dtype` is empty for an object.
    """

    name: str
    file: str
    offset: int
    length: int
    dtype: str
    shape: Shape
    start: Shape
    sizes: Shape

    @property
    def is_box(self) -> bool:
        return bool(self.dtype) and 0 not in self.sizes

    @property
    def is_weight(self) -> bool:
        return self.is_box and is_weight(self.name)


def metadata(folder: Path, prefix: str) -> tuple[Made, list[Entry]]:
    """(a checkpoint's `.metadata` as data, an entry for each box and object in it); `prefix` is as in `_read`.

    Raises:
        UserError: it is broken.
    """
    path = inside(folder, prefix + META)
    name = None  # of the entry at hand, for the message
    entries = list[Entry]()
    table = unpickle(small(path, MAX_PICKLE), path)
    if (
        not isinstance(table, Made)
        or not table.kind.endswith("Metadata")
        or not isinstance(table.state, dict)
    ):
        raise broken(path, "no metadata of torch.distributed.checkpoint")
    try:
        # {(name of a tensor, start of a box): place in a file}
        stored = {}
        for key, info in table["storage_data"].items():
            offset = key.state.get("offset")
            start = None if offset is None else torch_size(offset)
            place = info.state
            # Raises if the offset or the length is not a size.
            torch_size((place["offset"],))
            torch_size((place["length"],))
            check_name(path, place["relative_path"])
            stored[check_name(path, key["fqn"]), start] = place
        for key, entry in table["state_dict_metadata"].items():
            name = check_name(path, key)
            entries += _entries(name, entry, stored, prefix)
    except READ_FAILURES as error:
        raise broken(
            path, f"its entry is wrong ({type(error).__name__}: {error})"[:200], name
        ) from None
    return table, entries


def _entries(
    name: str, entry: Data, stored: Mapping[tuple[str, Data], Data], prefix: str
) -> Iterator[Entry]:
    """The boxes of a tensor, or one entry for an object, at their places in `stored` (READ_FAILURES: it is wrong)."""
    tag = ""
    shape = Shape()
    # (start, sizes); an object has one without a start.
    boxes = list[tuple[Shape | None, Shape]]([(None, ())])
    if entry.kind.endswith(".TensorStorageMetadata"):
        dtype, layout = entry["properties"].state[:2]
        if layout.args != ("torch.strided",):
            raise TypeError("its layout is not strided")
        tag = tag_of(dtype)
        shape = torch_size(entry["size"])
        boxes = [
            (torch_size(chunk["offsets"]), torch_size(chunk["sizes"])) for chunk in entry["chunks"]
        ]
    elif not entry.kind.endswith(".BytesStorageMetadata"):
        raise TypeError(f"it is a {entry.kind}")
    for start, size in boxes:
        place = stored[name, start]
        if place.get("transform_descriptors"):
            raise ValueError("it has transform_descriptors, which are not read")
        file = f"{prefix}{place['relative_path']}"
        yield Entry(name, file, place["offset"], place["length"], tag, shape, start or (), size)


def has_average(root: Path) -> bool:
    """Whether the optimiser state of a DCP checkpoint holds an average of the weights: its metadata names one."""
    path = root / META
    if not path.is_file():
        return False
    # Names are plain text in a pickle, and most checkpoints have none: they are not parsed for it.
    if b".ema" not in small(path, MAX_PICKLE):
        return False
    _, entries = metadata(root, prefix="")
    return _average_state(entries) is not None


def _average_state(entries: Sequence[Entry]) -> re.Pattern[str] | None:
    """Names of optimiser state that is an average of the weight `name`, such as torchtitan's
    `ema_optimizer.state.NAME.ema_params`; None if the entries have none of any trainer."""
    for trainer in all_trainers():
        pattern = re.compile(trainer.average_state)
        if trainer.average_state and any(pattern.fullmatch(entry.name) for entry in entries):
            return pattern
    return None


def _read_dcp(folder: Path, prefix: str) -> Iterator[Piece]:
    """The weights that the metadata of torch.distributed.checkpoint names."""
    _, entries = metadata(folder, prefix)
    yield from _pieces(folder, [entry for entry in entries if entry.is_weight])


def _read_average(folder: Path, prefix: str) -> Iterator[Piece]:
    """The average in the optimiser state; weights that have no average, such as buffers, as the checkpoint has them."""
    # Of the layouts, only DCP has a .metadata, and an average.
    entries = metadata(folder, prefix)[1] if (folder / prefix / META).is_file() else []
    state = _average_state([entry for entry in entries if entry.is_box])
    if state is None:
        raise UserError(
            f"{folder / prefix} holds no average in its optimiser state: give the folder without {EMA_KEY}"
        )
    averages = [entry for entry in entries if entry.is_box and state.fullmatch(entry.name)]
    weights = [entry for entry in entries if entry.is_weight]
    stored = {entry.name for entry in weights}
    names = {state.sub(r"\g<name>", entry.name) for entry in averages}
    # torchtitan saves a fused parameter in parts, and its average whole: `attention.wqkv.weight` has an average, and
    # everything stored below `attention.` is left out.
    fused = tuple(f"{name.rsplit('.', 2)[0]}." for name in names - stored)
    names |= {name for name in stored if name.startswith(fused)}
    yield from _pieces(folder, [entry for entry in weights if entry.name not in names])
    for name, dtype, shape, part in _pieces(folder, averages):
        yield Piece(state.sub(r"\g<name>", name), dtype, shape, part)


def _pieces(folder: Path, entries: Iterable[Entry]) -> Iterator[Piece]:
    """The boxes that entries name, file by file (UserError: what a file stores is not what the metadata says)."""
    ordered = sorted(entries, key=lambda entry: (entry.file, entry.offset))
    for name, group in itertools.groupby(ordered, key=lambda entry: entry.file):
        path = inside(folder, name)
        if not path.is_file():
            raise broken(folder, f"its file {shown(name)} is missing")
        with path.open("rb") as file:
            # A file is a row of archives, or with serialization_format=SAFETENSORS one of safetensors.
            header = None if file.read(4) == ZIP else read_header(path)
            end = 0
            for entry in group:
                if header is None and entry.offset < end:
                    raise broken(path, "its bytes overlap another tensor's", entry.name)
                end = entry.offset + entry.length
                stored = _stored_part(path, file, header, entry)
                if stored is None or stored[:2] != (entry.dtype, entry.sizes):
                    raise broken(path, f"a stored part is not what {META} says", entry.name)
                _, _, place = stored
                part = Part(name, place.offset, entry.start, entry.sizes)
                yield Piece(entry.name, entry.dtype, entry.shape, part)


def _stored_part(
    path: Path, file: BinaryIO, header: Mapping[str, Tensor] | None, entry: Entry
) -> tuple[str, Shape, Extent | Tensor] | None:
    """(dtype, shape, place) of what an entry names, by the `header` of its safetensors file or by its archive.

    None if the header does not have it.
    """
    if header is not None:
        tensor = header.get(entry.name)
        return (tensor.dtype, tensor.shape, tensor) if tensor else None
    if entry.offset + entry.length > path.stat().st_size:
        raise broken(path, "truncated: its bytes are beyond the end", entry.name)
    archive = Archive.open(path, file, entry.offset, entry.length)
    return archive.place(archive.unpickled(), entry.name)


def _read_shards(folder: Path, prefix: str) -> Iterator[Piece]:
    """DCP's layout of safetensors files by rank: each says where its parts begin, and none the tensors' shapes."""
    names = [path.name for path in (folder / prefix).iterdir()]
    for file in sorted(f"{prefix}{name}" for name in names if SHARD_FILE.fullmatch(name)):
        path = inside(folder, file)
        header = read_header(path, file)
        weights = filter(is_weight, header)
        try:
            text = read_metadata(path)["DCP_SHARDING_INFO"]
            table = parse_json(path, text.encode("utf-8", "replace"))
            starts = {name: torch_size(tuple(table[name]["saved_offsets"])) for name in weights}
        except READ_FAILURES:
            raise broken(
                path, "its DCP_SHARDING_INFO does not say where its tensors begin"
            ) from None
        for name, start in starts.items():
            tensor = header[name]
            part = Part(file, tensor.offset, start, tensor.shape)
            yield Piece(name, tensor.dtype, shape=None, part=part)


# Files by rank


class Local(NamedTuple):
    """What a rank holds of a tensor of a `shape`: a box of this `size`, at a `place` in the rank's file.

    `cut` is where the box begins in the tensor, or the dimension that is cut over the ranks, or None if every rank
    holds the whole tensor.
    """

    dtype: str
    shape: Shape
    size: Shape
    place: Extent
    cut: Shape | int | None


def _read_ranks(folder: Path, prefix: str) -> Iterator[Piece]:
    """Files `model_world_size_W_rank_R.pt` of FSDP: DTensors, ShardedTensors, or plain tensors that are replicated."""
    # {rank: its file}, and how many ranks the files' names say that there are.
    ranks = {}
    counts = set[int]()
    for path in (folder / prefix).iterdir():
        match = RANK_FILE.fullmatch(path.name)
        if match:
            ranks[int(match[2])] = prefix + path.name
            if match[1]:
                counts.add(int(match[1]))
    # Names of FSDP's second form do not say how many ranks there are: only a gap is noticed.
    if counts not in (set(), {len(ranks)}) or sorted(ranks) != list(range(len(ranks))):
        raise UserError(
            f"{folder / prefix} lacks files: it has those of ranks {listed(map(str, sorted(ranks)))} only"
        )
    # {name: [(file, what its rank holds)]}, by rank.
    held: dict[str, list[tuple[str, Local]]] = defaultdict(list)
    for rank in sorted(ranks):
        for name, local in _locals(inside(folder, ranks[rank])).items():
            held[name].append((ranks[rank], local))
    for name, locals_of_ranks in held.items():
        # If every rank holds the whole tensor, the first copy is enough; all must be the same.
        if all(local.cut is None for _, local in locals_of_ranks):
            digests = {_digest(folder / file, local.place) for file, local in locals_of_ranks}
            if len(digests) > 1:
                raise broken(folder / prefix, "replicated, but not the same in every rank", name)
            del locals_of_ranks[1:]
        yield from _parts_of_ranks(name, locals_of_ranks)


def _parts_of_ranks(name: str, locals_of_ranks: Sequence[tuple[str, Local]]) -> Iterator[Piece]:
    """The parts of a tensor from (file, what its rank holds), in the order of ranks."""
    # Ranks do not say where their parts of a cut dimension begin: each begins where the one before ends.
    at = 0
    for file, local in locals_of_ranks:
        cut = local.cut
        start = tuple(at if d == cut else 0 for d in range(len(local.shape)))
        if isinstance(cut, tuple):
            start = cut
        part = Part(file, local.place.offset, start, local.size)
        if not isinstance(cut, int):
            yield Piece(name, local.dtype, local.shape, part)
            continue
        if at < local.shape[cut]:  # further ranks hold copies (HSDP)
            yield Piece(name, local.dtype, local.shape, part)
        at += local.size[cut]


def _digest(path: Path, place: Extent) -> bytes:
    """SHA-256 of the bytes at a place in a file."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        for piece in read_pieces(file, place):
            value.update(piece)
    return value.digest()


def _locals(path: Path) -> dict[str, Local]:
    """{name: what this rank holds} of the weights in a rank's file (UserError: it cannot be read)."""
    tensors = dict[str, Local]()
    name = None  # of the tensor at hand, for the message
    with path.open("rb") as file:
        archive = Archive.open(path, file)
        try:
            for name, value in archive.tensors().items():
                if is_weight(name):
                    tensors[name] = _local(archive, name, value)
        except READ_FAILURES as error:
            raise broken(path, f"it cannot be read ({error})"[:200], name) from None
    return tensors


def _local(archive: Archive, name: str, value: Data) -> Local:
    """What a rank holds of a pickled tensor: plain, DTensor or ShardedTensor (READ_FAILURES: anything else)."""
    if value.kind != "torch._tensor._rebuild_from_type_v2":
        dtype, size, place = archive.place(value, name)
        return Local(dtype, size, size, place, None)
    # (function, class, args, state) of a subclass of Tensor.
    rebuilt = Made(value.args[1].name, (), state=value.args[3])
    if rebuilt.kind.endswith(".DTensor"):
        dtype, size, place = archive.place(rebuilt["_local_tensor"], name)
        # The function's own arguments are (class, dtype, shape, ..).
        shape = torch_size(value.args[2][2])
        if len(size) != len(shape):
            raise ValueError("a part of it has another number of dimensions")
        return Local(dtype, shape, size, place, _dimension(rebuilt["_spec"], len(shape)))
    # A ShardedTensor, of which this rank may hold nothing.
    shards, table = rebuilt.state[:2]
    shape = torch_size(table["size"])
    if not shards:
        dtype = tag_of(table["tensor_properties"].state[0])
        nothing = (0,) * len(shape)
        return Local(dtype, shape, nothing, Extent(0, 0), nothing)
    if len(shards) != 1:
        raise ValueError("a rank holds several shards of it")
    dtype, size, place = archive.place(shards[0]["tensor"], name)
    start = torch_size(tuple(shards[0]["metadata"]["shard_offsets"]))
    return Local(dtype, shape, size, place, start)


def _dimension(spec: Data, rank: int) -> int | None:
    """The dimension of a DTensor of this `rank` that is cut over the ranks; None if each of them holds it whole.

    `spec` says how it is placed along each dimension of the device mesh.
    """
    kinds = [placement.kind.rpartition(".")[2] for placement in spec["placements"]]
    if set(kinds) == {"Replicate"}:
        return None
    if kinds not in (["Shard"], ["Replicate", "Shard"]):
        raise ValueError(
            f"its placement {' x '.join(kinds)} is not read: save a full state dict, or use DCP"
        )
    dim = spec["placements"][-1]["dim"]
    if type(dim) is not int or not 0 <= dim < rank:
        raise TypeError("its placement has no dimension")
    return int(dim)
