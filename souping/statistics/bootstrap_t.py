"""Bootstrap-t over groups of a difference: for scores of which a sign flip assumes too much.

Two models with equal means need not be exchangeable: many small gains and a few large losses make
T = 0, yet a sample without the losses looks like a gain. The bootstrap draws groups, not signs, so
its t* has the skewness of the scores:

    t* = (T* - T) / se*,    limits  T - t*_(1 - a/2) se  and  T - t*_(a/2) se

(Efron and Tibshirani 1993, chapter 12). T is made linear in the groups by their influence.

Shape legend: G groups, H strata, D draws.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from souping.core.types import FloatArray, IntArray, frozen
from souping.statistics.flips import INTERVAL_SALT, Pulls, distinct, variance_of_sums
from souping.statistics.grouped import GroupedScores
from souping.statistics.nested import Reach

NORMAL = NormalDist()
# Most and fewest draws, and most groups that are drawn in all of them together.
BOOTSTRAP_DRAWS = 4_999
LEAST_DRAWS = 399
WORK = 6_000_000
# Groups that are drawn at a time.
GROUPS_AT_A_TIME = 2_000_000
# Draws beyond a quantile without which it is not taken from the draws.
RESOLVED = 20
# Groups are drawn by how often each distinct influence comes, if on average so many groups share it.
GROUPS_PER_INFLUENCE = 16


@frozen
class BootstrapReach(Reach):
    """Limits by the quantiles of t*; a level is divided by a number of `tests`.

    Beyond the tail that the draws resolve, a quantile grows as the normal's does.
    """

    studentised: FloatArray  # [D] t*, sorted
    error: float  # standard error of T
    tests: int = 1

    def below(self, level: float) -> float:
        return self._quantile(self.studentised[::-1], level)

    def above(self, level: float) -> float:
        return self._quantile(-self.studentised, level)

    def _quantile(self, descending: FloatArray, level: float) -> float:
        """Distance from T to a limit that is missed with a chance of level / 2 / `tests`.

        `descending` [D] is t* for the lower limit and -t* for the upper one, the largest first.
        """
        tail = level / 2 / self.tests
        rank = int(tail * (1 + len(descending)))
        if rank >= RESOLVED:
            # The quantile of skewed draws may be below 0 at a level near 1, but the interval always holds T.
            return max(0.0, float(descending[rank - 1])) * self.error
        # Too few draws lie beyond the quantile: take the last resolved one, and the normal's growth from there. Tails
        # that are drawn from few groups may be too short, so it is never below the normal's own quantile.
        farthest = float(descending[RESOLVED - 1])
        normal = -NORMAL.inv_cdf(RESOLVED / (1 + len(descending)))
        return max(1.0, farthest / normal) * -NORMAL.inv_cdf(tail) * self.error


def bootstrap_reach(
    scores: GroupedScores, *, tests: int = 1, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> BootstrapReach | None:
    """Bootstrap-t limits of T; None where no stratum shows any variation.

    A level is divided by `tests`. The draws are those of the upward difference, so that a - b and b - a mirror each
    other.
    """
    pulls = Pulls.upward(scores)
    # Draw for -T, and mirror t*.
    if pulls is not None and pulls.turned:
        upward = replace(scores, sums=-scores.sums)
        reach = bootstrap_reach(upward, tests=tests, draws=draws, seed=seed)
        return reach and replace(reach, studentised=-reach.studentised[::-1])

    varying = ~scores.flat
    error = float(np.sqrt(scores.variances[varying].sum()))
    if error == 0:
        return None
    influence = scores.influence
    draws = min(draws, BOOTSTRAP_DRAWS, max(LEAST_DRAWS, WORK // len(influence)))
    rng = np.random.default_rng([INTERVAL_SALT, seed])

    # A stratum whose groups all differ alike in a draw, such as by 0, counts with the variance of
    # half a discordant group among n + 1 (Jeffreys). Their influence still varies with their size.
    sizes = scores.sizes
    floor = scores.layout.spans**2 * 0.5 / (sizes + 1) / sizes
    shift = np.zeros(draws)  # T* - T
    variance = np.zeros(draws)  # se*^2
    for h in np.flatnonzero(varying):
        n = sizes[h]
        in_stratum = scores.stratum == h
        values = influence[in_stratum]
        discordant = _discordant(scores.pulls[in_stratum])
        sums, squares, discordances = _drawn_sums(values, discordant, draws, rng)
        shift += sums - values.sum()
        contribution = variance_of_sums(sums, squares, n)
        # The same value in all groups, but for rounding, is flat too.
        is_flat = (discordances == 0) | (contribution <= 1e-9 * floor[h])
        variance += np.where(is_flat, np.maximum(contribution, floor[h]), contribution)
    studentised = np.sort(shift / np.sqrt(variance))
    return BootstrapReach(studentised=studentised, error=error, tests=tests)


def _discordant(pulls: FloatArray) -> FloatArray:
    """1 for each group whose pull on T is not the most frequent one, else 0, [G]."""
    # Pulls that differ by rounding error count as equal. All of them may be 0.
    unit = np.abs(pulls).max() or 1.0
    _, kind, number = np.unique((pulls / unit).round(9), return_inverse=True, return_counts=True)
    return np.asarray(kind != number.argmax(), dtype=float)


def _drawn_sums(
    values: FloatArray, discordant: FloatArray, draws: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(sums, sums of squares, numbers of `discordant` groups) of bootstrap samples of the values [G], [D] each.

    A sample is drawn with replacement and has as many values as there are. `discordant` [G] is 1 or 0.
    """
    one_stratum: IntArray = np.zeros(len(values), dtype=np.int64)
    # `distinct` compares a fixed number of decimals, so the largest value is made 1.
    unit = np.abs(values).max()
    columns = np.column_stack([values / unit, discordant])
    rows, stratum, number = distinct(columns, one_stratum)
    if len(rows) * GROUPS_PER_INFLUENCE <= len(values):
        # How often each distinct value is drawn [D, R].
        times = resample(stratum, number, draws, rng)
        distinct_values = rows[:, 0] * unit
        sums = np.einsum("dr,r->d", times, distinct_values)
        squares = np.einsum("dr,r->d", times, distinct_values**2)
        discordances = np.einsum("dr,r->d", times, rows[:, 1])
        return sums, squares, discordances

    # Else each group, a chunk of draws at a time.
    chunk = max(1, GROUPS_AT_A_TIME // len(values))
    sums = np.empty(draws)
    squares = np.empty(draws)
    discordances = np.empty(draws)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        groups = rng.integers(0, len(values), size=(size, len(values)), dtype=np.int32)
        drawn = values[groups]
        rows_of_chunk = slice(start, start + size)
        sums[rows_of_chunk] = drawn.sum(axis=1)
        squares[rows_of_chunk] = np.einsum("dg,dg->d", drawn, drawn)
        discordances[rows_of_chunk] = discordant[groups].sum(axis=1)
    return sums, squares, discordances


def resample(
    stratum: IntArray, number: IntArray, draws: int, rng: np.random.Generator
) -> FloatArray:
    """How often a bootstrap draws each row, [D, R].

    In each stratum as many groups are drawn as there are, with replacement; row r stands for
    `number[r]` equal groups.
    """
    drawn = np.empty((draws, len(stratum)))
    for h in range(int(stratum.max()) + 1):
        rows = np.flatnonzero(stratum == h)
        groups = int(number[rows].sum())
        drawn[:, rows] = rng.multinomial(groups, number[rows] / groups, size=draws)
    return drawn
