"""Sections on their own, outside a report: as Markdown, and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from souping.report import markdown
from souping.report.story import Section
from souping.report.terminal import plain_table
from souping.report.texts import escape_markdown


def sheet_markdown(title: str, sections: Sequence[Section]) -> str:
    """A Markdown document of sections."""
    blocks = [f"# {escape_markdown(title)}", *(block for section in sections for block in markdown.section(section))]
    return "\n\n".join(blocks) + "\n"


def show_sheet(sections: Sequence[Section]) -> None:
    """The same on standard output."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for section in sections:
        console.print(Text(section.title, style="bold"))
        for line in section.lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        for grid in section.grids:
            console.print(plain_table(grid))
        if not section.grids:
            console.print()
