"""Soups mixed by torch: the arithmetic of `kernels` on devices other than the CPU, and a rank's share on its GPU.

`add_(x, alpha=w)` is one fused multiply-add on fp32, in the plan's order; roundings are IEEE's. Whether the device at
hand really does that is tried before ranks trust it (`agrees`).

`CudaShardWriter` needs CUDA, and is not covered by tests on machines without it. Each of its reading threads has two
slots, and each slot a stream of its own with pinned rows on the host and rows on the device. While the block of one
slot is copied in, mixed and copied out, the thread reads the files of the next block into the other slot:

    slot 0   read | copy in, mix, copy out  | write | read ...
    slot 1          read                    | copy in, mix, copy out | write

Copies of one slot also run beside the arithmetic of other threads. Tensors that are only copied, and methods that have
no form in torch, are mixed on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.dtypes import FLOATS, TORCH_DTYPES, size_of
from souping.core.protocols import Progress
from souping.core.text import first_line
from souping.core.types import UserError
from souping.merge.chunks import Chunk, blocks, check_finite
from souping.merge.kernels import DIFFERENCES, NAN, Combine, Raw, finite, linear, narrow, widen
from souping.merge.plan import MergePlan
from souping.merge.writer import Buffers, ShardWriter

if TYPE_CHECKING:
    import torch

SAMPLE = 4099


def blend(
    function: Combine,
    rows: Sequence[torch.Tensor],
    dtypes: Sequence[str],
    weights: Sequence[float],
    dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix rows [K] of bytes [count * itemsize] of `dtypes`; returns the soup's bytes and whether all is finite [].

    `function` is one of `DIFFERENCES`.
    """
    import torch

    base = _wide(rows[0], dtypes[0]) if DIFFERENCES[function] else None
    first = 0 if base is None else 1
    count = rows[0].numel() // size_of(dtypes[0])
    total = torch.zeros(count, dtype=torch.float32, device=rows[0].device)
    for row, tag, weight in zip(rows[first:], dtypes[first:], weights[first:], strict=True):
        value = _wide(row, tag)
        total.add_(value if base is None else value - base, alpha=float(np.float32(weight)))
    if base is not None:
        total.add_(base)
    return _rounded(total, dtype)


def copied(row: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of `dtype` as they are, and whether all is finite []."""
    import torch

    return row, torch.isfinite(row.view(torch_dtype(dtype))).all()


def torch_dtype(tag: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[tag])  # torch's
    return dtype


def _wide(row: torch.Tensor, dtype: str) -> torch.Tensor:
    import torch

    return row.view(torch_dtype(dtype)).to(torch.float32)


def _rounded(total: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One rounding to `dtype`; devices have NaNs of their own, files get the quiet one."""
    import torch

    soup = total.to(torch_dtype(dtype))
    bits = soup.view(torch.int32 if size_of(dtype) == 4 else torch.int16)
    bits.masked_fill_(torch.isnan(soup), NAN[dtype])
    return bits.view(torch.uint8), torch.isfinite(soup).all()


def agrees(device: torch.device) -> bool:
    """Whether the device's bits are those of `kernels` on a sample with all kinds of values."""
    return all(
        _same(device, function, source, dtype) for function in DIFFERENCES for source in FLOATS for dtype in FLOATS
    )


def _same(device: torch.device, function: Combine, source: str, dtype: str) -> bool:
    import torch

    raws, weights = _sample(source), (0.15, 0.85, 0.5, 1 / 3)
    with np.errstate(over="ignore", invalid="ignore"):
        total = function([widen(raw, source) for raw in raws], weights)
        wanted = narrow(total, dtype)
    rows = [torch.from_numpy(raw).to(device) for raw in raws]
    got, good = blend(function, rows, [source] * len(rows), weights, dtype)
    return np.array_equal(got.cpu().numpy(), wanted) and bool(good) == finite(wanted, dtype)


def _sample(dtype: str) -> list[Raw]:
    """Four rows: two of ordinary numbers, two of random bits."""
    random = np.random.default_rng(len(dtype))
    ordinary = [narrow(random.standard_normal(SAMPLE, np.float32), dtype) for _ in range(2)]
    size = SAMPLE * size_of(dtype)
    return [*ordinary, *(np.frombuffer(random.bytes(size), np.uint8).copy() for _ in range(2))]


ELEMENTS = 1 << 23  # of all ingredients in a slot: at most 32 MiB pinned, and as much on the device
LARGEST = 1 << 22  # elements of one block


class CudaShardWriter(ShardWriter):
    """`ShardWriter` whose sums run on a GPU; the bytes are the same."""

    def __init__(self, plan: MergePlan, folder: Path, device: torch.device) -> None:
        super().__init__(plan, folder)
        self._device = device

    def _cut(self, chunk: Chunk) -> Iterator[Chunk]:
        """Larger blocks: a copy to the device has to be worth its start."""
        return blocks(chunk, LARGEST, ELEMENTS)

    def _drain(self, queue: Iterator[Chunk], total: int, progress: Progress | None) -> None:
        import torch

        try:
            with torch.cuda.device(self._device), torch.no_grad():
                self._alternate(queue, [_Buffer(self._device), _Buffer(self._device)], total, progress)
        except torch.OutOfMemoryError as error:
            self._failed = True
            raise UserError(f"the GPU's memory is full: {first_line(error)}") from None
        except BaseException:
            self._failed = True
            raise

    def _alternate(self, queue: Iterator[Chunk], slots: list[_Buffer], total: int, progress: Progress | None) -> None:
        turn = 0
        while (block := self._next(queue)) is not None:
            slot = slots[turn % 2]
            self._finish(slot, total, progress)
            self._begin(slot, block[0])
            turn += 1
        self._finish(slots[turn % 2], total, progress)  # the older one first
        self._finish(slots[(turn + 1) % 2], total, progress)

    def _begin(self, slot: _Buffer, chunk: Chunk) -> None:
        """Read a block; start its way to the device and back."""
        function = self.method.function if chunk.op == "mix" else linear
        slot.chunk = chunk
        if chunk.op not in ("mix", "linear") or function not in DIFFERENCES:
            self._block(chunk, slot.buffers)
            slot.pending = False
            return
        for number, source in enumerate(chunk.sources):
            self.read(chunk, number, slot.row(number, chunk.count * size_of(source.dtype)))
        slot.start(function)

    def _finish(self, slot: _Buffer, total: int, progress: Progress | None) -> None:
        """Write what the slot holds, if it holds something."""
        chunk, slot.chunk = slot.chunk, None
        if chunk is None:
            return
        if slot.pending:
            out, good = slot.wait(chunk.nbytes)
            rows = [slot.row(i, chunk.count * size_of(s.dtype)) for i, s in enumerate(chunk.sources)]
            check_finite(self.plan, chunk, good, rows, self._warned)
            self._write(chunk, out)
        with self._lock:
            self._done += chunk.nbytes
            if progress is not None:
                progress(self._done, total)


class _Buffer:
    """One block on its way: a stream, pinned rows on the host (the last is the soup's), rows on the device.

    Everything the stream reads or writes stays alive until `wait` has seen its end, and temporaries are allocated on
    the stream itself, so the allocator reuses them in its order.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self.chunk: Chunk | None = None
        self.pending, self.buffers = False, Buffers()
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._event = torch.cuda.Event()
        self._pinned: dict[int, torch.Tensor] = {}
        self._rows: dict[int, torch.Tensor] = {}
        self._flag = torch.empty(1, dtype=torch.bool, pin_memory=True)

    def row(self, number: int, nbytes: int) -> Raw:
        """The first bytes of pinned row `number` as numpy; -1 is the soup's."""
        view: Raw = self._host(number, nbytes).numpy()
        return np.asarray(view)

    def start(self, function: Combine) -> None:
        """Queue copy in, arithmetic and copy out of the block in `chunk`; returns at once."""
        import torch

        chunk = self.chunk
        assert chunk is not None
        sizes = [chunk.count * size_of(source.dtype) for source in chunk.sources]
        with torch.cuda.stream(self._stream):
            rows = [self._on_device(number, size) for number, size in enumerate(sizes)]
            for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
                row.copy_(self._host(number, size), non_blocking=True)
            tags = [source.dtype for source in chunk.sources]
            soup, finite = blend(function, rows, tags, chunk.weights, chunk.dtype)
            self._host(-1, chunk.nbytes).copy_(soup, non_blocking=True)
            self._flag.copy_(finite.reshape(1), non_blocking=True)
            self._event.record(self._stream)
        self.pending = True

    def wait(self, nbytes: int) -> tuple[Raw, bool]:
        """The soup's bytes and whether all are finite, when the stream has delivered them."""
        self._event.synchronize()
        self.pending = False
        return self.row(-1, nbytes), bool(self._flag[0])

    def _host(self, number: int, nbytes: int) -> torch.Tensor:
        import torch

        if number not in self._pinned or self._pinned[number].numel() < nbytes:
            self._pinned[number] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        return self._pinned[number][:nbytes]

    def _on_device(self, number: int, nbytes: int) -> torch.Tensor:
        import torch

        if number not in self._rows or self._rows[number].numel() < nbytes:
            self._rows[number] = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return self._rows[number][:nbytes]
