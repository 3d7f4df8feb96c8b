"""Goals of a run beside its objective: guards, the front and the point that `pick` writes, searches of an analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from souping.analysis.front import NAME, Front
from souping.analysis.guards import Admission, check, judge, lead
from souping.core.fields import pick
from souping.core.protocols import Objective
from souping.core.types import Candidate, FloatArray, Item, ItemScores, Json, Recipe, Trial, UserError, part
from souping.core.unit import gain, unit
from souping.pipeline.steps import Steps
from souping.search.adaptive import Adaptive
from souping.search.loop import RecipeEvaluator, SearchResult, find_weights, result_of


def reference_of(named: str | None, config: Mapping[str, Json], candidates: Sequence[Candidate], best: str) -> str:
    """The candidate that soups are compared with: `guard_against`, by default the best on the search fold.

    Raises:
        UserError: it is no candidate.
    """
    if named == "base":
        base = str(part(config, "merge").get("base") or "")
        found = [one.name for one in candidates if base and base in (one.name, str(one.path), one.source)]
        if not found:
            raise UserError(f"guard_against=base: merge.base={base or 'null'} is no candidate: add it to the pool")
        return found[0]
    return best if named is None else pick(named, [one.name for one in candidates], "guard_against")


def best_first(winner: SearchResult) -> list[Trial]:
    """The soups that answered the whole search fold: the winner, then the others by their objective."""
    whole = sorted((trial for trial in winner.trials if trial.whole), key=lambda trial: trial.result.objective)
    each = {trial.recipe.id: trial for trial in whole}  # an optimiser may ask a soup twice
    return sorted(each.values(), key=lambda one: (one.recipe.id != winner.recipe.id, -one.result.objective))


def admitted(
    winner: SearchResult,
    order: Sequence[Trial],
    admission: Admission,
    reference: Recipe,
    objective: Objective,
    elsewhere: Callable[[Recipe], bool] = lambda recipe: True,
) -> SearchResult:
    """The first soup in this order that has not lost more than the guards bear, if it is admissible, also by
    `elsewhere`; else the reference. No second one is tested: of many soups that lose too much some would pass by luck.
    """
    items, bounds = admission.reference.items, admission.bounds
    answers = [ItemScores(items=items, values=t.result.values, lengths=t.result.lengths) for t in order]
    likely = [
        (trial, scores)
        for trial, scores in zip(order, answers, strict=True)
        if all(lead(guard, scores, admission.reference) > -guard.margin for guard in bounds)
    ]
    chosen, result = None, result_of(admission.reference, objective)
    for trial, scores in likely[:1]:
        holds = all(check(guard, scores, admission.reference).admits for guard in bounds)
        if trial.recipe.id != reference.id and holds and elsewhere(trial.recipe):
            chosen, result = trial, trial.result
    best = max(trial.result.objective for trial in order)
    best = max(best, gain(winner.summary["without_guards"])) if "without_guards" in winner.summary else best
    cost, end = unit().size(best - result.objective), "one is admissible" if chosen else "no soup is admissible"
    models = f"{len(likely)} of {len(order)} models that answered the whole search fold lost less than the guards bear"
    price = f"keeping to the guards costs {unit().text(cost)} {unit().name} on the search fold"
    facts: dict[str, Json] = {"against": admission.against, "cost": cost, "refused": chosen is None}
    facts["sentence"] = f"{models} against {admission.against}; {end}; {price}"
    return replace(winner, recipe=reference if chosen is None else chosen.recipe, result=result, guards=facts)


def with_goals(
    run: Steps, winner: SearchResult, ingredients: tuple[str, ...], log: Callable[[Trial], None]
) -> tuple[SearchResult, dict[str, Mapping[str, Json]]]:
    """The soup that `pick` or the objective chooses under the guards, and the front's data for the report."""
    weights, front = run.settings.pick or None, None
    if run.settings.pareto:
        winner, front = confirmed(run, winner, ingredients, log)
    order = best_first(winner)
    if front is not None and weights is not None:
        merits = front.merits(weights)
        order = sorted(order, key=lambda trial: -merits[trial.weights])
    if run.admission is not None:
        against = run.single(run.admission.against)
        elsewhere = partial(admits_elsewhere, run, run.admission)
        winner = admitted(winner, order, run.admission, against, run.settings.objective, elsewhere)
    elif weights is not None:
        winner = replace(winner, recipe=order[0].recipe, result=order[0].result)
    chosen = dict(zip(winner.recipe.ingredients, winner.recipe.weights, strict=True))
    return winner, {} if front is None else {NAME: front.as_dict(ingredients, chosen, weights)}


def confirmed(
    run: Steps, winner: SearchResult, ingredients: tuple[str, ...], log: Callable[[Trial], None]
) -> tuple[SearchResult, Front]:
    """The search with points of its front among its trials, which answer the whole search fold, and the front."""
    settings, items = run.settings, run.folds["search"]
    goals = settings.goals_on(run.categories)
    strategy = settings.optimiser if isinstance(settings.optimiser, Adaptive) else Adaptive()
    points = strategy.points(len(ingredients))
    trials = {one.weights: one for one in winner.trials}
    first = Front(goals, items, points, trials.values())
    wanted = first.candidates(settings.pick or None)
    lacking = [point for point in wanted if point not in trials or not trials[point].whole]
    recipes = {point: run.recipes.recipe(dict(zip(ingredients, point, strict=True))) for point in lacking}
    measured = run.evaluate_stage(run.front_stage(recipes.values())) if recipes else {}
    for point, recipe in recipes.items():
        number = trials[point].number if point in trials else len(trials)
        result = result_of(measured[recipe.id], settings.objective)
        trials[point] = Trial(number=number, recipe=recipe, weights=point, result=result)
        log(trials[point])
    every = tuple(sorted(trials.values(), key=lambda trial: trial.number))
    return replace(winner, trials=every), Front(goals, items, points, trials.values())


def admits_elsewhere(run: Steps, admission: Admission, soup: Recipe) -> bool:
    """Whether a soup keeps to the guards on other benchmarks, by their items of the search fold."""
    reference = run.single(admission.against)
    for guard in (guard for guard in admission.guards if guard.benchmark):
        scores = run.evaluate_stage(run.guard_stage(guard, [reference, soup]))
        if not check(guard, scores[soup.id], scores[reference.id]).admits:
            return False
    return True


def judged_guards(
    run: Steps, winner: SearchResult, measured: Mapping[str, Mapping[str, ItemScores]], looks: int
) -> dict[str, Json]:
    """What the guards did to the search, and their tests by {benchmark: {recipe id: scores}} on the report's items."""
    assert run.admission is not None
    soup, reference, guards = winner.recipe.id, run.single(run.admission.against).id, run.admission.guards
    pairs = [(measured[guard.benchmark][soup], measured[guard.benchmark][reference]) for guard in guards]
    checks = judge(guards, pairs, looks) if soup != reference else []
    return {**winner.guards, "checks": [one.as_dict() for one in checks]}


def search_again(
    run: Steps,
    evaluation: RecipeEvaluator,
    names: tuple[str, ...],
    known: Sequence[ItemScores],
    budget: int,
    items: tuple[Item, ...],
) -> FloatArray:
    """Scores on `items` of the best soup of some ingredients, which a search of its own finds on other items."""
    settings, own, half = run.settings, run.settings.optimiser, known[0].items
    own = replace(own, budget=budget) if isinstance(own, Adaptive) else Adaptive(budget=budget)
    found = find_weights(own, settings.objective, settings.seed, run.recipes, evaluation, names, half, known=known)
    return evaluation.scores(found.recipe, items).values
