"""The values of all families that have a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.soup_families.correlating import consistency, low_correlation
from benchmarks.soup_families.design import FACTORS
from benchmarks.soup_families.estimates import kinds, over_draws, selected
from benchmarks.soup_families.matrices import FOLDER, SUFFIX, Facts, load
from benchmarks.soup_families.predicting import lead_on_test, predictors, same_items
from benchmarks.soup_families.view import View, failure
from souping.core.types import FloatArray

PARTS = ("exploratory", "confirmatory", "larger")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A family's values, or why it has failed."""

    facts: Facts
    models: int
    bytes: int
    failure: str
    values: dict[str, float]

    @property
    def part(self) -> str:
        return self.facts.name.rpartition("-")[0]


@dataclass(frozen=True, kw_only=True)
class Families:
    """Usable families of one part of the study."""

    rows: Sequence[Row]

    def __getitem__(self, name: str) -> FloatArray:
        """A value of each family; `a - b` is the difference of two values if it is not one itself."""
        if name in self.rows[0].values:
            return np.array([row.values[name] for row in self.rows])
        left, _, right = name.rpartition(" - ")
        return self[left] - self[right]

    @property
    def levels(self) -> FloatArray:
        return np.array([row.facts.levels for row in self.rows], dtype=float).reshape(
            -1, len(FACTORS)
        )


def row(path: Path) -> Row:
    """Compute a family's values from its matrix."""
    matrix = load(path)
    view = View(matrix=matrix)
    why = failure(view)
    values: dict[str, float] = {}
    if not why:
        values |= selected(view) | kinds(view) | over_draws(view) | same_items(view)
        values |= predictors(view) | low_correlation(view) | consistency(view)
        values["lead on the test"] = lead_on_test(view)
    return Row(
        facts=matrix.facts,
        models=len(matrix.answers),
        bytes=path.stat().st_size,
        failure=why,
        values=values,
    )


def rows(folder: Path = FOLDER) -> list[Row]:
    """All families of a folder, by name."""
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(row, paths))


def usable(all_rows: Sequence[Row], part: str) -> Families:
    return Families(rows=[one for one in all_rows if one.part == part and not one.failure])
