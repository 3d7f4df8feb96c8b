"""Logs of this package's own runs: the answers to the test split in `samples.jsonl.gz`, one model a log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from souping.core.text import first_line, shown
from souping.core.types import Json, UserError, digest
from souping.core.unit import Unit
from souping.logs.records import (
    Log,
    LoggedAnswer,
    LoggedMetric,
    LogRow,
    Task,
    metrics_of,
    pick_model,
)
from souping.report.samples import SAMPLES_FILE, read_samples

if TYPE_CHECKING:
    from souping.report.content import Report


def read_run(path: Path, name: str, group: str) -> Log:
    """The answers of a run's soup, or of its model with this name, to the test split.

    `group` is the field of the documents by which items are grouped.

    Raises:
        UserError: it was a dry run, it ended before its report, it has no such model, or a file is damaged.
    """
    # With all that is in a report; other logs do without.
    from souping.report.run_files import read_report

    report = read_report(path / "report.json")
    try:
        return _read(path, report, name, group)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {SAMPLES_FILE} is damaged: {first_line(error)}") from error


def _read(path: Path, report: Report, name: str, group: str) -> Log:
    """The log that `read_run` returns. Damaged samples may raise any error of data."""
    if report.dry_run:
        raise UserError(
            f"{path}: dry_run={report.dry_run} made this a dry run on items of the search: nothing can be claimed on "
            "them; repeat the run without dry_run"
        )
    # The report tests the router already. Compared again, it would be one more model that may have been picked.
    row_of = {row.name: row for row in report.rows or () if row.kind != "router"}
    if not row_of:
        raise UserError(f"{path}: this run made no report")
    model = pick_model(path, list(row_of), name or "soup")
    row = row_of[model]

    # Lines of the test split by task.
    lines_of: dict[str, list[LogRow]] = {}
    # The number of answers of which the best one counts, 0 if their mean does. One item whose mean differs shows it for
    # the whole run: of other items, all answers may be equal.
    best_of = 0
    lines: Iterator[LogRow] = read_samples(path / SAMPLES_FILE)
    for line in lines:
        best_of = max(best_of, *map(_best_of, line["models"].values()))
        if line["split"] == "test" and model in line["models"]:
            lines_of.setdefault(line["category"], []).append(line)
    if not lines_of:
        raise UserError(f"{path}: no answers of {model} to the test split: this run made no report")
    tasks = {}
    for task, task_lines in lines_of.items():
        answers: list[LoggedAnswer] = []
        for line in task_lines:
            answers.extend(_answers(line, line["models"][model], group, best_counts=best_of > 0))
        mean = row.scores[task].mean if task in row.scores else None
        metric = _metric(path, task, answers, mean, report.unit)
        settings = _settings(task_lines, best_of)
        tasks[task] = Task(name=task, metrics={metric.name: metric}, settings=settings)
    return Log(
        path=path,
        harness="souping",
        model=model,
        model_id=row.recipe_id,
        tasks=tasks,
        requested=tuple(tasks),
    )


def _metric(
    path: Path, task: str, answers: list[LoggedAnswer], reported: Json, unit: Unit
) -> LoggedMetric:
    """The score of a task as a metric. In a unit other than percent it is no fraction of 1, even if all scores are.

    Raises:
        UserError: the scores do not have the mean that the report says.
    """
    name = "score" if unit.symbol == "%" else unit.name
    lower = () if unit.higher_is_better else (name,)
    named_answers = [(name, answer) for answer in answers]
    metric = metrics_of(path / SAMPLES_FILE, named_answers, {name: reported}, lower)[name]
    # `metrics_of` removes scores that do not have the reported mean.
    if all(math.isnan(answer.score) for answer in metric.answers):
        raise UserError(
            f"{path}: {task}: the scores in {SAMPLES_FILE} do not have the mean that report.json says, "
            f"{shown(str(reported))}"
        )
    if name == "score":
        return metric
    return replace(metric, is_mean=False, unit=name)


def _settings(lines: Sequence[LogRow], best_of: int) -> dict[str, str]:
    """The settings of a task that must agree between logs that are compared; `lines` are the task's samples."""
    scorers = {line["doc"]["scorer"] for line in lines}
    digests = {line.get("scorer_hash") or "" for line in lines}
    return {
        "scorer": ", ".join(sorted(scorers)),
        # Empty, which agrees with any, if the digest of a scorer is not known.
        "scorer's digest": "" if "" in digests else digest(sorted(digests))[:12],
        "score of several answers": f"the best of {best_of}" if best_of else "their mean",
    }


def _best_of(result: LogRow) -> int:
    """The number of a model's answers to an item if its score is that of the best answer and not the mean, else 0."""
    scores = result.get("scores", [result["score"]])
    best = max(scores)
    if result["score"] == best and best - fmean(scores) > 1e-9:
        return len(scores)
    return 0


def _answers(
    line: LogRow, result: LogRow, group: str, *, best_counts: bool
) -> Iterator[LoggedAnswer]:
    """Answers to the item of a line; `result` is one model's part of the line.

    There is one answer per repeat if the item's score is the mean of the repeats. If the best answer counts in this
    run, or the score is the pseudo-value of a corpus metric, one answer with this score stands for all.
    """
    scores = [result["score"]]
    outcomes = [result["outcome"]]
    if not best_counts and abs(fmean(result.get("scores", scores)) - result["score"]) <= 1e-9:
        scores = result.get("scores") or scores
        outcomes = result.get("outcomes") or outcomes
    # `prompt_hash` is of the item's own prompt, by which the store knows it; `sent_hash` is of the text that the model
    # got, with template and examples. An item with another reference (`target_hash`) is another item.
    content = digest([line["prompt_hash"], line.get("target_hash", "")])
    # As many as there are scores: one score for all answers gets the text of the first.
    answers = zip(scores, outcomes, result["resps"][0], strict=False)
    for number, (score, outcome, output) in enumerate(answers):
        yield LoggedAnswer(
            item=f"{line['item']} {content[:16]}",
            score=float(score),
            group=str(line["doc"].get(group or "group") or ""),
            repeat=number,
            missing=outcome == "unanswered",
            truncated=outcome == "truncated",
            characters=len(output),
            prompt_hash=result.get("sent_hash", ""),
            identity=line["prompt_hash"],
            prompt=str(result.get("prompt") or line["arguments"][0][0]),
            output=output,
        )
