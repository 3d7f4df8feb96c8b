"""Checkpoint folder, read from its headers: tensors and their places, config and side files.

Pickled weights (`pytorch_model.bin`) are read only with `merge.allow_pickle=true`, by their table, which is read as
data (`pickles`); they stream like a safetensors file afterwards. The tensors of a sharded checkpoint are assembled from
their pieces as they are read, as if they were one file. A file of `torch.save` alone is a checkpoint without a config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from souping.checkpoints.archives import archive_at, averaged_at, read_archive
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
    check_name,
)
from souping.checkpoints.names import Mapped, described, map_names, regrouped
from souping.checkpoints.quantised import dequantised, plain_config, refuse_gguf, scheme_of
from souping.checkpoints.ranges import (
    LONGEST_POINTER_BYTES,
    check_pointers,
)
from souping.checkpoints.sharded import Sharded, read_sharded
from souping.checkpoints.stamps import Stamp, check_stamp, stamp, stamps_in
from souping.checkpoints.views import Assembly, Shape, StoredTensor, View
from souping.core.files import expanded
from souping.core.types import Names, UserError, frozen


@frozen
class Checkpoint:
    """Model folder whose headers were read and found sound; no weight is in memory.

    `tensors` are in file order, `files` are the weight files, relative to `folder`. `side` are the files that a soup
    carries over, relative to `home`: that is `like` where a sharded checkpoint borrows another folder's config and
    tokenizer. `stamps` tell whether one of them has changed since. If there is an `assembly`, the tensors' places are
    in it, not in a file. `mapped` says how tensors got their names, with the file of `rules` if the user gave one.
    `quantised` is the same folder as it is stored, if weights are dequantised when read. `archive` is the FILE or
    FILE#KEY of one that is a file of `torch.save`, in `folder`; `average` is FOLDER#ema, if that is what was opened.
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
    archive: Path | None = None
    average: Path | None = None

    @classmethod
    def open(cls, folder: Path, allow_pickle: bool = False, like: Like | None = None) -> Checkpoint:
        """Read a folder's headers; `like` has what a sharded checkpoint lacks.

        Raises:
            UserError: it is missing, has no config.json or no weights, holds pickled weights that are not
                allowed, a name or symlink leaves it, or a header cannot be trusted.
        """
        folder = expanded(folder)
        archive = archive_at(folder)
        if archive is not None:
            return replace(cls._of_archive(*archive, like or Like()), archive=folder)
        averaged = averaged_at(folder)
        if averaged is not None:
            sharded = read_sharded(averaged, allow_pickle, averaged=True)
            if sharded is None:
                raise UserError(f"{averaged} is not a sharded checkpoint, so there is no {folder}")
            return replace(cls._of_sharded(sharded, like or Like()), average=folder)
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder. Give the path of a saved Hugging Face model."
            )
        if not has_weights(folder):
            sharded = read_sharded(folder, allow_pickle)
            if sharded is not None:
                return cls._of_sharded(sharded, like or Like())
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
    def _of_archive(cls, file: Path, key: str, like: Like) -> Checkpoint:
        """The tensors of a file by their own names, or by those of Hugging Face if `like` has a config."""
        before = {file.name: stamp(file)}
        tensors = read_archive(file, key)
        if like.folder is None:
            return cls.of(file.parent, tensors, {}, (), before)
        stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
        return cls._of_sharded(Sharded(file.parent, "", "archive", stored, (file.name,)), like)

    @classmethod
    def _of_sharded(cls, sharded: Sharded, like: Like) -> Checkpoint:
        """A trainer's tensors under the names of Hugging Face, or as they are stored where there is no config."""
        home = home_of(sharded, like)
        if home is None:
            return cls.viewed(sharded, sharded.as_stored(), {}, None)
        config = read_config(home)
        shapes = {name: tensor.shape for name, tensor in weights_like(home).items()}
        headers = headers_of(sharded.tensors)
        mapped = map_names(headers, config, shapes or None, like.rules, where=sharded.folder)
        viewed = cls.viewed(sharded, views_of(mapped), config, home)
        return replace(viewed, rules=like.rules, mapped=mapped)

    @classmethod
    def _regrouped(cls, opened: Checkpoint) -> Checkpoint:
        """Experts as the model's family stores them, one by one or fused, however this folder does."""
        mapped = regrouped(headers_of(opened.tensors), opened.config, opened.folder)
        if mapped is None:
            return opened
        stored = {name: StoredTensor.of(tensor) for name, tensor in opened.tensors.items()}
        sharded = Sharded(opened.folder, "", "safetensors", stored, opened.files)
        viewed = cls.viewed(sharded, views_of(mapped), opened.config, opened.folder)
        return replace(viewed, stamps=opened.stamps, mapped=mapped)

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
        for name in tensors:
            check_name(folder, name)
        files = files or tuple(sorted({tensor.file for tensor in tensors.values()}))
        opened = cls(
            folder=folder, tensors=tensors, config=config, files=files, side=side, like=like
        )
        stamps = dict[str, Stamp]()
        for name in (*files, *side):
            stamps[name] = before[name] if name in before else stamp(opened.path(name))
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
        checkpoint = cls.of(sharded.folder, tensors, config, side, {}, sharded.files, like)
        return replace(checkpoint, assembly=assembly)

    @property
    def home(self) -> Path:
        """Where its config, tokenizer and other side files are."""
        return self.like or self.folder

    @property
    def source(self) -> Path:
        """What it is opened by: its folder, archive or FOLDER#ema."""
        return self.archive or self.average or self.folder

    def path(self, name: str) -> Path:
        """Where one of its files is."""
        folder = self.home if name in self.side else self.folder
        return folder / name

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


def stores_head(folder: Path) -> bool:
    """Whether a model folder stores an output head; without one the embeddings are the head too.

    Raises:
        UserError: as `Checkpoint.open`. Pickled files are read, because the pool has allowed them.
    """
    return any(
        name.endswith("lm_head.weight")
        for name in Checkpoint.open(folder, allow_pickle=True).tensors
    )
