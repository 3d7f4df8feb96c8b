"""Logs of BFCL, read without bfcl-eval.

A log is a project folder with `result/` and `score/`. Score files hold a line of totals and one line per failure; the
items that were solved are in the result files alone. So function documents are known of failed items only. That is
enough to group the items of a comparison: an item on which two logs differ failed in one of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from souping.core.files import regular
from souping.core.json_fields import finite_number
from souping.core.text import shown
from souping.core.types import Json, Names, UserError
from souping.logs.bfcl_items import shared_content
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
VERSION = "BFCL version"
"""Key of a task's settings."""
FAILED = "Error during inference: "
"""How bfcl-eval's generation marks an item without an answer."""


def read_bfcl(path: Path, name: str, group: str) -> Log:
    """The log of one model in a BFCL project: each category is a task. `name` picks one of several models.

    Raises:
        UserError: result/ or score/ is missing, damaged or of several models, or they do not fit each other; or a
            `group` is given.
    """
    if group:
        raise UserError(
            f"{path}: --group and --category are not for BFCL: its items are grouped by what they share, "
            "its files are its categories"
        )
    results = path / "result"
    scores = path / "score"
    if not (results.is_dir() and scores.is_dir()):
        raise UserError(
            f"{path}: a BFCL project has result/ and score/, and one alone does not list all items"
        )
    models = [folder.name for folder in results.iterdir() if folder.is_dir()]
    model = pick_model(results, models, name)
    tasks = {}
    shared: dict[str, Names] = {}
    for file in sorted((results / model).rglob("BFCL_*_result.json")):
        task, contents = _task(file, scores / model)
        shared.update(contents)
        tasks[task.name] = task
    if not tasks:
        raise UserError(f"{results / model}: no BFCL_*_result.json")
    return Log(
        path=results / model,
        harness="bfcl",
        model=model,
        tasks=tasks,
        requested=tuple(tasks),
        shared=shared,
    )


def _task(file: Path, scores: Path) -> tuple[Task, dict[str, Names]]:
    """(task of a category, {item: texts that it may share with others}), from a result file and its score file below
    `scores`.

    Only failed items have an entry of the benchmark in the log: for others, the id alone tells what they share.
    """
    # A file with a name of another form has no score file, and is refused below.
    version = ""
    category = file.stem
    match = RESULT_FILE.fullmatch(file.name)
    if match:
        version, category = match.groups()
    score_file = next(scores.rglob(f"BFCL_{version}_{category}_score.json"), None)
    if score_file is None:
        raise UserError(f"{scores}: no score file of {category}: run bfcl evaluate")

    totals, *failures = bfcl_lines(score_file)
    entries = {str(row["id"]): row.get("prompt") for row in failures}
    answers = []
    shared = {}
    for row in bfcl_lines(file):
        item = str(row["id"])
        # Conversations that fill a model's memory before its questions are not scored.
        if "prereq" in item:
            continue
        entry = entries.get(item)
        shared[item] = tuple(shared_content(item, entry if isinstance(entry, dict) else {}))
        answers.append(("accuracy", _answer(row, entries)))
    count = totals.get("total_count")
    if count != len(answers):
        raise UserError(
            f"{score_file}: scores of {shown(str(count))} items, but {file} has {len(answers)}"
        )
    accuracy = totals.get("accuracy")
    if accuracy is not None and finite_number(accuracy) is None:
        raise UserError(f"{score_file}: accuracy must be a number, not {accuracy!r:.60}")
    metrics = metrics_of(file, answers, {"accuracy": accuracy})
    task = Task(name=category, metrics=metrics, settings={VERSION: version})
    return task, shared


def bfcl_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a result or score file; the first line of a score file holds its totals.

    Raises:
        UserError: there are no lines, or one of an item has no id.
    """
    with regular(path).open(encoding="utf-8", errors="replace") as lines:
        rows = list(json_lines(path, lines))
    # The line of totals has no id.
    answers = rows[1:] if path.name.endswith("_score.json") else rows
    if not rows or any("id" not in row for row in answers):
        raise UserError(f"{path}: not a file of bfcl-eval: a line without an id")
    return rows


def _answer(row: LogRow, failed: Collection[str]) -> LoggedAnswer:
    """The answer in a line of a result file: right unless its item is among the failed ones."""
    text = row.get("result", "")
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    # An integer beyond all floats cannot be added to one: it is refused later, as infinity is.
    steps = counts(row.get("output_token_count"))
    tokens = [math.inf if finite_number(count) is None else count for count in steps]
    return LoggedAnswer(
        item=str(row["id"]),
        score=float(str(row["id"]) not in failed),
        missing=text.startswith(FAILED),
        tokens=sum(tokens) if tokens else None,
        characters=len(text),
        output=text,
    )


def counts(value: Json) -> list[float]:
    """The counts of tokens in a field: one number, or lists of them for each step of each turn."""
    if isinstance(value, int | float):
        return [value]
    flat: list[float] = []
    if isinstance(value, list):
        for inner in value:
            flat.extend(counts(inner))
    return flat
