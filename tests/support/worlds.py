"""Little worlds for searches: soups on a simplex whose answers to items are known and alike where soups are near."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from souping.core.protocols import Optimiser
from souping.core.types import Cell, Result, SearchSpace, Weights
from souping.search.points import Grid


@dataclass(frozen=True)
class AnswerWorld:
    """Answers `ok` [S, I] of soups at `points`."""

    points: list[Weights]
    ok: NDArray[np.bool_]
    space: SearchSpace

    def answer(self, cell: Cell) -> Result:
        soup = self.points.index(cell.weights)
        items = list(range(self.ok.shape[1])) if cell.items is None else list(cell.items)
        values = self.ok[soup, items].astype(float)
        return Result(objective=float(values.mean()), categories={}, items=len(items), values=values)

    def score(self, weights: Weights) -> float:
        return float(self.ok[self.points.index(weights)].mean())


def world(seed: int = 0, items: int = 120, categories: int = 3, **changes: bool) -> AnswerWorld:
    """An item is right where a soup's skill in its category beats the item's difficulty; two soups near each other
    have nearly the same skill, so they answer alike."""
    rng, points = np.random.default_rng(seed), Grid().known_points(3)
    table, names = np.array(points), [f"c{i % categories}" for i in range(items)]
    skill = np.stack([1.2 * np.sqrt(table[:, c % 3]) for c in range(categories)])
    own = np.stack([skill[i % categories] for i in range(items)], 1)
    lean = own + 0.3 * table @ rng.standard_normal((3, items)) - 0.55 - 0.35 * rng.standard_normal(items)
    space = SearchSpace(
        ingredients=("a", "b", "c"),
        categories=tuple(names),
        groups=tuple(f"g{i}" for i in range(items)),
        coefficients={f"c{c}": 1 / categories for c in range(categories)},
        singles=(lean > 0)[1:4].astype(float),
    )
    return AnswerWorld(points, lean > 0, replace(space, **changes))


def searched(optimiser: Optimiser, of: AnswerWorld, opened: int = 1, limit: int = 10_000) -> list[Cell]:
    """The cells that a search asked, `opened` of them open at once; the latest is told first."""
    asked: list[Cell] = []
    waiting: list[Cell] = []
    while len(asked) < limit:
        cell = optimiser.ask() if len(waiting) < opened else None
        if cell is not None:
            asked.append(cell)
            waiting.append(cell)
        elif waiting:
            told = waiting.pop()
            optimiser.tell(told, of.answer(told))
        else:
            break
    return asked


def price(cells: list[Cell], of: AnswerWorld) -> int:
    """Items that cells generate."""
    return sum(of.ok.shape[1] if cell.items is None else len(cell.items) for cell in cells)
