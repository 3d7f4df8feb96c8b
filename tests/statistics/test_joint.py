"""Joint sign flips: one family for models, pairs and categories."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from souping.comparison.several import joint_tests
from souping.statistics import joint
from souping.statistics.comparison import contrast
from souping.statistics.corrections import FIRST_LOOK, Level
from souping.statistics.joint import (
    JointFlips,
    MaxTReach,
    compare_in_categories,
    critical_value,
    equivalent_tests,
)
from souping.statistics.nested import NestedIntervals
from souping.statistics.score_table import Answers, ItemTable, Paired, ScoreTable, one_category
from tests.comparison.worlds import metric, pooled


def test_a_copy_whose_scores_differ_by_rounding_is_a_copy() -> None:
    """Thirds written with 16 digits or with 17 are the same scores: none of the two is better."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 300) / 3
    nearly = np.where(a < 1, np.nextafter(a, 2), a)
    scores = pooled(metric("t", {"a": a, "b": nearly, "c": a / 2}))
    tests, best = joint_tests(scores, ("a", "b", "c"), FIRST_LOOK)
    assert best == ("a", "b")
    assert tests[1] < 1.1  # c is shown to differ, and b is the only one left


def test_of_copies_that_differ_by_rounding_alone_each_may_be_the_best() -> None:
    """2/3 with 16 digits in one log and with 15 in another."""
    right = np.arange(90) % 3 > 0
    scores = {
        "a": np.where(right, 0.6666666666666666, 0.0),
        "b": np.where(right, 0.666666666666667, 0.0),
        "c": np.where(right, 2 / 3, 0.0),
    }
    table = pooled(metric("t", scores))
    _, best = joint_tests(table, ("a", "b", "c"), FIRST_LOOK)
    assert best == ("a", "b", "c")
    comparison = contrast(table, "b", "a")
    assert (comparison.difference, comparison.p_alone, comparison.discordant) == (0, 1, 0)


@pytest.mark.parametrize(
    ("alpha", "rank"), [(0.05, 1), (0.075, 2), (0.1, 3), (0.101, 4), (0.02, 1)]
)
def test_the_critical_value_is_reached_with_its_chance_by_the_patterns_and_the_one_seen(
    alpha: float, rank: int
) -> None:
    """Of 39 patterns and the one seen, 40 alpha may reach it, the one seen among them; Bonferroni's is the most."""
    largest = np.linspace(0.0, 1.0, 39)
    assert critical_value(largest, alpha, 5) == np.sort(largest)[-rank]
    assert critical_value(9 + largest, alpha, 5) == pytest.approx(-stats.norm.ppf(alpha / 10))


def test_a_number_of_independent_tests_has_its_critical_value() -> None:
    for tests in (1.0, 2.5, 7.0):
        critical = -stats.norm.ppf(0.05 / 2 / tests)
        assert equivalent_tests(critical, 0.05, 7) == pytest.approx(tests)
    assert equivalent_tests(6.0, 0.05, 7) == 7
    assert equivalent_tests(0.5, 0.05, 7) == 1


def test_a_model_may_be_the_best_at_every_level_below_its_p_value() -> None:
    """p = (1 + patterns in which another model is as far above it) / (1 + patterns)."""
    rng = np.random.default_rng(2)
    items = one_category(np.arange(60))
    models = [items.grouped((rng.random(60) < rate).astype(float)) for rate in (0.5, 0.6, 0.55)]
    flips = JointFlips.of_models(models, draws=39)
    largest = np.maximum(flips.t((1, 0)), flips.t((2, 0)))
    p_value = (1 + np.sum(largest[1:] >= largest[0] - 1e-9)) / 40
    assert 0.02 < p_value < 0.9
    assert flips.may_be_best(0, p_value - 1e-6)
    assert not flips.may_be_best(0, p_value + 1e-6)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((3, 200))
    items = one_category(np.arange(200) // 2)
    flips = []
    for scale in (1.0, 1e-6, 1e6):
        models = [items.grouped(scale * model) for model in values]
        flips.append(JointFlips.of_models(models, draws=999))
    for other in flips[1:]:
        np.testing.assert_allclose(other.t((0, 1)), flips[0].t((0, 1)), rtol=1e-9)


@pytest.mark.parametrize("items", [20, 60])
def test_every_difference_above_the_least_that_a_category_can_show_is_shown(items: int) -> None:
    shown = []
    for seed in range(40):
        right = np.random.default_rng(seed).random((2, items)) < [[0.8], [0.55]]
        a, b = right.astype(float)
        scores = pooled(metric("t", {"a": a, "b": b}))
        ((_, found),) = compare_in_categories([(scores, "a", "b")], FIRST_LOOK)
        shown.append(found.low > 0 or found.high < 0)
        assert shown[-1] or abs(a.mean() - b.mean()) <= found.least
    assert 0 < sum(shown) < 40


def test_missing_answers_of_one_category_are_right_and_wrong_for_the_family() -> None:
    """Items of x without an answer, three of a and two of b; y is complete, and has its limits among those of x."""
    rng = np.random.default_rng(8)
    items = ItemTable(
        names=("x", "y"),
        categories=np.repeat([0, 1], [40, 30]),
        groups=np.arange(70),
        coefficients=np.array([0.5, 0.5]),
    )
    counted = {"a": rng.random(70) < 0.8, "b": rng.random(70) < 0.5}
    missing = {"a": np.arange(70) < 3, "b": (np.arange(70) >= 5) & (np.arange(70) < 7)}
    wrong = {name: (right & ~missing[name]).astype(float) for name, right in counted.items()}
    right = {name: (right | missing[name]).astype(float) for name, right in counted.items()}
    answers = {name: Answers.of(wrong[name], missing[name].astype(float)) for name in "ab"}
    found = compare_in_categories([(ScoreTable.of(items, answers), "a", "b")], FIRST_LOOK)
    corners = []
    for a, b in ((wrong, wrong), (wrong, right), (right, wrong)):
        table = ScoreTable.complete(items, {"a": a["a"], "b": b["b"]})
        corners.append(dict(compare_in_categories([(table, "a", "b")], FIRST_LOOK)))
    assert [category for category, _ in found] == ["x", "y"]
    for category, comparison in found:
        alike = [corner[category] for corner in corners]
        assert comparison.difference == alike[0].difference
        assert comparison.low == min(corner.low for corner in alike)
        assert comparison.high == max(corner.high for corner in alike)
        assert comparison.p_alone == max(corner.p_alone for corner in alike)
    assert alike[0].difference == alike[1].difference


def test_simultaneous_limits_rest_on_every_drawn_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern that was seen is not among them."""
    reaches = list[MaxTReach]()

    def kept(pair: Paired, reach: MaxTReach) -> NestedIntervals:
        reaches.append(reach)
        return original(pair, reach)

    original = joint.intervals
    monkeypatch.setattr(joint, "intervals", kept)
    monkeypatch.setattr(joint, "draws_for", lambda alpha, draws: 1008)
    rng = np.random.default_rng(0)
    items = one_category(np.arange(40))
    models = {name: (rng.random(40) < 0.5).astype(float) for name in "abc"}
    table = ScoreTable.complete(items, models)
    joint.compare_jointly([(table, "a", "c"), (table, "b", "c")], Level(looks=1))
    for reach in reaches:
        assert len(reach.largest) == len(reach.statistics) == 1008
        assert (np.diff(reach.largest) <= 0).all()
        assert (reach.largest >= reach.statistics).all()
    assert [reach.tests for reach in reaches] == [2, 2]
