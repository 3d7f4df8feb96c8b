"""Guards: what their names stand for, which soups they admit, and what a plan says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from souping.analysis import guards
from souping.analysis.guards import (
    LONGER,
    NEARER,
    SMALLEST,
    Admission,
    Guard,
    GuardCheck,
    GuardsResult,
    guard_tests,
    guarded_difference,
    plan_guards,
    planned,
    read_guards,
    resolve,
    warnings_of,
)
from souping.core.types import OWN_BENCHMARK, Item, ItemScores, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS, Estimate
from souping.statistics.comparison import Comparison

CATEGORIES = ("safe", "live_a", "live_b")
GROUPS = {"live": ("live_a", "live_b")}
UNITS = {"": POINTS, "mgsm": POINTS}


def scores(values: Any, lengths: Any = None, group: int = 1) -> ItemScores:
    values = np.asarray(values, dtype=float)
    items = tuple(
        Item(id=f"{n}", category="safe", prompt="", answer="", group=f"{n // group}")
        for n in range(len(values))
    )
    return ItemScores(
        items=items, values=values, lengths=np.zeros(0) if lengths is None else np.asarray(lengths)
    )


@pytest.mark.parametrize(
    ("guard", "names"),
    [
        (3, {"safe": ("safe",), "live_a": ("live_a",), "live_b": ("live_b",)}),
        ({"live": 2}, {"live": ("live_a", "live_b")}),
        ({"safe": 2, "tokens": "+10%", "mgsm": 1.5}, {"safe": ("safe",), "tokens": (), "mgsm": ()}),
        (None, {}),
    ],
)
def test_names_stand_for_categories_groups_benchmarks_and_lengths(
    guard: Any, names: dict[str, tuple[str, ...]]
) -> None:
    found = resolve(read_guards(guard), CATEGORIES, GROUPS, UNITS)
    assert {one.name: one.categories for one in found} == names
    for one in found:
        assert one.benchmark == ("mgsm" if one.name == "mgsm" else OWN_BENCHMARK)
        assert one.lengths == (one.name == "tokens")


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        (0, "you accept"), ({"safe": 0}, "guard.safe=0"), ({"safe": "5%"}, "guard.safe"), ({"tokens": 3}, "+10%"),
        (-1, "at least"), (True, "guard=True"), ("much", "guard=much"), ({"saef": 3}, "did you mean safe"),
        ({"mgsm2": 3}, "guard=mgsm2"), ({"safe": 100}, "below 100"),
        (1e-320, "guard=1e-320"), ({"tokens": "+1e-320%"}, "guard.tokens"), ({"tokens": "+1e308%"}, "guard.tokens"),
        (math.inf, "guard=inf"), (math.nan, "guard=nan"),
    ],
)  # fmt: skip
def test_a_guard_with_a_wrong_name_or_amount_is_refused(guard: Any, words: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(read_guards(guard), CATEGORIES, GROUPS, UNITS)
    assert words in str(refused.value)


@pytest.mark.parametrize("guard", [SMALLEST, {"tokens": f"+{SMALLEST}%"}, {"tokens": "+1e15%"}])
def test_a_plan_of_the_smallest_and_the_largest_guard_has_finite_numbers(guard: Any) -> None:
    known = {
        "a": scores(np.arange(40) % 2, np.arange(40) + 1),
        "b": scores(np.arange(40) % 3 == 0, np.arange(40) + 2),
    }
    limits = resolve(read_guards(guard), ["safe"], {}, {"": POINTS})
    for row in plan_guards(limits, {"search": {"": known["a"].items}}, known):
        assert row["needed"] is None or row["needed"] >= 0
        assert row["share"] is None or 0 <= row["share"] <= 1


def test_admission_is_the_one_sided_limit_and_length_is_a_share() -> None:
    rng = np.random.default_rng(0)
    n = 400
    reference = (rng.random(n) < 0.7).astype(float)
    worse = np.where(rng.random(n) < 0.3, 0.0, reference)
    guard = Guard(name="safe", margin=0.05, categories=("safe",))
    assert guard.admits(guarded_difference(guard, scores(reference), scores(reference)))
    lost = guarded_difference(guard, scores(worse), scores(reference))
    assert guard.outcome(lost) == "broken"
    assert lost.low < lost.difference < lost.high < -guard.margin
    tokens = rng.integers(20, 200, n).astype(float)
    length = Guard(name="tokens", margin=0.1, lengths=True, unit=LONGER)
    for factor, outcome in ((1.0, "held"), (1.05, "held"), (1.3, "broken")):
        found = guarded_difference(
            length, scores(reference, factor * tokens), scores(reference, tokens)
        )
        assert length.outcome(found) == outcome
        assert found.difference == pytest.approx(1 - factor)
        assert length.result(found).difference == pytest.approx(factor - 1)


def test_a_rise_of_the_loss_breaks_a_guard_in_bits_per_byte() -> None:
    (guard,) = resolve(read_guards(0.01), ["safe"], {}, {"": BITS_PER_BYTE})
    assert guard.allowed == "0.01 bits per byte"
    losses = 1 + 0.05 * np.random.default_rng(3).standard_normal(200)
    reference = scores(BITS_PER_BYTE.inner(losses))
    for rise, outcome in ((0.0, "held"), (-0.1, "held"), (0.03, "broken")):
        made = guard.result(
            guarded_difference(guard, scores(BITS_PER_BYTE.inner(losses + rise)), reference)
        )
        assert made.outcome == outcome
        assert made.margin == pytest.approx(0.01)
        assert made.difference == pytest.approx(rise, abs=1e-9)
    page = GuardsResult(sentence="none", checks=(made,)).section(POINTS)
    assert [cell.text for cell in page.grids[0].rows[0]][1] == "0.01 bits per byte"
    assert "bits per byte" in page.grids[0].rows[0][2].text


def test_the_report_tests_all_guards_at_holms_levels() -> None:
    rng = np.random.default_rng(1)
    reference = scores((rng.random(300) < 0.7).astype(float))
    soup = scores(np.where(rng.random(300) < 0.06, 1 - reference.values, reference.values))
    guards = [
        Guard(name=name, margin=margin)
        for name, margin in (("wide", 0.5), ("near", 0.06), ("narrow", 0.001))
    ]
    wide, near, narrow = guard_tests(guards, [(soup, reference)] * 3)
    (again,) = guard_tests(guards[:1], [(soup, reference)], looks=2)
    assert (wide.outcome, narrow.outcome) == ("held", "undecided")
    assert wide.level == pytest.approx(1 - 0.05 / 3)
    assert near.level is not None
    assert near.level > 0.95
    assert again.level == pytest.approx(1 - 0.05 / 6)


def test_a_plan_says_how_many_items_a_guard_needs() -> None:
    """10 % discordance, 80 % of equal soups: the formula's figures for 3, 2 and 1 points at both levels."""
    guards = [Guard(name=str(points), margin=points / 100) for points in (3, 2, 1)]
    items = scores(np.zeros(687)).items
    plans = plan_guards(guards, {"search": {"": items}, "test": {"": items}})
    assert [one["needed"] for one in plans] == [687, 872, 1546, 1962, 6183, 7849]
    assert plans[0]["share"] == pytest.approx(0.8, abs=0.001)
    assert not warnings_of(plans[:1])
    assert "6,183" in warnings_of(plans)[-1]


def test_known_answers_give_the_discordance_with_its_groups() -> None:
    rng = np.random.default_rng(2)
    luck = rng.random((3, 80, 5)) < 0.6
    alone = {f"m{n}": scores(luck[n].ravel()) for n in range(3)}
    tied = {f"m{n}": scores(np.repeat(luck[n, :, 0], 5), group=5) for n in range(3)}
    guard = [Guard(name="safe", margin=0.03, categories=("safe",))]
    split = {"": next(iter(alone.values())).items}
    single = plan_guards(guard, {"search": split}, alone)[0]["needed"]
    grouped = plan_guards(guard, {"search": split}, tied)[0]["needed"]
    # Power 80 % of a one-sided test at 5 %: two models with a rate of 0.6 differ on 2 x 0.6 x 0.4 of the items.
    factor = NEARER * ((1.6449 + 0.8416) / 0.03) ** 2
    assert single == pytest.approx(0.48 * factor, rel=0.12)
    assert grouped == pytest.approx(5 * 0.48 * factor, rel=0.25)


def test_a_guard_holds_only_if_it_does_for_the_missing_answers_too() -> None:
    """The soup lost 5.4 points, but 10 % of the reference's answers are missing: as counted, it gained 2.8."""
    right = np.arange(1000) < 700
    missing = ((np.arange(1000) >= 618) & (np.arange(1000) < 718)).astype(float)
    soup = scores(right & (np.arange(1000) >= 54))
    counted = scores(right & (missing == 0))
    reference = replace(counted, unanswered=missing)
    guard = Guard(name="safe", margin=0.03, categories=("safe",))
    assert guard_tests([guard], [(soup, counted)])[0].outcome == "held"
    (check_of_all,) = guard_tests([guard], [(soup, reference)])
    assert check_of_all.outcome == "undecided"
    assert check_of_all.difference == pytest.approx(0.028)
    # If all of the missing answers were right the soup would have lost 7.2 points.
    all_right = scores(right | (missing > 0))
    worst = guard_tests([guard], [(soup, all_right)])[0]
    assert worst.difference == pytest.approx(-0.072)
    assert check_of_all.low == worst.low


def of_limits(low: float, high: float) -> Comparison:
    """A comparison of which these limits matter."""
    guard = Guard(name="safe", margin=0.03)
    plain = guarded_difference(guard, scores([1, 0, 1, 0]), scores([1, 1, 0, 0]))
    return replace(plain, estimate=Estimate((low + high) / 2, low, high))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.029, 0.1, "held"), (-0.03, 0.1, "undecided"), (-0.05, -0.03, "undecided"), (-0.05, -0.031, "broken"),
        (-0.05, 0.1, "undecided"), (0.04, 0.1, "held"),
    ],
)  # fmt: skip
def test_a_guard_is_held_or_broken_if_its_limits_are_on_one_side_of_the_margin(
    low: float, high: float, outcome: str
) -> None:
    guard = Guard(name="safe", margin=0.03)
    comparison = of_limits(low, high)
    assert guard.outcome(comparison) == outcome
    assert guard.admits(comparison) == (outcome == "held")
    check = guard.result(comparison)
    assert (check.low, check.high, check.margin) == pytest.approx((low, high, 0.03))
    assert (check.items, check.groups) == (4, 4)
    assert check.level == comparison.level.confidence


@pytest.mark.parametrize(
    ("guard", "losses"),
    [
        (3, {"": 3.0}), ("2.5", {"": 2.5}), ({"tokens": "+10%"}, {"tokens": 10.0}), ({"safe": " 1 "}, {"safe": 1.0}),
        (SMALLEST, {"": SMALLEST}), ({"tokens": "5%", "safe": 2}, {"tokens": 5.0, "safe": 2.0}),
    ],
)  # fmt: skip
def test_losses_are_numbers_and_percentages_for_lengths(guard: Any, losses: Any) -> None:
    assert read_guards(guard) == losses


def test_margins_are_fractions_of_the_scale_and_below_all_of_it() -> None:
    (just,) = resolve({"safe": 99.9}, CATEGORIES, GROUPS, UNITS)
    assert just.margin == pytest.approx(0.999)
    for points in (100.0, 250.0):
        with pytest.raises(UserError, match=r"safe=.* must be below 100"):
            resolve({"safe": points}, CATEGORIES, GROUPS, UNITS)
    (length,) = resolve({"tokens": 250.0}, CATEGORIES, GROUPS, UNITS)
    assert length.margin == pytest.approx(2.5)
    assert (length.allowed, just.allowed) == ("250 %", "99.9 points")
    (loss,) = resolve({"": 150.0}, ["safe"], {}, {"": BITS_PER_BYTE})
    assert loss.allowed == "150 bits per byte"


def test_lengths_count_as_growth_of_the_mean_with_the_variance_of_the_bound() -> None:
    """((1 + m) x reference - soup) / mean reference - m: its mean, and its standard error by numpy."""
    rng = np.random.default_rng(7)
    reference = rng.integers(50, 150, 60).astype(float)
    soup = reference * rng.uniform(0.8, 1.3, 60)
    guard = Guard(name="tokens", margin=0.1, lengths=True, unit=LONGER)
    zeros = np.zeros(60)
    found = guarded_difference(guard, scores(zeros, soup), scores(zeros, reference))
    values = (1.1 * reference - soup) / reference.mean() - 0.1
    assert found.difference == pytest.approx(values.mean())
    plain = guarded_difference(
        Guard(name="x", margin=0.1, unit=BITS_PER_BYTE), scores(values), scores(zeros)
    )
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_a_guard_reads_its_own_items_at_its_own_level() -> None:
    rng = np.random.default_rng(11)
    reference = scores((rng.random(120) < 0.6).astype(float))
    soup = scores((rng.random(120) < 0.6).astype(float))
    items = tuple(replace(item, category="xy"[n % 2]) for n, item in enumerate(reference.items))
    own = Guard(name="x", margin=0.1, categories=("x",))
    whole = Guard(name="x", margin=0.1)
    some = guarded_difference(own, replace(soup, items=items), replace(reference, items=items))
    half = np.arange(120) % 2 == 0
    alone = guarded_difference(whole, scores(soup.values[half]), scores(reference.values[half]))
    assert some.n == 60
    assert some.difference == pytest.approx(alone.difference)
    assert (some.low, some.high) == pytest.approx((alone.low, alone.high))
    # Admission is one-sided at 5 %: the limits of a two-sided 90 % interval.
    assert some.level.confidence == pytest.approx(0.9)
    # Limits that are read after a look count for as many, and for those that the soup was chosen among.
    pairs = [(soup, reference)] * 2
    for check in guard_tests([whole] * 2, pairs, looks=2, picked=1.5, limits=2):
        assert check.level == pytest.approx(1 - 0.05 / 6 / 3)
    for check in guard_tests([Guard(name="x", margin=1e-6)], pairs[:1], picked=2.0):
        assert check.level == pytest.approx(1 - 0.05 / 2)


def test_a_search_knows_the_guards_on_the_runs_own_items() -> None:
    guards = (Guard(name="safe", margin=0.1), Guard(name="mgsm", margin=0.1, benchmark="mgsm"))
    admission = Admission(guards=guards, against="base", reference=scores([1, 0]))
    assert admission.own_guards == guards[:1]
    bounds = admission.bounds
    assert (bounds.bounds, bounds.against) == (guards[:1], "base")
    assert bounds.reference is admission.reference


def needed(variance: float, margin: float) -> int:
    return round(variance * ((1.6448536 + 0.8416212) / margin) ** 2)


def test_a_plan_takes_the_variance_of_known_answers_by_groups() -> None:
    """Mean variance of the difference of two candidates, from sums over groups of deviations, by numpy."""
    rng = np.random.default_rng(12)
    values = (rng.random((3, 40)) < [[0.5], [0.6], [0.8]]).astype(float)
    known = {str(n): scores(row, group=2) for n, row in enumerate(values)}
    guard = Guard(name="safe", margin=0.05, categories=("safe",))
    splits: Any = {"search": {"": known["0"].items}, "test": {"": known["0"].items[:10]}}
    sums = (values - values.mean(axis=1, keepdims=True)).reshape(3, 20, 2).sum(axis=2)
    pairs = [np.square(sums[a] - sums[b]).sum() / 40 for a, b in ((0, 1), (0, 2), (1, 2))]
    search, test = plan_guards([guard], splits, known)
    # A soup is nearer to a candidate than another candidate is.
    variance = NEARER * float(np.mean(pairs))
    assert search["needed"] == needed(variance, 0.05)
    # The power of one-sided tests at the levels below.
    for row, items, level in ((search, 40, 0.05), (test, 10, 0.025)):
        errors = 0.05 / math.sqrt(variance / items)
        assert row["share"] == pytest.approx(stats.norm.cdf(errors - stats.norm.isf(level)))
    assert (search["items"], test["items"]) == (40, 10)
    assert (search["level"], test["level"]) == (0.05, 0.025)
    assert (search["name"], search["allowed"], search["split"]) == ("safe", "5 points", "search")


def test_a_plan_takes_lengths_as_multiples_of_their_mean_and_in_full() -> None:
    rng = np.random.default_rng(13)
    lengths = rng.integers(10, 90, (2, 30)).astype(float)
    known = {str(n): scores(np.zeros(30), row) for n, row in enumerate(lengths)}
    guard = Guard(name="tokens", margin=0.2, lengths=True, unit=LONGER)
    (row,) = plan_guards([guard], {"search": {"": known["0"].items}}, known)
    shares = lengths / lengths.mean(axis=1, keepdims=True)
    difference = (shares[0] - 1) - (shares[1] - 1)
    assert row["needed"] == needed(np.square(difference).mean(), 0.2)


@pytest.mark.parametrize(
    ("guard", "known"),
    [
        (Guard(name="mgsm", margin=0.03, benchmark="mgsm"), {"a": scores([1, 0])}),
        (Guard(name="safe", margin=0.03), {}),
        (Guard(name="x", margin=0.03, categories=("x",)), {"a": scores([1, 0])}),
        (Guard(name="safe", margin=0.03), {"a": scores([1, 0]), "b": scores([1, 0])}),
    ],
)
def test_a_plan_without_known_differences_assumes_10_percent(guard: Guard, known: Any) -> None:
    items = scores(np.zeros(10)).items
    splits: Any = {"search": {"": items, "mgsm": items}}
    (row,) = plan_guards([guard], splits, known)
    assert row["needed"] in (None, needed(0.1, 0.03))
    assert (row["needed"] is None) == (row["items"] == 0)
    unknown = replace(guard, lengths=True, unit=LONGER, categories=())
    if not known or guard.benchmark:
        (length,) = plan_guards([unknown], splits, known)
        assert (length["share"], length["needed"]) == (None, None)


def row_of(**fields: Any) -> dict[str, Any]:
    plain = {
        "name": "safe",
        "allowed": "3 points",
        "split": "search",
        "items": 1200,
        "share": 0.4,
        "needed": 6183,
    }
    return plain | fields  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        ({}, True), ({"share": 0.5}, False), ({"share": 0.49}, True), ({"share": None}, False),
        ({"split": "test"}, False), ({"share": 0.9}, False),
    ],
)  # fmt: skip
def test_a_search_is_warned_of_where_fewer_than_half_of_equal_soups_pass(
    fields: Any, warned: bool
) -> None:
    warnings = warnings_of([row_of(**fields), row_of(share=1.0)])
    assert len(warnings) == warned
    if warned and not fields:
        (warning,) = warnings
        assert all(words in warning for words in ("guard safe", "1,200", "40 %", "6,183"))


def test_a_warning_of_a_later_guard_comes_too() -> None:
    rows = [row_of(split="test"), row_of(share=0.9), row_of(name="late")]
    assert ["late" in warning for warning in warnings_of(rows)] == [True]


def test_a_plan_shows_its_guards() -> None:
    assert planned([]) is None
    section = planned([row_of(), row_of(split="test", share=None, needed=None)])
    assert section is not None
    assert "below 5 %" in section.lines[0]
    assert "at 2.5 %" in section.lines[0]
    assert "10 % of the items" in section.lines[0]
    assert len(section.lines) == 2
    (table,) = section.grids
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["safe", "3 points", "search", "1,200", "40 %", "6,183"]
    assert rows[1][4:] == ["\u2013", "\u2013"]
    assert table.left == {0, 1, 2}


def test_a_report_shows_its_guards_and_stresses_the_broken_ones() -> None:
    def check(name: str, outcome: str, **fields: Any) -> GuardCheck:
        plain = {
            "margin": 0.03,
            "difference": -0.05,
            "low": -0.08,
            "high": 0.01,
            "level": 0.95,
            "items": 1200,
        }
        return GuardCheck(name=name, outcome=outcome, groups=9, **(plain | fields))  # fmt: skip

    longer = check("tokens", "held", unit=LONGER, margin=0.1, difference=0.02, low=-0.01, high=0.05)
    checks = (
        check("safe", "held"),
        check("y", "broken"),
        check("z", "no answers", margin=None),
        longer,
    )
    result = GuardsResult(against="base", sentence="the guards changed nothing", checks=checks)
    section = result.section(POINTS)
    assert section.lines[0] == "Compared with base, the guards changed nothing."
    assert "one-sided 2.5 %" in section.lines[1]
    (table,) = section.grids
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["safe", "3 points", "\u22125.0 [\u22128.0, +1.0] points", "1,200", "held"]
    assert rows[2][1] == "\u2013"
    assert rows[3][:3] == ["tokens", "10 %", "+2.0 [\u22121.0, +5.0] %"]
    assert table.strong == {1}
    assert table.left == {0, 1, 4}
    assert "base" in table.header[2]
    bare = GuardsResult(against="base", sentence="no guard could be tested", checks=()).section(
        POINTS
    )
    assert (len(bare.lines), bare.grids) == (1, ())


def test_the_numbers_of_guards_are_those_of_earlier_reports() -> None:
    assert (guards.ADMISSION, guards.NEARER, guards.SMALLEST) == (0.05, 0.7, 1e-6)
    assert (guards.LEAST_LENGTH, guards.FEW_PASS) == (1e-9, 0.5)
