"""Which answers of several models may be compared, item by item."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal, get_args

import numpy as np

from souping.core.text import listed, shown
from souping.core.types import FloatArray, Names, UserError, frozen
from souping.logs.records import Group, Log, LoggedMetric, Task

NamedLog = tuple[str, Log]
"""A model's name and one of its logs."""
Field = Literal["score", "missing", "cut", "tokens", "characters"]
FIELDS: tuple[Field, ...] = get_args(Field)
SPARSE = 10
"""Places that an array of more than DENSE_PLACES places may have for each answer, so that a few answers do not fill the
memory."""
DENSE_PLACES = 10**6


@frozen
class MatchedMetric:
    """Answers of all models to the items of one task by one metric, for items that every log has.

    Each array of `values` is [runs, repeats, items]. The numbers of runs and repeats may
    differ between models. A value that does not exist is nan: a repeat that an item lacks, a
    score that the harness left out of its mean, a length that the log does not say. `missing` is 1
    for answers that were requested and not scored, whether the harness counted them or not.
    `reported` are the harness's figures by run: all that there is of a corpus metric, whose scores
    are all nan. `right_or_wrong` are the two scores beyond 0 to 1, such as 0 and 100, that all logs
    have, empty if they have others.
    """

    task: str
    metric: str
    higher_is_better: bool
    is_mean: bool
    items: tuple[str, ...]
    groups: Names  # of the items, empty without one
    values: Mapping[Field, Mapping[str, FloatArray]]  # {field: {model: array}}
    reported: Mapping[str, tuple[float | None, ...]]  # {model: figure of each run}
    unit: str = ""
    right_or_wrong: tuple[float, ...] = ()

    @property
    def limits(self) -> tuple[float, ...]:
        """The lowest and the highest score that an answer can have, empty if they are not known."""
        return (0.0, 1.0) if self.is_mean else self.right_or_wrong

    @property
    def scores(self) -> Mapping[str, FloatArray]:
        """{model: scores [runs, repeats, items]}"""
        return self.values["score"]

    def item_means(self, model: str) -> FloatArray:
        """Mean score of each item over runs and repeats, [items]."""
        # As if all answers were of one run.
        answers = self.scores[model].reshape(1, -1, len(self.items))
        _, mean, _ = moments(answers)
        return np.asarray(mean[0])


@frozen
class Matched:
    """What several models have in common, in the order in which they were named."""

    models: Names
    metrics: Mapping[str, tuple[MatchedMetric, ...]]  # of a task; the first one stands for it
    groups: Mapping[str, Group]  # with those of their tasks that all logs have
    requested: Names  # tasks and groups whose mean is the average row
    notes: tuple[str, ...] = ()  # for the reader: what was left out, how the prompts differ


def moments(raw: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(number of an item's answers, their mean, the variance of that mean), each [runs, items].

    `raw` are scores [runs, answers, items], nan where there is no answer. The variance is nan for fewer than two.
    """
    answered = np.isfinite(raw)
    count = answered.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(answered, raw, 0.0).sum(axis=1) / count
        deviations = np.where(answered, (raw - mean[:, None]) ** 2, 0.0)
        # Of one answer, or of none, 0 / 0.
        variance = deviations.sum(axis=1) / (count - 1) / count
    return count, mean, variance


def matched(logs: Mapping[str, Sequence[Log]], *, same_prompts: bool = False) -> Matched:
    """What the models have in common. `logs` are {model: its runs}, the baseline first.

    Raises:
        UserError: they may not be compared: another harness, metric, version, number of shots or
            judge; no item in common; one log under two names; no score; with `same_prompts` also
            prompts that differ.
    """
    named_logs: list[NamedLog] = []
    for name, runs in logs.items():
        named_logs.extend((name, log) for log in runs)
    _check_sources(named_logs)
    tasks = _common_tasks(named_logs)
    group_of = _content_groups(named_logs)
    metrics = {task: _match_task(task, named_logs, group_of) for task in tasks}
    groups = _common_groups(named_logs, tasks)
    _, first = named_logs[0]
    requested = [name for name in first.requested if name in metrics or name in groups]

    notes: list[str] = []
    for _, log in named_logs:
        notes.extend(log.notes)
    notes.extend(_tasks_left_out(named_logs, tasks))
    notes.extend(_items_left_out(named_logs, metrics))
    notes.extend(_differing_prompts(named_logs, tasks, same_prompts))
    return Matched(
        models=tuple(logs),
        metrics=metrics,
        groups=groups,
        requested=tuple(requested or tasks),
        notes=tuple(notes),
    )


def _check_sources(named_logs: Sequence[NamedLog]) -> None:
    """Refuse logs of several harnesses, and one log under two names (UserError)."""
    first_name, first = named_logs[0]
    name_of: dict[tuple[str, str], str] = {}
    for name, log in named_logs:
        if log.harness != first.harness:
            raise UserError(
                f"{first_name} is {_kind(first)}, {name} {_kind(log)}: their items do not compare"
            )
        source = (str(log.path.resolve()), log.model)
        if source in name_of:
            raise UserError(
                f"{name_of[source]} and {name} are the same log, {log.path}: "
                "name two different ones"
            )
        name_of[source] = name


def _kind(log: Log) -> str:
    """What an error calls a log, with its article: `an lm_eval log`, `a CSV table`."""
    if log.harness == "table":
        return f"a {log.path.suffix[1:].upper() or 'data'} table"
    article = "an" if log.harness in ("lm_eval", "inspect_ai", "every_eval_ever", "array") else "a"
    return f"{article} {log.harness} log"


def _common_tasks(named_logs: Sequence[NamedLog]) -> list[str]:
    """Tasks that every log has, in the order of the first log (UserError if they have no task in common)."""
    _, first = named_logs[0]
    tasks = []
    for task in first.tasks:
        if all(task in log.tasks for _, log in named_logs):
            tasks.append(task)
    if not tasks:
        has = "; ".join(f"{name} has {listed(log.tasks, 4)}" for name, log in named_logs)
        raise UserError(f"no task in common: {has}")
    return tasks


def _common_groups(named_logs: Sequence[NamedLog], tasks: Sequence[str]) -> dict[str, Group]:
    """{name: group} of the first log, each with those of its tasks that all logs have; without empty groups."""
    _, first = named_logs[0]
    groups = {}
    for group in first.groups.values():
        members = tuple(member for member in group.members if member in tasks)
        if members:
            by_size = _weight_by_size(group.name, named_logs)
            groups[group.name] = replace(group, members=members, weight_by_size=by_size)
    return groups


def _weight_by_size(group: str, named_logs: Sequence[NamedLog]) -> bool:
    """Whether a group is weighted by size, by the first log that can tell; False if no log can tell."""
    for _, log in named_logs:
        if group in log.groups:
            by_size = log.groups[group].weight_by_size
            if by_size is not None:
                return by_size
    return False


def _content_groups(named_logs: Sequence[NamedLog]) -> dict[str, str]:
    """{item: its group} by the texts that items share in any of the logs; empty if no log has any."""
    contents: dict[str, set[str]] = {}
    for _, log in named_logs:
        for item, texts in log.shared.items():
            contents.setdefault(item, set()).update(texts)
    # Tables of scores have no texts.
    if not contents:
        return {}
    from souping.core.groups import groups_of

    return groups_of(contents.items())


# ---------------------------------------------------------------- tasks and metrics


def _match_task(
    task: str, named_logs: Sequence[NamedLog], group_of: Mapping[str, str]
) -> tuple[MatchedMetric, ...]:
    """The metrics that all logs of a task have (UserError if logs differ in a setting, metric or scale).

    `group_of` is {item: its group by content}, empty if no log has contents.
    """
    named_tasks = [(name, log.tasks[task]) for name, log in named_logs]
    first_name, first = named_tasks[0]
    main_metric = next(iter(first.metrics))
    metrics = []
    for metric in first.metrics:
        if all(metric in log_task.metrics for _, log_task in named_tasks):
            metrics.append(metric)
    first_traits = _traits(first, main_metric, metrics)
    for name, log_task in named_tasks[1:]:
        traits = _traits(log_task, main_metric, metrics)
        for key in {**first_traits, **traits}:
            first_trait = first_traits.get(key, "none")
            trait = traits.get(key, "none")
            # An empty trait is not known, and agrees with any.
            if first_trait != trait and first_trait and trait:
                raise UserError(
                    f"{task}: the {key} is {first_trait} in {first_name} and {trait} in {name}: "
                    "these scores do not compare"
                )
    return tuple(_match_metric(task, metric, named_logs, group_of) for metric in metrics)


def _traits(task: Task, main_metric: str, metrics: Sequence[str]) -> dict[str, str]:
    """{what must agree between logs of a task: its value}: settings, main metric, each metric's direction and scale."""
    traits = dict(task.settings)
    # A task without the first log's main metric shows its own, which then differs.
    traits["metric"] = main_metric if main_metric in task.metrics else next(iter(task.metrics))
    for metric in metrics:
        higher_is_better = task.metrics[metric].higher_is_better
        direction = "higher is better" if higher_is_better else "lower is better"
        traits[f"direction of {metric}"] = direction
        traits[f"scale of {metric}"] = _scale(task.metrics[metric])
    return traits


def _scale(metric: LoggedMetric) -> str:
    """`0 to 1` or `beyond 0 to 1`, as far as the scores show it; else empty.

    Losses may all lie below 1 in a good log and above in another. So a loss shows the scale of fractions only if all
    of its scores are 0 or 1.
    """
    scores = np.array([answer.score for answer in metric.answers])
    scores = scores[np.isfinite(scores)]
    if (scores < 0).any() or (scores > 1).any():
        return "beyond 0 to 1"
    # Scores that are all 0 fit any scale.
    certain = metric.higher_is_better or {*scores.tolist()} <= {0, 1}
    return "0 to 1" if certain and scores.any() else ""


def _match_metric(
    task: str, metric: str, named_logs: Sequence[NamedLog], content_groups: Mapping[str, str]
) -> MatchedMetric:
    """The answers of all models by one metric to the items of a task that every log has.

    Items are grouped by `content_groups` {item: group}, or by the groups that the logs name if `content_groups` is
    empty. `_match_task` has checked that the metric has one direction in all logs.

    Raises:
        UserError: the logs have no item in common, or a model has no score of any common item.
    """
    runs_of: dict[str, list[LoggedMetric]] = {}
    for model, log in named_logs:
        runs_of.setdefault(model, []).append(log.tasks[task].metrics[metric])
    all_runs = list(chain.from_iterable(runs_of.values()))
    items = _common_items(all_runs)
    if not items:
        models = dict.fromkeys(name for name, _ in named_logs)
        raise UserError(f"{task}: no item in common (by id and content): {listed(models)}")
    is_mean = all(run.is_mean for run in all_runs)
    group_of = content_groups or _item_groups(all_runs)

    values: dict[Field, dict[str, FloatArray]] = {field: {} for field in FIELDS}
    reported: dict[str, tuple[float | None, ...]] = {}
    for model, runs in runs_of.items():
        array = _answer_array(items, runs)
        for number, field in enumerate(FIELDS):
            values[field][model] = array[number]
        reported[model] = tuple(run.reported for run in runs)
    # A metric that is not a mean, such as a corpus metric, may have no scores of items.
    for model, scores in values["score"].items():
        if is_mean and np.isnan(scores).all():
            raise UserError(f"{task}: {model} has no score of {metric} for any item in common")
    return MatchedMetric(
        task=task,
        metric=metric,
        higher_is_better=all_runs[0].higher_is_better,
        is_mean=is_mean,
        # A run whose scores are all 0 does not show that they go beyond 0 to 1.
        unit=next((run.unit for run in all_runs if run.unit), ""),
        items=tuple(items),
        groups=tuple(group_of.get(item, "") for item in items),
        values=values,
        reported=reported,
        right_or_wrong=() if is_mean else _right_or_wrong(values["score"].values()),
    )


def _right_or_wrong(scores: Iterable[FloatArray]) -> tuple[float, ...]:
    """The only two scores of several models, 0 and the other one if there is one, empty if there are more."""
    found: set[float] = set()
    for values in scores:
        found.update(values[np.isfinite(values)].tolist())
    if len(found) == 1:
        found.add(0.0)
    return tuple(sorted(found)) if len(found) == 2 else ()


def _common_items(runs: Sequence[LoggedMetric]) -> list[str]:
    """Items that every run has, in the order of the first run."""
    common = dict.fromkeys(answer.item for answer in runs[0].answers)
    for run in runs[1:]:
        answered = {answer.item for answer in run.answers}
        common = {item: None for item in common if item in answered}
    return list(common)


def _item_groups(runs: Sequence[LoggedMetric]) -> dict[str, str]:
    """{item: its group}, by the first run that names one."""
    group_of: dict[str, str] = {}
    # The first run comes last, and overwrites the others.
    for run in reversed(runs):
        for answer in run.answers:
            if answer.group:
                group_of[answer.item] = answer.group
    return group_of


def _answer_array(items: Sequence[str], runs: Sequence[LoggedMetric]) -> FloatArray:
    """The FIELDS of a model's answers, [fields, runs, repeats, items]; nan where an item lacks a repeat.

    Repeats are numbered anew, in their order: logs may number them from 1, or leave some out.

    Raises:
        UserError: an item has so many more answers than others that the array would be nearly empty.
    """
    item_place = {item: place for place, item in enumerate(items)}
    # (run, repeat, item) of each answer, and its fields in the order of FIELDS.
    places = []
    values = []
    for number, run in enumerate(runs):
        answered: Counter[str] = Counter()
        for a in sorted(run.answers, key=lambda answer: answer.repeat):
            if a.item in item_place:
                places.append((number, answered[a.item], item_place[a.item]))
                values.append((a.score, a.missing, a.truncated, a.tokens, a.characters))
                answered[a.item] += 1

    _, last_repeat, item = max(places, key=lambda place: place[1])
    repeats = last_repeat + 1
    shape = (len(runs), repeats, len(items))
    if math.prod(shape) > max(DENSE_PLACES, SPARSE * len(places)):
        raise UserError(
            f"item {shown(items[item])} has {repeats:,} answers, far more than others: "
            "repeat must number the answers to one item"
        )
    array = np.full((len(FIELDS), *shape), np.nan)
    run_place, repeat, place = np.array(places).T
    array[:, run_place, repeat, place] = np.array(values, dtype=float).T  # None becomes nan
    return array


# ---------------------------------------------------------------- notes


def _tasks_left_out(named_logs: Sequence[NamedLog], tasks: Sequence[str]) -> Iterator[str]:
    """A note on tasks that some logs lack."""
    all_tasks: set[str] = set()
    for _, log in named_logs:
        all_tasks.update(log.tasks)
    missing = sorted(all_tasks - set(tasks))
    if missing:
        yield f"left out, as not every log has them: {listed(missing)}"


def _items_left_out(
    named_logs: Sequence[NamedLog], metrics: Mapping[str, Sequence[MatchedMetric]]
) -> Iterator[str]:
    """A note per task on how many of its items some logs lack."""
    for task, task_metrics in metrics.items():
        requested: set[str] = set()
        for _, log in named_logs:
            for metric in log.tasks[task].metrics.values():
                requested.update(answer.item for answer in metric.answers)
        common: set[str] = set()
        for task_metric in task_metrics:
            common.update(task_metric.items)
        missing = len(requested) - len(common)
        if missing:
            yield (
                f"{task}: {missing} of {len(requested)} items are left out, "
                "as not every log has them"
            )


def _differing_prompts(
    named_logs: Sequence[NamedLog], tasks: Sequence[str], same_prompts: bool
) -> Iterator[str]:
    """A note per log on how many of its prompts differ from the first log's, as far as logs have them.

    Raises:
        UserError: with `same_prompts`, if a prompt differs or none can be compared.
    """
    first_name, first_log = named_logs[0]
    first_hashes = _prompt_hashes(first_log, tasks)
    for name, log in named_logs[1:]:
        equal = []
        for key, prompt in _prompt_hashes(log, tasks).items():
            first_prompt = first_hashes.get(key)
            if prompt and first_prompt:
                equal.append(prompt == first_prompt)
        if same_prompts and not equal:
            raise UserError(
                f"--same-prompts: the logs of {first_name} and {name} do not have the prompts of "
                "any item"
            )
        # All are equal, or none can be compared.
        if all(equal):
            continue
        share = 100 - 100 * np.mean(equal)
        difference = f"prompts of {first_name} and {name} differ in {share:.3g} % of the items"
        if same_prompts:
            raise UserError(f"{difference}: leave --same-prompts out to compare them nevertheless")
        yield f"{difference}: chat templates, few-shot examples or instructions may differ"


def _prompt_hashes(log: Log, tasks: Sequence[str]) -> dict[tuple[str, str], str]:
    """{(task, item): hash of its prompt, empty if the log does not have it}"""
    hashes = {}
    for task in tasks:
        # All metrics of a task have the same prompts.
        metric = next(iter(log.tasks[task].metrics.values()))
        for answer in metric.answers:
            hashes[task, answer.item] = answer.prompt_hash
    return hashes
