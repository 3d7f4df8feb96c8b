"""A search run to its end over three ingredients whose objective is known."""

from __future__ import annotations

from souping.core.protocols import Optimiser, Strategy
from souping.core.types import Result, SearchSpace, Weights

NAMES = ("a", "b", "c")


def result(weights: Weights) -> Result:
    """A bowl with its top at (0.5, 0.3, 0.2)."""
    target = (0.5, 0.3, 0.2)
    value = 1 - sum((w - t) ** 2 for w, t in zip(weights, target, strict=True))
    return Result(objective=value, categories={}, items=1)


def space(names: tuple[str, ...] = NAMES, candidates: tuple[str, ...] = NAMES) -> SearchSpace:
    return SearchSpace(ingredients=names, candidates=candidates)


def run(strategy: Strategy, seed: int = 0, limit: int = 60) -> tuple[list[Weights], Optimiser]:
    optimiser = strategy.start(space(), seed)
    asked = []
    while len(asked) < min(limit, strategy.trials or limit):
        cell = optimiser.ask()
        if cell is None:
            break
        asked.append(cell.weights)
        optimiser.tell(cell, result(cell.weights))
    return asked, optimiser
