"""Points of the weight simplex."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souping.core.types import TOLERANCE, UserError, check_weights
from souping.search import points as simplex


@pytest.mark.parametrize(("size", "points"), [(1, 0), (2, 9), (3, 36), (4, 84), (5, 126), (10, 1), (11, 0)])
def test_the_papers_grid_has_c_9_k_minus_1_points(size: int, points: int) -> None:
    found = simplex.grid(size)
    assert len(found) == len(set(found)) == points
    assert points == (comb(9, size - 1) if size > 1 else 0)
    assert simplex.grid_size(size) >= points


@given(st.integers(2, 6), st.sampled_from([0.05, 0.1, 0.125, 0.2, 0.25]))
def test_grid_points_lie_on_the_simplex_and_on_the_lattice(size: int, step: float) -> None:
    assert (0.3, 0.7) in simplex.grid(2)  # no float dust
    for point in simplex.grid(size, step, step, 1 - step):
        assert abs(sum(point) - 1) < 1e-9
        assert all(step - 1e-9 <= w <= 1 - step + 1e-9 for w in point)
        assert all(abs(w / step - round(w / step)) < 1e-6 for w in point)


@given(st.integers(2, 5))
def test_spread_is_a_permutation_whose_prefixes_cover(size: int) -> None:
    points = simplex.grid(size)
    order = simplex.spread(points)
    assert sorted(order) == sorted(points)
    if len(points) > 10:
        near = max(min(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in order[:10]) for p in points)
        naive = max(min(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points[:10]) for p in points)
        assert near < naive


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_weights_are_taken_only_when_they_sum_to_one(weights: list[float]) -> None:
    for wrong in ([], [*weights, float("nan")], [-0.5, 1.5]):
        with pytest.raises(UserError, match="finite and not negative"):
            check_weights(wrong)
    if abs(sum(weights) - 1) <= TOLERANCE:
        assert check_weights(weights) == tuple(weights)
    else:
        with pytest.raises(UserError, match="not 1"):
            check_weights(weights)


@pytest.mark.parametrize(
    ("step", "low", "high"), [(0, 0.1, 0.9), (0.7, 0.1, 0.9), (0.3, 0.3, 0.9), (0.1, 0.15, 0.9), (0.1, 0.9, 0.1)]
)
def test_a_grid_that_cannot_be_is_refused(step: float, low: float, high: float) -> None:
    with pytest.raises(UserError, match=r"optimiser\."):
        simplex.grid(2, step, low, high)


@pytest.mark.parametrize("step", [1e-320, 1e-9, 0.3, 0.7, -0.1, float("nan"), float("inf")])
def test_a_step_that_divides_nothing_is_refused(step: float) -> None:
    with pytest.raises(UserError, match=r"^analysis\.surface\.step="):
        simplex.check_step(step, "analysis.surface.step")
