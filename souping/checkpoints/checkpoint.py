"""Checkpoint folder, read from its headers: tensors and their places, config and side files.

Pickled weights (`pytorch_model.bin`) are read only with `merge.allow_pickle=true`, by their table, which is read as
data (`pickles`); they stream like a safetensors file afterwards. The tensors of a sharded checkpoint are assembled from
their pieces as they are read, as if they were one file. A file of `torch.save` alone is a checkpoint without a config.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from souping.checkpoints.archives import archive_at, averaged_at, read_archive
from souping.checkpoints.folder import (
    Like,
    config_home,
    has_weights,
    read_model_config,
    read_weights,
    side_files,
    unwrapped,
    weights_like,
)
from souping.checkpoints.header import BITS, FLOATS, ITEM, TORCH_NAMES, Tensor, check_name
from souping.checkpoints.names import Mapped, described, map_names, regrouped
from souping.checkpoints.quantised import dequantised, plain_config, refuse_gguf, scheme_of
from souping.checkpoints.ranges import LONGEST_POINTER_BYTES, check_pointers
from souping.checkpoints.sharded import Sharded, read_sharded
from souping.checkpoints.views import Assembly, Shape, StoredTensor, View
from souping.core.files import expanded
from souping.core.types import Names, UserError, frozen

# Stamps, by which a change of a file after it was read is noticed

# nanoseconds: within a tick of the system's clock a file may change twice at one time
CLOCK_TICK_NS = 20_000_000


class Stamp(NamedTuple):
    """State of a file; programs cannot set its ctime."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp(path: Path) -> Stamp:
    """The stamp of a file as it is now."""
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """The stamps of the files of a folder, to be taken before they are read."""
    return {path.name: stamp(path) for path in folder.iterdir() if path.is_file()}


def check_stamp(path: Path, known: Stamp) -> None:
    """Raises UserError if a file is gone, or its stamp differs from the known one."""
    try:
        same = stamp(path) == known
    except OSError:
        same = False
    if not same:
        raise changed_file(path)


def changed_file(path: Path) -> UserError:
    return UserError(
        f"{path} has changed since it was opened: start again when nothing writes there"
    )


def settled(path: Path) -> Stamp:
    """The stamp of a file, after waiting until any further change would give it another one."""
    known = stamp(path)
    age = time.time_ns() - known.ctime_ns
    # A stamp of the future, after the clock went back, is not waited for: its digest is not kept (`keep_digest`).
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)
        return stamp(path)
    return known


# Checkpoints


@frozen
class Checkpoint:
    """Checkpoint whose headers were read and found sound; no weight is in memory.

    `source` is what was opened: `folder` itself, FILE or FILE#KEY in it, or FOLDER#ema. `tensors` are in file order,
    `files` are the weight files, relative to `folder`. `side` are the files that a soup carries over, relative to
    `home`: that is `like` where a sharded checkpoint borrows another folder's config and tokenizer. `stamps` tell
    whether one of them has changed since. If there is an `assembly`, the tensors' places are in it, not in a file, and
    `sharded` is what it is made of. `mapped` says how tensors got their names, with the file of `rules` if the user
    gave one. `quantised` is the same folder as it is stored, if weights are dequantised when read.
    """

    source: Path
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
    sharded: Sharded | None = field(default=None, compare=False, repr=False)
    quantised: Checkpoint | None = field(default=None, compare=False, repr=False)

    @classmethod
    def open(cls, source: Path, allow_pickle: bool = False, like: Like | None = None) -> Checkpoint:
        """Read the headers of a folder, a file or FOLDER#ema; `like` has what a sharded checkpoint lacks.

        Raises:
            UserError: it is missing, has no config.json or no weights, holds pickled weights that are not
                allowed, a name or symlink leaves it, or a header cannot be trusted.
        """
        source = expanded(source)
        for layout in LAYOUTS:
            checkpoint = layout(source, allow_pickle, like or Like())
            if checkpoint is not None:
                return replace(checkpoint, source=source)
        raise UserError(f"{source} is not a folder. Give the path of a saved Hugging Face model.")

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
        """The checkpoint of tensors that were read from a folder.

        `before` are stamps of its files from before they were read; a file without one is stamped now. The weight
        `files` are by default those that the tensors name.
        """
        for name in tensors:
            check_name(folder, name)
        files = files or tuple(sorted({tensor.file for tensor in tensors.values()}))
        checkpoint = cls(
            source=folder,
            folder=folder,
            tensors=tensors,
            config=config,
            files=files,
            side=side,
            like=like,
        )
        stamps = dict[str, Stamp]()
        for name in (*files, *side):
            stamps[name] = before[name] if name in before else stamp(checkpoint.path(name))
        return replace(checkpoint, stamps=stamps)

    @classmethod
    def viewed(
        cls, sharded: Sharded, views: Mapping[str, View], config: dict[str, Any], home: Path | None
    ) -> Checkpoint:
        """The checkpoint of {name: view} of sharded tensors, with side files of the folder `home` (None: no files)."""
        assembly = Assembly.of(sharded.tensors, views)
        tensors = {tensor.name: tensor for tensor in assembly.tensors}
        side = side_files(home) if home else ()
        like = home if home != sharded.folder else None
        checkpoint = cls.of(
            sharded.folder, tensors, config, side, before={}, files=sharded.files, like=like
        )
        return replace(checkpoint, assembly=assembly, sharded=sharded)

    @property
    def home(self) -> Path:
        """The folder of the config, tokenizer and other side files."""
        return self.like or self.folder

    def path(self, name: str) -> Path:
        """The path of a weight file or side file."""
        folder = self.home if name in self.side else self.folder
        return folder / name

    @cached_property
    def dtype(self) -> str:
        """Float dtypes of the weights by torch's names, widest first, such as `bfloat16` or `float32+bfloat16`."""
        present = {tensor.soup_dtype for tensor in self.tensors.values()}
        return "+".join(name for name, tag in TORCH_NAMES.items() if tag in present)

    @cached_property
    def by_unwrapped_name(self) -> Mapping[str, list[Tensor]]:
        """{name without the parts in which versions of transformers differ: tensors}"""
        tensors = defaultdict[str, list[Tensor]](list)
        for name, tensor in self.tensors.items():
            tensors[unwrapped(name)].append(tensor)
        return tensors

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, as they are written in a soup."""
        return sum(tensor.count * BITS[tensor.soup_dtype] // 8 for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values() if tensor.dtype in FLOATS)

    def size_in(self, dtype: str | None) -> int:
        """Bytes of the weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
        return self.parameters * ITEM[dtype] if dtype in ITEM else self.nbytes

    def check_unchanged(self, names: Iterable[str] | None = None) -> None:
        """Raises UserError if one of these files (default: all) is not the one that was opened, here or in a bucket."""
        chosen = list(self.stamps if names is None else names)
        for name in chosen:
            check_stamp(self.path(name), self.stamps[name])
        # Weight files as small as a pointer may be one, to a file in a bucket.
        pointers = list[Path]()
        for name in chosen:
            if name in self.files and self.stamps[name].size < LONGEST_POINTER_BYTES:
                pointers.append(self.path(name))
        check_pointers(pointers)

    @property
    def side_bytes(self) -> int:
        return sum((self.home / name).stat().st_size for name in self.side)

    def side_text(self, name: str) -> bytes | None:
        """The bytes of a side file, or None if it has none of this name."""
        if name not in self.side:
            return None
        return (self.home / name).read_bytes()

    def file_number(self, tensor: Tensor) -> int:
        """The index in `files` of a tensor's file; 0 if tensors are assembled from pieces, as if in one file."""
        return 0 if self.assembly is not None else self.files.index(tensor.file)


# Layouts: each finds a checkpoint, or declines


def _archive(source: Path, allow_pickle: bool, like: Like) -> Checkpoint | None:
    """The tensors of FILE or FILE#KEY under their stored names, or under Hugging Face's if `like` has a config.

    `allow_pickle` is for folders: here the user names the pickled file itself, and nothing in it runs.
    """
    place = archive_at(source)
    if place is None:
        return None
    file, key = place
    before = {file.name: stamp(file)}
    tensors = read_archive(file, key)
    if like.folder is None:
        return Checkpoint.of(file.parent, tensors, config={}, side=(), before=before)
    return _named(Sharded.whole(file.parent, tensors), like)


def _average(source: Path, allow_pickle: bool, like: Like) -> Checkpoint | None:
    """FOLDER#ema: a trainer's checkpoint whose weights are the average in its optimiser state."""
    folder = averaged_at(source)
    if folder is None:
        return None
    sharded = read_sharded(folder, allow_pickle, averaged=True)
    if sharded is None:
        raise UserError(f"{folder} is not a sharded checkpoint, so there is no {source}")
    return _named(sharded, like)


def _trainer_folder(source: Path, allow_pickle: bool, like: Like) -> Checkpoint | None:
    """A trainer's sharded checkpoint. A folder with weights in the layout of Hugging Face is not one."""
    sharded = None if has_weights(source) else read_sharded(source, allow_pickle)
    return None if sharded is None else _named(sharded, like)


def _model_folder(source: Path, allow_pickle: bool, like: Like) -> Checkpoint | None:
    """A Hugging Face folder; FP8 weights are dequantised, and experts laid out as the model_type has them."""
    if not source.is_dir():
        return None
    refuse_gguf(source)
    before = stamps_in(source)
    config = read_model_config(source)
    scheme = scheme_of(source, config)
    tensors = read_weights(source, allow_pickle)
    if not tensors:
        raise UserError(f"{source} holds no tensor: nothing to soup.")
    plain = Checkpoint.of(source, tensors, config, side_files(source), before)
    if scheme is not None:
        assembly, tensors = dequantised(source, tensors, scheme)
        config = plain_config(config)
        return replace(plain, tensors=tensors, config=config, assembly=assembly, quantised=plain)
    mapped = regrouped(headers_of(tensors), config, source)
    # The experts, if any, are laid out as the model_type has them.
    if mapped is None:
        return plain
    viewed = Checkpoint.viewed(Sharded.whole(source, tensors), views_of(mapped), config, source)
    return replace(viewed, stamps=plain.stamps, mapped=mapped)


# All take the same arguments, whether or not they use them.
LAYOUTS = (_archive, _average, _trainer_folder, _model_folder)


def _named(sharded: Sharded, like: Like) -> Checkpoint:
    """A trainer's tensors under the names of Hugging Face; without a config (`like.stored`), under their own."""
    home = config_home(sharded, like)
    if home is None:
        return Checkpoint.viewed(sharded, sharded.as_stored(), config={}, home=None)
    config = read_model_config(home)
    shapes = {name: tensor.shape for name, tensor in weights_like(home).items()}
    headers = headers_of(sharded.tensors)
    # Without weights in `home`, the config alone says what has to come out.
    mapped = map_names(headers, config, shapes or None, like.rules, where=sharded.folder)
    viewed = Checkpoint.viewed(sharded, views_of(mapped), config, home)
    return replace(viewed, rules=like.rules, mapped=mapped)


Checkpoints = Mapping[str, Checkpoint]
"""{name: checkpoint}"""


def views_of(mapped: Mapping[str, Mapped]) -> dict[str, View]:
    return {name: tensor.view for name, tensor in mapped.items()}


def describe_names(checkpoint: Checkpoint) -> list[str]:
    """One line for each kind of tensor: stored names, the Hugging Face name and shape, and the layout."""
    if checkpoint.assembly is None or checkpoint.mapped is None:
        return [f"{len(checkpoint.tensors)} tensors, as they are"]
    return described(checkpoint.mapped, checkpoint.assembly.stored)


def headers_of(
    tensors: Mapping[str, StoredTensor] | Mapping[str, Tensor],
) -> dict[str, tuple[str, Shape]]:
    """{name: (dtype, shape)} of tensors."""
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def stores_head(folder: Path) -> bool:
    """Whether a model folder stores an output head; without one the embeddings are the head too.

    Raises:
        UserError: as `Checkpoint.open`. Pickled files are read, because the pool has allowed them.
    """
    return any(
        name.endswith("lm_head.weight")
        for name in Checkpoint.open(folder, allow_pickle=True).tensors
    )
