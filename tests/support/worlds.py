"""Little worlds for searches: soups on a simplex whose scores on all items are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from souping.core.protocols import Search
from souping.core.types import FloatArray, Query, Result, SearchSpace, Weights
from souping.search.adaptive import Adaptive


@dataclass(frozen=True)
class World:
    """Scores `values` [S, I] of soups at `points`; `space` describes the search split, the first of the items."""

    points: list[Weights]
    values: FloatArray
    categories: NDArray[np.int64]
    space: SearchSpace

    @property
    def split(self) -> int:
        return len(self.space.groups)

    @property
    def truth(self) -> FloatArray:
        """Mean of the categories' means over all items [S]."""
        means = [self.values[:, self.categories == c].mean(1) for c in np.unique(self.categories)]
        return np.asarray(np.stack(means).mean(axis=0))

    def score(self, weights: Weights) -> float:
        return float(self.truth[self.points.index(weights)])

    def answer(self, query: Query) -> Result:
        row = self.values[self.points.index(query.weights), : self.split]
        values = row if query.items is None else row[list(query.items)]
        return Result(
            objective=float(values.mean()), categories={}, items=len(values), values=values
        )


def world(
    seed: int = 0, *, size: int = 3, items: int = 120, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
    group: int = 1, even: bool = False, split: float = 1.0, **changes: Any,
) -> World:  # fmt: skip
    """Soups of `size` ingredients, `items` in categories of these shares and in groups of `group`.

    A soup's skill in a category is a blend of its ingredients' plus a bonus for mixing. Half of the luck on an item is
    shared by all soups. With `even` all soups are alike in the first category; `split` is the share of the items that
    the search sees, and `changes` are fields of its space.
    """
    rng = np.random.default_rng(seed)
    points = Adaptive().points(size)
    kinds = len(shares)
    table = np.array(points)
    place = np.arange(items) // group
    categories = np.concatenate([np.arange(kinds), rng.choice(kinds, items, p=shares)])[place]
    skill = table @ rng.standard_normal((size, kinds))
    skill += 2.0 * (1 - np.square(table).sum(1))[:, None] * rng.random(kinds)
    chance = 1 / (1 + np.exp(1.5 * rng.standard_normal(items)[place] - skill[:, categories]))
    values = (0.5 * rng.random(items) + 0.5 * rng.random(chance.shape) < chance).astype(float)
    values[:, categories == 0] = 1.0 if even else values[:, categories == 0]
    seen = round(split * items)
    names = tuple(f"c{c}" for c in categories[:seen])
    space = SearchSpace(
        ingredients=tuple(f"m{k}" for k in range(size)), categories=names, groups=tuple(f"g{p}" for p in place[:seen]),
        coefficients=dict.fromkeys(sorted(set(names)), 1 / len(set(names))), singles=values[1 : size + 1, :seen],
    )  # fmt: skip
    return World(points, values, categories, replace(space, **changes))


def searched(search: Search, of: World, opened: int = 1) -> list[Query]:
    """The requests of a search, `opened` of them open at once; the latest is answered first."""
    requests: list[Query] = []
    waiting: list[Query] = []
    while True:
        query = search.ask() if len(waiting) < opened else None
        if query is not None:
            requests.append(query)
            waiting.append(query)
        elif waiting:
            latest = waiting.pop()
            search.tell(latest, of.answer(latest))
        else:
            return requests


def price(queries: list[Query], of: World) -> int:
    """Number of answers that these requests generate."""
    return sum(of.split if query.items is None else len(query.items) for query in queries)
