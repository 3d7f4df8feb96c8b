"""Sections as HTML (one file, readable in light, dark, print and on a phone), as Markdown, and on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from souping.core.text import safe
from souping.report.cells import Section, TableCell, TableGrid, fenced, markdown_table
from souping.report.format import clean, escape_html, escape_markdown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security: the page has its styles and pictures in itself, and loads, runs and sends nothing."""
STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8").strip()
PHONE_CHARS = 38
"""Characters of a table's line for which a phone has room. The cells of a longer one stand below their row's name."""
LONGEST_WORD = 28
"""Characters of a word for which a column on a terminal has room."""


def document(title: str, body: Iterable[str]) -> str:
    """A whole HTML file with the styles of a report; `body` are its blocks of HTML, and empty ones are left out."""
    inner = "\n".join(filter(None, body))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape_html(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{inner}\n</main>\n</body>\n</html>\n"
    )


def section_html(section: Section, pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """A section as HTML. `pictures` are {name: HTML of a figure}; a picture that is not among them is left out."""
    title = f'<h2 id="{section.anchor}">{escape_html(section.title)}</h2>'
    return "\n".join(["<section>", title, *_content(section, pictures), "</section>"])


def _content(section: Section, pictures: Mapping[str, str]) -> list[str]:
    """Blocks of HTML for everything below a section's heading; what is folded away comes last."""
    blocks = [f"<p>{escape_html(line)}</p>" for line in section.lines]
    # The picture and the tables stand side by side if the page is wide enough.
    side_by_side = [*map(_html_table, section.grids)]
    if section.picture in pictures:
        side_by_side.insert(0, pictures[section.picture])
    if side_by_side:
        blocks.append(f'<div class="row">{"".join(side_by_side)}</div>')
    if section.code:
        blocks.append(f'<pre tabindex="0"><code>{escape_html(section.code)}</code></pre>')
    if section.folded:
        folds = "".join(_fold(inner, pictures) for inner in section.folded)
        blocks.append(f'<div class="folds">{folds}</div>')
    return blocks


def _fold(section: Section, pictures: Mapping[str, str]) -> str:
    """A section as HTML that shows its title until it is clicked."""
    inner = "\n".join(_content(section, pictures))
    return f"<details><summary>{escape_html(section.title)}</summary>\n{inner}</details>"


def _heading(name: str, attribute: str) -> str:
    """HTML cell of a column's heading; without a name it is a plain cell, no heading to a screen reader."""
    if not name:
        return f"<td{attribute}></td>"
    return f'<th scope="col"{attribute}>{_breakable(name)}</th>'


def _html_table(grid: TableGrid) -> str:
    """An HTML table that scrolls sideways by itself, its first column fixed."""
    head = "".join(_heading(name, _left(i, grid)) for i, name in enumerate(grid.header))
    body = ""
    for number, row in enumerate(grid.rows):
        mark = " class=strong" if number in grid.strong else ""
        cells = "".join(_html_cell(cell, i, grid) for i, cell in enumerate(row))
        body += f"<tr{mark}>{cells}</tr>\n"
    kinds = []
    # A table of words alone may break its lines.
    if grid.left.issuperset(range(len(grid.header))):
        kinds.append("words")
    if sum(_column_chars(grid, i) for i in range(len(grid.header))) > PHONE_CHARS:
        kinds.append("wide")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table{kind}>{inner}</table></div>'


def _column_chars(grid: TableGrid, column: int) -> int:
    """Characters that a column needs beside the next one: of its longest piece that a browser does not wrap."""
    pieces = re.split(r"[\s_/-]", grid.header[column])
    for row in grid.rows:
        cell = row[column]
        if column in grid.left:
            pieces += re.split(r"[\s_/-]", f"{cell.text} {cell.sub}")
        else:
            # Numbers and their intervals are not wrapped.
            pieces += [cell.text, cell.sub]
    # One for the space between two columns.
    return 1 + max(map(len, pieces))


def _breakable(text: str) -> str:
    """Escaped HTML that a browser may wrap after `_`, `/` and `-` inside words, where a reader expects it."""
    return re.sub(r"(?<=\w)([_/-])(?=\w)", r"\1<wbr>", escape_html(text))


def _left(column: int, grid: TableGrid) -> str:
    """HTML attribute of a cell in a left-aligned column; empty in others."""
    return ' class="left"' if column in grid.left else ""


def _html_cell(cell: TableCell, column: int, grid: TableGrid) -> str:
    """A cell as HTML; in a first column of text it is the heading of its row."""
    inner = _breakable(cell.text)
    if cell.sub:
        inner += f"<small>{escape_html(cell.sub)}</small>"
    if column == 0 and 0 in grid.left:
        return f'<th scope="row">{inner}</th>'
    # A phone shows the column's heading in the cell.
    return f'<td{_left(column, grid)} data-head="{escape_html(grid.header[column])}">{inner}</td>'


def section_markdown(section: Section) -> list[str]:
    """Blocks of Markdown for a section."""
    return [f"## {escape_markdown(section.title)}", *_blocks(section)]


def _blocks(section: Section) -> list[str]:
    """Blocks of Markdown for everything below a section's heading."""
    blocks = list(map(escape_markdown, section.lines))
    if section.picture:
        blocks.append(f"![{section.title}](plots/{section.picture}.png)")
    blocks += map(markdown_table, section.grids)
    if section.code:
        blocks.append(fenced(section.code))
    for inner in section.folded:
        blocks += [
            f"<details><summary>{escape_html(inner.title)}</summary>",
            *_blocks(inner),
            "</details>",
        ]
    return blocks


def plain_table(grid: TableGrid, caption: Sequence[str] = ()) -> Table:
    """Any of the report's tables, for a terminal; the first line of the caption is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    below = [Text(clean(line)) for line in caption if line]
    if below:
        below[0].style = "bold"
    table = Table(
        box=SIMPLE_HEAD, caption=Text("\n").join(below), caption_style="", caption_justify="left"
    )
    rows = [[*map(_plain_cell, row)] for row in grid.rows]
    for row in rows:
        for i in grid.left.intersection(range(len(row))):
            row[i] = _broken(row[i])
    for i, name in enumerate(grid.header):
        # Columns of words may wrap, between words. Columns of numbers do not, unless their heading is the widest.
        is_left = i in grid.left
        no_wrap = not is_left and any(len(row[i]) > len(name) for row in rows)
        words = " ".join(row[i] for row in rows).split() if is_left else []
        table.add_column(
            Text(clean(name)),
            justify="left" if is_left else "right",
            overflow="fold",
            no_wrap=no_wrap,
            min_width=min(LONGEST_WORD, max(map(len, words), default=1)),
        )
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if i in grid.strong else None)
    return table


def _plain_cell(cell: TableCell) -> str:
    """`text [smaller print]`"""
    if not cell.sub:
        return clean(cell.text)
    return clean(f"{cell.text} [{cell.sub}]")


def _broken(text: str) -> str:
    """A text with line breaks after `_`, `/` or `-` in words that are too long for a column of a terminal."""
    return " ".join(map(_broken_word, text.split(" ")))


def _broken_word(word: str) -> str:
    """A word in lines of at most `LONGEST_WORD` characters, as far as its `_`, `/` and `-` allow it."""
    lines = [""]
    for piece in re.split(r"(?<=[_/-])", word):
        if lines[-1] and len(lines[-1]) + len(piece) > LONGEST_WORD:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def output_console(width: int = 110) -> Console:
    """Standard output, of this width if it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=width)


def sheet_markdown(title: str, sections: Sequence[Section]) -> str:
    """A Markdown document of sections."""
    blocks = [f"# {escape_markdown(title)}"]
    for section in sections:
        blocks += section_markdown(section)
    return "\n\n".join(blocks) + "\n"


def show_sheet(sections: Sequence[Section], console: Console | None = None) -> None:
    """Print sections on a terminal, standard output by default; what pages fold away follows unfolded."""
    from rich.padding import Padding
    from rich.text import Text

    out = console or output_console(width=120)
    unfolded = list[Section]()
    for section in sections:
        unfolded += (section, *section.folded)
    for section in unfolded:
        out.print(Text(clean(section.title), style="bold"))
        for line in section.lines:
            out.print(Padding(Text(clean(line)), (0, 0, 0, 2)))
        for grid in section.grids:
            out.print(plain_table(grid))
        if section.code:
            out.print(Text(safe(section.code)), soft_wrap=True)
        elif not section.grids:
            # Tables end in an empty line of their own.
            out.print()
