"""Covariances of soups: how alike two points of the simplex are, in their true means and in single answers.

The constants were fitted to truth tables (benchmarks/tables), each family left out in turn, see docs/search.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from souping.core.types import FloatArray

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
