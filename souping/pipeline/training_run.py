"""A training run in the report: the average of its checkpoints beside each of them."""

from __future__ import annotations

from collections.abc import Mapping

from souping.analysis.trajectory import CheckpointScores, describe
from souping.checkpoints.pool import Trajectory
from souping.core.types import ItemScores, JsonObject
from souping.pipeline.evidence import Contender, Pair, by_category
from souping.pipeline.steps import Steps
from souping.search.loop import SearchResult


def trajectory_evidence(
    steps: Steps,
    trajectory: Trajectory,
    winner: SearchResult,
    searched: Mapping[str, ItemScores],
    measured: Mapping[str, ItemScores],
    looks: int,
) -> JsonObject:
    """The chosen average of a training run and its checkpoints, on the search and report folds.

    `searched` are {candidate: scores on the search fold}, `measured` {recipe id: scores on the
    report fold}.
    """
    unit = steps.settings.evaluator.unit
    objective = steps.settings.objective
    names = steps.recipes.names
    soup = winner.recipe
    search = CheckpointScores.of(unit, [searched[name] for name in names], objective)
    singles = [measured[steps.single(name).id] for name in names]
    report = CheckpointScores.of(unit, singles, objective)

    # Scores of (average, last checkpoint) of each further training run.
    others = []
    for pair in steps.replicates(soup):
        others.append([measured[recipe.id].values for recipe in pair])
    data = describe(
        trajectory,
        steps.weights_of(soup),
        search,
        winner.trials,
        report,
        measured[soup.id].values,
        others,
        looks,
    )

    average = Contender(name="average", kind="soup", recipe=soup)
    last = Contender(name="last", kind="last", recipe=steps.single(names[-1]))
    versus_last = Pair.of(average, last, measured, report.table, looks)
    return {**data, "categories": by_category(unit, [versus_last])}
