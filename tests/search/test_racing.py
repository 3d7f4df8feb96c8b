"""Races by halving, and the stop rule of whole-fold searches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from souping.core.types import UserError
from souping.search.nevergrad import Nevergrad
from souping.search.points import Grid
from souping.search.racing import raced_items
from tests.support.worlds import AnswerWorld, price, searched, world


def loss(of: AnswerWorld, strategy: Grid | Nevergrad, seed: int) -> float:
    search = strategy.start(of.space, seed)
    searched(search, of)
    return float(of.ok.mean(1).max() - of.score(search.best()))


@pytest.mark.parametrize("opened", [1, 5])
def test_a_race_takes_what_it_says_and_its_winner_answered_everything(opened: int) -> None:
    of, grid = world(), Grid(racing="halving")
    search = grid.start(of.space, 0)
    asked = searched(search, of, opened)
    expected = grid.workload(3, 120)
    assert expected is not None
    assert abs(price(asked, of) - expected[0]) < 0.15 * expected[0]
    assert expected[0] == raced_items(40, 120) < 0.3 * of.ok.size
    seen = sum(price([cell], of) for cell in asked if cell.weights == search.best())
    assert seen == 120
    assert "dropped early" in str(search.summary()["racing"])


def test_a_race_loses_little_beside_the_whole_grid() -> None:
    lost = [loss(world(seed), Grid(racing="halving"), seed) for seed in range(12)]
    assert np.mean(lost) < 0.03


def test_a_budget_shrinks_or_grows_the_early_stages() -> None:
    of = world()
    free = price(searched(Grid(racing="halving").start(of.space, 0), of), of)
    for budget in (700, 2 * free):
        spent = price(searched(Grid(racing="halving", budget=budget).start(of.space, 0), of), of)
        assert 0.7 * budget < spent <= budget


def test_nevergrad_hears_of_soups_that_were_dropped() -> None:
    of, search = world(), Nevergrad(parametrisation="lattice", trials=24, racing="halving").start(world().space, 0)
    wide = replace(of, points=of.points)
    asked = searched(search, wide, limit=60)
    assert len({cell.weights for cell in asked}) > 8
    assert search.best() in of.points


def test_the_stop_rule_ends_a_grid_early() -> None:
    of = world()
    search = Grid(stop="auto").start(of.space, 0)
    asked = searched(search, of)
    assert len(asked) < 40
    assert {cell.items for cell in asked} == {None}
    assert "finishing the fold would gain" in str(search.summary()["stopped"])
    assert search.best() in {cell.weights for cell in asked} | set(of.points[1:4])


def test_where_parts_may_not_be_asked_a_race_is_a_grid() -> None:
    of = world(whole=True)
    asked = searched(Grid(racing="halving").start(of.space, 0), of)
    assert len(asked) == 40
    assert {cell.items for cell in asked} == {None}


@pytest.mark.parametrize(
    ("racing", "stop", "words"),
    [("fast", "never", "racing=fast"), ("halving", "auto", "leave out"), ("none", "x", "stop=x")],
)
def test_unknown_manners_are_refused(racing: str, stop: str, words: str) -> None:
    for kind in (Grid, Nevergrad):
        with pytest.raises(UserError, match=words):
            kind(racing=racing, stop=stop)
