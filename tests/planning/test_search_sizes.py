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

RUNS = [("pantry_other", 96), ("pantry_other", 232), ("pantry4", 232), ("pantry3", 96), ("nets2", 232), ("nets6", 96),
        ("nets8", 96), ("flat4", 96)]  # fmt: skip


def test_the_plan_expects_what_searches_take() -> None:
    ratios, over = [], []
    for name, items in RUNS:
        size, fold, taken = sizes(ROOT / "benchmarks" / "tables" / f"{name}.npz", items, 4)
        span = Adaptive().workload(size, fold)
        assert span is not None
        ratios += [one / span[0] for one in taken]
        over += [one > span[1] for one in taken]
    assert len(ratios) == 32
    assert np.mean((np.array(ratios) > 1 / 1.5) & (np.array(ratios) < 1.5)) >= 0.8
    assert np.mean(over) <= 0.05


@pytest.mark.parametrize("budget", [None, 500])
def test_a_search_that_does_not_stop_takes_all_it_may(budget: int | None) -> None:
    expected, most = Adaptive(stop="never", budget=budget).workload(3, 100) or (0, 0)
    assert expected == most == (budget or 4000)


def test_a_budget_bounds_both_figures() -> None:
    assert Adaptive(budget=300).workload(3, 100) == (300, 300)
    with pytest.raises(UserError, match=r"optimiser\.budget"):
        Adaptive(budget=0)
