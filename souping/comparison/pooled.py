"""Matched logs as one table of scores on the items of several tasks, and the tasks' weights in their mean.

Shape legend: R runs, P answers of an item (repeats), I items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from souping.core.types import FloatArray, UserError
from souping.logs.match import Matched, MatchedMetric, moments
from souping.statistics.score_table import Answers, ItemTable, ScoreTable, group_numbers, joined

# ---------------------------------------------------------------- weights


def task_weights(
    common: Matched, average: str, named_weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """{task: weight} of the tasks that are averaged. The weights sum to 1.

    `average` is `task` (the mean over what was requested: a group counts once, and inside it all of its tasks are
    averaged as its harness does), `leaf` (the mean over tasks) or `item` (over items). If there are `named_weights` of
    tasks and groups, they count instead.

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

    # A name's weight is divided among its tasks.
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

    If no task has such a metric: of all tasks if they share one known unit, such as that of a loss, or if there is only
    one task. Otherwise empty.
    """
    first = {task: metrics[0] for task, metrics in common.metrics.items()}
    means = {task: metric for task, metric in first.items() if metric.is_mean}
    if means:
        return means
    units = {metric.unit for metric in first.values()}
    share_unit = len(units) == 1 and units != {""}
    return first if share_unit or len(first) == 1 else {}


def _task_shares(common: Matched, name: str, sizes: Mapping[str, float]) -> dict[str, float]:
    """{task: its share in the mean of the group or task with this name}. The shares need not sum to 1.

    `sizes` are {task that is averaged: its number of items}; tasks that are not averaged have no share.

    Raises:
        UserError: no task or group has this name.
    """
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


def pool(
    metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float], pass_at: int = 0
) -> ScoreTable:
    """The scores of all models on the items of {task: metric}, turned so that higher is better.

    The score of an item is the mean of its answers, or with `pass_at` k its pass@k. {task: weight} are for the mean.

    Raises:
        UserError: no item has a score of every model, or pass@k cannot be computed.
    """
    items = item_table(metrics, weights)
    answers = {}
    for model in next(iter(metrics.values())).scores:
        answers[model] = joined([_answers(metric, model, pass_at) for metric in metrics.values()])

    # Left out are items whose missing answers have no bounds, and tasks without an item that every model has a
    # score of.
    scored = np.ones(len(items.groups), dtype=bool)
    usable = np.ones(len(items.groups), dtype=bool)
    for scores in answers.values():
        scored &= np.isfinite(scores.counted).all(axis=0)
        usable &= np.isfinite(scores.lowest + scores.highest).all(axis=0)
    if not scored.any():
        raise UserError(f"{', '.join(metrics)}: no item has a score of every model")
    of_scored_task = np.isin(items.categories, items.categories[scored])
    return ScoreTable.of(items, answers).at(usable & of_scored_task)


def item_table(metrics: Mapping[str, MatchedMetric], weights: Mapping[str, float]) -> ItemTable:
    """All items of {task: metric}, task after task, with their groups and {task: weight} as coefficients.

    An item without a group is a group by itself.
    """
    groups = []
    for task, metric in metrics.items():
        for item, group in zip(metric.items, metric.groups, strict=True):
            groups.append(group or f"{task} {item}")
    sizes = [len(metric.items) for metric in metrics.values()]
    return ItemTable(
        names=tuple(metrics),
        categories=np.repeat(np.arange(len(sizes)), sizes),
        groups=group_numbers(groups),
        coefficients=np.array([weights[task] for task in metrics]),
    )


def _answers(metric: MatchedMetric, model: str, pass_at: int) -> Answers:
    """Scores of a model on the items of one task, higher is better, with bounds where answers are missing."""
    answers = metric.scores[model]  # [R, P, I]
    limits = np.array(metric.limits)
    if not metric.higher_is_better:
        # A score from 0 to 1 stays in this range; others change their sign.
        answers = float(metric.is_mean) - answers
        limits = float(metric.is_mean) - limits
    score, noise = _item_scores(answers, pass_at, metric.task)
    missing = metric.values["missing"][model] > 0
    if not limits.size or not missing.any():
        return Answers(counted=score, lowest=score, highest=score, noise=noise)
    highest, _ = _item_scores(np.where(missing, limits.max(), answers), pass_at, metric.task)
    lowest, _ = _item_scores(np.where(missing, limits.min(), answers), pass_at, metric.task)
    return Answers(counted=score, lowest=lowest, highest=highest, noise=noise)


def _item_scores(answers: FloatArray, pass_at: int, task: str) -> tuple[FloatArray, FloatArray]:
    """(score of each item from its answers [R, P, I], variance of their mean), both [R, I].

    The score is the mean of the answers, or with `pass_at` k the item's pass@k.
    """
    count, mean, noise = moments(answers)
    if pass_at:
        return _pass_at(answers, count, pass_at, task), noise
    return mean, noise


def _pass_at(answers: FloatArray, count: FloatArray, k: int, task: str) -> FloatArray:
    """Chance that one of k answers is right, [R, I], from answers [R, P, I] of which `count` [R, I] have a score.

    Without bias from n answers of which c are right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Raises:
        UserError: a score is neither 0 nor 1, or an item has fewer than k answers.
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
