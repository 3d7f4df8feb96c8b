"""The search loop: cells, limits, results in any order, soups that were dropped, the winner on the whole fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from souping.core.protocols import Optimiser, RecipeEvaluator, Strategy
from souping.core.scores import Mean
from souping.core.types import (
    Cell,
    Item,
    ItemScores,
    Json,
    Recipe,
    Request,
    Result,
    SearchSpace,
    Trial,
    Weights,
)
from souping.search.loop import SearchResult, SearchRun
from tests.conftest import make_items, recipe

ITEMS = make_items(10)
FIRST, SECOND = (0.5, 0.5), (0.3, 0.7)


def truth(weights: Sequence[float], item: Item) -> float:
    """Right on the first items of each category, as many as the weight of the first ingredient says."""
    return float(int(str(item.answer)) < 10 * weights[0])


@dataclass
class Table(RecipeEvaluator):
    """Answers by a table, `slots` at once; the latest request is answered first."""

    at_once: int = 1
    costs: float = 1.0
    open: list[Request] = field(default_factory=list)
    asked: list[tuple[Weights, int]] = field(default_factory=list)
    most: int = 0

    @property
    def reused(self) -> int:
        return 0

    @property
    def slots(self) -> int:
        return self.at_once

    @property
    def full_batch(self) -> int:
        return 1

    @property
    def whole_folds(self) -> bool:
        return False

    def handlers(self, recipe: Recipe) -> tuple[str, ...]:
        return ("",)

    def all_scores(self, asks: Sequence[tuple[Recipe, str]], items: Sequence[Item]) -> list[ItemScores]:
        raise AssertionError("the loop submits requests")

    def scores(self, recipe: Recipe, items: Sequence[Item], handler: str = "") -> ItemScores:
        raise AssertionError("the loop submits requests")

    def submit(self, request: Request) -> None:
        self.open.append(request)
        self.most = max(self.most, len(self.open))

    def collect(self) -> tuple[Request, ItemScores]:
        request = self.open.pop()
        full = dict(zip(("a", "b"), (0.0, 0.0), strict=True)) | dict(
            zip(request.recipe.ingredients, request.recipe.weights, strict=True)
        )
        values = np.array([truth(tuple(full.values()), item) for item in request.items])
        self.asked.append((tuple(full.values()), len(request.items)))
        number = len(request.items)
        costs = {"seconds": self.costs * number, "generated": 3 * number, "prefilled": 5 * number}
        return request, ItemScores(items=request.items, values=values, **costs)


@dataclass
class Scripted(Optimiser):
    """Asks what it was given, and holds one soup for the best."""

    cells: list[Cell]
    choice: Weights
    told: list[tuple[Cell, Result]] = field(default_factory=list)

    def ask(self) -> Cell | None:
        return self.cells.pop(0) if self.cells else None

    def tell(self, cell: Cell, result: Result) -> None:
        self.told.append((cell, result))

    def best(self) -> Weights:
        return self.choice

    def summary(self) -> Mapping[str, Json]:
        return {"asked": len(self.told)}


@dataclass(frozen=True, kw_only=True)
class Limits(Strategy):
    """Nothing but limits."""

    trials: int | None = None
    budget: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def start(self, space: SearchSpace, seed: int) -> Optimiser:
        raise AssertionError

    def count(self, size: int) -> int | None:
        return None

    def describe(self, size: int) -> str:
        return "limits"


def run(
    optimiser: Scripted, limits: Limits, table: Table, known: Mapping[Weights, np.ndarray] | None = None
) -> tuple[SearchResult, list[Trial]]:
    heard: list[Trial] = []
    found = SearchRun(
        optimiser, limits, lambda weights: recipe(*weights), table, ITEMS, Mean(), heard.append, known
    ).run()
    assert list(found.trials) == heard
    return found, heard


def parts(weights: Weights, *places: Sequence[int]) -> list[Cell]:
    return [Cell(weights=weights, items=tuple(own)) for own in places]


def test_soups_that_were_dropped_are_no_ones_equals_and_the_winner_answers_the_whole_fold() -> None:
    optimiser = Scripted([*parts(FIRST, range(5), range(10, 15)), *parts(SECOND, range(3))], FIRST)
    found, trials = run(optimiser, Limits(), Table())
    assert [(trial.weights, trial.whole, trial.result.items) for trial in trials] == [
        (FIRST, True, 20),
        (SECOND, False, 3),
    ]
    assert found.result.objective == 0.5
    assert np.isnan(trials[1].result.objective)
    assert [len(cell.items or ()) for cell, _ in optimiser.told] == [5, 5, 3]  # not of the confirmation
    assert optimiser.told[0][1].values.tolist() == [1.0] * 5
    assert (found.cost.items, found.cost.seconds, found.cost.generated_tokens) == (20 + 3, 23.0, 69)
    assert found.summary == {"asked": 3}


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        (Limits(trials=1), [5, 5]),
        (Limits(budget=20), [5, 5, 3]),
        (Limits(budget=12), [5, 5]),
        (Limits(tokens=15), [5]),
        (Limits(tokens=16), [5, 5]),
        (Limits(seconds=9.0), [5, 5]),
    ],
)
def test_the_first_limit_ends_a_search(limits: Limits, asked: list[int]) -> None:
    optimiser = Scripted([*parts(FIRST, range(5), range(10, 15)), *parts(SECOND, range(3))], FIRST)
    found, _ = run(optimiser, limits, Table())
    assert [len(cell.items or ()) for cell, _ in optimiser.told] == asked
    assert found.result.items == 20


def test_where_the_budget_has_no_room_for_the_best_a_whole_soup_wins() -> None:
    optimiser = Scripted([Cell(weights=FIRST), *parts(SECOND, range(3), range(10, 13))], SECOND)
    found, _ = run(optimiser, Limits(budget=26), Table())
    assert found.recipe.weights == FIRST
    assert found.cost.items == 26


def test_singles_that_are_known_are_trials_and_cost_nothing() -> None:
    known = {(1.0, 0.0): np.ones(20), (0.0, 1.0): np.zeros(20)}
    found, trials = run(Scripted([Cell(weights=FIRST)], FIRST), Limits(budget=20), Table(), known)
    assert [(trial.weights, trial.reused) for trial in trials] == [((1.0, 0.0), 20), ((0.0, 1.0), 20), (FIRST, 0)]
    assert found.cost.items == 20
    alone, _ = run(Scripted([], (1.0, 0.0)), Limits(), Table(), known)
    assert (alone.result.objective, alone.cost.items) == (1.0, 0)


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_are_open_as_there_are_slots_and_results_come_in_any_order(at_once: int) -> None:
    points = [(w / 10, round(1 - w / 10, 12)) for w in range(1, 10)]
    table = Table(at_once)
    found, trials = run(Scripted([Cell(weights=point) for point in points], points[-1]), Limits(), table)
    assert table.most == at_once
    assert sorted(trial.weights for trial in trials) == points
    assert [trial.number for trial in trials] == list(range(9))
    assert found.result.objective == 0.9
