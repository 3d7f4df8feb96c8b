"""Selection from logs: item by item, so that its stability is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping import select
from souping.analysis.stability import stability
from souping.core.types import ScoreMatrix, UserError
from souping.logs.log_scores import LogScores
from souping.selection import All
from tests.conftest import Cli, pool_of
from tests.support.logs import DATA, write_csv

LM_EVAL = {name: str(DATA / "lm_eval" / name) for name in ("tuned_python", "tuned_java")}


def unmeasured() -> ScoreMatrix:
    raise AssertionError("logs are not measured")


def source(folder: Path, scores: dict[str, list[Any]]) -> LogScores:
    """Logs of {model: scores}, one category, two items in a group."""
    paths = {}
    for name, values in scores.items():
        rows = [
            {"item": n, "category": "c", "score": value, "group": n // 2}
            for n, value in enumerate(values)
        ]
        paths[name] = str(write_csv(folder / f"{name}.csv", rows))
    return LogScores(path=paths)


def test_tasks_are_categories_with_the_harness_own_scores() -> None:
    found = LogScores(path=LM_EVAL).matrix(["tuned_java"], unmeasured)
    assert set(found.categories) == {"pick", "pick2", "shots", "last"}  # no corpus metric
    assert found.candidates == ("tuned_java",)
    assert found.models == ("tuned_python", "tuned_java")
    assert found.values[0, found.categories.index("pick")] == 0.25
    steady = stability(found, All(), draws=20)
    assert steady.method == "bootstrap over items"


def test_items_without_a_score_are_left_out_for_all(tmp_path: Path) -> None:
    found = source(tmp_path, {"a": [1, 1, 0, ""], "b": [0, 1, "", 1]}).matrix(
        ["a", "b"], unmeasured
    )
    np.testing.assert_array_equal(found.values, [[1.0], [0.5]])
    assert found.items is not None
    assert [item.group for item in found.items["a"].items] == ["0", "0"]


@pytest.mark.parametrize(
    ("scores", "candidates", "words"),
    [
        ({"a": [1, 0], "b": [0, 1]}, ["a", "c"], "scores.path"),
        ({"a": [1, ""], "b": ["", 1]}, ["a", "b"], "scored for every model"),
        ({"a": [50, 40], "b": [40, 50]}, ["a", "b"], "higher_is_better"),
    ],
)
def test_logs_that_cannot_select_are_refused(
    tmp_path: Path, scores: dict[str, list[Any]], candidates: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        source(tmp_path, scores).matrix(candidates, unmeasured)


@pytest.mark.slow
def test_a_run_selects_from_logs(souping: Cli, family: Path, tmp_path: Path) -> None:
    """A whole run: no candidate is evaluated on a select split, and the report has the selection's stability."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        rows = [
            {"item": n, "category": "xyz"[n % 3], "score": int(rng.random() < 0.5)}
            for n in range(60)
        ]
        write_csv(tmp_path / f"{name}.csv", rows)
    logs = ",".join(f"{name}:{name}.csv" for name in ("ant", "bee", "cat"))
    words = [
        *pool_of(family, "ant", "bee", "cat"),
        "scores=logs",
        f"scores.path={{{logs}}}",
        "selector.threshold=0.9",
    ]
    done = souping(*words, "optimiser=uniform", "hydra.run.dir=run")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["splits"]["select"] == 0
    assert report["stability"]["method"] == "bootstrap over items"
    assert report["selection"]["published"]
    souping(*words[:-2], "scores.path={ant:ant.csv,bee:bee.csv}", "stop_after=select").refused(
        "scores.path", "cat"
    )


def folder_of_logs(folder: Path) -> Path:
    """Three models' logs as people keep them: a table, a folder of lm_eval, notes, a hidden file."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in ("ant-1.5", "bee", "cat"):
        rows = [
            {"item": n, "category": "xyz"[n % 3], "score": int(rng.random() < 0.5)}
            for n in range(60)
        ]
        write_csv(folder / f"{name}.csv", rows)
    (folder / "README.md").write_text("notes")
    (folder / ".hidden.csv").write_text("no table")
    return folder


def test_a_folder_has_one_log_per_model_named_by_its_file(tmp_path: Path) -> None:
    scores = LogScores(path=str(folder_of_logs(tmp_path / "evals")))
    assert scores.models == ("ant-1.5", "bee", "cat")
    assert scores.matrix(["bee"], unmeasured).models == scores.models


def test_a_folder_of_folders_and_a_project_of_bfcl_name_their_models() -> None:
    assert LogScores(path=str(DATA / "lm_eval")).models == tuple(sorted(LM_EVAL))
    assert LogScores(path=str(DATA / "bfcl" / "a")).models == ("plain",)


def test_a_folder_that_does_not_name_one_log_per_model_is_refused(tmp_path: Path) -> None:
    folder = folder_of_logs(tmp_path / "evals")
    (folder / "bee.jsonl").write_text("{}")
    for path, words in (
        (folder, "rename one"),
        (tmp_path / "eval", "did you mean"),
        (tmp_path / "evals" / "cat.csv", "no folder of logs"),
        (DATA / "lm_eval" / "tuned_java" / "models__tuned_java", "the log of one model"),
    ):
        with pytest.raises(UserError, match=words):
            assert LogScores(path=str(path)).models
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no logs"):
        assert LogScores(path=str(tmp_path / "empty")).models


def test_a_selection_takes_all_models_of_a_folder_unless_candidates_are_named(
    souping: Cli, tmp_path: Path
) -> None:
    folder_of_logs(tmp_path / "evals")
    words = ["scores=logs", "scores.path=evals", "stop_after=select", "selector=all"]
    souping(*words, "hydra.run.dir=every").ok()
    souping(*words, "pool.candidates=[ant-1.5,cat]", "hydra.run.dir=two").ok()
    chosen = {}
    for run in ("every", "two"):
        selection = json.loads((tmp_path / run / "selection.json").read_text())
        chosen[run] = selection["ingredients"]
    assert chosen == {"every": ["ant-1.5", "bee", "cat"], "two": ["ant-1.5", "cat"]}


@pytest.mark.parametrize("words", [["scores=evaluate", "stop_after=select"], ["+experiment=merge"]])
def test_candidates_must_be_named_where_no_score_names_them(souping: Cli, words: list[str]) -> None:
    souping(*words).refused("pool.candidates")


def test_every_model_of_a_table_may_be_the_candidate_of_a_selection(
    souping: Cli, tmp_path: Path
) -> None:
    (tmp_path / "board.csv").write_text("model,x,y\norg/a@1,1,0\nb c,0,1\nd,0.5,0.4\n")
    words = ["scores=table", "scores.path=board.csv", "stop_after=select", "selector=all"]
    souping(*words, "hydra.run.dir=run").ok()
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["ingredients"] == ["org/a@1", "b c", "d"]
    souping(*words[:1], "scores.path=.", *words[2:]).refused("scores=logs")
    souping(*words[:2], "selector=all").refused("pool.candidates is not set")


def test_the_library_selects_from_a_folder_of_logs(tmp_path: Path) -> None:
    selection = select(folder_of_logs(tmp_path / "evals"), All())
    assert selection.ingredients == ("ant-1.5", "bee", "cat")
