"""Intervals of a difference at every level, and the one p-value that belongs to them.

T: the difference of two models on the objective.
a: level, the chance that an interval misses the truth (0.05 for 95 %).
r(a): reach, the distance from T to the limit of a test that is inverted at level a, on one side.
j(a): distance to Jeffreys' limit on that side, for what few or none of the groups showed.
e(a): distance to the exact limit (Clopper and Pearson 1934), as if all groups of one side pulled alike.

    right or wrong:  d(a) = max(r(a), j(a))
    graded:          d(a) = max(r(a) + the part of j(a) that a normal limit has not, e(a))
    I_a = [T - d_below(a), T + d_above(a)],    p = sup {a : 0 in I_a}

Distances never fall as a falls, so the intervals are nested, and p < a just where I_a excludes 0.
If there are several reaches, the farthest counts: the larger p, the wider interval.

Shape legend: G groups, H strata.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from souping.core.types import FloatArray, frozen
from souping.statistics.corrections import ALPHA, Z95
from souping.statistics.grouped import FLAT_VARIANCE, ZERO_DIFFERENCE, GroupedScores

# Lowest p-value: further out, quantiles of Student's t overflow. Halvings of the logarithm by which
# one is found to the last bit.
LEAST_P = 1e-100
P_HALVINGS = 64


class Reach(ABC):
    """Distances from T to the limits of a test that is inverted; they never fall as `level` falls."""

    @abstractmethod
    def below(self, level: float) -> float:
        """Distance down to the lower limit."""

    @abstractmethod
    def above(self, level: float) -> float:
        """Distance up to the upper limit."""


@frozen
class BanerjeeReach(Reach):
    """sqrt(z^2 items + t^2 runs), for the variances over items and over a few runs (Banerjee 1961).

    It covers at least as often as its level says, whatever the true variances are. Satterthwaite's
    degrees of freedom for their sum do not: they are many just where the few runs happen to agree.
    """

    items: float  # variance over items
    runs: float  # variance over runs
    degrees: float  # degrees of freedom of the variance over runs

    def below(self, level: float) -> float:
        from scipy.special import ndtri, stdtrit

        z = float(ndtri(level / 2))
        t = float(stdtrit(self.degrees, level / 2))
        return math.sqrt(z**2 * self.items + t**2 * self.runs)

    def above(self, level: float) -> float:
        return self.below(level)


@frozen
class Unseen:
    """How far T may lie beyond the groups that pull it to one side, and a reach with that.

    Of n groups k pull T down, or up. The limit of their rate is the upper a / 2 point of Beta(k + 1/2, n - k + 1/2)
    and, where k is 0, the exact 1 - (a / 2)^(1 / n) (modified Jeffreys; Brown, Cai and DasGupta 2001). The exact limit
    is that of Beta(k + 1, n - k). Of several strata the one by which T may move farthest counts alone; what others may
    hide is not added to it.
    """

    n: FloatArray  # [H]
    k: FloatArray  # [H]
    moves: FloatArray  # [H] of T, if all groups of a stratum pull as those k do; if none does, by all their items
    turns: FloatArray  # [H] of T, if all of them pull as those k do, and none as the others do
    graded: bool
    tests: int  # by which a level is divided

    @classmethod
    def of(cls, scores: GroupedScores, pulls: FloatArray, graded: bool, tests: int) -> Unseen:
        """By the groups whose `pulls` [G] are above 0.

        How far T may rise follows from the pulls of the difference, and how far it may fall from their negatives.
        """
        moves = scores.layout.spans
        # A smaller pull is rounding.
        is_side = pulls > FLAT_VARIANCE * moves.max()
        k = np.bincount(scores.stratum, is_side, scores.strata).astype(float)
        # Groups may pull by different amounts: the root mean square stands for all k.
        squares = np.bincount(scores.stratum, np.where(is_side, pulls**2, 0.0), scores.strata)
        root_mean_square = np.sqrt(squares / np.maximum(k, 1))
        n = scores.sizes
        moves = np.where(k > 0, n * root_mean_square, moves)
        # The other groups pull to the other side, or not at all.
        others = np.bincount(scores.stratum, np.where(is_side, 0.0, -pulls), scores.strata)
        turns = moves + np.where(k > 0, n * others / np.maximum(n - k, 1), 0.0)
        return cls(n=n, k=k, moves=moves, turns=turns, graded=graded, tests=tests)

    def widened(self, reach: float, level: float) -> float:
        """The distance d(a) of the module, from a reach r(a) at the level a.

        It is the larger of r(a) and j(a) if scores are right or wrong. If graded, it is their sum less what both count,
        and at least e(a): bootstrap-t falls short of a normal limit where one or two groups pull to that side.
        """
        tail = level / 2 / self.tests
        beyond = self._beyond(tail)
        # Distances by stratum [H]: the farthest counts.
        jeffreys = self.moves * beyond
        if not self.graded:
            return max(reach, float(jeffreys.max()))
        beyond_normal = self.moves * self._share_beyond_normal() * beyond
        exact = self.turns * self._beyond(tail, exact=True)
        return max(reach + float(beyond_normal.max()), float(exact.max()))

    def _beyond(self, tail: float, exact: bool = False) -> FloatArray:
        """How far the upper limit (Jeffreys', or the `exact` one) of the rate is beyond k / n, [H]."""
        from scipy.special import betaincinv

        more = 1.0 if exact else 0.5
        limit = betaincinv(self.k + more, self.n - self.k + 1 - more, 1 - tail)
        # A rate of 1 has no exact limit beyond it.
        limit = np.nan_to_num(limit, nan=1.0)
        limit = np.where(self.k == 0, 1 - tail ** (1 / self.n), limit)
        return np.asarray(np.maximum(limit - self.k / self.n, 0.0))

    def _share_beyond_normal(self) -> FloatArray:
        """The share of `_beyond`'s distance that a normal limit lacks, at 95 %, [H]: 1 where k is 0.

        At other levels the share is the same, so that what is added never falls as the level does.
        """
        rate = self.k / self.n
        normal = Z95 * np.sqrt(rate * (1 - rate) / self.n)
        beyond = self._beyond(ALPHA / 2)
        share = np.zeros_like(rate)
        return np.divide(beyond - normal, beyond, out=share, where=beyond > normal)


@frozen
class NestedIntervals:
    """I_a for every level a, within -bound..bound. If there is no reach, no group differs and T is 0."""

    total: float  # T
    reaches: Sequence[Reach]
    falls: Unseen  # how far T may lie below
    rises: Unseen  # how far T may lie above
    bound: float

    @classmethod
    def of(
        cls,
        scores: GroupedScores,
        reaches: Sequence[Reach | None],
        bound: float,
        *,
        graded: bool,
        tests: int = 1,
    ) -> NestedIntervals:
        """Intervals of the difference in `scores`; `reaches` that are None do not count.

        A level is divided by the number of `tests`.
        """
        return cls(
            total=scores.objective,
            reaches=[reach for reach in reaches if reach is not None],
            falls=Unseen.of(scores, -scores.pulls, graded, tests),
            rises=Unseen.of(scores, scores.pulls, graded, tests),
            bound=bound,
        )

    def limits(self, level: float) -> tuple[float, float]:
        """I_a for a = `level`."""
        low = self.total - self._below(level)
        high = self.total + self._above(level)
        return max(-self.bound, low), min(self.bound, high)

    def p_value(self) -> float:
        """The largest level at which the interval holds 0."""
        # The bound may be infinite.
        if abs(self.total) <= ZERO_DIFFERENCE * min(self.bound, 1.0) or not self.reaches:
            return 1.0
        distance = self._below if self.total > 0 else self._above
        if distance(1.0) >= abs(self.total):
            return 1.0
        # Halve the logarithm of the level, between one whose interval holds 0 and one whose does not.
        inside = LEAST_P
        outside = 1.0
        for _ in range(P_HALVINGS):
            middle = math.sqrt(inside) * math.sqrt(outside)
            if distance(middle) >= abs(self.total):
                inside = middle
            else:
                outside = middle
        return inside

    def _below(self, level: float) -> float:
        """d_below(a) for a = `level`."""
        reach = max((reach.below(level) for reach in self.reaches), default=0.0)
        return self.falls.widened(reach, level)

    def _above(self, level: float) -> float:
        """d_above(a) for a = `level`."""
        reach = max((reach.above(level) for reach in self.reaches), default=0.0)
        return self.rises.widened(reach, level)
