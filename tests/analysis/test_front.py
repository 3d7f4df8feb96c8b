"""Several goals: what is read and refused, and the front of a search with known truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from souping.analysis import front
from souping.analysis.front import (
    LENGTH,
    Front,
    FrontPoint,
    FrontResult,
    Goal,
    GoalBand,
    resolve_goals,
    undominated,
)
from souping.analysis.surface import design_effect, fitted_surface
from souping.core.reading import to_json
from souping.core.types import Item, Recipe, Result, Trial, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS, Unit
from souping.search.adaptive import Adaptive
from tests.support.drawings import line, segments

ITEMS = [
    Item(id=f"{c}{n}", category=c, group=f"{c}{n}", prompt="", answer="")
    for c in "ab"
    for n in range(150)
]


def trial(number: int, point: tuple[float, ...], values: Any, lengths: Any) -> Trial:
    recipe = Recipe(ingredients=("x", "y"), fingerprints=("x", "y"), weights=point, dtype="F32")
    result = Result(
        objective=float(values.mean()), categories={}, items=300, values=values, lengths=lengths
    )
    return Trial(number=number, recipe=recipe, weights=point, result=result)


@pytest.mark.parametrize(
    ("pareto", "words"),
    [
        (["a"], "two goals"), (["a", "a"], "each once"), ({"a": 1}, "two goals"),
        ({"a": 0, "b": 0}, "above 0"), ({"a": -1, "b": 2}, "above 0"), ({"a": "x", "b": 2}, "above 0"),
        (["a", "bb"], "pareto=bb"), ({"a": 1, "mgsm": 1}, "pareto=mgsm"),
    ],
)  # fmt: skip
def test_goals_must_be_two_known_names_with_weights_above_zero(pareto: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve_goals(pareto, ["a", "b"], {}, POINTS)


def test_scores_that_are_shown_as_fractions_of_1_can_be_goals() -> None:
    unit = Unit(name="F1", symbol="F1", meaning="mean F1", scale=1.0, digits=3, min_gain=0.01)
    goals = resolve_goals(["a", "tokens"], ["a", "b"], {}, unit)
    assert [(goal.name, goal.lengths) for goal in goals] == [("a", False), ("tokens", True)]


def test_a_front_holds_what_nothing_beats() -> None:
    values = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.4, 0.5], [1, 0]])
    assert undominated(values).tolist() == [True, True, True, False, True]


def test_bands_of_a_front_hold_the_true_rates_and_its_choice_follows_the_weights() -> None:
    """Rates of a and b are 0.3 + 0.6 times the share of x and of y; x doubles the tokens, from 100 to 200."""
    rng = np.random.default_rng(1)
    points = Adaptive().points(2)
    rates = {
        point: np.repeat([0.3 + 0.6 * point[0], 0.3 + 0.6 * point[1]], 150) for point in points
    }
    scores = {point: (rng.random(300) < rates[point]).astype(float) for point in points[::2]}
    lengths = {point: rng.poisson(100 * (1 + point[0]), 300).astype(float) for point in points[::2]}
    weights = {"a": 0.75, "b": 0.25, "tokens": 0.0}
    goals = resolve_goals(weights, ["a", "b"], {}, POINTS)
    front = Front(
        goals, ITEMS, points, [trial(n, p, scores[p], lengths[p]) for n, p in enumerate(scores)]
    )
    assert ((front.low <= front.means) & (front.means <= front.high)).all()
    true = {point: (0.3 + 0.6 * point[0], 0.3 + 0.6 * point[1]) for point in points}
    truth = np.array([true[tuple(point)] for point in front.points])
    # Bands are of 95 % each.
    assert ((front.low[:, :2] <= truth) & (truth <= front.high[:, :2])).mean() > 0.8
    merits = front.merits({"a": 1.0})
    assert max(merits, key=lambda point: merits[point]) == (1.0, 0.0)
    assert len(front.candidates(goal_weights=None)) <= 3
    result = front.result(["x", "y"], {"x": 1.0}, weights)
    data: Any = to_json(result)
    chosen = data["chosen"]
    assert chosen["weights"] == [1.0, 0.0]
    tokens = chosen["goals"]["tokens"]
    assert 100 < tokens["low"] < tokens["mean"] < tokens["high"] < 300
    assert "the largest 0.75 a" in result.section(POINTS).lines[1]
    assert len(result.drawings(POINTS)) == 1


def test_goals_of_a_loss_are_best_where_it_is_lowest() -> None:
    rng = np.random.default_rng(2)
    points = Adaptive().points(2)
    texts = 1 + rng.random(300)
    categories = np.repeat([0, 1], 150)
    losses = {point: texts + 0.1 * np.array(point)[categories] for point in points}
    trials = [
        trial(n, p, BITS_PER_BYTE.inner(losses[p]), np.zeros(300)) for n, p in enumerate(points)
    ]
    goals = resolve_goals(["a", "b"], ["a", "b"], {}, BITS_PER_BYTE)
    result = Front(goals, ITEMS, points, trials).result(["x", "y"], {"x": 1.0}, None)
    data: Any = to_json(result)
    for number, goal in enumerate(("a", "b")):
        first = data["chosen"]["goals"][goal]
        assert first["mean"] == pytest.approx(
            losses[1.0, 0.0][categories == number].mean(), abs=0.02
        )
        assert first["low"] < first["mean"] < first["high"]
    assert len(data["points"]) == len(points)  # each gives up one category for the other
    header = result.section(POINTS).grids[0].header
    assert "bits per byte" in header[1]


POINTS_OF_TWO = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.75, 0.25), (0.25, 0.75))
"""Weights, of which only the first three are evaluated."""


def small_front(goals: Any, items: list[Item], lengths: Any = None) -> tuple[Front, Any]:
    """A front of three soups on items of two categories, and the scores of all points [S, I], nan where unknown."""
    rng = np.random.default_rng(6)
    size = len(items)
    scores = np.full((5, size), np.nan)
    scores[:3] = (rng.random((3, size)) < [[0.4], [0.6], [0.55]]).astype(float)
    scores[2, size // 2 :] = np.nan
    trials = []
    for n in range(3):
        given = np.zeros(size) if lengths is None else lengths[n]
        trials.append(trial(n, POINTS_OF_TWO[n], scores[n], given))
    return Front(goals, items, POINTS_OF_TWO, trials), scores


def pooled(groups_of: int = 1) -> list[Item]:
    """20 items of category a, 12 of b."""
    return [
        Item(id=f"{c}{n}", category=c, group=f"{c}{n // groups_of}", prompt="", answer="")
        for c, size in (("a", 20), ("b", 12))
        for n in range(size)
    ]


@pytest.mark.parametrize("groups_of", [1, 4])
def test_goals_are_linear_in_the_posterior_of_the_categories(groups_of: int) -> None:
    items = pooled(groups_of)
    goals = resolve_goals(["a", "all"], ["a", "b"], {"all": ["a", "b"]}, POINTS)
    front, scores = small_front(goals, items)
    categories = np.repeat([0, 1], [20, 12])
    groups = np.unique([item.group for item in items], return_inverse=True)[1]
    effect = design_effect(scores, categories, groups)
    points = np.array(POINTS_OF_TWO)
    model = fitted_surface(points, scores, categories, np.ones(2), effect=effect)
    first, second = (model.posterior(c).mean for c in range(2))
    assert front.means[:, 0] == pytest.approx(first)
    # The group pools its items, of which 20 are in the first category and 12 in the second.
    assert front.means[:, 1] == pytest.approx((20 * first + 12 * second) / 32)
    draws = model.posterior_draws(400, max(1.0, model.surprise()))
    of_goals = np.stack([draws[..., 0], draws @ np.array([20, 12]) / 32], axis=-1)
    assert front.low == pytest.approx(np.quantile(of_goals, 0.025, axis=0))
    assert front.high == pytest.approx(np.quantile(of_goals, 0.975, axis=0))
    on = []
    for draw in of_goals:
        beaten = [
            any((other >= row).all() and (other > row).any() for other in draw) for row in draw
        ]
        on.append(~np.array(beaten))
    assert front.odds == pytest.approx(np.mean(on, axis=0))
    assert front.on.tolist() == undominated(front.means).tolist()
    assert (front.known, front.whole.tolist()) == (3, [True, True, False, False, False])


def test_lengths_are_minus_a_multiple_of_the_first_model_and_shown_as_tokens() -> None:
    items = pooled()
    rng = np.random.default_rng(9)
    lengths = rng.integers(20, 60, (3, 32)).astype(float)
    goals = resolve_goals(["a", "tokens"], ["a", "b"], {}, POINTS)
    front, _ = small_front(goals, items, lengths)
    table = np.full((5, 32), np.nan)
    table[:3] = -lengths / lengths[0].mean()
    categories = np.repeat([0, 1], [20, 12])
    effect = design_effect(table, categories, np.arange(32))
    model = fitted_surface(
        np.array(POINTS_OF_TWO), table, categories, np.ones(2), rise=0.0, effect=effect
    )
    first, second = (model.posterior(c).mean for c in range(2))
    assert front.means[:, 1] == pytest.approx((20 * first + 12 * second) / 32)
    data: Any = to_json(front.result(["x", "y"], {"x": 1.0}, None))
    tokens = data["chosen"]["goals"]["tokens"]
    mean, low, high = (float(row[0, 1]) for row in (front.means, front.low, front.high))
    shown = [tokens["mean"], tokens["low"], tokens["high"]]
    # Fewer tokens are better: the upper limit of the goal is the lower one of the tokens.
    assert shown == pytest.approx([-lengths[0].mean() * value for value in (mean, high, low)])
    assert (LENGTH.higher_is_better, LENGTH.fractions, LENGTH.scale) == (False, False, 1.0)


def test_answers_without_tokens_are_equally_long() -> None:
    goals = resolve_goals(["a", "tokens"], ["a", "b"], {}, POINTS)
    front, _ = small_front(goals, pooled())
    assert front.means[:, 1] == pytest.approx(np.zeros(5), abs=1e-9)


def test_merits_and_candidates_follow_the_weights_of_the_goals() -> None:
    goals = resolve_goals(["a", "b"], ["a", "b"], {}, POINTS)
    front, _ = small_front(goals, pooled())
    merits = front.merits({"a": 0.25, "b": 2.0, "other": 9.0})
    expected = 0.25 * front.means[:, 0] + 2 * front.means[:, 1]
    assert list(merits) == list(POINTS_OF_TWO)
    assert list(merits.values()) == pytest.approx(expected)
    on = [point for point, kept in zip(POINTS_OF_TWO, front.on, strict=True) if kept]
    by_merit = sorted(on, key=lambda point: -merits[point])
    assert front.candidates({"a": 0.25, "b": 2.0}) == by_merit[:3]
    odds = dict(zip(POINTS_OF_TWO, front.odds, strict=True))
    assert front.candidates(None) == sorted(on, key=lambda point: -odds[point])[:3]


def test_a_result_has_the_front_in_the_order_of_its_first_goal_and_the_rest() -> None:
    goals = resolve_goals({"a": 1.0, "b": 3.0}, ["a", "b"], {}, POINTS)
    front, _ = small_front(goals, pooled())
    result = front.result(["x", "y"], {"x": 0.5 + 1e-9, "y": 0.5 - 1e-9}, {"a": 1.0, "b": 3.0})
    on = np.flatnonzero(front.on)
    order = on[np.argsort(front.means[on, 0], kind="stable")]
    assert [row.weights for row in result.points] == [POINTS_OF_TWO[n] for n in order]
    off = np.flatnonzero(~front.on)
    assert [row.weights for row in result.rest] == [POINTS_OF_TWO[n] for n in off]
    assert result.chosen.weights == (0.5, 0.5)
    assert (result.chosen.confirmed, result.soups, result.split) == (False, 3, "search")
    band = result.chosen.goals["b"]
    inner = [float(row[2, 1]) for row in (front.means, front.low, front.high)]
    assert (band.mean, band.low, band.high) == pytest.approx(tuple(np.clip(inner, 0, 1)))
    assert result.ingredients == ("x", "y")
    assert result.goal_weights == {"a": 1.0, "b": 3.0}


@pytest.mark.parametrize("weights", [{"a": np.inf, "b": 1.0}, {"a": np.nan, "b": 1.0}])
def test_goal_weights_are_finite(weights: Any) -> None:
    with pytest.raises(UserError, match="pareto"):
        resolve_goals(weights, ["a", "b"], {}, POINTS)


def test_no_goals_are_no_front_and_a_weight_may_be_zero() -> None:
    assert resolve_goals((), ["a", "b"], {}, POINTS) == ()
    assert [goal.name for goal in resolve_goals({"a": 0, "b": 1}, ["a", "b"], {}, POINTS)] == [
        "a",
        "b",
    ]


# What is shown


def shown(number: int, more: int = 2, confirmed: int = 1) -> FrontResult:
    """So many points on the front and more besides; the last of them are confirmed."""

    def point(n: int, known: bool) -> FrontPoint:
        first = GoalBand(mean=n / 100, low=n / 100 - 0.02, high=n / 100 + 0.01)
        second = GoalBand(mean=0.5, low=0.46, high=0.57)
        weights = (n / 100, 1 - n / 100)
        return FrontPoint(weights=weights, goals={"a": first, "b": second}, confirmed=known)

    return FrontResult(
        split="search",
        goals=(Goal(name="a"), Goal(name="b")),
        ingredients=("x", "y"),
        soups=11,
        goal_weights={"a": 0.5, "b": 2.0},
        points=tuple(point(n, n >= number - confirmed) for n in range(number)),
        chosen=point(1, known=True),
        rest=tuple(point(50 + n, known=False) for n in range(more)),
    )


def test_a_page_lists_confirmed_points_first_and_says_what_was_preferred() -> None:
    section = shown(3).section(POINTS)
    first, second = section.lines
    assert "3 of 5 soups are on the front" in first
    assert "11 evaluated soups" in first
    assert "the largest 0.5 a + 2 b" in second
    none = replace(shown(3), goal_weights={"a": 0.0, "b": None}).section(POINTS).lines[1]
    assert "the largest 0 a + 0 b" in none
    (table,) = section.grids
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [
        ["0.02 / 0.98", "2.0 [0.0, 3.0]", "50.0 [46.0, 57.0]", "yes"],
        ["0 / 1", "0.0 [\u22122.0, 1.0]", "50.0 [46.0, 57.0]", ""],
        ["0.01 / 0.99", "1.0 [\u22121.0, 2.0]", "50.0 [46.0, 57.0]", ""],
    ]
    assert table.header == ("x / y", "a %", "b %", "confirmed")
    assert len(replace(shown(3), goal_weights=None).section(POINTS).lines) == 1


def test_a_page_lists_15_points() -> None:
    exact = shown(15).section(POINTS)
    assert (len(exact.grids[0].rows), len(exact.lines)) == (15, 2)
    longer = shown(17).section(POINTS)
    assert len(longer.grids[0].rows) == 15
    assert longer.lines[2].startswith("2 more")


def test_the_first_two_goals_are_drawn_with_their_bands() -> None:
    """Of `shown(2)`: the front at 0 and 1 % of a, two more soups at 50 and 51 %; the one at 1 % is chosen."""
    (drawing,) = shown(2).drawings(POINTS)
    (axes,) = drawing.figure.axes
    # Those without points are there for the legend.
    rest, front, ring = ((x, y) for x, y in map(line, axes.lines) if x)
    assert [drawn.get_markersize() for drawn in axes.lines][:3] == [3, 4, 14]
    assert [bar.get_linewidth() for bar in axes.collections] == [[0.5], [0.5]]
    assert drawing.figure.get_size_inches() == pytest.approx((6.4, 4.2))
    assert rest[0] == pytest.approx([50, 51])
    assert rest[1] == pytest.approx([50, 50])
    assert front[0] == pytest.approx([0, 1])
    assert (ring[0][0], ring[1][0]) == pytest.approx((1, 50))
    across, upright = map(segments, axes.collections)
    assert [sorted(end[0] for end in bar) for bar in across] == [
        pytest.approx([-2, 1]),
        pytest.approx([-1, 2]),
    ]
    assert [sorted(end[1] for end in bar) for bar in upright] == [pytest.approx([46, 57])] * 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a %", "b %")
    goals = tuple(Goal(name=letter * 60) for letter in "ab")
    (long,) = replace(shown(2), goals=goals).drawings(POINTS)[0].figure.axes
    labels = (long.get_xlabel(), long.get_ylabel())
    assert [len(label) for label in labels] == [40 + len(" %")] * 2
    losses = replace(shown(2), goals=(Goal(name="a"), Goal(name="b", unit=BITS_PER_BYTE)))
    (other,) = losses.drawings(POINTS)[0].figure.axes
    assert (other.get_xlabel(), other.get_ylabel()) == ("a %", "b, bits per byte")
    assert "2 points that no other beats, of 4" in drawing.alt
    assert replace(shown(2), goals=(Goal(name="a"),)).drawings(POINTS) == ()


def test_the_numbers_of_a_front_are_those_of_earlier_reports() -> None:
    assert (front.CONFIRMED, front.FRONT_DRAWS, front.LISTED_POINTS) == (3, 400, 15)
