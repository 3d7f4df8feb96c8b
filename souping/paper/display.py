"""How the analysis `paper` is shown: what disagrees, then every table and figure, folded away."""

from __future__ import annotations

from functools import partial

import numpy as np

from souping.core.types import elements, entries, number, part, texts
from souping.report.drawing import COLOURS, INK, PAPER, Drawing, canvas, figure
from souping.report.format import DASH, clean, count, in_words, rho
from souping.report.plots import correlations
from souping.report.registry import register
from souping.report.tables import Row, Section, TableGrid, grid, known, table

TITLES = {"Table 5": "gains on FLORES-36, BLEU", "Figure 3b": "gains on MGSM, points"}


def section(data: Row) -> Section:
    told = {verdict: _of(data, verdict) for verdict in ("differs", "agrees", "cannot be redone")}
    folded = (
        table("What agrees", _findings(told["agrees"])),
        table("What cannot be redone here", _findings(told["cannot be redone"])),
        Section("Figure 1: categories of the leaderboard", (_board(data),), "figure1"),
        *(_selection(one) for one in entries(data, "selections")),
        *(Section(f"{of}: {TITLES[of]}", (_gains(data, of),), _picture(of)) for of in TITLES),
    )
    lines = tuple(clean(line) for line in texts(data, "sentences"))
    return Section("What disagrees", lines, grids=(_findings(told["differs"]),), folded=known(folded))


def _of(data: Row, verdict: str) -> list[Row]:
    return [row for row in entries(data, "findings") if row.get("verdict") == verdict]


def _findings(rows: list[Row]) -> TableGrid:
    lines = [
        (
            f"{clean(row.get('of'))}: {clean(row.get('what'))}",
            *(clean(row.get(k)) or DASH for k in ("paper", "ours", "note")),
        )
        for row in rows
    ]
    return grid(("where", "the paper", "here", "remark"), lines, left=range(4))


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


def _gains(data: Row, of: str) -> str:
    """Where SoCE is above the best candidate, and what is left out."""
    rows = entries(part(data, "gains"), of)
    won = sum(_gain(row) > 0 for row in rows)
    lost = [clean(row.get("category")) for row in rows if _gain(row) < 0]
    out = " The column eng_spa is left out: for the candidates it repeats spa_eng." if of == "Table 5" else ""
    return f"SoCE is above the best candidate in {won} of {len(rows)} columns, below it in {in_words(lost)}.{out}"


def _picture(of: str) -> str:
    return of.lower().replace(" ", "")


def _gain(row: Row) -> float:
    """SoCE minus the best candidate of a direction, BLEU."""
    return (number(row.get("soce")) or 0.0) - max(_candidates(row))


def _candidates(row: Row) -> list[float]:
    return [number(value) or 0.0 for value in elements(row, "candidates")]


def figure1(data: Row) -> Drawing | None:
    return correlations("figure1", part(data, "figure1"), (), "")


def gains(data: Row, of: str) -> Drawing | None:
    """SoCE minus each candidate, a column a direction or language; the best candidate is full."""
    rows = sorted(entries(part(data, "gains"), of), key=_gain)
    if not rows:
        return None
    with canvas():
        made, axes = figure(max(4.2, 0.26 * len(rows)), 3.2)
        axes.axhline(0, color=INK, linewidth=1.0)
        for x, row in enumerate(rows):
            gaps = sorted((number(row.get("soce")) or 0.0) - value for value in _candidates(row))
            axes.plot([x] * len(gaps), gaps, "o", color=COLOURS["ingredient"], markersize=3.5, markerfacecolor=PAPER)
            axes.plot([x], gaps[:1], "o", color=COLOURS["soup" if gaps[0] > 0 else "best_single"], markersize=5.5)
        axes.set_xticks(np.arange(len(rows)), [clean(row.get("category")) for row in rows], rotation=90, fontsize=7.5)
        axes.set_ylabel("SoCE minus candidate")
        axes.margins(x=0.02)
    alt = f"{of}: SoCE minus each candidate. {_gains(data, of)}"
    caption = "Full dot: the best candidate of the column; orange where SoCE is above it, blue where it is not."
    return Drawing(_picture(of), made, alt, caption)


register("paper", section, (figure1, *(partial(gains, of=of) for of in TITLES)), place=0)
