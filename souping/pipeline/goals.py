"""After a run's search: the front of several goals, the point that `pick` writes, and searches of an analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from souping.analysis.front import Front, resolve_goals
from souping.analysis.intervals import ItemTable
from souping.core.types import FloatArray, Item, ItemScores, Json, Recipe, Trial, UserError, Weights
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.steps import Steps
from souping.search.adaptive import Adaptive
from souping.search.loop import RecipeEvaluator, SearchResult, find_weights, result_of


def with_front(
    run: Steps, winner: SearchResult, ingredients: tuple[str, ...], log: Callable[[Trial], None]
) -> tuple[SearchResult, dict[str, Json]]:
    """The search with its confirmed points as trials, with the soup that `pick` names; and the front's data."""
    settings, items = run.settings, run.folds["search"]
    goals = resolve_goals(settings.goals, run.categories, settings.objective.groups, list(run.extra))
    strategy = settings.optimiser if isinstance(settings.optimiser, Adaptive) else Adaptive()
    points, fold = strategy.points(len(ingredients)), ItemTable.of(items, settings.objective)
    trials = [trial for trial in winner.trials if trial.handler in ("", winner.handler)]

    def front() -> Front:
        scores = {trial.weights: trial.result.values for trial in trials}
        lengths = {trial.weights: trial.result.lengths for trial in trials}
        if any(goal.lengths for goal in goals) and not any((row > 0).any() for row in lengths.values()):
            raise UserError("pareto: this evaluator does not count the tokens of its answers")
        return Front.of(goals, items, fold, points, scores, lengths)

    first = front()
    done = {tuple(map(float, point)) for point in first.points[first.whole]}
    wanted = [point for point in first.candidates(settings.goals.pick) if point not in done]
    soups = {point: run.recipes.recipe(dict(zip(ingredients, point, strict=True))) for point in wanted}
    measured = run.evaluate_stage(run.front_stage(soups.values(), winner.handler)) if soups else {}
    for weights, recipe in soups.items():
        found = measured[recipe.id]
        result = replace(result_of(found, settings.objective), values=found.values, lengths=found.lengths)
        place = next((n for n, one in enumerate(trials) if one.weights == weights), len(trials))
        trial = Trial(number=place, recipe=recipe, weights=weights, result=result, handler=winner.handler)
        trials[place:] = [trial, *trials[place + 1 :]]
        log(trial)
    whole, winner = front(), replace(winner, trials=tuple(trials))
    if settings.goals.pick is not None:
        winner = _picked(run, winner, whole.by_pick(settings.goals.pick))
    chosen = dict(zip(winner.recipe.ingredients, winner.recipe.weights, strict=True))
    return winner, whole.as_dict(ingredients, chosen, settings.goals)


def _picked(run: Steps, winner: SearchResult, order: Sequence[Weights]) -> SearchResult:
    """The first point in this order, with guards the first that seems to keep to them; the reference if it is refused.

    As in a search no second one is tested.
    """
    trials = {trial.weights: trial for trial in winner.trials}
    chosen, admission = trials[order[0]], run.admission
    if admission is None:
        return _of(winner, chosen)
    answers = {
        point: ItemScores(
            items=run.folds["search"], values=trials[point].result.values, lengths=trials[point].result.lengths
        )
        for point in order
    }
    reference = run.single(admission.against)
    likely = (p for p in order if trials[p].recipe.id == reference.id or admission.likely(answers[p]))
    point = next(likely, None)
    if point is not None:
        checks = [] if trials[point].recipe.id == reference.id else admission.checks(answers[point])
        facts = {**winner.guards, "tested": [one.as_dict() for one in checks]}
        if all(one.admits for one in checks) and (not checks or run.admits_elsewhere(trials[point].recipe)):
            return replace(_of(winner, trials[point]), guards=facts, refused=False)
    result = result_of(admission.reference, run.settings.objective)
    return replace(winner, recipe=reference, result=result, handler="", refused=True)


def _of(winner: SearchResult, trial: Trial) -> SearchResult:
    return replace(winner, recipe=trial.recipe, result=trial.result, handler=trial.handler)


def search_again(
    run: Steps, evaluation: RecipeEvaluator, names: tuple[str, ...], known: Sequence[ItemScores], budget: int
) -> Recipe:
    """The best soup of some ingredients by a search of its own, which has their scores on its items."""
    settings, items = run.settings, known[0].items
    strategy = replace(settings.optimiser, budget=budget) if isinstance(settings.optimiser, Adaptive) else None
    found = find_weights(
        strategy or Adaptive(budget=budget),
        settings.objective,
        settings.seed,
        run.recipes,
        evaluation,
        names,
        items,
        lambda trial: None,
        known=known,
    )
    return found.recipe


def searched(
    stored: Evaluation, items: Sequence[Item], asks: Sequence[tuple[Recipe, str]]
) -> tuple[dict[str, ItemScores], dict[str, FloatArray]]:
    """Models that answered the whole search fold, and those that answered a part: scores [I], nan elsewhere.

    Of several handlers the first counts.
    """
    whole, parts = dict[str, ItemScores](), dict[str, FloatArray]()
    place = {item.id: n for n, item in enumerate(items)}
    for recipe, handler in asks:
        if recipe.id in whole:
            continue
        found = stored.found(recipe, items, handler)
        if len(found.items) == len(items):
            whole[recipe.id] = found
        elif found.items and recipe.id not in parts:
            parts[recipe.id] = np.full(len(items), np.nan)
            parts[recipe.id][[place[item.id] for item in found.items]] = found.values
    return whole, {key: values for key, values in parts.items() if key not in whole}
