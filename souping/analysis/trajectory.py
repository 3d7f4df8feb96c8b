"""Average of a training run's checkpoints beside the last of them and beside the mean of those that it averages.

Windows are compared on the search fold, where one of them is chosen; the chosen average on the report fold.

Shape legend: K checkpoints, I items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from souping.analysis.intervals import ItemTable
from souping.analysis.nested import ZERO_DIFFERENCE
from souping.analysis.sign_flip import ALPHA
from souping.analysis.significance import Comparison, compare, over_looks, penalty
from souping.checkpoints.pool import Trajectory
from souping.checkpoints.trajectory import Member
from souping.core.protocols import Objective
from souping.core.types import FloatArray, ItemScores, Json, Trial, Weights
from souping.core.unit import Unit
from souping.search.schedule import windows

SOUP_AVERAGE, LAST_CHECKPOINT = "average", "last"
NEIGHBOURS = 5
"""Last checkpoints whose spread shows how much a score changes from one to the next."""


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """Scores [K, I] of a run's checkpoints, oldest first, on the items of a fold. A report has them in the `unit`."""

    unit: Unit
    values: FloatArray
    table: ItemTable

    @classmethod
    def of(cls, unit: Unit, scores: Sequence[ItemScores], objective: Objective) -> CheckpointScores:
        table = ItemTable.of(scores[0].items, objective)
        return cls(unit=unit, values=np.stack([one.values for one in scores]), table=table)

    def objective(self, values: FloatArray) -> float:
        """As a reader sees it."""
        return self.unit.raw(self.table.grouped(values).objective)

    def spread(self) -> float | None:
        """Standard deviation between the last checkpoints, None if there are fewer than three."""
        last = [self.objective(row) for row in self.values[-NEIGHBOURS:]]
        return float(np.std(last, ddof=1)) if len(last) > 2 else None

    def beside(
        self, average: FloatArray, weights: Weights, looks: int = 1, tests: float = 1.0
    ) -> dict[str, Json]:
        """The average [I] minus the `last` checkpoint, and minus the mean of the checkpoints' scores by the same
        weights [K]: `members_mean`."""
        where = (self.table.categories, self.table.groups, self.table.coefficients)
        others = {
            LAST_CHECKPOINT: self.values[-1],
            "members_mean": np.asarray(weights) @ self.values,
        }
        return {
            name: self.shown(
                compare(SOUP_AVERAGE, name, average, other, *where, looks=looks, tests=tests), looks
            )
            for name, other in others.items()
        }

    def shown(self, pair: Comparison, looks: int) -> Mapping[str, Json]:
        return {**pair.raw(self.unit), "p_look": over_looks(pair.p_value, looks)}


def over_runs(deltas: FloatArray, table: ItemTable, looks: int = 1) -> Comparison:
    """Average minus last checkpoint, scores [R, I] of R >= 2 training runs: the mean over the items, and over the runs
    of which these are a sample.

    Its variance is that of items plus that of runs less what both count, never below the larger. The degrees of freedom
    of Student's t are those of the runs: Satterthwaite's, which mix in those of the items, claim up to twice too often
    on two or three runs.
    """
    from scipy.special import stdtr, stdtrit

    count, alpha = len(deltas), ALPHA / penalty(looks)
    rest = [table.grouped(run) for run in deltas - deltas.mean(axis=0)]
    whole, means = (
        table.grouped(deltas.mean(axis=0)),
        [table.grouped(run).objective for run in deltas],
    )
    items, runs = float(whole.variances().sum()), float(np.var(means, ddof=1)) / count
    both = sum(float(one.variances().sum()) for one in rest) / (count - 1) / count
    total = max(items, runs, items + runs - both)
    error = math.sqrt(total)
    reach = float(-stdtrit(count - 1, alpha / 2)) * error
    return Comparison(
        a=SOUP_AVERAGE,
        b=LAST_CHECKPOINT,
        difference=whole.objective,
        low=whole.objective - reach,
        high=whole.objective + reach,
        level=1 - alpha,
        p_value=float(2 * stdtr(count - 1, -abs(whole.objective) / error)) if error else 1.0,
        test=f"t over {count} training runs and items",
        n=deltas.shape[1],
        groups=len(whole.sums),
        discordant=float((np.abs(deltas.mean(axis=0)) > ZERO_DIFFERENCE).mean()),
    )


def _further_runs(
    report: CheckpointScores, others: Sequence[Sequence[FloatArray]], looks: int
) -> Mapping[str, Json]:
    """Differences on further runs; a claim on the recipe only if there are two or more, none of which chose it."""
    deltas = np.array([average - last for average, last in others])
    claim = (
        {"claim": report.shown(over_runs(deltas, report.table, looks), looks)}
        if len(deltas) > 1
        else {}
    )
    return {"differences": [report.objective(one) for one in deltas], **claim}


def describe(
    found: Trajectory,
    weights: Weights,
    search: CheckpointScores,
    trials: Sequence[Trial],
    report: CheckpointScores,
    soup: FloatArray,
    others: Sequence[Sequence[FloatArray]],
    looks: int,
) -> dict[str, Json]:
    """`trajectory` of a report.

    `weights` [K] and `soup` [I] are the chosen average's, `soup` on the report fold, of which this is the `looks`-th
    look; `trials` are the averages that the search evaluated; `others` the (average, last checkpoint) [I] of each
    further run by the same weights.
    """
    members = [
        {
            "name": member.name,
            "step": member.step,
            "rate": member.rate,
            "tokens": member.tokens,
            "weight": weight,
            "search": search.objective(seen),
            "report": report.objective(row),
        }
        for member, weight, seen, row in zip(
            found.runs[0].members, weights, search.values, report.values, strict=True
        )
    ]
    return {
        "sentences": found.sentences,
        "members": members,
        "windows": _windows(found.runs[0].members, search, trials),
        **report.beside(soup, weights, looks),
        "runs": _further_runs(report, others, looks),
        "spread": {
            "checkpoints": min(NEIGHBOURS, len(members)),
            "search": search.spread(),
            "report": report.spread(),
        },
    }


def _windows(
    members: Sequence[Member], search: CheckpointScores, trials: Sequence[Trial]
) -> list[Mapping[str, Json]]:
    """The windows of a schedule that were evaluated, the shortest first; their intervals hold for all at once."""
    values = {
        np.round(trial.weights, 9).tobytes(): trial.result.values for trial in trials if trial.whole
    }
    keys = {
        np.round(one.weights, 9).tobytes(): one for one in windows(len(members)) if one.length > 1
    }
    tried = sorted(
        keys.keys() & values.keys(),
        key=lambda key: (keys[key].length, keys[key].kind, keys[key].weights),
    )
    found = list[Mapping[str, Json]]()
    for key in tried:
        window, newest = keys[key], members[-1]
        oldest = members[-window.length]
        known = newest.tokens is not None and oldest.tokens is not None
        found.append(
            {
                "kind": window.kind,
                "alpha": window.alpha,
                "checkpoints": window.length,
                "steps": newest.step - oldest.step,
                "tokens": (newest.tokens or 0) - (oldest.tokens or 0) if known else None,
                "objective": search.objective(values[key]),
                **search.beside(values[key], window.weights, tests=len(tried)),
            }
        )
    return found
