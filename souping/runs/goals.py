"""Goals of a run beside its objective: guards, the front and the point that their weights choose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from souping.analysis.front import Front
from souping.analysis.guards import (
    LENGTH_GUARD,
    Admission,
    GuardCheck,
    GuardsResult,
    guard_tests,
    guarded_difference,
)
from souping.answers.claims import Look
from souping.core.protocols import Objective
from souping.core.types import OWN_BENCHMARK, ItemScores, Recipe, Trial, UserError
from souping.core.unit import Unit
from souping.report.run_files import search_summary
from souping.runs.settings import RunSettings
from souping.runs.state import Searched, Selected
from souping.runs.steps import Stage, Steps
from souping.search.adaptive import Adaptive
from souping.search.loop import SearchResult, result_of


def check_tokens(settings: RunSettings, stage: Stage, scores: Sequence[ItemScores]) -> None:
    """Refuse the length of answers as a guard or a goal if the candidates' answers have no length (UserError).

    `scores` are those of the stage's models. The candidates answer the run's own benchmark before anything else, so
    soups and extra benchmarks need no check.
    """
    if stage.benchmark != OWN_BENCHMARK or LENGTH_GUARD not in (*settings.guard, *settings.pareto):
        return
    has_soups = any(len(recipe.ingredients) > 1 for recipe in stage.models)
    if not has_soups and not any(answers.lengths.any() for answers in scores):
        raise UserError(
            "this evaluator does not count the tokens of its answers: leave tokens out of guard and pareto"
        )


def best_first(winner: SearchResult) -> list[Trial]:
    """The soups that answered the whole search split, each once: the winner, then the others by their objective."""
    complete = [trial for trial in winner.trials if trial.whole]
    complete.sort(key=lambda trial: trial.result.objective)
    # An optimiser may ask for a soup twice: its better trial, the later one here, counts.
    by_id = {trial.recipe.id: trial for trial in complete}

    def rank(trial: Trial) -> tuple[bool, float]:
        return trial.recipe.id != winner.recipe.id, -trial.result.objective

    return sorted(by_id.values(), key=rank)


def admitted(
    unit: Unit,
    winner: SearchResult,
    order: Sequence[Trial],
    admission: Admission,
    reference: Recipe,
    objective: Objective,
    unguarded: float = -math.inf,
    elsewhere: Callable[[Recipe], list[str]] = lambda recipe: [],
) -> tuple[SearchResult, GuardsResult]:
    """(search result with the soup that the guards admit, what they changed).

    The first soup in `order` that seems to have lost no more than the guards allow is tested. If it fails, the
    `reference`, with which guards compare, wins. No second soup is tested: of many soups that lose too much some would
    pass by luck. `winner` is the result without guards, `unguarded` the objective of the best soup without guards, -inf
    if it is not known; `elsewhere` names the guards on other benchmarks that a soup fails.
    """
    trial, reason = _first_admissible(order, admission, reference, elsewhere)
    if trial is None:
        recipe = reference
        result = result_of(admission.reference, objective)
    else:
        recipe = trial.recipe
        result = trial.result
    # Zero if the objective without guards is not known, or is not above this one.
    cost = max(0.0, unit.size(unguarded - result.objective))
    # Without guards another model would have won.
    refused = trial is None and (cost > 0 or winner.recipe.id != reference.id)
    if refused:
        sentence = f"no soup passed the guards ({reason})"
    elif trial is None:
        sentence = "the guards changed nothing"
    else:
        sentence = "the soup passed the guards"
    if cost > 0:
        sentence += f"; the guards cost {unit.text(cost)} {unit.name} on the search split"
    guards = GuardsResult(
        against=admission.against, cost=cost, refused=refused, sentence=sentence, checks=()
    )
    return replace(winner, recipe=recipe, result=result), guards


def _first_admissible(
    order: Sequence[Trial],
    admission: Admission,
    reference: Recipe,
    elsewhere: Callable[[Recipe], list[str]],
) -> tuple[Trial | None, str]:
    """(soup, ""): the first soup before the reference that seems to pass the guards, if its test passes.

    Otherwise (None, the reason).
    """
    for trial in order:
        # Soups after the reference are worse than the reference.
        if trial.recipe.id == reference.id:
            break
        result = trial.result
        items = admission.reference.items
        scores = ItemScores(items=items, values=result.values, lengths=result.lengths)
        failed = []
        seems_to_pass = True
        for guard in admission.own_guards:
            comparison = guarded_difference(guard, scores, admission.reference)
            # By the estimate alone; `admits` goes by the lower limit of the interval.
            seems_to_pass &= comparison.difference > -guard.margin
            if not guard.admits(comparison):
                failed.append(guard.name)
        if not seems_to_pass:
            continue
        # Guards on other benchmarks need evaluations: only a soup that passes all others gets them.
        failed = failed or elsewhere(trial.recipe)
        if failed:
            return None, f"failed: {', '.join(failed)}"
        return trial, ""
    return None, "every better soup lost too much"


def with_goals(
    run: Steps, selected: Selected, winner: SearchResult, log: Callable[[Trial], None]
) -> Searched:
    """The state after the search: the soup that the goals' weights or the objective choose under the guards, and the
    front.

    The front evaluates further soups. Soups are ordered by the weighted sum of the goals if these have weights, else by
    the objective; the first one that passes the guards wins.
    """
    settings = run.settings
    if not settings.pareto:
        return _guarded(run, selected, winner, best_first(winner))
    ingredients = selected.selection.ingredients
    search, front = confirmed(run, winner, ingredients, log)
    order = best_first(search)
    preferred = search
    if settings.goal_weights is not None:
        merits = front.merits(settings.goal_weights)
        order.sort(key=lambda trial: -merits[trial.weights])
        preferred = replace(search, recipe=order[0].recipe, result=order[0].result)
    searched = _guarded(run, selected, preferred, order)
    result = front.result(ingredients, searched.winner.recipe.shares, settings.goal_weights)
    return replace(searched, front=result)


def _guarded(
    run: Steps, selected: Selected, preferred: SearchResult, order: Sequence[Trial]
) -> Searched:
    """The state after the search: the preferred soup wins or, with guards, the soup in `order` that they admit."""
    admission = selected.admission
    if admission is None:
        return Searched(selected=selected, winner=preferred)
    settings = run.settings
    unit = settings.evaluator.unit
    # The objective of the best soup without guards: what the search expected or, if it is higher, that of the first
    # soup in the order. With weights of goals, the search expected something of another soup.
    unguarded = -math.inf
    expected = search_summary(unit, preferred.summary).without_guards
    if expected is not None and not settings.goal_weights:
        unguarded = unit.gain(expected)
    if order:
        unguarded = max(unguarded, order[0].result.objective)
    winner, guards = admitted(
        unit,
        preferred,
        order,
        admission,
        run.single(admission.against),
        settings.objective,
        unguarded=unguarded,
        elsewhere=partial(failed_elsewhere, run, admission),
    )
    return Searched(selected=selected, winner=winner, guards=guards)


def confirmed(
    run: Steps, winner: SearchResult, ingredients: tuple[str, ...], log: Callable[[Trial], None]
) -> tuple[SearchResult, Front]:
    """(the search with further trials, the front): soups that may be on the front answer the whole search split.

    `log` gets every further trial.
    """
    settings = run.settings
    # The weights that the search predicts, or those that an adaptive one would.
    size = len(ingredients)
    points = settings.optimiser.predicted_points(size) or Adaptive().points(size)
    goals = settings.goals_on(run.categories)
    fit = partial(Front, goals, run.splits["search"], points)
    trials = {trial.weights: trial for trial in winner.trials}

    # Soups that may be on the front and have not answered the whole split.
    recipes = {}
    for point in fit(trials.values()).candidates(settings.goal_weights):
        if point not in trials or not trials[point].whole:
            recipes[point] = run.pool.recipe(dict(zip(ingredients, point, strict=True)))
    measured: Mapping[str, ItemScores] = {}
    if recipes:
        measured = run.evaluate_stage(run.front_stage(recipes.values()))
    for point, recipe in recipes.items():
        # A soup that answered a part of the split keeps its number.
        number = len(trials)
        if point in trials:
            number = trials[point].number
        result = result_of(measured[recipe.id], settings.objective)
        trials[point] = Trial(number=number, recipe=recipe, weights=point, result=result)
        log(trials[point])
    in_order = tuple(sorted(trials.values(), key=lambda trial: trial.number))
    return replace(winner, trials=in_order), fit(trials.values())


def failed_elsewhere(run: Steps, admission: Admission, soup: Recipe) -> list[str]:
    """[name of the first guard on another benchmark that a soup fails] by items that the search may see, or []."""
    reference = run.single(admission.against)
    for guard in admission.guards:
        if guard.benchmark == OWN_BENCHMARK:
            continue
        scores = run.evaluate_stage(run.guard_stage(guard, [reference, soup]))
        if not guard.admits(guarded_difference(guard, scores[soup.id], scores[reference.id])):
            return [guard.name]
    return []


def declared(admission: Admission | None) -> str:
    """The guards of a run and the model that they compare with, as the store keeps them; empty without guards."""
    if admission is None:
        return ""
    guards = [[guard.benchmark, guard.name, guard.margin] for guard in admission.guards]
    return json.dumps([admission.against, sorted(guards)])


def possible_guards(steps: Steps) -> int:
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
    possible: int,
) -> list[GuardCheck]:
    """What the answers to the test split say of each guard.

    `against` is the model with which guards compare: a soup that is this model has no checks. `measured` are
    {benchmark: {recipe id: scores}}, including OWN_BENCHMARK. If the verdict's `claim` is "not measured" or "dry run",
    that is the outcome of every guard. Guards that were not declared when the claim was first shown are corrected for
    the `possible` ones, the number of guards that could have been declared.
    """
    if soup.id == against.id:
        return []
    pairs = []
    for guard in admission.guards:
        scores = measured[guard.benchmark]
        pairs.append((scores[soup.id], scores[against.id]))
    # The soup, and the models among which it may have been picked by known scores.
    picked = 1 + len(look.known.soups) + look.known.missing
    declared_first = look.guards == declared(admission)
    undeclared = 0 if declared_first else possible
    checks = guard_tests(admission.guards, pairs, look.number, picked, undeclared)
    if claim not in ("not_measured", "dry_run"):
        return checks
    outcome = claim.replace("_", " ")
    return [replace(check, outcome=outcome) for check in checks]
