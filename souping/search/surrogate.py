"""Surrogate of a search: a Gaussian process a category over soups, seen through blocks of items that soups share.

The score of soup s in category c on a block b of n items is f(s) + g(s) / sqrt(n), where f is the category's true mean
and g what chance put into the block: f ~ GP(level, signal), g ~ GP(0, noise), one g a block for all soups. Two soups
close to each other answer nearly alike, so their g is nearly the same and a difference on shared items is sharp: the
pairing that lets a search do with few items. Conditioning is exact (a Cholesky factor that grows by a row an
observation; Rasmussen and Williams 2006, chapter 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from souping.core.types import FloatArray, IntArray

JITTER = 1e-9


@dataclass(frozen=True)
class Prior:
    """Belief before any answer: `signal` and `noise` [C, S, S] (the second of one item's score), `level` [C, S]."""

    signal: FloatArray
    noise: FloatArray
    level: FloatArray


@dataclass(frozen=True)
class KnownCells:
    """Cells of a category that were answered [N], and their mean scores [N]."""

    cells: IntArray
    values: FloatArray


def joint(prior: Prior, sizes: FloatArray, category: int, cells: IntArray) -> FloatArray:
    """Prior covariance of the mean scores of cells [N, N]."""
    soup, block = np.divmod(cells, sizes.shape[1])
    same = (block[:, None] == block) / sizes[category, block]
    both = np.ix_(soup, soup)
    return np.asarray(prior.signal[category][both] + prior.noise[category][both] * same + JITTER * np.eye(len(soup)))


def evidence(prior: Prior, sizes: FloatArray, known: Sequence[KnownCells], signals: FloatArray) -> FloatArray:
    """Log-density of all that is known of each category under the prior with each of `signals` [M, S, S] added to its
    own, up to a constant [M, C]."""
    total, blocks = np.zeros((len(signals), len(known))), sizes.shape[1]
    for c, row in enumerate(known):
        soup = row.cells // blocks
        both = joint(prior, sizes, c, row.cells) + signals[:, soup[:, None], soup]
        lower = np.linalg.cholesky(both)
        shift = np.linalg.solve(lower, (row.values - prior.level[c, soup])[:, None])[..., 0]
        total[:, c] = -(shift**2).sum(1) / 2 - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    return total


@dataclass(frozen=True)
class Feature:
    """Shape [C, S] that every category's mean has times one factor, a priori N(mean, spread^2)."""

    shape: FloatArray
    mean: float
    spread: float


def with_features(
    prior: Prior, sizes: FloatArray, known: Sequence[KnownCells], features: Sequence[Feature]
) -> tuple[Prior, FloatArray]:
    """The prior with its level moved by all features, and their factors [F], as what is known has them (generalised
    least squares with a prior)."""
    blocks = sizes.shape[1]
    pull = np.array([f.mean / f.spread**2 for f in features])
    weight = np.diag([1 / f.spread**2 for f in features])
    for c, row in enumerate(known):
        if len(row.cells):
            soup = row.cells // blocks
            shape = np.stack([f.shape[c, soup] for f in features], 1)
            rest = row.values - prior.level[c, soup]
            solved = np.linalg.solve(joint(prior, sizes, c, row.cells), np.column_stack([shape, rest]))
            weight += shape.T @ solved[:, :-1]
            pull += shape.T @ solved[:, -1]
    factors = np.linalg.solve(weight, pull)
    level = prior.level + sum(k * f.shape for k, f in zip(factors, features, strict=True))
    return replace(prior, level=np.asarray(level)), factors


class Surrogate:
    """Posterior of C categories over S soups and S x B cells (soup, block), cell m = s * B + b.

    `sizes` [C, B] counts the items of a block (0: there is none). `cov` [C, S, S] is the covariance of f, `cross`
    [C, S, S x B] of f with cells, `spread` [C, S x B] the variance of cells; `evidence` [C] the log-density of all that
    was observed.
    """

    def __init__(self, prior: Prior, sizes: FloatArray, known: Sequence[KnownCells] = ()) -> None:
        count, soups, _ = prior.signal.shape
        self.prior, self.sizes, self.blocks = prior, sizes, sizes.shape[1]
        self.mean = prior.level.copy()
        self.cells = np.repeat(self.mean, self.blocks, 1)
        self.cov = prior.signal.copy()
        self.cross = np.repeat(prior.signal, self.blocks, 2)
        own = np.einsum("css->cs", prior.noise)[:, :, None] / np.maximum(sizes, 1)[:, None, :]
        self.spread = np.repeat(np.einsum("css->cs", prior.signal), self.blocks, 1) + own.reshape(count, -1)
        self.evidence = np.zeros(count)
        self._depth = [len(cells.values) for cells in known] or [0] * count
        self._factor = np.zeros((count, 8 + max(self._depth), soups * self.blocks))
        for category, cells in enumerate(known):
            self._condition(category, cells)

    def _condition(self, c: int, known: KnownCells) -> None:
        """All that is known of a category at once."""
        prior = np.stack([self._prior(c, m) for m in known.cells]) if len(known.cells) else np.zeros((0, 0))
        if not len(prior):
            return
        joint = prior[:, known.cells] + JITTER * np.eye(len(prior))
        lower = np.linalg.cholesky(joint)
        inverse = np.linalg.inv(lower)
        factor = inverse @ prior
        column = inverse @ self.prior.signal[c, known.cells // self.blocks]
        shift = inverse @ (known.values - self.cells[c, known.cells])
        self._factor[c, : len(prior)] = factor
        self.spread[c] -= (factor**2).sum(0)
        self.cov[c] -= column.T @ column
        self.cross[c] -= column.T @ factor
        self.mean[c] += shift @ column
        self.cells[c] += shift @ factor
        self.evidence[c] = -(shift @ shift) / 2 - np.log(np.diag(lower)).sum()

    def copy(self) -> Surrogate:
        twin = Surrogate.__new__(Surrogate)
        twin.__dict__.update({k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()})
        twin._depth = list(self._depth)
        return twin

    def observe(self, category: int, soup: int, block: int, value: float | None = None) -> None:
        """Condition on the mean score of a soup on a block; without a value on that it will be known."""
        c, m, n = category, soup * self.blocks + block, self._depth[category]
        if n == self._factor.shape[1]:
            self._factor = np.concatenate([self._factor, np.zeros_like(self._factor)], 1)
        variance = max(self.spread[c, m], JITTER)
        row = self.between(c, m, n) / np.sqrt(variance)
        column = self.cross[c, :, m] / np.sqrt(variance)
        self._factor[c, n] = row
        self._depth[c] = n + 1
        self.spread[c] -= row**2
        self.cov[c] -= column[:, None] * column
        self.cross[c] -= column[:, None] * row
        if value is not None:
            shift = (value - self.cells[c, m]) / np.sqrt(variance)
            self.mean[c] += shift * column
            self.cells[c] += shift * row
            self.evidence[c] -= (shift**2 + np.log(variance)) / 2

    def between(self, category: int, cell: int, depth: int | None = None) -> FloatArray:
        """Posterior covariance of a cell with all cells [S x B]."""
        factor = self._factor[category, : self._depth[category] if depth is None else depth]
        return np.asarray(self._prior(category, cell) - factor[:, cell] @ factor)

    def _prior(self, category: int, cell: int) -> FloatArray:
        soup, block = divmod(int(cell), self.blocks)
        prior = np.repeat(self.prior.signal[category, soup], self.blocks)
        prior[block :: self.blocks] += self.prior.noise[category, soup] / self.sizes[category, block]
        return prior

    def objective(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of the objective with `weights` [C]."""
        covariance = np.asarray(np.tensordot(weights**2, self.cov, 1), dtype=float)
        return weights @ self.mean, covariance

    def reduction(self, leader: int, rivals: IntArray, weights: FloatArray) -> FloatArray:
        """How much each cell would take off the variance of rival minus leader, [C, R, S * B]."""
        change = self.cross[:, rivals] - self.cross[:, [leader]]
        return np.asarray(change**2 * (weights[:, None] ** 2 / np.maximum(self.spread, JITTER))[:, None])
