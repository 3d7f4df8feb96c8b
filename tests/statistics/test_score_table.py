"""Tables of scores: what missing and truncated answers could have been."""

from __future__ import annotations

import math

import numpy as np
import pytest

from souping.core.scores import Mean
from souping.core.types import Item, ItemScores
from souping.statistics.score_table import ItemTable, ScoreTable, span

ITEMS = tuple(Item(id=str(n), category="c", prompt=str(n), answer="") for n in range(4))


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.0, 0.5, 1.0], (0.0, 1.0)),
        ([0.0, 2.0], (-math.inf, math.inf)),
        ([-0.1, 1.0], (-math.inf, math.inf)),
    ],
)
def test_only_scores_from_0_to_1_have_limits(
    values: list[float], limits: tuple[float, float]
) -> None:
    assert span(np.array(values)) == limits


def test_a_truncated_answer_may_be_worth_nothing_or_all() -> None:
    scores = ItemScores(
        items=ITEMS,
        values=np.array([1.0, 0.75, 0.0, 0.5]),
        truncated=np.array([0.0, 0.5, 1.0, 0.0]),
    )
    table = ItemTable.of(ITEMS, Mean())
    answers = ScoreTable.measured(table, {"m": scores}, truncated=True).answers["m"]
    assert answers.lowest.tolist() == [[1.0, 0.25, 0.0, 0.5]]
    assert answers.highest.tolist() == [[1.0, 0.75, 1.0, 0.5]]
