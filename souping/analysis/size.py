"""How many ingredients: the first K of the selector's order for several K, each searched, compared by cross-fitting.

The soup of K ingredients is searched on each half of the search fold and scored on the other, so that no item that
chose its weights scores it. The searches share the store, and all of them together answer at most as many items as the
run's own search did. This describes the soup and claims nothing; the report fold is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from souping.analysis import ALONE, Analysis, NotEstimableError, RunScores, RunSoups
from souping.analysis.intervals import ItemTable
from souping.analysis.significance import compare_on_table
from souping.core.fields import component
from souping.core.types import FloatArray, IntArray, ItemScores, Json, Recipe, digest, entries, part, texts
from souping.report.format import clean, count, in_words, interval, score
from souping.report.plots import COLOURS, Drawing, canvas, figure
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, TableCell, grid

LEAST = 1
"""Halves of a fold that one search has to be able to answer."""


@component
class Size(Analysis):
    """Nested sets of ingredients, and the soup without its smallest weight."""

    searches = True

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        return () if len(soups.soup.ingredients) < 2 else (pruned(soups),)

    def analyse(self, run: RunScores) -> Mapping[str, Json]:
        names = run.soups.ingredients
        if len(names) < 2:
            raise NotEstimableError(ALONE)
        whole = run.search[run.single(names[0]).id]
        half = np.array([int(digest(item.group)[:8], 16) % 2 for item in whole.items])
        sizes, budget = affordable(len(names), len(half), run.spent - len(half))
        fold = ItemTable.of(whole.items, run.objective)
        found = {1: whole.values, **{size: cross_fitted(run, names[:size], half, budget) for size in sizes}}
        first, rows = found[1], list[Json]()
        for size, values in found.items():
            score, gain = fold.interval(values), compare_on_table(("", ""), values, first, fold)
            rows.append(
                {
                    "ingredients": list(names[:size]),
                    "mean": score.mean,
                    "low": score.low,
                    "high": score.high,
                    "gain": gain.difference,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                }
            )
        return {"fold": "search", "budget": budget, "sizes": rows, "pruned": self._pruned(run, fold)}

    def _pruned(self, run: RunScores, fold: ItemTable) -> Json:
        """The soup less its smallest weight, against the soup, on the fold that chose the weights."""
        if len(run.soups.soup.ingredients) < 2:
            return None
        smaller = pruned(run.soups)
        soup, rest = (run.search.get(recipe.id) for recipe in (run.soups.soup, smaller))
        if soup is None or rest is None:
            return None
        gone = [name for name in run.soups.soup.ingredients if name not in smaller.ingredients]
        lost = compare_on_table(("", ""), rest.values, soup.values, fold)
        return {"without": gone, "difference": lost.difference, "low": lost.low, "high": lost.high}


def pruned(soups: RunSoups) -> Recipe:
    """The soup without the ingredient of the smallest weight, the last of equals; the rest is renormalised."""
    pairs = dict(zip(soups.soup.ingredients, soups.soup.weights, strict=True))
    least = min(reversed(pairs), key=lambda name: round(pairs[name], 9))
    rest = {name: weight for name, weight in pairs.items() if name != least}
    return soups.recipe({name: weight / sum(rest.values()) for name, weight in rest.items()})


def affordable(most: int, items: int, spent: int) -> tuple[list[int], int]:
    """Sizes from 2 on, the largest among them, and the items that each search of a half may answer.

    A size costs two searches and its two soups on the other halves, which are one fold.

    Raises:
        NotEstimableError: there are not enough for one size.
    """
    for wanted in range(most - 1, 0, -1):
        budget = (spent // wanted - items) // 2
        if budget >= LEAST * -(-items // 2):
            return sorted({round(size) for size in np.linspace(2, most, wanted)} if wanted > 1 else {most}), budget
    raise NotEstimableError(
        f"the run's search leaves {max(spent, 0):,} items; one size takes {items + 2 * LEAST * -(-items // 2):,}"
    )


def cross_fitted(run: RunScores, names: tuple[str, ...], half: IntArray, budget: int) -> FloatArray:
    """Scores [I], of each item by the soup that the other half chose."""
    assert run.search_again is not None
    assert run.score is not None
    singles, values = [run.search[run.single(name).id] for name in names], np.full(len(half), np.nan)
    for side in (0, 1):
        chosen_on, scored_on = np.flatnonzero(half == side), np.flatnonzero(half != side)
        soup = run.search_again(names, [_part(scores, chosen_on) for scores in singles], budget)
        if len(soup.ingredients) == 1:
            values[scored_on] = run.search[soup.id].values[scored_on]
        else:
            values[scored_on] = run.score(soup, _part(singles[0], scored_on).items).values
    return values


def _part(scores: ItemScores, places: IntArray) -> ItemScores:
    items = tuple(scores.items[n] for n in places)
    return ItemScores(items=items, values=scores.values[places], lengths=scores.lengths[places])


# How it is shown


def section(data: Row) -> Section:
    sizes, less = entries(data, "sizes"), part(data, "pruned")
    lines = [
        "The first ingredients of the selector's order, each set searched on one half of the search fold and scored on "
        f"the other, both ways, at most {count(data.get('budget'))} items a search. It describes the soup and claims "
        "nothing; the report fold was not touched."
    ]
    if less:
        points, limits = (
            score(less.get("difference"), sign=True),
            interval(less.get("low"), less.get("high"), sign=True),
        )
        lines.append(
            f"Without {in_words(texts(less, 'without'))}, the smallest weight, the soup changes by {points} points "
            f"({limits}) on the search fold, which chose the weights."
        )
    rows = [
        (
            str(len(texts(row, "ingredients"))),
            clean(texts(row, "ingredients")[-1]),
            TableCell(score(row.get("mean")), interval(row.get("low"), row.get("high"))),
            TableCell(
                score(row.get("gain"), sign=True), interval(row.get("gain_low"), row.get("gain_high"), sign=True)
            ),
        )
        for row in sizes
    ]
    header = ("ingredients", "last one", "score %", "over the first alone")
    return Section("How many ingredients?", tuple(lines), "size", (grid(header, rows),))


def _gain(row: Row) -> TableCell:
    limits = interval(row.get("gain_low"), row.get("gain_high"), sign=True)
    return TableCell(score(row.get("gain"), sign=True), limits)


def draw(data: Row) -> Drawing:
    """The score by the number of ingredients, with its interval."""
    sizes = entries(data, "sizes")
    counts = [len(texts(row, "ingredients")) for row in sizes]
    mean, low, high = (100 * np.array([row[key] for row in sizes], dtype=float) for key in ("mean", "low", "high"))
    with canvas():
        made, axes = figure(5.6, 3.0)
        axes.errorbar(counts, mean, yerr=[mean - low, high - mean], fmt="o-", color=COLOURS["soup"], linewidth=1.2)
        axes.set_xticks(counts)
        axes.set_xlabel("ingredients, in the selector's order")
        axes.set_ylabel("score on the other half, %")
    shown = ", ".join(f"{size}: {value:.1f} %" for size, value in zip(counts, mean, strict=True))
    return Drawing("size", made, f"Cross-fitted score by the number of ingredients: {shown}.")


DISPLAYS["size"] = Display(section, (draw,), place=2)
