"""Studentised sign-flip test of paired differences over groups, and its inversion, an interval.

Under "a and b are exchangeable in every group" any pattern of signs of the groups' differences is
as likely as the one seen, so the test is exact; dividing T by its standard error, recomputed for
every pattern, keeps it valid for large samples where only E T = 0 holds and categories differ the
opposite way (Chung and Romano 2013; Janssen 1997).

Shape legend: G groups, H strata, D sign patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from souping.analysis.grouped import GroupedScores, distinct
from souping.analysis.intervals import unseen_margins
from souping.analysis.sign_patterns import (
    DRAWS,
    drawn_sums,
    draws_for,
    every_pattern,
    is_countable,
    stratum_sums,
)
from souping.core.types import FloatArray, IntArray

TEST = "studentised sign-flip over groups"
ALPHA = 0.05
# Relative distance below which two statistics are equal.
TIE = 1e-9
# Halvings of the bracket of an interval's end, and doublings until one is found.
HALVINGS = 20
DOUBLINGS = 60


def sign_flip(scores: GroupedScores, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of T = 0 by flipping the sign of all differences of a group together.

    p = (1 + #{|T*| >= |T|}) / (draws + 1); where there are at most 20,000 distinct patterns all
    are counted instead.
    """
    pulls = Pulls.upward(scores)
    if pulls is None:
        return 1.0
    p_value = _exact_p_value(pulls)
    if p_value is not None:
        return p_value
    return SignFlips.of_pulls(pulls, draws, seed).p_value(0.0)


def invert(
    scores: GroupedScores, scale: float, *, alpha: float = ALPHA, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Interval of T within -scale..scale at level 1 - alpha, and the p-value: (low, high, p).

    A difference is rejected where the test rejects the scores less that difference, with the same
    signs for every one; the interval reaches from the first to the last that is not rejected.
    What few or none of a stratum's groups showed in one direction may be more of them all the
    same: the limit on that side is widened by Jeffreys' limit (`unseen_margins`), added in
    squares, unless it would then contradict the test of 0. So 0 is outside just where p < alpha.
    """
    below, above = unseen_margins(scores, alpha / 2)
    pulls = Pulls.upward(scores)
    if pulls is None:
        total = scores.objective
        return max(-scale, total - below), min(scale, total + above), 1.0

    total = abs(scores.objective)
    if pulls.turned:
        below, above = above, below
    flips = SignFlips.of_pulls(pulls, draws_for(alpha, draws), seed)
    p_value = _exact_p_value(pulls)
    if p_value is None:
        p_value = flips.p_value(0.0)

    # The interval of the test itself.
    rejected = p_value < alpha
    if rejected:
        low = flips.edge(total, 0.0, alpha)
    else:
        low = flips.edge(0.0, -scale, alpha)
    high = flips.edge(total, scale, alpha)

    # Wider by what was not seen.
    wider_low = max(-scale, total - float(np.hypot(total - low, below)))
    if not rejected or wider_low > 0:
        low = wider_low
    high = min(scale, total + float(np.hypot(high - total, above)))
    if pulls.turned:
        return -high, -low, p_value
    return low, high, p_value


@dataclass(frozen=True, kw_only=True)
class Pulls:
    """Groups as the test sees them, in units of the largest pull, `unit`.

    T is not below zero: the difference is `turned` where it was, and where it is zero by the order
    of its rows, so that a - b and b - a meet the same signs and mirror each other.
    """

    pull: FloatArray  # [G] sums to T
    slope: FloatArray  # [G] sums to 1: what a shift of every score takes from the pull
    stratum: IntArray  # [G]
    sizes: FloatArray  # [H] groups of a stratum
    unit: float
    turned: bool

    @classmethod
    def upward(cls, scores: GroupedScores) -> Pulls | None:
        """The difference, turned so that T is not below zero; None where no group differs."""
        pull = scores.pulls()
        unit = float(np.abs(pull).max())
        if unit <= TIE * scores.shares().max():
            return None
        pull = pull / unit
        pull[np.abs(pull) <= TIE] = 0.0
        shares = scores.weights * scores.counts / scores.counts.sum(axis=0)
        slope = shares.sum(axis=1) / (float(scores.weights.sum()) * unit)
        turned = _is_downward(pull, slope, scores.stratum)
        return cls(
            pull=-pull if turned else pull,
            slope=slope,
            stratum=scores.stratum,
            sizes=scores.sizes,
            unit=unit,
            turned=turned,
        )


def _is_downward(pull: FloatArray, slope: FloatArray, stratum: IntArray) -> bool:
    """Whether T is below zero or, where it is zero, the turned difference's rows come later."""
    total = pull.sum()
    if abs(total) > TIE:
        return bool(total < 0)
    return _sorted_rows(-pull, slope, stratum) > _sorted_rows(pull, slope, stratum)


def _sorted_rows(pull: FloatArray, slope: FloatArray, stratum: IntArray) -> list[float]:
    rows = np.column_stack([stratum, pull.round(9), slope.round(9)]) + 0.0  # no -0.0
    order = np.lexsort(rows.T[::-1])
    values: list[float] = rows[order].ravel().tolist()
    return values


@dataclass(frozen=True, kw_only=True)
class SignFlips:
    """Sign patterns, the one seen first, as what T and its variance are made of for every shift.

    Of the scores less d, T* = pull - d slope and its variance is q(d) - v(d). The scalar q comes
    from the sums of squares of the strata and v from the squares of their sums; both are
    polynomials c0 - 2 d c1 + d^2 c2.
    """

    pull: FloatArray  # [D]
    slope: FloatArray  # [D]
    squares: FloatArray  # [3] coefficients of q
    spread: FloatArray  # [3, D] coefficients of v
    unit: float
    chance: FloatArray | None  # [D - 1] None where the patterns were drawn

    @classmethod
    def of_pulls(cls, pulls: Pulls, draws: int, seed: int) -> SignFlips:
        """All patterns of the groups where they are few, else so many drawn ones."""
        columns = np.column_stack([pulls.pull, pulls.slope])
        rows, stratum, number = distinct(columns, pulls.stratum)
        strata = len(pulls.sizes)
        chance = None
        if is_countable(number):
            plus, chance = every_pattern(number)
            flipped = stratum_sums(plus, rows, number, stratum, strata)
        else:
            flipped = drawn_sums(rows, number, stratum, strata, draws, seed)
        seen = stratum_sums(number[None, :], rows, number, stratum, strata)
        sums = np.concatenate([seen, flipped])
        pull = sums[:, :, 0]  # [D, H]
        slope = sums[:, :, 1]

        # A stratum of n groups adds n / (n - 1) (sum of squares - square of the sum / n).
        factor = pulls.sizes / np.maximum(pulls.sizes - 1, 1)
        group_factor = factor[pulls.stratum]
        squares = [
            (pulls.pull * pulls.pull * group_factor).sum(),
            (pulls.pull * pulls.slope * group_factor).sum(),
            (pulls.slope * pulls.slope * group_factor).sum(),
        ]
        spread = [
            np.einsum("dh,dh,h->d", pull, pull, factor / pulls.sizes),
            np.einsum("dh,dh,h->d", pull, slope, factor / pulls.sizes),
            np.einsum("dh,dh,h->d", slope, slope, factor / pulls.sizes),
        ]
        return cls(
            pull=pull.sum(axis=1),
            slope=slope.sum(axis=1),
            squares=np.array(squares),
            spread=np.stack(spread),
            unit=pulls.unit,
            chance=chance,
        )

    def p_value(self, shift: float) -> float:
        """Two-sided p-value of T = shift."""
        total = self.pull - shift * self.slope
        squares = float(_polynomial(self.squares, shift))
        variance = squares - _polynomial(self.spread, shift)
        # All of it may cancel but for rounding.
        least_variance = 1e-12 * max(squares, 1e-6 * self.squares[0])
        variance = np.maximum(variance, least_variance)

        # |T*| / se* >= |T| / se, in squares. T may be 0 but for rounding.
        seen = abs(float(total[0])) / math.sqrt(float(variance[0]))
        threshold = max(seen * (1 - TIE) - TIE, 0.0)
        reached = total[1:] ** 2 >= threshold**2 * variance[1:]
        if self.chance is not None:
            return float(min(1.0, self.chance[reached].sum()))
        return float((1 + reached.sum()) / len(total))

    def edge(self, inside: float, outside: float, alpha: float) -> float:
        """Where the differences that are not rejected end.

        That is between `inside`, one of them, and `outside`.
        """
        if outside != 0:
            inside, outside = self._bracket(inside, outside, alpha)
        if inside == outside:
            return inside
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if self.p_value(middle) >= alpha:
                inside = middle
            else:
                outside = middle
        return inside

    def _bracket(self, inside: float, bound: float, alpha: float) -> tuple[float, float]:
        """The last step that is not rejected and the first that is, steps doubling.

        Both are the bound if none up to there is rejected.
        """
        step = float(np.sign(bound)) * self.unit
        for _ in range(DOUBLINGS):
            farther = inside + step
            if abs(farther) >= abs(bound):
                rejected = self.p_value(bound) < alpha
                return (inside, bound) if rejected else (bound, bound)
            if self.p_value(farther) < alpha:
                return inside, farther
            inside = farther
            step = 2 * step
        return bound, bound


def _polynomial(coefficients: FloatArray, d: float) -> FloatArray:
    """c0 - 2 d c1 + d^2 c2 of coefficients [3, ...]."""
    return np.asarray(coefficients[0] - 2 * d * coefficients[1] + d * d * coefficients[2])


def _exact_p_value(pulls: Pulls) -> float | None:
    """p-value of T = 0 by all patterns; None where they are too many.

    Groups without a difference have no sign, so there may be fewer patterns than for a shift.
    """
    differing = pulls.pull != 0
    sizes = np.abs(pulls.pull[differing])
    rows, stratum, number = distinct(sizes[:, None], pulls.stratum[differing])
    if not is_countable(number):
        return None
    strata = len(pulls.sizes)
    squares = np.bincount(pulls.stratum, pulls.pull**2, strata).astype(float)
    seen = np.bincount(pulls.stratum, pulls.pull, strata).astype(float)
    seen_t = _studentised(seen[None, :], squares, pulls.sizes)[0]
    plus, chance = every_pattern(number)
    sums = stratum_sums(plus, rows, number, stratum, strata)[:, :, 0]
    reached = _studentised(sums, squares, pulls.sizes) >= seen_t * (1 - TIE) - TIE
    return float(min(1.0, chance[reached].sum()))


def _studentised(sums: FloatArray, squares: FloatArray, sizes: FloatArray) -> FloatArray:
    """|T| / se [D] from stratum sums [D, H].

    Flipping signs changes the sums, never the sums of squares [H].
    """
    by_stratum = (squares - sums**2 / sizes) * sizes / np.maximum(sizes - 1, 1)
    variance = np.maximum(by_stratum.sum(axis=1), 1e-12 * squares.sum())
    return np.asarray(np.abs(sums.sum(axis=1)) / np.sqrt(variance))
