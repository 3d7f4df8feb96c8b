"""The nulls of docs/how-it-works.md in small, with fixed seeds; benchmarks/nulls.py runs 2,000 repetitions.

A procedure that is wrong by a factor of two or more (as ignoring groups is) goes past what 300 repetitions accept.
"""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.support.choices import slow_unless
from tests.support.scripts import script

REPETITIONS = 300
QUICK = {
    "all candidates equal",
    "five equal candidates, soup equal, s.e. 1",
    "soup 1 point better, 600 items",
    "8 x 75 items, 70 % right, half discordant groups",
}
"""Cases that run by default."""


nulls = script(ROOT / "benchmarks" / "nulls.py")


def test_what_is_accepted() -> None:
    assert nulls.allowed(2000) == 62
    assert nulls.allowed(2000, nulls.LOOKS_LEVEL) == 89
    assert nulls.allowed(REPETITIONS) == 12


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.NULLS))
def test_no_soup_is_called_better_that_is_not(name: str) -> None:
    repetitions = 100 if "s.e. 1" in name or "sampled" in name else REPETITIONS
    said = nulls.count(*nulls.NULLS[name], repetitions, seed=7)
    assert max(said["better"], said["every"]) <= nulls.allowed(repetitions)


@pytest.mark.slow
def test_nor_over_twenty_looks() -> None:
    said = nulls.count(*nulls.LOOKED["report items looked at 20 times, each as printed"], 40, seed=7)
    assert said["better"] <= nulls.allowed(40, nulls.LOOKS_LEVEL)


@pytest.mark.parametrize("name", slow_unless(QUICK, nulls.KEEPS))
def test_no_single_is_kept_where_the_soup_is_better_by_the_margin(name: str) -> None:
    said = nulls.count(*nulls.KEEPS[name], 100, seed=7)
    assert said["keeps"] <= nulls.allowed(100)


def test_ignoring_groups_fails() -> None:
    said = nulls.count(*nulls.FAILS["groups ignored"], REPETITIONS, seed=7)
    assert said["better"] > 1.5 * nulls.allowed(REPETITIONS)


def test_a_real_difference_is_found_and_a_hopeless_soup_is_not_kept() -> None:
    """A procedure that never rejects would pass every null."""
    said = nulls.count(nulls.independent(3, soup=10.0), nulls.USUAL, 100)
    assert said["rejects"] > 80
    assert said["every"] > 60
    assert nulls.count(nulls.independent(3, soup=-12.0), nulls.USUAL, 100)["keeps"] > 80


@pytest.mark.parametrize(
    "name", slow_unless(QUICK, ["8 x 75 items, 70 % right, half discordant groups", "the same, 5 points better"])
)
def test_intervals_cover(name: str) -> None:
    case = nulls.COVERAGE[name]
    held = [nulls.covers(nulls.np.random.default_rng([2, r]), case) for r in range(100)]
    assert all(sum(column) >= 89 for column in zip(*held, strict=True))
