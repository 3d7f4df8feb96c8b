"""The published figures (souping/examples/paper), and how the scripts beside this file print what they found."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

DATA = Path(str(files("souping"))) / "examples" / "paper"
HERE = Path(__file__).resolve().parent

Row = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A table of findings and what it says, in sentences."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    says: tuple[str, ...] = ()


def published(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of published figures."""
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def show(found: Sequence[Found], markdown: bool) -> None:
    """Print the tables: Markdown, or drawn for a terminal."""
    if markdown:
        print("\n".join(as_markdown(one) for one in found), end="")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for one in found:
        table = Table(title=one.title, title_justify="left")
        for column in one.columns:
            table.add_column(column, overflow="fold")
        for row in one.rows:
            table.add_row(*row)
        console.print(table)
        for sentence in one.says:
            console.print(f"- {sentence}", markup=False)
        console.print()


def as_markdown(found: Found) -> str:
    """One table as Markdown: a heading, the table, its sentences as a list."""
    lines = [f"## {found.title}", "", _line(found.columns), _line(["---"] * len(found.columns))]
    lines += [_line(row) for row in found.rows]
    if found.says:
        lines += ["", *(f"- {sentence}" for sentence in found.says)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
