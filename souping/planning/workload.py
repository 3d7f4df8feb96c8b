"""Workload of a plan: what a run would select and evaluate, stage by stage, and how much of it the store holds.

The pool is opened as a run opens it (headers and tokenizers); nothing is hashed, fetched or written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from souping.checkpoints import hub
from souping.checkpoints.pool import ModelSize
from souping.core.files import said
from souping.core.types import (
    Candidate,
    Item,
    ItemScores,
    Json,
    Recipe,
    ScoreMatrix,
    SearchSpace,
    Selection,
    Trial,
    UserError,
)
from souping.evaluate.scoring.own import Known
from souping.merge.digests import StandIns
from souping.pipeline.checks import check_soups, check_tokenizers, not_measured
from souping.pipeline.evaluation import Evaluation, KnownContents
from souping.pipeline.evidence import Contender
from souping.pipeline.models import OpenPool
from souping.pipeline.schedule import Ask, Schedule, SearchStage, Stage, Winner, perform
from souping.pipeline.settings import RunSettings
from souping.pipeline.store import Store
from souping.report.files import selection_dict
from souping.search.loop import SearchResult, trial_limit

if TYPE_CHECKING:
    from souping.core.protocols import Evaluator, Selector


Pair = tuple[int, int]


class NotStoredError(Exception):
    """A plan asked for a score that has to be measured."""


def refuse(recipe: Recipe) -> NoReturn:
    raise NotStoredError


def grade_nothing(items: Sequence[Item], outputs: Sequence[str], known: Known) -> NoReturn:
    """A plan calls no scorer of the user's."""
    raise NotStoredError


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) where the selection is open.

    With `in_parts` the search decides which soups answer how many items: the pairs are (expected, most), and `models`
    are the whole folds that the items would fill.
    """

    name: str
    models: tuple[int, int]
    items: int
    asked: tuple[int, int]
    todo: tuple[int, int]
    side: str = ""
    in_parts: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannedWinner:
    """Soup that the search would freeze; where that is open, one that nothing else is."""

    recipe: Recipe
    handler: str
    trials: tuple[Trial, ...] = ()


@dataclass(kw_only=True)
class WorkCounter:
    """Walker that counts instead of evaluating, with a selection that is known or assumed.

    `evaluations` are {side: evaluation}, the run's own under no name; their `serve` refuses. `seen` is what an earlier
    stage will have asked.
    """

    run: RunSettings
    pool: PlannedPool
    choice: PlannedSelection
    ingredients: tuple[str, ...]
    evaluations: Mapping[str, Evaluation]
    stages: list[PlannedStage] = field(default_factory=list)
    seen: dict[tuple[str, str], set[tuple[str, int]]] = field(default_factory=dict)

    def gate(self, stage: Stage) -> None:
        self._count(stage)

    def score(self, stage: Stage | None) -> ScoreMatrix | None:
        if stage is not None:
            self._count(stage)
        return self.choice.scores

    def select(self, scores: ScoreMatrix | None) -> Selection:
        return Selection(ingredients=self.ingredients)

    def search(self, stage: SearchStage) -> PlannedWinner:
        priors = stage.priors(self.pool, self.run.optimiser)
        if priors is not None:
            self._count(priors)
        own, size = self.evaluations[""], len(stage.ingredients)
        span = self.run.optimiser.workload(size, len(stage.items)) if size > 1 else None
        if span is not None:
            winner = self._part_of_fold(stage, span)
        else:
            asks, winner = self._soups(stage)
            self._count(Stage(name=stage.name, asks=tuple(asks), items=stage.items))
        self._new(winner.recipe, winner.handler, stage.items, own)  # it is one of the trials
        return winner

    def _part_of_fold(self, stage: SearchStage, span: tuple[int, int]) -> PlannedWinner:
        """A search that asks parts of the fold: as the store has it to the end, or the `span` of (expected, most)
        items."""
        items, answers = max(1, len(stage.items)), self.evaluations[""].answers
        walked = self._walked(stage)
        if walked is not None:
            trials, asked = len(walked.trials), (walked.cost.items * answers,) * 2
            self._add(stage, (trials, trials), asked, (0, 0))
            return PlannedWinner(recipe=walked.recipe, handler=walked.handler)
        asked = (span[0] * answers, span[1] * answers)
        self._add(stage, (-(-span[0] // items), -(-span[1] // items)), asked, asked, in_parts=True)
        uniform = self.pool.uniform(stage.ingredients)
        return PlannedWinner(recipe=_stand_in(uniform, "the soup"), handler=self.evaluations[""].handlers(uniform)[0])

    def _add(self, stage: Stage | SearchStage, models: Pair, asked: Pair, todo: Pair, in_parts: bool = False) -> None:
        """`models`, `asked` and `todo` are (least, most)."""
        side = stage.side if isinstance(stage, Stage) else ""
        self.stages.append(
            PlannedStage(
                name=stage.name,
                models=models,
                items=len(stage.items),
                asked=asked,
                todo=todo,
                side=side,
                in_parts=in_parts,
            )
        )

    def singles(self, stage: Stage) -> str:
        self._count(stage)
        return self.pool.names[0]  # any of them: the best is a row of the report in any case

    def freeze(self, selection: Selection, winner: Winner) -> None:
        """Nothing is written."""

    def report(self, stage: Stage, contenders: Sequence[Contender]) -> None:
        self._count(stage)

    def also(self, stage: Stage) -> None:
        self._count(stage)

    def analyse(self, name: str, stage: Stage) -> None:
        if stage.asks:
            self._count(stage, analysis=True)

    def _count(self, stage: Stage, analysis: bool = False) -> None:
        evaluation, todo = self.evaluations[stage.side], 0
        for recipe, handler in stage.asks:
            if not (analysis and self._is_whole(recipe, handler, stage.items, evaluation)):
                todo += self._new(recipe, handler, stage.items, evaluation)
        number, asked = len(stage.asks), len(stage.asks) * len(stage.items) * evaluation.answers
        self._add(stage, (number, number), (asked, asked), (todo, todo))

    def _is_whole(self, recipe: Recipe, handler: str, items: Sequence[Item], evaluation: Evaluation) -> bool:
        """Whether an analysis has nothing to ask of a soup."""
        with suppress(UserError):  # an evaluator that this machine lacks a part of
            return not evaluation.lacking(recipe, items, handler)
        return False

    def _new(self, recipe: Recipe, handler: str, items: Sequence[Item], evaluation: Evaluation) -> int:
        """Answers that nobody has yet; from here on they are known."""
        try:
            key, wanted = evaluation.key(recipe, handler), evaluation.missing(recipe, items, handler)
        except UserError:  # an evaluator that this machine lacks a part of: its key is not known
            answers = range(evaluation.answers)
            key, wanted = f"unknown {handler}", [(item.question, n) for item in items for n in answers]
        done = self.seen.setdefault((recipe.fingerprint, key), set())
        missing = set(wanted) - done
        done |= missing
        return len(missing)

    def _soups(self, stage: SearchStage) -> tuple[list[Ask], PlannedWinner]:
        """What the search asks, and the soup that wins."""
        own = self.evaluations[""]
        if len(stage.ingredients) == 1:
            single = self.pool.recipe({stage.ingredients[0]: 1.0})
            return [(single, "")], PlannedWinner(recipe=single, handler=own.handlers(single)[0])
        walked = self._walked(stage)
        if walked is not None:
            asks = [(trial.recipe, trial.handler) for trial in walked.trials]
            return asks, PlannedWinner(recipe=walked.recipe, handler=walked.handler)
        uniform = self.pool.uniform(stage.ingredients)
        ways = own.handlers(uniform)
        limit = trial_limit(self.run.optimiser, len(stage.ingredients), len(ways), len(stage.items))
        assert limit is not None, "a strategy that ends by nothing is refused when it is built"
        known = [(recipe, way) for recipe in self._points(stage.ingredients) for way in own.handlers(recipe)][:limit]
        stand_ins = [(_stand_in(uniform, f"trial {n}"), ways[0]) for n in range(limit - len(known))]
        return known + stand_ins, PlannedWinner(recipe=_stand_in(uniform, "the soup"), handler=ways[0])

    def _points(self, ingredients: Sequence[str]) -> list[Recipe]:
        """The soups of a search whose points are known beforehand, in its order."""
        strategy, size = self.run.optimiser, len(ingredients)
        weights = strategy.known_points(size)
        if weights is None and strategy.count(size) == 1:
            space = SearchSpace(ingredients=tuple(ingredients), candidates=self.pool.names)
            first = strategy.start(space, self.run.seed).ask()
            weights = [first.weights] if first is not None else []
        return [self.pool.recipe(dict(zip(ingredients, point, strict=True))) for point in weights or ()]

    def _walked(self, stage: SearchStage) -> SearchResult | None:
        """The whole search as the store answers it, or None where it does not."""
        own, names = self.evaluations[""], stage.ingredients
        if self.pool.opened is None or not stage.items:
            return None
        first = [self.pool.uniform(names), self.pool.recipe({names[0]: 1.0})]
        try:
            if all(own.missing(recipe, stage.items) for recipe in first):
                return None
            return perform(stage, self.run, self.pool, own, lambda trial: None)
        except (NotStoredError, UserError):
            return None


def _stand_in(recipe: Recipe, name: str) -> Recipe:
    """A soup that is not known yet and that no store holds."""
    return replace(recipe, fingerprints=(name,), ingredients=("?",), weights=(1.0,))


def count_stages(
    schedule: Schedule, pool: PlannedPool, choice: PlannedSelection, evaluations: Mapping[str, Evaluation]
) -> list[PlannedStage]:
    """The schedule counted. With an open selection each number of ingredients is counted: least and most.

    Raises:
        UserError: the search has no point for any number of ingredients that is possible.
    """
    if choice.selection is not None:
        chosen = [choice.selection.ingredients]
    else:
        chosen = [pool.names[:size] for size in choice.sizes]
    counted: list[list[PlannedStage]] = []
    last: UserError | None = None
    for ingredients in chosen:
        counter = WorkCounter(
            run=schedule.run, pool=pool, choice=choice, ingredients=ingredients, evaluations=evaluations
        )
        try:
            schedule.walk(counter)
            counted.append(counter.stages)
        except UserError as error:  # the paper's grid ends at ten ingredients
            last = error
    if not counted and last is not None:
        raise last
    return _merged(counted)


def _merged(counted: Sequence[Sequence[PlannedStage]]) -> list[PlannedStage]:
    """Least and most of each stage over several selections."""
    longest = sorted(counted, key=len, reverse=True)  # its order is that of all
    names = list(dict.fromkeys(stage.name for stages in longest for stage in stages))
    merged = []
    for name in names:
        same = [stage for stages in counted for stage in stages if stage.name == name]
        in_parts = any(stage.in_parts for stage in same)
        models, asked, todo = (
            _range(pairs, in_parts) for pairs in zip(*((s.models, s.asked, s.todo) for s in same), strict=True)
        )
        merged.append(replace(same[0], models=models, asked=asked, todo=todo, in_parts=in_parts))
    return merged


def _range(pairs: Sequence[Pair], in_parts: bool) -> Pair:
    """Least and most; of a search in parts what is expected for the middle number of ingredients, and most."""
    first = sorted(least for least, _ in pairs)
    return first[(len(first) - 1) // 2 if in_parts else 0], max(most for _, most in pairs)


@dataclass(frozen=True, kw_only=True)
class PlannedSelection:
    """Selection and where its scores come from; `selection` is None where the candidates must be measured first.

    `sizes` are the numbers of ingredients that are possible.
    """

    basis: str
    sizes: tuple[int, ...]
    selection: Selection | None = None
    scores: ScoreMatrix | None = None
    trouble: str = ""
    steady: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Json]:
        selection = selection_dict(self.selection, self.scores) if self.selection else None
        return {"basis": self.basis, "sizes": list(self.sizes), "selection": selection, "steady": self.steady}


def choose(
    run: RunSettings, names: Sequence[str], items: Sequence[Item], stored: Callable[[str], ItemScores | None]
) -> PlannedSelection:
    """Select from published scores, or from the store where it holds every candidate on the select fold.

    `stored(candidate)` gives its scores on `items`, or None where one is missing.
    """
    if run.scores.published:
        return _from(run, run.scores.matrix(names, not_measured), "published scores")
    known = {name: stored(name) for name in names}
    whole = {name: scores for name, scores in known.items() if scores is not None}
    if len(whole) == len(names) and items:
        return _from(run, ScoreMatrix.from_items(whole), "the store, which has every candidate on the select fold")
    return PlannedSelection(basis="scores that must be measured first", sizes=run.selector.sizes(len(names)))


def _from(run: RunSettings, scores: ScoreMatrix, basis: str) -> PlannedSelection:
    try:
        selection = run.selector.chosen(scores)
    except UserError as error:
        return PlannedSelection(basis=basis, sizes=(), scores=scores, trouble=str(error))
    sizes = (len(selection.ingredients),)
    return PlannedSelection(
        basis=basis, sizes=sizes, selection=selection, scores=scores, steady=steady(run.selector, scores)
    )


def steady(selector: Selector, scores: ScoreMatrix) -> tuple[float, float] | None:
    """The range of thresholds around the selector's own, in steps of 0.01, that gives the same ingredients."""
    own = selector.cut
    if own is None:
        return None
    wanted = selector.chosen(scores).ingredients

    def same(threshold: float) -> bool:
        try:
            return selector.with_cut(threshold).chosen(scores).ingredients == wanted
        except UserError:
            return False

    grid = [round(float(v), 2) for v in np.arange(0.01, 1.001, 0.01)]
    low = high = own
    for threshold in reversed([v for v in grid if v < own]):
        if not same(threshold):
            break
        low = threshold
    for threshold in (v for v in grid if v > own):
        if not same(threshold):
            break
        high = threshold
    return low, high


@dataclass(frozen=True, kw_only=True)
class PlannedPool:
    """Pool by names; `opened` is None where a model is not here yet, or the pool does not fit (`trouble`)."""

    names: tuple[str, ...]
    opened: OpenPool | None = None
    trouble: str = ""
    base: str = ""

    @property
    def base_name(self) -> str:
        return self.opened.base_name if self.opened is not None else self.base

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights: the very one where the pool is open, else one that stands for it."""
        if self.opened is not None:
            return self.opened.recipe(weights)
        chosen = tuple(name for name in (*self.names, self.base) if weights.get(name))
        parts = tuple(weights[name] for name in chosen)
        prints = tuple(f"not here: {name}" for name in chosen)
        return Recipe(ingredients=chosen, fingerprints=prints, weights=parts, dtype="unknown")

    def ends(self, recipe: Recipe) -> tuple[int, ...]:
        """The soup's end tokens, where they can be known."""
        known = set(recipe.ingredients) <= set(self.names)  # a soup of the future has no ingredients
        return self.opened.ends(recipe) if self.opened is not None and known else ()

    def uniform(self, names: Sequence[str]) -> Recipe:
        return self.recipe(dict.fromkeys(names, 1.0 / len(names)))


def open_what_is_here(
    run: RunSettings,
    models: Sequence[ModelSize],
    store: Store,
    asked: Sequence[tuple[Evaluator, Sequence[Item]]],
) -> PlannedPool:
    """Open what is here; `asked` are the evaluators and their items. Whatever a run would refuse is in `trouble`."""
    candidates = run.pool.resolve()
    names, base = tuple(c.name for c in candidates), "base model" if run.uses_base else ""
    if any(model.trouble or model.download for model in models):
        return PlannedPool(names=names, base=base)
    try:
        opened = OpenPool(
            [_placed(c, run.merge.allow_pickle) for c in candidates],
            run.merge,
            KnownContents(hashes=StandIns(store.hashes)),  # what nobody hashed counts as never evaluated
            with_base=run.uses_base,
        )
        check_tokenizers(opened, asked)
        check_soups(run, opened)
    except (UserError, OSError) as error:
        return PlannedPool(names=names, trouble=said(error), base=base)
    return PlannedPool(names=names, opened=opened)


def _placed(candidate: Candidate, allow_pickle: bool) -> Candidate:
    name = hub.parse(candidate.path)
    here = hub.cached(name, allow_pickle) if name else None
    return replace(candidate, path=here) if here else candidate
