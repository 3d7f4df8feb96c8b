"""Correction of several sign-flip tests for their number (max-T; Westfall and Young 1993).

Shape legend: G groups, F differences, D sign patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.grouped import GroupedScores, distinct
from souping.analysis.intervals import NORMAL
from souping.analysis.sign_flip import TIE
from souping.analysis.sign_patterns import DRAWS, drawn_sums, draws_for
from souping.core.types import FloatArray, IntArray

MAX_T = "max-T of studentised sign flips over groups"


@dataclass(frozen=True, kw_only=True)
class MaxT:
    """Several differences, each of one category, that are tested at level `alpha` together."""

    largest: FloatArray  # [D] the largest |T*| / se* of all differences in a pattern, sorted
    errors: FloatArray  # [F] standard errors of the differences
    items: FloatArray  # [F]
    alpha: float

    @classmethod
    def of(
        cls,
        differences: Sequence[GroupedScores],
        members: Sequence[IntArray],
        alpha: float,
        draws: int = DRAWS,
    ) -> MaxT:
        """`members[f]` number the groups of a difference; one has one sign in all of them."""
        # What each group adds to each difference [G, F].
        _, group = np.unique(np.concatenate(members), return_inverse=True)
        sizes = np.array([len(groups) for groups in members])
        items = np.array([scores.counts.sum() for scores in differences])
        pulls = np.zeros((int(group.max()) + 1, len(differences)))
        for f, places in enumerate(np.split(group, np.cumsum(sizes)[:-1])):
            pulls[places, f] = differences[f].sums[:, 0] / items[f]

        # The differences in each pattern [D, F], and the largest of their studentised sizes.
        one_stratum = np.zeros(len(pulls), dtype=np.int64)
        rows, stratum, number = distinct(pulls, one_stratum)
        patterns = draws_for(alpha, draws)
        totals = drawn_sums(rows, number, stratum, strata=1, draws=patterns, seed=0)[:, 0]
        squares = (pulls**2).sum(axis=0)
        variance = (squares - totals**2 / sizes) * sizes / np.maximum(sizes - 1, 1)
        least_variance = np.maximum(1e-12 * squares, 1e-30)
        studentised = np.abs(totals) / np.sqrt(np.maximum(variance, least_variance))

        seen = pulls.sum(axis=0)
        seen_squares = np.maximum(squares - seen**2 / sizes, 0.0)
        errors = np.sqrt(seen_squares * sizes / np.maximum(sizes - 1, 1))
        return cls(
            largest=np.sort(studentised.max(axis=1)), errors=errors, items=items, alpha=alpha
        )

    @property
    def critical(self) -> float:
        """Size of |T| / se above which a difference is beyond chance in any of the tests.

        In a category of few groups many patterns have all groups on one side, and no error:
        Bonferroni's limit is below theirs.
        """
        return critical_value(self.largest, self.alpha, tests=len(self.errors))

    @property
    def tests(self) -> float:
        """Number of independent tests that would need the same correction."""
        return equivalent_tests(self.critical, self.alpha)

    def p_value(self, single: float) -> float:
        """p-value for all tests of one whose own is `single`.

        It is below alpha just where `single` is below alpha / `tests`.
        """
        size = -NORMAL.inv_cdf(single / 2)
        reached = len(self.largest) - np.searchsorted(self.largest, size)
        adjusted = float((1 + reached) / (1 + len(self.largest)))
        bonferroni = len(self.errors) * single
        return min(adjusted, bonferroni, 1.0)

    @property
    def least(self) -> FloatArray:
        """Smallest difference that would have been beyond chance [F].

        q se, and at least q^2 of the items, all of which would have to differ in one direction.
        """
        by_error = self.critical * self.errors
        by_items = self.critical**2 / self.items
        return np.asarray(np.maximum(by_error, by_items))


def critical_value(largest: FloatArray, alpha: float, tests: int) -> float:
    """Size that the largest of several |T| / se reaches with probability alpha by chance.

    From the `largest` [D] of each sign pattern, but at most Bonferroni's for so many tests.
    """
    rank = max(1, math.ceil(alpha * (1 + len(largest)) - 1 - TIE))
    by_patterns = float(np.sort(largest)[-rank])
    bonferroni = -NORMAL.inv_cdf(alpha / 2 / tests)
    return min(by_patterns, bonferroni)


def equivalent_tests(critical: float, alpha: float) -> float:
    """Number of independent tests whose correction has this critical value."""
    return alpha / (2 * NORMAL.cdf(-critical))
