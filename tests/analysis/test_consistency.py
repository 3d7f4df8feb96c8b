"""Correlations of categories before and after souping: means, limits and nulls by loops, and what a page shows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from souping.analysis import NotEstimableError, RunScores, consistency
from souping.analysis.consistency import (
    Consistency,
    ConsistencyResult,
    NullSpread,
    PopulationCorrelation,
)
from souping.analysis.correlation import GroupSums
from souping.core.types import FloatArray, Item, Recipe, ScoreMatrix
from souping.core.unit import POINTS
from tests.support.analyses import NAMES, result_json, run_of

Z = 1.959963984540054


def coin(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    """Right or wrong, by a generator of the recipe's own; soups are all right in category `z`."""
    rng = np.random.default_rng(int(recipe.id, 16))
    answers = (rng.random(len(items)) < 0.5).astype(float)
    if len(recipe.ingredients) > 1:
        answers[[item.category == "z" for item in items]] = 1.0
    return answers


def strength(table: FloatArray, varying: list[int]) -> float:
    """Mean |r| of numpy over the pairs of columns that vary."""
    usable = [c for c in varying if np.isfinite(table[:, c]).all() and np.ptp(table[:, c]) > 1e-12]
    if len(usable) < 2:
        return math.nan
    rho = np.atleast_2d(np.corrcoef(table[:, usable], rowvar=False))
    return float(np.abs(rho[np.triu_indices(len(usable), 1)]).mean())


def population(run: RunScores, ids: dict[str, str]) -> ScoreMatrix:
    return ScoreMatrix.from_items({name: run.search[recipe] for name, recipe in ids.items()})


def some_soups() -> RunScores:
    """A run of three ingredients and seven soups."""
    return run_of(3, answer=coin, per_category=6, trials=7)


@cache
def result_of_some_soups() -> dict[str, Any]:
    found: dict[str, Any] = result_json(Consistency(), some_soups())
    return found


def test_limits_are_1_96_standard_errors_over_a_thousand_draws() -> None:
    found = result_of_some_soups()
    assert found["left_out"] == ["z"]
    assert found["categories"] == ["w", "x", "y", "z"]
    run = some_soups()
    populations = {
        "before": population(run, {name: run.single(name).id for name in NAMES}),
        "after": population(run, {key: key for key in sorted(soup.id for soup in run.mixtures())}),
    }
    for key, scores in populations.items():
        drawn = GroupSums.of(scores).draws(1000, np.random.default_rng(0xC025))
        error = np.nanstd([strength(table, [0, 1, 2]) for table in drawn], ddof=1)
        mean = strength(scores.values, [0, 1, 2])
        row = found[key]
        assert row["models"] == len(scores.models)
        assert row["mean"] == pytest.approx(mean)
        assert row["low"] == pytest.approx(max(0.0, mean - Z * error))
        assert row["high"] == pytest.approx(min(1.0, mean + Z * error))
        assert row["matrix"][0][1] == pytest.approx(np.corrcoef(*scores.values[:, :2].T)[0, 1])
        assert row["matrix"][3][:3] == [None, None, None]
        assert np.diag(row["matrix"])[:3].tolist() == [1, 1, 1]


def by_groups(run: RunScores) -> tuple[FloatArray, FloatArray, list[str]]:
    """Sums of each ingredient by group and category [G, K, C], items by group [G, C], and the groups."""
    items = run.search[run.soups.soup.id].items
    groups = list(dict.fromkeys(item.group for item in items))
    sums = np.zeros((len(groups), 3, 4))
    counts = np.zeros((len(groups), 4))
    for n, item in enumerate(items):
        place = groups.index(item.group)
        counts[place, "wxyz".index(item.category)] += 1
        for k, name in enumerate(NAMES[:3]):
            score = run.search[run.single(name).id].values[n]
            sums[place, k, "wxyz".index(item.category)] += score
    return sums, counts, groups


@pytest.mark.parametrize("null", ["shared", "independent"])
def test_a_null_draws_an_ingredient_for_each_group_500_times(null: str) -> None:
    run = some_soups()
    found = result_of_some_soups()
    sums, counts, groups = by_groups(run)
    soups = sorted(run.mixtures(), key=lambda soup: soup.id)
    rng = np.random.default_rng([0xC025, 1])
    strengths = []
    for _ in range(500):
        order = rng.permutation(3)
        shared = rng.random(len(groups)) if null == "shared" else None
        own = None if null == "shared" else rng.random((len(soups), len(groups)))
        table = np.zeros((len(soups), 4))
        for s, soup in enumerate(soups):
            shares = [soup.shares.get(NAMES[k], 0.0) / sum(soup.weights) for k in order]
            ends = np.cumsum(shares)
            for g in range(len(groups)):
                point = shared[g] if own is None else own[s, g]  # type: ignore[index]
                picked = min(int((point >= ends).sum()), 2)
                table[s] += sums[g, order[picked]]
        strengths.append(strength(table / counts.sum(axis=0), [0, 1, 2]))
    row = found["nulls"][null]
    assert row["mean"] == pytest.approx(np.nanmean(strengths))
    limits = np.nanquantile(strengths, (0.025, 0.975))
    assert (row["low"], row["high"]) == pytest.approx(tuple(limits))


def test_exact_mixtures_are_weighted_means() -> None:
    run = some_soups()
    found = result_of_some_soups()
    means = np.array(
        [
            [values.mean() for values in run.search[run.single(name).id].by_category().values()]
            for name in NAMES[:3]
        ]
    )
    rows = []
    for soup in sorted(run.mixtures(), key=lambda soup: soup.id):
        weights = np.array([soup.shares.get(name, 0.0) for name in NAMES[:3]])
        rows.append(weights / weights.sum() @ means)
    expected = strength(np.array(rows), [0, 1, 2])
    assert found["nulls"]["exact"] == pytest.approx(
        dict.fromkeys(("mean", "low", "high"), expected)
    )


def test_it_takes_three_candidates_six_soups_and_two_categories() -> None:
    with pytest.raises(NotEstimableError, match="5 soups"):
        Consistency().analyse(run_of(3, trials=5, weights=(1.0, 0.0, 0.0)))
    two = run_of(2)
    known = dict(two.search)
    for name in NAMES[2:]:
        del known[two.single(name).id]
    with pytest.raises(NotEstimableError, match="2 candidates"):
        Consistency().analyse(replace(two, search=known))

    def flat(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
        return np.where([item.category == "w" for item in items], coin(recipe, items), 1.0)

    with pytest.raises(NotEstimableError, match="1 of 4 categories, and 2 are needed"):
        Consistency().analyse(run_of(3, answer=flat))


# What is shown


def shown(after: float | None = 0.5) -> ConsistencyResult:
    matrix = ((1.0, 0.25), (0.25, 1.0))
    return ConsistencyResult(
        split="search",
        metric="pearson",
        categories=("w", "x"),
        left_out=("y", "z"),
        before=PopulationCorrelation(
            models=4, note="few", mean=0.25, low=0.0, high=0.5, matrix=matrix
        ),
        after=PopulationCorrelation(models=12, mean=after, low=0.4, high=0.6, matrix=matrix),
        nulls={
            "independent": NullSpread(mean=0.3, low=0.2, high=0.4),
            "shared": NullSpread(mean=0.5, low=0.45, high=0.55),
            "exact": NullSpread(mean=0.9, low=0.9, high=0.9),
        },
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.2, "within"), (0.4, "within"), (0.2 - 2e-9, "below"), (0.4 + 2e-9, "above"), (0.2 - 5e-10, "within"),
        (0.4 + 5e-10, "within"), (None, "not comparable to"),
    ],
)  # fmt: skip
def test_a_value_is_above_below_or_within_a_null(value: float | None, place: str) -> None:
    assert NullSpread(mean=0.3, low=0.2, high=0.4).place(value) == place


@pytest.mark.parametrize("limits", [(None, 0.4), (0.2, None)])
def test_a_null_without_a_limit_is_not_compared(limits: Any) -> None:
    assert "not" in NullSpread(mean=0.3, low=limits[0], high=limits[1]).place(0.3)


def test_a_page_says_where_the_soups_are_among_the_nulls() -> None:
    head, against, note, left_out = shown().section(POINTS).lines
    assert "Mean |pearson rho|" in head
    assert "0.25 (0.00 to 0.50) over 4 candidates, 0.50 (0.40 to 0.60) over 12 soups" in head
    assert "above mixtures, independent draws (0.30)" in against
    assert "within mixtures, one draw per group (0.50)" in against
    assert "below exact mixtures (0.90)" in against
    assert "depends on which mixture" in against
    assert note == "few"
    assert "y and z" in left_out
    same = shown(0.95).section(POINTS).lines
    assert "depends on which mixture" not in same[1]
    plain = replace(shown(), left_out=(), before=replace(shown().before, note=None))
    assert len(plain.section(POINTS).lines) == 2


def test_a_table_has_a_row_for_each_population_and_each_null() -> None:
    (table,) = shown().section(POINTS).grids
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:4] for row in rows] == [
        ["candidates", "4", "0.25", "0.00 to 0.50"],
        ["soups of the search", "12", "0.50", "0.40 to 0.60"],
        ["mixtures, independent draws", "12", "0.30", "0.20 to 0.40"],
        ["mixtures, one draw per group", "12", "0.50", "0.45 to 0.55"],
        ["exact mixtures", "12", "0.90", "0.90 to 0.90"],
    ]
    assert [bool(row[4]) for row in rows] == [False, False, True, True, True]
    assert table.left == {0, 4}


def many(number: int) -> ConsistencyResult:
    """A result of so many categories."""
    matrix = tuple(tuple(0.5 + 0.5 * (a == b) for a in range(number)) for b in range(number))
    half = PopulationCorrelation(models=4, mean=0.25, low=0.0, high=0.5, matrix=matrix)
    names = tuple(f"c{n}" for n in range(number))
    return replace(shown(), categories=names, before=half, after=half)


def test_two_heatmaps_stand_side_by_side() -> None:
    (drawing,) = shown().drawings(POINTS)
    left, right = drawing.figure.axes
    assert left.get_title() == "4 candidates\nmean |rho| 0.25"
    assert right.get_title() == "12 soups of the search\nmean |rho| 0.50"
    assert left.get_title() != right.get_title()
    assert {axes.title.get_fontsize() for axes in (left, right)} == {9}
    for axes in (left, right):
        shades = axes.collections[0].get_array()
        assert shades is not None
        assert shades.ravel().tolist() == [1, 0.25, 0.25, 1]
    assert left.get_yticks().tolist() == [0, 1]
    assert [label.get_text() for label in left.get_yticklabels()] == ["w", "x"]
    assert right.get_yticks().tolist() == []
    assert left.get_position().x1 < right.get_position().x0
    assert "every two of 2 categories" in drawing.alt
    assert "0.25 over the candidates and 0.50 over the soups" in drawing.alt


@pytest.mark.parametrize(("number", "side"), [(2, 2.4), (12, 5.04), (13, 5.46)])
def test_heatmaps_grow_with_the_categories_and_many_have_no_numbers(
    number: int, side: float
) -> None:
    (drawing,) = many(number).drawings(POINTS)
    assert drawing.figure.get_size_inches() == pytest.approx((2.04 * side, side))
    numbers = drawing.figure.axes[0].texts
    assert len(numbers) == (number**2 if number <= 12 else 0)
    assert {text.get_fontsize() for text in numbers} <= {6.5}


def test_the_numbers_of_a_consistency_are_those_of_earlier_reports() -> None:
    assert (consistency.CONSISTENCY_SALT, consistency.POPULATION_DRAWS) == (0xC025, 1000)
    assert (consistency.MIXTURES, consistency.ROUNDING) == (500, 1e-9)
