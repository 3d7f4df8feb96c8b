"""A router by category and the upper bound over the ingredients, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from souping.analysis.alternatives import best_by_category, routed, with_alternatives
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, ScoreMatrix
from souping.core.unit import BITS_PER_BYTE
from souping.report.content import Report

ITEMS = tuple(
    Item(id=str(n), category=c, group=str(n), prompt="", answer="") for n, c in enumerate("xxyyz")
)
TABLE = ScoreMatrix(
    models=("a", "b", "c"),
    categories=("x", "y"),
    values=np.array([[0.2, 0.9], [0.8, 0.4], [0.1, 0.95]]),
)


def scores(
    *values: float, truncated: Sequence[int] = (), unanswered: Sequence[int] = ()
) -> ItemScores:
    """Scores of the items; which answers were truncated or are missing, if some are."""
    of_items = ItemScores(items=ITEMS, values=np.array(values))
    if truncated:
        of_items = replace(of_items, truncated=np.array(truncated, float))
    if unanswered:
        of_items = replace(of_items, unanswered=np.array(unanswered, float))
    return of_items


def test_a_category_goes_to_its_best_ingredient_and_an_unknown_one_to_the_best_mean() -> None:
    routes = best_by_category(("b", "a"), TABLE, ["x", "x", "y", "z"])
    # By the mean over both, b has 0.6 and a 0.55; c is no ingredient.
    assert routes == {"x": "b", "y": "a", "z": "b"}
    assert best_by_category(("a", "c"), TABLE, ["z", "y"]) == {"z": "a", "y": "c"}


def test_each_item_has_the_answer_of_the_ingredient_it_is_sent_to() -> None:
    a = scores(1, 0, 1, 0, 1, truncated=(0, 0, 1, 0, 0), unanswered=(0, 0, 0, 1, 0))
    b = scores(0, 1, 0, 1, 0, truncated=(1, 0, 0, 0, 1), unanswered=(0, 1, 0, 0, 0))
    router = routed({"a": a, "b": b}, {"x": "b", "y": "a", "z": "b"}, ("a", "b"))
    assert router is not None
    assert router.name == "router"
    assert router.scores.values.tolist() == [0, 1, 1, 0, 0]
    assert router.scores.truncated.tolist() == [1, 0, 1, 0, 1]
    assert router.scores.unanswered.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("routes", "names", "name"),
    [
        ("aba", ("a", "b"), "router"),
        ("aba", ("a", "router"), "router by category"),
        ("bbb", ("a", "b"), "b"),
        ("bbb", ("a", "router"), "b"),
    ],
)
def test_a_router_is_never_called_as_another_model(
    routes: str, names: tuple[str, ...], name: str
) -> None:
    ingredients = {"a": scores(1, 0, 1, 0, 1), "b": scores(0, 1, 0, 1, 0)}
    router = routed(ingredients, dict(zip("xyz", routes, strict=True)), names)
    assert router is not None
    assert router.name == name


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_scores_that_are_no_fractions_have_no_router(wrong: float) -> None:
    ingredients = {"a": scores(1, 0, 1, 0, 1), "b": scores(0, 1, 0, 1, wrong)}
    assert routed(ingredients, dict.fromkeys("xyz", "a"), ("a", "b")) is None
    whole = {"a": scores(1, 0, 1, 0, 1), "b": scores(0, 1, 0, 1, 0)}
    assert routed(whole, dict.fromkeys("xyz", "a"), ("a", "b")) is not None


def test_router_and_upper_bound_come_with_their_models_and_answers() -> None:
    """Categories weigh alike: x of items 0 and 1, y of 2 and 3, z of 4. The search split gave the soup 0.75."""
    ingredients = {
        "a": scores(1, 0, 1, 0, 0),
        "b": scores(1, 1, 0, 0, 0),
        "c": scores(0, 0, 0, 1, 0),
    }
    router = routed(ingredients, {"x": "b", "y": "a", "z": "b"}, ("a", "b", "c"))
    report = Report(name="run")
    soup = scores(1, 0, 1, 1, 1)
    found = with_alternatives(report, 0.75, soup, ingredients, router, Mean())
    assert found.selection_bias == pytest.approx(0.75 - (0.5 + 1 + 1) / 3)
    assert found.router is not None
    assert found.upper_bound is not None
    # b on x has both right, a on y one of two, b on z none.
    assert found.router.score == pytest.approx((1 + 0.5 + 0) / 3)
    assert (found.router.models, found.router.answers) == (2, 1)
    # Some ingredient is right on every item of x and of y.
    assert found.upper_bound.score == pytest.approx((1 + 1 + 0) / 3)
    assert (found.upper_bound.models, found.upper_bound.answers) == (3, 3)
    none = with_alternatives(report, 0.75, soup, ingredients, None, Mean())
    assert none == replace(found, router=None, upper_bound=None)


def test_the_selection_bias_of_losses_is_in_their_unit() -> None:
    ingredients = {"a": scores(-1, -1, -1, -1, -1)}
    report = Report(name="run", unit=BITS_PER_BYTE)
    losses = with_alternatives(report, -2.0, scores(-1, -1, -1, -1, -1), ingredients, None, Mean())
    raw = BITS_PER_BYTE.raw(-2.0) - BITS_PER_BYTE.raw(-1.0)
    assert losses.selection_bias == pytest.approx(raw)
