"""The nulls of docs/statistics.md in small: 300 repetitions each, fixed seeds. benchmarks/nulls.py runs 2,000.

With 300 repetitions a true rate of 5 % gives up to 21 rejections in 19 of 20 runs; a procedure that is wrong by a
factor of two or more (as ignoring groups is) goes past that.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.conftest import ROOT

PATH = ROOT / "benchmarks" / "nulls.py"
REPETITIONS = 300


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nulls", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nulls"] = module
    spec.loader.exec_module(module)
    return module


nulls = load()


def test_what_is_accepted() -> None:
    assert nulls.allowed(2000) == 116
    assert nulls.allowed(REPETITIONS) == 21


@pytest.mark.parametrize("name", nulls.NULLS)
def test_null_is_survived(name: str) -> None:
    repetitions = 40 if "20 times" in name else REPETITIONS
    rejected, claimed = nulls.count(nulls.NULLS[name], nulls.Layout(), repetitions, seed=7)
    assert rejected <= nulls.allowed(repetitions)
    assert claimed <= nulls.allowed(repetitions)


def test_ignoring_groups_fails() -> None:
    rejected, _ = nulls.count(nulls.groups_ignored, nulls.Layout(), REPETITIONS, seed=7)
    assert rejected > 2 * nulls.allowed(REPETITIONS)


def test_a_real_difference_is_found() -> None:
    """A procedure that never rejects would pass every null."""

    def better(rng: object, layout: object, seed: int) -> tuple[bool, bool]:
        rates = nulls._equal_rates(3, layout)
        rates[0] += 0.1
        scores = nulls.simulate(rng, layout, rates)
        return nulls.p_value(layout, scores[0], scores[1], seed) < 0.05, nulls.better_than_all(
            layout, scores[0], scores[1:], seed
        )

    rejected, claimed = nulls.count(better, nulls.Layout(), 100)
    assert rejected > 80
    assert claimed > 60


def test_intervals_cover() -> None:
    held = [nulls.covers(nulls.np.random.default_rng([2, r]), nulls.Layout(), 0.7, 0.5, False) for r in range(100)]
    assert all(sum(column) >= 89 for column in zip(*held, strict=True))
