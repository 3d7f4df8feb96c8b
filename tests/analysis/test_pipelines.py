"""Whole runs in simulation: benchmarks/pipelines.py in small."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.support.scripts import script

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


def test_the_bars_can_be_missed() -> None:
    wrong = pipelines.Tally(runs=100, tested=100, better=5, false_better=5, pairs=500, covered=400)
    assert [met for _, met in pipelines.verdicts(wrong, wrong)] == [False, True, True, False]
