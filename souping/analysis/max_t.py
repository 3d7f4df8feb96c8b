"""Correction of several sign-flip tests for their number (max-T; Westfall and Young 1993).

The differences meet the same sign patterns. One is beyond chance at level a where |T| / se is above
the size that the largest |T*| / se* of all reaches with a chance of a. That size, in standard
errors, is the reach of simultaneous limits.

Shape legend: G groups, F differences, D sign patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.bootstrap_t import NORMAL, bootstrap_reach
from souping.analysis.grouped import GroupedScores, distinct, variance_of_sums
from souping.analysis.nested import ZERO_DIFFERENCE, NestedIntervals, Reach, UnseenMargins
from souping.analysis.paired import step
from souping.analysis.sign_flip import TINY_VARIANCE
from souping.analysis.sign_patterns import SIGN_DRAWS, drawn_sums, draws_for
from souping.core.types import FloatArray, IntArray

MAX_T = "max-T of studentised sign flips over groups"


@dataclass(frozen=True, kw_only=True)
class MaxTReach(Reach):
    """Simultaneous limits: the size that the largest of all |t*| reaches with a chance of `level`.

    In a category of few groups many patterns have all groups on one side, and no error. So it is
    at most the size that the difference's own |t*| reaches with a chance of `level` / F.
    """

    error: float
    largest: FloatArray  # [D] of all differences in a pattern, falling
    statistics: FloatArray  # [D] |T*| / se* of this one, falling
    tests: int

    def below(self, level: float) -> float:
        critical = min(_reached(level, self.largest), _reached(level / self.tests, self.statistics))
        return critical * self.error

    def above(self, level: float) -> float:
        return self.below(level)


def _reached(level: float, falling: FloatArray) -> float:
    """The size that is reached with a chance of `level`, by the patterns [D] and the one seen."""
    rank = math.ceil(level * (1 + len(falling)) - ZERO_DIFFERENCE) - 1
    if rank <= 0:
        return math.inf
    return float(falling[rank - 1])


@dataclass(frozen=True, kw_only=True)
class MaxT:
    """Several differences, each of one category, that are tested at level `alpha` together."""

    largest: FloatArray  # [D] the largest |T*| / se* of all differences in a pattern
    errors: FloatArray  # [F] standard errors of the differences
    items: FloatArray  # [F]
    alpha: float
    intervals: Sequence[NestedIntervals]  # of each difference, for all of them at once

    @classmethod
    def of(
        cls,
        differences: Sequence[GroupedScores],
        members: Sequence[IntArray],
        bounds: Sequence[float],
        alpha: float,
        draws: int = SIGN_DRAWS,
    ) -> MaxT:
        """`members[f]` number the groups of a difference; one has one sign in all of them.

        A difference lies within -bounds[f]..bounds[f].
        """
        sizes = np.array([len(groups) for groups in members])
        items = np.array([scores.counts.sum() for scores in differences])
        pulls = _joint_pulls(differences, members, items)
        squares = (pulls**2).sum(axis=0)
        errors = _errors(pulls.sum(axis=0), squares, sizes)

        # The differences in each pattern [D, F], and the largest of their studentised sizes. That
        # which was seen is reached in spite of rounding.
        one_stratum = np.zeros(len(pulls), dtype=np.int64)
        rows, stratum, number = distinct(pulls, one_stratum)
        patterns = draws_for(alpha, draws)
        totals = drawn_sums(rows, number, stratum, strata=1, draws=patterns, seed=0)[:, 0]
        studentised = np.abs(totals) / _errors(totals, squares, sizes) * (1 + ZERO_DIFFERENCE)
        largest = np.sort(studentised.max(axis=1))[::-1]

        intervals = []
        for f, scores in enumerate(differences):
            reach = MaxTReach(
                error=float(errors[f]),
                largest=largest,
                statistics=np.sort(studentised[:, f])[::-1],
                tests=len(differences),
            )
            intervals.append(_intervals(scores, reach, bounds[f]))
        return cls(largest=largest, errors=errors, items=items, alpha=alpha, intervals=intervals)

    @property
    def least(self) -> FloatArray:
        """Smallest difference that would have been beyond chance [F].

        q se, and at least q^2 of the items, all of which would have to differ in one direction.
        """
        by_error = self.critical * self.errors
        by_items = self.critical**2 / self.items
        return np.asarray(np.maximum(by_error, by_items))

    @property
    def critical(self) -> float:
        """Size of |T| / se above which a difference is beyond chance in any of the tests."""
        return critical_value(self.largest, self.alpha, tests=len(self.errors))


def _joint_pulls(
    differences: Sequence[GroupedScores], members: Sequence[IntArray], items: FloatArray
) -> FloatArray:
    """What each group adds to each difference [G, F], by the `items` [F] of each."""
    _, group = np.unique(np.concatenate(members), return_inverse=True)
    ends = np.cumsum([len(groups) for groups in members])
    pulls = np.zeros((int(group.max()) + 1, len(differences)))
    for f, groups in enumerate(np.split(group, ends[:-1])):
        pulls[groups, f] = differences[f].sums[:, 0] / items[f]
    return pulls


def _intervals(scores: GroupedScores, reach: MaxTReach, bound: float) -> NestedIntervals:
    """Simultaneous intervals of one difference; graded scores have bootstrap-t limits too."""
    reaches: list[Reach] = [reach]
    if step(scores) == 0:
        bootstrap = bootstrap_reach(scores, tests=reach.tests)
        if bootstrap is not None:
            reaches.append(bootstrap)
    return NestedIntervals(
        total=scores.objective,
        reaches=reaches,
        margins=UnseenMargins.of(scores, reach.tests),
        bound=bound,
    )


def _errors(totals: FloatArray, squares: FloatArray, sizes: IntArray) -> FloatArray:
    """Standard errors of differences [..., F] by their totals and the groups' sums of squares."""
    least_variance = np.maximum(TINY_VARIANCE * squares, 1e-30)
    variance = np.maximum(variance_of_sums(totals, squares, sizes), least_variance)
    return np.asarray(np.sqrt(variance))


def critical_value(largest: FloatArray, alpha: float, tests: int) -> float:
    """Size that the largest of several |T| / se reaches with probability alpha by chance.

    From the `largest` [D] of each sign pattern, but at most Bonferroni's for so many tests.
    """
    rank = max(1, math.ceil(alpha * (1 + len(largest)) - 1 - ZERO_DIFFERENCE))
    by_patterns = float(np.sort(largest)[-rank])
    bonferroni = -NORMAL.inv_cdf(alpha / 2 / tests)
    return min(by_patterns, bonferroni)


def equivalent_tests(critical: float, alpha: float, most: int) -> float:
    """Number of independent tests, 1 to `most`, whose correction has this critical value."""
    return min(float(most), max(1.0, alpha / (2 * NORMAL.cdf(-critical))))


def t_statistics(
    totals: FloatArray, squares: FloatArray, sizes: FloatArray, least: float
) -> FloatArray:
    """T / se of one difference in every pattern, [D].

    `totals` [D, H] are the strata's sums in a pattern, `squares` [H] their groups' sums of squares.
    A stratum of n groups adds n / (n - 1) (sum of squares - square of the sum / n) to the variance,
    which is `least` at least.
    """
    factor = sizes / np.maximum(sizes - 1, 1)
    variance = ((squares - totals**2 / sizes) * factor).sum(axis=1)
    return np.asarray(totals.sum(axis=1) / np.sqrt(np.maximum(variance, least)))
