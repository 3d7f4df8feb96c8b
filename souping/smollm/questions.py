"""BFCL's single-turn questions, read from an installed or unpacked bfcl-eval."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core import UserError

FILES = {
    "simple": "simple_python",
    "multiple": "multiple",
    "live_simple": "live_simple",
    "live_multiple": "live_multiple",
    "irrelevance": "irrelevance",
    "java": "simple_java",
    "javascript": "simple_javascript",
}
"""{category: BFCL's file}."""
SPARE = ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
"""Files whose functions only stand in as distractors, where no question of a category has them."""
KIND = {
    "simple": "python",
    "multiple": "python",
    "irrelevance": "python",
    "parallel": "python",
    "parallel_multiple": "python",
    "live_simple": "live",
    "live_multiple": "live",
    "live_parallel": "live",
    "live_parallel_multiple": "live",
    "java": "script",
    "javascript": "script",
}
"""What functions look alike: a distractor is taken from the question's own kind."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function as a question shows it."""

    name: str
    description: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request and the functions BFCL offers for it; `answer` is the right one's name, None where none fits."""

    id: str
    category: str
    text: str
    functions: tuple[Function, ...]
    answer: str | None


def read(data: Path) -> tuple[Question, ...]:
    """The questions of all categories, in BFCL's order.

    Raises:
        UserError: a file is absent or is not what BFCL ships.
    """
    return tuple(question for category, stem in FILES.items() for question in _questions(data, category, stem))


def spare(data: Path) -> dict[str, tuple[Function, ...]]:
    """{kind: functions of the files that make no items}."""
    found: dict[str, list[Function]] = {}
    for stem in SPARE:
        for row in _rows(_file(data, stem)):
            found.setdefault(KIND[stem], []).extend(_function(f) for f in row["function"])
    return {kind: tuple(functions) for kind, functions in found.items()}


def _questions(data: Path, category: str, stem: str) -> list[Question]:
    path = _file(data, stem)
    answers = {} if category == "irrelevance" else _answers(_file(data / "possible_answer", stem))
    try:
        return [_question(row, category, answers) for row in _rows(path)]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a file of BFCL's questions ({type(error).__name__}: {error})") from error


def _question(row: Mapping[str, Any], category: str, answers: Mapping[str, str]) -> Question:
    said = [message["content"] for message in row["question"][0] if message["role"] == "user"]
    return Question(
        id=row["id"],
        category=category,
        text=" ".join(" ".join(said).split()),
        functions=tuple(_function(f) for f in row["function"]),
        answer=None if category == "irrelevance" else answers[row["id"]],
    )


def _function(row: Mapping[str, Any]) -> Function:
    parameters = row.get("parameters") or {}
    names = tuple(parameters.get("properties") or {})
    return Function(name=row["name"], description=" ".join(row.get("description", "").split()), parameters=names)


def _answers(path: Path) -> dict[str, str]:
    """{id: name of the function that is called}."""
    return {row["id"]: next(iter(row["ground_truth"][0])) for row in _rows(path)}


def _file(folder: Path, stem: str) -> Path:
    """The newest version of a file: `BFCL_v4_multiple.json`."""
    found = sorted(path for path in folder.glob("BFCL_v*.json") if re.fullmatch(rf"BFCL_v\d+_{stem}.json", path.name))
    if not found:
        raise UserError(f"{folder}: no BFCL_v*_{stem}.json here; --bfcl is the folder `bfcl_eval/data` of bfcl-eval")
    return found[-1]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the questions: {error}") from error
