"""Published figures of arXiv 2511.13254v1: the CSV files in this folder."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from souping.core.scores import read_table
from souping.core.types import FloatArray, Names, ScoreMatrix, frozen

DATA = Path(__file__).resolve().parent
CORRUPT = "eng_spa"
"""For the five candidates this column of FLORES-36 repeats spa_eng."""


def published(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of published figures."""
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@frozen
class PaperTable:
    """Score table from which the paper's selection can be recomputed; without `benchmark` the paper names no choice."""

    title: str
    file: str  # a CSV file of this folder
    benchmark: str = ""  # its name in results.csv, and the size of its models there
    scale: str = ""

    @property
    def scores(self) -> ScoreMatrix:
        """The scores of the models by category."""
        return read_table(DATA / self.file)

    @property
    def chosen(self) -> Names:
        """The models that the paper selected, in the order of the score table; empty if the paper does not say."""
        rows = published_results(self.benchmark, self.scale)
        return tuple(
            name for name in self.scores.models if rows.get(name, {}).get("role") == "ingredient"
        )

    @property
    def command(self) -> str:
        """The same selection by the stated rule through the command line."""
        return (
            f"python -m souping scores=table 'scores.path=${{data:paper/{self.file}}}' stop_after=select "
            f"pool.candidates='[{','.join(self.scores.models)}]'"
        )


PAPER_TABLES = (
    PaperTable(title="Table 1a, BFCL 70B", file="bfcl_70b.csv", benchmark="bfcl_v3", scale="70b"),
    PaperTable(title="Table 1b, BFCL 8B", file="bfcl_8b.csv", benchmark="bfcl_v3", scale="8b"),
    PaperTable(title="Table 2a, MGSM 7B", file="mgsm.csv", benchmark="mgsm", scale="7b"),
    PaperTable(title="Table 5, FLORES-36", file="flores36_selection.csv"),
)


def published_results(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    """{row: its line} of results.csv for one benchmark and size of models; a row is a model or a kind of soup."""
    rows = published("results.csv")
    return {
        row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)
    }


def totals(benchmark: str, scale: str) -> dict[str, float]:
    """{row: score in percent} of the rows of `published_results`, and of the row `best candidate`."""
    rows = published_results(benchmark, scale)
    scores = {name: float(row["score"]) for name, row in rows.items()}
    candidates = [name for name in rows if rows[name]["role"] in ("ingredient", "candidate")]
    return {**scores, "best candidate": max(scores[name] for name in candidates)}


def recipes() -> dict[str, dict[str, float]]:
    """{experiment: {model: weight}} of the published soups."""
    weights: dict[str, dict[str, float]] = {}
    for row in published("recipes.csv"):
        weights.setdefault(row["experiment"], {})[row["model"]] = float(row["weight"])
    return weights


def leaderboard() -> ScoreMatrix:
    """The rows of the leaderboard that the paper prints: its 70B and then its 8B candidates."""
    large = PAPER_TABLES[0].scores
    small = PAPER_TABLES[1].scores
    return ScoreMatrix(
        models=large.models + small.models,
        categories=large.categories,
        values=np.vstack([large.values, small.values]),
        published=True,
    )


def columns(*names: str) -> dict[str, FloatArray]:
    """{model: its numbers} of published tables, one model per row, in the order of the columns."""
    values = {}
    for name in names:
        for row in published(name):
            model = row.pop("model")
            values[model] = np.array([float(value) for value in row.values()])
    return values


def flores() -> dict[str, FloatArray]:
    """{model: BLEU of the 36 directions}, the soup last."""
    return columns("flores36.csv", "flores36_soce.csv")


def directions() -> list[str]:
    """Names of the 36 directions of translation, in the order of `flores`."""
    return [name for name in published("flores36_soce.csv")[0] if name != "model"]
