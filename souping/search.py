"""The weight search: ask, pour, evaluate on the search fold, tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from souping.core import Item, ItemScores, Recipe, Result, Trial, UserError, Weights
from souping.evaluation import Evaluation
from souping.objective import Objective, value
from souping.protocols import Optimiser, Strategy


@dataclass(frozen=True, kw_only=True)
class Found:
    """The winner of a search and every trial that led to it."""

    recipe: Recipe
    weights: Weights
    result: Result
    trials: tuple[Trial, ...]


def result_of(scores: ItemScores, objective: Objective) -> Result:
    categories = {name: float(values.mean()) for name, values in scores.by_category().items()}
    return Result(objective=value(objective, categories), categories=categories, items=len(scores.items))


def check_budget(strategy: Strategy, items: int) -> None:
    """A budget never overshoots, so it must cover one soup."""
    if strategy.budget is not None and strategy.budget < items:
        raise UserError(
            f"optimiser.budget={strategy.budget} is less than the {items} items of the search fold that one soup "
            f"takes; set it to at least {items}"
        )


def search(
    optimiser: Optimiser,
    strategy: Strategy,
    recipe_of: Callable[[Weights], Recipe],
    evaluation: Evaluation,
    items: Sequence[Item],
    objective: Objective,
    tell: Callable[[Trial], None],
) -> Found:
    """Run a search to its end, or to its limit of trials (soups) or budget (items, reused ones included).

    Reused items count, so that a run that is repeated from the store takes the same path.
    """
    trials: list[Trial] = []
    results: dict[Weights, Result] = {}
    while _may_go_on(strategy, len(trials), len(items)):
        weights = optimiser.ask()
        if weights is None:
            break
        recipe, before = recipe_of(weights), evaluation.reused
        results[weights] = result_of(evaluation.scores(recipe, items), objective)
        optimiser.tell(weights, results[weights])
        reused = evaluation.reused - before
        trials.append(Trial(number=len(trials), recipe=recipe, weights=weights, result=results[weights], reused=reused))
        tell(trials[-1])
    best = optimiser.best()
    return Found(recipe=recipe_of(best), weights=best, result=results[best], trials=tuple(trials))


def _may_go_on(strategy: Strategy, trials: int, items: int) -> bool:
    if strategy.trials is not None and trials >= strategy.trials:
        return False
    return strategy.budget is None or (trials + 1) * items <= strategy.budget
