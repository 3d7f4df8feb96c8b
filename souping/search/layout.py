"""Layout of a search fold: its categories, and in each the blocks of items that all soups answer in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from souping.core.types import FloatArray, IntArray, SearchSpace

FIRST, MOST = 12, 4
"""Items of a first block at least, and blocks of a category at most; each block doubles what was answered before."""


@dataclass(frozen=True)
class FoldLayout:
    """Blocks of positions, `blocks[c][b]` [n]; `weights` [C] are the objective's. A random order of groups, fixed by
    the seed, makes every prefix a random sample; groups stay together."""

    blocks: tuple[tuple[IntArray, ...], ...]
    weights: FloatArray
    groups: IntArray

    @classmethod
    def of(cls, space: SearchSpace, seed: int) -> FoldLayout:
        names = list(space.coefficients)
        groups = np.unique(np.array(space.groups), return_inverse=True)[1]
        rank = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
        order = np.argsort(rank, kind="stable")
        categories = np.array(space.categories)[order]
        members = [order[categories == name] for name in names]
        weights = np.array([space.coefficients[name] for name in names], dtype=float)
        cut = (lambda own: (own,)) if space.whole else (lambda own: _cut(own, rank[own]))
        return cls(tuple(tuple(cut(own)) for own in members), weights, groups)

    @cached_property
    def sizes(self) -> FloatArray:
        """Items of each block [C, B], 0 where there is none."""
        width = max(map(len, self.blocks))
        return np.array([[len(b) for b in row] + [0] * (width - len(row)) for row in self.blocks], dtype=float)

    @cached_property
    def members(self) -> list[IntArray]:
        """Positions of each category's items, in the order in which they are asked."""
        return [np.concatenate(row) for row in self.blocks]

    @cached_property
    def counts(self) -> IntArray:
        """Blocks of each category [C]."""
        return np.array([len(row) for row in self.blocks])

    @property
    def items(self) -> int:
        return int(self.sizes.sum())


def _cut(own: IntArray, rank: IntArray) -> list[IntArray]:
    """Blocks of a category's items: each as large as all before it, cut where a group ends."""
    ends = 1 + np.flatnonzero(np.diff(rank))
    depth = min(MOST, 1 + int(np.log2(max(len(own) / FIRST, 1))))
    wanted = [len(own) / 2**k for k in range(depth - 1, 0, -1)]
    cuts = sorted({int(ends[np.argmin(abs(ends - w))]) for w in wanted} if len(ends) else ())
    return np.split(own, cuts)
