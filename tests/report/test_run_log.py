"""run.log: what the terminal said, and what a run needs to be retraced; the page's footer; the last line's hint."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from pathlib import Path

import pytest

from souping import __version__
from souping.report.run_log import Copy, logged
from tests.conftest import Cli, pool_of

QUICK = ["selector=all", "optimiser=uniform", "hydra.run.dir=run"]


def test_a_run_can_be_retraced(finished: Path) -> None:
    log, terminal = (finished / "run/run.log").read_text(), (finished / "terminal.txt").read_text()
    for needle in (f"souping {__version__}", "python -m souping", "seed=3", "numpy ", "host ", "date ", "torch "):
        assert needle in log, needle
    said = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in log.splitlines()]
    assert all(line.rstrip() in said for line in terminal.splitlines() if line.strip())
    page = (finished / "run/report.html").read_text()
    footer = page[page.index("<footer>") :]
    assert f"souping {__version__}" in footer
    assert "seed=3" in footer
    assert re.search(r"\d{4}-\d\d-\d\d", footer)
    assert __version__ not in json.dumps(json.loads((finished / "run/report.json").read_text()))
    assert terminal.rstrip().splitlines()[-1].strip() == "open run/report.html"


def test_a_search_says_how_to_finish(family: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping(*pool_of(family, "ant", "bee", "cat"), *QUICK, "stop_after=search", "seed=3")
    assert done.code == 0, done.err
    last = done.out.rstrip().splitlines()[-1]
    assert last.strip().startswith("finish")
    assert "seed=3" in last
    assert "stop_after" not in last
    assert "hydra.run.dir" not in last


def test_a_refused_run_leaves_no_log(souping: Cli, tmp_path: Path) -> None:
    assert souping("pool.candidates=[a,b]", "benchmark.path=none.jsonl", "hydra.run.dir=run").code == 2
    assert not (tmp_path / "run").exists()


def test_what_is_drawn_again_is_no_line() -> None:
    shown, log = io.StringIO(), io.StringIO()
    copy = Copy(shown, log, threading.Lock())
    text = "\x1b[31mred\x1b[0m\nhalf\rwhole\n\x1b[2K\x1b[1Abar 50 %\nlast"
    copy.write(text)
    assert shown.getvalue() == text
    assert [line[9:] for line in log.getvalue().splitlines()] == ["red", "whole"]


def test_the_streams_come_back(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), logged(tmp_path, "a command"):
        raise KeyError("x")
    assert (sys.stdout, sys.stderr) == before
    assert "ended by KeyError" in (tmp_path / "run.log").read_text()


def test_a_copy_is_forgotten_after_its_stream_was_closed(tmp_path: Path) -> None:
    """From Python 3.13 on a flush that fails then would be told."""
    stream = io.StringIO()
    with (tmp_path / "log").open("w") as log:
        copy = Copy(stream, log, threading.Lock())
        stream.close()
        copy.close()
