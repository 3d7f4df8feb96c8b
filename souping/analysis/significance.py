"""Paired comparison of two models on the same items, and what to do with several p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from souping.analysis.intervals import IntArray
from souping.core import FloatArray


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a minus b on the objective (fractions of 1) with its 95 % interval and two-sided p-value.

    `n` items in `groups` groups; `discordant` is the share of items on which the two scores differ.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float
    test: str
    n: int
    groups: int
    discordant: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `report.json`."""
        return asdict(self)


def compare(
    a_name: str,
    b_name: str,
    a: FloatArray,
    b: FloatArray,
    categories: IntArray,
    groups: IntArray,
    coefficients: FloatArray,
    *,
    draws: int = 9999,
    seed: int = 0,
    same_model: bool = False,
) -> Comparison:
    """a, b, categories, groups [I]; coefficients [C]. `same_model`: both are one soup (difference and width 0, p 1)."""
    raise NotImplementedError


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the given order."""
    raise NotImplementedError


def mcnemar(a: FloatArray, b: FloatArray) -> float:
    """Exact two-sided McNemar p-value of binary scores a, b [I]; only for unweighted, ungrouped items."""
    raise NotImplementedError


def better_than_every(comparisons: Sequence[Comparison]) -> float:
    """Intersection-union p-value: the largest two-sided p, or 1 where a difference is not above zero."""
    raise NotImplementedError


def over_ledger(p_value: float, opened: int) -> float:
    """p-value corrected over `opened` recipes scored on the report fold (Bonferroni)."""
    raise NotImplementedError
