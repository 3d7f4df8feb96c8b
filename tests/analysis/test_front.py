"""Several goals: what is read and refused, and the front of a search with known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from souping.analysis.front import Front, resolve_goals, undominated
from souping.core.reading import to_json
from souping.core.types import Item, Recipe, Result, Trial, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS
from souping.search.adaptive import Adaptive

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


def test_a_front_holds_what_nothing_beats_and_is_shown() -> None:
    values = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.4, 0.5], [1, 0]])
    assert undominated(values).tolist() == [True, True, True, False, True]
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
    assert ((front.low[:, :2] <= truth) & (truth <= front.high[:, :2])).mean() > 0.8
    merits = front.merits({"a": 1.0})
    assert max(merits, key=lambda point: merits[point]) == (1.0, 0.0)
    assert len(front.candidates(None)) <= 3
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
