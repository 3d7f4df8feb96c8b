"""Work of a merge plan in pieces: chunks, which ranks share, and blocks, which threads mix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from souping.checkpoints.header import size_of
from souping.merge.kernels import BLOCK_ELEMENTS, get_method
from souping.merge.plan import MergePlan, PlannedTensor, Source

# elements of all ingredients that a thread holds at once: memory does not grow with their number
THREAD_ELEMENTS = 1 << 21
ThreadTask = Callable[[], None]


@dataclass(frozen=True)
class Chunk:
    """`count` elements of a shard from byte `offset` of its data, mixed by one rule from contiguous bytes.

    An `indivisible` chunk is a band that one rank mixes; it is one block too if the method takes bands `whole`.
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
        """Elements `start .. start + count` of this chunk."""
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
    bands_matter = method.whole or method.coefficients is not None
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
            indivisible=bands_matter and band.op == "mix",
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
    """The chunks of one rank: as many bytes for each, cut at whole blocks (indivisible chunks stay whole)."""
    total = sum(chunk.nbytes for chunk in work)
    low = total * rank // ranks
    high = total * (rank + 1) // ranks
    share = []
    passed = 0
    for chunk in work:
        size = size_of(chunk.dtype)
        first = _cut(chunk, low - passed, size)
        end = _cut(chunk, high - passed, size)
        if end > first:
            share.append(chunk.part(first, end - first))
        passed += chunk.nbytes
    return share


def _cut(chunk: Chunk, nbytes: int, size: int) -> int:
    """The element at which a chunk is cut so that about `nbytes` come before."""
    if chunk.indivisible:
        return chunk.count if nbytes >= chunk.nbytes // 2 + 1 else 0
    blocks_before = -(-max(nbytes, 0) // (size * BLOCK_ELEMENTS))
    return min(chunk.count, blocks_before * BLOCK_ELEMENTS)


def blocks(chunk: Chunk, most: int | None = None, rows: int = THREAD_ELEMENTS) -> Iterator[Chunk]:
    """A chunk in blocks of at most `most` elements (default: BLOCK_ELEMENTS), fewer if all ingredients together would
    hold more than `rows`. One that is taken whole is one block."""
    if chunk.whole:
        yield chunk
        return
    # A multiple of 4096 elements of each ingredient.
    row = rows // max(1, len(chunk.sources)) & ~0xFFF
    size = max(1 << 12, min(most or BLOCK_ELEMENTS, row))
    for start in range(0, chunk.count, size):
        yield chunk.part(start, min(size, chunk.count - start))


def run_tasks(tasks: Iterable[ThreadTask], threads: int) -> None:
    """Do all tasks, taken in order by so many threads. Raises what the first of them that failed raised."""
    queue = iter(enumerate(tasks))
    failures = dict[int, BaseException]()
    lock = threading.Lock()

    def drain() -> None:
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
            except BaseException as error:
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
