"""95 % intervals of scores.

A category's rate has Wilson's interval; the objective has bootstrap-t limits over groups, and that
of the categories' limits where it is not linear.

Shape legend: I items, G groups, C categories, H strata.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from souping.core.types import FloatArray, frozen
from souping.core.unit import Estimate
from souping.statistics.bootstrap_t import BOOTSTRAP_DRAWS, NORMAL, bootstrap_reach
from souping.statistics.corrections import Z95
from souping.statistics.grouped import GroupedScores
from souping.statistics.score_table import ModelScores

# Tail on either side of a 95 % interval.
INTERVAL_TAIL = 0.025


@frozen
class Interval:
    """Mean with its 95 % interval, inner scores, from `n` items in `groups` groups.

    `effective_n` is the number of independent items that would tell as much: `n` where every item
    is its own group.
    """

    estimate: Estimate[float]
    n: int
    groups: int
    effective_n: float


# ---------------------------------------------------------------- one category


def rate(scores: ModelScores) -> Interval:
    """Interval of one category's mean.

    Right-or-wrong scores: Wilson's interval (1927) with the effective number of items in place of
    n, n divided by the design effect, the variance between groups over the variance that
    independent items would have (Korn and Graubard 1998). Where all items are alike there is no
    variance to compare and each group counts once. Other scores: Student's t over groups, and
    Jeffreys' limit where they do not vary. Limits end at 0 and 1 only where all values lie between
    (`span`): pseudo-values of a corpus metric lie outside, and so may a task's own metric.
    """
    low, high = category_limits(scores, INTERVAL_TAIL)
    return _interval(scores, scores.grouped.objective, low, high)


def _interval(scores: ModelScores, mean: float, low: float, high: float) -> Interval:
    """A mean and its limits, with the numbers of items and groups that they are from."""
    return Interval(
        estimate=Estimate(mean, low, high),
        n=len(scores.values),
        groups=scores.items.layout.groups,
        effective_n=effective_size(scores),
    )


def category_limits(scores: ModelScores, tail: float) -> tuple[float, float]:
    """Limits of one category's mean (`rate`) that miss it with a chance of `tail` on either side."""
    from scipy.special import stdtrit

    bottom, top = scores.span
    grouped = scores.grouped
    mean = grouped.objective
    if np.isin(scores.values, (0.0, 1.0)).all():
        return wilson(mean, effective_size(scores), -NORMAL.inv_cdf(tail))
    if grouped.flat.all():
        below, above = flat_margins(grouped, bottom, top, tail)
        return max(bottom, mean - below), min(top, mean + above)
    degrees = max(len(grouped.sums) - 1, 1)  # a single group: the widest that we state
    error = float(np.sqrt(grouped.variances.sum()))
    margin = float(-stdtrit(degrees, tail)) * error
    return max(bottom, mean - margin), min(top, mean + margin)


def wilson(mean: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate from n items; n need not be whole."""
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    # Rounding may put a limit on the wrong side of the mean.
    low = min(mean, float(centre - margin))
    high = max(mean, float(centre + margin))
    return max(0.0, low), min(1.0, high)


def effective_size(scores: ModelScores) -> float:
    """Items divided by the design effect of groups (Kish 1965), at most the number of items.

    Where nothing varies (but for rounding) the design effect is unknown: the number of groups, as if
    the items of a group were copies.
    """
    n = len(scores.values)
    if scores.items.layout.groups == n:
        return float(n)
    clustered = float(scores.grouped.variances.sum())
    independent = float(scores.ungrouped.variances.sum())
    if independent <= 1e-15 or clustered <= 1e-15:
        return float(len(scores.grouped.sums))
    return max(1.0, n * min(1.0, independent / clustered))


# ---------------------------------------------------------------- what was not seen


def flat_margins(
    scores: GroupedScores, bottom: float, top: float, tail: float = INTERVAL_TAIL
) -> tuple[float, float]:
    """(distance below, distance above) by which the true weighted sum of the scores, T, may differ because of strata
    that show no variation.

    By Jeffreys' limit, with a chance of `tail` on each side, for the rate of an event that was never seen. Categories
    whose mean is at the lowest score that an item can have, `bottom`, or at the highest, `top`, cannot move past it.
    """
    from scipy.special import betaincinv

    # Mean of each category in each stratum [H, C], 0 where there is none.
    sums = scores.layout.by_stratum(scores.sums)
    counts = scores.layout.by_stratum(scores.counts)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)

    # How far T moves if as many groups of a flat stratum fall, or rise, as Jeffreys' limit allows,
    # [H, C]. Strata add in squares.
    n = scores.sizes
    moves = scores.layout.shares * (scores.flat * betaincinv(0.5, n + 0.5, 1 - tail))[:, None]
    fall = (moves * (means > bottom)).sum(axis=1)
    rise = (moves * (means < top)).sum(axis=1)
    return float(np.sqrt((fall**2).sum())), float(np.sqrt((rise**2).sum()))


# ---------------------------------------------------------------- the objective


def _varying_margins(scores: GroupedScores, draws: int) -> tuple[float, float]:
    """(distance below, distance above) by which the true T may differ because of strata that vary; 0 if none does.

    These are the bootstrap-t limits, at least 1.96 standard errors away: if few items are wrong,
    many draws have hardly any of them.
    """
    reach = bootstrap_reach(scores, draws=draws)
    if reach is None:
        return 0.0, 0.0
    normal_margin = Z95 * reach.error
    below = max(normal_margin, reach.below(2 * INTERVAL_TAIL))
    above = max(normal_margin, reach.above(2 * INTERVAL_TAIL))
    return below, above


def objective_interval(scores: ModelScores, *, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """The objective with its 95 % interval.

    Strata that vary give bootstrap-t limits (Efron and Tibshirani 1993, chapter 12). Strata
    without any variation would give none; each gets Jeffreys' limit for what was not seen.
    The two kinds are independent, so their distances from the objective add in squares
    (MOVER, Zou and Donner 2008).
    """
    bottom, top = scores.span
    value = scores.items.value
    if value is not None:
        low, high = _box_limits(scores, value)
        return _interval(
            scores, scores.items.score(scores.values), max(bottom, low), min(top, high)
        )

    grouped = scores.grouped
    varying_below, varying_above = _varying_margins(grouped, draws)
    flat_below, flat_above = flat_margins(grouped, bottom, top)
    objective = grouped.objective
    low = objective - float(np.hypot(varying_below, flat_below))
    high = objective + float(np.hypot(varying_above, flat_above))
    # T of items that all score 1: the weights need not sum to 1.
    scale = float(grouped.weights.sum())
    return _interval(scores, objective, max(bottom * scale, low), min(top * scale, high))


def _box_limits(
    scores: ModelScores, value: Callable[[FloatArray], FloatArray]
) -> tuple[float, float]:
    """Limits of an objective that is not linear but rises with every category mean.

    It lies between its values of all lower and of all upper limits of the categories, which
    hold at once (Bonferroni).
    """
    categories = len(scores.items.names)
    tail = INTERVAL_TAIL / categories
    limits = [category_limits(scores.alone(category), tail) for category in range(categories)]
    low, high = value(np.array(limits).T)
    return float(low), float(high)
