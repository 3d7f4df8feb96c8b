"""What every weight search promises: add a row, and it is held to all of it."""

from __future__ import annotations

import pytest

from souping.core.protocols import Strategy
from souping.core.types import UserError
from souping.search.adaptive import Adaptive
from souping.search.nevergrad import Nevergrad
from souping.search.points import Fixed, GreedySoup, Grid, Uniform
from souping.testing import check_strategy, search, search_space
from tests.support.choices import differing, each

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
def test_it_conforms(strategy: Strategy) -> None:
    check_strategy(strategy)
    with pytest.raises(UserError, match=r"optimiser\.trials"):
        strategy.start(search_space(), 0).best()
    known = strategy.known_points(3)
    if known is not None:
        requested = set(search(strategy, limit=200)[0])
        assert len(requested) == min(len(known), strategy.trials or len(known))
