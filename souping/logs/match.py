"""Which answers of several models may be compared, item by item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from souping.core.text import listed
from souping.core.types import FloatArray, UserError
from souping.logs.records import Group, Log, LoggedMetric, Task

Named = tuple[str, Log]
"""A model's name and one of its logs."""


Field = Literal["score", "missing", "cut", "tokens", "characters"]
FIELDS: tuple[Field, ...] = get_args(Field)


@dataclass(frozen=True, kw_only=True)
class MatchedMetric:
    """Answers of all models to the items of one task by one metric, for the items that every log has.

    `values` is {field: {model: array}}, and each array is [runs, replicates, items]. The numbers of runs and replicates
    may differ between models. A value that does not exist is nan: a replicate that an item lacks, a score that the
    harness left out of its mean, a length that the log does not say. `missing` is 1 for answers that were requested and
    not scored, whether the harness counted them or not. `groups` are those of the items, empty without one. `reported`
    are the harness's figures by run: all that there is of a corpus metric, whose scores are all nan.
    """

    task: str
    metric: str
    higher_is_better: bool
    is_mean: bool
    items: tuple[str, ...]
    groups: tuple[str, ...]
    values: Mapping[Field, Mapping[str, FloatArray]]
    reported: Mapping[str, tuple[float | None, ...]]
    unit: str = ""

    @property
    def scores(self) -> Mapping[str, FloatArray]:
        return self.values["score"]

    def item_means(self, model: str) -> FloatArray:
        """[items] mean score over runs and replicates."""
        return np.asarray(moments(self.scores[model].reshape(1, -1, len(self.items)))[1][0])


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What several models have in common, in the order in which they were named.

    `metrics` is {task: its metrics}, the first of them stands for the task. `groups` are those whose members are all
    here, `asked` the tasks and groups whose mean is the headline. `notes` are sentences for the reader: what was left
    out, and how the prompts differ.
    """

    models: tuple[str, ...]
    metrics: Mapping[str, tuple[MatchedMetric, ...]]
    groups: Mapping[str, Group]
    asked: tuple[str, ...]
    notes: tuple[str, ...] = ()


def moments(raw: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Number of an item's answers, their mean and its variance: [runs, answers, items] -> three of [runs, items]."""
    there = np.isfinite(raw)
    count = there.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, raw, 0.0).sum(axis=1) / count
        squares = np.where(there, (raw - mean[:, None]) ** 2, 0.0).sum(axis=1)
        return count, mean, np.where(count > 1, squares / (count - 1) / count, np.nan)


def matched(logs: Mapping[str, Sequence[Log]], *, same_prompts: bool = False) -> Matched:
    """What the models have in common; {name: its training runs}, the baseline first.

    Raises:
        UserError: they may not be compared: another harness, metric, version, number of shots or judge; no item in
            common; one log under two names; no score; with `same_prompts` also prompts that differ.
    """
    every = [(name, log) for name, runs in logs.items() for log in runs]
    _check_sources(every)
    first = every[0][1]
    names = [name for name in first.tasks if all(name in log.tasks for _, log in every)]
    if not names:
        raise UserError(f"no task in common: {'; '.join(f'{name} has {listed(log.tasks, 4)}' for name, log in every)}")
    notes = [note for _, log in every for note in log.notes]
    if gone := sorted({name for _, log in every for name in log.tasks} - set(names)):
        notes.append(f"left out, as not every log has them: {listed(gone)}")
    tasks = {name: _task(name, every, notes) for name in names}
    notes += _prompts(names, every, same_prompts)
    groups = dict[str, Group]()
    for group in first.groups.values():
        if members := tuple(member for member in group.members if member in names):
            others = [log.groups[group.name].weight_by_size for _, log in every if group.name in log.groups]
            by_size = next((known for known in others if known is not None), False)
            groups[group.name] = replace(group, members=members, weight_by_size=by_size)
    asked = tuple(name for name in first.asked if name in tasks or name in groups)
    return Matched(models=tuple(logs), metrics=tasks, groups=groups, asked=asked or tuple(names), notes=tuple(notes))


def _check_sources(every: Sequence[Named]) -> None:
    """Refuse logs of several harnesses, and one log twice."""
    name, log = every[0]
    seen = dict[tuple[str, str], str]()
    for other, own in every:
        if own.harness != log.harness:
            harnesses = f"{name} is a log of {log.harness}, {other} one of {own.harness}"
            raise UserError(f"{harnesses}: their items do not compare")
        key = (str(own.path.resolve()), own.model)
        if key in seen:
            raise UserError(f"{seen[key]} and {other} are the same log, {own.path}: name two different ones")
        seen[key] = other


def _task(task: str, every: Sequence[Named], notes: list[str]) -> tuple[MatchedMetric, ...]:
    """The metrics that all logs of a task have, if its settings agree."""
    tasks = [(name, log.tasks[task]) for name, log in every]
    lead, *_ = tasks[0][1].metrics
    common = [metric for metric in tasks[0][1].metrics if all(metric in one.metrics for _, one in tasks)]
    (first, own), *others = [(name, _traits(one, lead, common)) for name, one in tasks]
    for name, other in others:
        for key in {**own, **other}:
            here, there = own.get(key, "none"), other.get(key, "none")
            if here != there:
                where = f"{here} in {first} and {there} in {name}"
                raise UserError(f"{task}: the {key} is {where}: these scores do not compare")
    found = tuple(_metric(task, metric, every) for metric in common)
    requested = {answer.item for _, one in tasks for metric in one.metrics.values() for answer in metric.answers}
    if gone := len(requested) - len({item for metric in found for item in metric.items}):
        notes.append(f"{task}: {gone} of {len(requested)} items are left out, as not every log has them")
    return found


def _traits(task: Task, lead: str, common: Sequence[str]) -> dict[str, str]:
    """What must agree between logs: settings, the metric that stands for the task, directions."""
    ways = {True: "higher is better", False: "lower is better"}
    directions = {f"direction of {name}": ways[task.metrics[name].higher_is_better] for name in common}
    return {**task.settings, "metric": lead if lead in task.metrics else next(iter(task.metrics)), **directions}


def _metric(task: str, metric: str, every: Sequence[Named]) -> MatchedMetric:
    found = [(name, log.tasks[task].metrics[metric]) for name, log in every]
    (first, own), *others = found
    common = set.intersection(*({answer.item for answer in one.answers} for _, one in found))
    items = {item: place for place, item in enumerate(dict.fromkeys(a.item for a in own.answers if a.item in common))}
    if not items:
        raise UserError(f"{task}: no item in common (by id and content): {first} and {', '.join(n for n, _ in others)}")
    is_mean = all(one.is_mean for _, one in found)
    groups = {answer.item: answer.group for _, one in reversed(found) for answer in one.answers if answer.group}
    arrays = {name: _arrays(items, [one for other, one in found if other == name]) for name, _ in found}
    if empty := [name for name, table in arrays.items() if is_mean and np.isnan(table[0]).all()]:
        raise UserError(f"{task}: {empty[0]} has no score of {metric} for any item in common")
    return MatchedMetric(
        task=task,
        metric=metric,
        higher_is_better=own.higher_is_better,
        is_mean=is_mean,
        unit=own.unit,
        items=tuple(items),
        groups=tuple(groups.get(item, "") for item in items),
        values={field: {name: arrays[name][n] for name in arrays} for n, field in enumerate(FIELDS)},
        reported={name: tuple(one.reported for other, one in found if other == name) for name in arrays},
    )


def _arrays(items: Mapping[str, int], runs: Sequence[LoggedMetric]) -> FloatArray:
    """[fields, runs, replicates, items]."""
    replicates = {number: place for place, number in enumerate(sorted({a.replicate for m in runs for a in m.answers}))}
    table = np.full((len(FIELDS), len(runs), len(replicates), len(items)), np.nan)
    for run, metric in enumerate(runs):
        kept = [answer for answer in metric.answers if answer.item in items]
        places = [replicates[answer.replicate] for answer in kept], [items[answer.item] for answer in kept]
        fields = np.array([(a.score, a.missing, a.cut, a.tokens, a.characters) for a in kept], dtype=float)  # None: nan
        table[:, run, *places] = fields.T
    return table


def _prompts(tasks: Sequence[str], every: Sequence[Named], same: bool) -> Iterable[str]:
    """How many prompts of each log differ from the first log's."""
    hashes = list[dict[tuple[str, str], str]]()
    for _, log in every:
        first = {task: next(iter(log.tasks[task].metrics.values())) for task in tasks}
        hashes.append({(task, answer.item): answer.prompt_hash for task in tasks for answer in first[task].answers})
    for (name, _), prompts in zip(every[1:], hashes[1:], strict=True):
        pairs = [(prompt, hashes[0].get(key)) for key, prompt in prompts.items()]
        common = [one == other for one, other in pairs if one and other]
        if same and not common:
            raise UserError(f"--same-prompts: the logs of {every[0][0]} and {name} do not have the prompts of any item")
        if all(common):
            continue
        share = f"prompts of {every[0][0]} and {name} differ in {100 - 100 * np.mean(common):.3g} % of the items"
        if same:
            raise UserError(f"{share}: leave --same-prompts out to compare them nevertheless")
        yield f"{share}: chat templates, few-shot examples or instructions may differ"
