"""What a planned report can show of two candidates, where the soup differs from each as they differ from each other.

Its errors against both then have the variance of their difference and a correlation of one half.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from souping.core.scores import Mean, Weighted, WorstCategory
from souping.core.types import FloatArray, ItemScores, ScoreMatrix
from souping.statistics import power as planned
from souping.statistics.comparison import contrast, split_variance
from souping.statistics.power import (
    RunPower,
    detectable,
    error_covariance,
    errors_for_power,
    items_for,
    items_in_words,
    measured_power,
    pair_variance,
    power_of,
    rounded_up,
)
from souping.statistics.score_table import ItemTable, ScoreTable, one_category
from tests.conftest import make_items

ITEMS = make_items(200, ("x",))


def gain_of_two(variance: float, gaps: FloatArray) -> float:
    """The gain with 80 % power if the second of two candidates is `gaps` [D] below the best one."""
    covariance = variance * np.array([[1.0, 0.5], [0.5, 1.0]])
    rng = np.random.default_rng(1)
    errors = rng.multivariate_normal([0.0, 0.0], covariance, size=len(gaps))
    demanded = stats.norm.ppf(0.975) * np.sqrt(variance) + errors
    demanded[:, 1] -= gaps
    return float(np.quantile(demanded.max(axis=1), 0.8))


def test_candidates_of_which_nothing_is_known_differ_on_a_tenth_of_the_items() -> None:
    published = ScoreMatrix(
        models=("a", "b"), categories=("x",), values=np.full((2, 1), 0.5), published=True
    )
    power = power_of(published, ITEMS, Mean(), margin=0.01)
    assert power is not None
    expected = gain_of_two(0.1 / len(ITEMS), np.zeros(200_000))
    assert power.gain == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("ahead", [0, 8, 30])
def test_of_a_candidate_that_is_ahead_only_what_chance_does_not_explain_is_believed(
    ahead: int,
) -> None:
    """Of a difference d with variance v, 1 - chance / (d^2 / 2) is real; chance is v / 2 and one standard deviation."""
    n = len(ITEMS)
    rng = np.random.default_rng(0)
    a = np.arange(n) % 2 == 0
    b = np.where(rng.random(n) < 0.2, rng.random(n) < 0.5, a)
    b[np.flatnonzero(b)[:ahead]] = False
    scores = {}
    for name, right in (("a", a), ("b", b)):
        scores[name] = ItemScores(items=tuple(ITEMS), values=right.astype(float))
    power = measured_power(scores, ITEMS, Mean(), margin=0.01)

    # Groups of two items, as `make_items` has them.
    pairs = (a.astype(float) - b).reshape(-1, 2).sum(axis=1) / n
    variance = len(pairs) * pairs.var(ddof=1)
    difference = pairs.sum()
    chance = variance / 2 * (1 + np.sqrt(2))
    real = max(0.0, 1 - chance / max(difference**2 / 2, chance))
    normal = np.random.default_rng(2).standard_normal(200_000)
    # Either may be the better one.
    gaps = np.abs(real * difference + np.sqrt(real * variance) * normal)
    expected = gain_of_two(variance, gaps)
    assert power is not None
    assert power.gain == pytest.approx(expected, rel=0.04)


def test_the_items_for_a_margin_have_its_power_whether_they_are_more_or_fewer() -> None:
    """With runs, the root of `detectable` over the number of items; the part of runs has an end."""
    rng = np.random.default_rng(4)
    right = {name: (rng.random((4, 300)) < 0.6).astype(float) for name in "ab"}
    table = ScoreTable.complete(one_category(np.arange(300)), right)
    comparison = contrast(table, "a", "b")
    power = RunPower(comparison=comparison, scores=table)
    assert comparison.degrees == 6
    for margin in (0.5 * power.detectable(), power.detectable(), 2 * power.detectable()):
        needed = power.items_for(margin)
        assert needed is not None
        assert power.detectable(times_items=needed / 300) == pytest.approx(margin, rel=0.02)

    # A shift of a whole run does not get smaller on more items.
    shifted = {"a": right["a"] * 0 + np.array([[0.2], [0.4], [0.6], [0.3]]), "b": right["b"]}
    table = ScoreTable.complete(one_category(np.arange(300)), shifted)
    power = RunPower(comparison=contrast(table, "a", "b"), scores=table)
    assert power.items_for(0.01) is None


def published(count: int, categories: tuple[str, ...] = ("x",)) -> ScoreMatrix:
    """Published scores of so many candidates, of which no answers are known."""
    return ScoreMatrix(
        models=tuple("abcdefgh"[:count]),
        categories=categories,
        values=np.full((count, len(categories)), 0.5),
        published=True,
    )


def test_the_needed_items_have_the_power_for_the_margin() -> None:
    power = power_of(published(3), ITEMS, Mean(), margin=0.05)
    assert power is not None
    assert (power.items, power.margin, power.assumed) == (200, 0.05, True)
    assert 20 < power.needed != power.items
    # At that number of items the margin is the gain, but for the rounding up to two digits.
    again = power_of(published(3), make_items(power.needed, ("x",)), Mean(), margin=0.05)
    assert again is not None
    assert again.gain <= 0.05
    assert again.gain == pytest.approx(0.05, rel=0.05)
    # Candidates that count as equal: the gain falls with the root of the items.
    assert again.gain == pytest.approx(power.gain * math.sqrt(200 / power.needed), rel=1e-6)
    most = power_of(published(3), ITEMS, Mean(), margin=1e-6)
    least = power_of(published(3), ITEMS, Mean(), margin=10.0)
    assert most is not None
    assert least is not None
    assert (least.needed, most.needed) == (21, 100_001)


def test_categories_of_unlike_weight_are_worth_fewer_items() -> None:
    """1 / sum of w^2 / n independent items: of 200 and 50 with halves, 1 / (1/800 + 1/200) = 160."""
    items = [*make_items(200, ("x",)), *make_items(50, ("y",))]
    uneven = power_of(published(2, ("x", "y")), items, Mean(), margin=0.05)
    alone = power_of(published(2), make_items(160, ("x",)), Mean(), margin=0.05)
    assert uneven is not None
    assert alone is not None
    assert uneven.gain == pytest.approx(alone.gain)
    assert uneven.items == 250
    weighted = power_of(
        published(2, ("x", "y")),
        items,
        Weighted(category_weights={"x": 1.0, "y": 0.0}),
        margin=0.05,
    )
    whole = power_of(published(2), make_items(200, ("x",)), Mean(), margin=0.05)
    assert weighted is not None
    assert whole is not None
    assert weighted.gain == pytest.approx(whole.gain)


def test_the_test_split_has_errors_of_its_own_size() -> None:
    rng = np.random.default_rng(3)
    scores = {}
    for name in "abc":
        values = (rng.random(len(ITEMS)) < 0.5).astype(float)
        scores[name] = ItemScores(items=tuple(ITEMS), values=values)
    gains = []
    for size in (200, 800):
        power = measured_power(scores, make_items(size, ("x",)), Mean(), margin=0.01)
        assert power is not None
        assert (power.items, power.assumed) == (size, False)
        gains.append(power.gain)
    assert gains[0] > gains[1]
    known = measured_power(scores, ITEMS, Mean(), margin=0.01)
    same = power_of(replace(ScoreMatrix.from_items(scores)), ITEMS, Mean(), margin=0.01)
    assert same == known
    # Published scores with items count as published: nothing is known of their answers.
    assumed = power_of(
        replace(ScoreMatrix.from_items(scores), published=True), ITEMS, Mean(), margin=0.01
    )
    assert assumed is not None
    assert assumed.assumed


def test_equal_candidates_have_the_variance_of_their_own_answers() -> None:
    """Two candidates that are right on a half of 8 items, independently: each has 8 / 7 of 1 / 32 over 8 items.

    Scaled to 200 items that is 1 / 700, where 10 % of unlike answers give 1 / 4000 a model.
    """
    items = [replace(item, group=item.id) for item in make_items(8, ("x",))]
    right = {"a": [1, 1, 0, 0, 1, 1, 0, 0], "b": [1, 0, 1, 0, 1, 0, 1, 0]}
    scores = {
        name: ItemScores(items=tuple(items), values=np.array(values, float))
        for name, values in right.items()
    }
    known = measured_power(scores, ITEMS, Mean(), margin=0.01)
    assumed = power_of(published(2), ITEMS, Mean(), margin=0.01)
    assert known is not None
    assert assumed is not None
    assert known.gain == pytest.approx(assumed.gain * math.sqrt(4000 / 700))


def test_errors_of_candidates_are_those_within_strata() -> None:
    """Of a stratum of n groups, n / (n - 1) of the products of the deviations from its own mean."""
    rng = np.random.default_rng(6)
    kinds = [("x",)] * 9 + [("y",)] * 7 + [("x", "y")] * 6
    items = []
    for number, names in enumerate(kinds):
        items += [replace(item, group=f"{number}") for item in make_items(1, names)]
    values = {name: rng.random(len(items)) for name in "ab"}
    table = ItemTable.of(items, Mean())
    grouped = [table.grouped(values[name]) for name in "ab"]
    influence = []
    for name in "ab":
        parts = np.zeros(len(kinds))
        for category in ("x", "y"):
            own = np.array([item.category == category for item in items])
            deviation = values[name][own] - values[name][own].mean()
            groups = np.array([int(item.group) for item in items])[own]
            np.add.at(parts, groups, deviation / 2 / own.sum())
        influence.append(parts)
    expected = np.zeros((2, 2))
    for places in (range(9), range(9, 16), range(16, 22)):
        own = np.array(influence)[:, list(places)]
        expected += len(places) * np.cov(own, ddof=1)
    assert error_covariance(grouped) == pytest.approx(expected)


def test_no_power_is_told_where_nothing_varies_or_the_objective_bends() -> None:
    right = ItemScores(items=tuple(ITEMS), values=(np.arange(len(ITEMS)) % 2).astype(float))
    assert measured_power({"a": right}, ITEMS, Mean(), margin=0.01) is None
    assert measured_power({"a": right, "b": right}, ITEMS, Mean(), margin=0.01) is None
    assert power_of(published(2), ITEMS, WorstCategory(), margin=0.01) is None


def test_the_variance_of_pairs_is_the_mean_over_all_pairs() -> None:
    root = np.random.default_rng(5).standard_normal((4, 4))
    covariance = root @ root.T
    pairs = [
        covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
        for a in range(4)
        for b in range(a)
    ]
    assert pair_variance(covariance) == pytest.approx(np.mean(pairs))
    assert pair_variance(covariance[:1, :1]) == 0


@pytest.mark.parametrize(
    ("items", "rounded"),
    [
        (0, 0), (0.2, 1), (7.1, 8), (12, 12), (99.5, 100), (100, 100), (101, 110), (1201, 1300), (98_001, 99_000),
        (100_000, 100_000), (100_000.5, 100_001), (math.inf, 100_001), (math.nan, 100_001),
    ],
)  # fmt: skip
def test_items_are_rounded_up_to_two_digits(items: float, rounded: int) -> None:
    assert rounded_up(items) == rounded


def test_items_in_words_end_at_100000() -> None:
    assert items_in_words(1300) == "about 1,300"
    assert items_in_words(100_000) == "about 100,000"
    assert items_in_words(100_001) == "more than 100,000"


@pytest.mark.parametrize(("degrees", "share"), [(2.0, 1.0), (5.0, 0.4), (200.0, 0.7)])
def test_few_runs_need_more_standard_errors(degrees: float, share: float) -> None:
    """The root by scipy of the power on average over 24 quantiles of both estimates."""
    z = stats.norm.ppf(0.975)
    t = stats.t.ppf(0.975, degrees)
    squares = stats.chi2.isf((np.arange(24) + 0.5) / 24, degrees) / degrees
    true = share / squares[:, None]
    reaches = np.sqrt(z**2 * (1 - share) + t**2 * true * squares)

    def lacking(k: float) -> float:
        power = stats.norm.cdf((k - reaches) / np.sqrt(1 - share + true))
        return float(power.mean() - 0.8)

    quantile, errors = errors_for_power(0.95, degrees, share)
    assert quantile == pytest.approx(math.sqrt(z**2 * (1 - share) + t**2 * share))
    assert errors == pytest.approx(optimize.brentq(lacking, 0.1, 90 * t), rel=1e-4)


@pytest.mark.parametrize("degrees", [201.0, math.inf])
def test_many_degrees_are_the_normal_distribution(degrees: float) -> None:
    quantile, errors = errors_for_power(0.99, degrees, 1.0)
    assert quantile == pytest.approx(stats.norm.ppf(0.995))
    assert errors == pytest.approx(stats.norm.ppf(0.995) + stats.norm.ppf(0.8))


@pytest.mark.parametrize(("step", "margin"), [(0.0, 0.01), (0.004, 0.01), (0.004, 0.2)])
def test_items_for_a_margin_solve_the_quadratic(step: float, margin: float) -> None:
    """Of x^2 times the items the difference is width / x + step / x^2."""
    rng = np.random.default_rng(6)
    table = ScoreTable.complete(
        one_category(np.arange(400)), {name: rng.random(400) for name in "ab"}
    )
    comparison = replace(contrast(table, "a", "b"), step=step)
    half = max(comparison.high - comparison.difference, comparison.difference - comparison.low)
    z = stats.norm.ppf(0.975)
    width = half * (z + stats.norm.ppf(0.8)) / z
    assert detectable(comparison) == pytest.approx(width + step)
    x = optimize.brentq(lambda x: width / x + step / x**2 - margin, 1e-6, 1e6)
    assert items_for(comparison, margin) == rounded_up(400 * x * x)
    assert items_for(comparison, 0.0) == items_for(comparison, -1.0) == 100_001


@pytest.mark.parametrize(("more", "times"), [(0, 1.0), (2, 1.0), (0, 3.0), (3, 0.5)])
def test_more_runs_and_more_items_shrink_their_own_parts(more: int, times: float) -> None:
    """Four runs of a and three of b."""
    rng = np.random.default_rng(7)
    shift = {"a": rng.normal(0, 0.05, (4, 1)), "b": rng.normal(0, 0.05, (3, 1))}
    table = ScoreTable.complete(
        one_category(np.arange(200)),
        {name: 0.5 + runs + rng.normal(0, 0.2, (len(runs), 200)) for name, runs in shift.items()},
    )
    comparison = contrast(table, "a", "b")
    power = RunPower(comparison=comparison, scores=table)
    parts = split_variance(table.scored, "a", "b")
    lasting = min(parts.runs or 0.0, parts.run_means)
    of_runs = lasting + (parts.run_means - lasting) / times
    of_runs *= (1 / (4 + more) + 1 / (3 + more)) / (1 / 4 + 1 / 3)
    total = (parts.total - parts.run_means) / times + of_runs
    _, now = errors_for_power(comparison.level.confidence, comparison.degrees, comparison.run_share)
    _, then = errors_for_power(
        comparison.level.confidence, comparison.degrees + 2 * more, of_runs / total
    )
    expected = detectable(comparison) * then / now * math.sqrt(total / parts.total)
    assert power.detectable(more, times) == pytest.approx(expected)


def test_without_runs_items_alone_count() -> None:
    rng = np.random.default_rng(8)
    table = ScoreTable.complete(
        one_category(np.arange(200)), {name: rng.random(200) for name in "ab"}
    )
    comparison = contrast(table, "a", "b")
    power = RunPower(comparison=comparison, scores=table)
    assert power.detectable(times_items=4.0) == pytest.approx(detectable(comparison) / 2)
    assert power.items_for(0.02) == items_for(comparison, 0.02)


# ------------------------------------------------------------ items or answers


WORLDS = {
    "answers decide": (8.0, 8.0),  # every item is right about half of the time
    "items decide": (0.05, 0.05),  # an item is nearly always right or nearly always wrong
    "both": (0.6, 0.4),
}
"""{name: parameters of the beta distribution of an item's chance to be answered right}"""


def sampled(chances: FloatArray, repeats: int, rng: np.random.Generator) -> ItemScores:
    """Scores of a model that is right on items with these chances [I], each the mean of some answers."""
    answers = rng.random((repeats, len(chances))) < chances
    noise = answers.var(axis=0, ddof=1) / repeats
    items = tuple(make_items(len(chances), ("x",)))
    return ItemScores(items=items, values=answers.mean(axis=0), noise=noise)


def spread_of_difference(world: str, items: int, repeats: int, rng: np.random.Generator) -> float:
    """Standard deviation of the difference of two models over 20,000 splits of new items."""
    chances = rng.beta(*WORLDS[world], (20_000, 2, items))
    means = rng.binomial(repeats, chances).mean(axis=2) / repeats
    return float((means[:, 0] - means[:, 1]).std())


@pytest.mark.parametrize("world", WORLDS)
def test_more_answers_and_more_items_gain_what_simulated_splits_gain(world: str) -> None:
    rng = np.random.default_rng(4)
    repeats = 3
    known = 3000
    chances = rng.beta(*WORLDS[world], (2, known))
    scores = {name: sampled(chances[model], repeats, rng) for model, name in enumerate("ab")}
    # Equal candidates, so that the gain that is shown is proportional to the standard error.
    scores["b"] = replace(
        scores["b"],
        values=scores["b"].values + scores["a"].values.mean() - scores["b"].values.mean(),
    )
    test = make_items(60, ("x",))
    power = measured_power(scores, test, Mean(), margin=0.01, repeats=repeats)
    assert power is not None
    assert power.more is not None
    assert (power.more.repeats, power.more.items) == (3, 20)
    now = spread_of_difference(world, 60, repeats, rng)
    answers = spread_of_difference(world, 60, repeats + 1, rng) / now
    items = spread_of_difference(world, 80, repeats, rng) / now
    assert power.more.answers_gain / power.gain == pytest.approx(answers, abs=0.02)
    assert power.more.items_gain / power.gain == pytest.approx(items, abs=0.02)
    # New items carry new answers: they never gain less.
    assert power.more.items_gain <= power.more.answers_gain


def test_nothing_is_said_of_more_answers_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    scores = {name: sampled(rng.random(100), 3, rng) for name in "ab"}
    test = make_items(60, ("x",))
    power = measured_power(scores, test, Mean(), margin=0.01)
    assert power is not None
    assert power.more is None
    twice = {name: sampled(rng.random(100), 2, rng) for name in "ab"}
    power = measured_power(twice, test, Mean(), margin=0.01, repeats=2)
    assert power is not None
    assert power.more is not None
    assert (power.more.repeats, power.more.items) == (2, 30)
    unknown = {name: ItemScores(items=one.items, values=one.values) for name, one in scores.items()}
    power = measured_power(unknown, test, Mean(), margin=0.01, repeats=3)
    assert power is not None
    assert power.more is None


def test_the_numbers_that_power_rests_on_are_those_of_earlier_reports() -> None:
    assert (planned.POWER, planned.MANY_DEGREES, planned.ABSURD, planned.DISCORDANCE) == (
        0.8,
        200,
        1e5,
        0.1,
    )
    assert (planned.FUTURE_ERRORS, planned.FUTURES, planned.MOST_TIMES) == (24, 4000, 2.0**40)
    assert (planned.POWER_HALVINGS, planned.TIMES_HALVINGS, planned.ITEMS_HALVINGS) == (24, 40, 20)


@pytest.mark.parametrize("count", [2, 3])
def test_the_gain_is_that_of_the_same_simulated_splits_as_in_earlier_reports(count: int) -> None:
    """Of equal candidates, with 4,000 splits by the seed 0: true levels, then errors of candidates, then the soup's."""
    power = power_of(published(count), ITEMS, Mean(), margin=0.05)
    rng = np.random.default_rng(0)
    rng.standard_normal((4000, count))  # no difference between the levels is believed
    sd = math.sqrt(0.1 / 2 / len(ITEMS))
    errors = sd * rng.standard_normal((4000, count))
    # Two candidates differ with the variance 2 sd^2, and the soup from each of them as much.
    soup = sd * math.sqrt((count + 1) / count) * rng.standard_normal((4000, 1))
    differences = errors + soup - errors.mean(axis=1, keepdims=True)
    demanded = stats.norm.ppf(0.975) * differences.std(axis=0) + differences
    assert power is not None
    assert power.gain == pytest.approx(np.quantile(demanded.max(axis=1), 0.8), rel=1e-7)
