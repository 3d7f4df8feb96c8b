"""Answers side by side on a terminal: what `souping show` prints of a run's `samples.jsonl.gz`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.text import first_line, read_json
from souping.core.types import Json, UserError, elements, number, part, texts
from souping.report.format import clean, percent
from souping.report.tables import Row

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 4000
"""Characters of a text that are shown; of a longer one both ends."""


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
                    raise ValueError("a line is no object")
                yield row
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}: name a run that evaluated something") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


def changed(samples: Iterable[Row], base: str, soup: str, better: bool) -> Iterator[Row]:
    """The items that `soup` answers better than `base`, or worse."""
    for sample in samples:
        ours, theirs = (score_of(sample, name) for name in (soup, base))
        if ours is not None and theirs is not None and (ours > theirs if better else ours < theirs):
            yield sample


def score_of(sample: Row, name: str) -> float | None:
    """A model's score on an item, None where it was not asked."""
    return number(part(part(sample, "models"), name).get("score"))


def show_sample(console: Console, sample: Row, names: Sequence[str]) -> None:
    """One item: its prompt as asked, its reference, and the answers of these models side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from souping.report.terminal import print_table

    models = part(sample, "models")
    title = f"{sample.get('item')} ({sample.get('category')}, fold {sample.get('fold')})"
    console.print(Text(clean(title), style="bold"))
    for label, value in (("prompt", _prompt(sample)), ("reference", _text(sample.get("target")))):
        console.print(Text(f"{label}: ", style="dim").append(_short(value), style=""), soft_wrap=False)
    shown = [name for name in names if name in models]
    table = Table(box=SIMPLE_HEAD, show_lines=False, expand=False)
    for name in shown:
        own = part(models, name)
        ended = "" if own.get("outcome") == "finished" else f", {own.get('outcome')}"
        table.add_column(Text(clean(f"{name}: {percent(own.get('score'), 0)} %{ended}")), overflow="fold")
    table.add_row(*(Text(_short(_answers(part(models, name)))) for name in shown))
    print_table(console, table, cut=True)


def _prompt(sample: Row) -> str:
    first = next(iter(elements(sample, "arguments")), None)
    return str(first[0]) if isinstance(first, list) and first else ""


def _answers(model: Row) -> str:
    given = texts(model, "filtered_resps")
    if not any(given):
        return f"(no text{': ' + str(model['reason']) if model.get('reason') else ''})"
    return given[0] if len(given) == 1 else "\n".join(f"{n}. {text}" for n, text in enumerate(given, start=1))


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    """A text without control characters, its middle left out where it is long."""
    lines = "\n".join(clean(line) for line in text.split("\n"))
    if len(lines) <= LONGEST:
        return lines
    half = LONGEST // 2
    return f"{lines[:half]}\n... {len(lines) - LONGEST:,} characters ...\n{lines[-half:]}"
