"""What a soup is up against."""

from __future__ import annotations

import numpy as np
import pytest

from souping.analysis.alternatives import alternatives
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, ScoreMatrix

ITEMS = tuple(Item(id=str(n), category="xy"[n % 2], prompt=str(n), answer="") for n in range(4))


def scores(*values: float) -> ItemScores:
    return ItemScores(items=ITEMS, values=np.array(values))


def test_the_router_is_chosen_elsewhere_and_the_oracle_is_a_bound() -> None:
    table = ScoreMatrix(
        models=("a", "b", "c"), categories=("y", "x"), values=np.array([[0.1, 0.9], [0.8, 0.2], [1, 1]])
    )
    ingredients = {"a": scores(1, 1, 0, 1), "b": scores(1, 0, 1, 0)}  # here a is better in y, but b was before
    found = alternatives(0.9, scores(1, 1, 1, 0), ingredients, table, Mean())
    assert found["optimism"] == pytest.approx(0.15)
    assert found["router"] == {"score": 0.25, "routes": {"x": "a", "y": "b"}, "models": 2, "answers": 1}
    assert found["oracle"] == {"score": 1.0, "models": 2, "answers": 2}


def test_a_corpus_metric_has_no_best_answer() -> None:
    table = ScoreMatrix(models=("a",), categories=("x", "y"), values=np.ones((1, 2)))
    assert set(alternatives(30.0, scores(31, 30, 29, 30), {"a": scores(31, 30, 29, 30)}, table, Mean())) == {"optimism"}
