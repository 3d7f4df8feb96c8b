"""Points of a search, their order and limits, by worked examples and by what they are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import comb

import nevergrad
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from souping.core.types import (
    FloatArray,
    ItemScores,
    Query,
    Result,
    SearchSpace,
    UserError,
    Weights,
)
from souping.search.adaptive import Adaptive
from souping.search.loop import SearchCost, check_budget, trial_limit
from souping.search.points import (
    Fixed,
    GreedySoup,
    Grid,
    Nevergrad,
    Uniform,
    anchors,
    check_step,
    grid_size,
    scattered,
    spread,
    weight_grid,
    weights_key,
)
from souping.testing import search_space
from tests.conftest import make_items


@pytest.mark.parametrize(("size", "step"), [(2, 0.25), (3, 0.1), (4, 0.2)])
def test_the_grid_has_all_multiples_of_the_step_that_sum_to_one(size: int, step: float) -> None:
    steps = round(1 / step)
    expected = set()
    for counts in itertools.product(range(1, steps), repeat=size):
        if sum(counts) == steps:
            expected.add(tuple(round(count / steps, 12) for count in counts))
    points = weight_grid(size, step)
    assert set(points) == expected
    assert len(points) == grid_size(size, step) == comb(steps - 1, size - 1)


@pytest.mark.parametrize("size", [2, 3])
def test_each_point_of_a_spread_is_the_farthest_from_all_before_it(size: int) -> None:
    points = weight_grid(size, 0.1)[::-1]
    table = np.array(points)
    order = spread(points)
    assert sorted(order) == sorted(points)
    from_centre = cdist(table, [table.mean(axis=0)])[:, 0]
    assert from_centre[points.index(order[0])] == pytest.approx(from_centre.min())
    for n in range(1, len(order)):
        to_nearest = cdist(table, order[:n]).min(axis=1)
        assert to_nearest[points.index(order[n])] == pytest.approx(to_nearest.max())


def test_the_spread_of_a_line_by_hand() -> None:
    """The centre is 0.42; 0.4 is nearest, then the ends, then the middle of the longer gap."""
    line = [0.0, 0.1, 0.4, 0.6, 1.0]
    points = [(value, 1 - value) for value in line]
    assert [point[0] for point in spread(points)] == [0.4, 1.0, 0.0, 0.6, 0.1]
    for count in (0, 1, 2):
        assert spread(points[:count]) == points[:count]


def first(count: int, size: int, step: float, odds: FloatArray) -> list[Weights]:
    return list(itertools.islice(scattered(size, step, odds), count))


def test_scattered_points_are_all_of_a_coarse_grid() -> None:
    points = first(200, 2, 0.25, np.array([0.5, 0.5]))
    assert set(points) == {(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)}
    halves = first(100, 3, 0.5, np.full(3, 1 / 3))
    assert set(halves) == {(0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)}


def test_scattered_points_have_two_to_nine_members_by_their_odds() -> None:
    odds = np.array([0.4, *[0.05] * 12])
    table = np.array(first(1000, 13, 0.05, odds))
    assert table.sum(axis=1) == pytest.approx(np.ones(1000))
    assert np.unique((table > 0).sum(axis=1)).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert table[table > 0].min() == 0.05
    of_two = table[(table > 0).sum(axis=1) == 2] > 0
    # The first is a member as the first or the second that is drawn: 0.4 + 12 x 0.05 x 0.4 / 0.95.
    assert of_two[:, 0].mean() == pytest.approx(0.4 + 12 * 0.05 * 0.4 / 0.95, abs=0.08)


@pytest.mark.parametrize("step", [1e-4, 0.1, 0.25, 0.5, 1 / 3])
def test_steps_that_divide_one(step: float) -> None:
    check_step(step)


@pytest.mark.parametrize("step", [0.99e-4, 0.3, 1.0, 0.0, -0.1, 0.501])
def test_steps_that_do_not_divide_one_are_refused(step: float) -> None:
    with pytest.raises(UserError, match=r"optimiser\.step"):
        check_step(step)


@pytest.mark.parametrize(("size", "count"), [(5, 1 + 5 + 125), (6, 240), (50, 240), (100, 300)])
def test_an_adaptive_search_has_at_most_240_soups_or_three_for_each_ingredient(
    size: int, count: int
) -> None:
    assert len(Adaptive().points(size)) == count


def test_half_of_the_soups_of_many_ingredients_are_of_the_grid() -> None:
    points = Adaptive().points(6)
    assert sum(min(point) > 0 for point in points[7:127]) == 120
    assert set(points[7:127]) <= set(weight_grid(6))
    assert not set(points[127:133]) <= set(weight_grid(6))
    assert points[7:127] == spread(weight_grid(6))[:120]


def test_a_better_ingredient_is_more_often_in_a_soup_of_a_few() -> None:
    """Each rank below the best makes a member 0.85 times as likely to be drawn first."""
    merits = np.linspace(0, 1, 30)
    points = np.array(Adaptive().points(30, merits)[31:])
    often = (points > 0).mean(axis=0)
    assert often[15:].sum() > 5 * often[:15].sum()


class TestNevergrad:
    """Proposals are Nevergrad's own, on a simplex."""

    def proposals(self, optimiser: Nevergrad, count: int) -> list[Weights]:
        """What nevergrad proposes once the four anchors have results; a score falls by 0.01 from query to query."""
        running = optimiser.start(search_space(), 4)
        weights = []
        for n in range(4 + count):
            query = running.ask()
            assert query is not None
            weights.append(query.weights)
            running.tell(
                query, Result(objective=query.weights[0] - n / 100, categories={}, items=1)
            )
        return weights[4:]

    def expected(
        self,
        parameter: nevergrad.p.Parameter,
        name: str,
        decode: Callable[[FloatArray], FloatArray],
        count: int,
    ) -> list[FloatArray]:
        """The same by nevergrad itself, with the same seed and results."""
        parameter.random_state = np.random.RandomState(4)
        own = nevergrad.optimizers.registry[name](parameter, budget=9, num_workers=1)
        points = []
        for n in range(4, 4 + count):
            candidate = own.ask()
            points.append(decode(np.asarray(candidate.value)))
            own.tell(candidate, n / 100 - points[-1][0])
        return points

    def test_proposals_by_softmax_are_nevergrads_through_a_softmax(self) -> None:
        array = nevergrad.p.Array(shape=(3,))
        points = self.expected(array, "OnePlusOne", lambda x: np.exp(x) / np.exp(x).sum(), 5)
        proposals = self.proposals(Nevergrad(algorithm="OnePlusOne", max_trials=9), 5)
        for proposal, point in zip(proposals, points, strict=True):
            assert proposal == pytest.approx(point)

    @pytest.mark.parametrize("name", ["ScrHammersleySearch", "OnePlusOne"])
    def test_proposals_by_normalising_are_nevergrads_over_their_sum(self, name: str) -> None:
        optimiser = Nevergrad(algorithm=name, parametrisation="normalise", max_trials=9)
        array = nevergrad.p.Array(init=np.full(3, 0.5)).set_mutation(sigma=1 / 6)
        points = self.expected(array.set_bounds(0.0, 1.0), name, lambda x: x / x.sum(), 5)
        for proposal, point in zip(self.proposals(optimiser, 5), points, strict=True):
            assert proposal == pytest.approx(point, abs=1e-6)

    def test_proposals_on_the_lattice_are_points_of_the_grid(self) -> None:
        optimiser = Nevergrad(
            algorithm="RandomSearch", parametrisation="lattice", step=0.2, max_trials=9
        )
        assert set(self.proposals(optimiser, 5)) <= set(weight_grid(3, 0.2))


# Limits and costs


@pytest.mark.parametrize(
    ("optimiser", "size", "items", "limit"),
    [
        (Grid(), 2, 100, 11),
        (Grid(max_trials=5), 2, 100, 5),
        (Grid(max_items=399), 2, 100, 3),
        (Grid(max_items=399), 2, 0, 11),
        (GreedySoup(), 4, 100, 7),
        (GreedySoup(max_trials=3), 4, 100, 3),
        (GreedySoup(max_trials=30), 4, 100, 7),
        (Adaptive(), 4, 100, None),
        (Adaptive(max_trials=2, max_items=500), 4, 100, 2),
    ],
)
def test_the_most_trials_of_a_search(
    optimiser: Grid | GreedySoup | Adaptive, size: int, items: int, limit: int | None
) -> None:
    assert trial_limit(optimiser, size, items) == limit


@pytest.mark.parametrize(
    ("optimiser", "size", "text"),
    [
        (Grid(), 3, "grid: 40 soups (36 points of step 0.1, uniform, 3 singles)"),
        (Grid(step=0.25, max_trials=1, max_items=1200), 2,
         "grid: 5 soups (3 points of step 0.25, uniform, 2 singles), at most 1 soup, at most 1,200 items"),
        (Uniform(), 4, "uniform: one soup, weights 1/4"),
        (Fixed(weights=[0.5, 0.5]), 2, "fixed: one soup, weights as given"),
        (GreedySoup(), 4, "greedy soup: 4 singles, then at most 3 uniform soups"),
        (Nevergrad(algorithm="OnePlusOne"), 2, "nevergrad OnePlusOne, softmax: at most 40 soups"),
        (Adaptive(early_stopping=False, max_items=1), 2, "adaptive, 11 possible soups, at most 1 item"),
        (Adaptive(), 2, "adaptive, 11 possible soups, stops when more answers would not change the pick"),
    ],
)  # fmt: skip
def test_a_search_says_how_many_soups_it_may_take(
    optimiser: Grid | Adaptive, size: int, text: str
) -> None:
    assert optimiser.describe(size) == text


@pytest.mark.parametrize(
    ("optimiser", "count"),
    [
        (Grid(), 40), (Grid(max_trials=7), 7), (Uniform(), 1), (Fixed(weights=[0.2, 0.3, 0.5]), 1),
        (GreedySoup(), 5), (Nevergrad(max_trials=9), 9), (Adaptive(), None),
    ],
)  # fmt: skip
def test_the_number_of_soups_is_known_but_for_an_adaptive_search(
    optimiser: Grid | Adaptive, count: int | None
) -> None:
    assert optimiser.count(3) == count


@pytest.mark.parametrize(
    ("optimiser", "most"),
    [
        (Adaptive(), None), (Adaptive(max_items=700), 700), (Adaptive(max_items=10), 10),
        (Adaptive(early_stopping=False), None), (Adaptive(early_stopping=False, max_items=700), 700),
    ],
)  # fmt: skip
def test_a_search_usually_takes_7_items_by_powers_of_its_sizes(
    optimiser: Adaptive, most: int | None
) -> None:
    """7 x 3^0.75 x 200^0.8, twice that at most, never more than all 40 soups on 200 items."""
    usual = round(7 * 3**0.75 * 200**0.8)
    limit = min(40 * 200, most or 40 * 200)
    expected = (min(usual, limit), min(2 * usual, limit))
    if not optimiser.early_stopping:
        expected = (limit, limit)
    assert optimiser.workload(3, 200) == expected
    assert Adaptive().workload(2, 10_000) == (
        round(7 * 2**0.75 * 10_000**0.8),
        2 * round(7 * 2**0.75 * 10_000**0.8),
    )


def test_scales_add_each_mixture_farther_from_the_base() -> None:
    plain = Adaptive(step=0.25).points(2)
    thirds = Adaptive(step=0.25, scales=[1 / 3]).points(2)
    assert (0.083333333333, 0.25) in thirds
    scaled = Adaptive(step=0.25, scales=[1.5, 0.5]).points(2)
    mixtures = [point for point in plain if max(point) < 1]
    assert scaled[:3] == anchors(2)
    expected = {tuple(round(s * w, 12) for w in point) for s in (1.5, 0.5) for point in mixtures}
    assert set(scaled) == set(plain) | expected
    assert len(scaled) == len(set(scaled))


def test_weights_that_differ_by_rounding_have_one_key() -> None:
    assert weights_key([0.1 + 0.2, 0.7 - 1e-12]) == (0.3, 0.7)
    assert weights_key([1 / 3]) == (0.333333333,)


def test_a_point_of_the_grid_that_is_uniform_comes_once_and_first() -> None:
    points = Grid(step=0.25).known_points(2)
    assert points[:3] == anchors(2) == [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    assert sorted(points[3:]) == [(0.25, 0.75), (0.75, 0.25)]


def test_a_budget_covers_one_soup() -> None:
    check_budget(Grid(max_items=20), 20)
    check_budget(Grid(), 20)
    with pytest.raises(UserError, match=r"optimiser\.max_items=19"):
        check_budget(Grid(max_items=19), 20)


def test_costs_add_up() -> None:
    items = tuple(make_items(5))
    scores = ItemScores(items=items, values=np.ones(10))
    cost = SearchCost()
    cost.add(replace(scores, reused=4, prefilled=7, generated=11, seconds=1.5))
    cost.add(replace(scores, reused=10, prefilled=1, generated=2, seconds=0.25))
    assert (cost.items, cost.evaluated, cost.seconds) == (20, 6, 1.75)
    assert (cost.prefilled_tokens, cost.generated_tokens) == (8, 13)


# When an adaptive search ends


def one_category(items: int) -> SearchSpace:
    """Two ingredients that answer all items alike: no soup promises anything."""
    return SearchSpace(
        ingredients=("a", "b"),
        categories=("c",) * items,
        groups=tuple(map(str, range(items))),
        coefficients={"c": 1.0},
        singles=np.tile(np.arange(items) % 2.0, (2, 1)),
    )


def test_a_search_ends_where_little_is_gained_at_every_third_of_a_split() -> None:
    """The gain is looked at after 20 of 60 items or more; below 0.001 the search ends."""
    running = Adaptive().start(one_category(60), 0)
    spent = 0
    spent_at_check = 0
    gains = []
    ends = False
    while not ends:
        gain = running.summary().finishing_gain
        if spent >= spent_at_check + 20:
            spent_at_check = spent
            gains.append(gain)
            ends = gain < 0.001
        query = running.ask()
        assert (running.summary().stopped.gain is not None) == ends
        if query is None:
            break
        items = list(query.items or range(60))
        spent += len(items)
        values = np.array([item % 2.0 for item in items])
        running.tell(query, Result(objective=0.5, categories={}, items=len(items), values=values))
    assert ends
    assert len(gains) > 3


def test_a_cell_of_all_items_is_a_whole_split() -> None:
    space = one_category(23)
    query = Adaptive(early_stopping=False).start(space, 0).ask()
    assert query is not None
    assert query.items is None
    assert query == Query(weights=query.weights)


def test_a_search_ends_where_every_soup_has_answered_everything() -> None:
    running = Adaptive().over([(1.0, 0.0), (0.0, 1.0)], one_category(60), seed=0)
    assert running.ask() is None
    assert running.summary().stopped.reason == "every soup has answered the whole split"
    assert running.best() == (1.0, 0.0)


def test_nothing_is_confirmed_that_the_budget_does_not_cover() -> None:
    space = replace(one_category(60), singles=None)
    running = Adaptive(max_items=59).start(space, 0)
    assert running.ask() is None
    with pytest.raises(UserError, match="without a result"):
        running.best()


def test_the_points_that_a_front_predicts_are_those_of_the_search() -> None:
    assert Adaptive(step=0.25).predicted_points(3) == Adaptive(step=0.25).points(3)
    assert Adaptive().uses_singles
    assert Adaptive().describe(2).startswith("adaptive, 11 possible soups, stops when")
    assert "stops" not in Adaptive(early_stopping=False).describe(2)
