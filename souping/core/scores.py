"""Score matrix (models x categories), its CSV form, and its two sources: measured here, or published."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from souping.core.fields import component, pick
from souping.core.files import expanded
from souping.core.protocols import ScoreSource
from souping.core.types import ScoreMatrix, UserError

CAUSES = "are answers cut off, is the scorer wrong, do chat models get plain text in place of messages?"
"""What to look at where every model fails."""


@component
class MeasuredScores(ScoreSource):
    """Evaluate the candidates on the select fold."""

    published = False

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        return measure()


@component
class TableScores(ScoreSource):
    """Published score table: all of its rows inform the correlations, the candidates' rows give the experts."""

    path: str

    published = True

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """The table with its candidates marked.

        Raises:
            UserError: the table cannot be read, or a candidate has no row (the nearest is named).
        """
        path = expanded(self.path)
        scores = read_table(path)
        for name in candidates:
            pick(name, scores.models, f"{path}: row of candidate")
        return replace(scores, candidates=tuple(candidates))


def read_table(path: Path) -> ScoreMatrix:
    """Read a score table: header `model,<category>,...`, then a row a model; percent or fraction.

    A table with any value above 1 is percent as a whole.

    Raises:
        UserError: the file is absent, ragged, holds a duplicate or a value that is not a score (row and column named).
    """
    rows = _read_rows(path)
    header, body = rows[0], rows[1:]
    _check_header(path, header)
    names: list[str] = []
    values = np.empty((len(body), len(header) - 1))
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}:{line}: {len(row)} cells, but the header has {len(header)} columns")
        names.append(row[0].strip())
        for column, cell in enumerate(row[1:], start=1):
            values[line - 2, column - 1] = _number(cell, path, line, header[column])
    _check_names(path, names)
    scale = 100.0 if values.size and values.max() > 1 else 1.0
    return ScoreMatrix(
        models=tuple(names), categories=tuple(h.strip() for h in header[1:]), values=values / scale, published=True
    )


def _read_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a score table: {error}") from error
    if len(rows) < 2:
        raise UserError(f"{path}: a score table needs a header `model,<category>,...` and at least one row")
    return rows


def _check_header(path: Path, header: Sequence[str]) -> None:
    names = [h.strip() for h in header]
    if names[0].lower() != "model" or len(names) < 2 or not all(names):
        raise UserError(f"{path}:1: the header must be `model,<category>,...`, not `{','.join(names)[:80]}`")
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
    if twice:
        raise UserError(f"{path}:1: column {twice[0]!r} appears twice")


def _check_names(path: Path, names: Sequence[str]) -> None:
    for line, name in enumerate(names, start=2):
        if not name:
            raise UserError(f"{path}:{line}: the model has no name")
        if names.index(name) != line - 2:
            raise UserError(f"{path}:{line}: model {name!r} appears twice")


def _number(cell: str, path: Path, line: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not 0 <= value <= 100:
        raise UserError(f"{path}:{line}: column {column.strip()!r} holds {cell.strip()!r}, no score from 0 to 100")
    return value
