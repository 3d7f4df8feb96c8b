"""The paired test against enumeration and scipy, and the rules for several p-values."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, seed, settings, strategies as st
from scipy import stats

from souping.core.types import FloatArray, IntArray
from souping.core.unit import Estimate
from souping.statistics import bootstrap_t, corrections, flips, grouped, nested, score_table
from souping.statistics.comparison import Comparison, better_than_every
from souping.statistics.corrections import FIRST_LOOK, Level, holm, penalty
from souping.statistics.flips import INTERVAL_SALT, drawn_sums
from souping.statistics.grouped import design
from souping.statistics.power import items_for
from tests.support.flips import compare, sign_flip

Data = tuple[FloatArray, FloatArray, IntArray, IntArray, FloatArray]


@st.composite
def paired(draw: st.DrawFn, most: int = 24) -> Data:
    """Two models on items of up to three categories; groups may span them; scores right-or-wrong or graded."""
    width = draw(st.integers(1, 3))
    n = draw(st.integers(width, most))
    score = (
        st.sampled_from([0.0, 1.0])
        if draw(st.booleans())
        else st.integers(0, 10).map(lambda k: k / 10)
    )
    scores = st.lists(score, min_size=n, max_size=n)
    a = np.array(draw(scores))
    b = np.array(draw(scores))
    categories = np.array(
        [*range(width), *draw(st.lists(st.integers(0, width - 1), min_size=n, max_size=n))][:n]
    )
    groups = np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    weights = np.array(
        draw(st.lists(st.integers(1, 4), min_size=width, max_size=width)), dtype=float
    )
    return a, b, categories, groups, weights / weights.sum()


def by_hand(
    deltas: FloatArray, categories: IntArray, groups: IntArray, weights: FloatArray
) -> float:
    """The p-value from every one of the 2^G sign patterns, the statistic written out from its definition."""
    whole = design(deltas, categories, groups, weights)
    pull = [float((weights * sums / counts).sum()) for sums, counts in _parts(whole)]

    def statistic(signs: tuple[int, ...]) -> float:
        """|t| of the sums over groups under these signs, by strata."""
        total = 0.0
        variance = 0.0
        for h in set(whole.stratum.tolist()):
            x = np.array(
                [s * t for s, t, k in zip(signs, pull, whole.stratum, strict=True) if k == h]
            )
            total += x.sum()
            variance += len(x) * x.var(ddof=1) if len(x) > 1 else 0.0
        return (
            abs(total) / np.sqrt(max(variance, 1e-12 * sum(t * t for t in pull)))
            if any(pull)
            else 0.0
        )

    seen = statistic((1,) * len(pull))
    every = [statistic(signs) for signs in product((1, -1), repeat=len(pull))]
    return float(np.mean([s >= seen * (1 - 1e-9) - 1e-9 for s in every]))


def _parts(whole: object) -> list[tuple[FloatArray, FloatArray]]:
    totals = whole.counts.sum(axis=0)  # type: ignore[attr-defined]
    return [(row, totals) for row in whole.sums]  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(data=paired())
def test_sign_flip_is_the_enumeration(data: Data) -> None:
    a, b, categories, groups, weights = data
    whole = design(a - b, categories, groups, weights)
    if len(whole.sums) > 1 and min(whole.sizes) > 1:
        assert sign_flip(whole) == pytest.approx(
            by_hand(a - b, categories, groups, weights), abs=1e-9
        )


def test_rounding_breaks_no_tie() -> None:
    deltas = np.array([0.6 - 0.8, 1.0 - 0.8])
    assert deltas.sum() != 0
    assert sign_flip(design(deltas, np.zeros(2, dtype=int), np.arange(2), np.ones(1))) == 1.0


def test_drawn_patterns_agree_with_all_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    deltas = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.8, 0.15], size=80)
    whole = design(deltas, np.arange(80) % 2, np.arange(80), np.array([0.5, 0.5]))
    exact = sign_flip(whole)
    monkeypatch.setattr(flips, "EXACT_STATES", 0)
    assert sign_flip(whole, draws=20_000) == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))
    assert sign_flip(whole, draws=20_000) != exact


def test_smallest_p_is_one_in_draws_plus_one() -> None:
    rng = np.random.default_rng(0)
    whole = design(rng.random(60) + 1, np.zeros(60, dtype=int), np.arange(60), np.ones(1))
    assert sign_flip(whole, draws=9999) == 1 / 10_000
    assert sign_flip(whole, draws=99) == 1 / 100


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 40))
def test_one_category_without_groups_is_mcnemar(seed: int, n: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 2, size=(2, n)).astype(float)
    whole = design(a - b, np.zeros(n, dtype=int), np.arange(n), np.ones(1))
    wins = int((a > b).sum())
    losses = int((a < b).sum())
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_flip(whole) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(data=paired(), number=st.integers(0, 99))
def test_comparison_does_not_depend_on_order_or_labels(data: Data, number: int) -> None:
    a, b, categories, groups, weights = data
    order = np.random.default_rng(number).permutation(len(a))
    first = compare("a", "b", a, b, categories, groups, weights)
    again = compare("a", "b", a[order], b[order], categories[order], groups[order] * 7, weights)
    # other groups first: other draws
    assert again.p_alone == pytest.approx(first.p_alone, abs=0.03)
    assert again.difference == pytest.approx(first.difference)
    assert compare("a", "b", a, b, categories, groups, weights) == first


@seed(0)
@settings(max_examples=60, deadline=None)
@given(data=paired(most=60), looks=st.sampled_from([1, 2, 5]))
def test_interval_and_p_value_never_disagree(data: Data, looks: int) -> None:
    a, b, categories, groups, weights = data
    there = compare("a", "b", a, b, categories, groups, weights, looks=looks)
    back = compare("b", "a", b, a, categories, groups, weights, looks=looks)
    assert there.level.confidence == pytest.approx(1 - 0.05 / penalty(looks))
    assert (there.low > 0 or there.high < 0) == (there.p_alone < there.level.alpha)
    assert -1 <= there.low <= there.difference + 1e-9
    assert there.difference - 1e-9 <= there.high <= 1
    assert there.high - there.low > 1e-6
    assert 0 < there.p_alone <= 1
    assert back.p_alone == there.p_alone
    assert (-back.high, -back.difference, -back.low) == (there.low, there.difference, there.high)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-0.6, 0.6), looks=st.sampled_from([1, 2, 5]))
def test_the_same_holds_near_the_edge_of_significance(seed: int, shift: float, looks: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 200))
    a, b = rng.random((2, n)) if seed % 2 else (rng.random((2, n)) < 0.7).astype(float)
    better = np.clip(a + shift * (rng.random(n) < 0.5), 0, 1)
    found = compare(
        "a",
        "b",
        better,
        b,
        np.arange(n) % 3,
        np.arange(n) // 2,
        np.array([0.5, 0.3, 0.2]),
        looks=looks,
    )
    assert (found.low > 0 or found.high < 0) == (found.p_alone < found.level.alpha)


def test_every_difference_inside_is_one_that_the_test_does_not_reject() -> None:
    """At a limit the p-value is 5 %; 0.002 beside it, it is above 3 % or below 7 %; 0.02 outside, below 5 %."""
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 300))
    where = np.arange(300) % 3
    groups = np.arange(300) // 2
    weights = np.full(3, 1 / 3)
    found = compare("a", "b", a, b, where, groups, weights)
    for limit, outside in ((found.low, -0.002), (found.high, 0.002)):
        assert sign_flip(design(a - b - limit + outside, where, groups, weights)) > 0.03
        assert sign_flip(design(a - b - limit - outside, where, groups, weights)) < 0.07
    assert sign_flip(design(a - b - found.low + 0.02, where, groups, weights)) < 0.05
    assert sign_flip(design(a - b - found.high - 0.02, where, groups, weights)) < 0.05


def test_later_looks_are_wider() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random((2, 400)) < 0.7).astype(float)
    found = [
        compare("a", "b", a, b, np.zeros(400, dtype=int), np.arange(400), np.ones(1), looks=k)
        for k in (1, 2, 5, 20)
    ]
    widths = [f.high - f.low for f in found]
    assert widths == sorted(widths)
    # Look k from the second on shares 5 % by k (k + 1).
    expected = [1 - 0.05 / factor for factor in (1, 2 * 3, 5 * 6, 20 * 21)]
    assert [f.level.confidence for f in found] == pytest.approx(expected)


def test_equal_answers_are_no_proof_of_equality() -> None:
    scores = np.ones(50)
    where = np.arange(50) % 2
    alike = compare("a", "b", scores, scores, where, np.arange(50), np.full(2, 0.5))
    assert (alike.difference, alike.p_alone) == (0.0, 1.0)
    assert alike.low < 0 < alike.high
    same = compare("a", "b", scores, scores, where, np.arange(50), np.full(2, 0.5), same_model=True)
    assert (same.difference, same.low, same.high, same.p_alone) == (0.0, 0.0, 0.0, 1.0)


def test_a_category_without_weight_decides_nothing() -> None:
    a = np.ones(40)
    b = np.array([1.0] * 20 + [0.0] * 20)
    where = np.repeat([0, 1], 20)
    assert compare("a", "b", a, b, where, np.arange(40), np.array([1.0, 0.0])).p_alone == 1
    assert compare("a", "b", a, b, where, np.arange(40), np.array([0.5, 0.5])).p_alone < 1e-4


def test_copies_of_items_are_no_further_evidence() -> None:
    rng = np.random.default_rng(1)
    deltas = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=30)
    once = design(deltas, np.zeros(30, dtype=int), np.arange(30), np.ones(1))
    copied = design(
        np.repeat(deltas, 5), np.zeros(150, dtype=int), np.repeat(np.arange(30), 5), np.ones(1)
    )
    assert sign_flip(copied) == pytest.approx(sign_flip(once))
    ignored = design(np.repeat(deltas, 5), np.zeros(150, dtype=int), np.arange(150), np.ones(1))
    assert sign_flip(ignored) < sign_flip(once) / 5


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def against(name: str, difference: float, p_value: float, level: Level = FIRST_LOOK) -> Comparison:
    return Comparison(
        a="soup",
        b=name,
        estimate=Estimate(difference, difference - 0.02, difference + 0.02),
        level=level,
        p_alone=p_value,
        test="",
        n=600,
        groups=300,
        discordant=0.1,
    )


def test_better_than_every_is_the_largest_p() -> None:
    assert better_than_every([against("x", 0.05, 0.001), against("y", 0.03, 0.04)]) == 0.04
    assert better_than_every([against("x", 0.05, 0.001), against("y", -0.03, 0.04)]) == 1.0
    assert better_than_every([against("x", 0.05, 0.001), against("y", 0.0, 1.0)]) == 1.0


def test_the_first_look_costs_nothing_and_all_of_them_together_half_the_level() -> None:
    assert [Level(k).corrected(0.001) for k in (1, 2, 5)] == pytest.approx([0.001, 0.006, 0.03])
    assert Level(looks=20).corrected(0.2) == 1.0
    assert sum(1 / penalty(k) for k in range(1, 10_000)) < 1.5


def test_items_for_the_margin_do_not_depend_on_the_difference_seen() -> None:
    needed = 600 * (2 / 1.96 * (1.96 + 0.8416)) ** 2
    for difference in (0.0, 0.005, 0.01, -0.03):
        assert items_for(against("x", difference, 0.5)) == pytest.approx(needed, rel=0.05)
    assert items_for(against("x", 0.0, 0.9), margin=0.02) == pytest.approx(needed / 4, rel=0.1)
    assert items_for(against("x", 0.0, 0.9), margin=0.001) > 100_000
    assert items_for(against("x", 0.0, 0.9), margin=0.0) > 100_000


def test_few_groups_can_reject_nothing() -> None:
    found = compare(
        "a", "b", np.ones(4), np.zeros(4), np.zeros(4, dtype=int), np.arange(4), np.ones(1)
    )
    assert (found.low, found.high, found.p_alone) == (-1.0, 1.0, 0.125)


def test_difference_is_the_objectives() -> None:
    a = np.array([1.0, 0, 1, 1, 0.5])
    b = np.array([0.0, 0, 1, 0, 0])
    comparison = compare(
        "a", "b", a, b, np.array([0, 0, 1, 1, 1]), np.arange(5), np.array([0.25, 0.75])
    )
    assert comparison.difference == pytest.approx(0.25 * 0.5 + 0.75 * 0.5)
    assert (comparison.n, comparison.groups) == (5, 5)
    assert comparison.discordant == pytest.approx(0.6)


@pytest.mark.parametrize("number", [1, 1000, 1001, 20_000])
def test_so_many_coins_have_probabilities(number: int) -> None:
    expected = stats.binom.pmf(np.arange(number + 1), number, 0.5)
    np.testing.assert_allclose(flips._heads_distribution(number), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("number", [[1, 2, 3], [40, 9, 1000], [5000]])
def test_drawn_signs_are_those_of_the_inverse_distribution(number: list[int]) -> None:
    """The table of starts finds what a search of the whole distribution does."""
    draws = 3000
    rows = np.eye(len(number))
    sizes = np.array(number)
    one_stratum = np.zeros(len(number), dtype=int)
    sums = drawn_sums(rows, sizes, one_stratum, strata=1, draws=draws, seed=7)[:, 0]
    rng = np.random.default_rng([INTERVAL_SALT, 7])
    for row, coins in enumerate(number):
        cumulative = np.cumsum(flips._heads_distribution(coins))
        heads = np.minimum(np.searchsorted(cumulative, rng.random(draws)), coins)
        assert sums[:, row].tolist() == (2.0 * heads - coins).tolist()


def test_the_numbers_that_limits_rest_on_are_those_of_earlier_reports() -> None:
    """With others, the same scores would have other limits, and a report that is made again would change."""
    draws = (flips.SIGN_DRAWS, flips.MOST_DRAWS, flips.EXACT_STATES, flips.INTERVAL_SALT)
    assert draws == (10_006, 100_002, 20_000, 0x500D)
    streams = (flips.STARTS, flips.SIGNS_AT_A_TIME, flips.MANY_GROUPS, flips.FEW_ALIKE)
    assert streams == (1024, 4_000_000, 64, 32)
    ends = (flips.TINY_VARIANCE, flips.NO_VARIANCE, flips.DISTANCE_HALVINGS, flips.ENDLESS)
    assert ends == (1e-12, 1e-30, 22, 60_000.0)
    resampled = (bootstrap_t.BOOTSTRAP_DRAWS, bootstrap_t.LEAST_DRAWS, bootstrap_t.WORK)
    assert resampled == (4_999, 399, 6_000_000)
    chunks = (bootstrap_t.GROUPS_AT_A_TIME, bootstrap_t.RESOLVED, bootstrap_t.GROUPS_PER_INFLUENCE)
    assert chunks == (2_000_000, 20, 16)
    assert (nested.LEAST_P, nested.P_HALVINGS, corrections.ALPHA) == (1e-100, 64, 0.05)
    groups = (grouped.SMALLEST_STRATUM, grouped.FLAT_VARIANCE, grouped.ZERO_DIFFERENCE)
    assert groups == (5, 1e-12, 1e-9)
    assert (score_table.WARN_LOST, score_table.MOST_LOST) == (0.02, 0.2)
