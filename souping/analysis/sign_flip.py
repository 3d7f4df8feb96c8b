"""Studentised sign-flip test of paired differences over groups, and its inversion at every level.

Under "a and b are exchangeable in every group" any pattern of signs of the groups' differences is
as likely as the one seen, so the test is exact; dividing T by its standard error, recomputed for
every pattern, keeps it valid for large samples where only E T = 0 holds and categories differ the
opposite way (Chung and Romano 2013; Janssen 1997).

The scores less a shift T + x have T* = P - x S in a pattern, -x in the pattern that was seen. The
pattern reaches the one seen while |T*| / se* >= |x| / se. How far that holds, upwards and
downwards, is its distance; the shift is rejected at level a where fewer than a of the patterns
have a distance of |x|. So one set of distances inverts the test at all levels.

Shape legend: G groups, H strata, D sign patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from souping.analysis.grouped import GroupedScores, distinct, variance_of_sums
from souping.analysis.nested import ZERO_DIFFERENCE, Reach
from souping.analysis.sign_patterns import (
    SIGN_DRAWS,
    drawn_sums,
    every_pattern,
    is_countable,
    stratum_sums,
)
from souping.core.types import BoolArray, FloatArray, IntArray

TEST = "studentised sign-flip over groups"
ALPHA = 0.05
# Halvings by which a distance is found, and standard errors beyond which it has no end.
DISTANCE_HALVINGS = 22
ENDLESS = 60_000.0
# Least variance, relative to the sum of squares.
TINY_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances of the patterns, farthest first, and the chance of one so far or farther."""

    farthest: FloatArray  # [D]
    chances: FloatArray  # [D]

    @classmethod
    def of(cls, distances: FloatArray, chance: FloatArray) -> Distances:
        """From the `chance` [D] of each pattern."""
        order = np.argsort(-distances, kind="stable")
        return cls(farthest=distances[order], chances=np.cumsum(chance[order]))

    def at(self, level: float) -> float:
        """The farthest distance that is reached with a chance of `level`."""
        rank = int(np.searchsorted(self.chances, level))
        return float(self.farthest[min(rank, len(self.farthest) - 1)])


@dataclass(frozen=True, kw_only=True)
class FlipReach(Reach):
    """Inverted sign-flip test; `p_value` is that of T = 0."""

    down: Distances
    up: Distances
    p_value: float

    def below(self, level: float) -> float:
        return self.down.at(level)

    def above(self, level: float) -> float:
        return self.up.at(level)


def flip_reach(
    scores: GroupedScores, *, draws: int = SIGN_DRAWS, seed: int = 0, highest: float = 1.0
) -> FlipReach | None:
    """Sign flips of all differences of a group together; None where no group differs.

    p = (1 + #{|T*| >= |T|}) / (draws + 1). Where there are at most 20,000 distinct patterns all are
    counted instead. If that is so for the groups that differ alone, T = 0 has an exact p-value: the
    drawn patterns that reach it get this chance together. `highest` is the level up to which the
    reach is needed: a low one is much faster.
    """
    pulls = Pulls.upward(scores)
    if pulls is None:
        return None
    flips = SignFlips.of_pulls(pulls, draws, seed)
    total = abs(scores.objective)
    reached = flips.reaches_zero()
    chance = flips.chance
    p_value = min(1.0, float(chance[reached].sum()))
    exact = _exact_p_value(pulls)
    if exact is not None:
        if exact < 1 and not reached.all():
            chance = chance * np.where(reached, exact / p_value, (1 - exact) / (1 - p_value))
        p_value = exact

    # A pattern reaches T = 0, downwards, just where the test says so.
    count = 1 + int(np.cumsum(np.sort(chance)).searchsorted(highest))
    distances = flips.distances(-1.0, count) * pulls.unit
    farther = np.maximum(distances, total)
    nearer = np.minimum(distances, total * (1 - ZERO_DIFFERENCE))
    down = Distances.of(np.where(reached, farther, nearer), chance)
    up = Distances.of(flips.distances(1.0, count) * pulls.unit, flips.chance)
    if pulls.turned:
        return FlipReach(down=up, up=down, p_value=p_value)
    return FlipReach(down=down, up=up, p_value=p_value)


@dataclass(frozen=True, kw_only=True)
class Pulls:
    """Groups as the test sees them: pulls in units of the largest, `unit`.

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
        pull = scores.pulls
        unit = float(np.abs(pull).max())
        if unit <= ZERO_DIFFERENCE * scores.layout.shares.max():
            return None
        pull = pull / unit
        pull[np.abs(pull) <= ZERO_DIFFERENCE] = 0.0
        shares = scores.layout.group_shares
        slope = shares.sum(axis=1) / float(scores.weights.sum())
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
    if abs(total) > ZERO_DIFFERENCE:
        return bool(total < 0)
    return _sorted_rows(-pull, slope, stratum) > _sorted_rows(pull, slope, stratum)


def _sorted_rows(pull: FloatArray, slope: FloatArray, stratum: IntArray) -> list[float]:
    rows = np.column_stack([stratum, pull.round(9), slope.round(9)]) + 0.0  # no -0.0
    order = np.lexsort(rows.T[::-1])
    values: list[float] = rows[order].ravel().tolist()
    return values


@dataclass(frozen=True, kw_only=True)
class SignFlips:
    """Sign patterns as what T and its variance are made of, in units of the pulls, around T.

    The variance of the scores less T + x is q(x) - v(x). The scalar q comes from the sums of
    squares of the strata and v from the squares of their sums; both are polynomials
    c0 - 2 x c1 + x^2 c2.
    """

    total: float  # T
    parts: FloatArray  # [5, D] P, S and the coefficients of v
    squares: FloatArray  # [3] coefficients of q
    seen_spread: FloatArray  # [3] those of v in the pattern seen
    chance: FloatArray  # [D]
    one_stratum: bool

    @classmethod
    def of_pulls(cls, pulls: Pulls, draws: int, seed: int) -> SignFlips:
        """All patterns of the groups where they are few, else so many drawn ones and that seen."""
        total = float(pulls.pull.sum())
        residual = pulls.pull - total * pulls.slope
        columns = np.column_stack([residual, pulls.slope])
        rows, stratum, number = distinct(columns, pulls.stratum)
        strata = len(pulls.sizes)

        # A stratum of n groups adds n / (n - 1) (sum of squares - square of the sum / n).
        factor = pulls.sizes / np.maximum(pulls.sizes - 1, 1)
        spread = factor / pulls.sizes
        seen = _parts(stratum_sums(number[:, None], rows, number, stratum, strata), spread)
        if is_countable(number):
            plus, chance = every_pattern(number)
            parts = _parts(stratum_sums(plus, rows, number, stratum, strata), spread)
        else:
            drawn = drawn_sums(rows, number, stratum, strata, draws, seed)
            parts = np.concatenate([seen, _parts(drawn, spread)], axis=1)
            chance = np.full(1 + draws, 1 / (1 + draws))

        group_factor = factor[pulls.stratum]
        squares = [
            (residual * residual * group_factor).sum(),
            (residual * pulls.slope * group_factor).sum(),
            (pulls.slope * pulls.slope * group_factor).sum(),
        ]
        return cls(
            total=total,
            parts=parts,
            squares=np.array(squares),
            seen_spread=seen[2:, 0],
            chance=chance,
            one_stratum=strata == 1,
        )

    def reaches_zero(self) -> BoolArray:
        """Patterns [D] that reach the one seen where the shift is 0, or would but for rounding."""
        total = self.parts[0] + self.total * self.parts[1]
        variance = self._variance(self.parts[2:], -self.total)
        seen = self.total / np.sqrt(self._variance(self.seen_spread, -self.total))
        threshold = np.maximum(seen * (1 - ZERO_DIFFERENCE) - ZERO_DIFFERENCE, 0.0)
        return np.asarray(total**2 >= threshold**2 * variance)

    def distances(self, side: float, count: int) -> FloatArray:
        """How far each pattern reaches, upwards (side 1) or downwards (-1), [D].

        Those that are not among the `count` farthest may have 0.
        """
        if self.one_stratum:
            return self._one_stratum_distances(side)
        scale = max(float(np.sqrt(self._variance(self.seen_spread, 0.0))), ZERO_DIFFERENCE)

        # Halve the interval [inside, outside] of x / (scale + x), which ends at 1.
        parts = self.parts
        place = np.arange(len(self.chance))
        inside = np.zeros_like(self.chance)
        outside = np.ones_like(self.chance)
        for _ in range(DISTANCE_HALVINGS):
            middle = (inside + outside) / 2
            x = scale * middle / (1 - middle)
            total = parts[0] - side * x * parts[1]
            seen_variance = self._variance(self.seen_spread, side * x) * (1 + ZERO_DIFFERENCE)
            reached = total**2 * seen_variance >= x**2 * self._variance(parts[2:], side * x)
            inside = np.where(reached, middle, inside)
            outside = np.where(reached, outside, middle)
            if count < len(place):
                possible = outside > np.partition(inside, -count)[-count]
                parts = parts.compress(possible, axis=1)
                place = place[possible]
                inside = inside[possible]
                outside = outside[possible]
        farthest = scale * inside / (1 - inside)
        distances = np.zeros_like(self.chance)
        distances[place] = np.where(farthest > ENDLESS * scale, np.inf, farthest)
        return distances

    def _one_stratum_distances(self, side: float) -> FloatArray:
        """In one stratum |T*| / se* grows with |T*|: a pattern reaches while |P - x S| >= |x|."""
        pull = side * self.parts[0]
        slope = self.parts[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.maximum(pull / (1 + slope), -pull / (1 - slope))
        distances[np.abs(slope) >= 1 - ZERO_DIFFERENCE] = np.inf
        return np.asarray(distances)

    def _variance(self, spread: FloatArray, x: FloatArray | float) -> FloatArray:
        """q(x) - v(x), of which all may cancel but for rounding."""
        squares = _polynomial(self.squares, x)
        least = TINY_VARIANCE * np.maximum(squares, 1e-6 * self.squares[0])
        return np.asarray(np.maximum(squares - _polynomial(spread, x), least))


def _parts(sums: FloatArray, factor: FloatArray) -> FloatArray:
    """P, S and the coefficients of v [5, D] by sums [D, H, 2] of pulls and slopes."""
    pull = sums[:, :, 0]
    slope = sums[:, :, 1]
    parts = [
        pull.sum(axis=1),
        slope.sum(axis=1),
        np.einsum("dh,dh,h->d", pull, pull, factor),
        np.einsum("dh,dh,h->d", pull, slope, factor),
        np.einsum("dh,dh,h->d", slope, slope, factor),
    ]
    return np.stack(parts)


def _polynomial(coefficients: FloatArray, x: FloatArray | float) -> FloatArray:
    """c0 - 2 x c1 + x^2 c2 of coefficients [3, ...]."""
    return np.asarray(coefficients[0] - 2 * x * coefficients[1] + x * x * coefficients[2])


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

    # The chance of the patterns that reach the one seen, or would but for rounding.
    plus, chance = every_pattern(number)
    sums = stratum_sums(plus, rows, number, stratum, strata)[:, :, 0]
    threshold = seen_t * (1 - ZERO_DIFFERENCE) - ZERO_DIFFERENCE
    reached = _studentised(sums, squares, pulls.sizes) >= threshold
    return float(min(1.0, chance[reached].sum()))


def _studentised(sums: FloatArray, squares: FloatArray, sizes: FloatArray) -> FloatArray:
    """|T| / se [D] from stratum sums [D, H] and sums of squares [H]."""
    variance = variance_of_sums(sums, squares, sizes).sum(axis=1)
    variance = np.maximum(variance, TINY_VARIANCE * squares.sum())
    return np.asarray(np.abs(sums.sum(axis=1)) / np.sqrt(variance))
