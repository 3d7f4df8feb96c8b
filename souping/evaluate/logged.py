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
    """The item as a line of the JSONL file that an evaluation gets, without its line break."""
    table = {name: value for name, value in asdict(item).items() if name != "user_scorer"}
    return json.dumps(table, ensure_ascii=False, sort_keys=True, default=str)


def log_in(source: Path) -> Path:
    """The log at `source`: the only file or folder in it, or `source` itself if it is a file or holds several."""
    logs = list(source.iterdir()) if source.is_dir() else [source]
    if not logs:
        raise UserError(f"the evaluation left no log in {source}")
    return logs[0] if len(logs) == 1 else source


def records_by_item(
    log: Log, categories: Mapping[str, str], higher_is_better: bool, fix: str
) -> dict[str, Record]:
    """{item id: record} of the items that have a score in a log; the score is the first metric of its task.

    `categories` is {item id: category}. `fix` tells the user what to do about a score that is not a fraction of 1.

    Raises:
        UserError: a score is not a fraction of 1, its direction is not `higher_is_better`, or two tasks score an item.
    """
    metrics = {task.name: next(iter(task.metrics.values())) for task in log.tasks.values()}
    for metric in metrics.values():
        _check_direction(log, metric, higher_is_better, list(metrics.values()))
        for answer in metric.answers:
            # Outside 0 to 1, apart from rounding. An answer without a score has NaN, which is never larger.
            if abs(answer.score - 0.5) > 0.5 + SCORE_ROUNDING:
                what = f"item {answer.item!r:.60}: score {answer.score:g}"
                raise UserError(f"{log.path}: {what} must be a fraction of 1\n{fix}")
    answers = _answers_by_item(log, metrics, categories)
    return {item: _record(item, answers[item]) for item in answers}


def _check_direction(
    log: Log, metric: LoggedMetric, higher_is_better: bool, metrics: Sequence[LoggedMetric]
) -> None:
    """Refuse a metric whose direction is not that of the evaluator; `metrics` are all metrics of the log."""
    higher = metric.higher_is_better
    # Tables and inspect_ai state no direction, so "higher" is only their default.
    stated = log.harness not in ("table", "inspect_ai")
    if higher == higher_is_better or (higher and not stated):
        return
    word = "higher" if higher else "lower"
    fix = f"add evaluator.higher_is_better={str(higher).lower()}"
    # With metrics of both directions, either value of the key refuses one of them.
    if len({metric.higher_is_better for metric in metrics}) > 1:
        fix = "evaluate it in a run of its own, as its other metrics are not"
    raise UserError(f"{log.path}: {metric.name} is better when it is {word}\n{fix}")


def _answers_by_item(
    log: Log, metrics: Mapping[str, LoggedMetric], categories: Mapping[str, str]
) -> dict[str, list[LoggedAnswer]]:
    """{item id: its answers that have a score}; `metrics` is {task: metric}, `categories` {item id: category}."""
    # These logs name an item by its id in the task, a space, and a hash of its content.
    hashed = log.harness in ("lm_eval", "inspect_ai")
    answers = dict[str, list[LoggedAnswer]]()
    task_of = dict[str, str]()
    for task, metric in metrics.items():
        for answer in metric.answers:
            name = answer.item
            if hashed:
                name = f"{task}/{name.rpartition(' ')[0]}"
            # A log may hold items that were not requested.
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
    """One record for all answers to an item: their mean score, the first one's output, and the worst outcome."""
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
