"""95 % intervals: Wilson for the rate of a category, bootstrap-t over groups for the objective and for differences.

Tests and intervals of the objective come from group x category sums of per-item scores (`GroupedScores`).

Shape legend: I items, G groups, C categories, H strata, D draws, R distinct rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from souping.core.protocols import Objective
from souping.core.scores import value_of
from souping.core.types import FloatArray, IntArray, Item, Json
from souping.core.unit import unit

SALT = 0x50_0D  # with the caller's seed: equal inputs give equal intervals, whatever was drawn before
Z95 = 1.959963984540054
TAIL = 0.025
NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean with its 95 % interval, inner scores, from `n` items in `groups` groups.

    `effective_n` is the number of independent items that would tell as much: `n` where every item is its own group.
    """

    mean: float
    low: float
    high: float
    n: int
    groups: int
    effective_n: float

    def as_dict(self) -> dict[str, Json]:
        """The JSON form of `report.json`."""
        return unit().raw_table(asdict(self))


def rate(values: FloatArray, groups: IntArray) -> Interval:
    """Interval of one category's mean: values [I], groups [I] as integers.

    Right-or-wrong scores: Wilson's interval (1927) with the effective number of items in place of n, n divided by the
    design effect, the variance between groups over the variance that independent items would have (Korn and Graubard
    1998). Where all items are alike there is no variance to compare and each group counts once. Other scores: Student's
    t over groups, and Jeffreys' limit where they do not vary. Limits end at 0 and 1 only where all values lie between
    (`span`): pseudo-values of a corpus metric lie outside, and so may a task's own metric.
    """
    from scipy.special import stdtrit

    bottom, top = span(values)
    one = np.zeros(len(values), dtype=np.int64)
    whole, size = design(values, one, groups, np.ones(1)), effective_size(values, one, groups, np.ones(1))
    mean = whole.objective
    if np.isin(values, (0.0, 1.0)).all():
        low, high = wilson(mean, size)
    elif whole.flat().all():
        below, above = flat_margins(whole, bottom, top)
        low, high = mean - below, mean + above
    else:
        degrees = max(len(whole.sums) - 1, 1)  # a single group: the widest that we state
        margin = float(-stdtrit(degrees, TAIL)) * float(np.sqrt(whole.variances().sum()))
        low, high = mean - margin, mean + margin
    low, high = max(bottom, low), min(top, high)
    return Interval(mean=mean, low=low, high=high, n=len(values), groups=len(whole.sums), effective_n=size)


def span(values: FloatArray) -> tuple[float, float]:
    """Limits of a mean of such values: 0 and 1 where all of them do, else anything."""
    return (0.0, 1.0) if ((values >= 0) & (values <= 1)).all() else (-math.inf, math.inf)


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate from n items; n need not be whole."""
    centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    margin = Z95 / (1 + Z95**2 / n) * np.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2))
    return min(mean, float(centre - margin)), max(mean, float(centre + margin))


def effective_size(values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray) -> float:
    """Items divided by the design effect of groups (Kish 1965), at most the number of items.

    Where nothing varies the design effect is unknown: the number of groups, as if the items of a group were copies.
    """
    grouped = design(values, categories, groups, coefficients)
    if len(np.unique(groups)) == len(values):
        return float(len(values))
    items = design(values, categories, np.arange(len(values)), coefficients)
    clustered, independent = float(grouped.variances().sum()), float(items.variances().sum())
    if independent <= 1e-15 or clustered <= 1e-15:
        return float(len(grouped.sums))
    return max(1.0, len(values) * min(1.0, independent / clustered))


def flat_margins(whole: GroupedScores, bottom: float, top: float) -> tuple[float, float]:
    """Distances that T may lie below and above because of strata that show no variation: Jeffreys' limit of none seen.

    Categories that already stand at a bound cannot move past it.
    """
    shares, scale = whole.shares(), float(whole.weights.sum())
    sums, counts = (whole.by_stratum(table) for table in (whole.sums, whole.counts))
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    moves = ((shares * room).sum(axis=1) * whole.flat() for room in (means > bottom / scale, means < top / scale))
    down, up = (_unseen(whole, move, np.zeros(whole.strata), TAIL) for move in moves)
    return down, up


def unseen_margins(whole: GroupedScores, tail: float) -> tuple[float, float]:
    """Distances that T, a difference, may lie below and above because few or no groups showed it.

    Of n groups of a stratum k lie below zero, or above: their rate may be as high as the upper `tail` point of
    Beta(k + 1/2, n - k + 1/2) (Jeffreys' prior; Brown, Cai and DasGupta 2001). What that goes beyond the normal limit
    is what no resampling of the groups shows: all of it where k is 0, next to nothing where k is large.
    """
    pull, moves = whole.pulls(), whole.shares().sum(axis=1)
    least = FLAT * moves.max()
    seen = (np.bincount(whole.stratum, side * pull > least, whole.strata).astype(float) for side in (-1, 1))
    down, up = (_unseen(whole, moves, k, tail) for k in seen)
    return down, up


def _unseen(whole: GroupedScores, moves: FloatArray, seen: FloatArray, tail: float) -> float:
    """How far what `seen` [H] of a stratum's groups showed may move T, which all of them would move by `moves` [H].

    Strata add in squares.
    """
    from scipy.special import betaincinv, ndtri

    n, k = whole.sizes, seen
    normal = k / n - ndtri(tail) * np.sqrt(k * (1 - k / n)) / n
    most = betaincinv(k + 0.5, n - k + 0.5, 1 - tail)
    return float(np.sqrt(((moves * np.maximum(most - normal, 0.0)) ** 2).sum()))


def _bootstrap_margins(whole: GroupedScores, draws: int, seed: int) -> tuple[float, float]:
    """Distances from T to its bootstrap-t limits: quantiles of (T* - T) / se*, turned round, times se.

    Never below the normal 1.96 se: with few wrong items many draws show hardly any. With many categories of an item or
    two it may be that no draw has all of them: the normal limits then.
    """
    error = float(np.sqrt(whole.variances()[~whole.flat()].sum()))
    if error == 0:
        return 0.0, 0.0
    totals, errors = bootstrap(whole, draws, np.random.default_rng([SALT, seed]))
    studentised = (totals - whole.objective) / errors
    shown = studentised[np.isfinite(studentised)]
    low, high = np.quantile(shown, (TAIL, 1 - TAIL)) if len(shown) else (-Z95, Z95)
    return max(Z95, float(high)) * error, max(Z95, -float(low)) * error


def bootstrap(whole: GroupedScores, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Objective and its standard error on each draw of groups within strata, both [D].

    A stratum whose groups are all alike in a draw counts with the variance of half a discordant group among n + 1
    (Jeffreys).
    A draw without any item of a category is nan. einsum instead of a matrix product: its sums do not depend on threads.
    """
    width = len(whole.weights)
    rows, stratum, number = distinct(np.hstack([whole.sums, whole.counts]), whole.stratum)
    drawn = resample(stratum, number, draws, rng)
    columns = np.ascontiguousarray(rows.T)
    sums, counts = (np.einsum("dr,cr->dc", drawn, part) for part in (columns[:width], columns[width:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        means, scale = sums / counts, whole.weights / counts
        centres = whole.centres(means, drawn, stratum, *np.hsplit(rows, [width]))
        pull = np.einsum("dc,cr->dr", scale, columns[:width]) - np.einsum("dc,cr->dr", scale * centres, columns[width:])
    floor = whole.shares().sum(axis=1) ** 2 * 0.5 / (whole.sizes + 1) / whole.sizes
    flat, variance = whole.flat(), np.zeros(draws)
    for h in np.flatnonzero(~flat):
        inside, n = stratum == h, whole.sizes[h]
        k, u = drawn[:, inside], pull[:, inside]
        spread = ((k * u**2).sum(axis=1) - (k * u).sum(axis=1) ** 2 / n) * n / max(n - 1, 1)
        variance += np.where(spread <= 1e-9 * floor[h], floor[h], spread)
    return (whole.weights * means).sum(axis=1), np.sqrt(variance)


SMALLEST_STRATUM = 5
FLAT = 1e-12


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Items of a fold as arrays: category and group number of each item [I], objective weights [C], or the objective's
    `value` of category means [..., C] where it is not linear."""

    names: tuple[str, ...]
    categories: IntArray
    groups: IntArray
    coefficients: FloatArray
    value: Callable[[FloatArray], FloatArray] | None = None

    @classmethod
    def of(cls, items: Sequence[Item], objective: Objective) -> ItemTable:
        names = tuple(dict.fromkeys(item.category for item in items))
        _, groups = np.unique([item.group for item in items], return_inverse=True)
        return cls(
            names=names,
            categories=np.array([names.index(item.category) for item in items]),
            groups=groups.astype(np.int64),
            coefficients=objective.coefficients(names),
            value=value_of(objective, names),
        )

    def grouped(self, values: FloatArray) -> GroupedScores:
        return design(values, self.categories, self.groups, self.coefficients)

    def score(self, values: FloatArray) -> float:
        """Objective of scores [I]."""
        whole = self.grouped(values)
        return whole.objective if self.value is None else float(self.value(whole.means))

    def interval(self, values: FloatArray, *, draws: int = 4999, seed: int = 0) -> Interval:
        """Objective of scores [I] with its 95 % interval.

        Strata that vary give bootstrap-t limits (Efron and Tibshirani 1993, chapter 12). Strata without any variation
        would give none; each gets Jeffreys' limit for what was not seen. The two kinds are independent, so their
        distances from the objective add in squares (MOVER, Zou and Donner 2008).
        """
        whole, (bottom, top) = self.grouped(values), span(values)
        if self.value is None:
            bottom, top = (bound * float(whole.weights.sum()) for bound in (bottom, top))
            below, above = map(np.hypot, _bootstrap_margins(whole, draws, seed), flat_margins(whole, bottom, top))
            low, high = whole.objective - float(below), whole.objective + float(above)
        else:
            low, high = self.limits(values)
        low, high, groups = max(bottom, low), min(top, high), len(np.unique(self.groups))
        size = effective_size(values, self.categories, self.groups, self.coefficients)
        return Interval(mean=self.score(values), low=low, high=high, n=len(values), groups=groups, effective_n=size)

    def limits(self, *scores: FloatArray, alpha: float = 2 * TAIL, draws: int = 4999) -> tuple[float, float]:
        """Limits of an objective that is not linear or, of two models, of the difference: a bootstrap over groups.

        Plain and bias-corrected percentiles (Efron and Tibshirani 1993, chapter 14), whichever are wider: the minimum
        of noisy means is below that of the true ones. Where the categories that decide show no variation, Jeffreys'
        limits for what was not seen.
        """
        tail, wholes = alpha / 2, list(map(self.grouped, scores))

        def contrast(means: Sequence[FloatArray]) -> FloatArray:
            assert self.value is not None
            first, *second = map(self.value, means)
            return np.asarray(first - sum(second))

        rows, stratum, number = distinct(np.hstack([*(w.sums for w in wholes), wholes[0].counts]), wholes[0].stratum)
        sums = np.einsum("dr,rc->dc", resample(stratum, number, draws, np.random.default_rng(SALT)), rows)
        *parts, counts = np.split(sums, len(scores) + 1, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = contrast([part / counts for part in parts])
        drawn, found = drawn[np.isfinite(drawn)], float(contrast([whole.means for whole in wholes]))
        below = float(((drawn < found - 1e-12).mean() + (drawn <= found + 1e-12).mean()) / 2)
        bias = 2 * NORMAL.inv_cdf(min(max(below, 0.01), 0.99))
        turned = [NORMAL.cdf(bias + NORMAL.inv_cdf(share)) for share in (tail, 1 - tail)]
        low, high = np.quantile(drawn, [min(tail, turned[0]), max(1 - tail, turned[1])])
        steps = 1e-6 * np.eye(len(self.names))
        slopes = [[float(contrast([w.means]) - contrast([w.means - step])) for step in steps] for w in wholes]
        decides = np.clip(np.mean(slopes, axis=0) / 1e-6, 0, None)
        apart = design(scores[0] - sum(scores[1:]), self.categories, self.groups, decides)
        down, up = unseen_margins(apart, tail) if len(scores) > 1 else flat_margins(apart, *span(scores[0]))
        return found - float(np.hypot(found - low, down)), found + float(np.hypot(high - found, up))


@dataclass(frozen=True, kw_only=True)
class GroupedScores:
    """Scores (or paired differences) summed over the items of each group.

    `sums`, `counts` [G, C]; `stratum` [G] numbers the groups with items in the same categories; `weights` [C] are the
    objective's coefficients. The objective is T = sum_c w_c * sum_g sums[g, c] / sum_g counts[g, c].
    """

    sums: FloatArray
    counts: FloatArray
    stratum: IntArray
    weights: FloatArray

    @property
    def means(self) -> FloatArray:
        """Category means, [C]."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    @property
    def objective(self) -> float:
        return float((self.weights * self.means).sum())

    @property
    def strata(self) -> int:
        return int(self.stratum.max()) + 1

    @property
    def sizes(self) -> FloatArray:
        """Groups per stratum, [H]."""
        return np.bincount(self.stratum, minlength=self.strata).astype(float)

    def centres(
        self, means: FloatArray, drawn: FloatArray, stratum: IntArray, sums: FloatArray, counts: FloatArray
    ) -> FloatArray:
        """What categories vary around, [D, C], where rows (`sums`, `counts` [R, C], `stratum` [R]) are `drawn` [D, R].

        Their means [D, C]; small ones, of fewer than five groups, the mean of the stratum in which all of those are. A
        lone item has no distance from its own mean (strata of one unit, collapsed: Cochran 1977, section 5A.12).
        """
        small = (self.counts > 0).sum(axis=0) < SMALLEST_STRATUM
        if not small.any():
            return means
        inside = np.isin(stratum, self.stratum[(self.counts[:, small] > 0).any(axis=1)])
        total, number = (np.einsum("dr,r->d", drawn[:, inside], part[inside].sum(axis=1)) for part in (sums, counts))
        return np.where(small, (total / number)[:, None], means)

    def pulls(self) -> FloatArray:
        """What each group adds to T, [G]."""
        return np.asarray((self.weights * self.sums / self.counts.sum(axis=0)).sum(axis=1))

    def influence(self) -> FloatArray:
        """Each group's pull on T, linearised because category means are ratios over groups, [G]."""
        once = np.ones((1, len(self.sums)))
        centres = self.centres(self.means[None], once, self.stratum, self.sums, self.counts)
        return np.asarray((self.weights * (self.sums - self.counts * centres) / self.counts.sum(axis=0)).sum(axis=1))

    def variances(self) -> FloatArray:
        """Variance of T that each stratum contributes, [H]: n / (n - 1) * sum (u_g - mean u)^2."""
        pull, n = self.influence(), self.sizes
        centred = pull - (np.bincount(self.stratum, pull, self.strata) / n)[self.stratum]
        return np.asarray(np.bincount(self.stratum, centred**2, self.strata) * n / np.maximum(n - 1, 1))

    def shares(self) -> FloatArray:
        """Weight of each stratum's items in T, by category, [H, C]: T moves so much if all its items move by 1."""
        return self.by_stratum(self.weights * self.counts / self.counts.sum(axis=0))

    def by_stratum(self, table: FloatArray) -> FloatArray:
        """[G, C] -> sums over the groups of each stratum, [H, C]."""
        return np.stack([np.bincount(self.stratum, column, self.strata) for column in table.T], axis=1)

    def flat(self) -> NDArray[np.bool_]:
        """Strata in which no group differs from another: their estimated variance is zero, [H]."""
        return np.asarray(self.variances() <= FLAT * self.shares().sum(axis=1) ** 2)


def design(values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray) -> GroupedScores:
    """Sum values [I] by group and category. Categories without weight are left out.

    Raises:
        ValueError: a category with weight has no item.
    """
    weights = np.asarray(coefficients, dtype=float)
    _, group = np.unique(groups, return_inverse=True)
    shape = (int(group.max()) + 1, len(weights))
    cell = group * shape[1] + np.asarray(categories)
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    sums = np.bincount(cell, np.asarray(values, dtype=float), shape[0] * shape[1]).reshape(shape)
    used = weights > 0
    if (counts[:, used].sum(axis=0) == 0).any():
        raise ValueError("every category with weight needs at least one item")
    rows = counts[:, used].sum(axis=1) > 0
    sums, counts = sums[rows][:, used], counts[rows][:, used]
    return GroupedScores(sums=sums, counts=counts, stratum=stratify(counts > 0), weights=weights[used])


def stratify(present: NDArray[np.bool_]) -> IntArray:
    """Stratum [G] of each group: the set of categories its items are in, present [G, C].

    Sets that fewer than five groups have cannot show their own variance; they form one stratum, and where that is still
    below five it joins the largest.
    """
    packed = np.ascontiguousarray(np.packbits(present, axis=1))  # compares faster, and sorts alike
    _, label = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)
    sizes = np.bincount(label)
    rare = sizes < SMALLEST_STRATUM
    target = len(sizes)
    if rare.any() and not rare.all() and sizes[rare].sum() < SMALLEST_STRATUM:
        target = int(np.argmax(sizes))
    _, stratum = np.unique(np.where(rare[label], target, label), return_inverse=True)
    return stratum.reshape(-1).astype(np.int64)


def distinct(rows: FloatArray, stratum: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Equal rows within a stratum are interchangeable: (rows [R, F], their stratum [R], how many of each [R])."""
    keyed = np.column_stack([stratum, rows.round(12)])
    _, first, number = np.unique(keyed, axis=0, return_index=True, return_counts=True)
    return rows[first], stratum[first], number.astype(np.int64)


def resample(stratum: IntArray, number: IntArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Bootstrap multiplicities [D, R]: in each stratum as many groups as there are, drawn with replacement."""
    drawn = np.empty((draws, len(stratum)))
    for h in range(int(stratum.max()) + 1):
        rows = np.flatnonzero(stratum == h)
        total = int(number[rows].sum())
        drawn[:, rows] = rng.multinomial(total, number[rows] / total, size=draws)
    return drawn
