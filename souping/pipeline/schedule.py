"""Schedule of a run: which recipe meets which items, stage by stage.

It is written here once. A run walks through it and evaluates, a plan walks through it and counts, and a run that is
repeated finds every stage done in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from souping.analysis import RunSoups
from souping.core.protocols import Optimiser
from souping.core.simplex import vertices
from souping.core.text import named
from souping.core.types import FloatArray, Fold, Item, Recipe, SearchSpace, Selection, Trial, UserError, Weights
from souping.pipeline.evidence import Contender
from souping.search.loop import SearchResult, SearchRun, result_of
from souping.selection import ranking

if TYPE_CHECKING:
    from souping.analysis import Analysis
    from souping.core.executor_protocols import RecipeEvaluator
    from souping.core.protocols import Strategy
    from souping.core.types import ScoreMatrix
    from souping.pipeline.settings import RunSettings

Ask = tuple[Recipe, str]
"""A model and the handler that asks it; an empty one leaves the choice to the evaluator."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Models that answer the same items. `side` names the side benchmark whose evaluator asks instead of the run's."""

    name: str
    asks: tuple[Ask, ...]
    items: tuple[Item, ...]
    fold: Fold = "report"
    side: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchStage:
    """Search over the ingredients: soups that the optimiser asks for answer the same items, one after another."""

    ingredients: tuple[str, ...]
    items: tuple[Item, ...]
    name: str = "search: soups and singles"

    def priors(self, pool: RecipeSource, strategy: Strategy) -> Stage | None:
        """The single ingredients, where the search begins with their scores."""
        wanted = self.ingredients if strategy.uses_singles and len(self.ingredients) > 1 else ()
        asks = tuple((pool.recipe({name: 1.0}), "") for name in wanted)
        return Stage(name="prior: the single ingredients", asks=asks, items=self.items, fold="search") if asks else None


class Winner(Protocol):
    """Frozen outcome of a search: the soup, the handler that asked it, and the trials before it."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def handler(self) -> str: ...

    @property
    def trials(self) -> Sequence[Trial]: ...


class RecipeSource(Protocol):
    """Pool as far as a schedule needs it: names of candidates, and recipes of weights."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def base_name(self) -> str:
        """The name of the base model in recipes, where an analysis has use for it; else empty."""
        ...

    def recipe(self, weights: Mapping[str, float]) -> Recipe: ...


class Walker(Protocol):
    """Walker through a schedule: a run that evaluates, or a plan that counts."""

    def gate(self, stage: Stage) -> None:
        """Hold the singles that are expected to score something against their figures."""
        ...

    def score(self, stage: Stage | None) -> ScoreMatrix | None:
        """Scores that selection sees: those of a stage, or published ones. None where they are not known."""
        ...

    def select(self, scores: ScoreMatrix | None) -> Selection: ...

    def search(self, stage: SearchStage) -> Winner: ...

    def singles(self, stage: Stage) -> str:
        """Name of the candidate that is best on the search fold."""
        ...

    def freeze(self, selection: Selection, winner: Winner) -> None:
        """Write the soup: from here on nothing is chosen any more."""
        ...

    def report(self, stage: Stage, contenders: Sequence[Contender]) -> None: ...

    def also(self, stage: Stage) -> None:
        """The frozen soup and its ingredients on one side benchmark."""
        ...

    def analyse(self, name: str, stage: Stage) -> None:
        """One analysis of the run; the soups that it asks for meet the search fold in `stage`."""
        ...


def perform(
    stage: SearchStage,
    run: RunSettings,
    pool: RecipeSource,
    evaluation: RecipeEvaluator,
    tell: Callable[[Trial], None],
) -> SearchResult:
    """The best weights of the ingredients on the search fold. One ingredient needs no search."""
    if len(stage.ingredients) == 1:
        recipe = pool.recipe({stage.ingredients[0]: 1.0})
        (handler,) = evaluation.handlers(recipe)
        result = result_of(evaluation.scores(recipe, stage.items), run.objective)
        return SearchResult(recipe=recipe, weights=(1.0,), result=result, trials=(), handler=handler)
    priors = stage.priors(pool, run.optimiser)
    known = evaluation.all_scores(priors.asks, stage.items) if priors else []
    singles = [scores.values for scores in known]
    name = f"optimiser {named(run.optimiser)}"
    optimiser = run.optimiser.start(search_space(stage, run, pool, evaluation, singles), run.seed)
    if Optimiser not in type(optimiser).__mro__:
        raise UserError(f"{name} started a {type(optimiser).__name__}, which is no Optimiser: subclass it")

    def recipe_of(weights: Weights) -> Recipe:
        if len(weights) != len(stage.ingredients):
            raise UserError(f"{name} gave {len(weights)} weights for {len(stage.ingredients)} ingredients")
        return pool.recipe(dict(zip(stage.ingredients, weights, strict=True)))

    return SearchRun(
        optimiser,
        run.optimiser,
        recipe_of,
        evaluation,
        stage.items,
        run.objective,
        tell,
        dict(zip(vertices(len(stage.ingredients)), singles, strict=False)),
    ).run()


def search_space(
    stage: SearchStage,
    run: RunSettings,
    pool: RecipeSource,
    evaluation: RecipeEvaluator,
    singles: Sequence[FloatArray] = (),
) -> SearchSpace:
    """What a search is over; `singles` are the ingredients' scores, where they are wanted."""
    names = list(dict.fromkeys(item.category for item in stage.items))
    uniform = pool.recipe(dict.fromkeys(stage.ingredients, 1 / len(stage.ingredients)))
    return SearchSpace(
        ingredients=stage.ingredients,
        candidates=pool.names,
        categories=tuple(item.category for item in stage.items),
        groups=tuple(item.group for item in stage.items),
        coefficients=dict(zip(names, run.objective.coefficients(names).tolist(), strict=True)),
        singles=np.array(singles) if singles else None,
        block=evaluation.block,
        whole=evaluation.whole_folds or len(evaluation.handlers(uniform)) > 1,
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages of one run over a pool; `folds` are empty where the items cannot be had, `sides` are {name: items}."""

    run: RunSettings
    pool: RecipeSource
    folds: Mapping[Fold, tuple[Item, ...]]
    sides: Mapping[str, tuple[Item, ...]]

    def walk(self, walker: Walker) -> None:
        """Go through the stages in their order, to the end or to `stop_after`."""
        gate = self._gate()
        if gate is not None:
            walker.gate(gate)
        scores = walker.score(None if self.run.scores.published else self._stage("select: every candidate", "select"))
        selection = walker.select(scores)
        if self.run.stop_after == "select":
            return
        winner = walker.search(SearchStage(ingredients=selection.ingredients, items=self._fold("search")))
        if self.run.stop_after == "search":
            return
        best = walker.singles(self._stage("best single: every candidate", "search"))
        walker.freeze(selection, winner)
        contenders = self.contenders(scores, selection.ingredients, winner.recipe, best)
        walker.report(self._report(contenders, winner.handler), contenders)
        for name, items in self.sides.items():
            walker.also(self._also(name, items, selection.ingredients, winner.recipe))
        soups = self.soups(selection.ingredients, winner)
        for name, analysis in self.run.analyses.items():
            walker.analyse(name, self.analysis_stage(name, analysis, soups, winner.handler))

    def contenders(
        self, scores: ScoreMatrix | None, ingredients: Sequence[str], soup: Recipe, best: str
    ) -> list[Contender]:
        """Rows of the report, the soup last. Without scores the pool's order stands for the ranking."""
        names, single = self.pool.names, self._single
        rows = [
            Contender(name=n, kind="ingredient" if n in ingredients else "candidate", recipe=single(n)) for n in names
        ]
        rows.append(Contender(name=best, kind="best_single", recipe=single(best)))
        rows.append(Contender(name="uniform_all", kind="uniform_all", recipe=self.uniform(names)))
        if len(ingredients) > 1:
            ranked = names if scores is None else ranking(scores, self.run.objective, False)
            top = [n for n in names if n in ranked[: len(ingredients)]]
            rows.append(Contender(name="uniform_selected", kind="uniform_selected", recipe=self.uniform(ingredients)))
            rows.append(Contender(name="uniform_topk", kind="uniform_topk", recipe=self.uniform(top)))
        return [*rows, Contender(name="soup", kind="soup", recipe=soup)]

    def soups(self, ingredients: tuple[str, ...], winner: Winner) -> RunSoups:
        """What analyses know of the run before they see scores."""
        singles = {name: self._single(name) for name in self.pool.names}
        most = sorted(winner.trials, key=lambda trial: -trial.result.items)
        return RunSoups(
            candidates=singles,
            ingredients=ingredients,
            soup=winner.recipe,
            recipe=self.pool.recipe,
            base=self.pool.base_name,
            mixed=tuple(trial.recipe for trial in most if len(trial.recipe.ingredients) > 1),
        )

    def analysis_stage(self, name: str, analysis: Analysis, soups: RunSoups, handler: str) -> Stage:
        """The soups that an analysis asks for, each once, on the search fold: nothing else is ever shown to it."""
        recipes = {recipe.fingerprint: recipe for recipe in analysis.asks(soups)}
        asks = tuple((recipe, handler if len(recipe.ingredients) > 1 else "") for recipe in recipes.values())
        return Stage(name=f"analysis: {name}", asks=asks, items=self._fold("search"), fold="search")

    def uniform(self, names: Sequence[str]) -> Recipe:
        return self.pool.recipe({name: 1.0 / len(names) for name in names})

    def _single(self, name: str) -> Recipe:
        return self.pool.recipe({name: 1.0})

    def _fold(self, fold: Fold) -> tuple[Item, ...]:
        return self.folds.get(fold, ())

    def _stage(self, name: str, fold: Fold) -> Stage:
        """A stage in which every candidate answers a fold."""
        return Stage(
            name=name, asks=tuple((self._single(n), "") for n in self.pool.names), items=self._fold(fold), fold=fold
        )

    def _gate(self) -> Stage | None:
        """Singles with an expected score, on a fold that they are measured on anyway."""
        names = list(dict.fromkeys(one.candidate for one in self.run.expected if one.candidate in self.pool.names))
        if not names or self.run.gate == "off" or self.run.selects_from_table:
            return None
        fold: Fold = "search" if self.run.scores.published else "select"
        asks = tuple((self._single(name), "") for name in names)
        return Stage(name="gate: singles that are expected to score", asks=asks, items=self._fold(fold), fold=fold)

    def _report(self, contenders: Sequence[Contender], handler: str) -> Stage:
        """Each model once, asked as the winner was where it can be."""
        recipes = {contender.recipe.fingerprint: contender.recipe for contender in contenders}
        asks = tuple((recipe, handler) for recipe in recipes.values())
        return Stage(name="report: soup and baselines", asks=asks, items=self._fold("report"))

    def _also(self, name: str, items: tuple[Item, ...], ingredients: Sequence[str], soup: Recipe) -> Stage:
        recipes = {recipe.fingerprint: recipe for recipe in [*map(self._single, ingredients), soup]}
        return Stage(name=f"also: {name}", asks=tuple((r, "") for r in recipes.values()), items=items, side=name)
