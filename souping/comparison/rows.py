"""Rows of a comparison before they are judged: which tasks, metrics and lengths each one pools."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from souping.comparison.pooled import pool
from souping.comparison.result import AmountKind
from souping.comparison.row_verdict import AVERAGE
from souping.core.types import frozen
from souping.logs.match import Field, Matched, MatchedMetric
from souping.statistics.score_table import ScoreTable

LENGTH_KINDS: Mapping[Field, AmountKind] = {
    "tokens": "length",
    "characters": "length",
    "cut": "cut",
}


@frozen
class RowScores:
    """One row before it is judged: the scores of all models on its tasks."""

    name: str
    kind: AmountKind
    metric: str
    scores: ScoreTable  # turned so that higher is better
    higher_is_better: bool  # direction of the metric
    fraction: bool  # whether the metric is a score from 0 to 1
    weight: float = 0.0  # share of the average row


def rows_of(
    common: Matched, weights: Mapping[str, float], pass_at: int, named: Collection[str]
) -> Iterator[RowScores]:
    """The average row, then groups, tasks, metrics that are not averaged, output length and truncated answers.

    `weights` are {task: weight} in the average. A group of one task or of all tasks, or the only task, has a row only
    if the policy names it (`named`): another row has the same numbers.
    """
    averaged = {task: common.metrics[task][0] for task in weights}
    average_row = _average_row(averaged, weights, pass_at)
    yield average_row

    # The categories of the pooled scores are tasks. Tasks without an item that all models scored are left out, so the
    # coefficients of the others are their weights.
    scores = average_row.scores
    weight_of = dict(zip(scores.items.names, scores.items.coefficients.tolist(), strict=True))
    for group in common.groups.values():
        tasks = [task for task in group.members if task in weight_of]
        if 1 < len(tasks) < len(weights) or (tasks and group.name in named):
            row = replace(average_row, name=group.name, kind="group", scores=scores.only(tasks))
            yield replace(row, weight=sum(weight_of[task] for task in tasks))

    for task, weight in weight_of.items():
        if len(weights) > 1 or task in named:
            row = _row(averaged[task], "task", scores.only([task]))
            yield replace(row, weight=weight)

    yield from _metric_rows(common, weights)
    yield from _length_rows(averaged, weights)


def _row(metric: MatchedMetric, kind: AmountKind, scores: ScoreTable, name: str = "") -> RowScores:
    """A row of these scores by a metric, by default with the name of the metric's task."""
    return RowScores(
        name=name or metric.task,
        kind=kind,
        metric=metric.metric,
        scores=scores,
        higher_is_better=metric.higher_is_better,
        fraction=metric.is_mean,
    )


def _average_row(
    averaged: Mapping[str, MatchedMetric], weights: Mapping[str, float], pass_at: int
) -> RowScores:
    """The row of the mean over the tasks of {task: metric} with {task: weight}."""
    scores = pool(averaged, weights, pass_at)
    # The averaged metrics are all means from 0 to 1, or all of one unit and so of one direction: the first tells which.
    first = next(iter(averaged.values()))
    row = replace(_row(first, "average", scores, AVERAGE), weight=1.0)
    if first.is_mean:
        # Scores from 0 to 1 are averaged whatever their metrics are, and turned so that higher is better.
        row = replace(row, metric="", higher_is_better=True)
    return row


def _metric_rows(common: Matched, weights: Mapping[str, float]) -> Iterator[RowScores]:
    """A row for each metric that is not averaged: all but the first of a task, and all metrics of unweighted tasks."""
    for task, metrics in common.metrics.items():
        for number, metric in enumerate(metrics):
            averaged = number == 0 and task in weights
            if averaged or not is_scored(metric):
                continue
            # The task itself is the name of the row of its first metric.
            name = f"{task} {metric.metric}" if number else task
            yield _row(metric, "metric", pool({task: metric}, {task: 1.0}), name)


def is_scored(metric: MatchedMetric) -> bool:
    """Whether there is an item of which every model has a score in every run."""
    # From scores [R, P, I] to [I] for each model: whether in all runs some answer to the item has a score.
    scored = [np.isfinite(values).any(axis=1).all(axis=0) for values in metric.scores.values()]
    return bool(np.all(scored, axis=0).any())


def _length_rows(
    averaged: Mapping[str, MatchedMetric], weights: Mapping[str, float]
) -> Iterator[RowScores]:
    """Rows of output length and of the share of truncated answers, over the averaged tasks whose logs have them.

    Tasks have their weights in the average row. Length is in tokens, or in characters if more tasks have those.
    """
    metrics_of = {field: _scored_by(field, averaged) for field in LENGTH_KINDS}
    if len(metrics_of["characters"]) > len(metrics_of["tokens"]):
        del metrics_of["tokens"]
    else:
        del metrics_of["characters"]
    for field, metrics in metrics_of.items():
        if not metrics:
            continue
        total = sum(weights[task] for task in metrics)
        scores = pool(metrics, {task: weights[task] / total for task in metrics})
        first = next(iter(metrics.values()))
        row = _row(first, LENGTH_KINDS[field], scores, name=field)
        yield replace(row, metric=field)


def _scored_by(field: Field, averaged: Mapping[str, MatchedMetric]) -> dict[str, MatchedMetric]:
    """{task: its metric with the values of a field as scores} of the tasks whose logs have that field."""
    metrics = {}
    for task, metric in averaged.items():
        scored = replace(
            metric,
            values={**metric.values, "score": metric.values[field]},
            is_mean=field == "cut",
            right_or_wrong=(),
            higher_is_better=False,
        )
        if is_scored(scored):
            metrics[task] = scored
    return metrics
