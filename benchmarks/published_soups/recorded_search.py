"""The product's adaptive search on published curves: what it gives away against the full grid.

A table has no answers to single items, so they are drawn from the scores of each benchmark, and the published score is
taken as the truth. Every benchmark is a category of as many items.

Shape legend: S points of a path, B benchmarks, N items of a benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from benchmarks.published_soups.merge_to_learn import GENERAL, MergePath
from souping.core.types import FloatArray, Query, Result, SearchSpace
from souping.search.adaptive import Adaptive

BATCH = 16  # items of a full batch, as in benchmarks/search_tables.py
SHARED = 0.5  # share of an item's luck that both parents have in common
LEAST_RATE = 0.001  # so that a benchmark at 0 or 100 points has a quantile


@dataclass(frozen=True, kw_only=True)
class Regret:
    """Points below the best of the grid, by the truth, and the share of the grid's items that was answered."""

    search: float
    grid: float
    cost: float

    @property
    def given_away(self) -> float:
        return self.search - self.grid


def coefficients(benchmarks: int) -> FloatArray:
    """Coefficients [B] of the objective: half for the general benchmarks, half for the domain."""
    general = len(GENERAL)
    domain = benchmarks - general
    return np.concatenate([np.full(general, 0.5 / general), np.full(domain, 0.5 / domain)])


def draw_answers(points: FloatArray, items: int, rng: np.random.Generator) -> FloatArray:
    """Right (1) or wrong (0) answers [S, B, N] whose expected means are the points [S, B] out of 100.

    An item is right where its luck, a standard normal, is below the quantile of the score. Half of
    the luck's variance is the item's own. The other half comes from the parents, each with a luck
    of its own, and changes along the path as the weights do, so neighbours answer alike.
    """
    weight = np.linspace(0, 1, len(points))[:, None, None]
    item, first, second = rng.standard_normal((3, points.shape[1], items))
    mixed = ((1 - weight) * first + weight * second) / np.hypot(1 - weight, weight)
    luck = np.sqrt(SHARED) * item + np.sqrt(1 - SHARED) * mixed
    rate = np.clip(points / 100, LEAST_RATE, 1 - LEAST_RATE)
    return np.asarray(luck < norm.ppf(rate)[:, :, None], dtype=float)


def search_path(points: FloatArray, items: int, seed: int) -> Regret:
    """One search of a path whose points [S, B] are those of a grid of two ingredients.

    A path of task arithmetic runs from the general model to the one with the whole change; these
    are its ingredients.
    """
    answers = draw_answers(points, items, np.random.default_rng(seed))
    weights = coefficients(points.shape[1])
    truth = points @ weights
    observed = answers.mean(axis=2) @ weights

    flat = answers.reshape(len(points), -1)
    names = [f"c{number}" for number in range(points.shape[1])]
    space = SearchSpace(
        ingredients=("general", "specialist"),
        categories=tuple(np.repeat(names, items).tolist()),
        groups=tuple(map(str, range(flat.shape[1]))),
        coefficients=dict(zip(names, weights.tolist(), strict=True)),
        singles=flat[[0, -1]],
        full_batch=BATCH,
    )
    pick, answered = _run(space, flat, seed)
    return Regret(
        search=float(truth.max() - truth[pick]),
        grid=float(truth.max() - truth[np.argmax(observed)]),
        cost=answered / flat.size,
    )


def _run(space: SearchSpace, answers: FloatArray, seed: int) -> tuple[int, int]:
    """(point that `optimiser=adaptive` picks, items that soups answered until it stopped)."""
    search = Adaptive(step=1 / (len(answers) - 1)).start(space, seed)
    answered = 0
    while (query := search.ask()) is not None:
        items = slice(None) if query.items is None else list(query.items)
        values = answers[_place(query, len(answers)), items]
        answered += len(values)
        search.tell(query, Result(objective=0, categories={}, items=len(values), values=values))
    return _place(Query(weights=search.best()), len(answers)), answered


def _place(query: Query, points: int) -> int:
    """Place of a soup on its path."""
    return round(query.weights[1] * (points - 1))


@dataclass(frozen=True, kw_only=True)
class SearchedPath:
    """Means over the draws of one path."""

    path: MergePath
    items: int
    regret: Regret


def searched_paths(paths: Iterable[MergePath], items: int, draws: int) -> Iterator[SearchedPath]:
    """Each path, searched on so many draws of the answers."""
    for number, path in enumerate(paths):
        found = [search_path(path.points, items, draws * number + draw) for draw in range(draws)]
        yield SearchedPath(path=path, items=items, regret=mean_regret(found))


def mean_regret(found: Iterable[Regret]) -> Regret:
    """Mean of several."""
    rows = [(regret.search, regret.grid, regret.cost) for regret in found]
    search, grid, cost = np.mean(rows, axis=0).tolist()
    return Regret(search=search, grid=grid, cost=cost)


def cliff(rng: np.random.Generator) -> FloatArray:
    """Made-up path [11, 8]: three scores of a domain jump together beside one end, five general ones decline.

    The surrogate's short length was chosen on such paths, and on no published one.
    """
    weight = np.linspace(0, 1, 11)
    jump = rng.uniform(0.02, 0.15)
    width = np.exp(rng.uniform(np.log(0.02), np.log(0.05)))
    curves = []
    for number in range(len(GENERAL)):
        start = rng.uniform(30, 90)
        end = rng.uniform(5, 60)
        steep = 1 / (1 + np.exp(-(weight - jump - rng.uniform(0.05, 0.4)) / rng.uniform(0.03, 0.2)))
        curves.append(start + (end - start) * (weight if number % 2 else steep))
    for _ in range(3):
        start = rng.uniform(30, 60)
        end = rng.uniform(85, 99)
        curves.append(start + (end - start) / (1 + np.exp(-(weight - jump) / width)))
    path = np.stack(curves, axis=1)
    return path[::-1] if rng.random() < 0.5 else path


def searched_cliffs(items: int, count: int) -> list[Regret]:
    """Searches of made-up paths."""
    rng = np.random.default_rng(0)
    return [search_path(cliff(rng), items, seed) for seed in range(count)]
