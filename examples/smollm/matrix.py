"""Scores of all soups on all items as one table: a row for each item, a column for each uniform soup of tunes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.smollm.problems import Problems
from examples.smollm.scoring import SEPARATOR
from souping.core.files import write_atomically
from souping.core.types import FloatArray, Names, UserError

FILE = Path(__file__).parents[2] / "benchmarks" / "results" / "smollm-languages.csv"
BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Bits per byte of models and their uniform soups, {ingredients: scores [I]}, on items; lower is better.

    `languages` and `groups` are those of the items, [I].
    """

    ids: tuple[str, ...]
    languages: tuple[str, ...]
    groups: tuple[str, ...]
    scores: Mapping[Names, FloatArray]

    @property
    def tunes(self) -> Names:
        """Names of the single models except for the base."""
        return tuple(
            members[0] for members in self.scores if len(members) == 1 and BASE not in members
        )

    def of(self, members: Sequence[str]) -> FloatArray:
        """Scores [I] of a uniform soup, its ingredients in any order."""
        return self.scores[tuple(name for name in self.tunes if name in members)]


def save(problems: Problems, scores: Mapping[Names, Sequence[float]], path: Path) -> None:
    """Write a matrix; scores are rounded to a thousandth of a bit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "language", "group", *map(SEPARATOR.join, scores)])
    columns = [[f"{score:.3f}" for score in column] for column in scores.values()]
    for solution, *row in zip(problems.parts["items"], *columns, strict=True):
        group = problems.groups[solution.problem]
        writer.writerow([solution.id, solution.language, group, *row])
    write_atomically(path, text.getvalue().encode())


def load(path: Path = FILE) -> Matrix:
    """Read a matrix.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"{path} is not there: python -m examples.smollm score writes it")
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    ids, languages, groups, *columns = zip(*rows, strict=True)
    scores = dict[Names, FloatArray]()
    for name, column in zip(header[3:], columns, strict=True):
        scores[tuple(name.split(SEPARATOR))] = np.array(column, dtype=float)
    return Matrix(ids=ids, languages=languages, groups=groups, scores=scores)
