"""Pieces of a merge plan: chunks, which ranks share, and blocks, which threads mix in memory and check."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from souping.checkpoints.header import size_of
from souping.checkpoints.views import Float32, Raw, Tile, arrange, widen
from souping.core.text import shown
from souping.core.types import FloatArray, UserError
from souping.merge.methods import (
    BLOCK_ELEMENTS,
    COMPILED_METHODS,
    Combine,
    get_method,
    gram,
    linear,
    mix_block,
)
from souping.merge.plan import MergePlan, PlannedTensor, Source
from souping.merge.rounding import finite, write_as

log = logging.getLogger(__name__)
THREAD_ELEMENTS = 1 << 21
"""Elements of all ingredients that a thread holds at once: memory does not grow with their number."""
ThreadTask = Callable[[], None]
WARNING_LOCK = threading.Lock()
# elements of a sum of inner products; a fixed step gives the same sums in every rank and load
PRODUCT_ELEMENTS = 1 << 16
LINE = 64
"""Bytes of a cache line."""
LARGE = 4 << 20  # bytes from which numpy asks for large pages, in which copies are faster


@dataclass(frozen=True)
class Chunk:
    """`count` elements of a shard from byte `offset` of its data, mixed by one rule from contiguous bytes.

    `op` is as in `PlannedBand`, `weights` are those of the `sources`. An `indivisible` chunk is a band that one rank
    mixes; it is one block too if the method takes bands `whole`.
    """

    op: str
    shard: int
    offset: int
    count: int
    dtype: str
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    indivisible: bool = False
    whole: bool = False

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.dtype)

    def part(self, start: int, count: int) -> Chunk:
        """Elements `start .. start + count` of this chunk as a chunk."""
        if count == self.count:
            return self
        sources = list[Source]()
        for source in self.sources:
            offset = source.offset + start * size_of(source.dtype)
            sources.append(replace(source, offset=offset))
        offset = self.offset + start * size_of(self.dtype)
        return replace(self, offset=offset, count=count, sources=tuple(sources))


def chunks(plan: MergePlan) -> list[Chunk]:
    """The plan's bands in the order of the output, neighbours joined where nothing but the name changes."""
    joined: list[Chunk] = []
    for tensor in plan.tensors:
        for chunk in tensor_chunks(plan, tensor):
            if joined and _follows(joined[-1], chunk):
                joined[-1] = replace(joined[-1], count=joined[-1].count + chunk.count)
            else:
                joined.append(chunk)
    return joined


def tensor_chunks(plan: MergePlan, tensor: PlannedTensor) -> list[Chunk]:
    """One tensor's bands as chunks; empty ones are left out."""
    method = get_method(plan.method)
    # The method sees all elements of a band at once, or takes its weights from them.
    needs_band = method.whole or method.coefficients is not None
    chunks_of_tensor = list[Chunk]()
    for band in tensor.bands:
        if not band.count:
            continue
        chunk = Chunk(
            op=band.op,
            shard=tensor.shard,
            offset=tensor.offset + band.start * size_of(tensor.dtype),
            count=band.count,
            dtype=tensor.dtype,
            sources=band.sources,
            weights=band.weights,
            indivisible=needs_band and band.op == "mix",
            whole=method.whole and band.op == "mix",
        )
        chunks_of_tensor.append(chunk)
    return chunks_of_tensor


def _follows(a: Chunk, b: Chunk) -> bool:
    """Whether `b` continues `a` in the output and in every ingredient."""
    if a.indivisible or b.indivisible:
        return False
    if (a.op, a.shard, a.dtype, a.weights) != (b.op, b.shard, b.dtype, b.weights):
        return False
    if a.offset + a.nbytes != b.offset or len(a.sources) != len(b.sources):
        return False
    for s, t in zip(a.sources, b.sources, strict=True):
        if (s.ingredient, s.file, s.dtype) != (t.ingredient, t.file, t.dtype):
            return False
        if s.offset + a.count * size_of(s.dtype) != t.offset:
            return False
    return True


def share_of_rank(work: Sequence[Chunk], rank: int, ranks: int) -> list[Chunk]:
    """The chunks of rank number `rank`: every rank gets about the same bytes, cut at whole blocks or chunks."""
    total = sum(chunk.nbytes for chunk in work)
    low = total * rank // ranks
    high = total * (rank + 1) // ranks
    share = []
    # Bytes of the chunks before.
    passed = 0
    for chunk in work:
        first = _cut(chunk, low - passed)
        end = _cut(chunk, high - passed)
        if end > first:
            share.append(chunk.part(first, end - first))
        passed += chunk.nbytes
    return share


def _cut(chunk: Chunk, nbytes: int) -> int:
    """The element at which a chunk is cut so that about `nbytes` come before. They may be below 0, or too many."""
    # All of it or nothing, whichever is nearer.
    if chunk.indivisible:
        return chunk.count if nbytes >= chunk.nbytes // 2 + 1 else 0
    blocks_before = -(-max(nbytes, 0) // (size_of(chunk.dtype) * BLOCK_ELEMENTS))
    return min(chunk.count, blocks_before * BLOCK_ELEMENTS)


def blocks(
    chunk: Chunk, *, most: int = BLOCK_ELEMENTS, most_read: int = THREAD_ELEMENTS
) -> Iterator[Chunk]:
    """A chunk in blocks of at most `most` elements, with at most `most_read` elements of all sources together.

    A chunk that is taken whole is one block.
    """
    if chunk.whole:
        yield chunk
        return
    # Blocks of whole pages: a multiple of 4096 elements, and at least 4096.
    row = most_read // max(1, len(chunk.sources)) & ~0xFFF
    size = max(1 << 12, min(most, row))
    for start in range(0, chunk.count, size):
        yield chunk.part(start, min(size, chunk.count - start))


def run_tasks(tasks: Iterable[ThreadTask], threads: int) -> None:
    """Do tasks, taken in order by this number of threads, until all are done or one fails. Raises the first failure."""
    queue = iter(enumerate(tasks))
    # {number of a task: its error}
    failures = dict[int, BaseException]()
    lock = threading.Lock()

    def drain() -> None:
        """Do tasks until none is left or one has failed, in any thread."""
        while True:
            with lock:
                if failures:
                    return
                try:
                    number, task = next(queue)
                except StopIteration:
                    return
            try:
                task()
            except BaseException as error:  # raised again by the caller's thread, below
                failures[number] = error

    if threads == 1:
        drain()
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="souping") as pool:
            try:
                for future in [pool.submit(drain) for _ in range(threads)]:
                    future.result()
            except BaseException as error:  # an interrupt: the threads end at their next task
                failures[-1] = error
                raise
    if failures:
        raise failures[min(failures)]


# Blocks of the ingredients mixed to a block of the soup, and what is checked of them


def name_at(plan: MergePlan, shard: int, offset: int) -> str:
    """The name of the tensor with byte `offset` of a shard's data; an empty tensor is found by its place."""
    tensors = [tensor for tensor in plan.tensors if tensor.shard == shard]
    return next(t.name for t in tensors if t.offset <= offset < t.offset + max(t.nbytes, 1))


def complaint(plan: MergePlan, chunk: Chunk, what: str, source: Source | None) -> UserError:
    """The error `what` for a chunk, with the tensor and, if a source is the cause, where that is stored."""
    name = shown(name_at(plan, chunk.shard, chunk.offset))
    where = ""
    if source is not None:
        owner = plan.ingredients[source.ingredient]
        where = f" in {owner.folder}"
        checkpoint = owner.checkpoint
        # Sharded or dequantised tensors are not in one file, and `owner.folder` may be FILE or FILE#KEY itself.
        if checkpoint.assembly is None and checkpoint.source == checkpoint.folder:
            where += f"/{checkpoint.files[source.file]}"
    return UserError(f"{what} in tensor {name}{where}")


def check_equal(plan: MergePlan, chunk: Chunk, rows: Sequence[Raw]) -> None:
    """Refuse a chunk of values that are not floats, unless all ingredients have the same bytes (`rows`)."""
    for source, row in zip(chunk.sources, rows, strict=True):
        if not np.array_equal(row, rows[0]):
            what = f"{chunk.dtype} values, copied only where all ingredients agree, differ"
            raise complaint(plan, chunk, what, source)


def check_finite(
    plan: MergePlan, chunk: Chunk, good: bool, rows: Sequence[Raw], warned: set[str]
) -> None:
    """Unless a block of the soup is finite (`good`), raise UserError, or with `nonfinite=warn` warn once per tensor.

    `rows` are the sources' bytes, where the cause may be found. New warnings are added to those in `warned`.
    """
    if good:
        return
    first = _first_not_finite(chunk, rows)
    # All sources are finite: the arithmetic is the cause.
    if first is None:
        error = complaint(plan, chunk, "overflow to infinity, or NaN from merge.method,", None)
    else:
        number, element = first
        place = chunk.part(element, 1)
        error = complaint(plan, place, "NaN or infinity", chunk.sources[number])
    if plan.nonfinite == "error":
        raise UserError(f"{error}. Set merge.nonfinite=warn to let it through.")
    with WARNING_LOCK:
        if str(error) not in warned:
            warned.add(str(error))
            log.warning("%s", error)


def _first_not_finite(chunk: Chunk, rows: Sequence[Raw]) -> tuple[int, int] | None:
    """(number of the source, number of the element) of the first value that is not finite; None if all are."""
    for number, (source, row) in enumerate(zip(chunk.sources, rows, strict=True)):
        elements = np.flatnonzero(~np.isfinite(widen(row, source.dtype)))
        if len(elements):
            return number, int(elements[0])
    return None


Read = Callable[[Chunk, int, Raw], None]
"""read(chunk, number of the source, buffer to fill)"""
InnerProducts = Callable[[Chunk, bool], FloatArray]
"""inner_products(chunk, whether the first source is a base) -> `chunk_gram` of it"""


def final_weights(plan: MergePlan, chunk: Chunk, inner_products: InnerProducts) -> Chunk:
    """The chunk with the weights that the method gets, which may depend on inner products of the whole band."""
    method = get_method(plan.method)
    if not chunk.indivisible or method.coefficients is None:
        return chunk
    inner = inner_products(chunk, method.base)
    return replace(chunk, weights=method.weigh(inner, chunk.weights))


def function_of(plan: MergePlan, chunk: Chunk) -> Combine:
    """The plan's method for a chunk; other operations (linear, or a copy into another dtype) are sums."""
    return get_method(plan.method).function if chunk.op == "mix" else linear


def mixed(
    plan: MergePlan, chunk: Chunk, rows: Sequence[Raw], out: Raw, out_dtype: str, warned: set[str]
) -> Raw:
    """The soup's bytes of a block, as `out_dtype`, from its sources' rows.

    They are written to `out`, which is returned; a copy without another dtype is the first row itself.

    Raises:
        UserError: values that have to agree differ, or one is NaN or infinite (or one warning a tensor).
    """
    if chunk.op == "same":
        check_equal(plan, chunk, rows)
        return rows[0]
    if chunk.op == "copy" and out_dtype == chunk.dtype:
        check_finite(plan, chunk, finite(rows[0], chunk.dtype), rows, warned)
        return rows[0]
    if chunk.op == "copy":
        good = write_as(rows[0], chunk.dtype, out, out_dtype)
    else:
        function = function_of(plan, chunk)
        tags = [source.dtype for source in chunk.sources]
        good = mix_block(function, rows, tags, chunk.weights, chunk.dtype, out, out_dtype)
    check_finite(plan, chunk, good, rows, warned)
    return out


def chunk_gram(chunk: Chunk, base: bool, read: Read) -> FloatArray:
    """`methods.gram` of the chunk's sources, summed block by block in fp64, so that memory stays small.

    With `base`, the first source is the base, which has no row of its own: `base` counts as 1.
    """
    size = len(chunk.sources) - base
    total: FloatArray = np.zeros((size, size))
    for start in range(0, chunk.count, PRODUCT_ELEMENTS):
        part = chunk.part(start, min(PRODUCT_ELEMENTS, chunk.count - start))
        rows = list[Float32]()
        for number, source in enumerate(part.sources):
            row = np.empty(part.count * size_of(source.dtype), np.uint8)
            read(part, number, row)
            rows.append(widen(row, source.dtype))
        total += gram(rows, base)
    return total


class ThreadBuffers(threading.local):
    """Memory of each thread, made once and cut anew for every block."""

    def __init__(self) -> None:
        self._slab: Raw = np.empty(0, np.uint8)

    def rows(self, sizes: Sequence[int]) -> list[Raw]:
        """An array for each size in bytes, in memory that the next call uses again."""
        # A line more than a row needs: rows of 2^n bytes would all begin in the same set of the cache.
        lines = [-(-size // LINE) + 1 for size in sizes]
        starts = [0, *itertools.accumulate(count * LINE for count in lines)]
        if starts[-1] > len(self._slab):
            self._slab = np.empty(max(starts[-1], LARGE), np.uint8)
        # The last start is the end.
        places = zip(starts, sizes, strict=False)
        return [self._slab[start : start + size] for start, size in places]


ReadTiles = Callable[[Chunk, int, Raw, list[Tile] | None], None]
"""read(chunk, number of the source, buffer to fill, list for its tiles, or None for the tensor's order)"""


class BlockMixer:
    """Makes the blocks of a plan's soup, in several threads at once."""

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.warned = set[str]()
        self._buffers = ThreadBuffers()

    def blocks(self, chunk: Chunk) -> Iterator[Chunk]:
        """The chunk in pieces of the size that is mixed at once."""
        return blocks(chunk)

    def mix(self, block: Chunk, read: ReadTiles, in_order: bool) -> tuple[Sequence[Raw], Raw]:
        """(rows of the sources, soup) of a block; with `in_order`, rows are in the order of the tensor.

        `read(block, number of a source, row, tiles)` fills a row. Rows and soup are overwritten when the thread mixes
        its next block.
        """
        sizes = [block.count * size_of(source.dtype) for source in block.sources]
        *rows, out = self._buffers.rows([*sizes, block.nbytes])
        tiles = self._read_rows(block, read, rows, in_order)
        soup = mixed(self.plan, block, rows, out, block.dtype, self.warned)
        arrange(soup, size_of(block.dtype), tiles)
        return rows, soup

    def _read_rows(
        self, block: Chunk, read: ReadTiles, rows: Sequence[Raw], in_order: bool
    ) -> list[Tile]:
        """Fill the rows of a block; returns the tiles that the soup has to be arranged by.

        If all rows are stored in the same parts, the rows stay in the order of the parts, and only the soup has to be
        arranged. Otherwise the rows are arranged here, and no tiles are returned.
        """
        # Digests, and methods that look at neighbours, need the elements in the order of the tensor.
        if in_order or function_of(self.plan, block) not in COMPILED_METHODS:
            for number, row in enumerate(rows):
                read(block, number, row, None)
            return []
        tiles = [list[Tile]() for _ in rows]
        for number, row in enumerate(rows):
            read(block, number, row, tiles[number])
        if all(tiles_of_row == tiles[0] for tiles_of_row in tiles):
            return tiles[0]
        for source, row, tiles_of_row in zip(block.sources, rows, tiles, strict=True):
            arrange(row, size_of(source.dtype), tiles_of_row)
        return []
