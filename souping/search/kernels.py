"""Covariances of soups: how alike two points of the simplex are, in their true means and in single answers.

The constants were fitted to truth tables (benchmarks/tables), each family left out in turn, see docs/search.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from souping.core.types import FloatArray

SHARED, REACH = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.9, 1.2, 1.8, 2.4)
HELD = 0.001


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Prior of a category's mean, in fractions of 1: a common level, a plane over the weights, a smooth bend with its
    length; and of one item's answer, in shares of its variance: what all soups share, and what fades with the distance
    of two soups (exponentially, over `reach`)."""

    level: float = 0.3
    plane: float = 0.25
    bend: float = 0.17
    length: float = 0.75
    shared: float = 0.3
    reach: float = 1.2

    def signal(self, points: FloatArray, apart: FloatArray) -> FloatArray:
        """[S, S] of points [S, K] whose distances are `apart`."""
        moving = self.plane**2 * points @ points.T + self.bend**2 * np.exp(-(apart**2) / (2 * self.length**2))
        return np.asarray(self.level**2 + moving)

    def agreement(self, distance: FloatArray) -> FloatArray:
        """Correlation of the answers of two soups to one item, 1 where they are one."""
        return np.asarray(self.shared + (1 - self.shared) * np.exp(-distance / self.reach))


def agreeing(kernel: Kernel, apart: FloatArray, residuals: FloatArray) -> Kernel:
    """The kernel with `shared` and `reach` as the answers have them: least squares on the correlations of all pairs of
    soups over the items that both answered, weighed by their number, held near the constants where there is little.

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
    weight, apart = count[use] / count[use].sum(), apart[np.ix_(seen, seen)][first, second][use]

    def loss(candidate: Kernel) -> float:
        error = float(weight @ (found - candidate.agreement(apart)) ** 2)
        away = np.log(candidate.reach / kernel.reach) ** 2 + ((candidate.shared - kernel.shared) / 0.3) ** 2
        return error + HELD * float(away)

    return min((replace(kernel, shared=s, reach=r) for s in SHARED for r in REACH), key=loss)


def distances(points: FloatArray) -> FloatArray:
    """Euclidean distances [S, S]."""
    return np.asarray(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1)))
