"""Whole runs on a tiny family: what they leave, that they repeat, resume, stop early and sweep."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from souping.cli.job import CLAIM, claim
from tests.conftest import PAPER, ROOT, Cli, finished_words, pool_of

OUTPUTS = ("config.yaml", "selection.json", "trials.csv", "report.json", "report.md", "report.html")
KINDS = {"ingredient", "candidate", "best_single", "uniform_all", "uniform_selected", "uniform_topk", "soup"}


def run_dir(where: Path, number: int = -1) -> Path:
    return sorted(p.parent for p in where.glob("outputs/fam/**/config.yaml"))[number]


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("cost", "rebuild")}


def test_a_run_leaves_everything_and_a_second_evaluates_nothing(
    finished_copy: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    one, said = finished_copy, (tmp_path / "terminal.txt").read_text()
    assert all((one / name).exists() for name in OUTPUTS)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        p.name for p in (one / "soup").iterdir()
    }
    report = report_of(one)
    assert {row["kind"] for row in report["rows"]} >= KINDS - {"candidate"}
    assert report["folds"].keys() == {"select", "search", "report"}
    assert sum(report["folds"].values()) == 180
    assert report["cost"]["trials"] == len(list(csv.DictReader((one / "trials.csv").open())))
    assert "run/report.html" in said
    few = "correlations over 4 models are largely chance"
    assert few in (one / "run.log").read_text()
    assert any(few in note for note in json.loads((one / "selection.json").read_text())["notes"])
    assert few not in (one / "report.html").read_text().split("<section>")[0]
    assert few in (one / "report.html").read_text()
    assert report["verdict"]["sentence"].split(":")[0] in (one / "soup" / "README.md").read_text()

    again = souping(*finished_words(family), "hydra.run.dir=again")
    assert again.code == 0, again.err
    two = tmp_path / "again"
    assert report_of(two)["cost"]["evaluated_items"] == 0
    assert timeless(report_of(two)) == timeless(report)
    assert (two / "samples.jsonl.gz").read_bytes() == (one / "samples.jsonl.gz").read_bytes()
    for file in (path for path in (one / "soup").iterdir() if path.name != "README.md"):  # it names its folder
        assert file.read_bytes() == (two / "soup" / file.name).read_bytes(), file.name


def test_two_runs_from_an_empty_store_are_equal(finished: Path, family: Path, souping: Cli, tmp_path: Path) -> None:
    done = souping(*finished_words(family), "hydra.run.dir=run")
    assert done.code == 0, done.err
    a, b = finished / "run", tmp_path / "run"
    assert report_of(a)["cost"]["evaluated_items"] == report_of(b)["cost"]["evaluated_items"] > 0
    assert timeless(report_of(a)) == timeless(report_of(b))
    assert (a / "trials.csv").read_bytes() == (b / "trials.csv").read_bytes()
    for file in (a / "soup").iterdir():
        assert file.read_bytes() == (b / "soup" / file.name).read_bytes()


def test_the_soup_on_disk_says_what_the_search_heard(
    finished: Path, family: Path, souping: Cli, tmp_path: Path
) -> None:
    """The written folder, evaluated as a candidate, has the very scores of the soup that was poured."""
    poured = next(r for r in report_of(finished / "run")["rows"] if r["kind"] == "soup")
    shutil.copytree(finished / "run/soup", tmp_path / "best")
    pool = [f"pool.candidates=[{tmp_path / 'best'},{family / 'ant'}]", *pool_of(family)[1:]]
    done = souping(*pool, "selector=all", "optimiser=uniform", "hydra.run.dir=written")
    assert done.code == 0, done.err
    written = next(r for r in report_of(tmp_path / "written")["rows"] if r["name"] == "best")
    assert written["scores"] == poured["scores"]


def test_stop_after(family: Path, souping: Cli, tmp_path: Path) -> None:
    assert souping(*pool_of(family), "selector=topk", "stop_after=select", "hydra.run.dir=outputs/fam/1").code == 0
    one = tmp_path / "outputs/fam/1"
    assert sorted(p.name for p in one.iterdir()) == ["config.yaml", "run.log", "samples.jsonl.gz", "selection.json"]
    assert souping(*pool_of(family), "selector=topk", "stop_after=search", "hydra.run.dir=outputs/fam/2").code == 0
    two = tmp_path / "outputs/fam/2"
    names = ["config.yaml", "recipe.json", "run.log", "samples.jsonl.gz", "selection.json", "trials.csv"]
    assert sorted(p.name for p in two.iterdir()) == names


def test_a_table_selects_without_weights(souping: Cli, tmp_path: Path) -> None:
    names = "xLAM-2-8b-fc-r,ToolACE-2-8B,watt-tool-8B,BitAgent-8B,CoALM-8B"
    table = ["scores=table", f"scores.path={PAPER / 'bfcl_8b.csv'}", "stop_after=select", "name=fam"]
    done = souping(f"pool.candidates=[{names}]", *table)
    assert done.code == 0, done.err
    found = json.loads((run_dir(tmp_path) / "selection.json").read_text())
    assert found["ingredients"] == ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"]
    assert set(found) >= {"ingredients", "experts", "low_correlation", "metric", "threshold", "correlation"}
    assert len(found["correlation"]["matrix"]) == len(found["correlation"]["categories"]) == 14
    souping("pool.candidates=[xLAM-2-8b-fc-r,watt-tool-9B]", *table).refused("watt-tool-9B", "watt-tool-8B")


def test_published_scores_select_and_the_report_says_so(family: Path, souping: Cli, tmp_path: Path) -> None:
    rows = ["model,red,green", "ant,80,10", "bee,50,40", "cat,40,55", "dog,20,50", "elk,60,30", "fox,70,65"]
    (tmp_path / "board.csv").write_text("\n".join(rows))
    done = souping(*pool_of(family), "scores=table", "scores.path=board.csv", "selector.threshold=1.0")
    assert done.code == 0, done.err
    report = report_of(run_dir(tmp_path))
    assert report["selection"]["ingredients"] == ["ant", "cat"]
    assert report["folds"]["select"] == 0
    assert any("published" in warning for warning in report["warnings"])


def test_one_expert_for_everything_is_an_answer(family: Path, souping: Cli, tmp_path: Path) -> None:
    rows = ["model,red,green,blue", "ant,80,81,82", "bee,50,40,30", "cat,40,55,41", "dog,20,50,45"]
    (tmp_path / "board.csv").write_text("\n".join(rows))
    done = souping(*pool_of(family), "scores=table", "scores.path=board.csv", "selector.threshold=1.0")
    assert done.code == 0, done.err
    report = report_of(run_dir(tmp_path))
    assert report["verdict"]["claim"] == "nothing_to_soup"
    assert report["recipe"]["ingredients"] == ["ant"]
    assert not (run_dir(tmp_path) / "soup").exists()
    assert "nothing to soup" in done.out + done.out + done.err


@pytest.mark.slow
def test_a_multirun_shares_the_store_and_returns_objectives(family: Path, souping: Cli, tmp_path: Path) -> None:
    pool = [*pool_of(family), "selector=topk", "selector.k=2", "hydra.sweep.dir=outputs/fam/sweep"]
    done = souping("-m", *pool, "optimiser=grid", "seed=0,1")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "outputs/fam/sweep/sweep.csv").open()))
    assert len(rows) == 2
    assert all(0 <= float(row["objective"]) <= 1 for row in rows)
    reports = [report_of(tmp_path / "outputs/fam/sweep" / row["run_dir"]) for row in rows]
    assert reports[0]["cost"]["evaluated_items"] > 0
    assert [r["cost"]["evaluated_items"] for r in reports[1:]] == [0]
    assert float(rows[0]["objective"]) == reports[0]["objective"]["search"]


def test_a_list_of_weights_sweeps(family: Path, souping: Cli, tmp_path: Path) -> None:
    pool = [*pool_of(family), "selector=topk", "selector.k=2", "hydra.sweep.dir=outputs/fam/sweep"]
    words = ["optimiser=fixed", "optimiser.weights=[0.3,0.7],[0.6,0.4]", "stop_after=search"]
    done = souping("-m", *pool, *words)
    assert done.code == 0, done.err
    recipes = [json.loads((tmp_path / f"outputs/fam/sweep/{i}/recipe.json").read_text()) for i in (0, 1)]
    assert [recipe["weights"] for recipe in recipes] == [[0.3, 0.7], [0.6, 0.4]]


@pytest.mark.slow
def test_a_tracked_multirun_is_one_group_with_a_summary_run(
    family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.wandb import log_of, of_type

    monkeypatch.setenv("WANDB_MODE", "offline")
    pool = [*pool_of(family), "selector=topk", "selector.k=2", "hydra.sweep.dir=outputs/fam/sweep"]
    done = souping("-m", *pool, "tracker=wandb", "optimiser=uniform", "stop_after=search", "seed=0,1")
    assert done.code == 0, done.err
    sweep = tmp_path / "outputs/fam/sweep"
    (one,), (two,), (summary,) = (of_type(log_of(folder), "run") for folder in (sweep / "0", sweep / "1", sweep))
    assert {run["run_group"] for run in (one, two, summary)} == {"sweep"}
    assert summary["job_type"] == "summary"


def test_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    first, second = (claim(tmp_path / "now", explicit=False) for _ in range(2))
    assert first == (tmp_path / "now", True)
    assert second == (tmp_path / "now_2", True)
    (tmp_path / "now" / CLAIM).unlink()
    (tmp_path / "now" / "report.json").touch()
    assert claim(tmp_path / "now", explicit=False) == (tmp_path / "now_3", True)
    assert claim(tmp_path / "now", explicit=True) == (tmp_path / "now", False)  # never removed


def rows_in(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT COUNT(*) FROM scores").fetchone()[0])
    except sqlite3.Error:
        return 0


def killed_at(rows: int, words: Sequence[str], folder: Path) -> int:
    """Rows in the store of a command that is killed once it has stored so many."""
    victim = subprocess.Popen(
        [sys.executable, "-m", "souping", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    store = folder / "outputs/store.sqlite"
    while victim.poll() is None and rows_in(store) < rows:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    kept = rows_in(store)
    assert kept >= rows
    return kept


def call(family: Path, *more: str) -> list[str]:
    quick = ["selector=topk", "selector.k=3", "optimiser=adaptive", "optimiser.stop=never", "evaluator.batch_size=8"]
    return [*pool_of(family), *quick, *more]


def twice(store: Path) -> int:
    """Answers that one soup gave to one item in one way of asking and one block more than once."""
    query = (
        "SELECT COUNT(*) FROM (SELECT 1 FROM answers GROUP BY soup, evaluator, item, block, replicate "
        "HAVING COUNT(*) > 1)"
    )
    with closing(sqlite3.connect(store)) as db:
        return int(db.execute(query).fetchone()[0])


@pytest.mark.parametrize("rows", [20, 150, 420])
@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(family: Path, souping: Cli, tmp_path: Path, rows: int) -> None:
    words = call(family, "optimiser.budget=500")
    kept = killed_at(rows, words, tmp_path)
    assert souping(*words, "hydra.run.dir=outputs/resumed").code == 0
    assert souping(*words, "store.path=fresh.sqlite", "hydra.run.dir=outputs/fresh").code == 0
    resumed, fresh = (report_of(tmp_path / "outputs" / name) for name in ("resumed", "fresh"))
    named = json.dumps(timeless(resumed)).replace("outputs/resumed", "outputs/fresh")  # in a command
    assert json.loads(named) == timeless(fresh)
    assert twice(tmp_path / "outputs/store.sqlite") == 0
    assert fresh["cost"]["evaluated_items"] - resumed["cost"]["evaluated_items"] == kept


@pytest.mark.slow
def test_a_larger_budget_goes_on_and_a_repetition_asks_nothing(family: Path, souping: Cli, tmp_path: Path) -> None:
    for name, budget in (("small", 300), ("large", 600), ("again", 600)):
        done = souping(*call(family, f"optimiser.budget={budget}"), f"hydra.run.dir={name}")
        assert done.code == 0, done.err
    small, large, again = (report_of(tmp_path / name)["cost"] for name in ("small", "large", "again"))
    assert small["search"]["items"] <= 300 < large["search"]["items"] <= 600
    assert large["search"]["evaluated"] < large["search"]["items"]
    assert again["evaluated_items"] == 0
    assert again["search"]["items"] == large["search"]["items"]
    assert (tmp_path / "again/trials.csv").read_text().count("\n") == (tmp_path / "large/trials.csv").read_text().count(
        "\n"
    )
