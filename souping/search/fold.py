"""Search fold: the blocks of items that all soups answer in the same order, and what was answered, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from souping.core.types import FloatArray, IntArray, SearchSpace
from souping.search.surrogate import KnownCells

FIRST, MOST = 12, 4
"""Items of a first block at least, and blocks of a category at most; each block doubles what was answered before."""
FLOOR, UNKNOWN = 0.02, 0.2
"""Variance of an item's score: the least, and where nothing is known."""
CLUSTERED, CLUSTERING = 2.0, 0.5
"""Most that sharing groups may inflate the noise, and how much of what was found is believed."""


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
        blocks = [(own,) if space.whole else _cut(own, rank[own]) for own in members]
        return cls(tuple(map(tuple, blocks)), weights, groups)

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


class FoldAnswers:
    """Scores [S, I], nan where a soup was not asked, and `depth` [S, C]: how many blocks of a category it answered.

    Blocks are asked in order; answers may come in any. `told` counts scores."""

    def __init__(self, layout: FoldLayout, soups: int) -> None:
        self.layout = layout
        self.values = np.full((soups, layout.items), np.nan)
        self.depth: IntArray = np.zeros((soups, len(layout.blocks)), dtype=int)
        self.told = 0

    @property
    def complete(self) -> IntArray:
        """Soups that answered the whole fold."""
        return np.flatnonzero((self.depth == self.layout.counts).all(1))

    def rest(self, soup: int, depth: IntArray | None = None) -> list[int]:
        """Positions that a soup was not asked."""
        have = (self.depth if depth is None else depth)[soup]
        blocks = [part for c, row in enumerate(self.layout.blocks) for part in row[have[c] :]]
        return [int(i) for part in blocks for i in part]

    def parts(self, soup: int, items: tuple[int, ...] | None) -> list[tuple[int, int]]:
        """(category, block) that these positions (None: all) add to what a soup has answered."""
        wanted = set(range(self.layout.items) if items is None else items)
        return [
            (c, b)
            for c, row in enumerate(self.layout.blocks)
            for b, block in enumerate(row)
            if int(block[0]) in wanted and np.isnan(self.values[soup, block[0]])
        ]

    def hear(self, soup: int, items: tuple[int, ...] | None, values: FloatArray) -> list[tuple[int, int, float]]:
        """Take scores in; (category, block, mean score) of each block that is new."""
        parts = self.parts(soup, items)
        self.values[soup, slice(None) if items is None else list(items)] = values
        for c, b in parts:
            self.depth[soup, c] += 1
            self.told += int(np.isfinite(self.values[soup, self.layout.blocks[c][b]]).sum())
        return [(c, b, float(self.values[soup, self.layout.blocks[c][b]].mean())) for c, b in parts]

    def known(self) -> list[KnownCells]:
        """Mean scores of all answered blocks, category by category."""
        found = []
        for means in self.scores():
            block, soup = np.nonzero(np.isfinite(means.T))
            found.append(KnownCells(soup * means.shape[1] + block, means[soup, block]))
        return found

    def scores(self) -> FloatArray:
        """Mean scores of all blocks [C, S, B], nan where a block was not answered or there is none."""
        found = np.full((len(self.layout.blocks), len(self.values), self.layout.sizes.shape[1]), np.nan)
        for c, row in enumerate(self.layout.blocks):
            for b, block in enumerate(row):
                found[c, :, b] = self.values[:, block].mean(1)
        return found

    def levels(self) -> FloatArray:
        """Mean score of each category over the soups that were asked [C]."""
        found = []
        for items in self.layout.members:
            scores = self.values[:, items]
            count = np.isfinite(scores).sum(1)
            asked = count > 0
            means = np.nansum(scores[asked], 1) / count[asked]
            found.append(float(means.mean()) if asked.any() else 0.5)
        return np.array(found)

    def residuals(self) -> FloatArray:
        """Scores minus the soup's mean of the category [S, I], scaled to be unbiased; nan where there is none."""
        residuals = np.full_like(self.values, np.nan)
        for items in self.layout.members:
            scores = self.values[:, items]
            count = np.isfinite(scores).sum(1, keepdims=True)
            mean = np.nansum(scores, 1, keepdims=True) / np.maximum(count, 1)
            scale = np.sqrt(count / np.maximum(count - 1, 1))
            residuals[:, items] = np.where(count > 1, (scores - mean) * scale, np.nan)
        return residuals

    def deviations(self, residuals: FloatArray, mean: FloatArray | None) -> FloatArray:
        """Standard deviation of one item's score [C, S]. A mean near 0 or 1 varies less, as mean x (1 - mean)."""
        found = []
        for c, items in enumerate(self.layout.members):
            square = residuals[:, items] ** 2
            there = np.isfinite(square)
            seen = there.any(1)
            spread = float(np.nansum(square) / there.sum()) if seen.any() else UNKNOWN
            row = np.full(len(residuals), np.sqrt(max(spread, FLOOR)))
            if mean is not None and seen.any():
                inside = mean[c].clip(0.04, 0.96)
                shape = inside * (1 - inside)
                row *= np.sqrt(shape / shape[seen].mean())
            found.append(row)
        return np.array(found)

    def clustering(self) -> float:
        """Design effect: how much more the objective's differences between soups vary than they would if items of one
        group were independent. From soups that answered the whole fold; 1 where there are fewer than two."""
        done = self.complete[:8]
        scale = np.zeros(self.layout.items)
        for weight, items in zip(self.layout.weights, self.layout.members, strict=True):
            scale[items] = weight / len(items)
        shares = []
        for first in range(len(done)):
            for second in range(first):
                change = self.values[done[first]] - self.values[done[second]]
                for items in self.layout.members:
                    change[items] -= change[items].mean()
                single = float(((change * scale) ** 2).sum())
                if single > 0:
                    shares.append(float((np.bincount(self.layout.groups, change * scale) ** 2).sum()) / single)
        return float(np.clip(1 + CLUSTERING * (np.mean(shares) - 1), 1.0, CLUSTERED)) if shares else 1.0


def _cut(own: IntArray, rank: IntArray) -> list[IntArray]:
    """Blocks of a category's items: each as large as all before it, cut where a group ends."""
    ends = 1 + np.flatnonzero(np.diff(rank))
    depth = min(MOST, 1 + int(np.log2(max(len(own) / FIRST, 1))))
    wanted = [len(own) / 2**k for k in range(depth - 1, 0, -1)]
    cuts = sorted({int(ends[np.argmin(abs(ends - w))]) for w in wanted} if len(ends) else ())
    return np.split(own, cuts)
