"""What `bfcl generate` and `bfcl evaluate` leave: result files below result/MODEL, score files below score/MODEL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core import UserError

FILE = re.compile(r"BFCL_(?P<version>v\d+)_(?P<category>.+)_(?P<kind>result|score)\.json")
GROUPS = frozenset(
    ("non_live", "live", "multi_turn", "agentic", "format_sensitivity", "memory", "kv", "vector", "rec_sum")
)
"""Folders of bfcl-eval between a model's folder and its files."""


@dataclass(frozen=True, kw_only=True)
class BfclFiles:
    """One model's folder: {(version of the data, category): file} of its results, and of its scores."""

    path: Path
    results: Mapping[tuple[str, str], Path]
    scores: Mapping[tuple[str, str], Path]

    @property
    def model(self) -> str:
        """The name in bfcl-eval's registry, its slash written as an underscore."""
        return self.path.name

    def answers(self, key: tuple[str, str]) -> dict[str, dict[str, Any]]:
        """{item id: line} of a result file; of an item that was asked twice the later line.

        Raises:
            UserError: the file cannot be read, or a line is no result of BFCL.
        """
        path = self.results[key]
        found = {}
        for number, row in enumerate(_rows(path), start=1):
            if "id" not in row or "result" not in row:
                raise UserError(f"{path}:{number}: no result of BFCL: a line has an id and a result")
            found[str(row["id"])] = row
        return found

    def failures(self, key: tuple[str, str]) -> list[dict[str, Any]] | None:
        """The items that a score file has as failed, with their questions; None without the file."""
        path = self.scores.get(key)
        return None if path is None else [row for row in _rows(path) if "id" in row]


def find(paths: Sequence[Path]) -> list[BfclFiles]:
    """The models whose results lie below these folders; score/MODEL is looked for beside result/MODEL.

    Raises:
        UserError: a path is not there.
    """
    results: dict[Path, dict[tuple[str, str], Path]] = {}
    for path in sorted({p.resolve() for given in paths for p in _below(given)}):
        found = FILE.fullmatch(path.name)
        if found and found["kind"] == "result":
            results.setdefault(_home(path), {})[found["version"], found["category"]] = path
    return [BfclFiles(path=home, results=own, scores=_scores(home, paths)) for home, own in results.items()]


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (p for p in path.rglob("BFCL_v*.json") if p.is_file())
    elif path.is_file():
        yield path
    else:
        raise UserError(f"{path}: there is no such file or folder")


def _home(path: Path) -> Path:
    """The model's folder: the nearest that is none of bfcl-eval's groups."""
    return next(folder for folder in path.parents if folder.name not in GROUPS)


def _scores(home: Path, given: Sequence[Path]) -> dict[tuple[str, str], Path]:
    folders = [home.parent.parent / "score" / home.name, *(p / home.name for p in given if p.name == "score")]
    found = {}
    for path in (p for folder in folders if folder.is_dir() for p in folder.rglob("BFCL_v*_score.json")):
        match = FILE.fullmatch(path.name)
        if match:
            found[match["version"], match["category"]] = path
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except ValueError as error:
        raise UserError(f"{path}: not lines of JSON, the file may be cut off: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: a line of BFCL's files is a JSON object")
    return rows
