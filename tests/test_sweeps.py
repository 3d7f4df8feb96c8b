"""sweeps/: multiruns over the weight grid, what a W&B agent would run, and the paper's tables again."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from track_log import log_of, of_type

from souping import simplex
from souping.optimise import Grid
from tests.conftest import PAPER, ROOT, Cli, pool_of

SWEEPS = ROOT / "sweeps"
FILES = sorted(SWEEPS.glob("wandb_*.yaml"))


def load(path: Path) -> ModuleType:
    """A script as a module."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def weight_grid() -> ModuleType:
    return load(SWEEPS / "weight_grid.py")


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


def test_the_agents_own_code_writes_the_same_words() -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    for file in FILES:
        drawn = draws(read(file))[-1]
        words = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
        line = agent_line(read(file), drawn)
        assert line[5:] == words["args_no_hyphens"]
        assert line[:5] == ["/usr/bin/env", "python", "-m", "souping", "+experiment=bfcl"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_choice_of_a_wandb_sweep_composes_and_builds(file: Path) -> None:
    from hydra import compose, initialize_config_dir

    from souping import config

    sweep = read(file)
    lines = [agent_line(sweep, drawn) for drawn in draws(sweep)]
    config.register()
    with initialize_config_dir(str(config.folder()), version_base="1.3"):
        for line in lines if len(lines) < 10 else [*lines[:3], lines[-1]]:  # a long list differs in weights alone
            plain = config.resolved(compose("config", line[4:]))
            config.check(plain)
            parts = config.build(plain)
            assert plain["stop_after"] == "search"
            assert type(parts["tracker"]).__name__ == "WandbTracker"


def test_the_sweep_files_cover_what_they_say() -> None:
    assert {read(file)["method"] for file in FILES} == {"grid", "random"}
    assert {read(file)["metric"]["goal"] for file in FILES} == {"maximize"}
    parameters = read(SWEEPS / "wandb_grid.yaml")["parameters"].values()
    runs = 1
    for parameter in parameters:
        runs *= len(choices(parameter))
    assert f"; {runs} runs." in (SWEEPS / "wandb_grid.yaml").read_text()


def small(line: list[str], family: Path) -> list[str]:
    """An agent's line on the tiny family: its models and items in place of the experiment's."""
    return [*line, *pool_of(family), "hydra.run.dir=run"]


@pytest.mark.parametrize(("name", "draw"), [("wandb_grid", 1), ("wandb_random", 2), ("wandb_weights", 7)])
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


def test_the_agents_words_run_in_a_shell_of_their_own(family: Path, tmp_path: Path) -> None:
    sweep = read(SWEEPS / "wandb_weights.yaml")
    line = small(agent_line(sweep, draws(sweep)[0]), family)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["weights"] == pytest.approx([1 / 3] * 3)


def test_the_weight_grid_as_a_multirun_finds_what_the_search_finds(
    family: Path, souping: Cli, tmp_path: Path, weight_grid: ModuleType
) -> None:
    words = weight_grid.command(2, Grid().points(2), [*pool_of(family), "hydra.sweep.dir=sweep"])
    done = souping(*words[3:])
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert len(rows) == 9 + 2
    one = ["+experiment=bfcl", "selector=topk", "selector.k=2", "stop_after=search", "hydra.run.dir=one"]
    assert souping(*one, *pool_of(family)).code == 0
    trials = list(csv.DictReader((tmp_path / "one/trials.csv").open()))
    assert [float(row["objective"]) for row in rows] == [float(trial["objective"]) for trial in trials]
    assert {trial["reused"] for trial in trials} == {trials[0]["items"]}


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


def test_the_script_prints_a_command_a_shell_can_read(
    weight_grid: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weight_grid.main(["2", "--step", "0.25", "--minimum", "0.25", "--maximum", "0.75", "seed=1"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:5] == ["python", "-m", "souping", "-m", "+experiment=bfcl"]
    assert words[-2:] == ["optimiser.weights=[0.5,0.5],[1.0,0.0],[0.0,1.0],[0.25,0.75],[0.75,0.25]", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [(["11"], "no point for 11"), (["1"], "at least 2"), (["3", "--form", "hydra", "seed=1"], "leave --launch")],
)
def test_the_script_refuses_in_a_line(
    arguments: list[str], needle: str, weight_grid: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weight_grid.main(arguments) == 2
    assert needle in capsys.readouterr().err


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts of sweeps/paper, which import one another by name."""
    monkeypatch.syspath_prepend(str(SWEEPS / "paper"))
    return {name: importlib.import_module(name) for name in ("tables", "selection", "weights")}


def roles(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((PAPER / "results.csv").open())
    return {row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)}


CASES = [("bfcl_v3", "70b", 0), ("bfcl_v3", "8b", 1), ("mgsm", "7b", 2)]


@pytest.mark.parametrize(("benchmark", "scale", "index"), CASES)
def test_selection_is_shown_beside_the_papers(
    benchmark: str, scale: str, index: int, paper: dict[str, ModuleType]
) -> None:
    table = paper["selection"].TABLES[index]
    chosen = {name for name, row in roles(benchmark, scale).items() if row["role"] == "ingredient"}
    assert set(table.chosen) == chosen
    rows = {row[0]: row for row in paper["selection"].rows(table)}
    for row in rows.values():
        names = set(row[2].split(", "))
        added, lacking = names - chosen, chosen - names
        words = set() if row[3] == "the paper's" else set(row[3].split(", "))
        assert words == {f"adds {n}" for n in added} | {f"lacks {n}" for n in lacking}


def test_where_the_rule_and_the_paper_disagree(paper: dict[str, ModuleType]) -> None:
    big, small_, mgsm = paper["selection"].TABLES
    says = {t.title: " ".join(paper["selection"].sentences(t)) for t in (big, small_, mgsm)}
    stated = {t.title: paper["selection"].rows(t)[0] for t in (big, small_, mgsm)}
    assert stated[big.title][3] == "adds functionary-medium-v3.1"
    assert stated[small_.title][3] == "the paper's"
    assert stated[mgsm.title][2] == "MetaMathOctopus-MAPO-DPO-7B"
    assert "No threshold of any reading" in says[big.title]
    assert "above 0.037 up to 0.250" in says[small_.title]
    assert "(ES, FR, RU, TH): nothing to soup" in says[mgsm.title]
    assert "absolute, ties=all: 0.287 < threshold" in says[mgsm.title]
    assert "ties=overall:" not in says[mgsm.title]


@pytest.mark.parametrize(("sign", "ties"), [("absolute", "overall"), ("absolute", "all"), ("signed", "first")])
def test_the_pieces_cover_every_threshold(sign: str, ties: str, paper: dict[str, ModuleType]) -> None:
    module = paper["selection"]
    scores = module.TABLES[1].scores
    pieces = module.pieces(scores, sign, ties)
    assert pieces[-1][1] == 1.0
    for (_, high, names), (low, _, others) in pairwise(pieces):
        assert high == low
        assert names != others
    for low, high, names in pieces:
        for threshold in (low + 1e-6, high):
            assert module.Reading(threshold=threshold, sign=sign, ties=ties).select(scores).ingredients == names


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_command_line_selects_the_same(
    index: int, paper: dict[str, ModuleType], souping: Cli, tmp_path: Path
) -> None:
    table = paper["selection"].TABLES[index]
    words = shlex.split(table.command.replace("souping/data/paper", str(PAPER)))
    assert words[:3] == ["python", "-m", "souping"]
    done = souping(*words[3:], "hydra.run.dir=run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/selection.json").read_text())
    selection = paper["selection"].STATED.select(table.scores)
    assert found["ingredients"] == list(selection.ingredients)
    assert found["low_correlation"] == list(selection.low_correlation)


def test_the_published_weights_are_points_of_the_grid(paper: dict[str, ModuleType]) -> None:
    module = paper["weights"]
    assert module.on_grid([0.05, 0.05, 0.9]) == 0
    rows = list(csv.DictReader((PAPER / "recipes.csv").open()))
    for line in module.weights_found().rows:
        weights = [float(row["weight"]) for row in rows if row["experiment"] == line[0]]
        place, count = map(int, line[2].split(" of "))
        assert simplex.grid(len(weights))[place - 1] == pytest.approx(weights)
        assert count == len(simplex.grid(len(weights))) == 36


def test_gains_follow_from_the_totals(paper: dict[str, ModuleType]) -> None:
    found = {row[0]: row for row in paper["weights"].gains_found().rows}
    for benchmark, scale in (("bfcl_v3", "70b"), ("bfcl_v3", "8b"), ("mgsm", "7b"), ("infinitebench", "70b")):
        rows = roles(benchmark, scale)
        best = max(float(r["score"]) for r in rows.values() if r["role"] in ("ingredient", "candidate"))
        soup, uniform = float(rows["soce"]["score"]), float(rows["uniform_selected"]["score"])
        shown = found[f"{benchmark} {scale}"]
        assert shown[2] == f"{soup - best:+.2f} / {100 * (soup - best) / best:+.2f} %"
        assert shown[4] == f"{soup - uniform:+.2f} / {100 * (soup - uniform) / uniform:+.2f} %"
    assert found["bfcl_v3 70b"][4] == "+2.28 / +2.91 %"
    assert found["bfcl_v3 8b"][4] == "+2.49 / +3.36 %"


def test_printed_gains_are_matched_or_said_not_to_match(paper: dict[str, ModuleType]) -> None:
    shown = {(row[0], row[1]): row[3] for row in paper["weights"].printed_found().rows}
    assert shown["bfcl_v3 70b", "2.28 %"] == "SoCE over uniform_selected, points"
    assert shown["bfcl_v3 8b", "3.44 %"].startswith("none; the nearest is 3.36")
    assert shown["infinitebench 70b", "1.15 %"].startswith("none; the nearest is 1.49")
    assert shown["infinitebench 70b", "0.66 %"].startswith("none")
    assert "SoCE over best candidate, relative" in shown["infinitebench 70b", "2.05 %"]
    says = " ".join(paper["weights"].remarks())
    assert "average 52.24, Table 2a prints 51.7" in says
    assert "eng_spa repeats spa_eng" in says


def test_results_in_the_repository_are_current(
    paper: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (SWEEPS / "paper/results.md").read_text()
    for name in ("selection", "weights"):
        assert paper[name].main(["--markdown"]) == 0
        assert capsys.readouterr().out in page
        assert paper[name].main([]) == 0
        assert "┃" in capsys.readouterr().out


def test_no_trace_of_a_machine_or_loose_end() -> None:
    for file in SWEEPS.rglob("*"):
        if file.suffix in (".py", ".md", ".yaml", ".csv"):
            text = file.read_text()
            assert text.count("\n") <= 250
            assert "/" + "work/" not in text
            assert "TODO" not in text
