"""Stability of a selection: what is certain is said to be, what hangs on luck is shown, what is unknown is None."""

from __future__ import annotations

import json

import numpy as np
import pytest

from souping.analysis.correlation import GroupSums, disattenuated, pearson, reliability
from souping.analysis.stability import THRESHOLDS, stability
from souping.core.protocols import Selector
from souping.core.reading import read, to_json
from souping.core.scores import Mean, read_table
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix, Selection
from souping.report.content import SelectionStability
from souping.selection import SoCE
from tests.conftest import ROOT

TABLE_8B = ROOT / "souping" / "paper" / "bfcl_8b.csv"
SOCE = SoCE(correlation=pearson, objective=Mean())


def matrix(rates: FloatArray, each: int = 40, seed: int = 0, copies: int = 1) -> ScoreMatrix:
    """Right-or-wrong scores of len(rates) models with P(right) = rates [M, C] on `each` items a category."""
    rng = np.random.default_rng(seed)
    width = rates.shape[1]
    items = tuple(
        Item(id=f"{c}-{i}-{k}", category=f"c{c}", prompt="", answer="", group=f"{c}-{i}")
        for c in range(width)
        for i in range(each)
        for k in range(copies)
    )
    columns = np.repeat(np.arange(width), each)
    scores = {}
    for m, row in enumerate(rates):
        values = np.repeat((rng.random(len(columns)) < row[columns]).astype(float), copies)
        scores[f"m{m}"] = ItemScores(items=items, values=values)
    return ScoreMatrix.from_items(scores)


PLAIN = np.array([[0.95, 0.3, 0.6], [0.2, 0.95, 0.5], [0.5, 0.5, 0.95], [0.3, 0.2, 0.2]])
DOUBTFUL = np.array([[0.9, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.88, 0.6], [0.4, 0.4, 0.4]])


def test_clear_experts_are_picked_in_every_draw() -> None:
    drawn = stability(
        matrix(PLAIN, each=200),
        SoCE(correlation=pearson, objective=Mean(), threshold=0.9),
        draws=100,
    )
    assert drawn.method == "bootstrap over items"
    assert (drawn.draws, drawn.not_estimable) == (100, 0)
    assert drawn.experts["c0"] == {"m0": drawn.low_correlation["c0"]}
    assert drawn.ingredients["m0"] == 1.0
    assert drawn.ingredients["m3"] == 0.0
    assert sum(drawn.sizes.values()) == pytest.approx(1)


def test_stability_is_json_and_repeatable() -> None:
    scores = matrix(DOUBTFUL, each=20)
    first = stability(scores, SOCE, draws=60)
    text = json.dumps(to_json(first), allow_nan=False)
    assert text == json.dumps(to_json(stability(scores, SOCE, draws=60)), allow_nan=False)
    assert read(SelectionStability, json.loads(text)) == first
    assert first.experts != stability(scores, SOCE, draws=60, seed=1).experts


def test_nothing_estimable_is_none_not_zero() -> None:
    rates = np.array([[0.9, 0.9], [0.6, 0.6], [0.3, 0.3], [0.1, 0.1]])
    strict = SoCE(correlation=pearson, objective=Mean(), threshold=0.01, fallback="error")
    drawn = stability(matrix(rates, each=300), strict, draws=20)
    assert drawn.not_estimable == 20
    assert drawn.experts is None
    assert drawn.ingredients is None
    assert "not estimable" in drawn.notes[0]


def test_bootstrap_keeps_groups_together() -> None:
    once = GroupSums.of(matrix(PLAIN, copies=1))
    copied = GroupSums.of(matrix(PLAIN, copies=5))
    spreads = [s.draws(400, np.random.default_rng(0)).std(axis=0) for s in (once, copied)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.15)
    p = once.means
    assert spreads[0] == pytest.approx(np.sqrt(p * (1 - p) / 40), rel=0.15)


def test_reliability_is_hoyts() -> None:
    scores = matrix(PLAIN, each=40)
    for c in range(3):
        table = np.array([scores.items[m].values[c * 40 : (c + 1) * 40] for m in scores.models])  # type: ignore[index]
        models = table.mean(axis=1, keepdims=True)
        items = table.mean(axis=0, keepdims=True)
        rest = ((table - models - items + table.mean()) ** 2).sum() / (3 * 39)
        between = 40 * ((models - table.mean()) ** 2).sum() / 3
        assert reliability(GroupSums.of(scores))[c] == pytest.approx(max(0.0, 1 - rest / between))


def test_noise_attenuates_and_is_taken_out() -> None:
    ability = np.linspace(0.35, 0.65, 40)
    sums = GroupSums.of(matrix(np.column_stack([ability, ability]), each=40, seed=4))
    raw = pearson(sums.means).rho[0, 1]
    assert raw < 0.75
    assert disattenuated(sums)[0, 1] > raw + 0.15
    assert (reliability(sums) < 0.85).all()
    flat = np.full((4, 2), 0.5)  # pure noise
    samples = [GroupSums.of(matrix(flat, each=30, seed=seed)) for seed in range(50)]
    sums = next(sample for sample in samples if not reliability(sample).any())
    assert np.isnan(disattenuated(sums)[0, 1])


def test_a_constant_category_takes_no_other_pair_away() -> None:
    values = np.column_stack([np.linspace(0.1, 0.9, 6), np.linspace(0.9, 0.2, 6) ** 2, np.ones(6)])
    scores = ScoreMatrix(
        models=tuple("abcdef"), categories=("x", "y", "z"), values=values, published=True
    )
    rhos = {pair.a + pair.b: pair.rho for pair in stability(scores, SOCE).correlations}
    assert rhos["xz"] is rhos["yz"] is None
    assert rhos["xy"] == pytest.approx(np.corrcoef(values[:, :2], rowvar=False)[0, 1])


def test_the_8b_table_stands_on_a_knife_edge() -> None:
    drawn = stability(read_table(TABLE_8B), SOCE)
    assert [row.threshold for row in drawn.thresholds] == list(THRESHOLDS)
    at = {row.threshold: row.ingredients for row in drawn.thresholds}
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.05, 0.5, 46)
    assert at[0.2] == ("xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B")
    assert at[0.3] == (*at[0.2], "BitAgent-8B")
    assert drawn.experts is None
    assert drawn.reliability is None
    assert "not estimable" in drawn.notes[0]
    assert [row.left_out for row in drawn.jackknife] == list(read_table(TABLE_8B).models)
    assert all(row.left_out not in row.ingredients for row in drawn.jackknife)


class Particular(Selector):
    """A selector of the user's own that fails on other scores than the run's."""

    def select(self, scores: ScoreMatrix) -> Selection:
        names = {"m0": scores.values[scores.models.index("m0")].argmax()}
        return Selection(ingredients=("nobody",) if names["m0"] else scores.candidates[:1])


def test_a_selector_that_fails_on_other_scores_is_counted_and_ends_nothing() -> None:
    drawn = stability(matrix(PLAIN), Particular(), draws=5)
    assert drawn.ingredients["m0"] == 1.0
    assert drawn.jackknife[0].error == "ValueError: tuple.index(x): x not in tuple"
    wrong = stability(matrix(PLAIN[:, [1, 0, 2]]), Particular(), draws=5)
    assert wrong.not_estimable == 5
    ((reason, times),) = wrong.reasons.items()
    assert reason.endswith("chose 'nobody', which is not a candidate")
    assert times == 5
