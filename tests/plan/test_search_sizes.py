"""What a plan expects of the adaptive search, held against searches that ended by themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from souping.core.types import UserError
from souping.search.adaptive import Adaptive
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from search_sizes import sizes

RISING = ("pantry3", "pantry4", "pantry_other", "digits", "nets6")
QUICK = ("pantry3", "pantry4")


def ratios(name: str) -> list[tuple[float, float]]:
    """Items that searches took over what the plan expects, and over the most that it states."""
    size, fold, taken = sizes(ROOT / "benchmarks" / "tables" / f"{name}.npz", 232, 3)
    expected, most = Adaptive().workload(size, fold) or (0, 0)
    return [(items / expected, items / most) for items in taken]


@pytest.mark.parametrize("names", [QUICK, pytest.param(RISING, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_the_plan_expects_what_searches_take(names: tuple[str, ...]) -> None:
    found = np.array([pair for name in names for pair in ratios(name)])
    near = (found[:, 0] > 1 / 1.5) & (found[:, 0] < 1.5)
    assert near.mean() >= 0.8
    assert found[:, 1].max() <= 1.1


def test_where_soups_do_not_rise_searches_end_earlier() -> None:
    found = np.array(ratios("flat4"))
    assert found[:, 1].max() <= 1
    assert np.median(found[:, 0]) < 1


@pytest.mark.parametrize("budget", [None, 500])
def test_a_search_that_does_not_stop_takes_all_it_may(budget: int | None) -> None:
    expected, most = Adaptive(stop="never", budget=budget).workload(3, 100) or (0, 0)
    assert expected == most == (budget or 4000)


def test_a_budget_bounds_both_figures() -> None:
    assert Adaptive(budget=300).workload(3, 100) == (300, 300)
    with pytest.raises(UserError, match=r"\(budget="):
        Adaptive(budget=0)
