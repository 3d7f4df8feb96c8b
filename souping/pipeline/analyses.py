"""Analyses of a run: the scores that they see, and what comes of them."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from souping.analysis import Analysis, NotEstimableError, RunScores, RunSoups
from souping.analysis.correlation import pearson
from souping.core.text import first_line, named, safe
from souping.core.types import FloatArray, Fold, Item, ItemScores, Json, Recipe, Record, UserError, elements
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.settings import RunSettings

Asks = Iterable[tuple[Recipe, str]]
"""Models, and the handlers by which they answered."""


@dataclass(frozen=True, kw_only=True)
class AnalysisInput:
    """What is known of a run when its analyses begin. `stored` only reads: an answer outside the store has no score.

    `trials` are the search's, `contenders` the report's models; `handler` is the winner's, `metric` the name of the
    selector's correlation.
    """

    settings: RunSettings
    soups: RunSoups
    trials: tuple[tuple[Recipe, str], ...]
    contenders: tuple[Recipe, ...]
    items: Mapping[Fold, tuple[Item, ...]]
    handler: str
    metric: str
    stored: Evaluation

    def scores(self, own: Asks = ()) -> RunScores:
        """All item scores in the store, those of an analysis's `own` soups among them."""
        singles = [(recipe, "") for recipe in self.soups.candidates.values()]
        whole, parts = self._searched([*singles, *self.trials, *own])
        trials = {recipe.id: recipe for recipe, _ in self.trials}
        return RunScores(
            soups=self.soups,
            trials=tuple(trials.values()),
            objective=self.settings.objective,
            correlation=self.settings.selector.measure or pearson,
            metric=self.metric or "pearson",
            search=whole,
            parts=parts,
            report=self._reported(),
            answers=self.stored.answers,
            read=self._read,
        )

    def _searched(self, asks: Asks) -> tuple[dict[str, ItemScores], dict[str, FloatArray]]:
        """Models that answered the whole search fold, and those that answered a part: scores [I], nan elsewhere.

        Of several handlers the first counts.
        """
        items, whole, parts = self.items["search"], dict[str, ItemScores](), dict[str, FloatArray]()
        place = {item.id: n for n, item in enumerate(items)}
        for recipe, handler in asks:
            if recipe.id in whole or not items:
                continue
            found = self.stored.found(recipe, items, handler)
            if len(found.items) == len(items):
                whole[recipe.id] = found
            elif found.items and recipe.id not in parts:
                parts[recipe.id] = np.full(len(items), np.nan)
                parts[recipe.id][[place[item.id] for item in found.items]] = found.values
        return whole, {key: values for key, values in parts.items() if key not in whole}

    def _reported(self) -> dict[str, ItemScores]:
        """Scores of the models that answered the whole report fold."""
        items, handler = self.items["report"], self.handler
        known = [recipe for recipe in self.contenders if items and not self.stored.missing(recipe, items, handler)]
        return {recipe.id: self.stored.scores(recipe, items, handler) for recipe in known}

    def _read(self, recipe: Recipe, fold: Fold) -> Mapping[str, Record]:
        alone = fold == "search" and len(recipe.ingredients) == 1  # candidates answer this fold by their default
        return self.stored.records(recipe, self.items[fold], "" if alone else self.handler)


def unserved(recipe: Recipe) -> NoReturn:
    raise AssertionError(f"an analysis reads what is stored, and soup {recipe.id} is not")


def analyse(analysis: Analysis, scores: RunScores) -> Mapping[str, Json]:
    """The data of one analysis: `not_estimable`, or `failed`, says why there is none. No analysis ends a run."""
    try:
        data = analysis.analyse(scores)
        fault = _fault(data)
        return {"failed": f"{named(analysis)} {fault}"} if fault else data
    except NotEstimableError as error:
        return {"not_estimable": str(error)}
    except UserError as error:
        return {"failed": str(error)}
    except Exception as error:  # user code may raise anything, and the run's results are worth more
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": safe(f"{type(error).__name__}: {first_line(error)} ({last.filename}:{last.lineno})")}


def _fault(data: Mapping[str, Json]) -> str:
    """What is wrong with the data of an analysis, which may be user code; empty if it can be kept and shown."""
    if not isinstance(data, Mapping):
        return f"gave a {type(data).__name__}, not a mapping"
    for key in ("sentences", "tables"):
        if not isinstance(data.get(key, ()), list | tuple):
            return f"gave {key} that are no list"
    for table in elements(data, "tables"):
        header, rows = (table.get(key, ()) if isinstance(table, Mapping) else None for key in ("header", "rows"))
        if not isinstance(header, list | tuple) or not isinstance(rows, list | tuple):
            return "gave a table that is no mapping of a header and rows, both lists"
        if any(not isinstance(row, list | tuple) or len(row) != len(header) for row in rows):
            return f"gave a table of {len(header)} columns with a row of another width"
    return ""
