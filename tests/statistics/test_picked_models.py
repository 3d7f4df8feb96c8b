"""Tests that a comparison stands for if its models may have been picked by known scores."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from souping.core.scores import Mean
from souping.statistics.joint import picked_tests
from souping.statistics.score_table import ItemTable
from tests.conftest import make_items

ITEMS = make_items(100)
TABLE = ItemTable.of(ITEMS, Mean())
ALPHA = 0.05 / 6


def models(count: int, alike: float) -> np.ndarray:
    """Scores [M, I] of which a share is the same for all models but the last."""
    rng = np.random.default_rng(0)
    shared = rng.random(len(ITEMS))
    own = rng.random((count, len(ITEMS)))
    same = rng.random((count, len(ITEMS))) < alike
    same[-1] = False
    return (np.where(same, shared, own) < 0.6).astype(float)


def against_last(count: int) -> list[tuple[int, int]]:
    return [(model, count - 1) for model in range(count - 1)]


def test_one_pair_is_one_test() -> None:
    assert picked_tests(models(2, 0.0), [(0, 1)], TABLE, ALPHA) == 1.0
    assert picked_tests(models(2, 0.0), [], TABLE, ALPHA) == 1.0


def test_copies_of_a_model_are_one_test() -> None:
    one, other = models(2, 0.0)
    scores = np.stack([one] * 9 + [other])
    assert picked_tests(scores, against_last(10), TABLE, ALPHA) == pytest.approx(1.0, abs=0.4)


def test_models_count_by_how_much_they_differ() -> None:
    found = [
        picked_tests(models(21, alike), against_last(21), TABLE, ALPHA)
        for alike in (0.0, 0.9, 0.99)
    ]
    assert 20 >= found[0] > found[1] > found[2] > 1


def test_all_pairs_are_more_tests_than_those_with_one_model() -> None:
    scores = models(12, 0.0)
    few = picked_tests(scores, against_last(12), TABLE, ALPHA)
    assert picked_tests(scores, combinations(range(12), 2), TABLE, ALPHA) > 1.5 * few


def test_items_that_a_model_did_not_answer_are_no_difference() -> None:
    scores = models(6, 0.0)
    scores[2, 5:] = np.nan
    assert 1 < picked_tests(scores, against_last(6), TABLE, ALPHA) <= 5
