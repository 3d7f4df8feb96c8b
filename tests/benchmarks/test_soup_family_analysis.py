"""Inference, estimates and the report of the families: numbers against scipy, formulas and worked examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.soup_families import estimates, report, view
from benchmarks.soup_families.__main__ import main
from benchmarks.soup_families.choices import best, experts, means
from benchmarks.soup_families.correlating import consistency, low_share, permuted_share
from benchmarks.soup_families.design import factorial
from benchmarks.soup_families.estimates import greedy, percentile, router
from benchmarks.soup_families.inference import (
    above,
    effects,
    holm,
    rank_correlation,
    sample,
    within,
)
from benchmarks.soup_families.matrices import FOLDER, Matrix, load, path_of, save
from benchmarks.soup_families.merging import Subset
from benchmarks.soup_families.predicting import predictors, same_items
from benchmarks.soup_families.view import PLACES, View, failure
from tests.conftest import ROOT
from tests.support.soup_families import matrix

VALUES = np.random.default_rng(0).normal(0.2, 1, 32)


def test_intervals_and_one_sided_tests_are_those_of_scipy() -> None:
    known = stats.ttest_1samp(VALUES, 0.1, alternative="greater")
    assert above(VALUES, 0.1) == pytest.approx(known.pvalue)
    interval = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    found = sample(VALUES)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.deviation == pytest.approx(np.std(VALUES, ddof=1))


def test_equivalence_is_the_larger_of_two_tests() -> None:
    lower = stats.ttest_1samp(VALUES, -0.5, alternative="greater").pvalue
    upper = stats.ttest_1samp(VALUES, 0.5, alternative="less").pvalue
    assert within(VALUES, 0.5) == pytest.approx(max(lower, upper))


def test_an_equivalence_at_the_level_means_an_interval_in_the_margins() -> None:
    random = np.random.default_rng(1)
    for shift in np.linspace(-0.6, 0.6, 25):
        values = random.normal(shift, 0.6, 32)
        found = sample(values)
        inside = found.low > -0.5 and found.high < 0.5
        assert (within(values, 0.5) <= 0.025) == inside


def test_holm_steps_down() -> None:
    # Holm 1979: .01 x 4, .012 x 3 (not below the last), .04 x 2, .5 x 1
    adjusted = holm({"x": 0.04, "y": 0.01, "z": 0.5, "w": 0.012})
    assert adjusted == pytest.approx({"x": 0.08, "y": 0.04, "z": 0.5, "w": 0.04})


def test_effects_of_a_full_factorial_are_differences_of_means() -> None:
    levels = np.array(factorial(), dtype=float)
    values = 3 * (levels[:, 1] > 0) + np.random.default_rng(2).normal(0, 1, 32)
    found = effects(levels, values)
    for factor in range(5):
        upper = values[levels[:, factor] > 0].mean()
        lower = values[levels[:, factor] < 0].mean()
        assert found[factor].mean == pytest.approx(upper - lower)
    # standard error of a difference of two means of 16
    assert found[0].error == pytest.approx(found[0].deviation * np.sqrt(2 / 16))
    assert effects(levels[:4], values[:4]) == []


def test_rank_correlations_are_those_of_scipy() -> None:
    x = np.arange(32.0)
    found = rank_correlation(x, VALUES)
    rho = stats.spearmanr(x, VALUES).statistic
    assert found.mean == pytest.approx(rho)
    reach = 1.96 * np.sqrt((1 + rho**2 / 2) / 29)
    assert found.high == pytest.approx(np.tanh(np.arctanh(rho) + reach))


# ------------------------------------------------------------ estimates


@pytest.fixture(scope="module")
def family() -> View:
    return View(matrix=matrix())


def replaced(one: View, answers: np.ndarray) -> View:
    return View(matrix=dataclasses.replace(one.matrix, answers=answers))


def with_other_answers(one: View, where: np.ndarray) -> View:
    """The family with other answers to some items."""
    answers = one.matrix.answers.copy()
    answers[:, where] = np.random.default_rng(9).random((len(answers), where.sum())) < 0.5
    return replaced(one, answers)


def test_predictors_and_gains_are_from_disjoint_items(family: View) -> None:
    assert predictors(with_other_answers(family, ~family.choosing)) == predictors(family)
    other = with_other_answers(family, family.choosing)
    assert predictors(other) != predictors(family)
    assert np.array_equal(other.uniform, family.uniform)
    assert np.array_equal(other.test(other.matrix.others), family.test(family.matrix.others))


def test_searches_are_redrawn_among_the_items_that_selected_nothing(family: View) -> None:
    draws = family.searches()
    assert len(draws) == 8
    for draw in draws:
        assert draw.sum() == 250
        assert not (draw & family.selecting).any()
        assert not (draw & ~family.choosing).any()
        assert np.bincount(family.category[draw]).tolist() == [50] * 5
    assert len({draw.tobytes() for draw in draws}) == 8


def test_scores_are_percent_of_the_test_items(family: View) -> None:
    place = PLACES[1, 4]
    answers = family.matrix.uniform[place, ~family.choosing]
    assert len(answers) == 3000
    assert family.score((4, 1)) == pytest.approx(100 * answers.sum() / 3000)


def test_the_router_takes_the_best_tune_of_each_category(family: View) -> None:
    known = family.selecting
    expected = []
    for number in range(5):
        own = family.category == number
        tune = family.tunes[:, own & known].mean(axis=1).argmax()
        expected.append(family.tunes[tune, own & ~family.choosing].mean())
    assert router(family, known) == pytest.approx(100 * np.mean(expected))


def test_the_greedy_soup_grows_while_it_gets_no_worse() -> None:
    scores = np.zeros(255)
    scores[PLACES[(3,)]] = 5
    scores[PLACES[0, 3]] = 4
    scores[PLACES[1, 3]] = 5
    scores[PLACES[1, 2, 3]] = 6
    order = [3, 0, 1, 2, 4, 5, 6, 7]
    assert greedy(order, scores) == (1, 2, 3)


def test_percentiles_count_half_of_the_equal_ones() -> None:
    assert percentile(2, [1, 2, 2, 3]) == 50


def test_the_gain_that_is_reported_on_the_same_items_is_theirs(family: View) -> None:
    found = same_items(family)
    answers = family.matrix.searched(family.matrix.facts.experts)[:, family.selecting]
    best = family.tunes[:, family.selecting].mean(axis=1).max()
    assert found["reported gain"] == pytest.approx(100 * (answers.mean(axis=1).max() - best))


def test_families_in_which_nothing_was_learned_have_failed(family: View) -> None:
    assert failure(family) == ""
    assert failure(replaced(family, np.zeros_like(family.matrix.answers))) != ""


def test_low_correlation_is_the_rule_of_the_product() -> None:
    # x and y are alike, z is against both: |rho| is 1 for all
    scores = np.array([[0.1, 0.2, 0.9], [0.2, 0.3, 0.8], [0.3, 0.4, 0.7]])
    assert low_share(scores) == 0
    # of these, only the third has a correlation below .2 with another
    scores = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 1.0]])
    assert low_share(scores) == 100
    constant = np.column_stack([scores, np.ones(4)])
    assert low_share(constant) == 100
    assert 0 < permuted_share(scores, 0) <= 100


def test_mixtures_of_one_ingredient_are_that_ingredient(family: View) -> None:
    found = consistency(family)
    assert 0 < found["|rho| of tunes"] < 1
    single: Subset = (family.matrix.facts.experts[0],)
    points = {single: np.ones((1, 1))}
    facts = dataclasses.replace(family.matrix.facts, experts=single)
    one = Matrix(facts=facts, points=points, answers=family.matrix.answers)
    values = consistency(View(matrix=one))
    assert values["|rho| of soups"] == values["|rho| of tunes"]


def test_category_means_are_those_of_numpy(family: View) -> None:
    scores = means(family.tunes, family.category)
    assert scores[3, 2] == pytest.approx(family.tunes[3, 1600:2400].mean())


# ------------------------------------------------------------ report


def test_the_report_has_the_hypotheses_and_every_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "SEARCHES", 1)
    monkeypatch.setattr(view, "SELECTIONS", 2)
    monkeypatch.setattr(estimates, "DRAWS_OF_ALL", 1)
    monkeypatch.setattr(estimates, "searched", lambda weights, answers, category, items: 0)
    for number in range(3):
        save(matrix(number, name=f"exploratory-{number:02d}"), tmp_path)
        save(matrix(number, name=f"confirmatory-{number:02d}"), tmp_path)
    main(["report", "--folder", str(tmp_path), "--out", str(tmp_path / "page.md")])
    text = capsys.readouterr().out
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    assert "## Exploratory: 3 families" in text
    for name in ("| a |", "| b |", "| c |", "| d |", "router by category", "greedy soup"):
        assert text.count(name) == 1  # nothing of 3 confirmatory families is shown
    assert "shown |" not in text

    monkeypatch.setattr(report, "CONFIRMATORY", 3)
    main(["report", "--folder", str(tmp_path)])
    text = capsys.readouterr().out
    assert text.count("| a |") == 2
    assert text.count("shown |") == 4


def test_a_folder_without_families_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["report", "--folder", str(tmp_path)])
    assert refusal.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


# ------------------------------------------------------------ figures of the families that are committed


@pytest.fixture(scope="module")
def first() -> View:
    return View(matrix=load(path_of("exploratory-00")))


def test_committed_figures_are_computed_from_their_matrix(first: View) -> None:
    assert round(estimates.selected(first)["experts - top"], 2) == -0.29
    found = same_items(first)
    assert round(found["reported gain"] - found["true gain"], 2) == 1.67
    routed = [router(first, first.selecting | draw) for draw in first.searches()]
    assert round(float(np.mean(routed)), 2) == 68.97


def test_ingredients_are_selected_on_the_items_for_selection(first: View) -> None:
    facts = first.matrix.facts
    scores = means(first.tunes[:, first.selecting], first.category[first.selecting])
    assert experts(scores) == facts.experts
    assert best(scores, len(facts.experts)) == facts.best


def bracketed(values: list[float]) -> str:
    """Mean and 95 % interval as the page of the evidence has them."""
    found = sample(values)
    low, high = stats.t.interval(0.95, 31, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


@pytest.mark.slow
def test_the_evidence_page_has_the_figures_of_the_matrices() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    paths = sorted(FOLDER.glob("confirmatory-*"))
    views = [View(matrix=load(path)) for path in paths]
    assert len(views) == 32
    selections = [estimates.selected(one) for one in views]
    assert bracketed([row["experts - top"] for row in selections]) in page
    assert bracketed([row["experts - random"] for row in selections]) in page
    reports = [same_items(one) for one in views]
    assert bracketed([row["reported gain"] - row["true gain"] for row in reports]) in page
    routed = []
    for one in views:
        gains = []
        for draw in one.searches():
            known = one.selecting | draw
            best_tune = int(one.tunes[:, known].mean(axis=1).argmax())
            gains.append(router(one, known) - one.score((best_tune,)))
        routed.append(float(np.mean(gains)))
    assert bracketed(routed) in page
