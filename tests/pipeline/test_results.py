"""Answers to look at: what samples.jsonl.gz holds, what `show` prints of it, and that looking is noted."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from souping.evaluate.benchmark import Benchmark
from tests.conftest import Cli, finished_words, pool_of

FIXED = ("selector=all", "optimiser=fixed", "optimiser.weights=[0.5,0.5]")
KEYS = {"doc_id", "doc", "target", "arguments", "doc_hash", "prompt_hash", "target_hash"}
"""Of a line that lm_eval's --log_samples writes, what this one has too; resps stand inside its models."""


def lines(run_dir: Path) -> list[dict[str, Any]]:
    with gzip.open(run_dir / "samples.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_every_item_is_there_with_its_answers(family: Path, finished: Path) -> None:
    run = finished / "run"
    report, samples = json.loads((run / "report.json").read_text()), lines(run)
    assert "samples.jsonl.gz" in (finished / "terminal.txt").read_text()
    counts = {fold: sum(sample["fold"] == fold for sample in samples) for fold in ("select", "search", "report")}
    assert counts == report["folds"]
    items = {item.id: item for item in Benchmark(path=str(family / "items.jsonl")).items()}
    for sample in samples:
        item = items[sample["item"]]
        assert sample.keys() >= KEYS
        assert (sample["category"], sample["target"], sample["arguments"]) == (
            item.category, item.answer, [[item.prompt, {}]],
        )  # fmt: skip
        for model in sample["models"].values():
            assert model["resps"] == [model["filtered_resps"]]
            assert model["outcome"] in ("finished", "truncated")
            assert model["score"] == float(model["filtered_resps"][0].split() == str(item.answer).split())
    names = {row["name"] for row in report["rows"]}
    assert set(samples[-1]["models"]) == names >= {"soup", "ant", "bee", "uniform_all"}
    for row in report["rows"]:
        own = [sample["models"][row["name"]]["score"] for sample in samples if sample["fold"] == "report"]
        assert sum(own) / len(own) == pytest.approx(
            sum(cell["mean"] * cell["n"] for cell in row["scores"].values()) / len(own)
        )


@pytest.mark.parametrize(("stop", "folds"), [("select", {"select"}), ("search", {"search"})])
def test_a_run_that_ends_before_its_report_shows_none_of_that_fold(
    family: Path, souping: Cli, tmp_path: Path, stop: str, folds: set[str]
) -> None:
    base = [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=uniform"]
    assert souping(*base, f"stop_after={stop}", "hydra.run.dir=run").code == 0
    samples = lines(tmp_path / "run")
    assert folds <= {sample["fold"] for sample in samples} <= {"select", "search"}
    assert souping("show", "run", "--fold", "report").out.strip() == "0 items"


def test_the_last_fold_that_was_scored_is_shown(souping: Cli, tmp_path: Path) -> None:
    """Answers that another run left, and that have no score, are no reason to show their fold."""
    (tmp_path / "run").mkdir()
    with gzip.open(tmp_path / "run/samples.jsonl.gz", "wt") as file:
        for fold, score in (("select", 1.0), ("search", None)):
            model = {"resps": [["yes"]], "score": score, "outcome": "finished"}
            print(json.dumps({"fold": fold, "item": fold, "category": "c", "models": {"a": model}}), file=file)
    assert "select (c, fold select)" in souping("show", "run").out


@pytest.mark.slow
def test_several_answers_stand_in_one_line(family: Path, souping: Cli, tmp_path: Path) -> None:
    more = ["evaluator.temperature=1.0", "evaluator.samples=3", "limit=2", "hydra.run.dir=run"]
    assert souping(*pool_of(family, "ant", "bee"), *FIXED, *more).code == 0
    for sample in lines(tmp_path / "run"):
        for model in sample["models"].values():
            assert len(model["resps"][0]) == len(model["scores"]) == len(model["outcomes"]) == 3
            assert model["score"] == pytest.approx(sum(model["scores"]) / 3)
    assert "2. " in souping("show", "run").out


class TestShow:
    def test_what_was_fixed_and_what_broke(self, souping: Cli, family: Path, tmp_path: Path) -> None:
        made = souping(*pool_of(family), "selector=topk", "selector.k=2", "optimiser=uniform", "hydra.run.dir=run")
        assert made.code == 0, made.err
        run = tmp_path / "run"
        report = json.loads((run / "report.json").read_text())
        (best,) = [row["name"] for row in report["rows"] if row["kind"] == "best_single"]
        gaps = {
            sample["item"]: sample["models"]["soup"]["score"] - sample["models"][best]["score"]
            for sample in lines(run)
            if sample["fold"] == "report"
        }
        for flag, sign in (("--fixed", 1), ("--broke", -1)):
            said = souping("show", "run", flag, "--limit", "1000").out
            wanted = {name for name, gap in gaps.items() if gap * sign > 0}
            assert wanted
            assert {name for name in gaps if f"{name} (" in said} == wanted
            assert f"{len(wanted)} items that soup answers {'better' if sign > 0 else 'worse'} than {best}" in said

    def test_a_category_and_its_prompt_reference_and_answers(self, souping: Cli, finished_copy: Path) -> None:
        said = souping("show", "run", "--category", "green", "--limit", "2").out
        assert said.count("(green, fold report)") == 2
        assert "prompt: green " in said
        assert "reference: " in said
        assert "soup: " in said
        souping("show", "run", "--category", "gren").refused("did you mean green?")
        souping("show", "run", "--models", "soup,cow").refused("--models=cow", "uniform_all")
        souping("show", "run", "--item", "cow").refused("--item=cow")
        item = said.split(" (green")[0].split()[-1]
        told = souping("show", "run", "--item", item, "--category", "red")
        told.refused("--category=red is not one of green")
        souping("show", "outputs").refused("no samples.jsonl.gz")

    def test_looking_is_noted_and_told_to_the_next_recipe(
        self, family: Path, souping: Cli, finished_copy: Path, tmp_path: Path
    ) -> None:
        def views() -> list[tuple[str, int]]:
            with closing(sqlite3.connect(tmp_path / "outputs/store.sqlite")) as db:
                return db.execute(
                    "SELECT recipe, COUNT(*) FROM views JOIN members USING (item_set) GROUP BY recipe"
                ).fetchall()

        recipe = json.loads((finished_copy / "report.json").read_text())["recipe"]["id"]
        souping("show", "run", "--fold", "search")
        assert views() == []
        souping("show", "run", "--category", "red")
        ((seen, count),) = views()
        assert seen == recipe
        again = souping(*finished_words(family), "analysis=[]", "hydra.run.dir=again/two")
        assert "were looked at" not in again.out  # frozen before
        other = souping(*pool_of(family), "selector=all", "optimiser=uniform", "hydra.run.dir=again/three")
        assert f"answers to {count} of" in other.out
        report = json.loads((tmp_path / "again/three/report.json").read_text())
        assert any("were looked at" in warning for warning in report["warnings"])

    def test_a_run_whose_store_is_gone_says_that_it_is_noted_nowhere(
        self, souping: Cli, finished_copy: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "outputs/store.sqlite").rename(tmp_path / "moved.sqlite")
        assert "noted nowhere" in souping("show", "run").err
        assert souping("show", "run", "--store", "moved.sqlite").err == ""
        souping("show", "run", "--store", "none.sqlite").refused("there is no such file")

    def test_damaged_samples_are_told(self, souping: Cli, finished_copy: Path) -> None:
        path = finished_copy / "samples.jsonl.gz"
        path.write_bytes(path.read_bytes()[:-200])
        souping("show", "run").refused("samples.jsonl.gz: cannot be read")
