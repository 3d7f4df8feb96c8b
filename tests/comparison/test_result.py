"""Figures on the pages of a comparison: digits, signs, shares, and places in the drawing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import souping
from souping.comparison.result import (
    SHOWN_TEXT_CHARS,
    Flip,
    RowVerdict,
    RunNoise,
    amount,
    chart,
    comparison_page,
    comparison_sections,
    next_step,
    power_sentence,
    sentence,
    verdict_in_words,
)
from souping.comparison.row_verdict import MISSING, TRUNCATED, Word
from souping.core.text import minus
from souping.report.format import escape_html
from souping.report.render import sheet_markdown
from tests.support.logs import Frame


def rows_of(scores: np.ndarray, **columns: Any) -> Frame:
    return Frame(
        [{"item": n, "category": "c", "score": s, **columns} for n, s in enumerate(scores)]
    )


def row(**changes: Any) -> RowVerdict:
    """The average of two small logs, with other figures."""
    right = np.arange(40) % 2
    result = souping.compare({"base": rows_of(right), "cand": rows_of(1 - right)})
    return replace(result.average_row("cand"), **changes)


@pytest.mark.parametrize(
    ("difference", "low", "high", "shown"),
    [
        (123.4, -10.0, 250.0, ["+123", "-10", "+250"]),
        (0.1234, -0.01, 0.25, ["+0.12", "-0.01", "+0.25"]),
        (2.0, 2.0, 2.0, ["+2", "+2", "+2"]),
    ],
)
def test_a_difference_has_the_digits_of_its_interval(
    difference: float, low: float, high: float, shown: list[str]
) -> None:
    """Two digits of the width; without a width, as many as it has itself."""
    shown_row = row(fraction=False, metric="loss", difference=difference, low=low, high=high)
    _, _, text = sentence(shown_row).partition(". Difference ")
    figures = re.findall(rf"[+{minus('-')}][\d.]+", text)
    assert figures == [minus(figure) for figure in shown]


def test_points_have_a_sign_and_zero_is_not_negative() -> None:
    shown = row(fraction=True)
    assert amount(shown, 0.125, sign=True) == "+12.5"
    assert amount(shown, 0.125) == "12.5"
    loss = row(fraction=False, metric="loss")
    assert amount(loss, -0.0) == "0"
    assert amount(loss, None) == ""


def test_a_p_value_is_a_figure_or_below_the_smallest_that_is_shown() -> None:
    assert "p = 0.012)" in sentence(row(p_value=0.012))
    assert "p < 0.001)" in sentence(row(p_value=0.0002))


def test_an_undecided_verdict_has_its_reason() -> None:
    right = np.arange(40) % 2
    result = souping.compare({"base": rows_of(right), "cand": rows_of(1 - right)})
    for reason in ("missing answers", ""):
        shown = replace(result.average_row("cand"), verdict="undecided", reason=reason)
        page = sheet_markdown("page", comparison_sections(replace(result, verdicts=(shown,))))
        assert ("undecided: missing answers" in page) == bool(reason)
    assert "(missing answers)" in sentence(row(verdict="undecided", reason="missing answers"))
    assert "undecided." in sentence(row(verdict="undecided", reason=""))


def test_the_sentence_on_power_has_the_figures_of_its_row() -> None:
    shown = {"fraction": True, "detectable": 0.064, "margin": 0.01, "items": 1200}
    assert "6.4" in power_sentence(row(**shown, items_needed=25_000))
    assert "25,000" in power_sentence(row(**shown, items_needed=25_000))
    assert "add runs" in power_sentence(row(**shown, items_needed=None))
    assert "1,200 items cannot" in power_sentence(row(**shown | {"detectable": 1.0}))
    more = {"detectable_one_more_run": 0.051, "detectable_twice_items": 0.043}
    text = power_sentence(row(**shown, **more, items_needed=None))
    places = [text.index(figure) for figure in ("6.4", "5.1", "4.3")]
    assert places == sorted(places)


def test_marks_of_the_drawing_are_to_scale() -> None:
    """The scale is that of the text below it: -6 to +4 points and the margin of 2."""
    shown = row(fraction=True, low=-0.06, high=0.04, difference=-0.02, margin=0.02)
    drawing = chart([shown])
    ends = [float(x) for x in re.search(r"M([\d.]+) 28H([\d.]+)", drawing).groups()]  # type: ignore[union-attr]
    circle = float(re.search(r'circle cx="([\d.]+)"', drawing)[1])  # type: ignore[index]
    margin = float(re.search(r"M([\d.]+) 20v16", drawing)[1])  # type: ignore[index]
    zero = float(re.search(r"M([\d.]+) 0V", drawing)[1])  # type: ignore[index]
    low, high = ends

    def value(x: float) -> float:
        return -6 + 10 * (x - low) / (high - low)

    assert high - low > 400
    assert [value(x) for x in (circle, margin, zero)] == pytest.approx([-2, -2, 0], abs=0.01)
    labels = re.findall(r'<text x="([\d.]+)" y="58" text-anchor="middle">(.*?)</text>', drawing)
    assert [float(x) for x, _ in labels] == pytest.approx([low, zero, high], abs=0.1)


@pytest.mark.parametrize(
    ("margins", "dashed"),
    [((None, None), 0), ((0.02, None), 1), ((None, 0.0), 1), ((0.02, 0.01), 2)],
)
def test_a_dashed_line_is_explained_if_there_is_one(
    margins: tuple[float | None, ...], dashed: int
) -> None:
    rows = [row(fraction=True, low=-0.06, high=0.04, margin=margin) for margin in margins]
    drawing = chart(rows)
    assert drawing.count("stroke-dasharray") == dashed
    # In the label of the drawing and in the caption.
    assert drawing.count("cand minus base, points; dashed: the margin") == 2 * (dashed > 0)
    assert drawing.count("cand minus base, points") == 2
    ends = re.findall(r'text-anchor="middle">(.*?)</text>', drawing)
    assert ends == [minus("-6.0"), "0.0", "+4.0"]
    # The second row is 38 pixels below the first.
    assert re.findall(r"M[\d.]+ (\d+)H", drawing) == ["28", "66"]
    assert re.findall(r'<text x="6" y="(\d+)"', drawing) == ["16", "54"]
    assert 'viewBox="0 0 480 106"' in drawing


def test_the_margin_of_a_loss_is_above_zero() -> None:
    """The axis is in the metric's unit, and ends at the margin of 0.5."""
    shown = {"fraction": False, "metric": "loss", "higher_is_better": False, "margin": 0.5}
    drawing = chart([row(**shown, low=-0.4, high=0.2, difference=-0.1)])
    margin = float(re.search(r"M([\d.]+) 20v16", drawing)[1])  # type: ignore[index]
    zero = float(re.search(r"M([\d.]+) 0V", drawing)[1])  # type: ignore[index]
    assert (zero, margin) == pytest.approx((30 + 420 * 4 / 9, 450), abs=0.1)
    assert "cand minus base, loss; dashed" in drawing
    labels = re.findall(r'text-anchor="middle">(.*?)</text>', drawing)
    assert labels == [minus("-0.4"), "+0", "+0.5"]


@pytest.mark.parametrize(
    ("word", "reason", "margin", "step"),
    [
        ("better", "", None, "use cand"),
        ("no-worse", "", 0.02, "use cand"),
        ("worse", "", 0.02, "keep base"),
        ("much-worse", "", 0.02, "keep base"),
        ("undecided", "", 0.02, "add items or runs"),
        ("undecided", "", None, "--margin"),
        ("undecided", MISSING, 0.02, "evaluate again"),
        ("undecided", TRUNCATED, None, "evaluate again"),
    ],
)
def test_each_verdict_is_in_the_title_and_has_a_next_step(
    word: Word, reason: str, margin: float | None, step: str
) -> None:
    judged = row(fraction=True, low=-0.06, high=0.04, difference=-0.02, margin=margin)
    judged = replace(judged, verdict=word, reason=reason)
    assert step in next_step(judged)
    result = replace(
        souping.compare({name: rows_of(np.arange(40) % 2) for name in ("base", "cand")}),
        verdicts=(judged,),
    )
    title = escape_html(verdict_in_words(judged))
    page = comparison_page(result)
    assert f"<title>{title}</title>" in page
    assert f"<h1>{title}</h1>" in page
    assert escape_html(next_step(judged)) in page


def test_shares_of_the_variance_are_those_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(80)
    logs: dict[str, list[Any]] = {"base": [], "cand": []}
    for name, runs in logs.items():
        for run in range(3):
            right = 0.6 * hard + 0.4 * rng.random(80) + 0.02 * run < 0.5
            runs.append(rows_of(right.astype(int), run=f"{name}{run}"))
    result = souping.compare(logs)
    parts = result.variance["cand"]
    assert parts.runs is not None
    lines = [line for line in comparison_sections(result)[0].lines if line.startswith("Variance")]
    figures = [int(figure) for figure in re.findall(r"(\d+) %", lines[0])]
    assert figures == [round(100 * part / parts.total) for part in (parts.items, parts.runs)]
    # One part is all of it, which is not said.
    plain = souping.compare({name: runs[0] for name, runs in logs.items()})
    assert not any("Variance" in line for line in comparison_sections(plain)[0].lines)


def test_the_table_states_its_schema() -> None:
    result = souping.compare({"base": rows_of(np.zeros(9)), "cand": rows_of(np.ones(9))})
    assert json.loads(result.to_json())["schema"] == 1


def test_flips_are_sorted_by_size_with_losses_before_gains() -> None:
    base = np.array([0.0, 1.0, 0.0, 0.5, 0.7])
    change = np.array([1.0, -1.0, 1.0, -0.2, 0.0])
    result = souping.compare({"base": rows_of(base), "cand": rows_of(base + change)})
    assert [flip.item for flip in result.flips] == ["1", "0", "2", "3"]


def test_a_long_answer_is_cut_with_an_ellipsis() -> None:
    texts = {"output": "x" * (SHOWN_TEXT_CHARS + 1), "prompt": "y" * SHOWN_TEXT_CHARS}
    result = souping.compare({"base": rows_of(np.zeros(9)), "cand": rows_of(np.ones(9), **texts)})
    assert all(not section.folded for section in comparison_sections(result))
    (shown,) = comparison_sections(result, flips=1)[-1].folded
    lengths = {line.partition(": ")[0]: line.partition(": ")[2] for line in shown.lines}
    assert lengths["prompt"] == texts["prompt"]
    assert lengths["cand"] == texts["output"][:-1] + "..."


@pytest.mark.parametrize(
    ("weight", "shown"), [(0.0, ""), (0.25, "25 %"), (0.3333, "33.3 %"), (1.0, "")]
)
def test_a_weight_is_a_percentage_unless_it_is_nothing_or_everything(
    weight: float, shown: str
) -> None:
    result = souping.compare({"base": rows_of(np.arange(9) % 2), "cand": rows_of(np.ones(9))})
    verdicts = tuple(replace(one, weight=weight) for one in result.verdicts)
    text = sheet_markdown("page", comparison_sections(replace(result, verdicts=verdicts)))
    assert ("| weight |" in text) is bool(shown)
    assert set(re.findall(r"\| \**([\d.]+ %)", text)) == {shown} - {""}


def test_pairs_runs_and_flips_are_shown_with_their_figures() -> None:
    right = np.arange(40) % 2
    result = souping.compare({"base": rows_of(right), "a": rows_of(1 - right), "b": rows_of(right)})
    runs = (
        RunNoise(model="base", runs=3, flipped=0.125, spread=0.031, difference=None),
        RunNoise(model="a", runs=2, flipped=0.25, spread=0.04, difference=-0.052),
    )
    flips = []
    for item in "789":
        flip = Flip(model="b", task="t", item=item, baseline_score=0.25, score=1 / 3, output="so")
        flips.append(flip)
    pairs = {
        "base": {"a": (0.1, 0.02, 0.18), "b": (-0.05, -0.1, -0.01)},
        "a": {"b": (-0.15, -0.2, -0.1)},
    }
    shown = replace(result, pairs=pairs, best=("a", "b"), runs=runs, flips=tuple(flips))
    sections = {section.title: section for section in comparison_sections(shown, flips=2)}

    pairs_section = sections["All pairs, without correction"]
    assert "among a, b " in pairs_section.lines[0]
    (table,) = pairs_section.grids
    assert table.header == ("", "a", "b")
    assert [[cell.text for cell in line] for line in table.rows] == [
        ["base", minus("+10.0 [+2.0, +18.0]"), minus("-5.0 [-10.0, -1.0]")],
        ["a", "", minus("-15.0 [-20.0, -10.0]")],
    ]
    of_base, of_a = sections["Runs of one model"].lines
    assert re.findall(rf"[{minus('-')}\d.]*\d", of_base) == ["3", "12.5", "3.1"]
    assert re.findall(rf"[{minus('-')}\d.]*\d", of_a) == ["2", "25.0", "4.0", minus("-5.2")]
    flipped = sections["Items that flipped"].folded
    assert [section.title for section in flipped] == [
        "b: t 7: 0.25 before, 0.333 now", "b: t 8: 0.25 before, 0.333 now",
    ]  # fmt: skip
    assert flipped[0].lines == ("b: so",)


def test_a_section_names_the_rows_that_failed() -> None:
    result = souping.compare({name: rows_of(np.arange(40) % 2) for name in ("base", "cand")})
    rows = [row(name=name, required=name != "free", verdict="worse") for name in ("x", "y", "free")]
    rows.append(row(name="fine", required=True, verdict="no-worse"))
    failed = replace(result, verdicts=tuple(rows), fail_on=("worse",), status=1)
    section = comparison_sections(failed)[0]
    assert section.lines[0].startswith("Failed: ")
    assert re.findall(r"(\w+) is worse", section.lines[0]) == ["x", "y"]
    (table,) = section.grids
    assert table.strong == {0, 1, 3}
    passed = comparison_sections(replace(failed, fail_on=("much-worse",)))[0]
    assert not any(line.startswith("Failed") for line in passed.lines)


def test_a_metric_is_named_unless_the_row_says_it() -> None:
    """Metrics of two rows differ, so that none is said above the table."""
    result = souping.compare({name: rows_of(np.arange(40) % 2) for name in ("base", "cand")})
    rows = (
        row(kind="average", metric="acc"),
        row(name="x", kind="task", metric="f1"),
        row(name="x loss", kind="metric", metric="loss", higher_is_better=False),
        row(name="y", kind="task", metric="score"),
        row(name="z", kind="task", metric="loss", higher_is_better=False),
        row(name="tokens", kind="length", metric="tokens", higher_is_better=False),
    )
    (table,) = comparison_sections(replace(result, verdicts=rows))[0].grids
    place = table.header.index("metric")
    assert [line[place].text for line in table.rows] == [
        "",
        "f1",
        "",
        "",
        "loss (lower is better)",
        "",
    ]
    assert {0, place} < table.left
