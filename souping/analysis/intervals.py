"""Intervals of one model's scores: Wilson for a category, bootstrap-t over groups for the objective."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from souping.core import FloatArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval, fractions of 1, from `n` items in `groups` groups worth `effective_n` items."""

    mean: float
    low: float
    high: float
    n: int
    groups: int
    effective_n: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `report.json`."""
        return asdict(self)


def rate(values: FloatArray, groups: IntArray) -> Interval:
    """Interval of one category: values [I] in 0..1, groups [I] as integers."""
    raise NotImplementedError


def objective_interval(
    values: FloatArray, categories: IntArray, groups: IntArray, coefficients: FloatArray, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of sum_c w_c * mean_c for one model: values, categories, groups [I]; coefficients [C], w_c >= 0."""
    raise NotImplementedError
