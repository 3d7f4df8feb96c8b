"""Rows of a comparison, and which of several models may be the best where answers are missing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import souping
from souping.comparison import api, counted_claims, result
from souping.comparison.several import best_models, flips_of, joint_tests
from souping.statistics.corrections import Level
from tests.comparison.worlds import metric, pooled
from tests.conftest import ROOT
from tests.support.logs import Frame


def test_every_metric_of_a_task_has_a_row_and_the_first_is_averaged() -> None:
    """Two tasks with three metrics each: all but the first are rows of their own."""
    logs = {}
    for name in ("base", "cand"):
        rows = []
        for n in range(40):
            for number, score in enumerate(("exact", "f1", "bleu")):
                row = {"item": n, "category": ("x", "y")[n % 2], "metric": score}
                rows.append(row | {"score": (n + number * len(name)) % 3 / 2})
        logs[name] = Frame(rows)
    result = souping.compare(logs)
    names = [row.name for row in result.verdicts]
    assert names == ["average", "x", "y", "x f1", "x bleu", "y f1", "y bleu"]
    assert [row.weight for row in result.verdicts] == [1, 0.5, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize(("gain", "best"), [(0.045, ("a",)), (0.03, ("a", "b"))])
def test_of_two_models_with_runs_the_worse_leaves_at_5_percent_on_one_side(
    gain: float, best: tuple[str, ...]
) -> None:
    """Runs that shift all items alike: Student's t with 4 degrees of freedom."""
    means = np.array([0.44, 0.46, 0.48])
    t = gain / np.sqrt(means.var(ddof=1) * 2 / 3)
    p_value = 2 * stats.t.sf(t, 4)
    assert (0.05 < p_value < 0.1) == (best == ("a",))
    runs = {"a": means + gain, "b": means}
    scores = {name: np.repeat(m, 4000).reshape(3, 1, 4000) for name, m in runs.items()}
    table = pooled(metric("t", scores, is_mean=False))
    assert joint_tests(table, ("a", "b"), Level()) == ([1.0], best)


def test_a_note_says_how_lm_eval_averages_a_group() -> None:
    folder = ROOT / "tests" / "data" / "logs" / "lm_eval"
    logs = {name: folder / name for name in ("tuned_python", "tuned_java")}
    for average, said in (("task", True), ("leaf", False)):
        result = souping.compare(logs, average=average)
        assert any("as lm_eval has it" in line for line in result.warnings) == said


def test_a_complete_model_may_be_the_best_if_missing_answers_of_others_are_wrong() -> None:
    """a has 160 of 200 right; b 130 of 140, and left out 60. All of those wrong, b has fewer than a."""
    a = np.arange(200) % 5 > 0
    b = np.where(np.arange(200) < 140, np.arange(200) % 14 > 0, np.nan)
    missing = np.isnan(b).astype(float)
    table = pooled(metric("t", {"a": a, "b": b}, missing={"b": missing}))
    assert table.scored.mean("b").mean() > table.scored.mean("a").mean() + 0.1
    flips = flips_of(table.scored, ("a", "b"), alpha=0.05)
    assert not flips.may_be_best(0, alpha=0.05)
    assert best_models(table, ("a", "b"), alpha=0.05, flips=flips) == ("a", "b")


def test_of_models_that_all_lack_answers_each_is_favoured_in_its_own_test() -> None:
    """With its missing answers right, b may be the best; a has 60 of 200 fewer right and lacks one answer."""
    a = np.where(np.arange(200) == 0, np.nan, np.arange(200) % 10 < 5)
    b = np.where(np.arange(200) == 1, np.nan, np.arange(200) % 10 < 8)
    missing = {"a": np.isnan(a).astype(float), "b": np.isnan(b).astype(float)}
    table = pooled(metric("t", {"a": a, "b": b}, missing=missing))
    flips = flips_of(table.scored, ("a", "b"), alpha=0.05)
    assert best_models(table, ("a", "b"), alpha=0.05, flips=flips) == ("b",)


def test_the_numbers_of_a_comparison_are_those_of_earlier_ones() -> None:
    assert (api.FEW_GROUPS, counted_claims.MOST_LOOKS, result.SHOWN_TEXT_CHARS) == (30, 1000, 1500)
    assert result.SCHEMA_VERSION == 1
