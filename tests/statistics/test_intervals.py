"""Intervals of scores against their published formulas."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special, stats

from souping.core.types import FloatArray, IntArray
from souping.statistics.bootstrap_t import bootstrap_reach
from souping.statistics.intervals import (
    Interval,
    category_limits,
    effective_size,
    flat_margins,
    objective_interval,
    rate,
    wilson,
)
from souping.statistics.score_table import ItemTable, ModelScores, one_category


def interval_of(
    values: FloatArray,
    categories: IntArray,
    groups: IntArray,
    weights: FloatArray,
    draws: int = 4_999,
) -> Interval:
    table = ItemTable(names=(), categories=categories, groups=groups, coefficients=weights)
    return objective_interval(ModelScores(items=table, values=values), draws=draws)


def category_rate(values: FloatArray, groups: IntArray) -> Interval:
    return rate(ModelScores(items=one_category(groups), values=values))


@settings(max_examples=60, deadline=None)
@given(right=st.integers(0, 60), wrong=st.integers(0, 60))
def test_rate_of_single_items_is_wilson(right: int, wrong: int) -> None:
    n = right + wrong
    if n == 0:
        return
    interval = category_rate(np.array([1.0] * right + [0.0] * wrong), np.arange(n))
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (interval.estimate.low, interval.estimate.high) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )
    assert interval.estimate.value == pytest.approx(right / n)
    assert (interval.n, interval.groups, interval.effective_n) == (n, n, n)
    assert interval.estimate.high > interval.estimate.low


def test_copies_of_items_count_once() -> None:
    scores = np.array([1.0] * 30 + [0.0] * 10)
    once = category_rate(scores, np.arange(40))
    copied = category_rate(np.repeat(scores, 5), np.repeat(np.arange(40), 5))
    assert copied.effective_n == pytest.approx(40, rel=0.05)
    assert (copied.estimate.low, copied.estimate.high) == pytest.approx(
        (once.estimate.low, once.estimate.high), abs=0.01
    )
    assert (copied.n, copied.groups) == (200, 40)


def test_all_right_counts_groups() -> None:
    interval = category_rate(np.ones(100), np.arange(100) // 5)
    expected = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert interval.estimate.low == pytest.approx(expected.low)
    assert (interval.estimate.high, interval.effective_n) == (1.0, 20)


def test_graded_rate_is_students_t() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.4, 0.7, 0.35])
    interval = category_rate(scores, np.arange(6))
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (interval.estimate.low, interval.estimate.high) == pytest.approx(
        (expected.low, expected.high)
    )
    flat = category_rate(np.full(20, 0.5), np.arange(20))
    assert flat.estimate.low < 0.5 < flat.estimate.high


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 30),
    width=st.integers(1, 3),
    level=st.sampled_from([0.0, 0.1, 0.8, 1.0]),
    seed=st.integers(0, 999),
    shared=st.booleans(),
)
def test_objective_interval_has_width(
    n: int, width: int, level: float, seed: int, shared: bool
) -> None:
    rng = np.random.default_rng(seed)
    categories = np.tile(np.arange(width), n)
    values = (rng.random(n * width) < level).astype(float)
    groups = np.repeat(np.arange(n), width) if shared else np.arange(n * width)
    weights = np.full(width, 1 / width)
    interval = interval_of(values, categories, groups, weights)
    assert interval.estimate.value == pytest.approx(values.mean())
    assert 0 <= interval.estimate.low <= interval.estimate.value <= interval.estimate.high <= 1
    assert interval.estimate.high - interval.estimate.low > 1e-4
    assert interval == interval_of(values, categories, groups, weights)
    assert 1 <= interval.effective_n <= interval.n


def test_categories_of_two_items_have_nearly_the_normal_limits() -> None:
    codes = np.repeat(np.arange(60), 2)
    values = (np.arange(120) % 3 == 0).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = interval_of(values, codes, np.arange(120), np.full(60, 1 / 60), draws=50)
    assert interval.estimate.low < interval.estimate.value < interval.estimate.high
    assert interval.estimate.high - interval.estimate.value == pytest.approx(
        interval.estimate.value - interval.estimate.low, rel=0.1
    )


def test_all_right_everywhere_has_jeffreys_limit() -> None:
    interval = interval_of(np.ones(50), np.zeros(50, dtype=int), np.arange(50), np.ones(1))
    assert interval.estimate.low == pytest.approx(stats.beta.ppf(0.025, 50.5, 0.5))
    assert interval.estimate.high == 1.0


def test_one_perfect_category_does_not_hide_the_others_doubt() -> None:
    rng = np.random.default_rng(1)
    noisy = (rng.random(60) < 0.5).astype(float)
    where = np.repeat([0, 1], 60)
    groups = np.arange(120)
    weights = np.full(2, 0.5)
    mixed = interval_of(np.concatenate([np.ones(60), noisy]), where, groups, weights)
    alone = interval_of(noisy, np.zeros(60, dtype=int), groups[:60], np.ones(1))
    half = (alone.estimate.high - alone.estimate.low) / 2
    assert half < mixed.estimate.high - mixed.estimate.low < 1.1 * half


def test_large_samples_give_the_normal_interval() -> None:
    rng = np.random.default_rng(2)
    values = (rng.random(4000) < 0.6).astype(float)
    interval = interval_of(values, np.zeros(4000, dtype=int), np.arange(4000), np.ones(1))
    margin = 1.96 * values.std(ddof=1) / np.sqrt(4000)
    assert (
        interval.estimate.value - interval.estimate.low,
        interval.estimate.high - interval.estimate.value,
    ) == pytest.approx((margin, margin), rel=0.06)


def test_groups_widen_the_objectives_interval() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat((rng.random(60) < 0.6).astype(float), 5)
    where = np.zeros(300, dtype=int)
    weights = np.ones(1)
    grouped = interval_of(values, where, np.arange(300) // 5, weights)
    ignored = interval_of(values, where, np.arange(300), weights)
    assert grouped.estimate.high - grouped.estimate.low > 1.8 * (
        ignored.estimate.high - ignored.estimate.low
    )
    items = one_category(np.arange(300) // 5)
    assert effective_size(ModelScores(items=items, values=values)) == pytest.approx(60, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "before"), [([1] * 60, 0.4), ([1, 50, 50, 50], 0.3), ([1] * 5 + [40] * 3, 0.9)]
)
def test_categories_of_an_item_or_two_vary_around_their_stratum(
    sizes: list[int], before: float
) -> None:
    rng = np.random.default_rng(5)
    held = 0
    worlds = 60
    categories = np.repeat(np.arange(len(sizes)), sizes)
    weights = np.full(len(sizes), 1 / len(sizes))
    for _ in range(worlds):
        truth = rng.beta(2.0, 1.5, len(sizes))
        values = (rng.random(len(categories)) < truth[categories]).astype(float)
        found = interval_of(values, categories, np.arange(len(values)), weights, draws=199)
        held += found.estimate.low <= truth.mean() <= found.estimate.high
    assert held / worlds > max(0.75, before)


def test_sixty_lone_items_are_known_as_well_as_sixty_of_one_category() -> None:
    values = np.tile([1.0, 0.0, 1.0], 20)
    weights = np.full(60, 1 / 60)
    found = interval_of(values, np.arange(60), np.arange(60), weights)
    # The variance of scores of which two thirds are right is 2 / 9.
    margin = 1.96 * np.sqrt(2 / 9 / 59)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (2 / 3 - margin, 2 / 3 + margin), abs=0.02
    )


def test_groups_that_share_nothing_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    interval = category_rate((rng.random(400) < 0.6).astype(float), np.arange(400) // 2)
    assert 300 < interval.effective_n <= 400


@pytest.mark.parametrize("rates", [[0.7] * 6, [0.5, 0.6, 0.7, 0.7, 0.7, 0.7]], ids=str)
def test_the_worst_category_and_its_difference_are_covered(rates: list[float]) -> None:
    count = len(rates)
    categories = np.repeat(np.arange(count), 40)
    table = ItemTable(
        names=tuple("abcdef"),
        categories=categories,
        groups=np.arange(40 * count),
        coefficients=np.full(count, 1 / count),
        value=lambda means: means.min(axis=-1),
    )
    held = 0
    for seed in range(80):
        chance = np.array(rates)[categories]
        rng = np.random.default_rng([9, seed])
        values = (rng.random(len(chance)) < chance).astype(float)
        interval = objective_interval(ModelScores(items=table, values=values))
        held += interval.estimate.low <= min(rates) <= interval.estimate.high
    assert held >= 0.9 * 80


def test_a_category_without_weight_has_a_mean_all_the_same() -> None:
    """An objective that is not linear takes the means of all categories."""
    rng = np.random.default_rng(0)
    categories = np.arange(90) % 3
    means = np.array([0.9, 0.8, 0.2])
    values = (rng.random(90) < means[categories]).astype(float)
    table = ItemTable(
        names=("a", "b", "c"),
        categories=categories,
        groups=np.arange(90),
        coefficients=np.array([0.5, 0.5, 0.0]),
        # It takes three means.
        value=lambda means: (means * np.ones(3)).min(axis=-1),
    )
    lowest = min(values[categories == c].mean() for c in range(3))
    interval = objective_interval(ModelScores(items=table, values=values), draws=199)
    assert table.score(values) == interval.estimate.value == pytest.approx(lowest)
    assert interval.estimate.low < interval.estimate.value < interval.estimate.high


# Formulas written out


def test_wilsons_interval_takes_fractions_of_items() -> None:
    """The roots in p of (mean - p)^2 = z^2 p (1 - p) / n, cut at 0 and 1."""
    for mean, n, z in ((0.3, 12.5, 1.96), (0.97, 4.0, 2.5), (0.0, 7.0, 1.0), (1.0, 7.0, 1.0)):
        low, high = np.sort(np.roots([1 + z**2 / n, -2 * mean - z**2 / n, mean**2]).real)
        assert wilson(mean, n, z) == pytest.approx((max(0, low), min(1, high)), abs=1e-9)


def grouped_scores() -> ModelScores:
    """Fourteen items in six groups, graded."""
    values = np.array([1, 0.5, 0.5, 0, 1, 1, 1, 0, 0, 0.25, 0.75, 1, 0.5, 0.5])
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5])
    return ModelScores(items=one_category(groups), values=values)


@pytest.mark.parametrize("tail", [0.025, 0.005])
def test_graded_scores_have_students_limits_over_groups(tail: float) -> None:
    scores = grouped_scores()
    mean = scores.values.mean()
    residuals = np.bincount(scores.items.groups, scores.values - mean) / 14
    error = math.sqrt(6 * residuals.var(ddof=1))
    margin = stats.t.isf(tail, 5) * error
    limits = category_limits(scores, tail)
    assert limits == pytest.approx((max(0.0, mean - margin), min(1.0, mean + margin)))
    interval = rate(scores)
    assert interval.estimate.value == pytest.approx(mean)
    assert (interval.n, interval.groups) == (14, 6)
    independent = scores.values.var(ddof=1) / 14
    assert interval.effective_n == pytest.approx(14 * min(1.0, independent / error**2))


def test_right_or_wrong_groups_have_wilsons_limits_of_the_effective_items() -> None:
    groups = np.repeat(np.arange(10), 3)
    values = np.repeat([1, 1, 0, 1, 0, 0, 1, 1, 0, 1], 3).astype(float)
    values[[2, 9]] = 1 - values[[2, 9]]
    scores = ModelScores(items=one_category(groups), values=values)
    sums = np.bincount(groups, values - values.mean()) / 30
    clustered = 10 * sums.var(ddof=1)
    independent = values.var(ddof=1) / 30
    n = 30 * independent / clustered
    assert 10 < n < 30
    assert effective_size(scores) == pytest.approx(n)
    for tail in (0.025, 0.01):
        expected = wilson(values.mean(), n, stats.norm.isf(tail))
        assert category_limits(scores, tail) == pytest.approx(expected)
    alike = ModelScores(items=one_category(groups), values=np.ones(30))
    assert effective_size(alike) == 10
    # Groups that are all alike show no variance either.
    apart = ModelScores(items=one_category(groups), values=np.tile([1.0, 0.0, 0.5], 10))
    assert effective_size(apart) == 10


def test_a_group_that_varies_within_is_worth_all_of_its_items() -> None:
    groups = np.repeat(np.arange(6), 2)
    values = np.array([1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1.0])
    assert effective_size(ModelScores(items=one_category(groups), values=values)) == 12


@pytest.mark.parametrize(("value", "below", "above"), [(0.5, 1, 1), (0.0, 0, 1), (1.0, 1, 0)])
def test_what_was_not_seen_has_jeffreys_limit(value: float, below: int, above: int) -> None:
    """Of n = 8 groups alike the rate of an event may be up to the 97.5 % point of Beta(1/2, n + 1/2)."""
    scores = ModelScores(items=one_category(np.arange(8)), values=np.full(8, value))
    move = special.betaincinv(0.5, 8.5, 0.975)
    assert flat_margins(scores.grouped, bottom=0.0, top=1.0) == pytest.approx(
        (below * move, above * move)
    )
    wider = special.betaincinv(0.5, 8.5, 0.99)
    margins = flat_margins(scores.grouped, bottom=0.0, top=1.0, tail=0.01)
    assert margins == pytest.approx((below * wider, above * wider))
    if value == 0.5:
        assert category_limits(scores, 0.01) == pytest.approx((0.5 - wider, 0.5 + wider))


def test_strata_that_vary_and_strata_that_do_not_add_in_squares() -> None:
    """A category of 40 items that vary, weight 0.6, and one of 12 that are all right, which cannot rise."""
    values = np.concatenate([np.arange(40) % 3 != 0, np.ones(12)]).astype(float)
    categories = np.repeat([0, 1], [40, 12])
    table = ItemTable(
        names=("x", "y"),
        categories=categories,
        groups=np.arange(52),
        coefficients=np.array([0.6, 0.4]),
    )
    scores = ModelScores(items=table, values=values)
    reach = bootstrap_reach(scores.grouped, draws=4999)
    assert reach is not None
    error = 0.6 * math.sqrt(values[:40].var(ddof=1) / 40)
    assert reach.error == pytest.approx(error)
    fall = 0.4 * special.betaincinv(0.5, 12.5, 0.975)
    below = max(1.959964 * error, reach.below(0.05))
    above = max(1.959964 * error, reach.above(0.05))
    found = objective_interval(scores)
    mean = 0.6 * values[:40].mean() + 0.4
    assert found.estimate.value == pytest.approx(mean)
    assert found.estimate.low == pytest.approx(mean - math.hypot(below, fall))
    assert found.estimate.high == pytest.approx(min(1.0, mean + above))


def test_an_objective_that_bends_has_the_values_of_the_categories_limits() -> None:
    """Two categories: each has its limits at half of 2.5 % on either side."""
    rng = np.random.default_rng(3)
    values = (rng.random(60) < 0.6).astype(float)
    categories = np.repeat([0, 1], 30)
    table = ItemTable(
        names=("x", "y"),
        categories=categories,
        groups=np.arange(60),
        coefficients=np.full(2, 0.5),
        value=lambda means: means.min(axis=-1),
    )
    found = objective_interval(ModelScores(items=table, values=values))
    limits = [wilson(values[categories == c].mean(), 30, stats.norm.isf(0.0125)) for c in (0, 1)]
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (min(low for low, _ in limits), min(high for _, high in limits))
    )
    assert found.estimate.value == pytest.approx(min(values[:30].mean(), values[30:].mean()))
