"""How the analysis `paper` is shown: what disagrees, then every table and figure, folded away."""

from __future__ import annotations

import numpy as np

from souping.core.types import elements, entries, number, part, texts
from souping.report.drawing import COLOURS, INK, PAPER, Drawing, canvas, figure
from souping.report.format import DASH, clean, count, in_words, rho
from souping.report.plots import correlations
from souping.report.registry import register
from souping.report.tables import Row, Section, TableGrid, grid, known, table


def section(data: Row) -> Section:
    told = {verdict: _of(data, verdict) for verdict in ("differs", "agrees", "other models", "cannot be redone")}
    here = "On other models than the paper's: a likeness, no check."
    folded = (
        table("What agrees", _findings(told["agrees"])),
        table("What cannot be redone here", _findings(told["cannot be redone"])),
        Section("Figure 1: categories of the leaderboard", (_board(data),), "figure1"),
        *(_selection(one) for one in entries(data, "selections")),
        Section("Table 5: gains on FLORES-36", (_flores(data),), "table5"),
    )
    lines = tuple(clean(line) for line in texts(data, "sentences"))
    likeness = table("On the soups of this run", _findings(told["other models"]), here)
    return Section("What disagrees", lines, grids=(_findings(told["differs"]),), folded=known((likeness, *folded)))


def _of(data: Row, verdict: str) -> list[Row]:
    return [row for row in entries(data, "findings") if row.get("verdict") == verdict]


def _findings(rows: list[Row]) -> TableGrid:
    keys = ("of", "what", "paper", "ours", "note")
    lines = [[clean(row.get(key)) or DASH for key in keys] for row in rows]
    return grid(("in the paper", "what", "the paper", "here", "remark"), lines, left=range(5))


def _board(data: Row) -> str:
    board = part(data, "figure1")
    models = texts(board, "models")
    who = in_words(models) if len(models) < 12 else f"{count(len(models))} models"
    return f"Pearson correlation of {count(len(texts(board, 'categories')))} categories over {who}."


def _selection(told: Row) -> Section:
    """One table's selection: readings of the rule, and what every threshold gives."""
    paper = texts(told, "paper")
    lines = [
        f"The paper chose {in_words(paper)}." if paper else "The paper does not say what it chose.",
        f"The stated rule chooses {in_words(texts(told, 'stated'))}.",
        *map(clean, elements(told, "notes")),
    ]
    readings = [
        ("; ".join(texts(row, "rules")), in_words(texts(row, "ingredients")) or DASH, _beside(row))
        for row in entries(told, "readings")
    ]
    spans = [
        (f"{rho(row.get('above'))} to {rho(row.get('to'))}", in_words(texts(row, "ingredients")), _beside(row))
        for row in entries(told, "thresholds")
    ]
    header = ("threshold", "ingredients", "beside the paper")
    return Section(
        f"{clean(told.get('title'))}: selection",
        tuple(lines),
        grids=(grid(("reading", *header[1:]), readings, left=(0, 1, 2)),),
        folded=known(
            (table("Thresholds", grid(("|rho| below", "ingredients", "beside the paper"), spans, (0, 1, 2))),)
        ),
        code=clean(told.get("command")),
    )


def _beside(row: Row) -> str:
    return clean(row.get("beside")) or DASH


def _flores(data: Row) -> str:
    rows = [row for row in entries(data, "flores") if not row.get("corrupt")]
    won = sum(_gain(row) > 0 for row in rows)
    lost = [clean(row.get("direction")) for row in rows if _gain(row) < 0]
    return (
        f"SoCE is above the best of the five candidates in {won} of {len(rows)} directions, below it in "
        f"{in_words(lost)}. The column eng_spa is left out: for the candidates it repeats spa_eng."
    )


def _gain(row: Row) -> float:
    """SoCE minus the best candidate of a direction, BLEU."""
    return (number(row.get("soce")) or 0.0) - max(_candidates(row))


def _candidates(row: Row) -> list[float]:
    return [number(value) or 0.0 for value in elements(row, "candidates")]


def figure1(data: Row) -> Drawing | None:
    return correlations("figure1", part(data, "figure1"), (), "")


def table5(data: Row) -> Drawing | None:
    """SoCE minus each candidate, a column a direction; the best candidate is full."""
    rows = sorted((row for row in entries(data, "flores") if not row.get("corrupt")), key=_gain)
    if not rows:
        return None
    with canvas():
        made, axes = figure(9.4, 3.4)
        axes.axhline(0, color=INK, linewidth=1.0)
        for x, row in enumerate(rows):
            gaps = sorted((number(row.get("soce")) or 0.0) - value for value in _candidates(row))
            axes.plot([x] * len(gaps), gaps, "o", color=COLOURS["ingredient"], markersize=3.5, markerfacecolor=PAPER)
            axes.plot([x], gaps[:1], "o", color=COLOURS["soup" if gaps[0] > 0 else "best_single"], markersize=5.5)
        axes.set_xticks(np.arange(len(rows)), [clean(row.get("direction")) for row in rows], rotation=90, fontsize=7.5)
        axes.set_ylabel("SoCE minus candidate, BLEU")
        axes.margins(x=0.02)
    alt = f"SoCE minus each of five candidates in {len(rows)} directions of FLORES-36. {_flores({'flores': rows})}"
    caption = "Full dot: the best candidate of the direction; orange where SoCE is above it, blue where it is not."
    return Drawing("table5", made, alt, caption)


register("paper", section, draws=(figure1, table5), place=0)
