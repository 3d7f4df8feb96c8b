"""95 % intervals: Wilson for the rate of a category, bootstrap-t over groups for the objective and for differences."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from souping.analysis.design import Design, IntArray, design, distinct, resample
from souping.core import FloatArray

SALT = 0x50_0D  # with the caller's seed: equal inputs give equal intervals, whatever was drawn before
Z95 = 1.959963984540054
TAIL = 0.025


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval, fractions of 1, from `n` items in `groups` groups.

    `effective_n` is the number of independent items that would tell as much: `n` where every item is its own group.
    """

    mean: float
    low: float
    high: float
    n: int
    groups: int
    effective_n: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `report.json`."""
        return asdict(self)


def rate(values: FloatArray, groups: IntArray) -> Interval:
    """Interval of one category's mean: values [I], groups [I] as integers.

    Right-or-wrong scores: Wilson's interval (1927) with the effective number of items in place of n, n divided by the
    design effect, the variance between groups over the variance that independent items would have (Korn and Graubard
    1998). Where all items are alike there is no variance to compare and each group counts once. Other scores: Student's
    t over groups, and Jeffreys' limit where they do not vary. Limits end at 0 and 1 only where all values lie between
    (`span`): pseudo-values of a corpus metric lie outside, and so may a task's own metric.
    """
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
        margin = _student(len(whole.sums) - 1) * float(np.sqrt(whole.variances().sum()))
        low, high = mean - margin, mean + margin
    return Interval(
        mean=mean, low=max(bottom, low), high=min(top, high), n=len(values), groups=len(whole.sums), effective_n=size
    )


def objective_interval(
    values: FloatArray,
    categories: IntArray,
    groups: IntArray,
    coefficients: FloatArray,
    *,
    draws: int = 4999,
    seed: int = 0,
) -> Interval:
    """Interval of sum_c w_c * mean_c for one model; values, categories, groups [I], coefficients [C], w_c >= 0.

    Bootstrap-t over groups within strata (`limits`). All items right: Jeffreys' limits, never width 0.
    """
    whole = design(values, categories, groups, coefficients)
    bottom, top = (bound * float(whole.weights.sum()) for bound in span(values))
    low, high = limits(whole, bottom, top, draws=draws, seed=seed)
    return Interval(
        mean=whole.objective,
        low=low,
        high=high,
        n=len(values),
        groups=len(np.unique(groups)),
        effective_n=effective_size(values, categories, groups, coefficients),
    )


def span(values: FloatArray) -> tuple[float, float]:
    """What a mean of such values may lie between: 0 and 1 where all of them do, else anything."""
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


def limits(
    whole: Design, bottom: float, top: float, *, draws: int, seed: int, symmetric: bool = False
) -> tuple[float, float]:
    """95 % limits of the objective T of a design whose scores, item by item, lie in bottom..top.

    Strata that vary give bootstrap-t limits (Efron and Tibshirani 1993, chapter 12); `symmetric` ones use the quantile
    of |T* - T| / se* (Hall 1988), which held its level better for differences in our simulation. Strata without any
    variation would give none; each gets Jeffreys' limit for what was not seen. The two kinds are independent, so their
    distances from T add in squares (MOVER, Zou and Donner 2008).
    """
    below, above = _bootstrap_margins(whole, draws, seed, symmetric)
    flat_below, flat_above = flat_margins(whole, bottom, top)
    low, high = whole.objective - np.hypot(below, flat_below), whole.objective + np.hypot(above, flat_above)
    return float(max(bottom, low)), float(min(top, high))


def flat_margins(whole: Design, bottom: float, top: float) -> tuple[float, float]:
    """How far T may lie below and above because of strata that show no variation.

    None of n groups differed, so at most a rate of J differs, the 97.5 % point of Beta(1/2, n + 1/2) (Jeffreys' prior;
    Brown, Cai and DasGupta 2001). Categories that already stand at a bound cannot move past it.
    """
    from scipy.special import betaincinv

    flat, shares = whole.flat(), whole.shares()
    unseen = betaincinv(0.5, whole.sizes + 0.5, 1 - TAIL)
    scale = float(whole.weights.sum())
    sums, counts = (_by_stratum(whole, table) for table in (whole.sums, whole.counts))
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    down, up = ((shares * room).sum(axis=1) * unseen for room in (means > bottom / scale, means < top / scale))
    return float(np.sqrt((down[flat] ** 2).sum())), float(np.sqrt((up[flat] ** 2).sum()))


def _by_stratum(whole: Design, table: FloatArray) -> FloatArray:
    """[G, C] -> sums over the groups of each stratum, [H, C]."""
    return np.stack([np.bincount(whole.stratum, column, whole.strata) for column in table.T], axis=1)


def _bootstrap_margins(whole: Design, draws: int, seed: int, symmetric: bool) -> tuple[float, float]:
    """Distances from T to its bootstrap-t limits: quantiles of (T* - T) / se*, turned round, times se.

    Never below the normal 1.96 se: with few wrong (or few discordant) items many draws show hardly any.
    """
    error = float(np.sqrt(whole.variances()[~whole.flat()].sum()))
    if error == 0:
        return 0.0, 0.0
    totals, errors = bootstrap(whole, draws, np.random.default_rng([SALT, seed]))
    studentised = (totals - whole.objective) / errors
    low, high = np.nanquantile(studentised, (TAIL, 1 - TAIL))
    if symmetric:
        high = np.nanquantile(np.abs(studentised), 1 - 2 * TAIL)
        low = -high
    return max(Z95, float(high)) * error, max(Z95, -float(low)) * error


def bootstrap(whole: Design, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Objective and its standard error on each draw of groups within strata, both [D].

    A stratum whose groups are all alike in a draw counts with the variance of half a discordant group (Jeffreys).
    A draw without any item of a category is nan. einsum instead of a matrix product: its sums do not depend on threads.
    """
    width = len(whole.weights)
    rows, stratum, number = distinct(np.hstack([whole.sums, whole.counts]), whole.stratum)
    drawn = resample(stratum, number, draws, rng)
    columns = np.ascontiguousarray(rows.T)
    sums, counts = (np.einsum("dr,cr->dc", drawn, part) for part in (columns[:width], columns[width:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        means, scale = sums / counts, whole.weights / counts
        pull = np.einsum("dc,cr->dr", scale, columns[:width]) - np.einsum("dc,cr->dr", scale * means, columns[width:])
    floor, flat, variance = _floor(whole), whole.flat(), np.zeros(draws)
    for h in np.flatnonzero(~flat):
        inside, n = stratum == h, whole.sizes[h]
        k, u = drawn[:, inside], pull[:, inside]
        spread = ((k * u**2).sum(axis=1) - (k * u).sum(axis=1) ** 2 / n) * n / max(n - 1, 1)
        variance += np.where(spread <= 1e-9 * floor[h], floor[h], spread)
    return (whole.weights * means).sum(axis=1), np.sqrt(variance)


def _floor(whole: Design) -> FloatArray:
    """Variance of T from half a discordant group among n + 1, by stratum, [H]."""
    n = whole.sizes
    return np.asarray(whole.shares().sum(axis=1) ** 2 * 0.5 / (n + 1) / n)


def _student(degrees: int) -> float:
    """97.5 % point of Student's t; a single group gives the widest we state, one degree of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(max(degrees, 1), 1 - TAIL))
