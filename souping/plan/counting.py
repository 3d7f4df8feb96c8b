"""Counted steps of a plan: what each step of a run would evaluate, and what of it the store has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from souping.analysis.front import CONFIRMED
from souping.analysis.guards import Guard, plan_guards
from souping.answers.evaluation import Evaluation
from souping.core.types import (
    OWN_BENCHMARK,
    Candidate,
    Items,
    ItemScores,
    Names,
    Recipe,
    Result,
    Selection,
    UserError,
    frozen,
)
from souping.plan.plan_content import Plan
from souping.plan.speed import IntRange, PlannedStage
from souping.runs.state import Reported, Searched, Selected
from souping.runs.steps import SEARCH, Candidates, Stage, Steps
from souping.search.loop import SearchResult, trial_limit

UNKNOWN_INGREDIENTS = ("?",)
"""Ingredients of a soup that stands for one that is not known yet."""


class NotStoredError(Exception):
    """A plan needs a score that has to be measured."""


def not_stored(*_: object) -> NoReturn:
    raise NotStoredError


@frozen
class PlannedPool:
    """Candidates as they are configured, for a pool that cannot be opened here."""

    candidates: tuple[Candidate, ...]

    @property
    def names(self) -> Names:
        return tuple(candidate.name for candidate in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of {candidate: weight}, with fingerprints that no store holds."""
        names = tuple(name for name in self.names if weights.get(name))
        return Recipe(
            ingredients=names,
            fingerprints=tuple(f"not here: {name}" for name in names),
            weights=tuple(weights[name] for name in names),
            dtype="unknown",
        )


class CountedSteps(Steps):
    """Steps that count what a run would evaluate, with a selection that is known or assumed.

    Each answer counts once. `evaluations` are {benchmark: evaluation}, including OWN_BENCHMARK, and `ingredients` the
    candidates that are taken as selected.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Candidates,
        extra: Mapping[str, Items],
        evaluations: Mapping[str, Evaluation],
        ingredients: Names,
    ) -> None:
        super().__init__(plan.run, pool, plan.splits, extra)
        self.ingredients = ingredients
        self.evaluations = evaluations
        self.stages: list[PlannedStage] = []
        self.plan = plan
        # {(fingerprint of a recipe, evaluator's key): {(question, number of its answer)}} that are counted already.
        self._counted: dict[tuple[str, str], set[tuple[str, int]]] = {}

    def evaluate_stage(self, stage: Stage, unknown: int = 0) -> dict[str, ItemScores]:
        """Count the answers of the stage's models and of `unknown` further soups (a number). Returns {}: there are no
        scores."""
        models = len(stage.models) + unknown
        todo = sum(self._count(recipe, stage) for recipe in stage.models)
        questions = {item.answer_digest for item in stage.items}
        todo += unknown * len(questions) * self.evaluations[stage.benchmark].answers_per_item
        # Least and most are the same.
        items = models * len(stage.items)
        self._add(stage, models=(models, models), items=(items, items), todo=(todo, todo))
        return {}

    def select(self, stage: Stage | None) -> Selected:
        if stage is not None:
            self.evaluate_stage(stage)
        return Selected(selection=Selection(ingredients=self.ingredients), scores=self.plan.scores)

    def search(self, selected: Selected) -> Searched:
        """Count the answers of the search. Its winner is real if the store has the whole search, else unknown."""
        ingredients = self.ingredients
        if first := self.ingredient_stage(ingredients):
            self.evaluate_stage(first)
        items = self.splits.get("search", ())
        size = len(ingredients)
        stage = Stage(name=SEARCH, models=(), items=items, split="search")
        # (expected, most) answered items of a search on parts of the split; None if it answers whole splits.
        workload = None
        if size > 1:
            workload = self.settings.optimiser.workload(size, len(items))
        stored = self._stored_search(selected)
        winner = stored or self._unknown_winner(ingredients)
        if workload is None:
            known, unknown = self._trials(ingredients, stored)
            self.evaluate_stage(replace(stage, models=tuple(known)), unknown)
        else:
            expected, most = workload
            answers = self.evaluations[OWN_BENCHMARK].answers_per_item
            todo = (expected * answers, most * answers)
            # A search that the store has whole computes nothing.
            if stored:
                expected = stored.cost.items
                most = stored.cost.items
                todo = (0, 0)
            # Whole splits that the items would fill; 0 if there are no items.
            split_size = max(1, len(items))
            splits = (math.ceil(expected / split_size), math.ceil(most / split_size))
            self._add(stage, models=splits, items=(expected, most), todo=todo, in_parts=True)
        # The winner is one of the trials: later stages find its answers.
        self._count(winner.recipe, stage)
        if self.settings.pareto and size > 1:
            points = [_unknown(winner.recipe, f"point {n} of the front") for n in range(CONFIRMED)]
            self.evaluate_stage(self.front_stage(points))
        return Searched(selected=selected, winner=winner)

    def open_guards(self, selected: Selected, guards: tuple[Guard, ...], stage: Stage) -> Selected:
        """Count the candidates' answers and, on guarded extra benchmarks, those of a candidate and a soup; plan the
        guards' power."""
        self.evaluate_stage(stage)
        scores = self.plan.scores
        self.plan.guards = plan_guards(guards, self.guarded_items, scores.items if scores else None)
        # Any candidate stands for the one that guards compare with.
        single = self.single(self.pool.names[0])
        soup = _unknown(single, "the soup that may win")
        for guard in guards:
            if guard.benchmark != OWN_BENCHMARK:
                self.evaluate_stage(self.guard_stage(guard, [single, soup]))
        return selected

    def uniform_best(self, selected: Selected) -> Recipe:
        """The average of the best candidates, an unknown soup if candidates that have no scores yet may be better."""
        if selected.scores is not None:
            return super().uniform_best(selected)
        uniform = self.uniform(self.ingredients)
        all_selected = len(self.ingredients) == len(self.pool.names)
        if all_selected or self.settings.selector.picks_best:
            return uniform
        return _unknown(uniform, "uniform, best candidates")

    def analyse(self, state: Reported, name: str, stage: Stage) -> Reported:
        if stage.models:
            self.evaluate_stage(stage)
        return state

    def _add(
        self,
        stage: Stage,
        models: IntRange,
        items: IntRange,
        todo: IntRange,
        in_parts: bool = False,
    ) -> None:
        """Add a stage to the plan, by its numbers (least, most) of models, requested items and answers to evaluate."""
        answers = self.evaluations[stage.benchmark].answers_per_item
        self.stages.append(
            PlannedStage(
                name=stage.name,
                models=models,
                items=len(stage.items),
                asked=(items[0] * answers, items[1] * answers),
                todo=todo,
                benchmark=stage.benchmark,
                in_parts=in_parts,
            )
        )

    def _count(self, recipe: Recipe, stage: Stage) -> int:
        """Number of a model's answers that neither the store nor an earlier stage has; they count once."""
        evaluation = self.evaluations[stage.benchmark]
        # {(question, number of its answer): answers}, all of them for a model that no store holds.
        answers = {(item.answer_digest, 0): evaluation.answers_per_item for item in stage.items}
        key = f"unknown {stage.benchmark}"
        if recipe.ingredients != UNKNOWN_INGREDIENTS:
            # If an evaluator cannot start here, its key is not known.
            with suppress(UserError):
                key = evaluation.key(recipe)
                answers = evaluation.missing_answers(recipe, stage.items, any_block=stage.any_block)
        counted = self._counted.setdefault((recipe.fingerprint, key), set())
        unanswered = answers.keys() - counted
        counted |= unanswered
        return sum(answers[answer] for answer in unanswered)

    def _stored_search(self, selected: Selected) -> SearchResult | None:
        """The result of the search if the store has all of its answers; else None."""
        # Of items without content nothing is stored, and their evaluator may take long to say that it cannot start.
        if self.plan.outlined or not self.splits.get("search"):
            return None
        # An answer is not stored, or the evaluator cannot start here: then its key is not known.
        with suppress(NotStoredError, UserError):
            return self.find_weights(self.evaluations[OWN_BENCHMARK], selected)
        return None

    def _unknown_winner(self, ingredients: Names) -> SearchResult:
        """The result of a search that is not stored: an unknown soup, or the only ingredient.

        A plan does not read its score.
        """
        uniform = self.uniform(ingredients)
        recipe = uniform if len(ingredients) == 1 else _unknown(uniform, "the soup")
        return SearchResult(
            recipe=recipe, result=Result(objective=0.0, categories={}, items=0), trials=()
        )

    def _trials(self, ingredients: Names, stored: SearchResult | None) -> tuple[list[Recipe], int]:
        """(soups that are known beforehand, number of others that may follow) of a search that evaluates whole splits.

        `stored` is the result of the search if the store has all of its answers.
        """
        if len(ingredients) == 1:
            return [self.single(ingredients[0])], 0
        if stored is not None:
            return [trial.recipe for trial in stored.trials], 0
        limit = trial_limit(
            self.settings.optimiser, len(ingredients), len(self.splits.get("search", ()))
        )
        assert limit is not None, "an optimiser without an end is refused when it is built"
        points = self.settings.optimiser.known_points(len(ingredients)) or ()
        known = []
        for point in points[:limit]:
            known.append(self.pool.recipe(dict(zip(ingredients, point, strict=True))))
        return known, limit - len(known)


def _unknown(recipe: Recipe, name: str) -> Recipe:
    """The recipe with this name for its fingerprint and ingredients: a soup that is not known yet."""
    return replace(recipe, fingerprints=(name,), ingredients=UNKNOWN_INGREDIENTS, weights=(1.0,))


def merged(counted: Sequence[Sequence[PlannedStage]]) -> list[PlannedStage]:
    """The stages of a plan, each with its least and most over the stages that were `counted` for each selection."""
    by_name = dict[str, list[PlannedStage]]()
    # The longest list has the order of all.
    for stages in sorted(counted, key=len, reverse=True):
        for stage in stages:
            by_name.setdefault(stage.name, [])
    for stages in counted:
        for stage in stages:
            by_name[stage.name].append(stage)
    ranges = []
    for stages in by_name.values():
        in_parts = any(stage.in_parts for stage in stages)
        ranges.append(
            replace(
                stages[0],
                models=_range([stage.models for stage in stages], in_parts),
                asked=_range([stage.asked for stage in stages], in_parts),
                todo=_range([stage.todo for stage in stages], in_parts),
                in_parts=in_parts,
            )
        )
    return ranges


def _range(pairs: Sequence[IntRange], in_parts: bool) -> IntRange:
    """(least, most) of one or more ranges; of ranges (expected, most), which a search in parts has, (median of the
    expected, most)."""
    lows = sorted(least for least, _ in pairs)
    low = lows[0]
    if in_parts:
        low = lows[(len(lows) - 1) // 2]
    return low, max(most for _, most in pairs)
