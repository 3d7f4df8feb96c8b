"""Settings of the adaptive search, the default: soups and items are chosen by a surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np

from souping.core import simplex
from souping.core.fields import Count, component
from souping.core.protocols import Strategy
from souping.core.types import FloatArray, SearchSpace, UserError, Weights
from souping.search.points import Grid, anchors, check_limits, endings
from souping.search.running import AdaptiveSearch

POINTS = 240
"""Soups at most."""
LISTED, MANY, FADING = 5000, 6, 0.85
"""Points up to which a grid is listed; ingredients from which soups of a few of them join it, and by how much the odds
of a single model fade with each rank."""
USUAL, LONGEST = (7.0, 0.75, 0.8), 2
"""Searches that end by themselves usually take 7 x ingredients^0.75 x fold^0.8 items, and hardly ever twice
as many: benchmarks/search_sizes.py."""


@component
class Adaptive(Strategy):
    """Surrogate over the grid's points that chooses soups and items.

    `stop=auto` ends it when finishing the fold would gain less than 0.1 points. `step` below 0.1 searches between the
    grid's points; of more than 240 points those are taken that cover the simplex.
    """

    step: float = 0.1
    stop: Literal["auto", "never"] = "auto"
    trials: Count | None = None
    budget: Count | None = None
    tokens: Count | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_limits(self)
        if self.stop not in ("auto", "never"):
            raise UserError(f"optimiser.stop={self.stop} must be auto or never")
        Grid(step=self.step)

    def start(self, space: SearchSpace, seed: int) -> AdaptiveSearch:
        return self.over(self._points(len(space.ingredients), space.merits), space, seed)

    def over(self, points: Sequence[Weights], space: SearchSpace, seed: int) -> AdaptiveSearch:
        """A search over these points."""
        return AdaptiveSearch(points, space, seed, stops=self.stop == "auto", budget=self.budget)

    def _points(self, size: int, merits: FloatArray | None = None) -> list[Weights]:
        """Soups to search, the anchors first; of many ingredients those with the better `merits` [K] more often."""
        bounds = self.step, self.step, round(1 - self.step, 12)
        inner = simplex.spread(simplex.grid(size, *bounds)) if simplex.grid_size(size, *bounds) <= LISTED else []
        points = dict.fromkeys(anchors(size) + inner[: POINTS // 2 if size >= MANY else None])
        if inner and size < MANY:
            return list(points)[:POINTS]
        rank = np.zeros(size) if merits is None else np.argsort(np.argsort(-merits, kind="stable"))
        odds = FADING**rank / np.sum(FADING**rank)
        for point in islice(simplex.scattered(size, self.step, odds), 20 * POINTS):  # a coarse step has few
            points[point] = None
            if len(points) >= max(POINTS, 3 * size):
                break
        return list(points)

    @property
    def uses_singles(self) -> bool:
        return True

    def count(self, size: int) -> int | None:
        return None

    def workload(self, size: int, items: int) -> tuple[int, int] | None:
        """Expected: after how many items searches of this size ended. Most: hardly any of them took more."""
        limit = len(self._points(size)) * items
        limit = limit if self.budget is None else min(limit, self.budget)
        factor, by_size, by_items = USUAL
        expected = limit if self.stop == "never" else round(factor * size**by_size * items**by_items)
        return min(expected, limit), min(LONGEST * expected, limit)

    def describe(self, size: int) -> str:
        ends = ", ".join([*(["until more cannot pay"] if self.stop == "auto" else []), *endings(self)])
        return f"adaptive over {len(self._points(size))} soups: {ends or 'the whole grid'}"
