"""Power: the difference that a comparison can show, and the items or training runs that a margin takes.

The difference that was observed plays no part: power for it says nothing that its p-value does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from souping.core.types import FloatArray
from souping.core.unit import MARGIN
from souping.statistics.bootstrap_t import NORMAL
from souping.statistics.comparison import Comparison, VarianceParts, split_variance
from souping.statistics.scores import ScoreTable

POWER = 0.8
# Degrees of freedom beyond which Student's t is the normal distribution.
MANY_DEGREES = 200
# Quantiles of a standard error that is not known yet, and halvings by which the difference is found
# that has the power.
FUTURE_ERRORS = 24
POWER_HALVINGS = 24
# More items than anybody would write for one comparison.
ABSURD = 100_000
# Most times as many items, or as few, that are tried, and halvings by which their number is found.
MOST_TIMES = 2.0**40
TIMES_HALVINGS = 40


def items_for(comparison: Comparison, margin: float = MARGIN) -> int:
    """Items on which a true difference of the margin has 80 % power, by the width of the interval."""
    if margin <= 0:
        return rounded_up(math.inf)
    # With x^2 times the items the difference is width / x + step / x^2: the root of
    # margin x^2 - width x - step.
    width = detectable(comparison) - comparison.step
    x = (width + math.sqrt(width**2 + 4 * margin * comparison.step)) / (2 * margin)
    return rounded_up(comparison.n * x * x)


def detectable(comparison: Comparison) -> float:
    """True difference that has 80 % power, and the margin that has it if the models are equal, by the width of the
    interval (not by the difference that was seen).

    Of a few discordant items, the test can only reject at the next whole one: the continuity correction is half a step.
    """
    half_width = (comparison.high - comparison.low) / 2
    quantile, needed = errors_for_power(comparison.level, comparison.degrees, comparison.run_share)
    return needed * half_width / quantile + comparison.step


def errors_for_power(level: float, degrees: float, run_share: float = 1.0) -> tuple[float, float]:
    """(standard errors that an interval reaches, those of a true difference that has 80 % power).

    Of the variance, `run_share` was estimated from few runs (`BanerjeeReach`). If that part came out s^2 times too
    large, and comes out u^2 times too large in the comparison that is planned, an interval reaches
    sqrt(z^2 (1 - share) + t^2 share u^2 / s^2). The power is that on average over s^2 and u^2 ~ chi^2 / degrees.
    """
    z = NORMAL.inv_cdf((1 + level) / 2)
    if degrees > MANY_DEGREES:
        return z, z + NORMAL.inv_cdf(POWER)
    from scipy.special import chdtri, ndtr, stdtrit

    t = float(stdtrit(degrees, (1 + level) / 2))
    tails = (np.arange(FUTURE_ERRORS) + 0.5) / FUTURE_ERRORS
    squares = chdtri(degrees, tails) / degrees
    true_runs = run_share / squares[:, None]
    reaches = np.sqrt(z**2 * (1 - run_share) + t**2 * true_runs * squares)
    errors = np.sqrt(1 - run_share + true_runs)
    low = 0.0
    high = 100 * t
    for _ in range(POWER_HALVINGS):
        k = (low + high) / 2
        if np.mean(ndtr((k - reaches) / errors)) < POWER:
            low = k
        else:
            high = k
    return math.sqrt(z**2 * (1 - run_share) + t**2 * run_share), high


@dataclass(frozen=True, kw_only=True)
class RunPower:
    """The true difference that has 80 % power here, with one more run of each model, or on more items."""

    comparison: Comparison
    scores: ScoreTable
    a: str
    b: str

    @cached_property
    def _parts(self) -> VarianceParts:
        return split_variance(self.scores.scored, self.a, self.b)

    @cached_property
    def _detectable_now(self) -> float:
        return detectable(self.comparison)

    @cached_property
    def _errors_now(self) -> float:
        comparison = self.comparison
        _, errors = errors_for_power(comparison.level, comparison.degrees, comparison.run_share)
        return errors

    @cached_property
    def _runs(self) -> tuple[int, int]:
        """Numbers of runs of the two models."""
        return len(self.scores.counted(self.a)), len(self.scores.counted(self.b))

    def detectable(self, more_runs: int = 0, times_items: float = 1.0) -> float:
        """With so many more runs of each model, on so many times as many items.

        More runs shrink the variance of run means and tell it better; more items shrink all but
        the part of runs.
        """
        now = self._detectable_now
        if math.isinf(self.comparison.degrees):
            return now / math.sqrt(times_items)
        parts = self._parts
        over_items = (parts.total - parts.run_means) / times_items
        shift = min(parts.runs or 0.0, parts.run_means)
        over_runs = shift + (parts.run_means - shift) / times_items
        over_runs *= self._per_run(more_runs) / self._per_run(0)
        total = over_items + over_runs
        degrees = self.comparison.degrees + more_runs * len(self._runs)
        _, errors = errors_for_power(self.comparison.level, degrees, over_runs / total)
        return now * errors / self._errors_now * math.sqrt(total / parts.total)

    def _per_run(self, more_runs: int) -> float:
        return sum(1 / (runs + more_runs) for runs in self._runs)

    def items_for(self, margin: float) -> int | None:
        """Items on which a difference of the margin has 80 % power; None if runs are the limit."""
        if math.isinf(self.comparison.degrees):
            return items_for(self.comparison, margin)
        low = 1 / MOST_TIMES
        high = MOST_TIMES
        if self.detectable(times_items=high) > margin:
            return None
        for _ in range(TIMES_HALVINGS):
            times = math.sqrt(low * high)
            if self.detectable(times_items=times) > margin:
                low = times
            else:
                high = times
        return math.ceil(self.comparison.n * high)


def pair_variance(covariance: FloatArray) -> float:
    """Mean variance of the difference of two models."""
    count = len(covariance)
    return float(2 * (covariance.trace() - covariance.sum() / count) / max(count - 1, 1))


def rounded_up(items: float) -> int:
    """To two digits, which is all that can be known of a number of items that is needed; above ABSURD, just that."""
    if not items <= ABSURD:
        return ABSURD + 1
    digits = math.floor(math.log10(max(items, 1)))
    unit = int(10 ** max(0, digits - 1))
    return math.ceil(items / unit) * unit


def items_in_words(needed: int) -> str:
    if needed > ABSURD:
        return f"more than {ABSURD:,}"
    return f"about {needed:,}"
