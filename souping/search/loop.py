"""Weight search: ask, pour, evaluate on the search fold, tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from souping.core.objectives import value
from souping.core.protocols import Objective, Optimiser, RecipeEvaluator, Strategy
from souping.core.types import Item, ItemScores, Recipe, Result, Trial, UserError, Weights


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Winner of a search and every trial that led to it; `handler` is how the winner was asked."""

    recipe: Recipe
    weights: Weights
    result: Result
    trials: tuple[Trial, ...]
    handler: str = ""


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
    evaluation: RecipeEvaluator,
    items: Sequence[Item],
    objective: Objective,
    tell: Callable[[Trial], None],
) -> SearchResult:
    """Run a search to its end, or to its limit of trials (soups) or budget (items, reused ones included).

    Reused items count, so that a run that is repeated from the store takes the same path. Where the evaluator can ask a
    soup in several ways, each way is a trial of its own, and the optimiser hears of the best of them.
    """
    trials: list[Trial] = []
    best: dict[Weights, Trial] = {}
    while _may_go_on(strategy, len(trials), len(items)):
        cell = optimiser.ask()
        if cell is None:
            break
        weights = cell.weights
        recipe, first = recipe_of(weights), len(trials)
        for handler in evaluation.handlers(recipe):
            if _may_go_on(strategy, len(trials), len(items)):
                before = evaluation.reused
                result = result_of(evaluation.scores(recipe, items, handler), objective)
                reused, number = evaluation.reused - before, len(trials)
                trial = Trial(
                    number=number, recipe=recipe, weights=weights, result=result, reused=reused, handler=handler
                )
                trials.append(trial)
                tell(trial)
        best[weights] = max(trials[first:], key=lambda trial: trial.result.objective)
        optimiser.tell(cell, best[weights].result)
    winner = best[optimiser.best()]
    return SearchResult(
        recipe=winner.recipe,
        weights=winner.weights,
        result=winner.result,
        trials=tuple(trials),
        handler=winner.handler,
    )


def trial_limit(strategy: Strategy, size: int, ways: int, items: int) -> int | None:
    """Trials at most of a search over `size` ingredients: the strategy's own count in every way of asking, its limit
    of trials, its budget of items. None where nothing limits it."""
    count = strategy.count(size)
    budget = strategy.budget // items if strategy.budget is not None and items else None
    limits = [n for n in (count and count * ways, strategy.trials, budget) if n is not None]
    return min(limits, default=None)


def _may_go_on(strategy: Strategy, trials: int, items: int) -> bool:
    if strategy.trials is not None and trials >= strategy.trials:
        return False
    return strategy.budget is None or (trials + 1) * items <= strategy.budget
