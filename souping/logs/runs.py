"""Logs of this package's own runs: the answers to the report fold in `samples.jsonl.gz`, one model a log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from souping.core.text import first_line, shown
from souping.core.types import UserError, digest, entries, part
from souping.core.unit import unit_of
from souping.logs.records import (
    Log,
    LoggedAnswer,
    LogRow,
    Task,
    metrics_of,
    pick_model,
    read_object,
)
from souping.report.samples import SAMPLES_FILE, read_samples


def read_run(path: Path, name: str, group: str) -> Log:
    """The soup of a run, or the model of this name."""
    try:
        return _read(path, read_object(path / "report.json"), name, group)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: report.json or {SAMPLES_FILE} is damaged: {first_line(error)}"
        ) from error


def _read(path: Path, report: LogRow, name: str, group: str) -> Log:
    if limit := report.get("limit"):
        raise UserError(
            f"{path}: limit={limit} made this a dry run on items of the search: nothing can be claimed on them; "
            "repeat the run without limit"
        )
    # A report tests its router; compared again, it would be one more model that may have been picked.
    models = [row for row in entries(report, "rows") if row.get("kind") != "router"]
    rows = {str(row["name"]): part(row, "scores") for row in models}
    own = unit_of(report)
    metric = "score" if own.symbol == "%" else own.name
    lower = () if own.higher_is_better else (metric,)
    model = pick_model(path, list(rows), name or "soup") if rows else ""
    lines_of = dict[str, list[LogRow]]()
    best = 0
    lines: Iterator[LogRow] = read_samples(path / SAMPLES_FILE)
    for line in lines:
        best = max(best, *map(_best_of, line["models"].values()))
        if line["fold"] == "report" and model in line["models"]:
            lines_of.setdefault(line["category"], []).append(line)
    if not lines_of:
        raise UserError(
            f"{path}: no answers of {model or 'its models'} to the report fold: this run made no report"
        )
    tasks = {}
    for task, task_lines in lines_of.items():
        pairs = list[tuple[str, LoggedAnswer]]()
        for line in task_lines:
            found = _answers(line, line["models"][model], group, best > 0)
            pairs.extend((metric, answer) for answer in found)
        reported = {metric: part(rows[model], task).get("mean")}
        metrics = metrics_of(path / SAMPLES_FILE, pairs, reported, lower)
        if all(math.isnan(answer.score) for answer in metrics[metric].answers):
            raise UserError(
                f"{path}: {task}: the scores in {SAMPLES_FILE} do not have the mean that report.json says, "
                f"{shown(str(reported[metric]))}"
            )
        if metric != "score":  # no score from 0 to 1, even if all of them are
            metrics = {metric: replace(metrics[metric], is_mean=False, unit=metric)}
        scorers = {line["doc"]["scorer"] for line in task_lines}
        digests = {line.get("scorer_hash") or "" for line in task_lines}
        settings = {
            "scorer": ", ".join(sorted(scorers)),
            "scorer's digest": "" if "" in digests else digest(sorted(digests))[:12],
            "score of several answers": f"the best of {best}" if best else "their mean",
        }
        tasks[task] = Task(name=task, metrics=metrics, settings=settings)
    return Log(path=path, harness="souping", model=model, tasks=tasks, asked=tuple(tasks))


def _best_of(answered: LogRow) -> int:
    """The number of answers of which an item's score is that of the best and not their mean, else 0."""
    scores = answered.get("scores", [answered["score"]])
    best = max(scores)
    return len(scores) if answered["score"] == best and best - fmean(scores) > 1e-9 else 0


def _answers(line: LogRow, own: LogRow, group: str, best: bool) -> Iterator[LoggedAnswer]:
    """One answer per replicate, or one for all if the item's score is not their mean."""
    several = not best and abs(fmean(own.get("scores", [own["score"]])) - own["score"]) <= 1e-9
    scores, outcomes = (
        (several and own.get(f"{key}s")) or [own[key]] for key in ("score", "outcome")
    )
    # an item with another reference is another item
    content = digest([line["prompt_hash"], line.get("target_hash", "")])
    for number, (score, outcome, output) in enumerate(
        zip(scores, outcomes, own["resps"][0], strict=False)
    ):
        yield LoggedAnswer(
            item=f"{line['item']} {content[:16]}",
            score=float(score),
            group=str(line["doc"].get(group or "group") or ""),
            replicate=number,
            missing=outcome == "unanswered",
            cut=outcome == "truncated",
            characters=len(output),
            prompt_hash=own.get("sent_hash", ""),
            identity=line["prompt_hash"],
            prompt=str(own.get("prompt") or line["arguments"][0][0]),
            output=output,
        )
