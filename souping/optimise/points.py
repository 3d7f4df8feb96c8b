"""Searches over points known beforehand: the grid, the uniform point, weights given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from souping import simplex
from souping.core import UserError, Weights
from souping.optimise.search import Search, anchors, capped, check_limits


def _same(a: Weights, b: Weights) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-9


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The paper's grid (section 3), the uniform point and the vertices, each once.

    Asked uniform and vertices first, then spread, so that a search cut short has still covered the simplex.
    """

    step: float = 0.1
    minimum: float | None = None
    maximum: float | None = None
    trials: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)
        simplex.grid_size(2, *self.bounds)

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Step, smallest and largest weight: the step itself and what it leaves, unless given."""
        low = self.step if self.minimum is None else self.minimum
        return self.step, low, round(1 - self.step, 12) if self.maximum is None else self.maximum

    def points(self, size: int) -> list[Weights]:
        """All points for K = `size`.

        Raises:
            UserError: the grid is empty, or has more than a million points.
        """
        if simplex.grid_size(size, *self.bounds) > 1_000_000:
            raise UserError(f"optimiser.step={self.step}: over a million points for {size} ingredients; widen the step")
        inner = simplex.grid(size, *self.bounds)
        if not inner:
            raise UserError(
                f"optimiser=grid has no point for {size} ingredients with step={self.step}, minimum={self.bounds[1]}, "
                f"maximum={self.bounds[2]}: lower optimiser.minimum and step, or use optimiser=nevergrad"
            )
        known = anchors(size)
        return known + simplex.spread([p for p in inner if not any(_same(p, a) for a in known)])

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> Search:
        return Search(self.points(len(ingredients)))

    def count(self, size: int) -> int | None:
        return capped(len(self.points(size)), self.trials)

    def describe(self, size: int) -> str:
        count = len(self.points(size))
        on_grid = len(simplex.grid(size, *self.bounds))
        cut = f", cut at {self.trials} trials" if self.trials and self.trials < count else ""
        return f"grid: {count} soups ({on_grid} points of step {self.step:g}, uniform, {size} singles){cut}"


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """No search: equal weights."""

    trials: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> Search:
        return Search([simplex.uniform(len(ingredients))])

    def count(self, size: int) -> int | None:
        return 1

    def describe(self, size: int) -> str:
        return f"uniform: one soup, weights 1/{size}"


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Weights given by hand: one for each candidate of the pool or for each ingredient, in the pool's order."""

    weights: list[float]
    trials: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)
        simplex.check_weights(self.weights)

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> Search:
        """One point.

        Raises:
            UserError: the number of weights fits neither, or a candidate that was not selected has a weight.
        """
        if len(self.weights) == len(candidates) != len(ingredients):
            given = dict(zip(candidates, self.weights, strict=True))
            lost = [name for name in candidates if given[name] and name not in ingredients]
            if lost:
                raise UserError(
                    f"optimiser.weights gives {given[lost[0]]} to {lost[0]}, which was not selected: "
                    "set it to 0 or use selector=all"
                )
            return Search([tuple(given[name] for name in ingredients)])
        if len(self.weights) != len(ingredients):
            raise UserError(
                f"optimiser.weights has {len(self.weights)} weights; give one for each of the {len(ingredients)} "
                f"ingredients ({', '.join(ingredients)}) or of the {len(candidates)} candidates"
            )
        return Search([tuple(self.weights)])

    def count(self, size: int) -> int | None:
        return 1

    def describe(self, size: int) -> str:
        return "fixed: one soup, weights as given"
