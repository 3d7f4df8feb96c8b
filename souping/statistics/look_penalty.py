"""Penalty of looks: what a claim costs at a later look at the same items, and the level of its test there."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
