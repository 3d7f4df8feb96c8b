"""How much a run evaluates, stage by stage, and how much of it the store holds already.

What selection would pick, as far as it can be known before anything is evaluated.

The pool opened for a plan: headers and tokenizers checked as a run checks them; nothing hashed, nothing fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from souping.checkpoints import hub
from souping.checkpoints.pool import ModelSize, base_of
from souping.core.protocols import Strategy
from souping.core.scores import ScoreMatrix
from souping.core.types import Candidate, Fold, Item, ItemScores, Recipe, Selection, UserError
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.models import OpenPool
from souping.pipeline.side_benchmarks import SideBenchmark
from souping.pipeline.store import Store
from souping.report.files import selection_dict
from souping.search.loop import search
from souping.selection.selectors import ranking

Asks = tuple[list[tuple[Recipe, str]], Recipe, str]
"""What a search asks, (recipe, handler) each; the soup that wins and its handler."""


class NotStoredError(Exception):
    """A plan asked for a score that has to be measured."""


def refuse(recipe: Recipe) -> Any:
    raise NotStoredError


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) where the selection is open."""

    name: str
    models: tuple[int, int]
    items: int
    asked: tuple[int, int]
    todo: tuple[int, int]
    side: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class StoredAnswers:
    """What is stored, or will be by an earlier stage of this plan."""

    seen: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def stage(
        self, name: str, asks: Sequence[tuple[Recipe, str]], items: Sequence[Item], by: Evaluation, side: str = ""
    ) -> PlannedStage:
        """A stage in which each (recipe, handler) answers all items."""
        todo = sum(self._new(recipe, handler, items, by) for recipe, handler in asks)
        number, asked = len(asks), len(asks) * len(items)
        return PlannedStage(
            name=name,
            models=(number, number),
            items=len(items),
            asked=(asked, asked),
            todo=(todo, todo),
            side=side,
        )

    def answered(self, recipe: Recipe, handler: str, items: Sequence[Item], by: Evaluation) -> None:
        """From here on this soup's answers to these items are known."""
        self._new(recipe, handler, items, by)

    def _new(self, recipe: Recipe, handler: str, items: Sequence[Item], by: Evaluation) -> int:
        try:
            key, stored = by.known(recipe, handler)
        except UserError:  # an evaluator that this machine lacks a part of: its key is not known
            key, stored = f"unknown {handler}", set()
        done = self.seen.setdefault((recipe.fingerprint, key), stored)
        missing = {item.fingerprint for item in items} - done
        done |= missing
        return len(missing)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run's evaluations under one evaluator and its sides; `folds` are empty where the items cannot be had."""

    run: Any
    opened: PlannedPool
    choice: PlannedSelection
    folds: Mapping[Fold, Sequence[Item]]
    evaluation: Evaluation
    sides: Sequence[tuple[SideBenchmark, Evaluation]] = ()

    def stages(self) -> list[PlannedStage]:
        """The stages in the run's order. With an open selection each number of ingredients is counted: least and most.

        Raises:
            UserError: the search has no point for any number of ingredients that is possible.
        """
        if self.choice.selection is not None:
            return self._for(self.choice.selection.ingredients)
        found, last = [], None
        for size in self.choice.sizes:
            try:
                found.append(self._for(self.opened.names[:size]))
            except UserError as error:  # the paper's grid ends at ten ingredients
                last = error
        if not found and last is not None:
            raise last
        return _merged(found)

    def _for(self, ingredients: Sequence[str]) -> list[PlannedStage]:
        count, run, names = StoredAnswers(), self.run, self.opened.names
        singles = [self.opened.recipe({name: 1.0}) for name in names]
        stages = []
        if run.expected and run.gate != "off":
            gated = list(dict.fromkeys(one.candidate for one in run.expected if one.candidate in names))
            fold: Fold = "search" if run.scores.published else "select"
            asks = [(self.opened.recipe({name: 1.0}), "") for name in gated]
            stages.append(
                count.stage("gate: singles that are expected to score", asks, self._fold(fold), self.evaluation)
            )
        if not run.scores.published:
            asks = [(recipe, "") for recipe in singles]
            stages.append(count.stage("select: every candidate", asks, self._fold("select"), self.evaluation))
        if run.stop_after == "select":
            return stages
        asks, soup, handler = self.soups(ingredients)
        stages.append(count.stage("search: soups and singles", asks, self._fold("search"), self.evaluation))
        count.answered(soup, handler, self._fold("search"), self.evaluation)  # the winner is one of the trials
        if run.stop_after == "search":
            return stages
        asks = [(recipe, "") for recipe in singles]
        stages.append(count.stage("best single: every candidate", asks, self._fold("search"), self.evaluation))
        rows = {recipe.fingerprint: (recipe, handler) for recipe in [*singles, *self._baselines(ingredients), soup]}
        stages.append(
            count.stage("report: soup and baselines", list(rows.values()), self._fold("report"), self.evaluation)
        )
        parts = {recipe.fingerprint: recipe for recipe in [*map(self._single, ingredients), soup]}
        for side, evaluation in self.sides:
            asks = [(recipe, "") for recipe in parts.values()]
            stages.append(count.stage(f"also: {side.name}", asks, side.items, evaluation, side.name))
        return stages

    def _fold(self, fold: Fold) -> Sequence[Item]:
        return self.folds.get(fold, ())

    def _single(self, name: str) -> Recipe:
        return self.opened.recipe({name: 1.0})

    def _baselines(self, ingredients: Sequence[str]) -> list[Recipe]:
        names = self.opened.names
        found = [self.opened.uniform(names)]
        if len(ingredients) > 1:
            best = ranking(self.choice.scores, self.run.objective, False) if self.choice.scores is not None else names
            top = best[: len(ingredients)]
            found += [self.opened.uniform(ingredients), self.opened.uniform([n for n in names if n in top])]
        return found

    def soups(self, ingredients: Sequence[str]) -> Asks:
        """What the search asks, the soup that wins and its handler; where that is open, a soup that nothing else is."""
        if len(ingredients) == 1:
            return [(self._single(ingredients[0]), "")], self._single(ingredients[0]), ""
        uniform = self.opened.uniform(ingredients)
        ways, items = self.evaluation.handlers(uniform), self._fold("search")
        walked = self._walk(ingredients, items)
        if walked is not None:
            return walked
        limit = self._limit(len(ingredients), len(ways), len(items))
        points = self._points(ingredients)
        known = [(recipe, way) for recipe in points for way in self.evaluation.handlers(recipe)][:limit]
        open_ones = [
            (replace(uniform, fingerprints=(f"trial {n}",), ingredients=("?",), weights=(1.0,)), ways[0])
            for n in range(limit - len(known))
        ]
        soup = replace(uniform, fingerprints=("the soup",), ingredients=("?",), weights=(1.0,))
        return known + open_ones, soup, ways[0]

    def _limit(self, size: int, ways: int, items: int) -> int:
        """Trials at most: the strategy's own count in every way of asking, its limit of trials, its budget of items."""
        strategy: Strategy = self.run.optimiser
        budget = strategy.budget // items if strategy.budget is not None and items else None
        count = strategy.count(size)
        limits = [n for n in (count and count * ways, strategy.trials, budget) if n is not None]
        return min(limits)

    def _points(self, ingredients: Sequence[str]) -> list[Recipe]:
        """The soups of a search whose points are known beforehand, in its order."""
        strategy = self.run.optimiser
        if hasattr(strategy, "points"):
            weights = strategy.points(len(ingredients))
        elif strategy.count(len(ingredients)) == 1:
            asked = strategy.start(ingredients, self.opened.names, self.run.seed).ask()
            weights = [asked] if asked is not None else []
        else:
            return []
        return [self.opened.recipe(dict(zip(ingredients, w, strict=True))) for w in weights]

    def _walk(self, ingredients: Sequence[str], items: Sequence[Item]) -> Asks | None:
        """The whole search from the store alone, or None where a score is missing."""
        if self.opened.kitchen is None or not items:
            return None
        first = [self.opened.uniform(ingredients), self._single(ingredients[0])]
        asked = {item.fingerprint for item in items}
        try:
            if not any(asked <= self.evaluation.known(recipe)[1] for recipe in first):
                return None
            found = search(
                self.run.optimiser.start(ingredients, self.opened.names, self.run.seed),
                self.run.optimiser,
                lambda weights: self.opened.recipe(dict(zip(ingredients, weights, strict=True))),
                self.evaluation,
                items,
                self.run.objective,
                lambda trial: None,
            )
        except (NotStoredError, UserError):
            return None
        return [(trial.recipe, trial.handler) for trial in found.trials], found.recipe, found.handler


def _merged(found: Sequence[Sequence[PlannedStage]]) -> list[PlannedStage]:
    """Least and most of each stage over several selections."""
    names = list(dict.fromkeys(stage.name for stages in found for stage in stages))
    merged = []
    for name in names:
        same = [stage for stages in found for stage in stages if stage.name == name]
        models, asked, todo = (_range([getattr(s, key) for s in same]) for key in ("models", "asked", "todo"))
        merged.append(replace(same[0], models=models, asked=asked, todo=todo))
    return merged


def _range(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(least for least, _ in pairs), max(most for _, most in pairs)


@dataclass(frozen=True, kw_only=True)
class PlannedSelection:
    """The selection and where its scores come from; `selection` is None where the candidates must be measured first.

    `sizes` are the numbers of ingredients that are possible.
    """

    basis: str
    sizes: tuple[int, ...]
    selection: Selection | None = None
    scores: ScoreMatrix | None = None
    trouble: str = ""
    steady: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        found = selection_dict(self.selection, self.scores) if self.selection else None
        return {"basis": self.basis, "sizes": list(self.sizes), "selection": found, "steady": self.steady}


def choose(
    run: Any, names: Sequence[str], items: Sequence[Item], stored: Callable[[str], ItemScores | None]
) -> PlannedSelection:
    """Select from published scores, or from the store where it holds every candidate on the select fold.

    `stored(candidate)` gives its scores on `items`, or None where one is missing.
    """
    if run.scores.published:
        return _from(run, run.scores.matrix(names, lambda: None), "published scores")
    known = {name: stored(name) for name in names}
    whole = {name: scores for name, scores in known.items() if scores is not None}
    if len(whole) == len(names) and items:
        return _from(run, ScoreMatrix.from_items(whole), "the store, which has every candidate on the select fold")
    return PlannedSelection(basis="scores that must be measured first", sizes=_possible(run, len(names)))


def _from(run: Any, scores: ScoreMatrix, basis: str) -> PlannedSelection:
    try:
        selection = run.selector.select(scores)
    except UserError as error:
        return PlannedSelection(basis=basis, sizes=(), scores=scores, trouble=str(error))
    sizes = (len(selection.ingredients),)
    return PlannedSelection(
        basis=basis, sizes=sizes, selection=selection, scores=scores, steady=steady(run.selector, scores)
    )


def _possible(run: Any, candidates: int) -> tuple[int, ...]:
    """How many ingredients the selector may pick: of k candidates, of all, or any number."""
    kind = type(run.selector).__name__
    if kind == "All":
        return (candidates,)
    k = getattr(run.selector, "k", None)
    if kind == "TopK" and k:
        return (min(k, candidates),)
    return tuple(range(1, min(k or candidates, candidates) + 1))


def steady(selector: Any, scores: ScoreMatrix) -> tuple[float, float] | None:
    """The range of thresholds around the selector's own, in steps of 0.01, that gives the same ingredients."""
    own = getattr(selector, "threshold", None)
    if own is None:
        return None
    wanted = selector.select(scores).ingredients

    def same(value: float) -> bool:
        try:
            return bool(replace(selector, threshold=value).select(scores).ingredients == wanted)
        except UserError:
            return False

    grid = [round(float(v), 2) for v in np.arange(0.01, 1.001, 0.01)]
    low = high = own
    for value in reversed([v for v in grid if v < own]):
        if not same(value):
            break
        low = value
    for value in (v for v in grid if v > own):
        if not same(value):
            break
        high = value
    return low, high


class KnownDigests(MutableMapping[str, str]):
    """Digests of files that the store has; any other file gets one that no store holds.

    A file that this store never hashed was never evaluated under it (but for a copy elsewhere), so that a plan counts
    right without reading gigabytes.
    """

    def __init__(self, store: Store) -> None:
        self._hashes = store.hashes

    def __contains__(self, file: object) -> bool:
        return True

    def __getitem__(self, file: str) -> str:
        return self._hashes.get(file) or f"not hashed: {file}"

    def __setitem__(self, file: str, digest: str) -> None:
        raise AssertionError("a plan hashes nothing")

    def __delitem__(self, file: str) -> None:
        raise AssertionError("a plan hashes nothing")

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)


class ReadOnlyStore:
    """A store as a kitchen knows it, that only tells."""

    def __init__(self, store: Store) -> None:
        self.hashes = KnownDigests(store)

    def saw(self, fingerprint: str, path: Path) -> None:
        """A plan leaves no trace."""


@dataclass(frozen=True, kw_only=True)
class PlannedPool:
    """The pool by names; `kitchen` is None where a model is not here yet, or the pool does not fit (`trouble`)."""

    names: tuple[str, ...]
    kitchen: OpenPool | None = None
    trouble: str = ""
    notes: tuple[str, ...] = ()

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of named weights: the very one where the pool is open, else one that stands for it."""
        if self.kitchen is not None:
            return self.kitchen.recipe(weights)
        chosen = tuple(name for name in self.names if weights.get(name))
        parts = tuple(weights[name] for name in chosen)
        prints = tuple(f"not here: {name}" for name in chosen)
        return Recipe(ingredients=chosen, fingerprints=prints, weights=parts, dtype="unknown")

    def uniform(self, names: Sequence[str]) -> Recipe:
        return self.recipe(dict.fromkeys(names, 1.0 / len(names)))


def open_pool(run: Any, models: Sequence[ModelSize], store: Store) -> PlannedPool:
    """Open what is here. Whatever a run would refuse is in `trouble`."""
    candidates = run.pool.resolve()
    names = tuple(c.name for c in candidates)
    if any(model.trouble or model.download for model in models) or not _base_is_here(run.merge, models):
        return PlannedPool(names=names)
    try:
        kitchen = OpenPool(
            [_placed(c, run.merge.allow_pickle) for c in candidates],
            run.merge,
            run.evaluator,
            cast(Store, ReadOnlyStore(store)),
        )
        if getattr(run.evaluator, "wants", "module") == "module":
            kitchen.check_tokenizers()
    except UserError as error:
        return PlannedPool(names=names, trouble=str(error))
    return PlannedPool(names=names, kitchen=kitchen, notes=tuple(kitchen.warnings))


def _placed(candidate: Candidate, allow_pickle: bool) -> Candidate:
    name = hub.parse(candidate.path)
    here = hub.cached(name, allow_pickle) if name else None
    return replace(candidate, path=here) if here else candidate


def _base_is_here(merge: Any, models: Sequence[ModelSize]) -> bool:
    """Whether the base model, where there is one, would not be fetched."""
    base = base_of(models, getattr(merge, "base", None))
    name = hub.parse(base) if base else None
    return name is None or hub.cached(name, merge.allow_pickle) is not None
