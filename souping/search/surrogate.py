"""Surrogate of the adaptive search: a Gaussian process of the soups' category means and of what guards watch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from souping.core.types import TOLERANCE, BoolArray, FloatArray, IntArray, SearchSpace, Weights
from souping.search.points import vertices

LEVEL_SD = 0.3
"""Prior standard deviation of a category's level, as a fraction of 1."""
PLANE_SD = 0.25
"""Prior standard deviation of the plane over the weights."""
BEND_SD = 0.17
"""Prior standard deviation of the bend."""
BEND_LENGTH = 0.75
"""Length scale of the bend, as a distance of weights."""
SCALES = (0.2, 0.35, 0.6, 1.0, 1.6, 2.5)
"""Factors on plane and bend that are mixed."""
SCALE_PRIOR = 0.3
"""How strongly the prior holds the logarithm of such a factor near zero."""
SHARED = (0.1, 0.3, 0.5)
"""Parts of the correlation of two soups' answers to one item that all soups share, to be mixed."""
REACH = (0.4, 1.2)
"""Distances of weights over which the rest of this correlation fades, to be mixed."""
RISE = 0.06
"""Mean and spread of how far soups rise above the plane through the single models, times 1 - sum of squared weights."""
LEAST_NOISE = 0.02
"""Least variance of one item's score."""
UNKNOWN_NOISE = 0.2
"""Variance of one item's score while too few answers are known to estimate it."""
JITTER = 1e-9
"""Added to the diagonal of a covariance before it is decomposed."""
TINY = 1e-12
"""Least variance under a root or a division."""
DRAWS = 512
"""Draws of the posterior for an objective that is not linear."""
STEP = 1e-6
"""Step of the numerical slopes of such an objective."""
LIKELY = 0.5
"""Probability of keeping to all bounds from which a soup may lead."""


class Posterior(NamedTuple):
    """What the answers say of one category."""

    mean: FloatArray
    """[S]"""
    covariance: FloatArray
    """[S, S]"""
    next_covariance: FloatArray
    """Covariance [S, S] of each soup's mean with the score of the next sample of each soup."""
    next_variance: FloatArray
    """Variance [S] of that score."""
    surprise: FloatArray
    """Sum of squared standardised residuals, and how many they are [2]."""


class SoupModel:
    """Gaussian process of all soups' category means [C, S], observed through samples of items that all soups share.

    The mean score of soup s on a sample b (n items) of category c is f(s) + g_b(s) / sqrt(n). f is the category's true
    mean: a common level, a plane over the weights, and a bend (Matern 3/2). g_b is the error of drawing the sample, one
    draw for all soups: soups with similar weights answer alike, so their difference on shared items is sharp. This
    pairing is why a search needs few items. Scales and correlations are mixed by their evidence (Rasmussen and Williams
    2006, chapters 2 and 5).

    S soups, C categories, B samples of a category at most, I items of the fold, K ingredients.
    `asked` [S, C, B] marks samples that were requested; those that are not answered yet count in the variances.
    """

    def __init__(
        self,
        table: FloatArray,
        item_samples: Sequence[Sequence[IntArray]],
        coefficients: FloatArray,
        rise: float = RISE,
        value: Callable[[FloatArray], FloatArray] | None = None,
        singles: FloatArray | None = None,
    ) -> None:
        """Weights `table` [S, K] of soups, positions `item_samples[c][b]` of items, `coefficients` [C] of the
        objective, or its `value` of category means [..., C] if it is not linear. `singles` [K, I] are single models'
        scores, of which `usual_scores` are taken.

        If weights do not sum to one, the rest is the weight of the base model, which may be negative.
        """
        rest = 1 - table.sum(1, keepdims=True)
        table = np.hstack([table, rest]) if (np.abs(rest) > TOLERANCE).any() else table
        self.table, self.item_samples, self.weights = table, item_samples, coefficients
        self.rise, self.value = rise, value
        self._apart = np.sqrt(((table[:, None] - table) ** 2).sum(-1))
        self._inside = 1 - (table**2).sum(1)
        most = max(map(len, item_samples))
        self.size = np.array([[*map(len, row), *[np.inf] * (most - len(row))] for row in item_samples], dtype=float)
        self.asked: BoolArray = np.zeros((len(table), *self.size.shape), dtype=bool)
        self.score = np.full(self.asked.shape, np.nan)
        self.values = np.full((len(table), sum(len(sample) for row in item_samples for sample in row)), np.nan)
        self._usual = np.zeros(self.values.shape[1]) if singles is None else usual_scores(singles)
        self._offset = [float(self._usual[np.concatenate(row)].mean()) for row in item_samples]
        self._cache = dict[int, tuple[bytes, Posterior]]()

    # ---------------------------------------------------------------- answers

    def observe(self, soup: int, items: slice | list[int], values: FloatArray) -> None:
        """Take in a soup's scores on some items of the fold."""
        self.values[soup, items] = values - self._usual[items]
        for c, row in enumerate(self.item_samples):
            self.score[soup, c, : len(row)] = [self.values[soup, sample].mean() for sample in row]

    @property
    def known(self) -> int:
        return int(np.isfinite(self.values).sum())

    @property
    def left(self) -> BoolArray:
        """Samples that were not requested [S, C, B]."""
        return np.asarray(np.isfinite(self.size) & ~self.asked)

    def ask_rest(self, soup: int) -> None:
        """Mark the whole fold as requested of a soup."""
        self.asked[soup] = np.isfinite(self.size)

    def rest(self, soup: int) -> list[int]:
        """Items of the fold that were not requested of a soup."""
        return [int(item) for c, b in np.argwhere(self.left[soup]) for item in self.item_samples[c][b]]

    # ---------------------------------------------------------------- prior

    def fit(self) -> None:
        """Level, noise, signal and correlation of each category from its answers."""
        self._cache.clear()
        alike = [s + (1 - s) * np.exp(-self._apart / r) for s, r in itertools.product(SHARED, REACH)]
        parts = [self._category(c, np.stack(alike)) for c in range(len(self.item_samples))]
        self.level, self.noise, self.signal = (list(part) for part in zip(*parts, strict=True))

    def _category(self, c: int, alike: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Level [S], noise [S, S] of one item's score and signal [S, S] of a category."""
        values = self.values[:, np.concatenate(self.item_samples[c])]
        values = values[np.isfinite(values).sum(1) > 1]
        level = (float(np.nanmean(values, 1).mean()) if len(values) else 0.5) + self.rise * self._inside
        noise = max(float(np.nanvar(values, 1, ddof=1).mean()), LEAST_NOISE) if len(values) else UNKNOWN_NOISE
        soup, sample, mean = self._cells(c)
        answered = np.isfinite(mean)
        soup, sample, mean = soup[answered], sample[answered], mean[answered]
        far = np.sqrt(3) * self._apart / BEND_LENGTH
        shape = PLANE_SD**2 * self.table @ self.table.T + BEND_SD**2 * (1 + far) * np.exp(-far)
        base = LEVEL_SD**2 + self.rise**2 * np.outer(self._inside, self._inside)
        signals = base + np.square(SCALES)[:, None, None] * shape
        both = np.ix_(soup, soup)
        same = (sample[:, None] == sample) / self.size[c, sample]
        joint = signals[:, None][(..., *both)] + noise * (alike[(..., *both)] * same)[None] + JITTER * np.eye(len(soup))
        lower = np.linalg.cholesky(joint)
        shift = np.linalg.solve(lower, np.broadcast_to((mean - level[soup])[:, None], (*lower.shape[:-1], 1)))[..., 0]
        log_evidence = -(shift**2).sum(-1) / 2 - np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
        likelihood = np.exp(log_evidence - log_evidence.max())
        posterior_weight = likelihood * np.exp(-SCALE_PRIOR * np.log(SCALES) ** 2)[:, None]
        posterior_weight /= posterior_weight.sum()
        correlation = np.tensordot(posterior_weight.sum(0), alike, 1)
        return level, noise * correlation, np.tensordot(posterior_weight.sum(1), signals, 1)

    # ---------------------------------------------------------------- posterior

    def _cells(self, c: int) -> tuple[IntArray, IntArray, FloatArray]:
        """(soup, sample, mean score) of the requested samples of a category; nan while they are not answered."""
        soup, sample = np.nonzero(self.asked[:, c])
        return soup, sample, self.score[soup, c, sample]

    def posterior(self, c: int) -> Posterior:
        key = self.asked[:, c].tobytes() + self.score[:, c].tobytes()
        if c not in self._cache or self._cache[c][0] != key:
            self._cache[c] = key, self._condition(c)
        return self._cache[c][1]

    def _condition(self, c: int) -> Posterior:
        soup, sample, value = self._cells(c)
        signal, noise, coming = self.signal[c], self.noise[c], self.left[:, c].argmax(-1)
        same = (sample[:, None] == sample) / self.size[c, sample]
        joint = signal[np.ix_(soup, soup)] + noise[np.ix_(soup, soup)] * same + JITTER * np.eye(len(soup))
        ahead = signal[soup] + noise[soup] * (sample[:, None] == coming) / self.size[c, coming]
        lower, known = np.linalg.cholesky(joint), np.isfinite(value)
        seen, cell = (np.linalg.solve(lower, part) for part in (signal[soup], ahead))
        residual = (value - self.level[c][soup])[known]
        pull = np.linalg.solve(joint[np.ix_(known, known)], residual)
        spread = np.diag(signal) + np.diag(noise) / self.size[c, coming] - (cell**2).sum(0)
        mean = self._offset[c] + (self.level[c] + signal[:, soup[known]] @ pull)
        surprise = np.array([residual @ pull, len(pull)])
        return Posterior(mean, signal - seen.T @ seen, signal - seen.T @ cell, spread, surprise)

    def objective(self) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of the objective."""
        if self.value is not None:
            found = self.value(self.posterior_draws())
            return found.mean(0), np.asarray(np.cov(found, rowvar=False), dtype=float)
        return self.total(self.weights)

    def total(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior mean [S] and covariance [S, S] of a weighted sum of the category means, which are independent."""
        parts = [self.posterior(c) for c in range(len(self.item_samples))]
        mean = np.sum([w * part.mean for w, part in zip(weights, parts, strict=True)], 0)
        return mean, np.sum([w**2 * part.covariance for w, part in zip(weights, parts, strict=True)], 0)

    def shares(self, items: BoolArray) -> FloatArray:
        """Share of each category in the mean over some items [I]."""
        counts = np.array([items[np.concatenate(row)].sum() for row in self.item_samples])
        return np.asarray(counts / counts.sum())

    def posterior_draws(self, count: int = DRAWS, wider: float = 1.0) -> FloatArray:
        """Draws of all category means [D, S, C]; `wider` is a factor on their variances."""
        parts = [self.posterior(c) for c in range(len(self.item_samples))]
        return np.stack([part.mean + draws(wider * part.covariance, count, c) for c, part in enumerate(parts)], -1)

    def slopes(self, soups: IntArray) -> FloatArray:
        """Expected derivative of some soups' objective to each category mean [N, C]."""
        if self.value is None:
            return np.tile(self.weights, (len(soups), 1))
        at, steps = self.posterior_draws()[:, soups], STEP * np.eye(len(self.weights))
        return np.stack([(self.value(at + step) - self.value(at)).mean(0) / STEP for step in steps], -1)

    def finishing_gain(self, soups: IntArray, odds: FloatArray | None = None) -> float:
        """Expected gain of the pick (inner scores) if these soups, the leader first, answered the rest of the fold.

        Their posterior means will move by a normal of the variance that the answers take away. A lead counts by its
        `odds` [S] of being admissible.
        """
        (mean, cov), asked = self.objective(), self.asked
        try:  # the posterior reads `asked`: as if these soups' whole fold were requested, for this covariance alone
            self.asked = np.where(np.isin(np.arange(len(asked)), soups)[:, None, None], np.isfinite(self.size), asked)
            after = self.objective()[1]
        finally:
            self.asked = asked
        moved = mean[soups] + draws((cov - after)[np.ix_(soups, soups)], 512)
        shares = np.ones(len(soups)) if odds is None else odds[soups]
        now = ((mean[soups] - mean[soups[0]]) * shares).max()
        return float(((moved - moved[:, :1]) * shares).max(1).mean() - now)

    def surprise(self) -> float:
        """How much more than believed the answers vary: a factor on variances, 1 where nothing was answered."""
        total, count = np.sum([self.posterior(c).surprise for c in range(len(self.item_samples))], 0)
        return float((1 + total) / (1 + count))


class BoundModel:
    """How likely each soup keeps to the bounds of a search, by the surrogate of the scores and a second one of lengths.

    Lengths count as minus multiples of the reference's mean, so that more is better and a margin is a share.
    """

    def __init__(self, scores: SoupModel, space: SearchSpace, points: Sequence[Weights]) -> None:
        assert space.reference is not None
        self._scores, self._bounds, self._reference = scores, space.bounds, space.reference
        self._masks = [bound.covers(space.categories) for bound in space.bounds]
        self._unit = float(space.reference.lengths.mean()) or 1.0
        singles = None if space.lengths is None else -space.lengths / self._unit
        self._lengths = SoupModel(scores.table, scores.item_samples, scores.weights, rise=0.0, singles=singles)
        corner = None if space.against is None else vertices(len(space.ingredients))[space.against]
        self._vertex = points.index(corner) if corner in points else None

    def observe(self, soup: int, items: slice | list[int], lengths: FloatArray) -> None:
        """Take in the tokens of a soup's answers to some items of the fold."""
        if any(bound.lengths for bound in self._bounds):
            self._lengths.observe(soup, items, -lengths / self._unit)

    def fit(self) -> None:
        if self._lengths.known:
            self._lengths.fit()

    def odds(self) -> FloatArray:
        """Probability [S] that a soup's true loss is within all bounds."""
        made = np.ones(len(self._scores.table))
        for bound, mask in zip(self._bounds, self._masks, strict=True):
            model = self._lengths if bound.lengths else self._scores
            model.asked = self._scores.asked
            mean, cov = model.total(model.shares(mask))
            if self._vertex is None:
                known = -self._reference.lengths / self._unit if bound.lengths else self._reference.values
                lead, variance = mean - known[mask].mean(), np.diag(cov)
            else:
                lead, variance = mean - mean[self._vertex], difference_variances(cov, self._vertex)
            z = (bound.margin + lead) / np.sqrt(model.surprise() * np.maximum(variance, TINY))
            made *= [(1 + math.erf(value / math.sqrt(2))) / 2 for value in z]
        return made


def usual_scores(singles: FloatArray) -> FloatArray:
    """What to take from each item's scores [I], by those of single models [K, I]: their mean, where scores are no
    fractions of 1.

    Texts differ in their losses far more than models do, and the surrogate's noise is that of right and wrong answers.
    """
    inside = singles.min() >= 0 and singles.max() <= 1
    return np.zeros(singles.shape[1]) if inside else np.asarray(singles.mean(0))


def expected_improvement(
    mean: FloatArray, cov: FloatArray, most: int, odds: FloatArray | float = 1.0
) -> tuple[int, IntArray, FloatArray]:
    """Leader, its rivals by expected improvement over it, and the derivative of each one's to the variance of its
    difference (Jones et al. 1998: EI = s (phi(z) + z Phi(z)), so dEI / ds^2 = phi(z) / 2s).

    With `odds` [S] of being admissible the leader is likely to be, and improvements are weighed by them (Gardner et
    al. 2014).
    """
    likely = odds >= min(LIKELY, np.max(odds))
    leader = int(np.argmax(np.where(likely, mean, -np.inf)))
    sd = np.sqrt(difference_variances(cov, leader))
    z = (mean - mean[leader]) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    improvement = sd * (density + z * [(1 + math.erf(value / math.sqrt(2))) / 2 for value in z])
    improvement, density = improvement * odds, density * odds
    improvement[leader] = -1
    rivals: IntArray = np.argsort(-improvement, kind="stable")[: min(most, len(mean) - 1)]
    return leader, rivals, density[rivals] / (2 * sd[rivals])


def difference_variances(cov: FloatArray, soup: int) -> FloatArray:
    """Variance of each soup's difference to one of them [S], from a covariance [S, S]; never quite zero."""
    return np.asarray(np.maximum(np.diag(cov) + cov[soup, soup] - 2 * cov[soup], TINY))


def draws(cov: FloatArray, count: int, stream: int = 0) -> FloatArray:
    """Samples [count, S] of a normal with mean zero, always the same of a `stream`."""
    values, vectors = np.linalg.eigh(cov)
    half = vectors * np.sqrt(np.maximum(values, 0))
    return np.asarray(np.random.default_rng(stream).standard_normal((count, len(cov))) @ half.T)
