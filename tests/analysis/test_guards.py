"""Guards: what their names stand for, which soups they admit, and what a plan says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from souping.analysis.guards import (
    LONGER,
    NEARER,
    SMALLEST,
    Guard,
    GuardsResult,
    guard_tests,
    guarded_difference,
    plan_guards,
    read_guards,
    resolve,
    warnings_of,
)
from souping.core.types import Item, ItemScores, UserError
from souping.core.unit import BITS_PER_BYTE, POINTS

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
    assert [one.benchmark for one in found if one.name == "mgsm"] == ["mgsm"] * ("mgsm" in names)
    assert all(one.lengths == (one.name == "tokens") for one in found)


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
        assert (made.outcome, made.margin) == (outcome, pytest.approx(0.01))
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
    (again,) = guard_tests(guards[:1], [(soup, reference)], 2)
    assert (wide.outcome, narrow.outcome) == ("held", "undecided")
    assert wide.level == pytest.approx(1 - 0.05 / 3)
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
    factor = NEARER * ((1.6449 + 0.8416) / 0.03) ** 2
    assert single == pytest.approx(0.48 * factor, rel=0.12)
    assert grouped == pytest.approx(5 * 0.48 * factor, rel=0.25)


def test_a_guard_holds_only_if_it_does_for_the_missing_answers_too() -> None:
    """The soup lost 5.4 points, but 10 % of the reference's answers are missing: as counted, it gained 2.8."""
    right = np.arange(1000) < 700
    missing = ((np.arange(1000) >= 618) & (np.arange(1000) < 718)) * 1.0
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
