"""Corrections of p-values and levels: what look 1, 2, 3 at the same items costs, and what several tests cost."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Test = TypeVar("Test", bound=Hashable)
ALPHA = 0.05
# Normal quantile of a 95 % interval.
Z95 = 1.959963984540054


def penalty(looks: int) -> int:
    """Factor of the p-values of the k-th look (k = `looks`) at the same items: 1 for the first, then k(k + 1).

    1 + 1/6 + 1/12 + .. is 1.5: over however many looks, each corrected as it comes, false claims stay below 1.5 times
    the level.
    """
    if looks <= 1:
        return 1
    return looks * (looks + 1)


@dataclass(frozen=True)
class Level:
    """Level of one of several `tests` at the `looks`-th look at the same items."""

    looks: int = 1
    tests: float = 1.0

    @property
    def family(self) -> float:
        """Chance of a false claim, in either direction, that all tests of this look share."""
        return ALPHA / penalty(self.looks)

    @property
    def alpha(self) -> float:
        """The part of this chance that is left for one test."""
        return self.family / self.tests

    @property
    def confidence(self) -> float:
        """Confidence level of the interval of one test."""
        return 1 - self.alpha

    @property
    def joint_confidence(self) -> float:
        """Confidence level at which the intervals of all tests hold together."""
        return 1 - self.family

    def among(self, tests: float) -> Level:
        """This level for one of `tests` comparisons, each of which already stands for `self.tests`."""
        return replace(self, tests=tests * self.tests)

    def over_tests(self, p_value: float) -> float:
        """p-value corrected for the number of tests, not for the looks."""
        return min(1.0, self.tests * p_value)

    def corrected(self, p_value: float) -> float:
        """p-value corrected for the tests, and for the looks at these items so far, this one included."""
        return min(1.0, self.over_tests(p_value) * penalty(self.looks))


FIRST_LOOK = Level()


# ---------------------------------------------------------------- several tests


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
    """{test: number of tests that it is corrected for}, one step per test.

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
    same tests as Holm's steps). Those that are never shown are corrected for each other. To know which a test is, the
    caller looks at it again with its number.
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
