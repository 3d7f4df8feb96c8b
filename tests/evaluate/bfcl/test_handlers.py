"""A choice among prompt handlers is a choice of the search: each is a trial, counts, and stays chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.protocols import Evaluator
from souping.core.scores import Mean
from souping.core.types import Item, Json, Recipe, Record, SearchSpace, Trial
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.store import Store
from souping.search.loop import SearchRun
from souping.search.points import Grid
from tests.conftest import make_items

NAMES = ("a", "b")


@dataclass(frozen=True)
class Asking(Evaluator):
    """Right on items below a number that depends on the weights and, for soups, on the handler."""

    handler: str = "own"

    @property
    def settings(self) -> dict[str, Json]:
        return {"handler": self.handler}

    def handlers_for(self, recipe: Recipe) -> tuple[str, ...]:
        return ("own",) if len(recipe.ingredients) == 1 else ("short", "long")

    def with_handler(self, handler: str) -> Asking:
        return replace(self, handler=handler)

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        return [tuple(items)]

    def evaluate(self, model: Any, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        skill = 20 * max(model.module) + {"own": 0, "short": -5, "long": 15}[self.handler]
        return [Record(item=item.id, score=float(int(item.answer) < skill)) for item in items]


def recipe_of(weights: tuple[float, ...]) -> Recipe:
    return Recipe(ingredients=NAMES, fingerprints=NAMES, weights=weights, dtype="float32")


@pytest.fixture
def evaluation(tmp_path: Path) -> Iterator[Evaluation]:
    with Store(tmp_path / "store.sqlite") as store:
        yield Evaluation(store, Asking(), lambda r: SimpleNamespace(module=r.weights), lambda r: (), lambda count: None)


def run(evaluation: Evaluation, strategy: Grid, told: list[Trial]) -> Any:
    items = make_items()
    space = SearchSpace(
        ingredients=NAMES,
        candidates=NAMES,
        categories=tuple(item.category for item in items),
        groups=tuple(item.group for item in items),
        whole=True,
    )
    return SearchRun(strategy.start(space, 0), strategy, recipe_of, evaluation, items, Mean(), told.append).run()


def test_every_handler_is_a_trial_and_counts(evaluation: Evaluation) -> None:
    trials: list[Trial] = []
    found = run(evaluation, Grid(step=0.25), trials)
    handlers: dict[tuple[float, ...], list[str]] = {}
    for trial in trials:
        handlers.setdefault(trial.weights, []).append(trial.handler)
    assert {(0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)} <= set(handlers)
    assert all(own == (["own"] if 1.0 in weights else ["short", "long"]) for weights, own in handlers.items())
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert evaluation.evaluated == len(trials) * 80
    assert (found.handler, found.recipe.weights) in (("long", (0.25, 0.75)), ("long", (0.75, 0.25)))
    assert found.result.objective == max(trial.result.objective for trial in trials)
    for limit, most in ((Grid(step=0.25, trials=4), 4), (Grid(step=0.25, budget=5 * 80 + 79), 5)):
        trials.clear()
        run(evaluation, limit, trials)
        assert len(trials) == most


def test_the_winners_handler_stays(evaluation: Evaluation) -> None:
    """The winner's handler is used for other soups too; a candidate has none but its own."""
    items, soup = make_items(), recipe_of((0.5, 0.5))
    default, short, long = (evaluation.scores(soup, items, handler).values.mean() for handler in ("", "short", "long"))
    assert default == short < long
    before = evaluation.evaluated
    assert evaluation.scores(recipe_of((1.0, 0.0)), items, "long").values.mean() == 20 / 40
    assert evaluation.evaluated == before + len(items)
