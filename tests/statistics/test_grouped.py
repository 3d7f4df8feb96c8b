"""Sums over groups: strata and variances against formulas that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from souping.core.types import FloatArray
from souping.statistics.grouped import GroupedScores, GroupLayout, design, stratify
from souping.statistics.score_table import one_category


def in_two_categories() -> GroupedScores:
    """Groups of one to four items, each in one category; the second category scores far lower."""
    rng = np.random.default_rng(0)
    sizes = np.tile([1, 2, 3, 4], 8)
    groups = np.repeat(np.arange(32), sizes)
    categories = (groups >= 12).astype(int)
    values = 0.9 - 0.7 * categories + 0.1 * rng.random(len(groups))
    return design(values, categories, groups, np.array([0.25, 0.75]))


def test_the_variance_of_a_mean_over_unequal_groups_is_that_of_a_ratio() -> None:
    """n / (n - 1) sum u^2 with u = w (sum of a group - its items * mean) / items: Cochran 1977, equation 2.46."""
    scores = in_two_categories()
    expected = 0.0
    for category, weight in enumerate((0.25, 0.75)):
        inside = scores.counts[:, category] > 0
        items = scores.counts[inside, category]
        sums = scores.sums[inside, category]
        residuals = sums - items * sums.sum() / items.sum()
        u = weight * residuals / items.sum()
        expected += len(u) / (len(u) - 1) * ((u - u.mean()) ** 2).sum()
    assert scores.variances.sum() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("deltas", "step"), [([1.0, -1.0, 0.0, 1.0], 0.25), ([1.0, 0.5, 0.0, 0.0], 0.0)]
)
def test_differences_of_one_size_move_the_mean_in_steps(deltas: list[float], step: float) -> None:
    items = one_category(np.arange(4))
    assert items.grouped(np.array(deltas)).step == pytest.approx(step)


@pytest.mark.parametrize(("rare", "strata"), [(4, 2), (5, 3)])
def test_fewer_than_five_groups_have_no_stratum_of_their_own(rare: int, strata: int) -> None:
    """The categories of two sets of many groups, and those of a rare one, which joins the largest."""
    present = np.zeros((30 + rare, 3), dtype=bool)
    present[:20, 0] = True
    present[20:30, 1] = True
    present[30:, 2] = True
    stratum = stratify(present)
    sizes = np.bincount(stratum)
    assert len(sizes) == strata
    assert sizes.max() == 20 + rare * (rare < 5)


def test_two_rare_sets_are_one_stratum_if_they_have_five_groups_together() -> None:
    present = np.zeros((25, 3), dtype=bool)
    present[:20, 0] = True
    present[20:23, 1] = True
    present[23:, 2] = True
    assert sorted(np.bincount(stratify(present))) == [5, 20]


def test_a_stratum_without_variation_is_flat_and_one_with_a_single_loss_is_not() -> None:
    scores: FloatArray = np.ones(40)
    scores[0] = 0.0
    categories = np.repeat([0, 1], 20)
    both = design(scores, categories, np.arange(40), np.array([0.5, 0.5]))
    assert sorted(both.flat) == [False, True]


@pytest.mark.parametrize("weight", [1.0, 1e-3])
@pytest.mark.parametrize(("loss", "is_flat"), [(1.9e-5, True), (2.1e-5, False)])
def test_what_is_flat_is_relative_to_the_weight_of_a_stratum(
    weight: float, loss: float, is_flat: bool
) -> None:
    """One loss among 20 groups of weight w / 2: a variance of (w / 2)^2 loss^2 / 400, flat up to 1e-12 (w / 2)^2."""
    scores: FloatArray = np.ones(40)
    scores[0] -= loss
    categories = np.repeat([0, 1], 20)
    both = design(scores, categories, np.arange(40), np.array([weight / 2, weight / 2]))
    assert sorted(both.flat) == [is_flat, True]


def test_a_small_category_varies_around_the_mean_of_the_strata_that_hold_small_ones() -> None:
    """One lone item of a second category, 1.0, among five of the first, which add up to 2.5."""
    values = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    categories = np.array([0, 0, 0, 0, 0, 1])
    scores = design(values, categories, np.arange(6), np.array([0.5, 0.5]))
    small = scores.weights[1] * (1.0 - 3.5 / 6) / 1
    assert np.abs(scores.influence - small).min() == pytest.approx(0, abs=1e-12)


def test_a_single_group_shows_no_variance() -> None:
    alone = design(np.array([0.2, 0.7]), np.zeros(2, int), np.zeros(2, int), np.ones(1))
    assert alone.variances.tolist() == [0.0]
    assert alone.flat.tolist() == [True]


def test_numbers_of_groups_may_have_gaps() -> None:
    categories = np.array([0, 0, 1, 1])
    gaps = GroupLayout.of(categories, np.array([2, 7, 7, 4]), np.ones(2))
    plain = GroupLayout.of(categories, np.array([0, 2, 2, 1]), np.ones(2))
    assert (gaps.groups, plain.groups) == (3, 3)
    assert gaps.counts.tolist() == plain.counts.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_a_group_without_weight_is_a_group_of_the_items_all_the_same() -> None:
    layout = GroupLayout.of(np.array([0, 1, 1]), np.arange(3), np.array([1.0, 0.0]))
    assert (layout.groups, len(layout.counts)) == (3, 1)
