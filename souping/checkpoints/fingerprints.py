"""Fingerprints of checkpoints: digests of their tensors and of the files beside them.

A file is hashed once for each of its stamps, where a cache keeps the digests.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, Stamp, check_stamp, settled
from souping.checkpoints.folder import Like
from souping.checkpoints.header import Tensor
from souping.checkpoints.reader import WeightReader
from souping.core.types import Json, digest

HASHED_PIECE_BYTES = 1 << 20


Cache: TypeAlias = MutableMapping[str, str] | None
"""{key: digest} of files that are known already; None: nothing is kept."""


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
    # {file: digest}; the weights count as one, without a name.
    digests = {"": weights_of(checkpoint, cache)}
    for name in checkpoint.side:
        digests[name] = file_digest(checkpoint.home / name, cache)
    value = digest(digests)
    checkpoint.check_unchanged()
    return value


def weights_of(checkpoint: Checkpoint, cache: Cache = None) -> str:
    """SHA-256 (hex) over the tensors alone: their names, dtypes, shapes and values, as they are stored."""
    # FP8 weights count as they are stored, not as they are read.
    checkpoint = checkpoint.quantised or checkpoint
    rows: list[list[Json]] = []
    for group in hashed_groups(checkpoint):
        values = tensor_digests(checkpoint, group, cache)
        for tensor, value in zip(group, values, strict=True):
            rows.append([tensor.name, tensor.dtype, list(tensor.shape), value])
    return digest(sorted(rows))


def hashed_groups(checkpoint: Checkpoint) -> Iterator[list[Tensor]]:
    """The tensors of each file, or all in one group if they are assembled from pieces, in the order of their bytes."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in checkpoint.tensors.values():
        groups.setdefault(tensor.file, []).append(tensor)
    for file in sorted(groups):
        yield sorted(groups[file], key=lambda tensor: (tensor.offset, tensor.nbytes, tensor.name))


def tensor_digests(checkpoint: Checkpoint, group: Sequence[Tensor], cache: Cache) -> list[str]:
    """SHA-256 (hex) of each tensor of a group of `hashed_groups`, which is read only if the `cache` lacks them."""
    number = checkpoint.file_number(group[0])
    before = hashed_files(checkpoint, number)
    key = tensors_key(checkpoint, before)
    if cache is not None and key in cache:
        digests = cache[key].split()
        # A merge that hashes files while it reads them has one text for the whole file until then (`StandIns` in
        # `merge.digests`): it stands for every tensor.
        if len(digests) != len(group):
            return [cache[key]] * len(group)
        return digests
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
    """{file: stamp} of the files that hold a group of `hashed_groups`; `number` is its first tensor's `file_number`."""
    files = checkpoint.files
    # A stored tensor lies in one file; the pieces of an assembled one may lie in any.
    if checkpoint.assembly is None:
        files = (files[number],)
    paths = [checkpoint.folder / name for name in files]
    return {path: settled(path) for path in paths}


def tensors_key(checkpoint: Checkpoint, files: Mapping[Path, Stamp]) -> str:
    """The cache's key for the digests of a checkpoint's tensors, whose `files` have these stamps.

    How tensors are assembled from the files is part of it.
    """
    keys = [digest_key(path, state) for path, state in files.items()]
    # An archive may hold several tables of tensors, a folder an average too.
    table = "" if checkpoint.source == checkpoint.folder else checkpoint.source.name
    # All tensors are in one file. Without a table, the key ends with the file's.
    if checkpoint.assembly is None:
        return f"tensors|{keys[0]}|{table}".removesuffix("|")
    views = repr(checkpoint.assembly.views)
    return f"tensors|{checkpoint.folder.resolve()}|{digest([keys, views + table])}"


def keep_digest(key: str, before: Mapping[Path, Stamp], value: str, cache: Cache) -> None:
    """Add the digests `value` of files to the cache (UserError: a file has changed since its stamp in `before`)."""
    for path, state in before.items():
        check_stamp(path, state)
    # After the clock went back, an equal stamp does not show that a file is the same.
    newest = max(state.ctime_ns for state in before.values())
    if cache is not None and time.time_ns() > newest:
        cache[key] = value


def file_digest(path: Path, cache: Cache) -> str:
    """SHA-256 (hex) of a file, which is read only if the `cache` lacks it."""
    before = settled(path)
    key = digest_key(path, before)
    if cache is not None and key in cache:
        return cache[key]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    keep_digest(key, {path: before}, value, cache)
    return value


def digest_key(path: Path, state: Stamp) -> str:
    """The cache's key for a file's digest."""
    return "|".join(map(str, (path.resolve(), *state)))
