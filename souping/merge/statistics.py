"""Inner products of whole tensors, summed block by block: what angles and norms need, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from souping.merge.header import BITS
from souping.merge.kernels import Raw, widen
from souping.merge.methods import Gram, gram
from souping.merge.runs import Run

STEP = 1 << 16  # elements; a fixed step gives the same sums whoever computes them
Read = Callable[[Run, int, Raw], None]
"""read(run, number of the source, buffer to fill)"""


def piece_gram(run: Run, base: bool, read: Read) -> Gram:
    """`methods.gram` of the run's sources without holding them: fp64 sums of blocks, in order."""
    size = len(run.sources) - base
    total: Gram = np.zeros((size, size))
    for start in range(0, run.count, STEP):
        part = run.part(start, min(STEP, run.count - start))
        rows = [np.empty(part.count * BITS[s.dtype] // 8, np.uint8) for s in part.sources]
        for number, row in enumerate(rows):
            read(part, number, row)
        total += gram([widen(row, s.dtype) for row, s in zip(rows, part.sources, strict=True)], base)
    return total
