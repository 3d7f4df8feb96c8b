"""Answers of a search, item by item, and what they say of the prior: levels, spreads, how alike soups answer."""

from __future__ import annotations

import numpy as np

from souping.core.types import FloatArray, IntArray
from souping.search.layout import FoldLayout
from souping.search.surrogate import KnownCells

FLOOR, UNKNOWN = 0.02, 0.2
"""Variance of an item's score: the least, and where nothing is known."""
CLUSTERED, CLUSTERING = 2.0, 0.5
"""Most that sharing groups may inflate the noise, and how much of what was found is believed."""


class FoldAnswers:
    """Scores [S, I], nan where a soup was not asked, and `depth` [S, C]: how many blocks of a category it answered.

    Blocks are asked in order; answers may come in any."""

    def __init__(self, layout: FoldLayout, soups: int) -> None:
        self.layout = layout
        self.values = np.full((soups, layout.items), np.nan)
        self.depth: IntArray = np.zeros((soups, len(layout.blocks)), dtype=int)

    @property
    def told(self) -> int:
        """Scores that are known."""
        return int(np.isfinite(self.values).sum())

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
        for category, _ in parts:
            self.depth[soup, category] += 1
        return [(c, b, float(self.values[soup, self.layout.blocks[c][b]].mean())) for c, b in parts]

    def known(self) -> list[KnownCells]:
        """Mean scores of all answered blocks, category by category."""
        wide, found = self.layout.sizes.shape[1], []
        for row in self.layout.blocks:
            means = [self.values[:, block].mean(1) for block in row]
            cells = [(int(s), b) for b in range(len(row)) for s in np.flatnonzero(np.isfinite(means[b]))]
            places = np.array([s * wide + b for s, b in cells], dtype=int)
            found.append(KnownCells(places, np.array([means[b][s] for s, b in cells])))
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
            seen = np.isfinite(square).any(1)
            spread = float(np.nanmean(square)) if seen.any() else UNKNOWN
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
