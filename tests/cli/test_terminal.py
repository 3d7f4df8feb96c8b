"""On a terminal: lines and tables end between words, whatever its width."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from souping.report.samples import show_sample
from souping.report.tables import grid
from souping.report.terminal import plain_table, print_table
from tests.conftest import ROOT, pool_of


def seen(place: Path, width: int, *words: str) -> list[str]:
    """What a terminal of `width` columns gets of a command, without colours and what moves the cursor."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "souping", *words],
        cwd=place,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    given = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux's end of file of a terminal
            break
        if not piece:
            break
        given += piece
    os.close(ours)
    process.wait()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", given.decode())
    return [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("what", ["an error", "a plan", pytest.param("a run", marks=pytest.mark.slow)])
def test_no_line_is_longer_than_the_terminal(family: Path, tmp_path: Path, what: str, width: int) -> None:
    more = {"an error": ["selector.k=2", "merge.dtype=flot32"], "a plan": ["plan=true"], "a run": ["limit=2"]}[what]
    lines = seen(tmp_path, width, *pool_of(family), *more)
    assert lines
    assert [line for line in lines if len(line) > width and len(line.split()) > 3] == []


def test_answers_side_by_side_fit(tmp_path: Path) -> None:
    sample = {"item": "one", "category": "c", "fold": "report", "target": "x", "arguments": [["word " * 60, {}]]}
    models = {name: {"score": 1.0, "outcome": "finished", "filtered_resps": ["long " * 40 + "x" * 90]} for name in "ab"}
    with (tmp_path / "out").open("w") as file:
        show_sample(Console(width=60, file=file), {**sample, "models": models}, ["a", "b"])
    assert max(map(len, (tmp_path / "out").read_text().splitlines())) <= 60


@pytest.mark.parametrize("width", [30, 44, 60, 80])
def test_a_table_is_never_cut_inside_a_word(tmp_path: Path, width: int) -> None:
    words = ("ingredients", "evaluations", "known by then", "simple_python_category")
    made = plain_table(
        grid(words, [("prior: the single ingredients", "1,234", "56", "seven words or more of some text")])
    )
    with (tmp_path / "out").open("w") as file:
        print_table(Console(width=width, file=file), made)
    text = (tmp_path / "out").read_text()
    for word in " ".join((*words, "prior: the single ingredients seven")).split():
        assert word in text
    assert max(map(len, text.splitlines())) <= width
