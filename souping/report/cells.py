"""Sections and tables as plain cells, and as Markdown: every page, card and terminal is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from souping.report.format import escape_markdown


@dataclass(frozen=True)
class TableCell:
    """Text of a cell; `sub` is the smaller print beside it."""

    text: str
    sub: str = ""


@dataclass(frozen=True)
class TableGrid:
    """Table of `header` and `rows`: `strong` are the indices of rows to stress, `left` of left-aligned columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """Heading with sentences, a picture (by its name), tables, a command, and sections that are folded away."""

    title: str
    lines: tuple[str, ...] = ()
    picture: str = ""
    grids: tuple[TableGrid, ...] = ()
    folded: tuple[Section, ...] = ()
    code: str = ""

    @property
    def anchor(self) -> str:
        """The heading's id, to which a link `#id` leads, as GitHub derives it from the title."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def nonempty(sections: Iterable[Section | None]) -> tuple[Section, ...]:
    """The sections that show anything besides a title or a command."""
    content = []
    for section in sections:
        if section and (section.lines or section.picture or section.grids or section.folded):
            content.append(section)
    return tuple(content)


def table(title: str, grid: TableGrid, *lines: str) -> Section | None:
    """A section of one table; None if the table has no rows."""
    if not grid.rows:
        return None
    return Section(title, lines, grids=(grid,))


def grid(
    header: Sequence[str],
    rows: Iterable[Iterable[str | TableCell]],
    left: Sequence[int] = (0,),
    strong: Iterable[int] = (),
) -> TableGrid:
    """A table from rows of plain strings or cells; `strong` are indices of rows, `left` of columns."""
    return TableGrid(
        header=tuple(header),
        rows=tuple(tuple(map(_cell, row)) for row in rows),
        left=frozenset(left),
        strong=frozenset(strong),
    )


def _cell(content: str | TableCell) -> TableCell:
    return content if isinstance(content, TableCell) else TableCell(content)


def fenced(code: str, language: str = "bash") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_table(grid: TableGrid) -> str:
    """A pipe table; numbers set right, stressed rows bold."""
    marks = ["---" if i in grid.left else "---:" for i in range(len(grid.header))]
    lines = [_line([*map(escape_markdown, grid.header)]), _line(marks)]
    for number, row in enumerate(grid.rows):
        strong = number in grid.strong
        lines.append(_line([_markdown_cell(cell, strong) for cell in row]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: TableCell, strong: bool) -> str:
    """`text (smaller print)`, the text bold if `strong`."""
    text = escape_markdown(cell.text)
    if strong and text:
        text = f"**{text}**"
    if cell.sub:
        text += f" ({escape_markdown(cell.sub)})"
    return text
