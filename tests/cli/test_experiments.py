"""Every experiment composes, and those at the paper's scale run small; sweeps/: multiruns and W&B agents."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from souping.cli.choice_files import choices, groups
from souping.core.scores import read_table
from souping.search import points as simplex
from souping.search.points import Grid
from tests.conftest import PAPER, ROOT, Cli, pool_of
from tests.support.composition import compose
from tests.support.experiments import CHOSEN, LANGUAGES, checkpoints, flores, mgsm, pool
from tests.support.scripts import script
from tests.support.wandb import log_of, of_type

FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
OPEN = ("infinitebench", "flores")
REST = {
    "merge": ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]"],
    "rebuild": ["action.recipe=r.json"],
}
REST["trajectory"] = ["pool.path=run"]
REST |= {name: ["pool.candidates=[a,b,c]"] for name in OPEN}


def composed(name: str, *more: str) -> dict[str, Any]:
    return compose([f"+experiment={name}", *REST.get(name, []), *more])


def selected(folder: Path) -> list[str]:
    found: list[str] = json.loads(next(folder.rglob("selection.json")).read_text())["ingredients"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_composes_and_passes_the_check(path: Path) -> None:
    assert composed(path.stem)["name"] == path.stem


@pytest.mark.parametrize("name", ["bfcl_8b", "bfcl_70b", "mgsm"])
def test_expected_figures_are_the_papers(name: str) -> None:
    plain = composed(name)
    with (PAPER / "results.csv").open() as stream:
        printed = {row["row"]: float(row["score"]) for row in csv.DictReader(stream)}
    names = [
        c["name"] if isinstance(c, dict) else c.rpartition("/")[2]
        for c in plain["pool"]["candidates"]
    ]
    assert plain["expected"] == {candidate: printed[candidate] for candidate in names}
    assert set(names) == set(read_table(Path(plain["scores"]["path"])).models)


OPEN_KEYS = {
    "optimiser=fixed": "optimiser.weights=[1]",
    "evaluator=command": "evaluator.command='evaluate.sh {model} {out}'",
    "evaluator=lm_eval": "evaluator.tasks=[mgsm]",
    "scores=logs": "scores.path={a: a_log, b: b_log}",
    "scores=table": "scores.path=scores.csv",
    "objective=tree": "objective.tree={all:[x]}",
    "objective=weighted": "objective.category_weights={x:1}",
    "pool=folders": "pool.candidates=[a,b]",
    "pool=trajectory": "pool.path=run",
}
SWAPPED = [group for group in groups() if group != "experiment"]


def swapped(name: str, *swaps: str) -> dict[str, Any]:
    words = [*swaps, *(OPEN_KEYS[word] for word in swaps if word in OPEN_KEYS)]
    replaced = {word.partition("=")[0] for word in swaps}
    rest = [word for word in REST.get(name, []) if word.partition(".")[0] not in replaced]
    return compose([f"+experiment={name}", *rest, *words])


def swap(group: str, number: int) -> str:
    """The override that takes a choice of a group; numbers beyond the last choice begin again."""
    choice = choices(group)[number % len(choices(group))]
    return f"analysis=[{choice}]" if group == "analysis" else f"{group}={choice}"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_experiment_takes_every_choice_of_every_group(path: Path) -> None:
    composed_groups = [group for group in SWAPPED if group in composed(path.stem)]
    for number in range(max(len(choices(group)) for group in composed_groups)):
        swapped(path.stem, *(swap(group, number) for group in composed_groups))


def test_settings_of_an_experiment_go_with_the_choice_that_they_are_for() -> None:
    assert not {"sign", "ties"} & set(swapped("mgsm", "selector=topk")["selector"])
    assert swapped("bfcl_70b", "server=vllm")["server"]["tensor_parallel_size"] == 4
    assert swapped("mgsm", "selector=soce")["selector"]["sign"] == "signed"


@pytest.mark.parametrize("name", CHOSEN)
def test_published_scores_select_without_a_weight(name: str, souping: Cli, tmp_path: Path) -> None:
    souping(f"+experiment={name}", "stop_after=select").ok()
    assert selected(tmp_path) == CHOSEN[name]


def test_flores_selects_without_the_corrupt_column(souping: Cli, tmp_path: Path) -> None:
    whole = read_table(PAPER / "flores36.csv")
    clean = read_table(PAPER / "flores36_selection.csv")
    assert set(whole.categories) - set(clean.categories) == {"eng_spa"}
    columns = [whole.categories.index(name) for name in clean.categories]
    assert (whole.values[:, columns] == clean.values).all()
    names = ",".join(f"candidate_{n}" for n in range(1, 6))
    souping(
        "+experiment=flores",
        "scores=table",
        "scores.path=${data:paper/flores36_selection.csv}",
        f"pool.candidates=[{names}]",
        "stop_after=select",
    ).ok()
    assert len(selected(tmp_path)) > 1


@pytest.mark.slow
class TestSmall:
    """On tiny checkpoints and stand-in data: the experiment's own settings, but for the machine's."""

    MACHINE = (
        "evaluator.device=cpu",
        "evaluator.threads=1",
        "evaluator.dtype=float32",
        "evaluator.batch_size=64",
    )

    @pytest.fixture(autouse=True)
    def harness(self) -> None:
        pytest.importorskip("lm_eval")

    def test_mgsm_selects_and_soups_by_language(self, souping: Cli, tmp_path: Path) -> None:
        names = [
            c["name"] if isinstance(c, dict) else c.rpartition("/")[2]
            for c in composed("mgsm")["pool"]["candidates"]
        ]
        checkpoints(tmp_path / "models", names)
        mgsm(tmp_path / "tasks", 12)
        words = [
            "+experiment=mgsm",
            pool(tmp_path / "models", names),
            f"evaluator.include_path={tmp_path / 'tasks'}",
        ]
        words += [*self.MACHINE, "evaluator.gen_kwargs={max_gen_toks: 3}"]
        stopped = souping(*words)
        stopped.refused("not as expected on the search split")  # stand-ins are no mathematicians
        souping(*words, "expected_mismatch=warn", "optimiser.max_trials=3").ok()
        report = json.loads(next(tmp_path.rglob("report.json")).read_text())
        assert report["selection"]["ingredients"] == CHOSEN["mgsm"]
        assert list(report["objective"]["coefficients"]) == [
            f"mgsm_native_cot_{language}" for language in LANGUAGES
        ]
        assert sum(report["splits"].values()) == 120
        assert report["splits"]["select"] == 0  # published scores select
        assert {row["name"] for row in report["rows"]} >= {*names, "soup"}

    def test_flores_has_the_directions_of_the_paper(
        self, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("sacrebleu")
        names = ("ant", "bee", "cat")
        checkpoints(tmp_path / "models", names, max_position_embeddings=512)
        monkeypatch.setenv("FLORES_DIR", str(flores(tmp_path / "flores", 8)))
        souping(
            "+experiment=flores",
            pool(tmp_path / "models", names),
            *self.MACHINE,
            "evaluator.num_fewshot=1",
            "evaluator.gen_kwargs={max_gen_toks: 8}",
            "evaluator.metric=bleu",
            "selector=all",
            "optimiser.max_trials=2",
        ).ok()
        report = json.loads(next(tmp_path.rglob("report.json")).read_text())
        directions = {f"flores36_{name}" for name in read_table(PAPER / "flores36.csv").categories}
        assert set(report["objective"]["coefficients"]) == directions
        assert sum(report["splits"].values()) == 36 * 8


SWEEPS = ROOT / "sweeps"
AGENTS = sorted(SWEEPS.glob("wandb_*.yaml"))


@pytest.fixture
def weight_grid() -> ModuleType:
    return script(SWEEPS / "weight_grid.py")


def read(file: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(file.read_text())
    return sweep


def draws(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """As few draws as hold every choice of every parameter once; of a range, its ends."""
    options = {name: values_of(parameter) for name, parameter in sweep["parameters"].items()}
    drawn = []
    for number in range(max(map(len, options.values()))):
        draw = {name: values[number % len(values)] for name, values in options.items()}
        drawn.append(draw)
    return drawn


def values_of(parameter: dict[str, Any]) -> list[Any]:
    """The values that a parameter of a sweep may have; of a range, its ends."""
    if "values" in parameter:
        return list(parameter["values"])
    if "value" in parameter:
        return [parameter["value"]]
    return [parameter["min"], parameter["max"]]


def agent_line(sweep: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    macros = {
        "${env}": ["/usr/bin/env"],
        "${args_no_hyphens}": [f"{key}={value}" for key, value in drawn.items()],
    }
    return [word for part in sweep["command"] for word in macros.get(part, [part])]


@pytest.mark.parametrize("file", AGENTS, ids=lambda f: f.stem)
def test_every_choice_of_a_wandb_sweep_composes_and_builds(file: Path) -> None:
    sweep = read(file)
    lines = [agent_line(sweep, drawn) for drawn in draws(sweep)]
    # a long list differs in weights alone
    for line in lines if len(lines) < 10 else [*lines[:3], lines[-1]]:
        plain = compose(line[4:])
        assert plain["stop_after"] == "search"
        assert plain["tracker"]["_target_"].endswith("WandbTracker")


def small(line: list[str], family: Path) -> list[str]:
    return [*line, *pool_of(family), "hydra.run.dir=run"]


@pytest.mark.parametrize(("name", "draw"), [("wandb_grid", 1), ("wandb_weights", 7)])
@pytest.mark.slow
def test_an_agents_line_runs_and_logs_the_metric(
    name: str,
    draw: int,
    family: Path,
    souping: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep = read(SWEEPS / f"{name}.yaml")
    line = small(agent_line(sweep, draws(sweep)[draw]), family)
    limit = ["optimiser.max_trials=8"] if name == "wandb_grid" else []
    souping(*line[4:], *limit).ok()
    trials = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    best = max(float(trial["objective"]) for trial in trials)
    points = [one["item"] for one in of_type(log_of(tmp_path / "run"), "history")]
    assert points[-1][sweep["metric"]["name"]] == pytest.approx(best)
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.slow
def test_a_multirun_finds_what_the_search_finds(
    family: Path, souping: Cli, tmp_path: Path, weight_grid: ModuleType
) -> None:
    words = weight_grid.command(
        2, Grid().known_points(2), [*pool_of(family), "hydra.sweep.dir=sweep"]
    )
    souping(*words[3:]).ok()
    rows = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    assert len(rows) == 9 + 2
    one = [
        "+experiment=bfcl",
        "selector=topk",
        "selector.k=2",
        "optimiser=grid",
        "stop_after=search",
    ]
    one += ["hydra.run.dir=one"]
    souping(*one, *pool_of(family)).ok()
    trials = list(csv.DictReader((tmp_path / "one/trials.csv").open()))
    assert [float(row["objective"]) for row in rows] == [
        float(trial["objective"]) for trial in trials
    ]
    assert {trial["reused"] for trial in trials} == {trials[0]["items"]}


def test_the_files_are_what_the_script_writes(
    weight_grid: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, file in (
        ("hydra", SWEEPS / "conf/sweep/weight_grid.yaml"),
        ("wandb", SWEEPS / "wandb_weights.yaml"),
    ):
        assert weight_grid.main(["3", "--form", form]) == 0
        assert capsys.readouterr().out == file.read_text()
    listed = read(SWEEPS / "wandb_weights.yaml")["parameters"]["optimiser.weights"]["values"]
    expected = {*simplex.weight_grid(3), *simplex.vertices(3), simplex.uniform(3)}
    assert {tuple(point) for point in listed} == expected
    assert len(listed) == 40
