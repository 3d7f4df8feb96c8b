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

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

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


class Distances(ABC):
    """Distances of the patterns on one side of T."""

    @abstractmethod
    def at(self, level: float) -> float:
        """The farthest distance that is reached with a chance of `level`."""


@dataclass(frozen=True, kw_only=True)
class SortedDistances(Distances):
    """All distances, farthest first, and the chance of one so far or farther."""

    farthest: FloatArray  # [D]
    chances: FloatArray  # [D]

    @classmethod
    def of(cls, distances: FloatArray, chance: FloatArray) -> SortedDistances:
        """From the `chance` [D] of each pattern."""
        order = np.argsort(-distances, kind="stable")
        return cls(farthest=distances[order], chances=np.cumsum(chance[order]))

    def at(self, level: float) -> float:
        rank = int(np.searchsorted(self.chances, level))
        return float(self.farthest[min(rank, len(self.farthest) - 1)])


@dataclass(frozen=True, kw_only=True)
class SoughtDistances(Distances):
    """Distances of drawn patterns, found one at a time: much faster where few levels are needed.

    Patterns that are `far` have a distance of `total` at least, the others a smaller one.
    """

    flips: SignFlips
    side: float
    far: BoolArray  # [D]
    total: float
    unit: float
    chances: FloatArray  # [D] of a pattern so far or farther, farthest first

    def at(self, level: float) -> float:
        rank = min(int(np.searchsorted(self.chances, level)), len(self.chances) - 1)
        beyond = rank - int(np.count_nonzero(self.far))
        if beyond < 0:
            distance = self.flips.only(self.far).distance_at(self.side, rank) * self.unit
            return max(distance, self.total)
        distance = self.flips.only(~self.far).distance_at(self.side, beyond) * self.unit
        return min(distance, self.total * (1 - ZERO_DIFFERENCE))


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
    scores: GroupedScores, *, draws: int = SIGN_DRAWS, seed: int = 0, many_levels: bool = True
) -> FlipReach | None:
    """Sign flips of all differences of a group together; None where no group differs.

    p = (1 + #{|T*| >= |T|}) / (draws + 1). Where there are at most 20,000 distinct patterns all are
    counted instead. If that is so for the groups that differ alone, T = 0 has an exact p-value: the
    drawn patterns that reach it get this chance together. A p-value that inverts the reach needs
    it at `many_levels` on the side of T = 0.
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
    everywhere = np.ones_like(reached)
    up = _distances(flips, 1.0, everywhere, -np.inf, pulls.unit, flips.chance, many_levels=False)
    down = _distances(flips, -1.0, reached, total, pulls.unit, chance, many_levels)
    if pulls.turned:
        return FlipReach(down=up, up=down, p_value=p_value)
    return FlipReach(down=down, up=up, p_value=p_value)


def _distances(
    flips: SignFlips,
    side: float,
    far: BoolArray,
    total: float,
    unit: float,
    chance: FloatArray,
    many_levels: bool,
) -> Distances:
    """Distances on one side, of which those that are `far` and no others are `total` or more."""
    if flips.drawn and not many_levels:
        # Those that are far, or not, have one chance.
        chances = np.cumsum(np.concatenate([chance[far], chance[~far]]))
        return SoughtDistances(
            flips=flips, side=side, far=far, total=total, unit=unit, chances=chances
        )
    distances = flips.distances(side) * unit
    farther = np.maximum(distances, total)
    nearer = np.minimum(distances, total * (1 - ZERO_DIFFERENCE))
    return SortedDistances.of(np.where(far, farther, nearer), chance)


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
    drawn: bool  # so that all patterns have one chance

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
        seen = stratum_sums(number[:, None], rows, number, stratum, strata)
        seen_parts = _parts(seen, factor / pulls.sizes)
        drawn = not is_countable(number)
        if drawn:
            sums = drawn_sums(rows, number, stratum, strata, draws, seed)
            parts = np.concatenate([seen_parts, _parts(sums, factor / pulls.sizes)], axis=1)
            chance = np.full(1 + draws, 1 / (1 + draws))
        else:
            plus, chance = every_pattern(number)
            sums = stratum_sums(plus, rows, number, stratum, strata)
            parts = _parts(sums, factor / pulls.sizes)

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
            seen_spread=seen_parts[2:, 0],
            chance=chance,
            one_stratum=strata == 1,
            drawn=drawn,
        )

    @property
    def pull(self) -> FloatArray:
        return self.parts[0]

    @property
    def slope(self) -> FloatArray:
        return self.parts[1]

    @property
    def spread(self) -> FloatArray:
        """Coefficients of v."""
        return self.parts[2:]

    def reaches_zero(self) -> BoolArray:
        """Patterns [D] that reach the one seen where the shift is 0, or would but for rounding."""
        total = self.pull + self.total * self.slope
        variance = self._variance(self.spread, -self.total)
        seen = self.total / np.sqrt(self._variance(self.seen_spread, -self.total))
        threshold = np.maximum(seen * (1 - ZERO_DIFFERENCE) - ZERO_DIFFERENCE, 0.0)
        return np.asarray(total**2 >= threshold**2 * variance)

    def distances(self, side: float) -> FloatArray:
        """How far each pattern reaches, upwards (side 1) or downwards (-1), [D]."""
        if self.one_stratum:
            return self._one_stratum_distances(side)

        # Halve the interval [inside, outside] of x / (scale + x), which ends at 1.
        scale = self._scale()
        inside = np.zeros(len(self.pull))
        outside = np.ones(len(self.pull))
        for _ in range(DISTANCE_HALVINGS):
            middle = (inside + outside) / 2
            reached = self._reaches(side, scale * middle / (1 - middle))
            inside = np.where(reached, middle, inside)
            outside = np.where(reached, outside, middle)
        distances = scale * inside / (1 - inside)
        return np.asarray(np.where(distances > ENDLESS * scale, np.inf, distances))

    def distance_at(self, side: float, rank: int) -> float:
        """The one of `distances` that so many others exceed."""
        if self.one_stratum:
            return float(np.sort(self._one_stratum_distances(side))[-1 - rank])

        # The same halvings, of the patterns that may be it.
        scale = self._scale()
        patterns = self
        inside = 0.0
        outside = 1.0
        for _ in range(DISTANCE_HALVINGS):
            middle = (inside + outside) / 2
            reached = patterns._reaches(side, scale * middle / (1 - middle))
            farther = int(np.count_nonzero(reached))
            if rank < farther:
                inside = middle
                patterns = patterns.only(reached)
            else:
                outside = middle
                rank -= farther
                patterns = patterns.only(~reached)
        distance = scale * inside / (1 - inside)
        return np.inf if distance > ENDLESS * scale else distance

    def only(self, place: BoolArray) -> SignFlips:
        """The patterns of this mask."""
        if place.all():
            return self
        return replace(
            self,
            parts=self.parts.compress(place, axis=1),
            chance=self.chance[place],
        )

    def _scale(self) -> float:
        return max(float(np.sqrt(self._variance(self.seen_spread, 0.0))), ZERO_DIFFERENCE)

    def _reaches(self, side: float, x: FloatArray | float) -> BoolArray:
        """Patterns [D] that reach the one seen where the shift is T + side x."""
        total = self.pull - side * x * self.slope
        seen_variance = self._variance(self.seen_spread, side * x) * (1 + ZERO_DIFFERENCE)
        reached = total**2 * seen_variance >= x * x * self._variance(self.spread, side * x)
        return np.asarray(reached)

    def _one_stratum_distances(self, side: float) -> FloatArray:
        """In one stratum |T*| / se* grows with |T*|: a pattern reaches while |P - x S| >= |x|."""
        pull = side * self.pull
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.maximum(pull / (1 + self.slope), -pull / (1 - self.slope))
        distances[np.abs(self.slope) >= 1 - ZERO_DIFFERENCE] = np.inf
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
