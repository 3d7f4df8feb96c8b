"""Variance of a difference over items, answers and runs, and what is made of several comparisons, by formulas."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from souping.core.types import FloatArray
from souping.core.unit import POINTS, Estimate
from souping.report.content import RowDifference
from souping.statistics.comparison import (
    EVERY,
    Comparison,
    answer_variance,
    better_than_every,
    bounded,
    contrast,
    contrast_at,
    run_means,
    runs_differ,
    same_model,
    split_variance,
)
from souping.statistics.corrections import FIRST_LOOK, Level
from souping.statistics.joint import (
    JointFlips,
    MaxTReach,
    compare_in_categories,
    equivalent_tests,
    picked_tests,
)
from souping.statistics.nested import BanerjeeReach
from souping.statistics.score_table import Answers, ItemTable, ScoreTable, one_category

ITEMS = ItemTable(
    names=("x", "y"),
    categories=np.repeat([0, 1], [30, 20]),
    groups=np.arange(50),
    coefficients=np.array([0.7, 0.3]),
)
WEIGHTS = np.repeat([0.7 / 30, 0.3 / 20], [30, 20])
"""How far the objective moves with each item."""


def over_items(deltas: FloatArray) -> float:
    """Variance of the objective of differences [I], each item a group."""
    first = deltas[:30].var(ddof=1) / 30
    second = deltas[30:].var(ddof=1) / 20
    return float(0.49 * first + 0.09 * second)


def runs(count: int, seed: int, spread: float = 0.1) -> FloatArray:
    """Scores of so many runs [R, I], each with a shift of its own."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, spread, (count, 1))
    scores: FloatArray = np.clip(0.5 + shift + rng.normal(0, 0.2, (count, 50)), 0.01, 0.99)
    return scores


@pytest.mark.parametrize(("a_runs", "b_runs"), [(3, 4), (1, 3), (2, 1)])
def test_the_variance_of_recipes_is_pooled_over_models_with_several_runs(
    a_runs: int, b_runs: int
) -> None:
    table = ScoreTable.complete(ITEMS, {"a": runs(a_runs, 1), "b": runs(b_runs, 2)})
    parts = split_variance(table, "a", "b")
    squares = 0.0
    items = 0.0
    degrees = 0
    for name in "ab":
        scores = table.counted(name)
        if len(scores) == 1:
            continue
        means = scores @ WEIGHTS
        squares += ((means - means.mean()) ** 2).sum()
        items += sum(over_items(row) for row in scores - scores.mean(axis=0))
        degrees += len(scores) - 1
        assert run_means(table)[name] == pytest.approx(means)
    shares = 1 / a_runs + 1 / b_runs
    over_runs = squares / degrees * shares
    overlap = items / degrees * shares
    of_items = over_items(table.mean("a") - table.mean("b"))
    assert parts.degrees == degrees
    assert parts.run_means == pytest.approx(over_runs)
    assert parts.runs == pytest.approx(max(0.0, over_runs - overlap))
    assert parts.items == pytest.approx(of_items)
    assert parts.total == pytest.approx(max(of_items, over_runs, of_items + over_runs - overlap))
    assert parts.answers is None


def test_a_model_whose_runs_are_equal_has_no_variance_between_runs() -> None:
    equal = np.repeat(runs(1, 3), 3, axis=0)
    table = ScoreTable.complete(ITEMS, {"a": equal, "b": runs(4, 4)})
    parts = split_variance(table, "a", "b")
    means = table.counted("b") @ WEIGHTS
    assert parts.degrees == 3
    assert parts.run_means == pytest.approx(means.var(ddof=1) / 4)
    both = ScoreTable.complete(ITEMS, {"a": equal, "b": equal[::-1] * 0.5})
    plain = split_variance(both, "a", "b")
    assert (plain.runs, plain.run_means, plain.degrees) == (None, 0.0, math.inf)
    assert plain.total == pytest.approx(over_items(equal[0] * 0.5))


def test_sampled_answers_are_part_of_the_variance_over_items() -> None:
    rng = np.random.default_rng(5)
    noise = {name: rng.random((2, 50)) / 50 for name in "ab"}
    answers = {
        name: Answers.of(runs(2, seed), noise=noise[name]) for seed, name in enumerate("ab", 6)
    }
    table = ScoreTable.of(ITEMS, answers)
    # The mean of 2 runs has 1 / 2^2 of the sum of their variances.
    each = {name: float((WEIGHTS**2 * noise[name].sum(axis=0)).sum()) / 4 for name in "ab"}
    total = each["a"] + each["b"]
    assert answer_variance(table, math.inf, "a") == pytest.approx(each["a"])
    assert answer_variance(table, math.inf, "a", "b") == pytest.approx(total)
    # It is never above the variance over items.
    ceiling = total / 2
    assert answer_variance(table, ceiling, "a", "b") == ceiling
    parts = split_variance(table, "a", "b")
    items = over_items(table.mean("a") - table.mean("b"))
    assert parts.answers == pytest.approx(min(items, total))
    assert parts.items == pytest.approx(items - min(items, total))
    unknown = ScoreTable.of(ITEMS, {**answers, "a": Answers.of(runs(2, 6))})
    assert answer_variance(unknown, math.inf, "a", "b") is None


def test_runs_differ_by_bartletts_test() -> None:
    wide = runs(8, 8, spread=0.2)
    narrow = runs(8, 9, spread=0.001)
    table = ScoreTable.complete(ITEMS, {"a": wide, "b": narrow, "c": runs(1, 10)})
    p = stats.bartlett(wide @ WEIGHTS, narrow @ WEIGHTS).pvalue
    assert runs_differ(table) == (p < 0.05)
    assert runs_differ(table)
    alike = ScoreTable.complete(ITEMS, {"a": runs(8, 11), "b": runs(8, 12)})
    p = stats.bartlett(*(alike.counted(name) @ WEIGHTS for name in "ab")).pvalue
    assert not runs_differ(alike)
    assert p > 0.05
    equal = np.repeat(runs(1, 3), 2, axis=0)
    assert not runs_differ(ScoreTable.complete(ITEMS, {"a": equal, "b": equal}))
    assert not runs_differ(ScoreTable.complete(ITEMS, {"a": wide, "b": runs(1, 10)}))
    # A model whose runs are equal, beside one whose runs are not.
    assert runs_differ(ScoreTable.complete(ITEMS, {"a": wide, "b": equal}))


@pytest.mark.parametrize(("share", "degrees"), [(1.0, 3.0), (0.25, 7.0), (0.0, 2.0)])
def test_banerjees_interval_adds_both_variances_with_their_own_quantiles(
    share: float, degrees: float
) -> None:
    reach = BanerjeeReach(items=0.04 * (1 - share), runs=0.04 * share, degrees=degrees)
    for level in (0.05, 0.004):
        z = stats.norm.isf(level / 2)
        t = stats.t.isf(level / 2, degrees)
        expected = 0.2 * math.sqrt(z**2 * (1 - share) + t**2 * share)
        assert reach.below(level) == reach.above(level) == pytest.approx(expected)


def test_a_difference_of_runs_has_banerjees_interval() -> None:
    table = ScoreTable.complete(ITEMS, {"a": runs(3, 21), "b": runs(3, 22)})
    parts = split_variance(table, "a", "b")
    found = contrast_at(table, "a", "b", Level(looks=2, tests=3))
    alpha = 0.05 / 6 / 3
    assert found.level.confidence == pytest.approx(1 - alpha)
    assert found.degrees == 4
    assert found.run_share == pytest.approx(parts.run_means / parts.total)
    z = stats.norm.isf(alpha / 2)
    t = stats.t.isf(alpha / 2, 4)
    width = math.sqrt(z**2 * (parts.total - parts.run_means) + t**2 * parts.run_means)
    assert found.high - found.difference >= width - 1e-12
    assert "4.0 degrees" in found.test
    assert found.step == 0


# What is made of several comparisons


def comparison(
    difference: float, low: float, high: float, p_value: float = 0.04, level: Level = FIRST_LOOK
) -> Comparison:
    """a minus b between its limits; other fields are of no matter here."""
    return Comparison(
        a="a", b="b", estimate=Estimate(difference, low, high), level=level, p_alone=p_value, test="t",
        n=9, groups=8, discordant=0.5, step=0.1, degrees=5.0, run_share=0.5,
    )  # fmt: skip


def test_what_holds_for_all_corners_reaches_from_the_lowest_to_the_highest_limit() -> None:
    first = comparison(0.1, 0.02, 0.2, 0.03)
    second = comparison(0.05, 0.01, 0.3, 0.04)
    both = bounded([first, second])
    assert both == replace(first, estimate=Estimate(0.1, 0.01, 0.3), p_alone=0.04)
    assert bounded([first, comparison(-0.1, -0.2, 0.0, 0.01)]).p_alone == 1.0
    assert bounded([first, comparison(0.0, -0.2, 0.1, 0.9)]).p_alone == 1.0
    assert bounded([second, first]).difference == 0.05


def test_better_than_every_needs_every_difference_above_0() -> None:
    good = comparison(0.1, 0.02, 0.2, 0.03)
    assert better_than_every([good, comparison(0.2, 0.1, 0.3, 0.001)]) == 0.03
    for nothing in (0.0, -0.1, 1e-13):
        assert better_than_every([good, comparison(nothing, -0.1, 0.1, 0.001)]) == 1.0


def test_a_comparison_among_several_has_the_familys_level() -> None:
    """Its p-value is multiplied by the tests, and by k (k + 1) at look k; its row has the level of all tests."""
    found = comparison(0.1, 0.02, 0.2, 0.004, Level(looks=2, tests=5))
    assert found.level.confidence == pytest.approx(1 - 0.05 / 30)
    assert (found.p_alone, found.p_family, found.p_look) == pytest.approx((0.004, 0.02, 0.12))
    capped = comparison(0.1, 0.02, 0.2, 0.4, Level(looks=1, tests=5))
    assert (capped.p_family, capped.p_look) == (1.0, 1.0)
    row = RowDifference.of(found, POINTS)
    assert (row.difference, row.low, row.high) == pytest.approx((0.1, 0.02, 0.2))
    assert (row.level, row.p_value, row.p_look) == pytest.approx((1 - 0.05 / 6, 0.02, 0.12))
    assert (row.n, row.groups, row.discordant) == (9, 8, 0.5)


def test_what_a_report_lacks_of_a_comparison_serves_power() -> None:
    """A new field is shown in the rows, or named here."""
    names = {field.name for field in fields(Comparison)} - {
        field.name for field in fields(RowDifference)
    }
    assert names == {"estimate", "p_alone", "step", "degrees", "run_share"}


def test_a_model_is_no_different_from_itself() -> None:
    found = same_model(ITEMS, "a", "b", Level(looks=2, tests=1))
    assert (found.difference, found.low, found.high, found.p_alone) == (0, 0, 0, 1)
    assert (found.level, found.n, found.groups, found.discordant) == (
        Level(looks=2, tests=1),
        50,
        50,
        0,
    )


def test_an_objective_that_bends_is_tested_in_every_category() -> None:
    rng = np.random.default_rng(6)
    a = (rng.random(50) < 0.8).astype(float)
    b = (rng.random(50) < 0.4).astype(float)
    bent = replace(ITEMS, value=lambda means: means.min(axis=-1))
    table = ScoreTable.complete(bent, {"a": a, "b": b})
    found = contrast(table, "a", "b")
    alone = [contrast(table.alone(c), "a", "b") for c in range(2)]
    worst = [min(row[:30].mean(), row[30:].mean()) for row in (a, b)]
    assert found.difference == pytest.approx(worst[0] - worst[1])
    assert (found.low, found.high) == (min(c.low for c in alone), max(c.high for c in alone))
    assert found.p_alone == max(c.p_alone for c in alone)
    assert found.test == EVERY


@pytest.mark.parametrize(
    ("low", "high", "least"),
    [(0.02, 0.3, 0.08), (-0.05, 0.3, 0.2), (-0.2, 0.12, 0.3), (-0.3, -0.05, 0.2), (0.0, 0.1, 0.1)],
)
def test_the_least_difference_of_a_category_is_the_distance_of_the_limit_that_shows_it(
    low: float, high: float, least: float
) -> None:
    difference = -0.25 if high < 0 else 0.1
    assert comparison(difference, low, high).least == pytest.approx(least)


# Several differences under the same signs


def test_t_is_the_sum_over_its_standard_error_in_every_pattern() -> None:
    rng = np.random.default_rng(7)
    pulls = 5 * rng.normal(size=(12, 3))
    stratum = np.repeat([0, 1], [7, 5])
    sizes = np.array([[7.0] * 3, [5.0] * 3])
    flips = JointFlips.of(pulls, stratum, sizes, draws=40)
    for difference, column in (((0, None), pulls[:, 0]), ((1, 2), pulls[:, 1] - pulls[:, 2])):
        t, error = flips.t_and_error(difference)
        variance = sum(len(part) * part.var(ddof=1) for part in (column[:7], column[7:]))
        assert error == pytest.approx(math.sqrt(variance))
        assert t[0] == pytest.approx(column.sum() / math.sqrt(variance))
        assert len(t) == 41
        assert flips.t(difference) == pytest.approx(t)
    largest = flips.largest([(0, None), (1, 2)])
    expected = np.maximum(np.abs(flips.t((0, None))), np.abs(flips.t((1, 2))))
    assert largest == pytest.approx(expected)
    assert flips.t((0, 0)).tolist() == [0.0] * 41


def test_limits_at_once_are_those_of_the_largest_or_of_bonferroni() -> None:
    """Of 99 patterns and the one seen, 5 reach the size that 4 of the drawn ones do."""
    largest = np.linspace(4, 2, 99)
    own = np.linspace(3, 0, 99)
    reach = MaxTReach(error=0.5, largest=largest, statistics=own, tests=2)
    assert reach.below(0.05) == reach.above(0.05) == pytest.approx(0.5 * min(largest[3], own[1]))
    assert reach.below(0.5) == pytest.approx(0.5 * min(largest[48], own[23]))
    assert reach.below(0.01) == math.inf


@pytest.mark.parametrize("critical", [1.5, 2.3, 2.8, 5.0])
def test_a_critical_value_is_that_of_a_number_of_independent_tests(critical: float) -> None:
    tests = 0.05 / (2 * stats.norm.sf(critical))
    assert equivalent_tests(critical, 0.05, 7) == pytest.approx(min(7.0, max(1.0, tests)))


def test_an_item_that_a_picked_model_did_not_answer_counts_as_the_mean_of_the_others() -> None:
    rng = np.random.default_rng(9)
    scores = (rng.random((3, 60)) < 0.5).astype(float)
    items = one_category(np.arange(60))
    pairs = [(0, 1), (0, 2), (1, 2)]
    missing = scores.copy()
    missing[2, ::4] = np.nan
    filled = scores.copy()
    filled[2, ::4] = filled[:2, ::4].mean(axis=0)
    found = picked_tests(missing, pairs, items, alpha=0.05)
    assert found == pytest.approx(picked_tests(filled, pairs, items, alpha=0.05), rel=0.02)
    assert 1 < found < 3
    assert picked_tests(scores, pairs[:1], items, alpha=0.05) == 1.0
    assert 1 < picked_tests(scores, pairs[:2], items, alpha=0.05) <= 2
    models = [items.grouped(row - scores.mean(axis=0)) for row in scores]
    flips = JointFlips.of_models(models, 10_006)
    assert picked_tests(scores, pairs, items, alpha=0.05) == pytest.approx(flips.tests(pairs, 0.05))


def test_categories_are_one_family_of_all_pairs() -> None:
    rng = np.random.default_rng(10)
    scores = {
        name: (rng.random(50) < rate).astype(float)
        for name, rate in zip("abc", (0.9, 0.5, 0.4), strict=True)
    }
    table = ScoreTable.complete(ITEMS, scores)
    pairs = [(table, "a", "b"), (table, "a", "c")]
    found = compare_in_categories(pairs, FIRST_LOOK)
    assert [(category, difference.b) for category, difference in found] == [
        ("x", "b"), ("y", "b"), ("x", "c"), ("y", "c"),
    ]  # fmt: skip
    for category, difference in found:
        part = ITEMS.categories == ITEMS.names.index(category)
        deltas = scores["a"][part] - scores[difference.b][part]
        assert difference.difference == pytest.approx(deltas.mean())
        assert difference.level == FIRST_LOOK
        alone = contrast(table.alone(ITEMS.names.index(category)), "a", difference.b)
        assert difference.p_alone >= alone.p_alone * 0.9
        assert difference.low <= alone.low + 0.02
