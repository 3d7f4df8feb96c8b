"""How similar the weights of a pool are, by blocks of their matrices: models of other seeds must not be averaged.

With inner products G = W W' of the models' blocks [M, M], each block divided by its trace and summed, w_i is compared
with the mean m of the others: cosine w_i m / |w_i| |m|, distance |w_i - m| / |m|.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.header import FLOATS, size_of
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import widen
from souping.core.similarity import ModelSimilarity, PoolSimilarity
from souping.core.types import FloatArray, Names

BLOCK = 1024
"""Elements of a block at most."""
READS = 256
"""Blocks that are read of all models together."""
FEWEST_BLOCKS = 8
"""Blocks of a model at least, and at most."""
MOST_BLOCKS = 64
GOLDEN_RATIO = 0.6180339887498949
RELATED = 0.5
"""Cosine from which on two models are related, by `benchmarks/families.py`."""


def pool_similarity(models: Checkpoints, base: Checkpoint | None) -> PoolSimilarity | None:
    """The similarity of at least two models; None if nothing can be compared, or weights are in a bucket."""
    names = [*models]
    pool = [*models.values()]
    count = len(names)
    if base is not None:
        names.append("merge.base")
        pool.append(base)
    inner = np.zeros((len(pool), len(pool)))
    blocks = 0
    for block in _blocks(pool) if count > 1 else ():
        if np.isfinite(block).all() and block.any(axis=1).all():
            products = block @ block.T
            inner += products / np.trace(products)
            blocks += 1
    if not blocks:
        return None

    rows = dict(zip(models, beside_others(inner[:count, :count]), strict=True))
    if base is not None:
        to_base = inner[:, -1:]
        differences = inner - to_base - to_base.T + inner[-1, -1]
        tasks = beside_others(differences[:count, :count])
        for name, task in zip(models, tasks, strict=True):
            rows[name] = replace(rows[name], task_cosine=task.cosine, task_distance=task.distance)
    lengths = np.sqrt(np.diag(inner))
    cosines = inner / np.outer(lengths, lengths)
    lowest = float(cosines.min())
    return PoolSimilarity(models=rows, groups=related(cosines, names), lowest=lowest, blocks=blocks)


def beside_others(inner: FloatArray) -> list[ModelSimilarity]:
    """Each vector beside the mean of the others, from inner products [K, K]."""
    rows = list[ModelSimilarity]()
    for i in range(len(inner)):
        others = np.arange(len(inner)) != i
        square = inner[i, i]
        product = inner[i, others].mean()
        mean_square = inner[np.ix_(others, others)].mean()
        if min(square, mean_square) <= 0:
            rows.append(ModelSimilarity(cosine=None, distance=None))
            continue
        between = max(0.0, square - 2 * product + mean_square)
        cosine = float(product / np.sqrt(square * mean_square))
        distance = float(np.sqrt(between / mean_square))
        rows.append(ModelSimilarity(cosine=cosine, distance=distance))
    return rows


def related(cosines: FloatArray, names: Sequence[str]) -> tuple[Names, ...]:
    """The groups of names that a chain of cosines of at least `RELATED` joins."""
    groups = list[set[int]]()
    for i in range(len(names)):
        near = {i, *np.flatnonzero(cosines[i] >= RELATED).tolist()}
        joined = [group for group in groups if group & near]
        groups = [group for group in groups if not group & near]
        groups.append(near.union(*joined))
    return tuple(tuple(names[i] for i in sorted(group)) for group in sorted(groups, key=min))


def _blocks(pool: Sequence[Checkpoint]) -> Iterator[FloatArray]:
    """Blocks [M, elements] of the same places in all models, spread over their matrices; none from a bucket."""
    matrices = []
    for name in sorted(pool[0].tensors):
        parts = [model.tensors[name] for model in pool if name in model.tensors]
        floats = all(part.dtype in FLOATS and len(part.shape) > 1 for part in parts)
        if floats and len(parts) == len(pool):
            matrices.append(parts)
    with ExitStack() as stack:
        readers = [stack.enter_context(WeightReader(model)) for model in pool]
        if not matrices or any(reader.remote for reader in readers):
            return
        count = min(MOST_BLOCKS, max(FEWEST_BLOCKS, READS // len(pool)))
        for number in range(count):
            parts = matrices[number * len(matrices) // count]
            size = min(part.count for part in parts)
            start = int(number * GOLDEN_RATIO % 1 * max(0, size - BLOCK))
            rows = []
            for model, reader, part in zip(pool, readers, parts, strict=True):
                item = size_of(part.dtype)
                raw = np.empty(min(BLOCK, size) * item, np.uint8)
                reader.read(model.file_number(part), raw, part.offset + start * item)
                rows.append(widen(raw, part.dtype).astype(np.float64))
            yield np.stack(rows)
