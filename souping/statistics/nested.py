"""Intervals of a difference at every level, and the one p-value that belongs to them.

T: the difference of two models on the objective.
a: level, the chance that an interval misses the truth (0.05 for 95 %).
r(a): reach, the distance from T to the limit of a test that is inverted at level a, on one side.
m(a): margin for what few or none of the groups showed on that side.

    I_a = [T - sqrt(r_below(a)^2 + m_below(a)^2), T + sqrt(r_above(a)^2 + m_above(a)^2)]
    p = sup {a : 0 in I_a}

Reaches and margins never fall as a falls, so the intervals are nested, and p < a just where I_a
excludes 0. If there are several reaches, the farthest counts: the larger p, the wider interval.

Shape legend: H strata, S pools of strata, L levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from souping.core.types import FloatArray, IntArray
from souping.statistics.grouped import FLAT_VARIANCE, ZERO_DIFFERENCE, GroupedScores

# Levels at which margins are computed; between them, they are interpolated over the logarithm.
MARGIN_LEVELS = np.geomspace(1.0, 1e-6, 32)
FALLING = -np.log(MARGIN_LEVELS)
# A stratum is pooled with others whose groups weigh at most so many times as much or as little.
LIKE_WEIGHT = 2.0
# Lowest p-value: further out, quantiles of Student's t overflow. Halvings of the logarithm by which
# one is found to the last bit.
LEAST_P = 1e-100
MARGIN_HALVINGS = 64


class Reach(ABC):
    """Distances from T to the limits of a test that is inverted; they never fall as `level` falls."""

    @abstractmethod
    def below(self, level: float) -> float:
        """Distance down to the lower limit."""

    @abstractmethod
    def above(self, level: float) -> float:
        """Distance up to the upper limit."""


@dataclass(frozen=True, kw_only=True)
class BanerjeeReach(Reach):
    """sqrt(z^2 items + t^2 runs), for the variances over items and over a few runs (Banerjee 1961).

    It covers at least as often as its level says, whatever the true variances are. Satterthwaite's
    degrees of freedom for their sum do not: they are many just where the few runs happen to agree.
    """

    items: float
    runs: float
    degrees: float  # of the variance over runs

    def below(self, level: float) -> float:
        from scipy.special import ndtri, stdtrit

        z = float(ndtri(level / 2))
        t = float(stdtrit(self.degrees, level / 2))
        return math.sqrt(z**2 * self.items + t**2 * self.runs)

    def above(self, level: float) -> float:
        return self.below(level)


@dataclass(frozen=True, kw_only=True)
class UnseenMargins:
    """m(a) on both sides of T, at MARGIN_LEVELS.

    Of n groups k lie below zero, or above: their rate may be as high as the upper a / 2 point of
    Beta(k + 1/2, n - k + 1/2) (Jeffreys' prior; Brown, Cai and DasGupta 2001). What that goes
    beyond the normal limit is what no resampling of the groups shows: all of it where k is 0, next
    to nothing where k is large. Strata whose groups weigh alike are counted together, as n and k of
    one; those that weigh otherwise add theirs in squares.
    """

    below: FloatArray  # [L]
    above: FloatArray  # [L]

    @classmethod
    def of(cls, scores: GroupedScores, tests: int = 1) -> UnseenMargins:
        """For a level that is divided by a number of `tests`."""
        pulls = scores.pulls
        moves = scores.layout.shares.sum(axis=1)  # [H] of T, if all groups of a stratum move by 1
        zero = FLAT_VARIANCE * moves.max()
        lower = np.bincount(scores.stratum, -pulls > zero, scores.strata).astype(float)
        higher = np.bincount(scores.stratum, pulls > zero, scores.strata).astype(float)

        pool = _pools(moves / scores.sizes, scores.sizes)
        in_pool = (pool == np.arange(pool.max() + 1)[:, None]).astype(float)  # [S, H]
        n = in_pool @ scores.sizes
        tails = MARGIN_LEVELS / 2 / tests
        below = _jeffreys_margins(n, in_pool @ lower, in_pool @ moves, tails)
        above = _jeffreys_margins(n, in_pool @ higher, in_pool @ moves, tails)
        return cls(below=below, above=above)


def _pools(group_weights: FloatArray, sizes: FloatArray) -> IntArray:
    """Number of each stratum's pool [H]: 0 for those of like weight, one of its own for others.

    The stratum whose `group_weights` [H] is farthest from the mean over the groups of the pool
    leaves it, until all that remain are within LIKE_WEIGHT.
    """
    pool = np.zeros(len(sizes), dtype=np.int64)
    while True:
        pooled = pool == 0
        mean = np.average(group_weights[pooled], weights=sizes[pooled])
        distances = np.where(pooled, np.abs(np.log(group_weights / mean)), 0.0)
        farthest = int(np.argmax(distances))
        if distances[farthest] <= math.log(LIKE_WEIGHT) + ZERO_DIFFERENCE:
            return pool
        pool[farthest] = pool.max() + 1


def _jeffreys_margins(
    n: FloatArray, k: FloatArray, moves: FloatArray, tails: FloatArray
) -> FloatArray:
    """How far T may move [L] if pools of `n` [S] groups, of which `k` were seen, move it by `moves`.

    With few groups the normal limit overtakes Jeffreys' far out: the margin does not fall there.
    """
    from scipy.special import betaincinv, ndtri

    rate = k / n
    normal_limit = rate - np.outer(ndtri(tails), np.sqrt(k * (1 - rate)) / n)
    jeffreys_limit = betaincinv(k + 0.5, n - k + 0.5, (1 - tails)[:, None])
    excess = np.maximum(jeffreys_limit - normal_limit, 0.0)
    margins = np.sqrt(((moves * excess) ** 2).sum(axis=1))
    return np.asarray(np.maximum.accumulate(margins))


@dataclass(frozen=True, kw_only=True)
class NestedIntervals:
    """I_a for every a, within -bound..bound. Without a reach, no group differs: T is 0."""

    total: float
    reaches: Sequence[Reach]
    margins: UnseenMargins
    bound: float

    def limits(self, level: float) -> tuple[float, float]:
        """I_a for a = `level`."""
        low = self.total - self._below(level)
        high = self.total + self._above(level)
        return max(-self.bound, low), min(self.bound, high)

    def p_value(self) -> float:
        """The largest level at which the interval holds 0."""
        if abs(self.total) <= ZERO_DIFFERENCE * min(self.bound, 1.0) or not self.reaches:
            return 1.0
        distance = self._below if self.total > 0 else self._above
        if distance(1.0) >= abs(self.total):
            return 1.0
        inside = LEAST_P
        outside = 1.0
        for _ in range(MARGIN_HALVINGS):
            middle = math.sqrt(inside) * math.sqrt(outside)
            if distance(middle) >= abs(self.total):
                inside = middle
            else:
                outside = middle
        return inside

    def _below(self, level: float) -> float:
        reach = max((reach.below(level) for reach in self.reaches), default=0.0)
        return math.hypot(reach, _at(level, self.margins.below))

    def _above(self, level: float) -> float:
        reach = max((reach.above(level) for reach in self.reaches), default=0.0)
        return math.hypot(reach, _at(level, self.margins.above))


def _at(level: float, margins: FloatArray) -> float:
    """Margins [L] interpolated at a level."""
    return float(np.interp(-math.log(level), FALLING, margins))
