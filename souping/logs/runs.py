"""Logs of this package's own runs: the answers to the report fold in `samples.jsonl.gz`, one model a log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from souping.core.text import first_line
from souping.core.types import UserError, entries, number, part
from souping.core.unit import unit_of
from souping.logs.records import Log, LoggedAnswer, Row, Task, metrics_of, pick_model, read_object
from souping.report.render import SAMPLES, read_samples


def read_run(path: Path, name: str, group: str) -> Log:
    """The soup of a run, or the model of this name."""
    try:
        return _read(path, read_object(path / "report.json"), name, group)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: report.json or {SAMPLES} is damaged: {first_line(error)}"
        ) from error


def _read(path: Path, report: Row, name: str, group: str) -> Log:
    if limit := report.get("limit"):
        raise UserError(
            f"{path}: limit={limit} made this a dry run on items of the search: nothing can be claimed on them; "
            "repeat the run without limit"
        )
    rows = {str(row["name"]): part(row, "scores") for row in entries(report, "rows")}
    own = unit_of(report)
    metric = "score" if own.symbol == "%" else own.name
    lower = () if own.higher_is_better else (metric,)
    model = pick_model(path, list(rows), name or "soup") if rows else ""
    answers = dict[str, list[tuple[str, LoggedAnswer]]]()
    scorers = dict[str, set[str]]()
    lines: Iterator[Row] = read_samples(path / SAMPLES)
    for line in lines:
        if line["fold"] == "report" and model in line["models"]:
            scorers.setdefault(line["category"], set()).add(line["doc"]["scorer"])
            found = _answers(line, line["models"][model], group)
            answers.setdefault(line["category"], []).extend((metric, one) for one in found)
    if not answers:
        raise UserError(
            f"{path}: no answers of {model or 'its models'} to the report fold: this run made no report"
        )
    tasks = dict[str, Task]()
    for task, pairs in answers.items():
        metrics = metrics_of(
            path / SAMPLES, pairs, {metric: number(part(rows[model], task).get("mean"))}, lower
        )
        if metric != "score":  # no score from 0 to 1, even if all of them are
            metrics = {metric: replace(metrics[metric], is_mean=False, unit=metric)}
        tasks[task] = Task(
            name=task, metrics=metrics, settings={"scorer": ", ".join(sorted(scorers[task]))}
        )
    return Log(path=path, harness="souping", model=model, tasks=tasks, asked=tuple(tasks))


def _answers(line: Row, own: Row, group: str) -> Iterator[LoggedAnswer]:
    """One answer per replicate, or one for all if the item's score is not their mean (the best of them)."""
    several = abs(np.mean(own.get("scores", [own["score"]])) - own["score"]) <= 1e-9
    scores, outcomes = (
        (several and own.get(f"{key}s")) or [own[key]] for key in ("score", "outcome")
    )
    for number_, (score, outcome, output) in enumerate(
        zip(scores, outcomes, own["resps"][0], strict=False)
    ):
        yield LoggedAnswer(
            item=f"{line['item']} {line['prompt_hash'][:16]}",
            score=float(score),
            group=str(line["doc"].get(group or "group") or ""),
            replicate=number_,
            missing=outcome == "unanswered",
            cut=outcome == "truncated",
            characters=len(output),
            prompt_hash=line["prompt_hash"],
            prompt=str(own.get("prompt") or line["arguments"][0][0]),
            output=output,
        )
