"""Inference over families: each is one observation.

One-sided tests by Student's t, equivalence by two of them (Schuirmann 1987), and Holm's step-down adjustment (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from souping.core.types import FloatArray

ALPHA = 0.025
"""One-sided level of the family of primary tests; so an equivalence means that the 95 % interval is in the margins."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Mean of a value per family, with its standard deviation, standard error and 95 % interval."""

    families: int
    mean: float
    deviation: float
    error: float
    low: float
    high: float


def sample(values: Sequence[float] | FloatArray) -> Sample:
    """What families show of a value; nan where two families are needed."""
    known = np.asarray(values, dtype=float)
    count = len(known)
    if count < 2:
        mean = float(known.mean()) if count else math.nan
        return Sample(
            families=count,
            mean=mean,
            deviation=math.nan,
            error=math.nan,
            low=math.nan,
            high=math.nan,
        )
    deviation = float(known.std(ddof=1))
    error = deviation / math.sqrt(count)
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    mean = float(known.mean())
    return Sample(
        families=count,
        mean=mean,
        deviation=deviation,
        error=error,
        low=mean - reach,
        high=mean + reach,
    )


def above(values: Sequence[float] | FloatArray, limit: float) -> float:
    """p-value of "the mean is above the limit"."""
    found = sample(values)
    if found.families < 2:
        return math.nan
    if found.error == 0:
        return float(found.mean <= limit)
    return float(stats.t.sf((found.mean - limit) / found.error, found.families - 1))


def within(values: Sequence[float] | FloatArray, margin: float) -> float:
    """p-value of "the mean is within +- margin": the larger one of two one-sided tests."""
    mirrored = -np.asarray(values, dtype=float)
    return max(above(values, -margin), above(mirrored, -margin))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values."""
    adjusted = {}
    largest = 0.0
    order = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def effects(levels: FloatArray, values: FloatArray) -> list[Sample]:
    """Upper minus lower level of each factor [F], for levels -1 and 1 [families, F], by least squares."""
    families, factors = levels.shape
    design = np.column_stack([np.ones(families), levels / 2])
    free = families - factors - 1
    if free < 1 or np.linalg.matrix_rank(design) <= factors:
        return []
    fitted, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ fitted
    variance = float(residual @ residual) / free
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    reach = float(stats.t.ppf(0.975, free))
    found = []
    for effect, error in zip(fitted[1:].tolist(), errors[1:].tolist(), strict=True):
        found.append(
            Sample(
                families=families,
                mean=effect,
                deviation=math.sqrt(variance),
                error=error,
                low=effect - reach * error,
                high=effect + reach * error,
            )
        )
    return found


def rank_correlation(x: FloatArray, y: FloatArray) -> Sample:
    """Spearman's correlation over families, with the interval of Bonett and Wright (2000)."""
    count = len(x)
    rho = math.nan
    if count > 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
        rho = float(stats.spearmanr(x, y).statistic)
    error = math.sqrt((1 + rho**2 / 2) / max(count - 3, 1))
    middle = math.atanh(min(max(rho, -0.999999), 0.999999)) if math.isfinite(rho) else math.nan
    return Sample(
        families=count,
        mean=rho,
        deviation=math.nan,
        error=error,
        low=math.tanh(middle - 1.96 * error),
        high=math.tanh(middle + 1.96 * error),
    )
