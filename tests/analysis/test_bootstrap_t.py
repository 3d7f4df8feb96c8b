"""Bootstrap-t over groups of a difference."""

from __future__ import annotations

import numpy as np

from souping.analysis.bootstrap_t import bootstrap_reach
from souping.analysis.grouped import design
from souping.analysis.sign_flip import ALPHA


def test_draws_without_a_discordant_group_do_not_widen_the_limits_without_bound() -> None:
    """Of 33 groups of unequal size three differ: draws without them vary only by their sizes."""
    groups = np.repeat(np.arange(33), 1 + np.arange(33) % 4)
    deltas = np.zeros(len(groups))
    for group in (3, 7, 11):
        deltas[np.flatnonzero(groups == group)[0]] = -1.0
    scores = design(deltas, 0 * groups, groups, np.ones(1))
    reach = bootstrap_reach(scores, tests=8)
    assert reach is not None
    assert reach.error < reach.below(ALPHA) < 15 * reach.error
    assert reach.above(ALPHA) < 15 * reach.error
