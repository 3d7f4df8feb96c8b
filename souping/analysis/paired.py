"""Intervals and p-value of a paired difference: which tests they invert.

Sign flips alone are enough where every group that differs does so by as much: right and wrong
answers of equal weight. Else a flip assumes more than T = 0 says (`bootstrap_t`), and the
bootstrap-t counts too.
"""

from __future__ import annotations

import numpy as np

from souping.analysis.bootstrap_t import bootstrap_reach
from souping.analysis.grouped import GroupedScores
from souping.analysis.nested import ZERO_DIFFERENCE, NestedIntervals, UnseenMargins
from souping.analysis.sign_flip import ALPHA, flip_reach
from souping.analysis.sign_patterns import SIGN_DRAWS, draws_for


def paired_intervals(
    scores: GroupedScores,
    bound: float,
    *,
    alpha: float = ALPHA,
    draws: int = SIGN_DRAWS,
    seed: int = 0,
    highest: float = 1.0,
) -> NestedIntervals:
    """Intervals of T within -bound..bound; `alpha` is the lowest level that the draws resolve.

    They hold up to the `highest` level: for a p-value, 1.
    """
    draws = draws_for(alpha, draws)
    flips = flip_reach(scores, draws=draws, seed=seed, highest=highest)
    bootstrap = None
    if step(scores) == 0:
        bootstrap = bootstrap_reach(scores, draws=draws, seed=seed)
    return NestedIntervals(
        total=scores.objective,
        reaches=[reach for reach in (flips, bootstrap) if reach is not None],
        margins=UnseenMargins.of(scores),
        bound=bound,
    )


def step(scores: GroupedScores) -> float:
    """How much each group that differs adds to T; 0 unless all of them add as much."""
    pulls = np.abs(scores.pulls)
    largest = float(pulls.max())
    as_much = (pulls <= ZERO_DIFFERENCE * largest) | (pulls >= (1 - ZERO_DIFFERENCE) * largest)
    if not as_much.all():
        return 0.0
    return largest
