"""Paired comparison of two models on the same items: difference, interval and two-sided p-value.

A claim "better" also needs the difference above zero.

Shape legend: I items, R runs, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from souping.core.types import FloatArray, frozen
from souping.core.unit import Estimate
from souping.statistics.bootstrap_t import bootstrap_reach
from souping.statistics.corrections import ALPHA, FIRST_LOOK, Level
from souping.statistics.flips import SIGN_DRAWS, TEST, draws_for, flip_reach
from souping.statistics.grouped import ZERO_DIFFERENCE, GroupedScores
from souping.statistics.nested import BanerjeeReach, NestedIntervals
from souping.statistics.score_table import ItemTable, Paired, ScoreTable

GRADED_TEST = f"{TEST}, and bootstrap-t"
EVERY = "better, or worse, in every category: the largest of the categories' p-values"


@frozen
class Comparison:
    """a minus b on the objective (inner scores) with its interval at `level` and two-sided p-values.

    The interval excludes 0 just where `p_alone` is below `level.alpha`, and so where `p_look` is below ALPHA.
    """

    a: str
    b: str
    estimate: Estimate[float]
    level: Level = FIRST_LOOK
    # Not corrected for other tests or earlier looks.
    p_alone: float
    test: str
    # Number of items, and of groups of items.
    n: int
    groups: int
    # Share of items on which the two scores differ.
    discordant: float
    # Half the distance between neighbouring values of the test's statistic; 0 unless all groups that
    # differ do so by the same amount.
    step: float = 0.0
    # Degrees of freedom of the variance between training runs, and its share of the whole variance.
    degrees: float = math.inf
    run_share: float = 1.0

    @property
    def difference(self) -> float:
        return self.estimate.value

    @property
    def low(self) -> float:
        return self.estimate.low

    @property
    def high(self) -> float:
        return self.estimate.high

    @property
    def least(self) -> float:
        """The smallest difference that would be beyond chance, by the width of the interval.

        If this difference is beyond chance, the limit next to 0 shows it, so the width is that limit's distance. If
        not, it is the distance of the farther limit.
        """
        difference, low, high = self.estimate
        if low > 0:
            return difference - low
        if high < 0:
            return high - difference
        return max(difference - low, high - difference)

    @property
    def p_family(self) -> float:
        """p-value corrected for the tests among which this one may have been picked."""
        return self.level.over_tests(self.p_alone)

    @property
    def p_look(self) -> float:
        """p-value corrected for these tests and for the looks at the items: a claim needs it below ALPHA."""
        return self.level.corrected(self.p_alone)


def contrast(
    scores: ScoreTable,
    a: str,
    b: str,
    level: Level = FIRST_LOOK,
    *,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    tested: bool = True,
) -> Comparison:
    """Model a minus model b, with an interval and a p-value that hold whatever the missing answers are.

    An objective that is not linear, such as the lowest category mean, is tested in every category. It rises with every
    category mean, and by as much as all of them rise. So its difference is not below the lowest difference of a
    category and not above the highest, and it is within the lowest lower and the highest upper limit. They exclude 0
    only if every category shows the same, so there is no correction for the number of categories.

    Unless `tested`, there need not be a p-value: it may be nan.
    """
    # The scores as counted and, if answers are missing, with these in favour of b, and of a.
    at_corners = []
    for corner in scores.corners(a, b):
        at_corners.append(contrast_at(corner, a, b, level, draws=draws, seed=seed, tested=tested))
    comparison = bounded(at_corners)
    value = scores.items.value
    if value is None:
        return comparison

    # The objective is not linear: its difference, limits and p-value replace those of the weighted mean.
    by_category = []
    for category in range(len(scores.items.names)):
        alone = scores.alone(category)
        by_category.append(contrast(alone, a, b, level, draws=draws, seed=seed, tested=tested))
    all_categories = bounded(by_category)
    score_a = scores.items.score(scores.mean(a))
    score_b = scores.items.score(scores.mean(b))
    return replace(
        comparison,
        estimate=Estimate(score_a - score_b, all_categories.low, all_categories.high),
        p_alone=all_categories.p_alone,
        test=EVERY,
    )


def contrast_at(
    scores: ScoreTable,
    a: str,
    b: str,
    level: Level = FIRST_LOOK,
    *,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    tested: bool = True,
) -> Comparison:
    """`contrast` by the counted scores alone, which every model has on all items.

    T = sum_c w_c * mean over the items i of c of (a_i - b_i). Two models that gave the same scores have difference 0
    and p = 1 with an interval of positive width: other items might tell them apart.
    """
    paired = scores.paired(a, b)
    if scores.has_runs:
        variance = split_variance(scores, a, b)
        # The variance is 0 if every item of every run differs by the same amount.
        if variance.total:
            return _over_runs(paired, variance, level)

    intervals = paired_intervals(
        paired.grouped,
        paired.bound,
        graded=paired.graded,
        alpha=level.alpha,
        draws=draws,
        seed=seed,
        # A p-value needs the intervals at every level. Without it, they take half the time.
        highest=1.0 if tested else level.alpha,
    )
    test = GRADED_TEST if paired.graded else TEST
    comparison = comparison_of(paired, intervals, level, test, tested)
    return replace(comparison, step=paired.grouped.step)


def bounded(comparisons: Sequence[Comparison]) -> Comparison:
    """The first comparison, with an interval and a p-value that hold for all.

    The interval reaches from the lowest to the highest limit. Its p-value is the largest, and 1 if not all differences
    are on one side of 0.
    """
    signs = {np.sign(comparison.difference) for comparison in comparisons}
    p_value = max(comparison.p_alone for comparison in comparisons)
    low = min(comparison.low for comparison in comparisons)
    high = max(comparison.high for comparison in comparisons)
    return replace(
        comparisons[0],
        estimate=Estimate(comparisons[0].difference, low, high),
        p_alone=p_value if len(signs) == 1 else 1.0,
    )


def same_model(items: ItemTable, a: str, b: str, level: Level = FIRST_LOOK) -> Comparison:
    """Comparison of one model under two names: the difference is 0 by construction, and so are both limits."""
    return Comparison(
        a=a,
        b=b,
        estimate=Estimate(0.0, 0.0, 0.0),
        level=level,
        p_alone=1.0,
        test="same model",
        n=len(items.groups),
        groups=items.layout.groups,
        discordant=0.0,
    )


def better_than_every(comparisons: Sequence[Comparison]) -> float:
    """p-value of "a is better than every b": the largest of `p_look`, 1 if any difference is not above 0.

    An intersection-union test needs no further correction (Berger 1982): the claim is false if it is false for one b,
    and that comparison alone rejects with at most its own error. As p-values are two-sided, a false claim has half the
    level.
    """
    if not all(comparison.difference > ZERO_DIFFERENCE for comparison in comparisons):
        return 1.0
    return max(comparison.p_look for comparison in comparisons)


# ---------------------------------------------------------------- interval and p-value


def comparison_of(
    paired: Paired, intervals: NestedIntervals, level: Level, test: str, tested: bool = True
) -> Comparison:
    """The interval at a level, with its p-value (nan unless `tested`); `test` is the name of the test."""
    a, b = paired.names
    low, high = intervals.limits(level.alpha)
    return Comparison(
        a=a,
        b=b,
        estimate=Estimate(paired.grouped.objective, low, high),
        level=level,
        p_alone=intervals.p_value() if tested else math.nan,
        test=test,
        n=len(paired.deltas),
        groups=paired.grouped.layout.groups,
        discordant=paired.discordant,
    )


def paired_intervals(
    scores: GroupedScores,
    bound: float,
    *,
    graded: bool,
    alpha: float = ALPHA,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    highest: float = 1.0,
) -> NestedIntervals:
    """Intervals of T within -bound..bound; `alpha` is the lowest level that the draws resolve.

    `highest` is the largest level that will be asked for: 1 for a p-value; a lower one is faster. For right-or-wrong
    scores, sign flips alone are valid. If scores are `graded`, models of equal means need not be exchangeable, so
    bootstrap-t limits count too, and `NestedIntervals` adds more for what no group showed.
    """
    draws = draws_for(alpha, draws)
    flips = flip_reach(scores, draws=draws, seed=seed, highest=highest)
    bootstrap = None
    if graded:
        bootstrap = bootstrap_reach(scores, draws=draws, seed=seed)
    return NestedIntervals.of(scores, [flips, bootstrap], bound, graded=graded)


def _over_runs(paired: Paired, variance: VarianceParts, level: Level) -> Comparison:
    """A difference whose variance includes that between runs: Banerjee's interval, widened by `NestedIntervals`."""
    reach = BanerjeeReach(
        items=variance.total - variance.run_means,
        runs=variance.run_means,
        degrees=variance.degrees,
    )
    intervals = NestedIntervals.of(paired.grouped, [reach], paired.bound, graded=paired.graded)
    test = f"t over items and runs, {variance.degrees:.1f} degrees of freedom"
    return replace(
        comparison_of(paired, intervals, level, test),
        degrees=variance.degrees,
        run_share=variance.run_means / variance.total,
    )


# ---------------------------------------------------------------- variance


@frozen
class VarianceParts:
    """Variance of a difference, and what adds to it. None where the logs cannot tell."""

    total: float
    """variance of the difference"""
    items: float
    """part of the choice of items, with that of their answers if that is unknown"""
    answers: float | None
    """part of sampled answers; needs several answers per item"""
    runs: float | None
    """part of runs, beyond the noise of their answers; needs several runs of a model"""
    degrees: float
    """degrees of freedom of `run_means`; null if there is one run per model"""
    run_means: float = 0.0
    """variance of the difference of the run means, the noise of their answers included"""


def split_variance(scores: ScoreTable, a: str, b: str) -> VarianceParts:
    """Split of the variance of model a minus model b, on items for which every run has a score.

    The total is the variance over items plus that over runs, less what both count (`overlap`), and never below the
    larger of the two. All models share one variance between runs, pooled over the models with several runs.
    """
    over_items = float(scores.difference(a, b).variances.sum())
    answers = answer_variance(scores, over_items, a, b)
    items = over_items - (answers or 0.0)

    run_variance, item_part, degrees = _between_runs(scores)
    if not degrees:
        return VarianceParts(
            total=over_items, items=items, answers=answers, runs=None, degrees=math.inf
        )
    # The variance of run means, and the part of it that the variance over items counts too. A model whose runs are all
    # the same has no such variance. One run may have it: whether runs differ cannot be seen from one.
    shares = 0.0
    for model in (a, b):
        runs = scores.counted(model)
        if len(runs) == 1 or _differ(runs):
            shares += 1 / len(runs)
    over_runs = run_variance * shares
    overlap = item_part * shares
    total = max(over_items, over_runs, over_items + over_runs - overlap)
    return VarianceParts(
        total=total,
        items=items,
        answers=answers,
        runs=max(0.0, over_runs - overlap),
        degrees=degrees,
        run_means=over_runs,
    )


def answer_variance(scores: ScoreTable, over_items: float, *models: str) -> float | None:
    """Variance of a difference of models, or of one model, over the draw of answers; None if it is not known.

    It is part of the variance `over_items`, so never above that.
    """
    noise = [scores.answers[model].noise for model in models]
    if not all(np.isfinite(variances).all() for variances in noise):
        return None
    # The mean of R runs has 1 / R^2 of the sum of their variances.
    total = 0.0
    for variances in noise:
        weighted = scores.items.item_weights**2 * variances.sum(axis=0)
        total += float(weighted.sum()) / len(variances) ** 2
    return min(over_items, total)


def run_means(scores: ScoreTable) -> dict[str, FloatArray]:
    """{model: the objective of each of its runs}, for models with several."""
    means = {}
    for model, answers in scores.answers.items():
        if len(answers.counted) > 1:
            # `mean` takes runs [R, I]; here R is 1.
            means[model] = np.array([scores.items.mean(run[None]) for run in answers.counted])
    return means


def runs_differ(scores: ScoreTable) -> bool:
    """Whether models' runs vary unequally beyond chance, by Bartlett's test (1937) at 5 %.

    Run means are averages over many items, so close to normal, as the test assumes. Tests that assume less see nothing
    in two or three runs.
    """
    from scipy.stats import bartlett

    means = list(run_means(scores).values())
    if len(means) < 2 or max(np.ptp(runs) for runs in means) <= ZERO_DIFFERENCE:
        return False
    # A model whose runs are equal has variance 0, of which the test takes the logarithm.
    with np.errstate(divide="ignore"):
        return bool(bartlett(*means).pvalue < ALPHA)


def _differ(runs: FloatArray) -> bool:
    """Whether runs [R, I] are not all the same."""
    return bool(np.ptp(runs, axis=0).max() > ZERO_DIFFERENCE)


def _between_runs(scores: ScoreTable) -> tuple[float, float, int]:
    """(variance between runs, its part that is explained by items answered differently, degrees of freedom).

    Pooled over the models whose runs [R, I] differ; those with equal runs, as greedy ones have, say nothing.
    """
    squares = 0.0
    item_part = 0.0
    degrees = 0
    for model, means in run_means(scores).items():
        runs = scores.counted(model)
        if not _differ(runs):
            continue
        squares += float(means.var()) * len(runs)
        for deviations in runs - runs.mean(axis=0):
            item_part += float(scores.items.grouped(deviations).variances.sum())
        degrees += len(runs) - 1
    if not degrees:
        return 0.0, 0.0, 0
    return squares / degrees, item_part / degrees, degrees
