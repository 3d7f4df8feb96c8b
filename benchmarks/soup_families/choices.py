"""Choices that the product makes from answers: ingredients, the best, and the points of a search.

Shape legend: M models, I items, C categories, S soups, K ingredients.
"""

from __future__ import annotations

import numpy as np

from benchmarks.soup_families.design import TUNES
from benchmarks.soup_families.merging import Subset
from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import (
    BoolArray,
    FloatArray,
    IntArray,
    Names,
    Result,
    ScoreMatrix,
    SearchSpace,
)
from souping.search.adaptive import Adaptive
from souping.search.points import vertices
from souping.selection import SoCE, TopK

POINTS = 96
"""Most points of a search. The product's go from the anchors over those that cover the simplex to soups of a few."""
TUNE_NAMES: Names = tuple(f"tune {tune}" for tune in range(TUNES))


def means(answers: BoolArray, category: IntArray) -> FloatArray:
    """Means of the categories [M, C] of answers [M, I]; `category` [I] numbers them."""
    columns = [answers[:, category == number].mean(axis=1) for number in np.unique(category)]
    return np.stack(columns, axis=1)


def matrix(scores: FloatArray) -> ScoreMatrix:
    """Scores of the tunes [8, C] as selectors take them."""
    categories = tuple(f"category {number}" for number in range(scores.shape[1]))
    return ScoreMatrix(models=TUNE_NAMES, categories=categories, values=scores)


def subset_of(names: Names) -> Subset:
    return tuple(sorted(TUNE_NAMES.index(name) for name in names))


def experts(scores: FloatArray) -> Subset:
    """Ingredients by SoCE with the product's defaults, for scores of the tunes [8, C]."""
    return subset_of(SoCE(correlation=pearson, objective=Mean()).select(matrix(scores)).ingredients)


def best(scores: FloatArray, k: int) -> Subset:
    """The k best tunes."""
    return subset_of(TopK(objective=Mean(), k=k).select(matrix(scores)).ingredients)


def search_points(subset: Subset, scores: FloatArray) -> FloatArray:
    """Weights [S, K] that `optimiser=adaptive` searches, for scores of the tunes [8, C]; of many, some of all kinds."""
    merits = scores[list(subset)].mean(axis=1)
    points = np.array(Adaptive().points(len(subset), merits))
    anchors = 1 + len(subset)
    if len(points) <= POINTS:
        return points
    rest = np.linspace(anchors, len(points) - 1, POINTS - anchors).round().astype(int)
    return points[[*range(anchors), *rest]]


def searched(weights: FloatArray, answers: BoolArray, category: IntArray, items: BoolArray) -> int:
    """The row that `optimiser=adaptive` picks among soups with weights [S, K] and recorded answers [S, I].

    It sees the items that are marked, and asks for as many answers as it wants.
    """
    soups = [tuple(row) for row in weights.tolist()]
    if len(soups[0]) == 1:
        return 0
    place = {soup: row for row, soup in enumerate(soups)}
    known = answers[:, items].astype(float)
    names = tuple(f"category {number}" for number in category[items])
    singles = [known[place[vertex]] for vertex in vertices(len(soups[0]))]
    space = SearchSpace(
        ingredients=TUNE_NAMES[: len(singles)],
        categories=names,
        groups=tuple(map(str, range(len(names)))),
        coefficients=dict.fromkeys(dict.fromkeys(names), 1 / len(set(names))),
        singles=np.array(singles),
    )
    search = Adaptive().over(soups, space, seed=0)
    while (query := search.ask()) is not None:
        asked = np.arange(len(names)) if query.items is None else np.array(query.items)
        values = known[place[query.weights], asked]
        result = Result(
            objective=float(values.mean()),
            categories={},
            items=len(asked),
            values=values,
            lengths=np.zeros(len(asked)),
        )
        search.tell(query, result)
    return place[search.best()]
