"""Truth tables, and searches simulated on them: a fold drawn from the table's items, answers read from its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from souping.core.types import Cell, Result, SearchSpace, UserError, Weights

BATCH = 16
"""Items below which asking would be slow."""


@dataclass(frozen=True)
class TruthTable:
    """Answers of S soups to I items. `w` [S, K] are their weights, None where they are arms without structure.

    `right` and `wrong` are log-likelihoods [S, I] of right and wrong answers, None where the table has none.
    """

    name: str
    ok: np.ndarray
    cat: np.ndarray
    group: np.ndarray
    w: np.ndarray | None = None
    right: np.ndarray | None = None
    wrong: np.ndarray | None = None
    rewritten: np.ndarray | None = None

    @classmethod
    def read(cls, path: Path) -> TruthTable:
        with np.load(path, allow_pickle=False) as data:
            missing = [key for key in ("ok", "cat", "group") if key not in data]
            if missing:
                raise UserError(f"{path} has no array {missing[0]!r}; a table holds ok [S, I], cat [I] and group [I]")
            arrays = {key: data[key] for key in data.files}
        ok = np.asarray(arrays["ok"], dtype=float)
        shapes = {key: arrays[key].shape for key in ("nll", "right", "wrong") if key in arrays}
        if any(shape != ok.shape for shape in shapes.values()) or arrays["cat"].shape != (ok.shape[1],):
            raise UserError(f"{path}: ok is {ok.shape}, cat {arrays['cat'].shape}, others {shapes}: they must agree")
        codes = {key: np.unique(arrays[key], return_inverse=True)[1].reshape(-1) for key in ("cat", "group")}
        floats = {key: np.asarray(arrays[key], dtype=float) for key in ("w", "right", "wrong", "nll") if key in arrays}
        reference = -floats["nll"] if "nll" in floats else None
        both = "right" in floats
        return cls(
            path.stem, ok, codes["cat"], codes["group"], floats.get("w"),
            floats["right"] if both else reference, floats.get("wrong"), reference if both else None,
        )  # fmt: skip

    @cached_property
    def truth(self) -> np.ndarray:
        """Objective of every soup over all items: the plain mean of the categories' means [S]."""
        return self.objective(np.arange(len(self.cat)))

    def objective(self, items: np.ndarray, soups: slice | int = slice(None)) -> np.ndarray:
        """The same on some items, of some soups; categories without any are left out."""
        cat, scores = self.cat[items], np.atleast_2d(self.ok[soups])[:, items]
        return np.mean([scores[:, cat == c].mean(1) for c in np.unique(cat)], axis=0)

    @cached_property
    def points(self) -> list[Weights]:
        """Weights of each soup; of arms without structure, unit vectors."""
        table = np.eye(len(self.ok)) if self.w is None else self.w
        return [tuple(map(float, row)) for row in table]

    @cached_property
    def singles(self) -> list[int]:
        """Rows of the single models, none where one of them is not in the table."""
        if self.w is None:
            return []
        rows = [np.flatnonzero(np.isclose(self.w[:, k], 1)) for k in range(self.w.shape[1])]
        return [int(row[0]) for row in rows] if all(len(row) for row in rows) else []

    def shuffled(self, seed: int) -> TruthTable:
        """The same with the likelihoods of the soups exchanged at random."""
        order = np.random.default_rng([seed, 4]).permutation(len(self.ok))
        assert self.right is not None
        return replace(self, right=self.right[order], wrong=None if self.wrong is None else self.wrong[order])

    def with_rewritten(self) -> TruthTable | None:
        """The same with the likelihoods of references that no model wrote, where the table has them."""
        return None if self.rewritten is None else replace(self, right=self.rewritten, wrong=None)

    def margins(self, soup: int, items: np.ndarray) -> np.ndarray:
        """How much likelier right answers are than wrong ones; nan where none was written."""
        assert self.right is not None
        right = self.right[soup, items]
        return right if self.wrong is None else right - self.wrong[soup, items]


class Simulation:
    """One search fold of a table, drawn by groups, and what was asked of it. `spent` counts generated items, without
    those of the single models, which every search knows; `prefilled` counts soups."""

    def __init__(self, table: TruthTable, seed: int, items: int) -> None:
        self.table, self.seed = table, seed
        self.fold = _draw(table, np.random.default_rng([seed, 1]), min(items, len(table.cat) // 3))
        self.spent = self.prefilled = 0
        self.asked: set[int] = set()
        self.rows = {point: number for number, point in enumerate(table.points)}

    @cached_property
    def space(self) -> SearchSpace:
        table, names = self.table, [f"c{c}" for c in self.table.cat[self.fold]]
        known = sorted(set(names))
        size = len(table.points[0])
        return SearchSpace(
            ingredients=tuple(f"m{k}" for k in range(size)),
            categories=tuple(names),
            groups=tuple(f"g{g}" for g in table.group[self.fold]),
            coefficients=dict.fromkeys(known, 1 / len(known)),
            singles=table.ok[np.ix_(table.singles, self.fold)] if table.singles else None,
            block=BATCH,
            margins=table.right is not None,
        )

    def answer(self, cell: Cell) -> Result:
        soup = self.rows[cell.weights]
        items = self.fold if cell.items is None else self.fold[list(cell.items)]
        if cell.wants == "margins":
            self.prefilled += 1
            return Result(objective=np.nan, categories={}, items=len(items), values=self.table.margins(soup, items))
        self.spent += len(items)
        values = self.table.ok[soup, items]
        return Result(
            objective=float(self.table.objective(items, soup)[0]), categories={}, items=len(items), values=values
        )

    def whole(self, soup: int) -> float:
        """Objective on the whole fold; counted once, and not for single models."""
        if soup not in self.asked and soup not in self.table.singles:
            self.spent += len(self.fold)
        self.asked.add(soup)
        return float(self.grid[soup])

    @cached_property
    def grid(self) -> np.ndarray:
        """Objective of every soup on the fold [S]."""
        return self.table.objective(self.fold)

    @property
    def full(self) -> int:
        """Items of the full grid."""
        return len(self.table.ok) * len(self.fold)

    def regret(self, pick: int) -> float:
        """In points, against the population."""
        return float(100 * (self.table.truth.max() - self.table.truth[pick]))


def _draw(table: TruthTable, rng: np.random.Generator, items: int) -> np.ndarray:
    """Items in the order of shuffled groups, every category among them."""
    while True:
        rank = rng.permutation(table.group.max() + 1)[table.group]
        fold = np.argsort(rank, kind="stable")[:items]
        if len(np.unique(table.cat[fold])) == table.cat.max() + 1:
            return fold
        items = min(items + 8, len(table.cat))
