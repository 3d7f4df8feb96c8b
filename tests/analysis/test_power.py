"""Power of the claim "better than every candidate": what is stated before the report fold opens, held against it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from souping.analysis.intervals import ItemTable, design
from souping.analysis.sign_flip import ALPHA, sign_flip
from souping.analysis.significance import Power, measured_power, power_of
from souping.core.scores import Mean, Weighted
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix
from tests.conftest import make_items

BASE = 0.6


def fold(name: str, groups: int) -> tuple[Item, ...]:
    """Two categories of so many groups of two items."""
    return tuple(
        Item(id=f"{name} {c} {g} {i}", category=c, group=f"{name} {c} {g}", prompt="p", answer="a")
        for c in ("x", "y")
        for g in range(groups)
        for i in range(2)
    )


def answers(items: Sequence[Item], rates: Sequence[float], rng: np.random.Generator) -> FloatArray:
    """Scores [M, I] of models with these rates, whose noise the items of a group share in part."""
    names, group = np.unique([item.group for item in items], return_inverse=True)
    noise = 0.6 * rng.standard_normal((len(rates), len(names)))[:, group]
    chance = noise + 0.8 * rng.standard_normal((len(rates), len(items)))
    from scipy.special import ndtri

    return np.asarray(chance < ndtri(np.array(rates))[:, None], dtype=float)


def stated(rates: Sequence[float], report: Sequence[Item], seed: int) -> Power:
    select = fold("select", 80)
    scores = answers(select, rates, np.random.default_rng([1, seed]))
    power = measured_power(
        {f"m{n}": ItemScores(items=select, values=row) for n, row in enumerate(scores)}, report, Mean(), 0.01
    )
    assert power is not None
    return power


def claimed(rates: Sequence[float], gain: float, report: Sequence[Item], repetitions: int) -> float:
    """Share of report folds on which the sign-flip test calls a soup with this gain better than every candidate."""
    table, hits = ItemTable.of(report, Mean()), 0
    for seed in range(repetitions):
        soup, *others = answers(report, [max(rates) + gain, *rates], np.random.default_rng([2, seed]))
        wholes = (design(soup - o, table.categories, table.groups, table.coefficients) for o in others)
        hits += all(w.objective > 0 and sign_flip(w, draws=199) < ALPHA for w in wholes)
    return hits / repetitions


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        ([BASE] * 5, 0.9),
        pytest.param([BASE, 0.4, 0.4], 0.9, marks=pytest.mark.slow),
        pytest.param([BASE, BASE - 0.03, BASE - 0.03, BASE - 0.06], 1.0, marks=pytest.mark.slow),
    ],
)
def test_the_stated_gain_has_the_power_that_is_stated(rates: list[float], most: float) -> None:
    report = fold("report", 150)
    gain = float(np.mean([stated(rates, report, seed).gain for seed in range(12)]))
    assert 0.7 <= claimed(rates, gain, report, 100) <= most


def test_near_equal_candidates_cost_power_and_items_buy_it() -> None:
    report, large = fold("report", 150), fold("report", 600)
    equal, ahead = (np.mean([stated(r, report, s).gain for s in range(8)]) for r in ([BASE] * 6, [BASE] + [0.4] * 5))
    assert equal > 1.1 * ahead
    one, four = stated([BASE] * 4, report, 0), stated([BASE] * 4, large, 0)
    assert four.gain == pytest.approx(one.gain / 2, rel=0.1)
    assert four.needed == pytest.approx(one.needed, rel=0.1)
    assert one.needed > one.items


def test_published_scores_need_an_assumption() -> None:
    published = ScoreMatrix(models=("a", "b"), categories=("x", "y"), values=np.full((2, 2), 0.5), published=True)

    def gain(items: Sequence[Item], objective: Mean | Weighted) -> float:
        power = power_of(published, items, objective, 0.01)
        assert power is not None
        assert power.assumed
        return power.gain

    assert gain(make_items(300), Mean()) > 2.8 * np.sqrt(0.1 / 600)  # what one pair needs
    few = gain([*make_items(290, ("w",)), *make_items(10, ("x",))], Mean())
    assert few > 2 * gain(make_items(290, ("w",)), Weighted(weights={"w": 1}))
