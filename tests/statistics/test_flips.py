"""The inverted sign-flip test against its definition, pattern by pattern."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from souping.core.types import FloatArray, IntArray
from souping.statistics.flips import (
    distinct,
    drawn_sums,
    draws_for,
    every_pattern,
    flip_reach,
    is_countable,
    studentised,
    variance_of_sums,
)
from souping.statistics.grouped import GroupedScores, design
from souping.statistics.score_table import one_category

DELTAS = np.array([0.9, -0.2, 0.4, 0.1, 0.6, 0.3, -0.5, 0.8, 0.2, -0.1, 0.7, 0.35])
TWO_CATEGORIES = design(DELTAS, np.repeat([0, 1], [5, 7]), np.arange(12), np.array([0.3, 0.7]))
LAYOUTS = {
    "two categories": TWO_CATEGORIES,
    "one category": design(DELTAS, np.zeros(12, int), np.arange(12), np.ones(1)),
    "worse than before": design(-DELTAS, np.zeros(12, int), np.arange(12), np.ones(1)),
    "groups of 1, 2 and 3": design(
        np.tile(DELTAS, 2), np.zeros(24, int), np.repeat(np.arange(12), [1, 2, 3] * 4), np.ones(1)
    ),
}


def statistic(pulls: FloatArray, stratum: IntArray) -> FloatArray:
    """T / se of patterns [D, 12] of what each group adds to T, by numpy's variance in each stratum [12]."""
    variance = np.zeros(len(pulls))
    for h in np.unique(stratum):
        inside = pulls[:, stratum == h]
        variance += inside.shape[1] * inside.var(axis=1, ddof=1)
    return np.asarray(pulls.sum(axis=1) / np.sqrt(variance))


def share_that_reaches(scores: GroupedScores, shift: float) -> float:
    """The share of all patterns of signs whose |T| / se is that of the scores less a shift, or more."""
    shifted = (scores.sums - shift * scores.counts) / scores.counts.sum(axis=0) * scores.weights
    signs = np.array(list(product((1.0, -1.0), repeat=12)))
    statistics = np.abs(statistic(signs * shifted.sum(axis=1), scores.stratum))
    return float(np.mean(statistics >= statistics[0] * (1 - 1e-9)))


@pytest.mark.parametrize("level", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_limit_is_the_last_shift_that_enough_patterns_reach(level: float, layout: str) -> None:
    scores = LAYOUTS[layout]
    reach = flip_reach(scores)
    assert reach is not None
    assert reach.p_value == pytest.approx(share_that_reaches(scores, 0.0))
    for limit, outward in (
        (scores.objective - reach.below(level), -1e-4),
        (scores.objective + reach.above(level), 1e-4),
    ):
        assert share_that_reaches(scores, limit - outward) >= level
        assert share_that_reaches(scores, limit + outward) < level


def test_the_signs_that_were_seen_and_their_reverse_reach_every_shift() -> None:
    """Two of 4,096 patterns: at a lower level than theirs nothing is ever rejected."""
    reach = flip_reach(TWO_CATEGORIES)
    assert reach is not None
    for level, endless in ((1.9 / 4096, True), (2.1 / 4096, False)):
        assert np.isinf(reach.below(level)) == endless
        assert np.isinf(reach.above(level)) == endless


def test_the_same_limits_are_found_where_only_the_farthest_patterns_are_followed() -> None:
    scores = TWO_CATEGORIES
    followed = flip_reach(scores)
    farthest = flip_reach(scores, highest=0.05)
    assert followed is not None
    assert farthest is not None
    for level in (0.05, 0.01):
        assert farthest.below(level) == pytest.approx(followed.below(level))
        assert farthest.above(level) == pytest.approx(followed.above(level))


def test_equal_models_have_a_p_value_of_1_by_drawn_patterns() -> None:
    """Differences of two sizes, too many patterns to count; some drawn ones have T = 0 as well."""
    deltas = np.repeat([1.0, -1.0, 0.5, -0.5], 80)
    reach = flip_reach(one_category(np.arange(320)).grouped(deltas))
    assert reach is not None
    assert reach.p_value == 1.0


@pytest.mark.parametrize(("rows", "counted"), [([140, 140], True), ([141, 141], False)])
def test_up_to_20000_patterns_are_counted(rows: list[int], counted: bool) -> None:
    """A row that stands for n groups has 0 to n positive signs: 141 * 141 patterns, and 142 * 142."""
    assert is_countable(np.array(rows)) == counted


@pytest.mark.parametrize("seed", range(4))
def test_of_equal_models_limits_are_those_of_the_items_in_any_order(seed: int) -> None:
    """T is 0, so which of the two is taken for the better one may hang on the values alone."""
    rng = np.random.default_rng(seed)
    gains = rng.permutation(np.arange(1, 21)).astype(float)
    deltas = np.concatenate([gains, [0.0] * 3, [-float(gains.sum())]]) / 300
    backwards = deltas[::-1]  # the one loss comes first
    items = one_category(np.arange(len(deltas)))
    limits = []
    for order in (deltas, backwards):
        reach = flip_reach(items.grouped(order))
        assert reach is not None
        limits.append((reach.below(0.05), reach.above(0.05)))
    turned = flip_reach(items.grouped(-backwards))
    assert turned is not None
    assert limits[1] == pytest.approx(limits[0], rel=1e-9)
    assert (turned.above(0.05), turned.below(0.05)) == pytest.approx(limits[0], rel=1e-9)


def test_a_difference_and_its_mirror_have_mirrored_limits_or_at_zero_the_same() -> None:
    """If the differences of the groups are the same with either sign, nothing tells a - b from b - a."""
    rng = np.random.default_rng(0)
    half = rng.random(40)
    uneven = rng.random(80)
    for values, mirrored in (
        (uneven, True),
        (uneven - uneven.mean(), True),
        # T is 0.3 of the largest difference.
        (uneven - uneven.mean() + 0.3 * 0.5 / 80, True),
        (rng.permutation(np.concatenate([half, -half])), False),
    ):
        limits = []
        for sign in (1.0, -1.0):
            scores = design(sign * values, np.zeros(80, int), np.arange(80), np.ones(1))
            reach = flip_reach(scores, draws=999)
            assert reach is not None
            limits.append((reach.below(0.05), reach.above(0.05)))
        first, second = limits
        assert second == (first[::-1] if mirrored else first)


@pytest.mark.parametrize(
    ("alpha", "draws", "expected"),
    [(0.05, 10_006, 10_006), (0.05, 300, 400), (0.001, 10_006, 20_000), (1e-5, 10_006, 100_002)],
)
def test_twenty_patterns_lie_beyond_the_level(alpha: float, draws: int, expected: int) -> None:
    assert draws_for(alpha, draws) == expected


def test_the_variance_of_a_sum_is_that_of_its_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.random(9)
    squares = float((groups**2).sum())
    found = variance_of_sums(np.array([groups.sum()]), np.array([squares]), sizes=9.0)
    assert found[0] == pytest.approx(9 * groups.var(ddof=1))
    # One group alone has no variance but its own rounding.
    assert variance_of_sums(np.array([0.5]), np.array([0.25]), sizes=1.0)[0] == 0
    sums = np.array([[groups.sum(), 1.5], [0.0, 0.0]])
    totals, errors = studentised(sums, np.array([squares, 1.0]), np.array([9.0, 3.0]))
    assert totals == pytest.approx(sums.sum(axis=1))
    # Of a stratum of n groups: n / (n - 1) times the squares less sum^2 / n.
    second = (1.0 - 1.5**2 / 3) * 3 / 2
    assert errors[0] == pytest.approx(np.sqrt(9 * groups.var(ddof=1) + second))
    assert errors[1] == pytest.approx(np.sqrt(squares * 9 / 8 + 3 / 2))
    # At least a millionth of the root of the sum of squares, and never zero.
    _, least = studentised(np.array([[3.0]]), np.array([3.0]), np.array([3.0]))
    assert least[0] == pytest.approx(1e-6 * np.sqrt(3.0))
    _, none = studentised(np.zeros((1, 1)), np.zeros(1), np.array([3.0]))
    assert none[0] == pytest.approx(1e-15)


def test_equal_rows_of_a_stratum_are_one_row() -> None:
    rows = np.array([[1.0, 2.0], [0.5, 1.0], [1.0 + 1e-13, 2.0], [1.0, 2.0], [1.0 + 1e-11, 2.0]])
    stratum = np.array([0, 0, 0, 1, 0])
    found, of, number = distinct(rows, stratum)
    assert found.round(9).tolist() == [[0.5, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    assert (of.tolist(), number.tolist()) == ([0, 0, 0, 1], [1, 2, 1, 1])


def test_every_pattern_has_the_chance_of_its_coins() -> None:
    plus, chance = every_pattern(np.array([2, 1]))
    assert plus.T.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    expected = [stats.binom.pmf(a, 2, 0.5) * stats.binom.pmf(b, 1, 0.5) for a, b in plus.T.tolist()]
    assert chance == pytest.approx(expected)
    assert chance.sum() == pytest.approx(1)


def test_many_single_groups_are_signed_by_the_byte() -> None:
    """70 groups in two strata: a random byte signs eight groups, its highest bit the first, 1 for minus."""
    rng = np.random.default_rng(2)
    rows = rng.random((70, 2))
    stratum = np.repeat([0, 1], [43, 27])
    number = np.ones(70, dtype=np.int64)
    found = drawn_sums(rows, number, stratum, strata=2, draws=50, seed=9)
    drawing = np.random.default_rng([0x500D, 9])
    for h in (0, 1):
        groups = rows[stratum == h]
        total = np.zeros((50, 2))
        for start in range(0, len(groups), 8):
            bytes_drawn = drawing.integers(0, 256, size=50, dtype=np.uint8)
            for place, row in enumerate(groups[start : start + 8]):
                minus = (bytes_drawn >> (7 - place)) & 1
                total += np.where(minus == 1, -1.0, 1.0)[:, None] * row
        assert found[:, h] == pytest.approx(total)


@pytest.mark.parametrize("losses", [2, 5, 10])
def test_the_p_value_is_that_of_the_groups_that_differ_alone(losses: int) -> None:
    """Sixty groups of other sizes are too many patterns to count, but have no sign: T is 0 in none of them."""
    sizes = np.concatenate([np.ones(12, int), np.arange(1, 61)])
    deltas = np.repeat(np.arange(72) < 12, sizes).astype(float)
    deltas[:losses] = -1.0
    scores = design(deltas, 0 * deltas.astype(int), np.repeat(np.arange(72), sizes), np.ones(1))
    reach = flip_reach(scores, draws=199)
    assert reach is not None
    fewer = min(losses, 12 - losses)
    assert reach.p_value == pytest.approx(2 * stats.binom.cdf(fewer, 12, 0.5))


@pytest.mark.parametrize("groups", [2, 402, 470])
def test_equal_models_have_a_p_value_of_exactly_1(groups: int) -> None:
    """Rounded, the chances of 403 patterns add up to more than 1."""
    deltas = np.where(np.arange(groups) % 2 == 0, 1.0, -1.0)
    reach = flip_reach(one_category(np.arange(groups)).grouped(deltas))
    assert reach is not None
    assert reach.p_value == 1.0
