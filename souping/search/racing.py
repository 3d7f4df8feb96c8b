"""Races of whole-fold searches: soups answer a little, the better half goes on (successive halving).

Jamieson and Talwalkar 2016 (arXiv 1502.07943). All soups of a bracket answer the same items, nested samples of the
fold, so that differences are paired. A dropped soup's objective is told as the winner's plus their difference on the
items that both answered: its own mean is biased, for it was dropped when it was unlucky.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from souping.core.protocols import Optimiser
from souping.core.types import Cell, FloatArray, Json, Result, SearchSpace, UserError, Weights
from souping.search.fold import FoldLayout
from souping.search.running import AdaptiveSearch, SearchRules

EVERY = 4
"""Soups between two looks at the stop rule."""
SCALES = (16.0, 8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Sizes of the early stages that a budget may choose from, over those without one."""


class RacedSearch(Optimiser):
    """Whole-fold search `inner` whose soups race in brackets of `size`; items a stage double up to the whole fold."""

    def __init__(self, inner: Optimiser, space: SearchSpace, seed: int, size: int, budget: int | None = None) -> None:
        self._inner, self._layout, self._size = inner, FoldLayout.of(space, seed), size
        self._stages = _affordable(self._layout, size, budget)
        self._values: dict[Weights, FloatArray] = {}
        self._alive: list[Weights] = []
        self._bracket: list[Cell] = []
        self._queue: list[Weights] = []
        self._open: set[Weights] = set()
        self._stage, self._finished, self._dropped = 0, list[Weights](), 0

    def ask(self) -> Cell | None:
        if not self._queue and not self._open and not self._advance():
            return None
        if not self._queue:
            return None
        weights = self._queue.pop(0)
        self._open.add(weights)
        before = set(self._stages[self._stage - 1]) if self._stage else set()
        fresh = tuple(i for i in self._stages[self._stage] if i not in before)
        return Cell(weights=weights, items=None if len(fresh) == self._layout.items else fresh)

    def tell(self, cell: Cell, result: Result) -> None:
        self._open.discard(cell.weights)
        known = self._values.setdefault(cell.weights, np.full(self._layout.items, np.nan))
        known[slice(None) if cell.items is None else list(cell.items)] = result.values

    def best(self) -> Weights:
        """The best of those that answered the whole fold; of all, where the race was cut short."""
        whole = [w for w, known in self._values.items() if np.isfinite(known).all()]
        if not self._values:
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")
        asked = list(self._values)
        order = {w: (-round(self._mean(w), 12), sum(x > 0 for x in w), asked.index(w)) for w in whole or asked}
        return min(order, key=lambda w: order[w])

    def summary(self) -> Mapping[str, Json]:
        return {**self._inner.summary(), "racing": f"halving: {self._dropped} soups dropped early"}

    def _advance(self) -> bool:
        """Drop the worse half and go to the next stage, or draw the next bracket; False where there is none."""
        if self._alive and self._stage + 1 < len(self._stages):
            order = sorted(self._alive, key=lambda w: -self._mean(w))
            keep = order[: max((len(order) + 1) // 2, 1)]
            self._dropped += len(order) - len(keep)
            self._alive = [w for w in self._alive if w in keep]
            self._stage += 1
        else:
            self._close()
            self._bracket = _drawn(self._inner, self._size)
            self._alive, self._stage = [cell.weights for cell in self._bracket], 0
        self._queue = list(dict.fromkeys(w for w in self._alive if not self._answered(w)))
        if not self._alive:
            return False
        return bool(self._queue) or self._advance()

    def _answered(self, weights: Weights) -> bool:
        known = self._values.get(weights)
        return known is not None and bool(np.isfinite(known[list(self._stages[self._stage])]).all())

    def _close(self) -> None:
        """Tell the inner search of a bracket that is over."""
        if not self._bracket:
            return
        winner = max(self._alive, key=self._mean)
        for cell in self._bracket:
            both = np.isfinite(self._values[cell.weights])
            told = self._mean(winner) + self._mean(cell.weights, both) - self._mean(winner, both)
            values = np.where(both, self._values[cell.weights], np.nan)
            self._inner.tell(cell, Result(objective=told, categories={}, items=int(both.sum()), values=values))
        self._bracket = []

    def _mean(self, weights: Weights, on: FloatArray | None = None) -> float:
        """Objective on what a soup answered, or on some of it."""
        known = self._values[weights] if on is None else np.where(on, self._values[weights], np.nan)
        parts = [known[items][np.isfinite(known[items])] for items in self._layout.members]
        pairs = [(w, float(part.mean())) for w, part in zip(self._layout.weights, parts, strict=True) if len(part)]
        total = sum(w for w, _ in pairs)
        return sum(w * mean for w, mean in pairs) / total if total else 0.0


def _drawn(inner: Optimiser, size: int) -> list[Cell]:
    """Up to `size` cells of the inner search."""
    cells: list[Cell] = []
    while len(cells) < size and (cell := inner.ask()) is not None:
        cells.append(cell)
    return cells


def _affordable(layout: FoldLayout, size: int, budget: int | None) -> list[tuple[int, ...]]:
    """Nested positions of each stage, ending with the whole fold; all earlier stages grow or shrink with a budget."""
    rounds = max(int(np.ceil(np.log2(max(size, 2)))), 1)
    shares = np.array([0.5 ** (rounds - 1 - r) for r in range(rounds)])
    for scale in (1.0,) if budget is None else SCALES:
        wanted = np.append((shares[:-1] * scale).clip(max=1.0), 1.0)
        stages = [_prefix(layout, share) for share in wanted]
        if budget is None or _price(stages, size) <= budget:
            return stages
    return [_prefix(layout, 1.0)]


def raced_items(size: int, items: int) -> int:
    """Items that a race of so many soups takes over a fold of so many, without a budget."""
    rounds = max(int(np.ceil(np.log2(max(size, 2)))), 1)
    total, before, alive = 0.0, 0.0, size
    for r in range(rounds):
        share = 0.5 ** (rounds - 1 - r)
        total += alive * (share - before)
        before, alive = share, max((alive + 1) // 2, 1)
    return int(np.ceil(total * items))


def _prefix(layout: FoldLayout, share: float) -> tuple[int, ...]:
    """The first items of each category."""
    return tuple(int(i) for own in layout.members for i in own[: max(int(np.ceil(share * len(own))), 1)])


def _price(stages: list[tuple[int, ...]], size: int) -> int:
    total, before, alive = 0, 0, size
    for stage in stages:
        total += alive * (len(stage) - before)
        before, alive = len(stage), max((alive + 1) // 2, 1)
    return total


class WatchedSearch(Optimiser):
    """Whole-fold search `inner` under the adaptive search's stop rule and final confirmation: a surrogate over the
    lattice and all points asked hears of every result, ends the search and names the winner."""

    def __init__(self, inner: Optimiser, lattice: list[Weights], space: SearchSpace, seed: int) -> None:
        self._inner, self._lattice, self._space, self._seed = inner, lattice, space, seed
        self._told: dict[Weights, tuple[Cell, Result]] = {}
        self._looked, self._ended = 0, False

    def ask(self) -> Cell | None:
        if len(self._told) >= self._looked + EVERY:
            self._looked = len(self._told)
            self._ended = self._judge().ends
        return None if self._ended else self._inner.ask()

    def tell(self, cell: Cell, result: Result) -> None:
        if len(result.values):
            self._told[cell.weights] = (cell, result)
        self._inner.tell(cell, result)

    def best(self) -> Weights:
        return self._judge().best() if self._told else self._inner.best()

    def summary(self) -> Mapping[str, Json]:
        if not self._told:
            return self._inner.summary()
        judge = self._judge()
        stopped = judge.ends or self._ended
        return {**self._inner.summary(), **judge.summary(), **({} if stopped else {"stopped": "a limit of the run"})}

    def _judge(self) -> AdaptiveSearch:
        points = list(dict.fromkeys([*self._lattice, *self._told]))
        judge = AdaptiveSearch(SearchRules(guide=False), points, replace(self._space, whole=True), self._seed)
        for cell, result in self._told.values():
            judge.tell(judge.opened(cell), result)
        return judge
