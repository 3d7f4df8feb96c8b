"""How the analysis `shapley` is shown: bars of what each model, pair and triplet adds, and how models interact."""

from __future__ import annotations

from collections.abc import Sequence

from souping.core.types import Json, elements, entries, number, part, texts
from souping.report.drawing import COLOURS, INK, Drawing, canvas, figure
from souping.report.format import clean, count, in_words, interval, percent, short
from souping.report.registry import register
from souping.report.tables import Row, Section, TableCell, TableGrid, grid

COLOUR = {1: COLOURS["soup"], 2: COLOURS["best_single"], 3: COLOURS["uniform_selected"]}
WORTH = {
    "uniform": "the uniform soup of its members",
    "winner": "the base model with its members' part of the winner's weights",
}


def section(data: Row) -> Section:
    empty, levels = part(data, "empty"), entries(data, "levels")
    soup = WORTH.get(clean(data.get("value")), clean(data.get("value")))
    head = (
        f"What each adds to the others on the search fold, in points, on the average over all orders of joining: a "
        f"coalition is worth the score of {soup}. The values of a table sum to v(all) {percent(data.get('whole'))} "
        f"less v(nobody) {percent(empty.get('value'))}, the score of {clean(empty.get('of'))}; another v(nobody) would "
        "shift all values of a table alike. The search fold chose the weights: this explains the soup, and proves "
        "nothing."
    )
    drawn = [level for level in levels if clean(level.get("method")) == "permutations"]
    note = (
        f"{in_words([level.get('kind') for level in drawn])}: from {count(drawn[0].get('orders'))} drawn orders, with "
        "standard errors of the draw."
        if drawn
        else ""
    )
    grids = [(clean(level.get("kind")).capitalize(), _table(level)) for level in levels]
    folded = [Section(title, grids=(table,)) for title, table in grids[1:]]
    if entries(data, "interactions"):
        folded.append(Section("Interactions", (_INTERACT,), grids=(_interactions(data),)))
    if levels:
        folded.append(Section("Category by category", grids=(_categories(levels[0]),)))
    shown = tuple(table for _, table in grids[:1])
    lines = tuple(filter(None, (head, note)))
    return Section("Who adds what? Shapley values", lines, "shapley", shown, tuple(folded))


_INTERACT = (
    "Shapley interaction index, points: above 0 models are worth more together than one by one, below 0 they stand for "
    "one another."
)


def _name(members: Sequence[Json]) -> str:
    return " + ".join(clean(name) for name in members)


def _table(level: Row) -> TableGrid:
    rows = entries(level, "players")
    drawn = any(number(row.get("standard_error")) is not None for row in rows)
    lines: list[list[str | TableCell]] = [
        [_name(elements(row, "members")), _value(row), *([percent(row.get("standard_error"))] if drawn else [])]
        for row in rows
    ]
    header = (clean(level.get("kind")), "Shapley value", *(["standard error of the orders"] if drawn else []))
    return grid(header, lines)


def _value(row: Row) -> TableCell:
    return TableCell(percent(row.get("value"), sign=True), interval(row.get("low"), row.get("high"), sign=True))


def _interactions(data: Row) -> TableGrid:
    lines: list[list[str | TableCell]] = [
        [_name(elements(row, "members")), _value(row)] for row in entries(data, "interactions")
    ]
    return grid(("models", "interaction"), lines)


def _categories(level: Row) -> TableGrid:
    rows = entries(level, "players")
    names = list(part(rows[0], "categories")) if rows else []
    lines = [(clean(name), *(percent(part(row, "categories").get(name), sign=True) for row in rows)) for name in names]
    return grid(("category", *(_name(elements(row, "members")) for row in rows)), lines)


def draw(data: Row) -> Drawing | None:
    """A bar a player with its interval over items, size by size."""
    from matplotlib.patches import Patch

    levels = [level for level in entries(data, "levels") if len(entries(level, "players")) > 1]
    rows = [(int(number(level.get("size")) or 1), row) for level in levels for row in _best(level)]
    if not rows:
        return None
    titles: dict[str, str] = {}
    with canvas():
        made, axes = figure(8.6, 1.0 + 0.27 * len(rows))
        for y, (size, row) in enumerate(rows):
            value = 100 * (number(row.get("value")) or 0.0)
            axes.barh(y, value, height=0.72, color=COLOUR[size])[0].set_gid(f"player{y}")
            ends = [number(row.get("low")), number(row.get("high"))]
            if None not in ends:
                axes.plot([100 * (end or 0.0) for end in ends], [y, y], color=INK, linewidth=1.1)
            around = interval(row.get("low"), row.get("high"), sign=True)
            titles[f"player{y}"] = f"{_name(texts(row, 'members'))}: {percent(row.get('value'), sign=True)} ({around})"
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [short(_name(texts(row, "members")), 48) for _, row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("Shapley value, points on the search fold (95 % interval over items)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        kinds = {int(number(level.get("size")) or 1): clean(level.get("kind")) for level in levels}
        handles = [Patch(color=COLOUR[size], label=kind) for size, kind in kinds.items()]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handlelength=1.0)
    alt = "Bars of Shapley values: " + "; ".join(list(titles.values())[:20])
    return Drawing("shapley", made, alt, "", titles)


def _best(level: Row, limit: int = 10) -> list[Row]:
    """The players of a size in their order; of many, those worth most."""
    rows = entries(level, "players")
    return rows if len(rows) <= limit else sorted(rows, key=lambda row: -(number(row.get("value")) or 0.0))[:limit]


register("shapley", section, draw, place=2)
