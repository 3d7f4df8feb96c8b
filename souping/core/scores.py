"""Sources of the score table (models x categories), measured or published; and objectives, means of category scores.

An objective (a mean, fixed weights, a tree of group means) is linear in the category means: one weight a category says
it all, and paired tests and intervals apply to all alike. The worst category is the one that is not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from souping.core.fields import component, pick
from souping.core.files import expanded, regular
from souping.core.protocols import Objective, ScoreSource
from souping.core.types import FloatArray, Json, Names, ScoreMatrix, UserError


@component
class MeasuredScores(ScoreSource):
    """Evaluate the candidates on the select split: `Run.select` (runs/run.py) makes the table, in `measure`."""

    published = False

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        return measure()


@component
class TableScores(ScoreSource):
    """Published score table: all of its rows inform the correlations, the candidates' rows give the experts."""

    path: str

    published = True

    @property
    def models(self) -> Names:
        return read_table(expanded(self.path)).models

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """The table with these `candidates`; its other rows only inform the correlations.

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
    header = rows[0]
    body = rows[1:]
    if header[0].lower() != "model" or len(header) < 2:
        raise UserError(
            f"{path}:1: the header must be `model,<category>,...`, not `{','.join(header)[:80]}`"
        )
    _check_names(header[1:], f"{path}:1: column")
    _check_names([row[0] for row in body], f"{path}: model")
    values = np.empty((len(body), len(header) - 1))
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise UserError(
                f"{path}:{line}: {len(row)} cells, but the header has {len(header)} columns"
            )
        values[line - 2] = [
            _number(cell, f"{path}:{line}: column {name!r}")
            for name, cell in zip(header[1:], row[1:], strict=True)
        ]
    scale = 100.0 if values.max() > 1 else 1.0
    models = tuple(row[0] for row in body)
    return ScoreMatrix(
        models=models, categories=tuple(header[1:]), values=values / scale, published=True
    )


def _read_rows(path: Path) -> list[list[str]]:
    """The cells of every row that is not empty, the header first (UserError unless a row follows the header)."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: scores=logs reads a folder with one log per model")
    try:
        with regular(path).open(newline="", encoding="utf-8-sig") as stream:
            rows = []
            for cells in csv.reader(stream):
                row = [cell.strip() for cell in cells]
                if any(row):
                    rows.append(row)
    except FileNotFoundError:
        raise UserError(f"{path}: no such score table: check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a score table: {error}") from error
    if len(rows) < 2:
        raise UserError(
            f"{path}: a score table needs a header `model,<category>,...` and at least one row"
        )
    return rows


def _check_names(names: Sequence[str], what: str) -> None:
    """Refuse empty names and names that appear twice (UserError); `what` begins the message."""
    for name in names:
        if not name:
            raise UserError(f"{what} '' has no name")
        if names.count(name) > 1:
            raise UserError(f"{what} {name!r} appears twice")


def _number(cell: str, where: str) -> float:
    """The score in a cell, in percent or as a fraction (UserError if it is not a score)."""
    try:
        value = float(cell)
    except ValueError:
        # Not a number, so refused by the range below.
        value = math.nan
    if not 0 <= value <= 100:
        raise UserError(f"{where} holds {cell!r}, not a score from 0 to 100")
    return value


def value(objective: Objective, scores: Mapping[str, float]) -> float:
    """The objective of category scores (fractions of 1)."""
    return float(objective.value(np.array(list(scores.values())), list(scores)))


def value_of(
    objective: Objective, categories: Sequence[str]
) -> Callable[[FloatArray], FloatArray] | None:
    """Function of category means [..., C] if the objective is not linear, else None."""
    if objective.linear:
        return None
    return lambda means: objective.value(means, categories)


@component
class Mean(Objective):
    """Plain mean over categories."""

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        return np.full(len(categories), 1.0 / len(categories))


@component
class WorstCategory(Objective):
    """Lowest of the category means. "Better" is claimed only of a soup that is better in every category."""

    linear = False

    @property
    def name(self) -> str:
        return "worst_category"

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        """Equal weights: they only say how much an item counts, not what is maximised."""
        return Mean().coefficients(categories)

    def value(self, means: FloatArray, categories: Sequence[str]) -> FloatArray:
        return np.asarray(means.min(-1))


@component
class Weighted(Objective):
    """Mean over categories with given weights; categories not named weigh nothing."""

    category_weights: dict[str, float]

    def __post_init__(self) -> None:
        if (
            not self.category_weights
            or min(self.category_weights.values()) < 0
            or sum(self.category_weights.values()) <= 0
        ):
            raise UserError(
                "objective.category_weights needs {category: weight} with weights >= 0 and one above 0"
            )

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        _check_known(self.category_weights, categories)
        raw: FloatArray = np.array([float(self.category_weights.get(c, 0.0)) for c in categories])
        total: float = raw.sum()
        return raw / total


@component
class Tree(Objective):
    """Mean of group means, as deep as the tree: {non_live: [simple, multiple], live: [live_simple]}.

    A node is a category's name, a list of nodes or a mapping of names to nodes; a node's value is the mean of its
    children, as BFCL's overall accuracy is.
    """

    # The configuration is checked against this annotation, which cannot recurse.
    tree: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tree or not self._leaves(self.tree):
            raise UserError(
                "objective.tree needs at least one category, e.g. objective.tree={group:[category]}"
            )

    def coefficients(self, categories: Sequence[str]) -> FloatArray:
        leaves = self._leaves(self.tree)
        _check_known(leaves, categories)
        return np.array([leaves.get(c, 0.0) for c in categories])

    @property
    def groups(self) -> dict[str, Names]:
        """{name of a node: the categories below it}"""
        return dict(self._groups(self.tree))

    def _groups(self, node: Json) -> Iterator[tuple[str, Names]]:
        """(name, categories) of every named node below this node."""
        if isinstance(node, Mapping):
            for name, child in node.items():
                yield str(name), tuple(self._leaves(child))
                yield from self._groups(child)
        elif isinstance(node, Sequence) and not isinstance(node, str):
            for child in node:
                yield from self._groups(child)

    def _leaves(self, node: Json, share: float = 1.0) -> dict[str, float]:
        """{category: its weight} below a node that has the weight `share`."""
        if isinstance(node, str):
            return {node: share}
        children = list[Json]()
        if isinstance(node, Mapping):
            children += node.values()
        elif isinstance(node, Sequence):
            children += node
        if not children:
            raise UserError(
                "objective.tree has an empty group: name its categories, or leave it out"
            )
        leaves: dict[str, float] = {}
        for child in children:
            for name, weight in self._leaves(child, share / len(children)).items():
                # A category may be in several groups.
                leaves[name] = leaves.get(name, 0.0) + weight
        return leaves


def _check_known(names: Mapping[str, float], categories: Sequence[str]) -> None:
    """Refuse names that are not categories (UserError)."""
    for name in names:
        pick(name, categories, "objective: category")
