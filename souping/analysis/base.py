"""Base class of analyses: takes the item scores of a run, returns a result that a report can show."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import get_type_hints

from souping.core.protocols import Correlation, Objective
from souping.core.types import FloatArray, ItemScores, JsonObject, Recipe, Record, Split, frozen
from souping.core.unit import POINTS, Unit
from souping.report.analysis_results import AnalysisResult, UserResult

SINGLE_SELECTED = "one ingredient was selected, so that no soup was searched"


class NotEstimableError(Exception):
    """There is too little data; the message says how much there is and how much it takes."""


@frozen
class RunSoups:
    """Soups of a run, without their scores.

    `candidates` are {name: the single model}, `soup` is the frozen winner. `recipe` makes one of named weights. `base`
    is the candidate that is `merge.base_model`, if one is.
    """

    candidates: Mapping[str, Recipe]
    ingredients: tuple[str, ...]
    soup: Recipe
    recipe: Callable[[Mapping[str, float]], Recipe]
    base: str | None = None


@frozen
class RunScores:
    """Item scores of a run, for its analyses."""

    soups: RunSoups
    # Soups that the search evaluated, each once.
    trials: tuple[Recipe, ...]
    objective: Objective
    # The selector's correlation, and its name.
    correlation: Correlation
    metric: str
    # {recipe id: scores} of all that answered the whole split.
    search: Mapping[str, ItemScores]
    test: Mapping[str, ItemScores]
    # {recipe id: scores [I]} of those that answered part of the search split, nan for missing items.
    parts: Mapping[str, FloatArray] = field(default_factory=dict)
    # Answers per item.
    answers: int = 1
    # {item id: record} of a model's first answers on a split.
    read: Callable[[Recipe, Split], Mapping[str, Record]] = lambda recipe, split: {}
    # Unit of the scores in a report.
    unit: Unit = POINTS

    def single(self, name: str) -> Recipe:
        """The candidate of that name, as a recipe."""
        return self.soups.candidates[name]

    def mixtures(self) -> list[Recipe]:
        """The soups of two or more ingredients that answered the whole search split."""
        return [
            soup for soup in self.trials if len(soup.ingredients) > 1 and soup.id in self.search
        ]


class Analysis(ABC):
    """Analysis of a finished search. Its result is in `report.json`, under `analyses` and the analysis's name."""

    def asks(self, soups: RunSoups) -> tuple[Recipe, ...]:
        """Soups whose answers to the whole search split the analysis needs, stored already or not."""
        return ()

    @classmethod
    def result_type(cls) -> type[AnalysisResult]:
        """Class of the result, which the annotation of `analyse` declares; that of a mapping is `UserResult`."""
        kind = get_type_hints(cls.analyse)["return"]
        return kind if inspect.isclass(kind) and issubclass(kind, AnalysisResult) else UserResult

    def notes(self, base_model: str | None, base: str | None) -> list[str]:
        """What a reader of the report must know of this analysis before it is made.

        `base_model` is `merge.base_model`, and `base` the candidate that is this model; None if there is none.
        """
        return []

    @abstractmethod
    def analyse(self, run: RunScores) -> AnalysisResult | JsonObject:
        """The result that the report shows and keeps. A mapping is read as a `UserResult`.

        Raises:
            NotEstimableError: too little data; the message says what it would take.
        """
