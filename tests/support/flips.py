"""The sign-flip test alone, without what widens its interval and p-value, and comparisons from plain arrays."""

from __future__ import annotations

from souping.core.types import FloatArray, IntArray
from souping.statistics import comparison
from souping.statistics.comparison import Comparison
from souping.statistics.corrections import Level
from souping.statistics.flips import SIGN_DRAWS, flip_reach
from souping.statistics.grouped import GroupedScores
from souping.statistics.score_table import ItemTable, ScoreTable


def sign_flip(scores: GroupedScores, *, draws: int = SIGN_DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of T = 0."""
    reach = flip_reach(scores, draws=draws, seed=seed)
    return 1.0 if reach is None else reach.p_value


def compare(
    a_name: str,
    b_name: str,
    a: FloatArray,
    b: FloatArray,
    categories: IntArray,
    groups: IntArray,
    weights: FloatArray,
    *,
    looks: int = 1,
    draws: int = SIGN_DRAWS,
    same_model: bool = False,
) -> Comparison:
    """Scores a minus b, from plain arrays."""
    items = ItemTable(names=(), categories=categories, groups=groups, coefficients=weights)
    if same_model:
        return comparison.same_model(items, a_name, b_name)
    scores = ScoreTable.complete(items, {a_name: a, b_name: b})
    return comparison.contrast(scores, a_name, b_name, Level(looks), draws=draws)
