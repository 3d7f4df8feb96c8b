"""Matched logs from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from souping.comparison.pooled import pool
from souping.logs.match import Matched, MatchedMetric
from souping.logs.records import Group
from souping.statistics.score_table import ScoreTable


def metric(
    task: str,
    scores: Mapping[str, ArrayLike],
    *,
    groups: Sequence[object] | None = None,
    missing: Mapping[str, ArrayLike] | None = None,
    higher_is_better: bool = True,
    is_mean: bool = True,
) -> MatchedMetric:
    """Scores of models, {name: [I], [P, I] or [R, P, I]}, for runs R, passes P and items I.

    Every item is a group unless `groups` [I] are given. `missing` has the shape of the scores, 1 for a missing answer.
    """

    def full(values: ArrayLike) -> np.ndarray:
        return np.asarray(values, dtype=float).reshape(
            (1,) * (3 - np.ndim(values)) + np.shape(values)
        )

    table = {name: full(values) for name, values in scores.items()}
    items = tuple(f"{task}-{n}" for n in range(next(iter(table.values())).shape[2]))
    nothing = {name: np.full(values.shape, np.nan) for name, values in table.items()}
    gone = {
        name: full((missing or {}).get(name, np.zeros(values.shape)))
        for name, values in table.items()
    }
    return MatchedMetric(
        task=task,
        metric="acc",
        higher_is_better=higher_is_better,
        is_mean=is_mean,
        items=items,
        groups=items if groups is None else tuple(f"group {g}" for g in groups),
        values={
            "score": table,
            "missing": gone,
            "cut": nothing,
            "tokens": nothing,
            "characters": nothing,
        },
        reported={},
    )


def pooled(*metrics: MatchedMetric, pass_at: int = 0) -> ScoreTable:
    """Tasks of equal weight."""
    return pool(
        {one.task: one for one in metrics}, {one.task: 1 / len(metrics) for one in metrics}, pass_at
    )


def matched(
    *metrics: MatchedMetric, groups: Sequence[Group] = (), requested: Sequence[str] = ()
) -> Matched:
    """These metrics as the only ones of their tasks."""
    return Matched(
        models=tuple(metrics[0].scores),
        metrics={one.task: (one,) for one in metrics},
        groups={group.name: group for group in groups},
        requested=tuple(requested) or tuple(one.task for one in metrics),
    )
