"""A training run as its analysis describes it, without models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from souping.analysis.trajectory import CheckpointScores, describe
from souping.checkpoints.trajectory import Member, TrainingRun, Trajectory
from souping.core.scores import Mean
from souping.core.types import FloatArray, Item, ItemScores, Result, Trial
from souping.core.unit import BITS_PER_BYTE
from souping.report.content import TrajectoryResult
from souping.search.windows import windows
from souping.statistics.corrections import FIRST_LOOK
from souping.statistics.score_table import ItemTable
from tests.conftest import recipe

SIZE = 6
ITEMS = 80
SPLIT = tuple(Item(id=str(i), category="xy"[i % 2], prompt=str(i), answer="") for i in range(ITEMS))
TABLE = ItemTable.of(SPLIT, Mean())


def scored(values: FloatArray) -> ItemScores:
    return ItemScores(items=SPLIT, values=values)


def measured(rates: bool, runs: int = 0) -> TrajectoryResult:
    """A run whose average is better than its checkpoints by about a tenth of a bit; `rates`: with learning rates.

    In each of `runs` further training runs, the average differs from the last checkpoint by chance alone.
    """
    dice = np.random.default_rng(0)
    values = BITS_PER_BYTE.inner(
        1.2 + 0.05 * dice.standard_normal((SIZE, 1)) + 0.1 * dice.standard_normal(ITEMS)
    )
    members = [
        Member(
            name=f"c{n}",
            folder=Path(f"c{n}"),
            model=Path(f"c{n}"),
            weights=Path(f"c{n}"),
            step=100 * n,
            rate=1e-3 if rates else None,
        )
        for n in range(1, SIZE + 1)
    ]
    run = TrainingRun(folder=Path("run"), trainer="Trainer", members=tuple(members))
    trajectory = Trajectory(runs=(run,), rows=(), others=())
    scores = CheckpointScores.of(BITS_PER_BYTE, list(map(scored, values)), Mean())
    better = BITS_PER_BYTE.inner(-0.1)
    trials = [
        Trial(
            number=n,
            recipe=recipe(0.5, 0.5),
            weights=one.weights,
            result=Result(
                objective=0.0,
                categories={},
                items=ITEMS,
                values=np.array(one.weights) @ values + n * better / 10,
            ),
        )
        for n, one in enumerate(windows(SIZE))
    ]
    weights = windows(SIZE)[3].weights
    soup = np.array(weights) @ values + better
    others = [(scored(soup + dice.normal(0, 1)), scored(soup)) for _ in range(runs)]
    # The checkpoints have the same scores on the search split and on the test split.
    return describe(trajectory, weights, scores, trials, scores, scored(soup), others, FIRST_LOOK)
