"""Nulls, whole runs in simulation, and the power that is stated before the test split opens, in small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import ndtri

from souping.core.scores import Mean, Weighted
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix
from souping.statistics.corrections import ALPHA
from souping.statistics.grouped import design
from souping.statistics.power import Power, measured_power, power_of
from souping.statistics.score_table import ItemTable
from tests.conftest import ROOT, make_items
from tests.support.choices import slow_unless
from tests.support.flips import sign_flip
from tests.support.scripts import script

REPETITIONS = 200
QUICK = {
    "five equal candidates, soup equal, s.e. 1",
    "soup 1 point better, 600 items",
    "8 x 75 items, 70 % right, half discordant groups",
}
"""Cases that run by default."""
QUICK_TESTS = {
    "100 items, 2 % losses of 0.8",
    "missing: 10 % of a, 2 % of b",
}


nulls = script(ROOT / "benchmarks" / "nulls.py")
looks = script(ROOT / "benchmarks" / "looks.py")


def test_limits_of_the_calibration_are_those_of_the_binomial() -> None:
    assert nulls.allowed(10_000) == 300
    assert nulls.allowed(REPETITIONS) == 13
    assert nulls.least_coverage(10_000) == pytest.approx(0.935, abs=0.001)


@pytest.mark.parametrize("name", slow_unless(QUICK_TESTS, nulls.TESTS))
def test_of_two_equal_models_neither_is_called_better(name: str) -> None:
    found = nulls.tally(nulls.TESTS[name], REPETITIONS, seed=7)
    assert max(found.better, found.worse) <= nulls.allowed(REPETITIONS, nulls.level_of(name))
    assert found.coverage >= nulls.least_coverage(REPETITIONS)
    if not any(words in name for words in nulls.UNLIKE_PLAIN):
        assert found.width <= 1.15


def test_tests_that_ignore_groups_exceed_the_level_and_the_check_sees_it() -> None:
    (world,) = nulls.TESTS_THAT_FAIL.values()
    found = nulls.tally(world, 150, seed=7)
    assert max(found.better, found.worse) > nulls.allowed(150)


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.NULLS))
def test_no_soup_is_called_better_that_is_not(name: str) -> None:
    repetitions = 100 if "s.e. 1" in name or "sampled" in name else REPETITIONS
    said = nulls.count(*nulls.NULLS[name], repetitions, seed=7)
    assert max(said["better"], said["every"]) <= nulls.allowed(repetitions)


@pytest.mark.slow
def test_nor_over_twenty_looks() -> None:
    said = nulls.count(*nulls.LOOKED["test items looked at 20 times, each as printed"], 40, seed=7)
    assert said["better"] <= nulls.allowed(40, nulls.LOOKS_LEVEL)


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.KEEPS))
def test_no_single_is_kept_where_the_soup_is_better_by_the_margin(name: str) -> None:
    said = nulls.count(*nulls.KEEPS[name], 100, seed=7)
    assert said["keeps"] <= nulls.allowed(100)


@pytest.mark.slow
def test_ignoring_groups_fails() -> None:
    said = nulls.count(*nulls.FAILS["groups ignored"], REPETITIONS, seed=7)
    assert said["better"] > 1.5 * nulls.allowed(REPETITIONS)


@pytest.mark.slow
def test_a_real_difference_is_found_and_a_hopeless_soup_is_not_kept() -> None:
    said = nulls.count(nulls.independent(3, soup=10.0), nulls.USUAL, 100)
    assert said["rejects"] > 80
    assert said["every"] > 60
    assert nulls.count(nulls.independent(3, soup=-12.0), nulls.USUAL, 100)["keeps"] > 80


@pytest.mark.parametrize(
    "name",
    slow_unless(
        QUICK, ["8 x 75 items, 70 % right, half discordant groups", "the same, 5 points better"]
    ),
)
def test_intervals_cover(name: str) -> None:
    case = nulls.COVERAGE[name]
    held = [nulls.covers(nulls.np.random.default_rng([2, r]), case) for r in range(100)]
    assert all(sum(column) >= 89 for column in zip(*held, strict=True))


pipelines = script(ROOT / "benchmarks" / "pipelines.py")


@pytest.mark.parametrize(
    "name",
    [
        "3 x 45 items",
        "50 groups over 4 categories",
        pytest.param("scores in thirds", marks=pytest.mark.slow),
    ],
)
def test_a_null_is_walked_to_its_verdict(name: str) -> None:
    found = pipelines.tally(name, range(6), 1)
    assert found.runs == 6
    assert 0 < found.tested <= 6
    assert found.pairs == 5 * found.tested
    assert max(found.false_better, found.false_every, found.false_kept) <= 1
    assert found.coverage > 0.8


@pytest.mark.slow
def test_a_true_gain_is_found_and_power_is_stated() -> None:
    found = pipelines.tally("every soup 9 points better", range(6), 1)
    assert found.better > found.false_better == 0
    assert found.every > 0
    assert all(0.04 < gain < 0.2 for gain in found.gains)


def test_the_truth_of_a_soup_follows_from_its_recipe() -> None:
    world = pipelines.GAINS["every soup 3 points better"]
    pool = pipelines.Pool(world.names)
    soup = pool.recipe({"model0": 0.5, "model1": 0.5})
    single = pool.recipe({"model0": 1.0})
    assert world.difference(soup, single) == pytest.approx(0.03)
    split = pipelines.NULLS["half the categories +15, half -15"]
    assert split.difference(soup, single) == pytest.approx(0.0)
    assert split.rates(soup)[0] == pytest.approx(0.85)


BASE = 0.6


def split(name: str, groups: int) -> tuple[Item, ...]:
    """Two categories of so many groups of two items."""
    return tuple(
        Item(id=f"{name} {c} {g} {i}", category=c, group=f"{name} {c} {g}", prompt="p", answer="a")
        for c in ("x", "y")
        for g in range(groups)
        for i in range(2)
    )


def answers(items: Sequence[Item], rates: Sequence[float], rng: np.random.Generator) -> FloatArray:
    """Scores [M, I] of models with these rates, whose noise the items of a group share in part."""
    names, group = np.unique([item.group for item in items], return_inverse=True)
    noise = 0.6 * rng.standard_normal((len(rates), len(names)))[:, group]
    chance = noise + 0.8 * rng.standard_normal((len(rates), len(items)))
    return np.asarray(chance < ndtri(np.array(rates))[:, None], dtype=float)


def stated(rates: Sequence[float], report: Sequence[Item], seed: int) -> Power:
    """The power that is stated after 80 items of a select split, for models of these rates."""
    select = split("select", 80)
    scores = answers(select, rates, np.random.default_rng([1, seed]))
    power = measured_power(
        {f"m{n}": ItemScores(items=select, values=row) for n, row in enumerate(scores)},
        report,
        Mean(),
        0.01,
    )
    assert power is not None
    return power


def claimed(rates: Sequence[float], gain: float, report: Sequence[Item], repetitions: int) -> float:
    """Share of test splits on which the sign-flip test calls a soup with this gain better than every candidate."""
    table = ItemTable.of(report, Mean())
    hits = 0
    for seed in range(repetitions):
        soup, *others = answers(
            report, [max(rates) + gain, *rates], np.random.default_rng([2, seed])
        )
        wholes = (
            design(soup - o, table.categories, table.groups, table.coefficients) for o in others
        )
        hits += all(w.objective > 0 and sign_flip(w, draws=199) < ALPHA for w in wholes)
    return hits / repetitions


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        ([BASE] * 5, 0.9),
        ([BASE, 0.4, 0.4], 0.9),
        ([BASE, BASE - 0.03, BASE - 0.03, BASE - 0.06], 1.0),
    ],
)
@pytest.mark.slow
def test_the_stated_gain_has_the_power_that_is_stated(rates: list[float], most: float) -> None:
    report = split("report", 150)
    gain = float(np.mean([stated(rates, report, seed).gain for seed in range(12)]))
    assert 0.7 <= claimed(rates, gain, report, 100) <= most


def test_near_equal_candidates_cost_power_and_items_buy_it() -> None:
    report = split("report", 150)
    large = split("report", 600)
    equal = [stated([BASE] * 6, report, seed).gain for seed in range(8)]
    ahead = [stated([BASE] + [0.4] * 5, report, seed).gain for seed in range(8)]
    assert np.mean(equal) > 1.1 * np.mean(ahead)
    one = stated([BASE] * 4, report, 0)
    four = stated([BASE] * 4, large, 0)
    assert four.gain == pytest.approx(one.gain / 2, rel=0.1)
    assert four.needed == pytest.approx(one.needed, rel=0.1)
    assert one.needed > one.items


def test_published_scores_need_an_assumption() -> None:
    published = ScoreMatrix(
        models=("a", "b"), categories=("x", "y"), values=np.full((2, 2), 0.5), published=True
    )

    def gain(items: Sequence[Item], objective: Mean | Weighted) -> float:
        power = power_of(published, items, objective, margin=0.01)
        assert power is not None
        assert power.assumed
        return power.gain

    # One pair that differs on 10 % of the items needs 1.96 + 0.84 standard errors for a power of 80 %.
    assert gain(make_items(300), Mean()) > 2.8 * np.sqrt(0.1 / 600)
    few = gain([*make_items(290, ("w",)), *make_items(10, ("x",))], Mean())
    assert few > 2 * gain(make_items(290, ("w",)), Weighted(category_weights={"w": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("name", looks.WORLDS)
def test_nobody_who_looks_again_claims_too_much(name: str) -> None:
    repetitions = 10 if "single models" in name else 20
    share = looks.share(looks.WORLDS[name], repetitions, seed=7)
    assert share <= looks.limit(repetitions)
