"""Goals of a run beside its objective: guards, the front and the point that `pick` writes, searches of an analysis."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from souping.analysis.front import FRONT, Front
from souping.analysis.guards import LENGTH_GUARD, Admission, GuardCheck, check, judge
from souping.core.protocols import Objective, Strategy
from souping.core.types import FloatArray, Item, ItemScores, Json, Recipe, Trial, UserError
from souping.core.unit import Unit
from souping.pipeline.claims import Look
from souping.pipeline.settings import RunSettings
from souping.pipeline.state import Searched, Selected
from souping.pipeline.steps import Stage, Steps
from souping.report.files import search_summary
from souping.search.adaptive import Adaptive
from souping.search.loop import RecipeEvaluator, SearchResult, find_weights, result_of


def check_tokens(settings: RunSettings, stage: Stage, scores: Sequence[ItemScores]) -> None:
    """Refuse lengths as a guard or a goal if the candidates' answers have none (UserError)."""
    wanted = LENGTH_GUARD in (*settings.guard, *settings.pareto) and not stage.benchmark
    soups = any(len(recipe.ingredients) > 1 for recipe in stage.models)
    if wanted and not soups and not any(one.lengths.any() for one in scores):
        raise UserError(
            "this evaluator does not count the tokens of its answers: leave tokens out of guard and pareto"
        )


def best_first(winner: SearchResult) -> list[Trial]:
    """The soups that answered the whole search fold, each once: the winner, then the others by their objective."""
    whole = sorted(
        (trial for trial in winner.trials if trial.whole), key=lambda trial: trial.result.objective
    )
    each = {trial.recipe.id: trial for trial in whole}  # an optimiser may ask a soup twice
    return sorted(
        each.values(), key=lambda one: (one.recipe.id != winner.recipe.id, -one.result.objective)
    )


def admitted(
    unit: Unit,
    winner: SearchResult,
    order: Sequence[Trial],
    admission: Admission,
    reference: Recipe,
    objective: Objective,
    unguarded: float = -math.inf,
    elsewhere: Callable[[Recipe], list[str]] = lambda recipe: [],
) -> SearchResult:
    """The first soup in this order that has not lost more than the guards allow, if it is admissible; else the
    reference. No second one is tested: of many soups that lose too much some would pass by luck.

    `unguarded` is the objective without guards; `elsewhere` names the guards on other benchmarks that a soup fails.
    """
    own, chosen, why = admission.reference, None, "every better soup lost too much"
    for trial in itertools.takewhile(lambda one: one.recipe.id != reference.id, order):
        scores = ItemScores(
            items=own.items, values=trial.result.values, lengths=trial.result.lengths
        )
        found = [(guard, check(guard, scores, own)) for guard in admission.bounds]
        if all(one.difference > -guard.margin for guard, one in found):
            failed = [guard.name for guard, one in found if not guard.admits(one)] or elsewhere(
                trial.recipe
            )
            chosen, why = None if failed else trial, f"failed: {', '.join(failed)}"
            break
    result = chosen.result if chosen else result_of(own, objective)
    cost = max(0.0, unit.size(unguarded - result.objective))
    refused = chosen is None and (cost > 0 or winner.recipe.id != reference.id)
    end = "the soup passed the guards" if chosen else "the guards changed nothing"
    end = f"no soup passed the guards ({why})" if refused else end
    price = (
        f"; the guards cost {unit.text(cost)} {unit.name} on the search fold" if cost > 0 else ""
    )
    facts: dict[str, Json] = {
        "against": admission.against,
        "cost": cost,
        "refused": refused,
        "sentence": end + price,
    }
    return replace(
        winner, recipe=chosen.recipe if chosen else reference, result=result, guards=facts
    )


def with_goals(
    run: Steps, selected: Selected, winner: SearchResult, log: Callable[[Trial], None]
) -> Searched:
    """The soup that `pick` or the objective chooses under the guards, and what is known of the front."""
    ingredients = selected.selection.ingredients
    admission = selected.admission
    weights, front = run.settings.pick or None, None
    if run.settings.pareto:
        winner, front = confirmed(run, winner, ingredients, log)
    order, best, unit = best_first(winner), -math.inf, run.settings.evaluator.unit
    summary = search_summary(unit, winner.summary)
    if front and weights:
        merits = front.merits(weights)
        order = sorted(order, key=lambda one: -merits[one.weights])
        winner = replace(winner, recipe=order[0].recipe, result=order[0].result)
    elif summary.without_guards is not None:
        best = unit.gain(summary.without_guards)
    if admission is not None:
        against = run.single(admission.against)
        elsewhere = partial(failed_elsewhere, run, admission)
        best = max([best, *(one.result.objective for one in order[:1])])
        winner = admitted(
            unit, winner, order, admission, against, run.settings.objective, best, elsewhere
        )
    searched = Searched(**vars(selected), winner=winner)
    if front is None:
        return searched
    chosen = dict(zip(winner.recipe.ingredients, winner.recipe.weights, strict=True))
    return replace(searched, analyses={FRONT: front.result(ingredients, chosen, weights)})


def confirmed(
    run: Steps, winner: SearchResult, ingredients: tuple[str, ...], log: Callable[[Trial], None]
) -> tuple[SearchResult, Front]:
    """The search with points of its front among its trials, which answer the whole search fold, and the front."""
    points, goals = (
        adaptive(run.settings.optimiser).points(len(ingredients)),
        run.settings.goals_on(run.categories),
    )
    trials = {one.weights: one for one in winner.trials}
    fit = partial(Front, goals, run.folds["search"], points)
    wanted = fit(trials.values()).candidates(run.settings.pick or None)
    lacking = [
        dict(zip(ingredients, one, strict=True))
        for one in wanted
        if one not in trials or not trials[one].whole
    ]
    recipes = {tuple(weights.values()): run.pool.recipe(weights) for weights in lacking}
    measured = run.evaluate_stage(run.front_stage(recipes.values())) if recipes else {}
    for point, recipe in recipes.items():
        number = trials[point].number if point in trials else len(trials)
        result = result_of(measured[recipe.id], run.settings.objective)
        trials[point] = Trial(number=number, recipe=recipe, weights=point, result=result)
        log(trials[point])
    every = tuple(sorted(trials.values(), key=lambda trial: trial.number))
    return replace(winner, trials=every), fit(trials.values())


def adaptive(strategy: Strategy) -> Adaptive:
    return strategy if isinstance(strategy, Adaptive) else Adaptive()


def failed_elsewhere(run: Steps, admission: Admission, soup: Recipe) -> list[str]:
    """The first guard on another benchmark that a soup fails, by the items of its search fold."""
    reference = run.single(admission.against)
    for guard in (guard for guard in admission.guards if guard.benchmark):
        scores = run.evaluate_stage(run.guard_stage(guard, [reference, soup]))
        if not guard.admits(check(guard, scores[soup.id], scores[reference.id])):
            return [guard.name]
    return []


def search_again(
    run: Steps,
    evaluation: RecipeEvaluator,
    names: tuple[str, ...],
    known: Sequence[ItemScores],
    budget: int,
    items: tuple[Item, ...],
) -> FloatArray:
    """Scores on `items` of the best soup of some ingredients, which a search of its own finds on other items."""
    own, settings, half = (
        replace(adaptive(run.settings.optimiser), budget=budget),
        run.settings,
        known[0].items,
    )
    found = find_weights(
        own, settings.objective, settings.seed, run.pool, evaluation, names, half, known=known
    )
    return evaluation.scores(found.recipe, items).values


def declared(admission: Admission | None) -> str:
    """The guards of a run and the model that they compare with, as the ledger keeps them."""
    if admission is None:
        return ""
    guards = [[one.benchmark, one.name, one.margin] for one in admission.guards]
    return json.dumps([admission.against, sorted(guards)])


def guard_names(steps: Steps) -> int:
    """Number of guards that could be set: names, each with every candidate to compare with."""
    names = {*steps.categories, *steps.settings.objective.groups, *steps.extra, LENGTH_GUARD}
    return len(names) * len(steps.pool.names)


def guard_checks(
    admission: Admission,
    soup: Recipe,
    against: Recipe,
    measured: Mapping[str, Mapping[str, ItemScores]],
    claim: str,
    look: Look,
    names: int,
) -> list[GuardCheck]:
    """What the report's answers say of each guard.

    `measured` are {extra benchmark: {recipe id: scores}}, the run's own under an empty name. A
    soup that is the reference itself loses nothing. If the verdict's `claim` is that nothing is
    claimed, neither do the guards. Guards that were not declared when the claim was first shown
    count as picked among all `names` that a guard can have.
    """
    if soup.id == against.id:
        return []
    pairs = []
    for guard in admission.guards:
        scores = measured[guard.benchmark]
        pairs.append((scores[soup.id], scores[against.id]))
    is_later = look.guards != declared(admission)
    picked = 1 + len(look.known.soups) + look.known.missing
    checks = judge(admission.guards, pairs, look.number, picked, names if is_later else 0)
    if claim not in ("not_measured", "dry_run"):
        return checks
    outcome = claim.replace("_", " ")
    return [replace(check, outcome=outcome) for check in checks]
