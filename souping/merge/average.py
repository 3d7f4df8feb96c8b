"""Cooking a plan: stream blocks of the ingredients from their files through the method into the shards.

Two threads each read N rows (`preadv`), mix them and write the block; numpy and the kernels release the interpreter's
lock. Memory is a few blocks a thread, whatever the size or the number of models.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from souping.core import UserError
from souping.merge.blocks import mix
from souping.merge.kernels import Raw, finite, linear
from souping.merge.layout import Ingredient, MergePlan
from souping.merge.methods import get_method
from souping.merge.runs import Run, agree, blocks, check_finite, complaint, runs, share, size_of
from souping.merge.statistics import piece_gram

Progress = Callable[[int, int], None]
"""progress(bytes written, bytes to write)"""
THREADS = 2
WINDOW = 16 << 20  # bytes of a shard that go to the disk at once, behind the mixing


class Kitchen:
    """A plan with its files open: cooks any share of the output into shards that exist already (`prepare`)."""

    def __init__(self, plan: MergePlan, folder: Path) -> None:
        self.plan, self.method, self._stack = plan, get_method(plan.method), ExitStack()
        self._lock, self._done, self._failed = threading.Lock(), 0, False
        self._warned: set[str] = set()
        try:
            self._inputs = [self._open_all(ingredient) for ingredient in plan.ingredients]
            self._outputs = [self._open(folder / name, os.O_RDWR, None) for name in plan.shards]
        except BaseException:
            self._stack.close()
            raise
        self._starts = [len(plan.header(shard)) for shard in range(len(plan.shards))]

    def __enter__(self) -> Kitchen:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open_all(self, ingredient: Ingredient) -> list[int]:
        return [self._open(Path(ingredient.folder) / name, os.O_RDONLY, size) for name, size in ingredient.files]

    def _open(self, path: Path, flags: int, size: int | None) -> int:
        try:
            descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        self._stack.callback(os.close, descriptor)
        if size is not None and os.fstat(descriptor).st_size != size:
            raise UserError(f"{path} has changed since the plan was made: plan again")
        return descriptor

    def cook(self, rank: int = 0, ranks: int = 1, threads: int = THREADS, progress: Progress | None = None) -> None:
        """Write the blocks of one share.

        Raises:
            UserError: an ingredient ended early, a value is not finite, or the disk is full.
        """
        work = share(runs(self.plan), rank, ranks)
        total, queue = sum(run.nbytes for run in work), self._queue(work)
        self._done = 0
        with ThreadPoolExecutor(threads, thread_name_prefix="souping") as pool:
            jobs = [pool.submit(self._drain, queue, total, progress) for _ in range(threads)]
        for job in jobs:
            job.result()

    def _queue(self, work: list[Run]) -> Iterator[Run]:
        """Blocks in order; a solid run gets its weights from its statistics first, then streams like any other."""
        for run in work:
            yield from [run] if run.solid and self.method.whole else blocks(self._settle(run))

    def _settle(self, run: Run) -> Run:
        if not run.solid:
            return run
        return replace(run, weights=self.method.weigh(piece_gram(run, self.method.base, self.read), run.weights))

    def _drain(self, queue: Iterator[Run], total: int, progress: Progress | None) -> None:
        """A thread's life: take a block, cook it, until the queue is empty or another thread failed."""
        bench = Bench()
        try:
            while (run := self._next(queue)) is not None:
                self._block(run, bench)
                with self._lock:
                    self._done += run.nbytes
                    if progress is not None:
                        progress(self._done, total)
        except BaseException:
            self._failed = True
            raise

    def _next(self, queue: Iterator[Run]) -> Run | None:
        with self._lock:
            return None if self._failed else next(queue, None)

    def read(self, run: Run, number: int, into: Raw) -> None:
        """The bytes of a run's source `number`, whole or a UserError."""
        source = run.sources[number]
        descriptor, offset = self._inputs[source.ingredient][source.file], source.offset
        view = into.data
        while len(view):
            count = os.preadv(descriptor, [view], offset)
            if count <= 0:
                raise complaint(self.plan, run, "the file ends early", source)
            view, offset = view[count:], offset + count

    def _block(self, run: Run, bench: Bench) -> None:
        rows = [bench.row(i, run.count * size_of(s.dtype)) for i, s in enumerate(run.sources)]
        for number, row in enumerate(rows):
            self.read(run, number, row)
        out = rows[0]
        if run.op == "same":
            agree(self.plan, run, rows)
        elif run.op == "copy":
            self._check(run, finite(out, run.dtype), rows)
        else:
            function = self.method.function if run.op == "mix" else linear
            out = bench.row(-1, run.nbytes)
            tags = [source.dtype for source in run.sources]
            good = mix(function, rows, tags, run.weights, self.plan.divisor, run.dtype, out, run.dtype)
            self._check(run, good, rows)
        self._write(run, out)

    def _check(self, run: Run, good: bool, rows: list[Raw]) -> None:
        if not good:
            with self._lock:
                check_finite(self.plan, run, good, rows, self._warned)

    def _write(self, run: Run, out: Raw) -> None:
        descriptor, view, offset = self._outputs[run.shard], out.data, self._starts[run.shard] + run.offset
        window = offset // WINDOW
        if window != (offset + len(view)) // WINDOW:
            start_writing(descriptor, (window - 1) * WINDOW)
        while len(view):
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count


def start_writing(descriptor: int, offset: int) -> None:
    """Send a window that is complete to the disk while the next ones are mixed, so that the last flush is short.

    Advice on dirty pages starts their writing (they stay in the cache until then); elsewhere it does nothing.
    """
    if hasattr(os, "posix_fadvise") and offset >= 0:
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, WINDOW, os.POSIX_FADV_DONTNEED)


class Bench:
    """A thread's buffers, made once and reused for every block."""

    def __init__(self) -> None:
        self._rows: dict[int, Raw] = {}

    def row(self, number: int, nbytes: int) -> Raw:
        if number not in self._rows or len(self._rows[number]) < nbytes:
            self._rows[number] = np.empty(nbytes, np.uint8)
        return self._rows[number][:nbytes]


def prepare(plan: MergePlan, folder: Path) -> None:
    """Make the shards at their full size with their headers; a disk that is too full says so here.

    Raises:
        OSError: no space, or no right to write.
    """
    for shard, name in enumerate(plan.shards):
        header = plan.header(shard)
        size = len(header) + sum(tensor.nbytes for tensor in plan.tensors if tensor.shard == shard)
        with (folder / name).open("xb") as file:
            file.write(header)
            file.flush()
            _reserve(file.fileno(), size)


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)
