"""Average of a training run beside its last checkpoint and the mean of those that it averages, by numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.analysis.trajectory import (
    CHECKPOINTS_MEAN,
    LAST_CHECKPOINT,
    SOUP_AVERAGE,
    CheckpointScores,
    describe,
    gains_of_runs,
)
from souping.checkpoints.trajectory import Member, TrainingRun, Trajectory
from souping.core.scores import Mean
from souping.core.types import FloatArray, Item, ItemScores, Recipe, Result, Trial
from souping.core.unit import POINTS
from souping.report.content import LookDifference
from souping.search.windows import windows
from souping.statistics.comparison import contrast
from souping.statistics.corrections import Level
from souping.statistics.score_table import ItemTable, ScoreTable

ITEMS = tuple(
    Item(id=f"{c}{n}", category=c, group=f"{c}{n}", prompt="", answer="")
    for c, size in (("x", 20), ("y", 10))
    for n in range(size)
)


def coin(seed: int, chance: float = 0.5) -> ItemScores:
    """Right or wrong answers by chance."""
    values = (np.random.default_rng(seed).random(len(ITEMS)) < chance).astype(float)
    return ItemScores(items=ITEMS, values=values)


def objective(values: FloatArray) -> float:
    """Mean of the category means."""
    return float((values[:20].mean() + values[20:].mean()) / 2)


def checkpoints(number: int, seed: int = 0) -> CheckpointScores:
    return CheckpointScores.of(POINTS, [coin(seed + k) for k in range(number)], Mean())


@pytest.mark.parametrize("number", [2, 3, 5, 7])
def test_the_spread_is_that_of_the_last_five_checkpoints(number: int) -> None:
    scores = checkpoints(number)
    objectives = [objective(checkpoint.values) for checkpoint in scores.checkpoints]
    expected = None if number < 3 else np.std(objectives[-5:], ddof=1)
    assert scores.spread() == (expected and pytest.approx(expected))


def expected(name: str, average: ItemScores, other: ItemScores, level: Level) -> Any:
    table = ItemTable.of(ITEMS, Mean())
    return contrast(
        ScoreTable.measured(table, {SOUP_AVERAGE: average, name: other}), SOUP_AVERAGE, name, level
    )


def same(found: LookDifference, comparison: Any, factor: int) -> None:
    """A row of a report is this comparison, whose p-value the look and the tests multiply by `factor`."""
    assert (found.a, found.b) == (comparison.a, comparison.b)
    assert found.difference == pytest.approx(comparison.difference)
    assert (found.low, found.high) == pytest.approx((comparison.low, comparison.high))
    assert found.level == pytest.approx(1 - comparison.level.alpha)
    assert found.p_value == pytest.approx(comparison.p_alone)
    assert found.p_look == pytest.approx(min(1.0, comparison.p_alone * factor))


def test_an_average_is_compared_with_the_last_and_with_the_mean_by_its_own_weights() -> None:
    scores = checkpoints(4)
    average = coin(50, 0.7)
    last = scores.checkpoints[-1]
    found = scores.versus_last(average, Level(looks=2, tests=3))
    assert found == expected(LAST_CHECKPOINT, average, last, Level(looks=2, tests=3))
    # The second look multiplies by 2 (2 + 1), and three tests by 3.
    assert found.p_look == pytest.approx(min(1.0, found.p_alone * 6 * 3))
    weights = (0.0, 0.2, 0.3, 0.5)
    missing = np.zeros(len(ITEMS))
    missing[3] = 1.0
    partial = CheckpointScores.of(
        POINTS,
        [
            ItemScores(items=ITEMS, values=checkpoint.values * (1 - missing), unanswered=missing)
            for checkpoint in scores.checkpoints
        ],
        Mean(),
    )
    values = sum(
        w * checkpoint.values for w, checkpoint in zip(weights, partial.checkpoints, strict=True)
    )
    mean = ItemScores(items=ITEMS, values=np.asarray(values), unanswered=missing)
    for level in (Level(), Level(looks=3, tests=2)):
        found = partial.versus_members(average, weights, level)
        direct = expected(CHECKPOINTS_MEAN, average, mean, level)
        assert found.estimate == pytest.approx(direct.estimate)
        assert found.level == level
        assert found.p_alone == pytest.approx(direct.p_alone)


def test_gains_of_runs_are_added_to_a_common_last_checkpoint() -> None:
    pairs = [(coin(60 + n, 0.7), coin(70 + n)) for n in range(3)]
    scores = gains_of_runs(ItemTable.of(ITEMS, Mean()), pairs)
    common = np.mean([last.values for _, last in pairs], axis=0)
    assert scores.answers[LAST_CHECKPOINT].counted == pytest.approx(np.tile(common, (3, 1)))
    for n, (average, last) in enumerate(pairs):
        gain = common + average.values - last.values
        assert scores.answers[SOUP_AVERAGE].counted[n] == pytest.approx(gain)


def test_a_missing_answer_bounds_a_runs_gain_on_both_sides() -> None:
    """Item 0 of the first average and of the second last checkpoint is missing: right or wrong, who knows."""
    missing = np.zeros(len(ITEMS))
    missing[0] = 1.0

    def lacking(scores: ItemScores) -> ItemScores:
        return ItemScores(items=ITEMS, values=scores.values * (1 - missing), unanswered=missing)

    first, second = (coin(61), coin(71)), (coin(62), coin(72))
    pairs = [(lacking(first[0]), first[1]), (second[0], lacking(second[1]))]
    scores = gains_of_runs(ItemTable.of(ITEMS, Mean()), pairs)
    gains = scores.answers[SOUP_AVERAGE]
    common = (first[1].values[0] + 0.0) / 2
    assert gains.lowest[0, 0] == pytest.approx(common + 0 - first[1].values[0])
    assert gains.highest[0, 0] == pytest.approx(common + 1 - first[1].values[0])
    assert gains.lowest[1, 0] == pytest.approx(common + second[0].values[0] - 1)
    assert gains.highest[1, 0] == pytest.approx(common + second[0].values[0] - 0)
    assert gains.lowest[:, 1:] == pytest.approx(gains.counted[:, 1:])
    assert gains.highest[:, 1:] == pytest.approx(gains.counted[:, 1:])


def test_a_claim_about_the_recipe_takes_two_runs() -> None:
    scores = checkpoints(3)
    pairs = [(coin(60 + n, 0.7), coin(70 + n)) for n in range(3)]
    assert scores.over_runs(pairs[:1]) is None
    found = scores.over_runs(pairs, Level(looks=2))
    assert found is not None
    gains = [objective(average.values - last.values) for average, last in pairs]
    assert found.difference == pytest.approx(np.mean(gains))
    direct = contrast(
        gains_of_runs(scores.table, pairs), SOUP_AVERAGE, LAST_CHECKPOINT, Level(looks=2)
    )
    assert found == direct
    first = scores.over_runs(pairs[:2])
    assert first is not None
    assert first == scores.over_runs(pairs[:2], Level())
    assert first != scores.over_runs(pairs[:2], Level(looks=2))
    average = coin(50, 0.7)
    assert scores.versus_last(average) == scores.versus_last(average, Level())


def member(k: int, tokens: float | None = None) -> Member:
    place = Path(f"step-{k}")
    return Member(
        name=f"m{k}", folder=place, model=place, weights=place, step=100 * (k + 1), rate=0.1 * k, tokens=tokens
    )  # fmt: skip


def described(tokens: bool) -> Any:
    """Four checkpoints whose averages of the last 2 and 4, and moving ones, were evaluated."""
    members = tuple(member(k, 1000.0 * k if tokens else None) for k in range(4))
    run = TrainingRun(folder=Path("run"), trainer="hf", members=members)
    trajectory = Trajectory(runs=(run,), rows=(), others=())
    # The average of the last 3 was dropped before it had answered everything.
    listed = [window for window in windows(4) if window.length < 4 or window.kind != "minus_sqrt"]
    trials = []
    for n, window in enumerate(listed):
        recipe = Recipe(ingredients=("a",), fingerprints=("a",), weights=(1.0,), dtype="F32")
        scores = coin(90 + n, 0.6)
        result = Result(
            objective=objective(scores.values), categories={}, items=30, values=scores.values
        )
        whole = window.length != 3
        trials.append(
            Trial(number=n, recipe=recipe, weights=window.weights, result=result, whole=whole)
        )
    search = checkpoints(4)
    report = checkpoints(4, seed=20)
    soup = coin(200, 0.7)
    others = [(coin(60 + n, 0.7), coin(70 + n)) for n in range(2)]
    weights = (0.0, 0.0, 0.5, 0.5)
    found = describe(trajectory, weights, search, trials, report, soup, others, Level(looks=2))
    return found, listed, trials, search, report, soup, others


def test_a_report_has_a_row_for_each_checkpoint_and_each_evaluated_window() -> None:
    found, listed, trials, search, report, soup, others = described(tokens=True)
    for k, row in enumerate(found.checkpoints):
        assert (row.name, row.step, row.tokens) == (f"m{k}", 100 * (k + 1), 1000.0 * k)
        assert row.rate == pytest.approx(0.1 * k)
        assert row.weight == (0.0, 0.0, 0.5, 0.5)[k]
        assert row.search == pytest.approx(objective(search.checkpoints[k].values))
        assert row.test == pytest.approx(objective(report.checkpoints[k].values))
    averages = [(w, t) for w, t in zip(listed, trials, strict=True) if w.length > 1 and t.whole]
    averages.sort(key=lambda pair: (pair[0].length, pair[0].kind, pair[0].weights))
    assert len(found.windows) == len(averages) > 4
    for row, (window, trial) in zip(found.windows, averages, strict=True):
        assert (row.kind, row.alpha, row.count) == (window.kind, window.alpha, window.length)
        assert row.steps == 100 * (window.length - 1)
        assert row.tokens == 1000.0 * (window.length - 1)
        values = trial.result.values
        assert row.objective == pytest.approx(objective(values))
        average = ItemScores(items=ITEMS, values=values)
        level = Level(looks=1, tests=len(averages))
        same(row.last, expected(LAST_CHECKPOINT, average, search.checkpoints[-1], level), factor=1)
        mean = np.asarray(window.weights) @ [c.values for c in search.checkpoints]
        other = ItemScores(items=ITEMS, values=mean)
        same(row.checkpoints_mean, expected(CHECKPOINTS_MEAN, average, other, level), factor=1)
    same(
        found.last,
        expected(LAST_CHECKPOINT, soup, report.checkpoints[-1], Level(looks=2)),
        factor=6,
    )
    assert found.spread.count == 4
    assert found.spread.search == pytest.approx(search.spread())
    assert found.spread.test == pytest.approx(report.spread())
    gains = [objective(average.values - last.values) for average, last in others]
    assert found.runs.differences == pytest.approx(gains)
    assert found.runs.claim is not None
    assert found.runs.claim.difference == pytest.approx(np.mean(gains))


def test_windows_without_counted_tokens_have_none() -> None:
    found, *_ = described(tokens=False)
    assert {row.tokens for row in found.windows} == {None}
