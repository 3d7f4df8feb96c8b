"""A family's answers, and which of its items are for what.

Ingredients are selected on 250 items, weights searched on 250 of the other 750 that are there to choose with, and
everything is scored on the 3,000 for the test. Searches are redrawn; selections too, where no search follows.

Shape legend: I items, S soups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.soup_families.design import TUNES
from benchmarks.soup_families.items import SELECTING, category_of, is_choosing, is_selecting
from benchmarks.soup_families.matrices import Matrix
from benchmarks.soup_families.merging import SUBSETS
from souping.core.types import BoolArray, FloatArray, IntArray

SEARCHES = 8
SELECTIONS = 20
LOWEST = 5.0
HIGHEST = 97.0
"""Mean of the tunes, in percent, from which a family is worth nothing: nothing was learned, or nothing is left to."""
PLACES = {subset: place for place, subset in enumerate(SUBSETS)}


@dataclass(frozen=True, kw_only=True)
class View:
    """A family, and which of its items are for what."""

    matrix: Matrix

    @cached_property
    def category(self) -> IntArray:
        return category_of(len(self.matrix.facts.categories))

    @cached_property
    def selecting(self) -> BoolArray:
        return is_selecting(len(self.matrix.facts.categories))

    @cached_property
    def choosing(self) -> BoolArray:
        """Whether each item is one to choose with, [I]; the others are the test."""
        return is_choosing(len(self.matrix.facts.categories))

    @cached_property
    def uniform(self) -> FloatArray:
        """Scores of the uniform soups of all subsets on the test [255]."""
        return self.test(self.matrix.uniform)

    @property
    def tunes(self) -> BoolArray:
        """Right answers of the tunes alone, [8, I]."""
        return self.matrix.uniform[:TUNES]

    def test(self, answers: BoolArray) -> FloatArray:
        """Scores in points on the items for the test, [S, I] -> [S]; categories have equally many items."""
        return points(answers[:, ~self.choosing])

    def score(self, subset: Sequence[int]) -> float:
        """The uniform soup of a subset, on the test."""
        return float(self.uniform[PLACES[tuple(sorted(subset))]])

    def searches(self) -> list[BoolArray]:
        """Marks of the items of each redrawn search [I], none of which was there for selection."""
        return self._redrawn(self.choosing & ~self.selecting, SEARCHES)

    def selections(self) -> list[BoolArray]:
        """Marks of the items of each redrawn selection [I], among all to choose with."""
        return self._redrawn(self.choosing, SELECTIONS)

    def _redrawn(self, among: BoolArray, draws: int) -> list[BoolArray]:
        """Equally many items of each category, `SELECTING` in all."""
        random = np.random.default_rng(self.matrix.facts.seed)
        categories = len(self.matrix.facts.categories)
        own = [np.flatnonzero(among & (self.category == number)) for number in range(categories)]
        masks = []
        for _ in range(draws):
            mask = np.zeros(len(among), dtype=bool)
            for items in own:
                mask[random.choice(items, SELECTING // categories, replace=False)] = True
            masks.append(mask)
        return masks


def points(answers: BoolArray) -> FloatArray:
    """Percent right [S]."""
    return np.asarray(100 * answers.mean(axis=1))


def failure(view: View) -> str:
    """Why a family is not usable; empty if it is."""
    mean = float(view.uniform[:TUNES].mean())
    if not LOWEST < mean < HIGHEST:
        return f"the tunes are right on {mean:.1f} %"
    return ""
