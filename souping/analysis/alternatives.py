"""What a soup is up against: its own search score, a router by category, and an oracle over its ingredients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from souping.analysis.intervals import ItemTable
from souping.core.protocols import Objective
from souping.core.types import FloatArray, ItemScores, ScoreMatrix
from souping.core.unit import unit


def alternatives(
    search_score: float,
    soup: ItemScores,
    ingredients: Mapping[str, ItemScores],
    chosen_by: ScoreMatrix,
    objective: Objective,
) -> dict[str, Any]:
    """`optimism`, `router` and `oracle` of a report; optimism alone for scores that are no fractions of 1.

    The soup and its `ingredients` have scores on the report fold. Optimism is the frozen winner's score on the search
    fold minus that on the report fold. The router sends an item to the ingredient that is best in its category by
    `chosen_by`, the scores of the select fold. The oracle counts an item as the best of the ingredients answers it,
    which no system can know. Each comes with the models in memory and the answers per request.
    """
    table = ItemTable.of(soup.items, objective)

    def score(values: FloatArray) -> float:
        return unit().raw(table.score(values))

    names = list(ingredients)
    scores = np.stack([ingredients[name].values for name in names])
    optimism = {"optimism": unit().raw(search_score) - score(soup.values)}
    if scores.min() < 0 or scores.max() > 1:
        return optimism
    routes = {category: _best(chosen_by, names, category) for category in table.names}
    chosen = [names.index(routes[item.category]) for item in soup.items]
    router, oracle = score(scores[chosen, np.arange(len(chosen))]), score(scores.max(axis=0))
    return {
        **optimism,
        "router": {
            "score": router,
            "routes": routes,
            "models": len(set(routes.values())),
            "answers": 1,
        },
        "oracle": {"score": oracle, "models": len(names), "answers": len(names)},
    }


def _best(scores: ScoreMatrix, names: Sequence[str], category: str) -> str:
    """The ingredient with the best score in the category; over all categories if the category is not in the table."""
    rows = scores.rows(names)
    known = category in scores.categories
    return names[
        int(np.argmax(rows[:, scores.categories.index(category)] if known else rows.mean(axis=1)))
    ]
