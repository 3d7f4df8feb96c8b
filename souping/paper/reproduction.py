"""Analysis `paper`: the paper's tables and figures, recomputed from published figures and compared with its numbers.

The published figures are the CSV files of this package. What the paper shows of its soups, the other analyses show of
the run's: other models, so the numbers differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from souping.analysis import Analysis, RunScores
from souping.analysis.correlation import pearson
from souping.core.text import DASH
from souping.core.types import JsonObject, ScoreMatrix, elements, entries, frozen, part, texts
from souping.paper.findings import TABLES, findings, leaderboard, selections
from souping.report.format import clean, count, in_words
from souping.report.plots import Drawing, correlations
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, TableGrid, around, grid, nonempty, table

SENTENCES = (
    "Of the paper's selections, only that of 8B follows from the stated rule (|rho| < 0.2 by Pearson, ties to the "
    "better overall). At 70B the rule adds a fourth expert; on MGSM it picks one expert for everything.",
    "Figures 2, 3, 5 and 6 and Appendices B and D need the paper's soups. The sections on categories, gains, parents, "
    "Shapley values and ingredients show the same for the soups of this run, which are other models.",
)


@frozen
class PaperFigures(Analysis):
    """The paper's numbers beside ours."""

    def analyse(self, run: RunScores) -> JsonObject:
        found = findings()
        verdicts = Counter(one.verdict for one in found)
        whole = verdicts["agrees"] + verdicts["differs"]
        head = f"{verdicts['agrees']} of {whole} figures of arXiv 2511.13254v1 follow from its published figures."
        return {
            "sentences": [head, *SENTENCES],
            "findings": [asdict(one) for one in found],
            "figure1": _figure1(leaderboard()),
            "selections": [selections(table) for table in TABLES],
        }


def _figure1(board: ScoreMatrix) -> JsonObject:
    matrix = pearson(board.values).rho.tolist()
    return {"models": list(board.models), "categories": list(board.categories), "matrix": matrix}


# How it is shown: what disagrees, then every table and figure, folded away.


def section(data: Row) -> Section:
    verdicts = ("differs", "agrees", "cannot be redone")
    differs, agrees, missing = (_findings([row for row in entries(data, "findings") if row.get("verdict") == verdict])
                                for verdict in verdicts)  # fmt: skip
    board = part(data, "figure1")
    models = texts(board, "models")
    categories = count(len(texts(board, "categories")))
    who = in_words(models) if len(models) < 12 else f"{count(len(models))} models"
    first = f"Pearson correlation of {categories} categories over {who}."
    folded = (
        table("What agrees", agrees),
        table("What cannot be redone here", missing),
        Section("Figure 1: categories of the leaderboard", (first,), "figure1"),
        *map(_selection, entries(data, "selections")),
    )
    lines = tuple(map(clean, texts(data, "sentences")))
    return Section("The paper: what disagrees", lines, grids=(differs,), folded=nonempty(folded))


def _findings(rows: Sequence[Row]) -> TableGrid:
    lines = [
        (
            f"{clean(row.get('of'))}: {clean(row.get('what'))}",
            *(clean(row.get(k)) or DASH for k in ("paper", "ours", "note")),
        )
        for row in rows
    ]
    return grid(("where", "the paper", "here", "remark"), lines, left=range(4))


def _selection(found: Row) -> Section:
    """One table's selection: readings of the rule, and what every threshold gives."""
    paper = texts(found, "paper")
    header = ("ingredients", "beside the paper")
    lines = (
        f"The paper chose {in_words(paper)}." if paper else "The paper does not say what it chose.",
        f"The stated rule chooses {in_words(texts(found, 'stated'))}.",
        *map(clean, elements(found, "notes")),
    )
    readings = [
        ("; ".join(texts(row, "rules")), *_chosen(row)) for row in entries(found, "readings")
    ]
    spans = [
        (around(row.get("above"), row.get("to")), *_chosen(row))
        for row in entries(found, "thresholds")
    ]
    shown = grid(("reading", *header), readings, left=(0, 1, 2))
    more = table("Thresholds", grid(("|rho| below", *header), spans, left=(0, 1, 2)))
    title = f"{clean(found.get('title'))}: selection"
    command = clean(found.get("command"))
    return Section(title, lines, grids=(shown,), folded=nonempty((more,)), code=command)


def _chosen(row: Row) -> tuple[str, str]:
    return in_words(texts(row, "ingredients")) or DASH, clean(row.get("beside")) or DASH


def figure1(data: Row) -> Drawing | None:
    return correlations("figure1", part(data, "figure1"), (), "")


DISPLAYS["paper"] = Display(section, (figure1,), place=0)
