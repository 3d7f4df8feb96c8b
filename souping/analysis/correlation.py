"""Correlation of categories over models, with 95 % intervals. scores [M, C] -> rho, low, high [C, C].

All three coefficients are cosines of columns: of centred scores (Pearson), of centred ranks (Spearman), of the signs of
all pairwise differences (Kendall's tau-b). Written so, a coefficient for every pair of categories is one product of
small matrices, quick enough to be repeated on hundreds of bootstrap draws, and scipy need not be imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from souping.core.types import Correlations, FloatArray, UserError

FLAT = 1e-9
"""A column whose range is below this share of its largest value is constant: only rounding tells its scores apart."""
Z95 = 1.959963984540054
FEWEST_MODELS = 6
"""Fewer models (or base families) say next to nothing about a correlation: with six, r = 0.07 spans -0.79 to 0.83."""


def few_models(models: int) -> str:
    """What a reader of a choice by correlations must know where the models are few; else empty."""
    if models >= FEWEST_MODELS:
        return ""
    return (
        f"correlations over {models} models are largely chance (at least {FEWEST_MODELS} needed); selectors without "
        "correlations: selector=greedy, selector=all"
    )


def check_columns(scores: FloatArray, names: Sequence[str] = ()) -> None:
    """Refuse scores [M, C] of which no correlation exists; columns are named by `names`, else by number from 1.

    Raises:
        UserError: fewer than 3 models or 2 categories, a column that holds NaN or infinity, or a constant column.
    """
    if len(scores) < 3:
        raise UserError(f"correlation needs the scores of 3 models or more, not {len(scores)}: add models or a table")
    if scores.shape[1] < 2:
        raise UserError(f"correlation needs at least 2 categories, not {scores.shape[1]}: use selector=topk or all")
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=0))
    if broken.size:
        raise UserError(f"a score that is not a finite number in {_columns(broken, names)}: mend it or leave that out")
    flat = np.flatnonzero(np.ptp(scores, axis=0) <= FLAT * np.abs(scores).max(axis=0))
    if flat.size:
        raise UserError(
            f"the same score for all {len(scores)} models in {_columns(flat, names)}, so no correlation exists: "
            "leave that out or add models that differ there"
        )


def pearson(scores: FloatArray) -> Correlations:
    """Pearson's r with Fisher's z interval: se(z) = 1 / sqrt(M - 3), so nan limits below 4 models (Fisher 1921)."""
    check_columns(scores)
    rho = _cosines(_scaled(scores))
    return _with_interval(rho, np.ones_like(rho), len(scores) - 3)


def spearman(scores: FloatArray) -> Correlations:
    """Spearman's rank correlation, equal scores sharing their mean rank.

    Interval: se(z) = sqrt((1 + r^2 / 2) / (M - 3)) (Bonett and Wright 2000), nan limits below 4 models.
    """
    check_columns(scores)
    ranks = _signs(scores).sum(axis=1) / 2
    rho = _cosines(ranks)
    return _with_interval(rho, 1 + rho**2 / 2, len(scores) - 3)


def kendall(scores: FloatArray) -> Correlations:
    """Kendall's tau-b.

    Interval: se(z) = sqrt(0.437 / (M - 4)) (Fieller, Hartley and Pearson 1957), nan limits below 5 models.
    """
    check_columns(scores)
    above, below = np.triu_indices(len(scores), 1)
    rho = _cosines(_signs(scores)[above, below], centre=False)
    return _with_interval(rho, np.full_like(rho, 0.437), len(scores) - 4)


def _columns(which: NDArray[np.int64], names: Sequence[str]) -> str:
    labels = [repr(names[i]) if names else str(i + 1) for i in which]
    return f"{'category' if names else 'column'} {', '.join(labels)}"


def _scaled(scores: FloatArray) -> FloatArray:
    """Columns divided by their largest value, so that squares neither overflow nor vanish."""
    return np.asarray(scores / np.abs(scores).max(axis=0), dtype=float)


def _signs(scores: FloatArray) -> FloatArray:
    """Sign of every pairwise difference, [M, M, C]; differences at the level of rounding count as ties."""
    scaled = _scaled(scores)
    gaps = scaled[:, None] - scaled[None, :]
    return np.where(np.abs(gaps) <= FLAT, 0.0, np.sign(gaps))


def _cosines(columns: FloatArray, *, centre: bool = True) -> FloatArray:
    """[N, C] -> cosines of every two columns, [C, C], with a diagonal of exactly 1."""
    vectors = columns - columns.mean(axis=0) if centre else columns
    vectors = vectors / np.sqrt((vectors**2).sum(axis=0))
    rho: FloatArray = np.clip(np.einsum("na,nb->ab", vectors, vectors), -1.0, 1.0)
    np.fill_diagonal(rho, 1.0)
    return rho


def _with_interval(rho: FloatArray, variance: FloatArray, degrees: int) -> Correlations:
    """Limits tanh(atanh(rho) -+ 1.96 sqrt(variance / degrees)); nan without degrees of freedom, 1 on the diagonal."""
    if degrees < 1:
        low, high = np.full_like(rho, np.nan), np.full_like(rho, np.nan)
    else:
        z = np.arctanh(np.clip(rho, -1 + 1e-15, 1 - 1e-15))
        margin = Z95 * np.sqrt(variance / degrees)
        low, high = np.minimum(rho, np.tanh(z - margin)), np.maximum(rho, np.tanh(z + margin))
    np.fill_diagonal(low, 1.0)
    np.fill_diagonal(high, 1.0)
    return Correlations(rho=rho, low=low, high=high)
