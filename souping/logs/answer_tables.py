"""Tables of answers: CSV, JSONL and parquet, data frames, arrays of scores, and inspect_ai's `samples_df`."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from souping.core.fields import pick
from souping.core.tables import check_column_names, table_rows, unique_columns
from souping.core.text import first_line, listed, shown
from souping.core.types import Json, UserError, frozen
from souping.logs.layouts import (
    ALL,
    OWN_TABLE,
    LogLayout,
    check_fields,
    layout_of,
    rows_by_column,
)
from souping.logs.records import (
    LARGEST_FIGURE,
    Group,
    Log,
    LoggedAnswer,
    LoggedMetric,
    LogRow,
    Task,
    json_lines,
    metrics_of,
    pick_model,
)

INSPECT_NEEDED = ("id", "epoch", "input")
CUT_REASONS = {"length", "max_tokens", "max_output_tokens", "truncated"}
NO_ANSWER_REASONS = {"error", "unanswered", "content_filter"}
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "true": 1.0, "false": 0.0}
"""Scores in letters: inspect_ai's, and truth values (in any case)."""
DIRECTIONS = {"true": True, "1": True, "false": False, "0": False}
"""Values of the column `higher_is_better`."""
Directions = dict[tuple[str, str, str], bool | None]
"""{(task, category, metric): whether higher is better, None where the table does not say}"""
RunAnswers = dict[tuple[str, str], dict[str, list[LoggedAnswer]]]
"""{(task, category): {metric: its answers}} of one run"""


@runtime_checkable
class Frame(Protocol):
    """A pandas DataFrame, as far as it is read."""

    @property
    def columns(self) -> Iterable[Any]: ...

    def to_dict(self, orient: Literal["records"]) -> list[dict[str, Any]]: ...


@runtime_checkable
class Series(Protocol):
    """A pandas Series, as far as it is read: (label, value) pairs."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...


Scores = Sequence[float] | NDArray[Any]
LogSource = str | Path | Frame | Scores
"""A log: its path, a data frame, or the scores of a model in the order of the items."""


@frozen
class TableOptions:
    """How a table is read. Lower is better in the tasks of `lower`; with None its scores may be in any range."""

    # {column: field of the file, dotted if it is inside others}
    fields: Mapping[str, str] = field(default_factory=dict)
    # name of one of several models in the file
    model: str = ""
    lower: Collection[str] | None = ()


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".jsonl", ".parquet") and path.is_file()


def read_frame(frame: Frame, options: TableOptions) -> tuple[Log, ...]:
    """The logs in a data frame with this package's columns or those of inspect_ai's `samples_df`."""
    path = Path(f"DataFrame {id(frame):x}")
    try:
        check_column_names(map(str, frame.columns))
        rows = frame.to_dict("records")
        if rows and _is_inspect(rows[0]) and "item" not in options.fields:
            # The new rows have the group in its own column.
            fields = dict(options.fields)
            rows = list(_inspect_rows(path, rows, fields.pop("group", "")))
            options = replace(options, fields=fields)
        return logs_of(path, rows, options)
    except ValueError as error:
        raise UserError(f"{path}: not a table of answers: {first_line(error)}") from error


def _is_inspect(row: LogRow) -> bool:
    """Whether the columns are those of `samples_df` and not this package's."""
    return "sample_id" in row and "epoch" in row and not {*OWN_TABLE.keys} <= row.keys()


def is_scores(source: LogSource | list[LogSource]) -> TypeGuard[Scores]:
    """Whether this is a list or array of numbers, which is one log, not a list of logs."""
    if isinstance(source, list | tuple):
        logs = (str, Path, Frame, Sequence, np.ndarray)
        return len(source) > 0 and not isinstance(source[0], logs)
    array: Any = source
    return not isinstance(source, str | Path) and np.ndim(array) == 1


def read_scores(scores: Scores, options: TableOptions) -> tuple[Log, ...]:
    """The log of a model (in a tuple) whose scores are in the order of the items; nan, and what a mask hides, is a
    missing answer. The labels of a Series name its items.
    """
    # Named by its id, as two arrays are two logs.
    path = Path(f"array {id(scores):x}")
    try:
        # numpy has no types of it.
        masked: Any = np.ma.masked_array
        array = masked(scores)
        # Numpy would drop an imaginary part, and count the days of a date.
        if array.dtype.kind in "cmM":
            raise TypeError(f"its values are {array.dtype}")
        values = array.astype(float).filled(np.nan).tolist()
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{scores!r:.60}: not scores: {first_line(error)}") from error
    labels: Iterable[Any] = range(len(values))
    if isinstance(scores, Series):
        labels = [label for label, _ in scores.items()]
    rows = []
    for label, score in zip(labels, values, strict=True):
        rows.append({"item": label, "category": ALL, "score": score})
    logs = logs_of(path, rows, replace(options, fields={}))
    # An item is known by its place alone: only other arrays can be compared.
    return tuple(replace(log, harness="array") for log in logs)


def read_log_table(path: Path, options: TableOptions) -> tuple[Log, ...]:
    """The logs in a CSV, JSONL or parquet file: several if it has a column `run`."""
    try:
        if path.suffix.lower() != ".jsonl":
            return logs_of(path, table_rows(path), options)
        with path.open(newline="", encoding="utf-8-sig") as lines:
            # The words NaN and Infinity stay texts, which `_number` refuses.
            rows = json_lines(path, lines, constant=str, pairs=unique_columns)
            return logs_of(path, rows, options)
    except ValueError as error:
        raise UserError(f"{path}: not a table of answers: {error}") from error


def _inspect_rows(path: Path, rows: Sequence[LogRow], group: str) -> Iterator[dict[str, Any]]:
    """Rows of `samples_df` with this package's columns, one per sample and metric of its log.

    A sample that failed has no score by any metric. `group` is a column, or a field of the metadata.
    """
    samples = []  # (row, its sample without scores, its scores {metric: value})
    metrics: dict[str, dict[str, None]] = {}  # {log: its metrics in order}
    for number, row in enumerate(rows, start=1):
        check_fields(path, row, INSPECT_NEEDED)
        where = f"{path}: row {number}"
        try:
            scores = _inspect_scores(row)
            sample = _inspect_sample(where, row, group)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a sample of inspect_ai: {first_line(error)}") from error
        samples.append((row, sample, scores))
        metrics.setdefault(str(row.get("log")), {}).update(dict.fromkeys(scores))
    # An empty column of limits does not say whether answers were truncated.
    limited = any(not _empty(row.get("limit")) for row in rows)
    for row, sample, scores in samples:
        if not _empty(row.get("error")):
            sample["stop_reason"] = "error"
        elif limited:
            sample["stop_reason"] = "" if _empty(row.get("limit")) else "length"
        for name in metrics[str(row.get("log"))]:
            yield {**sample, "metric": name, "score": scores.get(name)}


def _inspect_sample(where: str, row: LogRow, group: str) -> dict[str, Any]:
    """A row of `samples_df` by this package's columns, without its scores.

    `where` names the row in errors, and `group` is a column or a field of the metadata.
    """
    category = row.get("task_name")
    if not category:
        file_parts = Path(str(row.get("log"))).stem.split("_")  # TIME_TASK_ID
        category = file_parts[1] if len(file_parts) > 1 else "samples"
    tokens = None
    usage = row.get("model_usage")
    if isinstance(usage, str) and usage:
        counts = json.loads(usage).values()
        if counts:
            tokens = sum(count["output_tokens"] for count in counts)
    group_value = ""
    if group:
        group_value = _text(row, group) or _text(row, f"metadata_{group}")
    # With the content's digest, an id is of the same item in other logs.
    content = sha256(str(row["input"]).encode()).hexdigest()[:16]
    return {
        "item": f"{row['id']} {content}",
        "category": category,
        "group": group_value,
        "repeat": (_number(where, row, "epoch") or 1) - 1,  # epochs are numbered from 1
        "tokens": tokens,
        "prompt": row["input"],
        "higher_is_better": row.get("higher_is_better"),
    }


def _inspect_scores(row: LogRow) -> dict[str, Any]:
    """{metric: value} of a row of `samples_df`; a score with several values is several metrics."""
    scores: dict[str, Any] = {}
    for column, value in row.items():
        if not column.startswith("score_") or _empty(value):
            continue
        name = column.removeprefix("score_")
        score = json.loads(value) if str(value).startswith("{") else value
        if isinstance(score, dict):
            for key, number in score.items():
                scores[f"{name}/{key}"] = number
        else:
            scores[name] = score
    return scores


def logs_of(
    path: Path,
    rows: Iterable[LogRow],
    options: TableOptions,
    layout: LogLayout | None = None,
) -> tuple[Log, ...]:
    """The logs of one model, one per run, from the rows of a table. Without a layout, the first row says which it has.

    Raises:
        UserError: there are no rows, a row cannot be read, or the table has several models and none is named.
    """
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise UserError(
            f"{path}: no answers: it needs a column each for {listed(OWN_TABLE.keys)}, and a row per answer"
        )
    layout = layout or layout_of(first, options.fields)
    columns = rows_by_column(path, chain([first], iterator), layout, options.fields)
    models: dict[str, dict[str, RunAnswers]] = {}  # {model: {run: its answers}}
    directions: Directions = {}
    for number, row in enumerate(columns, start=1):
        # All models are noted, as `pick_model` lists them in errors.
        runs = models.setdefault(_text(row, "model"), {})
        if options.model and _text(row, "model") != options.model:
            continue
        where = f"{path}: row {number}"
        task = (_text(row, "task"), str(row["category"]))
        metric = _text(row, "metric") or "score"
        answer = _answer(where, row)
        run = runs.setdefault(_text(row, "run"), {})
        run.setdefault(task, {}).setdefault(metric, []).append(answer)
        higher = _direction(where, row, task, metric, answer.score, options.lower)
        if directions.setdefault((*task, metric), higher) != higher:
            raise UserError(f"{where}: higher_is_better differs from that of other rows")
    model = pick_model(path, list(models), options.model)
    logs = []
    for run_name, answers in models[model].items():
        name = f"{model} {run_name}".strip()
        logs.append(_log(path, layout, name, answers, directions))
    _check_lower(logs, options.lower or ())
    return tuple(logs)


def _check_lower(logs: Sequence[Log], lower: Collection[str]) -> None:
    """Refuse tasks of --lower-is-better that are not in the logs (UserError)."""
    names: list[str] = []
    for log in logs:
        names.extend((*log.tasks, *log.requested))
    for name in lower:
        pick(name, dict.fromkeys(names), "--lower-is-better")


def _direction(
    where: str,
    row: LogRow,
    task: tuple[str, str],
    metric: str,
    score: float,
    lower: Collection[str] | None,
) -> bool | None:
    """Whether higher is better in the metric of a row, as `lower` or the row says; None if neither does.

    `task` is (task, category): either, or both as `TASK/CATEGORY`, may be in `lower`.

    Raises:
        UserError: the row's word is neither true nor false, or a direction is needed, because `lower` is not None and
            the score is beyond 0 to 1.
    """
    stated = _text(row, "higher_is_better")
    if lower and not {*task, "/".join(task)}.isdisjoint(lower):
        stated = "false"
    higher = DIRECTIONS.get(stated.lower())
    # Scores from 0 to 1 are taken for fractions of which higher is better.
    beyond = lower is not None and (score < 0 or score > 1)
    if higher is None and (stated or beyond):
        raise UserError(
            f"{where}: {metric}={score:g}, higher_is_better={shown(stated) or 'not given'}: "
            "scores beyond 0 to 1 need a direction. If higher is better, divide them by 100 (percentages) or add a "
            "column higher_is_better with true. If lower is better, use --lower-is-better "
            f"{shown(task[0] or task[1])}"
        )
    return higher


def _answer(where: str, row: LogRow) -> LoggedAnswer:
    """The answer in a row with this package's columns; `where` names the row in errors."""
    score = _number(where, row, "score")
    repeat = _number(where, row, "repeat")
    tokens = _number(where, row, "tokens")
    if repeat is not None and not repeat.is_integer():
        raise UserError(f"{where}: repeat={repeat:g} is not whole")
    stop_reason = _text(row, "stop_reason")
    output = _text(row, "output")
    prompt = _text(row, "prompt")
    prompt_hash = _text(row, "prompt_hash")
    if prompt and not prompt_hash:
        prompt_hash = sha256(prompt.encode()).hexdigest()
    unanswered = row.get("unanswered") is True or stop_reason in NO_ANSWER_REASONS
    return LoggedAnswer(
        item=str(row["item"]),
        score=math.nan if score is None else score,
        group=_text(row, "group"),
        repeat=int(repeat or 0),
        missing=score is None or unanswered,
        truncated=None if row.get("stop_reason") is None else stop_reason in CUT_REASONS,
        tokens=tokens,
        characters=len(output) or None,
        prompt_hash=prompt_hash,
        prompt=prompt,
        output=output,
    )


def _text(row: LogRow, name: str) -> str:
    """The value of a column as text; empty if the row has no value there."""
    value = row.get(name, "")
    if isinstance(value, str):
        return value
    return "" if _empty(value) else str(value)


def _empty(value: Json) -> bool:
    # Only NaN, by which pandas marks an empty cell, is not equal to itself.
    return value is None or value == "" or value != value


def _number(where: str, row: LogRow, key: str) -> float | None:
    """A number in a column, None if the column is empty or absent; a score may also be one of `LETTERS`.

    Raises:
        UserError: it is not a finite number, or too large.
    """
    text = _text(row, key)
    if not text:
        return None
    letter = text if len(text) == 1 else text.lower()
    if key == "score" and letter in LETTERS:
        return LETTERS[letter]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # Python also reads `1_0` and `nan`.
    if "_" in text or not abs(number) <= LARGEST_FIGURE:
        raise UserError(
            f"{where}: {key}={shown(text)}: write a number up to {LARGEST_FIGURE:g}, or leave it empty"
        )
    return number


def _with_unit(metric: LoggedMetric, wide: Collection[str]) -> LoggedMetric:
    """The metric, with a unit if it is no mean of scores from 0 to 1.

    The unit is the metric's name and direction; tasks that share it can be averaged.

    Scores that are all 0 fit any scale: they get the unit if the metric is `wide`, beyond 0 to 1 in another task.
    """
    all_zero = not any(answer.score > 0 for answer in metric.answers)
    if metric.is_mean and not (all_zero and metric.name in wide):
        return metric
    return replace(metric, is_mean=False, unit=f"{metric.name} {metric.higher_is_better}")


def _log(
    path: Path, layout: LogLayout, model: str, answers: RunAnswers, directions: Directions
) -> Log:
    """The log of one run, whose tasks are the pairs of task and category in the table.

    A task of the table is a group of these pairs, unless its only category has the task's name or none.
    """
    tasks: dict[str, Task] = {}
    members: dict[str, list[str]] = {}  # {task of the table: names of its pairs}
    wide = set()  # metrics with scores beyond 0 to 1
    for task_answers in answers.values():
        for metric, metric_answers in task_answers.items():
            if not all(0 <= answer.score <= 1 for answer in metric_answers if not answer.missing):
                wide.add(metric)
    for (task, category), task_answers in answers.items():
        name = "/".join(filter(None, dict.fromkeys((task, category))))
        if name in tasks:
            raise UserError(
                f"{path}: two tasks would be called {name}: rename a task or a category"
            )
        members.setdefault(task or name, []).append(name)
        pairs: list[tuple[str, LoggedAnswer]] = []
        for metric, metric_answers in task_answers.items():
            pairs.extend((metric, answer) for answer in metric_answers)
        lower = [metric for metric in task_answers if directions[task, category, metric] is False]
        metrics = metrics_of(path, pairs, lower=lower)
        metrics = {metric: _with_unit(logged, wide) for metric, logged in metrics.items()}
        tasks[name] = Task(name=name, metrics=metrics)
    groups = {}
    for task, names in members.items():
        if names != [task]:
            groups[task] = Group(name=task, members=tuple(names), weight_by_size=True)
    return Log(
        path=path,
        harness=layout.name,
        model=model or path.resolve().stem,  # a link to a log is the same log
        tasks=tasks,
        groups=groups,
        requested=tuple(members),
    )
