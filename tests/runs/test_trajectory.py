"""A training run in, one average out: the rows, the windows, and the same weights on further runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import souping as library
from souping.core.protocols import Tracker
from souping.core.types import Json, Trial
from tests.conftest import ROOT, Cli
from tests.support.trajectory import STEPS, Bowl, make_run, save_at, save_items

CHOICE = "_target_: tests.support.trajectory.Bowl\n"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a run over the checkpoints in `one`, which has the trainer's own average too, and a decayed model."""
    monkeypatch.syspath_prepend(str(ROOT))
    make_run(tmp_path / "one", 1)
    save_at(tmp_path / "one" / "ema", 0.45)
    save_at(tmp_path / "decayed", 0.52)
    save_items(tmp_path / "items.jsonl")
    (tmp_path / "own" / "evaluator").mkdir(parents=True)
    (tmp_path / "own" / "evaluator" / "bowl.yaml").write_text(CHOICE)
    settings = [
        "evaluator=bowl",
        "benchmark.path=items.jsonl",
        "pool.decayed=decayed",
        "hydra.run.dir=run",
    ]
    return ["--config-dir", str(tmp_path / "own"), "+experiment=trajectory", *settings]


@dataclass(frozen=True, kw_only=True)
class Heard(Tracker):
    """What a tracker is told of the trials."""

    trials: list[Trial] = field(default_factory=list)

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None:
        self.trials.append(trial)


def test_a_tracker_gets_losses_and_the_lowest_of_them_as_the_best(tmp_path: Path) -> None:
    for name, value in (("far", 0.9), ("near", 0.3)):
        save_at(tmp_path / name, value)
    save_items(tmp_path / "items.jsonl")
    tracker = Heard()
    result = library.run(
        candidates=[tmp_path / "far", tmp_path / "near"],
        items=tmp_path / "items.jsonl",
        selector=library.All(),
        optimiser=library.Grid(step=0.5),
        evaluator=Bowl(),
        tracker=tracker,
        stop_after="search",
        out=tmp_path / "run",
        store=tmp_path / "store.sqlite",
    )
    losses = [trial.result.objective for trial in tracker.trials]
    assert len(losses) == 3
    assert losses == [trial.objective for trial in result.trials]
    assert [trial.best for trial in tracker.trials] == [min(losses[: n + 1]) for n in range(3)]


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.mark.slow
def test_a_trajectory_gives_one_average_and_what_it_is_compared_with(
    words: list[str], souping: Cli, tmp_path: Path
) -> None:
    done = souping(*words, "pool.path=one")
    assert done.code == 0, done.err
    report = report_of(tmp_path / "run")
    found = report["trajectory"]
    assert [(one["step"], one["rate"], one["tokens"]) for one in found["checkpoints"]] == [
        (step, 0.001, 1000 * step) for step in STEPS
    ]
    assert sum(one["weight"] for one in found["checkpoints"]) == pytest.approx(1)
    kinds = {pair["kind"]: pair for pair in report["comparisons"]}
    assert {
        "last",
        "best_candidate",
        "trainer_best",
        "trainer_average",
        "decayed",
        "shuffled",
    } <= kinds.keys()
    assert kinds["trainer_best"]["b"] == "checkpoint-300"
    assert report["unit"]["higher_is_better"] is False
    assert kinds["last"]["high"] < 0  # fewer bits: the average is better
    assert found["checkpoints_mean"]["high"] < 0
    assert report["verdict"]["claim"] == "better_than_every_candidate"
    assert {one["kind"] for one in found["windows"]} == {"uniform", "minus_sqrt", "ema"}
    # the last checkpoint alone is no window
    assert len(found["windows"]) == report["cost"]["trials"] - 1
    assert [one["steps"] for one in found["windows"]] == sorted(
        one["steps"] for one in found["windows"]
    )
    assert {one["category"] for one in found["categories"]} == {"web", "code"}
    assert found["runs"]["differences"] == []
    text = (tmp_path / "run" / "report.md").read_text()
    for words_ in (
        "For this run",
        "Average minus the trainer's own, ema: ",
        "plots/trajectory.png",
        "plots/windows.png",
        "8 checkpoints (Trainer)",
    ):
        assert words_ in text
    shown = souping("plan", *words, "pool.path=one")
    assert "steps 100 to 800" in shown.out
    assert "The learning rate is 0.001." in shown.out


@pytest.mark.slow
@pytest.mark.parametrize("more", [1, 2])
def test_the_same_weights_are_tested_on_further_runs(
    more: int, words: list[str], souping: Cli, tmp_path: Path
) -> None:
    paths = ["one", *(make_run(tmp_path / f"more{n}", (2, 6)[n]).name for n in range(more))]
    done = souping(*words, f"pool.path=[{','.join(paths)}]")
    assert done.code == 0, done.err
    found = report_of(tmp_path / "run")["trajectory"]["runs"]
    assert len(found["differences"]) == more
    assert ("claim" in found) == (more > 1)


def test_one_average_without_a_search(words: list[str], souping: Cli, tmp_path: Path) -> None:
    settings = [
        "pool=trajectory",
        "pool.path=one",
        "optimiser=trajectory",
        "optimiser.kind=ema",
        "out=soup",
    ]
    done = souping("+experiment=merge", *settings, "pool.last=4")
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "soup" / "recipe.json").read_text())
    assert recipe["ingredients"] == [f"checkpoint-{step}" for step in STEPS[-4:]]
    assert recipe["weights"] == pytest.approx([0.512, 0.128, 0.16, 0.2])
    souping("+experiment=merge", *settings[:3], "out=more").refused("optimiser.kind=ema")


@pytest.mark.parametrize("copies", [pytest.param("all", marks=pytest.mark.slow), "one"])
def test_a_training_run_that_is_given_twice_is_refused(
    words: list[str], souping: Cli, tmp_path: Path, copies: str
) -> None:
    make_run(tmp_path / "two", 2)
    name = f"checkpoint-{STEPS[-1]}"
    shutil.rmtree(tmp_path / "two" / name)
    shutil.copytree(tmp_path / "one" / name, tmp_path / "two" / name)
    if copies == "all":
        shutil.rmtree(tmp_path / "two")
        (tmp_path / "two").symlink_to("one")
    souping(*words, "pool.path=[one,two]").refused("pool.path: one and two share the weights")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_average_in_optimiser_state_is_a_row_of_the_report(
    words: list[str], souping: Cli, tmp_path: Path
) -> None:
    """Checkpoints as torchtitan saves them, with its keys."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    average = load_file(tmp_path / "one" / "ema" / "model.safetensors")
    for step in STEPS:
        state = load_file(tmp_path / "one" / f"checkpoint-{step}" / "model.safetensors")
        for name, tensor in average.items():
            state[f"ema_optimizer.state.{name}.ema_params"] = tensor
        dcp.save(state, checkpoint_id=tmp_path / "titan" / f"step-{step}")
    done = souping(*words, "pool.path=titan", "pool.reference_model=one/ema", "pool.last=3")
    assert done.code == 0, done.err
    report = report_of(tmp_path / "run")
    (pair,) = [pair for pair in report["comparisons"] if pair["kind"] == "trainer_average"]
    assert pair["b"] == f"step-{STEPS[-1]}#ema"
    rows = {row["name"]: row["objective"]["mean"] for row in report["rows"]}
    assert rows[pair["b"]] < rows[f"step-{STEPS[-1]}"]
    assert pair["b"] not in report["selection"]["ingredients"]
