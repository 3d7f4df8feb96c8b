"""What every correlation promises (add a row with its reference); intervals against their published formulas."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from souping.analysis.correlation import kendall, pearson, spearman
from souping.core.protocols import Correlation
from souping.core.types import FloatArray, IntArray, UserError
from souping.statistics.intervals import Interval, effective_size, objective_interval, rate
from souping.statistics.scores import ItemTable, one_category
from souping.testing import check_correlation
from tests.support.choices import dotted, targets


def interval_of(
    values: FloatArray, categories: IntArray, groups: IntArray, weights: FloatArray, **random: int
) -> Interval:
    table = ItemTable(names=(), categories=categories, groups=groups, coefficients=weights)
    return objective_interval(table, values, **random)


CORRELATIONS: dict[str, Correlation] = {
    "kendall": kendall,
    "pearson": pearson,
    "spearman": spearman,
}
SCIPY = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: stats.kendalltau(x, y, variant="b").statistic,
}
tables = arrays(
    float,
    st.tuples(st.integers(3, 9), st.integers(2, 4)),
    elements=st.integers(0, 12).map(lambda k: k / 12),
).filter(lambda t: (np.ptp(t, axis=0) > 0).all())


def test_every_choice_has_a_row() -> None:
    assert {name: dotted(correlate) for name, correlate in CORRELATIONS.items()} == targets(
        "correlation"
    )


@pytest.mark.parametrize("name", CORRELATIONS)
def test_it_conforms(name: str) -> None:
    check_correlation(CORRELATIONS[name])


@pytest.mark.parametrize("name", CORRELATIONS)
@settings(max_examples=40, deadline=None)
@given(scores=tables)
def test_coefficients_are_scipys(name: str, scores: FloatArray) -> None:
    result = CORRELATIONS[name](scores)
    assert CORRELATIONS[name](scores * 100).rho == pytest.approx(result.rho, abs=1e-9)  # percent
    for a in range(scores.shape[1]):
        for b in range(scores.shape[1]):
            assert result.rho[a, b] == pytest.approx(
                SCIPY[name](scores[:, a], scores[:, b]), abs=1e-12
            )
    assert (np.diag(result.rho) == 1).all()
    assert (result.rho == result.rho.T).all()


@pytest.mark.parametrize("name", CORRELATIONS)
@settings(max_examples=40, deadline=None)
@given(scores=tables)
def test_intervals_hold_the_coefficient(name: str, scores: FloatArray) -> None:
    result = CORRELATIONS[name](scores)
    known = ~np.isnan(result.low)
    assert known.all() == (len(scores) >= (5 if name == "kendall" else 4))
    assert (result.low <= result.rho)[known].all()
    assert (result.high >= result.rho)[known].all()
    assert (np.abs(result.low[known]) <= 1).all()
    assert np.diag(result.low).tolist() == np.diag(result.high).tolist() == [1.0] * scores.shape[1]


@pytest.mark.parametrize("name", CORRELATIONS)
def test_refusals_name_the_column(name: str) -> None:
    correlate = CORRELATIONS[name]
    fine = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.4]])
    with pytest.raises(UserError, match=r"3 models or more, not 2"):
        correlate(fine[:2])
    with pytest.raises(UserError, match="at least 2 categories"):
        correlate(fine[:, :1])
    with pytest.raises(UserError, match="the same score for all 3 models in column 2"):
        correlate(np.column_stack([fine[:, 0], [0.5, 0.5, 0.5]]))
    with pytest.raises(UserError, match="not a finite number in column 1"):
        correlate(np.column_stack([[0.5, np.nan, 0.5], fine[:, 0]]))


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("column", [[0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0], [30 * 1.1, 33.0, 33.0]])
def test_rounding_is_no_difference(name: str, column: list[float]) -> None:
    assert column[0] == column[1] or abs(column[0] - column[1]) < 1e-13
    with pytest.raises(UserError, match="column 2"):
        CORRELATIONS[name](np.column_stack([[0.1, 0.2, 0.4], column]))


def columns_with(r: float, n: int) -> FloatArray:
    """[n, 2] scores whose Pearson correlation is r."""
    x = np.arange(n) - (n - 1) / 2
    e = x**2 - (x**2).mean()  # orthogonal to x and to the constant
    y = r * x / np.linalg.norm(x) + np.sqrt(1 - r**2) * e / np.linalg.norm(e)
    return np.column_stack([x, y]) + 10


def test_pearsons_interval_is_scipys_and_six_models_say_almost_nothing() -> None:
    scores = columns_with(-0.4, 11)
    result = pearson(columns_with(-0.4, 11))
    limits = stats.pearsonr(*scores.T).confidence_interval(0.95)
    assert (result.low[0, 1], result.high[0, 1]) == pytest.approx(tuple(limits))
    six = pearson(columns_with(0.07, 6))
    assert [round(float(t[0, 1]), 2) for t in (six.rho, six.low, six.high)] == [0.07, -0.79, 0.83]


def test_rank_intervals_follow_their_papers() -> None:
    scores = np.column_stack([np.arange(12.0), [3, 1, 2, 0, 7, 5, 4, 6, 11, 8, 10, 9]])
    rho = spearman(scores)
    error = np.sqrt((1 + rho.rho[0, 1] ** 2 / 2) / 9)
    assert np.arctanh(rho.high[0, 1]) - np.arctanh(rho.low[0, 1]) == pytest.approx(
        2 * 1.959964 * error
    )
    tau = kendall(scores)
    assert np.arctanh(tau.high[0, 1]) - np.arctanh(tau.rho[0, 1]) == pytest.approx(
        1.959964 * np.sqrt(0.437 / 8)
    )


def test_rounding_is_a_tie() -> None:
    noisy, exact = (np.array([[0.1, first], [0.2, 0.3], [0.4, 0.9]]) for first in (0.1 + 0.2, 0.3))
    for correlate in (spearman, kendall):
        assert (correlate(noisy).rho == correlate(exact).rho).all()


@settings(max_examples=60, deadline=None)
@given(right=st.integers(0, 60), wrong=st.integers(0, 60))
def test_rate_of_single_items_is_wilson(right: int, wrong: int) -> None:
    n = right + wrong
    if n == 0:
        return
    interval = rate(np.array([1.0] * right + [0.0] * wrong), np.arange(n))
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (interval.mean, interval.n, interval.groups, interval.effective_n) == (
        pytest.approx(right / n),
        n,
        n,
        n,
    )
    assert interval.high > interval.low


def test_copies_of_items_count_once() -> None:
    scores = np.array([1.0] * 30 + [0.0] * 10)
    once = rate(scores, np.arange(40))
    copied = rate(np.repeat(scores, 5), np.repeat(np.arange(40), 5))
    assert copied.effective_n == pytest.approx(40, rel=0.05)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert (copied.n, copied.groups) == (200, 40)


def test_all_right_counts_groups() -> None:
    interval = rate(np.ones(100), np.arange(100) // 5)
    expected = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert (interval.low, interval.high, interval.effective_n) == (
        pytest.approx(expected.low),
        1.0,
        20,
    )


def test_graded_rate_is_students_t() -> None:
    scores = np.array([0.2, 0.9, 0.5, 0.4, 0.7, 0.35])
    interval = rate(scores, np.arange(6))
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    flat = rate(np.full(20, 0.5), np.arange(20))
    assert flat.low < 0.5 < flat.high


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
    assert interval.mean == pytest.approx(values.mean())
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.high - interval.low > 1e-4
    assert interval == interval_of(values, categories, groups, weights)
    assert 1 <= interval.effective_n <= interval.n


def test_categories_of_two_items_have_nearly_the_normal_limits() -> None:
    codes = np.repeat(np.arange(60), 2)
    values = (np.arange(120) % 3 == 0).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = interval_of(values, codes, np.arange(120), np.full(60, 1 / 60), draws=50)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low, rel=0.1)


def test_all_right_everywhere_has_jeffreys_limit() -> None:
    interval = interval_of(np.ones(50), np.zeros(50, dtype=int), np.arange(50), np.ones(1))
    assert (interval.low, interval.high) == (pytest.approx(stats.beta.ppf(0.025, 50.5, 0.5)), 1.0)


def test_one_perfect_category_does_not_hide_the_others_doubt() -> None:
    rng = np.random.default_rng(1)
    noisy = (rng.random(60) < 0.5).astype(float)
    where = np.repeat([0, 1], 60)
    groups = np.arange(120)
    weights = np.full(2, 0.5)
    mixed = interval_of(np.concatenate([np.ones(60), noisy]), where, groups, weights)
    alone = interval_of(noisy, np.zeros(60, dtype=int), groups[:60], np.ones(1))
    half = (alone.high - alone.low) / 2
    assert half < mixed.high - mixed.low < 1.1 * half


def test_large_samples_give_the_normal_interval() -> None:
    rng = np.random.default_rng(2)
    values = (rng.random(4000) < 0.6).astype(float)
    interval = interval_of(values, np.zeros(4000, dtype=int), np.arange(4000), np.ones(1))
    margin = 1.96 * values.std(ddof=1) / np.sqrt(4000)
    assert (interval.mean - interval.low, interval.high - interval.mean) == pytest.approx(
        (margin, margin), rel=0.06
    )


def test_groups_widen_the_objectives_interval() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat((rng.random(60) < 0.6).astype(float), 5)
    where = np.zeros(300, dtype=int)
    weights = np.ones(1)
    grouped = interval_of(values, where, np.arange(300) // 5, weights)
    ignored = interval_of(values, where, np.arange(300), weights)
    assert grouped.high - grouped.low > 1.8 * (ignored.high - ignored.low)
    items = one_category(np.arange(300) // 5)
    assert effective_size(values, items) == pytest.approx(60, rel=0.05)


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
    for world in range(worlds):
        truth = rng.beta(2.0, 1.5, len(sizes))
        values = (rng.random(len(categories)) < truth[categories]).astype(float)
        found = interval_of(
            values, categories, np.arange(len(values)), weights, draws=199, seed=world
        )
        held += found.low <= truth.mean() <= found.high
    assert held / worlds > max(0.75, before)


def test_sixty_lone_items_are_known_as_well_as_sixty_of_one_category() -> None:
    values = np.tile([1.0, 0.0, 1.0], 20)
    weights = np.full(60, 1 / 60)
    found = interval_of(values, np.arange(60), np.arange(60), weights)
    margin = 1.96 * np.sqrt(2 / 9 / 59)
    assert (found.low, found.high) == pytest.approx((2 / 3 - margin, 2 / 3 + margin), abs=0.02)


def test_groups_that_share_nothing_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    interval = rate((rng.random(400) < 0.6).astype(float), np.arange(400) // 2)
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
        interval = objective_interval(table, (rng.random(len(chance)) < chance).astype(float))
        held += interval.low <= min(rates) <= interval.high
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
    interval = objective_interval(table, values, draws=199)
    assert table.score(values) == interval.mean == pytest.approx(lowest)
    assert interval.low < interval.mean < interval.high
