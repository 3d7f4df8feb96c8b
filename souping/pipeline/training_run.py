"""A training run in the report: the average of its checkpoints beside each of them."""

from __future__ import annotations

from souping.analysis.trajectory import CheckpointScores, describe
from souping.checkpoints.pool import Trajectory
from souping.pipeline.evidence import Pair, by_category
from souping.pipeline.state import Contender, Reported
from souping.pipeline.steps import Steps
from souping.report.content import TrajectoryResult


def trajectory_evidence(
    steps: Steps,
    trajectory: Trajectory,
    state: Reported,
) -> TrajectoryResult:
    """The chosen average of a training run and its checkpoints, on the search and report folds."""
    objective = steps.settings.objective
    unit = steps.settings.evaluator.unit
    names = steps.pool.names
    looks = state.look.number
    measured = state.measured[""]
    winner = state.searched.winner
    soup = winner.recipe
    singles = [state.frozen.singles[name] for name in names]
    search = CheckpointScores.of(unit, singles, objective)
    singles = [measured[steps.single(name).id] for name in names]
    report = CheckpointScores.of(unit, singles, objective)

    # Scores of (average, last checkpoint) of each further training run.
    replicates = []
    for pair in steps.replicates(soup):
        replicates.append([measured[recipe.id] for recipe in pair])

    average = Contender(name="average", kind="soup", recipe=soup)
    last = Contender(name="last", kind="last", recipe=steps.single(names[-1]))
    versus_last = Pair.of(average, last, measured, report.table, looks)
    return describe(
        trajectory,
        steps.weights_of(soup),
        search,
        winner.trials,
        report,
        measured[soup.id],
        replicates,
        looks,
        categories=by_category(unit, [versus_last]),
    )
