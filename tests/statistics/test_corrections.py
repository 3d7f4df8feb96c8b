"""Steps down show what Holm's adjusted p-values show, one at a time and all together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from souping.statistics.corrections import Level, holm, release, step_down

ALPHA = 0.05
P_VALUES = st.lists(st.floats(0.0, 0.2), max_size=8)


@given(p_values=P_VALUES)
def test_steps_down_show_what_holm_shows(p_values: list[float]) -> None:
    tests = range(len(p_values))

    def decide(left: Sequence[int]) -> tuple[bool, float]:
        return p_values[left[0]] < ALPHA / len(left), float(len(left))

    needed = step_down(sorted(tests, key=lambda n: p_values[n]), decide)
    released = release(tests, lambda n, number: p_values[n] < ALPHA / number)
    for n, adjusted in zip(tests, holm(p_values), strict=True):
        shown = p_values[n] < ALPHA / needed[n]
        assert shown == (p_values[n] < ALPHA / released[n])
        # At the level itself, rounding decides.
        if adjusted != pytest.approx(ALPHA):
            assert shown == (adjusted < ALPHA)


def test_a_later_look_and_more_tests_leave_less_of_the_level() -> None:
    assert [Level(k).alpha for k in (1, 2, 3)] == pytest.approx([0.05, 0.05 / 6, 0.05 / 12])
    assert Level(looks=2, tests=5).alpha == pytest.approx(0.05 / 30)
    assert Level(looks=2, tests=5).family == Level(looks=2).alpha
    assert Level(looks=2, tests=5).over_tests(0.3) == 1.0
