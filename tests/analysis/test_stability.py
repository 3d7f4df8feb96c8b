"""Stability of a selection: what is certain is said to be, what hangs on luck is shown, what is unknown is None."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from souping.analysis.correlation import GroupSums, disattenuated, pearson, reliability
from souping.analysis.stability import THRESHOLDS, percentiles, stability
from souping.core.protocols import Selector
from souping.core.reading import read, to_json
from souping.core.scores import Mean, read_table
from souping.core.types import FloatArray, Item, ItemScores, ScoreMatrix, Selection, UserError
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
    assert drawn.experts is not None
    assert drawn.low_correlation is not None
    assert drawn.ingredients is not None
    assert drawn.sizes is not None
    assert drawn.experts["c0"] == {"m0": drawn.low_correlation["c0"]}
    assert drawn.ingredients["m0"] == 1.0
    assert drawn.ingredients["m3"] == 0.0
    assert sum(share or 0.0 for share in drawn.sizes.values()) == pytest.approx(1)


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
    assert all(row.left_out not in (row.ingredients or ()) for row in drawn.jackknife)


def test_limits_of_a_correlation_need_half_of_the_draws() -> None:
    draws = np.random.default_rng(0).normal(size=(6, 2, 2))
    draws[:3, 0, 1] = np.nan
    draws[:4, 1, 0] = np.nan
    draws[:, 1, 1] = np.nan
    limits = percentiles(list(draws))
    known = np.percentile(draws[:, 0, 0], [2.5, 97.5])
    assert limits[:, 0, 0] == pytest.approx(known)
    assert limits[:, 0, 1] == pytest.approx(np.percentile(draws[3:, 0, 1], [2.5, 97.5]))
    assert np.isnan(limits[:, 1]).all()


class Particular(Selector):
    """A selector of the user's own that fails on other scores than the run's."""

    def select(self, scores: ScoreMatrix) -> Selection:
        names = {"m0": scores.values[scores.models.index("m0")].argmax()}
        return Selection(ingredients=("nobody",) if names["m0"] else scores.candidates[:1])


def test_a_selector_that_fails_on_other_scores_is_counted_and_ends_nothing() -> None:
    drawn = stability(matrix(PLAIN), Particular(), draws=5)
    assert drawn.ingredients is not None
    assert drawn.ingredients["m0"] == 1.0
    assert drawn.jackknife[0].error == "ValueError: tuple.index(x): x not in tuple"
    wrong = stability(matrix(PLAIN[:, [1, 0, 2]]), Particular(), draws=5)
    assert wrong.not_estimable == 5
    ((reason, times),) = wrong.reasons.items()
    assert reason.endswith("chose 'nobody', which is not a candidate")
    assert times == 5


def test_shares_are_those_of_the_draws_that_gave_a_selection() -> None:
    """The selector run by hand on each of the 60 draws, whose seed is written down."""
    scores = matrix(DOUBTFUL, each=12)
    drawn = stability(scores, SOCE, draws=60, seed=3)
    tables = GroupSums.of(scores).draws(60, np.random.default_rng([0x57AB, 3]))
    ingredients = Counter[str]()
    low = Counter[str]()
    sizes = Counter[str]()
    experts = {name: Counter[str]() for name in scores.categories}
    failed = 0
    for means in tables:
        try:
            chosen = SOCE.select(replace(scores, values=means, items=None))
        except UserError:
            failed += 1
            continue
        ingredients.update(chosen.ingredients)
        low.update(chosen.low_correlation)
        sizes[str(len(chosen.ingredients))] += 1
        for category, model in chosen.experts.items():
            experts[category][model] += 1
    total = 60 - failed
    assert (drawn.draws, drawn.not_estimable) == (60, failed)
    assert sum(count or 0 for count in drawn.reasons.values()) == failed
    assert drawn.ingredients == {name: ingredients[name] / total for name in scores.candidates}
    assert drawn.low_correlation == {name: low[name] / total for name in scores.categories}
    assert drawn.sizes == {name: sizes[name] / total for name in sorted(sizes)}
    assert drawn.experts == {
        category: {name: count / total for name, count in sorted(counts.items())}
        for category, counts in experts.items()
        if counts
    }
    pairs = {(pair.a, pair.b): pair for pair in drawn.correlations}
    rhos = np.array([pearson(means).rho for means in tables if (np.ptp(means, axis=0) > 0).all()])
    whole = pearson(scores.values)
    freed = disattenuated(GroupSums.of(scores))
    assert list(pairs) == [("c0", "c1"), ("c0", "c2"), ("c1", "c2")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = pairs[f"c{a}", f"c{b}"]
        limits = np.quantile(rhos[:, a, b], (0.025, 0.975))
        assert (pair.bootstrap_low, pair.bootstrap_high) == pytest.approx(tuple(limits))
        assert (pair.rho, pair.low, pair.high) == pytest.approx(
            (whole.rho[a, b], whole.low[a, b], whole.high[a, b])
        )
        if np.isfinite(freed[a, b]):
            assert pair.disattenuated == pytest.approx(freed[a, b])
    assert drawn.reliability == pytest.approx(
        dict(zip(scores.categories, reliability(GroupSums.of(scores)), strict=True))
    )


def test_five_hundred_draws_are_the_default() -> None:
    assert stability(matrix(PLAIN, each=4), Particular()).draws == 500


def test_a_correlation_that_half_of_the_draws_lack_has_no_limits() -> None:
    """Of two items a category, the draws of one of them twice leave no difference between models."""
    values = np.array([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1.0]])
    items = tuple(
        Item(id=str(n), category="xxyy"[n], prompt="", answer="", group=str(n)) for n in range(4)
    )
    scores = ScoreMatrix.from_items(
        {f"m{m}": ItemScores(items=items, values=row) for m, row in enumerate(values)}
    )
    drawn = stability(scores, SOCE, draws=200)
    tables = GroupSums.of(scores).draws(200, np.random.default_rng([0x57AB, 0]))
    known = [(np.ptp(means, axis=0) > 0).all() for means in tables]
    (pair,) = drawn.correlations
    assert (pair.bootstrap_low is None) == (np.mean(known) < 0.5)


def test_reasons_are_counted_without_numbers_and_names() -> None:
    class Failing(Selector):
        def select(self, scores: ScoreMatrix) -> Selection:
            value = float(scores.values[0, 2])
            if value > 0.65:
                raise UserError("the models differ in 0 categories: x")
            if value > 0.5:
                raise UserError("no low-correlation categories at 0.3")
            raise UserError(f"own words: {value}")

    scores = matrix(PLAIN, each=20)
    drawn = stability(scores, Failing(), draws=80)
    tables = GroupSums.of(scores).draws(80, np.random.default_rng([0x57AB, 0]))
    first = [float(means[0, 2]) for means in tables]
    assert drawn.reasons == {
        reason: number
        for reason, number in {
            "a category is constant": sum(value > 0.65 for value in first),
            "no low-correlation category": sum(0.5 < value <= 0.65 for value in first),
            "own words": sum(value <= 0.5 for value in first),
        }.items()
        if number
    }
    assert len(drawn.reasons) == 3
    assert drawn.not_estimable == 80
    assert "not estimable" in drawn.notes[0]


def test_a_draw_without_a_category_is_counted() -> None:
    """Two categories that share one group of two: draws of the other group alone lack the second category."""
    items = tuple(
        Item(id=str(n), category=c, prompt="", answer="", group=g)
        for n, (c, g) in enumerate([("x", "1"), ("x", "2"), ("x", "3"), ("y", "3"), ("y", "4")])
    )
    rng = np.random.default_rng(1)
    scores = ScoreMatrix.from_items(
        {f"m{m}": ItemScores(items=items, values=rng.random(5)) for m in range(4)}
    )
    drawn = stability(scores, SOCE, draws=100)
    tables = GroupSums.of(scores).draws(100, np.random.default_rng([0x57AB, 0]))
    lost = sum(not np.isfinite(means).all() for means in tables)
    assert drawn.reasons.get("a category lost all its items", 0) == lost


def chosen(selector: Selector, scores: ScoreMatrix) -> tuple[object, object, object]:
    """Ingredients and low-correlation categories, or why there are none."""
    try:
        selection = selector.select(scores)
    except UserError as error:
        return None, None, str(error)
    return tuple(selection.ingredients), tuple(selection.low_correlation), None


def test_the_jackknife_leaves_each_model_out_and_the_only_candidate_in() -> None:
    scores = matrix(PLAIN)
    one = replace(scores, candidates=("m1",))
    assert [row.left_out for row in stability(one, Particular(), draws=2).jackknife] == [
        "m0",
        "m2",
        "m3",
    ]
    for row in stability(scores, SOCE, draws=2).jackknife:
        models = tuple(name for name in scores.models if name != row.left_out)
        without = replace(
            scores, models=models, candidates=models, values=scores.rows(models), items=None
        )
        assert (row.ingredients, row.low_correlation, row.error) == chosen(SOCE, without)


def test_a_selector_without_a_threshold_has_no_sweep() -> None:
    drawn = stability(matrix(PLAIN), Particular(), draws=2)
    assert (drawn.threshold, drawn.thresholds) == (None, ())
    swept = stability(matrix(PLAIN), SOCE, draws=2)
    assert swept.threshold == SOCE.threshold
    for row in swept.thresholds[::9]:
        assert row.threshold is not None
        at = replace(SOCE, threshold=row.threshold)
        assert (row.ingredients, row.low_correlation, row.error) == chosen(at, matrix(PLAIN))
