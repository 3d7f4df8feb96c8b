"""Plan into a complete model folder.

Blocks of the ingredients stream from their files through the method into the shards. Two threads each read N rows
at their places, mix them and write the block; numpy and the kernels release the interpreter's lock. Memory is a few
blocks a thread, whatever the size or the number of models.
"""

from __future__ import annotations

import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np

from souping.checkpoints.header import size_of
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Raw, Tile, arrange
from souping.core.direct_io import make_direct, write_direct
from souping.core.folders import staged
from souping.core.open_files import reserve, start_writing, write_at
from souping.core.system import memory_bytes
from souping.merge import Extra, OptionalProgress
from souping.merge.chunks import Chunk, ThreadTask, blocks, chunks, run_tasks, share_of_rank
from souping.merge.digests import Digests, Late, passing, with_contents
from souping.merge.kernels import COMPILED_METHODS, get_method, linear
from souping.merge.mixing import complaint, final_weights, mixed
from souping.merge.plan import MergePlan, check_ingredients
from souping.merge.soup_files import soup_files, write_soup_files

WRITER_THREADS = 2
RESERVE = 100  # files that libraries and the command line hold open
# bytes of a line of the cache, at which rows begin, each one further: else they would share a set of it
LINE = 64
LARGE = 4 << 20  # bytes from which numpy asks for large pages, in which copies are faster
WINDOW = 16 << 20  # bytes of a shard that go to the disk at once, behind the mixing


class ShardWriter:
    """Plan with its files open: fills any share of shards that exist already (`prepare`)."""

    def __init__(self, plan: MergePlan, folder: Path, digests: Digests | None = None) -> None:
        """Open the files; `digests` are fed with what is read."""
        self.plan = plan
        self.method = get_method(plan.method)
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._thread = ThreadBuffers()
        self._done = 0
        self._warned: set[str] = set()
        self._digests: Digests = digests or {}
        raise_file_limit(
            sum(len(ingredient.files) for ingredient in plan.ingredients) + 2 * len(plan.shards)
        )
        # The page cache would drop what is read and written before it is needed again.
        direct = plan.read_bytes + plan.nbytes > memory_bytes()
        try:
            self._inputs = [
                self._stack.enter_context(WeightReader(ingredient.checkpoint, direct=direct))
                for ingredient in plan.ingredients
            ]
            self._outputs = [self._open(folder / name) for name in plan.shards]
            # The outputs once more, past the page cache.
            self._direct_outputs = [self._open(folder / name) for name in plan.shards if direct]
            if not all(map(make_direct, self._direct_outputs)):
                self._direct_outputs = []
        except BaseException:
            self._stack.close()
            raise
        self._starts = [len(plan.header(shard)) for shard in range(len(plan.shards))]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def fill(
        self,
        rank: int = 0,
        ranks: int = 1,
        threads: int = WRITER_THREADS,
        progress: OptionalProgress = None,
    ) -> None:
        """Write the blocks of one share.

        Raises:
            UserError: an ingredient ended early, a value is not finite, or the disk is full.
        """
        work = share_of_rank(chunks(self.plan), rank, ranks)
        self._done = 0
        run_tasks(self._tasks(work, sum(chunk.nbytes for chunk in work), progress), threads)

    def _tasks(
        self, work: list[Chunk], total: int, progress: OptionalProgress
    ) -> Iterator[ThreadTask]:
        """Blocks in order; an indivisible chunk gets its weights from its statistics first, then streams too."""
        for chunk in work:
            if chunk.indivisible and self.method.whole:
                blocks_of_chunk: Iterable[Chunk] = [chunk]
            else:
                blocks_of_chunk = self._cut(final_weights(self.method, chunk, self.read))
            for block in blocks_of_chunk:
                numbers = range(len(block.sources))
                hashed = [number for number in numbers if self._hashed(block, number)]
                yield partial(self._fill_block, block, hashed, total, progress)

    def _cut(self, chunk: Chunk) -> Iterable[Chunk]:
        return blocks(chunk)

    def _fill_block(
        self, block: Chunk, hashed: Sequence[int], total: int, progress: OptionalProgress
    ) -> None:
        """Mix and write a block; its sources in `hashed` are hashed as they pass."""
        try:
            self._block(block, self._thread.buffers, hashed)
            with self._lock:
                self._done += block.nbytes
                if progress is not None:
                    progress(self._done, total)
        except BaseException:
            for digest in self._digests.values():
                digest.abandon()
            raise

    def _hashed(self, chunk: Chunk, number: int) -> bool:
        source = chunk.sources[number]
        digest = self._digests.get((source.ingredient, source.file))
        if digest is None:
            return False
        return digest.promise(source.offset, chunk.count * size_of(source.dtype))

    def read(self, chunk: Chunk, number: int, into: Raw, tiles: list[Tile] | None = None) -> None:
        """The bytes of a chunk's source `number`, whole or a UserError."""
        source = chunk.sources[number]
        try:
            self._inputs[source.ingredient].read(source.file, into, source.offset, tiles)
        except EOFError:
            raise complaint(self.plan, chunk, "the file ends early", source) from None

    def _block(self, chunk: Chunk, buffers: Buffers, hashed: Sequence[int] = ()) -> None:
        sizes = [chunk.count * size_of(source.dtype) for source in chunk.sources]
        *rows, out = buffers.rows([*sizes, chunk.nbytes])
        tiles = self._read_rows(chunk, rows, in_order=bool(hashed))
        soup = mixed(self.plan, chunk, rows, out, chunk.dtype, self._warned)
        arrange(soup, size_of(chunk.dtype), tiles)
        self._write(chunk, soup)
        for number in hashed:
            source = chunk.sources[number]
            self._digests[source.ingredient, source.file].feed(source.offset, rows[number])

    def _read_rows(self, chunk: Chunk, rows: Sequence[Raw], in_order: bool) -> list[Tile]:
        """Fill the rows of a block. If all are stored in the same parts, they are left in that order: the soup alone is
        arranged then."""
        function = self.method.function if chunk.op == "mix" else linear
        # Digests, and methods that look at neighbours, need the elements in the order of the tensor.
        if in_order or function not in COMPILED_METHODS:
            for number, row in enumerate(rows):
                self.read(chunk, number, row)
            return []
        tiles = [list[Tile]() for _ in rows]
        for number, row in enumerate(rows):
            self.read(chunk, number, row, tiles[number])
        if all(tiles_of_row == tiles[0] for tiles_of_row in tiles):
            return tiles[0]
        for source, row, tiles_of_row in zip(chunk.sources, rows, tiles, strict=True):
            arrange(row, size_of(source.dtype), tiles_of_row)
        return []

    def _write(self, chunk: Chunk, out: Raw) -> None:
        offset = self._starts[chunk.shard] + chunk.offset
        descriptor = self._outputs[chunk.shard]
        if self._direct_outputs:
            write_direct(self._direct_outputs[chunk.shard], descriptor, out, offset)
            return
        window = offset // WINDOW
        if window != (offset + len(out)) // WINDOW:
            start_writing(descriptor, (window - 1) * WINDOW, WINDOW)
        write_at(descriptor, out.data, offset)


def raise_file_limit(count: int) -> None:
    """Let this process open so many more files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count + RESERVE
    if limit <= soft:
        return
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class Buffers:
    """Thread's memory, made once and cut anew for every block."""

    def __init__(self) -> None:
        self._slab: Raw = np.empty(0, np.uint8)

    def rows(self, sizes: Sequence[int]) -> list[Raw]:
        """Arrays of so many bytes, one behind the other; those of the block before are gone."""
        lines = [-(-size // LINE) + 1 for size in sizes]
        starts = [0, *itertools.accumulate(count * LINE for count in lines)]
        if starts[-1] > len(self._slab):
            self._slab = np.empty(max(starts[-1], LARGE), np.uint8)
        return [
            self._slab[start : start + size] for start, size in zip(starts, sizes, strict=False)
        ]


class ThreadBuffers(threading.local):
    """Buffers of each thread."""

    def __init__(self) -> None:
        self.buffers = Buffers()


def prepare(plan: MergePlan, folder: Path) -> None:
    """Make the shards at their full size with their headers; a disk that is too full says so here.

    Raises:
        OSError: no space, or no right to write.
    """
    if plan.frame is not None:
        plan.frame.prepare(folder)
        return
    for shard, name in enumerate(plan.shards):
        header = plan.header(shard)
        size = len(header) + plan.shard_bytes(shard)
        with (folder / name).open("xb") as file:
            file.write(header)
            file.flush()
            reserve(file.fileno(), size)


FillShards = Callable[[MergePlan, Path, OptionalProgress], None]
"""Fills the prepared shards in a staging folder, as ranks do that each take a share."""


def write_checkpoint(
    plan: MergePlan,
    out: Path,
    *,
    progress: OptionalProgress = None,
    extra_files: Extra = None,
    shares: FillShards | None = None,
    late: Late | None = None,
) -> Path:
    """Write the soup of a plan to `out` and return it: shards, index, config, tokenizer, recipe.json, `extra_files`.

    The folder appears whole or not at all. Its bytes follow from the plan and the ingredients alone. With `late`, the
    ingredients are hashed as they are read, and the recipe's fingerprints and the extra files follow from that.

    Raises:
        UserError: `out` is there already, an ingredient is broken or changes before the soup is there, or the disk is
            full.
    """
    check_ingredients(plan.ingredients)
    files = soup_files(plan, late.files(plan.recipe) if late else extra_files)
    with staged(out) as stage:
        prepare(plan, stage)
        digests = passing(plan, late.known) if late else {}
        if shares is not None:
            shares(plan, stage, progress)
        else:
            with ShardWriter(plan, stage, digests) as writer:
                writer.fill(progress=progress)
        if plan.frame is not None:
            plan.frame.finish(stage)
        if late:
            run_tasks([digest.finish for digest in digests.values()], WRITER_THREADS)
            for digest in digests.values():
                digest.keep(late.known)
            plan = with_contents(plan, late.known)
            files = soup_files(plan, late.files(plan.recipe))
        write_soup_files(stage, files)
        check_ingredients(plan.ingredients)
    return Path(out)
