"""Average of a training run's checkpoints beside the last of them and beside the mean of those that it averages.

Windows are compared on the search split, where one of them is chosen; the chosen average on the test split.

Shape legend: K checkpoints, I items, R training runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from souping.checkpoints.trajectory import Member, Trajectory
from souping.core.protocols import Objective
from souping.core.types import FloatArray, ItemScores, Trial, Weights, frozen
from souping.core.unit import Unit
from souping.report.content import (
    CategoryDifference,
    CheckpointRow,
    FurtherRuns,
    LookDifference,
    NeighbourSpread,
    TrajectoryResult,
    WindowRow,
)
from souping.search.windows import windows
from souping.statistics.comparison import Comparison, contrast
from souping.statistics.corrections import FIRST_LOOK, Level
from souping.statistics.score_table import Answers, ItemTable, ScoreTable

SOUP_AVERAGE = "average"
LAST_CHECKPOINT = "last"
CHECKPOINTS_MEAN = "checkpoints_mean"
# Last checkpoints whose spread shows how much a score changes from one to the next.
NEIGHBOURS = 5


@frozen
class CheckpointScores:
    """Scores of a run's checkpoints, oldest first, on the items of a split. A report has them in the `unit`."""

    unit: Unit
    checkpoints: Sequence[ItemScores]  # [K]
    table: ItemTable

    @classmethod
    def of(cls, unit: Unit, scores: Sequence[ItemScores], objective: Objective) -> CheckpointScores:
        """From scores of all checkpoints on the same items."""
        table = ItemTable.of(scores[0].items, objective)
        return cls(unit=unit, checkpoints=scores, table=table)

    def objective(self, values: FloatArray) -> float:
        """Objective of scores [I] as a reader sees it."""
        return self.unit.raw(self.table.grouped(values).objective)

    def spread(self) -> float | None:
        """Standard deviation between the last checkpoints, None if there are fewer than three."""
        last = [self.objective(checkpoint.values) for checkpoint in self.checkpoints[-NEIGHBOURS:]]
        if len(last) < 3:
            return None
        return float(np.std(last, ddof=1))

    def versus_last(self, average: ItemScores, level: Level = FIRST_LOOK) -> Comparison:
        """The average minus the last checkpoint."""
        return self._versus(LAST_CHECKPOINT, average, self.checkpoints[-1], level)

    def versus_members(
        self, average: ItemScores, weights: Weights, level: Level = FIRST_LOOK
    ) -> Comparison:
        """The average minus the mean of the checkpoints' scores by the same weights [K]."""
        shares = np.asarray(weights)
        mean = ItemScores(
            items=average.items,
            values=shares @ np.stack([member.values for member in self.checkpoints]),
            unanswered=shares @ np.stack([member.unanswered for member in self.checkpoints]),
        )
        return self._versus(CHECKPOINTS_MEAN, average, mean, level)

    def _versus(
        self, name: str, average: ItemScores, other: ItemScores, level: Level
    ) -> Comparison:
        """The average minus the scores `other`, which the report calls `name`."""
        scores = ScoreTable.measured(self.table, {SOUP_AVERAGE: average, name: other})
        return contrast(scores, SOUP_AVERAGE, name, level)

    def over_runs(
        self, pairs: Sequence[Sequence[ItemScores]], level: Level = FIRST_LOOK
    ) -> Comparison | None:
        """Average minus last checkpoint over training runs, from (average, last) of each: a claim about the recipe.

        No run may be one on which the recipe was chosen. None if there are fewer than two runs.
        """
        if len(pairs) < 2:
            return None
        return contrast(gains_of_runs(self.table, pairs), SOUP_AVERAGE, LAST_CHECKPOINT, level)


def gains_of_runs(items: ItemTable, pairs: Sequence[Sequence[ItemScores]]) -> ScoreTable:
    """Scores of the average and of the last checkpoint of R training runs, from (average, last checkpoint) of each.

    Every run gets the same scores of a last checkpoint, the mean over the runs' last checkpoints, and an average that
    exceeds it by the run's own gain. So scores differ between runs only as the gains do.
    """
    runs = []
    for average, last in pairs:
        scores = ScoreTable.measured(items, {SOUP_AVERAGE: average, LAST_CHECKPOINT: last})
        runs.append((scores.answers[SOUP_AVERAGE], scores.answers[LAST_CHECKPOINT]))
    common = np.mean([last.counted for _, last in runs], axis=0)  # [1, I]
    counted = np.concatenate([common + a.counted - last.counted for a, last in runs])
    gains = replace(
        Answers.of(counted),
        lowest=np.concatenate([common + a.lowest - last.highest for a, last in runs]),
        highest=np.concatenate([common + a.highest - last.lowest for a, last in runs]),
    )
    equal = Answers.of(np.repeat(common, len(runs), axis=0))
    return ScoreTable(items=items, answers={SOUP_AVERAGE: gains, LAST_CHECKPOINT: equal})


def describe(
    trajectory: Trajectory,
    weights: Weights,
    search: CheckpointScores,
    trials: Sequence[Trial],
    report: CheckpointScores,
    soup: ItemScores,
    others: Sequence[Sequence[ItemScores]],
    level: Level,
    categories: tuple[CategoryDifference, ...] = (),
) -> TrajectoryResult:
    """The section `trajectory` of a report.

    `weights` [K] are those of the chosen average, and `soup` has its scores on the test split. `search` and `report`
    are the checkpoints' scores on the search and test splits, `trials` the averages that the search evaluated, `others`
    the (average, last checkpoint) of each further run by the same weights. `level` is that of the look at the test
    split, and `categories` are the soup minus the last checkpoint in each category.
    """
    # The candidates of a trajectory are the checkpoints of its first run.
    members = trajectory.runs[0].members
    rows = []
    for k, (member, weight) in enumerate(zip(members, weights, strict=True)):
        row = CheckpointRow(
            name=member.name,
            step=member.step,
            rate=member.rate,
            tokens=member.tokens,
            weight=weight,
            search=search.objective(search.checkpoints[k].values),
            test=report.objective(report.checkpoints[k].values),
        )
        rows.append(row)
    over_runs = report.over_runs(others, level)
    claim = None
    if over_runs is not None:
        claim = LookDifference.of(over_runs, report.unit)
    differences = [report.objective(average.values - last.values) for average, last in others]
    return TrajectoryResult(
        sentences=tuple(trajectory.sentences),
        checkpoints=tuple(rows),
        windows=_windows(members, search, trials),
        last=LookDifference.of(report.versus_last(soup, level), report.unit),
        checkpoints_mean=LookDifference.of(
            report.versus_members(soup, weights, level), report.unit
        ),
        categories=categories,
        spread=NeighbourSpread(
            count=min(NEIGHBOURS, len(members)),
            search=search.spread(),
            test=report.spread(),
        ),
        runs=FurtherRuns(differences=tuple(differences), claim=claim),
    )


def _windows(
    members: Sequence[Member], search: CheckpointScores, trials: Sequence[Trial]
) -> tuple[WindowRow, ...]:
    """The windows that were evaluated, the shortest first; the intervals hold for all windows at once."""
    # {key of the weights: scores [I]}, {key of the weights: window}. A window of one checkpoint is no average.
    scores_of = {_key(trial.weights): trial.result.values for trial in trials if trial.whole}
    averages = {
        _key(window.weights): window for window in windows(len(members)) if window.length > 1
    }
    evaluated = [window for key, window in averages.items() if key in scores_of]
    evaluated.sort(key=lambda window: (window.length, window.kind, window.weights))

    rows = []
    level = Level(tests=len(evaluated))
    newest = members[-1]
    for window in evaluated:
        values = scores_of[_key(window.weights)]
        average = ItemScores(items=search.checkpoints[0].items, values=values)
        oldest = members[-window.length]
        tokens = None
        if newest.tokens is not None and oldest.tokens is not None:
            tokens = newest.tokens - oldest.tokens
        row = WindowRow(
            kind=window.kind,
            alpha=window.alpha,
            count=window.length,
            steps=newest.step - oldest.step,
            tokens=tokens,
            objective=search.objective(values),
            last=_of_window(search.versus_last(average, level), search.unit),
            checkpoints_mean=_of_window(
                search.versus_members(average, window.weights, level), search.unit
            ),
        )
        rows.append(row)
    return tuple(rows)


def _of_window(comparison: Comparison, unit: Unit) -> LookDifference:
    """A difference of which only the interval holds for all windows: the p-value is that of one window alone."""
    return replace(
        LookDifference.of(comparison, unit),
        level=comparison.level.confidence,
        p_value=comparison.p_alone,
        p_look=comparison.p_alone,
    )


def _key(weights: Weights) -> bytes:
    """Key of weights, equal for weights that differ only by rounding."""
    return np.round(weights, 9).tobytes()
