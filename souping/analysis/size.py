"""How many ingredients: the first K of the selector's order for several K, each searched, compared by cross-fitting.

The soup of K ingredients is searched on each half of the search fold and scored on the other, so that no item that
chose its weights scores it. The searches share the store, and all of them together answer at most as many items as the
run's own search did. This describes the soup and claims nothing; the report fold is not touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from souping.analysis import ALONE, Analysis, NotEstimableError, RunScores, RunSoups
from souping.analysis.intervals import ItemTable
from souping.analysis.significance import compare_on_table
from souping.core.fields import component
from souping.core.types import (
    FloatArray,
    IntArray,
    ItemScores,
    Json,
    Recipe,
    digest,
    entries,
    part,
    texts,
)
from souping.core.unit import unit
from souping.report.format import brackets, clean, count, in_words, interval, points
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, grid


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
        found = {
            1: whole.values,
            **{size: _cross_fitted(run, names[:size], half, budget) for size in sizes},
        }
        rows: list[Json] = []
        for size, values in found.items():
            gain = (
                compare_on_table(("", ""), values, whole.values, fold).as_dict()
                if size > 1
                else None
            )
            rows.append(
                {
                    "ingredients": list(names[:size]),
                    "score": fold.interval(values).as_dict(),
                    "gain": gain,
                }
            )
        return {
            "fold": "search",
            "budget": budget,
            "sizes": rows,
            "pruned": self._pruned(run, fold),
        }

    def _pruned(self, run: RunScores, fold: ItemTable) -> Json:
        """The soup less its smallest weight, against the soup, on the fold that chose the weights."""
        soup = run.soups.soup
        if len(soup.ingredients) < 2 or soup.id not in run.search:
            return None
        smaller = pruned(run.soups)
        lost = compare_on_table(
            ("", ""), run.search[smaller.id].values, run.search[soup.id].values, fold
        )
        return {
            "without": [name for name in soup.ingredients if name not in smaller.ingredients],
            **lost.as_dict(),
        }


def pruned(soups: RunSoups) -> Recipe:
    """The soup without the ingredient of the smallest weight, the last of equals; the rest keeps the sum."""
    pairs = dict(zip(soups.soup.ingredients, soups.soup.weights, strict=True))
    least = min(reversed(pairs), key=lambda name: round(pairs[name], 9))
    factor = sum(pairs.values()) / (sum(pairs.values()) - pairs.pop(least))
    return soups.recipe({name: weight * factor for name, weight in pairs.items()})


def affordable(most: int, items: int, spent: int) -> tuple[list[int], int]:
    """Sizes from 2 on, the largest among them, and the items that each search of a half may answer.

    A size costs two searches and its two soups on the other halves, which are one fold.

    Raises:
        NotEstimableError: there are not enough for one size.
    """
    for wanted in range(most - 1, 0, -1):
        budget = (spent // wanted - items) // 2
        if budget >= -(-items // 2):
            return sorted({round(size) for size in np.linspace(most, 2, wanted)}), budget
    raise NotEstimableError(
        f"the run's search leaves {max(spent, 0):,} items; one size takes {2 * items:,}"
    )


def _cross_fitted(
    run: RunScores, names: tuple[str, ...], half: IntArray, budget: int
) -> FloatArray:
    """Scores [I], of each item by the soup that the other half chose."""
    values, whole = np.full(len(half), np.nan), [run.search[run.single(name).id] for name in names]
    for side in (half == 0, half == 1):
        items, others = (tuple(itertools.compress(whole[0].items, some)) for some in (side, ~side))
        known = [
            ItemScores(items=items, values=one.values[side], lengths=one.lengths[side])
            for one in whole
        ]
        values[~side] = run.search_again(names, known, budget, others)
    return values


# How it is shown


def section(data: Row) -> Section:
    less = part(data, "pruned")
    lines = [
        "Nested sets in the selector's order. Each is searched on one half of the search fold and scored on the other, "
        f"both ways. A search takes at most {count(data.get('budget'))} items. This claims nothing."
    ]
    if less:
        change = f"{points(less.get('difference'), True)} ({interval(less.get('low'), less.get('high'), True)})"
        lines.append(
            f"Without {in_words(texts(less, 'without'))}, the smallest weight: {change} on the search fold."
        )
    rows = []
    for row in entries(data, "sizes"):
        names, gain = texts(row, "ingredients"), brackets(row.get("gain"), sign=True)
        rows.append((str(len(names)), clean(names[-1]), brackets(row.get("score")), gain))
    header = (
        "ingredients",
        "last added",
        unit().heading("score"),
        f"over the first alone, {unit().name}",
    )
    return Section("How many ingredients?", tuple(lines), grids=(grid(header, rows),))


DISPLAYS["size"] = Display(section, place=2)
