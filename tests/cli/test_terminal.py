"""On a terminal: tables and answers fit its width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from souping.report.render import plain_table, show_sample
from souping.report.tables import grid


@pytest.mark.parametrize("width", [44, 60, 80])
def test_tables_and_answers_fit(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    words = ("ingredients", "evaluations", "known by then", "simple_python_category")
    console.print(plain_table(grid(words, [("scoring the ingredients", "1,234", "56", "seven words or more of text")])))
    sample = {"item": "one", "category": "c", "fold": "report", "target": "x", "arguments": [["word " * 60, {}]]}
    models = {name: {"score": 1.0, "outcome": "finished", "filtered_resps": ["long " * 40 + "x" * 90]} for name in "ab"}
    show_sample(console, {**sample, "models": models}, ["a", "b"])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert text.count("long") == 80
