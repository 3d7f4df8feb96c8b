"""Power: the difference that a comparison can show, and the items or training runs that a margin takes.

The difference that was observed plays no part: power for it says nothing that its p-value does not.

Shape legend: G groups, M candidates, D simulated test splits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from souping.core.protocols import Objective
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix, frozen
from souping.core.unit import MARGIN
from souping.statistics.bootstrap_t import NORMAL
from souping.statistics.comparison import (
    Comparison,
    VarianceParts,
    answer_variance,
    split_variance,
)
from souping.statistics.corrections import ALPHA
from souping.statistics.grouped import GroupedScores
from souping.statistics.score_table import ItemTable, ScoreTable

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
# Simulated test splits, and halvings by which the number of items is found.
FUTURES = 4000
ITEMS_HALVINGS = 20
# Assumed share of the items on which two models differ, if no answers of the candidates are known.
DISCORDANCE = 0.1


def items_for(comparison: Comparison, margin: float = MARGIN) -> int:
    """Items on which a true difference of the margin has 80 % power, by the width of the interval."""
    if margin <= 0:
        return rounded_up(math.inf)
    # With x^2 times the items the detectable difference is width / x + step / x^2. It equals the margin at
    # the root of margin x^2 - width x - step.
    width = detectable(comparison) - comparison.step
    x = (width + math.sqrt(width**2 + 4 * margin * comparison.step)) / (2 * margin)
    return rounded_up(comparison.n * x * x)


def detectable(comparison: Comparison) -> float:
    """True difference that the test finds with 80 % power; a margin as large is shown with 80 % power if the models are
    equal.

    It follows from the distance of the farther limit, as what no item showed may widen one side alone, and not from the
    difference that was seen. Of a few discordant items, the test can only reject at the next whole one: `step` is added
    as a continuity correction.
    """
    below = comparison.difference - comparison.low
    above = comparison.high - comparison.difference
    quantile, needed = errors_for_power(
        comparison.level.confidence, comparison.degrees, comparison.run_share
    )
    return needed * max(below, above) / quantile + comparison.step


def errors_for_power(confidence: float, degrees: float, run_share: float) -> tuple[float, float]:
    """(standard errors that an interval of this `confidence` reaches, those of a true difference that has 80 % power).

    Of the variance, `run_share` was estimated from few runs (`BanerjeeReach`). If that part came out s^2 times too
    large, and comes out u^2 times too large in the comparison that is planned, an interval reaches
    sqrt(z^2 (1 - share) + t^2 share u^2 / s^2). The power is that on average over s^2 and u^2 ~ chi^2 / degrees. All
    errors are in units of the standard error as it was estimated.
    """
    z = NORMAL.inv_cdf((1 + confidence) / 2)
    if degrees > MANY_DEGREES:
        return z, z + NORMAL.inv_cdf(POWER)
    from scipy.special import chdtri, ndtr, stdtrit

    t = float(stdtrit(degrees, (1 + confidence) / 2))
    tails = (np.arange(FUTURE_ERRORS) + 0.5) / FUTURE_ERRORS
    squares = chdtri(degrees, tails) / degrees
    # s^2 along the rows, u^2 along the columns.
    true_runs = run_share / squares[:, None]
    reaches = np.sqrt(z**2 * (1 - run_share) + t**2 * true_runs * squares)
    errors = np.sqrt(1 - run_share + true_runs)
    # Halve the difference, from 0 to one that surely has the power.
    low = 0.0
    high = 100 * t
    for _ in range(POWER_HALVINGS):
        k = (low + high) / 2
        if np.mean(ndtr((k - reaches) / errors)) < POWER:
            low = k
        else:
            high = k
    return math.sqrt(z**2 * (1 - run_share) + t**2 * run_share), high


@frozen
class RunPower:
    """The true difference that has 80 % power here, with one more run of each model, or on more items."""

    comparison: Comparison
    scores: ScoreTable

    @cached_property
    def _parts(self) -> VarianceParts:
        """Variance of the difference on the items that all runs answered."""
        return split_variance(self.scores.scored, self.comparison.a, self.comparison.b)

    @cached_property
    def _detectable_now(self) -> float:
        return detectable(self.comparison)

    @cached_property
    def _errors_now(self) -> float:
        """Standard errors of a difference that has 80 % power here."""
        comparison = self.comparison
        _, errors = errors_for_power(
            comparison.level.confidence, comparison.degrees, comparison.run_share
        )
        return errors

    @cached_property
    def _runs(self) -> tuple[int, int]:
        """Numbers of runs of the two models."""
        a = self.scores.counted(self.comparison.a)
        return len(a), len(self.scores.counted(self.comparison.b))

    def detectable(self, more_runs: int = 0, times_items: float = 1.0) -> float:
        """The difference that has 80 % power with `more_runs` of each model, on `times_items` times the items.

        More runs shrink the variance of run means and tell it better; more items shrink all but
        the part of runs.
        """
        now = self._detectable_now
        # No variance between runs is known.
        if math.isinf(self.comparison.degrees):
            return now / math.sqrt(times_items)
        parts = self._parts
        over_items = (parts.total - parts.run_means) / times_items
        # True differences between runs stay; noise of their answers shrinks with more items.
        lasting = parts.runs or 0.0
        over_runs = lasting + (parts.run_means - lasting) / times_items
        over_runs *= self._per_run(more_runs) / self._per_run(0)
        total = over_items + over_runs
        # Every further run of either model adds a degree of freedom.
        degrees = self.comparison.degrees + more_runs * len(self._runs)
        _, errors = errors_for_power(self.comparison.level.confidence, degrees, over_runs / total)
        return now * errors / self._errors_now * math.sqrt(total / parts.total)

    def _per_run(self, more_runs: int) -> float:
        """Variance of the difference of the two run means if the variance between runs is 1."""
        return sum(1 / (runs + more_runs) for runs in self._runs)

    def items_for(self, margin: float) -> int | None:
        """Items on which a difference of the margin has 80 % power; None if runs are the limit."""
        if math.isinf(self.comparison.degrees):
            return items_for(self.comparison, margin)
        # Halve the logarithm of how many times the items are needed.
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


# ---------------------------------------------------------------- a report that is planned


@frozen
class MoreAnswers:
    """What as many more answers as there are items would do: one more answer to each item, or `items` new ones that get
    `repeats` answers each. The gains are the `Power.gain` of either."""

    repeats: int
    """answers to each item by now"""
    answers_gain: float
    items: int
    items_gain: float


@frozen
class Power:
    """What a report on `items` test items can show: a soup whose true score is above the best candidate's by `gain` (in
    inner scores) is called better than every candidate in 80 % of runs. A gain of `margin` takes the items `needed`.

    `assumed` says that no answers of the candidates were known. `more` is None unless items have several answers
    that vary."""

    gain: float
    items: int
    margin: float
    needed: int
    assumed: bool
    more: MoreAnswers | None = None


def power_of(
    scores: ScoreMatrix,
    report: Sequence[Item],
    objective: Objective,
    margin: float,
    repeats: int = 1,
) -> Power | None:
    """Power on the `report` items (the test split), by what selection knows of the candidates.

    Each item has this many answers, `repeats`. If no answers of the candidates are known, they count as equal, and any
    two models as different on DISCORDANCE of the items. None if all candidates answer alike, or if the objective is not
    linear.
    """
    if not objective.linear:
        return None
    if scores.items is not None and not scores.published:
        measured = {name: scores.items[name] for name in scores.candidates}
        return measured_power(measured, report, objective, margin, repeats)
    count = len(scores.candidates)
    # The difference of two models has the sum of their variances, so each has half.
    covariance = np.eye(count) * DISCORDANCE / 2 / _worth(ItemTable.of(report, objective))
    levels = np.zeros(count)
    size = len(report)
    futures = _Futures(levels=levels, covariance=covariance, reliable=0)
    return _power(futures, futures.demanded(covariance), size, margin, assumed=True)


def measured_power(
    scores: Mapping[str, ItemScores],
    report: Sequence[Item],
    objective: Objective,
    margin: float,
    repeats: int = 1,
) -> Power | None:
    """Power on the `report` items from the candidates' scores on other items; None if all candidates answer alike.

    The candidates' errors keep their covariance over groups, scaled to the size of the test split. The soup is assumed
    to differ from each candidate as much as the candidates differ from each other.
    """
    # Errors of the candidates' scores, by groups of items, and the variance of the difference of two of them.
    table = ItemTable.of(next(iter(scores.values())).items, objective)
    grouped = [table.grouped(candidate.values) for candidate in scores.values()]
    covariance = error_covariance(grouped)
    pair = pair_variance(covariance)
    if len(grouped) < 2 or pair <= 0:
        return None

    # The scores of M equal candidates have a variance of about pair / 2 by chance; its relative standard
    # deviation is sqrt(2 / (M - 1)). `chance` is one of these above that mean, and `reliable` is the share of
    # the candidates' variance that exceeds it.
    levels = np.array([candidate.objective for candidate in grouped])
    chance = pair / 2 * (1 + math.sqrt(2 / (len(levels) - 1)))
    reliable = max(0.0, 1 - chance / max(float(levels.var(ddof=1)), chance))
    # The factor from a variance on the items that were answered to one on the test split.
    scale = _worth(table) / _worth(ItemTable.of(report, objective))
    futures = _Futures(levels=levels, covariance=covariance, reliable=reliable)
    demanded = futures.demanded(scale * covariance)
    power = _power(futures, demanded, len(report), margin, assumed=False)

    answers = _answer_variances(table, scores, covariance.diagonal())
    if repeats < 2 or answers is None or not answers.any():
        return power

    # One more answer leaves repeats / (repeats + 1) of the variance over the draw of answers.
    one_more = futures.demanded(scale * (covariance - np.diag(answers) / (repeats + 1)))
    more_items = math.ceil(len(report) / repeats)
    more = MoreAnswers(
        repeats=repeats,
        answers_gain=futures.gain(one_more),
        items=more_items,
        items_gain=futures.gain(demanded, 1 + more_items / len(report)),
    )
    return replace(power, more=more)


def error_covariance(grouped: Sequence[GroupedScores]) -> FloatArray:
    """Covariance of the candidates' errors [M, M], by the influence of each group [M, G]."""
    sizes = grouped[0].sizes
    stratum = grouped[0].stratum
    influence = np.stack([candidate.influence for candidate in grouped])
    means = np.stack([np.bincount(stratum, row) / sizes for row in influence])
    factor = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    deviations = (influence - means[:, stratum]) * factor[stratum]
    return np.asarray(deviations @ deviations.T)


def _answer_variances(
    table: ItemTable, scores: Mapping[str, ItemScores], variances: FloatArray
) -> FloatArray | None:
    """Part of each candidate's variance [M] that comes from the draw of its answers; None if that is not known."""
    measured = ScoreTable.measured(table, scores)
    parts = []
    for name, variance in zip(scores, variances.tolist(), strict=True):
        parts.append(answer_variance(measured, variance, name))
    known = [part for part in parts if part is not None]
    return np.array(known) if len(known) == len(parts) else None


class _Futures:
    """Simulated test splits: true levels of the candidates, and random numbers for their errors.

    The errors of the known `levels` [M] have this `covariance` [M, M]. A share `reliable` of the variance between the
    levels is real, so true levels are drawn around shrunken ones.
    """

    def __init__(self, levels: FloatArray, covariance: FloatArray, reliable: float) -> None:
        rng = np.random.default_rng(0)
        count = len(levels)
        # If a part of the levels' variance is real, true levels are around these means with that part of the error
        # variance.
        shrunken = levels.mean() + reliable * (levels - levels.mean())
        noise = rng.standard_normal((FUTURES, count)) @ _root(covariance)
        true = shrunken + math.sqrt(reliable) * noise
        # How far each is below the best [D, M].
        self._gaps = true.max(axis=1, keepdims=True) - true
        self._errors = rng.standard_normal((FUTURES, count))
        self._soup = rng.standard_normal((FUTURES, 1))

    def gain(self, demanded: FloatArray, times: float = 1.0) -> float:
        """The gain with 80 % power on `times` as many items: what the hardest of the candidates demands."""
        hardest = (demanded / math.sqrt(times) - self._gaps).max(axis=1)
        return float(np.quantile(hardest, POWER))

    def demanded(self, covariance: FloatArray) -> FloatArray:
        """Gain over each candidate [D, M] that is shown if errors on the test split have this covariance [M, M].

        The soup's error varies around the candidates' mean error, with a variance by which soup and candidate differ as
        much as two candidates do on average.
        """
        # A candidate's error varies around the mean of M by pair / 2 * (M - 1) / M, on average. The soup's error gets
        # the rest of `pair`, the variance of a difference.
        count = len(covariance)
        soup_sd = math.sqrt(pair_variance(covariance) * (count + 1) / (2 * count))
        # Each candidate's error less the soup's [D, M].
        error = self._errors @ _root(covariance)
        error += soup_sd * self._soup - error.mean(axis=1, keepdims=True)
        return np.asarray(NORMAL.inv_cdf(1 - ALPHA / 2) * error.std(axis=0) + error)


def _root(covariance: FloatArray) -> FloatArray:
    """Transposed Cholesky factor, which gives random numbers [D, M] this covariance.

    A little is added to the diagonal, as the covariance may be singular.
    """
    ridge = 1e-9 * covariance.trace() * np.eye(len(covariance))
    return np.asarray(np.linalg.cholesky(covariance + ridge).T)


def _power(
    futures: _Futures, demanded: FloatArray, items: int, margin: float, assumed: bool
) -> Power:
    """Power on `items` test items, on which a gain over each candidate must be as `demanded` [D, M] to be shown."""
    # Halve the logarithm of the factor on the items, from 20 items to twice as many as `rounded_up` reports.
    too_few = math.log(20 / items)
    enough = math.log(2 * ABSURD / items)
    for _ in range(ITEMS_HALVINGS):
        middle = (too_few + enough) / 2
        if futures.gain(demanded, math.exp(middle)) <= margin:
            enough = middle
        else:
            too_few = middle
    return Power(
        gain=futures.gain(demanded),
        items=items,
        margin=margin,
        needed=rounded_up(items * math.exp(enough)),
        assumed=assumed,
    )


def _worth(table: ItemTable) -> float:
    """Number of independent items of equal weight that would tell as much about the objective as these items."""
    counts = np.bincount(table.categories, minlength=len(table.names))
    return float(1 / (table.coefficients**2 / counts).sum())


def pair_variance(covariance: FloatArray) -> float:
    """Mean variance of the difference of two models, by the covariance [M, M] of their errors."""
    # The mean of cov[a, a] + cov[b, b] - 2 cov[a, b] over all pairs.
    count = len(covariance)
    return float(2 * (covariance.trace() - covariance.sum() / count) / max(count - 1, 1))


def rounded_up(items: float) -> int:
    """A number of items, rounded up to two digits: more cannot be known. Above ABSURD it is ABSURD + 1, for "more"."""
    # Also true of infinity and nan.
    if not items <= ABSURD:
        return ABSURD + 1
    digits = math.floor(math.log10(max(items, 1)))  # 0 items have no logarithm
    unit = int(10 ** max(0, digits - 1))
    return math.ceil(items / unit) * unit


def items_in_words(needed: int) -> str:
    """`about 1,200`, for a number of items by `rounded_up`."""
    if needed > ABSURD:
        return f"more than {ABSURD:,}"
    return f"about {needed:,}"
