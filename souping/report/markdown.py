"""report.md: the same sections as the page, without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from souping.report import story
from souping.report.tables import Cell, Grid, Report
from souping.report.texts import escape_markdown as escape


def markdown(report: Report, trials: Sequence[Mapping[str, Any]]) -> str:
    """The report as GitHub-flavoured Markdown."""
    blocks = [f"# {escape(story.headline(report))}"]
    if story.kicker(report):
        blocks.append(escape(story.kicker(report)))
    numbers = story.figures(report)
    if numbers:
        blocks.append("\n".join(f"- {escape(a)}: **{escape(b)}**{_small(c)}" for a, b, c in numbers))
    blocks += [f"> Warning: {escape(warning)}" for warning in report.get("warnings") or []]
    for part in story.sections(report, trials):
        blocks += section(part)
    return "\n\n".join(blocks) + "\n"


def _small(text: str) -> str:
    return f" ({escape(text)})" if text else ""


def section(found: story.Section) -> list[str]:
    """The blocks of one section."""
    blocks = [f"## {found.title}", *map(escape, found.lines), *map(table, found.grids)]
    if found.picture:
        blocks.insert(1, f"![{found.title}](plots/{found.picture}.png)")
    for title, grid in found.folded:
        blocks += [f"### {title}", table(grid)]
    if found.code:
        blocks.append(fenced(found.code))
    return blocks


def fenced(code: str, language: str = "bash") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code}\n{fence}"


def table(grid: Grid) -> str:
    """A pipe table; numbers set right, stressed rows bold."""
    marks = ["---" if i in grid.left else "---:" for i in range(len(grid.header))]
    lines = [_line(map_escape(grid.header)), _line(marks)]
    lines += [_line([_cell(cell, i in grid.strong) for cell in row]) for i, row in enumerate(grid.rows)]
    return "\n".join(lines)


def map_escape(names: Sequence[str]) -> list[str]:
    return [escape(name) for name in names]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell, strong: bool) -> str:
    text = escape(cell.text)
    text = f"**{text}**" if strong and text else text
    return f"{text} ({escape(cell.sub)})" if cell.sub else text
