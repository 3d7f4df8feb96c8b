"""Writer of soups: fills the shards of a model folder with the weights that a merge plan mixes.

Blocks of the ingredients stream from their files through the method into the shards. Two threads each read N rows
at their places, mix them and write the block; numpy and the kernels release the interpreter's lock. Memory is a few
blocks a thread, whatever the size or the number of models.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Raw, Tile
from souping.core.direct_io import make_direct, write_direct
from souping.core.folders import staged
from souping.core.open_files import reserve, start_writing, write_at
from souping.core.system import memory_bytes
from souping.core.types import Recipe
from souping.merge import OptionalProgress
from souping.merge.digests import Digests, unknown_digests, with_contents
from souping.merge.mixing import (
    BlockMixer,
    Chunk,
    ThreadTask,
    chunk_gram,
    chunks,
    complaint,
    final_weights,
    run_tasks,
)
from souping.merge.plan import MergePlan, check_ingredients
from souping.merge.soup_files import soup_files, write_soup_files

WRITER_THREADS = 2
RESERVE = 100  # files that libraries and the command line hold open
WINDOW = 16 << 20  # bytes of a shard that go to the disk at once, behind the mixing


def fill_shards(
    plan: MergePlan,
    folder: Path,
    progress: OptionalProgress = None,
    *,
    work: Sequence[Chunk] | None = None,
    mixer: BlockMixer | None = None,
    digests: Digests | None = None,
    threads: int = WRITER_THREADS,
) -> None:
    """Fill the shards in `folder`, which have their full size already: all of them, or the chunks in `work`.

    Chunks are cut into blocks. A thread reads the rows of a block, mixes them, and writes the soup at its place;
    `digests` are taken of the rows.

    Raises:
        UserError: an ingredient ended early, a value is not finite, or the disk is full.
    """
    work = chunks(plan) if work is None else work
    mixer = mixer or BlockMixer(plan)
    digests = digests or Digests()
    total = sum(chunk.nbytes for chunk in work)
    done = 0
    lock = threading.Lock()
    with ShardFiles(plan, folder) as files:

        def write_block(block: Chunk, hashed: Sequence[int]) -> None:
            """Mix and write a block; `hashed` are the numbers of the sources whose rows are hashed."""
            nonlocal done
            try:
                rows, soup = mixer.mix(block, files.read, in_order=bool(hashed))
                files.write(block, soup)
                digests.feed(block, hashed, rows)
                with lock:
                    done += block.nbytes
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                digests.abandon()
                raise

        def tasks() -> Iterator[ThreadTask]:
            """Calls for all blocks, taken one by one under a lock: so blocks are promised in the order of the files."""
            inner_products = partial(chunk_gram, read=files.read)
            for chunk in work:
                weighted = final_weights(plan, chunk, inner_products)
                for block in mixer.blocks(weighted):
                    yield partial(write_block, block, digests.promised(block))

        run_tasks(tasks(), threads)


class ShardFiles:
    """Files of a plan: the ingredients' to be read, and the soup's shards, which exist, to be written."""

    def __init__(self, plan: MergePlan, folder: Path) -> None:
        """Open all files; past the page cache if they are larger than the memory."""
        self._plan = plan
        self._stack = ExitStack()
        # Shards may be opened twice.
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

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def read(self, chunk: Chunk, number: int, into: Raw, tiles: list[Tile] | None = None) -> None:
        """Fill `into` with the bytes of a chunk's source `number`; UserError if the file has fewer.

        `tiles` are as in `WeightReader.read`.
        """
        source = chunk.sources[number]
        try:
            self._inputs[source.ingredient].read(source.file, into, source.offset, tiles)
        except EOFError:
            raise complaint(self._plan, chunk, "the file ends early", source) from None

    def write(self, block: Chunk, soup: Raw) -> None:
        """Put a block at its place in its shard."""
        offset = self._starts[block.shard] + block.offset
        descriptor = self._outputs[block.shard]
        if self._direct_outputs:
            write_direct(self._direct_outputs[block.shard], descriptor, soup, offset)
            return
        # When a block ends a window, the window before starts to go to the disk, while further blocks are mixed.
        window = offset // WINDOW
        if window != (offset + len(soup)) // WINDOW:
            start_writing(descriptor, (window - 1) * WINDOW, WINDOW)
        write_at(descriptor, soup.data, offset)


def raise_file_limit(count: int) -> None:
    """Let this process open `count` files besides RESERVE others, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = count + RESERVE
    if limit <= soft:
        return
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    # If the system refuses, opening the files says so.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


FillShards = Callable[[MergePlan, Path, OptionalProgress], None]
"""Fills the shards in a staging folder: `fill_shards`, or ranks that each take a share."""


def make_shards(plan: MergePlan, folder: Path) -> None:
    """Make the shards of a soup at their full size with their headers; a disk that is too full says so here.

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


def write_checkpoint(
    plan: MergePlan,
    out: Path,
    files: Mapping[str, str | bytes],
    *,
    progress: OptionalProgress = None,
    fill: FillShards = fill_shards,
) -> Path:
    """Write the soup of a plan to `out` and return it, with the `files` beside its weights.

    The folder appears whole or not at all. Its bytes follow from the plan and the ingredients alone.

    Raises:
        UserError: `out` is there already, an ingredient is broken or changes before the soup is there, or the disk is
            full.
    """
    with staged(out) as stage:
        make_shards(plan, stage)
        fill(plan, stage, progress)
        if plan.frame is not None:
            plan.frame.finish(stage)
        write_soup_files(stage, files)
        check_ingredients(plan.ingredients)
    return Path(out)


def write_hashed(
    plan: MergePlan,
    out: Path,
    files: Callable[[Recipe], Mapping[str, str]],
    *,
    known: MutableMapping[str, str],
    progress: OptionalProgress = None,
) -> Recipe:
    """Write the soup of a plan, hashing its ingredients as they are read; returns the recipe with their fingerprints.

    Digests are added to `known`; `files(recipe)` are extra files. Raises UserError as `write_checkpoint`.
    """
    # Refuses extra files that replace others before anything is written.
    soup_files(plan, files(plan.recipe))
    with staged(out) as stage:
        make_shards(plan, stage)
        digests = unknown_digests(plan, known)
        fill_shards(plan, stage, progress, digests=digests)
        digests.keep(known)
        hashed = with_contents(plan, known)
        write_soup_files(stage, soup_files(hashed, files(hashed.recipe)))
        check_ingredients(plan.ingredients)
    return hashed.recipe
