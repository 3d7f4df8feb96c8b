"""The sections and pictures of a training run, and the claim over several runs."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from souping.analysis.trajectory import CheckpointScores
from souping.core.reading import read, to_json
from souping.core.scores import Mean
from souping.core.unit import BITS_PER_BYTE, POINTS
from souping.report.checkpoint_sections import of_checkpoints
from souping.report.content import Report
from souping.report.report_page import markdown, page
from souping.report.run_files import draw
from souping.report.sections import headline
from souping.search.windows import windows
from tests.support.flips import compare
from tests.support.measured import ITEMS, SIZE, TABLE, measured, scored
from tests.support.report import sample


@pytest.mark.parametrize("rates", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_page_shows_the_run(rates: bool) -> None:
    report, trials = sample()
    report["unit"] = asdict(BITS_PER_BYTE)
    report["trajectory"] = to_json(measured(rates))
    pair = report["comparisons"][0]
    report["comparisons"].append({**pair, "b": f"c{SIZE}", "kind": "last"})
    limits = {"difference": 0.2, "low": 0.1, "high": 0.3}
    report["comparisons"].append({**pair, **limits, "b": "ema", "kind": "trainer_average"})
    content = read(Report, report)
    pictures = draw(content, trials)
    assert {"trajectory", "windows"} <= {one.name for one in pictures}
    assert all(one.png() for one in pictures if one.name in ("trajectory", "windows"))
    text = markdown(content, trials)
    html = page(content, trials, pictures)
    for section in of_checkpoints(content):
        assert f"plots/{section.picture}.png" in text
        assert section.title in html
    (rows,) = of_checkpoints(content)[0].grids
    assert [row[0].text for row in rows.rows] == [
        "last checkpoint",
        "best candidate",
        "the trainer's average",
        "mean of its members' scores",
    ]
    assert rows.rows[-1][2].text == "−0.1000"
    # More bits per byte are worse.
    (line,) = [line for line in text.splitlines() if "minus the trainer's own, ema" in line]
    assert "+0.2000" in line
    assert line.endswith(": worse.")
    (table,) = of_checkpoints(content)[1].folded[0].grids
    assert len(table.rows) == len(windows(SIZE)) - 1
    assert ("learning rates are not known" in text) is not rates


def test_the_headline_of_a_training_run_says_what_the_soup_gained_over_the_last_checkpoint() -> (
    None
):
    report, _ = sample()
    last = f"c{SIZE}"
    row = next(row for row in report["rows"] if row["kind"] == "best_candidate")
    report["rows"].append({**row, "name": last, "kind": "last"})
    pair = {**report["comparisons"][0], "difference": 0.0123, "b": last, "kind": "last"}
    report["comparisons"].append(pair)
    without = headline(read(Report, report))
    assert last not in without
    report["trajectory"] = to_json(measured(rates=True))
    assert headline(read(Report, report)).startswith(without)
    assert f"minus {last}" in headline(read(Report, report))
    # The verdict speaks of the best candidate.
    for one in (report["rows"][-1], report["comparisons"][-1]):
        one["name" if "name" in one else "b"] = row["name"]
    assert headline(read(Report, report)) == without


def test_other_candidates_have_no_such_section() -> None:
    assert of_checkpoints(read(Report, sample()[0])) == ()


def test_windows_lie_where_their_oldest_checkpoint_was() -> None:
    windows = measured(rates=True).windows
    steps = {(window.kind, window.count): window.steps for window in windows}
    assert steps["uniform", 2] == 100
    assert steps["ema", SIZE] == 100 * (SIZE - 1)
    for window in windows:
        last = window.last
        assert last.difference is not None
        assert last.low is not None
        assert last.high is not None
        assert last.low <= last.difference <= last.high


def test_a_claim_on_the_recipe_takes_two_further_runs() -> None:
    claims = [measured(rates=True, runs=runs).runs.claim for runs in (0, 1, 2)]
    assert [claim is not None for claim in claims] == [False, False, True]


@pytest.mark.slow
def test_the_run_is_the_unit() -> None:
    """Of runs without a true difference, few are called different; items alone would call many."""
    dice = np.random.default_rng(1)
    last = scored(np.zeros(ITEMS))
    checkpoints = CheckpointScores.of(BITS_PER_BYTE, [last], Mean())
    over = 0
    alone = 0
    draws = 200
    for _ in range(draws):
        deltas = dice.standard_normal((3, 1)) * 0.3 + dice.standard_normal(ITEMS) * 0.5
        deltas = deltas + dice.standard_normal((3, ITEMS))
        claim = checkpoints.over_runs([(scored(gains), last) for gains in deltas])
        assert claim is not None
        over += claim.p_alone < 0.05
        alone += _items_alone(deltas.mean(axis=0)) < 0.05
    assert over <= 0.05 * draws
    assert alone > 0.1 * draws


def _items_alone(values: np.ndarray) -> float:
    table = (TABLE.categories, TABLE.groups, TABLE.coefficients)
    return compare("a", "b", values, np.zeros(ITEMS), *table, draws=199).p_alone


def test_one_training_run_makes_no_claim_about_the_recipe() -> None:
    last = scored(np.full(ITEMS, 0.5))
    checkpoints = CheckpointScores.of(POINTS, [last], Mean())
    assert checkpoints.over_runs([(scored(np.ones(ITEMS)), last)]) is None


def test_runs_add_their_variance_to_that_of_the_items() -> None:
    """Two runs that gain .1 and .3 on every item: mean .2, standard error .1 with one degree of freedom."""
    last = scored(np.full(ITEMS, 0.5))
    checkpoints = CheckpointScores.of(POINTS, [last], Mean())
    pairs = [(scored(np.full(ITEMS, 0.5 + gain)), last) for gain in (0.1, 0.3)]
    claim = checkpoints.over_runs(pairs)
    assert claim is not None
    assert claim.difference == pytest.approx(0.2)
    # Student's t, and a little more for what none of the items showed.
    students_p = stats.ttest_1samp([0.1, 0.3], 0).pvalue
    assert students_p < claim.p_alone < 1.2 * students_p


def test_missing_answers_of_the_last_checkpoint_bound_what_an_average_gained() -> None:
    """As counted the average gained 10 points, which are those that the last checkpoint never gave."""
    right = np.arange(ITEMS) < 60
    missing = (np.arange(ITEMS) >= 52) & (np.arange(ITEMS) < 60)
    average = scored(right.astype(float))
    last = replace(scored((right & ~missing).astype(float)), unanswered=missing.astype(float))
    difference = CheckpointScores.of(POINTS, [last], Mean()).versus_last(average)
    assert difference.difference == pytest.approx(0.1)
    assert difference.low <= 0
    assert difference.p_alone == 1
    claim = CheckpointScores.of(POINTS, [last], Mean()).over_runs([(average, last)] * 2)
    assert claim is not None
    assert claim.p_alone == 1
