"""Scores of all models on the items of several tasks, and the tasks' weights in their mean.

Shape legend: R runs, P answers of an item (replicates), I items, C tasks, M models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from souping.analysis.grouped import GroupedScores, GroupLayout
from souping.core.types import BoolArray, FloatArray, IntArray, UserError
from souping.logs.match import Matched, MatchedMetric, moments

# Rows of `PooledScores.values`: the mean score over the answers of an item as its harness counted,
# with missing answers counted as right and as wrong, and the variance of the score over the draw
# of its answers, nan if it has one.
SCORE, BEST, WORST, NOISE = range(4)


# ---------------------------------------------------------------- weights


def task_weights(
    common: Matched, average: str, named_weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{task: weight}, which sum to 1.

    `task` is the mean over what was requested: a group counts once, and inside it all of its tasks
    are averaged as its harness does. `leaf` is the mean over tasks, `item` that over items;
    `named_weights` are weights of tasks and groups from a file.

    Raises:
        UserError: no metric is a mean, or a weight names something that is not here.
    """
    metrics = _averaged_metrics(common)
    sizes = {task: float(len(metric.items)) for task, metric in metrics.items()}
    if not sizes:
        raise UserError(
            "no task has a metric that is the mean of scores from 0 to 1 in every log, so there is nothing "
            "to average: compare the tasks one by one, or rescale their scores to 0 to 1"
        )
    if named_weights is None:
        choices = {
            "leaf": dict.fromkeys(sizes, 1.0),
            "item": sizes,
            "task": dict.fromkeys(common.requested, 1.0),
        }
        named_weights = choices[average]
    elif not all(0 <= weight < 1e9 for weight in named_weights.values()):
        raise UserError("weights: each is a number from 0 to 1e9")

    weights = dict.fromkeys(sizes, 0.0)
    for name, weight in named_weights.items():
        shares = _task_shares(common, name, sizes)
        for task, share in shares.items():
            weights[task] += weight * share / sum(shares.values())
    total = sum(weights.values())
    if total <= 0:
        raise UserError("the weights of the tasks sum to 0")
    return {task: weight / total for task, weight in weights.items() if weight > 0}


def _averaged_metrics(common: Matched) -> dict[str, MatchedMetric]:
    """{task: its first metric} of the tasks where that is a mean within 0..1.

    If there is none: of all tasks if they share one unit, such as that of a loss.
    """
    first = {task: metrics[0] for task, metrics in common.metrics.items()}
    means = {task: metric for task, metric in first.items() if metric.is_mean}
    units = {metric.unit for metric in first.values()}
    if means or len(units) != 1:
        return means
    if len(first) == 1 or units != {""}:
        return first
    return {}


def _task_shares(common: Matched, name: str, sizes: Mapping[str, float]) -> dict[str, float]:
    """Shares of tasks in the mean of a group, or of a task, which do not sum to 1 yet."""
    if name not in common.groups and name not in common.metrics:
        raise UserError(f"weights: {name} is not a task or group of all models")
    if name not in common.groups:
        return {name: 1.0} if name in sizes else {}
    group = common.groups[name]
    tasks = [task for task in group.members if task in sizes]
    if group.weight_by_size:
        return {task: sizes[task] for task in tasks}
    return dict.fromkeys(tasks, 1.0)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledScores:
    """Scores of all models on the items of some tasks, turned so that higher is better."""

    names: tuple[str, ...]  # of the tasks, [C]
    weights: FloatArray  # [C]
    categories: IntArray  # [I] number of the task
    groups: IntArray  # [I]
    values: Mapping[str, FloatArray]  # {model: [4, R, I]}, rows SCORE, BEST, WORST, NOISE

    def at(self, place: BoolArray) -> PooledScores:
        """The items of this mask. Tasks without any of them are left out."""
        if place.all():
            return self
        tasks, categories = np.unique(self.categories[place], return_inverse=True)
        weights = self.weights[tasks]
        return PooledScores(
            names=tuple(self.names[task] for task in tasks),
            weights=weights / weights.sum(),
            categories=categories.astype(np.int64),
            groups=self.groups[place],
            values={model: scores[..., place] for model, scores in self.values.items()},
        )

    def only(self, names: Collection[str]) -> PooledScores:
        """These tasks alone."""
        tasks = [task for task, name in enumerate(self.names) if name in names]
        return self.at(np.isin(self.categories, tasks))

    @cached_property
    def scored(self) -> PooledScores:
        """The items that have a score in every run of every model."""
        return self.at(finite(self.values.values()))

    @cached_property
    def layout(self) -> GroupLayout:
        """Groups and tasks of the items."""
        return GroupLayout.of(self.categories, self.groups, self.weights)

    def paired(self, a: FloatArray, b: FloatArray) -> GroupedScores:
        """a - b [I] summed by group and task."""
        return self.layout.grouped(a - b)

    def mean(self, values: FloatArray) -> float:
        """The weighted mean of scores [R, I] over tasks."""
        sums = np.bincount(self.categories, values.mean(axis=0))
        means = self.weights * sums / np.bincount(self.categories)
        return float(means.sum())


def finite(values: Iterable[FloatArray], fill: int = SCORE) -> BoolArray:
    """Items [I] that have a score in every run of every model; `fill` is the row of values."""
    scored = [np.isfinite(model_values[fill]).all(axis=0) for model_values in values]
    return np.asarray(np.all(scored, axis=0))


def pool(
    metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float], pass_at: int = 0
) -> PooledScores:
    """Scores of all models by these metrics, {task: metric}; `pass_at` k gives an item its pass@k.

    Raises:
        UserError: no item has a score of every model, or pass@k cannot be computed.
    """
    tables = list(metrics.values())
    sizes = [len(metric.items) for metric in tables]
    values = {}
    for model in tables[0].scores:
        rows = [_score_rows(metric, model, pass_at) for metric in tables]
        values[model] = np.concatenate(rows, axis=2)
    pooled = PooledScores(
        names=tuple(metrics),
        weights=np.array([weights[task] for task in metrics]),
        categories=np.repeat(np.arange(len(tables)), sizes),
        groups=_group_numbers(tables),
        values=values,
    )

    # Tasks without any item that has a score of every model are left out.
    scored = finite(values.values(), SCORE)
    if not scored.any():
        raise UserError(f"{', '.join(metrics)}: no item has a score of every model")
    of_scored_task = np.isin(pooled.categories, pooled.categories[scored])
    usable = finite(values.values(), BEST) & finite(values.values(), WORST)
    return pooled.at(usable & of_scored_task)


def _group_numbers(metrics: Iterable[MatchedMetric]) -> IntArray:
    """Number of each item's group [I]; an item without a group is one by itself."""
    numbers: dict[str | tuple[str, str], int] = {}
    groups = []
    for metric in metrics:
        for item, group in zip(metric.items, metric.groups, strict=True):
            key = group or (metric.task, item)
            groups.append(numbers.setdefault(key, len(numbers)))
    return np.array(groups)


def _score_rows(metric: MatchedMetric, model: str, pass_at: int) -> FloatArray:
    """Rows SCORE, BEST, WORST and NOISE of a model, [4, R, I]."""
    answers = metric.scores[model]  # [R, P, I]
    if not metric.higher_is_better:
        answers = float(metric.is_mean) - answers
    score, noise = _item_scores(answers, pass_at, metric.task)
    missing = (metric.values["missing"][model] > 0) & metric.is_mean
    if not missing.any():
        return np.stack([score, score, score, noise])
    best, _ = _item_scores(np.where(missing, 1.0, answers), pass_at, metric.task)
    worst, _ = _item_scores(np.where(missing, 0.0, answers), pass_at, metric.task)
    return np.stack([score, best, worst, noise])


def _item_scores(answers: FloatArray, pass_at: int, task: str) -> tuple[FloatArray, FloatArray]:
    """Mean of an item's answers (or its pass@k) and the variance of that mean, both [R, I]."""
    count, mean, noise = moments(answers)
    if pass_at:
        return _pass_at(answers, count, pass_at, task), noise
    return mean, noise


def _pass_at(answers: FloatArray, count: FloatArray, k: int, task: str) -> FloatArray:
    """Chance that one of k answers is right, [R, I].

    Without bias from n answers of which c are right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).
    """
    if not np.isin(answers[np.isfinite(answers)], (0.0, 1.0)).all():
        raise UserError(f"pass@{k}: {task} has scores that are neither 0 nor 1")
    if (count[count > 0] < k).any():
        fewest = count[count > 0].min()
        raise UserError(
            f"pass@{k}: {task} has items with {fewest} answers: at least {k} are needed"
        )
    wrong = (answers == 0).sum(axis=1)
    all_wrong = np.ones(count.shape)
    for step in range(k):
        all_wrong = all_wrong * np.maximum(wrong - step, 0.0) / np.maximum(count - step, 1)
    return np.where(count > 0, 1.0 - all_wrong, np.nan)
