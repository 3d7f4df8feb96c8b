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
