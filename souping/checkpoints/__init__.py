"""Checkpoint folder, read from its headers: tensors and their places, config, side files, fingerprint.

Pickled weights (`pytorch_model.bin`) are read only with `merge.allow_pickle=true`, by their table, which is read as
data (`pickles`); they stream like a safetensors file afterwards. The tensors of a sharded checkpoint are assembled from
their pieces as they are read, as if they were one file.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from souping.checkpoints.folder import (
    Like,
    has_weights,
    home_of,
    read_config,
    read_weights,
    side_files,
    weights_like,
)
from souping.checkpoints.header import (
    BITS,
    FLOATS,
    ITEM,
    TORCH_NAMES,
    Tensor,
    broken,
    inside,
    parse_json,
    small,
)
from souping.checkpoints.names import Mapped, described, map_names, regrouped
from souping.checkpoints.quantised import dequantised, plain_config, refuse_gguf, scheme_of
from souping.checkpoints.ranges import (
    LONGEST_POINTER_BYTES,
    Pointer,
    RangeReader,
    check_pointers,
    pointer_in,
)
from souping.checkpoints.sharded import Sharded, read_sharded
from souping.checkpoints.views import Assembly, Raw, Shape, StoredTensor, Tile, View
from souping.core.files import expanded
from souping.core.open_files import read_at
from souping.core.text import shown
from souping.core.types import Json, Names, TokenIds, UserError, digest, frozen

MAX_RECIPE = 10_000_000
"""Bytes of a recipe.json at most."""
GENERATION = "generation_config.json"
HASHED_PIECE_BYTES = 1 << 20
# nanoseconds: within a tick of the system's clock a file may change twice at one time
CLOCK_TICK_NS = 20_000_000
Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode) of a file; programs cannot set ctime."""


Cache: TypeAlias = MutableMapping[str, str] | None
"""Digests of files that are known already."""


def stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """The stamps of the files of a folder, to be taken before they are read."""
    return {path.name: stamp(path) for path in folder.iterdir() if path.is_file()}


def check_stamp(path: Path, known: Stamp) -> None:
    """Raises UserError where a file is not what its stamp says."""
    try:
        same = stamp(path) == known
    except OSError:
        same = False
    if not same:
        raise changed(path)


def changed(path: Path) -> UserError:
    return UserError(
        f"{path} has changed since it was opened: start again when nothing writes there"
    )


@frozen
class Checkpoint:
    """Model folder whose headers were read and found sound; no weight is in memory.

    `tensors` are in file order, `files` are the weight files, relative to `folder`. `side` are the files that a soup
    carries over, relative to `home`: that is `like` where a sharded checkpoint borrows another folder's config and
    tokenizer. `stamps` tell whether one of them has changed since. If there is an `assembly`, the tensors' places are
    in it, not in a file. `mapped` says how tensors got their names, with the file of `rules` if the user gave one.
    `quantised` is the same folder as it is stored, if weights are dequantised when read.
    """

    folder: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    files: Names
    side: Names
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)
    like: Path | None = None
    rules: Path | None = None
    mapped: Mapping[str, Mapped] | None = field(default=None, compare=False, repr=False)
    assembly: Assembly | None = field(default=None, compare=False, repr=False)
    quantised: Checkpoint | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path, allow_pickle: bool = False, like: Like | None = None) -> Checkpoint:
        """Read a folder's headers; `like` has what a sharded checkpoint lacks.

        Raises:
            UserError: it is missing, has no config.json or no weights, holds pickled weights that are not
                allowed, a name or symlink leaves it, or a header cannot be trusted.
        """
        folder = expanded(folder)
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder. Give the path of a saved Hugging Face model."
            )
        if not has_weights(folder) and (sharded := read_sharded(folder, allow_pickle)):
            like = like or Like()
            home = home_of(sharded, like)
            if home is None:
                return cls.viewed(sharded, sharded.as_stored(), {}, None)
            config = read_config(home)
            shapes = {name: tensor.shape for name, tensor in weights_like(home).items()}
            mapped = map_names(
                headers_of(sharded.tensors), config, shapes or None, like.rules, where=folder
            )
            return replace(
                cls.viewed(sharded, views_of(mapped), config, home), rules=like.rules, mapped=mapped
            )
        refuse_gguf(folder)
        before = stamps_in(folder)
        config = read_config(folder)
        scheme = scheme_of(folder, config)
        tensors = read_weights(folder, allow_pickle)
        if not tensors:
            raise UserError(f"{folder} holds no tensor: nothing to soup.")
        plain = cls.of(folder, tensors, config, side_files(folder), before)
        if scheme is None:
            return cls._regrouped(plain)
        assembly, tensors = dequantised(folder, tensors, scheme)
        return replace(
            plain, tensors=tensors, config=plain_config(config), assembly=assembly, quantised=plain
        )

    @classmethod
    def _regrouped(cls, opened: Checkpoint) -> Checkpoint:
        """Experts as the model's family stores them, one by one or fused, however this folder does."""
        mapped = regrouped(headers_of(opened.tensors), opened.config, opened.folder)
        if mapped is None:
            return opened
        stored = {name: StoredTensor.of(tensor) for name, tensor in opened.tensors.items()}
        sharded = Sharded(opened.folder, "", "safetensors", stored, opened.files)
        made = cls.viewed(sharded, views_of(mapped), opened.config, opened.folder)
        return replace(made, stamps=opened.stamps, mapped=mapped)

    @classmethod
    def of(
        cls,
        folder: Path,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
        side: Names,
        before: Mapping[str, Stamp],
        files: Names = (),
        like: Path | None = None,
    ) -> Checkpoint:
        """A folder that was read; `before` are the stamps of its files from before that."""
        files = files or tuple(sorted({tensor.file for tensor in tensors.values()}))
        opened = cls(
            folder=folder, tensors=tensors, config=config, files=files, side=side, like=like
        )
        stamps = {
            name: before[name] if name in before else stamp(opened.path(name))
            for name in (*files, *side)
        }
        return replace(opened, stamps=stamps)

    @classmethod
    def viewed(
        cls, sharded: Sharded, views: Mapping[str, View], config: dict[str, Any], home: Path | None
    ) -> Checkpoint:
        """Tensors as views of what is stored; without `home` there are no side files."""
        assembly = Assembly.of(sharded.tensors, views)
        tensors = {tensor.name: tensor for tensor in assembly.tensors}
        side = side_files(home) if home else ()
        like = home if home != sharded.folder else None
        return replace(
            cls.of(sharded.folder, tensors, config, side, {}, sharded.files, like),
            assembly=assembly,
        )

    @property
    def home(self) -> Path:
        """Where its config, tokenizer and other side files are."""
        return self.like or self.folder

    def path(self, name: str) -> Path:
        """Where one of its files is."""
        return (self.home if name in self.side else self.folder) / name

    @cached_property
    def dtype(self) -> str:
        """Its float dtypes by torch's names, widest first, such as `bfloat16` or `float32+bfloat16`."""
        present = {tensor.soup_dtype for tensor in self.tensors.values()}
        return "+".join(name for name, tag in TORCH_NAMES.items() if tag in present)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, as they are written in a soup."""
        return sum(tensor.count * BITS[tensor.soup_dtype] // 8 for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values() if tensor.dtype in FLOATS)

    def size_in(self, dtype: str | None) -> int:
        """Bytes of the weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
        return self.parameters * ITEM[dtype] if dtype in ITEM else self.nbytes

    def check_unchanged(self, names: Iterable[str] | None = None) -> None:
        """Raises UserError where a file (of these names) is not the one that was opened."""
        chosen = list(self.stamps if names is None else names)
        for name in chosen:
            check_stamp(self.path(name), self.stamps[name])
        if pointers := [
            name
            for name in chosen
            if name in self.files and self.stamps[name][0] < LONGEST_POINTER_BYTES
        ]:
            check_pointers(map(self.path, pointers))

    @property
    def side_bytes(self) -> int:
        return sum((self.home / name).stat().st_size for name in self.side)

    def side_text(self, name: str) -> bytes | None:
        """The bytes of a side file, or None where there is none."""
        if name not in self.side:
            return None
        return (self.home / name).read_bytes()

    def file_number(self, tensor: Tensor) -> int:
        """The number of a tensor's file; of the first where it is assembled from several."""
        return 0 if self.assembly is not None else self.files.index(tensor.file)


Checkpoints = Mapping[str, Checkpoint]
"""{name: checkpoint}"""


def views_of(mapped: Mapping[str, Mapped]) -> dict[str, View]:
    return {name: tensor.view for name, tensor in mapped.items()}


def describe_names(checkpoint: Checkpoint) -> list[str]:
    """One line for each kind of tensor: how it is stored, and what comes of it."""
    if checkpoint.assembly is None or checkpoint.mapped is None:
        return [f"{len(checkpoint.tensors)} tensors, as they are"]
    return described(checkpoint.mapped, checkpoint.assembly.stored)


def headers_of(
    tensors: Mapping[str, StoredTensor] | Mapping[str, Tensor],
) -> dict[str, tuple[str, Shape]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


class WeightReader:
    """Weight files of a checkpoint, open to be read by several threads; a context manager."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises UserError where a file is not the one that was opened before."""
        self._assembly = checkpoint.assembly
        self._files = checkpoint.files
        self._stack = ExitStack()
        self._opened = dict[str, int]()
        self._remote = dict[str, Pointer]()
        self._ranges = RangeReader()
        weakref.finalize(self, self._stack.close)
        self._stack.callback(self._ranges.close)
        try:
            for name in checkpoint.files:
                path = checkpoint.folder / name
                if remote := pointer_in(path):
                    self._remote[name] = remote
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._stack.callback(os.close, descriptor)
                self._opened[name] = descriptor
                if os.fstat(descriptor).st_size != checkpoint.stamps[name][0]:
                    raise changed(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def read(self, number: int, into: Raw, offset: int, tiles: list[Tile] | None = None) -> None:
        """Fill `into` with bytes of file `number`, or of the assembled tensors (EOFError: the file ends early).

        With a list for `tiles`, elements that are stored in parts are left in the order of those.
        """
        if self._assembly is not None:
            self._assembly.fetch(into, offset, self._fetch, tiles)
        else:
            self._fetch(self._files[number], into, offset)

    def _fetch(self, file: str, into: Raw, offset: int) -> None:
        view = into.data
        descriptor = self._opened[file]
        remote = self._remote.get(file)
        while len(view):
            count = (
                self._ranges.read(remote, view, offset)
                if remote
                else read_at(descriptor, view, offset)
            )
            if count <= 0:
                raise EOFError(file)
            view = view[count:]
            offset = offset + count


def stores_head(folder: Path) -> bool:
    """Whether a model folder stores an output head; without one the embeddings are the head too.

    Raises:
        UserError: as `Checkpoint.open`. Pickled files are read, because the pool has allowed them.
    """
    return any(
        name.endswith("lm_head.weight")
        for name in Checkpoint.open(folder, allow_pickle=True).tensors
    )


def fingerprint(
    folder: Path, cache: Cache = None, allow_pickle: bool = False, like: Like | None = None
) -> str:
    """SHA-256 (hex) over the tensors, config, tokenizer and chat template of a model folder.

    Names, dtypes, shapes and values of tensors count, and the names and bytes of the other files. How the tensors are
    laid out in files does not: a sharded checkpoint and its conversion are one model. With `cache`, a file is hashed
    once for each (resolved path, stamp); the name of a file says nothing about its content.

    Raises:
        UserError: as `Checkpoint.open`, or a file changes meanwhile.
    """
    return fingerprint_of(Checkpoint.open(folder, allow_pickle, like), cache)


def fingerprint_of(checkpoint: Checkpoint, cache: Cache = None) -> str:
    """`fingerprint` of a folder that is open already."""
    weights = weights_of(checkpoint, cache)
    value = digest(
        {
            "": weights,
            **{name: file_digest(checkpoint.home / name, cache) for name in checkpoint.side},
        }
    )
    checkpoint.check_unchanged()
    return value


def weights_of(checkpoint: Checkpoint, cache: Cache = None) -> str:
    """SHA-256 (hex) over the tensors alone: their names, dtypes, shapes and values, as they are stored."""
    checkpoint = checkpoint.quantised or checkpoint
    rows: list[list[Json]] = [
        [tensor.name, tensor.dtype, list(tensor.shape), value]
        for group in hashed_groups(checkpoint)
        for tensor, value in zip(group, tensor_digests(checkpoint, group, cache), strict=True)
    ]
    return digest(sorted(rows))


def hashed_groups(checkpoint: Checkpoint) -> Iterator[list[Tensor]]:
    """The tensors of each file, or all where they are assembled, in the order of their bytes."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in checkpoint.tensors.values():
        groups.setdefault(tensor.file, []).append(tensor)
    for file in sorted(groups):
        yield sorted(groups[file], key=lambda tensor: (tensor.offset, tensor.nbytes, tensor.name))


def tensor_digests(checkpoint: Checkpoint, group: Sequence[Tensor], cache: Cache) -> list[str]:
    """SHA-256 (hex) of each tensor of a group of `hashed_groups`; read once where a `cache` keeps them."""
    number = checkpoint.file_number(group[0])
    before = hashed_files(checkpoint, number)
    key = tensors_key(checkpoint, before)
    if cache is not None and key in cache:
        known = cache[key].split()
        # a stand-in until it is read
        return known if len(known) == len(group) else [cache[key]] * len(group)
    values = []
    with WeightReader(checkpoint) as reader:
        for tensor in group:
            hashing = hashlib.sha256()
            for start in range(0, tensor.nbytes, HASHED_PIECE_BYTES):
                piece = np.empty(min(HASHED_PIECE_BYTES, tensor.nbytes - start), np.uint8)
                reader.read(number, piece, tensor.offset + start)
                hashing.update(piece.data)
            values.append(hashing.hexdigest())
    keep_digest(key, before, " ".join(values), cache)
    return values


def hashed_files(checkpoint: Checkpoint, number: int) -> dict[Path, Stamp]:
    """The files that the tensors of a group are in, with their stamps."""
    files = (
        checkpoint.files
        if checkpoint.assembly is not None
        else checkpoint.files[number : number + 1]
    )
    return {path: settled(path) for path in (checkpoint.folder / name for name in files)}


def tensors_key(checkpoint: Checkpoint, files: Mapping[Path, Stamp]) -> str:
    """Under what the digests of a group are kept: for assembled tensors the views of the files count too."""
    keys = [digest_key(path, state) for path, state in files.items()]
    if checkpoint.assembly is None:
        return f"tensors|{keys[0]}"
    return (
        f"tensors|{checkpoint.folder.resolve()}|{digest([keys, repr(checkpoint.assembly.views)])}"
    )


def keep_digest(key: str, before: Mapping[Path, Stamp], value: str, cache: Cache) -> None:
    """Note a digest in the cache. Raises UserError where a file has changed since `before`."""
    for path, state in before.items():
        check_stamp(path, state)
    if cache is not None and time.time_ns() > max(state[2] for state in before.values()):
        cache[key] = value  # a clock that went back tells nothing


def file_digest(path: Path, cache: Cache) -> str:
    """SHA-256 (hex) of a file, hashed once where a `cache` keeps it."""
    before = settled(path)
    key = digest_key(path, before)
    if cache is not None and key in cache:
        return cache[key]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    keep_digest(key, {path: before}, value, cache)
    return value


def digest_key(path: Path, state: Stamp) -> str:
    """Under what a file's digest is kept."""
    return "|".join(map(str, (path.resolve(), *state)))


def settled(path: Path) -> Stamp:
    """The stamp of a file, at a time when another change would give it another one."""
    now = stamp(path)
    age = time.time_ns() - now[2]
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)
        return stamp(path)
    return now


def eos_token_ids(folder: Path) -> TokenIds:
    """Tokens that end a model's answers by its generation_config.json, else by its config.json, ascending.

    Raises:
        UserError: a file is broken, or names something that is not a token.
    """
    for name in (GENERATION, "config.json"):
        path = inside(folder, name)
        if path.is_file():
            ends = _token_ids(path, parse_json(path, small(path)))
            if ends:
                return ends
    return ()


def _token_ids(path: Path, table: Json) -> TokenIds:
    if not isinstance(table, dict):
        raise broken(path, f"{path.name} is not a JSON object")
    text = table.get("text_config")
    value = table.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token < 1 << 31 for token in values):
        raise broken(
            path, f"eos_token_id is {shown(str(value)[:100])}, not one token or a list of them"
        )
    return tuple(sorted({token for token in values if token >= 0}))
