"""How similar the weights of a pool are, by blocks of their matrices: models of other seeds must not be averaged.

With inner products G = W W' of the models' blocks [M, M], each block divided by its trace and summed, w_i is compared
with the mean m of the others: cosine w_i m / |w_i| |m|, distance |w_i - m| / |m|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.header import FLOATS, TORCH_DTYPES, TORCH_NAMES, widest
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Float32, widen
from souping.core.types import FloatArray, Names
from souping.core.weight_similarity import ModelSimilarity, PoolSimilarity, Rounding
from souping.merge.rounding import narrow

PIECES = 16
"""Pieces of a tensor whose values are compared with an engine's."""
PIECE = 16
"""Values of a piece."""
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
"""Cosine from which on two models are related, by `benchmarks/cosines.py`."""


@dataclass(frozen=True)
class WeightedSum:
    """The soup as sum_k weights[k] x_k of the models, and of the base (last) if there is one.

    It is rounded to `dtype`; None: to that of the models.
    """

    weights: FloatArray  # [M], or [M + 1] with a base
    dtype: str | None


@dataclass(frozen=True)
class SampledBlock:
    """Elements at the same place of all models, the base last if there is one."""

    values: FloatArray  # [M, E]
    dtypes: Names  # [M]
    share: float  # number of the model's elements that the block stands for


@dataclass(frozen=True)
class WeightSample:
    """Sampled blocks of the weights of models, the base last if there is one."""

    models: Names
    has_base: bool
    blocks: Sequence[SampledBlock]

    @classmethod
    def of(cls, models: Checkpoints, base: Checkpoint | None) -> WeightSample:
        """Blocks of the models' weights, as far as they can be compared; none of a single model."""
        pool = [*models.values(), *([] if base is None else [base])]
        blocks = list[SampledBlock]()
        if len(models) > 1:
            blocks = [block for block in _blocks(pool) if is_usable(block.values)]
        return cls(tuple(models), base is not None, blocks)

    def similarity(self) -> PoolSimilarity | None:
        """How similar the models are to each other, and with a base also their differences to it.

        None if there are no blocks.
        """
        if not self.blocks:
            return None
        inner = _inner_products(block.values for block in self.blocks)
        count = len(self.models)
        names = [*self.models]
        rows = dict(zip(self.models, beside_others(inner[:count, :count]), strict=True))
        if self.has_base:
            names.append("merge.base_model")
            # (x_i - b)(x_j - b) from inner products with the base b.
            to_base = inner[:, -1:]
            differences = inner - to_base - to_base.T + inner[-1, -1]
            tasks = beside_others(differences[:count, :count])
            for name, task in zip(self.models, tasks, strict=True):
                rows[name] = replace(
                    rows[name], task_cosine=task.cosine, task_distance=task.distance
                )
        lengths = np.sqrt(np.diag(inner))
        cosines = inner / np.outer(lengths, lengths)
        return PoolSimilarity(
            models=rows,
            groups=related(cosines, names),
            lowest=float(cosines.min()),
            blocks=len(self.blocks),
        )

    # After an overflow to infinity there are no distances.
    @np.errstate(over="ignore", invalid="ignore")
    def rounding(self, soup: WeightedSum) -> Rounding:
        """What storing this soup loses, by sums of squares over the blocks.

        With soup s (`exact`), its rounded weights r (`stored`) and base b: error |r - s| / min_k |s - x_k|, and kept
        (r - b)(s - b) / |s - b|^2.
        """
        values = np.concatenate([block.values for block in self.blocks], axis=1)  # [M, N]
        exact = soup.weights @ values
        # [N] elements of the model that each sampled element stands for.
        elements = [block.values.shape[1] for block in self.blocks]
        shares = [block.share / size for block, size in zip(self.blocks, elements, strict=True)]
        scale = np.repeat(shares, elements)
        tags = [self._dtype(block, soup) for block in self.blocks]
        stored = np.empty_like(exact)
        for tag in set(tags):
            of_dtype = np.repeat([name == tag for name in tags], elements)
            stored[of_dtype] = widen(narrow(exact[of_dtype].astype(np.float32), tag), tag)

        used = np.flatnonzero(soup.weights[: len(self.models)])
        nearest = min(float(scale @ (exact - values[k]) ** 2) for k in used)
        error = float(scale @ (stored - exact) ** 2)
        # The last model is the base; without one, `kept` is None.
        change = exact - values[-1]
        square = float(scale @ change**2)
        # (r - b)(s - b) = |s - b|^2 - (s - b)(s - r).
        lost = float(scale @ (change * (exact - stored)))
        finite = bool(np.isfinite(error))
        return Rounding(
            dtype="+".join(sorted(TORCH_DTYPES[tag] for tag in set(tags))),
            error=float(np.sqrt(error / nearest)) if nearest and finite else None,
            kept=1 - lost / square if self.has_base and square and finite else None,
            largest=float(np.abs(exact).max()),
        )

    def _dtype(self, block: SampledBlock, soup: WeightedSum) -> str:
        """The tag of the dtype that a block's tensor has in the soup."""
        return TORCH_NAMES[soup.dtype] if soup.dtype else widest(block.dtypes[: len(self.models)])


def stored_values(checkpoint: Checkpoint) -> dict[str, Float32]:
    """{tensor: `PIECES` pieces of its values, or all if they are few} of the tensors of floats."""
    values = dict[str, Float32]()
    with WeightReader(checkpoint, exact=True) as reader:
        for name, tensor in checkpoint.tensors.items():
            if tensor.dtype not in FLOATS or not tensor.count:
                continue
            if tensor.count <= PIECES * PIECE:
                values[name] = reader.values(tensor, 0, tensor.count)
                continue
            step = tensor.count // PIECES
            # In the middle of each sixteenth.
            starts = range((step - PIECE) // 2, step * PIECES, step)
            values[name] = np.concatenate([reader.values(tensor, at, PIECE) for at in starts])
    return values


def update_similarity(names: Names, updates: Iterable[FloatArray]) -> PoolSimilarity | None:
    """The similarity of adapters' updates, which are their task vectors, from blocks [M, elements] of the updates.

    All adapters share the weights of one base, so there are no groups.
    """
    # An adapter that was not trained adds nothing: its cosine is None, and the others have theirs.
    blocks = [block for block in updates if np.isfinite(block).all() and block.any()]
    if len(names) < 2 or not blocks:
        return None
    inner = _inner_products(blocks)
    rows = {}
    for name, task in zip(names, beside_others(inner), strict=True):
        rows[name] = ModelSimilarity(
            cosine=None, distance=None, task_cosine=task.cosine, task_distance=task.distance
        )
    return PoolSimilarity(models=rows, groups=(), lowest=None, blocks=len(blocks))


def is_usable(values: FloatArray) -> bool:
    """Whether all rows [M, elements] are finite and none is zero."""
    return bool(np.isfinite(values).all() and values.any(axis=1).all())


def _inner_products(blocks: Iterable[FloatArray]) -> FloatArray:
    """Inner products [M, M] of blocks [M, elements], each divided by its trace, summed over the blocks."""
    products = (values @ values.T for values in blocks)
    inner: FloatArray = np.sum([product / np.trace(product) for product in products], axis=0)
    return inner


def beside_others(inner: FloatArray) -> list[ModelSimilarity]:
    """Cosine of each vector and the mean of the others, and their distance over the length of that mean.

    From inner products [K, K] of the vectors. None for a vector, or a mean, of length 0.
    """
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
    """The names in groups: two are in one group if a chain of cosines of at least `RELATED` joins them."""
    groups = list[set[int]]()
    for i in range(len(names)):
        # All groups that this model is related to become one.
        near = {i, *np.flatnonzero(cosines[i] >= RELATED).tolist()}
        joined = [group for group in groups if group & near]
        groups = [group for group in groups if not group & near]
        groups.append(near.union(*joined))
    related_names = list[Names]()
    for group in sorted(groups, key=min):
        related_names.append(tuple(names[i] for i in sorted(group)))
    return tuple(related_names)


def _blocks(pool: Sequence[Checkpoint]) -> Iterator[SampledBlock]:
    """Blocks of the same places in all models, spread over the matrices that all of them have."""
    # The tensors of one name, in the order of the models.
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
        read: Callable[..., Iterator[Float32]] = map
        if any(reader.remote for reader in readers):
            # Every read is a request.
            count = FEWEST_BLOCKS
            read = stack.enter_context(ThreadPoolExecutor(REQUESTS)).map
        # (reader, tensor, first element, elements) of every read: block by block, model by model.
        places = []
        for number in range(count):
            parts = matrices[number * len(matrices) // count]
            size = min(part.count for part in parts)
            # Places that are spread over the tensors, and the same in every run.
            start = int(number * GOLDEN_RATIO % 1 * max(0, size - BLOCK))
            for reader, part in zip(readers, parts, strict=True):
                places.append((reader, part, start, min(BLOCK, size)))
        rows = read(WeightReader.values, *zip(*places, strict=True))
        for number in range(count):
            parts = matrices[number * len(matrices) // count]
            yield SampledBlock(
                values=np.stack([next(rows) for _ in pool], dtype=np.float64),
                dtypes=tuple(part.dtype for part in parts),
                share=min(part.count for part in parts) * len(matrices) / count,
            )
