"""Weight files of a checkpoint, open to be read by several threads."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, changed_file
from souping.checkpoints.header import Tensor, size_of
from souping.checkpoints.ranges import Pointer, RangeReader, pointer_in
from souping.checkpoints.views import Float32, Raw, Tile, widen
from souping.core.direct_io import make_direct, read_direct
from souping.core.open_files import read_at


class WeightReader:
    """Weight files of a checkpoint, open to be read by several threads; a context manager."""

    def __init__(self, checkpoint: Checkpoint, exact: bool = False, direct: bool = False) -> None:
        """Open all weight files.

        With `exact`, only the bytes that are read are fetched from a bucket, not whole blocks: for a few bytes here and
        there. With `direct`, local files are read past the page cache.

        Raises:
            UserError: a file is not the one that was opened before.
        """
        self._exact = exact
        self._checkpoint = checkpoint
        self._stack = ExitStack()
        # By file name: descriptors, pointers of files in a bucket, and which files are read past the page cache.
        self._opened = dict[str, int]()
        self._remote = dict[str, Pointer]()
        self._direct = set[str]()
        self._ranges = RangeReader()
        # Close the files even if nobody calls `close`.
        weakref.finalize(self, self._stack.close)
        self._stack.callback(self._ranges.close)
        try:
            for name in checkpoint.files:
                path = checkpoint.folder / name
                remote = pointer_in(path)
                if remote is not None:
                    self._remote[name] = remote
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._stack.callback(os.close, descriptor)
                self._opened[name] = descriptor
                if os.fstat(descriptor).st_size != checkpoint.stamps[name].size:
                    raise changed_file(path)
                if direct and make_direct(descriptor):
                    self._direct.add(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def remote(self) -> bool:
        """Whether weights are in a bucket."""
        return bool(self._remote)

    def read(self, number: int, into: Raw, offset: int, tiles: list[Tile] | None = None) -> None:
        """Fill `into` with bytes of file `number`, or of the assembled tensors, from byte `offset` on.

        With a list for `tiles`, elements of tensors that are stored in parts stay in the order of the parts, and their
        tiles are added to the list. Raises EOFError if the file ends early.
        """
        assembly = self._checkpoint.assembly
        if assembly is not None:
            assembly.fetch(into, offset, self._fetch, tiles)
        else:
            self._fetch(self._checkpoint.files[number], into, offset)

    def values(self, tensor: Tensor, start: int, count: int) -> Float32:
        """`count` values of a tensor from value `start` on."""
        size = size_of(tensor.dtype)
        raw = np.empty(count * size, np.uint8)
        self.read(self._checkpoint.file_number(tensor), raw, tensor.offset + start * size)
        return widen(raw, tensor.dtype)

    def _fetch(self, file: str, into: Raw, offset: int) -> None:
        """Fill `into` with the bytes of a file from `offset` on, which may take several reads (EOFError: too few)."""
        descriptor = self._opened[file]
        remote = self._remote.get(file)
        while len(into):
            if remote is None and file in self._direct:
                count = read_direct(descriptor, into, offset)
            elif remote is None:
                count = read_at(descriptor, into.data, offset)
            elif self._exact:
                into.data[:] = remote.fetch(offset, offset + len(into))
                return
            else:
                count = self._ranges.read(remote, into.data, offset)
            if count <= 0:
                raise EOFError(file)
            into = into[count:]
            offset = offset + count
