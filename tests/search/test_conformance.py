"""What every weight search promises: add a row, and it is held to all of it."""

from __future__ import annotations

import pytest

from souping.core.protocols import Optimiser, Strategy
from souping.core.types import UserError
from souping.search.adaptive import Adaptive
from souping.search.nevergrad import Nevergrad
from souping.search.points import Fixed, GreedySoup, Grid, Uniform
from tests.support.choices import differing, each
from tests.support.searches import answered, result, run, space

ROWS: dict[str, list[Strategy]] = {
    "grid": [Grid(), Grid(trials=12)],
    "nevergrad": [
        Nevergrad(trials=9),
        Nevergrad(name="CMA", trials=9),
        Nevergrad(name="ScrHammersleySearch", parametrisation="normalise", trials=9),
        Nevergrad(name="DiscreteOnePlusOne", parametrisation="lattice", trials=9),
    ],
    "adaptive": [Adaptive(), Adaptive(stop="never", budget=400), Adaptive(step=0.05)],
    "greedy_soup": [GreedySoup()],
    "uniform": [Uniform()],
    "fixed": [Fixed(weights=[0.5, 0.2, 0.3])],
}


def test_every_choice_has_a_row() -> None:
    assert differing("optimiser", ROWS) == {}


@pytest.mark.parametrize("strategy", each(ROWS))
class TestStrategy:
    def test_points_lie_on_the_simplex(self, strategy: Strategy) -> None:
        asked, _ = run(strategy)
        assert asked
        assert all(len(w) == 3 and min(w) >= 0 and abs(sum(w) - 1) < 1e-6 for w in asked)

    def test_best_is_the_highest_told(self, strategy: Strategy) -> None:
        asked, optimiser = run(strategy)
        assert result(optimiser.best()).objective == max(result(w).objective for w in asked)

    def test_one_seed_one_search(self, strategy: Strategy) -> None:
        assert run(strategy, seed=3)[0] == run(strategy, seed=3)[0]

    def test_results_may_come_back_in_any_order(self, strategy: Strategy) -> None:
        optimiser = strategy.start(space(), 0)
        asked = [cell for cell in (optimiser.ask() for _ in range(5)) if cell is not None]
        for cell in reversed(asked):
            optimiser.tell(cell, answered(cell))
        assert optimiser.best() in [cell.weights for cell in asked]

    def test_it_says_what_it_will_do(self, strategy: Strategy) -> None:
        count = strategy.count(3)
        assert count is None or count >= 1
        assert strategy.describe(3)

    def test_a_search_without_a_result_has_no_best(self, strategy: Strategy) -> None:
        with pytest.raises(UserError, match=r"optimiser\.trials"):
            strategy.start(space(), 0).best()

    def test_it_is_a_strategy_and_opens_an_optimiser(self, strategy: Strategy) -> None:
        assert Strategy in type(strategy).__mro__
        assert Optimiser in type(strategy.start(space(), 0)).__mro__

    def test_it_asks_no_more_than_it_says(self, strategy: Strategy) -> None:
        asked, _ = run(strategy)
        count = strategy.count(3)
        assert count is None or len(set(asked)) <= count

    def test_points_known_beforehand_are_those_it_asks(self, strategy: Strategy) -> None:
        known = strategy.known_points(3)
        if known is not None:
            asked = list(dict.fromkeys(run(strategy, limit=200)[0]))
            assert asked == list(known)[: len(asked)]
            assert len(asked) == min(len(known), strategy.trials or len(known))
