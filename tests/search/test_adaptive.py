"""What the adaptive search promises beside the conformance suite: budgets, blocks, finalists, rules, odd tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from souping.core.types import SearchSpace
from souping.search.adaptive import Adaptive
from souping.search.points import Grid, anchors
from tests.support.choices import slow_unless
from tests.support.worlds import price, searched, world

PLAIN = Adaptive(stop="never")


@pytest.mark.parametrize(("budget", "opened"), [(130, 1), (300, 4), (1000, 1), (1000, 4)])
def test_a_budget_is_kept_and_the_winner_answered_the_whole_fold(budget: int, opened: int) -> None:
    of = world()
    search = replace(PLAIN, budget=budget).start(of.space, 1)
    asked = searched(search, of, opened)
    assert price(asked, of) <= budget
    best = price([cell for cell in asked if cell.weights == search.best()], of)
    assert search.best() in of.points[1:4] or best == 120


def test_no_item_is_asked_twice_of_a_soup_and_every_prefix_is_nested() -> None:
    of = world()
    orders: dict[tuple[float, ...], list[int]] = {}
    for cell in searched(replace(PLAIN, budget=1500).start(of.space, 1), of):
        orders.setdefault(cell.weights, []).extend(cell.items or range(120))
    assert all(len(items) == len(set(items)) for items in orders.values())
    for category in ("c0", "c1", "c2"):
        inside = {i for i, name in enumerate(of.space.categories) if name == category}
        rows = sorted((inside & set(items) for items in orders.values()), key=len)
        assert all(short <= rows[-1] for short in rows)
        assert rows[-1], "no category starves"


def test_it_finds_what_the_whole_grid_finds_for_a_quarter_of_its_items() -> None:
    lost = []
    for seed in range(12):
        of = world(seed)
        search = replace(PLAIN, budget=round(0.25 * of.values.size)).start(of.space, seed)
        searched(search, of)
        lost.append(of.truth.max() - of.score(search.best()))
    assert np.mean(lost) < 0.03


def test_a_larger_budget_goes_on_where_a_smaller_one_ended() -> None:
    of = world(3)
    short = searched(replace(PLAIN, budget=400).start(of.space, 3), of)
    long = searched(replace(PLAIN, budget=1200).start(of.space, 3), of)
    same = next(n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b)
    assert price(short[same:], of) <= 120, "only the finalist's rest differs"


def test_the_stop_rule_ends_a_search_early_and_says_why() -> None:
    of = world()
    search = Adaptive().start(of.space, 0)
    assert price(searched(search, of), of) < 0.5 * of.values.size
    summary = search.summary()
    assert "finishing the fold would gain" in str(summary["stopped"])
    assert 0 <= int(str(summary["indistinguishable_count"])) < len(of.points)
    assert float(str(summary["finishing_gain"])) >= 0


def test_whole_folds_are_asked_where_parts_may_not_be() -> None:
    of = world(whole=True)
    search = replace(PLAIN, budget=900).start(of.space, 0)
    asked = searched(search, of)
    assert {cell.items for cell in asked} == {None}
    assert len(asked) == len({cell.weights for cell in asked}) <= 7
    search.best()


def test_batches_are_no_smaller_than_the_evaluators() -> None:
    of = world()
    spaces = (of.space, replace(of.space, full_batch=60))
    small, large = (searched(replace(PLAIN, budget=1000).start(space, 0), of) for space in spaces)
    assert np.median([price([cell], of) for cell in small]) < np.median([price([cell], of) for cell in large])


def test_unknown_singles_are_asked_like_any_soup() -> None:
    of = world()
    search = replace(PLAIN, budget=800).start(replace(of.space, singles=None), 0)
    assert price(searched(search, of), of) <= 800
    search.best()


def test_scores_that_are_all_equal_are_searched_too() -> None:
    of = replace(world(), values=np.ones((40, 120)))
    search = Adaptive().start(replace(of.space, singles=np.ones((3, 120))), 0)
    searched(search, of)
    assert search.best() in of.points


@pytest.mark.parametrize(
    ("step", "size"), [(0.1, 6), (0.1, 50), (0.05, 6), pytest.param(0.5, 7, marks=pytest.mark.slow)]
)
def test_many_ingredients_are_searched_by_soups_of_a_few_of_them(step: float, size: int) -> None:
    """The paper's grid has no point for more than ten, and few for more than seven."""
    space = SearchSpace(
        ingredients=tuple(map(str, range(size))), categories=("a", "a", "b"), groups=("1", "2", "3"),
        coefficients={"a": 0.5, "b": 0.5}, singles=np.linspace(0, 1, 3 * size).reshape(size, 3).clip(0.1, 0.9),
    )  # fmt: skip
    points = Adaptive(step=step)._points(size, space.objectives)
    assert points == Adaptive(step=step)._points(size, space.objectives)
    assert points[: size + 1] == anchors(size)
    assert len(set(points)) == len(points) <= 240
    assert all(sum(point) == pytest.approx(1) and min(point) >= 0 for point in points)
    assert f"{len(points)} possible soups" in Adaptive(step=step).describe(size)
    sparse = [point for point in points[size + 1 :] if 0 in point]
    assert len(sparse) >= size
    if size == 50:  # the better singles are the later ones here
        assert np.mean([np.mean(np.flatnonzero(point)) for point in sparse]) > 35
    assert Adaptive(step=step).start(space, 0).ask() is not None


def test_few_ingredients_are_searched_on_the_papers_grid_or_a_finer_one() -> None:
    assert len(Adaptive(step=0.05)._points(3)) > 100
    for size in (2, 3, 4, 5):
        assert set(Adaptive()._points(size)) == set(Grid().known_points(size))


SHAPES = {
    "sixty items": {"items": 180, "fold": 1 / 3},
    "two ingredients": {"size": 2},
    "six ingredients": {"size": 6, "items": 120},
    "one category": {"shares": (1.0,)},
    "thirty categories": {"shares": (1 / 30,) * 30},
    "lopsided categories": {"shares": (0.9, 0.08, 0.01, 0.01)},
    "groups of twenty": {"group": 20, "shares": (0.5, 0.5)},
    "a category that all pass": {"even": True},
}


@pytest.mark.parametrize("name", slow_unless(SHAPES.keys() - {"six ingredients", "thirty categories"}, SHAPES))
def test_part_of_the_grid_finds_better_than_chance(name: str) -> None:
    """On odd tables: few or lopsided categories, large groups, ties, two or six ingredients."""
    lost, chance = [], []
    for seed in range(5):
        of = world(seed, **{"items": 360, "shares": (0.25,) * 4, "fold": 0.5, "full_batch": 16, **SHAPES[name]})
        budget = round((0.1 if name == "six ingredients" else 0.25) * len(of.points) * of.fold)
        search = replace(PLAIN, budget=budget).over(of.points, of.space, seed)
        assert price(searched(search, of), of) <= budget
        assert 0 <= int(str(search.summary()["indistinguishable_count"])) < len(of.points)
        lost.append(of.truth.max() - of.score(search.best()))
        chance.append((of.truth.max() - of.truth).mean())
    assert np.mean(lost) < 0.75 * np.mean(chance)
