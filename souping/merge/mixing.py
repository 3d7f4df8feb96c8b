"""Blocks of the ingredients mixed to a block of the soup, and what is checked of them."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from souping.checkpoints.header import size_of
from souping.checkpoints.views import Float32, Raw, Tile, arrange, widen
from souping.core.text import shown
from souping.core.types import FloatArray, UserError
from souping.merge.chunks import Chunk, blocks
from souping.merge.kernels import (
    COMPILED_METHODS,
    Combine,
    finite,
    get_method,
    gram,
    linear,
    mix_block,
    write_as,
)
from souping.merge.plan import MergePlan, Source

log = logging.getLogger(__name__)


WARNING_LOCK = threading.Lock()
# elements of a sum of inner products; a fixed step gives the same sums in every rank and load
PRODUCT_ELEMENTS = 1 << 16
# bytes of a line of the cache, at which rows begin, each one further: else they would share a set of it
LINE = 64
LARGE = 4 << 20  # bytes from which numpy asks for large pages, in which copies are faster


def name_at(plan: MergePlan, shard: int, offset: int) -> str:
    """The tensor that owns a byte of the output."""
    tensors = [tensor for tensor in plan.tensors if tensor.shard == shard]
    return next(t.name for t in tensors if t.offset <= offset < t.offset + max(t.nbytes, 1))


def complaint(plan: MergePlan, chunk: Chunk, what: str, source: Source | None) -> UserError:
    """An error that names the tensor and, if one is the cause, the ingredient's file."""
    name = shown(name_at(plan, chunk.shard, chunk.offset))
    where = ""
    if source is not None:
        owner = plan.ingredients[source.ingredient]
        where = f" in {owner.folder}"
        checkpoint = owner.checkpoint
        if checkpoint.assembly is None and checkpoint.source == checkpoint.folder:
            where += f"/{checkpoint.files[source.file]}"
    return UserError(f"{what} in tensor {name}{where}")


def check_equal(plan: MergePlan, chunk: Chunk, rows: Sequence[Raw]) -> None:
    """Refuse values that are not floats and differ between the ingredients."""
    for source, row in zip(chunk.sources, rows, strict=True):
        if not np.array_equal(row, rows[0]):
            what = f"{chunk.dtype} values, copied only where all ingredients agree, differ"
            raise complaint(plan, chunk, what, source)


def check_finite(
    plan: MergePlan, chunk: Chunk, good: bool, rows: Sequence[Raw], warned: set[str]
) -> None:
    """NaN or infinity in a block of the soup: an error, or with `nonfinite=warn` one warning a tensor.

    `warned` holds the tensors that were warned of.
    """
    if good:
        return
    first = _first_not_finite(chunk, rows)
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
    """(source, element) of the first value that is not finite."""
    for number, (source, row) in enumerate(zip(chunk.sources, rows, strict=True)):
        elements = np.flatnonzero(~np.isfinite(widen(row, source.dtype)))
        if len(elements):
            return number, int(elements[0])
    return None


Read = Callable[[Chunk, int, Raw], None]
"""read(chunk, number of the source, buffer to fill)"""


def final_weights(plan: MergePlan, chunk: Chunk, read: Read) -> Chunk:
    """The chunk with its final weights, which may need statistics of the whole band."""
    method = get_method(plan.method)
    if not chunk.indivisible or method.coefficients is None:
        return chunk
    inner_products = chunk_gram(chunk, method.base, read)
    return replace(chunk, weights=method.weigh(inner_products, chunk.weights))


def function_of(plan: MergePlan, chunk: Chunk) -> Combine:
    return get_method(plan.method).function if chunk.op == "mix" else linear


def mixed(
    plan: MergePlan, chunk: Chunk, rows: Sequence[Raw], out: Raw, out_dtype: str, warned: set[str]
) -> Raw:
    """The soup's bytes of a block from its sources' rows, as `out_dtype`: `out`, or the first row if it is a copy.

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
    """`kernels.gram` of the chunk's sources, summed block by block in fp64, so that they are never all in memory."""
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
        """Arrays of so many bytes, one behind the other; those of the block before are gone."""
        lines = [-(-size // LINE) + 1 for size in sizes]
        starts = [0, *itertools.accumulate(count * LINE for count in lines)]
        if starts[-1] > len(self._slab):
            self._slab = np.empty(max(starts[-1], LARGE), np.uint8)
        return [
            self._slab[start : start + size] for start, size in zip(starts, sizes, strict=False)
        ]


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

        They are gone when the thread mixes its next block.
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
        """Fill the rows of a block. If all are stored in the same parts, they are left in that order: the soup alone is
        arranged then."""
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
