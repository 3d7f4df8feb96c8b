"""The nulls of docs/how-it-works.md and whole runs in simulation, in small; benchmarks run 2,000 repetitions."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.support.choices import slow_unless
from tests.support.scripts import script

REPETITIONS = 300
QUICK = {
    "all candidates equal",
    "five equal candidates, soup equal, s.e. 1",
    "soup 1 point better, 600 items",
    "8 x 75 items, 70 % right, half discordant groups",
}
"""Cases that run by default."""


nulls = script(ROOT / "benchmarks" / "nulls.py")


def test_what_is_accepted() -> None:
    assert nulls.allowed(2000) == 62
    assert nulls.allowed(2000, nulls.LOOKS_LEVEL) == 89
    assert nulls.allowed(REPETITIONS) == 12


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.NULLS))
def test_no_soup_is_called_better_that_is_not(name: str) -> None:
    repetitions = 100 if "s.e. 1" in name or "sampled" in name else REPETITIONS
    said = nulls.count(*nulls.NULLS[name], repetitions, seed=7)
    assert max(said["better"], said["every"]) <= nulls.allowed(repetitions)


@pytest.mark.slow
def test_nor_over_twenty_looks() -> None:
    said = nulls.count(*nulls.LOOKED["report items looked at 20 times, each as printed"], 40, seed=7)
    assert said["better"] <= nulls.allowed(40, nulls.LOOKS_LEVEL)


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.KEEPS))
def test_no_single_is_kept_where_the_soup_is_better_by_the_margin(name: str) -> None:
    said = nulls.count(*nulls.KEEPS[name], 100, seed=7)
    assert said["keeps"] <= nulls.allowed(100)


def test_ignoring_groups_fails() -> None:
    said = nulls.count(*nulls.FAILS["groups ignored"], REPETITIONS, seed=7)
    assert said["better"] > 1.5 * nulls.allowed(REPETITIONS)


def test_a_real_difference_is_found_and_a_hopeless_soup_is_not_kept() -> None:
    said = nulls.count(nulls.independent(3, soup=10.0), nulls.USUAL, 100)
    assert said["rejects"] > 80
    assert said["every"] > 60
    assert nulls.count(nulls.independent(3, soup=-12.0), nulls.USUAL, 100)["keeps"] > 80


@pytest.mark.parametrize(
    "name", slow_unless(QUICK, ["8 x 75 items, 70 % right, half discordant groups", "the same, 5 points better"])
)
def test_intervals_cover(name: str) -> None:
    case = nulls.COVERAGE[name]
    held = [nulls.covers(nulls.np.random.default_rng([2, r]), case) for r in range(100)]
    assert all(sum(column) >= 89 for column in zip(*held, strict=True))


pipelines = script(ROOT / "benchmarks" / "pipelines.py")


@pytest.mark.parametrize("name", ["3 x 45 items", "50 groups over 4 categories", "scores in thirds"])
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
    soup, single = pool.recipe({"model0": 0.5, "model1": 0.5}), pool.recipe({"model0": 1.0})
    assert world.difference(soup, single) == pytest.approx(0.03)
    split = pipelines.NULLS["half the categories +15, half -15"]
    assert split.difference(soup, single) == pytest.approx(0.0)
    assert split.rates(soup)[0] == pytest.approx(0.85)
