"""What a report's files say, and that nobody's string can break them."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from souping.core.simplex import grid
from souping.core.text import ANALYSE
from souping.report.files import as_json, draw, put, write_report, write_selection, write_trials
from souping.report.format import percent, seconds, short
from souping.report.plots import landscape
from souping.report.registry import Display, displays
from souping.report.render import markdown, page
from souping.report.sections import ended, searched, sections
from souping.report.tables import Row, Section
from souping.report.terminal import report_table
from tests.support.html import outline
from tests.support.report import sample


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]], list[Path]]:
    run_dir = tmp_path_factory.mktemp("report")
    report, trials = sample()
    return run_dir, report, trials, write_report(report, trials, run_dir)


def test_people_read_one_minus_sign(written: Any) -> None:
    run_dir, report, _, _ = written
    html = re.sub(
        r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", (run_dir / "report.html").read_text(), flags=re.DOTALL
    )
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(report_table(report))
    for text in ((run_dir / "report.md").read_text(), html, console.export_text()):
        assert "\N{MINUS SIGN}" in text
        assert re.findall(r"[ (]-\d[^ ]*", text) == []


def test_the_files_are_those_that_are_named(written: Any) -> None:
    run_dir, _, _, paths = written
    names = [str(path.relative_to(run_dir)) for path in paths]
    plots = [f"plots/{name}.png" for name in ("forest", "categories", "heatmap", "landscape")]
    assert names == ["report.json", "report.md", "report.html", *plots]
    assert sorted(p for p in run_dir.rglob("*") if p.is_file()) == sorted(paths)


def test_json_is_the_report_with_sorted_keys(written: Any) -> None:
    run_dir, report, _, _ = written
    text = (run_dir / "report.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(report))
    assert list(json.loads(text)) == sorted(report)


def test_json_has_null_for_what_is_not_a_number() -> None:
    value = {"a": math.nan, "b": np.array([1.0, math.inf]), "c": np.float64(0.1), "d": (Path("x"), True, 3)}
    assert json.loads(as_json(value)) == {"a": None, "b": [1.0, None], "c": 0.1, "d": ["x", True, 3]}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_as_they_were(value: float) -> None:
    assert json.loads(as_json([value])) == [value]


def test_the_page_needs_no_other_file(written: Any) -> None:
    html = (written[0] / "report.html").read_text()
    parsed = outline(html)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.tags.count("svg") == 4
    assert html.count('role="img" aria-label="') == 4


def test_every_reference_inside_a_picture_is_defined(written: Any) -> None:
    html = (written[0] / "report.html").read_text()
    defined = set(re.findall(r'\bid="([^"]+)"', html))
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert used
    assert used <= defined


def test_page_and_markdown_open_with_verdict_and_what_the_benchmark_is_not(written: Any) -> None:
    run_dir, report, _, _ = written
    text = (run_dir / "report.md").read_text()
    assert text.startswith(f"# {report['verdict']['sentence']}\n")
    html = (run_dir / "report.html").read_text()
    assert f"<h1>{report['verdict']['sentence']}</h1>" in html
    for shown in (text, html):
        assert shown.index("pantry, BFCL-shaped, not BFCL") < shown.index("Is the soup better?")
        assert report["warnings"][0] in shown


def test_every_row_and_difference_is_shown_in_percent(written: Any) -> None:
    run_dir, report, _, _ = written
    text = (run_dir / "report.md").read_text()
    for row in report["rows"]:
        for score in (row["objective"], *row["scores"].values()):
            assert f"{100 * score['mean']:.1f}" in text
    for pair in report["comparisons"]:
        assert f"| {100 * pair['difference']:+.1f} |".replace("-", "\N{MINUS SIGN}") in text


def test_hovering_a_cell_tells_its_interval(written: Any) -> None:
    run_dir, report, _, _ = written
    html = (run_dir / "report.html").read_text()
    found = report["selection"]["correlation"]
    value = f"{found['matrix'][0][1]:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"<title>simple_python and simple_java: rho {value}, " in html
    assert len(re.findall(r'<g id="heatmap-cell[\d-]+"><title>', html)) == 64
    assert len(re.findall(r'<g id="landscape-trial\d+"><title>', html)) == 40


def test_two_reports_of_the_same_run_are_the_same_bytes(written: Any, tmp_path: Path) -> None:
    run_dir, report, trials, paths = written
    write_report(report, trials, tmp_path)
    for path in paths:
        assert (tmp_path / path.relative_to(run_dir)).read_bytes() == path.read_bytes(), path.name


def test_a_command_on_the_run_names_its_place_on_the_pages_alone(tmp_path: Path) -> None:
    report, trials = sample(k=3, models=6, columns=4)
    why = f"2 soups answered all. 480 more answers give them: {ANALYSE} 'analysis=[parents]'"
    report = {**report, "analyses": {"consistency": {"not_estimable": why}}}
    place = tmp_path / "my run"
    place.mkdir()
    write_report(report, trials, place)
    assert "run=RUN_DIR" in (place / "report.json").read_text()
    assert f"run='{place}' " in (place / "report.md").read_text()
    assert f"run='{place}' " in html.unescape((place / "report.html").read_text())


@pytest.mark.parametrize(
    ("k", "pictures"),
    [
        (1, ["heatmap"]),
        (2, ["forest", "categories", "heatmap", "landscape"]),
        (5, ["forest", "categories", "heatmap", "landscape"]),
    ],
)
def test_every_size_of_soup_renders(k: int, pictures: list[str]) -> None:
    report, trials = sample(k=k, models=8, columns=3)
    drawings = draw(report, trials)
    assert [drawing.name for drawing in drawings] == pictures
    outline(page(report, trials, drawings))
    assert markdown(report, trials).count("## ") >= 6


@pytest.mark.parametrize("stop", ["", "select"])
@pytest.mark.parametrize("within", ["landscape", "landscpe"])
def test_an_analysis_that_leads_a_section_is_on_the_page_once(
    monkeypatch: pytest.MonkeyPatch, stop: str, within: str
) -> None:
    def mine(data: Row) -> Section:
        return Section("Of mine", ("Words of mine.",))

    monkeypatch.setitem(displays(), "mine", Display(mine, within=within))
    report, trials = sample(stop=stop)
    report["analyses"] = {"mine": {"value": 1}}
    led = [section.title for section in sections(report, trials) if "Words of mine." in section.lines]
    assert len(led) == 1
    assert (led == ["Of mine"]) == (bool(stop) or within != "landscape")


@pytest.mark.parametrize(("stop", "headline"), [("select", "ended before the search"), ("search", "was not opened")])
def test_a_run_that_ends_early_says_so(stop: str, headline: str) -> None:
    report, trials = sample(stop=stop, columns=3)
    html = page(report, trials, draw(report, trials))
    outline(html)
    assert headline in html
    assert "Is the soup better?" not in html


def test_a_published_selection_without_correlations_renders() -> None:
    report, trials = sample(columns=3)
    report["selection"] |= {
        "published": True,
        "correlation": None,
        "experts": {},
        "low_correlation": [],
        "threshold": None,
    }
    report["stability"] = {}
    report["folds"] = {"search": 168, "report": 416}
    text = markdown(report, trials)
    assert "published scores" in text
    assert "Stability" not in text
    assert [drawing.name for drawing in draw(report, trials)] == ["forest", "categories", "landscape"]


@pytest.mark.parametrize("empty", [{}, {"rows": None, "selection": None, "verdict": None, "cost": None}])
def test_an_empty_report_still_makes_files(empty: dict[str, Any], tmp_path: Path) -> None:
    assert [path.name for path in write_report(empty, [], tmp_path)] == ["report.json", "report.md", "report.html"]


def test_missing_numbers_are_dashes_not_crashes() -> None:
    report, trials = sample(columns=3)
    for row in report["rows"]:
        row["objective"] |= {"low": None, "high": math.nan}
        row["scores"]["simple_java"] = {"mean": None, "low": None, "high": None, "n": 0}
    report["comparisons"][0] |= {"difference": None, "low": None, "high": None, "p_value": None}
    trials[0]["objective"] = None
    html = page(report, trials, draw(report, trials))
    outline(html)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL).lower().replace("provenance", "")


def test_numbers_as_people_read_them() -> None:
    assert percent(0.7812) == "78.1"
    assert percent(-0.0001, sign=True) == "0.0"
    assert percent(-0.012, sign=True) == "\N{MINUS SIGN}1.2"
    assert percent(math.nan) == percent(None) == "\N{EN DASH}"
    assert [seconds(v) for v in (1.25, 75, 150, 7260)] == ["1.2 s", "75.0 s", "2 min 30 s", "2 h 1 min"]
    assert short("a" * 10 + "b" * 30 + "c" * 10, 20) == "aaaaaaaaa\N{HORIZONTAL ELLIPSIS}cccccccccc"


def test_trials_csv_has_a_line_a_trial_that_reads_back(tmp_path: Path) -> None:
    report, trials = sample(columns=2)
    with write_trials(trials, report, tmp_path / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(trials)
    assert list(rows[0])[:4] == ["number", "recipe_id", "objective", "weight:pantry-java"]
    for row, trial in zip(rows, trials, strict=True):
        assert float(row["objective"]) == trial["objective"]
        assert float(row["weight:pantry-live"]) == trial["weights"]["pantry-live"]
        assert float(row["score:simple_java"]) == trial["categories"]["simple_java"]
        assert (int(row["items"]), int(row["reused"])) == (trial["items"], trial["reused"])


def test_selection_json_always_has_its_keys(tmp_path: Path) -> None:
    path = write_selection({"ingredients": ["a"], "selector": "all"}, tmp_path / "selection.json")
    found = json.loads(path.read_text())
    assert set(found) >= {"ingredients", "experts", "low_correlation", "metric", "threshold", "correlation", "selector"}
    assert found["correlation"] == {"categories": [], "matrix": []}


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        put(tmp_path / "file" / "report.json", b"x")
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        put(tmp_path / "report.json", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "report.json"]


def shown(report: dict[str, Any], width: int = 100) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(report_table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_end_table_has_every_row_and_the_verdict() -> None:
    report, _ = sample(columns=2)
    text = shown(report)
    for row in report["rows"]:
        assert f"{100 * row['objective']['mean']:.1f} [" in text
    assert report["verdict"]["sentence"].split(",")[0] in text
    assert "best single" in text
    assert max(map(len, shown(report, 80).splitlines())) <= 80


def test_the_end_table_of_an_early_end_shows_the_selection() -> None:
    text = shown(sample(stop="search", columns=4)[0])
    assert "expert of" in text
    assert "[bold]x" in shown({"selection": {"ingredients": ["[bold]x"]}})


def test_a_search_says_why_it_ended_in_whole_sentences() -> None:
    assert ended({"stopped": "x"}) == "the search ended: x"
    assert ended({}) == ""
    for others in (0, 1, 2):
        assert f"evaluated: {others}." in searched({"stopped": "x", "indistinguishable_count": others})[0]
    assert searched({"stopped": "x"}) == ["It ended: x."]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_landscape_rings_the_chosen_soup(k: int) -> None:
    report, trials = sample(k=k)
    worst = min(trials, key=lambda trial: trial["objective"])
    own = {**report, "recipe": {**report["recipe"], "id": worst["recipe_id"]}}
    rings = [_ring_of(told, trials) for told in (report, own)]
    assert rings[0] != rings[1]


def _ring_of(report: dict[str, Any], trials: list[dict[str, Any]]) -> tuple[float, float]:
    drawing = landscape(report, trials)
    assert drawing is not None
    (ring,) = [line for axes in drawing.figure.axes for line in axes.lines if line.get_fillstyle() == "none"]
    return float(ring.get_xdata()[0]), float(ring.get_ydata()[0])


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_surface_rings_the_chosen_soup(k: int) -> None:
    from souping.analysis.surface import draw as surface

    points = [*grid(k, 0.1, 0.1, 0.9)][:30]
    band = {
        key: [0.01 * n + shift for n in range(len(points))]
        for key, shift in (("difference", 0), ("low", -1), ("high", 1))
    }
    drawing = surface({"ingredients": list("abcd"[:k]), "weights": points, "objective": band, "chosen": points[2]})
    assert drawing is not None
    rings = [line for line in drawing.figure.axes[0].lines if line.get_fillstyle() == "none"]
    assert len(rings) == 1


def test_the_first_screen_says_what_the_score_is_and_how_the_soup_is_loaded() -> None:
    report, trials = sample()
    own = {**report, "rebuild": "python -m souping +experiment=rebuild recipe=a/soup/recipe.json out=rebuilt"}
    first = html.unescape(page(own, trials, []).split("<section>")[0])
    assert f"{len(report['rows'][0]['scores'])} categories" in first
    assert 'from_pretrained("a/soup")' in first
    for name in report["recipe"]["ingredients"]:
        assert name in first


def test_what_is_not_estimable_is_folded() -> None:
    report, trials = sample()
    text = page({**report, "analyses": {"parents": {"not_estimable": "too few soups"}}}, trials, [])
    assert "too few soups" in text
    assert "too few soups" not in re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
