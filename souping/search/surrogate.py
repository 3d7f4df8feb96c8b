"""Surrogate of a search: a Gaussian process a category over soups, seen through blocks of items that soups share.

The score of soup s in category c on a block b of n items is f(s) + g(s) / sqrt(n), where f is the category's true mean
and g what chance put into the block: f ~ GP(0, signal), g ~ GP(0, noise), one g a block for all soups. Two soups close
to each other answer nearly alike, so their g is nearly the same and a difference on shared items is sharp: the pairing
that lets a search do with few items. Conditioning is exact (a Cholesky factor that grows by a row an observation;
Rasmussen and Williams 2006, chapter 2), so a block of an easy half of a category that the single models have answered
too is known to be easy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from souping.core.types import FloatArray

JITTER = 1e-8


class Surrogate:
    """Posterior of C categories over S soups and S x B cells (soup, block), cell m = s * B + b.

    `signal` and `noise` are covariances [C, S, S], the second of one item's score; `sizes` [C, B] counts the items of a
    block (0: there is none), `level` [C] is the prior mean.
    """

    def __init__(self, signal: FloatArray, noise: FloatArray, sizes: FloatArray, level: FloatArray) -> None:
        self.signal, self.noise, self.sizes = signal, noise, sizes
        count, soups, _ = signal.shape
        self.blocks = blocks = sizes.shape[1]
        self.mean = np.repeat(level[:, None], soups, 1)
        self.cells = np.repeat(self.mean, blocks, 1)
        self.cov = signal.copy()
        self.cross = np.repeat(signal, blocks, 2)
        own = np.einsum("css->cs", noise)[:, :, None] / np.maximum(sizes, 1)[:, None, :]
        self.spread = np.repeat(np.einsum("css->cs", signal), blocks, 1) + own.reshape(count, -1)
        self._rows: list[list[FloatArray]] = [[] for _ in range(count)]
        self._factor = np.zeros((count, 8, soups * blocks))
        self._depth = [0] * count

    def observe(self, category: int, soup: int, block: int, value: float) -> None:
        """Condition on the mean score of a soup on a block."""
        c, m, n = category, soup * self.blocks + block, self._depth[category]
        if n == self._factor.shape[1]:
            self._factor = np.concatenate([self._factor, np.zeros_like(self._factor)], 1)
        factor = self._factor[c, :n]
        scale = 1 / np.sqrt(max(self.spread[c, m], JITTER))
        prior = np.repeat(self.signal[c, soup], self.blocks)
        prior[block :: self.blocks] += self.noise[c, soup] / self.sizes[c, block]
        row = (prior - factor[:, m] @ factor) * scale
        column = self.cross[c, :, m] * scale
        shift = (value - self.cells[c, m]) * scale
        self._factor[c, n] = row
        self._depth[c] = n + 1
        self.mean[c] += shift * column
        self.cells[c] += shift * row
        self.spread[c] -= row**2
        self.cov[c] -= np.outer(column, column)
        self.cross[c] -= np.outer(column, row)

    def objective(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of the objective with `weights` [C]."""
        return weights @ self.mean, np.einsum("c,cst->st", weights**2, self.cov)

    def reduction(self, leader: int, rivals: Sequence[int], weights: FloatArray) -> FloatArray:
        """How much each cell would take off the variance of rival minus leader, [R, C, S * B]."""
        change = self.cross[:, rivals] - self.cross[:, [leader]]
        drop = weights[:, None, None] ** 2 * change**2 / np.maximum(self.spread, JITTER)[:, None]
        return drop.transpose(1, 0, 2)
