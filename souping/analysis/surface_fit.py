"""Surface over the simplex: differences of soups to the uniform soup, with bands that hold at all points at once.

In each category a soup's true mean is a Gaussian process in its weights: a plane, a smooth rest, and a step of its own
for each single model; the rest's scale and length and the steps' size are averaged over by their marginal likelihood.
Items answer for several soups, so that each has a level of its own and only what soups differ by within items counts;
soups that answered few items share in what their neighbours know.

The error has two parts: the draw of the items, from each group's influence on the estimate (groups of items that share
content, whatever is correlated inside them), and what the process smooths away or has not seen. The band's quantile is
that of the largest standardised error over all points, with normal multipliers of the groups' influences.

Shape legend: T points (soups asked and points shown), K ingredients, I items, G groups, C categories.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from souping.core.types import FloatArray, IntArray, Json

DRAWS = 2000
SALT = 0x5F17
PSEUDO = 6.0
"""Groups that a category is given whose spread is that of all categories: no error is zero because few groups agree."""
RARE = 1.0
"""Items whose answers differ, added to a category's: soups differ on few, and a fold may hold none of those that do
(Agresti and Min 2005 add as much to a paired table); half as many for the objective, whose categories make up for each
other."""
ALONE = 1.96
"""Quantile of one point, the least of any band: where no group moves anything there is nothing to draw."""
SCALES, LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.4), (0.2, 0.4, 0.8)
"""Standard deviations (fractions of 1) and lengths (in L2 distance of weights) that the smooth rest may have."""
STEPS = (0.0, 0.1, 0.3)
"""Standard deviations of what a single model lies off the surface of its soups, which often stand above all of them."""


@dataclass(frozen=True, kw_only=True)
class SurfaceBand:
    """Differences to the uniform soup at points [T], standard errors [T], and how many of them the band is wide; `most`
    is the largest difference that there can be."""

    difference: FloatArray
    error: FloatArray
    quantile: float
    most: float = np.inf

    @property
    def low(self) -> FloatArray:
        low = np.maximum(self.difference - self.quantile * self.error, -self.most)
        return np.asarray(np.minimum(low, self.difference))

    @property
    def high(self) -> FloatArray:
        high = np.minimum(self.difference + self.quantile * self.error, self.most)
        return np.asarray(np.maximum(high, self.difference))

    def at(self, points: int) -> Mapping[str, Json]:
        """The first `points` points as plain numbers."""
        rows = {"difference": self.difference, "low": self.low, "high": self.high}
        return {key: [round(float(value), 6) for value in row[:points]] for key, row in rows.items()}


@dataclass(frozen=True, kw_only=True)
class SurfaceFit:
    """Bands of the objective and of each category at the same points."""

    objective: SurfaceBand
    categories: tuple[SurfaceBand, ...]


@dataclass(frozen=True, kw_only=True)
class CategoryFit:
    """Differences [T] to the uniform soup, each group's influence on them [G, T], covariance [T, T] of smoothing."""

    difference: FloatArray
    influence: FloatArray
    smoothing: FloatArray
    groups: int
    items: int


def fit_surface(
    weights: FloatArray, values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray
) -> SurfaceFit:
    """Surface at all of `weights` [T, K]; `values` [T, I] are scores, nan where a point was not asked.

    `categories` and `groups` are numbers of each item [I], `coefficients` [C] the objective's. The uniform soup is the
    point nearest to it.
    """
    size, uniform = int(groups.max()) + 1, int(np.square(weights - 1 / weights.shape[1]).sum(axis=1).argmin())
    fits = []
    for number in range(len(coefficients)):
        own = categories == number
        fits.append(_fit(weights, values[:, own], groups[own], size, uniform))
    influence = np.array([fit.influence for fit in fits])
    counts = np.array([fit.groups for fit in fits], dtype=float)[:, None]
    spread = counts * np.square(influence).sum(axis=1)  # of one group, as it were
    mixed = (counts * spread + PSEUDO * spread.mean(axis=0)) / (counts + PSEUDO) / counts
    whole = np.einsum("c,cgt->gt", coefficients, influence)
    differences = np.array([fit.difference for fit in fits])
    smoothing = np.array([fit.smoothing for fit in fits])
    share = np.square(coefficients)[:, None]
    apart = (share * mixed).sum(axis=0) * _kept(whole, influence, coefficients)
    other = np.arange(len(weights)) != uniform
    rare = RARE / (counts[:, 0] * np.array([fit.items for fit in fits]))
    few = float(np.square(coefficients) @ rare) / 2 * other
    noise, rest = np.maximum(np.square(whole).sum(axis=0), apart) + few, (share[:, :, None] * smoothing).sum(axis=0)
    objective = _band(coefficients @ differences, whole, noise, rest, _effective(share * mixed, counts))
    bands = [
        _band(fit.difference, fit.influence, variance + one * other, fit.smoothing, fit.groups)
        for fit, variance, one in zip(fits, mixed, rare, strict=True)
    ]
    known = values[np.isfinite(values)]
    most = 1.0 if ((known >= 0) & (known <= 1)).all() else np.inf
    return SurfaceFit(
        objective=replace(objective, most=most * float(coefficients.sum())),
        categories=tuple(replace(band, most=most) for band in bands),
    )


def _effective(variances: FloatArray, groups: FloatArray) -> float:
    """Groups that tell as much of the sum as each category's own tell of it (Satterthwaite 1946)."""
    parts = variances.mean(axis=1)
    below = float((np.square(parts) / np.maximum(groups[:, 0] - 1, 1)).sum())
    return 1 + float(np.square(parts.sum())) / below if below > 0 else float(groups.min())


def _kept(whole: FloatArray, influence: FloatArray, coefficients: FloatArray) -> float:
    """Variance of the sum over the sum of variances: more than 1 where groups reach over categories."""
    apart = float((np.square(coefficients)[:, None, None] * np.square(influence)).sum())
    return float(np.square(whole).sum()) / apart if apart > 0 else 1.0


def _fit(weights: FloatArray, values: FloatArray, groups: IntArray, size: int, uniform: int) -> CategoryFit:
    """One category: the process that is likeliest, what it says, and how each group moves it."""
    known = np.isfinite(values)
    known &= known.sum(axis=0) > 1  # an item that one soup answered compares nothing
    scores, each = np.where(known, values, 0.0), np.maximum(known.sum(axis=0), 1)
    level = scores.sum(axis=0) / each
    inside = np.where(known, scores - level, 0.0)
    laplacian = np.diag(known.sum(axis=1).astype(float)) - (known / each) @ known.T
    noise = max(float(np.square(inside).sum()) / max(1, int((known.sum(axis=0) - 1).clip(0).sum())), 1e-4)
    pulls = inside.sum(axis=1)
    prior, gain = _averaged(weights, laplacian, pulls, noise)
    found = gain @ pulls
    mean = np.where(known, found[:, None], 0.0).sum(axis=0) / each
    left = np.where(known, inside - found[:, None] + mean, 0.0)
    influence = np.zeros((size, len(weights)))
    np.add.at(influence, groups, (gain @ left).T)
    bias = np.eye(len(weights)) - gain @ laplacian
    smooth = bias @ prior @ bias.T
    smooth = smooth - smooth[:, [uniform]] - smooth[[uniform]] + smooth[uniform, uniform]
    return CategoryFit(
        difference=found - found[uniform],
        influence=influence - influence[:, [uniform]],
        smoothing=smooth,
        groups=len(np.unique(groups)),
        items=len(groups),
    )


def _averaged(
    weights: FloatArray, laplacian: FloatArray, pulls: FloatArray, noise: float
) -> tuple[FloatArray, FloatArray]:
    """(covariance of the process [T, T], what a unit of pull moves [T, T]), averaged by marginal likelihood."""
    square = np.square(weights[:, None] - weights[None, :]).sum(axis=2)
    plane, one = weights @ weights.T, np.eye(len(weights))
    asked = np.flatnonzero(np.diag(laplacian))
    single = np.diag((weights.max(axis=1) > 1 - 1e-9).astype(float))
    made: list[tuple[float, FloatArray, FloatArray]] = []
    for length, scale, step in itertools.product(LENGTHS, SCALES, STEPS):
        prior = 0.09 * plane + scale**2 * np.exp(-square / (2 * length**2)) + step**2 * single + 1e-8 * one
        inner = np.eye(len(asked)) + prior[np.ix_(asked, asked)] @ laplacian[np.ix_(asked, asked)] / noise
        gain = np.zeros_like(prior)
        gain[:, asked] = np.linalg.solve(inner, prior[asked]).T / noise  # what was not asked pulls nothing
        fits = 0.5 * float(pulls @ gain @ pulls) / noise - 0.5 * float(np.linalg.slogdet(inner)[1])
        made.append((fits, prior, gain))
    share = np.exp(np.array([fits for fits, _, _ in made]) - max(fits for fits, _, _ in made))
    share /= share.sum()
    prior, gain = (np.einsum("n,nst->st", share, np.array([one[k] for one in made])) for k in (1, 2))
    return prior, gain


def _band(
    difference: FloatArray, influence: FloatArray, variance: FloatArray, smoothing: FloatArray, groups: float
) -> SurfaceBand:
    """SurfaceBand with the quantile of the largest standardised error over all points: both parts of it are drawn."""
    df, draw = max(2.0, groups - 1), np.random.default_rng(SALT)
    values, vectors = np.linalg.eigh(smoothing)
    smooth = draw.standard_normal((DRAWS, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    raw = np.sqrt(np.square(influence).sum(axis=0))
    level = np.sqrt(variance * (df + 1) / df)
    noise = draw.standard_normal((DRAWS, len(influence))) @ (influence / np.maximum(raw, 1e-9)) * level
    noise *= np.sqrt(df / draw.chisquare(df, DRAWS))[:, None]
    error = np.sqrt(np.square(level) + np.maximum(np.diag(smoothing), 0.0))
    largest = (np.abs(noise + smooth) / np.maximum(error, 1e-9)).max(axis=1)
    return SurfaceBand(difference=difference, error=error, quantile=max(ALONE, float(np.quantile(largest, 0.95))))
