"""Scores for the selection from logs of evaluations, item by item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from souping.core.fields import component, pick
from souping.core.protocols import ScoreSource
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix, UserError
from souping.logs import read
from souping.logs.match import MatchedMetric, matched


@component
class LogScores(ScoreSource):
    """Logs of evaluations, `path` is {model: log}: each task is a category, by its first metric.

    All models inform the correlations, the candidates among them can be selected. Items that some model lacks are left
    out, and tasks whose metric is not a mean of scores from 0 to 1. Where lower is better, 1 - score counts.
    """

    path: dict[str, str]
    group: str | None = None

    published = True

    @cached_property
    def _scores(self) -> ScoreMatrix:
        found = matched({name: read(path, group=self.group or "") for name, path in self.path.items()})
        metrics = [metrics[0] for metrics in found.metrics.values() if metrics[0].is_mean]
        if not metrics:
            raise UserError("scores.path: no task in common whose score is a mean over items")
        tables = {name: [_values(metric, name) for metric in metrics] for name in found.models}
        kept = [~np.isnan([table[n] for table in tables.values()]).any(axis=0) for n in range(len(metrics))]
        if empty := [metric.task for metric, mask in zip(metrics, kept, strict=True) if not mask.any()]:
            raise UserError(f"scores.path: no item of {empty[0]} was scored for every model")
        items = tuple(
            Item(id=f"{metric.task}/{name}", category=metric.task, prompt="", answer=None, group=group)
            for metric, mask in zip(metrics, kept, strict=True)
            for name, group, keep in zip(metric.items, metric.groups, mask, strict=True)
            if keep
        )
        values = {
            name: np.concatenate([t[mask] for t, mask in zip(own, kept, strict=True)]) for name, own in tables.items()
        }
        return ScoreMatrix.from_items({name: ItemScores(items=items, values=own) for name, own in values.items()})

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """The scores with the candidates marked.

        Raises:
            UserError: a log cannot be read or compared with the others, or a candidate has none.
        """
        for name in candidates:
            pick(name, list(self.path), "scores.path: log of candidate")
        found = self._scores
        return ScoreMatrix(
            models=found.models,
            categories=found.categories,
            values=found.values,
            candidates=tuple(candidates),
            items=found.items,
            published=True,
        )


def _values(metric: MatchedMetric, model: str) -> FloatArray:
    """[items] mean score over runs and replicates, higher is better; nan where there is none."""
    scores = metric.scores[model].reshape(-1, len(metric.items))
    counted = np.isfinite(scores)
    means = np.where(counted, scores, 0).sum(axis=0) / np.where(counted.any(axis=0), counted.sum(axis=0), np.nan)
    return np.asarray(means if metric.higher_is_better else 1 - means)
