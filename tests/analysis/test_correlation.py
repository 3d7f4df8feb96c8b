"""What every correlation promises (add a row with its reference)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from souping.analysis import correlation
from souping.analysis.correlation import check_columns, few_models, kendall, pearson, spearman
from souping.core.protocols import Correlation
from souping.core.types import FloatArray, UserError
from souping.testing import check_correlation
from tests.support.choices import dotted, targets

CORRELATIONS: dict[str, Correlation] = {
    "kendall": kendall,
    "pearson": pearson,
    "spearman": spearman,
}
SCIPY = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: stats.kendalltau(x, y, variant="b").statistic,
}
tables = arrays(
    float,
    st.tuples(st.integers(3, 9), st.integers(2, 4)),
    elements=st.integers(0, 12).map(lambda k: k / 12),
).filter(lambda t: (np.ptp(t, axis=0) > 0).all())


def test_every_choice_has_a_row() -> None:
    assert {name: dotted(correlate) for name, correlate in CORRELATIONS.items()} == targets(
        "correlation"
    )


@pytest.mark.parametrize("name", CORRELATIONS)
def test_a_correlation_conforms(name: str) -> None:
    check_correlation(CORRELATIONS[name])


@pytest.mark.parametrize("name", CORRELATIONS)
@settings(max_examples=40, deadline=None)
@given(scores=tables)
def test_coefficients_are_scipys(name: str, scores: FloatArray) -> None:
    result = CORRELATIONS[name](scores)
    assert CORRELATIONS[name](scores * 100).rho == pytest.approx(result.rho, abs=1e-9)  # percent
    for a in range(scores.shape[1]):
        for b in range(scores.shape[1]):
            assert result.rho[a, b] == pytest.approx(
                SCIPY[name](scores[:, a], scores[:, b]), abs=1e-12
            )
    assert (np.diag(result.rho) == 1).all()
    assert (result.rho == result.rho.T).all()


@pytest.mark.parametrize("name", CORRELATIONS)
@settings(max_examples=40, deadline=None)
@given(scores=tables)
def test_intervals_hold_the_coefficient(name: str, scores: FloatArray) -> None:
    result = CORRELATIONS[name](scores)
    known = ~np.isnan(result.low)
    assert known.all() == (len(scores) >= (5 if name == "kendall" else 4))
    assert (result.low <= result.rho)[known].all()
    assert (result.high >= result.rho)[known].all()
    assert (np.abs(result.low[known]) <= 1).all()
    assert np.diag(result.low).tolist() == np.diag(result.high).tolist() == [1.0] * scores.shape[1]


@pytest.mark.parametrize("name", CORRELATIONS)
def test_refusals_name_the_column(name: str) -> None:
    correlate = CORRELATIONS[name]
    fine = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.4]])
    with pytest.raises(UserError, match=r"3 models or more, not 2"):
        correlate(fine[:2])
    with pytest.raises(UserError, match="at least 2 categories"):
        correlate(fine[:, :1])
    with pytest.raises(UserError, match="the same score for all 3 models in column 2"):
        correlate(np.column_stack([fine[:, 0], [0.5, 0.5, 0.5]]))
    with pytest.raises(UserError, match="not a finite number in column 1"):
        correlate(np.column_stack([[0.5, np.nan, 0.5], fine[:, 0]]))


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("column", [[0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0], [30 * 1.1, 33.0, 33.0]])
def test_rounding_is_no_difference(name: str, column: list[float]) -> None:
    assert column[0] == column[1] or abs(column[0] - column[1]) < 1e-13
    with pytest.raises(UserError, match="column 2"):
        CORRELATIONS[name](np.column_stack([[0.1, 0.2, 0.4], column]))


def columns_with(r: float, n: int) -> FloatArray:
    """[n, 2] scores whose Pearson correlation is r."""
    x = np.arange(n) - (n - 1) / 2
    e = x**2 - (x**2).mean()  # orthogonal to x and to the constant
    y = r * x / np.linalg.norm(x) + np.sqrt(1 - r**2) * e / np.linalg.norm(e)
    return np.column_stack([x, y]) + 10


def test_pearsons_interval_is_scipys_and_six_models_say_almost_nothing() -> None:
    scores = columns_with(-0.4, 11)
    result = pearson(columns_with(-0.4, 11))
    limits = stats.pearsonr(*scores.T).confidence_interval(0.95)
    assert (result.low[0, 1], result.high[0, 1]) == pytest.approx(tuple(limits))
    six = pearson(columns_with(0.07, 6))
    assert [round(float(t[0, 1]), 2) for t in (six.rho, six.low, six.high)] == [0.07, -0.79, 0.83]


def test_rank_intervals_follow_their_papers() -> None:
    scores = np.column_stack([np.arange(12.0), [3, 1, 2, 0, 7, 5, 4, 6, 11, 8, 10, 9]])
    rho = spearman(scores)
    # Bonett and Wright (2000): of n models the variance of arctanh(rho) is (1 + rho^2 / 2) / (n - 3).
    error = np.sqrt((1 + rho.rho[0, 1] ** 2 / 2) / 9)
    assert np.arctanh(rho.high[0, 1]) - np.arctanh(rho.low[0, 1]) == pytest.approx(
        2 * 1.959964 * error
    )
    # Fieller, Hartley and Pearson (1957): that of arctanh(tau) is 0.437 / (n - 4).
    tau = kendall(scores)
    assert np.arctanh(tau.high[0, 1]) - np.arctanh(tau.rho[0, 1]) == pytest.approx(
        1.959964 * np.sqrt(0.437 / 8)
    )


def test_rounding_is_a_tie() -> None:
    exact = np.array([[0.1, 0.3], [0.2, 0.3], [0.4, 0.9]])
    noisy = exact.copy()
    noisy[0, 1] = 0.1 + 0.2
    for correlate in (spearman, kendall):
        assert (correlate(noisy).rho == correlate(exact).rho).all()


def test_the_numbers_of_a_correlation_are_those_of_earlier_reports() -> None:
    assert (correlation.FLAT_RANGE, correlation.ZERO_VARIANCE) == (1e-9, 1e-18)
    assert (correlation.FEWEST_MODELS, correlation.LEAST_RELIABILITY) == (6, 0.05)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_column_is_flat_relative_to_its_size(scale: float) -> None:
    column = [1.0, 1.0, 1.0 + 0.9e-9]
    check_columns(scale * np.column_stack([[1.0, 1.0, 1.0 + 1.1e-9], [0.1, 0.3, 0.2]]))
    with pytest.raises(UserError, match="same score for all 3 models in column 1"):
        check_columns(scale * np.column_stack([column, [0.1, 0.3, 0.2]]))
    with pytest.raises(UserError, match="category 'b'"):
        check_columns(scale * np.column_stack([[0.1, 0.3, 0.2], column]), ["a", "b"])


@pytest.mark.parametrize(("models", "are_few"), [(5, True), (6, False), (7, False), (40, False)])
def test_fewer_than_six_models_are_few(models: int, are_few: bool) -> None:
    assert few_models(models).startswith(f"correlations over {models} models" if are_few else "")
    assert bool(few_models(models)) == are_few
