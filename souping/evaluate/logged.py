"""Records from the log of an evaluation that somebody else ran: one model, in any format that `souping.logs` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from souping.core.text import shown
from souping.core.types import Item, Outcome, Record, UserError
from souping.core.unit import SCORE_ROUNDING
from souping.logs.records import Log, LoggedAnswer, LoggedMetric


def item_line(item: Item) -> str:
    """The item as a line of the JSONL file that an evaluation gets."""
    table = {name: value for name, value in asdict(item).items() if name != "user_scorer"}
    return json.dumps(table, ensure_ascii=False, sort_keys=True, default=str)


def log_in(source: Path) -> Path:
    """What a folder holds if that is one file or folder, else the folder itself."""
    logs = list(source.iterdir()) if source.is_dir() else [source]
    if not logs:
        raise UserError(f"the evaluation left no log in {source}")
    return logs[0] if len(logs) == 1 else source


def records_by_item(
    log: Log, categories: Mapping[str, str], higher_is_better: bool, fix: str
) -> dict[str, Record]:
    """{id of an item: the record of its answers} of the items that have a score; a task counts by its first metric.

    `categories` are those of the items by id. `fix` is what to do about a score that is not a fraction of 1.

    Raises:
        UserError: there is one, scores are in the other direction, or an item has scores of two tasks.
    """
    metrics = {task.name: next(iter(task.metrics.values())) for task in log.tasks.values()}
    for metric in metrics.values():
        _check_direction(log, metric, higher_is_better, list(metrics.values()))
        for answer in metric.answers:
            if abs(answer.score - 0.5) > 0.5 + SCORE_ROUNDING:
                what = f"item {answer.item!r:.60}: score {answer.score:g}"
                raise UserError(f"{log.path}: {what} must be a fraction of 1\n{fix}")
    answers = _answers_by_item(log, metrics, categories)
    return {item: _record(item, answers[item]) for item in answers}


def _check_direction(
    log: Log, metric: LoggedMetric, higher_is_better: bool, metrics: Sequence[LoggedMetric]
) -> None:
    """Refuse scores in the other direction, which tables and inspect_ai do not state."""
    higher = metric.higher_is_better
    stated = log.harness not in ("table", "inspect_ai")
    if higher == higher_is_better or (higher and not stated):
        return
    word = "higher" if higher else "lower"
    fix = f"add evaluator.higher_is_better={str(higher).lower()}"
    if len({metric.higher_is_better for metric in metrics}) > 1:
        fix = "evaluate it in a run of its own, as its other metrics are not"
    raise UserError(f"{log.path}: {metric.name} is better when it is {word}\n{fix}")


def _answers_by_item(
    log: Log, metrics: Mapping[str, LoggedMetric], categories: Mapping[str, str]
) -> dict[str, list[LoggedAnswer]]:
    """{id of an item: its answers that have a score}; `metrics` are by task."""
    # Their items are an id and a hash of the content.
    hashed = log.harness in ("lm_eval", "inspect_ai")
    answers = dict[str, list[LoggedAnswer]]()
    task_of = dict[str, str]()
    for task, metric in metrics.items():
        for answer in metric.answers:
            name = answer.item
            if hashed:
                name = f"{task}/{name.rpartition(' ')[0]}"
            if np.isnan(answer.score) or name not in categories:
                continue
            # A table's task is CATEGORY or TASK/CATEGORY.
            if log.harness == "table" and not f"/{task}".endswith(f"/{categories[name]}"):
                continue
            if task_of.setdefault(name, task) != task:
                what = f"item {shown(name)} has scores in {task_of[name]} and in {task}"
                raise UserError(f"{log.path}: {what}: leave one of them out")
            answers.setdefault(name, []).append(answer)
    return answers


def _record(item: str, answers: Sequence[LoggedAnswer]) -> Record:
    """A record of the mean of an item's answers."""
    missing = any(answer.missing for answer in answers)
    outcome: Outcome = "finished"
    if missing:
        outcome = "unanswered"
    elif any(answer.truncated for answer in answers):
        outcome = "truncated"
    return Record(
        item=item,
        score=float(np.mean([answer.score for answer in answers])),
        output=answers[0].output,
        prompt_key=answers[0].prompt_hash,
        outcome=outcome,
        reason="no answer, as the log says" if missing else "",
    )
