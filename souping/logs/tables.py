"""Tables of answers: CSV and JSONL with `item, category, score`, data frames, and inspect_ai's `samples_df`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

from souping.core.fields import pick
from souping.core.text import listed, nearest, shown
from souping.core.types import Json, UserError
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
)

NEEDED = ("item", "category", "score")
CUT_REASONS = {"length", "max_tokens", "truncated"}
NO_ANSWER_REASONS = {"error", "unanswered", "content_filter"}
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "true": 1.0, "false": 0.0}
"""Scores in letters: inspect_ai's, and truth values (in any case)."""
DIRECTIONS = {"true": True, "1": True, "false": False, "0": False}
"""Values of the column `higher_is_better`."""
Directions = dict[tuple[str, str, str], bool | None]
"""{(task, category, metric): whether higher is better, None where the table does not say}"""


class Frame(Protocol):
    """A pandas DataFrame, as far as it is read."""

    def to_dict(self, orient: Literal["records"]) -> list[dict[str, Any]]: ...


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".jsonl") and path.is_file()


def read_frame(frame: Frame, group: str, lower: Collection[str] | None) -> tuple[Log, ...]:
    """The logs in a data frame with this package's columns or those of inspect_ai's `samples_df`."""
    rows = frame.to_dict("records")
    if rows and "sample_id" in rows[0] and "epoch" in rows[0]:
        rows = list(_inspect_rows(rows, group))
        group = ""
    return _logs(Path(f"DataFrame {id(frame):x}"), rows, group, lower)


def read_table(path: Path, group: str, lower: Collection[str] | None) -> tuple[Log, ...]:
    """The logs in a CSV or JSONL file; several where it has a column `run`. Lower is better in the tasks of `lower`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            if path.suffix.lower() != ".csv":
                return _logs(path, json_lines(path, lines, str, _unique), group, lower)
            return _logs(path, _csv_rows(path, lines), group, lower)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table of answers: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A row of these columns and values (ValueError if two columns have one name)."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are called {shown(twice)}: remove or rename one")
    return row


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # Python's own limit is shorter than an answer may be
    rows = filter(None, csv.reader(lines, strict=True))
    names = next(rows, [])
    _unique([(name, "") for name in names if name])
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise UserError(
                f"{path}: row {number} has {len(row)} of {len(names)} columns: is the file whole?"
            )
        yield dict(zip(names, row, strict=True))


def _inspect_rows(rows: Sequence[LogRow], group: str) -> Iterator[dict[str, Any]]:
    """Rows of `samples_df`, one per metric of the sample's log; one that failed has no score."""
    metrics = dict[str, dict[str, None]]()
    limited = any(not _empty(row.get("limit")) for row in rows)
    for row in rows:
        metrics.setdefault(str(row.get("log")), {}).update(dict.fromkeys(_inspect_scores(row)))
    for row in rows:
        file = Path(str(row.get("log"))).stem.split("_")  # TIME_TASK_ID
        usage = row.get("model_usage")
        counts = json.loads(usage).values() if isinstance(usage, str) and usage else ()
        own = {
            "item": f"{row['id']} {sha256(str(row['input']).encode()).hexdigest()[:16]}",
            "category": row.get("task_name") or (file[1] if len(file) > 1 else "samples"),
            "group": _text(row, group) or _text(row, f"metadata_{group}") if group else "",
            "replicate": row["epoch"] - 1,
            "tokens": sum(count["output_tokens"] for count in counts) if counts else None,
            "prompt": row["input"],
            "higher_is_better": row.get("higher_is_better"),
        }
        if not _empty(row.get("error")):
            own["stop_reason"] = "error"
        elif limited:
            own["stop_reason"] = "" if _empty(row.get("limit")) else "length"
        scores = _inspect_scores(row)
        for name in metrics[str(row.get("log"))]:
            yield {**own, "metric": name, "score": scores.get(name)}


def _inspect_scores(row: LogRow) -> dict[str, Any]:
    """{metric: value}; a score with several values is several metrics."""
    found = dict[str, Any]()
    for column in (name for name in row if name.startswith("score_") and not _empty(row[name])):
        value = json.loads(row[column]) if str(row[column]).startswith("{") else row[column]
        name = column.removeprefix("score_")
        found |= (
            {f"{name}/{key}": one for key, one in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return found


def _logs(
    path: Path, rows: Iterable[LogRow], group: str, lower: Collection[str] | None
) -> tuple[Log, ...]:
    runs = dict[str, dict[tuple[str, str], list[tuple[str, LoggedAnswer]]]]()
    directions: Directions = {}
    needed = dict.fromkeys(filter(None, (*NEEDED, group)))
    for number, row in enumerate(rows, start=1):
        if not needed.keys() <= row.keys():
            name = next(name for name in needed if name not in row)
            known = list(map(str, row))
            raise UserError(
                f"{path}: no column {name}{nearest(name, known)} (it has {listed(known)})"
            )
        where = f"{path}: row {number}"
        key = (_text(row, "task"), str(row["category"]))
        metric = _text(row, "metric") or "score"
        answer = _answer(where, row, group)
        runs.setdefault(_text(row, "run"), {}).setdefault(key, []).append((metric, answer))
        listed_lower = {*key, "/".join(key)} & {*(lower or ())}
        stated = "false" if listed_lower else _text(row, "higher_is_better")
        higher = DIRECTIONS.get(stated.lower())
        beyond = lower is not None and (answer.score < 0 or answer.score > 1)
        if higher is None and (stated or beyond):
            raise UserError(
                f"{where}: {metric}={answer.score:g}, higher_is_better={shown(stated) or 'not given'}: "
                "scores beyond 0 to 1 need a column higher_is_better with true or false, or "
                f"--lower-is-better {shown(key[0] or key[1])}"
            )
        if directions.setdefault((*key, metric), higher) != higher:
            raise UserError(f"{where}: higher_is_better differs from that of other rows")
    if not runs:
        raise UserError(
            f"{path}: no answers: it needs a column each for {listed(NEEDED)}, and a row per answer"
        )
    logs = tuple(_log(path, run, tasks, directions) for run, tasks in runs.items())
    for name in lower or ():
        pick(name, dict.fromkeys([*logs[0].tasks, *logs[0].requested]), "--lower-is-better")
    return logs


def _answer(where: str, row: LogRow, group: str) -> LoggedAnswer:
    stop, output, prompt = (_text(row, name) for name in ("stop_reason", "output", "prompt"))
    score, replicate, tokens = (
        _number(where, row, key) for key in ("score", "replicate", "tokens")
    )
    if replicate is not None and not replicate.is_integer():
        raise UserError(f"{where}: replicate={replicate:g} is not whole")
    return LoggedAnswer(
        item=str(row["item"]),
        score=math.nan if score is None else score,
        group=_text(row, group or "group"),
        replicate=int(replicate or 0),
        missing=score is None or stop in NO_ANSWER_REASONS,
        cut=stop in CUT_REASONS if "stop_reason" in row else None,
        tokens=tokens,
        characters=len(output) if output else None,
        prompt_hash=sha256(prompt.encode()).hexdigest() if prompt else "",
        prompt=prompt,
        output=output,
    )


def _text(row: LogRow, name: str) -> str:
    return "" if _empty(row.get(name)) else str(row[name])


def _empty(value: Json) -> bool:
    return value is None or value == "" or value != value


def _number(where: str, row: LogRow, key: str) -> float | None:
    """A number in a column, None where the column is empty or not there; a score may also be a letter."""
    if _empty(row.get(key)):
        return None
    text = str(row[key])
    letter = text if len(text) == 1 else text.lower()
    if key == "score" and letter in LETTERS:
        return LETTERS[letter]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # Python also reads `1_0` and `nan`
    if "_" in text or not abs(number) <= LARGEST_FIGURE:
        raise UserError(
            f"{where}: {key}={shown(text)}: write a number up to {LARGEST_FIGURE:g}, or leave it empty"
        )
    return number


def _with_units(metrics: Mapping[str, LoggedMetric]) -> dict[str, LoggedMetric]:
    """Metrics of any range with a unit: tasks with the same one can be averaged."""
    losses = [metric for metric in metrics.values() if not metric.is_mean]
    return {
        metric.name: replace(metric, unit=f"{metric.name} {metric.higher_is_better}")
        for metric in losses
    }


def _log(
    path: Path,
    run: str,
    tasks: Mapping[tuple[str, str], Iterable[tuple[str, LoggedAnswer]]],
    directions: Directions,
) -> Log:
    found = dict[str, Task]()
    inside = dict[str, list[str]]()
    for (task, category), answers in tasks.items():
        name = "/".join(filter(None, dict.fromkeys((task, category))))
        if name in found:
            raise UserError(
                f"{path}: two tasks would be called {name}: rename a task or a category"
            )
        inside.setdefault(task or name, []).append(name)
        key = (task, category)
        lower = [
            metric
            for (*place, metric), higher in directions.items()
            if higher is False and (*place,) == key
        ]
        metrics = metrics_of(path, answers, lower=lower)
        found[name] = Task(name=name, metrics=metrics | _with_units(metrics))
    several = {task: tuple(names) for task, names in inside.items() if names != [task]}
    return Log(
        path=path,
        harness="table",
        model=run or path.resolve().stem,  # a link to a log is the same log
        tasks=found,
        groups={
            task: Group(name=task, members=names, weight_by_size=True)
            for task, names in several.items()
        },
        requested=tuple(inside),
    )
