"""Searches over points of the weight simplex: grid, uniform, fixed weights, Nevergrad, greedy soup.

A point is K non-negative weights that sum to one.
`ListSearch` is the base of the searches that evaluate whole splits: points to evaluate, their results, the best one.
The greedy soup is recipe 1 of Wortsman et al. 2022 (arXiv 2203.05482): a uniform soup that grows as long as it gets
better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import comb
from typing import TYPE_CHECKING, Literal

import numpy as np

from souping.core.fields import Count, check_weights, component, pick
from souping.core.protocols import Optimiser, Search
from souping.core.text import one_line
from souping.core.types import FloatArray, Query, Result, SearchSpace, UserError, Weights

if TYPE_CHECKING:
    from nevergrad.optimization.base import Optimizer
    from nevergrad.parametrization.core import Parameter


def vertices(size: int) -> list[Weights]:
    """Weights of the K = `size` single ingredients."""
    return [tuple(row) for row in np.eye(size).tolist()]


def uniform(size: int) -> Weights:
    """Equal weights of K = `size` ingredients."""
    return (1.0 / size,) * size


def weight_grid(size: int, step: float = 0.1) -> list[Weights]:
    """The paper's points (section 3, step 4): w_i in {step, 2 step, ..}, sum 1; with its step C(9, K-1) of them.

    Weights are exact multiples of the step, rounded to 12 digits so that 0.1 * 3 is written 0.3. Empty when no point
    exists (K > 10 with the default).
    """
    steps = round(1 / step)
    points = []
    # Stars and bars: K - 1 cuts divide the steps among the ingredients.
    for cuts in combinations(range(1, steps), size - 1):
        ends = pairwise((0, *cuts, steps))
        points.append(tuple(round((end - start) / steps, 12) for start, end in ends))
    return points


def grid_size(size: int, step: float = 0.1) -> int:
    """The number of grid points, without listing them."""
    return comb(round(1 / step) - 1, size - 1)


def check_step(step: float) -> None:
    """Raises UserError unless `step` divides 1 into 2 to 10,000 parts."""
    if not 1e-4 <= step <= 0.5 or abs(1 / step - round(1 / step)) > 1e-6:
        raise UserError(f"optimiser.step={step} must divide 1, and be from 0.0001 to 0.5")


def spread(points: Sequence[Weights]) -> list[Weights]:
    """Order points so that every prefix covers the simplex: farthest from all before it comes next.

    Greedy maximin (Gonzalez 1985), starting at the point nearest the centre; ties go to the earlier point.
    """
    if not points:
        return []
    table = np.array(points, dtype=float)
    # Distances are compared rounded, so that rounding errors break no ties.
    from_centre = ((table - table.mean(axis=0)) ** 2).sum(axis=1)
    latest = int(np.argmin(from_centre.round(12)))
    order = [latest]
    # Squared distance of each point to the nearest of those in the order, below zero for those.
    distance = ((table - table[latest]) ** 2).sum(axis=1)
    while len(order) < len(table):
        distance[latest] = -1.0
        latest = int(np.argmax(distance.round(12)))
        order.append(latest)
        distance = np.minimum(distance, ((table - table[latest]) ** 2).sum(axis=1))
    return [points[n] for n in order]


def scattered(size: int, step: float, odds: FloatArray) -> Iterator[Weights]:
    """Endless points of two to nine ingredients, for a simplex that is too large for a grid; always the same ones.

    The ingredients are drawn with probabilities `odds` [K], and their weights are random multiples of the step, one
    step at least.
    """
    rng = np.random.default_rng(0)
    steps = round(1 / step)
    while True:
        count = int(rng.integers(2, min(size, steps, 9) + 1))
        members = rng.choice(size, count, replace=False, p=odds)
        cuts = np.sort(rng.choice(steps - 1, count - 1, replace=False)) + 1
        weights = np.zeros(size)
        weights[members] = np.diff([0, *cuts, steps])
        yield tuple((weights / steps).round(12).tolist())


# ------------------------------------------------------------ searches


@dataclass
class ListSearch(Search):
    """List of points to evaluate, their results, and the best of them.

    Equal objectives: the fewer ingredients, then the earlier point. So a soup must beat a single model to be chosen,
    and the order in which results come back changes nothing.
    """

    points: list[Weights]
    results: dict[Weights, float] = field(default_factory=dict)
    asked: list[Weights] = field(default_factory=list)

    def ask(self) -> Query | None:
        if not self.points:
            return None
        self.asked.append(self.points.pop(0))
        return Query(weights=self.asked[-1])

    def tell(self, query: Query, result: Result) -> None:
        self.results[query.weights] = result.objective

    def best(self) -> Weights:
        self.check_results()

        def rank(weights: Weights) -> tuple[float, int, int]:
            """(minus objective, ingredients, place in the order of queries): the lowest is the best."""
            ingredients = sum(weight > 0 for weight in weights)
            return -round(self.results[weights], 12), ingredients, self.asked.index(weights)

        return min(self.results, key=rank)

    def check_results(self) -> None:
        """Refuse to choose among none (UserError)."""
        if not self.results:
            raise UserError(
                "the search ended without a result: raise optimiser.max_trials or optimiser.max_items"
            )


@component
class LimitedOptimiser(Optimiser):
    """Optimiser that a user can limit, in soups or in items that are answered."""

    max_trials: Count | None = None
    max_items: Count | None = None


class ListedOptimiser(Optimiser):
    """Optimiser whose points are all known beforehand."""

    def known_points(self, size: int) -> list[Weights]:
        """All weights of the search; a subclass must override this method."""
        raise NotImplementedError

    def start(self, space: SearchSpace, seed: int) -> ListSearch:
        return ListSearch(self.known_points(len(space.ingredients))[: self.max_trials])

    def count(self, size: int) -> int | None:
        return len(self.known_points(size)[: self.max_trials])


@component
class Grid(ListedOptimiser, LimitedOptimiser):
    """Grid of the paper (section 3), the uniform point and the vertices, each once.

    Asked uniform and vertices first, then spread, so that a search cut short has still covered the simplex.
    """

    step: float = 0.1

    def __post_init__(self) -> None:
        check_step(self.step)

    def known_points(self, size: int) -> list[Weights]:
        """All points for K = `size`.

        Raises:
            UserError: the grid is empty, or has more than a million points.
        """
        if grid_size(size, self.step) > 1_000_000:
            raise UserError(
                f"optimiser.step={self.step}: over a million points for {size} ingredients; widen the step"
            )
        inner = weight_grid(size, self.step)
        if not inner:
            raise UserError(
                f"optimiser=grid has no point for {size} ingredients with step={self.step}: lower optimiser.step, or "
                "use optimiser=nevergrad"
            )
        known = anchors(size)
        anchor_keys = set(map(weights_key, known))
        others = [point for point in inner if weights_key(point) not in anchor_keys]
        return known + spread(others)

    def describe(self, size: int) -> str:
        count = len(self.known_points(size))
        on_grid = grid_size(size, self.step)
        points = f"{on_grid} points of step {self.step:g}, uniform, {size} singles"
        return ", ".join([f"grid: {count} soups ({points})", *limit_texts(self)])


def weights_key(weights: Sequence[float]) -> Weights:
    """Key of weights, which is the same for weights that differ only by rounding errors."""
    return tuple(round(float(weight), 9) for weight in weights)


@component
class Uniform(ListedOptimiser):
    """No search: equal weights."""

    def known_points(self, size: int) -> list[Weights]:
        return [uniform(size)]

    def describe(self, size: int) -> str:
        return f"uniform: one soup, weights 1/{size}"


@component
class Fixed(Optimiser):
    """Weights given by hand: one for each candidate of the pool or for each ingredient, in the pool's order.

    A merge also takes weights below 0 or above 1, which extrapolate.
    """

    weights: list[float]

    def __post_init__(self) -> None:
        check_weights(self.weights)

    @property
    def extrapolates(self) -> bool:
        return min(self.weights) < 0

    def start(self, space: SearchSpace, seed: int) -> ListSearch:
        """One point.

        Raises:
            UserError: the number of weights fits neither, or a candidate that was not selected has a weight.
        """
        ingredients = space.ingredients
        candidates = space.candidates
        # One weight for each candidate, and not all candidates were selected.
        if len(self.weights) == len(candidates) != len(ingredients):
            weight_of = dict(zip(candidates, self.weights, strict=True))
            for name, weight in weight_of.items():
                if weight and name not in ingredients:
                    raise UserError(
                        f"optimiser.weights gives {weight} to {name}, which was not selected"
                    )
            return ListSearch([tuple(weight_of[name] for name in ingredients)])
        if len(self.weights) != len(ingredients):
            raise UserError(
                f"optimiser.weights has {len(self.weights)} weights; give one for each of the {len(ingredients)} "
                f"ingredients ({', '.join(map(one_line, ingredients))}) or of the {len(candidates)} candidates"
            )
        return ListSearch([tuple(self.weights)])

    def count(self, size: int) -> int | None:
        return 1

    def describe(self, size: int) -> str:
        return "fixed: one soup, weights as given"


def limit_texts(optimiser: Optimiser) -> list[str]:
    """Limits of a search, in words; empty if it has none."""
    limits = {"soup": optimiser.max_trials, "item": optimiser.max_items}
    return [
        f"at most {number:,.10g} {unit}{'s' * (number != 1)}"
        for unit, number in limits.items()
        if number
    ]


def anchors(size: int) -> list[Weights]:
    """The uniform soup and the single ingredients: every search knows them."""
    return [uniform(size), *vertices(size)]


@component
class GreedySoup(LimitedOptimiser):
    """Greedy soup: evaluates the single ingredients, then adds them in that order, best first, to a uniform soup.

    An ingredient stays only when the soup with it is strictly better on the search split. At most 2 K - 1 soups.
    """

    def start(self, space: SearchSpace, seed: int) -> GreedySearch:
        return GreedySearch(len(space.ingredients))

    def count(self, size: int) -> int | None:
        # The single ingredients, and a soup for each but the best of them.
        most = 2 * size - 1
        return min(most, self.max_trials or most)

    def describe(self, size: int) -> str:
        return f"greedy soup: {size} singles, then at most {size - 1} uniform soups"


class GreedySearch(ListSearch):
    """Search whose state is its points and results: each `ask` walks the recipe again as far as the results reach."""

    def __init__(self, size: int) -> None:
        super().__init__(vertices(size))
        self._size = size

    def ask(self) -> Query | None:
        """The next soup that the walk needs; results still open count as rejected until they come in."""
        if self.points:
            return super().ask()
        for soup, _ in self._walk():
            if soup not in self.asked:
                self.asked.append(soup)
                return Query(weights=soup)
        return None

    def best(self) -> Weights:
        """The soup as grown so far."""
        self.check_results()
        members = self._order()[:1]  # the best single ingredient
        for _, grown in self._walk():
            members = grown
        return self._uniform(members)

    def _walk(self) -> Iterator[tuple[Weights, list[int]]]:
        """(soup to judge, numbers of the members after judging it) for each ingredient after the first, best first."""
        order = self._order()
        members = order[:1]
        for ingredient in order[1:]:
            soup = self._uniform([*members, ingredient])
            if self._score(soup) > self._score(self._uniform(members)):
                members = [*members, ingredient]
            yield soup, members

    def _order(self) -> list[int]:
        """Ingredients by their own result, best first; equal ones in the pool's order, those without a result last."""
        corners = vertices(self._size)
        return sorted(range(self._size), key=lambda i: -self._score(corners[i]))

    def _score(self, weights: Weights) -> float:
        """Objective of a soup without rounding errors; minus infinity if it has no result yet."""
        return round(self.results.get(weights, float("-inf")), 12)

    def _uniform(self, members: Sequence[int]) -> Weights:
        """Equal weights of some ingredients, given by number."""
        weights = np.zeros(self._size)
        weights[list(members)] = 1.0 / len(members)
        return tuple(weights.tolist())


# ------------------------------------------------------------ Nevergrad


@component
class Nevergrad(LimitedOptimiser):
    """Any registered Nevergrad optimiser by name, asked one at a time, on a parametrised simplex.

    `softmax` of a real vector (suits CMA and NGOpt), `normalise` of a positive one (suits Hammersley), or `lattice`:
    a choice among the grid's points.
    """

    algorithm: str = "NGOpt"
    parametrisation: Literal["softmax", "normalise", "lattice"] = "softmax"
    step: float = 0.1
    max_trials: Count | None = 40

    def __post_init__(self) -> None:
        check_step(self.step)
        if self.max_trials is None and self.max_items is None:
            raise UserError(
                "optimiser=nevergrad never ends by itself: set optimiser.max_trials or optimiser.max_items"
            )
        _registered(self.algorithm)

    def start(self, space: SearchSpace, seed: int) -> NevergradSearch:
        return NevergradSearch(self, len(space.ingredients), seed)

    def count(self, size: int) -> int | None:
        return self.max_trials

    def describe(self, size: int) -> str:
        return f"nevergrad {self.algorithm}, {self.parametrisation}: {', '.join(limit_texts(self))}"


def _registered(name: str) -> Callable[..., Optimizer]:
    """The optimiser of that name (UserError if there is none; the nearest is named)."""
    from nevergrad.optimization import metamodel
    from nevergrad.optimization.optimizerlib import registry

    # Meta-models, which NGOpt uses too, call `float` for an array with one element, which numpy 2.4 refuses. So that
    # module gets a `float` of its own.
    metamodel.float = _number
    known: Mapping[str, Callable[..., Optimizer]] = registry
    return known[pick(name, known, "optimiser.algorithm")]


def _number(array: FloatArray) -> float:
    return float(np.asarray(array).item())


def _parameter(parametrisation: str, step: float, size: int) -> Parameter:
    """Nevergrad's parameter that `NevergradSearch` decodes to weights (UserError if a lattice has no point)."""
    from nevergrad import p

    if parametrisation == "lattice":
        points = weight_grid(size, step)
        if not points:
            raise UserError(
                f"optimiser.step={step} has no lattice point for {size} ingredients; lower it"
            )
        return p.TransitionChoice(points)
    if parametrisation == "softmax":
        return p.Array(shape=(size,))
    # `normalise`: numbers from 0 to 1, which begin in the middle and are mutated by a sixth of the range.
    return p.Array(init=np.full(size, 0.5)).set_mutation(sigma=1 / 6).set_bounds(0.0, 1.0)


class NevergradSearch(ListSearch):
    """Uniform and vertices first (softmax cannot reach a vertex), then what Nevergrad proposes."""

    def __init__(self, settings: Nevergrad, size: int, seed: int) -> None:
        super().__init__(anchors(size))
        self._settings = settings
        # {weights: Nevergrad's candidates that are decoded to them and have no result yet}
        self._open: dict[Weights, list[Parameter]] = {}
        parameter = _parameter(settings.parametrisation, settings.step, size)
        parameter.random_state = np.random.RandomState(seed)
        build = _registered(settings.algorithm)
        self._optimiser = build(
            parametrization=parameter, budget=settings.max_trials, num_workers=1
        )

    def ask(self) -> Query | None:
        if self.points:
            return super().ask()
        candidate = self._optimiser.ask()
        weights = self._decode(candidate.value)
        # Nevergrad may propose the same weights again.
        self._open.setdefault(weights, []).append(candidate)
        if weights not in self.asked:
            self.asked.append(weights)
        return Query(weights=weights)

    def _decode(self, value: Sequence[float] | FloatArray) -> Weights:
        """The weights that a value of Nevergrad's parameter stands for."""
        if self._settings.parametrisation == "lattice":
            return tuple(map(float, value))
        raw = np.asarray(value, dtype=float)
        if self._settings.parametrisation == "softmax":
            positive = np.exp(raw - raw.max())
        else:
            positive = raw + 1e-9  # all may be 0, and the sum must not be
        return tuple((positive / positive.sum()).tolist())

    def tell(self, query: Query, result: Result) -> None:
        super().tell(query, result)
        # The first points were not proposed by Nevergrad, so they have no candidate. It minimises.
        if self._open.get(query.weights):
            self._optimiser.tell(self._open[query.weights].pop(0), -result.objective)
