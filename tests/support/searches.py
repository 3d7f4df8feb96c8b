"""A search run to its end over three ingredients whose objective is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from souping.core.protocols import Optimiser, Strategy
from souping.core.types import Cell, Result, SearchSpace, Weights

NAMES = ("a", "b", "c")


def result(weights: Weights) -> Result:
    """A bowl with its top at (0.5, 0.3, 0.2)."""
    target = (0.5, 0.3, 0.2)
    value = 1 - sum((w - t) ** 2 for w, t in zip(weights, target, strict=True))
    return Result(objective=value, categories={}, items=1)


def space(names: tuple[str, ...] = NAMES, candidates: tuple[str, ...] = NAMES, each: int = 12) -> SearchSpace:
    """Two categories of so many items."""
    categories = ("even", "odd") * each
    groups = tuple(f"g{n}" for n in range(2 * each))
    weights = {"even": 0.5, "odd": 0.5}
    return SearchSpace(
        ingredients=names, candidates=candidates, categories=categories, groups=groups, coefficients=weights
    )


def answered(cell: Cell, items: int = 24) -> Result:
    """The bowl at every item that the cell asks."""
    told = result(cell.weights)
    count = items if cell.items is None else len(cell.items)
    return replace(told, items=count, values=np.full(count, told.objective))


def run(strategy: Strategy, seed: int = 0, limit: int = 60) -> tuple[list[Weights], Optimiser]:
    optimiser = strategy.start(space(), seed)
    asked = []
    while len(asked) < min(limit, strategy.trials or limit):
        cell = optimiser.ask()
        if cell is None:
            break
        asked.append(cell.weights)
        optimiser.tell(cell, answered(cell))
    return asked, optimiser
