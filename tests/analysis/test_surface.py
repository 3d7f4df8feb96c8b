"""The response surface against populations whose truth is known: coverage at all points at once, and its files."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from souping.analysis import NotEstimableError
from souping.analysis.surface import ResponseSurface, band, design_effect
from souping.core.types import FloatArray
from souping.core.unit import Estimate
from souping.search.points import uniform, vertices, weight_grid
from tests.support.analyses import run_of

POINTS = np.array([uniform(3), *vertices(3), *weight_grid(3, 0.1)])
PER_CATEGORY = 60
CATEGORIES = 3


@functools.cache
def chances(seed: int = 1, items: int = 4000) -> np.ndarray:
    """[T, items * C] probabilities: a bowl over the weights in each category; hard and easy items."""
    rng = np.random.default_rng(seed)
    tops = ((0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.3, 0.3, 0.4))
    parts = []
    for top in tops:
        level = 1.2 - 3 * np.square(POINTS - np.array(top)).sum(axis=1)
        parts.append(1 / (1 + np.exp(-(level[:, None] + 1.5 * rng.standard_normal(items)[None]))))
    return np.concatenate(parts, axis=1)


def searched(seed: int, whole: bool) -> tuple[Estimate[FloatArray], np.ndarray]:
    """A split, asked whole or in nested parts; the true differences [T] of the objective."""
    table = chances()
    rng = np.random.default_rng(seed)
    size = table.shape[1] // CATEGORIES
    truth = table.mean(axis=1)
    own = rng.permutation(size)[:PER_CATEGORY]
    items = np.concatenate([c * size + own for c in range(CATEGORIES)])
    draw = rng.random(len(items))  # what is hard for one soup is hard for its neighbours
    values = (draw[None] < table[:, items]).astype(float)
    if not whole:
        depth = rng.choice([0, 15, 30, PER_CATEGORY], len(POINTS))
        depth[:4] = PER_CATEGORY
        values[np.tile(np.arange(PER_CATEGORY), CATEGORIES)[None] >= depth[:, None]] = np.nan
    categories = np.repeat(np.arange(CATEGORIES), PER_CATEGORY)
    found, _ = band(POINTS, values, categories, np.full(CATEGORIES, 1 / CATEGORIES))
    return found, truth - truth[0]


@pytest.mark.parametrize("whole", [True, False])
def test_a_band_covers_the_whole_truth_at_once(whole: bool) -> None:
    inside = 0
    for seed in range(40):
        found, truth = searched(seed, whole)
        inside += int(((found.low <= truth) & (truth <= found.high)).all())
    assert inside >= 0.9 * 40


def test_soups_say_nothing_of_a_single_model_that_was_not_asked() -> None:
    run = run_of(3)
    missing = run.single(run.soups.ingredients[1]).id
    lacking = dataclasses.replace(
        run, search={key: own for key, own in run.search.items() if key != missing}
    )
    with pytest.raises(NotEstimableError, match=f"{run.soups.ingredients[1]}.* did not answer"):
        ResponseSurface().analyse(lacking)


def test_the_uniform_soup_differs_from_itself_by_nothing_and_less_asked_is_wider() -> None:
    (whole, _) = searched(0, True)
    (parts, _) = searched(0, False)
    for found in (whole, parts):
        assert found.value[0] == 0
        assert abs(found.high[0]) < 1e-6
    assert (parts.high - parts.low)[4:].mean() > (whole.high - whole.low)[4:].mean()


def test_a_band_ends_where_no_difference_can_be() -> None:
    values = np.tile((POINTS[:, :1] > 0.5).astype(float), (1, 2))
    found, each = band(POINTS, values, np.array([0, 1]), np.array([0.5, 0.5]))
    assert found.low.min() >= -1
    assert found.high.max() <= 1
    assert np.abs(each).max() <= 1
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_items_of_a_group_are_counted_as_alike_as_they_are() -> None:
    rng = np.random.default_rng(3)
    groups = np.arange(300) // 10
    categories = np.arange(300) // 150
    alone = rng.standard_normal((20, 300))
    alike = np.sqrt(0.4) * rng.standard_normal((20, 30))[:, groups] + np.sqrt(0.6) * alone
    assert design_effect(alone, categories, groups) == pytest.approx(1, abs=0.25)
    assert design_effect(alike, categories, groups) == pytest.approx(1 + 9 * 0.4, rel=0.25)
    scores = (alike[:, :] > 0).astype(float)
    points = POINTS[:20]
    weights = np.full(2, 0.5)
    grouped, _ = band(points, scores, categories, weights, groups=groups)
    ignored, _ = band(points, scores, categories, weights)
    assert (grouped.high - grouped.low).mean() > 1.2 * (ignored.high - ignored.low).mean()


def test_the_design_effect_is_the_quotient_of_the_sums_of_squares() -> None:
    """Two groups of two items: sums of residuals 1 and -1, squares 1/4 each, n / (n - 1) = 2."""
    one = np.zeros(4, int)
    groups = np.array([0, 0, 1, 1])
    assert design_effect(np.array([[1.0, 1.0, 0.0, 0.0]]), one, groups) == pytest.approx(4.0)
    assert design_effect(np.array([[1.0, 0.5, 0.5, 0.0]]), one, groups) == pytest.approx(2.0)
    assert design_effect(np.array([[1.0, 0.0, 1.0, 0.0]]), one, groups) == 1.0
