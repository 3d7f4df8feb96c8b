"""How similar the weights of a pool are, by blocks of their matrices: models of other seeds must not be averaged.

With inner products G = W W' of the models' blocks [M, M], each block divided by its trace and summed, w_i is compared
with the mean m of the others: cosine w_i m / |w_i| |m|, distance |w_i - m| / |m|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.header import FLOATS, Tensor, size_of
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
REQUESTS = 16
"""Blocks that are fetched from a bucket at once."""
GOLDEN_RATIO = 0.6180339887498949
RELATED = 0.5
"""Cosine from which on two models are related, by `benchmarks/families.py`."""


def pool_similarity(models: Checkpoints, base: Checkpoint | None) -> PoolSimilarity | None:
    """The similarity of at least two models; None if nothing can be compared."""
    names = [*models]
    pool = [*models.values()]
    count = len(names)
    if count < 2:
        return None
    if base is not None:
        names.append("merge.base")
        pool.append(base)
    inner, blocks = _inner_products(_blocks(pool), len(pool))
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


def update_similarity(names: Names, updates: Iterable[FloatArray]) -> PoolSimilarity | None:
    """The similarity of what adapters add to their base, from blocks [M, elements] of it: their task vectors.

    All have the weights of one base, so there are no groups.
    """
    inner, blocks = _inner_products(updates, len(names))
    if len(names) < 2 or not blocks:
        return None
    rows = {}
    for name, task in zip(names, beside_others(inner), strict=True):
        rows[name] = ModelSimilarity(
            cosine=None, distance=None, task_cosine=task.cosine, task_distance=task.distance
        )
    return PoolSimilarity(models=rows, groups=(), lowest=None, blocks=blocks)


def _inner_products(blocks: Iterable[FloatArray], count: int) -> tuple[FloatArray, int]:
    """Inner products [M, M] of blocks [M, elements] without zero rows, and the number of these blocks."""
    inner = np.zeros((count, count))
    used = 0
    for block in blocks:
        if np.isfinite(block).all() and block.any(axis=1).all():
            products = block @ block.T
            inner += products / np.trace(products)
            used += 1
    return inner, used


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
    related_names = list[Names]()
    for group in sorted(groups, key=min):
        related_names.append(tuple(names[i] for i in sorted(group)))
    return tuple(related_names)


def _blocks(pool: Sequence[Checkpoint]) -> Iterator[FloatArray]:
    """Blocks [M, elements] of the same places in all models, spread over their matrices."""
    matrices = []
    for name in sorted(pool[0].tensors):
        parts = [model.tensors[name] for model in pool if name in model.tensors]
        floats = all(part.dtype in FLOATS and len(part.shape) > 1 for part in parts)
        if floats and len(parts) == len(pool):
            matrices.append(parts)
    if not matrices:
        return
    with ExitStack() as stack:
        readers = [stack.enter_context(WeightReader(model, exact=True)) for model in pool]
        count = min(MOST_BLOCKS, max(FEWEST_BLOCKS, READS // len(pool)))
        read: Callable[..., Iterator[FloatArray]] = map
        if any(reader.remote for reader in readers):
            # Every read is a request.
            count = FEWEST_BLOCKS
            read = stack.enter_context(ThreadPoolExecutor(REQUESTS)).map
        places = []
        for number in range(count):
            parts = matrices[number * len(matrices) // count]
            size = min(part.count for part in parts)
            start = int(number * GOLDEN_RATIO % 1 * max(0, size - BLOCK))
            for model, reader, part in zip(pool, readers, parts, strict=True):
                places.append((model, reader, part, start, min(BLOCK, size)))
        rows = read(_values, *zip(*places, strict=True))
        for _ in range(count):
            yield np.stack([next(rows) for _ in pool])


def _values(
    model: Checkpoint, reader: WeightReader, part: Tensor, start: int, count: int
) -> FloatArray:
    """`count` values of a tensor from value `start` on."""
    size = size_of(part.dtype)
    raw = np.empty(count * size, np.uint8)
    reader.read(model.file_number(part), raw, part.offset + start * size)
    return widen(raw, part.dtype).astype(np.float64)
