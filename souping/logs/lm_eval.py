"""Logs of lm-evaluation-harness: a folder with `results_*.json` and `samples_*.jsonl` (`--log_samples`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.fields import load_json
from souping.core.json_fields import finite_number, list_at, part, texts
from souping.core.parsing import MAX_DEPTH
from souping.core.text import shown
from souping.core.types import Json, Names, UserError
from souping.logs.records import (
    LARGEST_FIGURE,
    Group,
    Log,
    LoggedAnswer,
    LogRow,
    Task,
    json_lines,
    metrics_of,
    pick_model,
)

RESULTS = "results_*.json"


def results_of(path: Path, name: str = "") -> list[Path]:
    """The results files of one model, oldest first: at a file, in a folder, or in a folder below it.

    If several folders below hold results, `name` picks the folder of the model. Empty if there are no results files.
    """
    if path.is_file():
        return [path]
    # File names end in a date, so they sort by age.
    files = sorted(path.glob(RESULTS))
    if files:
        return files
    folders = [folder for folder in path.iterdir() if folder.is_dir()]
    models = [folder.name for folder in folders if any(folder.glob(RESULTS))]
    if not models:
        return []
    return sorted((path / pick_model(path, models, name)).glob(RESULTS))


def read_lm_eval(path: Path, name: str, group: str) -> Log:
    """The newest results of one model, with the answers in its samples.

    `name` picks one of several models, and `group` is a field of the documents.
    """
    *older, newest = results_of(path, name)
    table: LogRow = load_json(newest, dict[str, Any])
    tasks = {task: _task(newest, table, task, group) for task in part(table, "configs")}
    if not tasks or not part(table, "results"):
        raise UserError(f"{newest}: no results of lm_eval's tasks")
    notes = []
    if older:
        notes.append(
            f"{newest.name} is the newest of {len(older) + 1} results files in {newest.parent}: only it was read"
        )
    groups = _groups(newest, table)
    # Groups and tasks that are in no group were named on the command line.
    members: set[str] = set()
    subtasks = part(table, "group_subtasks")
    for group_name in subtasks:
        members.update(texts(subtasks, group_name))
    return Log(
        path=newest,
        harness="lm_eval",
        model=str(table.get("model_name") or part(table, "config").get("model_args")),
        tasks=tasks,
        groups=groups,
        requested=tuple(name for name in (*groups, *tasks) if name not in members),
        notes=tuple(notes),
    )


def samples_of(path: Path) -> Iterator[tuple[str, LogRow]]:
    """(task, sample) of all samples of the newest results of one model (UserError if there are no results)."""
    results = results_of(path)
    if not results:
        raise UserError(f"{path}: no {RESULTS} of lm_eval")
    newest = results[-1]
    for task in part(load_json(newest, dict[str, Any]), "configs"):
        file = _samples(newest, task)
        with file.open(encoding="utf-8", errors="replace") as lines:
            for sample in json_lines(file, lines):
                yield task, sample


def requests_of(sample: LogRow) -> Iterator[tuple[Json, Json]]:
    """(arguments, responses) of each request of a sample; a choice has one request per continuation."""
    # A damaged line may lack some.
    return zip(part(sample, "arguments").values(), list_at(sample, "resps"), strict=False)


def _samples(results: Path, task: str) -> Path:
    """The file with a task's samples (UserError if it does not exist)."""
    path = results.parent / f"samples_{task}_{results.stem.rpartition('_')[2]}.jsonl"
    if not path.is_file():
        raise UserError(f"{results}: no {path.name} beside it: run lm_eval with --log_samples")
    return path


def _groups(path: Path, table: LogRow) -> dict[str, Group]:
    """{group: its leaf tasks and their weights}: lm_eval aggregates over leaves, whatever groups are between."""
    subtasks = part(table, "group_subtasks")
    leaves_of: dict[str, dict[str, None]] = {}

    def leaves(name: str, depth: int) -> dict[str, None]:
        """The leaf tasks below a group, or the task itself, as the keys of a dict. Each group is computed once.

        `depth` is the number of groups above it.
        """
        if depth > MAX_DEPTH:
            raise UserError(
                f"{path}: group_subtasks: {shown(name)} contains itself, or is in more than "
                f"{MAX_DEPTH} groups: run lm_eval again"
            )
        if name not in leaves_of:
            below: dict[str, None] = {}
            for subtask in texts(subtasks, name):
                below |= leaves(subtask, depth + 1)
            leaves_of[name] = below or {name: None}
        return leaves_of[name]

    groups = {}
    for name in subtasks:
        if not texts(subtasks, name):
            continue
        members = tuple(leaf for leaf in leaves(name, 0) if leaf in table["configs"])
        by_size = _weight_by_size(path, table, name, members)
        groups[name] = Group(name=name, members=members, weight_by_size=by_size)
    return groups


def _weight_by_size(path: Path, table: LogRow, name: str, members: Names) -> bool | None:
    """Whether a group's figure is the mean over items rather than over tasks, which lm_eval does not write down.

    The first metric for which the two means differ tells. None if there is no such metric.
    """
    for key, figure in part(part(table, "results"), name).items():
        # Figures have the key `metric,filter`; beside them are standard errors and texts.
        if "," not in key or "_stderr," in key or not isinstance(figure, float):
            continue
        values = _task_figures(table, key, members)
        if not values:
            continue
        # A task whose size is not known counts as one item.
        sizes = [_size(path, table, task) or 1 for task in values]
        over_items = np.average(list(values.values()), weights=sizes)
        over_tasks = np.mean(list(values.values()))
        # With a NaN, the comparison is false.
        if abs(over_items - over_tasks) > 1e-9:
            return bool(abs(over_items - figure) <= abs(over_tasks - figure))
    return None


def _task_figures(table: LogRow, key: str, tasks: Names) -> dict[str, float]:
    """{task: its figure} of the metric with this key, for the tasks whose figure can be a mean."""
    figures = {}
    for task in tasks:
        figure = finite_number(part(part(table, "results"), task).get(key))
        if figure is not None and abs(figure) <= LARGEST_FIGURE:
            figures[task] = figure
    return figures


def _size(path: Path, table: LogRow, task: str) -> float:
    """Number of a task's samples as the results say, 0 if they do not."""
    value = part(part(table, "n-samples"), task).get("effective") or 0
    size = finite_number(value)
    if size is None or not 0 <= size <= LARGEST_FIGURE:
        raise UserError(
            f"{path}: n-samples.{task}.effective={shown(str(value))}: not a number of samples: "
            "run lm_eval again"
        )
    return size


def _task(results: Path, table: LogRow, task: str, group: str) -> Task:
    """A task of the results file `results`, whose content is `table`, with the answers in its samples file.

    `group` is a field of the documents.
    """
    path = _samples(results, task)
    directions = part(part(table, "higher_is_better"), task)
    figures = part(part(table, "results"), task)
    with path.open(encoding="utf-8", errors="replace") as lines:
        answers = list(_answers(path, json_lines(path, lines), list(directions), group))
    items = {answer.item for _, answer in answers}
    if not items:
        raise UserError(f"{path}: no samples: run lm_eval again")

    # Names are `metric,filter`, or `metric` without a filter; the harness then calls the filter `none`.
    reported = {}
    lower = set()
    for name in dict.fromkeys(name for name, _ in answers):
        reported[name] = figures.get(name if "," in name else f"{name},none")
        if directions.get(name.partition(",")[0]) is False:
            lower.add(name)
    metrics = metrics_of(path, answers, reported, lower)
    # A task may log fewer samples than it has. If their scores do not have the reported mean either, the file is cut
    # off.
    size = _size(results, table, task)
    if len(items) < size and not any(metric.is_mean for metric in metrics.values()):
        raise UserError(f"{path}: {len(items)} of {size:,.0f} samples: the file is cut off")
    settings = {
        "task version": str(part(table, "versions").get(task)),
        "number of shots": str(part(table, "n-shot").get(task)),
    }
    return Task(name=task, metrics=metrics, settings=settings)


def _answers(
    path: Path, samples: Iterator[LogRow], names: list[str], group: str
) -> Iterator[tuple[str, LoggedAnswer]]:
    """(metric, answer) of every sample; `names` are the metrics of samples that do not list their own.

    `group` is a field of the documents.
    """
    for sample in samples:
        try:
            yield from _sample_answers(sample, names, group)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            fault = "is damaged: run lm_eval again"
            if isinstance(error, KeyError):
                fault = f"lacks {error}"
            raise UserError(
                f"{path}: not samples of lm_eval: item {sample.get('doc_id')} {fault}"
            ) from error


def _sample_answers(
    sample: LogRow, names: list[str], group: str
) -> Iterator[tuple[str, LoggedAnswer]]:
    """(metric and filter, answer with its score) of a line of samples.

    `names` are the metrics of a line that does not name its own, `group` the field of the document by which items are
    grouped.
    """
    doc_hash = sample.get("doc_hash", "")[:16]
    prompt, output = texts_of(sample)
    # The first response to the first request.
    response = sample["resps"][0][0]
    doc_group = doc_hash
    if group:
        doc_group = str(sample["doc"][group])
    for name in sample.get("metrics", names):
        # Values of metrics over the whole corpus are lists: items have no score.
        score = np.nan
        value = sample.get(name)
        # NaN is not equal to itself.
        if isinstance(value, int | float) and value == value:
            # A mean of scores this large is refused later, and the sum stays finite.
            limit = 2 * LARGEST_FIGURE
            score = float(max(-limit, min(value, limit)))
        answer = LoggedAnswer(
            item=f"{sample['doc_id']} {doc_hash}".rstrip(),
            score=score,
            group=doc_group,
            missing=response is None,
            characters=len(response) if isinstance(response, str) else None,
            prompt_hash=sample.get("prompt_hash", ""),
            prompt=prompt,
            output=output,
        )
        yield f"{name},{sample.get('filter', 'none')}".removesuffix(",none"), answer


def texts_of(sample: LogRow) -> tuple[str, str]:
    """(prompt, answer) of a line of samples; the answer to a choice is the likeliest continuation."""
    requests = [list(request.values()) for request in sample["arguments"].values()]
    prompt = str(requests[0][0])
    response = sample["resps"][0][0]
    if isinstance(response, str):
        return prompt, response
    # A response to a choice is a pair: log-likelihood, and whether it is the greedy one. Others have no text.
    if not isinstance(response, list) or len(response) < 2:
        return prompt, ""
    likelihoods = [float(responses[0][0]) for responses in sample["resps"]]
    likeliest = likelihoods.index(max(likelihoods))
    return prompt, str(requests[likeliest][1])
