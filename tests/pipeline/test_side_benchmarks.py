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
from souping.core.objectives import Mean
from souping.core.text import install
from souping.core.types import Item, ItemScores, Recipe, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.pipeline import side_benchmarks
from souping.report.tables import sentences
from tests.conftest import Cli, FakeEvaluator, make_items, pool_of

OWN = {"_target_": "x", "dtype": "bfloat16", "device": "cpu", "threads": 1}


class TestEntries:
    def test_a_file_is_read_by_the_runs_own_evaluator(self, tmp_path: Path) -> None:
        path = tmp_path / "side.jsonl"
        path.write_text('{"id": "1", "category": "c", "prompt": "p", "answer": "a"}\n')
        found = also_nodes(str(path), 0, OWN)
        assert found == {
            "name": "side",
            "benchmark": {"_target_": "souping.evaluate.benchmark.Benchmark", "path": str(path)},
        }

    def test_any_other_text_is_a_task(self) -> None:
        found = also_nodes("hellaswag", 0, OWN)
        assert found["name"] == "hellaswag"
        assert found["evaluator"] == {
            "_target_": HARNESS,
            "tasks": ["hellaswag"],
            "dtype": "bfloat16",
            "device": "cpu",
            "threads": 1,
        }

    def test_tasks_beside_the_runs_own_are_looked_for_where_those_are(self) -> None:
        own = {**OWN, "_target_": HARNESS, "include_path": "sheets"}
        assert also_nodes("letters", 0, own)["evaluator"]["include_path"] == "sheets"
        entry = {"tasks": ["letters"], "include_path": "others"}
        assert also_nodes(entry, 0, own)["evaluator"]["include_path"] == "others"
        assert "include_path" not in also_nodes("letters", 0, OWN)["evaluator"]

    def test_a_mapping_of_tasks_keeps_its_settings(self) -> None:
        found = also_nodes({"tasks": ["a", "b"], "num_fewshot": 3, "dtype": "float32"}, 0, OWN)
        assert found["name"] == "a+b"
        assert found["evaluator"]["num_fewshot"] == 3
        assert found["evaluator"]["dtype"] == "float32"

    def test_full_control(self) -> None:
        node = {"_target_": "souping.evaluate.generate.LocalEvaluator"}
        entry = {"name": "n", "evaluator": node, "benchmark": {"_target_": "b"}, "objective": {"_target_": "o"}}
        assert also_nodes(entry, 0, OWN) == entry

    @pytest.mark.parametrize(
        ("entry", "says"),
        [
            (3, "must be a JSON Lines file, an lm_eval task or a mapping"),
            ("", "must be a JSON Lines file"),
            ({"pth": "x"}, "did you mean path?"),
            ({"name": "x"}, "names no items"),
            ({"tasks": []}, "tasks is empty"),
            ({"path": "x", "benchmark": {}}, "give one"),
        ],
    )
    def test_what_is_none_of_these_is_refused(self, entry: Any, says: str) -> None:
        with pytest.raises(UserError, match=r"also\[2\]") as caught:
            also_nodes(entry, 2, OWN)
        assert says in str(caught.value)

    def test_a_file_that_is_not_there_names_the_nearest(self, tmp_path: Path) -> None:
        (tmp_path / "side.jsonl").write_text("x")
        with pytest.raises(UserError, match=r"no such file; did you mean side.jsonl\?"):
            also_nodes(str(tmp_path / "sde.jsonl"), 0, OWN)

    def test_names_must_differ(self) -> None:
        class Three:
            def items(self) -> tuple[Item, ...]:
                return tuple(make_items(3))

        entry = side_benchmarks.SideEntry(name="a", benchmark=Three())
        with pytest.raises(UserError, match="two entries are called 'a'"):
            side_benchmarks.sides([entry, entry], FakeEvaluator(skill={}))

    def test_an_evaluator_with_items_of_its_own_leaves_files_to_local(self) -> None:
        class Own(FakeEvaluator):
            brings_items = True

        class Three:
            def items(self) -> tuple[Item, ...]:
                return tuple(make_items(3))

        own = Own(skill={})
        own.dtype, own.threads = "bfloat16", 1  # type: ignore[attr-defined]
        found = side_benchmarks.sides([side_benchmarks.SideEntry(name="a", benchmark=Three())], own)[0]
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

        side = side_benchmarks.SideBenchmark(
            name="other", evaluator=FakeEvaluator(skill={}), items=items, objective=Mean()
        )
        ingredients = {name: recipes[name] for name in ("a", "b")}
        return side_benchmarks.compare_on(
            side, recipes["soup"], ingredients, {r.id: scores(r) for r in recipes.values()}
        )

    def test_rows_and_pairs(self, entry: dict[str, Any]) -> None:
        assert [row["name"] for row in entry["rows"]] == ["a", "b", "soup"]
        assert entry["items"] == 120
        assert entry["groups"] == 60
        assert [(c["b"], round(c["difference"], 3)) for c in entry["comparisons"]] == [("a", -0.208), ("b", 0.5)]
        assert [c["verdict"] for c in entry["comparisons"]] == ["lower", "higher"]
        assert all(c["p_value"] <= c["p_holm"] for c in entry["comparisons"])

    def test_categories(self, entry: dict[str, Any]) -> None:
        found = {(c["category"], c["b"]): c for c in entry["categories"]}
        assert found["w", "a"]["verdict"] == "lower"
        assert found["w", "a"]["n"] == 60
        assert found["x", "a"]["verdict"] == "no difference shown"
        assert found["x", "b"]["verdict"] == "higher"

    def test_the_words_say_what_was_lost(self, entry: dict[str, Any]) -> None:
        lines = list(sentences({"also": [entry]}))
        assert lines[0].startswith("other: the soup is below a by 20.8 points (95 % interval of the difference ")
        assert "w (a, \N{MINUS SIGN}41.7)" in lines[1]

    def test_where_nothing_is_shown_the_interval_is_told(self, entry: dict[str, Any]) -> None:
        alone = {**entry, "comparisons": entry["comparisons"][1:], "categories": []}
        (line,) = sentences({"also": [alone]})
        assert line.startswith("other: no regression shown; the intervals reach down to +")


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
        for name in ("report.md", "report.html"):
            assert "Other benchmarks" in (tmp_path / "out" / name).read_text()
        assert "also   model" in done.out.replace("  also", "also").replace("also     model", "also   model")

        again = souping(*settings(family), f"also=[{side}]", "hydra.run.dir=again")
        assert again.code == 0, again.err
        assert json.loads((tmp_path / "again" / "report.json").read_text())["cost"]["evaluated_items"] == 0

    @pytest.mark.slow
    def test_an_evaluator_of_its_own(self, family: Path, side: Path, souping: Cli, tmp_path: Path) -> None:
        node = "{_target_: souping.evaluate.generate.LocalEvaluator, max_new_tokens: 2, threads: 1}"
        entry = "{" + f"name: short, path: {side}, evaluator: {node}" + "}"
        done = souping(*settings(family), f"also=[{entry}]", "hydra.run.dir=out")
        assert done.code == 0, done.err
        (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["also"]
        assert (found["name"], found["evaluator"]) == ("short", "local")

    @pytest.mark.parametrize(
        ("entry", "needle"),
        [
            ("nowhere.jsonl", "also[0]=nowhere.jsonl: there is no such file"),
            (
                "{path: SIDE, evaluator: {_target_: souping.evaluate.generate.LocalEvaluator, max_tokens: 2}}",
                "max_new_tok",
            ),
            ("{path: SIDE, evaluator: {_target_: souping.evaluate.nothing.Here}}", "can be imported"),
            (
                "{path: SIDE, objective: {_target_: souping.core.objectives.Weighted, weights: {rad: 1}}}",
                "category=rad",
            ),
            ("{evaluator: {_target_: souping.evaluate.generate.LocalEvaluator}}", "brings no items"),
            ("{path: SIDE, evaluator: {_target_: tests.pipeline.test_side_benchmarks.Picky}}", "ant, bee"),
        ],
    )
    def test_wrong_entries_are_refused_before_work(
        self, family: Path, side: Path, souping: Cli, tmp_path: Path, entry: str, needle: str
    ) -> None:
        souping(*settings(family), f"also=[{entry.replace('SIDE', str(side))}]").refused(needle)
        assert not (tmp_path / "store.sqlite").exists() or known(tmp_path) == 0


def task(folder: Path, family: Path) -> Path:
    """A local task of lm_eval: which of three letters follows."""
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()][:40]
    lines = ({"text": row["prompt"], "gold": number % 3} for number, row in enumerate(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sheet = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["a", "b", "c"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "letters.yaml").write_text(json.dumps(sheet))
    return folder / "letters.yaml"


class TestHarness:
    @pytest.mark.slow
    def test_a_task_beside(self, family: Path, souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lm_eval")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        sheet = task(tmp_path, family)
        entry = "{" + f"tasks: [letters], name: letters, include_path: {sheet.parent}, include_defaults: false" + "}"
        done = souping(*settings(family), f"also=[{entry}]", "hydra.run.dir=out")
        assert done.code == 0, done.err
        (found,) = json.loads((tmp_path / "out" / "report.json").read_text())["also"]
        assert (found["name"], found["evaluator"], found["items"]) == ("letters", "lm_eval", 40)
        assert [row["name"] for row in found["rows"]][-1] == "soup"

    def test_an_unknown_task_is_refused_before_work(self, family: Path, souping: Cli, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval")
        sheet = task(tmp_path, family)
        entry = "{" + f"tasks: [leters], include_path: {sheet.parent}, include_defaults: false" + "}"
        souping(*settings(family), f"also=[{entry}]").refused("leters", "letters")
        assert not (tmp_path / "store.sqlite").exists() or known(tmp_path) == 0

    def test_without_the_extra_the_line_to_install_it(
        self, family: Path, souping: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("souping.evaluate.lm_eval.tasks.find_spec", lambda name: None)
        souping(*settings(family), "also=[hellaswag]").refused(install("lm_eval"))
