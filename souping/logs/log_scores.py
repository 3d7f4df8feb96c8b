"""Scores for the selection from logs of evaluations, item by item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from souping.core.fields import component, pick
from souping.core.files import expanded
from souping.core.protocols import ScoreSource
from souping.core.types import FloatArray, Item, ItemScores, Names, ScoreMatrix, UserError
from souping.logs.match import matched
from souping.logs.sources import logs_in, read_logs


@component
class LogScores(ScoreSource):
    """Logs of evaluations: each task is a category, by its first metric.

    `path` is {model: log}, or a folder with one log per model, which is named by its file or folder. All models
    inform the correlations, the candidates among them can be selected. Items that some model lacks are left out, and
    tasks whose metric is not a mean of scores from 0 to 1. Where lower is better, 1 - score counts.
    """

    path: str | dict[str, str]
    group: str | None = None

    published = True

    @cached_property
    def _paths(self) -> dict[str, str]:
        """{model: path of its log}"""
        if isinstance(self.path, str):
            return logs_in(expanded(self.path, "scores.path"))
        return self.path

    @property
    def models(self) -> Names:
        return tuple(self._paths)

    @cached_property
    def _scores(self) -> ScoreMatrix:
        """The scores of all models on the items that every log has, turned so that higher is better; read once."""
        logs = {name: read_logs(path, group=self.group or "") for name, path in self._paths.items()}
        common = matched(logs)
        metrics = [metrics[0] for metrics in common.metrics.values() if metrics[0].is_mean]
        if not metrics:
            raise UserError("scores.path: no task in common whose score is a mean over items")
        items: list[Item] = []
        columns: list[FloatArray] = []
        for metric in metrics:
            values = np.array([metric.item_means(name) for name in common.models])
            if not metric.higher_is_better:
                values = 1 - values
            # values [models, items]: items that every model has a score of.
            scored = np.flatnonzero(np.isfinite(values).all(axis=0))
            if not scored.size:
                raise UserError(f"scores.path: no item of {metric.task} was scored for every model")
            columns.append(values[:, scored])
            for place in scored:
                name = f"{metric.task}/{metric.items[place]}"
                group = metric.groups[place] or name
                # Only the scores are used, so these items have no content.
                items.append(
                    Item(id=name, category=metric.task, prompt="", answer=None, group=group)
                )
        scores = {}
        for name, values in zip(common.models, np.hstack(columns), strict=True):
            scores[name] = ItemScores(items=tuple(items), values=values)
        return ScoreMatrix.from_items(scores)

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """The scores of the logs' models, with the candidates marked. Nothing is evaluated: `measure` is not called.

        Raises:
            UserError: a log cannot be read or compared with the others, or a candidate has no log.
        """
        for name in candidates:
            pick(name, self.models, "scores.path: log of candidate")
        return replace(self._scores, candidates=tuple(candidates), published=True)
