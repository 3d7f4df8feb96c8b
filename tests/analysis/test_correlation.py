"""Intervals against the published formulas, ties, refusals that name the category."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from souping.analysis.correlation import check_columns, kendall, pearson, spearman
from souping.core.types import FloatArray, UserError


def columns_with(r: float, n: int) -> FloatArray:
    """[n, 2] scores whose Pearson correlation is r."""
    x = np.arange(n) - (n - 1) / 2
    e = x**2 - (x**2).mean()  # orthogonal to x and to the constant
    y = r * x / np.linalg.norm(x) + np.sqrt(1 - r**2) * e / np.linalg.norm(e)
    return np.column_stack([x, y]) + 10


def test_six_models_tell_almost_nothing() -> None:
    result = pearson(columns_with(0.07, 6))
    assert result.rho[0, 1] == pytest.approx(0.07)
    assert (round(result.low[0, 1], 2), round(result.high[0, 1], 2)) == (-0.79, 0.83)


def test_pearson_interval_is_scipys() -> None:
    scores = columns_with(-0.4, 11)
    limits = stats.pearsonr(*scores.T).confidence_interval(0.95)
    result = pearson(scores)
    assert (result.low[0, 1], result.high[0, 1]) == pytest.approx(tuple(limits))


def test_rank_intervals_follow_their_papers() -> None:
    scores = np.column_stack([np.arange(12.0), [3, 1, 2, 0, 7, 5, 4, 6, 11, 8, 10, 9]])
    rho = spearman(scores)
    error = np.sqrt((1 + rho.rho[0, 1] ** 2 / 2) / 9)
    assert np.arctanh(rho.high[0, 1]) - np.arctanh(rho.low[0, 1]) == pytest.approx(2 * 1.959964 * error)
    tau = kendall(scores)
    assert np.arctanh(tau.high[0, 1]) - np.arctanh(tau.rho[0, 1]) == pytest.approx(1.959964 * np.sqrt(0.437 / 8))


def test_three_models_have_no_interval() -> None:
    result = pearson(np.array([[0.1, 0.3], [0.2, 0.1], [0.3, 0.35]]))
    assert np.isfinite(result.rho).all()
    assert np.isnan(result.low[0, 1])
    assert np.isnan(result.high[1, 0])


def test_rounding_is_a_tie() -> None:
    noisy = np.array([[0.1, 0.1 + 0.2], [0.2, 0.3], [0.4, 0.9]])
    clean = np.array([[0.1, 0.3], [0.2, 0.3], [0.4, 0.9]])
    for correlate in (spearman, kendall):
        assert (correlate(noisy).rho == correlate(clean).rho).all()


def test_columns_are_named_where_names_are_known() -> None:
    scores = np.array([[0.1, 0.5, 1.0], [0.3, 0.5, 1.0], [0.2, 0.5, 1.0]])
    with pytest.raises(UserError, match="in category 'java', 'live', so no correlation"):
        check_columns(scores, ["simple", "java", "live"])


def test_a_copy_correlates_perfectly() -> None:
    column = np.array([0.2, 0.5, 0.4, 0.9, 0.1])
    for correlate in (pearson, spearman, kendall):
        result = correlate(np.column_stack([column, column, -column]))
        assert result.rho[0, 1] == pytest.approx(1.0)
        assert result.rho[0, 2] == pytest.approx(-1.0)
