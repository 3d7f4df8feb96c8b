"""Sweepers of Hydra: the direction that they search in, without any of them installed, and with Optuna's."""

from __future__ import annotations

import csv
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from souping.cli.sweep import check_goal
from souping.core.types import UserError
from tests.conftest import Cli

LOSS = "souping.evaluate.loss.LossEvaluator"
SCORE = "souping.evaluate.generate.LocalEvaluator"


class Direction(Enum):
    """As Optuna's sweeper has it in its configuration."""

    minimize = 1
    maximize = 2


GOALS: dict[str, tuple[Any, Any]] = {
    "direction": (Direction.minimize, Direction.maximize),
    "optim": ({"maximize": False}, {"maximize": True}),
    "ax_config": ({"experiment": {"minimize": True}}, {"experiment": {"minimize": False}}),
}


def config_of(evaluator: Any, sweeper: dict[str, Any]) -> Any:
    return OmegaConf.create({"evaluator": evaluator, "hydra": {"sweeper": sweeper}})


@pytest.mark.parametrize("key", GOALS)
def test_a_sweeper_must_look_for_the_better_scores(key: str) -> None:
    minimise, maximise = GOALS[key]
    score = {"_target_": SCORE}
    loss = {"_target_": LOSS}
    check_goal(config_of(score, {key: maximise}))
    check_goal(config_of(loss, {key: minimise}))
    with pytest.raises(UserError, match=f"hydra.sweeper.{key}.*higher is better"):
        check_goal(config_of(score, {key: minimise}))
    with pytest.raises(UserError, match=f"hydra.sweeper.{key}.*lower is better"):
        check_goal(config_of(loss, {key: maximise}))


@pytest.mark.parametrize("direction", ["minimize", ["minimize"], ["maximize", "minimize"]])
def test_a_job_returns_one_score_to_maximise(direction: Any) -> None:
    score = {"_target_": SCORE}
    check_goal(config_of(score, {"direction": ["maximize"]}))
    with pytest.raises(UserError, match=r"add hydra\.sweeper\.direction=maximize"):
        check_goal(config_of(score, {"direction": direction}))


def test_other_sweepers_and_broken_evaluators_are_left_to_the_jobs() -> None:
    check_goal(config_of({"_target_": SCORE}, {"max_batch_size": None}))
    check_goal(config_of({"_target_": "no.such.part"}, {"direction": "minimize"}))
    check_goal(config_of("${missing}", {"direction": "minimize"}))
    for sweeper in ({"direction": "${missing}"}, {"optim": [1]}, {"optim": 5}, {"optim": None}):
        check_goal(config_of({"_target_": SCORE}, sweeper))


def test_the_wrong_direction_ends_a_multirun_before_its_first_job(
    souping: Cli, tmp_path: Path
) -> None:
    done = souping("-m", "+experiment=bfcl", "+hydra.sweeper.direction=minimize", "seed=0,1")
    done.refused("add hydra.sweeper.direction=maximize")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.optuna
def test_optuna_maximises_the_score_and_goes_on_after_a_failed_job(
    souping: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    space = ["selector=topk", "selector.k=choice(2,3,99)", "optimiser=uniform", "stop_after=search"]
    sweeper = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",  # Optuna's own grid ends with an error if its last job fails
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize",
    ]
    done = souping("-m", "+experiment=bfcl", *space, *sweeper, "hydra.sweep.dir=sweep")
    assert done.code == 2
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    best = max(float(row["objective"]) for row in rows if row["objective"])
    assert sum(bool(row["refused"]) for row in rows) == 1
    results = OmegaConf.load(tmp_path / "sweep/optimization_results.yaml")
    assert OmegaConf.select(results, "best_value") == pytest.approx(best)
