"""Average of a training run's checkpoints beside the last of them and beside the mean of those that it averages.

Windows are compared on the search fold, where one of them is chosen; the chosen average on the report fold.

Shape legend: K checkpoints, I items, R training runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from souping.checkpoints.pool import Trajectory
from souping.checkpoints.trajectory import Member
from souping.core.protocols import Objective
from souping.core.types import FloatArray, ItemScores, Trial, Weights
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
from souping.search.schedule import windows
from souping.statistics.comparison import Comparison, contrast
from souping.statistics.grouped import ZERO_DIFFERENCE
from souping.statistics.levels import Level, over_looks
from souping.statistics.scores import ItemTable, ScoreTable

SOUP_AVERAGE = "average"
LAST_CHECKPOINT = "last"
MEMBERS_MEAN = "members_mean"
# Last checkpoints whose spread shows how much a score changes from one to the next.
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """Scores of a run's checkpoints, oldest first, on the items of a fold. A report has them in the `unit`."""

    unit: Unit
    values: FloatArray  # [K, I]
    table: ItemTable

    @classmethod
    def of(cls, unit: Unit, scores: Sequence[ItemScores], objective: Objective) -> CheckpointScores:
        table = ItemTable.of(scores[0].items, objective)
        values = np.stack([checkpoint.values for checkpoint in scores])
        return cls(unit=unit, values=values, table=table)

    def objective(self, values: FloatArray) -> float:
        """Objective of scores [I] as a reader sees it."""
        return self.unit.raw(self.table.grouped(values).objective)

    def spread(self) -> float | None:
        """Standard deviation between the last checkpoints, None if there are fewer than three."""
        last = [self.objective(row) for row in self.values[-NEIGHBOURS:]]
        if len(last) < 3:
            return None
        return float(np.std(last, ddof=1))

    def versus_last(
        self, average: FloatArray, looks: int = 1, tests: float = 1.0
    ) -> LookDifference:
        """The average [I] minus the last checkpoint."""
        return self._versus(LAST_CHECKPOINT, average, self.values[-1], looks, tests)

    def versus_members(
        self, average: FloatArray, weights: Weights, looks: int = 1, tests: float = 1.0
    ) -> LookDifference:
        """The average [I] minus the mean of the checkpoints' scores by the same weights [K]."""
        mean = np.asarray(weights) @ self.values
        return self._versus(MEMBERS_MEAN, average, mean, looks, tests)

    def _versus(
        self, name: str, average: FloatArray, other: FloatArray, looks: int, tests: float
    ) -> LookDifference:
        scores = ScoreTable.complete(self.table, {SOUP_AVERAGE: average, name: other})
        comparison = contrast(scores, SOUP_AVERAGE, name, Level(looks, tests))
        return self.at_look(comparison, looks)

    def at_look(self, comparison: Comparison, looks: int) -> LookDifference:
        """What report.json keeps of a comparison at the `looks`-th look."""
        p_look = over_looks(comparison.p_value, looks)
        return LookDifference(**comparison.raw(self.unit), p_look=p_look)


def over_runs(deltas: FloatArray, table: ItemTable, looks: int = 1) -> Comparison:
    """Average minus last checkpoint, scores [R, I] of R >= 2 training runs: the mean over the items, and over the runs
    of which these are a sample.

    Its variance is that of items plus that of runs less what both count, never below the larger. The degrees of freedom
    of Student's t are those of the runs: Satterthwaite's, which mix in those of the items, claim up to twice too often
    on two or three runs.
    """
    from scipy.special import stdtr, stdtrit

    count = len(deltas)
    degrees = count - 1
    alpha = Level(looks).alpha
    mean_deltas = deltas.mean(axis=0)
    pooled = table.grouped(mean_deltas)

    # Variance of the mean by the items, by the runs, and what both of them count: that of the items
    # of each run around the mean of the runs.
    of_items = float(pooled.variances.sum())
    run_means = [table.grouped(run).objective for run in deltas]
    of_runs = float(np.var(run_means, ddof=1)) / count
    around_mean = [table.grouped(run) for run in deltas - mean_deltas]
    interaction = sum(float(run.variances.sum()) for run in around_mean)
    of_both = interaction / (count - 1) / count
    error = math.sqrt(max(of_items, of_runs, of_items + of_runs - of_both))

    difference = pooled.objective
    margin = float(-stdtrit(degrees, alpha / 2)) * error
    p_value = 1.0
    if error:
        p_value = float(2 * stdtr(degrees, -abs(difference) / error))
    return Comparison(
        a=SOUP_AVERAGE,
        b=LAST_CHECKPOINT,
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        level=1 - alpha,
        p_value=p_value,
        test=f"t over {count} training runs and items",
        n=deltas.shape[1],
        groups=len(pooled.sums),
        discordant=float((np.abs(mean_deltas) > ZERO_DIFFERENCE).mean()),
    )


def further_runs(
    report: CheckpointScores, pairs: Sequence[Sequence[FloatArray]], looks: int
) -> FurtherRuns:
    """Differences of (average, last checkpoint) [I] on further runs.

    A claim on the recipe only if there are two or more, none of which chose it.
    """
    deltas = np.array([average - last for average, last in pairs])
    claim = None
    if len(deltas) > 1:
        claim = report.at_look(over_runs(deltas, report.table, looks), looks)
    return FurtherRuns(differences=tuple(map(report.objective, deltas)), claim=claim)


def describe(
    trajectory: Trajectory,
    weights: Weights,
    search: CheckpointScores,
    trials: Sequence[Trial],
    report: CheckpointScores,
    soup: FloatArray,
    others: Sequence[Sequence[FloatArray]],
    looks: int,
    categories: tuple[CategoryDifference, ...] = (),
) -> TrajectoryResult:
    """`trajectory` of a report.

    `weights` [K] and `soup` [I] are the chosen average's, `soup` on the report fold, of which this is the `looks`-th
    look; `trials` are the averages that the search evaluated; `others` the (average, last checkpoint) [I] of each
    further run by the same weights; `categories` the soup minus the last checkpoint in each category.
    """
    members = trajectory.runs[0].members
    rows = []
    for k, (member, weight) in enumerate(zip(members, weights, strict=True)):
        row = CheckpointRow(
            name=member.name,
            step=member.step,
            rate=member.rate,
            tokens=member.tokens,
            weight=weight,
            search=search.objective(search.values[k]),
            report=report.objective(report.values[k]),
        )
        rows.append(row)
    return TrajectoryResult(
        sentences=tuple(trajectory.sentences),
        members=tuple(rows),
        windows=_windows(members, search, trials),
        last=report.versus_last(soup, looks),
        members_mean=report.versus_members(soup, weights, looks),
        categories=categories,
        spread=NeighbourSpread(
            checkpoints=min(NEIGHBOURS, len(members)),
            search=search.spread(),
            report=report.spread(),
        ),
        runs=further_runs(report, others, looks),
    )


def _windows(
    members: Sequence[Member], search: CheckpointScores, trials: Sequence[Trial]
) -> tuple[WindowRow, ...]:
    """The windows of a schedule that were evaluated, the shortest first; their intervals hold for all at once."""
    scores_of = {_key(trial.weights): trial.result.values for trial in trials if trial.whole}
    averages = {
        _key(window.weights): window for window in windows(len(members)) if window.length > 1
    }
    evaluated = [window for key, window in averages.items() if key in scores_of]
    evaluated.sort(key=lambda window: (window.length, window.kind, window.weights))

    rows = []
    newest = members[-1]
    for window in evaluated:
        scores = scores_of[_key(window.weights)]
        oldest = members[-window.length]
        tokens = None
        if newest.tokens is not None and oldest.tokens is not None:
            tokens = newest.tokens - oldest.tokens
        row = WindowRow(
            kind=window.kind,
            alpha=window.alpha,
            checkpoints=window.length,
            steps=newest.step - oldest.step,
            tokens=tokens,
            objective=search.objective(scores),
            last=search.versus_last(scores, tests=len(evaluated)),
            members_mean=search.versus_members(scores, window.weights, tests=len(evaluated)),
        )
        rows.append(row)
    return tuple(rows)


def _key(weights: Weights) -> bytes:
    """Equal for weights that differ by rounding."""
    return np.round(weights, 9).tobytes()
