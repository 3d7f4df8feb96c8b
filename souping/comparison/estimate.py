"""Difference of two models: the test of their weighted mean, and what its variance comes from.

Shape legend: R runs, I items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from souping.analysis.nested import BanerjeeReach, NestedIntervals, UnseenMargins
from souping.analysis.sign_flip import ALPHA
from souping.analysis.sign_patterns import SIGN_DRAWS
from souping.analysis.significance import (
    Comparison,
    bound_of,
    bounded,
    compare,
    detectable,
    errors_for_power,
    items_for,
)
from souping.comparison.pooled import BEST, NOISE, SCORE, WORST, PooledScores, finite
from souping.core.types import FloatArray

# Rows of scores of models a and b: as the harness counted missing answers, then the corners.
CORNER_ROWS = ((SCORE, SCORE), (WORST, BEST), (BEST, WORST))


def contrast(
    pooled: PooledScores,
    a: str,
    b: str,
    *,
    tests: float = 1,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    tested: bool = True,
) -> Comparison:
    """Model a minus model b, at the level divided by a number of `tests`.

    Where answers of theirs are missing, interval and p-value hold as the harness counted them and
    at both corners: those of one right and those of the other wrong. One that is not `tested` has
    no p-value.
    """
    corners = CORNER_ROWS if has_missing(pooled, a, b) else CORNER_ROWS[:1]
    return bounded(
        [_contrast_at(pooled, a, b, rows, tests, draws, seed, tested) for rows in corners]
    )


def counted_contrast(pooled: PooledScores, a: str, b: str, *, tests: float = 1) -> Comparison:
    """`contrast` as the harness counted missing answers, without a p-value."""
    return _contrast_at(pooled, a, b, CORNER_ROWS[0], tests, SIGN_DRAWS, seed=0, tested=False)


def has_missing(pooled: PooledScores, a: str, b: str) -> bool:
    """Whether answers of one of the models are missing, so that they can be right or wrong."""
    return any((pooled.values[name][BEST] != pooled.values[name][WORST]).any() for name in (a, b))


def has_runs(pooled: PooledScores) -> bool:
    """Whether a model has several runs."""
    return any(values.shape[1] > 1 for values in pooled.values.values())


def _contrast_at(
    pooled: PooledScores,
    a: str,
    b: str,
    rows: tuple[int, int],
    tests: float,
    draws: int,
    seed: int,
    tested: bool,
) -> Comparison:
    row_a, row_b = rows
    if rows == CORNER_ROWS[0]:
        pooled = pooled.scored
    else:
        pooled = pooled.at(finite((pooled.values[a], pooled.values[b]), BEST))
    scores_a = pooled.values[a][row_a]
    scores_b = pooled.values[b][row_b]
    if has_runs(pooled):
        return _over_runs(pooled, a, b, rows, tests)
    return compare(
        a,
        b,
        scores_a[0],
        scores_b[0],
        pooled.categories,
        pooled.groups,
        pooled.weights,
        tests=tests,
        draws=draws,
        seed=seed,
        tested=tested,
        layout=pooled.layout,
    )


def _over_runs(
    pooled: PooledScores,
    a: str,
    b: str,
    rows: tuple[int, int],
    tests: float = 1,
) -> Comparison:
    """Model a minus model b where runs tell a variance, by these rows of their scores.

    The variance of the difference is that of items plus that of run means less what both count,
    never below the larger of the two; the interval is Banerjee's, widened as all are (`nested`).
    """
    row_a, row_b = rows
    mean_a = pooled.values[a][row_a].mean(axis=0)
    mean_b = pooled.values[b][row_b].mean(axis=0)
    variance = split_variance(pooled, a, b, rows)
    error = math.sqrt(variance.total)

    # `same_model` leaves out the sign flips, whose interval and p-value are replaced below.
    comparison = compare(
        a,
        b,
        mean_a,
        mean_b,
        pooled.categories,
        pooled.groups,
        pooled.weights,
        tests=tests,
        same_model=error > 0,
        layout=pooled.layout,
    )
    if not error:  # every item of every run differs alike
        return comparison

    differences = pooled.paired(mean_a, mean_b)
    intervals = NestedIntervals(
        total=comparison.difference,
        reaches=[
            BanerjeeReach(
                items=variance.total - variance.run_means,
                runs=variance.run_means,
                degrees=variance.degrees,
            )
        ],
        margins=UnseenMargins.of(differences),
        bound=bound_of(differences, mean_a, mean_b),
    )
    low, high = intervals.limits(ALPHA / tests)
    return replace(
        comparison,
        low=low,
        high=high,
        p_value=intervals.p_value(),
        test=f"t over items and runs, {variance.degrees:.1f} degrees of freedom",
        step=0.0,
        degrees=variance.degrees,
        run_share=variance.run_means / variance.total,
    )


# ---------------------------------------------------------------- variance


@dataclass(frozen=True, kw_only=True)
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


def variance_parts(pooled: PooledScores, a: str, b: str) -> VarianceParts:
    """Split of the variance of model a minus model b, on items that all have a score."""
    noise = (pooled.values[a][NOISE], pooled.values[b][NOISE])
    return split_variance(pooled, a, b, (SCORE, SCORE), noise)


def split_variance(
    pooled: PooledScores,
    a: str,
    b: str,
    rows: tuple[int, int],
    noise: Sequence[FloatArray] = (),
) -> VarianceParts:
    """`variance_parts` by these rows of scores; `noise` are the variances over answers of both.

    A model with one run gets the variance between runs of the other; if that has one run too, the
    mean over all models with several.
    """
    row_a, row_b = rows
    scores_a = pooled.values[a][row_a]
    scores_b = pooled.values[b][row_b]
    differences = pooled.paired(scores_a.mean(axis=0), scores_b.mean(axis=0))
    over_items = float(differences.variances.sum())
    answers = _answer_variance(pooled, noise)
    items = max(0.0, over_items - (answers or 0.0))

    sides = [scores for scores in (scores_a, scores_b) if len(scores) > 1]
    if not sides:
        all_scores = [values[row_a] for values in pooled.values.values()]
        sides = [scores for scores in all_scores if len(scores) > 1]
    if not sides:
        return VarianceParts(
            total=over_items, items=items, answers=answers, runs=None, degrees=math.inf
        )
    if len(scores_a) > 1 and len(scores_b) > 1:
        shares = [1 / len(scores_a), 1 / len(scores_b)]
    else:
        shares = [(1 / len(scores_a) + 1 / len(scores_b)) / len(sides)] * len(sides)

    # Variance between runs, and the part of it that the variance over items counts too.
    over_runs = 0.0
    overlap = 0.0
    squares = 0.0
    for share, scores in zip(shares, sides, strict=True):
        run_variance, item_part = _between_runs(pooled, scores)
        over_runs += run_variance * share
        overlap += item_part * share
        squares += (run_variance * share) ** 2 / (len(scores) - 1)
    total = max(over_items, over_runs, over_items + over_runs - overlap)

    return VarianceParts(
        total=total,
        items=items,
        answers=answers,
        runs=max(0.0, over_runs - overlap),
        # Satterthwaite's, over the two sides.
        degrees=over_runs**2 / squares if squares else math.inf,
        run_means=over_runs,
    )


def _answer_variance(pooled: PooledScores, noise: Sequence[FloatArray]) -> float | None:
    """Variance of the difference over the draw of answers, by that of each score [R, I]."""
    if not noise or not all(np.isfinite(variances).all() for variances in noise):
        return None
    item_weights = (pooled.weights / np.bincount(pooled.categories))[pooled.categories]
    total = 0.0
    for variances in noise:
        weighted = item_weights**2 * variances.sum(axis=0)
        total += float(weighted.sum()) / len(variances) ** 2
    return total


def _between_runs(pooled: PooledScores, scores: FloatArray) -> tuple[float, float]:
    """(variance of a run's mean, the part of it that items answered differently explain)."""
    means = np.array([pooled.mean(run[None]) for run in scores])
    item_part = 0.0
    for deviations in scores - scores.mean(axis=0):
        grouped = pooled.paired(deviations, np.zeros_like(deviations))
        item_part += float(grouped.variances.sum())
    return float(means.var(ddof=1)), item_part / (len(scores) - 1)


# ---------------------------------------------------------------- power


MOST_TIMES = 2.0**40
TIMES_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class RunPower:
    """The true difference that has 80 % power here, with one more run of each model, or on more items."""

    comparison: Comparison
    pooled: PooledScores
    a: str
    b: str

    @cached_property
    def _parts(self) -> VarianceParts:
        return variance_parts(self.pooled.scored, self.a, self.b)

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
        return self.pooled.values[self.a].shape[1], self.pooled.values[self.b].shape[1]

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
