"""Tables and sections on a terminal, and sections on their own as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from souping.core.text import fitted
from souping.core.types import elements, part, texts
from souping.report import render
from souping.report.format import DASH, brackets, clean, escape_markdown, level, p_of, weight
from souping.report.registry import leading
from souping.report.sections import headline, losses
from souping.report.tables import Report, Row, Section, TableGrid, compared, gate, narrow, once, sentences, widened

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

ROLES: Mapping[str, str] = {
    "soup": "soup",
    "uniform_selected": "uniform selected",
    "uniform_topk": "uniform top K",
    "uniform_all": "uniform all",
    "best_single": "best single",
    "ingredient": "ingredient",
    "candidate": "not selected",
}
"""Kinds in few letters: a terminal may have 80 columns."""


def report_table(report: Report) -> Table:
    """Rows with objective and interval, and the soup's paired difference to each; a selection if there are no rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    told = [headline(report), *losses(report), widened(report), clean(leading(report)[1].get("headline"))]
    caption = Text("\n").join(Text(line, style="" if i else "bold") for i, line in enumerate(filter(None, told)))
    made = Table(box=SIMPLE_HEAD, caption=caption, caption_style="", caption_justify="left")
    rows = once(report)
    if not rows:
        return _selected(report, made)
    pairs = {str(part(pair, "row").get("name")): pair for pair in compared(report)}
    width = level(next(iter(pairs.values()), {}))
    columns: tuple[tuple[str, JustifyMethod], ...] = (
        ("model", "left"),
        ("score %", "right"),
        ("soup minus it" if width == "95 %" else f"soup minus it ({width})", "right"),
        ("p", "right"),
    )
    for name, side in columns:
        made.add_column(name, justify=side, overflow="fold", no_wrap=side == "right")
    for row in rows:
        cells = [_model(row), brackets(row.get("objective")), *_difference(pairs.get(str(row.get("name"))))]
        made.add_row(*(Text(cell) for cell in cells), style="bold" if row.get("kind") == "soup" else None)
    return made


def gate_table(report: Report) -> Table:
    """Figures of the baseline gate, a line each."""
    return plain_table(gate(report))


def also_table(report: Report) -> Table:
    """The other benchmarks: the soup, its ingredients and the paired differences."""
    from rich.text import Text

    made = plain_table(narrow(report))
    made.caption, made.caption_style, made.caption_justify = Text("\n".join(map(clean, sentences(report)))), "", "left"
    return made


def plain_table(grid: TableGrid) -> Table:
    """Any of the report's tables, for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD)
    for number, name in enumerate(grid.header):
        made.add_column(clean(name), justify="left" if number in grid.left else "right", overflow="fold")
    for number, row in enumerate(grid.rows):
        cells = (Text(clean(f"{cell.text} [{cell.sub}]" if cell.sub else cell.text)) for cell in row)
        made.add_row(*cells, style="bold" if number in grid.strong else None)
    return made


def _model(row: Row) -> str:
    """`dog, best single, ingredient`; rows that are named after their role say it once."""
    roles = [ROLES.get(kind, clean(kind)) for kind in texts(row, "roles")]
    return ", ".join(roles if row.get("name") == row.get("kind") else [clean(row.get("name")), *roles])


def _difference(pair: Row | None) -> list[str]:
    return ["", ""] if pair is None else [brackets(pair, sign=True), p_of(pair)]


def _selected(report: Report, made: Table) -> Table:
    """Ingredients with the categories they are the experts of, and their weight where the search ran."""
    from rich.text import Text

    selection, recipe = part(report, "selection"), part(report, "recipe")
    weights = dict(zip(texts(recipe, "ingredients"), elements(recipe, "weights"), strict=False))
    for name in ("ingredient", "expert of", "weight"):
        made.add_column(name, overflow="fold")
    for name in texts(selection, "ingredients"):
        owned = [category for category, expert in part(selection, "experts").items() if expert == name]
        shown = weight(weights.get(name, 0.0)) if weights else DASH
        made.add_row(Text(clean(name)), Text(", ".join(map(clean, owned))), Text(shown))
    return made


def print_table(console: Console, table: Table, cut: bool = False) -> None:
    """Print a table, its columns made narrower between words only; a line a row where even that is too wide. With
    `cut` words longer than a column's even share are cut."""
    from rich.text import Text

    columns = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    least = [
        width if column.no_wrap else max(len(word) for cell in cells for word in [*cell.split(), ""])
        for column, cells, width in zip(table.columns, columns, widths, strict=True)
    ]
    room = console.width - 3 * len(widths) - 1  # a column has a blank on either side, and one before the next
    if cut:
        least = [min(width, room // len(widths)) for width in least]
    while sum(widths) > room and widths != least:
        loosest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[loosest] -= 1
    if sum(widths) <= room:
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
        console.print(table)
        return
    heads, *rows = zip(*columns, strict=True)
    for row in rows:
        told = ", ".join(f"{head}: {cell}" if head else cell for head, cell in zip(heads, row, strict=True) if cell)
        console.print(Text(fitted(f"  {told}", console.width)), soft_wrap=True)
    console.print(table.caption or "")


def output_console(width: int = 110) -> Console:
    """Standard output, of this width where it is no terminal."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=width)


def sheet_markdown(title: str, sections: Sequence[Section]) -> str:
    """A Markdown document of sections."""
    blocks = [f"# {escape_markdown(title)}", *(block for section in sections for block in render.section(section))]
    return "\n\n".join(blocks) + "\n"


def show_sheet(sections: Sequence[Section]) -> None:
    """The same on standard output."""
    from rich.padding import Padding
    from rich.text import Text

    out = output_console(120)
    for section in sections:
        out.print(Text(section.title, style="bold"))
        for line in section.lines:
            out.print(Padding(Text(clean(line)), (0, 0, 0, 2)))
        for grid in section.grids:
            print_table(out, plain_table(grid))
        if not section.grids:
            out.print()
