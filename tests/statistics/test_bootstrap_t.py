"""Bootstrap-t over groups of a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from souping.statistics.bootstrap_t import BootstrapReach, bootstrap_reach
from souping.statistics.corrections import ALPHA
from souping.statistics.grouped import design


@pytest.mark.parametrize("seed", range(6))
def test_draws_without_a_discordant_group_do_not_widen_the_limits_without_bound(seed: int) -> None:
    """Of 33 groups of unequal size three differ: draws without them vary only by their sizes."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(33), rng.integers(1, 5, 33))
    deltas = np.zeros(len(groups))
    for group in rng.permutation(33)[:3]:
        deltas[np.flatnonzero(groups == group)[0]] = -1.0
    reach = bootstrap_reach(design(deltas, 0 * groups, groups, np.ones(1)), tests=8)
    assert reach is not None
    assert reach.error < reach.below(ALPHA) < 6 * reach.error
    assert reach.error < reach.above(ALPHA) < 6 * reach.error


def test_a_draw_without_a_discordant_group_has_the_variance_of_half_a_group_more() -> None:
    """Of 10 groups one differs by 1: T = -0.1, and a draw that lacks it has t* = 0.1 / se*.

    Its variance is that of a share of 0.5 / (n + 1), divided by n.
    """
    deltas = np.zeros(10)
    deltas[4] = -1.0
    reach = bootstrap_reach(design(deltas, np.zeros(10, int), np.arange(10), np.ones(1)))
    assert reach is not None
    assert reach.studentised.max() == pytest.approx(0.1 / np.sqrt(0.5 / 11 / 10))


def test_many_small_differences_have_their_own_variance() -> None:
    """Of 30 groups half differ by about a tenth: far less than half a group's, by which a draw without any counts."""
    deltas = np.concatenate([np.zeros(15), np.linspace(0.05, 0.15, 15)])
    reach = bootstrap_reach(design(deltas, np.zeros(30, int), np.arange(30), np.ones(1)))
    assert reach is not None
    drawn = deltas[np.random.default_rng(1).integers(0, 30, (20_000, 30))]
    t = (drawn.mean(axis=1) - deltas.mean()) / np.sqrt(drawn.var(axis=1, ddof=1) / 30)
    for tail in (0.025, 0.1, 0.9, 0.975):
        expected = np.quantile(t, tail)
        assert np.quantile(reach.studentised, tail) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("thirds", [False, True])
def test_the_limits_of_a_less_b_mirror_those_of_b_less_a(thirds: bool) -> None:
    for number in range(10):
        rng = np.random.default_rng(number)
        deltas = rng.random(60) - 0.45
        if thirds:
            deltas = rng.integers(-3, 4, 60) / 3
        there = bootstrap_reach(design(deltas, np.arange(60) % 2, np.arange(60) // 2, np.ones(2)))
        back = bootstrap_reach(design(-deltas, np.arange(60) % 2, np.arange(60) // 2, np.ones(2)))
        assert there is not None
        assert back is not None
        assert (there.below(ALPHA), there.above(ALPHA)) == (back.above(ALPHA), back.below(ALPHA))


def test_a_limit_is_never_on_the_wrong_side_of_the_difference() -> None:
    """Of 399 values of t* from -1 to 1 the median is 0: beyond it a quantile is negative, and the distance is 0."""
    reach = BootstrapReach(studentised=np.linspace(-1, 1, 399), error=2.0)
    for level, quantile in ((0.5, 0.5025), (0.95, 0.0503), (1.0, 0.0)):
        assert reach.below(level) == pytest.approx(2 * quantile, abs=1e-3)
    skewed = BootstrapReach(studentised=np.linspace(-3, -1, 399), error=2.0)
    assert skewed.below(1.0) == 0.0
    assert skewed.above(1.0) == pytest.approx(4.0)


@pytest.mark.parametrize("tests", [1, 2])
def test_quantiles_beyond_what_the_draws_resolve_grow_as_the_normals(tests: int) -> None:
    """Of 4,999 draws the 125th is the upper 2.5 %; a twentieth of that is beyond the last 20."""
    values = np.sort(np.random.default_rng(2).standard_t(4, 4999))
    reach = BootstrapReach(studentised=values, error=0.5, tests=tests)
    rank = {1: 125, 2: 62}[tests]
    assert reach.above(0.05) == pytest.approx(-0.5 * values[rank - 1])
    assert reach.below(0.05) == pytest.approx(0.5 * values[-rank])
    level = 0.002
    factor = values[-20] / -stats.norm.ppf(20 / 5000)
    assert factor > 1
    expected = 0.5 * factor * -stats.norm.ppf(level / 2 / tests)
    assert reach.below(level) == pytest.approx(expected)
    # The 20th draw is resolved.
    assert reach.below(0.008 * tests) == pytest.approx(0.5 * values[-20])
    narrow = BootstrapReach(studentised=values / 100, error=0.5, tests=tests)
    assert narrow.below(level) == pytest.approx(0.5 * -stats.norm.ppf(level / 2 / tests))


@pytest.mark.parametrize("sign", [1, -1])
def test_draws_of_single_groups_are_studentised_by_their_own_variance(sign: int) -> None:
    """1,200 draws of two categories, whose groups are drawn one stratum after the other, by the written seed."""
    rng = np.random.default_rng(3)
    deltas = sign * (rng.random(90) + 0.1)
    categories = np.repeat([0, 1], [50, 40])
    scores = design(deltas, categories, np.arange(90), np.array([0.5, 0.5]))
    reach = bootstrap_reach(scores, draws=1200, seed=4)
    assert reach is not None
    drawing = np.random.default_rng([0x500D, 4])
    shift = np.zeros(1200)
    variance = np.zeros(1200)
    error = 0.0
    for c, n in ((1, 40), (0, 50)):
        values = sign * deltas[categories == c] / n / 2
        influence = values - values.mean()
        drawn = influence[drawing.integers(0, n, size=(1200, n), dtype=np.int32)]
        shift += drawn.sum(axis=1)
        variance += n * drawn.var(axis=1, ddof=1)
        error += n * values.var(ddof=1)
    t = np.sort(shift / np.sqrt(variance))
    assert reach.studentised == pytest.approx(t if sign > 0 else -t[::-1])
    assert reach.error == pytest.approx(math.sqrt(error))


@pytest.mark.parametrize(("groups", "draws"), [(40, 4999), (3000, 2000), (16_000, 399)])
def test_many_groups_have_fewer_draws(groups: int, draws: int) -> None:
    deltas = (np.arange(groups) % 2).astype(float)
    reach = bootstrap_reach(design(deltas, 0 * np.arange(groups), np.arange(groups), np.ones(1)))
    assert reach is not None
    assert len(reach.studentised) == draws


def test_equal_groups_are_drawn_by_how_often_each_kind_comes() -> None:
    """Of 64 groups 20 differ by 1: a draw is multinomial, and its variance that of the differences drawn."""
    deltas = np.concatenate([np.ones(20), np.zeros(44)])
    reach = bootstrap_reach(
        design(deltas, np.zeros(64, int), np.arange(64), np.ones(1)), draws=1000, seed=1
    )
    assert reach is not None
    times = np.random.default_rng([0x500D, 1]).multinomial(64, [44 / 64, 20 / 64], size=1000)
    share = times[:, 1] / 64
    expected = (share - 20 / 64) / np.sqrt(share * (1 - share) / 63)
    assert reach.studentised == pytest.approx(np.sort(expected))


def test_nothing_varies_where_all_groups_differ_alike() -> None:
    alike = design(np.ones(30), np.zeros(30, int), np.arange(30), np.ones(1))
    assert bootstrap_reach(alike) is None


@pytest.mark.parametrize("flat", [0, 1])
def test_a_category_in_which_all_groups_differ_alike_adds_no_error(flat: int) -> None:
    varying = np.random.default_rng(5).random(40)
    sizes = [40, 40]
    sizes[flat] = 30
    categories = np.repeat([0, 1], sizes)
    deltas = np.full(70, 0.25)
    deltas[categories != flat] = varying
    scores = design(deltas, categories, np.arange(70), np.array([0.5, 0.5]))
    reach = bootstrap_reach(scores, draws=1000, seed=2)
    assert reach is not None
    influence = (varying - varying.mean()) / 40 / 2
    drawing = np.random.default_rng([0x500D, 2])
    drawn = influence[drawing.integers(0, 40, size=(1000, 40), dtype=np.int32)]
    t = drawn.sum(axis=1) / np.sqrt(40 * drawn.var(axis=1, ddof=1))
    assert reach.studentised == pytest.approx(np.sort(t))
    assert reach.error == pytest.approx(math.sqrt(40 * influence.var(ddof=1)))


def test_groups_without_a_difference_may_vary_by_their_size_alone() -> None:
    """Groups of one and two items have no difference in both categories, those in the first alone have all."""
    sizes = np.concatenate([np.ones(30, int), np.tile([1, 2], 15)])
    groups = np.repeat(np.arange(60), sizes)
    alone = groups < 30
    deltas = np.where(alone, np.linspace(0, 1, len(groups)), 0.0)
    items = np.concatenate([np.arange(len(groups)), np.flatnonzero(~alone)])
    categories = np.concatenate([np.zeros(len(groups), int), np.ones((~alone).sum(), int)])
    scores = design(deltas[items], categories, groups[items], np.array([0.5, 0.5]))
    assert len(scores.sizes) == 2
    assert not scores.flat.any()
    with np.errstate(all="raise"):
        reach = bootstrap_reach(scores, draws=400)
    assert reach is not None
    assert reach.error == pytest.approx(math.sqrt(scores.variances.sum()))
    assert np.isfinite(reach.studentised).all()
