"""Shapley values: which soups are asked for, intervals and categories by the formula, and what a page shows of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb, factorial
from typing import Any

import numpy as np
import pytest

from souping.analysis import NotEstimableError, RunScores
from souping.analysis.shapley import (
    PlayerValue,
    Shapley,
    ShapleyLevel,
    ShapleyResult,
    exact_coefficients,
)
from souping.core.scores import WorstCategory
from souping.core.types import FloatArray, Item, Recipe, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS
from souping.report.plots import COLOURS, INK
from souping.statistics.intervals import objective_interval
from souping.statistics.score_table import ItemTable, ModelScores
from tests.support.analyses import NAMES, recipe_of, result_json, run_of
from tests.support.drawings import bars, legend, line

SIX = ("ant", "bee", "cat", "dog", "eel", "fox")


def coin(recipe: Recipe, items: tuple[Item, ...]) -> FloatArray:
    rng = np.random.default_rng(int(recipe.id, 16))
    return (rng.random(len(items)) < 0.5).astype(float)


def scores_of(run: RunScores, members: tuple[str, ...]) -> FloatArray:
    return run.search[recipe_of(dict.fromkeys(members, 1 / len(members))).id].values


def marginal(run: RunScores, names: tuple[str, ...], player: str) -> FloatArray:
    """What each item adds to a model's Shapley value, by Shapley's formula; nobody is worth the mean of the models."""
    n = len(names)
    nobody = np.mean([scores_of(run, (name,)) for name in names], axis=0)
    others = [name for name in names if name != player]
    total = np.zeros(len(nobody))
    for size in range(n):
        weight = factorial(size) * factorial(n - size - 1) / factorial(n)
        for subset in combinations(others, size):
            without = scores_of(run, subset) if subset else nobody
            together = tuple(name for name in names if name in (*subset, player))
            total += weight * (scores_of(run, together) - without)
    return total


def test_intervals_and_categories_are_those_of_what_each_item_adds() -> None:
    run = run_of(3, asked=Shapley().asks, answer=coin, per_category=8)
    found: dict[str, Any] = result_json(Shapley(), run)
    items = run.search[run.soups.soup.id].items
    table = ItemTable.of(items, run.objective)
    for row in found["levels"][0]["models"]:
        (player,) = row["members"]
        added = marginal(run, NAMES[:3], player)
        interval = objective_interval(ModelScores(items=table, values=added))
        assert (row["low"], row["high"]) == pytest.approx(interval.estimate[1:])
        assert row["low"] < row["value"] < row["high"]
        for category, value in row["categories"].items():
            own = [item.category == category for item in items]
            assert value == pytest.approx(added[own].mean())
        assert row["value"] == pytest.approx(np.mean(list(row["categories"].values())))


def test_every_subset_is_listed_with_its_soup_and_score() -> None:
    run = run_of(3, asked=Shapley().asks, answer=coin)
    found: dict[str, Any] = result_json(Shapley(), run)
    subsets = [list(names) for size in (1, 2, 3) for names in combinations(NAMES[:3], size)]
    assert [row["members"] for row in found["subsets"]] == subsets
    for row in found["subsets"]:
        soup = recipe_of(dict.fromkeys(row["members"], 1 / len(row["members"])))
        assert row["recipe_id"] == soup.id
        # Categories are equally large, so the mean of their means is that of the items.
        assert row["value"] == pytest.approx(run.search[soup.id].values.mean())
    assert found["whole"] == found["subsets"][-1]["value"]
    assert (found["models"], found["split"]) == (list(NAMES[:3]), "search")


@pytest.mark.parametrize(
    ("size", "levels"), [(2, [2, 1]), (4, [4, 6, 4]), (5, [5, 10, 10]), (6, [6])]
)
def test_pairs_and_triplets_are_shown_if_there_are_at_most_twelve(
    size: int, levels: list[int]
) -> None:
    analysis = Shapley(max_models=6)
    run = run_of(size, pool=SIX[:size], trials=1, asked=analysis.asks, answer=coin, per_category=2)
    assert len(analysis.asks(run.soups)) == 2**size - 1
    found: dict[str, Any] = result_json(analysis, run)
    assert [len(level["models"]) for level in found["levels"]] == levels
    assert [level["size"] for level in found["levels"]] == [1, 2, 3][: len(levels)]
    assert [level["kind"] for level in found["levels"]] == [
        "single models", "pairs", "triplets",
    ][: len(levels)]  # fmt: skip
    assert all(level["efficiency_gap"] < 1e-12 for level in found["levels"])


def test_there_are_1_to_12_players() -> None:
    assert Shapley(max_models=1).max_models == 1
    assert Shapley(max_models=12).max_models == 12
    for size in (0, 13):
        with pytest.raises(UserError, match="max_models"):
            Shapley(max_models=size)


def test_players_may_be_all_candidates() -> None:
    analysis = Shapley(over="candidates", max_models=4)
    run = run_of(2, asked=analysis.asks)
    assert {frozenset(recipe.ingredients) for recipe in analysis.asks(run.soups)} == {
        frozenset(names) for size in (1, 2, 3, 4) for names in combinations(NAMES, size)
    }
    assert Shapley(over="candidates", max_models=3).asks(run.soups) == ()


def test_an_objective_that_is_not_linear_has_no_shapley_values() -> None:
    run = replace(run_of(2, asked=Shapley().asks), objective=WorstCategory())
    with pytest.raises(NotEstimableError, match="linear"):
        Shapley().analyse(run)


def test_a_subset_without_answers_is_counted() -> None:
    run = run_of(3, asked=Shapley().asks)
    known = dict(run.search)
    for pair in combinations(NAMES[:3], 2):
        del known[recipe_of(dict.fromkeys(pair, 1 / 2)).id]
    with pytest.raises(NotEstimableError, match="3 of 7 subsets"):
        Shapley().analyse(replace(run, search=known))


def test_a_base_without_answers_is_no_baseline() -> None:
    run = run_of(2, asked=Shapley().asks)
    known = {name: scores for name, scores in run.search.items() if name != run.single("dog").id}
    based = replace(run, search=known, soups=replace(run.soups, base="dog"))
    assert result_json(Shapley(), based) == result_json(Shapley(), run)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_coefficients_of_a_player_are_those_of_shapleys_formula(n: int) -> None:
    players = [frozenset([name]) for name in SIX[:n]]
    for player, coefficients in exact_coefficients(players).items():
        joined = {s: c for s, c in coefficients.items() if player <= s}
        assert len(joined) == 2 ** (n - 1)
        for subset, coefficient in joined.items():
            size = len(subset) - 1
            expected = 1 / (n * comb(n - 1, size))
            assert coefficient == pytest.approx(expected)
            assert coefficients[subset - player] == pytest.approx(-expected)


# What is shown


def player(*members: str, value: float | None = 0.02) -> PlayerValue:
    low = None if value is None else value - 0.05
    high = None if value is None else value + 0.05
    return PlayerValue(
        members=members, value=value, low=low, high=high, categories={"w": value, "x": 0.1}
    )


SINGLES = ShapleyLevel(
    size=1,
    kind="single models",
    models=(player("ant"), player("bee", value=-0.01), player("cat", value=0.03)),
    efficiency_gap=0.0,
)
PAIRS = ShapleyLevel(
    size=2,
    kind="pairs",
    models=(player("ant", "bee"), player("ant", "cat", value=None)),
    efficiency_gap=0.0,
)
ALL_THREE = ShapleyLevel(
    size=3, kind="triplets", models=(player("ant", "bee", "cat"),), efficiency_gap=0.0
)
RESULT = ShapleyResult(
    split="search",
    models=("ant", "bee", "cat"),
    whole=0.5,
    baseline="",
    baseline_score=0.46,
    levels=(SINGLES, PAIRS, ALL_THREE),
    subsets=(),
)


def texts(grid: Any) -> list[list[str]]:
    return [[f"{cell.text}|{cell.sub}".rstrip("|") for cell in row] for row in grid.rows]


def test_a_page_shows_single_models_and_folds_the_rest() -> None:
    section = RESULT.section(POINTS)
    assert "mean of the models alone (46.0)" in section.lines[0]
    assert "sum to +4.0 points, what the soup of all (50.0)" in section.lines[0]
    (table,) = section.grids
    assert table.header[0] == "single models"
    assert texts(table) == [
        ["ant", "+2.0|\u22123.0 to +7.0"],
        ["bee", "\u22121.0|\u22126.0 to +4.0"],
        ["cat", "+3.0|\u22122.0 to +8.0"],
    ]
    pairs, triplets, categories = section.folded
    assert (pairs.title, triplets.title) == ("Pairs", "Triplets")
    assert texts(pairs.grids[0])[0] == ["ant + bee", "+2.0|\u22123.0 to +7.0"]
    assert categories.grids[0].header == ("category", "ant", "bee", "cat")
    assert texts(categories.grids[0]) == [
        ["w", "+2.0", "\u22121.0", "+3.0"],
        ["x", "+10.0", "+10.0", "+10.0"],
    ]
    assert replace(RESULT, levels=()).section(POINTS).grids == ()


def test_the_bars_are_the_values_and_the_lines_their_intervals() -> None:
    (drawing,) = RESULT.drawings(POINTS)
    (axes,) = drawing.figure.axes
    # Levels of a single player have no bars.
    assert [bar.get_width() for bar in bars(axes)] == pytest.approx([2.0, -1.0, 3.0, 2.0, 0.0])
    assert [round(b.get_y() + b.get_height() / 2, 6) for b in bars(axes)] == [0, 1, 2, 3, 4]
    assert {round(bar.get_height(), 9) for bar in bars(axes)} == {0.72}
    assert [drawn.get_linewidth() for drawn in axes.lines] == [1.1] * 5 + [0.8]
    *limits, zero = map(line, axes.lines)
    assert limits[0][0] == pytest.approx([-3.0, 7.0])
    assert limits[1][0] == pytest.approx([-6.0, 4.0])
    assert [y for _, y in limits] == [[n, n] for n in range(5)]
    assert limits[4][0] == [0, 0]
    assert zero[0] == [0, 0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["ant", "bee", "cat", "ant + bee", "ant + cat"]
    entries, corner = legend(axes)
    assert entries == ["single models", "pairs"]
    # Above the axes, from their left end on.
    assert corner == pytest.approx((0, 1))
    assert "ant +2.0; bee \u22121.0; cat +3.0; ant + bee +2.0" in drawing.alt
    assert "points" in axes.get_xlabel()
    # As many rows again take as much room again.
    more = replace(RESULT, levels=(SINGLES, PAIRS, PAIRS))
    widths, heights = zip(
        *(r.drawings(POINTS)[0].figure.get_size_inches() for r in (RESULT, more)), strict=True
    )
    assert widths == pytest.approx((8.6, 8.6))
    assert heights == pytest.approx((1 + 5 * 0.27, 1 + 7 * 0.27))


def test_bars_have_the_colour_of_their_level_and_the_unit_of_the_scores() -> None:
    from matplotlib.colors import to_rgba

    levels = [
        replace(SINGLES, size=size, kind=str(size), models=SINGLES.models[:2])
        for size in (1, 2, 3, 4)
    ]
    (drawing,) = replace(RESULT, levels=tuple(levels)).drawings(BITS_PER_BYTE)
    drawn = bars(drawing.figure.axes[0])
    colours = [COLOURS["soup"], COLOURS["best_candidate"], COLOURS["uniform_selected"], INK]
    assert [bar.get_facecolor() for bar in drawn[::2]] == [to_rgba(colour) for colour in colours]
    assert drawn[0].get_width() == pytest.approx(0.02)


def test_nothing_is_drawn_of_single_players() -> None:
    assert replace(RESULT, levels=(ALL_THREE,)).drawings(POINTS) == ()


def test_a_base_that_is_not_evaluated_is_said() -> None:
    assert Shapley().notes(None, None) == []
    assert Shapley().notes("org/base", "base") == []
    (note,) = Shapley().notes("org/base", None)
    assert note.startswith("merge.base_model=org/base is not a candidate")
