"""Truth tables, and searches simulated on them.

A split is drawn from the items of a table and its answers are read from the rows. What a search picked is scored on the
items outside the split, which it never saw: a table's mean over all items contains the split, and flatters the pick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from souping.core.types import Query, Result, SearchSpace, UserError, Weights

BATCH = 16
"""Items below which asking would be slow."""
KEYS = ("ok", "cat", "group", "w", "bits")
"""Arrays of a table; all but the last must be there, or `bits` [W, I, S / 8] in place of `ok`: W worlds, packed."""
ROUNDED = 0.005
"""How far rounding may take the sum of a soup's weights off 1."""


@dataclass(frozen=True)
class TruthTable:
    """Answers `ok` [S, I] of S soups with weights `w` [S, K] to I items with a category and a group each."""

    name: str
    ok: np.ndarray
    cat: np.ndarray
    group: np.ndarray
    w: np.ndarray

    @classmethod
    def read(cls, path: Path) -> list[TruthTable]:
        """The table in an .npz file, one for each of its worlds.

        Raises:
            UserError: it holds no table, or one that cannot be searched.
        """
        arrays = _arrays(path)
        bits = arrays.pop("bits", None)
        if bits is None:
            return [cls._of(path, arrays)]
        soups = len(arrays["w"])
        bytes_per_item = -(-soups // 8)
        is_packed = bits.dtype == np.uint8 and bits.ndim == 3 and len(bits) > 0
        if not is_packed or bits.shape[2] != bytes_per_item:
            raise UserError(
                f"{path}: bits is {bits.dtype} {bits.shape}; it must be uint8 [W, I, {bytes_per_item}], packed along "
                f"the {soups} soups of w"
            )
        tables = []
        for world in bits:
            ok = np.unpackbits(world, axis=1, count=soups).T
            tables.append(cls._of(path, {**arrays, "ok": ok}))
        return tables

    @classmethod
    def _of(cls, path: Path, arrays: Mapping[str, np.ndarray]) -> TruthTable:
        _check(path, arrays)
        ok = np.asarray(arrays["ok"], dtype=float)
        codes = {
            key: np.unique(arrays[key], return_inverse=True)[1].reshape(-1)
            for key in ("cat", "group")
        }
        return cls(
            path.stem, ok, codes["cat"], codes["group"], np.asarray(arrays["w"], dtype=float)
        )

    @cached_property
    def truth(self) -> np.ndarray:
        """Objective of every soup over all items: the plain mean of the categories' means [S]."""
        return self.objective(np.arange(len(self.cat)))

    def objective(self, items: np.ndarray, soups: slice | int = slice(None)) -> np.ndarray:
        """The same on some items, of some soups; categories without any are left out."""
        cat = self.cat[items]
        scores = np.atleast_2d(self.ok[soups])[:, items]
        means = [scores[:, cat == c].mean(axis=1) for c in np.unique(cat)]
        return np.asarray(np.stack(means).mean(axis=0))

    @cached_property
    def points(self) -> list[Weights]:
        """Weights of each soup."""
        return [tuple(map(float, row)) for row in self.w]

    @cached_property
    def singles(self) -> list[int]:
        """Rows of the single models, none where one of them is not in the table."""
        rows = [np.flatnonzero(np.isclose(self.w[:, k], 1)) for k in range(self.w.shape[1])]
        return [int(row[0]) for row in rows] if all(len(row) for row in rows) else []

    @property
    def rise(self) -> float:
        """How far soups lie above the plane through their parents, in points per 1 - sum of squared weights, the mean
        over soups; nan where a single model is missing."""
        if not self.singles:
            return float("nan")
        inside = 1 - (self.w**2).sum(1)
        mixed = inside > ROUNDED
        above = self.truth - self.w @ self.truth[self.singles]
        return float(100 * np.mean(above[mixed] / inside[mixed]))

    def parts(self, count: int) -> list[TruthTable]:
        """Disjoint populations of the same soups: the groups, shuffled, dealt to so many tables."""
        if count == 1:
            return [self]
        owner = np.random.default_rng(count).permutation(self.group.max() + 1)[self.group] % count
        return [
            self._only(np.flatnonzero(owner == k), f"{self.name}, part {k + 1} of {count}")
            for k in range(count)
        ]

    def _only(self, items: np.ndarray, name: str) -> TruthTable:
        codes = [
            np.unique(one[items], return_inverse=True)[1].reshape(-1)
            for one in (self.cat, self.group)
        ]
        return TruthTable(name, self.ok[:, items], codes[0], codes[1], self.w)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, those that are known."""
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: np.asarray(data[key]) for key in KEYS if key in data}
    except (EOFError, TypeError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} is no .npz file of plain arrays") from error
    required = ("cat", "group", "w") if "bits" in arrays else ("ok", "cat", "group", "w")
    missing = [key for key in required if key not in arrays]
    if missing:
        raise UserError(
            f"{path} has no array {missing[0]!r}; a table holds ok [S, I], w [S, K], cat [I] and group [I]"
        )
    return arrays


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays of other shapes or kinds, scores outside 0..1, and weights that include no soup."""
    ok = arrays["ok"]
    shape = arrays["ok"].shape
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise UserError(
            f"{path}: ok is {shape}; it must be [S, I], two soups or more and an item or more"
        )
    soups_and_items = {"ok": shape, "cat": shape[1:], "group": shape[1:], "w": shape[:1]}
    for key, array in arrays.items():
        array_shape = array.shape[:-1] if key == "w" else array.shape
        if array_shape != soups_and_items[key]:
            raise UserError(f"{path}: {key} is {array.shape} beside ok {shape}; they must agree")
        if key not in ("cat", "group") and array.dtype.kind not in "biuf":
            raise UserError(f"{path}: {key} has {array.dtype} where numbers are wanted")
    for key in ("cat", "group"):
        if arrays[key].dtype.kind == "f" and np.isnan(arrays[key]).any():
            raise UserError(f"{path}: {key} has nan; every item needs a category and a group")
    if not ((ok >= 0) & (ok <= 1)).all():
        raise UserError(
            f"{path}: ok must be from 0 to 1 everywhere, without nan: a score of every soup on every item"
        )
    _check_weights(path, arrays["w"])


def _check_weights(path: Path, w: np.ndarray) -> None:
    if not ((w >= 0).all() and np.allclose(w.sum(1), 1, rtol=0, atol=ROUNDED)):
        raise UserError(f"{path}: each row of w must be weights from 0 up that sum to 1")
    if w.max(1).min() > 1 - ROUNDED:
        raise UserError(f"{path}: w has single models alone, no soup")


class Simulation:
    """One search split of a table, drawn by groups, and what was asked of it. `spent` counts generated items, without
    those of the single models, which every search knows, `requests` the requests of a search that asks for parts."""

    def __init__(self, table: TruthTable, seed: int, items: int) -> None:
        self.table = table
        self.seed = seed
        self.split = _draw(table, np.random.default_rng([seed, 1]), min(items, len(table.cat) // 3))
        self.spent = 0
        self.requests = 0
        self.asked: set[int] = set()
        self.rows = {point: number for number, point in enumerate(table.points)}
        self.outside = np.flatnonzero(~np.isin(table.group, table.group[self.split]))

    @cached_property
    def space(self) -> SearchSpace:
        table = self.table
        names = [f"c{c}" for c in self.table.cat[self.split]]
        known = sorted(set(names))
        size = len(table.points[0])
        return SearchSpace(
            ingredients=tuple(f"m{k}" for k in range(size)),
            categories=tuple(names),
            groups=tuple(f"g{g}" for g in table.group[self.split]),
            coefficients=dict.fromkeys(known, 1 / len(known)),
            singles=table.ok[np.ix_(np.array(table.singles), self.split)]
            if table.singles
            else None,
            full_batch=BATCH,
        )

    def answer(self, query: Query) -> Result:
        soup = self.rows[query.weights]
        items = self.split if query.items is None else self.split[list(query.items)]
        self.spent += len(items)
        self.requests += 1
        values = self.table.ok[soup, items]
        return Result(
            objective=float(self.table.objective(items, soup)[0]),
            categories={},
            items=len(items),
            values=values,
        )

    def whole(self, soup: int) -> float:
        """Objective on the whole split; counted once, and not for single models."""
        if soup not in self.asked and soup not in self.table.singles:
            self.spent += len(self.split)
        self.asked.add(soup)
        return float(self.grid[soup])

    @cached_property
    def grid(self) -> np.ndarray:
        """Objective of every soup on the split [S]."""
        return self.table.objective(self.split)

    @property
    def full(self) -> int:
        """Items of the full grid."""
        return len(self.table.ok) * len(self.split)

    @cached_property
    def truth(self) -> np.ndarray:
        """Objective of every soup on the items whose groups have no item in the split [S]."""
        return self.table.objective(self.outside)

    def regret(self, pick: int) -> float:
        """In points, on the items outside the split."""
        return float(100 * (self.truth.max() - self.truth[pick]))


def _draw(table: TruthTable, rng: np.random.Generator, items: int) -> np.ndarray:
    """Items in the order of shuffled groups, every category among them."""
    while True:
        rank = rng.permutation(table.group.max() + 1)[table.group]
        split = np.argsort(rank, kind="stable")[:items]
        if len(np.unique(table.cat[split])) == table.cat.max() + 1:
            return split
        items = min(items + 8, len(table.cat))
