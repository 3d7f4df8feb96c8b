"""Bootstrap-t over groups of a difference."""

from __future__ import annotations

import numpy as np
import pytest

from souping.statistics.bootstrap_t import bootstrap_reach
from souping.statistics.grouped import design
from souping.statistics.levels import ALPHA


@pytest.mark.parametrize("seed", range(6))
def test_draws_without_a_discordant_group_do_not_widen_the_limits_without_bound(seed: int) -> None:
    """Of 33 groups of unequal size three differ: draws without them vary only by their sizes."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(33), rng.integers(1, 5, 33))
    deltas = np.zeros(len(groups))
    for group in rng.permutation(33)[:3]:
        deltas[np.flatnonzero(groups == group)[0]] = -1.0
    reach = bootstrap_reach(design(deltas, 0 * groups, groups, np.ones(1)), tests=8)
    assert reach is not None
    assert reach.error < reach.below(ALPHA) < 6 * reach.error
    assert reach.error < reach.above(ALPHA) < 6 * reach.error


def test_a_draw_without_a_discordant_group_has_the_variance_of_half_a_group_more() -> None:
    """Of 10 groups one differs by 1: T = -0.1, and a draw that lacks it has t* = 0.1 / se*.

    Its variance is that of a share of 0.5 / (n + 1), divided by n.
    """
    deltas = np.zeros(10)
    deltas[4] = -1.0
    reach = bootstrap_reach(design(deltas, np.zeros(10, int), np.arange(10), np.ones(1)))
    assert reach is not None
    assert reach.studentised.max() == pytest.approx(0.1 / np.sqrt(0.5 / 11 / 10))


@pytest.mark.parametrize("thirds", [False, True])
def test_the_limits_of_a_less_b_mirror_those_of_b_less_a(thirds: bool) -> None:
    for number in range(10):
        rng = np.random.default_rng(number)
        deltas = rng.random(60) - 0.45
        if thirds:
            deltas = rng.integers(-3, 4, 60) / 3
        there = bootstrap_reach(design(deltas, np.arange(60) % 2, np.arange(60) // 2, np.ones(2)))
        back = bootstrap_reach(design(-deltas, np.arange(60) % 2, np.arange(60) // 2, np.ones(2)))
        assert there is not None
        assert back is not None
        assert (there.below(ALPHA), there.above(ALPHA)) == (back.above(ALPHA), back.below(ALPHA))
