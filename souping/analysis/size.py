"""How many ingredients: the first K of the selector's order for several K, each searched, compared by cross-fitting.

The soup of K ingredients is searched on each half of the search fold and scored on the other, so
that no item that chose its weights scores it. The searches share the store, and all of them
together answer at most as many items as the run's search did. This describes the soup and claims
nothing; the report fold is not touched.

Shape legend: I items of the search fold.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from souping.analysis.base import SINGLE_SELECTED, Analysis, NotEstimableError, RunScores, RunSoups
from souping.core.fields import component
from souping.core.reading import read
from souping.core.text import DASH
from souping.core.types import (
    FloatArray,
    IntArray,
    ItemScores,
    Names,
    Recipe,
    digest,
)
from souping.core.unit import Unit
from souping.report.analyses import AnalysisResult
from souping.report.content import MaybeInt, PairedDifference, ScoreInterval
from souping.report.format import count, in_words
from souping.report.tables import Section, grid
from souping.statistics.comparison import Comparison, contrast
from souping.statistics.intervals import objective_interval
from souping.statistics.scores import ItemTable, ModelScores, ScoreTable


@component
class Size(Analysis):
    """Nested sets of ingredients, and the soup without its smallest weight."""

    searches = True

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        if len(soups.soup.ingredients) < 2:
            return ()
        return (pruned(soups),)

    def shortage(self, ingredients: int, items: int, spent: int) -> str:
        if ingredients < 2:
            return SINGLE_SELECTED
        try:
            affordable(ingredients, items, spent - items)
        except NotEstimableError as error:
            return str(error)
        return ""

    def analyse(self, run: RunScores) -> SizeResult:
        names = run.soups.ingredients
        if len(names) < 2:
            raise NotEstimableError(SINGLE_SELECTED)
        first = run.search[run.single(names[0]).id]
        half = np.array([int(digest(item.group)[:8], 16) % 2 for item in first.items])
        sizes, budget = affordable(len(names), len(half), run.spent - len(half))
        scores_of = {1: first.values}
        for size in sizes:
            scores_of[size] = _cross_fitted(run, names[:size], half, budget)

        fold = ItemTable.of(first.items, run.objective)
        rows = []
        for size, values in scores_of.items():
            gain = None
            if size > 1:
                difference = _difference(values, first.values, fold)
                gain = read(PairedDifference, difference.raw(run.unit))
            scores = ModelScores(items=fold, values=values)
            score = read(ScoreInterval, objective_interval(scores).raw(run.unit))
            rows.append(SizeScore(ingredients=names[:size], score=score, gain=gain))
        pruned = self._pruned(run, fold)
        return SizeResult(fold="search", budget=budget, sizes=tuple(rows), pruned=pruned)

    def _pruned(self, run: RunScores, fold: ItemTable) -> PrunedDifference | None:
        """The soup less its smallest weight, against the soup, on the fold that chose the weights."""
        soup = run.soups.soup
        if len(soup.ingredients) < 2 or soup.id not in run.search:
            return None
        smaller = pruned(run.soups)
        values = run.search[smaller.id].values
        difference = _difference(values, run.search[soup.id].values, fold)
        without = [name for name in soup.ingredients if name not in smaller.ingredients]
        return read(PrunedDifference, {**difference.raw(run.unit), "without": without})


def _difference(a: FloatArray, b: FloatArray, fold: ItemTable) -> Comparison:
    """Scores a minus scores b [I], of models without a name."""
    return replace(contrast(ScoreTable.complete(fold, {"a": a, "b": b}), "a", "b"), a="", b="")


def pruned(soups: RunSoups) -> Recipe:
    """The soup without the ingredient of the smallest weight, the last of equals; the weights keep their sum."""
    weights = soups.soup.shares
    smallest = min(reversed(weights), key=lambda name: round(weights[name], 9))
    total = sum(weights.values())
    factor = total / (total - weights.pop(smallest))
    return soups.recipe({name: weight * factor for name, weight in weights.items()})


def affordable(most: int, items: int, spent: int) -> tuple[list[int], int]:
    """Sizes from 2 on, the largest among them, and the items that each search of a half may answer.

    A size costs two searches and its two soups on the other halves, which are one fold.

    Raises:
        NotEstimableError: there are not enough for one size.
    """
    for sizes in range(most - 1, 0, -1):
        budget = (spent // sizes - items) // 2
        if budget >= math.ceil(items / 2):
            return sorted({round(size) for size in np.linspace(most, 2, sizes)}), budget
    raise NotEstimableError(
        f"the run's search leaves {max(spent, 0):,} items; one size takes {2 * items:,}"
    )


def _cross_fitted(
    run: RunScores, names: tuple[str, ...], half: IntArray, budget: int
) -> FloatArray:
    """Scores [I], of each item by the soup that the other half chose."""
    singles = [run.search[run.single(name).id] for name in names]
    fold = singles[0].items
    values = np.full(len(half), np.nan)
    for searched in (half == 0, half == 1):
        items = tuple(itertools.compress(fold, searched))
        known = []
        for single in singles:
            on_half = ItemScores(
                items=items, values=single.values[searched], lengths=single.lengths[searched]
            )
            known.append(on_half)
        other_half = tuple(itertools.compress(fold, ~searched))
        values[~searched] = run.search_again(names, known, budget, other_half)
    return values


# How it is shown


@dataclass(frozen=True, kw_only=True)
class SizeScore:
    """The soup of the first ingredients."""

    ingredients: Names
    """the first of the selector's order"""
    score: ScoreInterval
    """cross-fitted score"""
    gain: PairedDifference | None
    """minus the first ingredient alone"""


@dataclass(frozen=True, kw_only=True)
class PrunedDifference(PairedDifference):
    """The soup without its smallest weight, minus the soup."""

    without: Names
    """the ingredient that is left out"""


@dataclass(frozen=True, kw_only=True)
class SizeResult(AnalysisResult):
    """Scores by the number of ingredients."""

    fold: str
    """fold of the items"""
    budget: MaybeInt
    """items that a search may answer"""
    sizes: tuple[SizeScore, ...]
    """soups of one ingredient and of more"""
    pruned: PrunedDifference | None
    """the soup without its smallest weight, minus the soup"""

    def section(self, unit: Unit) -> Section:
        lines = [
            "Nested sets in the selector's order. Each is searched on one half of the search fold and scored on the "
            f"other, both ways. A search takes at most {count(self.budget)} items. This claims nothing."
        ]
        pruned = self.pruned
        if pruned is not None:
            change = unit.points(pruned.difference, sign=True)
            limits = unit.interval(pruned.low, pruned.high, sign=True)
            lines.append(
                f"Without {in_words(pruned.without)}, the smallest weight: {change} ({limits}) on the search fold."
            )
        rows = []
        for size in self.sizes:
            names = size.ingredients
            score = unit.brackets(size.score.mean, size.score.low, size.score.high)
            rows.append((str(len(names)), in_words(names[-1:]), score, _gain(unit, size.gain)))
        gain = f"over the first alone, {unit.name}"
        header = ("ingredients", "last added", unit.heading("score"), gain)
        return Section("How many ingredients?", tuple(lines), grids=(grid(header, rows),))


def _gain(unit: Unit, gain: PairedDifference | None) -> str:
    if gain is None:
        return DASH
    return unit.brackets(gain.difference, gain.low, gain.high, sign=True)
