"""Scores on other scales than 0 to 1: the same verdicts, and the same intervals in the unit of the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import souping
from souping.comparison.result import CompareResult, RowVerdict
from souping.statistics.comparison import contrast
from souping.statistics.score_table import ItemTable, ScoreTable, one_category
from tests.comparison.worlds import metric, pooled
from tests.conftest import Cli
from tests.support.logs import Frame, write_csv

ITEMS = 40


def wrongs(name: str, wrong: dict[str, list[int]], scale: float, higher: bool = True) -> Frame:
    """Answers to three tasks of which these items are wrong; None are missing."""
    rows: list[dict[str, Any]] = []
    for task in ("x", "y", "z"):
        for n in range(ITEMS):
            is_right = n not in wrong.get(task, [])
            row = {"item": f"{task}{n}", "category": task, "score": scale * (is_right == higher)}
            rows.append(row | {"higher_is_better": higher, "model": name})
    return Frame(rows)


def gains(row: RowVerdict) -> list[float]:
    """Numbers of a row if higher were better. The average row of fractions is turned so, that of others is not."""
    if row.higher_is_better:
        return [row.difference, row.low, row.high, row.detectable]
    return [-row.difference, -row.high, -row.low, row.detectable]


def same(one: CompareResult, other: CompareResult, scale: float) -> None:
    assert len(one.verdicts) == len(other.verdicts)
    for row, scaled in zip(one.verdicts, other.verdicts, strict=True):
        expected = scale * np.array(gains(row))
        assert gains(scaled) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-7), row.name
        assert scaled.p_value == pytest.approx(row.p_value)
        assert (scaled.test, scaled.missing, scaled.verdict) == (row.test, row.missing, row.verdict)


@pytest.mark.parametrize("scale", [100.0, 5.0])
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(
    ("base", "cand"),
    [
        ({"x": [1, 2, 3]}, {"x": [4]}),
        ({"x": [1, 2, 3], "y": [*range(ITEMS)]}, {"x": [4], "y": [*range(ITEMS)]}),
        ({"x": [*range(ITEMS)], "y": [0]}, {"x": [*range(30)], "y": []}),
    ],
    ids=["few wrong", "a task is all wrong", "one model is"],
)
def test_right_or_wrong_on_another_scale_has_the_same_intervals_in_its_unit(
    base: dict[str, list[int]], cand: dict[str, list[int]], higher: bool, scale: float
) -> None:
    results = []
    for unit in (1.0, scale):
        logs = {
            "base": wrongs("base", base, unit, higher),
            "cand": wrongs("cand", cand, unit, higher),
        }
        results.append(souping.compare(logs))
    same(results[0], results[1], scale)


def test_missing_answers_are_bounded_by_right_and_wrong_on_any_scale() -> None:
    results = []
    for unit in (1.0, 100.0):
        logs = {"base": wrongs("base", {"x": [1, 2, 3]}, unit), "cand": wrongs("cand", {}, unit)}
        for name, place in (("base", 5), ("cand", 47)):
            logs[name].rows[place]["score"] = None
        results.append(souping.compare(logs))
    assert results[0].verdicts[0].missing == 2
    same(results[0], results[1], scale=100.0)


def test_two_scores_are_right_and_wrong_if_neither_is_zero() -> None:
    right = np.arange(60) % 7 > 1
    worse = np.arange(60) % 5 > 1
    shown = []
    for low, high in ((0, 1), (-1, 1), (5, 10)):
        scores = {"a": np.where(right, high, low), "b": np.where(worse, high, low)}
        comparison = contrast(ScoreTable.complete(one_category(np.arange(60)), scores), "a", "b")
        shown.append([comparison.p_alone, comparison.low / (high - low), comparison.test])
    for other in shown[1:]:
        assert other[:2] == pytest.approx(shown[0][:2])
        assert other[2] == shown[0][2]


def test_what_graded_scores_did_not_show_is_bounded_in_the_range_of_their_own_task() -> None:
    """No item differs: the exact limit times the range. Gains start at 0, losses where they were seen."""
    rng = np.random.default_rng(0)
    narrow = 2 + 6 * rng.random(50)
    wide = 3 + 97 * rng.random(50)
    exact = 1 - 0.025 ** (1 / 50)
    for is_gain, ranges in (
        (True, (narrow.max(), wide.max())),
        (False, (np.ptp(narrow), np.ptp(wide))),
    ):
        tasks = []
        for name, values in (("t", narrow), ("u", wide)):
            scores = {"a": values, "b": values}
            tasks.append(metric(name, scores, higher_is_better=is_gain, is_mean=False))
        table = pooled(*tasks)
        for name, range_ in zip("tu", ranges, strict=True):
            alone = contrast(table.only([name]), "a", "b")
            assert (alone.low, alone.high) == pytest.approx((-exact * range_, exact * range_))
        assert contrast(table, "a", "b").high == pytest.approx(exact * ranges[1] / 2)


def test_a_score_of_its_own_is_no_range() -> None:
    """All right against a constant 95: two scores, of which neither model shows both."""
    items = one_category(np.arange(35))
    table = ScoreTable.complete(items, {"a": np.full(35, 100.0), "b": np.full(35, 95.0)})
    assert contrast(table, "a", "b").low < 0


def test_bootstrap_t_of_graded_scores_scales_with_them() -> None:
    rng = np.random.default_rng(1)
    items = ItemTable(
        names=("x", "y"),
        categories=np.repeat([0, 1], [40, 20]),
        groups=np.arange(60),
        coefficients=np.array([0.5, 0.5]),
    )
    # Few items of the second category differ, so draws have none of them.
    a = rng.random(60)
    b = np.where(np.arange(60) < 42, rng.random(60), a)
    # The range of both categories is 1, as that of fractions.
    a[0] = a[59] = b[59] = 1.0
    one = contrast(ScoreTable.complete(items, {"a": a, "b": b}), "a", "b")
    hundred = contrast(ScoreTable.complete(items, {"a": 100 * a, "b": 100 * b}), "a", "b")
    assert hundred.p_alone == pytest.approx(one.p_alone)
    assert (hundred.low, hundred.high) == pytest.approx((100 * one.low, 100 * one.high))


def test_percentages_without_a_direction_are_refused_with_the_fix_that_does_not_reverse_them(
    souping: Cli, tmp_path: Any
) -> None:
    for name in ("base", "cand"):
        rows = [{"item": n, "category": "x", "score": 100 * (n % 2)} for n in range(20)]
        write_csv(tmp_path / f"{name}.csv", rows)
    refused = souping("compare", "base=base.csv", "cand=cand.csv")
    refused.refused("higher_is_better")
    assert refused.err.index("100") < refused.err.index("--lower-is-better")
    assert refused.err.index("higher_is_better with true") < refused.err.index("--lower-is-better")
