"""sweeps/: multiruns over the weight grid, and what a W&B agent would run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from souping.search import points as simplex
from souping.search.points import Grid
from tests.conftest import ROOT, Cli, pool_of
from tests.support.composition import compose
from tests.support.scripts import script
from tests.support.wandb import log_of, of_type

SWEEPS = ROOT / "sweeps"
FILES = sorted(SWEEPS.glob("wandb_*.yaml"))


@pytest.fixture
def weight_grid() -> ModuleType:
    return script(SWEEPS / "weight_grid.py")


def read(file: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(file.read_text())
    return sweep


def choices(parameter: dict[str, Any]) -> list[Any]:
    """What a sweep's parameter can be: all its values, or the ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    assert parameter["distribution"] == "int_uniform"
    return [parameter["min"], parameter["max"]]


def draws(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """As few draws as hold every choice of every parameter once."""
    options = {name: choices(parameter) for name, parameter in sweep["parameters"].items()}
    count = max(map(len, options.values()))
    return [{name: values[i % len(values)] for name, values in options.items()} for i in range(count)]


def agent_line(sweep: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    """The command line of a draw, as the W&B agent writes it."""
    macros = {"${env}": ["/usr/bin/env"], "${args_no_hyphens}": [f"{key}={value}" for key, value in drawn.items()]}
    return [word for part in sweep["command"] for word in macros.get(part, [part])]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_choice_of_a_wandb_sweep_composes_and_builds(file: Path) -> None:
    sweep = read(file)
    lines = [agent_line(sweep, drawn) for drawn in draws(sweep)]
    for line in lines if len(lines) < 10 else [*lines[:3], lines[-1]]:  # a long list differs in weights alone
        plain = compose(line[4:])
        assert plain["stop_after"] == "search"
        assert plain["tracker"]["_target_"].endswith("WandbTracker")


def small(line: list[str], family: Path) -> list[str]:
    """An agent's line on the tiny family: its models and items in place of the experiment's."""
    return [*line, *pool_of(family), "hydra.run.dir=run"]


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        pytest.param("wandb_grid", 1, marks=pytest.mark.slow),
        ("wandb_weights", 7),
    ],
)
def test_an_agents_line_runs_and_logs_the_metric(
    name: str, draw: int, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep = read(SWEEPS / f"{name}.yaml")
    line = small(agent_line(sweep, draws(sweep)[draw]), family)
    done = souping(*line[4:], "optimiser.trials=8")
    assert done.code == 0, done.err
    trials = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    best = max(float(trial["objective"]) for trial in trials)
    points = [one["item"] for one in of_type(log_of(tmp_path / "run"), "history")]
    assert points[-1][sweep["metric"]["name"]] == pytest.approx(best)
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.slow
def test_the_agents_words_run_in_a_shell_of_their_own(family: Path, tmp_path: Path) -> None:
    sweep = read(SWEEPS / "wandb_weights.yaml")
    line = small(agent_line(sweep, draws(sweep)[0]), family)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["weights"] == pytest.approx([1 / 3] * 3)


@pytest.mark.slow
def test_the_weight_grid_as_a_multirun_finds_what_the_search_finds(
    family: Path, souping: Cli, tmp_path: Path, weight_grid: ModuleType
) -> None:
    words = weight_grid.command(2, Grid().known_points(2), [*pool_of(family), "hydra.sweep.dir=sweep"])
    done = souping(*words[3:])
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert len(rows) == 9 + 2
    one = ["+experiment=bfcl", "selector=topk", "selector.k=2", "optimiser=grid", "stop_after=search"]
    one += ["hydra.run.dir=one"]
    assert souping(*one, *pool_of(family)).code == 0
    trials = list(csv.DictReader((tmp_path / "one/trials.csv").open()))
    assert [float(row["objective"]) for row in rows] == [float(trial["objective"]) for trial in trials]
    assert {trial["reused"] for trial in trials} == {trials[0]["items"]}


@pytest.mark.slow
def test_the_overlay_alone_makes_a_run_a_multirun(
    family: Path, souping: Cli, tmp_path: Path, weight_grid: ModuleType
) -> None:
    (tmp_path / "mine/sweep").mkdir(parents=True)
    points = [(0.3, 0.7), (0.5, 0.5)]
    (tmp_path / "mine/sweep/two.yaml").write_text(weight_grid.hydra_overlay(2, points))
    done = souping("--config-dir", "mine", "+experiment=bfcl", "+sweep=two", *pool_of(family), "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    recipes = [json.loads((tmp_path / f"sweep/{job}/recipe.json").read_text()) for job in (0, 1)]
    assert [tuple(recipe["weights"]) for recipe in recipes] == points


def test_the_files_in_the_repository_are_what_the_script_writes(
    weight_grid: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, file in (("hydra", SWEEPS / "conf/sweep/weight_grid.yaml"), ("wandb", SWEEPS / "wandb_weights.yaml")):
        assert weight_grid.main(["3", "--form", form]) == 0
        assert capsys.readouterr().out == file.read_text()
    listed = read(SWEEPS / "wandb_weights.yaml")["parameters"]["optimiser.weights"]["values"]
    expected = {*simplex.grid(3), *simplex.vertices(3), simplex.uniform(3)}
    assert {tuple(point) for point in listed} == expected
    assert len(listed) == 40
