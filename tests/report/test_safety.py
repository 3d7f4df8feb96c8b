"""Nobody's string can break a report's files or the command that rebuilds a soup."""

from __future__ import annotations

import csv
import io
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given, settings, strategies as st
from rich.console import Console

from souping.core.reading import read, to_json
from souping.core.unit import BITS_PER_BYTE, POINTS, Unit
from souping.report.analysis_results import read_content
from souping.report.content import ExpectedSummary, TrialRow
from souping.report.format import escape_markdown, quoted
from souping.report.jobs import SweepJob, best_jobs, sweep_lines, write_sweep
from souping.report.plots import forest
from souping.report.render import plain_table
from souping.report.report_page import also_table, markdown, page, report_table
from souping.report.run_files import csv_cell, write_report, write_trials
from souping.report.tables import expected_scores
from souping.runs.run_report import card
from tests.support.html import outline
from tests.support.report import sample

HOSTILE = '<script>alert("x")</script>|`*_a_*[x](http://y)$&\n\x00\ud800\x1b[2J\u202e\x9b\u2066'


def hostile(value: Any) -> Any:
    """The same report with a hostile text after every string."""
    if isinstance(value, dict):
        return {
            (key if key in KEYS else key + HOSTILE): hostile(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) and value not in KEYS else value


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


NAMED = {"demo-java", "simple_python", "simple_java"}
KINDS = {
    "soup",
    "best_candidate",
    "uniform_all",
    "uniform_selected",
    "uniform_topk",
    "ingredient",
    "candidate",
}
KEYS = (keys(to_json(sample(columns=2, models=4))) | KINDS) - NAMED


def test_no_string_of_the_users_becomes_markup(tmp_path: Path) -> None:
    report, rows = sample(columns=2, models=4)
    trials = [read(TrialRow, row) for row in hostile(to_json(rows))]
    content = read_content(hostile(to_json(report)))
    write_report(content, trials, tmp_path)
    write_trials(trials, content, tmp_path / "trials.csv")
    parsed = outline((tmp_path / "report.html").read_text())
    assert "script" not in parsed.tags
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    checks = expected_scores(content.unit, content.expected_check or read(ExpectedSummary, {}))
    console.print(report_table(content), also_table(content), plain_table(checks))
    files = [
        p.read_text() for p in tmp_path.rglob("*") if p.suffix in (".html", ".md", ".json", ".csv")
    ]
    for shown in (*files, console.file.getvalue(), card(content)):  # type: ignore[attr-defined]
        assert not {"\x00", "\x1b", "\u202e", "\x9b", "\u2066"} & set(shown)
    assert all(
        reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references
    )
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in re.sub(r"```+bash.*?```+", "", text, flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) > 5
    for lines in (table.splitlines() for table in tables):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[0]


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_an_escaped_cell_stays_one_cell_of_one_line(text: str) -> None:
    shown = escape_markdown(text)
    assert "\n" not in shown
    # A tag has no space behind its bracket.
    assert not re.search("<(?! )", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", shown)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("p < 0.001", "p < 0.001"),
        ("a & b > c", "a & b > c"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("<!-- x -->", "&lt;!-- x --&gt;"),
    ],
)
def test_signs_that_begin_nothing_in_markdown_stay_as_they_are(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    for text in ("=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3"):
        assert csv_cell(text) == f"'{text}"
    assert [csv_cell(text) for text in ("\t=1", "-0.5", "+1e-3", "a\nb")] == [
        "'=1",
        "-0.5",
        "+1e-3",
        "a b",
    ]
    failed = replace(job(0, -0.5), overrides=("+x=1",), refused="=no\x1b[31m")
    rows = list(csv.reader(write_sweep(tmp_path, [failed]).open()))
    assert rows[1] == ["0", "-0.5", "'+x=1", "0", "'=no [31m"]
    assert "\x1b" not in sweep_lines([failed])[0]


def job(
    number: int,
    objective: float | None,
    *words: str,
    dry_run: int | None = None,
    unit: Unit = POINTS,
) -> SweepJob:
    return SweepJob(
        job=number,
        objective=objective,
        overrides=("name=x", *words),
        run_dir=str(number),
        refused="" if words else "failed",
        dry_run=dry_run,
        unit=unit,
    )


def test_the_best_jobs_of_a_multirun_are_marked() -> None:
    jobs = [job(0, 0.5, "seed=0"), job(1, 0.75, "seed=1"), job(2, None), job(3, 0.25, "seed=2")]
    assert [best.job for best in best_jobs(jobs)] == [1]
    assert ["best" in line for line in sweep_lines(jobs)] == [False, True, False, False]
    jobs.append(job(4, 0.75 + 1e-15, "seed=3"))
    assert [best.job for best in best_jobs(jobs)] == [1, 4]
    assert ["tie" in line for line in sweep_lines(jobs)] == [False, True, False, False, True]


def test_the_best_loss_is_the_lowest() -> None:
    jobs = [
        job(n, loss, f"seed={n}", unit=BITS_PER_BYTE) for n, loss in enumerate((1.5, 1.25, 2.0))
    ]
    assert [best.job for best in best_jobs(jobs)] == [1]


@pytest.mark.parametrize(
    "jobs",
    [
        [job(0, None)],
        [job(0, 0.5, "seed=0", dry_run=2), job(1, 0.5, "seed=1", dry_run=2)],
        [job(0, 0.5, "seed=0"), job(1, 1.5, "seed=1", unit=BITS_PER_BYTE)],
        [job(0, 0.5, "benchmark.path=a.jsonl"), job(1, 0.75, "benchmark.path=b.jsonl")],
        [job(0, 0.5, "+experiment=bfcl"), job(1, 0.75, "+experiment=mgsm")],
        [job(0, 0.5, "evaluator.tasks=[a]"), job(1, 0.75, "evaluator.tasks=[b]")],
        [job(0, 0.5, "objective=mean"), job(1, 0.25, "objective=worst_category")],
    ],
)
def test_no_job_is_the_best_if_their_objectives_do_not_compare(jobs: list[SweepJob]) -> None:
    assert best_jobs(jobs) == []
    assert not any("best" in line for line in sweep_lines(jobs))


NAMES = [
    "org/name@rev", "/a/b c", "it's", 'a"b', "x,y", "a=(b)", "{c}", "$HOME", "ends in \\", "[d]", "a;b", "null", "1",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back_out_of_the_command(name: str) -> None:
    command = f"python -m souping {shlex.quote(f'recipe={quoted(name)}')}"
    (override,) = OverridesParser.create().parse_overrides(shlex.split(command)[3:])
    value = override.value()
    if value is None:
        assert name == "null"
    else:
        assert (value.text if isinstance(value, QuotedString) else str(value)) == name


def test_an_interpolation_is_escaped() -> None:
    assert quoted("a/${b}") == '"a/\\${b}"'


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "$\\frac{$", "[/red]|`*", "", "x" * 999]
)
def test_the_words_of_a_unit_from_a_file_are_shown_as_text(name: str) -> None:
    report, trials = sample()
    report["unit"] = {**asdict(BITS_PER_BYTE), "name": name, "symbol": name}
    content = read_content(report)
    assert "<script>" not in page(content, trials, []) + markdown(content, trials)
    picture = forest(content)
    assert picture is not None
    assert picture.png()
