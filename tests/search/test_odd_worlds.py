"""The adaptive search on odd tables: few or lopsided categories, large groups, ties, two or six ingredients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from souping.core.types import Cell, FloatArray, Result, SearchSpace, Weights
from souping.search.adaptive import Adaptive
from tests.support.choices import slow_unless


@dataclass(frozen=True, kw_only=True)
class OddTable:
    """Item response table: soups of `size` ingredients, `items` in categories of these shares, in groups of `group`;
    `even` makes all soups alike in the first category, `fold` is the share of items that a search sees, `asked` the
    share of the grid that it may take."""

    size: int = 3
    items: int = 360
    shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    group: int = 1
    even: bool = False
    fold: float = 0.5
    asked: float = 0.25

    @property
    def points(self) -> list[Weights]:
        return Adaptive()._points(self.size)

    def play(self, seed: int) -> tuple[float, float, float]:
        """(spent of the budget, loss of the pick, mean loss of all soups) of one search."""
        categories, values = self._draw(np.random.default_rng(seed))
        seen = np.arange(round(self.fold * self.items))
        names = tuple(f"c{c}" for c in categories[seen])
        space = SearchSpace(
            ingredients=tuple(f"m{k}" for k in range(len(self.points[0]))), categories=names,
            groups=tuple(f"g{i // self.group}" for i in seen), block=16,
            coefficients=dict.fromkeys(sorted(set(names)), 1 / len(set(names))),
            singles=values[1 : self.size + 1, seen],
        )  # fmt: skip
        budget = round(self.asked * len(values) * len(seen))
        search = Adaptive(stop="never", budget=budget).over(self.points, space, seed)
        spent, rows = 0, {point: row for row, point in enumerate(self.points)}
        while (cell := search.ask()) is not None:
            spent += len(cell.items or seen)
            search.tell(cell, _result(values[rows[cell.weights]], seen, cell))
        truth = np.mean([values[:, categories == c].mean(1) for c in range(len(self.shares))], 0)
        said = search.summary()
        assert 0 <= int(str(said["indistinguishable_count"])) < len(self.points)
        return spent / budget, float(truth.max() - truth[rows[search.best()]]), float((truth.max() - truth).mean())

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, FloatArray]:
        """Categories [I] and scores [S, I]: skill against difficulty, half of the luck shared by all soups."""
        kinds = len(self.shares)
        blocks = np.concatenate([np.arange(kinds), rng.choice(kinds, self.items, p=self.shares)])
        place = np.arange(self.items) // self.group
        categories, hard = blocks[place], 1.5 * rng.standard_normal(self.items)[place]
        table = np.array(self.points)
        skill = table @ rng.standard_normal((table.shape[1], kinds))
        skill += 2.0 * (1 - np.square(table).sum(1))[:, None] * rng.random(kinds)
        chance = 1 / (1 + np.exp(hard - skill[:, categories]))
        luck = 0.5 * rng.random(self.items) + 0.5 * rng.random(chance.shape)
        values = (luck < chance).astype(float)
        values[:, categories == 0] = 1.0 if self.even else values[:, categories == 0]
        return categories, values


def _result(row: FloatArray, seen: np.ndarray, cell: Cell) -> Result:
    values = row[seen if cell.items is None else seen[list(cell.items)]]
    return Result(objective=float(np.nanmean(values)), categories={}, items=len(values), values=values)


TABLES = {
    "sixty items": OddTable(items=180, fold=1 / 3),
    "two ingredients": OddTable(size=2),
    "six ingredients": OddTable(size=6, items=120, asked=0.1),
    "one category": OddTable(shares=(1.0,)),
    "thirty categories": OddTable(shares=(1 / 30,) * 30),
    "lopsided categories": OddTable(shares=(0.9, 0.08, 0.01, 0.01)),
    "groups of twenty": OddTable(group=20, shares=(0.5, 0.5)),
    "a category that all pass": OddTable(even=True),
}


@pytest.mark.parametrize("name", slow_unless(TABLES.keys() - {"six ingredients", "thirty categories"}, TABLES))
def test_part_of_the_grid_finds_better_than_chance(name: str) -> None:
    played = [TABLES[name].play(seed) for seed in range(5)]
    spent, lost, chance = np.array(played).T
    assert spent.max() <= 1
    assert lost.mean() < 0.75 * chance.mean()


def test_soups_that_are_all_equal_end_a_search() -> None:
    even = OddTable(shares=(1.0,), even=True)
    spent, lost, chance = even.play(0)
    assert spent <= 1
    assert lost == chance == 0
