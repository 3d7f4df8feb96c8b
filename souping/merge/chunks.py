"""Plan as work: contiguous chunks of bytes, shares of them for ranks, blocks of them for threads, and what is done
with each: weights settled by whole tensors' inner products where the method asks for them, then blocks mixed and
checked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from souping.checkpoints.dtypes import size_of
from souping.core.text import shown
from souping.core.types import UserError
from souping.merge.kernels import mix_block, store
from souping.merge.kernels.reference import BLOCK, Raw, finite, linear, widen
from souping.merge.methods import Gram, Method, get_method, gram
from souping.merge.plan import MergePlan, Piece, PlannedTensor, Source

log = logging.getLogger(__name__)
WARNING = threading.Lock()
ROWS = 1 << 20  # elements of all ingredients that a thread holds at once: memory does not grow with their number
STEP = 1 << 16  # elements of a sum of inner products; a fixed step gives the same sums whoever computes them


@dataclass(frozen=True)
class Chunk:
    """`count` elements of a shard from byte `offset` of its data, mixed alike from bytes that are contiguous too.

    A `solid` run is a whole piece that the method has to look at as one, so ranks do not share it.
    """

    op: str
    shard: int
    offset: int
    count: int
    dtype: str
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    solid: bool = False

    @property
    def nbytes(self) -> int:
        return self.count * size_of(self.dtype)

    def part(self, start: int, count: int) -> Chunk:
        """Elements `start .. start + count` of this run."""
        if count == self.count:
            return self
        moved = tuple(replace(s, offset=s.offset + start * size_of(s.dtype)) for s in self.sources)
        offset = self.offset + start * size_of(self.dtype)
        return replace(self, offset=offset, count=count, sources=moved)


def chunks(plan: MergePlan) -> list[Chunk]:
    """The plan's pieces in the order of the output, neighbours joined where nothing but the name changes."""
    joined: list[Chunk] = []
    for tensor in plan.tensors:
        for run in tensor_chunks(plan, tensor):
            if joined and _follows(joined[-1], run):
                joined[-1] = replace(joined[-1], count=joined[-1].count + run.count)
            else:
                joined.append(run)
    return joined


def tensor_chunks(plan: MergePlan, tensor: PlannedTensor) -> list[Chunk]:
    """One tensor's pieces as runs; empty ones are left out."""
    method = get_method(plan.method)
    return [chunk_of(method, tensor, piece) for piece in tensor.pieces if piece.count]


def chunk_of(method: Method, tensor: PlannedTensor, piece: Piece) -> Chunk:
    """One piece of a tensor as a run."""
    solid = (method.whole or method.coefficients is not None) and piece.op == "mix"
    offset = tensor.offset + piece.start * size_of(tensor.dtype)
    return Chunk(piece.op, tensor.shard, offset, piece.count, tensor.dtype, piece.sources, piece.weights, solid)


def _follows(a: Chunk, b: Chunk) -> bool:
    """Whether `b` continues `a` in the output and in every ingredient."""
    if a.solid or b.solid or (a.op, a.shard, a.dtype, a.weights) != (b.op, b.shard, b.dtype, b.weights):
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
    """The runs of one rank: the same number of bytes for each, cut at whole blocks (solid runs stay whole)."""
    total = sum(run.nbytes for run in work)
    low, high = total * rank // ranks, total * (rank + 1) // ranks
    mine, passed = [], 0
    for run in work:
        size = size_of(run.dtype)
        first, last = (_cut(run, edge - passed, size) for edge in (low, high))
        if last > first:
            mine.append(run.part(first, last - first))
        passed += run.nbytes
    return mine


def _cut(run: Chunk, nbytes: int, size: int) -> int:
    """The element at which a run is cut so that about `nbytes` come before."""
    if run.solid:
        return run.count if nbytes >= run.nbytes // 2 + 1 else 0
    return max(0, min(run.count, -(-max(nbytes, 0) // (size * BLOCK)) * BLOCK))


def blocks(run: Chunk) -> Iterator[Chunk]:
    """A run in pieces small enough to stay in the cache."""
    size = max(1 << 12, min(BLOCK, ROWS // max(1, len(run.sources)) & ~0xFFF))
    for start in range(0, run.count, size):
        yield run.part(start, min(size, run.count - start))


def name_at(plan: MergePlan, shard: int, offset: int) -> str:
    """The tensor that owns a byte of the output."""
    return next(t.name for t in plan.tensors if t.shard == shard and t.offset <= offset < t.offset + max(t.nbytes, 1))


def complaint(plan: MergePlan, run: Chunk, what: str, source: Source | None) -> UserError:
    """An error that names the tensor and, where one is to blame, the ingredient's file."""
    name = shown(name_at(plan, run.shard, run.offset))
    where = ""
    if source is not None:
        owner = plan.ingredients[source.ingredient]
        where = f" in {owner.folder}/{owner.files[source.file][0]}"
    return UserError(f"{what} in tensor {name}{where}")


def agree(plan: MergePlan, run: Chunk, rows: Sequence[Raw]) -> None:
    """Refuse values that are not floats and differ between the ingredients."""
    for source, row in zip(run.sources, rows, strict=True):
        if not np.array_equal(row, rows[0]):
            what = f"{run.dtype} values, copied only where all ingredients agree, differ"
            raise complaint(plan, run, what, source)


def check_finite(plan: MergePlan, run: Chunk, good: bool, rows: Sequence[Raw], warned: set[str]) -> None:
    """NaN or infinity in a block of the soup: an error, or with `nonfinite=warn` one warning a tensor.

    `warned` holds the tensors that were warned of.
    """
    if good:
        return
    first = _first_bad(run, rows)
    guilty = None if first is None else run.sources[first[0]]
    at = run if first is None else run.part(first[1], 1)
    error = complaint(plan, at, "overflow to infinity" if guilty is None else "NaN or infinity", guilty)
    if plan.nonfinite == "error":
        raise UserError(f"{error}. Set merge.nonfinite=warn to let it through.")
    with WARNING:
        if str(error) not in warned:
            warned.add(str(error))
            log.warning("%s", error)


def _first_bad(run: Chunk, rows: Sequence[Raw]) -> tuple[int, int] | None:
    """(source, element) of the first value that is not finite."""
    for number, (source, row) in enumerate(zip(run.sources, rows, strict=True)):
        bad = np.flatnonzero(~np.isfinite(widen(row, source.dtype)))
        if len(bad):
            return number, int(bad[0])
    return None


Read = Callable[[Chunk, int, Raw], None]
"""read(chunk, number of the source, buffer to fill)"""


def settled(method: Method, run: Chunk, read: Read) -> Chunk:
    """The chunk with its final weights, which may need statistics of the whole piece."""
    return replace(run, weights=method.weigh(piece_gram(run, method.base, read), run.weights)) if run.solid else run


def mixed(plan: MergePlan, run: Chunk, rows: Sequence[Raw], out: Raw, stored: str, warned: set[str]) -> Raw:
    """The soup's bytes of a block from its sources' rows, as `stored`: in `out`, or the first row where that is it.

    Raises:
        UserError: values that have to agree differ, or one is NaN or infinite (or one warning a tensor).
    """
    if run.op == "same":
        agree(plan, run, rows)
        return rows[0]
    if run.op == "copy" and stored == run.dtype:
        check_finite(plan, run, finite(rows[0], run.dtype), rows, warned)
        return rows[0]
    if run.op == "copy":
        good = store(rows[0], run.dtype, out, stored)
    else:
        function = get_method(plan.method).function if run.op == "mix" else linear
        tags = [source.dtype for source in run.sources]
        good = mix_block(function, rows, tags, run.weights, plan.divisor, run.dtype, out, stored)
    check_finite(plan, run, good, rows, warned)
    return out


def piece_gram(run: Chunk, base: bool, read: Read) -> Gram:
    """`methods.gram` of the run's sources without holding them: fp64 sums of blocks, in order."""
    size = len(run.sources) - base
    total: Gram = np.zeros((size, size))
    for start in range(0, run.count, STEP):
        part = run.part(start, min(STEP, run.count - start))
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
