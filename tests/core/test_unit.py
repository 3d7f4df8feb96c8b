"""Units: scores go in and come out as they were, and a loss is better where it is lower."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from souping.core.unit import BITS_PER_BYTE, MARGIN, POINTS, Unit, gain, scores_in, unit, unit_of

COUNT = Unit(
    name="words", symbol="words", meaning="words", scale=1.0, digits=0, margin=3.0, fractions=False
)
UNITS = (POINTS, BITS_PER_BYTE, COUNT)


@pytest.mark.parametrize("one", UNITS, ids=lambda one: one.name)
def test_scores_come_out_as_they_went_in(one: Unit) -> None:
    scores = np.array([0.0, 0.25, 1.5])
    assert one.raw(one.inner(scores)) == pytest.approx(scores)
    assert one.inner_margin(None) == pytest.approx(MARGIN)
    assert one.inner_margin(2 * one.margin) == pytest.approx(2 * MARGIN)
    assert bool(one.inner(2.0) > one.inner(1.0)) is one.higher_is_better
    assert one.size(one.inner(0.5)) == pytest.approx(0.5 if one.higher_is_better else -0.5)
    assert unit_of(json.loads(json.dumps({"unit": asdict(one)}))) == one


def test_points_are_fractions_to_the_last_bit() -> None:
    for value in (0.1, 1 / 3, 0.7812):
        assert POINTS.inner(value) == POINTS.raw(value) == value
    table = {"mean": 0.1, "low": 0.0, "high": 1 / 3, "n": 3}
    assert POINTS.raw_table(table) == table
    assert unit_of({}) == unit() == POINTS


def test_a_loss_is_turned_round_with_its_limits() -> None:
    inner = {"difference": 0.02, "low": -0.01, "high": 0.05, "p_value": 0.5}
    found = BITS_PER_BYTE.raw_table(inner)
    assert found == pytest.approx(
        {"difference": -0.01, "low": -0.025, "high": 0.005, "p_value": 0.5}
    )


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
def test_words(one: Unit, words: tuple[str, ...]) -> None:
    made = (
        one.text(0.012, sign=True),
        one.level(0.7812),
        one.amount(0.01),
        one.heading("score"),
        one.better_side,
    )
    assert (*made, one.colours("RdBu")) == words


def test_what_is_shown_is_ordered_by_the_unit_of_the_moment() -> None:
    with scores_in(BITS_PER_BYTE):
        assert max((1.5, 0.5, 2.5), key=gain) == 0.5
        with scores_in(POINTS):
            assert max((0.2, 0.5), key=gain) == 0.5
        assert unit() == BITS_PER_BYTE
