"""Surrogate of a search: a Gaussian process a category over soups, seen through blocks of items that soups share.

The score of soup s in category c on a block b of n items is f(s) + g(s) / sqrt(n), where f is the category's true mean
and g what chance put into the block: f ~ GP(level, signal), g ~ GP(0, noise), one g a block for all soups. Two soups
close to each other answer nearly alike, so their g is nearly the same and a difference on shared items is sharp: the
pairing that lets a search do with few items. Conditioning is exact (a Cholesky factor that grows by a row an
observation; Rasmussen and Williams 2006, chapter 2). The constants of the kernels were fitted to truth tables
(benchmarks/tables), each family left out in turn, see docs/search.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from souping.core.types import FloatArray, IntArray

JITTER = 1e-9
SHARED = np.linspace(0.0, 0.6, 7)
REACH = np.array([0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.9, 1.2, 1.8, 2.4])
HELD = 0.001
"""How alike answers may be, and how far that is held near what is known of other categories."""
SCALES, LENGTHS, NEAR = (0.2, 0.35, 0.6, 1.0, 1.6, 2.5), (0.4, 0.75, 1.4), 0.3
"""Scales and lengths of the signal that are mixed by their evidence, and how far scales are held near 1."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Prior of a category's mean, in fractions of 1: a common level, a plane over the weights, a bend with its length
    (Matern 3/2: it may have edges, as scores have where a soup loses a skill); and of one item's answer, in shares of
    its variance: what all soups share, and what fades with the distance of two soups (exponentially, over `reach`)."""

    level: float = 0.3
    plane: float = 0.25
    bend: float = 0.17
    length: float = 0.75
    shared: float = 0.3
    reach: float = 1.2

    def signal(self, points: FloatArray, apart: FloatArray) -> FloatArray:
        """[S, S] of points [S, K] whose distances are `apart`."""
        far = np.sqrt(3) * apart / self.length
        return np.asarray(self.level**2 + self.plane**2 * points @ points.T + self.bend**2 * (1 + far) * np.exp(-far))

    def agreement(self, distance: FloatArray) -> FloatArray:
        """Correlation of the answers of two soups to one item, 1 where they are one."""
        return np.asarray(self.shared + (1 - self.shared) * np.exp(-distance / self.reach))


def candidates(points: FloatArray, apart: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Signals [M, S, S] of all scales and lengths, and how likely each is beforehand (logarithms [M])."""
    one, both = Kernel(), [(scale, length) for scale in SCALES for length in LENGTHS]
    kernels = [replace(one, plane=one.plane * a, bend=one.bend * a, length=b) for a, b in both]
    log_prior = np.array([-NEAR * np.log(a) ** 2 for a, _ in both])
    return np.stack([kernel.signal(points, apart) for kernel in kernels]), log_prior


def agreeing(kernel: Kernel, apart: FloatArray, residuals: FloatArray) -> Kernel:
    """The kernel with `shared` and `reach` as the answers have them: least squares on the correlations of all pairs of
    soups over the items that both answered, weighed by their number, held near the kernel's own where there is little.

    `residuals` [S, I] are scores minus the soup's mean of the category, nan where there is none.
    """
    seen = np.flatnonzero(np.isfinite(residuals).any(1))
    filled = np.nan_to_num(residuals[seen])
    there = np.isfinite(residuals[seen]).astype(float)
    first, second = np.triu_indices(len(seen), 1)
    own = filled**2 @ there.T
    scale = np.sqrt(own * own.T)[first, second]
    count = (there @ there.T)[first, second]
    use = (count > 4) & (scale > 0)
    if not use.any():
        return kernel
    found = ((filled @ filled.T)[first, second][use] / scale[use]).clip(-0.5, 1.0)
    weight = count[use] / count[use].sum()
    fading = np.exp(-apart[np.ix_(seen, seen)][first, second][use] / REACH[:, None])
    short, left = found - fading, 1 - fading  # the error is (short - shared x left)^2
    error = (short**2 @ weight) - 2 * SHARED[:, None] * ((short * left) @ weight)
    error += SHARED[:, None] ** 2 * (left**2 @ weight)
    error += HELD * (np.log(REACH / kernel.reach) ** 2 + ((SHARED[:, None] - kernel.shared) / 0.3) ** 2)
    best = np.unravel_index(int(np.argmin(error)), error.shape)
    return replace(kernel, shared=float(SHARED[best[0]]), reach=float(REACH[best[1]]))


def distances(points: FloatArray) -> FloatArray:
    """Euclidean distances [S, S]."""
    return np.asarray(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1)))


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


def raised(
    prior: Prior, sizes: FloatArray, known: Sequence[KnownCells], shape: FloatArray, mean: float, spread: float
) -> Prior:
    """The prior with its level moved by a multiple of `shape` [S], a priori N(mean, spread^2), as what is known of all
    categories has it (generalised least squares with a prior)."""
    pull, weight = mean / spread**2, 1 / spread**2
    for c, row in enumerate(known):
        if len(row.cells):
            soup = row.cells // sizes.shape[1]
            rest = row.values - prior.level[c, soup]
            solved = np.linalg.solve(joint(prior, sizes, c, row.cells), np.column_stack([shape[soup], rest]))
            more, toward = shape[soup] @ solved
            weight, pull = weight + more, pull + toward
    return replace(prior, level=np.asarray(prior.level + pull / weight * shape))


class Surrogate:
    """Posterior of C categories over S soups and their cells (block, soup), B blocks.

    `sizes` [C, B] counts the items of a block (0: there is none). A soup's true mean, f, is kept as its score on one
    block more, which has no end. `means` and `spread` [C, B + 1, S] are means and variances of all these scores; a row
    of `factor` [C, N, B + 1, S] is an observation's share in them; covariances are made from it where asked for.
    """

    def __init__(self, prior: Prior, sizes: FloatArray, known: Sequence[KnownCells] = ()) -> None:
        count, soups, _ = prior.signal.shape
        self.prior, self.blocks = prior, sizes.shape[1]
        self._each = np.concatenate([1 / np.maximum(sizes, 1), np.zeros((count, 1))], 1)
        self._means = np.repeat(prior.level[:, None], self.blocks + 1, 1)
        own = np.einsum("css->cs", prior.noise)[:, None] * self._each[:, :, None]
        self._spread = np.einsum("css->cs", prior.signal)[:, None] + own
        self.surprises = (0.0, 0)
        self._depth = [len(cells.values) for cells in known] or [0] * count
        self._factor = np.zeros((count, 8 + max(self._depth), self.blocks + 1, soups))
        for category, cells in enumerate(known):
            self._condition(category, cells)

    def _condition(self, c: int, known: KnownCells) -> None:
        """All that is known of a category at once."""
        if not len(known.cells):
            return
        soup, block = np.divmod(known.cells, self.blocks)
        prior = self._prior(c, soup, block)
        at = np.arange(len(soup))
        lower = np.linalg.cholesky(prior[:, block, soup] + JITTER * np.eye(len(at)))
        factor = np.linalg.solve(lower, prior.reshape(len(at), -1)).reshape(prior.shape)
        shift = np.linalg.solve(lower, known.values - self._means[c, block, soup])
        self._factor[c, at] = factor
        self._spread[c] -= (factor**2).sum(0)
        self._means[c] += np.tensordot(shift, factor, 1)
        self._wonder(shift)

    def _wonder(self, surprise: FloatArray) -> None:
        self.surprises = self.surprises[0] + float(surprise @ surprise), self.surprises[1] + len(surprise)

    def copy(self) -> Surrogate:
        twin = Surrogate.__new__(Surrogate)
        twin.__dict__.update({k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()})
        twin._depth = list(self._depth)
        return twin

    def observe(self, category: int, soup: int, block: int, value: float | None = None) -> None:
        """Condition on the mean score of a soup on a block; without a value on that it will be known."""
        c, n = category, self._depth[category]
        if n == self._factor.shape[1]:
            self._factor = np.concatenate([self._factor, np.zeros_like(self._factor)], 1)
        deviation = np.sqrt(max(self._spread[c, block, soup], JITTER))
        before = self._factor[c, :n]
        row = self._prior(c, np.array([soup]), np.array([block]))[0]
        row = (row - np.tensordot(before[:, block, soup], before, 1)) / deviation
        self._factor[c, n] = row
        self._depth[c] = n + 1
        self._spread[c] -= row**2
        if value is not None:
            surprise = (value - self._means[c, block, soup]) / deviation
            self._means[c] += surprise * row
            self._wonder(np.array([surprise]))

    def _prior(self, c: int, soup: IntArray, block: IntArray) -> FloatArray:
        """Prior covariance of cells with all cells [N, B + 1, S]."""
        found = np.repeat(self.prior.signal[c, soup][:, None], self.blocks + 1, 1)
        found[np.arange(len(soup)), block] += self.prior.noise[c, soup] * self._each[c, block][:, None]
        return found

    @property
    def mean(self) -> FloatArray:
        """Posterior means of f [C, S]."""
        return self._means[:, -1]

    def differences(self, soup: int, weights: FloatArray) -> FloatArray:
        """Variance of the objective's difference of each soup to one of them [S]."""
        cross = self.prior.signal[:, soup].copy()
        for c, depth in enumerate(self._depth):
            told = self._factor[c, :depth, -1]
            cross[c] -= told[:, soup] @ told
        own = self._spread[:, -1]
        return np.asarray(weights**2 @ (own + own[:, [soup]] - 2 * cross))

    def covariance(self, soups: IntArray, weights: FloatArray) -> FloatArray:
        """Posterior covariance of the objective [N, N]."""
        factor = self._factor[:, : max(self._depth), -1, soups]
        inner = self.prior.signal[:, soups[:, None], soups] - factor.transpose(0, 2, 1) @ factor
        return np.asarray(np.tensordot(weights**2, inner, 1))

    def reduction(self, leader: int, rivals: IntArray, weights: FloatArray, block: IntArray) -> FloatArray:
        """How much each soup's answer to a block of its own, `block` [S, C], would take off the variance of rival minus
        leader [C, R, S]."""
        place = block.T * len(block) + np.arange(len(block))
        change = self.prior.signal[:, rivals] - self.prior.signal[:, [leader]]
        wide = (self.blocks + 1) * len(block)
        for c, depth in enumerate(self._depth):
            told = self._factor[c, :depth]
            apart = told[:, -1, rivals] - told[:, -1, [leader]]
            change[c] -= apart.T @ np.take(told.reshape(depth, wide), place[c], 1)
        spread = np.take_along_axis(self._spread.reshape(len(place), -1), place, 1)[:, None]
        return np.asarray(change**2 * weights[:, None, None] ** 2 / np.maximum(spread, JITTER))

    def cells(self, c: int, soups: IntArray, soup: IntArray, block: IntArray) -> tuple[FloatArray, FloatArray]:
        """Posterior covariance of f of `soups` with cells [N, M], and of the cells among themselves [M, M]."""
        factor, prior = self._factor[c, : self._depth[c]], self._prior(c, soup, block)
        own = factor[:, block, soup]
        return (prior[:, -1, soups] - own.T @ factor[:, -1, soups]).T, prior[:, block, soup] - own.T @ own
