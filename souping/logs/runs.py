"""Logs of this package's own runs: the answers to the report fold in `samples.jsonl.gz`, one model a log."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.types import UserError, entries, number, part
from souping.logs.common import Row, json_lines, metric, pick_model, read_object
from souping.logs.records import Log, LoggedAnswer, Task

SAMPLES = "samples.jsonl.gz"


def read_run(path: Path, name: str, group: str) -> Log:
    """The soup of a run, or the model of this name."""
    report = read_object(path / "report.json")
    rows = {str(row["name"]): part(row, "scores") for row in entries(report, "rows")}
    model = pick_model(path, list(rows), name or "soup") if rows else ""
    tasks: dict[str, list[LoggedAnswer]] = {}
    scorers: dict[str, set[str]] = {}
    try:
        with gzip.open(path / SAMPLES) as lines:
            for line in json_lines(path / SAMPLES, lines):
                if line["fold"] == "report" and model in line["models"]:
                    scorers.setdefault(line["category"], set()).add(line["doc"]["scorer"])
                    tasks.setdefault(line["category"], []).extend(_answers(line, line["models"][model], group))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path / SAMPLES}: cut off or damaged: repeat the run, which keeps its answers") from error
    if not tasks:
        raise UserError(f"{path}: no answers of {model or 'its models'} to the report fold: this run made no report")
    return Log(
        path=path,
        harness="souping",
        model=model,
        tasks={name: _task(path, name, found, part(rows[model], name), scorers[name]) for name, found in tasks.items()},
        asked=tuple(tasks),
    )


def _task(path: Path, name: str, answers: list[LoggedAnswer], reported: Mapping[str, Any], scorers: set[str]) -> Task:
    found = metric(path / SAMPLES, "score", answers, number(reported.get("mean")))
    return Task(name=name, metrics={"score": found}, settings={"scorer": ", ".join(sorted(scorers))})


def _answers(line: Row, own: Row, group: str) -> list[LoggedAnswer]:
    """One answer per replicate, or one for all if the item's score is not their mean (the best of them)."""
    scores, outcomes, outputs = (
        own.get("scores", [own["score"]]),
        own.get("outcomes", [own["outcome"]]),
        own["resps"][0],
    )
    if abs(np.mean(scores) - own["score"]) > 1e-9:
        scores, outcomes, outputs = [own["score"]], [own["outcome"]], outputs[:1]
    return [
        LoggedAnswer(
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
        for number_, (score, outcome, output) in enumerate(zip(scores, outcomes, outputs, strict=True))
    ]
