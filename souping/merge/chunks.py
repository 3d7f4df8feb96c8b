"""Work of a plan, as contiguous chunks of bytes that ranks share and threads mix block by block.

If the method needs inner products of whole tensors, they settle a chunk's weights first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from souping.checkpoints.header import size_of
from souping.core.text import shown
from souping.core.types import UserError
from souping.merge.kernels import BLOCK, Raw, finite, linear, mix_block, store, widen
from souping.merge.plan import Gram, MergePlan, Method, Piece, PlannedTensor, Source, get_method, gram

log = logging.getLogger(__name__)
WARNING = threading.Lock()
ROWS = 1 << 21  # elements of all ingredients that a thread holds at once: memory does not grow with their number
STEP = 1 << 16  # elements of a sum of inner products; a fixed step gives the same sums in every rank and pour


@dataclass(frozen=True)
class Chunk:
    """`count` elements of a shard from byte `offset` of its data, mixed by one rule from contiguous bytes.

    An `indivisible` chunk is a whole piece that the method needs at once, so ranks do not share it.
    """

    op: str
    shard: int
    offset: int
    count: int
    dtype: str
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    indivisible: bool = False

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.dtype)

    def part(self, start: int, count: int) -> Chunk:
        """Elements `start .. start + count` of this chunk."""
        if count == self.count:
            return self
        moved = tuple(replace(s, offset=s.offset + start * size_of(s.dtype)) for s in self.sources)
        offset = self.offset + start * size_of(self.dtype)
        return replace(self, offset=offset, count=count, sources=moved)


def chunks(plan: MergePlan) -> list[Chunk]:
    """The plan's pieces in the order of the output, neighbours joined where nothing but the name changes."""
    joined: list[Chunk] = []
    for tensor in plan.tensors:
        for chunk in tensor_chunks(plan, tensor):
            if joined and _follows(joined[-1], chunk):
                joined[-1] = replace(joined[-1], count=joined[-1].count + chunk.count)
            else:
                joined.append(chunk)
    return joined


def tensor_chunks(plan: MergePlan, tensor: PlannedTensor) -> list[Chunk]:
    """One tensor's pieces as chunks; empty ones are left out."""
    method = get_method(plan.method)
    return [chunk_of(method, tensor, piece) for piece in tensor.pieces if piece.count]


def chunk_of(method: Method, tensor: PlannedTensor, piece: Piece) -> Chunk:
    """One piece of a tensor as a chunk."""
    indivisible = (method.whole or method.coefficients is not None) and piece.op == "mix"
    offset = tensor.offset + piece.start * size_of(tensor.dtype)
    return Chunk(piece.op, tensor.shard, offset, piece.count, tensor.dtype, piece.sources, piece.weights, indivisible)


def _follows(a: Chunk, b: Chunk) -> bool:
    """Whether `b` continues `a` in the output and in every ingredient."""
    if a.indivisible or b.indivisible or (a.op, a.shard, a.dtype, a.weights) != (b.op, b.shard, b.dtype, b.weights):
        return False
    return (
        a.offset + a.nbytes == b.offset
        and len(a.sources) == len(b.sources)
        and all(
            (s.ingredient, s.file, s.dtype) == (t.ingredient, t.file, t.dtype)
            and s.offset + a.count * size_of(s.dtype) == t.offset
            for s, t in zip(a.sources, b.sources, strict=True)
        )
    )


def share_of_rank(work: Sequence[Chunk], rank: int, ranks: int) -> list[Chunk]:
    """The chunks of one rank: as many bytes for each, cut at whole blocks (indivisible chunks stay whole)."""
    total = sum(chunk.nbytes for chunk in work)
    low, high = total * rank // ranks, total * (rank + 1) // ranks
    share, passed = [], 0
    for chunk in work:
        size = size_of(chunk.dtype)
        first, last = (_cut(chunk, edge - passed, size) for edge in (low, high))
        if last > first:
            share.append(chunk.part(first, last - first))
        passed += chunk.nbytes
    return share


def _cut(chunk: Chunk, nbytes: int, size: int) -> int:
    """The element at which a chunk is cut so that about `nbytes` come before."""
    if chunk.indivisible:
        return chunk.count if nbytes >= chunk.nbytes // 2 + 1 else 0
    return max(0, min(chunk.count, -(-max(nbytes, 0) // (size * BLOCK)) * BLOCK))


def blocks(chunk: Chunk, most: int | None = None, rows: int = ROWS) -> Iterator[Chunk]:
    """A chunk in pieces of at most `most` elements (default: BLOCK), fewer if all ingredients together would hold more
    than `rows`."""
    size = max(1 << 12, min(most or BLOCK, rows // max(1, len(chunk.sources)) & ~0xFFF))
    for start in range(0, chunk.count, size):
        yield chunk.part(start, min(size, chunk.count - start))


def name_at(plan: MergePlan, shard: int, offset: int) -> str:
    """The tensor that owns a byte of the output."""
    return next(t.name for t in plan.tensors if t.shard == shard and t.offset <= offset < t.offset + max(t.nbytes, 1))


def complaint(plan: MergePlan, chunk: Chunk, what: str, source: Source | None) -> UserError:
    """An error that names the tensor and, if one is the cause, the ingredient's file."""
    name = shown(name_at(plan, chunk.shard, chunk.offset))
    where = ""
    if source is not None:
        owner = plan.ingredients[source.ingredient]
        where = f" in {owner.folder}/{owner.checkpoint.files[source.file]}"
    return UserError(f"{what} in tensor {name}{where}")


def check_equal(plan: MergePlan, chunk: Chunk, rows: Sequence[Raw]) -> None:
    """Refuse values that are not floats and differ between the ingredients."""
    for source, row in zip(chunk.sources, rows, strict=True):
        if not np.array_equal(row, rows[0]):
            what = f"{chunk.dtype} values, copied only where all ingredients agree, differ"
            raise complaint(plan, chunk, what, source)


def check_finite(plan: MergePlan, chunk: Chunk, good: bool, rows: Sequence[Raw], warned: set[str]) -> None:
    """NaN or infinity in a block of the soup: an error, or with `nonfinite=warn` one warning a tensor.

    `warned` holds the tensors that were warned of.
    """
    if good:
        return
    first = _first_bad(chunk, rows)
    guilty = None if first is None else chunk.sources[first[0]]
    at = chunk if first is None else chunk.part(first[1], 1)
    made = "overflow to infinity, or NaN from merge.method,"
    error = complaint(plan, at, made if guilty is None else "NaN or infinity", guilty)
    if plan.nonfinite == "error":
        raise UserError(f"{error}. Set merge.nonfinite=warn to let it through.")
    with WARNING:
        if str(error) not in warned:
            warned.add(str(error))
            log.warning("%s", error)


def _first_bad(chunk: Chunk, rows: Sequence[Raw]) -> tuple[int, int] | None:
    """(source, element) of the first value that is not finite."""
    for number, (source, row) in enumerate(zip(chunk.sources, rows, strict=True)):
        bad = np.flatnonzero(~np.isfinite(widen(row, source.dtype)))
        if len(bad):
            return number, int(bad[0])
    return None


Read = Callable[[Chunk, int, Raw], None]
"""read(chunk, number of the source, buffer to fill)"""


def final_weights(method: Method, chunk: Chunk, read: Read) -> Chunk:
    """The chunk with its final weights, which may need statistics of the whole piece."""
    if not chunk.indivisible:
        return chunk
    return replace(chunk, weights=method.weigh(piece_gram(chunk, method.base, read), chunk.weights))


def mixed(plan: MergePlan, chunk: Chunk, rows: Sequence[Raw], out: Raw, stored: str, warned: set[str]) -> Raw:
    """The soup's bytes of a block from its sources' rows, as `stored`: `out`, or the first row if it is a copy.

    Raises:
        UserError: values that have to agree differ, or one is NaN or infinite (or one warning a tensor).
    """
    if chunk.op == "same":
        check_equal(plan, chunk, rows)
        return rows[0]
    if chunk.op == "copy" and stored == chunk.dtype:
        check_finite(plan, chunk, finite(rows[0], chunk.dtype), rows, warned)
        return rows[0]
    if chunk.op == "copy":
        good = store(rows[0], chunk.dtype, out, stored)
    else:
        function = get_method(plan.method).function if chunk.op == "mix" else linear
        tags = [source.dtype for source in chunk.sources]
        good = mix_block(function, rows, tags, chunk.weights, chunk.dtype, out, stored)
    check_finite(plan, chunk, good, rows, warned)
    return out


def piece_gram(chunk: Chunk, base: bool, read: Read) -> Gram:
    """`methods.gram` of the chunk's sources without holding them: fp64 sums of blocks, in order."""
    size = len(chunk.sources) - base
    total: Gram = np.zeros((size, size))
    for start in range(0, chunk.count, STEP):
        part = chunk.part(start, min(STEP, chunk.count - start))
        rows = [np.empty(part.count * size_of(s.dtype), np.uint8) for s in part.sources]
        for number, row in enumerate(rows):
            read(part, number, row)
        total += gram([widen(row, s.dtype) for row, s in zip(rows, part.sources, strict=True)], base)
    return total


Job = Callable[[], None]


def work_off(jobs: Iterable[Job], threads: int) -> None:
    """Do all jobs, taken in order by so many threads. Raises what the first of them that failed raised."""
    queue, failures = iter(enumerate(jobs)), dict[int, BaseException]()
    lock = threading.Lock()

    def drain() -> None:
        while True:
            with lock:
                number, job = next(queue, (-1, None)) if not failures else (-1, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:
                failures[number] = error

    if threads == 1:
        drain()
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="souping") as pool:
            for done in [pool.submit(drain) for _ in range(threads)]:
                done.result()
    if failures:
        raise failures[min(failures)]
