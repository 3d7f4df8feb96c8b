"""Base class of analyses: the item scores of a run in, a result out that can be shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Interval

from souping.core.protocols import Correlation, Objective
from souping.core.types import FloatArray, Fold, Item, ItemScores, JsonObject, Recipe, Record
from souping.core.unit import POINTS, Unit
from souping.report.analyses import AnalysisResult

SearchAgain = Callable[[tuple[str, ...], Sequence[ItemScores], int, tuple[Item, ...]], FloatArray]
Draws = Annotated[int, Interval(ge=2, le=10**6)]
"""Setting that counts random draws."""
SINGLE_SELECTED = "one ingredient was selected, so that no soup was searched"


class NotEstimableError(Exception):
    """There is too little data; the message says how much there is and how much it takes."""


@dataclass(frozen=True, kw_only=True)
class RunSoups:
    """Soups of a run, without their scores.

    `candidates` are {name: the single model}, `soup` is the frozen winner. `recipe` makes one of named weights.
    """

    candidates: Mapping[str, Recipe]
    ingredients: tuple[str, ...]
    soup: Recipe
    recipe: Callable[[Mapping[str, float]], Recipe]


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """Item scores of a run, for its analyses: {recipe id: scores} of all that answered a whole fold.

    `trials` are the soups that the search evaluated, each once; `parts` are the scores [I] of those that answered part
    of the search fold, nan for missing items. `correlation` is the selector's, named `metric`. `answers` is the number
    per item, `unit` that of the scores in a report. `read` gives a model's first answers on a fold, {item id: record}.
    `spent` are the items that the search's soups answered. `search_again` searches a soup of some ingredients, from
    their scores on some items and within a budget, and gives its scores on others.
    """

    soups: RunSoups
    trials: tuple[Recipe, ...]
    objective: Objective
    correlation: Correlation
    metric: str
    search: Mapping[str, ItemScores]
    report: Mapping[str, ItemScores]
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    answers: int = 1
    read: Callable[[Recipe, Fold], Mapping[str, Record]] = lambda recipe, fold: {}
    spent: int = 0
    unit: Unit = POINTS
    search_again: SearchAgain = lambda names, known, budget, items: np.full(len(items), np.nan)

    def single(self, name: str) -> Recipe:
        return self.soups.candidates[name]

    def mixtures(self) -> list[Recipe]:
        """The soups of two or more parents that answered the whole search fold."""
        return [
            soup for soup in self.trials if len(soup.ingredients) > 1 and soup.id in self.search
        ]


class Analysis(ABC):
    """Analysis of a finished search. What it finds is in `report.json`, under `analyses` and the analysis's name.

    One that `searches` again answers at most as many items as the run's search did.
    """

    searches: bool = False

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        """Soups whose answers on the search fold it needs, whether or not somebody has them already."""
        return ()

    @abstractmethod
    def analyse(self, run: RunScores) -> AnalysisResult | JsonObject:
        """What is shown and kept. A mapping is read as a `UserResult`.

        Raises:
            NotEstimableError: too few soups answered the whole fold, and what it would take.
        """
