"""Progress: plain lines without a terminal, one live display on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from souping.report.progress import Progress


def plain() -> Console:
    return Console(file=io.StringIO(), width=60, highlight=False)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def run(progress: Progress) -> None:
    with progress:
        progress.stage("score", items=40)
        for _ in range(4):
            progress.advance(10, reused=5)
        progress.stage("search", items=1000, trials=100)
        for number in range(1, 101):
            progress.advance(10)
            progress.trial(number, 0.5 + number / 1000, 0.5 + number / 1000)
        progress.stage("write")


def test_plain_lines_have_no_control_characters_and_are_about_a_dozen_a_stage() -> None:
    console = plain()
    run(Progress(console=console))
    lines = text_of(console).splitlines()
    assert not [c for c in text_of(console) if ord(c) < 32 and c != "\n"]
    assert lines[0] == "score: 40 items"
    assert 10 <= sum(line.startswith("search") for line in lines) <= 13
    assert any(line.startswith("search, 1,000 of 1,000 items, 100 of 100 trials, best 60.00 %") for line in lines)
    assert lines[-1] == "write"


def test_trials_count_where_the_items_are_unknown() -> None:
    console = plain()
    with Progress(total_trials=20, console=console) as progress:
        progress.stage("search")
        for number in range(1, 21):
            progress.advance(3)
            progress.trial(number, 0.5, 0.5)
    lines = text_of(console).splitlines()
    assert 9 <= len(lines) <= 13
    assert lines[-1].startswith("search, 60 items, 20 of 20 trials, best 50.00 %")


def test_time_left_and_speed_come_from_what_was_really_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, *[10.0] * 50])
    monkeypatch.setattr("souping.report.progress.time.monotonic", lambda: next(clock))
    console = plain()
    with Progress(console=console) as progress:
        progress.stage("score", items=1000)
        progress.advance(500, reused=300)
    assert "score, 500 of 1,000 items, 20 items/s, 25.0 s left" in text_of(console)


def test_a_stage_that_is_ended_by_hand_has_one_last_line() -> None:
    console = plain()
    with Progress(console=console) as progress:
        progress.stage("search")
        progress.advance(3)
        progress.end_stage()
        progress.say("chosen")
        progress.stage("report")
    assert text_of(console).splitlines() == ["search", "search, 3 items", "chosen", "report"]


def test_a_stage_without_an_end_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("souping.report.progress.time.monotonic", lambda: clock[0])
    console = plain()
    with Progress(console=console) as progress:
        progress.stage("search")
        for clock[0] in (1.0, 19.0, 21.0, 40.0, 42.0):
            progress.advance(4)
    assert text_of(console).splitlines() == [
        "search",
        "search, 12 items, 0.57 items/s",
        "search, 20 items, 0.48 items/s",
        "search, 20 items, 0.48 items/s",
    ]


def test_a_terminal_gets_one_live_display() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, force_interactive=True)
    with Progress(console=console) as progress:
        progress.stage("search [bold]", items=10, trials=2)
        progress.advance(5)
        progress.trial(1, 0.5, 0.5)
    text = text_of(console)
    assert "search [bold]" in text
    assert "5/10" in text
    assert "1 of 2 trials" in text
    assert "best 50.00 %" in text


def test_an_error_passes_through_and_ends_the_display() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, force_interactive=True)
    progress = Progress(console=console)
    with pytest.raises(KeyError, match="x"), progress:
        raise KeyError("x")
    assert progress._bar is not None
    assert not progress._bar.live.is_started
