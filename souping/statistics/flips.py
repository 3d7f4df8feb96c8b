"""Studentised sign-flip test of paired differences over groups, and its inversion at every level.

Under "a and b are exchangeable in every group" any pattern of signs of the groups' differences is
as likely as the one seen, so the test is exact; dividing T by its standard error, recomputed for
every pattern, keeps it valid for large samples where only E T = 0 holds and categories differ the
opposite way (Chung and Romano 2013; Janssen 1997).

The scores less a shift T + x have T* = P - x S in a pattern, -x in the pattern that was seen. The
pattern reaches the one seen while |T*| / se* >= |x| / se. How far that holds, upwards and
downwards, is its distance; the shift is rejected at level a where fewer than a of the patterns
have a distance of |x|. So one set of distances inverts the test at all levels.

Equal groups of a stratum are one row that stands for `number` of them; a pattern then is how many
of them have a positive sign, `plus`. All patterns are counted where they are few, else drawn.

Shape legend: G groups, R distinct rows, F columns of a row, H strata, D sign patterns.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from souping.core.types import BoolArray, FloatArray, IntArray, frozen
from souping.statistics.grouped import ZERO_DIFFERENCE, GroupedScores
from souping.statistics.nested import Reach

# With the caller's seed: equal inputs give equal intervals, whatever was drawn before.
INTERVAL_SALT = 0x50_0D
# Least variance under a pattern of signs, relative to the sum of squares, and what counts as none.
TINY_VARIANCE = 1e-12
NO_VARIANCE = 1e-30
# Patterns that are drawn, at least and at most. With the pattern seen they are a prime number, so
# that no p-value falls on a level such as 0.05 or a fraction of it.
SIGN_DRAWS = 10_006
MOST_DRAWS = 100_002
# Patterns up to which all are counted instead of drawn.
EXACT_STATES = 20_000
# Parts of 0..1, a power of 2, in which the inverse of a distribution is looked up.
STARTS = 1024
# Signs that are drawn at a time.
SIGNS_AT_A_TIME = 4_000_000
# Signs are drawn by the byte for at least MANY_GROUPS groups, if on average at most FEW_ALIKE of
# them are equal.
MANY_GROUPS = 64
FEW_ALIKE = 32
TEST = "studentised sign-flip over groups"
# Halvings by which a distance is found, and standard errors beyond which it has no end.
DISTANCE_HALVINGS = 22
ENDLESS = 60_000.0


def variance_of_sums(
    sums: FloatArray, squares: FloatArray, sizes: FloatArray | IntArray | float
) -> FloatArray:
    """Variance of a sum over n groups: n / (n - 1) (sum of squares - square of the sum / n).

    `sums` and `squares` are the sums of the groups' values and of their squares, `sizes` the numbers
    of groups, all [..., H]. Flipping signs changes the sums, never the sums of squares. The variance
    may be below zero by rounding.
    """
    variance = (squares - sums**2 / sizes) * sizes / np.maximum(sizes - 1, 1)
    return np.asarray(variance)


def studentised(
    sums: FloatArray, squares: FloatArray, sizes: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(T, its standard error) [D] each, by sums [D, H] of strata and the sums of squares [H] of their groups."""
    variance = variance_of_sums(sums, squares, sizes).sum(axis=1)
    least = max(TINY_VARIANCE * float(squares.sum()), NO_VARIANCE)
    return sums.sum(axis=1), np.sqrt(np.maximum(variance, least))


def distinct(rows: FloatArray, stratum: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """(distinct rows [R, F], their stratum [R], how many of each [R]).

    Equal rows within a stratum are interchangeable, so they are drawn together.
    """
    # Rows that differ by rounding error count as equal.
    keyed = np.column_stack([stratum, rows.round(12)])
    # As np.unique does over rows, in a fifth of the time.
    order = np.lexsort(keyed.T[::-1])
    changes = (keyed[order[1:]] != keyed[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    first = order[starts]
    number = np.diff(starts, append=len(keyed))
    return rows[first], stratum[first], number.astype(np.int64)


def draws_for(alpha: float, draws: int) -> int:
    """Number of patterns that resolves a level alpha, and at least `draws`."""
    # About 20 patterns are beyond the level.
    return max(draws, min(MOST_DRAWS, round(20 / alpha)))


def stratum_sums(
    plus: FloatArray | IntArray,
    rows: FloatArray,
    number: IntArray,
    stratum: IntArray,
    strata: int,
) -> FloatArray:
    """Sums by stratum [D, H, F] if `plus` [R, D] of each row's groups have a positive sign.

    The rows [R, F] are of a `stratum` [R] and stand for `number` [R] groups.
    """
    net = 2.0 * plus - number[:, None]  # positive less negative signs
    sums = []
    for h in range(strata):
        in_stratum = stratum == h
        # Along the patterns, which is ten times as fast as along the rows.
        sums.append(np.einsum("rd,rf->fd", net[in_stratum], rows[in_stratum]).T)
    return np.stack(sums, axis=1)


# ---------------------------------------------------------------- all patterns


def is_countable(number: IntArray) -> bool:
    """Whether rows that stand for `number` groups each have few enough patterns to count all."""
    if len(number) >= EXACT_STATES.bit_length():  # two patterns of each row at least
        return False
    return bool(np.prod(number + 1.0) <= EXACT_STATES)


def every_pattern(number: IntArray) -> tuple[IntArray, FloatArray]:
    """All counts of positive signs [R, D], and the probability of each under fair signs [D]."""
    plus = np.indices(tuple(number + 1)).reshape(len(number), -1)
    chances = [_heads_distribution(int(n))[heads] for n, heads in zip(number, plus, strict=True)]
    return plus, np.prod(chances, axis=0)


@lru_cache(maxsize=2000)
def _heads_distribution(coins: int) -> FloatArray:
    """Probabilities of 0, 1, .. `coins` heads of this number of fair coins."""
    # The counts of more coins exceed the largest float.
    if coins <= 1000:
        chances = []
        # C(n, k + 1) = C(n, k) (n - k) / (k + 1), in whole numbers
        ways = 1
        for heads in range(coins + 1):
            chances.append(ways / 2.0**coins)
            ways = ways * (coins - heads) // (heads + 1)
        return np.array(chances)
    counts = np.arange(1, coins + 1)
    log_odds = np.log((coins + 1 - counts) / counts)  # of each count of heads against one fewer
    log_ways = np.concatenate([[0.0], np.cumsum(log_odds)])
    scaled: FloatArray = np.exp(log_ways - log_ways.max())
    return np.array(scaled / scaled.sum())


# ---------------------------------------------------------------- random patterns


def drawn_sums(
    rows: FloatArray, number: IntArray, stratum: IntArray, strata: int, draws: int, seed: int
) -> FloatArray:
    """`stratum_sums` [D, H, F] of `draws` random patterns, of rows [R, F] that stand for `number` [R] groups."""
    rng = np.random.default_rng([INTERVAL_SALT, seed])
    groups = number.sum()
    # Rows of few groups each: all groups one by one, but quickly.
    if MANY_GROUPS <= groups <= FEW_ALIKE * len(number):
        group_rows = np.repeat(rows, number, axis=0)
        group_stratum = np.repeat(stratum, number)
        return _draw_by_byte(group_rows, group_stratum, strata, draws, rng)
    return _draw_by_row(rows, number, stratum, strata, draws, rng)


def _draw_by_row(
    rows: FloatArray,
    number: IntArray,
    stratum: IntArray,
    strata: int,
    draws: int,
    rng: np.random.Generator,
) -> FloatArray:
    """`drawn_sums` by drawing how many groups of each row have a positive sign, a chunk of patterns at a time.

    The rows are in the order of their strata.
    """
    chunk = max(1, SIGNS_AT_A_TIME // len(number))
    sums = np.empty((rows.shape[1], draws, strata))
    for start in range(0, draws, chunk):
        size = min(draws - start, chunk)
        for h in range(strata):
            in_stratum = stratum == h
            coins = number[in_stratum]
            plus = np.stack([_heads(int(groups), rng.random(size)) for groups in coins])
            # As if this stratum were the only one: every row is of stratum 0.
            of_stratum = stratum_sums(plus, rows[in_stratum], coins, 0 * coins, strata=1)
            sums[:, start : start + size, h] = of_stratum[:, 0].T
    return sums.transpose(1, 2, 0)


def _heads(coins: int, uniform: FloatArray) -> IntArray:
    """Heads of this number of fair coins [D], by uniform numbers [D] and the inverse of the distribution of heads.

    This is much faster than rng.binomial. A table of starts finds nearly all counts in one step.
    """
    cumulative, starts = _inverse_heads(coins)
    heads = starts[(uniform * len(starts)).astype(np.intp)]
    too_few = np.flatnonzero(cumulative[heads] < uniform)
    heads[too_few] = np.searchsorted(cumulative, uniform[too_few])
    return heads


@lru_cache(maxsize=2000)
def _inverse_heads(coins: int) -> tuple[FloatArray, IntArray]:
    """(chances of at most 0, 1, .. heads; for each of STARTS equal parts of 0..1, the heads where it begins)."""
    cumulative = np.cumsum(_heads_distribution(coins))
    # Rounding may leave the last chance below 1, and thus below a uniform number.
    cumulative[-1] = np.inf
    return cumulative, np.searchsorted(cumulative, np.arange(STARTS) / STARTS)


def _draw_by_byte(
    rows: FloatArray, stratum: IntArray, strata: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    """`drawn_sums` [draws, strata, F] by drawing a byte for eight groups at a time; each group is a row of [G, F].

    The byte picks one of the 256 signed sums of the eight, which is much faster than eight signs.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    signs = 1.0 - 2.0 * bits  # [256, 8]
    sums = np.empty((strata, rows.shape[1], draws))
    picked = np.empty((draws, rows.shape[1]))
    for h in range(strata):
        stratum_rows = rows[stratum == h]
        totals = np.zeros_like(picked)
        for start in range(0, len(stratum_rows), 8):
            eight = stratum_rows[start : start + 8]
            signed_sums = np.einsum("sr,rf->fs", signs[:, : len(eight)], eight).T  # [256, F]
            byte = rng.integers(0, 256, size=draws, dtype=np.uint8)
            # `take` with `out` and "clip" is by far the fastest way to look them up.
            totals += signed_sums.take(byte, axis=0, out=picked, mode="clip")
        sums[h] = totals.T
    return sums.transpose(2, 0, 1)


# ---------------------------------------------------------------- the inverted test


@frozen
class Distances:
    """Distances of the patterns, farthest first, and for each the chance of this distance or a farther one."""

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


@frozen
class FlipReach(Reach):
    """Inverted sign-flip test, by the patterns' distances `down` and `up`; `p_value` is that of T = 0."""

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
        # The drawn patterns that reach T = 0 get the exact chance together, the others what is left.
        if exact < 1 and not reached.all():
            chance = chance * np.where(reached, exact / p_value, (1 - exact) / (1 - p_value))
        p_value = exact

    # How many of the farthest patterns decide the limits at levels up to the `highest`, at most: as many as it takes if
    # they are the least likely ones.
    count = 1 + int(np.cumsum(np.sort(chance)).searchsorted(highest))
    distances = flips.distances(side=-1.0, count=count) * pulls.unit

    # Downwards, a pattern reaches T = 0 just where the test says so.
    farther = np.maximum(distances, total)
    nearer = np.minimum(distances, total * (1 - ZERO_DIFFERENCE))
    down = Distances.of(np.where(reached, farther, nearer), chance)
    # Upwards, away from T = 0, patterns keep the chances with which they were drawn.
    upwards = flips.distances(side=1.0, count=count) * pulls.unit
    up = Distances.of(upwards, flips.chance)
    if pulls.turned:
        return FlipReach(down=up, up=down, p_value=p_value)
    return FlipReach(down=down, up=up, p_value=p_value)


@frozen
class Pulls:
    """Groups as the test sees them: pulls in units of the largest, `unit`.

    T is not below zero: a difference below zero is `turned`, so that a - b and b - a meet the same
    signs and mirror each other. If T is zero, the order of the sorted rows decides. If a - b and
    b - a have the same rows, neither is turned: both then have the same limits, not mirrored ones.
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
        # In units of the largest pull; what is rounding counts as 0.
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
    """Whether T is below zero, or T is zero and the rows of the turned difference sort later."""
    total = pull.sum()
    if abs(total) > ZERO_DIFFERENCE:
        return bool(total < 0)
    return _sorted_rows(-pull, slope, stratum) > _sorted_rows(pull, slope, stratum)


def _sorted_rows(pull: FloatArray, slope: FloatArray, stratum: IntArray) -> list[float]:
    """The rows (stratum, pull, slope) of all groups, sorted and flattened into one list for comparison."""
    # Rounded, so that differences by rounding error do not decide the order.
    rows = np.column_stack([stratum, pull.round(9), slope.round(9)]) + 0.0  # no -0.0
    order = np.lexsort(rows.T[::-1])
    values: list[float] = rows[order].ravel().tolist()
    return values


@frozen
class SignFlips:
    """Sign patterns, as the coefficients from which T* and its variance follow at any shift.

    All are in units of the pulls. A shift x is from T, where T* = P - x S and the variance of the scores
    less T + x is q(x) - v(x). The scalar q comes from the sums of squares of the strata and v from the
    squares of their sums; both are polynomials c0 - 2 x c1 + x^2 c2.
    """

    total: float  # T, of the pulls
    parts: FloatArray  # [5, D] P, S and the coefficients of v
    squares: FloatArray  # [3] coefficients of q
    seen_spread: FloatArray  # [3] coefficients of v in the pattern seen
    chance: FloatArray  # [D] probability of each pattern
    one_stratum: bool

    @classmethod
    def of_pulls(cls, pulls: Pulls, draws: int, seed: int) -> SignFlips:
        """All patterns of the groups where they are few, else the pattern seen and `draws` random ones."""
        total = float(pulls.pull.sum())
        residual = pulls.pull - total * pulls.slope
        columns = np.column_stack([residual, pulls.slope])
        rows, stratum, number = distinct(columns, pulls.stratum)
        strata = len(pulls.sizes)

        # A stratum of n groups adds n / (n - 1) (sum of squares - square of the sum / n).
        factor = pulls.sizes / np.maximum(pulls.sizes - 1, 1)
        spread = factor / pulls.sizes
        # In the pattern that was seen, all signs are positive.
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
        """Patterns [D] whose t is at least the one seen at a shift of 0, or would be but for rounding.

        T at a shift x from the seen total (never negative) is parts[0] - x parts[1]: a shift of 0 lies at x = -total.
        """
        total = self.parts[0] + self.total * self.parts[1]
        variance = self._variance(self.parts[2:], -self.total)
        seen = self.total / np.sqrt(self._variance(self.seen_spread, -self.total))
        threshold = np.maximum(seen * (1 - ZERO_DIFFERENCE) - ZERO_DIFFERENCE, 0.0)
        return np.asarray(total**2 >= threshold**2 * variance)

    def distances(self, side: float, count: int) -> FloatArray:
        """The largest shift x of the differences at which a pattern of signs is as extreme as the data, [D].

        Side 1 is upwards, -1 downwards. At a shift x a pattern has the total T = parts[0] - side x parts[1] and the
        variance V; it reaches x if T^2 / V >= x^2 / V_seen. Patterns that are not among the `count` farthest may
        have 0.
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
            # Drop the patterns that can no longer be among the `count` farthest.
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
        """`distances` [D] of one stratum; P is parts[0] and S parts[1].

        There |T*| / se* grows with |T*|: a pattern reaches x while |P - x S| >= |x|.
        """
        pull = side * self.parts[0]
        slope = self.parts[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.maximum(pull / (1 + slope), -pull / (1 - slope))
        # A pattern whose signs are all equal reaches every shift.
        distances[np.abs(slope) >= 1 - ZERO_DIFFERENCE] = np.inf
        return np.asarray(distances)

    def _variance(self, spread: FloatArray, x: FloatArray | float) -> FloatArray:
        """q(x) - v(x), from the coefficients `spread` of v.

        At least a tiny part of q(x), as the two may cancel, or of q(0), as q(x) may be 0 too.
        """
        squares = _polynomial(self.squares, x)
        least = TINY_VARIANCE * np.maximum(squares, 1e-6 * self.squares[0])
        return np.asarray(np.maximum(squares - _polynomial(spread, x), least))


def _parts(sums: FloatArray, factor: FloatArray) -> FloatArray:
    """Rows P, S, c0, c1, c2 [5, D] of patterns, by the sums [D, H, 2] of pulls p_h and slopes s_h in each stratum.

    P and S are sums over the strata h, and the variance of a shift x is, as in `SignFlips`,
    v(x) = sum over h of factor[h] (p_h - x s_h)^2 = c0 - 2 x c1 + x^2 c2.
    """
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
    # Groups of one stratum that pull by the same size are counted together.
    differing = pulls.pull != 0
    sizes = np.abs(pulls.pull[differing])
    rows, stratum, number = distinct(sizes[:, None], pulls.stratum[differing])
    if not is_countable(number):
        return None

    # The statistic |T| / SE of the pattern that was seen.
    strata = len(pulls.sizes)
    squares = np.bincount(pulls.stratum, pulls.pull**2, strata).astype(float)
    seen = np.bincount(pulls.stratum, pulls.pull, strata).astype(float)
    seen_total, seen_error = studentised(seen[None, :], squares, pulls.sizes)
    seen_t = np.abs(seen_total[0]) / seen_error[0]

    # The chance of the patterns whose statistic is as large, but for rounding.
    plus, chance = every_pattern(number)
    sums = stratum_sums(plus, rows, number, stratum, strata)[:, :, 0]
    threshold = seen_t * (1 - ZERO_DIFFERENCE) - ZERO_DIFFERENCE
    totals, errors = studentised(sums, squares, pulls.sizes)
    reached = np.abs(totals) / errors >= threshold
    return float(min(1.0, chance[reached].sum()))
