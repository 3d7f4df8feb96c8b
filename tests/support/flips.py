"""The sign-flip test alone, without what widens its interval and p-value."""

from __future__ import annotations

from souping.analysis.grouped import GroupedScores
from souping.analysis.sign_flip import flip_reach
from souping.analysis.sign_patterns import SIGN_DRAWS


def sign_flip(scores: GroupedScores, *, draws: int = SIGN_DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of T = 0."""
    reach = flip_reach(scores, draws=draws, seed=seed)
    return 1.0 if reach is None else reach.p_value
