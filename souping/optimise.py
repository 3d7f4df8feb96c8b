"""Weight search: grid, Nevergrad, uniform, fixed. Settings are checked at composition; `start` opens a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from souping import simplex
from souping.core import Result, UserError, Weights


def check_limits(trials: int | None, budget: int | None) -> None:
    for name, limit in (("trials", trials), ("budget", budget)):
        if limit is not None and limit < 1:
            raise UserError(f"optimiser.{name}={limit} must be at least 1 (or null for no limit)")


@dataclass
class Search:
    """A list of points to ask, the results told, and the best of them.

    Equal objectives: the fewer ingredients, then the earlier asked. So a soup must beat a single model to be chosen,
    and the order in which results come back changes nothing.
    """

    points: list[Weights]
    results: dict[Weights, float] = field(default_factory=dict)
    asked: list[Weights] = field(default_factory=list)

    def ask(self) -> Weights | None:
        if not self.points:
            return None
        self.asked.append(self.points.pop(0))
        return self.asked[-1]

    def tell(self, weights: Weights, result: Result) -> None:
        self.results[weights] = result.objective

    def best(self) -> Weights:
        if not self.results:
            raise UserError("the search ended without a result: raise optimiser.trials or optimiser.budget")

        def rank(weights: Weights) -> tuple[float, int, int]:
            return -round(self.results[weights], 12), sum(w > 0 for w in weights), self.asked.index(weights)

        return min(self.results, key=rank)


def _capped(count: int, trials: int | None) -> int:
    return count if trials is None else min(count, trials)


def _anchors(size: int) -> list[Weights]:
    """The uniform soup and the single ingredients: every search knows them."""
    return [simplex.uniform(size), *simplex.vertices(size)]


def _same(a: Weights, b: Weights) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-9


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The paper's grid (section 3), the uniform point and the vertices, each once.

    Asked uniform and vertices first, then spread, so that a search cut short has still covered the simplex.
    """

    step: float = 0.1
    minimum: float = 0.1
    maximum: float = 0.9
    trials: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)
        simplex.grid_size(2, self.step, self.minimum, self.maximum)

    def points(self, size: int) -> list[Weights]:
        """All points for K = `size`.

        Raises:
            UserError: the grid is empty, or has more than a million points.
        """
        if simplex.grid_size(size, self.step, self.minimum, self.maximum) > 1_000_000:
            raise UserError(f"optimiser.step={self.step}: over a million points for {size} ingredients; widen the step")
        inner = simplex.grid(size, self.step, self.minimum, self.maximum)
        if not inner:
            raise UserError(
                f"optimiser=grid has no point for {size} ingredients with step={self.step}, minimum={self.minimum}, "
                f"maximum={self.maximum}: lower optimiser.minimum and step, or use optimiser=nevergrad"
            )
        anchors = _anchors(size)
        return anchors + simplex.spread([p for p in inner if not any(_same(p, a) for a in anchors)])

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> Search:
        return Search(self.points(len(ingredients)))

    def count(self, size: int) -> int | None:
        return _capped(len(self.points(size)), self.trials)

    def describe(self, size: int) -> str:
        count = len(self.points(size))
        on_grid = len(simplex.grid(size, self.step, self.minimum, self.maximum))
        cut = f", cut at {self.trials} trials" if self.trials and self.trials < count else ""
        return f"grid: {count} soups ({on_grid} points of step {self.step:g}, uniform, {size} singles){cut}"


@dataclass(frozen=True, kw_only=True)
class Nevergrad:
    """Any registered Nevergrad optimiser by name, asked one at a time, on a parametrised simplex.

    `softmax` of a real vector (suits CMA and NGOpt), `normalise` of a positive one (suits Hammersley), or `lattice`:
    a choice among the grid's points.
    """

    name: str = "NGOpt"
    parametrisation: Literal["softmax", "normalise", "lattice"] = "softmax"
    step: float = 0.1
    trials: int | None = 40
    budget: int | None = None

    def __post_init__(self) -> None:
        check_limits(self.trials, self.budget)
        simplex.grid_size(2, self.step, self.step, 1 - self.step)
        if self.parametrisation not in ("softmax", "normalise", "lattice"):
            raise UserError(f"optimiser.parametrisation={self.parametrisation} must be softmax, normalise or lattice")
        if self.trials is None and self.budget is None:
            raise UserError("optimiser=nevergrad never ends by itself: set optimiser.trials or optimiser.budget")

    def start(self, ingredients: Sequence[str], candidates: Sequence[str], seed: int) -> NevergradSearch:
        return NevergradSearch(self, len(ingredients), seed)

    def count(self, size: int) -> int | None:
        return self.trials

    def describe(self, size: int) -> str:
        limit = f"{self.trials} soups" if self.trials else f"{self.budget} items"
        return f"nevergrad {self.name}, {self.parametrisation}: at most {limit}"


class NevergradSearch(Search):
    """Uniform and vertices first (softmax cannot reach a vertex), then what Nevergrad proposes."""

    def __init__(self, settings: Nevergrad, size: int, seed: int) -> None:
        super().__init__(_anchors(size))
        self._settings, self._size = settings, size
        self._open: dict[Weights, list[Any]] = {}
        self._optimiser = self._build(seed)

    def _build(self, seed: int) -> Any:
        import nevergrad as ng

        registry = ng.optimizers.registry
        if self._settings.name not in registry:
            from difflib import get_close_matches

            near = get_close_matches(self._settings.name, list(registry), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"optimiser.name={self._settings.name} is not a registered Nevergrad optimiser{hint}")
        parameter = self._parameter(ng)
        parameter.random_state = np.random.RandomState(seed)
        return registry[self._settings.name](parametrization=parameter, budget=self._settings.trials, num_workers=1)

    def _parameter(self, ng: Any) -> Any:
        if self._settings.parametrisation == "lattice":
            step = self._settings.step
            points = simplex.grid(self._size, step, step, 1 - step)
            if not points:
                raise UserError(f"optimiser.step={step} has no lattice point for {self._size} ingredients; lower it")
            return ng.p.TransitionChoice(points)
        if self._settings.parametrisation == "softmax":
            return ng.p.Array(shape=(self._size,))
        return ng.p.Array(init=np.full(self._size, 0.5)).set_bounds(0.0, 1.0)

    def ask(self) -> Weights | None:
        if self.points:
            return super().ask()
        candidate = self._optimiser.ask()
        weights = self._decode(candidate.value)
        self._open.setdefault(weights, []).append(candidate)
        if weights not in self.asked:
            self.asked.append(weights)
        return weights

    def _decode(self, value: Any) -> Weights:
        if self._settings.parametrisation == "lattice":
            return tuple(value)
        raw = np.asarray(value, dtype=float)
        raw = np.exp(raw - raw.max()) if self._settings.parametrisation == "softmax" else raw + 1e-9
        return tuple(float(w) for w in raw / raw.sum())

    def tell(self, weights: Weights, result: Result) -> None:
        super().tell(weights, result)
        if self._open.get(weights):
            self._optimiser.tell(self._open[weights].pop(0), -result.objective)


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
