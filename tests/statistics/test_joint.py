"""Joint sign flips: one family for models, pairs and categories."""

from __future__ import annotations

import numpy as np

from souping.comparison.several import joint_tests
from souping.statistics.comparison import contrast
from souping.statistics.joint import JointFlips
from souping.statistics.levels import FIRST_LOOK
from souping.statistics.scores import one_category
from tests.comparison.worlds import metric, pooled


def test_a_copy_whose_scores_differ_by_rounding_is_a_copy() -> None:
    """Thirds written with 16 digits or with 17 are the same scores: none of the two is better."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 300) / 3
    nearly = np.where(a < 1, np.nextafter(a, 2), a)
    scores = pooled(metric("t", {"a": a, "b": nearly, "c": a / 2}))
    tests, best = joint_tests(scores, ("a", "b", "c"), FIRST_LOOK)
    assert best == ("a", "b")
    assert tests[1] < 1.1  # c is shown to differ, and b is the only one left


def test_of_copies_that_differ_by_rounding_alone_each_may_be_the_best() -> None:
    """2/3 with 16 digits in one log and with 15 in another."""
    right = np.arange(90) % 3 > 0
    scores = {
        "a": np.where(right, 0.6666666666666666, 0.0),
        "b": np.where(right, 0.666666666666667, 0.0),
        "c": np.where(right, 2 / 3, 0.0),
    }
    table = pooled(metric("t", scores))
    _, best = joint_tests(table, ("a", "b", "c"), FIRST_LOOK)
    assert best == ("a", "b", "c")
    comparison = contrast(table, "b", "a")
    assert (comparison.difference, comparison.p_value, comparison.discordant) == (0, 1, 0)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((3, 200))
    items = one_category(np.arange(200) // 2)
    flips = []
    for scale in (1.0, 1e-6, 1e6):
        models = [items.grouped(scale * model) for model in values]
        flips.append(JointFlips.of_models(models, draws=999))
    for other in flips[1:]:
        np.testing.assert_allclose(other.t((0, 1)), flips[0].t((0, 1)), rtol=1e-9)
