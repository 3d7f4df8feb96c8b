"""BFCL without bfcl-eval: its logs, what its items share, and its overall accuracy.

A log is a project folder with `result/` and `score/`. Score files hold a line of totals and one line per failure; the
items that were solved are in the result files alone. So function documents are known of failed items only. That is
enough to group the items of a comparison: an item on which two logs differ failed in one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from souping.core.fields import pick
from souping.core.files import regular
from souping.core.text import shown
from souping.core.types import Json, Names, UserError
from souping.logs.records import (
    Log,
    LoggedAnswer,
    LogRow,
    Task,
    json_lines,
    metrics_of,
    pick_model,
)

# ---------------------------------------------------------------- logs

RESULT_FILE = re.compile(r"BFCL_(v\d+)_(.+)_result\.json")
VERSION = "BFCL version"
"""Key of a task's settings."""
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
    """A category, and {item: what it shares with others}, as far as its log can tell."""
    version = ""
    category = file.stem
    match = RESULT_FILE.fullmatch(file.name)
    if match:
        version, category = match.groups()
    score_file = next(scores.rglob(f"BFCL_{version}_{category}_score.json"), None)
    if score_file is None:
        raise UserError(f"{scores}: no score file of {category}: run bfcl evaluate")

    totals, *failures = rows_of(score_file)
    wrong = {str(row["id"]) for row in failures}
    entries = {str(row["id"]): row.get("prompt") for row in failures}
    answers = []
    shared = {}
    for row in rows_of(file):
        item = str(row["id"])
        if "prereq" not in item:
            entry = entries.get(item)
            shared[item] = tuple(shared_content(item, entry if isinstance(entry, dict) else {}))
            answers.append(("accuracy", _answer(row, wrong)))
    count = totals.get("total_count")
    if count != len(answers):
        raise UserError(
            f"{score_file}: scores of {shown(str(count))} items, but {file} has {len(answers)}"
        )
    metrics = metrics_of(file, answers, {"accuracy": totals.get("accuracy")})
    task = Task(name=category, metrics=metrics, settings={VERSION: version})
    return task, shared


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a result or score file.

    Raises:
        UserError: there are none, or one has no id.
    """
    with regular(path).open(encoding="utf-8", errors="replace") as lines:
        rows = list(json_lines(path, lines))
    # A score file begins with its totals.
    answers = rows[1:] if path.name.endswith("_score.json") else rows
    if not rows or any("id" not in row for row in answers):
        raise UserError(f"{path}: not a file of bfcl-eval: a line without an id")
    return rows


def _answer(row: LogRow, wrong: set[str]) -> LoggedAnswer:
    text = row.get("result", "")
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
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
    if isinstance(value, int | float):
        return [value]
    flat: list[float] = []
    if isinstance(value, list):
        for inner in value:
            flat.extend(counts(inner))
    return flat


# ---------------------------------------------------------------- files

NON_LIVE = {
    "simple_python": 400, "simple_java": 100, "simple_javascript": 50, "multiple": 200, "parallel": 200,
    "parallel_multiple": 200, "irrelevance": 240,
}  # fmt: skip
LIVE_ITEMS = {
    "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "live_irrelevance": 884, "live_relevance": 16,
}  # fmt: skip
"""Items of each file, as bfcl-eval 2026.3.23 has them. BFCL's live accuracy is over items, not over files."""
MULTI_TURN = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
WEB_SEARCH = ("web_search_base", "web_search_no_snippet")
MEMORY = ("memory_kv", "memory_vector", "memory_rec_sum")
SINGLE_TURN = (*NON_LIVE, *LIVE_ITEMS)
FILE_ITEMS: Mapping[str, int] = {**NON_LIVE, **LIVE_ITEMS, **dict.fromkeys(MULTI_TURN, 200)}
"""Items of the 17 files, 4,441 together."""

# ---------------------------------------------------------------- what items share

VARIANT = re.compile(r"(multi_turn|web_search|memory)_(?:\w+?_)?(\d.*)")
"""The id of an item that several files have in a variant: its family and its number."""


def shared_content(item: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """What an item has that others may have too, as texts. Items that share one belong to one group.

    `entry` is the item in BFCL's data. Logs have it of failed items alone, and it may be empty.
    """
    variant = VARIANT.fullmatch(item)
    if variant is None:
        docs = entry.get("function") or []
        for doc in docs if isinstance(docs, list) else [docs]:
            yield f"function {json.dumps(doc, sort_keys=True)}"
        return
    # One number is one scenario in all files of a family.
    yield f"story {variant[1]} {variant[2]}"
    if "initial_config" in entry:
        yield f"state {json.dumps(entry['initial_config'], sort_keys=True)}"
    turns = entry.get("question")
    if isinstance(turns, list) and turns:
        yield f"question {json.dumps(turns[0], sort_keys=True)}"


# ---------------------------------------------------------------- overall accuracy

Node = str | tuple[tuple[float, "Node"], ...]
"""A category, or parts with their weights: a node's value is the weighted mean of its parts."""
VERSIONS = ("v2", "v3", "v4")


def _mean(*parts: Node) -> Node:
    return tuple((1.0, part) for part in parts)


LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_SIMPLE = _mean("simple_python", "simple_java", "simple_javascript")
_CALLS: tuple[Node, ...] = (_SIMPLE, "multiple", "parallel", "parallel_multiple")


def overall(version: str = "v3", sizes: Mapping[str, float] = LIVE_ITEMS) -> Node:
    """BFCL's overall accuracy as this version has it; `sizes` are the items of the live categories.

    From v4 on, abstention is a part of its own, beside memory and web search.

    Raises:
        UserError: the formula of this version is not known.
    """
    pick(version, VERSIONS, "average=bfcl: version of BFCL")
    live = {name: float(sizes.get(name, size)) for name, size in LIVE_ITEMS.items()}
    multi_turn = _mean(*MULTI_TURN)
    if version != "v4":
        live_items = tuple((size, name) for name, size in live.items())
        return _mean(_mean(*_CALLS, "irrelevance"), live_items, multi_turn)
    live_calls = tuple((live[name], name) for name in LIVE_CALLS)
    return (
        (10.0, _mean(*_CALLS)),
        (10.0, live_calls),
        (10.0, _mean("irrelevance", "live_irrelevance")),
        (30.0, multi_turn),
        (40.0, _mean(_mean(*WEB_SEARCH), _mean(*MEMORY))),
    )


def categories_of(node: Node) -> Iterator[str]:
    """The categories of a node, in its order."""
    if isinstance(node, str):
        yield node
        return
    for _, part in node:
        yield from categories_of(part)


def shares_of(node: Node, present: Collection[str]) -> dict[str, float]:
    """{category: coefficient} of a node over the categories that are present; empty if none is.

    The weight of absent ones goes to their siblings.
    """
    if isinstance(node, str):
        return {node: 1.0} if node in present else {}
    parts = [(weight, shares_of(child, present)) for weight, child in node]
    total = sum(weight for weight, shares in parts if shares)
    coefficients = dict[str, float]()
    for weight, shares in parts:
        for name, share in shares.items():
            coefficients[name] = weight / total * share
    return coefficients
