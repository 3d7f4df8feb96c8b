"""Tables, sections and answers on a terminal, and sections on their own as Markdown."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.text import first_line, read_json
from souping.core.types import UserError, elements, entries, number, part, texts
from souping.report import render
from souping.report.format import clean, escape_markdown, percent
from souping.report.sections import headline, losses
from souping.report.tables import Report, Row, Section, TableGrid, experts, gate, overview, sentences, summary, widened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LONGEST = 4000
"""Characters of an answer that are shown; of a longer one both ends."""


def report_table(report: Report) -> Table:
    """Models with scores and the soup's paired differences, or the selection; below it the verdict."""
    lines = [headline(report), *losses(report), widened(report)]
    return plain_table(summary(report) if entries(report, "rows") else experts(report), lines)


def gate_table(report: Report) -> Table:
    """Figures of the baseline gate."""
    return plain_table(gate(report))


def also_table(report: Report) -> Table:
    """The other benchmarks: every model's score, and below them what the soup lost."""
    return plain_table(overview(report), list(sentences(report)))


def plain_table(grid: TableGrid, caption: Sequence[str] = ()) -> Table:
    """Any of the report's tables, for a terminal; the first line of the caption is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    below = [Text(clean(line), style="" if i else "bold") for i, line in enumerate(filter(None, caption))]
    made = Table(box=SIMPLE_HEAD, caption=Text("\n").join(below), caption_style="", caption_justify="left")
    rows = [[clean(f"{cell.text} [{cell.sub}]" if cell.sub else cell.text) for cell in row] for row in grid.rows]
    for i, name in enumerate(grid.header):
        numbers = i not in grid.left and any(len(row[i]) > len(name) for row in rows)
        side = "left" if i in grid.left else "right"
        made.add_column(Text(clean(name)), justify=side, overflow="fold", no_wrap=numbers)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        made.add_row(*map(Text, row), style="bold" if i in grid.strong else None)
    return made


def output_console(width: int = 110) -> Console:
    """Standard output, of this width where it is no terminal."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=width)


def sheet_markdown(title: str, sections: Sequence[Section]) -> str:
    """A Markdown document of sections."""
    blocks = [f"# {escape_markdown(title)}", *(block for section in sections for block in render.section(section))]
    return "\n\n".join(blocks) + "\n"


def show_sheet(sections: Sequence[Section], console: Console | None = None) -> None:
    """The same on a terminal, standard output by default."""
    from rich.padding import Padding
    from rich.text import Text

    out = console or output_console(120)
    for section in (one for outer in sections for one in (outer, *outer.folded)):
        out.print(Text(section.title, style="bold"))
        for line in section.lines:
            out.print(Padding(Text(clean(line)), (0, 0, 0, 2)))
        for grid in section.grids:
            out.print(plain_table(grid))
        if not section.grids:
            out.print()


# Answers side by side: `souping show` prints them from a run's samples.jsonl.gz.


def read_samples(path: Path) -> Iterator[Row]:
    """The lines of a run's samples.

    Raises:
        UserError: the file is absent or damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = read_json(line)
                if not isinstance(row, dict):
                    raise ValueError("a line is not an object")
                yield row
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}: name the directory of a run that evaluated items") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


def changed(samples: Iterable[Row], base: str, soup: str, better: bool) -> Iterator[Row]:
    """The items that `soup` answers better than `base`, or worse."""
    for sample in samples:
        new, old = (score_of(sample, name) for name in (soup, base))
        if new is not None and old is not None and (new > old if better else new < old):
            yield sample


def score_of(sample: Row, name: str) -> float | None:
    """A model's score on an item, None if it was not evaluated on it."""
    return number(part(part(sample, "models"), name).get("score"))


def show_sample(console: Console, sample: Row, names: Sequence[str]) -> None:
    """One item: its prompt as the model saw it, its reference, and the answers of these models side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    models = part(sample, "models")
    title = f"{sample.get('item')} ({sample.get('category')}, fold {sample.get('fold')})"
    console.print(Text(clean(title), style="bold"))
    target = sample.get("target")
    reference = target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)
    for label, value in (("prompt", _prompt(sample)), ("reference", reference)):
        console.print(Text(f"{label}: ", style="dim").append(_short(value), style=""), soft_wrap=False)
    table = Table(box=SIMPLE_HEAD)
    shown = {name: part(models, name) for name in names if name in models}
    for name, model in shown.items():
        ended = "" if model.get("outcome") == "finished" else f", {model.get('outcome')}"
        head = Text(clean(f"{name}: {percent(model.get('score'), 0)} %{ended}"))
        table.add_column(head, overflow="fold", ratio=1)
    table.add_row(*(Text(_short(_answers(model))) for model in shown.values()))
    console.print(table)


def _prompt(sample: Row) -> str:
    first = next(iter(elements(sample, "arguments")), None)
    return str(first[0]) if isinstance(first, list) and first else ""


def _answers(model: Row) -> str:
    given = texts(model, "filtered_resps")
    if not any(given):
        return f"(no text{': ' + str(model['reason']) if model.get('reason') else ''})"
    return given[0] if len(given) == 1 else "\n".join(f"{n}. {text}" for n, text in enumerate(given, start=1))


def _short(text: str) -> str:
    """A text without control characters, its middle left out where it is long."""
    lines = "\n".join(clean(line) for line in text.split("\n"))
    if len(lines) <= LONGEST:
        return lines
    half = LONGEST // 2
    return f"{lines[:half]}\n... {len(lines) - LONGEST:,} characters ...\n{lines[-half:]}"
