"""What a report's files say."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings, strategies as st
from rich.console import Console

from souping.core.reading import to_json
from souping.core.types import SearchEnd, StopReason
from souping.core.unit import BITS_PER_BYTE, POINTS, Unit
from souping.report.analysis_results import read_content
from souping.report.content import TrialRow
from souping.report.report_page import markdown, page, report_table
from souping.report.run_files import as_json, draw, search_summary, write_report, write_trials
from souping.report.sections import ended, warnings
from tests.support.html import outline
from tests.support.report import sample

PICTURES = ["forest", "categories", "heatmap", "landscape"]


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], list[TrialRow], list[Path]]:
    run_dir = tmp_path_factory.mktemp("report")
    report, trials = sample()
    return run_dir, report, trials, write_report(read_content(report), trials, run_dir)


def test_every_row_and_difference_is_shown_in_percent(written: Any) -> None:
    run_dir, report, _, _ = written
    text = (run_dir / "report.md").read_text()
    for row in report["rows"]:
        for score in (row["objective"], *row["scores"].values()):
            assert f"{100 * score['mean']:.1f}" in text
    for pair in report["comparisons"]:
        assert f"| {100 * pair['difference']:+.1f} |".replace("-", "\N{MINUS SIGN}") in text


def test_two_reports_of_the_same_run_are_the_same_bytes(written: Any, tmp_path: Path) -> None:
    run_dir, report, trials, paths = written
    names = ["report.json", "report.md", "report.html", *(f"plots/{name}.png" for name in PICTURES)]
    assert [str(path.relative_to(run_dir)) for path in paths] == names
    write_report(read_content(report), trials, tmp_path)
    assert sorted(
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()
    ) == sorted(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (run_dir / name).read_bytes(), name


def test_missing_numbers_are_dashes_not_crashes() -> None:
    report, trials = sample(columns=3)
    for row in report["rows"]:
        row["objective"] |= {"low": None, "high": math.nan}
        row["scores"]["simple_java"] = {"mean": None, "low": None, "high": None, "n": 0}
    report["comparisons"][0] |= {"difference": None, "low": None, "high": None, "p_value": None}
    trials[0] = replace(trials[0], objective=None)
    html = page(read_content(report), trials, draw(read_content(report), trials))
    outline(html)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL).lower().replace(
        "provenance", ""
    )


def test_a_warning_on_lost_answers_that_two_steps_repeat_word_for_word_is_shown_once() -> None:
    report, _ = sample()
    lost = "search: answers of 1 of 3 models are truncated or missing: ..."
    report["warnings"] = [lost, "another", lost]
    assert warnings(read_content(report)) == [lost, "another"]


def test_trials_csv_has_one_line_per_trial_that_reads_back(tmp_path: Path) -> None:
    report, trials = sample(columns=2)
    with write_trials(trials, read_content(report), tmp_path / "trials.csv").open(
        newline=""
    ) as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:4] == ["number", "recipe_id", "objective", "weight:demo-java"]
    for row, trial in zip(rows, trials, strict=True):
        assert float(row["objective"]) == trial.objective
        assert float(row["weight:demo-live"]) == trial.weights["demo-live"]
        assert float(row["score:simple_java"]) == trial.categories["simple_java"]
        assert (int(row["items"]), int(row["reused"])) == (trial.items, trial.reused)


def test_the_page_stands_alone_and_opens_with_the_verdict(written: Any) -> None:
    run_dir, report, _, _ = written
    page_text = (run_dir / "report.html").read_text()
    text = (run_dir / "report.md").read_text()
    parsed = outline(page_text)
    assert all(
        reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references
    )
    assert not {"script", "link"} & set(parsed.tags)
    assert not re.search(r"@import|url\((?!#)", page_text)
    assert len(parsed.ids) == len(set(parsed.ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page_text)) | set(
        re.findall(r'href="#([^"]+)"', page_text)
    )
    assert used <= set(parsed.ids)
    assert page_text.count('role="img" aria-label="') == parsed.tags.count("svg") == 4
    assert text.startswith(f"# {report['verdict']['sentence']}\n")
    assert f"<h1>{report['verdict']['sentence']}</h1>" in page_text
    for shown in (text, page_text):
        assert shown.index("demo: BFCL-style questions, not BFCL") < shown.index(
            "Is the soup better?"
        )
        assert report["warnings"][0] in shown
    plain = re.sub(r"<style.*?</style>|<[^>]+>", " ", page_text, flags=re.DOTALL)
    for shown in (text, plain, on_terminal(report)):
        assert "\N{MINUS SIGN}" in shown
        assert re.findall(r"[ (]-\d[^ ]*", shown) == []


def test_a_run_names_its_engine_and_what_of_it_was_not_checked(
    finished: Path, tmp_path: Path
) -> None:
    engine = f"transformers {transformers.__version__}"
    table = json.loads((finished / "run/report.json").read_text())
    assert table["engine"] == engine
    assert "unchecked_weights" not in table["cost"]
    for name in ("report.md", "report.html"):
        assert engine in (finished / "run" / name).read_text()
    left_out = "soups of ant, which the engine has not loaded alone"
    cost = {**table["cost"], "unchecked_weights": [left_out]}
    report = read_content({**table, "cost": cost})
    assert left_out in page(report, [], [])


def test_the_first_screen_says_what_the_score_is_and_how_the_soup_is_loaded() -> None:
    report, trials = sample()
    changes = {"rebuild": "souping rebuild a/soup/recipe.json out=rebuilt"}
    first = html.unescape(page(read_content({**report, **changes}), trials, [])).split("<section>")[
        0
    ]
    for needle in ("8 categories", 'from_pretrained("a/soup")', *report["recipe"]["ingredients"]):
        assert needle in first


@pytest.mark.parametrize(
    ("k", "stop", "pictures", "headline"),
    [
        (1, "", ["heatmap"], "One expert"),
        (2, "", PICTURES, "The soup is better"),
        (5, "", PICTURES, "The soup is better"),
        (3, "search", ["heatmap", "landscape"], "was not opened"),
        (3, "select", ["heatmap"], "ended before the search"),
    ],
)
def test_every_size_and_end_of_a_run_renders(
    k: int, stop: str, pictures: list[str], headline: str
) -> None:
    report, trials = sample(k=k, models=8, columns=3, stop=stop)
    shown = read_content(report)
    drawings = draw(shown, trials)
    assert [drawing.name for drawing in drawings] == pictures
    text = page(shown, trials, drawings)
    outline(text)
    assert headline in text
    assert ("Is the soup better?" in text) == (k > 1 and not stop)
    assert markdown(shown, trials).count("## ") >= (2 if stop or k == 1 else 6)


def on_terminal(report: dict[str, Any], width: int = 100) -> str:
    terminal = io.StringIO()
    Console(file=terminal, width=width).print(report_table(read_content(report)))
    return terminal.getvalue()


def test_the_end_table_has_every_row_and_the_verdict_or_the_selection() -> None:
    report, _ = sample(columns=2)
    text = on_terminal(report)
    sentence = report["verdict"]["sentence"].split(",")[0]
    for needle in (
        *(f"{100 * row['objective']['mean']:.1f} [" for row in report["rows"]),
        sentence,
        "best candidate",
    ):
        assert needle in text
    assert max(map(len, on_terminal(report, 80).splitlines())) <= 80
    assert "expert of" in on_terminal(sample(stop="search", columns=4)[0])
    assert "[bold]x" in on_terminal({"selection": {"ingredients": ["[bold]x"]}})


@settings(max_examples=30)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_keeps_floats_and_has_null_for_what_is_no_number(value: float) -> None:
    assert json.loads(as_json([value])) == [value]
    odd = {
        "a": math.nan,
        "b": np.array([1.0, math.inf]),
        "c": np.float64(0.1),
        "d": (Path("x"), True, 3),
    }
    assert json.loads(as_json(to_json(odd))) == {
        "a": None,
        "b": [1.0, None],
        "c": 0.1,
        "d": ["x", True, 3],
    }


# ---------------------------------------------------------------- how a search ended

END = SearchEnd(
    stopped=StopReason(reason="more answers would gain only", gain=0.0005),
    indistinguishable=((0.5, 0.5),),
    indistinguishable_count=1,
    finishing_gain=0.004,
)


@pytest.mark.parametrize(
    ("unit", "gain", "figures"),
    [
        (POINTS, "0.05 points", (0.4, 0.75)),
        (BITS_PER_BYTE, "0.00025 bits per byte", (0.002, -0.375)),
    ],
    ids=["points", "bits"],
)
def test_the_end_of_a_search_is_worded_in_the_unit_of_the_scores(
    unit: Unit, gain: str, figures: tuple[float, float]
) -> None:
    found = search_summary(unit, replace(END, without_guards=0.75))
    assert found.stopped == f"more answers would gain only {gain}"
    assert ended(found).endswith(gain)
    assert (found.finishing_gain, found.without_guards) == figures
    assert found.indistinguishable == ((0.5, 0.5),)


def test_an_end_without_a_gain_is_its_reason() -> None:
    found = search_summary(POINTS, replace(END, stopped=StopReason(reason="the budget ends")))
    assert (found.stopped, found.without_guards) == ("the budget ends", None)


def test_the_words_of_a_users_optimiser_are_kept_as_they_are() -> None:
    found = search_summary(BITS_PER_BYTE, {"asked": 3, "stopped": "enough", "finishing_gain": 0.5})
    assert (found.stopped, found.finishing_gain, found.others) == ("enough", 0.5, {"asked": 3})
    assert ended(search_summary(POINTS, {})) == ""
