"""Units: scores go in and come out as they were, and a loss is better where it is lower."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from souping.core.reading import read
from souping.core.text import confidence
from souping.core.unit import BITS_PER_BYTE, MARGIN, POINTS, Estimate, Unit

COUNT = Unit(
    name="words",
    symbol="words",
    meaning="words",
    scale=1.0,
    digits=0,
    min_gain=3.0,
    fractions=False,
)
UNITS = (POINTS, BITS_PER_BYTE, COUNT)


@pytest.mark.parametrize("one", UNITS, ids=lambda one: one.name)
def test_scores_come_out_as_they_went_in(one: Unit) -> None:
    scores = np.array([0.0, 0.25, 1.5])
    assert one.raw(one.inner(scores)) == pytest.approx(scores)
    assert one.inner_margin(None) == pytest.approx(MARGIN)
    assert one.inner_margin(2 * one.min_gain) == pytest.approx(2 * MARGIN)
    assert bool(one.inner(2.0) > one.inner(1.0)) is one.higher_is_better
    assert one.size(one.inner(0.5)) == pytest.approx(0.5 if one.higher_is_better else -0.5)
    assert read(Unit, json.loads(json.dumps(asdict(one)))) == one


def test_points_are_fractions_to_the_last_bit() -> None:
    for value in (0.1, 1 / 3, 0.7812):
        assert POINTS.inner(value) == POINTS.raw(value) == value
    estimate = Estimate(0.1, 0.0, 1 / 3)
    assert POINTS.raw_estimate(estimate) == estimate
    assert read(Unit, None) == POINTS


def test_a_loss_is_turned_round_with_its_limits() -> None:
    found = BITS_PER_BYTE.raw_estimate(Estimate(0.02, low=-0.01, high=0.05))
    assert found == pytest.approx(Estimate(-0.01, low=-0.025, high=0.005))


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (POINTS, ("+1.2", "78.1 %", "1 point", "score %", "Right", "RdBu")),
        (
            BITS_PER_BYTE,
            (
                "+0.0120",
                "0.7812 bits per byte",
                "0.01 bits per byte",
                "score, bits per byte",
                "Left",
                "RdBu_r",
            ),
        ),
    ],
    ids=lambda one: one.name if isinstance(one, Unit) else "",
)
def test_a_unit_has_its_words_numbers_and_colours(one: Unit, words: tuple[str, ...]) -> None:
    made = (
        one.text(0.012, sign=True),
        one.level(0.7812),
        one.amount(0.01),
        one.heading("score"),
        one.better_side,
    )
    assert (*made, one.colours("RdBu")) == words


def test_scores_are_ordered_by_their_unit() -> None:
    assert max((1.5, 0.5, 2.5), key=BITS_PER_BYTE.gain) == 0.5
    assert max((0.2, 0.5), key=POINTS.gain) == 0.5
    assert POINTS.gain(None) == 0.0


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_a_dash_and_no_end_of_an_interval(odd: float) -> None:
    assert POINTS.score(odd) == POINTS.end(odd, sign=True) == HIDDEN
    assert POINTS.interval(0.1, odd) == POINTS.interval(odd, 0.1) == ""
    assert POINTS.limits(odd, 0.1, 0.95) == "95 % interval without limits"


# ---------------------------------------------------------------- words

HIDDEN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def test_a_score_is_worded_with_its_digits_and_a_dash_if_it_is_not_known() -> None:
    assert (POINTS.score(0.7812), POINTS.score(-0.012), POINTS.score(None)) == (
        "78.1",
        f"{MINUS}1.2",
        HIDDEN,
    )
    assert (POINTS.score(0.012, sign=True), POINTS.score(0.7812, more=1)) == ("+1.2", "78.12")
    # What rounds to zero has no sign.
    assert POINTS.score(-0.0001, sign=True) == POINTS.score(0.0001, sign=True) == "0.0"
    assert BITS_PER_BYTE.points(0.012, sign=True) == "+0.0120 bits per byte"
    assert COUNT.points(None) == f"{HIDDEN} words"


def test_the_end_of_an_interval_shows_its_side_however_near() -> None:
    assert [POINTS.end(end, sign=True) for end in (0.0001, -0.0001, 0.0, None)] == [
        "+0.0",
        f"{MINUS}0.0",
        "0.0",
        HIDDEN,
    ]
    assert POINTS.end(0.0001) == "0.0"


def test_an_interval_is_worded_for_sentences_and_for_cells() -> None:
    assert POINTS.interval(0.741, 0.82) == "74.1 to 82.0"
    assert POINTS.interval(-0.01, 0.02, sign=True, middle=", ") == f"{MINUS}1.0, +2.0"
    assert POINTS.interval(None, 0.82) == POINTS.interval(0.741, None) == ""
    assert POINTS.brackets(0.781, 0.741, 0.82) == "78.1 [74.1, 82.0]"
    assert POINTS.brackets(0.781, None, 0.82) == "78.1"
    assert POINTS.brackets(None, -0.01, 0.02, sign=True) == f"{HIDDEN} [{MINUS}1.0, +2.0]"


def test_limits_name_their_level() -> None:
    assert POINTS.limits(0.004, 0.066, 0.95) == "95 % interval +0.4 to +6.6"
    assert POINTS.limits(0.004, 0.066, 1 - 0.05 / 6) == "99.17 % interval +0.4 to +6.6"
    assert POINTS.limits(None, None, None) == "95 % interval without limits"


@pytest.mark.parametrize(
    ("level", "text"),
    [(None, "95 %"), (0.95, "95 %"), (1 - 0.05 / 3, "98.33 %"), (0.99997, "99.997 %")],
)
def test_no_level_of_an_interval_is_rounded_to_100(level: float | None, text: str) -> None:
    assert confidence(level) == text


# ---------------------------------------------------------------- worked numbers


def test_inner_scores_by_hand() -> None:
    """A margin is 0.01: of bits per byte 0.005, of words 3."""
    assert BITS_PER_BYTE.factor == -2.0
    assert BITS_PER_BYTE.inner(0.7) == pytest.approx(-1.4)
    assert BITS_PER_BYTE.raw(-1.4) == pytest.approx(0.7)
    assert BITS_PER_BYTE.size(0.02) == pytest.approx(0.01)
    assert BITS_PER_BYTE.inner_margin(0.01) == pytest.approx(0.02)
    assert COUNT.inner(6.0) == pytest.approx(0.02)
    assert POINTS.inner_margin(2.0) == pytest.approx(0.02)
    assert POINTS.inner_margin(0.0) == 0.0
    assert str(POINTS.raw(-0.0)) == "0.0"


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.99e-9}, {"scale": 1.01e9}, {"min_gain": 0.0}, {"min_gain": -1.0}, {"min_gain": 1.01e9},
        {"digits": -1},
        {"digits": 13}, {"meaning": ""}, {"name": "a\nb"}, {"symbol": "\x1b"}, {"meaning": "a\nb"},
    ],
    ids=str,
)  # fmt: skip
def test_units_in_which_no_number_can_be_shown(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unit"):
        Unit(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"scale": 1e-9}, {"scale": 1e9}, {"min_gain": 1e-9}, {"digits": 0}, {"digits": 12}],
    ids=str,
)
def test_units_at_the_edge(changes: dict[str, Any]) -> None:
    Unit(**changes)


def test_only_one_point_is_singular_and_amounts_have_four_digits() -> None:
    assert [POINTS.amount(value) for value in (0.01, 0.02, 0.0025, 0.123456)] == [
        "1 point",
        "2 points",
        "0.25 points",
        "12.35 points",
    ]
    assert COUNT.text(2.0, more=2) == "2.00"
    assert POINTS.end(-0.012, sign=True) == f"{MINUS}1.2"
    assert POINTS.end(0.012) == "1.2"
    assert POINTS.colours("RdBu") == "RdBu"
    assert POINTS.level(-0.0123, more=1) == f"{MINUS}1.23 %"
