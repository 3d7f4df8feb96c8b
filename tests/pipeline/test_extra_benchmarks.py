"""Benchmarks beside the one that is optimised: entries are checked first, evaluated last, and regressions shown."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.cli.config import HARNESS, also_nodes
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, Recipe, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline.evidence import ExtraBenchmark, compare_on
from souping.pipeline.settings import ExtraEntry
from souping.pipeline.steps import extra_benchmarks
from tests.conftest import Cli, FakeEvaluator, make_items, pool_of
from tests.support.lm_eval_tasks import CHOICE, put, rows

OWN = {"_target_": "x", "dtype": "bfloat16", "device": "cpu", "threads": 1}


FILE = {"name": "side", "benchmark": {"_target_": "souping.evaluate.benchmark.Benchmark", "path": "PATH"}}
TASK = {"_target_": HARNESS, "tasks": ["hellaswag"], "dtype": "bfloat16", "device": "cpu", "threads": 1}
LOCAL = {"_target_": "souping.evaluate.generate.LocalEvaluator"}
FULL = {"name": "n", "evaluator": LOCAL, "benchmark": {"_target_": "b"}, "objective": {"_target_": "o"}}


class Three:
    """Three items of each category."""

    def items(self) -> tuple[Item, ...]:
        return tuple(make_items(3))


class TestEntries:
    @pytest.mark.parametrize(
        ("entry", "node"),
        [
            ("hellaswag", {"name": "hellaswag", "evaluator": TASK}),
            (
                {"tasks": ["a", "b"], "num_fewshot": 3, "dtype": "float32"},
                {"name": "a+b", "evaluator": {**TASK, "tasks": ["a", "b"], "num_fewshot": 3, "dtype": "float32"}},
            ),
            (FULL, FULL),
        ],
    )
    def test_tasks_and_mappings(self, entry: Any, node: Any) -> None:
        assert also_nodes(entry, 0, OWN) == node

    def test_a_file_is_answered_by_the_runs_own_evaluator(self, tmp_path: Path) -> None:
        path = tmp_path / "side.jsonl"
        path.write_text('{"id": "1", "category": "c", "prompt": "p", "answer": "a"}\n')
        assert also_nodes(str(path), 0, OWN) == {**FILE, "benchmark": {**FILE["benchmark"], "path": str(path)}}
        with pytest.raises(UserError, match=r"no such file; did you mean side.jsonl\?"):
            also_nodes(str(tmp_path / "sde.jsonl"), 0, OWN)

    def test_tasks_are_looked_for_where_the_runs_own_are(self) -> None:
        own = {**OWN, "_target_": HARNESS, "include_path": "sheets"}
        assert also_nodes("letters", 0, own)["evaluator"]["include_path"] == "sheets"
        entry = {"tasks": ["letters"], "include_path": "others"}
        assert also_nodes(entry, 0, own)["evaluator"]["include_path"] == "others"

    @pytest.mark.parametrize(
        "entry", [3, "", {"pth": "x"}, {"name": "x"}, {"tasks": []}, {"path": "x", "benchmark": {}}]
    )
    def test_what_is_none_of_these_is_refused(self, entry: Any) -> None:
        with pytest.raises(UserError, match=r"also\[2\]"):
            also_nodes(entry, 2, OWN)

    def test_names_must_differ(self) -> None:
        entry = ExtraEntry(name="a", benchmark=Three())
        with pytest.raises(UserError, match="two entries are called 'a'"):
            extra_benchmarks([entry, entry], FakeEvaluator(skill={}))

    def test_an_evaluator_with_items_of_its_own_leaves_files_to_local(self) -> None:
        class Own(FakeEvaluator):
            brings_items = True

        own = Own(skill={})
        own.dtype, own.threads = "bfloat16", 1  # type: ignore[attr-defined]
        (found,) = extra_benchmarks([ExtraEntry(name="a", benchmark=Three())], own)
        assert found.evaluator == LocalEvaluator(dtype="bfloat16", threads=1)
        assert isinstance(found.objective, Mean)


def recipe(name: str) -> Recipe:
    return Recipe(ingredients=(name,), fingerprints=(name,), weights=(1.0,), dtype="float32")


class TestBeside:
    """A soup that lost category w to a and gained on b."""

    @pytest.fixture
    def entry(self) -> dict[str, Any]:
        items = tuple(make_items(60))
        skill = {"soup": (20, 50), "a": (45, 50), "b": (5, 5)}
        recipes = {name: recipe(name) for name in skill}

        def scores(asked: Recipe) -> ItemScores:
            limits = dict(zip(("w", "x"), skill[asked.ingredients[0]], strict=True))
            return ItemScores(items=items, values=np.array([float(int(i.answer) < limits[i.category]) for i in items]))

        side = ExtraBenchmark(name="other", evaluator=FakeEvaluator(skill={}), items=items, objective=Mean())
        ingredients = {name: recipes[name] for name in ("a", "b")}
        return compare_on(side, recipes["soup"], ingredients, {r.id: scores(r) for r in recipes.values()})

    def test_rows_and_pairs(self, entry: dict[str, Any]) -> None:
        assert [row["name"] for row in entry["rows"]] == ["a", "b", "soup"]
        assert entry["items"] == 120
        assert entry["groups"] == 60
        assert [(c["b"], round(c["difference"], 3)) for c in entry["comparisons"]] == [("a", -0.208), ("b", 0.5)]
        assert [c["verdict"] for c in entry["comparisons"]] == ["lower", "higher"]
        assert all(c["p_value"] <= c["p_holm"] for c in entry["comparisons"])

        found = {(c["category"], c["b"]): c for c in entry["categories"]}
        assert found["w", "a"]["verdict"] == "lower"
        assert found["w", "a"]["n"] == 60
        assert found["x", "a"]["verdict"] == "no difference shown"
        assert found["x", "b"]["verdict"] == "higher"


@pytest.fixture(scope="module")
def side(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the family's items under other names."""
    path = tmp_path_factory.mktemp("side") / "side.jsonl"
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()][::2]
    path.write_text("".join(json.dumps({**row, "id": f"side-{row['id']}"}) + "\n" for row in rows))
    return path


class Picky(LocalEvaluator):
    """An evaluator that refuses its candidates, as BFCL's does where a handler is not there."""

    def check(self, candidates: Sequence[str]) -> None:
        raise UserError(", ".join(candidates))


def settings(family: Path) -> list[str]:
    return [*pool_of(family), "selector=topk", "selector.k=2", "optimiser=uniform", "store.path=store.sqlite"]


def known(tmp_path: Path) -> int:
    return int(sqlite3.connect(tmp_path / "store.sqlite").execute("SELECT COUNT(*) FROM scores").fetchone()[0])


class TestRuns:
    def test_soup_and_ingredients_on_all_items(self, family: Path, side: Path, souping: Cli, tmp_path: Path) -> None:
        plain = souping(*settings(family), "hydra.run.dir=plain")
        assert plain.code == 0, plain.err
        before = known(tmp_path)
        done = souping(*settings(family), f"also=[{side}]", "hydra.run.dir=out")
        assert done.code == 0, done.err
        assert known(tmp_path) == before + 3 * 90  # the soup and its two ingredients, nothing else
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        (entry,) = report["also"]
        assert [row["kind"] for row in entry["rows"]] == ["ingredient", "ingredient", "soup"]
        assert entry["items"] == sum(s["n"] for s in entry["rows"][0]["scores"].values()) == 90
        assert {c["b"] for c in entry["comparisons"]} == set(report["selection"]["ingredients"])
        assert len(entry["categories"]) == 2 * 3
        assert entry["shared"] == 90
        assert "90 of its 90 prompts stand in the run's own benchmark too" in (tmp_path / "out/report.md").read_text()
        assert report["cost"]["evaluated_items"] == 3 * 90
        apart = ("also", "cost", "rebuild", "warnings")  # the last tell of the side benchmark too
        without = {k: v for k, v in report.items() if k not in apart}
        first = json.loads((tmp_path / "plain" / "report.json").read_text())
        assert without == {k: v for k, v in first.items() if k not in apart}  # nothing was chosen on it
        again = souping(*settings(family), f"also=[{side}]", "hydra.run.dir=again")
        assert again.code == 0, again.err
        assert json.loads((tmp_path / "again" / "report.json").read_text())["cost"]["evaluated_items"] == 0

    def test_wrong_entries_are_refused_before_work(
        self, family: Path, side: Path, souping: Cli, tmp_path: Path
    ) -> None:
        local, weighted = "souping.evaluate.generate.LocalEvaluator", "souping.core.scores.Weighted"
        for entry, needle in (
            ("nowhere.jsonl", "also[0]=nowhere.jsonl"),
            (f"{{path: SIDE, evaluator: {{_target_: {local}, max_tokens: 2}}}}", "max_new_tok"),
            ("{path: SIDE, evaluator: {_target_: souping.evaluate.nothing.Here}}", "can be imported"),
            (f"{{path: SIDE, objective: {{_target_: {weighted}, weights: {{rad: 1}}}}}}", "category=rad"),
            (f"{{evaluator: {{_target_: {local}}}}}", "brings no items"),
            ("{path: SIDE, evaluator: {_target_: tests.pipeline.test_extra_benchmarks.Picky}}", "ant, bee"),
        ):
            souping(*settings(family), f"also=[{entry.replace('SIDE', str(side))}]").refused(needle)
            assert not (tmp_path / "store.sqlite").exists() or known(tmp_path) == 0


class TestHarness:
    @pytest.mark.slow
    def test_a_task_beside(self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lm_eval")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        put(tmp_path, "letters", rows(40, 0), CHOICE)
        entry = "{" + f"tasks: [letters], name: letters, include_path: {tmp_path}, include_defaults: false" + "}"
        done = souping(*settings(family), f"also=[{entry}]", "hydra.run.dir=out")
        assert done.code == 0, done.err
        (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["also"]
        assert (found["name"], found["evaluator"], found["items"]) == ("letters", "lm_eval", 40)
        assert [row["name"] for row in found["rows"]][-1] == "soup"

    def test_an_unknown_task_is_refused_before_work(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        put(tmp_path, "letters", rows(40, 0), CHOICE)
        entry = "{" + f"tasks: [leters], include_path: {tmp_path}, include_defaults: false" + "}"
        souping(*settings(family), f"also=[{entry}]").refused("leters", "letters")
        assert not (tmp_path / "store.sqlite").exists() or known(tmp_path) == 0
