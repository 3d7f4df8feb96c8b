"""What limits take in beyond the test that they invert: Jeffreys' limit, against scipy's beta distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from souping.core.types import FloatArray
from souping.statistics.comparison import (
    Comparison,
    contrast,
    paired_intervals,
    runs_differ,
    split_variance,
)
from souping.statistics.corrections import Level
from souping.statistics.nested import NestedIntervals
from souping.statistics.score_table import ItemTable, Paired, ScoreTable, one_category
from tests.comparison.worlds import metric, pooled
from tests.conftest import ROOT
from tests.support.scripts import script


def difference(a: FloatArray, b: FloatArray | float, level: Level | None = None) -> Comparison:
    """Of two models on items of one category."""
    items = one_category(np.arange(len(a)))
    scores = ScoreTable.complete(items, {"a": a, "b": np.broadcast_to(b, len(a))})
    return contrast(scores, "a", "b", level or Level(), draws=999, tested=False)


@pytest.mark.parametrize("tests", [1, 6])
def test_of_right_or_wrong_answers_none_of_which_differ_the_limit_is_exact(tests: int) -> None:
    shown = difference(np.ones(200), 1.0, Level(tests=tests))
    limit = 1 - (0.025 / tests) ** (1 / 200)
    assert (shown.low, shown.high) == pytest.approx((-limit, limit))


def test_of_right_or_wrong_answers_few_of_which_differ_the_limit_is_jeffreys() -> None:
    """One of 200 is lost: the flips reach less far."""
    a = np.ones(200)
    a[0] = 0.0
    shown = difference(a, 1.0)
    assert shown.low == pytest.approx(-stats.beta.ppf(0.975, 1.5, 199.5))


def test_of_right_or_wrong_answers_many_of_which_differ_the_limit_is_that_of_the_flips() -> None:
    a = (np.arange(300) < 200).astype(float)
    b = ((np.arange(300) >= 20) & (np.arange(300) < 215)).astype(float)
    items = one_category(np.arange(300))
    paired = ScoreTable.complete(items, {"a": a, "b": b}).paired("a", "b")
    intervals = paired_intervals(paired.grouped, bound=1.0, graded=False)
    (flips,) = intervals.reaches
    # a is right on 200 items and b on 195.
    expected = (1 / 60 - flips.below(0.05), 1 / 60 + flips.above(0.05))
    assert intervals.limits(0.05) == pytest.approx(expected)


def test_of_several_categories_that_counts_which_may_move_the_mean_farthest() -> None:
    """Categories of 20 and 80 items of equal weight, none of which differ: each could move the mean by a half."""
    categories = np.repeat([0, 1], [20, 80])
    items = ItemTable(
        names=("x", "y"),
        categories=categories,
        groups=np.arange(100),
        coefficients=np.array([0.5, 0.5]),
    )
    scores = ScoreTable.complete(items, {"a": np.ones(100), "b": np.ones(100)})
    assert contrast(scores, "a", "b").high == pytest.approx((1 - 0.025 ** (1 / 20)) / 2)


def test_a_group_that_loses_in_part_counts_with_what_it_lost() -> None:
    """One of 30 groups of two items loses one of them: half a group's weight times Jeffreys' rate."""
    a = np.ones(60)
    a[0] = 0.0
    items = one_category(np.repeat(np.arange(30), 2))
    scores = ScoreTable.complete(items, {"a": a, "b": np.ones(60)})
    shown = contrast(scores, "a", "b")
    assert shown.low == pytest.approx(-stats.beta.ppf(0.975, 1.5, 29.5) / 2)


def test_of_graded_scores_jeffreys_limit_is_added_where_a_normal_one_falls_short() -> None:
    """One of 70 answers loses .9, and half of the others gain .1: such losses may be more frequent."""
    a = 0.9 + 0.1 * (np.arange(70, dtype=float) % 2)
    a[0] = 0.0
    paired, reach = graded_pair(a, 0.9)
    normal = 1 / 70 + stats.norm.ppf(0.975) * np.sqrt(1 / 70 * 69 / 70 / 70)
    margin = 0.9 * (stats.beta.ppf(0.975, 1.5, 69.5) - normal)
    low, _ = paired_intervals(paired.grouped, bound=1.0, graded=True).limits(0.05)
    assert low == pytest.approx(paired.grouped.objective - reach - margin)


def test_the_limit_of_graded_scores_is_never_nearer_than_the_exact_one() -> None:
    """Right or wrong against a constant: the difference is one less the constant and the rate of wrong answers, whose
    limit is that of Clopper and Pearson."""
    for wrong in range(1, 6):
        a = (np.arange(80) >= wrong).astype(float)
        paired, _ = graded_pair(a, 0.95)
        exact = 0.05 - stats.beta.ppf(0.975, wrong + 1, 80 - wrong)
        low, _ = paired_intervals(paired.grouped, bound=1.0, graded=True).limits(0.05)
        assert low <= exact + 1e-9
        if wrong == 1:
            assert low == pytest.approx(exact)


def graded_pair(a: FloatArray, b: float) -> tuple[Paired, float]:
    """Scores of one category minus a constant, and the farther of the reaches below at 95 %."""
    items = one_category(np.arange(len(a)))
    paired = ScoreTable.complete(items, {"a": a, "b": np.full(len(a), b)}).paired("a", "b")
    assert paired.graded
    intervals = paired_intervals(paired.grouped, bound=1.0, graded=True)
    return paired, max(part.below(0.05) for part in intervals.reaches)


def test_of_several_tests_under_one_reach_each_has_its_part_of_the_level() -> None:
    a = np.ones(200)
    a[0] = 0.0
    items = one_category(np.arange(200))
    paired = ScoreTable.complete(items, {"a": a, "b": np.ones(200)}).paired("a", "b")
    one = NestedIntervals.of(paired.grouped, reaches=[], bound=1.0, graded=False)
    six = NestedIntervals.of(paired.grouped, reaches=[], bound=1.0, graded=False, tests=6)
    assert six.limits(0.05) == pytest.approx(one.limits(0.05 / 6))
    assert six.limits(0.05)[0] == pytest.approx(-stats.beta.ppf(1 - 0.025 / 6, 1.5, 199.5))


nulls = script(ROOT / "benchmarks" / "nulls.py")


@pytest.mark.parametrize(("n", "score"), nulls.CONSTANTS)
def test_right_and_wrong_answers_seldom_look_better_than_constant_scores(
    n: int, score: float
) -> None:
    """The exact chance, by the binomial distribution."""
    assert nulls.constant_score(n, score) <= nulls.CONSTANT_LEVEL


def test_bootstrap_t_is_for_graded_items_not_for_groups_of_unequal_size() -> None:
    rng = np.random.default_rng(0)
    items = one_category(np.repeat(np.arange(30), 1 + np.arange(30) % 3))
    right = rng.random((2, len(items.groups))) < 0.6
    for names, tests in (("ab", 1), ("ac", 2)):
        scores = ScoreTable.complete(items, {"a": right[0], "b": right[1], "c": 0.6 * right[1]})
        shown = contrast(scores, *names, tested=False)
        assert len(shown.test.split(" and ")) == tests, shown.test


def test_the_variance_of_runs_is_one_for_all_models() -> None:
    """Three models whose runs shift all items alike: the pooled variance of an analysis of variance."""
    rng = np.random.default_rng(1)
    means = {"a": rng.random(3), "b": rng.random(4), "c": rng.random(2)}
    scores = {name: np.repeat(m, 40).reshape(-1, 1, 40) for name, m in means.items()}
    table = pooled(metric("t", scores, is_mean=False))
    shown = contrast(table, "a", "b")
    squares = sum(((m - m.mean()) ** 2).sum() for m in means.values())
    assert shown.degrees == 6
    reach = stats.t.ppf(0.975, 6) * np.sqrt(squares / 6 * (1 / 3 + 1 / 4))
    exact = 1 - 0.025 ** (1 / 40)
    widths = sorted([shown.high - shown.difference, shown.difference - shown.low])
    # Nothing falls where all items rise; scores within 0 and 1 cannot differ by more.
    assert widths == pytest.approx(sorted([min(reach, widths[0]), min(reach + exact, widths[1])]))


def test_equal_runs_of_one_model_do_not_hide_the_variance_of_another_models() -> None:
    """The first model's runs agree: the variance is that of the second's alone, and half the shares."""
    means = np.array([0.1, 0.3, 0.6])
    scores = {"a": np.full((3, 1, 40), 0.4), "b": np.repeat(means, 40).reshape(3, 1, 40)}
    parts = split_variance(pooled(metric("t", scores, is_mean=False)), "b", "a")
    assert parts.degrees == 2
    assert parts.run_means == pytest.approx(means.var(ddof=1) / 3)


def test_runs_that_vary_unequally_beyond_chance_are_named() -> None:
    steps = np.array([-1.0, 0.0, 1.0, 0.5])

    def table(spread: float, first_spread: float = 0.02) -> ScoreTable:
        """Four runs of each model, whose 30 items all rise and fall with the run."""
        scores = {"a": 0.5 + first_spread * steps, "b": 0.6 + spread * steps}
        every = np.zeros((4, 1, 30))
        return pooled(
            metric("t", {name: runs[:, None, None] + every for name, runs in scores.items()})
        )

    # Runs of both models are equal, but for rounding.
    assert not runs_differ(table(0.0, first_spread=1e-12))
    for spread in (0.02, 0.05, 0.2, 0.4):
        expected = stats.bartlett(0.02 * steps, spread * steps).pvalue < 0.05
        assert runs_differ(table(spread)) == expected
    assert runs_differ(table(0.0))
