"""Corrections of p-values for several tests: how many tests each is corrected for (Holm's steps)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

Test = TypeVar("Test", bound=Hashable)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: any of them below alpha holds at family-wise level alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        remaining = len(p_values) - rank
        largest = max(largest, min(1.0, remaining * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def step_down(
    order: Sequence[Test], decide: Callable[[Sequence[Test]], tuple[bool, float]]
) -> dict[Test, float]:
    """{test: number of tests that it is corrected for}, one step a test.

    `order` has the largest difference first. `decide` takes the tests that remain and returns whether the first of them
    is shown, and for how many tests it is corrected: their number by Holm's steps, fewer by max-T. From the first test
    that is not shown on, all have the same correction, so that an interval excludes 0 just where its test is shown.
    """
    corrections: dict[Test, float] = {}
    for rank, test in enumerate(order):
        remaining = order[rank:]
        shown, number = decide(remaining)
        corrections[test] = number
        if not shown:
            return corrections | dict.fromkeys(remaining, number)
    return corrections


def release(tests: Iterable[Test], shown: Callable[[Test, int], bool]) -> dict[Test, int]:
    """{test: number of tests that it is corrected for}, where tests have no order.

    `shown` takes a test and that number. Of the tests that remain, all that are shown leave together (which shows the
    same tests as Holm's steps). Those that are never shown are corrected for each other.
    """
    remaining = list(tests)
    corrections: dict[Test, int] = {}
    while remaining:
        number = len(remaining)
        leaving = [test for test in remaining if shown(test, number)]
        # If none is shown, all leave, and the loop ends.
        corrections |= dict.fromkeys(leaving or remaining, number)
        remaining = [test for test in remaining if test not in corrections]
    return corrections
