"""Weights, paired tests and their closed forms."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from souping.comparison.pooled import task_weights
from souping.comparison.several import best_models, flips_of, joint_tests
from souping.core.types import UserError
from souping.logs.match import MatchedMetric
from souping.logs.records import Group
from souping.statistics.comparison import Comparison, contrast, contrast_at, split_variance
from souping.statistics.corrections import Level
from souping.statistics.joint import JointFlips
from souping.statistics.power import detectable
from souping.statistics.score_table import Answers, ScoreTable, one_category
from tests.comparison.worlds import matched, metric, pooled
from tests.conftest import ROOT
from tests.support.flips import sign_flip
from tests.support.scripts import script

GROUPS = (
    Group(name="inner", members=("b", "c"), weight_by_size=False),
    Group(name="outer", members=("a", "b", "c"), weight_by_size=True),
)


def sizes(**items: int) -> list[MatchedMetric]:
    return [metric(name, {"x": np.ones(n), "y": np.zeros(n)}) for name, n in items.items()]


@pytest.mark.parametrize(
    ("average", "requested", "weights"),
    [
        # one group and one task; all leaves of a group by size
        ("task", ["outer", "d"], [0.1, 0.2, 0.2, 0.5]),
        ("task", ["inner", "a", "d"], [1 / 3, 1 / 6, 1 / 6, 1 / 3]),  # a plain mean inside
        ("leaf", ["outer", "d"], [0.25, 0.25, 0.25, 0.25]),
        ("item", ["outer", "d"], [0.1, 0.2, 0.2, 0.5]),
    ],
)
def test_a_group_counts_once_and_is_averaged_as_its_harness_does(
    average: str, requested: list[str], weights: list[float]
) -> None:
    table = matched(*sizes(a=10, b=20, c=20, d=50), groups=GROUPS, requested=requested)
    assert list(task_weights(table, average).values()) == pytest.approx(weights)


def test_weights_of_a_file_are_shares_and_name_what_is_there() -> None:
    table = matched(*sizes(a=10, b=20, c=20, d=50), groups=GROUPS)
    assert task_weights(table, "file", {"inner": 1, "d": 3}) == pytest.approx(
        {"b": 1 / 8, "c": 1 / 8, "d": 3 / 4}
    )
    for wrong in ({"e": 1.0}, {"a": 0.0}):
        with pytest.raises(UserError, match="weight"):
            task_weights(table, "file", wrong)


def test_metrics_that_are_no_means_are_never_averaged() -> None:
    perplexity = metric("p", {"x": [12.0, 20.0], "y": [13.0, 19.0]}, is_mean=False)
    assert task_weights(matched(*sizes(a=10), perplexity), "task") == {"a": 1.0}
    assert task_weights(matched(perplexity), "task") == {"p": 1.0}
    with pytest.raises(UserError, match="average"):
        task_weights(matched(perplexity, replace(perplexity, task="q")), "task")


def test_the_p_value_of_the_flips_is_that_of_scipys_permutation_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(11)
    b = rng.random(11) + 0.2
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    scores = pooled(metric("t", {"a": a, "b": b}))
    assert sign_flip(scores.difference("a", "b")) == pytest.approx(expected.pvalue)
    assert contrast(scores, "a", "b").p_alone >= expected.pvalue


def test_right_or_wrong_items_give_mcnemars_exact_p_value() -> None:
    a = np.repeat([1, 0, 1, 0], [9, 3, 40, 20])
    b = np.repeat([0, 1, 1, 0], [9, 3, 40, 20])
    scores = pooled(metric("t", {"a": a, "b": b}))
    # Of the 12 items on which they differ, a is right on 9.
    exact = stats.binomtest(9, 12).pvalue
    assert sign_flip(scores.difference("a", "b")) == pytest.approx(exact)
    found = contrast(scores, "a", "b")
    assert exact * (1 - 1e-9) <= found.p_alone < 1.1 * exact  # the margins for what was not seen
    assert (found.low > 0) == (found.p_alone < 0.05)


def test_a_group_is_one_unit_and_copies_of_items_add_nothing() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(20)
    b = rng.random(20)
    alone = contrast(pooled(metric("t", {"a": a, "b": b})), "a", "b")
    copies = metric(
        "t",
        {"a": np.repeat(a, 5), "b": np.repeat(b, 5)},
        groups=np.repeat(np.arange(20), 5).tolist(),
    )
    together = contrast(pooled(copies), "a", "b")
    assert together.p_alone == pytest.approx(alone.p_alone)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    # ignoring groups is too narrow
    assert contrast(pooled(metric("t", copies.scores)), "a", "b").high < together.high


def test_items_of_one_name_in_two_tasks_are_different_items() -> None:
    one = {"a": [1.0, 0.0], "b": [0.0, 0.0]}
    assert contrast(pooled(metric("t", one), metric("u", one)), "a", "b").groups == 4


@pytest.mark.parametrize("is_mean", [True, False])
def test_a_metric_of_which_less_is_better_is_turned(is_mean: bool) -> None:
    a, b = np.random.default_rng(2).random((2, 30))
    plain = contrast(pooled(metric("t", {"a": a, "b": b}, is_mean=is_mean)), "a", "b")
    less = contrast(
        pooled(metric("t", {"a": a, "b": b}, is_mean=is_mean, higher_is_better=False)), "a", "b"
    )
    assert less.difference == pytest.approx(-plain.difference)
    assert less.p_alone == pytest.approx(plain.p_alone)


def test_pass_at_k_is_the_mean_over_all_choices_of_k_answers() -> None:
    answers = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]]).T  # [P, I]
    found = pooled(metric("t", {"a": answers, "b": answers}), pass_at=2).counted("a")[0]
    brute = []
    for item in answers.T:
        brute.append(np.mean([max(pair) for pair in combinations(item, 2)]))
    assert found == pytest.approx(brute)
    with pytest.raises(UserError, match="pass@6"):
        pooled(metric("t", {"a": answers, "b": answers}), pass_at=6)
    with pytest.raises(UserError, match="neither 0 nor 1"):
        pooled(metric("t", {"a": answers / 2, "b": answers}), pass_at=2)


def test_runs_that_shift_all_items_alike_give_students_test() -> None:
    a = np.array([0.5, 0.54, 0.61])
    b = np.array([0.4, 0.47, 0.43, 0.5])
    scores = {"a": np.repeat(a, 50).reshape(3, 1, 50), "b": np.repeat(b, 50).reshape(4, 1, 50)}
    found = contrast(pooled(metric("t", scores)), "a", "b")
    interval = stats.ttest_ind(a, b).confidence_interval()
    # All 50 items rise, so it is not known how many might fall; that some rise less is seen.
    assert found.low == pytest.approx(interval.low - (1 - 0.025 ** (1 / 50)))
    assert found.high == pytest.approx(interval.high)


def test_variance_of_recipes_is_that_of_items_plus_that_of_runs() -> None:
    """Two-way clustered: the part that both count is taken off once, and the sum is never less than the larger part."""
    rng = np.random.default_rng(3)
    items = rng.normal(0, 1, 4000)
    shift = rng.normal(0, 0.3, (400, 1, 1))
    noise = rng.normal(0, 1, (400, 1, 4000))
    found = pooled(
        metric(
            "t",
            {"a": (items + shift + noise)[:200], "b": (items + shift + noise)[200:]},
            is_mean=False,
        )
    )
    parts = split_variance(found, "a", "b")
    assert parts.runs == pytest.approx(2 * 0.3**2 / 200, rel=0.25)
    assert parts.runs is not None
    assert parts.total == pytest.approx(parts.items + parts.runs, rel=1e-6)
    few = pooled(metric("t", {"a": (items + noise)[:2], "b": (items + noise)[2:4]}, is_mean=False))
    assert split_variance(few, "a", "b").total >= split_variance(few, "a", "b").items


def test_answers_are_told_apart_from_items_where_items_have_several() -> None:
    rng = np.random.default_rng(4)
    chance = rng.random((2, 2000))
    whole = pooled(
        metric(
            "t",
            {
                n: (rng.random((5, 2000)) < c).astype(float)
                for n, c in zip("ab", chance, strict=True)
            },
        )
    )
    parts = split_variance(whole, "a", "b")
    assert parts.total == pytest.approx(parts.items + (parts.answers or 0))
    assert parts.answers == pytest.approx(2 * (chance * (1 - chance)).mean() / 5 / 2000, rel=0.1)
    single = pooled(metric("t", {"a": chance[0], "b": chance[1]}))
    assert split_variance(single, "a", "b").answers is None


def test_tests_widen_the_interval() -> None:
    a, b = np.random.default_rng(5).random((2, 60))
    whole = pooled(metric("t", {"a": a, "b": b}))
    widths = [contrast(whole, "a", "b", Level(tests=k)).high for k in (1, 6, 12)]
    assert sorted(widths) == widths
    assert contrast(whole, "a", "b", Level(tests=12)).level.confidence == pytest.approx(
        1 - 0.05 / 12
    )


def test_the_detectable_difference_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(6)
    # More items would have fewer draws.
    a, b = rng.random((2, 1200))
    error = np.std(a - b, ddof=1) / np.sqrt(1200)
    found = detectable(contrast(pooled(metric("t", {"a": a, "b": b}, is_mean=False)), "a", "b"))
    assert found == pytest.approx((1.96 + 0.8416) * error, rel=0.05)


@pytest.mark.slow
def test_a_difference_of_few_runs_has_the_power_that_is_stated() -> None:
    """Stated by one comparison, shown by the next: on average over what the first makes of its own error.

    Scores are near 10, where no limit of 0 or 1 cuts an interval.
    """
    rng = np.random.default_rng(12)

    def runs(gain: float) -> Comparison:
        shift = rng.normal([[10.0 + gain], [10.0]], 1.0, (2, 3))[:, :, None, None]
        scores = dict(zip("ab", shift + np.zeros((2, 3, 1, 20)), strict=True))
        return contrast(pooled(metric("t", scores, is_mean=False)), "a", "b")

    shown = [runs(detectable(runs(0.0))).low > 0 for _ in range(200)]
    assert 0.74 <= np.mean(shown) <= 0.9


@pytest.mark.parametrize(("lost", "side"), [("a", 1), ("b", -1)])
def test_missing_answers_bound_interval_and_p_value_at_opposing_corners(
    lost: str, side: int
) -> None:
    """A lead is not shown that the missing answers, counted as wrong, would make; that which they cannot is."""
    rng = np.random.default_rng(13)
    right = {name: (rng.random(300) < 0.7).astype(float) for name in "ab"}
    gone = rng.random(300) < 0.2
    counted = {**right, lost: np.where(gone, 0.0, right[lost])}
    scores = pooled(metric("t", counted, missing={lost: gone}))
    found = contrast(scores, "a", "b")
    assert found.difference * side < 0
    assert found.p_alone > 0.05
    assert found.low < 0 < found.high
    plain = contrast_at(scores.scored, "a", "b", tested=False)
    assert not plain.low <= 0 <= plain.high
    assert min(plain.low * side, plain.high * side) >= min(found.low * side, found.high * side)


@pytest.mark.parametrize("items", [9, 60, 900], ids=["every pattern", "few", "many"])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("tests", [1, 7])
def test_limits_are_the_same_without_a_p_value(items: int, graded: bool, tests: int) -> None:
    """Only the farthest sign patterns are followed then, of several strata and of one."""
    rng = np.random.default_rng(items)
    tables = []
    for task, rate in (("t", 0.6), ("u", 0.8)):
        scores = {name: rng.random(items) for name in "ab"}
        if not graded:
            scores = {name: (values < rate).astype(float) for name, values in scores.items()}
        tables.append(metric(task, scores))
    for table in (pooled(*tables), pooled(tables[0])):
        with_p = contrast(table, "a", "b", Level(tests=tests))
        without = contrast(table, "a", "b", Level(tests=tests), tested=False)
        assert np.isnan(without.p_alone)
        assert replace(without, p_alone=with_p.p_alone) == with_p


def test_missing_answers_leave_a_model_among_the_best() -> None:
    rng = np.random.default_rng(14)
    right = {name: (rng.random(300) < 0.7).astype(float) for name in "abc"}
    gone = np.arange(300) < 60
    right["c"][gone] = 0.0
    names = ("a", "b", "c")

    def best(scores: ScoreTable) -> tuple[str, ...]:
        return best_models(
            scores, names, alpha=0.05, flips=flips_of(scores.scored, names, alpha=0.05)
        )

    assert "c" not in best(pooled(metric("t", right)))
    assert "c" in best(pooled(metric("t", right, missing={"c": gone})))


def test_complete_models_share_one_set_of_flips_where_others_have_gaps() -> None:
    """Each of them favoured by itself gives the same set."""
    rng = np.random.default_rng(15)
    right = {
        name: (rng.random(200) < rate).astype(float)
        for name, rate in zip("abcd", (0.6, 0.7, 0.75, 0.7), strict=True)
    }
    gone = np.arange(200) < 20
    right["d"][gone] = 0.0
    scores = pooled(metric("t", right, missing={"d": gone}))
    names = tuple("abcd")
    each = []
    for number, name in enumerate(names):
        if flips_of(scores.favouring(name), names, alpha=0.05).may_be_best(number, alpha=0.05):
            each.append(name)
    assert best_models(
        scores, names, alpha=0.05, flips=flips_of(scores.scored, names, alpha=0.05)
    ) == tuple(each)


def test_of_a_third_model_runs_count_as_they_were_counted_whatever_the_first_might_have_answered() -> (
    None
):
    """a and b have one run each, so the variance between runs is that of c, at every corner of a's missing answers."""
    rng = np.random.default_rng(16)
    gone = np.arange(120) < 12
    runs = (rng.random((3, 1, 120)) < 0.6).astype(float)
    lost = rng.random((3, 1, 120)) < np.array([0.0, 0.1, 0.3])[:, None, None]
    runs[lost] = 0.0
    right_a = (rng.random(120) < 0.6) & ~gone
    right_b = rng.random(120) < 0.6
    right = {"a": right_a, "b": right_b, "c": runs}
    scores = pooled(metric("t", right, missing={"a": gone, "c": lost}))
    between = runs.mean(axis=(1, 2)).var(ddof=1)
    corners = scores.corners("a", "b")
    assert len(corners) == 3
    for corner in corners:
        assert split_variance(corner, "a", "b").run_means == pytest.approx(2 * between)


def test_answers_never_vary_more_than_the_difference_that_they_are_part_of() -> None:
    """Models that differ by as much on every item, with answers that might have differed more."""
    items = one_category(np.arange(50))
    answers = {
        name: Answers.of(np.full(50, score), noise=0.2) for name, score in (("a", 0.5), ("b", 0.25))
    }
    parts = split_variance(ScoreTable(items=items, answers=answers), "a", "b")
    assert (parts.total, parts.items, parts.answers) == (0, 0, 0)


# Several models


def family(rng: np.random.Generator, **rates: float) -> JointFlips:
    hard = rng.random(400)
    scores = {
        name: (0.5 * hard + 0.5 * rng.random(400) < rate).astype(float)
        for name, rate in rates.items()
    }
    return flips_of(pooled(metric("t", scores)), tuple(rates), alpha=1999)


def steps(flips: JointFlips) -> list[float]:
    """The number of tests of each model but the first."""
    models = flips.pulls.shape[1]
    return flips.step_down([(model, 0) for model in range(1, models)], 0.05)


def test_one_model_needs_no_correction_and_equal_models_nearly_their_number() -> None:
    rng = np.random.default_rng(7)
    assert steps(family(rng, base=0.5, a=0.5)) == [pytest.approx(1.0, abs=0.15)]
    several = steps(family(rng, base=0.5, a=0.5, b=0.5, c=0.5))
    assert len(set(several)) == 1  # nothing is shown, so that all have the same correction
    assert 2 < several[0] <= 3


def test_a_model_that_is_shown_leaves_the_others_fewer_tests() -> None:
    tests = steps(family(np.random.default_rng(8), base=0.4, a=0.8, b=0.42, c=0.41))
    assert tests[0] > max(tests[1:])


def test_the_best_set_of_a_late_look_drops_what_is_clearly_worse() -> None:
    rng = np.random.default_rng(9)
    rates = {"a": 0.8, "b": 0.8, "c": 0.1}
    scores = pooled(metric("t", {name: 1.0 * (rng.random(300) < p) for name, p in rates.items()}))
    assert joint_tests(scores, tuple(rates), Level(looks=22))[1] == ("a", "b")


def test_the_best_set_drops_what_is_clearly_worse_and_keeps_copies() -> None:
    flips = family(np.random.default_rng(9), a=0.7, b=0.7, c=0.2)
    assert [flips.may_be_best(model, alpha=0.05) for model in range(3)] == [True, True, False]
    same = np.random.default_rng(10).random(50)
    flips = flips_of(pooled(metric("t", {"a": same, "b": same})), ("a", "b"), alpha=0.05)
    assert all(flips.may_be_best(model, alpha=0.05) for model in range(2))


# Several models with several runs


def test_equal_models_with_few_runs_are_all_among_the_best() -> None:
    """The five models of 40 draws each; sign flips without the runs' degrees of freedom left out about 40."""
    calibration = script(ROOT / "benchmarks" / "calibration.py")
    names = tuple("abcde")
    left_out = 0
    for runs in ((2,) * 5, (2, 1, 2, 1, 1)):
        for number in range(20):
            scores = calibration.runs_of_models(np.random.default_rng([3, *runs, number]), runs)
            tests, best = joint_tests(scores, names, Level())
            assert all(1 <= model_tests <= 4 for model_tests in tests)
            left_out += 5 - len(best)
    assert left_out <= 10


def test_of_models_with_runs_that_agree_the_worse_is_not_among_the_best() -> None:
    rng = np.random.default_rng(4)
    scores = {}
    for name, rate in (("a", 0.8), ("b", 0.8), ("c", 0.3)):
        scores[name] = (rng.random((3, 1, 400)) < rate).astype(float)
    tests, best = joint_tests(pooled(metric("t", scores)), ("a", "b", "c"), Level())
    assert best == ("a", "b")
    assert tests == [2, 2]


def test_models_with_one_run_vary_as_those_with_several() -> None:
    rng = np.random.default_rng(5)
    scores = {name: rng.random((runs, 1, 200)) for name, runs in (("a", 3), ("b", 1), ("c", 1))}
    scores["a"] += np.array([0.0, 0.3, 0.6])[:, None, None]
    scores = {name: values / 2 for name, values in scores.items()}
    with_runs = contrast(pooled(metric("t", scores)), "b", "c")
    alone = contrast(pooled(metric("t", {name: scores[name] for name in "bc"})), "b", "c")
    assert with_runs.degrees == pytest.approx(2)
    assert np.isinf(alone.degrees)
    # Runs 0.15 apart: the interval reaches about t sqrt(2) 0.15.
    assert with_runs.high - with_runs.low > 5 * (alone.high - alone.low)


# Calibration


@pytest.mark.slow
def test_the_worlds_of_the_calibration_are_nulls_that_a_wrong_test_fails() -> None:
    """60 draws of each, of which 6 may be called better or worse. Ignoring groups is caught."""
    calibration = script(ROOT / "benchmarks" / "calibration.py")
    for name in ("thirty items", "training runs", "two runs", "two runs against one", "bfcl logs"):
        row = calibration.pair_row(name, calibration.PAIRS[name], 60, {})
        assert float(row[2].split()[0]) + float(row[3].split()[0]) <= 10, row

    def ungrouped(rng: np.random.Generator) -> object:
        found = calibration.heavy_groups(rng)
        items = replace(found.items, groups=np.arange(len(found.items.groups)))
        return replace(found, items=items)

    wrong = calibration.pair_row("wrong", ungrouped, 60, {})
    assert float(wrong[2].split()[0]) + float(wrong[3].split()[0]) > 20, wrong
