"""Progress: plain lines without a terminal, one live display on one; and run.log, which has the lines with times."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from souping import __version__
from souping.report import progress as module
from souping.report.progress import Progress, Throughput, logged, say


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, force_interactive=True)
    monkeypatch.setattr(module, "side_console", lambda: console)
    monkeypatch.setattr(module, "on_terminal", lambda: True)
    return console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("souping.report.progress.time.monotonic", lambda: now[0])
    return now


def test_a_stage_has_a_line_at_its_beginning_and_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        progress.stage("score", answers=40)
        for _ in range(4):
            progress.advance(10)
        progress.stage("search", trials=20)
        for number in range(1, 21):
            progress.advance(3)
            progress.trial(f"{50 + number}.00 %")
        progress.end_stage()
        progress.say("chosen \x1b[2J a\nb\rc")
        progress.stage("write")
    assert capsys.readouterr().out.splitlines() == [
        "score: 40 answers",
        "score, 40 of 40 answers",
        "search",
        "search, 60 answers, 20 of 20 trials, best 70.00 %",
        "chosen \\x1b[2J a\\nb\\rc",
        "write",
    ]


def test_speed_and_time_left_are_of_what_was_evaluated(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        progress.stage("score", answers=1000)
        clock[0] = 21.0
        progress.advance(420)
        progress.stage("search")
        for clock[0] in (22.0, 40.0, 42.0, 60.0, 63.0):
            progress.advance(4)
    assert capsys.readouterr().out.splitlines() == [
        "score: 1,000 answers",
        "score, 420 of 1,000 answers, 20 answers/s, 29.0 s left",
        "score, 420 of 1,000 answers, 20 answers/s, 29.0 s left",
        "search",
        "search, 12 answers, 0.57 answers/s",
        "search, 20 answers, 0.48 answers/s",
        "search, 20 answers, 0.48 answers/s",
    ]


def test_a_terminal_gets_one_live_display(
    terminal: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(KeyError), Progress() as progress:
        progress.stage("search [bold]", answers=10, trials=2)
        progress.advance(5)
        progress.trial("50.00 %")
        raise KeyError("x")
    with Progress() as progress, progress.aside(), Throughput("soup") as report:
        report(5, 10)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    for needle in ("search [bold]", "5 of 10 answers, 1 of 2 trials", "best 50.00 %", "soup"):
        assert needle in text
    # the cursor is back
    assert text.endswith("\x1b[?25h") or text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_the_log_has_lines_and_warnings_and_how_it_ended(tmp_path: Path, terminal: Console) -> None:
    with suppress(KeyError), logged(tmp_path, "a command", "seed=3"), Progress() as progress:
        progress.stage("score", answers=2)
        say("a line \x1b[31m")
        logging.getLogger("souping.merge").warning("of %s", "NaN")
        raise KeyError("x")
    say("too late")
    lines = [line[9:] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert {"command    a command", "overrides  seed=3"} <= set(lines)
    assert lines[-5:-1] == [
        "score: 2 answers",
        "a line \\x1b[31m",
        "of NaN",
        "ended by KeyError: 'x'",
    ]


def test_a_library_that_configures_logging_does_not_end_the_log(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("of an earlier run\n")
    with logged(tmp_path, "a command"):
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        logging.getLogger("souping.merge").warning("of %s", "NaN")
    text = (tmp_path / "run.log").read_text()
    assert "an earlier run" not in text
    lines = [line[9:] for line in text.splitlines()]
    assert "command    a command" in lines
    assert lines[-2] == "of NaN"


def test_a_run_can_be_retraced(finished: Path) -> None:
    log = (finished / "run/run.log").read_text()
    terminal = (finished / "terminal.txt").read_text()
    for needle in (
        f"souping {__version__}",
        "command    ",
        "seed=3",
        "numpy ",
        "host ",
        "date ",
        "torch ",
    ):
        assert needle in log, needle
    lines = [line[9:] for line in log.splitlines()]
    assert [
        line for line in terminal.splitlines() if line.startswith("search") and line not in lines
    ] == []
    page = (finished / "run/report.html").read_text()
    footer = page[page.index("<footer>") :]
    assert f"souping {__version__}" in footer
    assert "seed=3" in footer
    assert re.search(r"\d{4}-\d\d-\d\d", footer)
    report = json.loads((finished / "run/report.json").read_text())
    provenance = report.pop("provenance")
    assert set(provenance) == {"command", "cpus", "date", "gpus", "platform", "settings", "version"}
    assert provenance["version"] == __version__
    assert provenance["settings"]["seed"] == 3
    assert provenance["platform"] in footer
    assert provenance["date"] in footer
    # Nothing else tells when, where and with what it was made.
    assert __version__ not in json.dumps(report)
    assert provenance["date"][:10] not in json.dumps(report)
    assert "report: run/report.html" in terminal.splitlines()
