"""Surrogate of models whose weights say nothing of one another: what they share is the items alone.

The score of model s on a block b of n items is level + u(s) + d(s) h(b) + e(s, b): what all models score, what this one
scores more, how hard the block is by chance, the model's own luck; d(s) is the standard deviation of one answer,
h ~ N(0, alike / n), e ~ N(0, d(s)^2 (1 - alike) / n). Given level and h, models are independent of each other: with
B blocks an exact posterior takes B + 1 shared numbers and two a model (a random-effects model, solved by elimination),
where a Gaussian process would take a row an answer. Categories are one here: each block is a sample of all of them.
"""

from __future__ import annotations

import numpy as np

from souping.core.types import FloatArray, IntArray
from souping.search.fold import FoldAnswers, FoldLayout

RISES = np.array([0.02, 0.04, 0.07, 0.11, 0.16, 0.24, 0.36])
"""Standard deviations of u that are mixed by their evidence."""
WIDE, FLOOR = 0.3, 1e-9
"""Standard deviation of the level around the mean of what is known; least variance of anything."""
ALIKE, HELD, MOST = 0.3, 20.0, 0.9
"""Correlation of two models' answers to one item: beforehand, as if from so many items, and at most."""


class ArmsModel:
    """Fits a posterior to answers."""

    def __init__(self, layout: FoldLayout) -> None:
        self._layout = layout

    def fit(self, answers: FoldAnswers, believed: FloatArray | None) -> ArmsPosterior:
        """The posterior of all that is known; `believed` [1, S] are the means so far."""
        residuals = answers.residuals()
        deviation = answers.deviations(residuals, believed)[0]
        sizes = self._layout.effective[0] / answers.clustering()
        scores, level = answers.scores()[0], float(answers.levels()[0])
        luck = alike(residuals / deviation[:, None])
        found = [ArmsPosterior(level, rise, deviation, luck, sizes, scores) for rise in RISES]
        weight = np.exp([one.evidence - max(other.evidence for other in found) for one in found])
        rise = float(np.sqrt(weight @ RISES**2 / weight.sum()))
        return ArmsPosterior(level, rise, deviation, luck, sizes, scores)


def alike(residuals: FloatArray) -> float:
    """Correlation of two models' answers to one item, from residuals [S, I] of variance 1, nan where there is none: the
    mean product of pairs, item by item, held near `ALIKE`."""
    count = np.isfinite(residuals).sum(0)
    values = np.nan_to_num(residuals[:, count > 1])
    pairs = count[count > 1] * (count[count > 1] - 1)
    found = (values.sum(0) ** 2 - (values**2).sum(0)) / pairs
    return float(np.clip((found.sum() + HELD * ALIKE) / (len(found) + HELD), 0.0, MOST))


class ArmsPosterior:
    """Posterior of S models and their cells (block, model), one category; `scores` [S, B], nan where unknown.

    `sizes` [B] are items, `deviation` [S] that of one answer. A cell's mean is `shape` times the shared numbers (level,
    h) plus the model's own rest, whose variance is `own` [S].
    """

    def __init__(
        self, level: float, rise: float, deviation: FloatArray, luck: float, sizes: FloatArray, scores: FloatArray
    ) -> None:
        self._level, self._rise, self._deviation = level, rise, deviation
        self._noise = deviation[:, None] ** 2 * (1 - luck) / sizes + FLOOR
        self._weight = np.isfinite(scores) / self._noise
        self._scores = np.nan_to_num(scores - level)
        self._before = np.concatenate([[1 / WIDE**2], sizes / max(luck, FLOOR)])
        self._solve()

    def _solve(self) -> None:
        """Condition on all scores."""
        weight, pull = self._weight, self._weight * self._scores
        spread = self._deviation @ weight
        own, mine = weight.sum(1), pull.sum(1)
        precision = self._rise**-2 + own
        loads = np.column_stack([own, self._deviation[:, None] * weight])
        total = np.diag(self._before + np.append(own.sum(), self._deviation**2 @ weight))
        total[0, 1:] += spread
        total[1:, 0] += spread
        self._own, self._rest, self._shape = 1 / precision, mine / precision, -loads / precision[:, None]
        total += loads.T @ self._shape
        self._shape[:, 0] += 1
        self._shared = np.linalg.inv(total)
        shared = np.append(mine.sum(), self._deviation @ pull) - self._rest @ loads
        self._found = self._shared @ shared
        self._fit = float((pull * self._scores).sum() - self._rest @ mine - shared @ self._found)
        self._stale = False

    @property
    def evidence(self) -> float:
        """Log-density of all scores, up to a constant that is the same for every rise."""
        spread = np.log(self._rise**2 / self._own).sum() - np.linalg.slogdet(self._shared)[1]
        return float(-(self._fit + spread) / 2)

    @property
    def surprises(self) -> tuple[float, int]:
        """Sum of squares of the scores' surprises, one after another, and their number."""
        self._refresh()
        return self._fit, int((self._weight > 0).sum())

    def copy(self) -> ArmsPosterior:
        twin = ArmsPosterior.__new__(ArmsPosterior)
        twin.__dict__.update(vars(self))
        twin._scores, twin._weight = self._scores.copy(), self._weight.copy()
        return twin

    def observe(self, category: int, soup: int, block: int, value: float | None = None) -> None:
        """Condition on the mean score of a model on a block; without a value on that it will be known."""
        if value is None:
            self._refresh()
            value = self._level + self._rest[soup] + self._cells(np.array([soup]), np.array([block]))[0] @ self._found
        self._scores[soup, block] = value - self._level
        self._weight[soup, block] = 1 / self._noise[soup, block]
        self._stale = True

    def _refresh(self) -> None:
        if self._stale:
            self._solve()

    def _cells(self, soup: IntArray, block: IntArray) -> FloatArray:
        """What the shared numbers do to cells [N, B + 1]."""
        found: FloatArray = self._shape[soup]
        found[np.arange(len(soup)), block + 1] += self._deviation[soup]
        return found

    @property
    def mean(self) -> FloatArray:
        """Posterior means of the models [1, S]."""
        self._refresh()
        return np.asarray(self._level + self._rest + self._shape @ self._found)[None]

    def differences(self, soup: int, weights: FloatArray) -> FloatArray:
        """Variance of each model's difference to one of them [S]."""
        self._refresh()
        apart = self._shape - self._shape[soup]
        found = ((apart @ self._shared) * apart).sum(1) + self._own + self._own[soup]
        found[soup] = 0.0
        return np.asarray(found)

    def covariance(self, soups: IntArray, weights: FloatArray) -> FloatArray:
        """Posterior covariance [N, N]."""
        self._refresh()
        shape = self._shape[soups]
        return np.asarray(shape @ self._shared @ shape.T + np.diag(self._own[soups]))

    def reduction(self, leader: int, rivals: IntArray, weights: FloatArray, block: IntArray) -> FloatArray:
        """How much each model's answer to a block of its own, `block` [S, 1], would take off the variance of rival
        minus leader [1, R, S]."""
        self._refresh()
        soups, blocks = np.arange(len(self._own)), block[:, 0]
        cells = self._cells(soups, blocks) @ self._shared
        change = (self._shape[rivals] - self._shape[leader]) @ cells.T
        change[np.arange(len(rivals)), rivals] += self._own[rivals]
        change[:, leader] -= self._own[leader]
        spread = (cells * self._cells(soups, blocks)).sum(1) + self._own + self._noise[soups, blocks]
        return np.asarray(change**2 / spread)[None]

    def cells(self, c: int, soups: IntArray, soup: IntArray, block: IntArray) -> tuple[FloatArray, FloatArray]:
        """Posterior covariance of `soups` with cells [N, M], and of the cells among themselves [M, M]."""
        self._refresh()
        cells = self._cells(soup, block)
        cross = self._shape[soups] @ self._shared @ cells.T + (soups[:, None] == soup) * self._own[soup]
        inner = cells @ self._shared @ cells.T + (soup[:, None] == soup) * self._own[soup]
        return cross, inner + np.diag(self._noise[soup, block])
