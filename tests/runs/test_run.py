"""Whole runs on a tiny family: what they leave, repeat, resume, sweep and run dry; what finished runs show and add."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Candidate
from souping.evaluate.benchmark import Benchmark, limit_splits, make_splits
from souping.merge.local import LocalMerge
from souping.runs.settings import RunSettings
from souping.runs.state import MIXED_ROWS
from tests.conftest import Cli, finished_words, make_items, pool_of, report_of
from tests.support.processes import killed_at, timeless

OUTPUTS = (
    "config.yaml",
    "selection.json",
    "trials.csv",
    "router.json",
    "report.json",
    "report.md",
    "report.html",
)


def run_dir(where: Path, number: int = -1) -> Path:
    return sorted(p.parent for p in where.glob("outputs/fam/**/config.yaml"))[number]


def test_a_run_leaves_its_files_rows_and_warnings(finished: Path) -> None:
    one = finished / "run"
    assert all((one / name).exists() for name in OUTPUTS)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        p.name for p in (one / "soup").iterdir()
    }
    report = report_of(one)
    kinds = {
        "ingredient",
        "best_candidate",
        "uniform_all",
        "uniform_selected",
        "uniform_topk",
        "soup",
    }
    assert {row["kind"] for row in report["rows"]} >= kinds
    assert report["splits"].keys() == {"select", "search", "test"}
    assert sum(report["splits"].values()) == 180
    assert report["cost"]["trials"] == len(list(csv.DictReader((one / "trials.csv").open())))
    assert "run/report.html" in (finished / "terminal.txt").read_text()
    few = "correlations over 4 models are largely chance"
    assert all(
        few in (one / name).read_text() for name in ("run.log", "selection.json", "report.html")
    )
    assert report["verdict"]["sentence"].split(":")[0] in (one / "soup" / "README.md").read_text()


def test_a_second_run_evaluates_nothing_and_leaves_the_same_files(
    finished_copy: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    one = finished_copy
    souping(*finished_words(family), "hydra.run.dir=again").ok()
    two = tmp_path / "again"
    assert report_of(two)["cost"]["evaluated_items"] == 0
    assert timeless(report_of(two)) == timeless(report_of(one))
    assert (two / "samples.jsonl.gz").read_bytes() == (one / "samples.jsonl.gz").read_bytes()
    # The card names its folder.
    for file in (path for path in (one / "soup").iterdir() if path.name != "README.md"):
        assert file.read_bytes() == (two / "soup" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_two_runs_from_an_empty_store_are_equal(
    finished: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    souping(*finished_words(family), "hydra.run.dir=run").ok()
    a = finished / "run"
    b = tmp_path / "run"
    assert report_of(a)["cost"]["evaluated_items"] == report_of(b)["cost"]["evaluated_items"] > 0
    assert timeless(report_of(a)) == timeless(report_of(b))
    assert (a / "trials.csv").read_bytes() == (b / "trials.csv").read_bytes()
    for file in (a / "soup").iterdir():
        # The card's code names its own folder.
        data = file.read_bytes().replace(str(finished).encode(), str(tmp_path).encode())
        assert data == (b / "soup" / file.name).read_bytes()


def test_the_soup_on_disk_scores_as_poured(
    finished: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    loaded = next(r for r in report_of(finished / "run")["rows"] if r["kind"] == "soup")
    shutil.copytree(finished / "run/soup", tmp_path / "best")
    pool = [f"pool.candidates=[{tmp_path / 'best'},{family / 'ant'}]", *pool_of(family)[1:]]
    by_tensor = "merge.tensor_weights={*.mlp.*:[0.4,0.6]}"
    souping(*pool, "selector=all", "optimiser=uniform", by_tensor, "hydra.run.dir=written").ok()
    # Such a soup is no plain average of its candidates.
    (unchecked,) = report_of(tmp_path / "written")["cost"]["unchecked_weights"]
    for name in ("run.log", "report.md", "report.html"):
        assert unchecked in (tmp_path / "written" / name).read_text()
    written = next(r for r in report_of(tmp_path / "written")["rows"] if r["name"] == "best")
    assert written["scores"] == loaded["scores"]


def test_a_run_that_stops_early_writes_only_its_steps(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    left = ["config.yaml", "run.log", "samples.jsonl.gz", "selection.json"]
    for stop, more in {"select": [], "search": ["recipe.json", "trials.csv"]}.items():
        souping(
            *pool_of(family), "selector=topk", f"stop_after={stop}", f"hydra.run.dir={stop}"
        ).ok()
        assert sorted(path.name for path in (tmp_path / stop).iterdir()) == sorted(left + more)
        assert f"split {stop}" in souping("show", stop, "--split", stop, "-n", "1").out
        assert souping("show", stop, "--split", "test").out.strip() == "0 items"
        souping("analyse", stop).refused(f"{stop} has no report.json")


@pytest.mark.slow
def test_one_expert_for_everything_is_an_answer(family: Path, souping: Cli, tmp_path: Path) -> None:
    rows = ["model,red,green,blue", "ant,80,81,82", "bee,50,40,30", "cat,40,55,41", "dog,20,50,45"]
    (tmp_path / "board.csv").write_text("\n".join(rows))
    done = souping(
        *pool_of(family), "scores=table", "scores.path=board.csv", "selector.threshold=1.0"
    ).ok()
    report = report_of(run_dir(tmp_path))
    assert report["verdict"]["claim"] == "nothing_to_soup"
    assert report["recipe"]["ingredients"] == ["ant"]
    assert not (run_dir(tmp_path) / "soup").exists()
    assert "nothing to soup" in done.out + done.out + done.err


@pytest.mark.slow
def test_a_list_of_weights_sweeps(family: Path, souping: Cli, tmp_path: Path) -> None:
    pool = [*pool_of(family), "selector=topk", "selector.k=2", "hydra.sweep.dir=sweep"]
    words = ["optimiser=fixed", "optimiser.weights=[0.3,0.7],[0.6,0.4]", "stop_after=search"]
    souping("-m", *pool, *words).ok()
    recipes = [json.loads((tmp_path / f"sweep/{i}/recipe.json").read_text()) for i in (0, 1)]
    assert [recipe["weights"] for recipe in recipes] == [[0.3, 0.7], [0.6, 0.4]]


@pytest.mark.slow
def test_a_tracked_multirun_is_a_group(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.wandb import log_of, of_type

    monkeypatch.setenv("WANDB_MODE", "offline")
    pool = [*pool_of(family), "selector=topk", "selector.k=2", "hydra.sweep.dir=sweep"]
    words = ["optimiser=uniform", "stop_after=search", "seed=0,1"]
    souping("-m", *pool, "tracker=wandb", *words).ok()
    folders = [tmp_path / "sweep" / name for name in ("0", "1", "")]
    runs = []
    for folder in folders:
        runs += of_type(log_of(folder), "run")
    assert [run["run_group"] for run in runs] == ["sweep"] * 3
    assert runs[2]["job_type"] == "summary"


def call(family: Path, *more: str) -> list[str]:
    """Words of a run that searches three of the four candidates."""
    quick = [
        "selector=topk",
        "selector.k=3",
        "optimiser=adaptive",
        "optimiser.early_stopping=false",
        "evaluator.batch_size=8",
    ]
    return [*pool_of(family), *quick, *more]


def twice(store: Path) -> int:
    query = (
        "SELECT 1 FROM answers GROUP BY soup, evaluator, item, block, replicate HAVING COUNT(*) > 1"
    )
    with closing(sqlite3.connect(store)) as db:
        return len(db.execute(query).fetchall())


@pytest.mark.parametrize("rows", [20, 150, 420])
@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(
    family: Path, souping: Cli, tmp_path: Path, rows: int
) -> None:
    words = call(family, "optimiser.max_items=500")
    kept = killed_at(rows, words, tmp_path)
    souping(*words, "hydra.run.dir=outputs/resumed").ok()
    souping(*words, "store=fresh.sqlite", "hydra.run.dir=outputs/fresh").ok()
    resumed = report_of(tmp_path / "outputs/resumed")
    fresh = report_of(tmp_path / "outputs/fresh")
    # in a command
    named = json.dumps(timeless(resumed)).replace("outputs/resumed", "outputs/fresh")
    assert json.loads(named) == timeless(fresh)
    assert twice(tmp_path / "outputs/store.sqlite") == 0
    assert fresh["cost"]["evaluated_items"] - resumed["cost"]["evaluated_items"] == kept


def test_the_order_of_the_pool_changes_no_answer(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    """The first candidate's generation_config used to decode every model."""
    folders = [shutil.copytree(family / "ant", tmp_path / "ant"), family / "bee"]
    config = tmp_path / "ant" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 1.9}))
    joined = "scores JOIN soups ON soups.id = soup JOIN items ON items.id = item"
    answers = []
    for number, order in enumerate((folders, folders[::-1])):
        search = (
            "selector=all",
            "optimiser=uniform",
            "stop_after=search",
            f"store={number}.sqlite",
        )
        done = souping(
            *pool_of(family)[1:], f"pool.candidates=[{','.join(map(str, order))}]", *search
        ).ok()
        assert "ant: its generation_config sets repetition_penalty=1.9; not used" in done.out
        with closing(sqlite3.connect(tmp_path / f"{number}.sqlite")) as db:
            rows = db.execute(
                f"SELECT soups.fingerprint, items.fingerprint, output FROM {joined}"
            ).fetchall()
        answers.append({row[:2]: row[2] for row in rows})
    common = answers[0].keys() & answers[1].keys()
    assert len(common) > 30
    assert all(answers[0][key] == answers[1][key] for key in common)


FIXED = ("selector=all", "optimiser=fixed", "optimiser.weights=[0.5,0.5]")


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 10**6])
def test_no_item_of_the_report_split_is_touched(two: bool, limit: int) -> None:
    whole = make_splits(make_items(60), two=two)
    dry = limit_splits(whole, limit)
    hidden = {item.id for item in whole.items["test"]}
    for split, items in dry.items.items():
        assert not hidden & {item.id for item in items}
        assert max(Counter(item.category for item in items).values(), default=0) <= limit
        assert {item.category for item in items} == (
            {"w", "x"} if split != "select" or not two else set()
        )
    assert "the test split stays closed" in dry.notes[0]


@pytest.fixture
def arguments(family: Path) -> list[str]:
    return [*pool_of(family, "ant", "bee"), *FIXED, "dry_run=2", "hydra.run.dir=run"]


def test_a_dry_run_is_marked_everywhere(
    family: Path, arguments: list[str], souping: Cli, tmp_path: Path
) -> None:
    splits = {"select": 6, "search": 6, "test": 6}
    souping("plan", *arguments).ok()
    assert json.loads(next(tmp_path.glob("outputs/*/plan_*.json")).read_text())["splits"] == splits
    souping(*arguments, "upload=me/soup").refused("dry_run=2 is a dry run", "leave upload out")
    done = souping(*arguments, f"extra_benchmarks=[{family / 'items.jsonl'}]").ok()
    assert "dry_run=2: a dry run" in done.out + done.err
    report = report_of(tmp_path / "run")
    assert (report["dry_run"], report["verdict"]["claim"], report["splits"]) == (
        2,
        "dry_run",
        splits,
    )
    assert report["extra_benchmarks"][0]["items"] == 6
    assert any("dry_run=2" in warning for warning in report["warnings"])
    assert json.loads((tmp_path / "run/selection.json").read_text())["dry_run"] == 2
    page = (tmp_path / "run/report.html").read_text()
    card = (tmp_path / "run/soup/README.md").read_text()
    assert "dry_run=2" in page
    assert "%" not in card.split("---", 2)[2].split("## Usage")[0].split("## Result")[1]
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        # that of the extra benchmark, whose items may be anybody's test items
        assert db.execute("SELECT COUNT(*) FROM counted_looks").fetchone() == (1,)


def test_a_dry_run_is_no_look(
    family: Path, arguments: list[str], souping: Cli, tmp_path: Path
) -> None:
    souping(*arguments).ok()
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        asked = {name for (name,) in db.execute("SELECT name FROM items")}
    hidden = make_splits(Benchmark(path=str(family / "items.jsonl")).items()).items["test"]
    assert asked
    assert not {item.id for item in hidden} & asked
    souping(*pool_of(family, "ant", "bee"), *FIXED, "hydra.run.dir=whole").ok()
    report = report_of(tmp_path / "whole")
    assert report["verdict"]["look"] == 1
    assert not {"dry_run", "left_out"} & {*report, *report["splits"]}


KEYS = {"doc_id", "doc", "target", "arguments", "doc_hash", "prompt_hash", "target_hash"}
"""Of a line that lm_eval's --log_samples writes, what this one has too; resps stand inside its models."""


def lines(run_dir: Path) -> list[dict[str, Any]]:
    with gzip.open(run_dir / "samples.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_every_item_is_there_with_its_answers(family: Path, finished: Path) -> None:
    run = finished / "run"
    report = json.loads((run / "report.json").read_text())
    samples = lines(run)
    counts = Counter(sample["split"] for sample in samples)
    assert counts == report["splits"]
    items = {item.id: item for item in Benchmark(path=str(family / "items.jsonl")).items()}
    for sample in samples:
        item = items[sample["item"]]
        assert sample.keys() >= KEYS
        assert len(sample["scorer_hash"]) == 64
        found = (sample["category"], sample["target"], sample["arguments"])
        assert found == (item.category, item.answer, [[item.prompt, {}]])
        for model in sample["models"].values():
            assert len(model["sent_hash"]) == 64
            assert model["resps"] == [model["filtered_resps"]]
            assert model["outcome"] in ("finished", "truncated")
            assert model["score"] == float(
                model["filtered_resps"][0].split() == str(item.answer).split()
            )
    names = {row["name"] for row in report["rows"]}
    assert set(samples[-1]["models"]) == names >= {"soup", "ant", "bee", "uniform_all"}
    for row in report["rows"]:
        scores = [
            sample["models"][row["name"]]["score"]
            for sample in samples
            if sample["split"] == "test"
        ]
        assert sum(scores) == pytest.approx(
            sum(cell["mean"] * cell["n"] for cell in row["scores"].values())
        )


@pytest.mark.slow
def test_items_that_the_soup_fixed_or_broke_are_shown(
    souping: Cli, family: Path, tmp_path: Path
) -> None:
    souping(
        *pool_of(family), "selector=topk", "selector.k=2", "optimiser=uniform", "hydra.run.dir=run"
    ).ok()
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    (best,) = [row["name"] for row in report["rows"] if row["kind"] == "best_candidate"]
    gaps = {
        sample["item"]: sample["models"]["soup"]["score"] - sample["models"][best]["score"]
        for sample in lines(run)
        if sample["split"] == "test"
    }
    for flag, sign in (("--fixed", 1), ("--broke", -1)):
        said = souping("show", "run", flag, "-n", "1000").out
        wanted = {name for name, gap in gaps.items() if gap * sign > 0}
        assert wanted
        assert {name for name in gaps if f"{name} (" in said} == wanted
        assert (
            f"{len(wanted)} items that soup answers {'better' if sign > 0 else 'worse'} than {best}"
            in said
        )


def test_a_category_and_its_prompt_reference_and_answers(souping: Cli, finished_copy: Path) -> None:
    said = souping("show", "run", "--category", "green", "-n", "2").out
    assert said.count("(green, split test)") == 2
    assert "prompt: green " in said
    assert "reference: " in said
    assert "soup: " in said
    souping("show", "run", "--category", "gren").refused("did you mean green?")
    souping("show", "run", "--models", "soup,cow").refused("--models=cow", "uniform_all")
    souping("show", "run", "--item", "cow").refused("--item=cow")
    item = said.split(" (green")[0].split()[-1]
    souping("show", "run", "--item", item, "--category", "red").refused(
        "--category=red is not one of green"
    )
    souping("show", "outputs").refused("no samples.jsonl.gz")


def test_answers_that_were_shown_are_noted_in_the_store(
    family: Path, souping: Cli, finished_copy: Path, tmp_path: Path
) -> None:
    def views() -> list[tuple[str, int]]:
        query = "SELECT recipe, COUNT(*) FROM views JOIN members USING (item_set) GROUP BY recipe"
        with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
            return db.execute(query).fetchall()

    recipe = json.loads((finished_copy / "report.json").read_text())["recipe"]["id"]
    souping("show", "run", "--split", "search")
    assert views() == []
    souping("show", "run", "--category", "red", "-n", "3")
    assert views() == [(recipe, 3)]
    souping("show", "run", "--category", "red", "-n", "1000")
    with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
        (count,) = db.execute(
            "SELECT COUNT(DISTINCT content) FROM views JOIN members USING (item_set)"
        ).fetchone()
    assert count > 3
    again = souping(*finished_words(family), "analysis=[]", "hydra.run.dir=again/two")
    assert "were looked at" not in again.out  # frozen before
    other = souping(
        *pool_of(family), "selector=all", "optimiser=uniform", "hydra.run.dir=again/three"
    )
    assert f"answers to {count} of" in other.out
    report = json.loads((tmp_path / "again/three/report.json").read_text())
    assert any("were looked at" in warning for warning in report["warnings"])


FREE = {"category_wins", "consistency", "item_wins", "surface"}
OWN = """
from collections.abc import Mapping
from dataclasses import dataclass

from souping.analysis import Analysis, RunScores
from souping.core.types import Json


@dataclass(frozen=True, kw_only=True)
class Count(Analysis):
    gives: str

    def analyse(self, run: RunScores) -> Mapping[str, Json]:
        if self.gives == "error":
            return {"share": 1 / 0}
        sentences = {"sentences": [f"{len(run.test)} models were tested."]}
        wide = {"tables": [{"header": ["a"], "rows": [[1, 2]]}]}
        return {"count": sentences, "none": None, "number": {"sentences": 5}, "wide": wide}[self.gives]
"""


def analyses_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())["analyses"]
    return found


def counts(tmp_path: Path) -> tuple[int, int]:
    """(answers, counted looks) in the store."""
    with closing(sqlite3.connect(tmp_path / "outputs" / "store.sqlite")) as db:
        (answers,) = db.execute("SELECT count(*) FROM answers").fetchone()
        (looks,) = db.execute("SELECT count(*) FROM counted_looks").fetchone()
    return answers, looks


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_same_analyses_are_made_again(
    finished_copy: Path, souping: Cli, tmp_path: Path
) -> None:
    first = analyses_of(finished_copy)
    before = counts(tmp_path)
    soup = contents(finished_copy / "soup")
    assert set(first) == FREE
    report = json.loads((finished_copy / "report.json").read_text())
    others = contents(finished_copy)
    done = souping("analyse", "run").ok()
    assert "report.json" in done.out
    assert analyses_of(finished_copy) == first
    assert "not_estimable" not in first["surface"]  # answers to parts of the split are found again
    assert counts(tmp_path) == before
    assert json.loads((finished_copy / "report.json").read_text()) == report
    assert contents(finished_copy / "soup") == soup
    after = contents(finished_copy)
    # order of tables
    assert {name for name in others if after[name] != others[name]} <= {"report.html", "report.md"}


@pytest.mark.slow
def test_shapley_is_relative_to_a_candidate_that_is_the_base(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = [*pool_of(family), "selector=topk", "selector.k=2", "analysis=[shapley]"]
    words += ["optimiser=uniform", f"merge.base_model={family / 'cat'}"]
    souping(*words, "hydra.run.dir=run").ok()
    values = analyses_of(tmp_path / "run")["shapley"]
    assert values["baseline"] == "cat"
    total = sum(player["value"] for player in values["levels"][0]["models"])
    assert total == pytest.approx(values["whole"] - values["baseline_score"])


def test_a_base_outside_the_pool_is_not_evaluated_for_shapley_and_the_plan_says_so(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    words = [*pool_of(family, "ant", "bee"), "analysis=[shapley]", "selector=all"]
    plans = {}
    for name, base in (("without", None), ("outside", "cat"), ("inside", "bee")):
        setting = [f"merge.base_model={family / base}"] if base else []
        souping("plan", *words, *setting, f"name={name}").ok()
        plans[name] = json.loads(next(tmp_path.glob(f"outputs/{name}/plan_*.json")).read_text())
    notes = {}
    for name, plan in plans.items():
        notes[name] = [note for note in plan["notes"] if "merge.base_model" in note]
    assert [len(notes[name]) for name in plans] == [0, 1, 0]
    assert "relative to the mean" in notes["outside"][0]
    assert plans["outside"]["evaluations"] == plans["without"]["evaluations"]


def test_a_candidate_is_the_base_by_its_name_its_folder_or_its_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to("models")
    here = Candidate(name="here", path=tmp_path / "models")
    fetched = Candidate(name="hub", path=tmp_path / "cache", source="org/base@abc")
    for base, name in (
        ("here", "here"),
        ("./link", "here"),
        (str(tmp_path / "models"), "here"),
        ("org/base", "hub"),
        ("org/base@abc", "hub"),
        ("org/bas", None),
        (None, None),
    ):
        settings: Any = SimpleNamespace(merge=LocalMerge(base_model=base))
        assert RunSettings.base_candidate(settings, (here, fetched)) == name, base


def test_a_candidate_cannot_have_the_name_of_a_mixed_row(
    finished: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    names = {row["name"] for row in report_of(finished / "run")["rows"]}
    mixed = names - {"ant", "bee", "cat", "dog", "router"}
    assert {"soup", "uniform_all"} <= mixed <= set(MIXED_ROWS)
    words = [word for word in pool_of(family) if not word.startswith("pool.")]
    for name in ("soup", "uniform_all"):
        pool = f"pool.candidates=[{{name: {name}, path: {family / 'ant'}}}, {family / 'bee'}]"
        souping(*words, pool).refused("pool.candidates", name)
        assert not list(tmp_path.rglob("selection.json"))
        souping("plan", *words, pool).refused("pool.candidates", name)


@pytest.mark.slow
def test_shapley_is_planned_then_evaluated_then_kept(
    finished_copy: Path, souping: Cli, tmp_path: Path
) -> None:
    before = counts(tmp_path)
    report = json.loads((finished_copy / "report.json").read_text())
    ingredients = report["selection"]["ingredients"]
    items = report["splits"]["search"]
    files = contents(finished_copy)
    planned = souping("plan", "analyse", "run", "analysis=shapley").ok()
    assert (counts(tmp_path), contents(finished_copy)) == (before, files)
    soups = 2 ** len(ingredients) - 1
    (cost,) = re.findall(
        rf"of {soups} soups .* the {items} items .*: ([\d,]+) answers", planned.out + planned.err
    )
    souping("analyse", "run", "analysis=shapley", "analysis.shapley.max_models=4").ok()
    made = analyses_of(finished_copy)
    assert set(made) == {*FREE, "shapley"}  # what was there stays
    new = counts(tmp_path)[0] - before[0]
    assert new == int(cost.replace(",", ""))
    assert counts(tmp_path)[1] == before[1]
    assert 0 < new <= 4 * items
    assert (finished_copy / "plots" / "shapley.png").is_file()
    again = souping("analyse", "run", "analysis=shapley")
    assert "search split: 0 answers" in again.out + again.err
    assert analyses_of(finished_copy) == made


def test_an_analysis_of_the_users_is_shown_and_never_ends_a_run(
    finished_copy: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_count.py").write_text(OWN)
    (tmp_path / "parts" / "analysis").mkdir(parents=True)
    odd = ("none", "wide", "number")
    for name in ("count", "error", *odd):
        node = f"# @package analysis.{name}\n_target_: my_count.Count\ngives: '{name}'\n"
        (tmp_path / "parts" / "analysis" / f"{name}.yaml").write_text(node)
    names = ",".join(("count", "error", *odd, "item_wins"))
    souping("analyse", "run", "--config-dir", "parts", f"analysis=[{names}]").ok()
    assert "models were tested." in (finished_copy / "report.html").read_text()
    made = analyses_of(finished_copy)
    assert made["error"]["failed"].startswith("ZeroDivisionError")
    assert "my_count.py" in (finished_copy / "report.md").read_text()
    for word in odd:
        assert re.search(r"my_count.Count \(.*my_count.py:\d+\) must give", made[word]["failed"])


def test_refusals_leave_the_report_as_it_is(
    finished_copy: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    report = (finished_copy / "report.json").read_bytes()
    lines = (family / "items.jsonl").read_text().splitlines(keepends=True)
    other = json.dumps({**json.loads(lines[0]), "answer": "another"}) + "\n"
    (tmp_path / "fewer.jsonl").write_text("".join(lines[: len(lines) * 3 // 4]))
    (tmp_path / "other.jsonl").write_text("".join([other, *lines[1:]]))
    for words, needles in (
        (("nowhere",), ("nowhere", "souping list")),
        (("run", "analysis=[item_winz]"), ("analysis=item_winz", "did you mean item_wins")),
        (
            ("run", "analysis=shapley", "analysis.shapley.max_models=yes"),
            ("analysis.shapley.max_models", "an integer"),
        ),
        (("run", "-m", "seed=1,2"), ("-m",)),
        (("run", "store=none.sqlite"), ("store=none.sqlite",)),
        (("run", "analysis=shapley", "analysis.shapley.max_models=13"), ("max_models",)),
        (("run", "merge.dtype=float16"), ("merge settings",)),
        (("run", "benchmark.path=fewer.jsonl"), ("the items are not those of the run",)),
        (("run", "benchmark.path=other.jsonl"), ("the items are not those of the run",)),
    ):
        souping("analyse", *words).refused(*needles)
        assert (finished_copy / "report.json").read_bytes() == report, words
