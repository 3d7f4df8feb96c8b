"""What every weight search promises (add a row, and it is held to all of it), and what each adds."""

from __future__ import annotations

import numpy as np
import pytest

from souping.core.protocols import Strategy
from souping.core.types import Cell, Result, UserError, Weights
from souping.search import points as simplex
from souping.search.adaptive import Adaptive
from souping.search.points import Fixed, GreedySoup, Grid, Nevergrad, Search, Uniform
from souping.search.schedule import ALPHAS, Schedule, Window, scrambled, windows
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
    "schedule": [Schedule(), Schedule(trials=4), Schedule(only="minus_sqrt")],
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


@pytest.mark.parametrize(("size", "soups"), [(2, 9 + 2), (3, 36 + 1 + 3), (4, 84 + 1 + 4), (5, 126 + 5), (10, 1 + 10)])
def test_grid_is_the_papers_points_uniform_and_vertices_each_once(size: int, soups: int) -> None:
    points = Grid().known_points(size)
    assert len({tuple(round(w, 6) for w in p) for p in points}) == len(points) == soups == Grid().count(size)
    assert set(simplex.grid(size)) | set(simplex.vertices(size)) <= {
        p for p in points if p != simplex.uniform(size)
    } | {min(simplex.grid(size), key=lambda p: max(abs(w - 1 / size) for w in p))}


def test_a_grid_without_a_point_is_refused() -> None:
    with pytest.raises(UserError, match="no point for 11 ingredients"):
        Grid().known_points(11)
    with pytest.raises(UserError, match="over a million"):
        Grid(step=0.01, minimum=0.01, maximum=0.99).known_points(6)


def test_grid_says_its_number_of_points() -> None:
    assert Grid().describe(3) == "grid: 40 soups (36 points of step 0.1, uniform, 3 singles)"
    assert Grid(trials=1).describe(3).endswith("singles), at most 1 soup")
    assert Grid(budget=12000).describe(3).endswith("singles), at most 12,000 items")
    assert Grid(trials=12).count(3) == 12


def test_equal_results_prefer_fewer_ingredients_then_the_earlier() -> None:
    search = Search([(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
    flat = Result(objective=0.7, categories={}, items=1)
    for cell in [search.ask() for _ in range(3)][::-1]:
        assert cell is not None
        search.tell(cell, flat)
    assert search.best() == (1.0, 0.0)


@pytest.mark.parametrize("limit", ["trials", "budget"])
def test_limits_below_one_are_refused(limit: str) -> None:
    for kind in (Grid, Uniform, Nevergrad):
        with pytest.raises(UserError, match=f"{limit}=.* at least 1"):
            kind(**{limit: 0})


def test_nevergrad_names_the_nearest_optimiser() -> None:
    with pytest.raises(UserError, match="did you mean OnePlusOne"):
        Nevergrad(name="OnePlusOn")
    with pytest.raises(UserError, match="never ends by itself"):
        Nevergrad(trials=None)
    with pytest.raises(UserError, match="no lattice point"):
        Nevergrad(parametrisation="lattice", step=0.5).start(search_space(), 0)


def test_a_seed_decides_nevergrads_proposals_and_its_check_moves_no_random_numbers() -> None:
    before = np.random.RandomState(3).get_state()
    np.random.set_state(before)
    assert search(Nevergrad(trials=9), seed=1)[0] != search(Nevergrad(trials=9), seed=2)[0]
    assert (np.random.get_state()[1] == before[1]).all()


def test_fixed_weights_follow_the_pool_or_the_ingredients() -> None:
    for given in ([0.4, 0.6], [0.4, 0, 0.6]):
        assert Fixed(weights=given).start(search_space(("a", "c")), 0).ask() == Cell(weights=(0.4, 0.6))
    with pytest.raises(UserError, match=r"gives 0.2 to b, which was not selected"):
        Fixed(weights=[0.4, 0.2, 0.4]).start(search_space(("a", "c")), 0)
    with pytest.raises(UserError, match="has 4 weights"):
        Fixed(weights=[0.25] * 4).start(search_space(("a", "c")), 0)
    with pytest.raises(UserError, match=r"sums to 0.9"):
        Fixed(weights=[0.4, 0.5])


def two_digits(weights: Weights) -> list[str]:
    return [f"{weight:.2f}" for weight in weights if weight]


def test_weights_of_a_schedule() -> None:
    """Each equals what its decay of the learning rate, or its recursion, gives; the oldest checkpoint is the first."""
    assert two_digits(Window.of("minus_sqrt", 4, 6).weights) == ["0.50", "0.21", "0.16", "0.13"]
    assert two_digits(Window.of("uniform", 4, 6).weights) == ["0.25"] * 4
    for kind, decay in {"uniform": lambda t: 1 - t, "minus_sqrt": lambda t: 1 - t**0.5}.items():
        for size in (2, 5, 12):
            left = np.cumsum(Window.of(kind, size, size).weights[::-1])[::-1]
            assert left == pytest.approx([decay(i / size) for i in range(size)])
    for alpha in ALPHAS:
        average = np.eye(5)[0]
        for one in np.eye(5)[1:]:
            average = alpha * one + (1 - alpha) * average
        assert Schedule(only="ema", alpha=alpha).known_points(5)[0] == pytest.approx(tuple(average))
    assert two_digits(Schedule(only="ema").known_points(4)[0]) == ["0.51", "0.13", "0.16", "0.20"]


@pytest.mark.parametrize(("size", "count"), [(2, 5), (5, 10), (12, 20), (100, 19)])
def test_a_schedule_lists_about_twenty_windows_each_once(size: int, count: int) -> None:
    found = windows(size)
    assert len({window.weights for window in found}) == len(found) == Schedule().count(size) == count
    for window in found:
        assert len(window.weights) == size
        assert sum(window.weights) == pytest.approx(1)
        assert [weight > 0 for weight in window.weights] == [False] * (size - window.length) + [True] * window.length


def test_scrambled_weights_are_the_same_on_other_checkpoints() -> None:
    weights = Window.of("minus_sqrt", 4, 12).weights
    assert sorted(scrambled(weights)) == sorted(weights)
    assert scrambled(weights) == scrambled(weights) != weights


def grown(scores: dict[frozenset[int], float], late: bool) -> tuple[list[Weights], Weights]:
    """Run a greedy soup over three ingredients; with `late`, three requests are open before a result comes."""
    optimiser, asked = GreedySoup().start(search_space(), 0), list[Weights]()
    waiting: list[Cell] = []
    while (cell := optimiser.ask()) is not None or waiting:
        if cell is not None:
            asked.append(cell.weights)
            waiting.append(cell)
        if cell is None or not late or len(waiting) == 3:
            first = waiting.pop(0)
            members = frozenset(i for i, w in enumerate(first.weights) if w)
            optimiser.tell(first, Result(objective=scores[members], categories={}, items=1))
    return asked, optimiser.best()


GREEDY = {
    "grows": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.8, 102: 0.9}, {0, 1, 2}),
    "rejects the equal": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.7, 10: 0.75}, {0, 1}),
    "keeps the single": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.6, 10: 0.65}, {1}),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", list(GREEDY))
def test_a_greedy_soup_grows_only_while_strictly_better(case: str, late: bool) -> None:
    table, expected = GREEDY[case]
    scores = dict.fromkeys([frozenset(s) for s in ([0, 1], [0, 2], [1, 2], [0, 1, 2])], 0.0)
    scores |= {frozenset(int(digit) for digit in str(key)): value for key, value in table.items()}
    asked, best = grown(scores, late)
    assert {i for i, w in enumerate(best) if w} == expected
    assert late or len(asked) == 5
    assert len(set(asked)) == len(asked)
