"""Studentised sign-flip test of paired differences over groups, and the interval that is its inversion.

Shape legend: G groups, C categories, H strata, R distinct rows, D sign patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from souping.analysis.intervals import NORMAL, SALT, GroupedScores, distinct, unseen_margins
from souping.core.types import FloatArray, IntArray

TEST = "studentised sign-flip over groups"
MAX_T = "max-T of studentised sign flips over groups"
ALPHA = 0.05
DRAWS = 9_999
MOST_DRAWS = 99_999
EXACT_STATES = 20_000
"""Sign patterns up to which all are counted instead of drawn."""
TIE = 1e-9
STEPS = 20
"""Halvings of the bracket of an interval's end."""
CHUNK = 4_000_000
"""Signs that are drawn at a time."""
MANY_GROUPS = 2000
FEW_ALIKE = 32
"""Signs are drawn by the byte for at least MANY_GROUPS groups, if on average at most FEW_ALIKE of them are equal."""


def sign_flip(whole: GroupedScores, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of T = 0 by flipping the sign of all differences of a group together.

    Under "a and b are exchangeable in every group" any pattern of signs is as likely as the one seen, so the test is
    exact; dividing T by its standard error, recomputed for every pattern, keeps it valid for large samples where only
    E T = 0 holds and categories differ the opposite way (Chung and Romano 2013; Janssen 1997).
    p = (1 + #{|T*| >= |T|}) / (draws + 1); where there are at most 20,000 distinct patterns all are counted instead.
    """
    pulls = Pulls.of(whole)
    return 1.0 if pulls is None else _p_of_zero(pulls, SignFlips.of(pulls, draws, seed))


def invert(
    whole: GroupedScores, scale: float, *, alpha: float = ALPHA, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Interval of T within -scale..scale at level 1 - alpha, and the p-value of T = 0: (low, high, p).

    A difference is rejected where the test rejects the scores less that difference, with the same signs for every
    one; the interval reaches from the first to the last that is not rejected. What few or none of a stratum's groups
    showed in one direction may be more of them all the same: the limit on that side is widened by Jeffreys' limit
    (`unseen_margins`), added in squares, unless it would then contradict the test of 0. So 0 is outside just where
    p < alpha.
    """
    below, above = unseen_margins(whole, alpha / 2)
    pulls = Pulls.of(whole)
    if pulls is None:
        return max(-scale, whole.objective - below), min(scale, whole.objective + above), 1.0
    below, above = (above, below) if pulls.turned else (below, above)
    flips = SignFlips.of(pulls, max(draws, min(MOST_DRAWS, round(20 / alpha))), seed)
    p_value, total = _p_of_zero(pulls, flips), abs(whole.objective)
    shown = p_value < alpha
    low = flips.edge(total if shown else 0.0, 0.0 if shown else -scale, alpha)
    high = flips.edge(total, scale, alpha)
    wide = max(-scale, total - float(np.hypot(total - low, below)))
    low = low if shown and wide <= 0 else wide
    high = min(scale, total + float(np.hypot(high - total, above)))
    return (-high, -low, p_value) if pulls.turned else (low, high, p_value)


@dataclass(frozen=True, kw_only=True)
class MaxT:
    """Correction of several tests for their number: the `largest` |T*| / se* of all of them in each sign pattern [D],
    sorted (Westfall and Young 1993). `errors` [F] are standard errors of the differences, `items` [F] their items."""

    largest: FloatArray
    errors: FloatArray
    items: FloatArray
    alpha: float

    @classmethod
    def of(cls, wholes: Sequence[GroupedScores], members: Sequence[IntArray], alpha: float, draws: int = DRAWS) -> MaxT:
        """Differences of one category each; `members[f]` number their groups, which have one sign in all of them."""
        _, number = np.unique(np.concatenate(members), return_inverse=True)
        sizes = np.array([len(m) for m in members])
        items = np.array([whole.counts.sum() for whole in wholes])
        pull = np.zeros((int(number.max()) + 1, len(wholes)))
        for f, place in enumerate(np.split(number, np.cumsum(sizes)[:-1])):
            pull[place, f] = wholes[f].sums[:, 0] / items[f]
        rows, stratum, count = distinct(pull, np.zeros(len(pull), dtype=np.int64))
        sums = drawn_sums(rows, count, stratum, 1, max(draws, min(MOST_DRAWS, round(20 / alpha))), 0)[:, 0]
        squares, own = (pull**2).sum(axis=0), pull.sum(axis=0)
        variance = (squares - sums**2 / sizes) * sizes / np.maximum(sizes - 1, 1)
        ratio = np.abs(sums) / np.sqrt(np.maximum(variance, np.maximum(1e-12 * squares, 1e-30)))
        errors = np.sqrt(np.maximum(squares - own**2 / sizes, 0.0) * sizes / np.maximum(sizes - 1, 1))
        return cls(largest=np.sort(ratio.max(axis=1)), errors=errors, items=items, alpha=alpha)

    @property
    def critical(self) -> float:
        """Size of |T| / se above which a difference is beyond chance in any of the tests, at most Bonferroni's: in a
        category of few groups many patterns have all groups on one side, and no error."""
        rank = max(1, math.ceil(self.alpha * (1 + len(self.largest)) - 1 - TIE))
        return min(float(self.largest[-rank]), -NORMAL.inv_cdf(self.alpha / 2 / len(self.errors)))

    @property
    def tests(self) -> float:
        """Number of independent tests that would need the same correction."""
        return self.alpha / (2 * NORMAL.cdf(-self.critical))

    def p_value(self, single: float) -> float:
        """p-value for all tests of one whose own is `single`: below alpha just where that is below alpha / `tests`."""
        reached = len(self.largest) - np.searchsorted(self.largest, -NORMAL.inv_cdf(single / 2))
        return min(float((1 + reached) / (1 + len(self.largest))), len(self.errors) * single, 1.0)

    @property
    def least(self) -> FloatArray:
        """Smallest difference that would have been beyond chance [F]: q se, and at least q^2 of the items, all of which
        would have to differ in one direction."""
        return np.asarray(np.maximum(self.critical * self.errors, self.critical**2 / self.items))


@dataclass(frozen=True, kw_only=True)
class Pulls:
    """Groups as the test sees them: `pull` [G] sums to T, `slope` [G] to 1: what a shift of every score takes from it.

    Both in units of the largest pull, `unit`. T is not below zero: the difference is `turned` where it was, and where
    it is zero by the order of its rows, so that a - b and b - a meet the same signs and mirror each other.
    """

    pull: FloatArray
    slope: FloatArray
    stratum: IntArray
    sizes: FloatArray
    unit: float
    turned: bool

    @classmethod
    def of(cls, whole: GroupedScores) -> Pulls | None:
        """None where no group differs."""
        totals = whole.counts.sum(axis=0)
        pull = whole.pulls()
        largest = float(np.abs(pull).max())
        if largest <= TIE * whole.shares().max():
            return None
        pull = pull / largest  # the statistic has no unit
        pull[np.abs(pull) <= TIE] = 0.0
        slope = (whole.weights * whole.counts / totals).sum(axis=1) / (float(whole.weights.sum()) * largest)
        turned = pull.sum() < -TIE or (abs(pull.sum()) <= TIE and _comes_later(-pull, pull, slope, whole.stratum))
        return cls(
            pull=-pull if turned else pull,
            slope=slope,
            stratum=whole.stratum,
            sizes=whole.sizes,
            unit=largest,
            turned=turned,
        )


def _comes_later(one: FloatArray, other: FloatArray, slope: FloatArray, stratum: IntArray) -> bool:
    """Whether the rows of one direction come after those of the other, both in order."""
    keys = []
    for pull in (one, other):
        rows = np.column_stack([stratum, pull.round(9), slope.round(9)]) + 0.0
        keys.append(rows[np.lexsort(rows.T[::-1])].ravel().tolist())
    return bool(keys[0] > keys[1])


@dataclass(frozen=True, kw_only=True)
class SignFlips:
    """Sign patterns, the one seen first, as what T and its variance are made of for every shift.

    Of the scores less d, T* = `pull` - d `slope` [D] and its variance is q(d) - v(d), the scalar q from the sums of
    squares of the strata, `squares` (3), and v from the squares of their sums, `spread` [3, D]: both are polynomials
    in d. `chance` [D - 1] is None where the patterns were drawn.
    """

    pull: FloatArray
    slope: FloatArray
    squares: tuple[float, float, float]
    spread: FloatArray
    unit: float
    chance: FloatArray | None

    @classmethod
    def of(cls, pulls: Pulls, draws: int, seed: int) -> SignFlips:
        """All patterns of the groups where they are few, else so many drawn ones."""
        rows, stratum, number = distinct(np.column_stack([pulls.pull, pulls.slope]), pulls.stratum)
        strata = len(pulls.sizes)
        if _countable(number):
            plus, chance = _every_pattern(number)
            sums = _stratum_sums(plus, rows, number, stratum, strata)
        else:
            sums, chance = drawn_sums(rows, number, stratum, strata, draws, seed), None
        seen = _stratum_sums(number[None, :], rows, number, stratum, strata)
        pull, slope = np.concatenate([seen, sums])[:, :, 0], np.concatenate([seen, sums])[:, :, 1]
        factor = pulls.sizes / np.maximum(pulls.sizes - 1, 1)
        products = [(pull, pull), (pull, slope), (slope, slope)]
        spread = np.stack([np.einsum("dh,dh,h->d", a, b, factor / pulls.sizes) for a, b in products])
        own = (pulls.pull, pulls.slope)
        squares = [float((own[i] * own[j] * factor[pulls.stratum]).sum()) for i, j in ((0, 0), (0, 1), (1, 1))]
        return cls(
            pull=pull.sum(axis=1),
            slope=slope.sum(axis=1),
            squares=(squares[0], squares[1], squares[2]),
            spread=spread,
            unit=pulls.unit,
            chance=chance,
        )

    def p_value(self, shift: float) -> float:
        """Two-sided p-value of T = shift."""
        d = shift
        squares = self.squares[0] - 2 * d * self.squares[1] + d * d * self.squares[2]
        variance = squares - (self.spread[0] - 2 * d * self.spread[1] + d * d * self.spread[2])
        least = 1e-12 * max(squares, 1e-6 * self.squares[0])  # all of it may cancel but for rounding
        variance, far = np.maximum(variance, least), self.pull - d * self.slope
        seen = abs(float(far[0])) / math.sqrt(float(variance[0])) * (1 - TIE) - TIE  # T may be 0 but for rounding
        reached = far[1:] ** 2 >= max(seen, 0.0) ** 2 * variance[1:]
        if self.chance is not None:
            return float(min(1.0, self.chance[reached].sum()))
        return float((1 + reached.sum()) / len(far))

    def edge(self, inside: float, outside: float, alpha: float) -> float:
        """Where the differences that are not rejected end between `inside`, one of them, and `outside`."""
        if outside != 0:
            inside, outside = self._bracket(inside, outside, alpha)
        for _ in range(STEPS if inside != outside else 0):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self.p_value(middle) >= alpha else (inside, middle)
        return inside

    def _bracket(self, inside: float, bound: float, alpha: float) -> tuple[float, float]:
        """The last step that is not rejected and the first that is, steps doubling until the bound (both, if none)."""
        step = float(np.sign(bound)) * self.unit
        for _ in range(60):
            tried = inside + step
            if abs(tried) >= abs(bound):
                return (bound, bound) if self.p_value(bound) >= alpha else (inside, bound)
            if self.p_value(tried) < alpha:
                return inside, tried
            inside, step = tried, 2 * step
        return bound, bound


def _p_of_zero(pulls: Pulls, flips: SignFlips) -> float:
    """Groups without a difference have no sign: where few have one, all their patterns are counted."""
    apart = pulls.pull != 0
    rows, stratum, number = distinct(np.abs(pulls.pull[apart])[:, None], pulls.stratum[apart])
    if not _countable(number):
        return flips.p_value(0.0)
    plus, chance = _every_pattern(number)
    squares, seen = (np.bincount(pulls.stratum, x, len(pulls.sizes)).astype(float) for x in (pulls.pull**2, pulls.pull))
    sums = _stratum_sums(plus, rows, number, stratum, len(pulls.sizes))[:, :, 0]
    threshold = _studentised(seen[None, :], squares, pulls.sizes)[0] * (1 - TIE) - TIE
    return float(min(1.0, chance[_studentised(sums, squares, pulls.sizes) >= threshold].sum()))


def _countable(number: IntArray) -> bool:
    """Whether so many rows, each `number` times, have few enough distinct patterns to count them all."""
    return len(number) < EXACT_STATES.bit_length() and bool(np.prod(number + 1.0) <= EXACT_STATES)


def _studentised(sums: FloatArray, squares: FloatArray, sizes: FloatArray) -> FloatArray:
    """|T| / se from stratum sums [D, H]: flipping signs changes the sums, never the sums of squares [H]."""
    variance = ((squares - sums**2 / sizes) * sizes / np.maximum(sizes - 1, 1)).sum(axis=1)
    return np.asarray(np.abs(sums.sum(axis=1)) / np.sqrt(np.maximum(variance, 1e-12 * squares.sum())))


def _stratum_sums(plus: IntArray, rows: FloatArray, number: IntArray, stratum: IntArray, strata: int) -> FloatArray:
    """Sums by stratum [D, H, F] when `plus` [D, R] of the `number` [R] groups of `rows` [R, F] have a positive sign."""
    signed = 2.0 * plus - number
    parts = [np.einsum("dr,rf->df", signed[:, stratum == h], rows[stratum == h]) for h in range(strata)]
    return np.stack(parts, axis=1)


def drawn_sums(rows: FloatArray, number: IntArray, stratum: IntArray, strata: int, draws: int, seed: int) -> FloatArray:
    """`_stratum_sums` of so many drawn patterns, some at a time. A fair bit is drawn faster than a binomial number."""
    rng = np.random.default_rng([SALT, seed])
    if MANY_GROUPS <= number.sum() <= FEW_ALIKE * len(number):
        return _bytewise_sums(np.repeat(rows, number, axis=0), np.repeat(stratum, number), strata, draws, rng)
    return _drawn_rows(rows, number, stratum, strata, draws, rng)


def _drawn_rows(
    rows: FloatArray, number: IntArray, stratum: IntArray, strata: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    single, sums = number == 1, list[FloatArray]()
    steps = {int(n): np.cumsum(_fair(int(n))) for n in np.unique(number[~single])}
    for start in range(0, draws, max(1, CHUNK // len(number))):
        size = min(draws - start, max(1, CHUNK // len(number)))
        plus = np.empty((size, len(number)), dtype=np.int64)
        plus[:, single] = rng.integers(0, 2, size=(size, int(single.sum())), dtype=np.int8)
        for row in np.flatnonzero(~single):  # by the inverse of their distribution, much faster than rng.binomial
            plus[:, row] = np.minimum(np.searchsorted(steps[int(number[row])], rng.random(size)), number[row])
        sums.append(_stratum_sums(plus, rows, number, stratum, strata))
    return np.concatenate(sums)


def _bytewise_sums(
    rows: FloatArray, stratum: IntArray, strata: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Stratum sums [D, H, F] of rows with a random sign each: a random byte picks one of the 256 signed sums of eight
    rows, which is much faster than eight signs."""
    signs = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    sums, picked = np.zeros((strata, rows.shape[1], draws)), np.empty(draws)
    for h in range(strata):
        inside = rows[stratum == h]
        for start in range(0, len(inside), 8):
            eight = inside[start : start + 8]
            table = np.einsum("sr,rf->fs", signs[:, : len(eight)], eight)
            byte = rng.integers(0, 256, size=draws, dtype=np.uint8)
            for total, column in zip(sums[h], table, strict=True):
                total += column.take(byte, out=picked, mode="clip")  # much the fastest form
    return sums.transpose(2, 0, 1)


def _every_pattern(number: IntArray) -> tuple[IntArray, FloatArray]:
    """All counts of positive signs, [S, R], and the probability of each under fair signs, [S]."""
    plus = np.indices(tuple(number + 1)).reshape(len(number), -1).T
    ways = [_fair(int(n)) for n in number]
    return plus, np.prod([way[plus[:, r]] for r, way in enumerate(ways)], axis=0)


def _fair(number: int) -> FloatArray:
    """Probabilities of 0, 1, .. heads of so many fair coins."""
    if number <= 1000:  # beyond, the counts are no floats
        return np.array([comb(number, heads) / 2.0**number for heads in range(number + 1)])
    heads = np.arange(1, number + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((number + 1 - heads) / heads))])
    ways: FloatArray = np.exp(logs - logs.max())
    return np.array(ways / ways.sum())
