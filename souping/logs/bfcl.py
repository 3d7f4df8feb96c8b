"""Logs of bfcl-eval: a project folder with `result/` and `score/`.

Score files hold a line of totals and one line per failure; the items that were solved are in the result files alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from souping.core.files import regular
from souping.core.text import shown
from souping.core.types import Json, UserError
from souping.logs.records import (
    Log,
    LoggedAnswer,
    LogRow,
    Task,
    json_lines,
    metrics_of,
    pick_model,
)

RESULT_FILE = re.compile(r"BFCL_(v\d+)_(.+)_result\.json")
FAILED = "Error during inference: "
"""How bfcl-eval's generation marks an item without an answer."""


def read_bfcl(path: Path, name: str) -> Log:
    """The categories of one model, each a task."""
    results = path / "result"
    scores = path / "score"
    if not (results.is_dir() and scores.is_dir()):
        raise UserError(
            f"{path}: a BFCL project has result/ and score/, and one alone does not list all items"
        )
    model = pick_model(
        results, [folder.name for folder in results.iterdir() if folder.is_dir()], name
    )
    tasks = [
        _task(file, scores / model)
        for file in sorted((results / model).rglob("BFCL_*_result.json"))
    ]
    if not tasks:
        raise UserError(f"{results / model}: no BFCL_*_result.json")
    by_name = {task.name: task for task in tasks}
    return Log(
        path=results / model, harness="bfcl", model=model, tasks=by_name, asked=tuple(by_name)
    )


def _task(file: Path, scores: Path) -> Task:
    found = RESULT_FILE.fullmatch(file.name)
    version, category = found.groups() if found else ("", file.stem)
    score_file = next(scores.rglob(f"BFCL_{version}_{category}_score.json"), None)
    if score_file is None:
        raise UserError(f"{scores}: no score file of {category}: run bfcl evaluate")
    head, *failures = rows_of(score_file)
    wrong = {str(row["id"]) for row in failures}
    answers = [_answer(row, wrong) for row in rows_of(file) if "prereq" not in str(row["id"])]
    if (total := head.get("total_count")) != len(answers):
        raise UserError(
            f"{score_file}: scores of {shown(str(total))} items, but {file} has {len(answers)}"
        )
    metrics = metrics_of(
        file, (("accuracy", one) for one in answers), {"accuracy": head.get("accuracy")}
    )
    return Task(name=category, metrics=metrics, settings={"BFCL version": version})


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a result or score file.

    Raises:
        UserError: there is none, or one has no id.
    """
    with regular(path).open(encoding="utf-8", errors="replace") as lines:
        rows = list(json_lines(path, lines))
    if not rows or any("id" not in row for row in rows[path.name.endswith("_score.json") :]):
        raise UserError(f"{path}: not a file of bfcl-eval: a line without an id")
    return rows


def _answer(row: LogRow, wrong: set[str]) -> LoggedAnswer:
    output = row.get("result", "")
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    tokens = counts(row.get("output_token_count"))
    return LoggedAnswer(
        item=str(row["id"]),
        score=float(str(row["id"]) not in wrong),
        missing=text.startswith(FAILED),
        tokens=sum(tokens) if tokens else None,
        characters=len(text),
        output=text,
    )


def counts(value: Json) -> list[float]:
    """Counts of tokens: one, or those of each step of each turn."""
    if isinstance(value, list):
        return [count for inner in value for count in counts(inner)]
    return [value] if isinstance(value, int | float) else []
