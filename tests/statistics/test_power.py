"""What a planned report can show of two candidates, where the soup differs from each as they differ from each other.

Its errors against both then have the variance of their difference and a correlation of one half.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from souping.core.scores import Mean
from souping.core.types import FloatArray, ItemScores, ScoreMatrix
from souping.statistics.comparison import contrast
from souping.statistics.power import RunPower, measured_power, power_of
from souping.statistics.scores import ScoreTable, one_category
from tests.conftest import make_items

ITEMS = make_items(200, ("x",))


def gain_of_two(variance: float, gaps: FloatArray) -> float:
    """The gain with 80 % power if the second of two candidates is `gaps` [D] below the best one."""
    covariance = variance * np.array([[1.0, 0.5], [0.5, 1.0]])
    rng = np.random.default_rng(1)
    errors = rng.multivariate_normal([0.0, 0.0], covariance, size=len(gaps))
    demanded = stats.norm.ppf(0.975) * np.sqrt(variance) + errors
    demanded[:, 1] -= gaps
    return float(np.quantile(demanded.max(axis=1), 0.8))


def test_candidates_of_which_nothing_is_known_differ_on_a_tenth_of_the_items() -> None:
    published = ScoreMatrix(
        models=("a", "b"), categories=("x",), values=np.full((2, 1), 0.5), published=True
    )
    power = power_of(published, ITEMS, Mean(), 0.01)
    assert power is not None
    expected = gain_of_two(0.1 / len(ITEMS), np.zeros(200_000))
    assert power.gain == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("ahead", [0, 8, 30])
def test_of_a_candidate_that_is_ahead_only_what_chance_does_not_explain_is_believed(
    ahead: int,
) -> None:
    """Of a difference d with variance v, 1 - chance / (d^2 / 2) is real; chance is v / 2 and one standard deviation."""
    n = len(ITEMS)
    rng = np.random.default_rng(0)
    a = np.arange(n) % 2 == 0
    b = np.where(rng.random(n) < 0.2, rng.random(n) < 0.5, a)
    b[np.flatnonzero(b)[:ahead]] = False
    scores = {}
    for name, right in (("a", a), ("b", b)):
        scores[name] = ItemScores(items=tuple(ITEMS), values=right.astype(float))
    power = measured_power(scores, ITEMS, Mean(), 0.01)

    # Groups of two items, as `make_items` has them.
    pairs = (a.astype(float) - b).reshape(-1, 2).sum(axis=1) / n
    variance = len(pairs) * pairs.var(ddof=1)
    difference = pairs.sum()
    chance = variance / 2 * (1 + np.sqrt(2))
    real = max(0.0, 1 - chance / max(difference**2 / 2, chance))
    normal = np.random.default_rng(2).standard_normal(200_000)
    # Either may be the better one.
    gaps = np.abs(real * difference + np.sqrt(real * variance) * normal)
    expected = gain_of_two(variance, gaps)
    assert power is not None
    assert power.gain == pytest.approx(expected, rel=0.04)


def test_the_items_for_a_margin_have_its_power_whether_they_are_more_or_fewer() -> None:
    """With runs, the root of `detectable` over the number of items; the part of runs has an end."""
    rng = np.random.default_rng(4)
    right = {name: (rng.random((4, 300)) < 0.6) * 1.0 for name in "ab"}
    table = ScoreTable.complete(one_category(np.arange(300)), right)
    comparison = contrast(table, "a", "b")
    power = RunPower(comparison=comparison, scores=table)
    assert comparison.degrees == 6
    for margin in (0.5 * power.detectable(), power.detectable(), 2 * power.detectable()):
        needed = power.items_for(margin)
        assert needed is not None
        assert power.detectable(times_items=needed / 300) == pytest.approx(margin, rel=0.02)

    # A shift of a whole run does not get smaller on more items.
    shifted = {"a": right["a"] * 0 + np.array([[0.2], [0.4], [0.6], [0.3]]), "b": right["b"]}
    table = ScoreTable.complete(one_category(np.arange(300)), shifted)
    power = RunPower(comparison=contrast(table, "a", "b"), scores=table)
    assert power.items_for(0.01) is None
