"""Figures that arXiv 2511.13254v1 and its sources print: the CSV files in this folder, and leaderboards by path."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from souping.core.fields import text_of
from souping.core.files import expanded
from souping.core.scores import read_table
from souping.core.types import FloatArray, ScoreMatrix, UserError

DATA = Path(__file__).resolve().parent
ASIDE = ("rank", "overall", "cost", "latency", "link", "organization", "license")
"""Words in the names of leaderboard columns that do not hold scores of a category."""


def published(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of published figures."""
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Score table from which the paper's selection can be recomputed; without `benchmark` the paper names no choice."""

    title: str
    file: str
    benchmark: str = ""
    scale: str = ""

    @property
    def scores(self) -> ScoreMatrix:
        return read_table(DATA / self.file)

    @property
    def chosen(self) -> tuple[str, ...]:
        """What the paper selected, in the order of the score table."""
        rows = results(self.benchmark, self.scale)
        return tuple(name for name in self.scores.models if rows.get(name, {}).get("role") == "ingredient")

    @property
    def command(self) -> str:
        """The same selection by the stated rule through the command line."""
        return (
            f"python -m souping scores=table 'scores.path=${{data:paper/{self.file}}}' stop_after=select "
            f"pool.candidates='[{','.join(self.scores.models)}]'"
        )


TABLES = (
    PaperTable(title="Table 1a, BFCL 70B", file="bfcl_70b.csv", benchmark="bfcl_v3", scale="70b"),
    PaperTable(title="Table 1b, BFCL 8B", file="bfcl_8b.csv", benchmark="bfcl_v3", scale="8b"),
    PaperTable(title="Table 2a, MGSM 7B", file="mgsm.csv", benchmark="mgsm", scale="7b"),
    PaperTable(title="Table 5, FLORES-36", file="flores36_selection.csv"),
)


def results(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    """{row: its line of results.csv}."""
    rows = published("results.csv")
    return {row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)}


def totals(benchmark: str, scale: str) -> dict[str, float]:
    """{row: percent} of a benchmark in results.csv, with its `best candidate`."""
    rows = results(benchmark, scale)
    single = [float(row["score"]) for row in rows.values() if row["role"] in ("ingredient", "candidate")]
    return {**{name: float(row["score"]) for name, row in rows.items()}, "best candidate": max(single)}


def recipes() -> dict[str, dict[str, float]]:
    """{experiment: {model: weight}} as published."""
    found: dict[str, dict[str, float]] = {}
    for row in published("recipes.csv"):
        found.setdefault(row["experiment"], {})[row["model"]] = float(row["weight"])
    return found


def leaderboard(path: str | None) -> ScoreMatrix:
    """Scores of many models: a leaderboard's own CSV (percent signs, N/A and columns of other things allowed), or the
    shipped rows of the 8B and the 70B candidates.

    Models with a score missing are left out.

    Raises:
        UserError: there is no column `model`, or fewer than three models or two columns of scores are left.
    """
    if path is None:
        parts = [table.scores for table in TABLES[:2]]
        names = tuple(name for part in parts for name in part.models)
        values = np.vstack([part.values for part in parts])
        return ScoreMatrix(models=names, categories=parts[0].categories, values=values, published=True)
    return _from_csv(expanded(path))


def _from_csv(path: Path) -> ScoreMatrix:
    rows = [row for row in csv.reader(io.StringIO(text_of(path).removeprefix("\ufeff"), newline="")) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    names = [header.index(cell) for cell in header if cell.lower() == "model"]
    if not names:
        raise UserError(f"{path}:1: a leaderboard needs a column `model`")
    body = [row for row in rows[1:] if len(row) == len(header)]
    numbers = np.array([[_percent(cell) for cell in row] for row in body]).reshape(len(body), len(header))
    labels = [_column(name) for name in header]
    kept = [c for c, name in enumerate(labels) if labels.index(name) == c and _is_score(name, numbers[:, c])]
    whole = np.isfinite(numbers[:, kept]).all(axis=1)
    if whole.sum() < 3 or len(kept) < 2:
        raise UserError(f"{path}: {whole.sum()} models with {len(kept)} scores each: it takes 3 models and 2 scores")
    models = [row[names[0]].strip() for row, use in zip(body, whole, strict=True) if use]
    unique = [name if name not in models[:at] else f"{name} ({at + 1})" for at, name in enumerate(models)]
    values = numbers[whole][:, kept] / 100
    return ScoreMatrix(models=tuple(unique), categories=tuple(labels[c] for c in kept), values=values, published=True)


def _percent(cell: str) -> float:
    try:
        return float(cell.strip().rstrip("%"))
    except ValueError:
        return np.nan


def _is_score(name: str, values: FloatArray) -> bool:
    """Whether a column holds scores: its name is none of other things, and most of its cells are from 0 to 100."""
    known = [value for value in values if np.isfinite(value)]
    other = any(word in name.split("_") for word in ASIDE)
    return not other and 2 * len(known) > len(values) and all(0 <= value <= 100 for value in known)


def _column(name: str) -> str:
    """`Multi Turn Base` -> `multi_turn_base`; `Live Acc` -> `live`, the mean of a group."""
    words = name.replace("-", " ").replace("_", " ").lower().split()
    return "_".join(word for word in words if word not in ("acc", "ast")) or name
